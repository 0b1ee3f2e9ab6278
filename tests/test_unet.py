"The U-Net: every kind of image it should take, what it refuses, how it starts, and that it comes back from disk as it was"
import json
import pytest, torch, torch.nn as nn, torch.nn.functional as F
import matplotlib; matplotlib.use('agg')
import matplotlib.pyplot as plt
from cell_diffusion.core import generator
from cell_diffusion.unet import *
from cell_diffusion.unet import _feature_maps

def awake(model, seed=0):
    "The model, with random weights where it starts at zero"
    g = generator(seed)
    for p in model.parameters():
        if p.ndim == 4 and not p.any(): p.data = torch.randn(p.shape, generator=g)*p[0].numel()**-.5
    return model.eval()

def noise(*shape, seed=0): return torch.randn(*shape, generator=generator(seed))

two = torch.tensor([0, 999])

@pytest.fixture(autouse=True)
def seeded(): torch.manual_seed(0)

@pytest.mark.parametrize('channels', [1, 2, 3, 5])
@pytest.mark.parametrize('size', [28, 32, 40, 64, 128])
@pytest.mark.parametrize('patch', [1, 2])
def test_channels_and_sizes(channels, size, patch):
    model = awake(UNet(channels, dim=8, patch=patch, mults=(1, 2, 3)[:4 - patch]))
    with torch.no_grad(): out = model(noise(2, channels, size, size), two)
    assert out.shape == (2, channels, size, size) and out.dtype == torch.float32
    assert out.isfinite().all() and .1 < out.std() < 10

@pytest.mark.parametrize('settings', [dict(), dict(mults=(1,)), dict(mults=(2, 3)), dict(mults=(1, 2, 2, 4), blocks=2), dict(patch=4, mults=(1, 2)), dict(attention=False),
                                      dict(channels=7, out_channels=3), dict(dim=10, mults=(1, 5)), dict(dim=50, mults=(1, 2)), dict(n_classes=8, dropout=.5), dict(dim=1)], ids=str)
def test_settings(settings):
    model = awake(UNet(**{'dim': 8, **settings})); c = model.channels
    with torch.no_grad(): out = model(noise(2, c, 32, 48), two)
    assert out.shape == (2, settings.get('out_channels', c), 32, 48) and out.isfinite().all()

def test_factor_says_what_fits():
    for settings in dict(), dict(patch=2), dict(mults=(1,), patch=3), dict(mults=(1, 1, 1, 1)):
        model = UNet(1, dim=4, **settings)
        for size in range(model.factor, 4*model.factor + 1):
            if size % model.factor:
                with pytest.raises(ValueError, match=f'multiple of {model.factor}'): model(noise(1, 1, size, size), two[:1])
            elif size > 4: assert model(noise(1, 1, size, size), two[:1]).shape == (1, 1, size, size)

def test_errors_say_what_to_do():
    model, x = UNet(dim=8), noise(2, 3, 32, 32)
    for inputs, words in [((x[:, :1], two), 'pass channels=1'), ((x[0], two), 'batch, channel'), ((x[..., :30], two), r'\(32, 30\) is not a multiple of 4'),
                          ((x, two, two), 'n_classes'), ((x, 5), 'one timestep an image'), ((x, torch.tensor(5)), 'one timestep an image'), ((x, torch.zeros(3)), r'\(2,\), got \(3,\)')]:
        with pytest.raises(ValueError, match=words): model(*inputs)
    labelled = UNet(dim=8, n_classes=3)
    for bad in [-1, 0], [0, 4]:
        with pytest.raises(ValueError, match='0 to 2, and 3 is the null class'): labelled(x, two, torch.tensor(bad))
    with pytest.raises(ValueError, match='one label an image'): labelled(x, two, torch.zeros(3).long())
    with pytest.raises(ValueError, match='1 or more'): UNet(0)
    with pytest.raises(ValueError, match='even'): timestep_embedding(two, 7)

def test_starts_at_zero_and_blocks_as_identity():
    model, x = UNet(dim=16, n_classes=2), noise(2, 3, 32, 32)
    assert (model(x, two) == 0).all()
    h, emb = noise(2, 32, 8, 8), noise(2, 64)
    assert torch.equal(ResBlock(32, 32, 64)(h, emb), h) and torch.equal(Attention(32)(h), h)
    block = ResBlock(32, 48, 64); assert torch.equal(block(h, emb), block.skip(h))

def test_null_class():
    model, x = awake(UNet(dim=16, n_classes=3)), noise(2, 3, 32, 32)
    null, first, second = (model(x, two, torch.full((2,), i)) for i in (3, 0, 1))
    assert torch.equal(model(x, two), null)
    assert not torch.allclose(null, first) and not torch.allclose(first, second)
    mixed = model(x, two, torch.tensor([0, 3]))
    assert torch.allclose(mixed[:1], first[:1], atol=1e-5) and torch.allclose(mixed[1:], null[1:], atol=1e-5)

def test_images_of_a_batch_do_not_meet():
    model, x, t = awake(UNet(dim=16, patch=2)), noise(4, 3, 32, 32), torch.tensor([0, 10, 500, 999])
    with torch.no_grad(): assert torch.allclose(model(x, t)[2:3], model(x[2:3], t[2:3]), atol=1e-5)

def test_time_matters():
    model, x = awake(UNet(dim=16)), noise(1, 3, 32, 32)
    assert not torch.allclose(model(x, two[:1]), model(x, two[1:]), atol=1e-3)
    a, b = timestep_embedding(two, 64), timestep_embedding(two.float(), 64)
    assert torch.equal(a, b) and torch.allclose(a.norm(dim=1), torch.tensor(32.).sqrt())

@pytest.mark.parametrize('settings', [dict(), dict(channels=2, out_channels=1, patch=2, mults=(1, 2), n_classes=4, attention=False, blocks=2, dropout=.1)], ids=['default', 'all'])
def test_saved_and_loaded(settings, tmp_path):
    model = awake(UNet(dim=8, **settings).to(memory_format=torch.channels_last))
    model.save_pretrained(tmp_path)
    assert (tmp_path/'model.safetensors').exists()
    config = json.loads((tmp_path/'config.json').read_text())
    assert config['dim'] == 8 and {k: tuple(v) if isinstance(v, list) else v for k, v in config.items()}.items() >= settings.items()
    again, x = UNet.from_pretrained(tmp_path), noise(2, model.channels, 32, 32)
    assert list(again.state_dict()) == list(model.state_dict()) and not again.training
    with torch.no_grad(): assert torch.allclose(again(x, two), model(x, two), atol=1e-6)
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), model.state_dict().values()))

def test_names_of_weights_stay():
    "Shipped weights are found by these names"
    names = {'.'.join(k.split('.')[:2]) if k[:2] in ('do', 'up', 'mi') else k.split('.')[0] for k in UNet(dim=8, n_classes=2).state_dict()}
    assert names == {'embedding', 'conv_in', 'out', *(f'down.{i}' for i in range(5)), *(f'mid.{i}' for i in range(3)), *(f'up.{i}' for i in range(8))}
    assert set(UNet(dim=8, n_classes=2).embedding.state_dict()) == {'time.0.weight', 'time.0.bias', 'time.2.weight', 'time.2.bias', 'label.weight'}
    assert set(ResBlock(8, 16, 8).state_dict()) == {f'{n}.{w}' for n in ('norm1', 'conv1', 'norm2', 'conv2', 'emb', 'skip') for w in ('weight', 'bias')}
    assert n_params(UNet()) == 1_797_123

def test_bfloat16_autocast():
    model, x = awake(UNet(dim=16, n_classes=2)), noise(2, 3, 32, 32)
    full = model(x, two)
    with torch.autocast('cpu', torch.bfloat16): half = model(x, two)
    assert half.dtype == torch.float32 and not torch.equal(full, half)
    assert F.mse_loss(half, full) < .01*full.square().mean()
    half.square().mean().backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)

@pytest.mark.parametrize('dim', [*range(1, 41), 50, 72, 96, 100, 130])
def test_norm_and_attention_divide(dim):
    norm = GroupNorm(dim)
    assert dim % norm.num_groups == 0 and norm.num_groups <= 8 and (dim < 32 or dim//norm.num_groups >= 4)
    assert norm(torch.ones(1, dim, 2, 2, dtype=torch.bfloat16)).dtype == torch.bfloat16
    layer = Attention(dim); h = noise(1, dim, 2, 2)
    assert dim % layer.heads == 0 and torch.equal(layer(h), h)

def test_dropout_only_in_training():
    model, x = awake(UNet(dim=8, dropout=.5)), noise(2, 3, 32, 32)
    assert torch.equal(model(x, two), model(x, two))
    model.train(); assert not torch.equal(model(x, two), model(x, two))

@pytest.mark.parametrize('settings', [dict(n_classes=2), dict(patch=2, blocks=2)], ids=str)
def test_gradient_reaches_every_parameter(settings):
    "The layers that start at zero let no gradient pass at first: only the last convolution moves. A few steps later everything does"
    model, x = UNet(dim=8, **settings), noise(4, 3, 32, 32); t = torch.tensor([0, 300, 600, 999])
    label = torch.arange(4) % 3 if model.n_classes else None
    opt = torch.optim.SGD(model.parameters(), lr=.5)
    for i in range(4):
        opt.zero_grad(); F.mse_loss(model(x, t, label), x).backward()
        got = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}
        if i == 0: assert got == {'out.2.weight', 'out.2.bias'}
        opt.step()
    assert got == {n for n, _ in model.named_parameters()}

def test_one_batch_is_learned_by_heart():
    model, x = UNet(1, dim=8, mults=(1, 2)), noise(4, 1, 16, 16); t = torch.tensor([0, 300, 600, 999])
    opt = torch.optim.AdamW(model.parameters(), lr=1e-2); losses = []
    for _ in range(40): loss = F.mse_loss(model(x, t), x); opt.zero_grad(); loss.backward(); opt.step(); losses.append(loss.item())
    assert losses[0] == pytest.approx(x.square().mean().item(), rel=1e-5) and losses[-1] < .3*losses[0]

def test_attention_is_its_formula():
    layer, h = Attention(64), noise(2, 64, 4, 4)
    layer.out.reset_parameters()
    q, k, v = layer.qkv(layer.norm(h)).reshape(2, 3, 2, 32, 16).unbind(1)
    w = (torch.einsum('bhci,bhcj->bhij', q, k)/32**.5).softmax(-1)
    assert torch.allclose(layer(h), h + layer.out(torch.einsum('bhij,bhcj->bhci', w, v).reshape(2, 64, 4, 4)), atol=1e-5)

def test_costs():
    conv = lambda i, o, k, s: 2*k*k*i*o*s*s
    small = UNet(1, dim=8, mults=(1,), attention=False)
    linear = 2*(16*32 + 32*32) + 5*2*32*16*1                      # the clock, and five blocks that each receive 32 numbers
    assert len([m for m in small.modules() if isinstance(m, ResBlock)]) == 5
    by_hand = conv(1, 8, 3, 16) + 3*2*conv(8, 8, 3, 16) + 2*(conv(16, 8, 3, 16) + conv(8, 8, 3, 16) + conv(16, 8, 1, 16)) + conv(8, 1, 3, 16) + linear
    assert gflops(small, 16) == pytest.approx(by_hand/1e9, rel=1e-9)
    assert gflops(UNet(5, dim=8), 32) == gflops(UNet(5, dim=8), 32, channels=5)
    model = UNet(dim=8); next(model.parameters()).requires_grad_(False)
    assert n_params(model) == sum(p.numel() for p in model.parameters()) - next(model.parameters()).numel()

def test_layer_shapes_and_drawing():
    model = UNet(2, 1, dim=8, patch=2, n_classes=2)
    rows = layer_shapes(model, noise(1, 2, 32, 32), two[:1])
    assert sum(r['params'] for r in rows) == n_params(model) and not any(m._forward_hooks for m in model.modules())
    assert [r['name'] for r in rows] == ['embedding', 'conv_in', *(f'down.{i}' for i in range(5)), *(f'mid.{i}' for i in range(3)), *(f'up.{i}' for i in range(8)), 'out']
    with pytest.raises(ValueError): layer_shapes(model, noise(1, 2, 30, 30), two[:1])
    assert not any(m._forward_hooks for m in model.modules()), 'hooks are taken off after an error too'
    boxes, blocks = _feature_maps(model, 32), iter(m for m in model.up if isinstance(m, ResBlock))
    for i, b in enumerate(boxes):
        if b['skip'] is not None:
            assert boxes[b['skip']]['size'] == b['size'] and next(blocks).norm1.num_channels == boxes[i - 1]['channels'] + boxes[b['skip']]['channels']
    assert next(blocks, None) is None and (boxes[0]['channels'], boxes[-1]['channels'], boxes[-1]['size']) == (2, 1, 32)
    fig = draw_unet(model, 32); fig.canvas.draw(); plt.close(fig)
