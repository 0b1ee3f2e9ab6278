"Measures against closed forms and other libraries, and on cases with a known answer"
import json
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from functools import partial
from scipy.fft import idctn
from scipy.linalg import sqrtm
from scipy.stats import mannwhitneyu, wasserstein_distance
from sklearn.metrics import balanced_accuracy_score
from sklearn.metrics.pairwise import polynomial_kernel
from sklearn.neighbors import NearestNeighbors
from torchvision.transforms.functional import gaussian_blur
import cell_diffusion.metrics as module
from cell_diffusion.classifier import (
    CellClassifier, features_and_predictions, train_classifier,
)
from cell_diffusion.core import generator
from cell_diffusion.denoiser import Denoiser
from cell_diffusion.metrics import (
    balanced_accuracy, class_accuracy, classifier_accuracy_score, density_coverage,
    evaluation_report, frechet_distance, kernel_distance, memorisation, nearest_cells,
    precision_recall, score_model, score_table, wilson,
)
from cell_diffusion.metrics import (
    bias_curve, block_energy, block_frequency, compare_features, dihedral_features,
    distance_draws, energy_ratio, grain, loaders_in_memory, scored_records,
    simple_measures, spectrum, summarize_draws, thumbnails, wasserstein_gaps,
)
from cell_diffusion.plots import (
    plot_bias, plot_class_accuracy, plot_report, show_nearest,
)
from cell_diffusion.transforms import dihedral_views

matplotlib.use('agg')

def two_sets(n=300, m=250, d=6, seed=0):
    "Two sets of correlated features that differ in mean and covariance"
    g = generator(seed)
    real = torch.randn(n, d, generator=g) @ torch.randn(d, d, generator=g)
    return real, .5 + torch.randn(m, d, generator=g) @ torch.randn(d, d, generator=g)

def gaussian(n, d, seed=0): return torch.randn(n, d, generator=generator(seed))

def classifier(classes=('a', 'b', 'c'), seed=0, size=32):
    torch.manual_seed(seed)
    return CellClassifier(list(classes), size=size, dim=8).eval()

def images(n, channels=3, size=32, seed=0):
    return torch.rand(n, channels, size, size, generator=generator(seed))*2 - 1

# ---- distances

def test_frechet_distance_is_the_formula():
    x, y = two_sets()
    a = x.double().numpy()
    b = y.double().numpy()
    ca = np.cov(a.T)
    cb = np.cov(b.T)
    shift = ((a.mean(0) - b.mean(0))**2).sum()
    formula = shift + np.trace(ca + cb - 2*sqrtm(ca @ cb).real)
    assert frechet_distance(x, y) == pytest.approx(formula, rel=1e-6)
    assert frechet_distance(y, x) == pytest.approx(formula, rel=1e-6)

@pytest.mark.parametrize('m, s', [(0, 1), (2, 1), (0, 3), (-1, .5)])
def test_frechet_distance_in_one_dimension(m, s):
    x = gaussian(400, 1, 0).double()
    y = gaussian(300, 1, 1).double()
    x = (x - x.mean())/x.std()
    y = (y - y.mean())/y.std()*s + m
    assert frechet_distance(x, y) == pytest.approx(m**2 + (1 - s)**2, abs=1e-6)

def test_frechet_distance_of_a_set_to_itself_is_zero():
    x, _ = two_sets()
    assert abs(frechet_distance(x, x)) < 1e-6
    # Fewer cells than features: a singular covariance
    few = gaussian(10, 40)
    assert abs(frechet_distance(few, few)) < 1e-4
    assert frechet_distance(few, few + 1) == pytest.approx(40, rel=1e-4)

def unbiased(x, y):
    "Squared MMD with scikit-learn's kernel: no cell is paired with itself"
    def kernel(a, b):
        a = a.double().numpy()
        b = b.double().numpy()
        return polynomial_kernel(a, b, degree=3, coef0=1)
    def within(a):
        k = kernel(a, a)
        return (k.sum() - np.trace(k))/(len(a)*(len(a) - 1))
    return within(x) + within(y) - 2*kernel(x, y).mean()

@pytest.mark.parametrize('subset, seed', [(200, 0), (10_000, 5)])
def test_kernel_distance_is_the_unbiased_estimate(subset, seed):
    x, y = two_sets(200, 200)
    distance = kernel_distance(x, y, subset=subset, seed=seed)
    assert distance == pytest.approx(unbiased(x, y), rel=1e-4)

def test_kernel_distance_draws():
    x, y = two_sets(200, 150)
    a, b, c = (kernel_distance(x, y, subset=50, draws=5, seed=s) for s in (0, 0, 1))
    assert a == b != c and abs(a - c) < .5*abs(unbiased(x, y))
    state = torch.get_rng_state()
    kernel_distance(x, y, subset=50)
    assert torch.equal(state, torch.get_rng_state()), 'the global random state changed'

def test_kernel_distance_of_one_distribution_is_around_zero():
    g = generator(0)
    pairs = [torch.randn(2, 40, 4, generator=g) for _ in range(60)]
    kid = np.array([kernel_distance(*pair) for pair in pairs])
    assert abs(kid.mean()) < 3*kid.std()/60**.5
    assert (kid < 0).any() and (kid > 0).any()

# ---- shares

@pytest.mark.parametrize('hits, n, low, high', [
    (0, 10, 0, .2775), (10, 10, .7225, 1), (9, 10, .5958, .9821),
    (50, 100, .4038, .5962), (1, 29, .0061, .1718),
])
def test_wilson(hits, n, low, high):
    assert wilson(hits, n) == pytest.approx((low, high), abs=1e-4)
    assert wilson(torch.tensor(hits), n) == wilson(hits, n)

def test_class_accuracy_counts():
    requested = torch.tensor([0, 0, 0, 1, 1, 3])
    predicted = torch.tensor([0, 0, 1, 1, 1, 0])
    t = class_accuracy(predicted, requested, ('a', 'b', 'c', 'd')).set_index('class')
    assert list(t.index) == ['a', 'b', 'd', 'all'], 'an empty class has a row'
    assert t.n.tolist() == [3, 2, 1, 6]
    assert t.share.tolist() == pytest.approx([2/3, 1, 0, 4/6])
    assert (t.low <= t.share + 1e-6).all() and (t.share <= t.high + 1e-6).all()
    assert (t.low['a'], t.high['a']) == wilson(2, 3)

def test_balanced_accuracy():
    true = torch.tensor([0]*90 + [1]*6 + [2]*4)
    predicted = torch.tensor([0]*90 + [1]*3 + [0]*3 + [0]*4)
    table = class_accuracy(predicted, true, ('a', 'b', 'c'))
    value, low, high = balanced_accuracy(table)
    assert value == pytest.approx(balanced_accuracy_score(true, predicted))
    assert value == pytest.approx(.5) and low < .45 and .55 < high < .8
    assert table['share'].iloc[-1] == pytest.approx(.93)
    right = class_accuracy(torch.zeros(3), torch.zeros(3), ('a',))
    value, low, high = balanced_accuracy(right)
    assert value == high == 1 and low < .6, 'three of three is no certainty'

# ---- random draws

@pytest.fixture
def compared(monkeypatch):
    "Which cells are compared, where each feature is its cell's number"
    pairs = []
    def note(a, b):
        pairs.append((set(a[:, 0].tolist()), set(b[:, 0].tolist())))
        return 0.
    monkeypatch.setattr(module, 'frechet_distance', note)
    monkeypatch.setattr(module, 'kernel_distance', lambda a, b, seed: 0.)
    return pairs

@pytest.mark.parametrize('n', [10, 1000])
def test_the_reference_shares_no_cell(compared, n):
    t = distance_draws(torch.arange(41.)[:, None], None, n, draws=5)
    size = min(n, 20)
    for a, b in compared:
        assert not a & b and len(a) == len(b) == size
    assert (t.n == size).all()
    assert len({frozenset(a) for a, _ in compared}) == len(compared) == 5

def test_draws_take_the_same_number_from_both_sides(compared):
    fake = 100 + torch.arange(13.)[:, None]
    distance_draws(torch.arange(40.)[:, None], fake, 1000, draws=3)
    for a, b in compared:
        assert len(a) == len(b) == 13 and max(a) < 100 <= min(b)

def test_draws_know_a_shift_and_repeat_themselves():
    x = gaussian(200, 4)
    reference, near, far = (distance_draws(x, fake, 90, 4)
                            for fake in (None, x + .5, x + 2))
    for key in ('fd', 'kid'):
        assert reference[key].mean() < near[key].mean() < far[key].mean()
    pd.testing.assert_frame_equal(reference, distance_draws(x, None, 90, 4))
    assert not reference.equals(distance_draws(x, None, 90, 4, seed=1))

def test_draws_of_another_measure():
    x = torch.arange(20.)[:, None]
    def what(a, b, i): return dict(gap=(b.mean() - a.mean()).item(), i=i)
    t = distance_draws(x, x + 100, 5, draws=3, what=what)
    assert list(t) == ['draw', 'n', 'gap', 'i'] and t.i.tolist() == [0, 1, 2]
    assert (abs(t.gap - 100) < 15).all()
    assert set(summarize_draws(t)) == {'n', 'draws', 'gap', 'i'}

def test_summary():
    numbers = np.arange(41.)
    table = pd.DataFrame(dict(draw=range(41), n=7, fd=numbers, kid=-numbers))
    s = summarize_draws(table)
    assert s['n'] == 7 and s['draws'] == 41
    assert s['fd'] == dict(mean=20, low=1, high=39)
    assert s['kid'] == dict(mean=-20, low=-39, high=-1)
    json.dumps(s)

def test_bias_curve():
    real = gaussian(800, 6, 0)
    fake = gaussian(300, 6, 1) + .5
    t = bias_curve(real, fake, ns=(25, 50, 100, 200, 400, 9999), draws=8)
    assert list(t) == ['against', 'n', 'draw', 'measure', 'value']
    means = t.groupby(['measure', 'against', 'n']).value.mean()
    reference = means['fd', 'real against real']
    assert list(reference.index) == [25, 50, 100, 200, 400]
    assert (reference.diff().dropna() < 0).all()
    times_n = reference*reference.index
    assert times_n.max() < 2*times_n.min(), 'the reference does not fall like 1/n'
    generated = means['fd', 'generated against real']
    assert list(generated.index) == [25, 50, 100, 200]
    assert generated[200] > 1.2 > 10*reference[400]
    kid = means['kid', 'real against real']
    assert abs(kid[kid.index > 25]).max() < .15, 'the kernel distance is unbiased'

def test_bias_curve_of_real_cells_alone():
    real = gaussian(800, 6)
    assert set(bias_curve(real, ns=(25,), draws=2).against) == {'real against real'}
    with pytest.raises(ValueError, match='up to 400'):
        bias_curve(real, ns=(500,))

# ---- precision and recall, density and coverage

def test_precision_recall_against_loops():
    a = gaussian(25, 3, 0)
    b = 1.5*gaussian(20, 3, 1)
    def inside(p, cells):
        "Whether a point is in any ball that reaches to the third neighbour"
        radii = [sorted((q - o).norm() for o in cells)[3] for q in cells]
        return any((p - q).norm() <= radius for q, radius in zip(cells, radii))
    precision, recall = precision_recall(a, b)
    assert precision == pytest.approx(np.mean([inside(x, a) for x in b]))
    assert recall == pytest.approx(np.mean([inside(x, b) for x in a]))
    assert precision_recall(a, a) == (1, 1) and precision_recall(a, a + 100) == (0, 0)
    with pytest.raises(ValueError, match='more than 3'):
        precision_recall(a, b[:3])

@pytest.mark.parametrize('k, n, m', [(3, 60, 80), (5, 80, 60), (1, 20, 7)])
def test_manifolds_against_scikit_learn(k, n, m):
    real = gaussian(n, 4, 0)
    fake = .8*gaussian(m, 4, 1) + .5
    def radii(x):
        gaps, _ = NearestNeighbors(n_neighbors=k + 1).fit(x).kneighbors(x)
        return gaps[:, k]
    apart = np.linalg.norm(real.numpy()[:, None] - fake.numpy(), axis=-1)
    inside = apart <= radii(real.numpy())[:, None]
    precision = inside.any(0).mean()
    recall = (apart <= radii(fake.numpy())).any(1).mean()
    assert precision_recall(real, fake, k) == pytest.approx((precision, recall))
    expected = inside.sum(0).mean()/k, inside.any(1).mean()
    assert density_coverage(real, fake, k) == pytest.approx(expected)

def test_density_coverage_limits():
    a = gaussian(80, 3)
    # Each cell is in its own ball and in those of four others; a fifth touches it
    assert density_coverage(a, a) == pytest.approx((1, 1))
    assert density_coverage(a, a + 100) == (0, 0)
    with pytest.raises(ValueError, match='more than 5'):
        density_coverage(a[:5], a)
    with pytest.raises(ValueError, match='a generated one'):
        density_coverage(a, a[:0])

def test_outliers_deceive_the_older_pair():
    g = generator(5)
    cloud = torch.randn(150, 2, generator=g)
    real = torch.cat([cloud, torch.tensor([[6., 5.]])])
    beside = .3*torch.randn(100, 2, generator=g) + 3.5
    timid = .15*torch.randn(150, 2, generator=g)
    stray = torch.cat([timid[1:], torch.tensor([[-5., 0.]])])
    assert precision_recall(real, beside)[0] > .95
    assert density_coverage(real, beside)[0] < .3
    assert precision_recall(real, stray)[1] > 2*precision_recall(real, timid)[1]
    coverage = density_coverage(real, timid)[1]
    assert density_coverage(real, stray)[1] == pytest.approx(coverage, abs=.02)

# ---- cases with a known answer

def kinds(n, seed, which=range(4), d=8):
    "Four kinds of cells: corners of a square, with a spread of 1 in every direction"
    g = generator(seed)
    corners = torch.tensor([[-3., -3], [3, -3], [-3, 3], [3, 3]])
    y = torch.tensor(list(which))[torch.arange(n) % len(which)]
    centres = torch.cat([corners[y], torch.zeros(n, d - 2)], 1)
    return centres + torch.randn(n, d, generator=g)

@pytest.fixture(scope='module')
def known():
    "What every measure says of cases whose answer is known"
    train = kinds(400, 0)
    real = kinds(300, 1)
    other = kinds(300, 2)
    cases = {
        'same': other,
        'shifted': other + 1.5,
        'half the classes': kinds(300, 3, (0, 1)),
        'one cell a kind': other[:4].repeat(75, 1) + .001*gaussian(300, 8, 4),
        'copies': train[:300],
        'noised copies': train[:300] + .05*gaussian(300, 8, 5),
        'noise': 20 + gaussian(300, 8, 6),
    }
    rows = {}
    for name, x in cases.items():
        copied = {f'm_{k}': v for k, v in memorisation(x, train, real).items()}
        rows[name] = compare_features(real, x) | copied
    return pd.DataFrame(rows).T

def test_known_same(known):
    o = known.loc['same']
    assert o.fd < .5 and abs(o.kid) < .02*known.kid['half the classes']
    assert min(o.precision, o.recall) > .8
    assert o.coverage > .95 and .85 < o.density < 1.15
    assert .9 < o.m_ratio < 1.1 and .02 < o.m_near < .09
    assert abs(o.m_z) < 2.5 and o.m_p > .01

def test_known_shift(known):
    o, same = known.loc['shifted'], known.loc['same']
    assert o.fd == pytest.approx(8*1.5**2, rel=.15) and o.kid > 10*abs(same.kid)
    assert o.precision < .6*same.precision and o.density < .5*same.density
    assert o.coverage < .6*same.coverage
    assert o.m_ratio > 1.3 and o.m_z > 5, 'far from the training cells is not a copy'

def test_known_half_of_the_classes(known):
    o, same = known.loc['half the classes'], known.loc['same']
    assert o.recall < .55 and o.coverage < .55
    assert abs(o.precision - same.precision) < .08
    assert abs(o.density - same.density) < .15
    assert o.fd > 10*same.fd and o.kid > 10*abs(same.kid)
    assert .85 < o.m_ratio < 1.15

def test_known_one_cell_a_kind(known):
    o, same = known.loc['one cell a kind'], known.loc['same']
    assert o.recall < .05 and o.coverage < .2 and o.fd > 5*same.fd
    assert o.precision > .7 and o.density > .8*same.density

@pytest.mark.parametrize('case', ['copies', 'noised copies'])
def test_known_copies(known, case):
    o, same = known.loc[case], known.loc['same']
    assert o.fd < 2*same.fd and min(o.precision, o.recall) > .8 and o.coverage > .95
    assert o.m_ratio < .2 and o.m_ratio_high < .25 and o.m_near > .99
    assert o.m_z < -10 and o.m_p < 1e-20

def test_known_noise(known):
    o = known.loc['noise']
    assert o.precision == o.density == o.coverage == 0
    assert o.fd > 1000 and o.kid > 100 and o.m_ratio > 10

# ---- copies

def test_nearest():
    pool = gaussian(50, 5)
    gaps, idx = nearest_cells(pool[[7, 30]] + 1e-3, pool, 3, bs=1)
    full = (pool[[7, 30]][:, None] + 1e-3 - pool).pow(2).sum(-1).sqrt()
    assert idx[:, 0].tolist() == [7, 30]
    assert torch.allclose(gaps, full.sort(1)[0][:, :3], atol=1e-6)
    assert torch.equal(idx, full.argsort(1)[:, :3])
    assert (nearest_cells(pool, pool)[0] == 0).all()

def gap(x, train): return torch.cdist(x.double(), train.double()).amin(1).numpy()

def test_memorisation_is_the_rank_test():
    train, a, b = (gaussian(n, 5, i) for i, n in enumerate((200, 90, 120)))
    near_a = gap(a, train)
    near_b = gap(b, train)
    m = memorisation(a, train, b, near=.1)
    test = mannwhitneyu(near_a, near_b, alternative='less')
    u = sum((x > near_b).sum() for x in near_a)
    assert m['p'] == pytest.approx(test.pvalue)
    assert m['z'] == pytest.approx((u - 90*120/2)/np.sqrt(90*120*211/12))
    assert m['ratio'] == pytest.approx(np.median(near_a)/np.median(near_b))
    assert m['line'] == pytest.approx(np.quantile(near_b, .1)) and m['expected'] == .1
    hits = (near_a <= m['line']).sum()
    assert m['near'] == pytest.approx(hits/90)
    assert (m['near_low'], m['near_high']) == wilson(hits, 90)
    assert m['ratio_low'] <= m['ratio'] <= m['ratio_high']
    assert m == memorisation(a, train, b, near=.1)
    with pytest.raises(ValueError, match='at least 2'):
        memorisation(a[:1], train, b)

def test_memorisation_raises_no_false_alarm():
    p = []
    for i in range(60):
        fake = gaussian(80, 6, 10*i)
        train = gaussian(200, 6, 10*i + 1)
        real = gaussian(80, 6, 10*i + 2)
        p.append(memorisation(fake, train, real)['p'])
    assert .3 < np.median(p) < .7 and np.mean(np.array(p) < .05) < .13

def test_memorisation_finds_one_stolen_cell_in_ten():
    train = kinds(400, 0)
    real = kinds(300, 1)
    honest = kinds(300, 2)
    stolen = torch.cat([honest[:270], train[:30]])
    mixed = memorisation(stolen, train, real, near=.01)
    assert mixed['ratio'] > .9 and mixed['near_low'] > .05 and mixed['expected'] == .01
    assert memorisation(honest, train, real, near=.01)['near'] < .04

def test_memorisation_on_pixels_and_in_any_position():
    pool = images(40)
    held_out = images(40, seed=1)
    fresh = images(40, seed=2)
    stolen = pool[:20].rot90(1, (2, 3)).flip(-1)
    def flat(x): return dihedral_views(x).flatten(2)
    train = pool.flatten(1)
    honest = memorisation(flat(fresh), train, flat(held_out))
    thief = memorisation(flat(stolen), train, flat(held_out))
    missed = memorisation(stolen.flatten(1), train, held_out.flatten(1))
    assert thief['ratio'] < 1e-3 and thief['near'] == 1 and thief['p'] < 1e-6
    assert .95 < honest['ratio'] < 1.05 and missed['ratio'] > .95
    # Even where the held-out cells are training cells
    assert memorisation(train[:20], train, train[20:])['near'] == 1

def test_dihedral_views():
    x = images(2, size=5)
    views = dihedral_views(x)
    def pictures(v, i): return {tuple(o.flatten().tolist()) for o in v[:, i]}
    assert views.shape == (8, 2, 3, 5, 5) and torch.equal(views[0], x)
    assert len(pictures(views, 0)) == 8
    again = dihedral_views(x.rot90(3, (2, 3)).flip(-2))
    assert pictures(views, 1) == pictures(again, 1), 'a turned cell has the same eight'

def test_thumbnails():
    x = images(3, channels=2, size=40)
    small = thumbnails(x)[1].reshape(2, 8, 8)
    assert torch.allclose(small[0, 2, 5], x[1, 0, 10:15, 25:30].mean())
    assert thumbnails(x, 4).shape == (3, 32)
    noisy = x + .3*torch.randn(x.shape, generator=generator(5))
    pool = torch.cat([images(200, channels=2, size=40, seed=3), x])
    found = nearest_cells(thumbnails(noisy), thumbnails(pool))[1]
    assert found[:, 0].tolist() == [200, 201, 202]

def test_nearest_of_eight_positions():
    net = classifier()
    pool = images(12)
    turned = pool[[3, 8]].transpose(2, 3)
    views = dihedral_features(net, turned)
    plain = features_and_predictions(net, turned)[0]
    assert views.shape == (8, 2, 32) and torch.allclose(views[0], plain, atol=1e-5)
    of_pool = features_and_predictions(net, pool)[0]
    gaps, idx = nearest_cells(views, of_pool, 3, bs=1)
    assert idx[:, 0].tolist() == [3, 8] and gaps[:, 0].max() < 1e-4
    assert all(len(set(row)) == 3 for row in idx.tolist())
    each = torch.stack([torch.cdist(v, of_pool) for v in views]).amin(0).sort(1)[0]
    assert torch.allclose(gaps, each[:, :3], atol=1e-4)

# ---- can one learn from them?

def coloured(y, seed, spread=.15, size=8):
    "Cells whose class is their colour"
    y = torch.as_tensor(y)
    noise = torch.randn(len(y), 3, size, size, generator=generator(seed))
    return (torch.eye(3)[y][..., None, None] - .5 + spread*noise).clamp(-1, 1), y

def test_classifier_accuracy_score_of_known_generators():
    train = coloured([0]*60 + [1]*60 + [2]*20, 0)
    test = coloured([0]*80 + [1]*15 + [2]*5, 1)
    x, y = coloured([0, 1, 2]*20, 2)
    def score(x, y, seeds=1):
        return classifier_accuracy_score((x, y), train, test, ('a', 'b', 'c'), steps=20,
                                         seeds=seeds, bs=16, dim=8)
    honest = score(x, y, seeds=2)
    assert honest.trained_on.tolist() == ['generated', 'real']*2
    assert honest.seed.tolist() == [0, 0, 1, 1]
    assert (honest.n == 60).all() and (honest.balanced > .9).all()
    wrong = score(x, (y + 1) % 3).set_index('trained_on')
    assert wrong.accuracy['generated'] < .2 and wrong.balanced['real'] > .9
    # The largest class alone is right in 80%, and knows a third
    one = score(*coloured([0]*20, 3)).set_index('trained_on')
    assert one.accuracy['generated'] == pytest.approx(.8)
    assert one.balanced['generated'] == pytest.approx(1/3)

def test_both_sides_learn_from_equally_many(monkeypatch):
    seen = []
    def train(dls, steps, seed):
        counts = np.bincount(dls.train.arrays[1], minlength=3)
        seen.append((steps, seed, counts.tolist(), dls.train.augment))
        return classifier(size=8)
    monkeypatch.setattr(module, 'train_classifier', train)
    names, test = ('a', 'b', 'c'), coloured([0, 1, 2], 2)
    generated = coloured([0]*9 + [1]*5 + [2]*7, 0)
    real = coloured([0]*4 + [1]*50 + [2]*7, 1)
    classifier_accuracy_score(generated, real, test, names, steps=17, seeds=2)
    assert seen == [(17, s, [4, 5, 7], True) for s in (0, 0, 1, 1)]
    with pytest.raises(ValueError, match='no class in common'):
        classifier_accuracy_score(coloured([0], 0), coloured([1], 1), test, names)

# ---- numbers of each cell

def test_simple_measures():
    ramp = torch.linspace(-1, 1, 16)
    cell = torch.full((1, 2, 16, 16), .25)
    cell[0, 1] = ramp
    t = simple_measures(cell).iloc[0]
    names = ['brightness', 'contrast', 'extent', 'grain']
    assert list(t.index) == [f'{name} {i}' for i in (0, 1) for name in names]
    assert list(simple_measures(cell[:, :1])) == names
    assert t['brightness 0'] == pytest.approx(.25) and t['grain 0'] == 0
    assert t['contrast 0'] == pytest.approx(0, abs=1e-6)
    assert t['brightness 1'] == pytest.approx(0, abs=1e-6)
    assert t['contrast 1'] == pytest.approx(ramp.numpy().std(), rel=.02)
    assert t['grain 1'] == pytest.approx(1/15, rel=1e-4)

def test_extent_of_discs():
    line = torch.linspace(-1, 1, 40)
    r2 = line**2 + line[:, None]**2
    discs = torch.stack([(r2 < r*r).float()[None] for r in (.3, .6)])
    expected = [.3/2**.5, .6/2**.5]
    assert simple_measures(discs).extent.tolist() == pytest.approx(expected, rel=.05)

def test_wasserstein_gaps():
    rng = np.random.default_rng(0)
    a = rng.normal(3, 2, (500, 2))
    b = rng.normal(3, 2, (400, 2))
    b[:, 1] += 2
    b[:50, 0] = np.nan
    gaps = wasserstein_gaps(a, b, ('x', 'y'))
    expected = wasserstein_distance(a[:, 0], b[50:, 0])/a[:, 0].std()
    assert gaps['x'] == pytest.approx(expected) and gaps['x'] < .2
    assert gaps['y'] == pytest.approx(1, abs=.2)
    nothing = np.full((3, 2), np.nan)
    assert np.isnan(wasserstein_gaps(a, nothing, ('x', 'y'))['x'])

# ---- all of it

@pytest.fixture(scope='module')
def reported():
    "A report on an honest generator, on one that steals, and on one without classes"
    def make(n, seed): return coloured([i % 3 for i in range(n)], seed, size=16)
    train = make(120, 0)
    held_out = make(90, 1)
    honest = make(60, 2)
    dls = loaders_in_memory(*train, ('a', 'b', 'c'), 16, 0)
    net = train_classifier(dls, steps=20, dim=8)
    grain = .005*torch.randn(60, 3, 16, 16, generator=generator(9))
    thief = (train[0][:60] + grain).rot90(1, (2, 3)), train[1][:60]
    generators = {'honest': honest, 'thief': thief, 'free': (honest[0], None)}
    table = evaluation_report(generators, net, held_out, train, n=30, draws=3,
                              cas=dict(steps=10, seeds=2, dim=8, bs=16))
    return table, net, held_out, train, honest

of_classes = ['class accuracy', 'balanced accuracy', 'cas', 'cas balanced']

def test_report_has_every_measure(reported):
    t, *_, honest = reported
    assert list(t) == ['model', 'group', 'measure', 'value', 'low', 'high', 'reference',
                       'reference_low', 'reference_high', 'better', 'n']
    assert not t.drop(columns='n').isna().any().any()
    measures = ['fd', 'kid', 'precision', 'recall', 'density', 'coverage',
                'class accuracy', 'balanced accuracy', 'memorisation', 'near copies',
                'memorisation in pixels', 'near copies in pixels',
                'cas', 'cas balanced', *simple_measures(honest[0])]
    o = t[t.model == 'honest'].set_index('measure')
    assert list(o.index) == measures
    some = o.better[['fd', 'precision', 'density', 'cas', 'grain 1']]
    assert some.tolist() == ['lower', 'higher', 'reference', 'higher', 'lower']
    free = set(t[t.model == 'free'].measure)
    assert free == set(measures) - set(of_classes), 'no class was requested'

def test_report_has_intervals_and_one_reference(reported):
    t = reported[0]
    for name, low, high in (('value', 'low', 'high'),
                            ('reference', 'reference_low', 'reference_high')):
        assert (t[low] <= t[name] + 1e-6).all() and (t[name] <= t[high] + 1e-6).all()
    assert (t[t.group.isin(['set', 'numbers'])].n == 30).all()
    # That of the classifier accuracy score has as many cells as the generator
    fixed = t[t.group != 'use'].groupby('measure').reference
    assert (fixed.nunique() == 1).all(), 'generators stand beside different references'

def test_report_is_what_its_parts_say(reported):
    t, net, held_out, train, honest = reported
    o = t[t.model == 'honest'].set_index('measure')
    real = features_and_predictions(net, held_out[0])[0]
    fake = features_and_predictions(net, honest[0])[0]
    def mean(fake): return distance_draws(real, fake, 30, 3).fd.mean()
    assert o.reference.fd == pytest.approx(mean(None))
    assert o.value.fd == pytest.approx(mean(fake))
    assert o.value['class accuracy'] == o.value['balanced accuracy'] == 1
    assert .7 < o.reference.memorisation < 1.4

def test_report_catches_the_thief(reported):
    v = reported[0].set_index(['model', 'measure']).value
    for view in ('', ' in pixels'):
        assert v['thief', f'memorisation{view}'] < .3
        assert v['thief', f'near copies{view}'] > .9
        assert v['honest', f'memorisation{view}'] > .6
        assert v['honest', f'near copies{view}'] < .3
    assert v['thief', 'fd'] < 3*v['honest', 'fd']

def test_report_without_extras(reported):
    _, net, held_out, train, honest = reported
    pool = features_and_predictions(net, train[0])[0]
    t = evaluation_report({'honest': honest}, net, held_out, train, n=30, draws=2,
                          describe=None, turned=False, pool=pool)
    assert len(t) == 12 and set(t.group) == {'set', 'class', 'copies'}
    some = torch.from_numpy(np.random.default_rng(0).permutation(90)[:60])
    m = memorisation(features_and_predictions(net, honest[0])[0], pool,
                     features_and_predictions(net, held_out[0][some])[0])
    ratio = t.set_index('measure').value.memorisation
    assert ratio == pytest.approx(m['ratio'], rel=1e-3)
    few = {'few': (honest[0][:5], None)}
    with pytest.raises(ValueError, match='at least 6'):
        evaluation_report(few, net, held_out, train)

# ---- scores in records

# ---- grain

def noise(n, sd, size=40, seed=0): # sd in grey levels, two channels
    return sd/127.5*torch.randn(n, 2, size, size, generator=generator(seed))

def cosine(u, v): # One wave of 10 grey levels in each block that `spectrum` looks at
    block = np.zeros((8, 8))
    block[u, v] = 10/127.5
    wave = torch.from_numpy(idctn(block, norm='ortho')).float()
    return torch.roll(wave.repeat(5, 5), (4, 4), (0, 1))[None, None]

@pytest.mark.parametrize('size', [8, 11, 12, 40, 64])
def test_the_spectrum_of_white_noise_is_flat(size):
    energy = spectrum(noise(300, 5, size)).mean(0)
    assert energy.shape == (2, 8)
    assert np.allclose(energy, 25, rtol=.15)

@pytest.mark.parametrize('u, v, band', [(1, 0, 0), (3, 0, 2), (4, 4, 4), (7, 7, 7)])
def test_a_wave_is_in_its_band_alone(u, v, band):
    energy = spectrum(cosine(u, v))[0, 0]
    assert energy.argmax() == band
    assert energy[band] == pytest.approx(energy.sum(), rel=1e-4)

def test_grain_of_known_noise_and_of_blur():
    real = gaussian_blur(noise(400, 40), 5, .8)
    finest = block_energy(real)[..., block_frequency >= .75].mean()
    noisy = grain(real, real + noise(400, 2, seed=1))
    for channel in noisy:
        assert channel['low'] < channel['ratio'] < channel['high']
        assert channel['ratio'] == pytest.approx(1 + 4/finest, rel=.1)
    assert all(c['high'] < .7 for c in grain(real, gaussian_blur(real, 3, .6)))

def test_the_grid_of_a_jpeg_does_not_count():
    "What a file rounded away within its own blocks is found at their edges"
    weights = np.zeros((20, 1, 5, 5, 8, 8))
    weights[..., :2, :2] = np.random.default_rng(0).normal(size=(20, 1, 5, 5, 2, 2))
    blocks = idctn(weights, axes=(-2, -1), norm='ortho')
    x = torch.from_numpy(blocks.swapaxes(3, 4).reshape(20, 1, 40, 40)).float()
    assert spectrum(x)[..., 6:].mean() > 1
    assert spectrum(torch.roll(x, (4, 4), (2, 3)))[..., 6:].max() < 1e-6

def test_the_interval_of_an_energy_ratio():
    "In 95 of 100 pairs of sets it holds the true ratio; flat cells give 1"
    rng = np.random.default_rng(0)
    held = 0
    for seed in range(200):
        a, b = rng.gamma(2, size=(2, 100))
        ratio, low, high = energy_ratio(a, 3*b, seed)
        held += low <= 3 <= high
    assert 180 <= held <= 199
    assert energy_ratio(np.zeros((5, 2)), np.zeros((4, 2)))[0].tolist() == [1, 1]

@pytest.mark.parametrize('classes', [('a', 'b', 'c'), ()])
def test_score_model(classes, monkeypatch):
    requested = []
    def sample(model, n, label, **kwargs):
        requested.append(label)
        return images(n, seed=2)
    monkeypatch.setattr(module, 'sample', sample)
    model = Denoiser(dict(dim=16), classes=classes)
    # Two cells of the last class, twenty of the first
    labels = torch.tensor([0]*20 + [1]*12 + [2]*2)
    s = score_model(model, classifier(), images(34), labels, n=30, progress=False)
    json.dumps(s)
    assert s['n'] == 30 and s['classifier_accuracy'][-1]['n'] == 34
    assert len(s['grain']) == 3 and all(c['ratio'] > 0 for c in s['grain'])
    if not classes:
        assert requested == [None] and 'labels' not in s
        assert s['generated']['n'] == s['reference']['n'] == 17
        assert sum(s['classes_seen'].values()) == pytest.approx(1)
        return
    assert np.bincount(requested[0]).tolist() == [10, 10, 10] and s['labels'] == 'equal'
    assert [row['n'] for row in s['class_accuracy']] == [10, 10, 10, 30]
    assert s['compared'] == dict(a=10, b=6, c=1)
    in_data = s['data_proportions']
    for part, n in ((s, 17), (in_data, 10 + 6 + 1)):
        assert part['generated']['n'] == part['reference']['n'] == n
        assert {'fd', 'kid', 'precision', 'recall'} <= set(part['generated'])
    shares = np.array([row['share'] for row in s['class_accuracy'][:-1]])
    weighted = shares@[20, 12, 2]/34
    assert in_data['class_accuracy']['share'] == pytest.approx(weighted)
    assert in_data['class_accuracy']['real'] == s['classifier_accuracy'][-1]['share']

@pytest.mark.parametrize('cells, n, counts', [
    ([0, 0, 0, 0, 2], 5, [3, 0, 2]), # Nobody knows a cell of class 1
    ([0, 1, 2, 0], 4, [2, 1, 1]), # Of no class are there two pairs
])
def test_score_model_of_few_cells(cells, n, counts, monkeypatch):
    asked = []
    def sample(model, n, label, **kwargs):
        asked.extend(label)
        return images(n, seed=2)
    monkeypatch.setattr(module, 'sample', sample)
    s = score_model(Denoiser(dict(dim=16), classes=('a', 'b', 'c')), classifier(),
                    images(len(cells)), torch.tensor(cells), n=n, progress=False)
    assert np.bincount(asked).tolist() == counts
    assert s['generated']['n'] == s['reference']['n'] == 2
    assert 'recall' not in s['generated']

def test_grain_is_compared_with_real_cells_of_the_same_classes(monkeypatch):
    labels = torch.tensor([0]*20 + [1]*12 + [2]*2)
    # The shade of a cell is that of its class
    real = (labels/2 - .5)[:, None, None, None].expand(-1, 3, 32, 32).contiguous()
    seen = []
    monkeypatch.setattr(module, 'grain', lambda real, fake, seed: seen.append(real))
    monkeypatch.setattr(module, 'sample', lambda model, n, **kwargs: images(n, seed=2))
    model = Denoiser(dict(dim=16), classes=('a', 'b', 'c'))
    score_model(model, classifier(), real, labels, n=30, progress=False)
    shades = seen[0][:, 0, 0, 0].unique(return_counts=True)[1]
    assert shades.tolist() == [10, 10, 10]

@pytest.mark.parametrize('requested, real, equal, in_data', [
    ([5, 5], [100, 100], [5, 5], [5, 5]),
    ([5, 5], [100, 25], [5, 5], [5, 1]),
    ([5, 5], [100, 4], [5, 2], [5, 0]),
    ([50, 50], [30, 10], [15, 5], [15, 5]),
    ([5, 0], [30, 0], [5, 0], [5, 0]),
])
def test_mixtures_of_a_score(requested, real, equal, in_data):
    counts = np.array(requested), np.array(real)
    assert module.equal_counts(*counts).tolist() == equal
    assert module.data_counts(*counts).tolist() == in_data

def test_both_sides_of_a_draw_have_the_same_mixture():
    "And no cell is on both, or twice on one"
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 60)
    requested = np.arange(30) % 3
    mix = module.ClassMix(labels, requested, np.array([4, 1, 9]))
    sides = []
    def what(a, b, draw):
        sides.append((a[:, 0].long().numpy(), b[:, 0].long().numpy()))
        return {}
    number = torch.arange(60.)[:, None]
    distance_draws(number, None, draws=3, what=what, mix=mix)
    for a, b in sides:
        assert len(set(a) | set(b)) == 28
        for side in (a, b):
            assert np.bincount(labels[side]).tolist() == [4, 1, 9]
    sides.clear()
    distance_draws(number, number[:30], draws=3, what=what, mix=mix)
    for a, b in sides:
        assert np.bincount(labels[a]).tolist() == [4, 1, 9]
        assert np.bincount(requested[b]).tolist() == [4, 1, 9]
        assert len(set(b)) == 14

def test_kernel_distance_of_mixtures_is_unbiased():
    "The plain one is below 0 in every draw where the classes are far apart"
    rng = torch.Generator().manual_seed(0)
    labels = np.repeat([0, 1, 2], [40, 40, 12])
    real = torch.randn(92, 4, generator=rng) + 3*torch.tensor(labels)[:, None]
    mix = module.ClassMix(labels, labels, np.array([20, 20, 6]))
    values = {}
    for name, counts in dict(plain=None, mixture=mix.counts).items():
        what = partial(module.score_distances, counts=counts)
        values[name] = distance_draws(real, None, draws=40, what=what, mix=mix).kid
    assert values['plain'].mean() < -values['plain'].std()
    error = values['mixture'].std()/40**.5
    assert abs(values['mixture'].mean()) < 3*error

    # Of one class it is the plain one, and a class of one cell is left out
    x = torch.randn(9, 4, generator=rng)
    y = torch.randn(9, 4, generator=rng)
    plain = kernel_distance(x, y)
    assert module.mixture_distance(x, y, [9]) == pytest.approx(plain)
    with_one = [torch.cat([torch.full((1, 4), 99.), o]) for o in (x, y)]
    assert module.mixture_distance(*with_one, [1, 9]) == pytest.approx(plain)

def test_a_generator_of_one_class_does_not_profit_from_how_common_it_is(monkeypatch):
    "The classifier names every cell `a`, which nine of ten are"
    rows = [dict(zip(('class', 'share', 'low', 'high', 'n'), row)) for row in (
        ('a', 1., .9, 1., 50), ('b', 0., 0., .1, 50), ('all', .5, .4, .6, 100))]
    on_real = pd.DataFrame(rows).assign(n=[900, 100, 1000])
    assert module.mean_share(rows) == .5
    value = module.accuracy_in_data(pd.DataFrame(rows), on_real)
    assert value['share'] == pytest.approx(.9)
    assert value['low'] < .9 < value['high'] < .95

fd = dict(mean=2., low=1., high=3.)
kid = dict(mean=.1, low=0., high=.2)
on_real = [dict(share=.9, n=90), dict(share=.8, n=10), dict(share=.89, n=100)]
by_class = [dict(share=.5, n=2), dict(share=.6, n=2), dict(share=.55, n=4)]
whole = dict(n=8, steps=20, seed=0, classifier_accuracy=on_real,
             generated=dict(n=8, fd=fd, kid=kid), reference=dict(n=8, fd=fd, kid=kid),
             class_accuracy=by_class)
old = dict(n=8, steps=20, seed=0, classifier_accuracy=on_real,
           generated=dict(n=8, fd=fd, kd=kid), floor=dict(n=8, fd=fd, kd=kid),
           recognised=by_class)
sides = {side: dict(whole[side], precision=fd, recall=kid)
         for side in ('generated', 'reference')}
equal = dict(whole, **sides, labels='equal')

def put(folder, **records):
    for name, record in records.items():
        (folder/name).mkdir()
        (folder/name/'record.json').write_text(json.dumps(record))

@pytest.mark.parametrize('score', [whole, old, equal])
def test_score_table(tmp_path, score):
    free = {k: v for k, v in score.items() if k not in ('class_accuracy', 'recognised')}
    put(tmp_path, b=dict(size=64, score=free), a=dict(size=32, score=score),
        c=dict(size=32), d=dict(kind='classifier', accuracy=[]), e=dict(score={}))
    (tmp_path/'f').mkdir()
    t = score_table(tmp_path)
    assert t.model.tolist() == ['a', 'b'] and t['size'].tolist() == [32, 64]
    assert t['class accuracy'][0] == pytest.approx(.55)
    assert np.isnan(t['class accuracy'][1])
    assert (t.fd_low == 1).all() and (t.kid_reference == .1).all()
    assert t.accuracy.tolist() == pytest.approx([.85, .85])
    assert t.labels.tolist() == [score.get('labels', 'data'), 'none']
    if 'labels' in score: assert (t.recall == .1).all() and (t.recall_low == 0).all()
    assert len(score_table(tmp_path/'f')) == 0

def test_old_records_have_the_new_names(tmp_path):
    put(tmp_path, a=dict(size=32, score=old), b=dict(size=32, score=whole))
    records = scored_records(tmp_path)
    assert records['a'] == records['b']

# ---- figures

@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close('all')

def titles(fig): return [ax.get_title() for ax in fig.axes]

def test_show_nearest():
    x = images(3)
    pool = images(5, seed=1)
    found = nearest_cells(x.flatten(1), pool.flatten(1), 2)
    fig = show_nearest(x, pool, found, name='query')
    assert len(fig.axes) == 9 and titles(fig)[:3] == ['query']*3
    fig = show_nearest(x, pool, found, name=['a', 'b', 'c'], kinds='vwxyz')
    assert titles(fig)[1] == 'b'
    assert titles(fig)[3][:2] in ('v\n', 'w\n', 'x\n', 'y\n', 'z\n')

def test_plot_class_accuracy():
    t = class_accuracy(torch.tensor([0, 1, 1]), torch.tensor([0, 1, 0]), ('a', 'b'))
    ax = plot_class_accuracy(dict(real=t, generated=t.iloc[1:]))
    assert [o.get_text() for o in ax.get_yticklabels()] == ['a', 'b', 'all']

def test_plot_bias():
    curve = bias_curve(gaussian(200, 3), gaussian(100, 3, 1), ns=(25, 50), draws=2)
    fig = plot_bias(curve)
    assert fig.axes[0].get_yscale() == 'log' and len(fig.axes) == 2

def test_plot_report(reported):
    t = reported[0]
    fig = plot_report(t)
    shown = {'Fréchet distance', 'kernel distance', 'copies', 'shares'}
    assert shown < {ax.get_title('left') for ax in fig.axes}
    assert len(fig.axes) == 5
    legend = [o.get_text() for o in fig.legends[0].get_texts()]
    assert legend == ['real against real (bars)', 'honest', 'thief', 'free']
    fewer = t[(t.model == 'honest') & (t.group != 'numbers')]
    assert len(plot_report(fewer).axes) == 4
