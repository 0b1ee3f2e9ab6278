"The score's parts against closed forms and other libraries; no training, no shipped weights"
import json
import numpy as np, pandas as pd, pytest, torch
from scipy.linalg import sqrtm
from sklearn.metrics.pairwise import polynomial_kernel
import cell_diffusion.evaluation as evaluation
from cell_diffusion.core import generator
from cell_diffusion.data import cell_dls
from cell_diffusion.ddpm import Denoiser, pretrained
from cell_diffusion.evaluation import *

def heaps(n=300, m=250, d=6, seed=0):
    "Two heaps of correlated features that differ in mean and covariance"
    g = generator(seed)
    return torch.randn(n, d, generator=g) @ torch.randn(d, d, generator=g), .5 + torch.randn(m, d, generator=g) @ torch.randn(d, d, generator=g)

def classifier(classes=('a', 'b', 'c'), seed=0, **kwargs):
    torch.manual_seed(seed)
    return CellClassifier(list(classes), **{**dict(dim=8), **kwargs}).eval()

def images(n, channels=3, size=32, seed=0): return torch.rand(n, channels, size, size, generator=generator(seed))*2 - 1

def test_frechet_distance_is_the_formula():
    x, y = heaps()
    a, b = x.double().numpy(), y.double().numpy()
    ca, cb = np.cov(a.T), np.cov(b.T)
    formula = ((a.mean(0) - b.mean(0))**2).sum() + np.trace(ca + cb - 2*sqrtm(ca @ cb).real)
    assert frechet_distance(x, y) == pytest.approx(formula, rel=1e-6)
    assert frechet_distance(x, y) == pytest.approx(frechet_distance(y, x), rel=1e-6)

@pytest.mark.parametrize('m, s', [(0, 1), (2, 1), (0, 3), (-1, .5)])
def test_frechet_distance_in_one_dimension(m, s):
    x = torch.randn(400, 1, generator=generator(0)).double(); x = (x - x.mean())/x.std()
    y = torch.randn(300, 1, generator=generator(1)).double(); y = (y - y.mean())/y.std()*s + m
    assert frechet_distance(x, y) == pytest.approx(m**2 + (1 - s)**2, abs=1e-6)

def test_frechet_distance_of_a_heap_to_itself_is_zero():
    x, _ = heaps()
    assert abs(frechet_distance(x, x)) < 1e-6
    few = torch.randn(10, 40, generator=generator(0))      # fewer cells than features: a singular covariance
    assert abs(frechet_distance(few, few)) < 1e-4 and np.isfinite(frechet_distance(few, few + 1))
    assert frechet_distance(few, few + 1) == pytest.approx(40, rel=1e-4)

def unbiased(x, y):
    "Squared MMD with scikit-learn's kernel: no cell is paired with itself"
    k = lambda a, b: polynomial_kernel(a.double().numpy(), b.double().numpy(), degree=3, coef0=1)     # gamma is 1/d by default
    within = lambda a: (k(a, a).sum() - np.trace(k(a, a)))/(len(a)*(len(a) - 1))
    return within(x) + within(y) - 2*k(x, y).mean()

def test_kernel_distance_is_the_unbiased_estimate():
    x, y = heaps(200, 200)
    assert kernel_distance(x, y, subset=200) == pytest.approx(unbiased(x, y), rel=1e-4)
    assert kernel_distance(x, y, subset=10_000, seed=5) == pytest.approx(unbiased(x, y), rel=1e-4)     # all there are

def test_kernel_distance_draws():
    x, y = heaps(200, 150)
    a, b, c = (kernel_distance(x, y, subset=50, draws=5, seed=s) for s in (0, 0, 1))
    assert a == b != c and abs(a - c) < .5*abs(unbiased(x, y))
    state = torch.get_rng_state()
    kernel_distance(x, y, subset=50)
    assert torch.equal(state, torch.get_rng_state()), 'the draws change the global random state'

def test_kernel_distance_of_one_distribution_is_around_zero():
    g = generator(0)
    kd = np.array([kernel_distance(*torch.randn(2, 40, 4, generator=g)) for _ in range(60)])
    assert abs(kd.mean()) < 3*kd.std()/60**.5 and (kd < 0).any() and (kd > 0).any()

@pytest.mark.parametrize('hits, n, low, high', [(0, 10, 0, .2775), (10, 10, .7225, 1), (9, 10, .5958, .9821), (50, 100, .4038, .5962), (1, 29, .0061, .1718)])
def test_wilson(hits, n, low, high):
    assert wilson(hits, n) == pytest.approx((low, high), abs=1e-4)
    assert wilson(torch.tensor(hits), n) == wilson(hits, n)

def test_recognised_counts():
    asked, seen = torch.tensor([0, 0, 0, 1, 1, 3]), torch.tensor([0, 0, 1, 1, 1, 0])
    t = recognised(seen, asked, ('a', 'b', 'c', 'd')).set_index('class')
    assert list(t.index) == ['a', 'b', 'd', 'all'], 'a class that nobody asked for has no row'
    assert t.n.tolist() == [3, 2, 1, 6] and t.share.tolist() == pytest.approx([2/3, 1, 0, 4/6])
    assert ((t.low <= t.share + 1e-6) & (t.share <= t.high + 1e-6)).all() and (t.low['a'], t.high['a']) == wilson(2, 3)

def watch_distances(monkeypatch):
    "Let each feature be its cell's number, and note which cells are compared"
    pairs = []
    monkeypatch.setattr(evaluation, 'frechet_distance', lambda a, b: pairs.append((set(a[:, 0].tolist()), set(b[:, 0].tolist()))) or 0.)
    monkeypatch.setattr(evaluation, 'kernel_distance', lambda a, b, seed: 0.)
    return pairs

@pytest.mark.parametrize('n', [10, 1000])
def test_the_floor_shares_no_cell(monkeypatch, n):
    pairs = watch_distances(monkeypatch)
    t = distances(torch.arange(41.)[:, None], None, n, draws=5)
    for a, b in pairs: assert not a & b and len(a) == len(b) == min(n, 20)
    assert len(pairs) == 5 and (t.n == min(n, 20)).all() and len({frozenset(a) for a, _ in pairs}) == 5

def test_distances_take_the_same_number_from_both_sides(monkeypatch):
    pairs = watch_distances(monkeypatch)
    distances(torch.arange(40.)[:, None], 100 + torch.arange(13.)[:, None], 1000, draws=3)
    for a, b in pairs: assert len(a) == len(b) == 13 and max(a) < 100 <= min(b)

def test_distances_know_a_shift_and_repeat_themselves():
    x = torch.randn(200, 4, generator=generator(0))
    floor, near, far = distances(x, None, 90, 4), distances(x, x + .5, 90, 4), distances(x, x + 2, 90, 4)
    assert floor.fd.mean() < near.fd.mean() < far.fd.mean() and floor.kd.mean() < near.kd.mean() < far.kd.mean()
    pd.testing.assert_frame_equal(floor, distances(x, None, 90, 4))
    assert not floor.equals(distances(x, None, 90, 4, seed=1))

def test_summary():
    s = summary(pd.DataFrame(dict(draw=range(41), n=7, fd=np.arange(41.), kd=-np.arange(41.))))
    assert s['n'] == 7 and s['draws'] == 41 and s['fd'] == dict(mean=20, low=1, high=39) and s['kd'] == dict(mean=-20, low=-39, high=-1)
    json.dumps(s)

@pytest.mark.parametrize('channels, size', [(3, 28), (1, 32), (2, 40), (3, 64)])
def test_classifier_shapes(channels, size):
    net, x = classifier(channels=channels, size=size), images(2, channels, size)
    assert net.features(x).shape == (2, net.n_features) == (2, 32) and net(x).shape == (2, 3)
    assert (net.features(x) >= 0).all() and torch.allclose(net.head(net.features(x)), net(x))

def test_classifier_comes_back_from_disk(tmp_path):
    net, x = classifier(('x', 'y'), channels=2, size=64), images(3, 2, 64)
    net.save_pretrained(tmp_path)
    again = pretrained(CellClassifier, tmp_path)
    assert again.classes == ('x', 'y') and again.size == 64 and not again.training and torch.equal(again(x), net(x))
    assert sorted(net.state_dict()) == sorted(again.state_dict())

def test_look_does_not_depend_on_the_batch():
    net, x = classifier(), images(9)
    net.train()
    (f, p), (f2, p2) = look(net, x), look(net, x, bs=4)
    assert not net.training and torch.allclose(f, f2, atol=1e-5) and torch.equal(p, p2) and torch.equal(p, net(x).argmax(1)) and not f.requires_grad

def test_training_starts_from_the_seed():
    dls = cell_dls('simulated', size=28, bs=16, n=60, cache=False, device='cpu')
    a, b = (train_classifier(dls, 1, dim=8) for _ in range(2) if dls.train.set_epoch(0) is None)
    assert a.classes == dls.vocab and all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())

def test_fingerprint():
    a, b, c = (cell_dls('simulated', size=28, bs=8, n=40, seed=s, cache=False) for s in (0, 0, 1))
    assert fingerprint(a) == fingerprint(b) != fingerprint(c) and len(fingerprint(a)) == 16 and int(fingerprint(a), 16)
    b.idxs['train'] = b.idxs['train'][:-1]
    assert fingerprint(a) != fingerprint(b)

def test_nearest():
    pool = torch.randn(50, 5, generator=generator(0))
    asked = pool[[7, 30]] + 1e-3
    gaps, idx = nearest(asked, pool, 3, bs=1)
    full = (asked[:, None] - pool).pow(2).sum(-1).sqrt()
    assert idx[:, 0].tolist() == [7, 30] and torch.allclose(gaps, full.sort(1)[0][:, :3], atol=1e-6) and torch.equal(idx, full.argsort(1)[:, :3])
    assert (nearest(pool, pool)[0] == 0).all()

def test_pictures():
    import matplotlib; matplotlib.use('agg')
    import matplotlib.pyplot as plt
    x, pool = images(3), images(5, seed=1)
    fig = show_nearest(x, pool, nearest(x.flatten(1), pool.flatten(1), 2), name='asked')
    assert len(fig.axes) == 9 and [ax.get_title() for ax in fig.axes[:3]] == ['asked']*3
    assert show_nearest(x, pool, nearest(x.flatten(1), pool.flatten(1)), name=['a', 'b', 'c']).axes[1].get_title() == 'b'
    assert show_nearest(x, pool, nearest(x.flatten(1), pool.flatten(1)), kinds='vwxyz').axes[3].get_title()[:2] in ('v ', 'w ', 'x ', 'y ', 'z ')
    t = recognised(torch.tensor([0, 1, 1]), torch.tensor([0, 1, 0]), ('a', 'b'))
    ax = plot_shares(dict(real=t, painted=t.iloc[1:]))
    assert [o.get_text() for o in ax.get_yticklabels()] == ['a', 'b', 'all']
    plt.close('all')

@pytest.mark.parametrize('classes', [('a', 'b', 'c'), ()])
def test_score(classes, monkeypatch):
    net, cells, labels = classifier(), images(24), torch.arange(24)%3
    asked = []
    monkeypatch.setattr(evaluation, 'sample', lambda model, n, label, **kw: asked.append(label) or images(n, seed=2))
    s = score(Denoiser(dict(dim=16), classes=classes), net, cells, labels, n=8, progress=False)
    json.dumps(s)
    assert s['n'] == s['generated']['n'] == s['floor']['n'] == 8 and s['classifier_accuracy'][-1]['n'] == 24
    assert (len(asked[0]) == 8 and s['recognised'][-1]['n'] == 8) if classes else (asked == [None] and sum(s['classes_seen'].values()) == pytest.approx(1))

def test_score_table(tmp_path):
    part = dict(n=8, draws=3, fd=dict(mean=2., low=1., high=3.), kd=dict(mean=.1, low=0., high=.2))
    whole = dict(n=8, steps=20, seed=0, classifier_accuracy=[dict(share=.9)], generated=part, floor=part, recognised=[dict(share=.5), dict(share=.6)])
    free = {k: v for k, v in whole.items() if k != 'recognised'}
    for name, record in dict(b=dict(size=64, score=free), a=dict(size=32, score=whole), c=dict(size=32), d=dict(kind='classifier', accuracy=[]), e=dict(score={})).items():
        (tmp_path/name).mkdir(); (tmp_path/name/'record.json').write_text(json.dumps(record))
    (tmp_path/'f').mkdir()
    t = score_table(tmp_path)
    assert t.model.tolist() == ['a', 'b'] and t['size'].tolist() == [32, 64] and t.recognised[0] == .6 and np.isnan(t.recognised[1])
    assert (t.fd_low == 1).all() and (t.kd_floor == .1).all() and (t.accuracy == .9).all()
    assert len(score_table(tmp_path/'f')) == 0
