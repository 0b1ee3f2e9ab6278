"The critic is bounded, the game settles, the pair trains with one Learner, goes on where it was, and says what is wrong"
from types import SimpleNamespace
import json
import numpy as np, pandas as pd, pytest, torch
from cell_diffusion.core import encode, generator
from cell_diffusion.data import cell_dls
from cell_diffusion.ddpm import Callback, fit_for, pretrained
from cell_diffusion import gan
from cell_diffusion.evaluation import train_classifier
from cell_diffusion.gan import *
from cell_diffusion.gan import _halvings, _variety

def loaders(n=96, bs=16, **kwargs):
    return cell_dls('simulated', size=32, n=n, bs=bs, device='cpu', **kwargs)
def small(dls=None, **kwargs):
    return gan_learner(dls or loaders(), **{**dict(dim=8, critic=8, bfloat16=False), **kwargs})

@pytest.mark.parametrize('size,channels', [*((s, c) for s in (32, 36, 40, 64) for c in (1, 2, 3, 5)), (128, 3)])
def test_shapes(size, channels):
    g = Generator(channels, size, dim=4, classes=('a', 'b'))
    d = Discriminator(channels, size, dim=4, n_classes=2)
    x = g(torch.randn(4, g.latent, generator=generator(0)), torch.tensor([0, 0, 1, 1]))
    assert x.shape == (4, channels, size, size) and x.dtype == torch.float32 and x.abs().max() <= 1
    assert d(x, torch.tensor([0, 0, 1, 1])).shape == (4,)

def test_halvings():
    assert {s: _halvings(s) for s in (32, 36, 40, 48, 64, 128)} == {32: (4, 3), 36: (9, 2), 40: (5, 3), 48: (6, 3), 64: (4, 4), 128: (4, 5)}

@pytest.mark.parametrize('size', [8, 30, 33, 50])
def test_wrong_size(size):
    for make in (Generator, Discriminator):
        with pytest.raises(ValueError, match='multiple of 4'):
            make(size=size)

def test_classes_are_asked_for():
    g = Generator(size=32, dim=4, classes=('a', 'b'))
    free = Generator(size=32, dim=4)
    z = torch.randn(2, 64)
    with pytest.raises(ValueError, match='pass a class number'):
        g(z)
    with pytest.raises(ValueError, match='leave label out'):
        free(z, torch.zeros(2, dtype=torch.long))
    with pytest.raises(ValueError, match='one of a, b'):
        gan_sample(g, 3)
    with pytest.raises(ValueError, match="Unknown class 'c'"):
        gan_sample(g, label='c')
    with pytest.raises(ValueError, match='trained without classes'):
        gan_sample(free, label='a')
    with pytest.raises(ValueError, match='2 labels for 3 images'):
        gan_sample(g, 3, label=['a', 'b'])
    d = Discriminator(3, 32, 4, n_classes=2)
    with pytest.raises(ValueError, match='pass labels'):
        d(torch.zeros(2, 3, 32, 32))
    with pytest.raises(ValueError, match='images of shape'):
        d(torch.zeros(2, 1, 32, 32), torch.zeros(2, dtype=torch.long))
    with pytest.raises(ValueError, match='leave label out'):
        Discriminator(3, 32, 4)(torch.zeros(2, 3, 32, 32), torch.zeros(2, dtype=torch.long))
    with pytest.raises(ValueError, match='Unknown game'):
        GANCallback('chess')

def test_spectral_norm_holds_through_training():
    learn = small()
    fit_for(learn, epochs=2, lr=2e-3, progress=False)
    critic = learn.model.discriminator.eval()
    layers = [m for m in critic.modules() if hasattr(m, 'parametrizations')]
    assert len(layers) == 1 + 3*len(critic.blocks) + 3
    for m in layers:
        assert torch.linalg.matrix_norm(m.weight.detach().flatten(1), 2) < 1.3
    raw = max(torch.linalg.matrix_norm(m.parametrizations.weight.original.detach().flatten(1), 2) for m in layers)
    assert raw > 1.01                                                    # else nothing had to be held

def test_projection():
    d = Discriminator(3, 32, 4, n_classes=3).eval()
    kept = []
    d.score.register_forward_pre_hook(lambda m, args: kept.append(args[0]))
    x = torch.randn(4, 3, 32, 32, generator=generator(0))
    with torch.no_grad():
        a, b = (d(x, torch.full((4,), k)) for k in (0, 2))
    assert torch.allclose(b - a, kept[0] @ (d.label.weight[2] - d.label.weight[0]), atol=1e-5)

def test_variety_sees_copies():
    h = torch.randn(8, 2, 3, 3, generator=generator(0))
    h[:4] = h[0]
    v = _variety(h)[:, -1, 0, 0]
    assert v[:4].max() < .01 and v[4:].min() > .3 and (v[4:] == v[4]).all()
    assert torch.allclose(v[4], h[4:].var(0, unbiased=False).add(1e-6).sqrt().mean())
    assert _variety(h[:7]).shape == (7, 3, 3, 3)                         # seven cells: groups of one

def test_losses_by_hand():
    s = torch.tensor([2., -.5, .3, -3.])
    real = torch.tensor([True, True, False, False])
    assert torch.isclose(critic_hinge(s, real), torch.tensor((0 + 1.5)/2 + (1.3 + 0)/2))
    p = s.sigmoid()
    assert torch.isclose(critic_logistic(s, real), -(p[:2].log().mean() + (1 - p[2:]).log().mean()))
    assert torch.isclose(painter_logistic(s), -p.log().mean()) and torch.isclose(painter_hinge(s), -s.mean())

def test_r1_by_hand():
    w = torch.nn.Linear(27, 1)
    penalty = r1_penalty(lambda x: w(x.flatten(1)).flatten(), torch.randn(5, 3, 3, 3))
    penalty.backward()
    assert torch.isclose(penalty, w.weight.pow(2).sum()) and torch.allclose(w.weight.grad, 2*w.weight)
    x = torch.randn(6, 4, generator=generator(0))                         # s = |x|^2/2 has the gradient x
    assert torch.isclose(r1_penalty(lambda x: .5*x.pow(2).sum(1), x), x.pow(2).sum(1).mean())

@pytest.mark.parametrize('game', ['hinge', 'logistic'])
def test_dirac_gan_settles_with_r1_only(game):
    def radius(gamma, steps=250, lr=.1):
        theta = torch.tensor([1.], requires_grad=True)
        psi = torch.tensor([0.], requires_grad=True)
        for _ in range(steps):
            loss = games[game][0](torch.stack([0*psi, psi*theta.detach()]).flatten(), torch.tensor([True, False])) + gamma/2*r1_penalty(lambda x: psi*x, torch.zeros(1))
            d_psi, = torch.autograd.grad(loss, psi)
            d_theta, = torch.autograd.grad(games[game][1](psi.detach()*theta), theta)
            with torch.no_grad():
                psi -= lr*d_psi
                theta -= lr*d_theta
        return torch.cat([theta, psi]).norm().item()
    assert radius(1.) < .01 and radius(0.) > .3

def test_augmentation_passes_gradients_and_says_what_it_did():
    x = torch.randn(8, 2, 40, 40, generator=generator(0), requires_grad=True)
    y = diff_augment(x, generator(1))
    y.sum().backward()
    assert y.shape == x.shape and (x.grad != 0).float().mean() > .8
    assert torch.equal(y, diff_augment(x, generator(1))) and not torch.equal(y, diff_augment(x, generator(2)))
    off = dict(turns=False, shift=0, hole=0, light=0, contrast=0)
    assert torch.allclose(diff_augment(x, generator(1), **off), x, atol=1e-5)
    h = diff_augment(torch.ones(500, 1, 40, 40), generator(3), **{**off, 'hole': .25})
    lost = (h == 0).flatten(1).sum(1)
    assert lost.max() == 100 and lost.min() >= 25                         # a square of 10 × 10, at the corner a quarter of it
    moved = diff_augment(torch.eye(40)[None, None].expand(200, 1, 40, 40), generator(4), **{**off, 'shift': .1})
    assert 0 < (moved[:, 0].diagonal(dim1=1, dim2=2).sum(1) == 40).float().mean() < .5

def test_augmentation_keeps_the_symmetry():
    "Every one of the eight positions comes equally often, so a symmetric heap of cells stays one"
    mark = torch.zeros(8000, 1, 8, 8)
    mark[:, :, 0, 1] = 1
    off = dict(shift=0, hole=0, light=0, contrast=0)
    at = torch.bincount(diff_augment(mark, generator(0), **off).flatten(1).argmax(1), minlength=64).float()/8000
    places = [0*8 + 1, 0*8 + 6, 1*8 + 0, 6*8 + 0, 1*8 + 7, 6*8 + 7, 7*8 + 1, 7*8 + 6]
    assert at.nonzero().flatten().tolist() == sorted(places) and (at[places] - .125).abs().max() < .02
    x = encode(torch.randint(0, 255, (2000, 1, 16, 16), generator=generator(1), dtype=torch.uint8))
    mean = diff_augment(x + torch.linspace(-1, 1, 16), generator(2), **off).mean(0)[0]
    for o in (mean.flip(0), mean.flip(1), mean.T):
        assert (mean - o).abs().max() < .15

def brightness_gap(learn, dls):
    "How far the mean picture of painted cells is from that of real ones"
    x, y = dls.valid.arrays
    return (gan_sample(learn.ema.averaged, label=y.tolist(), seed=0).mean(0) - encode(x).mean(0)).pow(2).mean().item()

def test_it_learns():
    dls = loaders(n=240)
    learn = small(dls, ema=.9)
    learn.ema.learn = learn
    learn.ema.before_fit()
    before = brightness_gap(learn, dls)
    budget = fit_for(learn, epochs=4, lr=2e-3, progress=False)
    assert len(budget.losses) == budget.steps == 4*(len(dls.train))
    assert brightness_gap(learn, dls) < .3*before

@pytest.mark.parametrize('kwargs', [dict(classes=False), dict(augment=False, game='logistic', r1=.5), dict(bfloat16=True, r1=.1), dict(augment=dict(hole=0.))])
def test_options_run(kwargs):
    learn = small(**kwargs)
    budget = fit_for(learn, epochs=1, progress=False)
    assert torch.isfinite(torch.stack(budget.losses)).all()
    x = gan_sample(learn.ema.averaged, 3, label=None if kwargs.get('classes') is False else 'monocyte')
    assert x.shape == (3, 3, 32, 32) and x.isfinite().all()

def test_players_step_in_turn():
    "The critic's step leaves the painter alone, and the other way round"
    learn = small()
    pair, seen = learn.model, []
    class Spy(Callback):
        order = -6                                                       # before `GANCallback`
        def total(self, m):
            return sum(p.detach().double().sum().item() for p in m.parameters())
        def before_step(self):
            seen.append((self.total(pair.generator), self.total(pair.discriminator)))
        def after_step(self):
            seen.append((self.total(pair.generator), self.total(pair.discriminator)))
        def after_batch(self):
            seen.append((self.total(pair.generator), self.total(pair.discriminator)))
    learn.add_cb(Spy())
    learn.fit(1, lr=1e-3)
    for a, b, c in zip(seen[0:9:3], seen[1:9:3], seen[2:9:3]):
        assert a[0] == b[0] and a[1] != b[1] and b[0] != c[0] and b[1] == c[1]

class Stop(Callback):
    order = 100
    def after_epoch(self): raise KeyboardInterrupt

def test_resumed_equals_unbroken(tmp_path):
    new = lambda **kw: small(game='logistic', r1=.1, **kw)
    unbroken = new()
    a = fit_for(unbroken, epochs=2, progress=False)
    with pytest.raises(KeyboardInterrupt):
        fit_for(new(cbs=[Stop()]), epochs=2, checkpoint=tmp_path/'run.pt', progress=False)
    resumed = new()
    b = fit_for(resumed, epochs=2, checkpoint=tmp_path/'run.pt', progress=False)
    assert torch.allclose(torch.stack(a.losses), torch.stack(list(b.losses)), atol=1e-4)
    for p, q in zip(unbroken.model.state_dict().values(), resumed.model.state_dict().values()):
        assert torch.allclose(p, q, atol=1e-5)
    for p, q in zip(unbroken.ema.averaged.state_dict().values(), resumed.ema.averaged.state_dict().values()):
        assert torch.allclose(p, q, atol=1e-5)

def test_schedule_reaches_both():
    learn, rates = small(), []
    class Spy(Callback):
        order = 80
        def before_step(self): rates.append([h['lr'] for h in self.opt.hypers])
    learn.add_cb(Spy())
    fit_for(learn, epochs=2, lr=1e-3, progress=False)
    assert all(a == b for a, b in rates) and len({a for a, _ in rates}) > 3 and rates[-1][0] < 5e-4

def test_saved_and_loaded(tmp_path):
    g = Generator(2, 40, dim=4, latent=16, classes=('G1', 'S'), turns=False)
    g(torch.randn(8, 16), torch.arange(8)%2)                             # so that the norms have seen something
    g.save_pretrained(tmp_path)
    back = pretrained(Generator, tmp_path)
    assert (back.classes, back.channels, back.size, back.latent, back.turns) == (('G1', 'S'), 2, 40, 16, False)
    assert torch.equal(gan_sample(g, 4, label='S'), gan_sample(back, 4, label='S'))
    assert {f.suffix for f in tmp_path.iterdir()} >= {'.json', '.safetensors'} and json.loads((tmp_path/'config.json').read_text())['latent'] == 16

def test_sampling_is_seeded():
    g = Generator(1, 32, dim=4, classes=('a', 'b')).eval()
    x = gan_sample(g, 5, label=1, seed=3)
    assert x.shape == (5, 1, 32, 32) and x.device.type == 'cpu' and not x.requires_grad
    assert torch.equal(x, gan_sample(g, label=['b']*5, seed=3)) and not torch.equal(x, gan_sample(g, 5, label=1, seed=4))
    assert torch.allclose(x, gan_sample(g, 5, label='b', seed=3, bs=2), atol=1e-6)
    assert not torch.allclose(x, gan_sample(g, 5, label='a', seed=3), atol=1e-3)
    g.train()
    gan_sample(g, 4, label='a')
    assert g.training
    assert gan_sample(g, label='a').shape[0] == 1 and gan_sample(Generator(1, 32, dim=4)).shape[0] == 16

def test_turns():
    g = Generator(1, 32, dim=4).eval()
    still = Generator(1, 32, dim=4, turns=False).eval()
    still.load_state_dict(g.state_dict())
    x = gan_sample(g, 40)
    y = gan_sample(still, 40)
    same = [torch.equal(a, b) for a, b in zip(x, y)]
    assert 0 < sum(same) < 20 and torch.allclose(x.flatten(1).sort(1).values, y.flatten(1).sort(1).values)
    assert small(loaders(augment=False)).model.generator.turns is False and small().model.generator.turns is True

def test_study_resumes_and_refuses(tmp_path, monkeypatch):
    monkeypatch.setattr(gan, 'judge_for', lambda dls: train_classifier(dls, dim=8, steps=4))
    args = dict(data='simulated-jurkat', epochs=1, seeds=1, n_cells=150, n=14, steps=2, size=32, gan=dict(dim=4, critic=4), ddpm=dict(dim=8, mults=(1, 2), unet=dict(attention=False)), progress=False, path=tmp_path/'race.csv')
    a = gan_beside_ddpm(**args)
    assert a.model.tolist() == ['GAN', 'DDPM'] and {'fd', 'fd_floor', 'kd', 'precision', 'recall', 'recognised', 'parameters', 'cells_seen', 'seconds_per_100'} <= set(a)
    assert a.round(4).equals(gan_beside_ddpm(**args))
    pd.read_csv(tmp_path/'race.csv').iloc[:1].to_csv(tmp_path/'race.csv', index=False)                      # killed after the GAN
    b = gan_beside_ddpm(**args)
    assert b.model.tolist() == ['GAN', 'DDPM'] and np.isclose(b.fd[1], a.fd[1], rtol=1e-3)
    with pytest.raises(ValueError, match='other settings'):
        gan_beside_ddpm(**{**args, 'n': 21})

def test_yardstick_counts_classes_alike(monkeypatch):
    "A judge that calls everything `a` names a third of the phases, however frequent `a` is"
    labels = torch.arange(3).repeat_interleave(torch.tensor([80, 30, 10]))
    monkeypatch.setattr(gan, 'look', lambda judge, x: (x.flatten(1), torch.zeros(len(x), dtype=torch.long)))
    monkeypatch.setattr(gan, 'compare', lambda a, b: {})
    row = gan._beside(lambda y, seed: torch.tensor(y).float()[:, None, None, None], SimpleNamespace(classes='abc'), labels.float()[:, None, None, None], labels, 60, 0)
    assert np.isclose(row['recognised_floor'], 1/3) and np.isclose(row['recognised'], 1/3)

def test_shipped_race_was_run_against_all_phases():
    "Two heaps of real cells of one mixture are near: a reference that lacks classes is not"
    race, floors = pd.read_csv(gan.weights_folder/'gan.csv'), {'fd', 'kd', 'precision', 'recall', 'recognised'}
    assert race.groupby('model').seed.apply(sorted).to_dict() == dict(GAN=[0, 1, 2], DDPM=[0, 1, 2]) and {f'{k}_floor' for k in floors} <= set(race)
    assert (race.kd_floor.abs() < .01).all() and (race.fd_floor < 1).all() and (race.fd > 3*race.fd_floor).all()

def test_reference_has_the_mixture_that_was_asked_for(monkeypatch):
    "Test cells come class by class; what is painted and what it is compared with must both be drawn from all of them"
    labels, seen = torch.arange(3).repeat_interleave(torch.tensor([80, 30, 10])), []
    monkeypatch.setattr(gan, 'look', lambda judge, x: (x.flatten(1), x.flatten(1)[:, 0].long()))
    monkeypatch.setattr(gan, 'compare', lambda a, b: seen.append([o.long().flatten().bincount(minlength=3) for o in (a, b)]) or {})
    row = gan._beside(lambda y, seed: torch.tensor(y).float()[:, None, None, None], SimpleNamespace(classes='abc'), labels.float()[:, None, None, None], labels, 60, 0)
    assert len(seen) == 2 and row['recognised'] == row['recognised_floor'] == 1
    for a, b in seen:
        assert a.sum() == b.sum() == 60 and (a > 0).all() and (a - b).abs().max() <= 12
