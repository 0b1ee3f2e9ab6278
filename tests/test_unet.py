"""
The U-Net: every kind of image it should take, what it refuses, how it starts, what it
costs, and that it comes back from disk as it was
"""
import matplotlib
matplotlib.use('agg')
import matplotlib.pyplot as plt
import pytest, torch, torch.nn as nn, torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode
from cell_diffusion.core import generator
from cell_diffusion.denoiser import Denoiser, load, save
from cell_diffusion.plots import draw_unet, feature_maps
from cell_diffusion.unet import (
    Attention, GroupNorm, ResBlock, UNet, gflops, layer_shapes, n_params,
    timestep_embedding)

def awake(model, seed=0):
    "The model, with random weights where it starts at zero"
    g = generator(seed)
    for p in model.parameters():
        if p.ndim == 4 and not p.any():
            p.data = torch.randn(p.shape, generator=g)*p[0].numel()**-.5
    return model.eval()

def noise(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed))

two = torch.tensor([0, 999])

@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)

# images and settings

@pytest.mark.parametrize('channels', [1, 2, 3, 5])
@pytest.mark.parametrize('size', [28, 32, 40, 64, 128])
@pytest.mark.parametrize('patch', [1, 2])
def test_channels_and_sizes(channels, size, patch):
    model = awake(UNet(channels, dim=8, patch=patch, mults=(1, 2, 3)[:4 - patch]))
    with torch.no_grad():
        out = model(noise(2, channels, size, size), two)
    assert out.shape == (2, channels, size, size) and out.dtype == torch.float32
    assert out.isfinite().all() and .1 < out.std() < 10

every_setting = [
    dict(),
    dict(mults=(1,)),
    dict(mults=(2, 3)),
    dict(mults=(1, 2, 2, 4), blocks=2),
    dict(patch=4, mults=(1, 2)),
    dict(attention=False),
    dict(channels=7, out_channels=3),
    dict(dim=10, mults=(1, 5)),
    dict(dim=50, mults=(1, 2)),
    dict(n_classes=8, dropout=.5),
    dict(dim=1),
]

@pytest.mark.parametrize('settings', every_setting, ids=str)
def test_settings(settings):
    model = awake(UNet(**{'dim': 8, **settings}))
    c = model.channels
    with torch.no_grad():
        out = model(noise(2, c, 32, 48), two)
    assert out.shape == (2, settings.get('out_channels', c), 32, 48)
    assert out.isfinite().all()

def test_factor_says_what_fits():
    several = dict(), dict(patch=2), dict(mults=(1,), patch=3), dict(mults=(1, 1, 1, 1))
    for settings in several:
        model = UNet(1, dim=4, **settings)
        for size in range(model.factor, 4*model.factor + 1):
            x = noise(1, 1, size, size)
            if size % model.factor:
                with pytest.raises(ValueError, match=f'multiple of {model.factor}'):
                    model(x, two[:1])
            elif size > 4:
                assert model(x, two[:1]).shape == (1, 1, size, size)

def test_errors_say_what_to_do():
    model = UNet(dim=8)
    x = noise(2, 3, 32, 32)
    wrong = [
        ((x[:, :1], two), 'pass channels=1'),
        ((x[0], two), 'batch, channel'),
        ((x[..., :30], two), r'\(32, 30\) is not a multiple of 4'),
        ((x, two, two), 'n_classes'),
        ((x, 5), 'one timestep an image'),
        ((x, torch.tensor(5)), 'one timestep an image'),
        ((x, torch.zeros(3)), r'\(2,\), got \(3,\)'),
    ]
    for inputs, words in wrong:
        with pytest.raises(ValueError, match=words):
            model(*inputs)
    with pytest.raises(ValueError, match='even'):
        timestep_embedding(two, 7)

def test_errors_about_labels():
    x = noise(2, 3, 32, 32)
    model = UNet(dim=8, n_classes=3)
    for bad in [-1, 0], [0, 4]:
        with pytest.raises(ValueError, match='0 to 2, and 3 is the null class'):
            model(x, two, torch.tensor(bad))
    with pytest.raises(ValueError, match='one label an image'):
        model(x, two, torch.zeros(3).long())

# what the network does

def test_starts_at_zero_and_blocks_as_identity():
    model = UNet(dim=16, n_classes=2)
    assert (model(noise(2, 3, 32, 32), two) == 0).all()
    h = noise(2, 32, 8, 8)
    emb = noise(2, 64)
    assert torch.equal(ResBlock(32, 32, 64)(h, emb), h)
    assert torch.equal(Attention(32)(h), h)
    block = ResBlock(32, 48, 64)
    assert torch.equal(block(h, emb), block.skip(h))

def test_null_class():
    model = awake(UNet(dim=16, n_classes=3))
    x = noise(2, 3, 32, 32)
    null, first, second = (model(x, two, torch.full((2,), i)) for i in (3, 0, 1))
    assert torch.equal(model(x, two), null)
    assert not torch.allclose(null, first) and not torch.allclose(first, second)
    mixed = model(x, two, torch.tensor([0, 3]))
    assert torch.allclose(mixed[:1], first[:1], atol=1e-5)
    assert torch.allclose(mixed[1:], null[1:], atol=1e-5)

def test_images_of_a_batch_do_not_meet():
    model = awake(UNet(dim=16, patch=2))
    x = noise(4, 3, 32, 32)
    t = torch.tensor([0, 10, 500, 999])
    with torch.no_grad():
        assert torch.allclose(model(x, t)[2:3], model(x[2:3], t[2:3]), atol=1e-5)

def test_time_matters():
    model = awake(UNet(dim=16))
    x = noise(1, 3, 32, 32)
    assert not torch.allclose(model(x, two[:1]), model(x, two[1:]), atol=1e-3)
    a = timestep_embedding(two, 64)
    assert torch.equal(a, timestep_embedding(two.float(), 64))
    assert torch.allclose(a.norm(dim=1), torch.tensor(32.).sqrt())

def test_attention_is_its_formula():
    layer = Attention(64)
    layer.out.reset_parameters()
    h = noise(2, 64, 4, 4)
    q, k, v = layer.qkv(layer.norm(h)).reshape(2, 3, 2, 32, 16).unbind(1)
    w = (torch.einsum('bhci,bhcj->bhij', q, k)/32**.5).softmax(-1)
    out = torch.einsum('bhij,bhcj->bhci', w, v).reshape(2, 64, 4, 4)
    assert torch.allclose(layer(h), h + layer.out(out), atol=1e-5)

def test_skips_are_read_last_in_first_out():
    "The forward pass, layer by layer, written out for two levels"
    model = awake(UNet(1, dim=8, mults=(1, 2), n_classes=2))
    x = noise(2, 1, 8, 8)
    label = torch.tensor([1, 0])
    emb = model.embedding(two, label)
    a = model.conv_in(x)
    b = model.down[0](a, emb)
    c = model.down[1](b)
    d = model.down[2](c, emb)
    h = model.mid[2](model.mid[1](model.mid[0](d, emb)), emb)
    h = model.up[0](torch.cat([h, d], 1), emb)
    h = model.up[1](torch.cat([h, c], 1), emb)
    h = model.up[2](h)
    h = model.up[3](torch.cat([h, b], 1), emb)
    h = model.up[4](torch.cat([h, a], 1), emb)
    assert torch.allclose(model(x, two, label), model.out(h), atol=1e-5)

@pytest.mark.parametrize('dim', [*range(1, 41), 50, 72, 96, 100, 130])
def test_norm_and_attention_divide(dim):
    norm = GroupNorm(dim)
    assert dim % norm.num_groups == 0 and norm.num_groups <= 8
    assert dim < 32 or dim//norm.num_groups >= 4
    ones = torch.ones(1, dim, 2, 2, dtype=torch.bfloat16)
    assert norm(ones).dtype == torch.bfloat16
    layer = Attention(dim)
    h = noise(1, dim, 2, 2)
    assert dim % layer.heads == 0 and torch.equal(layer(h), h)

def test_dropout_only_in_training():
    model = awake(UNet(dim=8, dropout=.5))
    x = noise(2, 3, 32, 32)
    assert torch.equal(model(x, two), model(x, two))
    model.train()
    assert not torch.equal(model(x, two), model(x, two))

def test_bfloat16_autocast():
    model = awake(UNet(dim=16, n_classes=2))
    x = noise(2, 3, 32, 32)
    full = model(x, two)
    with torch.autocast('cpu', torch.bfloat16):
        half = model(x, two)
    assert half.dtype == torch.float32 and not torch.equal(full, half)
    assert F.mse_loss(half, full) < .01*full.square().mean()
    half.square().mean().backward()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(g.dtype == torch.float32 and g.isfinite().all() for g in grads)

@pytest.mark.parametrize('settings', [dict(n_classes=2), dict(patch=2)], ids=str)
def test_compiles_to_one_graph(settings):
    model = awake(UNet(dim=8, **settings))
    x = noise(2, 3, 32, 32)
    label = torch.tensor([0, 2]) if model.n_classes else None
    torch._dynamo.reset()
    compiled = torch.compile(model, backend='eager', fullgraph=True)
    with torch.no_grad():
        assert torch.equal(compiled(x, two, label), model(x, two, label))

# training

@pytest.mark.parametrize(
    'settings', [dict(n_classes=2), dict(patch=2, blocks=2)], ids=str)
def test_gradient_reaches_every_parameter(settings):
    "At first only the last convolution moves; a few steps later everything does"
    model = UNet(dim=8, **settings)
    x = noise(4, 3, 32, 32)
    t = torch.tensor([0, 300, 600, 999])
    label = torch.arange(4) % 3 if model.n_classes else None
    opt = torch.optim.SGD(model.parameters(), lr=.5)
    for i in range(4):
        opt.zero_grad()
        F.mse_loss(model(x, t, label), x).backward()
        got = set()
        for name, p in model.named_parameters():
            if p.grad is not None and p.grad.any(): got.add(name)
        if i == 0: assert got == {'out.2.weight', 'out.2.bias'}
        opt.step()
    assert got == {name for name, _ in model.named_parameters()}

def test_one_batch_is_learned_by_heart():
    model = UNet(1, dim=8, mults=(1, 2))
    x = noise(4, 1, 16, 16)
    t = torch.tensor([0, 300, 600, 999])
    opt = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(40):
        loss = F.mse_loss(model(x, t), x)
        opt.zero_grad()
        loss.backward()
        opt.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(x.square().mean().item(), rel=1e-5)
    assert losses[-1] < .3*losses[0]

# files

everything = dict(channels=2, out_channels=1, patch=2, mults=(1, 2), n_classes=4,
                  attention=False, blocks=2, dropout=.1)

@pytest.mark.parametrize('settings', [dict(), everything], ids=['default', 'all'])
def test_saved_and_loaded_within_a_denoiser(settings, tmp_path):
    "Alone it has no methods that would save it without class and checksum"
    assert not hasattr(UNet, 'save_pretrained') and not hasattr(UNet, 'push_to_hub')
    settings = dict(settings, dim=8)
    n = settings.pop('n_classes', 0)
    whole = Denoiser(settings, size=32, classes=[f'class {k}' for k in range(n)])
    model = awake(whole.half().float().unet)
    for p in model.parameters():
        p.data = p.data.half().float()
    save(whole, tmp_path/'net')
    again = load(tmp_path/'net', 'cpu', 'float32').unet
    x = noise(2, model.channels, 32, 32)
    assert list(again.state_dict()) == list(model.state_dict()) and not again.training
    with torch.no_grad():
        assert torch.equal(again(x, two), model(x, two))

parts = ['embedding', 'conv_in', *(f'down.{i}' for i in range(5)),
         *(f'mid.{i}' for i in range(3)), *(f'up.{i}' for i in range(8)), 'out']

def test_names_of_weights_stay():
    "Shipped weights are found by these names"
    state = UNet(dim=8, n_classes=2).state_dict()
    owners = [next(p for p in parts if k.startswith(p + '.')) for k in state]
    assert set(owners) == set(parts)
    assert list(dict.fromkeys(k.split('.')[0] for k in state)) == [
        'embedding', 'conv_in', 'down', 'up', 'mid', 'out']
    assert {k for k in state if k.startswith('embedding')} == {
        'embedding.time.0.weight', 'embedding.time.0.bias',
        'embedding.time.2.weight', 'embedding.time.2.bias', 'embedding.label.weight'}
    layers = 'norm1', 'conv1', 'norm2', 'conv2', 'emb', 'skip'
    assert set(ResBlock(8, 16, 8).state_dict()) == {
        f'{layer}.{kind}' for layer in layers for kind in ('weight', 'bias')}
    assert n_params(UNet()) == 1_797_123

# costs, shapes, drawing

def test_costs():
    def conv(i, o, k, s): return 2*k*k*i*o*s*s
    small = UNet(1, dim=8, mults=(1,), attention=False)
    assert len([m for m in small.modules() if isinstance(m, ResBlock)]) == 5

    # The embedding, and five blocks that each receive 32 numbers
    linear = 2*(16*32 + 32*32) + 5*2*32*16*1
    plain = 3*2*conv(8, 8, 3, 16)
    with_skip = 2*(conv(16, 8, 3, 16) + conv(8, 8, 3, 16) + conv(16, 8, 1, 16))
    by_hand = conv(1, 8, 3, 16) + plain + with_skip + conv(8, 1, 3, 16) + linear
    assert gflops(small, 16) == pytest.approx(by_hand/1e9, rel=1e-9)
    assert gflops(UNet(5, dim=8), 32) == gflops(UNet(5, dim=8), 32, channels=5)

def test_frozen_parameters_are_not_counted():
    model = UNet(dim=8)
    all_of_them = n_params(model)
    frozen = next(model.parameters()).requires_grad_(False)
    assert n_params(model) == all_of_them - frozen.numel()

@pytest.mark.parametrize('dim', [8, 64])
def test_attention_is_counted_on_a_cpu(dim):
    "Two products of pixels × pixels × channels, whatever the number of heads"
    layer = Attention(dim)
    class Alone(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer
        def forward(self, x, t): return self.layer(x)
    pixels = 8*8
    products = 2*2*pixels*pixels*dim
    convolutions = 2*pixels*dim*(3*dim + dim)
    counted = gflops(Alone(), 8, channels=dim)*1e9
    assert counted == pytest.approx(products + convolutions)

    # The same as PyTorch counts where attention is not fused
    attention = pytest.importorskip('torch.nn.attention')
    with attention.sdpa_kernel(attention.SDPBackend.MATH):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            layer(torch.zeros(1, dim, 8, 8))
    assert counter.get_total_flops() == products + convolutions

def test_layer_shapes():
    model = UNet(2, 1, dim=8, patch=2, n_classes=2)
    rows = layer_shapes(model, noise(1, 2, 32, 32), two[:1])
    assert sum(r['params'] for r in rows) == n_params(model)
    assert [r['name'] for r in rows] == parts
    assert rows[1] == dict(name='conv_in', kind='Conv2d', input=(8, 16, 16),
                           output=(8, 16, 16), params=9*8*8 + 8)
    with pytest.raises(ValueError):
        layer_shapes(model, noise(1, 2, 30, 30), two[:1])
    assert not any(m._forward_hooks for m in model.modules()), 'also after an error'

def test_drawing():
    model = UNet(2, 1, dim=8, patch=2, n_classes=2)
    boxes = feature_maps(model, 32)
    assert boxes[0].channels == 2
    assert (boxes[-1].channels, boxes[-1].size) == (1, 32)

    # What a box says it read is what the block of the network has room for
    blocks = [m for m in model.up if isinstance(m, ResBlock)]
    readers = [i for i, b in enumerate(boxes) if b.skip]
    assert len(blocks) == len(readers)
    for block, i in zip(blocks, readers):
        last, kept = boxes[i - 1], boxes[i].skip
        assert kept.size == boxes[i].size
        assert block.norm1.num_channels == last.channels + kept.channels

    fig = draw_unet(model, 32)
    fig.canvas.draw()
    ax, = fig.axes
    labels = [t.get_text() for t in ax.texts]
    assert labels.count('2 × 32 × 32') == 1 and '16 × 16' in labels
    plt.close(fig)
