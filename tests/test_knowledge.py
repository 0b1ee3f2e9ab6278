"What a generator knows: against closed forms, planted classes and planted strangeness"
import json
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score
from typer.testing import CliRunner

from common import cells as cells_of
from common import marked, nbs
from cell_diffusion import knowledge
from cell_diffusion.classifier import CellClassifier
from cell_diffusion.cli import app
from cell_diffusion.core import encode, generator
from cell_diffusion.data import cell_dls
from cell_diffusion.denoiser import Denoiser, load, save, weights_hash
from cell_diffusion.inpainting import (
    Inpainter, fill_holes, hide_channels, random_masks,
)
from cell_diffusion.knowledge import (
    ClassErrors, as_class, auc, calibrate, class_errors, equal_choice, error_maps,
    error_timesteps, explain, fit_distance, fit_temperature, heat_maps, lab_statistics,
    least_change, make_reference, match_stain, mean_and_error, parts_of,
    read_reference, shares_of, still_in,
)
from cell_diffusion.schedules import get_schedule
from cell_diffusion.studies import knowledge as study

notebook = nbs/'14_knowledge.ipynb'
tiny = dict(dim=8, mults=[1, 2])
grey_levels = -.6, 0., .6


def noise(*shape, seed=0):
    return torch.randn(shape, generator=generator(seed))


class Greys(Denoiser):
    "The best denoiser of classes that are even grey, with a little grain"
    def estimate(self, xt, t, label=None, **known):
        m = torch.tensor(grey_levels)[label].view(-1, 1, 1, 1)
        a = self.schedule.at('signal', t, xt)
        b = self.schedule.at('noise', t, xt)
        grain = .1**2
        return m + a*grain/(a**2*grain + b**2)*(xt - a*m)


@pytest.fixture(scope='module')
def greys():
    return Greys(tiny, 'log_snr', prediction='v', data_std=.5, size=8,
                 classes=['dark', 'mid', 'light']).eval()


def grey_cells(n, seed=0):
    truth = torch.arange(n) % 3
    x = torch.tensor(grey_levels)[truth].view(-1, 1, 1, 1) + .1*noise(n, 3, 8, 8,
                                                                     seed=seed)
    return x.clamp(-1, 1), truth


def network(folder=None, kind=Denoiser, **settings):
    torch.manual_seed(0)
    given = dict(schedule='log_snr', prediction='v', data_std=.5, size=32,
                 classes=['round', 'oval'])
    unet = dict(tiny, channels=7, out_channels=3) if kind is Inpainter else tiny
    model = kind(unet, **{**given, **settings}).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=.05, generator=generator(0))
    if folder: save(model, folder)
    return model


# The classifier

@pytest.mark.parametrize('name', ['linear', 'cosine', 'log_snr', 'flow'])
def test_every_beginning_of_the_levels_is_spread(name):
    schedule = get_schedule(name)
    ts = error_timesteps(schedule, 40)
    assert torch.equal(error_timesteps(schedule, 8), ts[:8])
    for n in (5, 8, 13, 21, 40):
        levels = schedule.log_snr[ts[:n]].sort().values
        assert levels[0] < -3 + 12/n and levels[-1] > 6 - 12/n
        assert levels.diff().max() < 3*9/n


def test_errors_are_those_of_the_formula(greys):
    x, _ = grey_cells(4)
    found = class_errors(greys, x, draws=6, drop=math.inf, seed=3)
    rng = generator(3)
    for j, t in enumerate(error_timesteps(greys.schedule, 6).tolist()):
        eps = torch.randn(1, 3, 8, 8, generator=rng)
        a = greys.schedule.signal[t]
        b = greys.schedule.noise[t]
        for k in range(3):
            ts = torch.full((4,), t)
            x0 = greys.estimate(a*x + b*eps, ts, torch.full((4,), k))
            error = ((x0 - x)**2).mean((1, 2, 3))/(b/a)
            assert torch.allclose(found.errors[:, k, j], error, rtol=1e-4)


def test_the_error_of_the_likelihood_is_bayes_rule(greys):
    "Half the area under the differences of errors over σ² is that of log-densities"
    x, _ = grey_cells(6)
    low, high = -14., 12.
    found = class_errors(greys, x, draws=1000, drop=math.inf, log_snr=(low, high))
    share = (.5 + torch.arange(1000)*(5**.5 - 1)/2) % 1
    over_sigma = ((low + (high - low)*share)/2).exp()
    areas = (found.errors*over_sigma).mean(2)*(high - low)*x[0].numel()/2
    centres = torch.tensor(grey_levels)
    exact = torch.stack([torch.distributions.Normal(m, .1).log_prob(x).sum((1, 2, 3))
                         for m in centres], 1)
    gaps = exact - exact[:, :1]
    assert torch.allclose(areas[:, :1] - areas, gaps, rtol=.05, atol=20)


def test_cells_are_classified_and_classes_dropped(greys):
    x, truth = grey_cells(9)
    found = class_errors(greys, x)
    assert torch.equal(found.predicted, truth)
    assert (found.calls < 24*3).all() and (found.calls >= 24).all()
    whole = class_errors(greys, x, drop=math.inf)
    assert (whole.calls == 72).all() and torch.equal(whole.predicted, truth)
    seen = found.errors.isfinite()
    assert torch.equal(found.errors[seen], whole.errors[seen])
    assert torch.equal(seen.sum((1, 2)), found.calls)


@pytest.mark.parametrize('bs', [1, 7, 64])
def test_an_answer_depends_on_no_other_cell(greys, bs):
    x, _ = grey_cells(5)
    together = class_errors(greys, x, draws=8, bs=bs)
    alone = class_errors(greys, x[3:4], draws=8)
    assert torch.allclose(together.errors[3], alone.errors[0], equal_nan=True)


@pytest.mark.parametrize('calls', [3*4 + 20, 40, 50, 72])
def test_the_budget_is_kept(calls):
    model = network(classes=['a', 'b', 'c'])
    found = class_errors(model, noise(3, 3, 32, 32), drop=math.inf, calls=calls)
    assert (found.calls <= calls).all() and (found.calls > calls - 4).all()
    assert found.best.isfinite().all(), 'the best class is measured to the end'


def test_still_in_by_hand():
    errors = torch.tensor([[[1., 2, 3, 4], [1.1, 2.3, 3.2, 4.2], [9., 9, 9, 9]]])
    alive = torch.ones(1, 3, dtype=torch.bool)
    many = torch.tensor([3])
    gap, se = mean_and_error(errors[0, 1] - errors[0, 0])
    z = (gap/se).item()
    assert gap.item() == pytest.approx(.2) and se.item() == pytest.approx(
        np.std([.1, .3, .2, .2], ddof=1)/2, rel=1e-5)
    assert still_in(errors, alive, z + .1, many).tolist() == [[True, True, False]]
    assert still_in(errors, alive, z - .1, many).tolist() == [[True, False, False]]
    assert still_in(errors, alive, 99, many).all()
    assert still_in(errors, alive, 99, torch.tensor([1])).tolist() == [
        [True, False, False]]
    dead = torch.tensor([[False, True, True]])
    errors[0, 0] = torch.nan
    assert still_in(errors, dead, 99, many).tolist() == [[False, True, True]]


@pytest.mark.parametrize('change, says', [
    (dict(draws=3), 'draws=3'), (dict(calls=31), 'calls=31'), (dict(bs=0), 'bs=0'),
    (dict(x=torch.zeros(2, 3, 9, 9)), 'knows images'),
    (dict(x=torch.zeros(2, 3, 8, 8).byte()), 'knows images'),
])
def test_wrong_arguments(greys, change, says):
    given = {**dict(x=torch.zeros(2, 3, 8, 8)), **change}
    with pytest.raises(ValueError, match=says):
        class_errors(greys, **given)


def test_networks_that_cannot_classify():
    x = torch.zeros(1, 3, 32, 32)
    for model in (network(classes=[]), network(kind=Inpainter)):
        with pytest.raises(ValueError, match='knows their classes'):
            class_errors(model, x)
    with pytest.raises(ValueError, match='distilled'):
        class_errors(network(jumps=[999, 500]), x)


# Doubt

def planted(n=300, K=4, draws=12, seed=0):
    "Errors whose best class is the true one more or less often"
    rng = np.random.default_rng(seed)
    truth = rng.integers(K, size=n)
    lead = rng.uniform(0, 1.5, n)
    errors = rng.normal(0, 1, (n, K, draws)) + rng.normal(0, 3, (n, 1, draws)) + 20
    errors[np.arange(n), truth] -= lead[:, None]
    calls = torch.full((n,), K*draws)
    found = ClassErrors(tuple('abcd'), torch.tensor(errors), calls, torch.zeros(draws))
    return found, torch.tensor(truth)


def test_certainty_orders_the_answers():
    found, truth = planted()
    right = (found.predicted == truth).float()
    order = found.certainty.argsort()
    third = len(order)//3
    assert right[order[-third:]].mean() > right[order[:third]].mean() + .2
    # By hand, for one cell
    k = found.predicted[0]
    z = [(d.mean()/(d.std()/12**.5)).item() for j, d in enumerate(
        found.errors[0] - found.errors[0, k]) if j != k]
    assert found.certainty[0].item() == pytest.approx(min(z), rel=1e-5)


def test_the_temperature_calibrates():
    found, truth = planted(3000)
    T = fit_temperature(found.rows(slice(0, 1500)), truth[:1500])
    p = found.rows(slice(1500, None)).log_probabilities(T).exp()
    right = (found.predicted[1500:] == truth[1500:]).float()
    assert abs(p.amax(1).mean() - right.mean()) < .03
    for other in (T/5, T*5):
        log_p = found.log_probabilities(other)
        ours = found.log_probabilities(T)
        rows = torch.arange(3000)
        assert ours[rows, truth].mean() > log_p[rows, truth].mean()


# Strangeness

def test_the_distance_is_that_of_mahalanobis():
    x = noise(5000, 3)@torch.tensor([[2., 0, 0], [1, 1, 0], [0, 0, .5]])
    labels = torch.arange(5000) % 2
    x = x + 50*labels[:, None]
    ours = fit_distance(x, labels)(x)
    assert ours.square().mean() == pytest.approx(3, abs=.1)
    by_hand = np.cov((x[labels == 0]).numpy().T)
    d = (x[0] - x[labels == 0].mean(0)).numpy()
    assert ours[0].item() == pytest.approx((d@np.linalg.solve(by_hand, d))**.5, rel=.05)
    far = fit_distance(x, labels)(torch.tensor([[25., -25., 0.]]))
    assert far > 10


@pytest.mark.parametrize('shift', [-1, 0, 1, 9])
def test_auc_is_that_of_scikit_learn(shift):
    rng = np.random.default_rng(0)
    a = rng.normal(shift, 1, 60).round(1)
    b = rng.normal(0, 1, 90).round(1)
    value, low, high = auc(a, b)
    truth = roc_auc_score([1]*60 + [0]*90, np.concatenate([a, b]))
    assert value == pytest.approx(truth)
    assert low <= value <= high and (high - low < .25)


def test_the_interval_of_the_auc_covers():
    rng = np.random.default_rng(1)
    inside = 0
    for _ in range(100):
        a = rng.normal(1, 1, 50)
        b = rng.normal(0, 1, 50)
        _, low, high = auc(a, b, draws=300)
        inside += low <= .7602 <= high
    assert 86 <= inside


def test_profiles_leave_out_what_sees_compression(greys):
    found = class_errors(greys, grey_cells(3)[0], draws=24)
    kept = found.levels <= knowledge.finest
    assert 12 < kept.sum() < 20 and found.profile.shape == (3, kept.sum())
    assert torch.equal(found.profile, found.best[:, kept].log())


def test_profiles_find_errors_that_are_too_small(greys):
    x, truth = grey_cells(120)
    known = class_errors(greys, x, draws=8)
    distance = fit_distance(known.profile, truth)
    usual = class_errors(greys, grey_cells(60, seed=1)[0], draws=8)
    levels = torch.tensor(grey_levels)[truth[:60]].view(-1, 1, 1, 1)
    smooth = levels + (grey_cells(60, seed=2)[0] - levels)/3
    easy = class_errors(greys, smooth, draws=8)
    assert auc(easy.best.mean(1), usual.best.mean(1))[0] < .1, 'error alone is fooled'
    assert auc(distance(easy.profile), distance(usual.profile))[0] > .95


# Heat maps and changes

def test_maps_are_the_errors_pixel_by_pixel(greys):
    x, truth = grey_cells(3)
    whole = class_errors(greys, x, draws=8, drop=math.inf).errors.mean(2)
    for k in range(3):
        maps = error_maps(greys, x, k, draws=8)
        assert torch.allclose(maps.mean((1, 2)), whole[:, k], rtol=1e-4)
    heat = heat_maps(greys, x, truth, (truth + 1) % 3, draws=8)
    assert (heat.mean((1, 2)) > 0).all()


def test_heat_lies_where_the_classes_differ(greys):
    x, _ = grey_cells(1)
    x[..., :4] = grey_levels[0]
    x[..., 4:] = grey_levels[2]
    heat = heat_maps(greys, x, 'dark', 'light', draws=12)[0]
    assert (heat[:, :4] > 0).all() and (heat[:, 4:] < 0).all()


def test_parts_cover_the_picture():
    x = study.drawn_cells(4, 64)
    parts = parts_of(x)
    assert (sum(p.int() for p in parts.values()) == 1).all()
    shares = shares_of(torch.ones(4, 64, 64), parts)
    assert torch.allclose(sum(shares.values()), torch.ones(4))
    only = shares_of(parts['nucleus'].float(), parts)
    assert torch.allclose(only['nucleus'], torch.ones(4))


def test_a_class_is_changed_into_another(greys):
    x, truth = grey_cells(6)
    target = (truth + 1) % 3
    changed = as_class(greys, x, truth, target, depth=-6., steps=60)
    wanted = torch.tensor(grey_levels)[target]
    assert (changed.mean((1, 2, 3)) - wanted).abs().max() < .05
    same = as_class(greys, x, truth, truth, depth=-6., steps=200)
    assert (same - x).abs().mean() < .02
    assert torch.equal(as_class(greys, x, truth, target, depth=99.), x)


def test_the_least_change_is_no_deeper_than_needed(greys):
    x = grey_cells(3)[0][:1]
    def brighter(images): return (images.mean((1, 2, 3)) > -.3).long()
    changed, depth = least_change(greys, x, 'dark', 'mid', [brighter], steps=60)
    assert brighter(changed) == 1 and depth.isfinite().all()
    shallower = [d for d in knowledge.depths if d > depth]
    assert shallower
    for d in shallower:
        assert brighter(as_class(greys, x, 'dark', 'mid', d, 60)) == 0
    def never(images): return torch.zeros(len(images))
    _, depth = least_change(greys, x, 'dark', 'mid', [brighter, never], steps=20)
    assert depth.isnan().all()


def test_stains_are_matched():
    ours = study.drawn_cells(8, 32)
    lamp = torch.tensor([1., .9, .7]).view(1, 3, 1, 1)
    foreign = ((ours + 1)/2)**.8*lamp*2 - 1
    matched = match_stain(foreign, lab_statistics(ours))
    for found, wanted in zip(lab_statistics(matched), lab_statistics(ours)):
        assert np.allclose(found, wanted, atol=3)
    assert (matched - ours).abs().mean() < .5*(foreign - ours).abs().mean()
    same = match_stain(ours, lab_statistics(ours))
    assert (same - ours).abs().max() < .03


# Explanations

def test_equal_choice_is_equal():
    labels = np.repeat([0, 1, 2], [50, 5, 30])
    chosen = equal_choice(labels, 30)
    assert len(set(chosen.tolist())) == len(chosen)
    assert np.bincount(labels[chosen]).tolist() == [10, 5, 10]


@pytest.fixture(scope='module')
def known(tmp_path_factory):
    "A network, its reference, and pictures"
    folder = tmp_path_factory.mktemp('known')
    model = network(folder/'net')
    x = noise(32, 3, 32, 32).clamp(-1, 1)
    make_reference(model, x, torch.arange(32) % 2, draws=6, seed=0).write(folder/'net')
    pixels = np.random.default_rng(0).integers(0, 256, (48, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder/'cell.png')
    Image.fromarray(pixels[..., 0]).save(folder/'grey.png')
    return folder


def test_a_reference_comes_back_and_knows_its_weights(known):
    model = load(known/'net')
    x = noise(32, 3, 32, 32).clamp(-1, 1)
    made = make_reference(model, x, torch.arange(32) % 2, draws=6, seed=0)
    read = read_reference(known/'net', model)
    found = class_errors(model, x, draws=6)
    assert torch.allclose(made.distance(found.profile), read.distance(found.profile),
                          rtol=1e-3)
    assert (made.strangeness(found) - read.strangeness(found)).abs().max() <= 2
    assert read.temperature == pytest.approx(made.temperature, rel=1e-3)
    assert read.weights == weights_hash(model) and read.settings == made.settings
    other = network(prediction='x0')
    with pytest.raises(ValueError, match='other weights'):
        read_reference(known/'net', other)


def test_explain_says_what_the_parts_say(known):
    said = explain(known/'cell.png', known/'net', window=40)
    assert sum(said.probabilities.values()) == pytest.approx(1, abs=1e-5)
    assert said.label in ('round', 'oval') and 0 <= said.strangeness <= 100
    assert 'Not for diagnosis' in str(said) and said.label in str(said)
    picture = said.picture()
    assert picture.dtype == np.uint8 and picture.shape == (256, 512, 3)

    model = load(known/'net')
    found = class_errors(model, encode(said.cell.transpose(2, 0, 1))[None], draws=6)
    assert model.classes[found.predicted] == said.label
    whole = np.asarray(Image.open(known/'cell.png'))
    assert explain(whole, known/'net', 40).probabilities == said.probabilities


def test_strangeness_is_a_percentile_of_real_cells(greys, known):
    x, truth = grey_cells(300)
    reference = make_reference(greys, x, truth, draws=8)
    others = grey_cells(99, seed=1)[0]
    usual = reference.strangeness(class_errors(greys, others, draws=8))
    assert abs(usual.mean() - 50) < 8 and reference.right == 150
    stripes = x[:3] + .5*(torch.arange(8) % 2 - .5)
    strange = reference.strangeness(class_errors(greys, stripes, draws=8))
    assert (strange == 100).all()

    said = explain(known/'cell.png', known/'net')
    assert 'do not rely' in str(replace(said, strangeness=100.))
    assert 'do not rely' not in str(replace(said, strangeness=50.))


def test_explain_refuses(known, tmp_path):
    with pytest.raises(ValueError, match='grey'):
        explain(known/'grey.png', known/'net')
    assert explain(known/'grey.png', known/'net', as_colour=True)
    network(tmp_path/'new')
    with pytest.raises(ValueError, match='calibrate new'):
        explain(known/'cell.png', tmp_path/'new')
    with pytest.raises(ValueError, match='not 500'):
        explain(known/'cell.png', known/'net', window=500)
    (tmp_path/'new'/'knowledge.json').write_text('{"weights":')
    with pytest.raises(ValueError, match='damaged'):
        explain(known/'cell.png', tmp_path/'new')


def test_explain_in_a_shell(known, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ['explain', str(known/'cell.png'), '--model', str(known/'net')]
    answer = CliRunner().invoke(app, words)
    assert answer.exit_code == 0, answer.output
    assert 'Not for diagnosis' in answer.output
    assert Image.open('cell_explained.png').size == (512, 256)


def test_calibrate_reads_the_cells_of_its_training(tmp_path, monkeypatch):
    folder = tmp_path/'cells'
    rng = np.random.default_rng(0)
    for name, level in dict(round=60, oval=180).items():
        (folder/name).mkdir(parents=True)
        for i in range(40):
            pixels = rng.normal(level, 20, (32, 32, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder/name/f'{i}.png')
    network(tmp_path/'net', classes=['oval', 'round'])
    record = dict(kind='denoiser', source='folder', channels=3)
    (tmp_path/'net'/'record.json').write_text(json.dumps(record))
    with pytest.warns(UserWarning, match='not the cells'):
        reference = calibrate(tmp_path/'net', folder, n=16, draws=4)
    assert (tmp_path/'net'/'knowledge.json').exists() and 'classified' in str(reference)
    assert explain(folder/'oval'/'0.png', tmp_path/'net').label in ('oval', 'round')


# The study

@pytest.fixture(scope='module')
def dls():
    return cell_dls('simulated', size=28, bs=16, n=240)


def small_pair(dls):
    names = list(dls.vocab)
    torch.manual_seed(0)
    classifier = CellClassifier(names, 3, 28, dim=8).eval()
    return network(classes=names, size=28), classifier


def test_every_set_of_pictures(dls, tmp_path):
    for kind in ('white', 'platelet'):
        (tmp_path/kind).mkdir()
        for i in range(3):
            pixels = np.random.default_rng(i).integers(0, 256, (24, 24, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path/kind/f'{i}.jpg')
    sets = study.picture_sets(dls, 8, tmp_path)
    x, _ = study.cells_of_side(dls, 'test', 8)
    for name, make in sets.items():
        found = make()
        assert found.shape[1:] == (3, 28, 28) and found.abs().max() <= 1, name
    assert torch.equal(sets['mirrored'](), x.flip(3))
    assert sets['over-exposed']().mean() > x.mean()
    def edges(images): return images.diff(dim=3).abs().mean()
    assert edges(sets['blurred']()) < .8*edges(x)
    assert torch.allclose(sets['enlarged']()[..., 14, 14], x[..., 14, 14], atol=.5)
    assert len(sets['elsewhere white']()) == 3
    with pytest.raises(ValueError, match='no pictures of white'):
        study.elsewhere(tmp_path/'white', 'white', 28)


def test_all_tables_of_cells_that_were_asked_once(dls, tmp_path):
    pair = small_pair(dls)
    known = study.cells_of_side(dls, 'test', 16)
    made = []
    def asked():
        made.append(1)
        return study.Asked(*pair, *known, draws=4)
    sets = dict(real=lambda: study.cells_of_side(dls, 'test', 16),
                flat=lambda: torch.full((9, 3, 28, 28), .5))
    sets['elsewhere white'] = sets['flat']
    def run(): return study.cells_study(asked, sets, tmp_path, {}, 16, 4, 2, bs=8)
    cells = run()
    assert len(cells) == 16 + 9 + 9 and len(made) == 1
    # Again, without a call; and after a loss, with one more job
    pd.testing.assert_frame_equal(cells, run())
    next(tmp_path.glob('first=8*set=flat*')).unlink()
    again = run()
    assert len(made) == 2
    unmeasured = ['seconds']
    pd.testing.assert_frame_equal(cells.drop(columns=unmeasured),
                                  again.drop(columns=unmeasured))

    real = cells[cells['set'] == 'real']
    assert real.bits.notna().sum() == 8 and (real.truth >= 0).all()
    table = study.accuracy_table(real, dls.vocab).set_index('classifier')
    right = (real.generator == real.truth).groupby(real.truth).mean().mean()
    assert table.accuracy['generator'] == pytest.approx(right)
    doubt = study.doubt_table(real)
    last = doubt[(doubt.confidence == 'softmax') & (doubt.answered == 1)]
    assert last.accuracy.item() == pytest.approx((real.resnet == real.truth).mean())
    strange = study.strange_table(cells)
    assert set(strange['set']) == {'flat', 'elsewhere white'}
    assert set(strange.score) == set(study.scores)
    assert ((strange.low <= strange.AUC) & (strange.AUC <= strange.high)).all()
    called = study.elsewhere_table(cells, dls.vocab)
    assert called[list(dls.vocab)].sum(1).tolist() == pytest.approx([1, 1])


def test_a_class_is_left_out_of_everything(dls):
    others = study.without_class(dls, 'erythroblast')
    names = [n for n in dls.vocab if n != 'erythroblast']
    assert list(others.vocab) == names
    k = list(dls.vocab).index('erythroblast')
    for side in ('train', 'valid', 'test'):
        old = np.asarray(dls.idxs[side])
        kept = old[dls.cells.labels[old] != k]
        assert np.array_equal(others.idxs[side], kept)
        images, labels = getattr(others, side).arrays
        theirs = dls.cells.labels[kept]
        assert np.array_equal(images, dls.cells.images[kept])
        assert [names[i] for i in labels] == [dls.vocab[i] for i in theirs]


def test_few_cells_are_few_and_of_the_training(dls):
    few = study.few_cells(dls, 5)
    labels = dls.cells.labels[few.idxs['train']]
    assert np.bincount(labels).tolist() == [5]*len(dls.vocab)
    assert set(few.idxs['train']) <= set(np.asarray(dls.idxs['train']).tolist())
    assert np.array_equal(few.idxs['test'], dls.idxs['test'])


def test_left_out_and_few_from_end_to_end(dls, tmp_path):
    training = dict(epochs=1, dim=8, steps=2, n=16, draws=4)
    table = study.left_out_study(dls, tmp_path, ['platelet'], **training)
    assert set(table['set']) == {'without platelet'} and table.AUC.between(0, 1).all()
    model = load(tmp_path/'platelet'/'generator')
    assert 'platelet' not in model.classes
    # A second call trains nothing
    before = (tmp_path/'platelet'/'generator'/'model.safetensors').stat().st_mtime_ns
    pd.testing.assert_frame_equal(
        table, study.left_out_study(dls, tmp_path, ['platelet'], **training))
    after = (tmp_path/'platelet'/'generator'/'model.safetensors').stat().st_mtime_ns
    assert before == after and not (tmp_path/'platelet'/'checkpoint.pt').exists()
    table = study.few_study(dls, tmp_path/'few', [4], **training)
    assert set(table.trained) == {4}
    assert set(table.classifier) == {'generator', 'resnet'}


def test_changes_and_heat_are_measured(dls, tmp_path):
    names = list(dls.vocab)
    model, classifier = small_pair(dls)
    changed = study.change_study(dls, tmp_path, model, classifier, pairs=[names[4:6]],
                                 n=2, steps=4, draws=4)
    assert set(changed.way) == {'least', 'whole'} and len(changed) == 4
    parts = ('nucleus', 'cytoplasm', 'surroundings')
    for what in ('change', 'area'):
        total = sum(changed[f'{what}_{part}'] for part in parts)
        assert np.allclose(total[changed['size'] > 0], 1, atol=1e-4)
    table = study.change_table(changed)
    assert {'change_nucleus', 'moved_ratio', 'depth'} <= set(table.measure)
    x, truth = study.cells_of_side(dls, 'test', 8)
    heat = study.heat_study(model, x, truth, draws=4)
    assert list(heat.part) == list(parts)
    weights = study.weights_study(model, x, truth, draws=8)
    assert weights.accuracy.between(0, 1).all() and len(weights) == 15
    mean = study.with_interval([1., 2., 3., np.nan])
    assert mean['mean'] == 2 and mean['low'] < 2 < mean['high'] and mean['cells'] == 3


# A hole across channels

def filler(channels=3, size=8):
    unet = dict(tiny, channels=3*channels, out_channels=channels)
    torch.manual_seed(0)
    model = Inpainter(unet, 'log_snr', prediction='v', data_std=.5, size=size).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=.05, generator=generator(0))
    return model


def test_hidden_channels():
    masks = random_masks(400, 8)
    hidden = hide_channels(masks, 3, seed=0)
    whole = hidden.flatten(2).all(2) | ~hidden.flatten(2).any(2)
    of_channels = whole.all(1) & ~(hidden == masks).flatten(1).all(1)
    assert .35 < of_channels.float().mean() < .6
    assert hidden.flatten(1).any(1)[of_channels].all(), 'something is hidden'
    stays = (hidden == masks).flatten(1).all(1)
    assert (stays | of_channels).all()
    assert torch.equal(hidden, hide_channels(masks, 3, seed=0))


def test_a_channel_is_filled_and_the_others_stay(tmp_path):
    save(filler(), tmp_path)
    model = load(tmp_path, precision='float32')
    assert (model.channels, model.unet.channels) == (3, 9)
    x = noise(4, 3, 8, 8).clamp(-1, 1)
    filled = study.fill_channel(model, x, 2, steps=3)
    assert torch.equal(filled[:, :2], x[:, :2])
    assert not torch.equal(filled[:, 2], x[:, 2])
    # What is hidden has no influence, and what is known has
    other = x.clone()
    other[:, 2] = 0
    assert torch.equal(study.fill_channel(model, other, 2, steps=3)[:, 2], filled[:, 2])
    other[:, 0] = -other[:, 0]
    assert not torch.equal(study.fill_channel(model, other, 2, steps=3)[:, 2],
                           filled[:, 2])


def test_one_mask_for_all_channels_is_the_same_mask_in_each():
    model = filler()
    x = noise(2, 3, 8, 8).clamp(-1, 1)
    mask = random_masks(2, 8, dict(box=1))
    one = fill_holes(model, x, mask, steps=3, progress=False)
    each = fill_holes(model, x, mask.expand(-1, 3, -1, -1), steps=3, progress=False)
    assert torch.equal(one, each)


def test_a_network_with_one_mask_refuses_one_for_each_channel():
    model = network(kind=Inpainter)
    x = torch.zeros(1, 3, 32, 32)
    with pytest.raises(ValueError, match='got'):
        fill_holes(model, x, torch.ones_like(x), progress=False)
    with pytest.raises(ValueError, match='9 for a mask of each'):
        Inpainter(dict(tiny, channels=8, out_channels=3), size=8)


def test_the_channel_study_on_drawn_jurkat_cells(tmp_path):
    dls = cell_dls('simulated-jurkat', size=40, bs=16, n=160,
                   channels=study.jurkat_channels)
    names = list(dls.vocab)
    torch.manual_seed(0)
    classifier = CellClassifier(names, 3, 40, dim=8).eval()
    given = dict(n=14, fills=2, bs=8, steps=2, epochs=1, dim=8)
    cells = study.channel_study(dls, tmp_path, classifier, **given)
    again = study.channel_study(dls, tmp_path, classifier, **given)
    pd.testing.assert_frame_equal(cells, again)
    table = study.channel_table(cells, names).set_index('measure')
    first = cells[cells['fill'] == 0]
    assert table.value['total, one fill'] == pytest.approx(
        np.corrcoef(first.total, first.generated)[0, 1])
    assert len(table) == 5
    # More DNA is more DNA
    x = torch.full((1, 3, 8, 8), -1.)
    x[:, 2, 2:4, 2:4] = 0
    assert study.total(x, 2).item() == 4


# The exercises

def chapters_functions():
    "What the chapter has defined when its exercises come"
    found = {**vars(knowledge), 'np': np}
    wanted = {'def toy_errors': {}, 'def answered': {}}
    for c in cells_of(notebook, 'code'):
        for start in wanted:
            if start not in c.source or 'solution' in c.source: continue
            text = c.source
            if start == 'def toy_errors': text = text.partition('fig, axes')[0]
            if start == 'def answered': text = text.partition('shares, acc')[0]
            exec(text, found)
    return found


def exec_in(answer):
    "The names that a check meets after an answer"
    found = chapters_functions()
    exec(answer, found)
    return found


wrong_answers = {
    1: dict(
        without_prior='''
def posterior(gaps, temperature, prior): return (-gaps/temperature).softmax(1)''',
        times_temperature='''
def posterior(gaps, temperature, prior):
    return (prior.log() - gaps*temperature).softmax(1)''',
        overflows='''
def posterior(gaps, temperature, prior):
    w = prior*torch.exp(-(gaps - gaps.amax(1, keepdim=True))/temperature)
    return w/w.sum(1, keepdim=True)''',
        over_cells='''
def posterior(gaps, temperature, prior):
    return (prior.log() - gaps/temperature).softmax(0)''',
    ),
    2: dict(
        one_noise_for_all='''
def errors_of(estimate, x, sigmas, classes, rng):
    noise = torch.randn(x.shape, generator=rng)
    return torch.stack([torch.stack([((estimate(x + s*noise, s, c) - x)**2).mean()/s
                                     for c in classes]) for s in sigmas])''',
        without_sigma='''
def errors_of(estimate, x, sigmas, classes, rng):
    table = []
    for s in sigmas:
        y = x + s*torch.randn(x.shape, generator=rng)
        row = [((estimate(y, s, c) - x)**2).mean() for c in classes]
        table.append(torch.stack(row))
    return torch.stack(table)''',
    ),
    3: dict(
        undecided_one='surest, level, probability = .1, 2, .97',
        wrong_level='surest, level, probability = .8, 4, .97',
        whole_area='surest, level, probability = .8, 2, 3.56',
    ),
    4: dict(
        no_least='''
def draws_needed(d, z):
    if d.mean() <= 0: return math.inf
    return math.ceil((z*d.std().item()/d.mean().item())**2)
''',
        not_squared='''
def draws_needed(d, z):
    if d.mean() <= 0: return math.inf
    return max(4, math.ceil(z*d.std().item()/d.mean().item()))''',
        whatever_the_sign='''
def draws_needed(d, z):
    return max(4, math.ceil((z*d.std().item()/(d.mean().item() or 1e9))**2))''',
        population='''
def draws_needed(d, z):
    if d.mean() <= 0: return math.inf
    return max(4, math.ceil((z*d.std(correction=0).item()/d.mean().item())**2))''',
    ),
    5: dict(
        ties_in_order='''
def auc_by_ranks(a, b):
    both = np.concatenate([a, b])
    ranks = both.argsort(kind='stable').argsort()[:len(a)] + 1
    return (ranks.sum() - len(a)*(len(a) + 1)/2)/(len(a)*len(b))''',
        without_the_least_sum='''
def auc_by_ranks(a, b):
    from scipy.stats import rankdata
    return rankdata(np.concatenate([a, b]))[:len(a)].sum()/(len(a)*len(b))''',
        the_other_way='''
def auc_by_ranks(a, b): return 1 - auc(a, b, draws=1)[0]''',
    ),
    6: dict(
        first_failure='''
def answerable(right, confidence, wanted):
    share, accuracy = answered(right, confidence)
    bad = (accuracy < wanted).nonzero()
    return share[bad[0, 0] - 1].item() if len(bad) and bad[0, 0] else 1. - len(bad)''',
        accuracy_itself='''
def answerable(right, confidence, wanted):
    share, accuracy = answered(right, confidence)
    return accuracy.max().item()''',
        as_given='''
def answerable(right, confidence, wanted):
    n = torch.arange(1, len(right) + 1)
    ok = (right.cumsum(0)/n >= wanted).nonzero()
    return (n[ok[-1, 0]]/len(right)).item() if len(ok) else 0.''',
    ),
}


@pytest.mark.parametrize('k', wrong_answers)
def test_checks_accept_the_solution_and_refuse_wrong_answers(k):
    check = marked(notebook, 'check')[k][0][1]
    solution = marked(notebook, 'solution')[k][0][1]
    exec(check, exec_in(solution))
    stub = marked(notebook, 'exercise')[k][0][1]
    for name, answer in dict(wrong_answers[k], unsolved=stub).items():
        accepted = True
        try:
            exec(check, exec_in(answer))
        except Exception:
            accepted = False
        assert not accepted, f'exercise {k} accepts {name}'
