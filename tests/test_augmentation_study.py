"The augmentation study: what is added, what is tested, its records, and its tables"
import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
import numpy as np
import pandas as pd
import pytest
import torch
from rare_cells import some_cells
from typer.testing import CliRunner
from cell_diffusion.cli import app
from cell_diffusion.core import encode, generator
from cell_diffusion.augmentation import deficit
from cell_diffusion.metrics import class_scores, wilson
from cell_diffusion.records import results_folder
from cell_diffusion.splits import dihedral_hash
from cell_diffusion.studies import augmentation
from cell_diffusion.studies.augmentation import (
    AugmentationStudy, GeneratorKind, StudyResults, arm_scores, arms, bootstrap,
    contrast_pairs, contrast_report, contrasts, holm, decode_labels, encode_labels,
    keep_recognised, load_copies, load_records,
    pivot_scores, verdict, with_verdicts, write_results)
from sklearn.metrics import confusion_matrix

sizes = (24, 16, 8, 4)


def noise_cells(dls, label, seed=0, progress=False, **kwargs):
    "A generator that has learned nothing: noise"
    noise_cells.seen.append(np.asarray(dls.cells.images))
    shape = len(label), *dls.cells.images.shape[1:]
    x = torch.rand(shape, generator=generator(seed))*2 - 1
    return x, dict(seconds=.1, parameters=1)


noise_cells.seen = []


def use_generator(monkeypatch, make):
    kinds = {kind: GeneratorKind(make, dict(bs=16)) for kind in ('ddpm', 'gan')}
    monkeypatch.setattr(augmentation, 'generators', kinds)


@pytest.fixture
def noise(monkeypatch):
    noise_cells.seen.clear()
    use_generator(monkeypatch, noise_cells)


def a_study(out, cells=None, **kwargs):
    settings = dict(arms=('real', 'oversample+classical', 'gan', 'ddpm-filtered'),
                    folds=2, seeds=2, steps=3, bs=8, progress=False)
    return AugmentationStudy(cells or some_cells(), out, **{**settings, **kwargs})


def files(folder): return {f: f.read_bytes() for f in folder.glob('*.json')}


# What is tested


def test_no_test_cell_reaches_a_generator_or_a_classifier(tmp_path, noise, monkeypatch):
    study = a_study(tmp_path)
    trained = []

    def no_training(dls, **kwargs):
        trained.append(dls.train.images.cpu().numpy())
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(512, 4))

    monkeypatch.setattr(augmentation, 'train_classifier', no_training)
    study.run()
    images = study.cells.images
    test = [set(dihedral_hash(images[side['test']])) for side in study.sides]
    train = [set(dihedral_hash(images[side['train']])) for side in study.sides]
    assert len(noise_cells.seen) == 4  # two kinds, two folds
    for seen in noise_cells.seen + trained:
        assert min(len(cells & set(dihedral_hash(seen))) for cells in test) == 0
    for seen in noise_cells.seen:
        assert set(dihedral_hash(seen)) in train


def test_a_generator_that_reproduces_test_cells_is_caught(tmp_path, monkeypatch):
    study = a_study(tmp_path, arms=('gan',))

    def thief(dls, label, **kwargs):
        stolen = encode(study.cells.images[study.sides[0]['test'][:1]])
        return stolen.repeat(len(label), 1, 1, 1).flip(-1), dict(seconds=0)

    use_generator(monkeypatch, thief)
    message = 'test cells are in the training set of fold 0'
    with pytest.raises(ValueError, match=message):
        study.run()


def test_a_turned_twin_across_the_folds_is_caught(tmp_path, noise):
    c = some_cells()
    c.images = np.concatenate([c.images, np.rot90(c.images[:12], axes=(2, 3))])
    c.labels = np.concatenate([c.labels, c.labels[:12]])
    with pytest.raises(ValueError, match='Remove duplicates'):
        a_study(tmp_path, c).run()


def test_every_cell_is_tested_once_and_only_real_ones_are(tmp_path, noise):
    study = a_study(tmp_path)
    table = study.run()
    tested = np.concatenate([side['test'] for side in study.sides])
    assert sorted(tested) == list(range(len(study.cells)))
    for r in table.itertuples():
        counted = sum(c['test'] for c in r.counts.values())
        in_fold = len(study.sides[r.fold]['test'])
        assert len(r.predicted) == counted == in_fold
    predicted = load_records(tmp_path).predicted
    assert all((p >= 0).all() for p in predicted.values())


# What is added


def test_all_arms_reach_the_same_counts(tmp_path, noise, monkeypatch):
    def keep_first(labels, predicted, missing):
        first = [np.flatnonzero(labels == k)[:n] for k, n in enumerate(missing)]
        return np.concatenate(first).astype(int), [1.]*len(missing)

    monkeypatch.setattr(augmentation, 'keep_recognised', keep_first)
    for r in a_study(tmp_path, arms=tuple(arms), seeds=1).run().itertuples():
        real = np.array([c['real'] for c in r.counts.values()])
        after = [c['real'] + c['added'] for c in r.counts.values()]
        fills = arms[r.arm].fill is not None
        assert after == (real + deficit(real)*fills).tolist()


def test_keep_makes_a_class_rare_in_training_only(tmp_path):
    study = a_study(tmp_path, keep={'a': 3}, folds=1)
    side, = study.sides
    count = {k: np.bincount(study.cells.labels[idxs]) for k, idxs in side.items()}
    assert count['train'][:2].tolist() == [3, 13]
    assert count['test'][0] == round(24*.2)


def test_seeds_get_generated_cells_of_their_own(tmp_path, noise):
    study = a_study(tmp_path)
    a, b = (study.added(arms['gan'], 0, seed).images for seed in range(2))
    assert len(a) == len(b) > 0
    assert not set(dihedral_hash(a)) & set(dihedral_hash(b))


def test_the_filter_keeps_what_is_recognised():
    labels = np.array([0, 0, 0, 1, 1, 1, 2])
    predicted = np.array([0, 0, 1, 1, 1, 0, 0])
    chosen, accuracy = keep_recognised(labels, predicted, np.array([3, 1, 2, 0]))
    assert chosen.tolist() == [0, 1, 0, 3]  # repeated, taken, none recognised
    assert accuracy == [2/3, 2/3, 0., None]
    nothing, _ = keep_recognised(labels[:2], np.array([1, 1]), np.array([3, 0]))
    assert nothing.tolist() == []


def test_weights_bring_small_classes_to_the_goal(tmp_path):
    study = a_study(tmp_path, folds=1, goal=16)
    # 19, 13, 6 and 3 cells train
    assert study.class_weights(0).round(2).tolist() == [1, 1.23, 2.67, 5.33]


def test_weights_and_adjustment_reach_the_arms_that_want_them(
        tmp_path, noise, monkeypatch):
    used = {}

    def training(dls, class_weights=None, **kwargs):
        used['loss'] = class_weights
        return None

    def predicting(model, x, weights=1.):
        used['odds'] = weights
        return np.zeros(len(x), int)

    monkeypatch.setattr(augmentation, 'train_classifier', training)
    monkeypatch.setattr(augmentation, 'predict_classes', predicting)
    study = a_study(tmp_path)
    weights = study.class_weights(0)
    study.run_one('real', 0, 0)
    assert used['loss'] is None and used['odds'] == 1
    study.run_one('weights', 0, 0)
    assert (used['loss'] == weights).all() and used['odds'] == 1
    study.run_one('adjusted', 0, 0)
    assert used['loss'] is None and (used['odds'] == weights).all()


# Records


def same_results(a, b):
    a, b = (t.drop(columns='seconds').to_dict('records') for t in (a, b))
    return str(a) == str(b)


def test_a_killed_study_continues_and_finds_the_same(tmp_path, noise, monkeypatch):
    whole = a_study(tmp_path/'whole').run()
    run_one = AugmentationStudy.run_one
    done = []

    def dying(self, **job):
        if len(done) == 5: raise KeyboardInterrupt
        done.append(job)
        return run_one(self, **job)

    monkeypatch.setattr(AugmentationStudy, 'run_one', dying)
    with pytest.raises(KeyboardInterrupt):
        a_study(tmp_path/'killed').run()
    monkeypatch.setattr(AugmentationStudy, 'run_one', run_one)
    before = {f: f.stat().st_mtime_ns for f in (tmp_path/'killed').glob('*=*.json')}
    trained = len(noise_cells.seen)

    again = a_study(tmp_path/'killed').run()
    assert len(before) == 5
    assert all(f.stat().st_mtime_ns == t for f, t in before.items())
    assert same_results(again, whole)
    assert len(noise_cells.seen) - trained <= 3  # the pool in `work/` was not made anew


@pytest.mark.parametrize('share', [0, .5, .99])
def test_damaged_files_of_a_study_are_made_again(tmp_path, noise, share):
    "The table of the cells, a pool of generated cells, and a record, all cut short"
    def run(): return a_study(tmp_path, arms=('ddpm',), folds=2, seeds=1).run()
    whole = run()
    names = 'cells.json', 'work/ddpm-f1.npz', 'arm=ddpm,fold=1,seed=0.json'
    before = {name: (tmp_path/name).read_bytes() for name in names}
    for name, content in before.items():
        (tmp_path/name).write_bytes(content[:int(share*len(content))])
    advice = 'cells.json is damaged: run the study again on the same cells'
    with pytest.raises(ValueError, match=advice):
        load_records(tmp_path)
    with pytest.warns(UserWarning) as said:
        again = run()
    said = ' '.join(str(w.message) for w in said)
    assert all(f'{tmp_path/name} is ' in said for name in names), said
    assert same_results(again, whole)
    assert (tmp_path/'cells.json').read_bytes() == before['cells.json']
    assert not [f for f in tmp_path.rglob('*') if f.suffix in ('.part', '.lock')]


def test_a_generator_is_trained_once_for_several_processes(tmp_path, monkeypatch):
    "The second one waits, says so, and uses the cells of the first"
    def slow(*args, **kwargs):
        time.sleep(.4)
        return noise_cells(*args, **kwargs)
    noise_cells.seen.clear()
    use_generator(monkeypatch, slow)
    studies = [a_study(tmp_path, arms=('ddpm',), progress=False) for _ in range(2)]
    with ThreadPoolExecutor(2) as threads:
        first, second = threads.map(lambda study: study.generated('ddpm', 0), studies)
    assert len(noise_cells.seen) == 1 and (first.images == second.images).all()


def test_a_record_says_what_was_done(tmp_path, noise):
    table = a_study(tmp_path, arms=('ddpm', 'ddpm-filtered')).run()
    plain, filtered = table.iloc[0], table.iloc[1]
    assert plain.counts['d']['real'] == plain.counts['d']['test'] == 2
    assert plain.counts['d']['added'] == deficit([12, 8, 4, 2])[3]
    assert {'seconds', 'predicted', 'generator'} <= set(table.columns)
    assert len(filtered.generator['class_accuracy']) == 4
    settings = json.loads((tmp_path/'settings.json').read_text())
    assert settings['data']['counts'] == dict(zip('abcd', sizes))
    assert settings['ddpm'] == dict(bs=16)


def test_another_study_is_refused_and_leaves_the_folder_as_it_was(tmp_path, noise):
    a_study(tmp_path).run()
    before = files(tmp_path)
    c = some_cells()
    reversed_images = np.concatenate([c.images[:24][::-1], c.images[24:]])
    c.images = reversed_images  # the same cells, the first class in another order

    own = 'give this study a folder of its own'
    with pytest.raises(ValueError, match=f'other settings .steps.*{own}'):
        a_study(tmp_path, steps=4).run()
    with pytest.raises(ValueError, match='other settings .gan'):
        a_study(tmp_path, gan=dict(epochs=9)).run()
    for other in (some_cells(seed=1), c):
        with pytest.raises(ValueError, match=f'other cells, .* another order.*{own}'):
            a_study(tmp_path, other).run()
    with pytest.raises(ValueError, match='of other folds'):
        a_study(tmp_path, folds=4).run()
    assert files(tmp_path) == before
    assert len(load_records(tmp_path).predicted) == 4


def test_a_first_edition_is_read_and_not_continued(tmp_path, noise):
    study = a_study(tmp_path, arms=('real', 'gan'))
    table = study.run()
    settings = json.loads((tmp_path/'settings.json').read_text())
    expected = load_records(tmp_path)
    for f in [*tmp_path.glob('*=*.json'), tmp_path/'settings.json']:
        f.unlink()
    for row in table.to_dict('records'):
        if row['arm'] == 'gan':
            row['generator'] = dict(painted=3, recognised=[1.])
        else:
            del row['generator']
        name = f"{row['arm']}-f{row['fold']}-s{row['seed']}.json"
        (tmp_path/name).write_text(json.dumps(dict(row, settings=settings)))

    found = load_records(tmp_path)
    for arm, predicted in expected.predicted.items():
        assert (found.predicted[arm] == predicted).all()
    assert found.settings == settings
    of_gan = next(r for r in found.records if r['arm'] == 'gan')
    assert of_gan['generator'] == dict(generated=3, class_accuracy=[1.])

    before = files(tmp_path)
    with pytest.raises(ValueError, match='first edition'):
        study.run()
    assert files(tmp_path) == before


def test_kept_pools_are_made_anew_for_other_settings(tmp_path, noise):
    a_study(tmp_path).generated('gan', 0)
    a_study(tmp_path).generated('gan', 0)
    assert len(noise_cells.seen) == 1
    a_study(tmp_path, pool=3).generated('gan', 0)
    assert len(noise_cells.seen) == 2


mistakes = [
    (dict(arms=('real', 'magic')), "Unknown arm 'magic'.*oversample"),
    (dict(keep={'z': 3}), "Unknown class 'z'.*a, b"),
    (dict(folds=5), 'smallest class has 4.*k=5'),
    (dict(keep={'a': 0}), "keep.'a'.=0 should be"),
    (dict(goal=0), 'goal=0 should'),
    (dict(steps=0), 'steps=0 should'),
    (dict(steps=2.5), 'steps=2.5 should'),
    (dict(seeds=True), 'seeds=True should'),
    (dict(lr=float('nan')), 'lr=nan should'),
    (dict(arms=''), 'Name some arms'),
    (dict(ddpm=dict(epochs=0)), 'ddpm epochs=0 should'),
    (dict(gan=dict(lr='a')), "gan lr='a' should"),
    (dict(goal=10**7), 'GB of memory'),
    (dict(network='vgg11'), 'vgg11 is not a ResNet'),
    (dict(network='magic'), 'magic is not a ResNet'),
]


@pytest.mark.parametrize('kwargs, message', mistakes)
def test_mistakes_are_answered_with_a_sentence(tmp_path, kwargs, message):
    with pytest.raises(ValueError, match=message):
        a_study(tmp_path/'s', **kwargs)
    assert not (tmp_path/'s').exists()


def test_arms_may_be_one_text(tmp_path):
    assert a_study(tmp_path, arms='real, gan').arms == ('real', 'gan')


@pytest.mark.parametrize('kwargs, message', [
    (dict(folds=[2]), 'no fold 2: this study has 2, numbered 0 to 1'),
    (dict(seeds=[0, 5]), 'no seed 5'),
])
def test_there_are_only_so_many_folds_and_seeds(tmp_path, noise, kwargs, message):
    with pytest.raises(ValueError, match=message):
        a_study(tmp_path).run(**kwargs)
    assert not list(tmp_path.iterdir())


def test_generated_cells_are_not_studied(tmp_path):
    c = some_cells()
    c.files = (*(f'a/{i}.png' for i in range(51)), 'd/synthetic-0-00003.png')
    message = '1 of these cells are generated ones .*synthetic-0-00003.png'
    with pytest.raises(ValueError, match=message):
        a_study(tmp_path, c)


def test_one_class_is_no_study(tmp_path):
    with pytest.raises(ValueError, match='two classes'):
        a_study(tmp_path, some_cells((9,)))


def test_labels_as_text_and_back():
    n = np.random.default_rng(0).integers(-1, 62, 500)
    assert (decode_labels(encode_labels(n)) == n).all() and len(encode_labels(n)) == 500


def test_missing_and_unfinished_studies(tmp_path, noise):
    with pytest.raises(FileNotFoundError, match='holds no study'):
        load_records(tmp_path)
    study = a_study(tmp_path)
    study.run(folds=[0])
    replace(study, arms=('real',)).run(folds=[1], seeds=[0])
    with pytest.warns(UserWarning, match='not done in every fold'):
        done = load_records(tmp_path)
    assert list(done.predicted) == ['real']
    assert done.predicted['real'].shape == (1, len(study.cells))


# Scores and intervals


def results_of(truth, predicted, classes='abc'):
    fold = np.zeros(len(truth), int)
    return StudyResults(list(classes)[:truth.max() + 1], truth, fold, predicted, [], {})


def made_up(n=(200, 60, 15), seeds=3, right=.8, seed=0, names=('one', 'two')):
    rng = np.random.default_rng(seed)
    truth = np.repeat(np.arange(len(n)), n)
    predicted = {}
    for name in names:
        is_right = rng.random((seeds, len(truth))) < right
        random = rng.integers(0, len(n), (seeds, len(truth)))
        predicted[name] = np.where(is_right, truth, random)
    return results_of(truth, predicted)


def test_none_of_fifteen_is_not_certain():
    s = made_up((100, 15), seeds=2)
    s.predicted['one'][:] = 0
    t = arm_scores(s, draws=50).query("arm == 'one' and cls == 'b'")
    t = t.set_index('measure')
    assert t.value.recall == 0 and t.high.recall > .2
    assert (t.low.recall, t.high.recall) == pytest.approx(wilson(0, 15))
    assert t.value.f1 == 0 and np.isnan(t.low.f1) and np.isnan(t.value.precision)

    d = with_verdicts(arm_scores(s, against='one', draws=50))
    d = d.query("cls == 'b'").set_index('measure')
    assert d.says.f1 == d.says.precision == 'undefined'
    assert 0 < d.value.recall - d.low.recall
    assert pivot_scores(arm_scores(s, draws=9), 'precision').loc['one', 'b'] == '–'


def equal_arms(seed, n=(150, 50, 20), training=.3):
    "Two arms of equal worth that share hard cells; trainings differ by class"
    rng = np.random.default_rng(seed)
    truth = np.repeat(np.arange(len(n)), n)
    hard = rng.normal(1.2, 1.5, len(truth))

    def predictions():
        ability = hard + rng.normal(0, training, len(n))[truth]
        is_right = ability + rng.normal(0, .7, len(truth)) > 0
        return np.where(is_right, truth, (truth + 1) % len(n))

    predicted = {}
    for name in ('one', 'two'):
        predicted[name] = np.array([predictions() for _ in range(3)])
    return results_of(truth, predicted)


def test_equal_arms_seldom_differ_significantly():
    tables = [with_verdicts(arm_scores(equal_arms(i), against='one', draws=100))
              for i in range(40)]
    table = pd.concat(tables)
    significant = table.says.isin(['higher', 'lower']).groupby(table.measure).mean()
    assert .01 < significant.mean() < .12 and significant['macro F1'] < .12, significant


def test_value_is_the_mean_over_seeds():
    s = made_up()
    t = arm_scores(s, draws=20)
    matrices = [confusion_matrix(s.truth, p) for p in s.predicted['two']]
    expected = np.mean([class_scores(c)['f1'][2] for c in matrices])
    row = t[(t.arm == 'two') & (t.measure == 'f1') & (t.cls == 'c')]
    assert np.isclose(row.value.item(), expected)


def test_interval_of_a_recall_is_the_binomial_one():
    s = made_up((400, 60), seeds=1, names=('one',))
    s.predicted['one'][0, 400:] = [1]*45 + [0]*15
    recall = bootstrap(s, draws=3000)['one']['recall'][1:, 1]
    assert recall.std() == pytest.approx((.75*.25/60)**.5, rel=.08)


def test_three_equal_seeds_make_no_narrower_interval_than_one():
    one = made_up(seeds=1, names=('x',))
    three = replace(one, predicted={'x': one.predicted['x'].repeat(3, 0)})

    def width(s):
        rows = arm_scores(s, draws=400).query("measure == 'recall' and cls == 'c'")
        return (rows.high - rows.low).item()

    assert width(three) == pytest.approx(width(one), rel=.15)


def test_differences_are_paired():
    s = made_up(seeds=1)
    one = s.predicted['one']
    better = one.copy()
    wrong = np.flatnonzero(better[0] != s.truth)[:12]
    better[0, wrong] = s.truth[wrong]
    s.predicted = dict(one=one, two=better, same=one)

    d = arm_scores(s, against='one', draws=300)
    assert set(d.arm) == {'two', 'same'}
    # A recall of 1 gets an interval of some width even for equal arms
    same = d[(d.arm == 'same') & (d.measure != 'recall')]
    assert (same[['value', 'low', 'high']] == 0).all(axis=None)

    accuracy = "arm == 'two' and measure == 'accuracy'"
    row = d.query(accuracy).iloc[0]
    alone = arm_scores(s, draws=300).query(accuracy).iloc[0]
    assert verdict(row.low, row.high) == 'higher'
    assert row.high - row.low < alone.high - alone.low
    with pytest.raises(ValueError, match="no arm 'three'.*one, two"):
        arm_scores(s, against='three')


def test_a_null_result_is_not_significant():
    d = arm_scores(made_up(n=(300, 300, 300)), against='one', draws=300)
    overall = with_verdicts(d).query("cls == 'all'")
    assert set(overall.says) == {'not significant'}
    assert verdict(.1, .2) == 'higher' and verdict(-.2, -.1) == 'lower'
    assert verdict(-.1, .1) == 'not significant' and verdict(np.nan, 1) == 'undefined'


def test_tables_and_figures(tmp_path, noise):
    a_study(tmp_path, arms=('real', 'gan')).run()
    text = write_results(tmp_path)
    assert text.startswith('Differences between arms') and 'no verdict' not in text
    assert text.index('gan against real: ') < text.index('macro F1 of the arms')
    written = text[text.index('Written:'):].split()[1:]
    assert len(written) == 5 and all(Path(file).is_file() for file in written)
    words = {'higher', 'lower', 'not significant', 'undefined'}
    assert set(pd.read_csv(tmp_path/'differences.csv').says) <= words
    assert len(pd.read_csv(tmp_path/'scores.csv')) == 2*(3*4 + 3)
    for name in ('scores', 'confusion'):
        assert (tmp_path/f'{name}.png').stat().st_size > 5000


def test_a_study_of_one_seed_says_so(tmp_path, noise):
    a_study(tmp_path, arms=('real', 'gan'), seeds=1).run()
    assert 'read no verdict into them' in write_results(tmp_path)


def test_contrasts_find_what_was_put_in():
    truth = np.repeat([0, 1], 200)
    wrong = np.random.default_rng(0).random((2, 400)) < .3
    poor = np.where(wrong, 1 - truth, truth)
    predicted = {'real': poor, 'gan': poor, 'ddpm': np.array([truth, truth])}
    fold = np.zeros(400, int)
    table = contrasts(StudyResults(['a', 'b'], truth, fold, predicted, [], {}))
    table = table[table.measure == 'macro F1'].set_index(['arm', 'against'])
    assert list(table.index) == [('ddpm', 'real'), ('gan', 'real'), ('ddpm', 'gan')]
    assert table.planned.all()
    assert list(table.says) == ['higher', 'not significant', 'higher']
    assert (table.p.round(3) == [.002, 1, .002]).all()
    assert (table.p_holm.round(3) == [.006, 1, .006]).all()
    assert table.value['ddpm', 'real'] == pytest.approx(.3, abs=.05)


def test_holm_is_that_of_its_paper():
    corrected = holm(np.array([.01, .04, .03, .005]))
    assert corrected.round(3).tolist() == [.03, .06, .06, .02]


@pytest.mark.parametrize('names, pairs', [
    (['classical', 'weights'], [('weights', 'classical')]),
    (['real', 'weights', 'ddpm'],
     [('ddpm', 'real'), ('ddpm', 'weights'), ('weights', 'real')]),
    (['real'], []),
])
def test_planned_contrasts_come_first(names, pairs):
    assert contrast_pairs(names) == pairs


def test_one_seed_gives_no_verdict():
    row = dict(measure='macro F1', arm='ddpm', against='real', value=.1, low=.05,
               high=.2, p=.001, p_holm=.002, says='higher')
    table = pd.DataFrame([row])
    assert 'read no verdict into them' in contrast_report(table, seeds=1)
    assert 'verdict' not in contrast_report(table, seeds=3)


# Caches and files of a study


def damage(file, how):
    content = file.read_bytes()
    file.write_bytes(content[:len(content)//2] if how == 'cut' else b'')


@pytest.mark.parametrize('how', ['cut', 'empty'])
def test_a_damaged_cache_is_made_anew(tmp_path, noise, how):
    first = a_study(tmp_path).generated('gan', 0)
    damage(tmp_path/'work'/'gan-f0.npz', how)
    with pytest.warns(UserWarning, match='gan-f0.npz is damaged'):
        again = a_study(tmp_path).generated('gan', 0)
    assert (again.images == first.images).all()
    assert not list(tmp_path.rglob('*.part'))


@pytest.mark.parametrize('how', ['cut', 'empty'])
def test_a_damaged_table_of_cells_is_written_anew(tmp_path, noise, how):
    study = a_study(tmp_path, arms=('real',))
    study.run()
    whole = (tmp_path/'cells.json').read_bytes()
    damage(tmp_path/'cells.json', how)
    with pytest.raises(ValueError, match='cells.json is damaged: run the study again'):
        load_records(tmp_path)
    study.run()
    assert (tmp_path/'cells.json').read_bytes() == whole


@pytest.mark.parametrize('error', [NotImplementedError, RuntimeError, SyntaxError])
def test_a_cache_heals_whatever_the_error(tmp_path, monkeypatch, error):
    def fails(*args): raise error('a flipped bit')
    monkeypatch.setattr(np, 'load', fails)
    with pytest.warns(UserWarning, match='is damaged and made again'):
        assert augmentation.read_arrays(tmp_path/'a.npz', '') is None


# Checkpoints

@pytest.fixture
def checkpoints(monkeypatch):
    "Trainings only leave their checkpoints"
    used = []
    def train(dls, checkpoint, **kwargs):
        checkpoint.parent.mkdir(exist_ok=True)
        checkpoint.write_text('hours of work')
        used.append(checkpoint)
    monkeypatch.setattr(augmentation, 'train_classifier', train)
    zeros = lambda classifier, x, *_: np.zeros(len(x), int)
    monkeypatch.setattr(augmentation, 'predict_classes', zeros)
    return used


def full_disk(*args, **kwargs): raise OSError(28, 'No space left on device')


def test_a_checkpoint_stays_until_its_result_is_written(tmp_path, noise, checkpoints,
                                                         monkeypatch):
    study = a_study(tmp_path, arms=('real',), seeds=1)
    with monkeypatch.context() as m, pytest.raises(OSError):
        m.setattr(augmentation.Records, 'write', full_disk)
        study.run()
    assert checkpoints[0].exists()
    with monkeypatch.context() as m, pytest.raises(OSError):
        m.setattr(augmentation, 'write_whole', full_disk)
        study.work('gan-f0-predicted', lambda *_: study.predict_pool('gan', 0), 'x', 0)
    assert all(file.exists() for file in checkpoints)
    study.run()
    study.work('gan-f0-predicted', study.predict_pool, 'gan', 0)
    assert len(checkpoints) > 2 and not list(tmp_path.rglob('*.pt'))

    # A kill between the record and its checkpoint
    checkpoints[0].write_text('')
    study.run()
    assert not checkpoints[0].exists()


def test_the_filter_has_a_checkpoint_of_its_own(tmp_path, noise, checkpoints):
    arms = 'oversample+classical', 'gan'
    study = a_study(tmp_path, arms=arms, seeds=1)
    study.predict_pool('gan', 0)
    study.run_one('oversample+classical', 0, 0)
    assert len({file.name for file in checkpoints}) == 2


# Real generators, small


def test_both_generators_make_cells_for_a_fold(tmp_path):
    study = a_study(
        tmp_path, some_cells((24, 16, 8, 6)), arms=('gan', 'ddpm'), seeds=1,
        ddpm=dict(epochs=1, dim=8, patch=1, sampling_steps=3),
        gan=dict(epochs=1, dim=4, disc_dim=4, bs=8))
    for r in study.run().itertuples():
        cost = r.generator
        added = sum(c['added'] for c in r.counts.values())
        assert cost['parameters'] > 0 and cost['seconds'] > 0
        assert cost['generated'] == 2*added
    file = tmp_path/'work'/'ddpm-f0.npz'
    before = file.stat().st_mtime_ns
    study.generated('ddpm', 0)
    assert file.stat().st_mtime_ns == before

    table = study.copy_table('ddpm')
    assert table.equals(load_copies(tmp_path, 'ddpm')) and (table.ratio > 0).all()


# The command line


def test_command(tmp_path):
    args = ['study', 'simulated-jurkat', '-n', 70, '--size', 28, '--folds', 2,
            '--seeds', 1, '--steps', 2, '--out', tmp_path/'study']

    def run(*more): return CliRunner().invoke(app, [str(a) for a in (*args, *more)])

    r = run('--arms', 'real,weights')
    assert r.exit_code == 0 and 'balanced accuracy' in r.output, r.output
    for more, words in [
        (('--arms', 'real,magic'), "Unknown arm 'magic'"),
        (('--keep', 'a:5'), '--keep a:5 should look like'),
        (('--steps', 3, '--arms', 'real'), 'other settings (steps'),
            ((), 'ddpm generator cannot be built'),
    ]:
        r = run(*more)
        assert r.exit_code == 1 and words in r.output, r.output


# What ships

shipped = sorted((results_folder/'studies').glob('*/cells.json'))
record_keys = {'arm', 'fold', 'seed', 'counts', 'settings', 'seconds', 'predicted'}


@pytest.mark.parametrize('folder', [f.parent for f in shipped], ids=lambda f: f.name)
def test_shipped_records_are_whole(folder):
    study = load_records(folder)
    by_fill = {}
    for r in study.records:
        assert record_keys <= set(r)
        tested = study.truth[study.fold == r['fold']]
        counts = np.bincount(tested, minlength=len(study.classes)).tolist()
        assert [c['test'] for c in r['counts'].values()] == counts
        fill = arms[r['arm']].fill
        assert by_fill.setdefault(fill, r['settings']) == r['settings']
    assert all((p[:, study.tested] >= 0).all() for p in study.predicted.values())


def test_the_jurkat_study_has_five_folds_and_three_seeds_of_six_arms():
    study = load_records(results_folder/'studies'/'jurkat')
    assert study.fold.max() == 4 and len(study.truth) == 7915
    for arm in ('real', 'weights', 'oversample+classical', 'gan', 'ddpm',
                'ddpm-filtered'):
        assert len(study.predicted[arm]) >= 3
    copies = load_copies(results_folder/'studies'/'jurkat', 'gan')
    assert {'generated', 'held_out', 'ratio', 'nearer', 'diversity'} < set(copies)
