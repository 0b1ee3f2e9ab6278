"What functions do at the ends of their ranges: the right value, or one sentence"
import math
import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch import nn
from cell_diffusion.classifier import (
    CellClassifier, classifier_folder, features_and_predictions, predict_classes,
    reference_classifier, train_classifier,
)
from cell_diffusion.core import generator, show_cells
from cell_diffusion.data import cell_dls
from cell_diffusion.denoiser import Denoiser
from cell_diffusion.metrics import (
    balanced_accuracy, bias_curve, c2st, class_accuracy, density_coverage,
    distance_draws, diversity, evaluation_report, frechet_distance, kernel_distance,
    memorisation, nearest_cells, precision_recall, score_model, wasserstein_gaps,
    wilson,
)
from cell_diffusion.morphology import find_cells, measure_cells, morphology
from cell_diffusion.process import Schedule, q_sample, to_x0
from cell_diffusion.sampling import (
    ddim, invert, nfe, sample, samplers, slerp, steps_for, timesteps,
)
from cell_diffusion.schedules import (
    cosine_schedule, get_schedule, linear_schedule, log_snr_schedule, rescale_zero_snr,
    schedule_makers, sigmoid_schedule,
)
from cell_diffusion.splits import (
    assert_disjoint, dihedral_hash, kfold_cells, split_cells,
)
from cell_diffusion.toys import Toy, set_denoiser
from cell_diffusion.training import lognormal_timesteps
from cell_diffusion.transforms import affine_jitter, dihedral_views, random_dihedral
from cell_diffusion.unet import UNet, gflops

nan = math.nan

def noise(*shape, seed=0): return torch.randn(*shape, generator=generator(seed))

def tiny(classes=(), **unet):
    torch.manual_seed(0)
    unet = {**dict(dim=8, mults=[1, 2]), **unet}
    return Denoiser(unet, 'cosine', T=20, size=8, classes=list(classes)).eval()

# ---- timesteps

@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('spacing', ['log_snr', 'karras', 'time'])
@pytest.mark.parametrize('name', schedule_makers)
def test_the_first_timestep_is_the_last_of_the_schedule(name, spacing):
    for T in (1, 2, 7, 1000, 4000):
        for zero_snr in (False, True)[:T]:
            schedule = get_schedule(name, T, zero_snr)
            for steps in {1, min(2, T), min(20, T), T}:
                ts = timesteps(schedule, steps, spacing)
                assert ts[0] == T - 1 and len(ts) <= steps
                assert (ts.diff() < 0).all() and ts[-1] >= 0
                if steps > 1 and spacing != 'time': assert ts[-1] == 0

def test_only_the_first_timestep_has_moved():
    assert timesteps(log_snr_schedule(1000), 5).tolist() == [999, 749, 499, 250, 0]
    zero = timesteps(get_schedule('linear', 1000, True), 10)
    assert zero[:3].tolist() == [999, 915, 822], 'the first was 967'

@pytest.mark.parametrize('T', [5, 10, 30, 100, 1000])
def test_noise_levels_have_the_mean_that_was_asked_for(T):
    schedule = log_snr_schedule(T)
    log_sigma = -.5*schedule.log_snr
    for mean, std in ((-1.2, 1.2), (-.8, 1.)):
        t = lognormal_timesteps(20_000, schedule, generator(0), mean, std)
        assert t.dtype == torch.int64 and t.min() >= 0 and t.max() < T
        assert log_sigma[t].mean().item() == pytest.approx(mean, abs=.06)

def test_noise_levels_at_the_ends():
    assert lognormal_timesteps(3, cosine_schedule(1), generator(0)).tolist() == [0]*3
    zero = get_schedule('linear', 100, True)
    t = lognormal_timesteps(1000, zero, generator(0), mean=50.)
    assert (t <= 99).all() and (t >= 98).all()
    assert (lognormal_timesteps(9, zero, generator(0), mean=-50.) == 0).all()

# ---- networks

def test_gflops_of_a_denoiser_and_of_other_types():
    plain = gflops(UNet(dim=8), 32)
    assert gflops(tiny(), 8) == gflops(tiny().unet, 8)
    assert gflops(UNet(dim=8).double(), 32) == plain

@pytest.mark.parametrize('prediction', ['eps', 'v'])
def test_schedules_compile_to_one_graph(prediction):
    schedule = rescale_zero_snr(cosine_schedule(20))
    x = noise(2, 3, 8, 8)
    t = torch.tensor([3, 7])
    def there_and_back(x, t):
        return to_x0(x, q_sample(x, t, schedule, x), t, schedule, prediction)
    torch._dynamo.reset()
    compiled = torch.compile(there_and_back, backend='eager', fullgraph=True)
    assert torch.equal(compiled(x, t), there_and_back(x, t))

def test_a_denoiser_compiles_to_one_graph():
    model = tiny(['a', 'b'])
    x = noise(2, 3, 8, 8)
    t = torch.tensor([3, 7])
    label = torch.tensor([0, 2])
    torch._dynamo.reset()
    compiled = torch.compile(model, backend='eager', fullgraph=True)
    with torch.no_grad():
        assert torch.equal(compiled(x, t, label), model(x, t, label))

def test_inversion_is_not_random_in_training():
    model = tiny(dropout=.5)
    for p in model.parameters():
        nn.init.normal_(p, std=.1)
    cells = noise(2, 3, 8, 8).clamp(-1, 1)
    calm = invert(model, cells, steps=4)
    assert torch.equal(invert(model.train(), cells, steps=4), calm) and model.training

# ---- features

def prdc(real, fake, k):
    "Naeem et al. 2020, as in their package: inside is nearer than the k-th neighbour"
    def gaps(a, b): return (a[:, None] - b).norm(dim=-1)
    radii = gaps(real, real).sort(1).values[:, k]
    inside = gaps(real, fake) < radii[:, None]
    covered = gaps(real, fake).amin(1) < radii
    return inside.sum(0).float().mean().item()/k, covered.float().mean().item()

def test_density_and_coverage_are_those_of_their_authors():
    real = noise(40, 3)
    half = torch.cat([real[:1].repeat(20, 1), real[20:]])
    cases = dict(
        other=(real, noise(30, 3, seed=1)), copies=(real, real[:30]),
        collapsed=(real, real[:1].repeat(30, 1)), half_collapsed=(half, half[:30]),
        all_the_same=(real[:1].repeat(30, 1), real[:1].repeat(30, 1)))
    for name, (a, b) in cases.items():
        assert density_coverage(a, b) == pytest.approx(prdc(a, b, 5)), name
    assert density_coverage(*cases['all_the_same']) == (0, 0)

def test_precision_counts_the_edge_as_its_authors_do():
    same = torch.ones(9, 4)
    assert precision_recall(same, same) == (1, 1)
    assert precision_recall(same, same + 1) == (0, 0)

@pytest.mark.parametrize('n', [2, 3, 5, 8])
def test_frechet_distance_of_fewer_cells_than_numbers(n):
    a = noise(n, 8)
    b = noise(n + 1, 8, seed=1) + .5
    means = (a.mean(0) - b.mean(0)).square().sum().item()
    A, B = [np.cov(x.double().numpy().T) for x in (a, b)]
    root = np.trace(sqrtm(sqrtm(A) @ B @ sqrtm(A)).real)
    expected = means + np.trace(A) + np.trace(B) - 2*root
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-3)

def test_features_without_any_spread():
    same = torch.ones(6, 4)
    assert frechet_distance(same, same) == kernel_distance(same, same) == 0
    assert frechet_distance(same, same + 1) == pytest.approx(4)
    assert diversity(same) == 0

def test_gaps_of_a_number_that_does_not_vary():
    real = np.stack([np.full(9, .1), np.arange(9.)], 1).astype(np.float32)
    fake = real + 1
    gaps = wasserstein_gaps(real, fake, ('constant', 'varied'))
    assert np.isnan(gaps['constant'])
    assert gaps['varied'] == pytest.approx(1/np.arange(9).std())
    assert np.isnan(wasserstein_gaps(real[:1], fake, ('a', 'b'))['b'])

def test_a_class_may_be_called_all():
    t = class_accuracy([0, 0, 1, 0], [0, 0, 1, 1], ('all', 'b'))
    assert t['class'].tolist() == ['all', 'b', 'all']
    assert t.share.tolist() == [1, .5, .75] and t.n.tolist() == [2, 2, 4]
    assert balanced_accuracy(t)[0] == .75

a = noise(12, 4)
few = {
    'frechet 0': lambda: frechet_distance(a[:0], a),
    'frechet 1': lambda: frechet_distance(a, a[:1]),
    'kernel 0': lambda: kernel_distance(a[:0], a),
    'kernel 1': lambda: kernel_distance(a[:1], a),
    'kernel of single cells': lambda: kernel_distance(a, a, subset=1),
    'kernel without draws': lambda: kernel_distance(a, a, draws=0),
    'precision, k of 0': lambda: precision_recall(a, a, k=0),
    'precision, k too large': lambda: precision_recall(a, a, k=12),
    'density, k of 0': lambda: density_coverage(a, a, k=0),
    'no draws': lambda: distance_draws(a, a, draws=0),
    'no cells to draw': lambda: distance_draws(a[:1], a),
    'no n': lambda: bias_curve(a, ns=()),
    'nearest of none': lambda: nearest_cells(a, a[:0]),
    'nearest of too few': lambda: nearest_cells(a, a, k=13),
    'diversity of one': lambda: diversity(a[:1]),
    'memorisation of none': lambda: memorisation(a[:0], a, a),
    'share of copies': lambda: memorisation(a, a, a, near=nan),
    'wilson of none': lambda: wilson(0, 0),
    'wilson of too many': lambda: wilson(4, 3),
    'wilson of halves': lambda: wilson(.5, 3),
    'accuracy of none': lambda: class_accuracy([], [], ('a', 'b')),
    'accuracy of others': lambda: class_accuracy([0, 1], [0], ('a', 'b')),
    'accuracy of a new class': lambda: class_accuracy([0, 1], [0, 2], ('a', 'b')),
    'accuracy of class -1': lambda: class_accuracy([0, 1], [0, -1], ('a', 'b')),
    'gaps of other tables': lambda: wasserstein_gaps(a, a[:, :2], tuple('abcd')),
    'report of nothing': lambda: evaluation_report({}, None, (a, a), (a, a)),
    'score of one cell': lambda: score_model(tiny(), None, a, a, n=1),
    'score against two cells': lambda: score_model(tiny(), None, a[:2], a),
}

@pytest.mark.parametrize('case', few)
def test_measures_that_have_no_value(case):
    with pytest.raises(ValueError):
        few[case]()

@pytest.mark.parametrize('measure', [
    frechet_distance, kernel_distance, precision_recall, density_coverage,
    nearest_cells, lambda a, b: memorisation(a, b, a)])
def test_features_that_do_not_fit(measure):
    wrong = a.clone()
    wrong[3, 1] = nan
    for pair in ((wrong, a), (a, wrong), (a, a[:, :2]), (a/0, a), (a[:, 0], a[:, 0])):
        with pytest.raises(ValueError, match='features'):
            measure(*pair)

# ---- classifiers

@pytest.fixture(scope='module')
def cells():
    return cell_dls('simulated', size=28, n=48, bs=8, cache=False, device='cpu')

@pytest.mark.parametrize('options', [
    dict(lr=nan), dict(lr=1e30), dict(lr=0), dict(lr='fast'), dict(dim=4),
    dict(dim=0), dict(dim=8.5), dict(steps=0), dict(epochs=0), dict(seed=-1)], ids=str)
def test_training_that_cannot_work_does_not_begin(cells, options):
    with pytest.raises(ValueError, match=f'{next(iter(options))}='):
        train_classifier(cells, **{**dict(steps=1, dim=8), **options})

def test_training_stops_at_the_first_loss_that_is_not_finite(cells, monkeypatch,
                                                             tmp_path):
    monkeypatch.setenv('CELL_DIFFUSION_CACHE', str(tmp_path))
    forward = CellClassifier.forward
    calls = []
    def overflowing(self, x):
        calls.append(len(x))
        return forward(self, x)*(nan if len(calls) == 3 else 1)
    monkeypatch.setattr(CellClassifier, 'forward', overflowing)
    with pytest.raises(FloatingPointError, match='after 2 steps: lower the learning'):
        reference_classifier(cells, keep=True, steps=9, dim=8)
    assert len(calls) == 3 and not list(tmp_path.rglob('model.safetensors'))

def test_a_cached_classifier_is_the_one_that_was_asked_for(cells, monkeypatch,
                                                           tmp_path):
    monkeypatch.setenv('CELL_DIFFUSION_CACHE', str(tmp_path))
    small = reference_classifier(cells, 1, keep=True, dim=8)
    wide = reference_classifier(cells, 1, keep=True, dim=16)
    assert (small.n_features, wide.n_features) == (32, 64)
    monkeypatch.setattr('cell_diffusion.classifier.train_classifier', None)
    assert reference_classifier(cells, 1, dim=8).n_features == 32
    assert reference_classifier(cells, 1, dim=16).n_features == 64
    for other in (dict(epochs=2, dim=8), dict(epochs=1), dict(), dict(dim=8),
                  dict(epochs=1, dim=8, seed=1)):
        with pytest.raises(TypeError): # A new one would be trained
            reference_classifier(cells, **other)

def test_a_cache_of_the_first_release_is_read_with_care(cells, monkeypatch, tmp_path):
    monkeypatch.setenv('CELL_DIFFUSION_CACHE', str(tmp_path))
    reference_classifier(cells, 1, keep=True, dim=8)
    folder = classifier_folder(cells, epochs=1, dim=8)
    record = (folder/'record.json').read_text().replace('"trained"', '"earlier"')
    (folder/'record.json').write_text(record)
    folder.rename(classifier_folder(cells))
    monkeypatch.setattr('cell_diffusion.classifier.train_classifier', None)
    with pytest.raises(TypeError): # The cached one had one epoch, not twelve
        reference_classifier(cells)

def test_classifiers_refuse_other_images():
    net = CellClassifier(['a', 'b'], 3, 16, 8).eval()
    x = torch.rand(4, 3, 16, 16)*2 - 1
    assert features_and_predictions(net, x[:0])[0].shape == (0, 32)
    wrong = [x[:, :1], torch.rand(2, 3, 32, 32), x[0], (x > 0).to(torch.uint8)]
    for images in wrong:
        with pytest.raises(ValueError, match='was trained on images'):
            features_and_predictions(net, images)
    with pytest.raises(ValueError, match='finite'):
        features_and_predictions(net, x*nan)
    for weights in ((0, 1), (-1, 1), nan):
        with pytest.raises(ValueError, match='above 0'):
            predict_classes(net, x, weights)

# ---- everything else that has a range

pixels = np.random.default_rng(0).integers(0, 256, (6, 3, 8, 8), dtype=np.uint8)
model = tiny(['a', 'b'])
line = cosine_schedule(20)
refused = {
    'T of 0': lambda: linear_schedule(0),
    'T below 0': lambda: cosine_schedule(-1),
    'half a step': lambda: log_snr_schedule(2.5),
    'no temperature': lambda: sigmoid_schedule(10, tau=0),
    'no noise at first': lambda: log_snr_schedule(10, sigma_min=0),
    'noise that falls': lambda: log_snr_schedule(10, 5, 1),
    'endless noise': lambda: log_snr_schedule(10, sigma_max=math.inf),
    'a beta of nan': lambda: Schedule([nan]),
    'weights below 0': lambda: Toy((1.5, -.5), (0, 1), (1, 1)),
    'weights of nan': lambda: Toy((nan, .5), (0, 1), (1, 1)),
    'too few means': lambda: Toy((.5, .5), (0,), (1, 1)),
    'no spread': lambda: Toy((.5, .5), (0, 1), (0, 1)),
    'a step of no schedule': lambda: Toy().pdf(torch.zeros(2), 5),
    'an empty set': lambda: set_denoiser(torch.zeros(0, 3)),
    'steps of nan': lambda: timesteps(line, nan),
    'half of a step': lambda: timesteps(line, 2.5),
    'too many steps': lambda: timesteps(line, 21),
    'rising timesteps': lambda: timesteps(line, 2, lambda *_: torch.tensor([5, 7])),
    'foreign timesteps': lambda: timesteps(line, 1, lambda *_: torch.tensor([99])),
    'no timesteps': lambda: timesteps(line, 1, lambda *_: torch.tensor([])),
    'cost of no steps': lambda: nfe('heun', 0),
    'steps for no calls': lambda: steps_for('ddim', 0),
    'eta of nan': lambda: sample(model, 1, sampler='ddim', eta=nan),
    'eta below 0': lambda: sample(model, 1, sampler='ddim', eta=-1),
    'eta above 1': lambda: ddim(None, a, line, timesteps(line, 2), eta=1.5),
    'inversion in one step': lambda: invert(model, noise(1, 3, 8, 8), steps=1),
    'opposite noises': lambda: slerp(a, -a, .5),
    'no noise to mix': lambda: slerp(a*0, a, .5),
    'a share of nan': lambda: slerp(a, a, nan),
    'an empty interval': lambda: sample(model, 1, 'a', guidance_scale=2, interval=()),
    'half an interval': lambda: sample(model, 1, 'a', guidance_scale=2, interval=(5,)),
    'no width': lambda: UNet(dim=0),
    'no levels': lambda: UNet(mults=()),
    'an empty level': lambda: UNet(mults=(1, 0)),
    'no blocks': lambda: UNet(blocks=0),
    'no patch': lambda: UNet(patch=0),
    'no output': lambda: UNet(out_channels=0),
    'fewer than no classes': lambda: UNet(n_classes=-1),
    'no pixels': lambda: UNet(dim=8)(torch.zeros(1, 3, 0, 8), torch.zeros(1)),
    'shares of nan': lambda: split_cells([0, 1], fractions=(nan, nan, nan)),
    'too few hashes': lambda: split_cells([0, 1], hashes=['a']),
    'too many hashes': lambda: kfold_cells([0]*4, hashes=list('abcde'), k=2),
    'folds of nothing': lambda: kfold_cells([], k=2),
    'a leak of another type': lambda: assert_disjoint(pixels, pixels[:2]/255.),
    'a leak of other channels': lambda: assert_disjoint(pixels[:, :1], pixels[:2]),
    'oblong turns': lambda: random_dihedral(torch.rand(2, 3, 8, 6), generator(0)),
    'oblong views': lambda: dihedral_views(torch.rand(2, 3, 8, 6)),
    'stains of pixels': lambda: morphology(torch.as_tensor(pixels)),
    'too few to tell apart': lambda: c2st(pixels[:1], pixels[:1], steps=1, seeds=1),
    'one kind alone': lambda: c2st(pixels[:0], pixels, steps=1, seeds=1),
    'no seeds': lambda: c2st(pixels, pixels, steps=1, seeds=0),
    'other channels': lambda: c2st(pixels, pixels[:, :1], steps=1, seeds=1),
}

@pytest.mark.parametrize('case', refused)
def test_refused_in_one_sentence(case):
    with pytest.raises(ValueError) as error:
        refused[case]()
    text = str(error.value)
    assert len(text) > 20 and text[-1] == '.' and '\n' not in text

def test_short_chains_work():
    for T in (1, 2):
        for make in (linear_schedule, cosine_schedule, sigmoid_schedule):
            assert make(T).T == T
    assert steps_for('ddim', 2000) == 1000 and steps_for('heun', 3) == 2
    for name in set(samplers) - {'repaint'}:
        assert sample(tiny(), 1, steps=1, sampler=name, progress=False).isfinite().all()

def test_no_cells_at_all():
    empty = torch.zeros(0, 3, 16, 16)
    assert morphology(empty).shape == (0, 7)
    assert find_cells(empty.numpy()).shape == (0, 16, 16)
    masks = np.zeros((0, 16, 16), bool)
    assert measure_cells(masks, masks, empty.numpy()).shape == (0, 7)
    assert affine_jitter(empty, generator(0)).shape == empty.shape
    assert dihedral_views(empty).shape == (8, 0, 3, 16, 16)
    assert dihedral_hash(pixels[:0]).dtype == dihedral_hash(pixels).dtype
    assert_disjoint(pixels, pixels[:0])
    assert_disjoint(pixels[:0], pixels)


# ---- found by a close reading

def test_whole_numbers_may_be_written_as_floats():
    x = noise(6, 4)
    gaps, idx = nearest_cells(x, x, 1.)
    assert idx.flatten().tolist() == list(range(6))
    assert kernel_distance(x, noise(6, 4, seed=1), subset=4.) == kernel_distance(
        x, noise(6, 4, seed=1), subset=4)


@pytest.mark.parametrize('name, options', [
    ('euler', dict(eta=1.)), ('ancestral', dict(foo=1)), ('ddim', dict(jump=2))])
def test_a_cost_is_of_options_that_a_sampler_has(name, options):
    with pytest.raises(ValueError, match='has no option'):
        nfe(name, 20, 1000, **options)


def test_a_picture_is_not_drawn_of_numbers_that_are_no_pixels():
    with pytest.raises(TypeError, match='floats in -1..1 or uint8 pixels, got .*int64'):
        show_cells(torch.zeros(1, 3, 8, 8, dtype=torch.int64))


def test_titles_beyond_the_last_picture_make_no_axes():
    fig = show_cells(torch.zeros(2, 3, 8, 8), list('abcdefghi'))
    assert [ax.get_title() for ax in fig.axes] == ['a', 'b']
