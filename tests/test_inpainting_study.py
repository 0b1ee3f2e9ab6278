"""The study of inpainting: perfect fills beat noise, and a study that was stopped ends
with the table of an unbroken one"""
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch

from cell_diffusion.classifier import CellClassifier
from cell_diffusion.core import encode, generator
from cell_diffusion.data import cell_dls
from cell_diffusion.denoiser import Denoiser, save
from cell_diffusion.inpainting import inpaint, mean_fill
from cell_diffusion.records import Records
from cell_diffusion.simulation import simulate_blood
from cell_diffusion.studies import inpainting as module
from cell_diffusion.studies.inpainting import (
    Baseline, NetworkArm, ablation_arms, ablation_study, compare_arms, fill_pictures,
    fill_spread, hole_means, holes_in_middle, inpainting_study, scale_study,
    shipped_study, study_arms, study_holes, study_measures, study_table,
)
from test_inpainting import holes, network

small = dict(size=28, T=40)

def classifier(names):
    torch.manual_seed(0)
    return CellClassifier(names, size=28, dim=8).eval()

@pytest.fixture(scope='module')
def study():
    cells = simulate_blood(24, size=28, labels=[i//3 for i in range(24)], seed=1)
    def noise(x, mask):
        random = torch.randn(x.shape, generator=generator(0)).clamp(-1, 1)
        return torch.where(mask, random, x)
    arms = dict(
        perfect=Baseline(lambda x, mask: x),
        noise=Baseline(noise),
        net=NetworkArm(network(classes=cells.names, **small), 2, give_class=True),
        clamp=NetworkArm(network(Denoiser, classes=(), **small), 2))
    masks = holes(24, 28)
    masks[5] = False
    return compare_arms(
        arms, encode(cells.images), torch.as_tensor(cells.labels),
        dict(box=masks, none=torch.zeros_like(masks)), classifier(cells.names), fills=2)

def test_a_hole_that_is_not_there_is_left_out(study):
    assert set(study.hole) == {'box'}
    for _, rows in study.groupby('arm'):
        assert sorted(rows.cell) == [i for i in range(24) if i != 5]

def test_study_tells_perfect_from_noise(study):
    arm = dict(list(study.groupby('arm')))
    perfect = arm['perfect']
    assert perfect.error.eq(0).all() and perfect.features.eq(0).all()
    assert np.allclose(perfect.seam, 1) and perfect.spread.isna().all()
    assert (perfect.class_accuracy == perfect.reference_accuracy).all()
    assert perfect.nfe.eq(0).all()
    noise = arm['noise']
    assert (noise.error > 50).all() and noise.features.mean() > 0
    assert noise.seam.median() > 2
    assert arm['net'].nfe.eq(2).all() and (arm['net'].spread > 0).all()
    assert arm['clamp'].error.gt(0).all()

def test_spread_by_hand():
    fills = torch.zeros(2, 1, 1, 2, 2)
    fills[1] = .2
    mask = torch.tensor([[[[True, False], [False, False]]]])
    # Two values that differ by d have the standard deviation d/√2
    assert torch.allclose(fill_spread(fills, mask), torch.tensor([.2*127.5/2**.5]))
    assert fill_spread(fills[:1], mask).isnan().all()

def test_table_of_the_study(study):
    table = study_table(study, by=('arm', 'hole'))
    assert (table.low <= table['mean'] + 1e-9).all()
    assert (table['mean'] <= table.high + 1e-9).all() and (table.n == 23).all()
    row = table[(table.arm == 'noise') & (table.measure == 'error')].iloc[0]
    assert row['mean'] == pytest.approx(study[study.arm == 'noise'].error.mean())
    assert row.low < row['mean'] < row.high
    measures = table.groupby('arm').measure.agg(set)
    assert measures['net'] == set(study_measures)
    assert measures['perfect'] == set(study_measures) - {'spread'}
    assert len(study_table(study)) == len(table)

def test_means_of_one_network():
    cells = simulate_blood(8, size=28, labels=range(8), seed=1)
    means = hole_means(
        network(classes=cells.names, **small), encode(cells.images).repeat(2, 1, 1, 1),
        torch.arange(16) % 8, classifier(cells.names), steps=1)
    assert set(means) == set(study_measures)
    assert means['error'] > 0 and means['spread'] > 0

def test_arms_and_holes_of_the_shipped_study():
    arms = study_arms(network(), network(Denoiser))
    for name, arm in arms.items():
        if name.endswith('calls'): assert arm.nfe == int(name.split()[-2])
    assert Baseline(mean_fill).nfe == 0 and NetworkArm(network(), 7).nfe == 7
    assert list(arms) == list(shipped_study().arm.unique())
    x = encode(simulate_blood(3, size=64, labels=[1, 2, 6]).images)
    for masks in study_holes(x).values():
        assert masks.shape == (3, 1, 64, 64) and masks.dtype == torch.bool
        assert masks.flatten(1).any(1).all()

def test_shipped_tables_have_the_names_of_new_ones(study):
    shipped = shipped_study()
    assert set(shipped) == set(study) and len(shipped) == 4800
    ablation = shipped_study('inpainting-ablation')
    assert list(ablation.arm.unique()) == list(ablation_arms)
    columns = {'config', 'outside', 'cells_seen', 'seconds', *study_measures}
    assert columns < set(ablation)
    for _, row in ablation.iterrows():
        assert ablation_arms[row.arm] == dict(config=row.config, outside=row.outside)

# studies on records

@pytest.fixture(scope='module')
def dls(): return cell_dls('simulated', size=28, bs=16, n=96, device='cpu')

@pytest.fixture(scope='module')
def settings(dls, tmp_path_factory):
    "A tiny study: two tiny networks, one cell of each class, one fill"
    folder = tmp_path_factory.mktemp('networks')
    save(network(classes=tuple(dls.vocab), **small), folder/'trained')
    save(network(Denoiser, classes=(), **small), folder/'free')
    return dict(
        dls=dls, trained=folder/'trained', free=folder/'free', n=1, fills=1,
        arms=('biharmonic', 'trained, 5 calls', 'clamp, stochastic, 25 calls'),
        classifier=classifier(dls.vocab), progress=False)

class Stop(Exception):
    "The power is cut"

def stop_at_call(monkeypatch, name, k):
    "Make a function of the module raise `Stop` when it is called for the k-th time"
    original = getattr(module, name)
    calls = []
    def counted(*args, **kwargs):
        calls.append(args)
        if len(calls) == k: raise Stop
        return original(*args, **kwargs)
    monkeypatch.setattr(module, name, counted)
    return calls

def without_times(table): return table.drop(columns='seconds')

def test_a_stopped_study_ends_with_the_same_table(settings, tmp_path, monkeypatch):
    unbroken = inpainting_study(tmp_path/'unbroken', **settings)
    assert len(unbroken.groupby(['arm', 'hole'])) == 15
    assert set(unbroken) == set(shipped_study())

    folder = tmp_path/'stopped'
    with monkeypatch.context() as patched:
        stop_at_call(patched, 'score_arm', 8)
        with pytest.raises(Stop):
            inpainting_study(folder, **settings)
    assert len(Records(folder)) == 7
    with monkeypatch.context() as patched:
        calls = stop_at_call(patched, 'score_arm', 100)
        resumed = inpainting_study(folder, **settings)
    assert len(calls) == 8
    pd.testing.assert_frame_equal(without_times(resumed), without_times(unbroken))

    # Once more: nothing is left to do
    again = inpainting_study(folder, **settings)
    pd.testing.assert_frame_equal(again, resumed)

def test_a_study_of_other_settings_is_refused(settings, tmp_path):
    only = dict(settings, arms=('mean fill',))
    inpainting_study(tmp_path, **only)
    for change in (dict(seed=1), dict(fills=2), dict(free=settings['trained'])):
        with pytest.raises(ValueError, match='other settings'):
            inpainting_study(tmp_path, **(only | change))
    with pytest.raises(ValueError, match='Inpainter.* is needed'):
        inpainting_study(tmp_path, **(only | dict(trained=settings['free'])))

def test_a_stopped_ablation_ends_with_the_same_table(dls, tmp_path, monkeypatch):
    names = ['v, outside 0', 'ε cosine, outside 0.1']
    some = {name: ablation_arms[name] for name in names}
    monkeypatch.setattr(module, 'ablation_arms', some)
    monkeypatch.setattr(module, 'hole_means', partial(hole_means, fills=2, steps=1))
    settings = dict(dls=dls, epochs=1, seeds=1, n=1, dim=8,
                    classifier=classifier(dls.vocab), progress=False)
    unbroken = ablation_study(tmp_path/'unbroken', **settings)
    assert list(unbroken.arm) == names
    assert set(unbroken) == set(shipped_study('inpainting-ablation'))

    folder = tmp_path/'stopped'
    with monkeypatch.context() as patched:
        stop_at_call(patched, 'hole_means', 2)
        with pytest.raises(Stop):
            ablation_study(folder, **settings)
    assert len(Records(folder)) == 1
    resumed = ablation_study(folder, **settings)
    pd.testing.assert_frame_equal(without_times(resumed), without_times(unbroken))

@pytest.fixture(scope='module')
def wide():
    "Cells with whole pictures of 56 pixels"
    return cell_dls('simulated', size=28, n=120, bs=8, scales=(.4, 1), device='cpu')

@pytest.mark.parametrize('side', [22, 29, 56])
def test_pictures_are_filled_as_inpaint_does(wide, side):
    model = network(classes=wide.vocab, **small)
    pictures = wide.train.fields[:2]
    holes = holes_in_middle(pictures, 22, 28, seed=1)['box']
    arm = NetworkArm(model, 2, give_class=True)
    labels = torch.tensor([1, 2])
    for k in range(2):
        one = slice(k, k + 1)
        filled = fill_pictures(arm, pictures[one], holes[one], labels[one], side, 28, 3)
        picture = pictures[k].permute(1, 2, 0).numpy()
        alone = inpaint(picture, holes[k, 0].numpy(), wide.vocab[k + 1], window=side,
                        steps=2, seed=3, model=model, progress=False)
        assert (filled[0].permute(1, 2, 0).numpy() == alone[0]).all()

def test_a_perfect_fill_is_better_through_a_smaller_window(wide, tmp_path):
    save(network(classes=wide.vocab, **small), tmp_path/'net')
    asked = dict(windows=(.5, 1.), holes=('box', 'nucleus'), n=1, steps=2,
                 classifier=classifier(wide.vocab), progress=False)
    study = scale_study(tmp_path/'s', wide, tmp_path/'net', **asked)
    error = study.pivot_table(index=['hole', 'cell'], columns=['arm', 'window'],
                              values='error')
    assert (error['real'][.5] < error['real'][1.]).all()
    assert (error['real'] < error['network']).all().all()
    assert set(study_table(study, by=('window', 'arm')).measure) == {
        'error', 'seam', 'class_accuracy'}
    assert study.cell.isin(wide.idxs['test']).all()
    pd.testing.assert_frame_equal(
        study, scale_study(tmp_path/'s', wide, tmp_path/'net', **asked))
