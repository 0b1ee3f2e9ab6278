"The augmentation study: what is added, who is tested, what is kept, and what the tables say"
import json
from types import SimpleNamespace
import numpy as np, pandas as pd, pytest, torch
import torch.nn.functional as F
from PIL import Image
from sklearn.metrics import precision_recall_fscore_support, accuracy_score, balanced_accuracy_score
from typer.testing import CliRunner
from cell_diffusion import augmentation
from cell_diffusion.augmentation import *
from cell_diffusion.cli import app
from cell_diffusion.core import encode, generator
from cell_diffusion.data import CellImages, load_cells
from cell_diffusion.ddpm import weights_folder
from cell_diffusion.evaluation import positions, wilson

sizes = (24, 16, 8, 4)

def some_cells(sizes=sizes, size=16, channels=2, seed=0):
    "Noise with a brighter half for each class: easy to tell apart, no two alike"
    rng, labels = np.random.default_rng(seed), np.repeat(np.arange(len(sizes)), sizes)
    images = rng.integers(0, 120, (len(labels), channels, size, size))
    for i, k in enumerate(labels): images[i, :, :2 + 4*k] += 100
    return SimpleNamespace(images=images.astype(np.uint8), labels=labels, names=tuple('abcdefgh'[:len(sizes)]))

def fake_maker(dls, label, seed=0, progress=False, epochs=1, **kwargs):
    "A generator that has learned nothing: noise"
    fake_maker.seen.append(np.asarray(dls.cells.images))
    return torch.rand(len(label), *dls.cells.images.shape[1:], generator=generator(seed))*2 - 1, dict(seconds=.1, parameters=1)
fake_maker.seen = []

@pytest.fixture
def makers(monkeypatch):
    fake_maker.seen.clear()
    monkeypatch.setattr(augmentation, 'makers', dict(ddpm=fake_maker, gan=fake_maker))

def a_study(out, cells=None, **kwargs):
    return AugmentationStudy(cells or some_cells(), out, **{'arms': ('real', 'oversample+classical', 'gan', 'ddpm-filtered'), 'folds': 2, 'seeds': 2, 'steps': 3, 'bs': 8, 'progress': False, **kwargs})

# what is added

def test_every_class_reaches_the_goal():
    assert lacking([10, 2, 7]).tolist() == [0, 5, 0]                    # the median
    assert lacking([10, 2, 7], goal=8).tolist() == [0, 6, 1]
    assert lacking([0, 5], 5).tolist() == [5, 0]

def test_jitter_keeps_shape_and_range_and_obeys_its_seed():
    x = encode(some_cells().images)
    a, b, c = (jitter(x, generator(s)) for s in (0, 0, 1))
    assert a.shape == x.shape and a.min() >= -1 and a.max() <= 1
    assert torch.equal(a, b) and not torch.equal(a, c)

def test_jitter_turns_about_the_center():
    x = torch.full((64, 1, 21, 21), -1.); x[:, :, 10, 10] = 1            # one bright pixel in the middle
    y = jitter(x, generator(0), light=0)
    assert (y.flatten(1).argmax(1) == 10*21 + 10).all()

def test_stream_deals_out_steps_not_passes():
    c = some_cells()
    s = augmentation.Stream(c.images, c.labels, c.names, steps=9, bs=16, seed=1)
    batches = list(s)
    assert len(s) == len(batches) == 9 and all(len(y) == 16 for _, y in batches)
    order = s.order(generator(0)); times = np.bincount(order[:9*16], minlength=len(c.labels))
    assert set(times) <= {2, 3}                                          # 144 of 52 cells: nobody is left out, nobody comes four times
    assert all(torch.equal(a[1], b[1]) for a, b in zip(augmentation.Stream(c.images, c.labels, c.names, 4, 8, 3), augmentation.Stream(c.images, c.labels, c.names, 4, 8, 3)))

@pytest.mark.parametrize('name,channels,size', [('cell', 1, 16), ('cell', 2, 40), ('cell', 5, 32), ('resnet18', 2, 40), ('resnet18', 3, 64)])
def test_adapted_resnet_takes_small_images_of_any_channels(name, channels, size):
    net = adapted_resnet(name, 'abc', channels, size).eval()
    assert net(torch.zeros(2, channels, size, size)).shape == (2, 3)

def test_training_learns_what_is_easy_and_repeats_itself():
    c = some_cells((20, 20))
    stream = lambda: augmentation.Stream(c.images, c.labels, c.names, 30, 16, 0)
    a, b = (train_resnet(stream(), lr=4e-3, seed=0) for _ in range(2))
    x = encode(c.images)
    with torch.no_grad(): assert torch.allclose(a(x), b(x), atol=1e-5) and (a(x).argmax(1).numpy() == c.labels).mean() > .9

# hygiene

def test_marks_are_the_same_in_all_eight_positions():
    x = some_cells().images[:6]
    for p in positions(torch.from_numpy(x)): assert (cell_marks(p) == cell_marks(x)).all()
    assert len(set(cell_marks(x))) == 6

@pytest.mark.parametrize('position', range(8))
def test_a_planted_leak_is_caught(position):
    x = some_cells().images
    no_leak(x[:30], x[30:])
    with pytest.raises(ValueError, match='1 of the 22 test cells .* training set of somebody .* number 5'):
        no_leak(np.concatenate([x[:30], positions(torch.from_numpy(x[35:36]))[position]]), x[30:], 'somebody')

def test_no_test_cell_reaches_a_generator_or_a_classifier(tmp_path, makers, monkeypatch):
    study, trained = a_study(tmp_path), []
    monkeypatch.setattr(augmentation, 'train_resnet', lambda train, *args: trained.append(train.images.numpy()) or torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(512, 4)))
    study.run()
    test = [set(cell_marks(study.cells.images[s['test']])) for s in study.sides()]
    assert len(fake_maker.seen) == 4                                     # two kinds, two folds
    assert all(min(len(test[f] & set(cell_marks(seen))) for f in range(2)) == 0 for seen in fake_maker.seen + trained)
    for seen in fake_maker.seen: assert any(set(cell_marks(seen)) == set(cell_marks(study.cells.images[s['train']])) for s in study.sides())

def test_a_generator_that_hands_on_test_cells_is_caught(tmp_path, monkeypatch):
    study = a_study(tmp_path, arms=('gan',))
    thief = lambda dls, label, **kwargs: (encode(study.cells.images[study.sides()[0]['test'][:1]]).repeat(len(label), 1, 1, 1).flip(-1), dict(seconds=0))
    monkeypatch.setattr(augmentation, 'makers', dict(gan=thief, ddpm=thief))
    with pytest.raises(ValueError, match='test cells are in the training set of fold 0'): study.run()

def test_a_turned_twin_across_the_folds_is_caught(tmp_path, makers):
    c = some_cells()
    c.images = np.concatenate([c.images, np.rot90(c.images[:12], axes=(2, 3))]); c.labels = np.concatenate([c.labels, c.labels[:12]])
    with pytest.raises(ValueError, match='Remove duplicates'): a_study(tmp_path, c).run()

def test_every_cell_is_tested_once_and_only_real_ones_are(tmp_path, makers):
    study = a_study(tmp_path); records = study.run()
    tested = np.concatenate([s['test'] for s in study.sides()])
    assert sorted(tested) == list(range(len(study.cells)))
    for r in records: assert len(r['predicted']) == sum(c['test'] for c in r['counts'].values()) == len(study.sides()[r['fold']]['test'])
    assert all((p >= 0).all() for p in load_records(tmp_path)['predicted'].values())

def test_all_arms_reach_the_same_counts(tmp_path, makers, monkeypatch):
    monkeypatch.setattr(augmentation, 'recognised_first', lambda images, labels, judge, lack: (np.concatenate([np.flatnonzero(labels == k)[:n] for k, n in enumerate(lack)]).astype(int), [1.]*len(lack)))
    for r in a_study(tmp_path, arms=tuple(arms)).run():
        after = [c['real'] + c['added'] for c in r['counts'].values()]
        real = [c['real'] for c in r['counts'].values()]
        assert after == (real if arms[r['arm']].get('fill') is None else (np.array(real) + lacking(real)).tolist())

def test_keep_makes_a_class_rare_in_training_only(tmp_path):
    study = a_study(tmp_path, keep={'a': 3}, folds=1)
    side, = study.sides()
    count = lambda k: np.bincount(study.cells.labels[side[k]], minlength=4).tolist()
    assert count('train')[0] == 3 and count('test')[0] == round(24*.2) and count('train')[1] == 13

def test_seeds_get_painted_cells_of_their_own(tmp_path, makers):
    study = a_study(tmp_path)
    a, b = (study.filling(arms['gan'], 0, s)[0] for s in range(2))
    assert len(a) == len(b) > 0 and not set(cell_marks(a)) & set(cell_marks(b))

class Judge(torch.nn.Module):
    "Says 1 for a bright image, else 0"
    def __init__(self): super().__init__(); self.p = torch.nn.Parameter(torch.zeros(1))
    def forward(self, x): m = x.mean((1, 2, 3)); return torch.stack([-m, m, m*0 - 9], 1) + self.p

def test_the_filter_keeps_what_is_recognised():
    x = np.array([0, 0, 255, 255, 255, 0, 9], dtype=np.uint8)[:, None, None, None]*np.ones((1, 1, 4, 4), dtype=np.uint8)
    chosen, share = recognised_first(x, np.array([0, 0, 0, 1, 1, 1, 2]), Judge(), np.array([3, 1, 2]))
    assert chosen.tolist() == [0, 1, 0, 3] and share == [2/3, 2/3, 0.]    # repeated, taken, none recognised

# records

def test_a_killed_study_goes_on_and_finds_the_same(tmp_path, makers, monkeypatch):
    whole = a_study(tmp_path/'whole').run()
    run_one, done = AugmentationStudy.run_one, []
    def dying(self, *job):
        if len(done) == 5: raise KeyboardInterrupt
        done.append(job); return run_one(self, *job)
    monkeypatch.setattr(AugmentationStudy, 'run_one', dying)
    with pytest.raises(KeyboardInterrupt): a_study(tmp_path/'killed').run()
    monkeypatch.setattr(AugmentationStudy, 'run_one', run_one)
    before = {f: f.stat().st_mtime_ns for f in (tmp_path/'killed').glob('*-f*.json')}
    again = a_study(tmp_path/'killed').run()
    assert len(before) == 5 and all(f.stat().st_mtime_ns == t for f, t in before.items())
    drop = lambda r: {k: v for k, v in r.items() if k != 'seconds'}
    assert [drop(r) for r in again] == [drop(r) for r in whole]

def test_a_record_says_what_was_done(tmp_path, makers):
    r, filtered = a_study(tmp_path, arms=('ddpm', 'ddpm-filtered')).run()[:2]
    assert json.loads((tmp_path/'ddpm-f0-s0.json').read_text()) == r
    assert {'arm', 'fold', 'seed', 'counts', 'settings', 'seconds', 'predicted', 'generator'} <= set(r)
    assert r['counts']['d']['real'] == r['counts']['d']['test'] == 2 and r['counts']['d']['added'] == lacking([12, 8, 4, 2])[3]
    assert len(filtered['generator']['recognised']) == 4            # how many were kept is up to the judge
    assert r['settings']['data']['counts'] == dict(zip('abcd', sizes))

def test_another_study_is_refused(tmp_path, makers):
    a_study(tmp_path).run()
    with pytest.raises(ValueError, match='other settings .steps.: give this study a folder of its own'): a_study(tmp_path, steps=4).run()
    with pytest.raises(ValueError, match='other settings .gan.'): a_study(tmp_path, gan=dict(epochs=9)).run()

def test_a_refused_study_leaves_the_other_as_it_was(tmp_path, makers):
    a_study(tmp_path).run()
    before, c = {f: f.read_bytes() for f in tmp_path.glob('*.json')}, some_cells()
    turned = SimpleNamespace(images=np.concatenate([c.images[:24][::-1], c.images[24:]]), labels=c.labels, names=c.names)     # the same cells, the first class in another order
    for other in (some_cells(seed=1), turned):
        with pytest.raises(ValueError, match='other cells, of the same in another order, or of other folds'): a_study(tmp_path, other).run()
    with pytest.raises(ValueError, match='of other folds'): a_study(tmp_path, folds=4).run()
    assert {f: f.read_bytes() for f in tmp_path.glob('*.json')} == before and len(load_records(tmp_path)['predicted']) == 4

def test_adjusted_raises_the_odds_of_small_classes(tmp_path, makers):
    study = a_study(tmp_path, folds=1, goal=16)
    assert study.weights(0).round(2).tolist() == [1, 1.23, 2.67, 5.33]          # 19, 13, 6 and 3 train
    class Scores(torch.nn.Module):
        def __init__(self): super().__init__(); self.p = torch.nn.Parameter(torch.zeros(1))
        def forward(self, x): return x + self.p
    scores = torch.tensor([[1., 0, 0, -.5], [9., 0, 0, 0]])
    assert called(Scores(), scores).tolist() == [0, 0] and called(Scores(), scores, study.weights(0)).tolist() == [3, 0]

@pytest.mark.parametrize('kwargs,message', [(dict(arms=('real', 'magic')), "Unknown arm 'magic'.*oversample"), (dict(keep={'z': 3}), "Unknown class 'z'.*a, b"),
                                            (dict(folds=5), 'smallest class has 4.*k=5'), (dict(keep={'a': 0}), "keep.'a'. must be 1 or more, got 0"), (dict(goal=0), 'goal must be 1'),
                                            (dict(steps=0), 'steps must be 1'), (dict(network='vgg11'), 'vgg11 is not a ResNet'), (dict(network='magic'), 'magic is not a ResNet')])
def test_mistakes_are_answered_with_a_sentence(tmp_path, kwargs, message):
    with pytest.raises(ValueError, match=message): a_study(tmp_path, **kwargs)

def test_arms_may_be_one_text(tmp_path): assert a_study(tmp_path, arms='real, gan').arms == ('real', 'gan')

@pytest.mark.parametrize('kwargs,message', [(dict(folds=[2]), 'no fold 2: this study has 2, numbered 0 to 1'), (dict(seeds=[0, 5]), 'no seed 5')])
def test_there_are_only_so_many_folds_and_seeds(tmp_path, makers, kwargs, message):
    with pytest.raises(ValueError, match=message): a_study(tmp_path).run(**kwargs)
    assert not (tmp_path/'cells.json').exists()

def test_generated_cells_are_not_studied(tmp_path):
    c = some_cells(); c.files = tuple(f'a/{i}.png' for i in range(51)) + ('d/synthetic-0-00003.png',)
    with pytest.raises(ValueError, match='1 of these cells are generated ones .*synthetic-0-00003.png'): a_study(tmp_path, c)

def test_one_class_is_no_study(tmp_path):
    with pytest.raises(ValueError, match='two classes'): a_study(tmp_path, some_cells((9,)))

def test_letters_and_numbers():
    n = np.random.default_rng(0).integers(0, 62, 500)
    assert (numbers(letters(n)) == n).all() and len(letters(n)) == 500

def test_missing_and_unfinished_studies(tmp_path, makers):
    with pytest.raises(FileNotFoundError, match='holds no study'): load_records(tmp_path)
    study = a_study(tmp_path); study.run(folds=[0]); study.run_one('real', 1, 0)
    with pytest.warns(UserWarning, match='not done in every fold'): done = load_records(tmp_path)
    assert list(done['predicted']) == ['real'] and done['predicted']['real'].shape == (1, len(study.cells))

# scores

def made_up(n=(200, 60, 15), seeds=3, right=.8, seed=0, arms=('one', 'two')):
    rng, truth = np.random.default_rng(seed), np.repeat(np.arange(len(n)), n)
    guess = lambda: np.where(rng.random((seeds, len(truth))) < right, truth, rng.integers(0, len(n), (seeds, len(truth))))
    return dict(classes=list('abc')[:len(n)], truth=truth, fold=np.zeros(len(truth), int), records=[], predicted={a: guess() for a in arms})

def test_scores_are_scikit_learns():
    s = made_up()
    for p in s['predicted']['one']:
        ours, (precision, recall, f1, _) = class_scores(confusion(s['truth'], p, 3)), precision_recall_fscore_support(s['truth'], p)
        assert np.allclose(ours['precision'], precision) and np.allclose(ours['recall'], recall) and np.allclose(ours['f1'], f1)
        assert np.isclose(ours['accuracy'], accuracy_score(s['truth'], p)) and np.isclose(ours['balanced accuracy'], balanced_accuracy_score(s['truth'], p))

def test_a_class_that_is_never_called_has_no_precision():
    s = class_scores(confusion(np.array([0, 0, 1]), np.array([0, 0, 0]), 2))
    assert s['precision'][0] == 2/3 and np.isnan(s['precision'][1]) and s['f1'][1] == 0 and s['macro F1'] == .4

def test_a_class_that_is_not_tested_is_left_out_of_means():
    truth, said = np.array([0, 0, 1]), np.array([0, 2, 1])
    s = class_scores(confusion(truth, said, 3))
    assert np.isnan(s['recall'][2]) and s['balanced accuracy'] == balanced_accuracy_score(truth, said) == .75

def test_none_of_fifteen_is_not_certain():
    s = made_up((100, 15), seeds=2); s['predicted']['one'][:] = 0
    t = arm_scores(s, draws=50).query("arm == 'one' and cls == 'b'").set_index('measure')
    assert t.value.recall == 0 and (t.low.recall, t.high.recall) == pytest.approx(wilson(0, 15)) and t.high.recall > .2
    assert t.value.f1 == 0 and np.isnan(t.low.f1) and np.isnan(t.value.precision)
    d = judged(arm_scores(s, against='one', draws=50)).query("cls == 'b'").set_index('measure')
    assert d.says.f1 == d.says.precision == 'undefined' and 0 < d.value.recall - d.low.recall and '–' in wide(arm_scores(s, draws=9), 'precision').loc['one', 'b']

def equal_arms(seed, n=(150, 50, 20), training=.3):
    "Two arms of equal worth: cells are hard for both, and a training is a little better or worse at a class"
    rng, truth = np.random.default_rng(seed), np.repeat(np.arange(len(n)), n)
    hard = rng.normal(1.2, 1.5, len(truth))
    guess = lambda: np.where(hard + rng.normal(0, training, len(n))[truth] + rng.normal(0, .7, len(truth)) > 0, truth, (truth + 1) % len(n))
    return dict(classes=list('abc'), truth=truth, fold=np.zeros(len(truth), int), records=[], predicted={a: np.array([guess() for _ in range(3)]) for a in ('one', 'two')})

def test_equal_arms_are_seldom_told_apart():
    says = pd.concat([judged(arm_scores(equal_arms(i), against='one', draws=100)) for i in range(40)])
    decided = says.assign(decided=says.says.isin(['higher', 'lower'])).groupby('measure').decided.mean()
    assert .01 < decided.mean() < .12 and decided['macro F1'] < .12, decided

def test_value_is_the_mean_over_seeds():
    s = made_up()
    t = arm_scores(s, draws=20)
    expected = np.mean([class_scores(confusion(s['truth'], p, 3))['f1'][2] for p in s['predicted']['two']])
    assert np.isclose(t[(t.arm == 'two') & (t.measure == 'f1') & (t.cls == 'c')].value.item(), expected)

def test_interval_of_a_recall_is_the_binomial_one():
    s = made_up((400, 60), seeds=1, arms=('one',)); s['predicted']['one'][0, 400:] = [1]*45 + [0]*15
    recall = bootstrap(s, draws=3000)['one']['recall'][1:, 1]
    assert recall.std() == pytest.approx((.75*.25/60)**.5, rel=.08)

def test_three_equal_seeds_make_no_narrower_interval_than_one():
    one = made_up(seeds=1, arms=('x',)); three = dict(one, predicted={'x': one['predicted']['x'].repeat(3, 0)})
    width = lambda s: arm_scores(s, draws=400).query("measure == 'recall' and cls == 'c'").eval('high - low').item()
    assert width(three) == pytest.approx(width(one), rel=.15)

def test_differences_are_paired():
    s = made_up(seeds=1); better = s['predicted']['one'].copy(); wrong = np.flatnonzero(better[0] != s['truth'])[:12]; better[0, wrong] = s['truth'][wrong]
    s['predicted'] = dict(one=s['predicted']['one'], two=better, same=s['predicted']['one'])
    d = arm_scores(s, against='one', draws=300)
    assert set(d.arm) == {'two', 'same'} and (d[(d.arm == 'same') & (d.measure != 'recall')][['value', 'low', 'high']] == 0).all(axis=None)     # a recall of 1 gets an interval of width
    row = d.query("arm == 'two' and measure == 'accuracy'").iloc[0]
    alone = arm_scores(s, draws=300).query("arm == 'two' and measure == 'accuracy'").iloc[0]
    assert verdict(row.low, row.high) == 'higher' and row.high - row.low < alone.high - alone.low
    with pytest.raises(ValueError, match="no arm 'three'.*one, two"): arm_scores(s, against='three')

def test_a_null_result_is_undecided():
    d = arm_scores(made_up(n=(300, 300, 300)), against='one', draws=300).query("cls == 'all'")
    assert all(verdict(r.low, r.high) == 'undecided' for r in d.itertuples())
    assert [verdict(.1, .2), verdict(-.2, -.1), verdict(-.1, .1)] == ['higher', 'lower', 'undecided']

def test_tables_and_pictures(tmp_path, makers):
    a_study(tmp_path, arms=('real', 'gan')).run()
    text = write_results(tmp_path)
    assert 'macro F1' in text and 'gan' in text
    assert set(pd.read_csv(tmp_path/'differences.csv').says) <= {'higher', 'lower', 'undecided', 'undefined'} and len(pd.read_csv(tmp_path/'scores.csv')) == 2*(3*4 + 3)
    assert (tmp_path/'scores.png').stat().st_size > 5000 and (tmp_path/'confusion.png').stat().st_size > 5000

# real generators, small

def test_both_generators_paint_for_a_fold(tmp_path):
    study = a_study(tmp_path, some_cells((24, 16, 8, 6)), arms=('gan', 'ddpm'), seeds=1, ddpm=dict(epochs=1, dim=8, calls=3), gan=dict(epochs=1, dim=4, critic=4, bs=8))
    for r in study.run():
        took = r['generator']
        assert took['parameters'] > 0 and took['seconds'] > 0 and took['painted'] == 2*sum(c['added'] for c in r['counts'].values())
    before = (tmp_path/'work'/'ddpm-f0.npz').stat().st_mtime_ns
    study.generated('ddpm', 0)
    assert (tmp_path/'work'/'ddpm-f0.npz').stat().st_mtime_ns == before

# balance

@pytest.fixture
def folder(tmp_path):
    c = some_cells((12, 12, 4), channels=1)
    for i, (image, k) in enumerate(zip(c.images, c.labels)):
        (tmp_path/'cells'/c.names[k]).mkdir(parents=True, exist_ok=True); Image.fromarray(image[0]).save(tmp_path/'cells'/c.names[k]/f'{i}.png')
    return tmp_path/'cells'

def test_balance_marks_every_file_as_synthetic(folder, tmp_path):
    mine = sorted(p.as_posix() for p in folder.rglob('*'))
    table = balance(folder, tmp_path/'added', minutes=.01, size=16, steps=2, progress=False, cache=False)
    assert sorted(p.as_posix() for p in folder.rglob('*')) == mine
    assert len(table) == 8 and set(table['class']) == {'c'} and table.synthetic.all()
    assert pd.read_csv(tmp_path/'added'/'manifest.csv').file.tolist() == table.file.tolist()
    for f in table.file:
        im = Image.open(tmp_path/'added'/f)
        assert im.info['synthetic'] == 'True' and im.size == (16, 16) and im.mode == 'L' and 'synthetic' in f
    assert len(load_cells(tmp_path/'added', size=16, cache=False)) == 8    # images only: the manifest does not disturb
    with pytest.raises(FileExistsError, match='not empty'): balance(folder, tmp_path/'added')
    with pytest.raises(ValueError, match='generated ones'): AugmentationStudy(load_cells(tmp_path/'added', size=16, cache=False), tmp_path/'s')

def test_balance_keeps_apart_what_will_be_tested(folder, tmp_path):
    with pytest.raises(ValueError, match='28 of the 28 test cells are in the training set of the generator'): balance(folder, tmp_path/'added', test=folder, size=16, cache=False)
    with pytest.raises(ValueError, match='lies inside'): balance(folder, folder/'added', size=16, cache=False)
    assert not (tmp_path/'added').exists() and not (folder/'added').exists()

def test_balance_says_what_is_wrong(folder, tmp_path):
    with pytest.raises(ValueError, match='fewer than 3 cells: set goal higher'): balance(folder, tmp_path/'a', goal=3, size=16, cache=False)
    with pytest.raises(ValueError, match='paints 3 channels, .* have 1'): balance(folder, tmp_path/'b', weights='blood32', cache=False)
    for f in folder.rglob('*.png'): Image.open(f).convert('RGB').save(f)
    with pytest.raises(ValueError, match="does not know the class 'c'.*basophil"): balance(folder, tmp_path/'b', weights='blood32', cache=False)
    assert not (tmp_path/'a').exists() and not (tmp_path/'b').exists()

def test_two_channels_go_into_the_pages_of_a_tiff(tmp_path):
    augmentation._write_synthetic(tmp_path, some_cells().images[:2], ['a', 'b'], dict(generator='x', seed=3))
    im = Image.open(tmp_path/'a'/'synthetic-3-00000.tif')
    assert im.n_frames == 2 and json.loads(im.tag_v2[270])['synthetic'] == 'True'

# the command line

def test_commands(folder, tmp_path):
    run = lambda *args: CliRunner().invoke(app, [str(a) for a in args])
    r = run('study', folder, '--out', tmp_path/'study', '--size', 16, '--channels', 1, '--arms', 'real,weights', '--folds', 2, '--seeds', 1, '--steps', 2)
    assert r.exit_code == 0 and 'balanced accuracy' in r.output, r.output
    for args, words in [(('--arms', 'real,magic'), "Unknown arm 'magic'"), (('--keep', 'a:5'), '--keep a:5 should look like'), (('--steps', 3), 'other settings (steps)')]:
        r = run('study', folder, '--out', tmp_path/'study', '--size', 16, '--channels', 1, '--folds', 2, '--seeds', 1, *(() if '--arms' in args else ('--arms', 'real')), *(() if '--steps' in args else ('--steps', 2)), *args)
        assert r.exit_code == 1 and words in r.output, r.output
    r = run('balance', folder, '--out', tmp_path/'added', '--size', 16, '--minutes', .01, '--steps', 2)
    assert r.exit_code == 0 and 'manifest.csv' in r.output, r.output

# what ships

shipped_studies = sorted((weights_folder/'studies').glob('*/cells.json'))

@pytest.mark.parametrize('name', [f.parent.name for f in shipped_studies])
def test_shipped_records_are_whole(name):
    study = load_records(weights_folder/'studies'/name)
    by_fill = {}
    for r in study['records']:
        assert {'arm', 'fold', 'seed', 'counts', 'settings', 'seconds', 'predicted'} <= set(r)
        assert [c['test'] for c in r['counts'].values()] == np.bincount(study['truth'][study['fold'] == r['fold']], minlength=len(study['classes'])).tolist()
        assert by_fill.setdefault(arms[r['arm']].get('fill'), r['settings']) == r['settings']
    assert all((p[:, study['fold'] >= 0] >= 0).all() for p in study['predicted'].values())

def test_the_jurkat_study_has_five_folds_and_three_seeds_of_six_arms():
    study = load_records(weights_folder/'studies'/'jurkat')
    assert study['fold'].max() == 4 and len(study['truth']) == 7915
    for arm in ('real', 'weights', 'oversample+classical', 'gan', 'ddpm', 'ddpm-filtered'): assert len(study['predicted'][arm]) >= 3
