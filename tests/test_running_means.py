"""Running means of any length: the mathematics, a run that keeps them, and kills

A run keeps two means; `posthoc_mean` combines them into another one, which must be
that which is taken directly during the run. A killed run leaves the same files.
"""
from copy import deepcopy
import numpy as np
import pytest
import torch
from fastai.learner import Callback
from rare_cells import some_cells
from safetensors.torch import load_file
from cell_diffusion import training
from cell_diffusion.augmentation import generator_dls
from cell_diffusion.denoiser import Denoiser, load, save
from cell_diffusion.recipes import train_model
from cell_diffusion.records import check_out
from cell_diffusion.training import (
    KeepEarly, RunningMeans, combination, compare_lengths, diffusion_learner, fit_for,
    gamma_of, kept_means, posthoc_mean, update_mean,
)

# The mathematics

@pytest.mark.parametrize('sigma_rel, gamma', [(.05, 16.97), (.10, 6.94), (.25, .72)])
def test_gamma_is_that_of_the_paper(sigma_rel, gamma):
    "Karras et al. 2024 name the first two; the third by its equation"
    g = gamma_of(sigma_rel)
    assert g == pytest.approx(gamma, abs=.01)
    assert (g + 1)**.5/(g + 2)/(g + 3)**.5 == pytest.approx(sigma_rel)

@pytest.mark.parametrize('wrong', [0, -1, .3, float('nan'), 'long'])
def test_a_length_is_a_share_of_the_run(wrong):
    with pytest.raises(ValueError, match='sigma_rel=.* should be a number above 0'):
        gamma_of(wrong)

def by_recursion(t, sigma_rel, n):
    "The weight of each of `n` steps in the mean that the recursion makes"
    mean = [torch.zeros(n, dtype=torch.float64)]
    for step in range(1, t + 1):
        now = torch.zeros(n, dtype=torch.float64)
        now[step - 1] = 1
        update_mean(mean, [now], step, gamma_of(sigma_rel))
    return mean[0].numpy()

def profile(t, sigma_rel, n):
    "The same in closed form"
    i = np.arange(n + 1).clip(max=t)/t
    return np.diff(i**(gamma_of(sigma_rel) + 1))

@pytest.mark.parametrize('sigma_rel', [.05, .1, .2, .2886])
def test_a_mean_has_its_length_and_the_weights_of_the_closed_form(sigma_rel):
    t = 400
    p = by_recursion(t, sigma_rel, 450)
    assert p == pytest.approx(profile(t, sigma_rel, 450))
    assert p.sum() == pytest.approx(1)
    gamma = gamma_of(sigma_rel)
    i = np.arange(450) + .5
    assert p@i/t == pytest.approx((gamma + 1)/(gamma + 2), rel=1e-4)
    length = np.sqrt(p@(i - p@i)**2)/t
    assert length == pytest.approx(sigma_rel, rel=2e-3)

@pytest.mark.parametrize('sigma_rel, most', [
    (.03, .04), (.05, 1e-6), (.07, .004), (.1, 1e-6), (.15, .01), (.2, .025)])
def test_sixteen_pairs_come_near_to_any_length(sigma_rel, most):
    "The error that is foretold is that of the profiles"
    kept = [(25*k, s) for k in range(1, 17) for s in (.05, .1)]
    factors, error = combination(kept, 400, sigma_rel)
    assert factors.sum() == pytest.approx(1) and error < most
    wanted = profile(400, sigma_rel, 400)
    made = sum(x*profile(*mean, 400) for x, mean in zip(factors, kept))
    true_error = np.linalg.norm(made - wanted)/np.linalg.norm(wanted)
    assert true_error == pytest.approx(error, abs=.002)

# A run

def cells():
    few = some_cells((20, 16))
    return generator_dls(few.images, few.labels, few.names, bs=8)

class Direct(Callback):
    "Running means of several lengths, step by step in double precision"
    def __init__(self, lengths):
        self.lengths = lengths
        self.early = None

    def before_fit(self):
        self.means = [[torch.zeros_like(p).double() for p in self.model.parameters()]
                      for _ in self.lengths]

    def after_step(self):
        step = self.learn.budget.steps + 1
        weights = [p.detach().double() for p in self.model.parameters()]
        for mean, length in zip(self.means, self.lengths):
            update_mean(mean, weights, step, gamma_of(length))
        if step == 48: self.early = deepcopy(self.means)

def learner(*cbs):
    return diffusion_learner(cells(), dim=4, mults=(1, 2), patch=1, cbs=cbs,
                             precision='float32')

def distance(weights, true):
    "Relative distance of two sets of tensors"
    gap = sum((a - b).square().sum() for a, b in zip(weights, true))
    return (gap/sum(b.square().sum() for b in true)).sqrt().item()

lengths = .03, .07, .15, .22

@pytest.fixture(scope='module')
def run(tmp_path_factory):
    "A run of 96 steps, and means of four lengths that were taken directly"
    folder = tmp_path_factory.mktemp('run')
    direct = Direct(lengths)
    learn = learner(direct, RunningMeans(folder/'means'))
    steps = fit_for(learn, epochs=24, lr=3e-3, progress=False).steps
    assert steps == 96
    return folder, direct

@pytest.mark.parametrize('k, step', [(0, None), (1, None), (2, None), (2, 48)])
def test_a_combined_mean_is_the_direct_one(run, k, step):
    folder, direct = run
    model = posthoc_mean(folder, lengths[k], step, 'cpu', 'float32')
    means = direct.early if step else direct.means
    off = distance(list(model.parameters()), means[k])
    other = distance(means[k], means[(k + 1) % 4])
    rounding = 2**-11 # Relative, of numbers in half precision
    assert off < .01 and off < other/10 + 3*rounding
    assert not model.training and model.settings == direct.learn.model.settings

def test_what_is_kept(run):
    folder, _ = run
    kept = kept_means(folder)
    assert list(kept.step) == [s for k in range(1, 17) for s in (6*k, 6*k)]
    assert list(kept.length) == [.05, .1]*16
    tensors = load_file(kept.folder[0]/'model.safetensors').values()
    assert all(tensor.dtype == torch.float16 for tensor in tensors)

def test_lengths_are_compared_in_a_table(run):
    folder, _ = run
    table = compare_lengths(folder, (.05, .1), lambda model: dict(size=model.size))
    assert list(table.columns) == ['length', 'size'] and len(table) == 2
    assert list(table['length']) == [.05, .1]

def test_what_cannot_be_made_is_said(run, tmp_path):
    folder, _ = run
    with pytest.raises(FileNotFoundError, match='holds no running means: train with'):
        posthoc_mean(tmp_path, .1)
    with pytest.raises(ValueError, match='No means were kept at step 49: choose one of'
                                         ' 6, 12, '):
        posthoc_mean(folder, .1, 49)
    with pytest.warns(UserWarning, match='length of 0.01 only within'):
        posthoc_mean(folder, .01)
    save(Denoiser(dict(dim=8, mults=[1])), tmp_path/'means'/'01-0.05')
    kept = kept_means(folder).folder[0]
    save(load(kept, 'cpu'), tmp_path/'means'/'02-0.1')
    with pytest.raises(ValueError, match='02-0.1 is of another network'):
        posthoc_mean(tmp_path, .1)

# Kills

def files(folder):
    return {str(f.relative_to(folder)): f.read_bytes()
            for f in sorted(folder.rglob('*')) if f.is_file() and f.name != 'run.pt'}

def train(folder, n=3, **budget):
    learn = learner(RunningMeans(folder/'means', n), KeepEarly(folder/'early', .4))
    fit_for(learn, checkpoint=folder/'run.pt', progress=False, **budget)
    return learn

class Killed(BaseException):
    "As if the system had ended the process"

@pytest.fixture
def kill(monkeypatch):
    "Kill a run while it saves its network number `k`, in place of its last part"
    def kill_at(k, before):
        left = iter(range(k)[::-1])
        def dying(model, folder):
            last = next(left) == 0
            if last and before: raise Killed
            save(model, folder)
            if last: raise Killed
        monkeypatch.setattr(training, 'save', dying)
    yield kill_at

# So that a budget of minutes is the same number of steps in each run
@pytest.fixture
def clock(monkeypatch):
    ticks = iter(range(10**6))
    monkeypatch.setattr(training.time, 'perf_counter', lambda: next(ticks)/16)

@pytest.mark.parametrize('budget', [dict(epochs=3), dict(minutes=12/16/60)],
                         ids=lambda b: next(iter(b)))
@pytest.mark.parametrize('k, before, every', [(2, True, 0.), (3, False, 60.),
                                              (7, False, 0.)])
def test_a_killed_run_leaves_the_same_files(tmp_path, kill, clock, monkeypatch,
                                            budget, k, before, every):
    monkeypatch.setattr(training.Checkpoint.__init__, '__defaults__', (None, every))
    train(tmp_path/'whole', **budget)
    whole = files(tmp_path/'whole')
    assert len(whole) == 14, 'three times two means, and an early one'
    with monkeypatch.context():
        kill(k, before)
        with pytest.raises(Killed):
            train(tmp_path/'killed', **budget)
        monkeypatch.setattr(training, 'save', save)
    train(tmp_path/'killed', **budget)
    assert files(tmp_path/'killed') == whole

def test_means_of_a_future_that_did_not_come_are_removed(tmp_path):
    train(tmp_path, epochs=1)
    for name in ('0000099-0.05', 'mine-own'):
        (tmp_path/'means'/name).mkdir()
    early = (tmp_path/'early'/'model.safetensors').stat().st_mtime_ns
    train(tmp_path, epochs=1)
    names = {f.name for f in (tmp_path/'means').iterdir()}
    assert names >= {'0000099-0.05'}, 'nothing was left to train'
    train(tmp_path, epochs=2)
    names = {f.name for f in (tmp_path/'means').iterdir()}
    assert '0000099-0.05' not in names
    assert names >= {'mine-own', '0000002-0.05', '0000004-0.05'}, 'of the first epoch'
    assert (tmp_path/'early'/'model.safetensors').stat().st_mtime_ns == early

def test_a_run_without_means_does_not_get_them_in_its_midst(tmp_path):
    fit_for(learner(), epochs=1, checkpoint=tmp_path/'run.pt', progress=False)
    with pytest.raises(ValueError, match='is of a run without running means, and they'):
        train(tmp_path, epochs=2)

# The recipe

def test_train_keeps_means_and_an_early_one(tmp_path):
    common = dict(n=96, size=32, bs=16, dim=8, scored=0, steps=2, progress=False)
    record = train_model(out=tmp_path/'run', epochs=2, means=4, early_at=.5, **common)
    assert record['means'] == 4 and record['early_at'] == .5
    assert len(kept_means(tmp_path/'run')) == 8
    model = posthoc_mean(tmp_path/'run', .12)
    early = load(tmp_path/'run'/'early')
    assert early.settings == model.settings == load(tmp_path/'run').settings
    with pytest.raises(ValueError, match='means was 4 there and is 0 here'):
        train_model(out=tmp_path/'run', epochs=3, early_at=.5, **common)

@pytest.mark.parametrize('wrong', [dict(means=-1), dict(means=2.5), dict(early_at=1.5)])
def test_settings_are_checked_first(tmp_path, wrong):
    name, = wrong
    with pytest.raises(ValueError, match=f'{name}=.* should be'):
        train_model(out=tmp_path/'run', **wrong)

@pytest.mark.parametrize('name', ['means/0000005-0.05', 'early'])
def test_a_run_killed_before_its_first_checkpoint_may_begin_again(tmp_path, name):
    save(learner().model, tmp_path/name)
    check_out(tmp_path, 'denoiser')
    with pytest.raises(FileExistsError, match='holds a trained generator'):
        check_out(tmp_path, 'classifier')


def test_means_remember_no_graph(tmp_path):
    "A graph that grew with each step took the memory of a long run"
    means = RunningMeans(tmp_path/'means', n=2)
    cells = some_cells((16, 8))
    dls = generator_dls(cells.images, cells.labels, cells.names, bs=8)
    learn = diffusion_learner(dls, dim=4, patch=1, cbs=[means])
    fit_for(learn, epochs=2, progress=False)
    kept = [p for mean in means.means for p in mean.parameters()]
    assert kept and not any(p.requires_grad or p.grad_fn for p in kept)


@pytest.mark.parametrize('there', [False, True])
def test_an_early_mean_is_kept_where_its_share_is_past_already(tmp_path, there):
    "A killed run that goes on with fewer minutes may begin beyond it"
    cells = some_cells((16, 8))
    dls = generator_dls(cells.images, cells.labels, cells.names, bs=8)
    learn = diffusion_learner(dls, dim=4, patch=1)
    fit_for(learn, epochs=2, checkpoint=tmp_path/'run.pt', progress=False)

    folder = tmp_path/'early'
    if there: save(learn.ema.averaged, folder)
    before = (folder/'model.safetensors').stat().st_mtime_ns if there else None
    learn = diffusion_learner(dls, dim=4, patch=1, cbs=[KeepEarly(folder, .1)])
    fit_for(learn, epochs=3, checkpoint=tmp_path/'run.pt', progress=False)
    load(folder, 'cpu')
    if there: assert (folder/'model.safetensors').stat().st_mtime_ns == before
