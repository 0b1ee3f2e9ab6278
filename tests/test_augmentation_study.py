"The augmentation study: arms, judge, generators, jobs, records"
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from rare_cells import some_cells
from typer.testing import CliRunner
from cell_diffusion.cli import app
from cell_diffusion.core import encode, generator
from cell_diffusion.gan import Generator
from cell_diffusion.records import part_name
from cell_diffusion.splits import dihedral_hash
from cell_diffusion.studies import augmentation
from cell_diffusion.studies.augmentation import (
    Arm, AugmentationStudy, GeneratorKind, Job, arms, balanced_layer, cells_hash,
    decode_labels, encode_labels, inner_split, keep_recognised, load_scores,
    match_spectra, outputs, radial_power, remix_labels, train_gan, training_set, trials,
    tune_generators, with_copies, write_results)
from cell_diffusion.studies.comparison import Endpoint, Plan, unpack_scores

sizes = (24, 16, 8, 4)
some_arms = 'nothing', 'copies+turns', 'gan', 'ddpm+turns+filter'


class Budget:
    "What training took"
    def __init__(self): self.seconds, self.steps = .1, 1


def train_noise(dls, folder, seed, **kwargs):
    "A generator that has learned nothing"
    train_noise.seen.append(np.asarray(dls.cells.images))
    _, channels, size, _ = dls.one_batch()[0].shape
    torch.manual_seed(seed)
    return Generator(channels, size, 4, classes=list(dls.vocab)), Budget()


def draw_noise(model, label, seed, **kwargs):
    shape = len(label), model.channels, model.size, model.size
    return torch.rand(shape, generator=generator(seed))*2 - 1


train_noise.seen = []


def use_generator(monkeypatch, train=train_noise, draw=draw_noise):
    kinds = {kind: GeneratorKind(train, draw, dict(bs=16, lr=1.))
             for kind in ('ddpm', 'gan')}
    monkeypatch.setattr(augmentation, 'generators', kinds)


@pytest.fixture
def noise(monkeypatch):
    train_noise.seen.clear()
    use_generator(monkeypatch)


@pytest.fixture
def untrained(monkeypatch):
    "Classifiers that are not trained; the list of what they would have seen"
    seen = []
    def train(dls, **kwargs):
        seen.append(dls.train.images.cpu().numpy())
        torch.manual_seed(kwargs['seed'])
        _, c, h, w = dls.one_batch()[0].shape
        return augmentation.CellClassifier(list(dls.vocab), c, h, 8).eval()
    monkeypatch.setattr(augmentation, 'train_classifier', train)
    return seen


def a_study(out, cells=None, **kwargs):
    settings = dict(arms=some_arms, folds=2, replicates=2, steps=3, bs=8, epochs=1,
                    progress=False)
    return AugmentationStudy(cells or some_cells(), out, **{**settings, **kwargs})


def files(folder): return {f: f.read_bytes() for f in folder.glob('*.json')}


def hashes(images): return set(dihedral_hash(np.asarray(images)))


# What is tested


def test_no_test_cell_reaches_a_generator_or_a_classifier(tmp_path, noise, untrained):
    study = a_study(tmp_path)
    study.run()
    c = study.cells
    test = [hashes(c.images[side['test']]) for side in study.sides]
    train = [hashes(c.images[side['train']]) for side in study.sides]
    assert len(train_noise.seen) == 8  # Two kinds, folds and replicates
    for seen in train_noise.seen + untrained:
        assert min(len(cells & hashes(seen)) for cells in test) == 0
    for seen in train_noise.seen:
        assert any(hashes(seen) < cells for cells in train)


def test_the_judge_and_the_generators_share_no_cell(tmp_path, noise, untrained):
    study = a_study(tmp_path, arms=('ddpm+turns+filter', 'gan+turns+filter'))
    study.run()
    for fold in range(2):
        side = study.side(fold)
        assert set(side['judge']) | set(side['generator']) == set(side['train'])
        assert not set(side['judge']) & set(side['generator'])
        for part in 'judge', 'generator':
            counts = np.bincount(study.cells.labels[side[part]], minlength=4)
            assert counts.min() >= 1, part
        of_judge = hashes(study.cells.images[side['judge']])
        assert all(not of_judge & hashes(seen) for seen in train_noise.seen
                   if hashes(seen) < hashes(study.cells.images[side['train']]))
        # One judge for both kinds; the classifiers of the arms have all training cells
        assert sum(hashes(seen) == of_judge for seen in untrained) == 1
    manifest = json.loads((tmp_path/'manifests'/'judge-f0-d0.json').read_text())
    judge = study.side(0)['judge']
    assert manifest['train_hash'] == cells_hash(study.cells.images[judge],
                                                study.cells.labels[judge])
    assert len(manifest['accuracy']) == 4


@pytest.mark.parametrize('share, judged', [(.25, [3, 1, 1, 0]), (.5, [6, 2, 1, 0]),
                                           (0, [1, 1, 1, 0]), (.9, [11, 2, 1, 0])])
def test_every_class_has_a_cell_on_both_sides(share, judged):
    labels = np.repeat(range(4), (12, 3, 2, 1))
    aside = inner_split(labels, np.arange(18).astype(str), share)
    assert np.bincount(labels[aside], minlength=4).tolist() == judged
    twins = np.array(['a', 'a', 'b', 'b', 'a', 'b'])
    aside = inner_split(np.zeros(6, int), twins, .5)
    assert len(set(twins[aside]) & set(twins[~aside])) == 0 and 0 < aside.sum() < 6


def test_a_generator_that_reproduces_test_cells_is_caught(tmp_path, monkeypatch):
    study = a_study(tmp_path, arms=('gan',))

    def thief(model, label, **kwargs):
        stolen = encode(study.cells.images[study.sides[0]['test'][:1]])
        return stolen.repeat(len(label), 1, 1, 1).flip(-1)

    use_generator(monkeypatch, draw=thief)
    message = 'test cells are in the training set of the classifier of fold 0'
    with pytest.raises(ValueError, match=message):
        replace(study).run()


def test_a_turned_twin_across_the_folds_is_caught(tmp_path, noise):
    c = some_cells()
    c.images = np.concatenate([c.images, np.rot90(c.images[:12], axes=(2, 3))])
    c.labels = np.concatenate([c.labels, c.labels[:12]])
    with pytest.raises(ValueError, match='Remove duplicates'):
        a_study(tmp_path, c).run()


# What is added


def test_all_arms_that_fill_reach_the_same_counts(tmp_path, noise, untrained,
                                                  monkeypatch):
    keep = augmentation.keep_recognised
    monkeypatch.setattr(augmentation, 'keep_recognised',
                        lambda labels, predicted, n: keep(labels, labels, n))
    left_out = [a for a in arms if 'real' in a or 'features' in a]
    names = tuple(a for a in arms if a not in left_out)
    table = a_study(tmp_path, arms=names, replicates=1).run().set_index('arm')
    for name, counts in table.counts.items():
        real = np.array([c['real'] for c in counts.values()])
        after = [c['real'] + c['added'] for c in counts.values()]
        usual = [12, 8, 4, 2]
        if name.startswith(('copies', 'gan', 'ddpm')): usual = [12, 8, 6, 6]
        if name.endswith('ratio1'): usual = [12, 8, 6, 4]
        if name.endswith('only'):
            usual = [6]*4
            assert (real == 0).all()
        assert after == usual, name


def test_two_replicates_have_generators_and_classifiers_of_their_own(tmp_path, noise):
    table = a_study(tmp_path, arms=('gan', 'nothing'), folds=2).run()
    of_gan = table[table.arm == 'gan']
    assert of_gan.pool_hash.nunique() == of_gan.weights.nunique() == 4
    assert table[table.arm == 'nothing'].scores.nunique() == 4
    assert table[table.arm == 'nothing'].train_hash.nunique() == 2


def test_keep_draws_disjoint_cells_and_in_training_only(tmp_path):
    study = a_study(tmp_path, keep={'a': 5}, folds=1, replicates=3, arms=('nothing',))
    c = study.cells
    draws = []
    for replicate in range(3):
        side = study.side(0, replicate)
        rare = side['train'][c.labels[side['train']] == 0]
        assert len(rare) == 5
        assert study.counts(0, replicate)[1:].tolist() == [13, 6, 3]
        draws += rare.tolist()
    assert len(set(draws)) == 15
    assert (c.labels[study.side(0)['test']] == 0).sum() == round(24*.2)
    message = "too few cells of 'a' to keep 5 of them in 4 draws"
    with pytest.raises(ValueError, match=message):
        replace(study, replicates=4)


def test_held_back_cells_have_a_price(tmp_path, untrained):
    cells = some_cells((150, 60, 40))
    names = 'nothing', 'copies+turns', 'copies+turns+real10', 'copies+turns+real40'
    study = a_study(tmp_path, cells, arms=names, held_back='a', keep={'a': 10},
                    replicates=1)
    side = study.side(0)
    assert len(side['held_back']) == 65
    assert not set(side['held_back']) & set(side['train'])
    table = study.run().set_index(['arm', 'fold'])
    different = {name: len(hashes(images)) for name, images in zip(names, untrained)}
    assert list(different.values()) == [60, 60, 70, 100]
    filled = table.counts['copies+turns', 0]['a']
    assert filled == table.counts['copies+turns+real10', 0]['a']
    assert set(arms) - set(replace(study, arms='all', held_back=None).arms) == {
        f'copies+turns+real{n}' for n in (10, 20, 40)}
    with pytest.raises(ValueError, match='held_back of which class'):
        replace(study, held_back=None)
    without_keep = replace(study, keep=None).side(0)
    assert len(without_keep['held_back']) == 40 and len(without_keep['train']) == 85


def test_the_filter_keeps_what_is_recognised():
    labels = np.array([0, 0, 0, 1, 1, 1, 2])
    predicted = np.array([0, 0, 1, 1, 1, 0, 0])
    chosen = keep_recognised(labels, predicted, np.array([3, 1, 2, 0]))
    assert chosen.tolist() == [0, 1, 0, 3]  # Repeated, taken, none recognised
    assert keep_recognised(labels[:2], np.ones(2), np.array([3, 0])).tolist() == []


def test_spectra_are_those_of_real_cells_class_by_class():
    rng = np.random.default_rng(0)
    real = rng.integers(90, 160, (30, 2, 16, 16)).astype(np.uint8)
    real[10:] = real[10:, :, ::2, ::2].repeat(2, 2).repeat(2, 3)//2 + real[10:]//2
    labels = np.repeat([0, 1], (10, 20))
    fake = (128 + rng.normal(0, 40, real.shape)).clip(0, 255).astype(np.uint8)
    matched = match_spectra(fake, labels, training_set(real, labels))
    assert matched.dtype == np.uint8
    for k in range(2):
        wanted, there = (radial_power(x[labels == k].astype(float))[0][:, 1:]
                         for x in (real, matched))
        assert np.allclose(there/wanted, 1, atol=.15)
    assert abs(matched.mean((2, 3)) - fake.mean((2, 3))).max() < 1


# The loss, and what comes after it


def test_remix_gives_the_label_to_the_rare_class():
    share = torch.tensor([.4, .6, .4, .6, .4])
    n_a = torch.tensor([300, 300, 100, 100, 200])
    n_b = torch.tensor([100, 100, 300, 300, 100])
    assert remix_labels(share, n_a, n_b).tolist() == pytest.approx([0, .6, .4, 1, .4])


def a_job(tmp_path, arm, **kwargs):
    study = a_study(tmp_path, arms=(arm,), replicates=1, **kwargs)
    return Job(study, 0, 0, arms[arm])


def test_adjusted_loss_makes_rare_classes_cheap_to_predict(tmp_path):
    job = a_job(tmp_path, 'adjusted+turns')
    loss = job.arm.loss(job, job.real)
    shares = torch.tensor([12, 8, 4, 2])/26
    y = torch.eye(4)
    expected = -(torch.zeros(4, 4) + shares.log()).log_softmax(1).diag().mean()
    assert loss(torch.zeros(4, 4), y).item() == pytest.approx(expected.item())


def test_mixed_batches_and_weights_reach_the_training(tmp_path, noise, monkeypatch):
    seen = {}
    def train(dls, loss_func, **kwargs):
        x, y = next(iter(dls.train))
        seen.update(x=x, y=y, loss=loss_func)
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(512, 4))
    monkeypatch.setattr(augmentation, 'train_classifier', train)
    job = a_job(tmp_path, 'remix+turns')
    augmentation.train_arm(job, job.arm.cells(job))
    assert seen['y'].sum(1).tolist() == pytest.approx([1]*8)
    assert ((seen['y'] > 0).sum(1) > 1).any()

    job = a_job(tmp_path, 'ddpm+turns')
    arm = replace(arms['ddpm+turns+weight'], after=None)
    job = replace(job, arm=arm)
    cells = arm.cells(job)
    augmentation.train_arm(job, cells)
    assert cells.weights[cells.is_real].tolist() == [1]*26
    assert set(cells.weights[~cells.is_real]) == {.3}
    assert {round(w, 2) for w in seen['y'].sum(1).tolist()} <= {1., .3}
    scores = torch.randn(8, 4)
    by_hand = -(seen['y']*scores.log_softmax(1)).sum(1).mean()
    assert seen['loss'](scores, seen['y']).item() == pytest.approx(by_hand.item())


@pytest.mark.parametrize('k', [2, 4])
def test_a_balanced_layer_is_scikit_learns(k):
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    rng = np.random.default_rng(0)
    labels = np.repeat(range(k), [60, 9, 20, 5][:k])
    x = rng.normal(3, 2, (len(labels), 6)) + labels[:, None]*rng.normal(0, 1, 6)
    fit = make_pipeline(StandardScaler(), LogisticRegression(
        class_weight='balanced', max_iter=2000)).fit(x, labels)
    layer = balanced_layer(x, labels, k)
    with torch.no_grad():
        p = layer(torch.tensor(x, dtype=torch.float32)).softmax(1).numpy()
    assert np.allclose(p, fit.predict_proba(x), atol=1e-3)
    if k == 2: return
    there = labels < k - 1
    assert balanced_layer(x[there], labels[there], k).bias[-1] == -1e3


@pytest.mark.parametrize('network', ['cell', 'resnet18'])
def test_the_last_layer_alone_changes(tmp_path, network):
    job = a_job(tmp_path, 'last-layer+turns', network=network)
    plain = replace(job, arm=arms['nothing+turns'])
    before = augmentation.train_arm(plain, job.real)
    after = augmentation.train_arm(job, job.real)
    last = 'head' if network == 'cell' else 'fc'
    for name, p in before.state_dict().items():
        same = torch.equal(p, after.state_dict()[name])
        assert same != name.startswith(last), name
    assert outputs(after, encode(job.real.images)).shape == (26, 4)


def test_noise_is_put_on_training_and_test_cells(tmp_path, noise):
    arm = arms['ddpm+turns+noise']
    x = torch.zeros(4, 2, 16, 16)
    assert arm.transform(x, generator(0)).std().item() == pytest.approx(3/127.5, rel=.1)
    seen = arm.after(None, torch.nn.Identity())(x)
    assert seen.std().item() == pytest.approx(3/127.5, rel=.1)


# An arm and a generator of one's own


def test_a_user_adds_an_arm_and_a_generator(tmp_path, noise, monkeypatch):
    def darker(x, g): return x - .1
    monkeypatch.setitem(arms, 'mine', Arm(with_copies, darker))
    monkeypatch.setitem(augmentation.generators, 'theirs',
                        GeneratorKind(train_noise, draw_noise, dict(bs=8)))
    monkeypatch.setitem(arms, 'theirs', augmentation.from_generator('theirs'))
    study = a_study(tmp_path, arms='mine, theirs, nothing', replicates=1)
    study.run()
    assert list(load_scores(tmp_path).log_p) == ['nothing', 'mine', 'theirs']


# Records


def same_results(a, b):
    a, b = (t[[c for c in t if not c.startswith('seconds')]] for t in (a, b))
    return str(a.to_dict('records')) == str(b.to_dict('records'))


def test_a_record_says_what_was_done(tmp_path, noise):
    study = a_study(tmp_path)
    table = study.run()
    assert len(table) == 4*2*2
    tested = np.concatenate([side['test'] for side in study.sides])
    assert sorted(tested) == list(range(len(study.cells)))
    for r in table.itertuples():
        n = sum(c['test'] for c in r.counts.values())
        log_p = unpack_scores(r.scores, 4)
        assert log_p.shape == (n, 4)
        assert np.allclose(np.exp(log_p).sum(1), 1, atol=.05)
        assert r.seconds > 0
        made = 'gan' in r.arm or 'ddpm' in r.arm
        assert (r.seconds_generator > 0) == isinstance(r.pool_hash, str) == made
        assert (r.seconds_judge > 0) == r.arm.endswith('filter')
        if not made: continue
        kind = r.arm.split('+')[0]
        name = f'{kind}-f{r.fold}-r{r.replicate}-rare.json'
        manifest = json.loads((tmp_path/'manifests'/name).read_text())
        assert (manifest['pool_hash'], manifest['weights']) == (r.pool_hash, r.weights)
        side = study.side(r.fold)['generator']
        assert manifest['train_hash'] == cells_hash(study.cells.images[side],
                                                    study.cells.labels[side])
        assert manifest['generated'] == 2*6  # Two and four are missing, twice
        assert manifest['parameters'] > 0
    settings = json.loads((tmp_path/'settings.json').read_text())
    assert settings['data']['counts'] == dict(zip('abcd', sizes))
    assert len(settings['data']['fingerprint']) == len(settings['data']['split']) == 16
    assert set(settings['versions']) == {'cell_diffusion', 'torch'}
    assert settings['ddpm'] == dict(bs=16, lr=1.)


def test_scores_are_read_as_they_were_written(tmp_path, noise):
    study = a_study(tmp_path)
    table = study.run()
    scores = load_scores(tmp_path)
    assert scores.names == tuple('abcd') and list(scores.log_p) == list(some_arms)
    for fold, truth in enumerate(scores.labels):
        assert (truth == study.cells.labels[study.sides[fold]['test']]).all()
        for arm in some_arms:
            assert scores.log_p[arm][fold].shape == (2, len(truth), 4)
    row = table[(table.arm == 'gan') & (table.fold == 1) & (table.replicate == 1)]
    expected = unpack_scores(row.scores.item(), 4)
    assert np.array_equal(scores.log_p['gan'][1][1], expected)


def test_missing_unfinished_and_old_studies(tmp_path, noise):
    with pytest.raises(FileNotFoundError, match='holds no study'):
        load_scores(tmp_path)
    study = a_study(tmp_path, arms=('nothing', 'copies'))
    study.run(folds=[0])
    replace(study, arms=('nothing',)).run(folds=[1], replicates=[1])
    with pytest.warns(UserWarning, match='replicates 0 are not done in every fold'):
        done = load_scores(tmp_path)
    assert list(done.log_p) == ['nothing'] and len(done.log_p['nothing'][0]) == 1
    (tmp_path/'nothing-f0-s1.json').write_text('{}')
    with pytest.raises(ValueError, match='first edition'):
        load_scores(tmp_path)


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
    trained = len(train_noise.seen)

    again = a_study(tmp_path/'killed').run()
    assert len(before) == 5
    assert all(f.stat().st_mtime_ns == t for f, t in before.items())
    assert same_results(again, whole)
    assert len(train_noise.seen) == trained  # What is in `work/` was not made anew


damaged = ('cells.json', 'work/ddpm-f1-r0-rare.npz', 'work/ddpm-f1-r0/made.json',
           'work/ddpm-f1-r0/model.safetensors', 'arm=ddpm,fold=1,replicate=0.json')


@pytest.mark.parametrize('share', [0, .5, .99])
def test_damaged_files_of_a_study_are_made_again(tmp_path, noise, share):
    "The table of the cells, a pool, a network, and a record, all cut short"
    def run(): return a_study(tmp_path, arms=('ddpm',), replicates=1).run()
    whole = run()
    before = {name: (tmp_path/name).read_bytes() for name in damaged}
    for name, content in before.items():
        (tmp_path/name).write_bytes(content[:int(share*len(content))])
    advice = 'cells.json is damaged: run the study again on the same cells'
    with pytest.raises(ValueError, match=advice):
        load_scores(tmp_path)
    with pytest.warns(UserWarning) as said:
        again = run()
    said = ' '.join(str(w.message) for w in said)
    for name in ('cells.json', damaged[1], 'work/ddpm-f1-r0', damaged[4]):
        assert f'{tmp_path/name} is ' in said, (name, said)
    assert same_results(again, whole)
    assert (tmp_path/'cells.json').read_bytes() == before['cells.json']
    assert not [f for f in tmp_path.rglob('*') if f.suffix in ('.part', '.lock')]


@pytest.mark.parametrize('error', [NotImplementedError, RuntimeError, SyntaxError])
def test_a_cache_heals_whatever_the_error(tmp_path, monkeypatch, error):
    def fails(*args): raise error('a flipped bit')
    monkeypatch.setattr(np, 'load', fails)
    with pytest.warns(UserWarning, match='is damaged and made again'):
        assert augmentation.read_arrays(tmp_path/'a.npz', '') is None


def test_another_study_is_refused_and_leaves_the_folder_as_it_was(tmp_path, noise):
    a_study(tmp_path).run()
    before = files(tmp_path)
    c = some_cells()
    reversed_images = np.concatenate([c.images[:24][::-1], c.images[24:]])
    c.images = reversed_images  # The same cells, the first class in another order

    own = 'give this study a folder of its own'
    for changed in (dict(steps=4), dict(gan=dict(epochs=9)), dict(minutes=2),
                    dict(set_aside=.5), dict(keep={'a': 5})):
        name = next(iter(changed))
        with pytest.raises(ValueError, match=f'other settings .*{name}.*{own}'):
            a_study(tmp_path, **changed).run()
    for other in (some_cells(seed=1), c):
        with pytest.raises(ValueError, match=f'other cells, .* another order.*{own}'):
            a_study(tmp_path, other).run()
    with pytest.raises(ValueError, match='of other folds'):
        a_study(tmp_path, folds=4, arms=('nothing',)).run()
    assert files(tmp_path) == before
    # More replicates and arms are no other study
    assert len(a_study(tmp_path, replicates=3, arms='copies').run()) == 6


def test_networks_and_pools_are_made_anew_for_other_settings(tmp_path, noise):
    for pool in (2, 2, 3):
        study = a_study(tmp_path, pool=pool)
        settings = dict(study.settings(), versions=dict(torch='of another day'))
        (tmp_path/'settings.json').write_text(json.dumps(settings))
        Job(study, 0, 0).pool('gan')
    assert len(train_noise.seen) == 2


mistakes = [
    (dict(arms=('nothing', 'magic')), "Unknown arm 'magic'.*copies"),
    (dict(keep={'z': 3}), "Unknown class 'z'.*a, b"),
    (dict(held_back='z'), "Unknown class 'z'.*a, b"),
    (dict(arms='copies+turns+real40', held_back='a'), 'too few training cells'),
    (dict(arms='copies+turns+real10', held_back='d', keep={'d': 1}), '1 held-back'),
    (dict(folds=5), 'smallest class has 4.*k=5'),
    (dict(keep={'a': 0}), "keep.'a'.=0 should be"),
    (dict(keep={'d': 1}), 'too few training cells in fold 0: 1. A generator and its'),
    (dict(goal=0), 'goal=0 should'),
    (dict(steps=0), 'steps=0 should'),
    (dict(steps=2.5), 'steps=2.5 should'),
    (dict(replicates=True), 'replicates=True should'),
    (dict(minutes=0), 'minutes=0 should'),
    (dict(epochs=0), 'epochs=0 should'),
    (dict(set_aside=1), 'set_aside=1 should'),
    (dict(lr=float('nan')), 'lr=nan should'),
    (dict(arms=''), 'Name some arms'),
    (dict(ddpm=dict(dim=0)), 'ddpm dim=0 should'),
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


@pytest.mark.parametrize('kwargs, message', [
    (dict(folds=[2]), 'no fold 2: this study has 2, numbered 0 to 1'),
    (dict(replicates=[0, 5]), 'no replicate 5'),
])
def test_there_are_only_so_many_folds_and_replicates(tmp_path, noise, kwargs, message):
    with pytest.raises(ValueError, match=message):
        a_study(tmp_path).run(**kwargs)
    assert not list(tmp_path.glob('*=*.json'))


def test_generated_cells_are_not_studied(tmp_path):
    c = some_cells()
    c.files = (*(f'a/{i}.png' for i in range(51)), 'd/synthetic-0-00003.png')
    message = '1 of these cells are generated ones .*synthetic-0-00003.png'
    with pytest.raises(ValueError, match=message):
        a_study(tmp_path, c)


def test_a_study_has_the_arms_of_the_usual_plan(tmp_path):
    study = a_study(tmp_path, arms=None)
    assert study.arms == ('nothing+turns', 'copies+turns', 'gan+turns', 'ddpm+turns',
                          'ddpm+turns+filter', 'adjusted+turns')
    plan = augmentation.usual_plan(study.arms, [2])
    assert plan.contrasts == augmentation.usual_contrasts


def test_one_class_is_no_study(tmp_path):
    with pytest.raises(ValueError, match='two classes'):
        a_study(tmp_path, some_cells((9,)))


def test_labels_as_text_and_back():
    n = np.random.default_rng(0).integers(-1, 62, 500)
    assert (decode_labels(encode_labels(n)) == n).all() and len(encode_labels(n)) == 500


# Several processes


def test_joblib_hands_the_jobs_to_the_backend_of_the_caller(tmp_path, noise,
                                                           monkeypatch):
    workers = set()
    run_one = AugmentationStudy.run_one

    def noted(self, **job):
        workers.add(threading.get_ident())
        time.sleep(.05)
        return run_one(self, **job)

    monkeypatch.setattr(AugmentationStudy, 'run_one', noted)
    one = a_study(tmp_path/'one').run()
    assert workers == {threading.get_ident()}
    workers.clear()
    with joblib.parallel_config('threading', n_jobs=2):
        two = a_study(tmp_path/'two').run()
    assert len(workers) == 2
    # Threads share PyTorch's random numbers, processes do not
    free = one.seconds_generator == 0
    assert (one.train_hash == two.train_hash)[free].all() and len(one) == len(two)


def test_a_generator_is_trained_once_for_several_processes(tmp_path, monkeypatch):
    "The second one waits, says so, and uses the cells of the first"
    def slow(*args, **kwargs):
        time.sleep(.4)
        return train_noise(*args, **kwargs)
    train_noise.seen.clear()
    use_generator(monkeypatch, slow)
    studies = [a_study(tmp_path, arms=('ddpm',)) for _ in range(2)]
    with ThreadPoolExecutor(2) as threads:
        first, second = threads.map(lambda s: Job(s, 0, 0).pool('ddpm'), studies)
    assert len(train_noise.seen) == 1 and (first.images == second.images).all()


def work(folder, log, everyone):
    "Run the study in a process of its own, and note each job that it ends"
    torch.set_num_threads(1)
    run_one = AugmentationStudy.run_one

    def noted(self, **job):
        time.sleep(.1)
        result = run_one(self, **job)
        with open(log/f'{os.getpid()}', 'a') as f:
            f.write(json.dumps(job) + '\n')
        return result

    AugmentationStudy.run_one = noted
    everyone.wait()
    a_study(folder).run()


@pytest.mark.skipif(sys.platform != 'linux', reason='forks')
def test_four_processes_and_kills_do_each_job_once(tmp_path, noise, untrained):
    "Two of four are killed in the midst; two more come; nothing is lost, nothing twice"
    fork = multiprocessing.get_context('fork')
    log = tmp_path/'log'
    log.mkdir()
    whole = a_study(tmp_path/'whole').run()

    def start(everyone):
        process = fork.Process(target=work, args=(tmp_path/'study', log, everyone))
        process.start()
        return process

    def done(): return len(list((tmp_path/'study').glob('*=*.json')))

    four = fork.Barrier(4)
    processes = [start(four) for _ in range(4)]
    while done() < 3:
        time.sleep(.02)
    for process in processes[:2]:
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    before = {f: f.stat().st_mtime_ns for f in (tmp_path/'study').glob('*=*.json')}
    processes = processes[2:] + [start(fork.Barrier(1)) for _ in range(2)]
    for process in processes:
        process.join()
    assert all(process.exitcode == 0 for process in processes)
    assert all(f.stat().st_mtime_ns == t for f, t in before.items())
    again = a_study(tmp_path/'study').run()
    assert same_results(again, whole)
    jobs = [line for f in log.iterdir() for line in f.read_text().splitlines()]
    # A killed process may have ended a job and not written it
    assert len(set(jobs)) == 16 and len(jobs) <= 18
    assert not [f for f in tmp_path.rglob('*') if f.suffix in ('.part', '.lock')]


def test_what_a_killed_process_left_half_written_goes(tmp_path, noise, untrained):
    manifest = part_name(tmp_path/'manifests'/'ddpm-f0-r0-rare.json')
    weights = part_name(tmp_path/'work'/'judge-f0-d0'/'model.safetensors')
    for part in manifest, weights:
        part.parent.mkdir(parents=True)
        part.touch()
    a_study(tmp_path, arms='ddpm+turns+filter', replicates=1, folds=2).run()
    assert weights.parent.exists() and manifest.parent.exists()
    assert not manifest.exists() and not weights.exists()


def test_processes_of_joblib_know_an_arm_of_ones_own(tmp_path, monkeypatch):
    def darker(x, g): return x - .1
    monkeypatch.setitem(arms, 'mine', Arm(with_copies, darker))
    study = a_study(tmp_path, arms='mine,nothing', replicates=1)
    with joblib.parallel_config('loky', n_jobs=2):
        table = study.run()
    assert len(table) == 4


# Real generators, small


def small(tmp_path, cells=None, **kwargs):
    settings = dict(ddpm=dict(dim=8, sampling_steps=2), replicates=1,
                    gan=dict(dim=4, disc_dim=4, bs=8))
    cells = cells or some_cells((24, 16, 8, 6))
    return a_study(tmp_path, cells, **{**settings, **kwargs})


def test_every_arm_runs_with_small_generators(tmp_path):
    cells = some_cells((24, 16, 12, 100))
    table = small(tmp_path, cells, arms='all', held_back='d').run().set_index('arm')
    assert set(table.index) == set(arms)
    both = table.seconds_generator[['gan', 'ddpm']]
    assert (both > 0).all() and (table.seconds > 0).all()
    scores = load_scores(tmp_path)
    assert all(np.isfinite(p).all() for of in scores.log_p.values() for p in of)


def test_both_generators_have_the_same_seconds_of_the_processor(tmp_path):
    table = small(tmp_path, arms=('gan', 'ddpm'), minutes=.02, epochs=None).run(
        folds=[0])
    assert table.seconds_generator.between(1.2, 2).all(), table.seconds_generator


def test_the_ddpm_is_guided_away_from_its_early_mean(tmp_path):
    job = Job(small(tmp_path, arms=('ddpm',)), 0, 0)
    model, known = job.trained('ddpm')
    assert model.guidance_scale == 1.5 and model.guide is not None
    assert known['train_hash'] == cells_hash(*job.cells('generator'))
    plain = replace(job.study, out=tmp_path/'plain', ddpm=dict(
        guidance_scale=1, dim=8, sampling_steps=2))
    assert Job(plain, 0, 0).network('ddpm').guide is None


def test_turns_are_not_hidden_from_the_discriminator(tmp_path, monkeypatch):
    "The loaders turn the cells, augmentation never all of them, and sampling none"
    seen = {}
    def fit(learn, **kwargs):
        seen.update(moved=learn.noise.augment, shown=learn.dls.train.augment,
                    turned=learn.model.generator.turns, p=learn.model.p.tolist(),
                    rate=learn.noise.disc_rate)
        raise InterruptedError
    monkeypatch.setattr(augmentation, 'fit_for', fit)
    for turns in (True, False):
        job = Job(small(tmp_path/str(turns), arms=('gan',), gan=dict(
            turns=turns, dim=4, disc_dim=4, disc_rate=.5)), 0, 0)
        with pytest.raises(InterruptedError):
            job.pool('gan')
        k = len(job.study.cells.names)
        assert seen == dict(moved=dict(dihedral=turns), shown=turns, turned=False,
                            p=[0.]*k, rate=.5)
    assert train_gan.__doc__


def test_tuning_tries_as_much_for_both_on_one_fold(tmp_path, noise):
    study = a_study(tmp_path/'study', some_cells((40, 30, 20, 12)),
                    gan=dict(dim=8, bs=12))
    settings = []
    def train(dls, folder, seed, budget, progress, checkpoint, **own):
        settings.append((budget, dls.bs, dls.train.augment, own))
        return train_noise(dls, folder, seed)
    study.kinds = {kind: replace(k, train=train) for kind, k in study.kinds.items()}
    augmentation.generators.update(study.kinds)
    table = tune_generators(study, tmp_path/'tuning')
    assert table.generator.tolist() == 4*['gan'] + 4*['ddpm']
    # The budget of all is the same; what a trial changes reaches the training
    assert all(budget == dict(epochs=1) for budget, *_ in settings)
    sizes, turned, own = zip(*(rest for _, *rest in settings))
    assert sizes == (12, 16, 12, 12) + 4*(16,)
    assert all(turned)
    assert [o.get('guidance_scale') for o in own] == 7*[None] + [1]
    assert [o.get('disc_rate', 1) for o in own] == [1, 1, .5, 1, 1, 1, 1, 1]
    assert [o.get('augment') for o in own] == 3*[None] + [dict(p=0.)] + 4*[None]
    assert own[6]['lr'] == 2e-3 and all(o['dim'] == 8 for o in own[:4])
    shipped = pd.read_csv(tmp_path/'tuning'/'trials.csv')
    assert shipped.score.between(0, 1).all() and len(shipped) == 8
    assert not (tmp_path/'study').exists()
    train_side = hashes(study.cells.images[study.side(0)['train']])
    assert all(hashes(seen) < train_side for seen in train_noise.seen)


def test_tuning_refuses_more_trials_for_one_kind(tmp_path, noise):
    study = a_study(tmp_path/'study', some_cells((40, 30, 20, 12)))
    uneven = dict(trials, gan=trials['gan'][:3])
    with pytest.raises(ValueError, match='as many trials for each kind.*gan, ddpm'):
        tune_generators(study, tmp_path/'tuning', trials=uneven)
    assert not (tmp_path/'tuning').exists()


@pytest.mark.parametrize('matched', [False, True])
def test_noise_is_told_apart_by_its_grain(tmp_path, noise, matched):
    "Cells of white noise have far too much power in fine details, until it is matched"
    c = some_cells((40, 40, 20))
    c.images = c.images[:, :, ::2, ::2].repeat(2, 2).repeat(2, 3)//2 + c.images//2
    study = a_study(tmp_path, c, arms=('gan',), replicates=1)
    table = study.check_generated('gan', matched, steps=2, seeds=1)
    assert len(table) == 2 and table.told_apart.between(0, 1).all()
    assert (table.ratio > 0).all() and table.near.between(0, 1).all()
    power = table[['power_0', 'power_1']].to_numpy()
    assert (abs(power - 1) < .4).all() if matched else (power > 2).all()
    name = 'check-gan-matched.csv' if matched else 'check-gan.csv'
    assert (tmp_path/name).exists()


# The command line


def test_command(tmp_path):
    args = ['study', 'simulated-jurkat', '-n', 90, '--size', 28, '--folds', 2,
            '--replicates', 1, '--steps', 2, '--out', tmp_path/'study']

    def run(*more): return CliRunner().invoke(app, [str(a) for a in (*args, *more)])

    r = run('--arms', 'nothing+turns,copies+turns')
    assert r.exit_code == 0 and str(tmp_path/'study'/'report.txt') in r.output, r.output
    assert r.output.startswith('Planned contrasts, mean average precision of')
    for more, words in [
        (('--arms', 'nothing,magic'), "Unknown arm 'magic'"),
        (('--keep', 'a:5'), '--keep a:5 should look like'),
        (('--steps', 3, '--arms', 'nothing'), 'other settings (steps'),
        (('--processes', 0), 'processes=0 should'),
    ]:
        r = run(*more)
        assert r.exit_code == 1 and words in r.output, r.output


def test_no_verdict_from_one_replicate(tmp_path, noise):
    arms = 'nothing+turns', 'copies+turns', 'ddpm+turns'
    a_study(tmp_path, arms=arms, replicates=1).run()
    text = write_results(tmp_path)
    assert text.count('One training: nothing can be said') >= 2
    for word in ('better', 'worse', 'significant', 'higher', 'lower', 'interval'):
        assert word not in text, text


def test_one_draw_gives_no_verdict_and_two_do(tmp_path, untrained):
    "Draws of rare cells are the replicates"
    for replicates in (1, 2):
        a_study(tmp_path, arms='nothing,copies', keep={'a': 5}, folds=1,
                replicates=replicates).run()
        text = write_results(tmp_path, draws=100)
        assert ('nothing can be said' in text) == (replicates == 1)
        assert ('95% interval' in text) == (replicates == 2)


def test_the_plan_is_written_first_and_stays(tmp_path, noise):
    names = 'nothing+turns', 'gan+turns', 'ddpm+turns'
    study = a_study(tmp_path, arms=names)
    study.open_records()
    plan = Plan.read(tmp_path/'plan.json')
    assert plan.contrasts == tuple(('ddpm+turns', other) for other in names[1::-1])
    assert plan.endpoint == Endpoint('average precision', (2, 3))
    assert plan.equivalent == ('ddpm+turns', 'gan+turns')
    before = (tmp_path/'plan.json').read_bytes()
    replace(study, arms=(*names, 'copies+turns')).open_records()
    assert (tmp_path/'plan.json').read_bytes() == before
    own = Plan(Endpoint('macro F1'), (('gan+turns', 'nothing+turns'),))
    with pytest.raises(ValueError, match='Plans are not changed afterwards'):
        replace(study, plan=own).open_records()
    other = replace(study, plan=own, out=tmp_path/'other')
    other.open_records()
    assert Plan.read(tmp_path/'other'/'plan.json') == own

    replace(study, arms=names[:2]).run()
    text = write_results(tmp_path, draws=100)
    assert text.startswith('Planned, but not done yet: ddpm+turns against gan+turns')
    assert (tmp_path/'report.txt').read_text().startswith('Planned, but')


def test_scores_know_the_shares_of_the_training(tmp_path, noise, untrained):
    a_study(tmp_path, arms='nothing,copies,adjusted+turns', replicates=1).run()
    prior = load_scores(tmp_path).prior
    assert np.allclose(prior['nothing'], np.array([12, 8, 4, 2])/26)
    assert np.allclose(prior['copies'], np.array([12, 8, 6, 6])/32)
    assert np.allclose(prior['adjusted+turns'], .25)
