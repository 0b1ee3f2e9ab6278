"Guidance is what its formula says, the ruler reads what the simulation drew, and the study finds planted faults"
import math
import numpy as np, pandas as pd, pytest, torch
from cell_diffusion.conditioning import *
from cell_diffusion.core import encode, generator
from cell_diffusion.data import cell_dls
from cell_diffusion.ddpm import Denoiser, pretrained, sample, samplers, weights_folder
from cell_diffusion.evaluation import CellClassifier
from cell_diffusion.simulation import simulate_blood

classes = ('a', 'b', 'c')

def network(prediction='v', seed=0, classes=classes):
    "An untrained network that does not answer zero"
    torch.manual_seed(seed)
    model = Denoiser(dict(dim=16, mults=[1, 2]), schedule='log_snr', prediction=prediction, data_std=.5 if prediction == 'v' else 1., size=16, classes=classes).eval()
    for p in model.parameters():
        if not p.detach().any(): torch.nn.init.normal_(p, std=.05)
    return model

def question(n=5, t=500, size=16): return torch.randn(n, 3, size, size, generator=generator(1)), torch.full((n,), t), torch.arange(n)%3

@pytest.mark.parametrize('prediction', ['v', 'eps', 'x0'])
@pytest.mark.parametrize('clip', [True, False])
@torch.no_grad()
def test_ends_are_the_network_itself(prediction, clip):
    model, (xt, t, label) = network(prediction), question()
    null = torch.full_like(label, 3)
    assert torch.equal(Guided(model, 0).x0(xt, t, label, clip), model.x0(xt, t, null, clip))
    assert torch.equal(Guided(model, 0).x0(xt, t, label, clip), model.x0(xt, t, None, clip))
    assert torch.equal(Guided(model, 1).x0(xt, t, label, clip), model.x0(xt, t, label, clip))
    assert torch.equal(Guided(model, 3).x0(xt, t, None, clip), model.x0(xt, t, None, clip))
    assert not torch.allclose(model.x0(xt, t, None, False), model.x0(xt, t, label, False), atol=1e-3)      # else these tests say nothing

@pytest.mark.parametrize('w', [-1., .3, .999, 1.5, 7.])
@torch.no_grad()
def test_it_is_a_straight_line(w):
    model, (xt, t, label) = network(), question()
    a, b = model.x0(xt, t, None, False), model.x0(xt, t, label, False)
    assert torch.allclose(Guided(model, w).x0(xt, t, label, False), a + w*(b - a), atol=1e-4)
    assert torch.allclose(Guided(model, w).x0(xt, t, label), (a + w*(b - a)).clamp(-1, 1), atol=1e-4)

@torch.no_grad()
def test_one_call_of_twice_the_batch(monkeypatch):
    model, (xt, t, label) = network(), question()
    seen, forward = [], model.forward
    monkeypatch.setattr(model, 'forward', lambda x, *a: seen.append((len(x), a[1])) or forward(x, *a))
    for w in (0, 1, 2.5): Guided(model, w).x0(xt, t, label)
    assert [n for n, _ in seen] == [5, 5, 10]
    assert seen[2][1].tolist() == [3]*5 + label.tolist()

@torch.no_grad()
def test_interval():
    model, (xt, _, label) = network(), question(4)
    level, low, high = model.schedule.log_snr, -2., 2.5
    t = torch.tensor([int((level - v).abs().argmin()) for v in (-6., -1., 1., 6.)])
    g = Guided(model, 4., (low, high))
    assert g.weight(t).tolist() == [1, 4, 4, 1]
    everywhere, plain, mixed = Guided(model, 4.).x0(xt, t, label, False), model.x0(xt, t, label, False), g.x0(xt, t, label, False)
    assert torch.allclose(mixed[[0, 3]], plain[[0, 3]], atol=1e-4) and torch.allclose(mixed[[1, 2]], everywhere[[1, 2]], atol=1e-4)
    assert torch.equal(g.x0(xt, t[[0, 0, 3, 3]], label), model.x0(xt, t[[0, 0, 3, 3]], label))             # nothing to guide: the network as it is
    edge = torch.arange(model.schedule.T)
    inside = (level >= low) & (level <= high)
    assert torch.equal(g.weight(edge) == 4, inside) and 0 < inside.sum() < len(edge)

@pytest.mark.parametrize('sampler', sorted({*samplers} - {'repaint'}))                         # which fills holes
def test_every_sampler_takes_it(sampler):
    model = network()
    model.schedule = Denoiser(dict(dim=16, mults=[1, 2]), schedule='cosine', T=12, size=16).schedule        # so that the ancestral one is short
    label = ['a', 'b', 2]
    plain, one, loud, none = (sample(m, label=l, seed=3, steps=4, sampler=sampler, progress=False) for m, l in
                              ((model, label), (Guided(model, 1), label), (Guided(model, 5.), label), (Guided(model, 0.), label)))
    assert torch.equal(plain, one) and not torch.allclose(plain, loud, atol=1e-3) and loud.shape == (3, 3, 16, 16) and torch.isfinite(loud).all()
    assert torch.equal(none, sample(model, 3, seed=3, steps=4, sampler=sampler, progress=False))

def test_guided_says_what_is_wrong():
    with pytest.raises(ValueError, match='without classes'): Guided(network(classes=()))
    with pytest.raises(ValueError, match='finite'): Guided(network(), math.nan)
    with pytest.raises(ValueError, match='interval'): Guided(network(), 2, (3, -1))
    with pytest.raises(ValueError, match='Unknown class'): sample(Guided(network(), 2), 1, label='z', progress=False)
    g = Guided(m := network(), 2)
    assert g.classes == classes and g.size == 16 and g.unet is m.unet and g.schedule is m.schedule and g.device == m.device

def test_spread():
    x = torch.tensor([[0., 0], [3, 4], [0, 0]])
    assert spread(x) == pytest.approx(10/3) and spread(torch.zeros(4, 2)) == 0

def simulated(n=48, size=64, seed=21): return simulate_blood(n, size=size, labels=[i%8 for i in range(n)], seed=seed)

@pytest.mark.parametrize('size, cell, nucleus', [(64, .85, .8), (32, .8, .75)])
def test_the_ruler_finds_what_was_drawn(size, cell, nucleus):
    c = simulated(size=size)
    d = optical_density(encode(c.images)).numpy()
    found = find_cells(d); inner = find_nuclei(d, found)
    def iou(a, b): return (a & b).sum((1, 2))/np.maximum((a | b).sum((1, 2)), 1)
    seen = np.isin(c.labels, (1, 2, 3, 4, 5, 6))                   # platelets have no nucleus, that of a basophil is hidden
    assert np.median(iou(found, c.cell.numpy())) > cell and np.median(iou(inner, c.nucleus.numpy())[seen]) > nucleus
    assert not (inner & ~found).any()
    read, true = measure(found, inner, d)[seen], measure(c.cell.numpy(), c.nucleus.numpy(), d)[seen]
    for k in ('cell_area', 'nucleus_area', 'ratio', 'stain'): assert read[k].corr(true[k], 'spearman') > .75, k
    assert (read.nucleus_area - true.nucleus_area).abs().median() < .02 and (read.stain - true.stain).abs().median() < .15

def test_density_is_beer_and_lambert():
    x = torch.full((1, 3, 32, 32), 1.); x[:, :, 8:24, 8:24] = torch.tensor([.5, .25, .125])[:, None, None]*2 - 1
    d = optical_density(x)
    assert torch.allclose(d[0, :, 16, 16], -torch.tensor([.5, .25, .125]).log(), atol=.03) and d[0, :, 0, 0].abs().max() == 0
    with pytest.raises(ValueError, match='colour'): optical_density(x[:, :1])

def disc(x, y, r, s=64): return (np.arange(s) - x)**2 + (np.arange(s)[:, None] - y)**2 < r*r

def test_shapes_with_known_answers():
    ring = [disc(32 + 18*math.cos(a), 32 + 18*math.sin(a), 9) for a in np.linspace(0, 2*math.pi, 6)[:5]]
    assert [count_lobes(np.any(ring[:k], 0)) for k in (1, 2, 3, 4)] == [1, 2, 3, 4] and count_lobes(np.zeros((8, 8), bool)) == 0
    y, x = np.mgrid[:64, :64] - 32
    for a, b in ((12, 12), (20, 10), (24, 6)):
        m = ((x/a)**2 + (y/b)**2 < 1)[None]
        t = measure(m, m, np.ones((1, 3, 64, 64))).iloc[0]
        assert t.eccentricity == pytest.approx(math.sqrt(1 - (b/a)**2), abs=.08) and t.solidity > .9 and t.ratio == 1 and t.stain == 1 and t.lobes == 1
        assert t.nucleus_area == pytest.approx(math.pi*a*b/64**2, rel=.06)

def test_nothing_to_measure():
    t = morphology(torch.ones(2, 3, 32, 32))
    assert list(t.columns) == list(features) and t.isna().all().all() and len(t) == 2

def test_study_finds_planted_faults():
    torch.manual_seed(0)
    names = simulate_blood(1, size=28).names
    judge = CellClassifier(names, dim=8).eval()
    make = lambda n, seed: encode(simulate_blood(8*n, size=28, labels=[i//n for i in range(8*n)], seed=seed).images)
    asked, fresh = torch.arange(8).repeat_interleave(8), make(8, 1)
    stuck = fresh[::8].repeat_interleave(8, 0) + .01*torch.randn(fresh.shape, generator=generator(0))
    arms = {(1., 'everywhere'): fresh, (3., 'interval'): stuck}
    t = guidance_study(arms, asked, judge, make(16, 2), torch.arange(8).repeat_interleave(16), n=6, draws=2)
    assert set(t.measure) == {'fd', 'kd', 'precision', 'recall', 'density', 'coverage', 'spread', 'recognised'} and set(t['class']) == {*names, 'all'} and len(t) == 3*9*8
    v = t[t['class'] == 'all'].set_index(['where', 'measure']).value
    assert v['interval', 'recall'] < v['everywhere', 'recall'] and v['interval', 'coverage'] < v['everywhere', 'coverage'] and v['interval', 'fd'] > v['everywhere', 'fd']
    assert (t.low <= t.value + 1e-6).all() and (t.value <= t.high + 1e-6).all()
    m = morphology_study(arms, asked, names, make(16, 2), torch.arange(8).repeat_interleave(16), n=8)
    assert len(m) == 4*64 and m['where'].unique().tolist() == ['real', 'real again', 'everywhere', 'interval']
    gap = morphology_gap(m)
    assert gap[gap['where'] == 'interval'].sd.median() < .5 < gap[gap['where'] == 'real again'].sd.median()

def test_painting_arms():
    asked, arms = paint_arms(network(), arms=((1, None), (3, (-2., 2.5))), n=2, steps=2, progress=False)
    assert asked.tolist() == [0, 0, 1, 1, 2, 2] and list(arms) == [(1., 'everywhere'), (3., 'interval')] and all(x.shape == (6, 3, 16, 16) for x in arms.values())

def test_thin():
    dls = cell_dls('simulated', size=28, bs=8, n=80, cache=False, device='cpu')
    before = dls.train.labels[dls.idxs['train']].bincount(minlength=8)
    after = thin(dls, 'neutrophil', 3).train.labels[dls.idxs['train']].bincount(minlength=8)
    k = dls.vocab.index('neutrophil')
    assert after[k] == 3 < before[k] and [*after[:k], *after[k + 1:]] == [*before[:k], *before[k + 1:]] and torch.equal(torch.as_tensor(dls.train.idxs), torch.as_tensor(dls.idxs['train']))
    assert sum(len(y) for _, y in dls.train) <= len(dls.idxs['train'])
    with pytest.raises(ValueError, match='Unknown class'): thin(dls, 'unicorn', 3)

def test_longtail_study_runs():
    t = longtail_study('simulated', 'monocyte', keep=4, epochs=1, seeds=1, n=8, size=28, n_cells=400, dim=16, bs=16, steps=2, progress=False)
    assert t.arm.tolist() == ['plain', 'balanced'] and t[['rare', 'others']].ge(0).all().all() and np.isfinite(t[['kd', 'spread', 'nearest']]).all().all()

def test_shipped_tables():
    t, m = pd.read_csv(weights_folder/'guidance.csv'), pd.read_csv(weights_folder/'morphology.csv')
    assert set(t['where']) == {'everywhere', 'interval', 'real'} and {0, 1, 1.5, 2, 3, 5} <= set(t.w.dropna()) and set(features) <= set(m)
    assert all((weights_folder/f).stat().st_size < 200_000 for f in ('guidance.csv', 'morphology.csv'))
    plot_guidance(t)
