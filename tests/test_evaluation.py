"The score's parts against closed forms and other libraries; no training, no shipped weights"
import json
import numpy as np, pandas as pd, pytest, torch
from PIL import Image
from scipy.linalg import sqrtm
from scipy.stats import mannwhitneyu, wasserstein_distance
from sklearn.metrics import balanced_accuracy_score
from sklearn.metrics.pairwise import polynomial_kernel
from sklearn.neighbors import NearestNeighbors
import cell_diffusion.evaluation as evaluation
from cell_diffusion.core import encode, generator
from cell_diffusion.data import cell_dls
from cell_diffusion.ddpm import Denoiser, pretrained
from cell_diffusion.evaluation import *
from cell_diffusion.simulation import jurkat_phases

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

# ---- what the judge is trained on, and for how long

@pytest.mark.parametrize('size, stride', [(28, 1), (32, 1), (39, 1), (40, 2), (64, 2)])
def test_first_stride(size, stride):
    assert classifier(size=size).body[0].stride == (stride, stride) and classifier(size=size, stride=2).body[0].stride == (2, 2)

def test_shipped_classifiers_load():
    for name, size, features in (('blood-classifier-32', 32, 128), ('blood-classifier-64', 64, 128)):
        net = pretrained(CellClassifier, name)
        assert (net.size, net.channels, net.n_features, net.bfloat16, net.training) == (size, 3, features, False, False)
        f, p = look(net, images(4, size=size))
        assert f.shape == (4, features) and f.dtype == torch.float32 and p.max() < len(net.classes) == 8

def test_length_of_training(monkeypatch):
    dls, seen = cell_dls('simulated', size=28, bs=16, n=60, cache=False, device='cpu'), []
    monkeypatch.setattr(CellClassifier, 'forward', lambda self, x, f=CellClassifier.forward: seen.append((self.training, len(x), self.bfloat16)) or f(self, x))
    a = train_classifier(dls, steps=5, dim=8, bfloat16=True)
    assert seen == [(True, 16, True)]*5 and not a.bfloat16 and not a.training
    dls.train.set_epoch(0); b = train_classifier(dls, 2, dim=8)
    dls.train.set_epoch(0); c = train_classifier(dls, steps=2*len(dls.train), dim=8)
    assert all(torch.equal(v, c.state_dict()[k]) for k, v in b.state_dict().items())
    with pytest.raises(ValueError, match='at least one step'): train_classifier(dls, steps=0)

def test_learning_rate_falls_at_the_end_of_the_steps(monkeypatch):
    dls, rates = cell_dls('simulated', size=28, bs=16, n=60, cache=False, device='cpu'), []
    class Spy(evaluation._ForSteps):
        def after_step(self): rates.append(self.opt.hypers[-1]['lr'])
    monkeypatch.setattr(evaluation, '_ForSteps', Spy)
    train_classifier(dls, steps=11, lr=.01, dim=8)
    assert len(rates) == 11 and max(rates) == pytest.approx(.01, rel=.1) and rates[-1] < .002 and rates[0] < .001 and np.argmax(rates) in (2, 3)

def jurkat_folder(path, n=6, seed=0):
    rng = np.random.default_rng(seed)
    for phase in jurkat_phases:
        (path/'CellCycle'/phase).mkdir(parents=True)
        for i in range(n):
            for ch in (3, 4, 6): Image.fromarray(rng.integers(0, 256, (40, 40), dtype=np.uint8)).save(path/'CellCycle'/phase/f'{i}_Ch{ch}.ome.jpg')
    return path

def test_fingerprint_knows_the_channels(tmp_path):
    folder, pairs = jurkat_folder(tmp_path), (('brightfield', 'darkfield'), ('brightfield', 'dna'), ('darkfield', 'brightfield'), ('brightfield', 'darkfield', 'dna'), ('dna',))
    marks = [fingerprint(cell_dls(folder, size=40, bs=8, channels=c, cache=False)) for c in pairs]
    assert len(set(marks)) == len(pairs) and fingerprint(cell_dls(folder, size=28, bs=8, cache=False)) == marks[0]       # those are told apart by their size
    marks = [fingerprint(cell_dls('simulated-jurkat', size=28, bs=8, n=60, channels=c, cache=False)) for c in pairs]
    assert len(set(marks)) == len(pairs)

@pytest.fixture
def places(tmp_path, monkeypatch):
    "Nothing shipped, nothing cached, and a way of putting a classifier somewhere"
    monkeypatch.setattr(evaluation, 'weights_folder', tmp_path/'weights'); monkeypatch.setenv('CELL_DIFFUSION_CACHE', str(tmp_path/'cache'))
    def keep(folder, dls, seed, **other):
        (_, c, s, _), net = dls.one_batch()[0].shape, classifier(dls.vocab, seed, channels=dls.one_batch()[0].shape[1], size=dls.one_batch()[0].shape[-1])
        net.save_pretrained(folder); (folder/'record.json').write_text(json.dumps({**dict(fingerprint=fingerprint(dls), size=s, channels=c), **other}))
        return net
    return tmp_path/'weights', keep

def same(a, b): return all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())

def test_judge_is_the_one_of_these_cells(places):
    weights, keep = places
    dls, other = (cell_dls('simulated', size=28, bs=8, n=n, cache=False, device='cpu') for n in (40, 48))
    asked = []
    def make(dls, epochs): asked.append(epochs); return classifier(seed=9)
    assert same(judge_for(dls, 3, make), classifier(seed=9)) and asked == [3]
    for i, wrong in enumerate((dict(fingerprint='0'*16), dict(size=32), dict(channels=2))): keep(weights/f'a-classifier-{i}', dls, i, **wrong)
    keep(weights/'a-classifier-8', other, 8); keep(weights/'painter', dls, 7)
    (weights/'b-classifier').mkdir()                                          # without a record
    judge_for(dls, 4, make)
    assert asked == [3, 4], 'a classifier of other cells, another size or other channels was taken'
    cached = keep(classifier_folder(dls), dls, 5)
    assert same(judge_for(dls, 5, make), cached) and asked == [3, 4]
    first = keep(weights/'z-my-classifier-28', dls, 6)
    assert same(judge_for(dls, 5, make), first) and asked == [3, 4], 'shipped ones come first'

def test_judge_is_trained_where_there_is_none(places):
    dls = cell_dls('simulated', size=28, bs=16, n=40, cache=False, device='cpu')
    net = judge_for(dls, 1)
    assert net.classes == dls.vocab and not classifier_folder(dls).exists() and classifier_folder(dls).name == f'{fingerprint(dls)}-3x28'

def test_balanced_accuracy():
    asked = torch.tensor([0]*90 + [1]*6 + [2]*4); seen = torch.tensor([0]*90 + [1]*3 + [0]*3 + [0]*4)
    table = recognised(seen, asked, ('a', 'b', 'c'))
    value, low, high = balanced_accuracy(table)
    assert value == pytest.approx(balanced_accuracy_score(asked, seen)) == pytest.approx(.5) and low < .45 and .55 < high < .8
    assert table['share'].iloc[-1] == pytest.approx(.93)
    v, lo, hi = balanced_accuracy(recognised(torch.zeros(3), torch.zeros(3), ('a',)))
    assert v == hi == 1 and lo < .6, 'three of three is no certainty'

# ---- heaps of features: references, and cases with a known answer

def test_precision_recall_against_loops():
    a, b = torch.randn(25, 3, generator=generator(0)), 1.5*torch.randn(20, 3, generator=generator(1))
    def inside(p, heap): return any((p - q).norm() <= sorted((q - o).norm() for o in heap)[3] for q in heap)
    p, r = precision_recall(a, b)
    assert p == pytest.approx(np.mean([inside(x, a) for x in b])) and r == pytest.approx(np.mean([inside(x, b) for x in a]))
    assert precision_recall(a, a) == (1, 1) and precision_recall(a, a + 100) == (0, 0)
    with pytest.raises(ValueError, match='more than 3'): precision_recall(a, b[:3])

@pytest.mark.parametrize('k, n, m', [(3, 60, 80), (5, 80, 60), (1, 20, 7)])
def test_manifolds_against_scikit_learn(k, n, m):
    real, fake = torch.randn(n, 4, generator=generator(0)), .8*torch.randn(m, 4, generator=generator(1)) + .5
    def balls(heap): return NearestNeighbors(n_neighbors=k + 1).fit(heap).kneighbors(heap)[0][:, k]
    apart = np.linalg.norm(real.numpy()[:, None] - fake.numpy(), axis=-1)
    inside = apart <= balls(real.numpy())[:, None]
    assert precision_recall(real, fake, k) == pytest.approx((inside.any(0).mean(), (apart <= balls(fake.numpy())).any(1).mean()))
    assert density_coverage(real, fake, k) == pytest.approx((inside.sum(0).mean()/k, inside.any(1).mean()))

def test_density_coverage_limits():
    a = torch.randn(80, 3, generator=generator(0))
    assert density_coverage(a, a) == pytest.approx((6/5, 1)) and density_coverage(a, a + 100) == (0, 0)       # its own ball, and those of its five fellows
    with pytest.raises(ValueError, match='more than 5'): density_coverage(a[:5], a)
    with pytest.raises(ValueError, match='a painted one'): density_coverage(a, a[:0])

def test_loners_fool_the_older_pair():
    g = generator(5)
    real = torch.cat([torch.randn(150, 2, generator=g), torch.tensor([[6., 5.]])])
    beside, timid = .3*torch.randn(100, 2, generator=g) + 3.5, .15*torch.randn(150, 2, generator=g)
    stray = torch.cat([timid[1:], torch.tensor([[-5., 0.]])])
    assert precision_recall(real, beside)[0] > .95 and density_coverage(real, beside)[0] < .3
    assert precision_recall(real, stray)[1] > 2*precision_recall(real, timid)[1] and density_coverage(real, stray)[1] == pytest.approx(density_coverage(real, timid)[1], abs=.02)

def kinds(n, seed, which=range(4), d=8):
    "Four kinds of cells, as features: the corners of a square, with a spread of 1 in every direction"
    g, corners = generator(seed), torch.tensor([[-3., -3], [3, -3], [-3, 3], [3, 3]])
    y = torch.tensor(list(which))[torch.arange(n) % len(which)]
    return torch.cat([corners[y], torch.zeros(n, d - 2)], 1) + torch.randn(n, d, generator=g), y

@pytest.fixture(scope='module')
def known():
    "What every measure says to cases whose answer is known"
    (train, _), (real, _), (other, _), (few, _) = kinds(400, 0), kinds(300, 1), kinds(300, 2), kinds(300, 3, (0, 1))
    cases = {'same': other, 'shifted': other + 1.5, 'half the classes': few, 'one cell a kind': other[:4].repeat(75, 1) + .001*torch.randn(300, 8, generator=generator(4)),
             'copies': train[:300], 'noised copies': train[:300] + .05*torch.randn(300, 8, generator=generator(5)), 'noise': 20 + torch.randn(300, 8, generator=generator(6))}
    return pd.DataFrame({name: {**compare(real, x), **{f'm_{k}': v for k, v in memorisation(x, train, real).items()}} for name, x in cases.items()}).T

def test_known_same(known):
    o = known.loc['same']
    assert o.fd < .5 and abs(o.kd) < .02*known.kd['half the classes'] and min(o.precision, o.recall) > .8 and o.coverage > .95 and .85 < o.density < 1.15
    assert .9 < o.m_ratio < 1.1 and .02 < o.m_near < .09 and abs(o.m_z) < 2.5 and o.m_p > .01

def test_known_shift(known):
    o, same = known.loc['shifted'], known.loc['same']
    assert o.fd == pytest.approx(8*1.5**2, rel=.15) and o.kd > 10*abs(same.kd) and o.precision < .6*same.precision and o.density < .5*same.density and o.coverage < .6*same.coverage
    assert o.m_ratio > 1.3 and o.m_z > 5, 'far from the training cells is not a copy'

def test_known_half_of_the_classes(known):
    o, same = known.loc['half the classes'], known.loc['same']
    assert o.recall < .55 and o.coverage < .55 and abs(o.precision - same.precision) < .08 and abs(o.density - same.density) < .15 and o.fd > 10*same.fd and o.kd > 10*abs(same.kd)
    assert .85 < o.m_ratio < 1.15

def test_known_one_cell_a_kind(known):
    o, same = known.loc['one cell a kind'], known.loc['same']
    assert o.recall < .05 and o.coverage < .2 and o.fd > 5*same.fd and o.precision > .7 and o.density > .8*same.density

@pytest.mark.parametrize('case', ['copies', 'noised copies'])
def test_known_copies(known, case):
    o, same = known.loc[case], known.loc['same']
    assert o.fd < 2*same.fd and min(o.precision, o.recall) > .8 and o.coverage > .95, 'copies pass all but one instrument'
    assert o.m_ratio < .2 and o.m_near > .99 and o.m_z < -10 and o.m_p < 1e-20 and o.m_ratio_high < .25

def test_known_noise(known):
    o = known.loc['noise']
    assert o.precision == o.density == o.coverage == 0 and o.fd > 1000 and o.kd > 100 and o.m_ratio > 10

def test_memorisation_is_the_rank_test():
    train, a, b = (torch.randn(n, 5, generator=generator(i)) for i, n in enumerate((200, 90, 120)))
    gap = lambda x: torch.cdist(x.double(), train.double()).amin(1).numpy()
    m, test = memorisation(a, train, b, near=.1), mannwhitneyu(gap(a), gap(b), alternative='less')
    u = sum((x > gap(b)).sum() for x in gap(a))
    assert m['p'] == pytest.approx(test.pvalue) and m['z'] == pytest.approx((u - 90*120/2)/np.sqrt(90*120*211/12))
    assert m['ratio'] == pytest.approx(np.median(gap(a))/np.median(gap(b))) and m['line'] == pytest.approx(np.quantile(gap(b), .1))
    assert m['near'] == pytest.approx((gap(a) <= m['line']).mean()) and (m['near_low'], m['near_high']) == wilson((gap(a) <= m['line']).sum(), 90) and m['expected'] == .1
    assert m['ratio_low'] <= m['ratio'] <= m['ratio_high'] and m == memorisation(a, train, b, near=.1)
    with pytest.raises(ValueError, match='at least 2'): memorisation(a[:1], train, b)

def test_memorisation_raises_no_false_alarm():
    p = [memorisation(*(torch.randn(n, 6, generator=generator(10*i + j)) for j, n in enumerate((80, 200, 80))))['p'] for i in range(60)]
    assert .3 < np.median(p) < .7 and np.mean(np.array(p) < .05) < .13

def test_memorisation_finds_one_thief_in_ten():
    train, real, honest = kinds(400, 0)[0], kinds(300, 1)[0], kinds(300, 2)[0]
    mixed = memorisation(torch.cat([honest[:270], train[:30]]), train, real, near=.01)
    assert mixed['ratio'] > .9 and mixed['near_low'] > .05 > .01 == mixed['expected'] and memorisation(honest, train, real, near=.01)['near'] < .04

def test_memorisation_on_pixels_and_in_any_position():
    pool, held_out, fresh = images(40), images(40, seed=1), images(40, seed=2)
    stolen = pool[:20].rot90(1, (2, 3)).flip(-1)
    flat = lambda x: positions(x).flatten(2)
    honest, thief, asleep = (memorisation(f, pool.flatten(1), r) for f, r in ((flat(fresh), flat(held_out)), (flat(stolen), flat(held_out)), (stolen.flatten(1), held_out.flatten(1))))
    assert thief['ratio'] < 1e-3 and thief['near'] == 1 and thief['p'] < 1e-6 and .95 < honest['ratio'] < 1.05 and asleep['ratio'] > .95
    exact = memorisation(pool[:20].flatten(1), pool.flatten(1), pool[20:].flatten(1))      # even where the yardstick is spoilt
    assert exact['near'] == 1

def test_positions():
    x = images(2, size=5)
    p = positions(x)
    assert p.shape == (8, 2, 3, 5, 5) and torch.equal(p[0], x) and len({tuple(o.flatten().tolist()) for o in p[:, 0]}) == 8
    again = positions(x.rot90(3, (2, 3)).flip(-2))
    assert {tuple(o.flatten().tolist()) for o in p[:, 1]} == {tuple(o.flatten().tolist()) for o in again[:, 1]}, 'a turned cell has the same eight'

def test_thumbnails():
    x = images(3, channels=2, size=40)
    assert torch.allclose(thumbnails(x)[1].reshape(2, 8, 8)[0, 2, 5], x[1, 0, 10:15, 25:30].mean()) and thumbnails(x, 4).shape == (3, 32)
    noisy, other = x + .3*torch.randn(x.shape, generator=generator(5)), images(200, channels=2, size=40, seed=3)
    assert nearest(thumbnails(noisy), thumbnails(torch.cat([other, x])))[1][:, 0].tolist() == [200, 201, 202]

def test_nearest_of_eight_positions():
    net, pool = classifier(), images(12)
    turned = pool[[3, 8]].transpose(2, 3)
    f = look_turned(net, turned)
    assert f.shape == (8, 2, 32) and torch.allclose(f[0], look(net, turned)[0], atol=1e-5)
    gaps, idx = nearest(f, look(net, pool)[0], 3, bs=1)
    assert idx[:, 0].tolist() == [3, 8] and gaps[:, 0].max() < 1e-4 and all(len(set(row)) == 3 for row in idx.tolist())
    each = torch.stack([torch.cdist(v, look(net, pool)[0]) for v in f]).amin(0).sort(1)[0]
    assert torch.allclose(gaps, each[:, :3], atol=1e-4)

def test_distances_take_another_question():
    x = torch.arange(20.)[:, None]
    t = distances(x, x + 100, 5, draws=3, what=lambda a, b, i: dict(gap=(b.mean() - a.mean()).item(), i=i))
    assert list(t) == ['draw', 'n', 'gap', 'i'] and t.i.tolist() == [0, 1, 2] and (abs(t.gap - 100) < 15).all()
    assert set(summary(t)) == {'n', 'draws', 'gap', 'i'}

def test_bias_curve():
    real, fake = torch.randn(800, 6, generator=generator(0)), torch.randn(300, 6, generator=generator(1)) + .5
    t = bias_curve(real, fake, ns=(25, 50, 100, 200, 400, 9999), draws=8)
    assert list(t) == ['against', 'n', 'draw', 'measure', 'value'] and set(t.measure) == {'fd', 'kd'}
    fd = t[t.measure == 'fd'].groupby(['against', 'n']).value.mean()
    floor = fd['real against real']
    assert list(floor.index) == [25, 50, 100, 200, 400] and (floor.diff().dropna() < 0).all()
    assert (floor*floor.index).max() < 2*(floor*floor.index).min(), 'the floor does not fall like 1/n'
    assert list(fd['painted against real'].index) == [25, 50, 100, 200] and fd['painted against real'][200] > 1.2 > 10*floor[400]
    kd = t[(t.measure == 'kd') & (t.against == 'real against real')]
    assert abs(kd[kd.n > 25].groupby('n').value.mean()).max() < .15, 'the kernel distance is unbiased'
    assert set(bias_curve(real, ns=(25,), draws=2).against) == {'real against real'}
    with pytest.raises(ValueError, match='up to 400'): bias_curve(real, ns=(500,))
    import matplotlib.pyplot as plt
    fig = plot_bias(t); assert fig.axes[0].get_yscale() == 'log' and len(fig.axes) == 2; plt.close('all')

# ---- can one learn from it?

def coloured(y, seed, spread=.15, size=8):
    "Cells whose class is their colour"
    y, g = torch.as_tensor(y), generator(seed)
    return (torch.eye(3)[y][..., None, None] - .5 + spread*torch.randn(len(y), 3, size, size, generator=g)).clamp(-1, 1), y

def test_accuracy_scores_of_known_painters():
    train, test = coloured([0]*60 + [1]*60 + [2]*20, 0), coloured([0]*80 + [1]*15 + [2]*5, 1)
    how = dict(classes=('a', 'b', 'c'), steps=20, seeds=1, bs=16, dim=8)
    x, y = coloured([0, 1, 2]*20, 2)
    honest = accuracy_scores((x, y), train, test, **{**how, 'seeds': 2})
    assert honest.trained_on.tolist() == ['painted', 'real']*2 and honest.seed.tolist() == [0, 0, 1, 1] and (honest.n == 60).all() and (honest.balanced > .9).all()
    disobedient = accuracy_scores((x, (y + 1) % 3), train, test, **how).set_index('trained_on')
    assert disobedient.accuracy['painted'] < .2 and disobedient.balanced['real'] > .9
    one = accuracy_scores((coloured([0]*20, 3)), train, test, **how).set_index('trained_on')
    assert one.accuracy['painted'] == pytest.approx(.8) and one.balanced['painted'] == pytest.approx(1/3), 'the largest class alone is right in 80%, and knows a third'

def test_both_sides_learn_from_equally_many(monkeypatch):
    seen = []
    def fake_train(dls, steps, **kwargs): seen.append((steps, kwargs['seed'], np.bincount(dls.train.arrays[1], minlength=3).tolist(), dls.train.augment)); return classifier()
    monkeypatch.setattr(evaluation, 'train_classifier', fake_train)
    accuracy_scores(coloured([0]*9 + [1]*5 + [2]*7, 0), coloured([0]*4 + [1]*50 + [2]*7, 1), coloured([0, 1, 2], 2), ('a', 'b', 'c'), steps=17, seeds=2)
    assert seen == [(17, s, [4, 5, 7], True) for s in (0, 0, 1, 1)]
    with pytest.raises(ValueError, match='no class in common'): accuracy_scores(coloured([0], 0), coloured([1], 1), coloured([0], 2), ('a', 'b', 'c'))

# ---- all of it

def test_plain_numbers():
    flat = torch.full((1, 2, 16, 16), .25); flat[0, 1] = torch.linspace(-1, 1, 16)
    t = plain_numbers(flat).iloc[0]
    assert list(plain_numbers(flat)) == [f'{k} {i}' for i in (0, 1) for k in ('brightness', 'contrast', 'extent', 'grain')] and list(plain_numbers(flat[:, :1]))[0] == 'brightness'
    assert t['brightness 0'] == pytest.approx(.25) and t['contrast 0'] == pytest.approx(0, abs=1e-6) and t['grain 0'] == 0
    assert t['brightness 1'] == pytest.approx(0, abs=1e-6) and t['contrast 1'] == pytest.approx(np.linspace(-1, 1, 16).std(), rel=.02) and t['grain 1'] == pytest.approx(1/15, rel=1e-4)
    discs = torch.stack([((torch.linspace(-1, 1, 40)**2 + torch.linspace(-1, 1, 40)[:, None]**2) < r*r).float()[None] for r in (.3, .6)])
    assert plain_numbers(discs).extent.tolist() == pytest.approx([.3/2**.5, .6/2**.5], rel=.05)

def test_number_gaps():
    rng = np.random.default_rng(0)
    a, b = rng.normal(3, 2, (500, 2)), rng.normal(3, 2, (400, 2)); b[:, 1] += 2; b[:50, 0] = np.nan
    gap = number_gaps(a, b, ('x', 'y'))
    assert gap['x'] == pytest.approx(wasserstein_distance(a[:, 0], b[50:, 0])/a[:, 0].std()) and gap['x'] < .2 and gap['y'] == pytest.approx(1, abs=.2)
    assert np.isnan(number_gaps(a, np.full((3, 2), np.nan), ('x', 'y'))['x'])

@pytest.fixture(scope='module')
def reported():
    "Reports on two painters: one honest, one who steals, and one who was asked for no class"
    make = lambda n, seed: coloured([i % 3 for i in range(n)], seed, size=16)
    train, held_out, honest = make(120, 0), make(90, 1), make(60, 2)
    net = train_classifier(evaluation._in_memory(*train, ('a', 'b', 'c'), 16, 0), steps=20, dim=8)
    thief = (train[0][:60] + .005*torch.randn(60, 3, 16, 16, generator=generator(9))).rot90(1, (2, 3)), train[1][:60]
    how = dict(n=30, draws=3, cas=dict(steps=10, seeds=2, dim=8, bs=16))
    return report({'honest': honest, 'thief': thief, 'free': (honest[0], None)}, net, held_out, train, **how), (net, held_out, train, honest)

def test_report(reported):
    t, (net, held_out, train, honest) = reported
    assert list(t) == ['model', 'group', 'measure', 'value', 'low', 'high', 'floor', 'floor_low', 'floor_high', 'better', 'n'] and not t.drop(columns='n').isna().any().any()
    measures = ['fd', 'kd', 'precision', 'recall', 'density', 'coverage', 'recognised', 'recognised balanced', 'memorisation', 'near copies', 'memorisation in pixels', 'near copies in pixels', 'cas', 'cas balanced']
    o = t[t.model == 'honest'].set_index('measure')
    assert list(o.index) == measures + list(plain_numbers(honest[0])) and o.better[['fd', 'precision', 'density', 'cas', 'grain 1']].tolist() == ['lower', 'higher', 'floor', 'higher', 'lower']
    assert set(t[t.model == 'free'].measure) == set(o.index) - {'recognised', 'recognised balanced', 'cas', 'cas balanced'}, 'no class was asked for'
    assert (t.low <= t.value + 1e-6).all() and (t.value <= t.high + 1e-6).all() and (t.floor_low <= t.floor + 1e-6).all() and (t.floor <= t.floor_high + 1e-6).all()
    assert (t[t.group.isin(['heap', 'numbers'])].n == 30).all()
    floors = t[t.group.isin(['heap', 'class', 'copies', 'numbers'])].groupby('measure').floor
    assert (floors.nunique() == 1).all(), 'all painters stand beside one floor'
    seen = look(net, held_out[0])[0]
    assert o.floor.fd == pytest.approx(summary(distances(seen, None, 30, 3))['fd']['mean']) and o.value.fd == pytest.approx(summary(distances(seen, look(net, honest[0])[0], 30, 3))['fd']['mean'])
    assert o.value.recognised == o.value['recognised balanced'] == 1 and .7 < o.floor.memorisation < 1.4

def test_report_catches_the_thief(reported):
    v = reported[0].set_index(['model', 'measure']).value
    for eye in ('', ' in pixels'): assert v['thief', f'memorisation{eye}'] < .3 and v['thief', f'near copies{eye}'] > .9 and v['honest', f'memorisation{eye}'] > .6 and v['honest', f'near copies{eye}'] < .3
    assert v['thief', 'fd'] < 3*v['honest', 'fd']

def test_report_without_extras(reported):
    _, (net, held_out, train, honest) = reported
    t = report({'honest': honest}, net, held_out, train, n=30, draws=2, describe=None, turned=False, pool=look(net, train[0])[0])
    assert len(t) == 12 and set(t.group) == {'heap', 'class', 'copies'}
    m = memorisation(look(net, honest[0])[0], look(net, train[0])[0], look(net, held_out[0][torch.from_numpy(np.random.default_rng(0).permutation(90)[:60])])[0])
    assert t.set_index('measure').value.memorisation == pytest.approx(m['ratio'], rel=1e-3)
    with pytest.raises(ValueError, match='at least 6'): report({'few': (honest[0][:5], None)}, net, held_out, train)

def test_plot_report(reported):
    import matplotlib; matplotlib.use('agg')
    import matplotlib.pyplot as plt
    t, _ = reported
    fig = plot_report(t)
    titles = {ax.get_title() for ax in fig.axes}
    assert {'Fréchet distance', 'kernel distance', 'copies', 'shares'} < titles and len(fig.axes) == 5
    assert [o.get_text() for o in fig.legends[0].get_texts()] == ['real, held out', 'honest', 'thief', 'free']
    assert len(plot_report(t[(t.model == 'honest') & (t.group != 'numbers')]).axes) == 4
    plt.close('all')
