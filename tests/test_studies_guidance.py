"The studies of guidance, morphology and rare classes find planted faults, and go on"
import numpy as np
import pandas as pd
import pytest
import torch

from cell_diffusion.classifier import CellClassifier
from cell_diffusion.core import encode, generator
from cell_diffusion.data import cell_dls
from cell_diffusion.denoiser import Denoiser, save
from cell_diffusion.metrics import diversity
from cell_diffusion.morphology import morphology_features
from cell_diffusion.plots import plot_guidance
from cell_diffusion.records import results_folder
from cell_diffusion.simulation import simulate_blood
from cell_diffusion.studies import guidance
from cell_diffusion.studies.guidance import (
    generate_arms, guidance_study, shipped_guidance, write_studies,
)
from cell_diffusion.studies.longtail import longtail_study, shipped_longtail
from cell_diffusion.studies.morphology import (
    morphology_gap, morphology_study, shipped_morphology,
)

arms = (1, None), (3, (-2., 2.5))
names = simulate_blood(1, size=28).names
measures = {'fd', 'kid', 'precision', 'recall', 'density', 'coverage', 'diversity',
            'class accuracy'}


def classifier():
    torch.manual_seed(0)
    return CellClassifier(names, size=28, dim=8).eval()


def simulated(n, seed):
    "`n` cells of each class, and their classes"
    labels = torch.arange(8).repeat_interleave(n)
    cells = simulate_blood(8*n, size=28, labels=labels.tolist(), seed=seed)
    return encode(cells.images), labels


def planted(n=8):
    "Fresh cells, and one of each class that is repeated; their classes"
    fresh, requested = simulated(n, 1)
    grain = .01*torch.randn(fresh.shape, generator=generator(0))
    stuck = fresh[::n].repeat_interleave(n, 0) + grain
    return {(1., 'everywhere'): fresh, (3., 'interval'): stuck}, requested


def test_diversity():
    x = torch.tensor([[0., 0], [3, 4], [0, 0]])
    assert diversity(x) == pytest.approx(10/3)
    assert diversity(torch.zeros(4, 2)) == 0


def test_guidance_study_finds_planted_faults():
    generated, requested = planted()
    study = guidance_study(
        generated, requested, classifier(), *simulated(16, 2), n=6, draws=2)
    assert set(study.measure) == measures
    assert set(study['class']) == {*names, 'all'} and len(study) == 3*9*8
    assert (study.low <= study.value + 1e-6).all()
    assert (study.value <= study.high + 1e-6).all()

    overall = study[study['class'] == 'all'].set_index(['where', 'measure']).value
    fresh = overall['everywhere']
    stuck = overall['interval']
    assert stuck.recall < fresh.recall
    assert stuck.coverage < fresh.coverage
    assert stuck.fd > fresh.fd


def test_morphology_study_finds_planted_faults():
    generated, requested = planted()
    table = morphology_study(generated, requested, names, *simulated(16, 2), n=8)
    sets = ['real', 'real again', 'everywhere', 'interval']
    assert len(table) == 4*64 and table['where'].unique().tolist() == sets
    gap = morphology_gap(table)
    stuck = gap[gap['where'] == 'interval'].sd.median()
    real = gap[gap['where'] == 'real again'].sd.median()
    assert stuck < .5 < real


def tiny_network(size=16):
    settings = dict(schedule='log_snr', size=size, classes=names)
    return Denoiser(dict(dim=16, mults=[1, 2]), **settings).eval()


def test_arms_have_the_same_noise():
    requested, generated = generate_arms(
        tiny_network(), arms, n=2, steps=2, progress=False)
    assert requested.tolist() == [k for k in range(8) for _ in range(2)]
    assert list(generated) == [(1., 'everywhere'), (3., 'interval')]
    assert all(x.shape == (16, 3, 16, 16) for x in generated.values())

    _, again = generate_arms(tiny_network(), arms[:1], n=2, steps=2, progress=False)
    assert torch.equal(again[1., 'everywhere'], generated[1., 'everywhere'])


@pytest.fixture
def small_studies(tmp_path, monkeypatch):
    "`write_studies` with a tiny network, few cells and an untrained classifier"
    save(tiny_network(28), tmp_path/'network')
    def loaded(*args, **kwargs):
        return cell_dls('simulated', bs=8, n=640, split=(.4, .1, .5), cache=False,
                        **kwargs)
    monkeypatch.setattr(guidance, 'cell_dls', loaded)
    monkeypatch.setattr(guidance, 'reference_classifier', lambda dls: classifier())

    def run(**kwargs):
        options = dict(n=8, steps=2, measured=3, progress=False)
        return write_studies(tmp_path/'study', 'simulated', tmp_path/'network', arms,
                             **{**options, **kwargs})
    return run


def test_studies_as_records(small_studies, monkeypatch):
    scores, shapes = small_studies()
    assert scores['where'].unique().tolist() == ['real', 'everywhere', 'interval']
    assert set(scores.measure) == measures
    assert scores[scores['where'] == 'real'].guidance_scale.isna().all()
    assert set(shapes['where']) == {'real', 'real again', 'everywhere', 'interval'}
    assert (shapes[shapes['where'] == 'interval'].groupby('class').size() == 3).all()

    # All is there already: nothing is generated again
    monkeypatch.setattr(guidance, 'generate_arms', None)
    for before, after in zip((scores, shapes), small_studies()):
        pd.testing.assert_frame_equal(before, after)
    with pytest.raises(ValueError, match='other settings'):
        small_studies(steps=3)
    with pytest.raises(ValueError, match='other settings'):
        small_studies(set_aside=.3)


def test_a_stopped_study_goes_on(small_studies, monkeypatch):
    generate = guidance.generate_arms
    generated = []

    def stop_at_the_second(model, some, *args):
        if generated == [1]:
            raise KeyboardInterrupt
        generated.append(some[0][0])
        return generate(model, some, *args)

    monkeypatch.setattr(guidance, 'generate_arms', stop_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        small_studies()
    generated[:] = [None]
    scores, shapes = small_studies()
    assert sorted(generated[1:]) == [1, 3]
    assert len(scores) == 3*9*8 and len(shapes) > 2*8*3


def test_longtail_study_runs(tmp_path):
    def run(**kwargs):
        options = dict(keep=4, epochs=1, seeds=1, n=8, size=28, n_cells=400, dim=16,
                       bs=16, steps=2, classifier=classifier(), progress=False)
        return longtail_study(tmp_path, 'simulated', 'monocyte',
                              **{**options, **kwargs})

    table = run()
    assert table.arm.tolist() == ['plain', 'balanced']
    assert table[['rare', 'others']].ge(0).all().all()
    assert np.isfinite(table[['kid', 'diversity', 'nearest']]).all().all()
    pd.testing.assert_frame_equal(run(), table)
    with pytest.raises(ValueError, match='keep'):
        run(keep=5)


def test_shipped_tables():
    study, settings = shipped_guidance()
    assert set(study['where']) == {'everywhere', 'interval', 'real'}
    assert {0, 1, 1.5, 2, 3, 5} == set(study.guidance_scale.dropna())
    assert set(study.measure) == measures
    assert set(settings['training_cells']) == set(names)
    plot_guidance(study)

    assert set(morphology_features) <= set(shipped_morphology())
    columns = {'arm', 'seed', 'rare', 'others', 'kid', 'diversity', 'nearest'}
    assert columns <= set(shipped_longtail())
    for name in ('guidance.csv', 'morphology.csv'):
        assert (results_folder/name).stat().st_size < 200_000
