"Training and sampling: targets, budgets, runs that go on after a kill, samplers"
import math
import numpy as np
import pytest
import torch
from fastai.learner import Callback
from cell_diffusion.core import generator
from cell_diffusion.data import cell_dls
from cell_diffusion.denoiser import (Condition, Denoiser, denoise, load, save, shipped,
                                     warm_start)
from cell_diffusion.process import q_sample
from cell_diffusion.sampling import ancestral, dpm_solver, sample, timesteps
from cell_diffusion.schedules import log_snr_schedule
from cell_diffusion.training import (Budget, SampleEachEpoch, check_processes,
                                     ddpm_learner,
                                     diffusion_learner, fit_for, lognormal_timesteps,
                                     pixel_statistics, snr_weight)

tiny = dict(dim=16, mults=[1, 2])

@pytest.fixture(scope='module')
def cells():
    return cell_dls('simulated', size=28, bs=16, n=96)

def learner(cells, **kwargs):
    return diffusion_learner(cells, 'edm', dim=16, mults=(1, 2), precision='float32',
                             **kwargs)

def normal(*shape, seed=0):
    return torch.randn(shape, generator=generator(seed))

def randomize(model, std=.05, seed=0):
    "Weights that are not zero anywhere"
    rng = generator(seed)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=std, generator=rng)
    return model

# Targets, weights, noise levels

@pytest.mark.parametrize('prediction, data_std',
                         [('eps', 1.), ('x0', 1.), ('v', 1.), ('v', .5)])
def test_target_and_x0_undo_each_other(prediction, data_std):
    model = Denoiser(tiny, prediction=prediction, data_std=data_std)
    x0 = normal(8, 3, 8, 8).clamp(-1, 1)
    eps = normal(8, 3, 8, 8, seed=1)
    t = torch.arange(0, 800, 100)
    xt = q_sample(x0, t, model.schedule, eps)
    back = model.out_to_x0(model.target(x0, eps, t), xt, t)
    assert torch.allclose(back, x0, atol=2e-4)

def test_edm_is_v_prediction_for_data_of_known_spread():
    model = Denoiser(tiny, schedule='log_snr', prediction='v', data_std=.5)
    t = torch.randint(1000, (8,), generator=generator(0))
    x0 = normal(8, 3, 8, 8, seed=1)
    f = normal(8, 3, 8, 8, seed=2)
    xt = q_sample(x0, t, model.schedule, normal(8, 3, 8, 8, seed=3))
    noise = model.schedule.at('noise', t, x0)
    signal = model.schedule.at('signal', t, x0)
    s = (noise/signal).double()
    sd = .5
    skip = sd**2/(s**2 + sd**2)*xt*(1 + s**2)**.5
    paper = skip + s*sd/(s**2 + sd**2)**.5*f
    assert torch.allclose(model.out_to_x0(-f, xt, t), paper.float(), atol=1e-4)

@pytest.mark.parametrize('prediction', ['eps', 'x0', 'v'])
def test_min_snr_gives_the_error_of_x0_one_weight_for_every_prediction(prediction):
    model = Denoiser(tiny, schedule='cosine', prediction=prediction)
    t = torch.tensor([5, 200, 600, 950])
    zero = torch.zeros(4, 3, 8, 8)
    error = normal(4, 3, 8, 8)
    out = model.target(zero, zero, t) + error
    x0_error = model.out_to_x0(out, q_sample(zero, t, model.schedule, zero), t)
    loss = snr_weight(model, t)*error.pow(2).flatten(1).mean(1)
    weight = loss/x0_error.pow(2).flatten(1).mean(1)
    assert torch.allclose(weight, model.schedule.snr[t].clamp(max=5), rtol=1e-3)

def test_lognormal_timesteps():
    schedule = log_snr_schedule()
    t = lognormal_timesteps(50_000, schedule, generator(0))
    log_sigma = -.5*schedule.log_snr[t]
    assert abs(log_sigma.mean() + 1.2) < .03
    assert abs(log_sigma.std() - 1.2) < .03

# Runs

def test_first_loss_is_one_and_training_lowers_it(cells):
    learn = ddpm_learner(cells, Denoiser(tiny, size=28), precision='float32')
    def loss():
        with learn.no_bar(), learn.no_logging():
            return learn.validate()[0]
    before = loss()
    budget = fit_for(learn, epochs=3, lr=3e-3, progress=False)
    assert abs(before - 1) < .1
    assert loss() < .9*before
    assert budget.steps == 3*len(cells.train)

class Kill(Callback):
    "Stops a run after its second epoch"
    order = 100
    def after_epoch(self):
        if self.epoch == 1: raise KeyboardInterrupt

def test_resumed_run_repeats_the_unbroken_one(cells, tmp_path):
    whole = learner(cells)
    unbroken = fit_for(whole, epochs=3, progress=False)
    run = dict(epochs=3, checkpoint=tmp_path/'run.pt', progress=False)
    with pytest.raises(KeyboardInterrupt):
        fit_for(learner(cells, cbs=[Kill()]), **run)
    again = learner(cells)
    resumed = fit_for(again, **run)

    assert len(resumed.losses) == len(unbroken.losses)
    losses = torch.stack(unbroken.losses)
    assert torch.allclose(torch.stack(resumed.losses), losses, atol=1e-5)
    averaged = again.ema.averaged.parameters()
    for a, b in zip(whole.ema.averaged.parameters(), averaged):
        assert torch.allclose(a, b, atol=1e-5)
    assert [f.name for f in tmp_path.iterdir()] == ['run.pt']
    assert fit_for(learner(cells), **run).steps == unbroken.steps, 'nothing is left'

def test_checkpoint_has_the_layout_of_the_first_release(cells, tmp_path):
    learn = learner(cells)
    fit_for(learn, epochs=1, checkpoint=tmp_path/'run.pt', progress=False)
    state = torch.load(tmp_path/'run.pt', weights_only=True)
    first = ['run', 'model', 'ema', 'opt', 'epochs', 'steps', 'seconds', 'losses']
    assert list(state)[:8] == first
    assert list(state['model']) == list(state['ema']) == list(learn.model.state_dict())
    assert all(name.startswith('unet.') for name in state['ema'])
    assert state['epochs'] == 1 and state['steps'] == len(state['losses'])

def test_checkpoint_of_another_network_is_a_clear_error(cells, tmp_path):
    run = dict(epochs=1, checkpoint=tmp_path/'run.pt', progress=False)
    fit_for(learner(cells), **run)
    wider = diffusion_learner(cells, 'edm', dim=32, mults=(1, 2))
    with pytest.raises(ValueError, match='another network'):
        fit_for(wider, **run)

def test_checkpoint_of_another_run_is_a_clear_error(cells, tmp_path):
    run = dict(epochs=1, checkpoint=tmp_path/'run.pt', progress=False)
    fit_for(learner(cells), run=dict(config='edm'), **run)
    with pytest.raises(ValueError, match="another run: config was 'edm'"):
        fit_for(learner(cells), run=dict(config='ddpm'), **run)

def test_a_loss_that_is_not_finite_stops_the_run_and_spares_the_mean(cells):
    class Break(Callback):
        def before_batch(self):
            if self.learn.budget.steps != 2: return
            target, weight = self.learn.yb
            self.learn.yb = (target*float('nan'), weight)
    learn = learner(cells, cbs=[Break()])
    with pytest.raises(FloatingPointError, match='learning rate'):
        fit_for(learn, epochs=2, progress=False)
    assert all(torch.isfinite(p).all() for p in learn.ema.averaged.parameters())
    assert learn.ema.steps == 2

@pytest.mark.parametrize('wrong', [
    dict(), dict(minutes=0), dict(epochs=0), dict(minutes=1, epochs=1)])
def test_wrong_budget(wrong):
    with pytest.raises(ValueError):
        Budget(1e-3, **wrong)

def test_budget_of_minutes_ends(cells, tmp_path):
    run = dict(minutes=.02, checkpoint=tmp_path/'run.pt', progress=False)
    budget = fit_for(learner(cells), **run)
    assert fit_for(learner(cells), **run).steps == budget.steps
    assert 1.2 <= budget.seconds < 6
    assert budget.used == 1
    assert budget.rate(0.) < .1*budget.lr
    assert budget.rate(.3) == budget.lr
    assert budget.rate(1.) < 1e-9

def test_averaged_network_is_a_denoiser_that_is_not_trained(cells):
    learn = learner(cells, classes=True)
    fit_for(learn, epochs=2, progress=False)
    averaged = learn.ema.averaged
    assert type(averaged) is Denoiser and not averaged.training
    assert averaged.classes == tuple(cells.vocab)
    assert averaged.settings == learn.model.settings
    assert averaged.precision == 'float32'
    assert not any(p.requires_grad for p in averaged.parameters())
    gap = sum((a - b).abs().sum()
              for a, b in zip(learn.model.parameters(), averaged.parameters()))
    assert 0 < gap < .2*sum(a.abs().sum() for a in learn.model.parameters())

def test_labels_are_dropped_to_the_null_class(cells):
    seen = []
    class Watch(Callback):
        def after_batch(self): seen.append(self.learn.xb[2])
    learn = learner(cells, classes=True, label_dropout=1., cbs=[Watch()])
    fit_for(learn, epochs=1, progress=False)
    assert (torch.cat(seen) == 8).all()

def test_pictures_after_each_epoch(cells):
    pictures = SampleEachEpoch(n=3, steps=2, every=2)
    fit_for(learner(cells, classes=True, cbs=[pictures]), epochs=3, progress=False)
    assert [p.shape for p in pictures.images] == [(3, 3, 28, 28)]*2

# Sampling

def test_sampling_is_reproducible_and_independent_of_batches():
    model = randomize(Denoiser(tiny, schedule='log_snr', prediction='v', size=16,
                               classes=['a', 'b']), seed=1)
    def cells(n, label, **kwargs):
        return sample(model, n, label, seed=3, steps=5, progress=False, **kwargs)
    a = cells(5, 'a')
    assert torch.equal(a, cells(5, 0))
    assert not torch.equal(a, cells(5, 'b'))
    assert torch.allclose(a[:2], cells(2, 'a'), atol=1e-4)
    assert torch.allclose(a, cells(5, 'a', bs=2), atol=1e-4)
    assert a.shape == (5, 3, 16, 16) and a.abs().max() <= 1

@pytest.mark.parametrize('wrong', [
    dict(label='monocite'), dict(label=[0, 1, 0]), dict(label=7), dict(sampler='dimm'),
    dict(steps=0)])
def test_wrong_arguments_of_sample(wrong):
    model = Denoiser(tiny, size=16, classes=['a', 'b'])
    with pytest.raises(ValueError):
        sample(model, 2, progress=False, **wrong)

def test_wrong_names():
    with pytest.raises(ValueError, match='eps, x0, v'):
        Denoiser(tiny, prediction='noise')
    with pytest.raises(ValueError, match="There is no folder 'blood31'"):
        shipped('blood31')
    with pytest.raises(ValueError, match='edm'):
        diffusion_learner(None, 'edn')

def test_samplers_on_a_gaussian_with_known_score():
    schedule = log_snr_schedule()
    sd = .2
    def estimate(xt, t):
        "The best estimate of cells that are Gaussian noise of standard deviation `sd`"
        ab = schedule.alphas_cumprod[t]
        return ab.sqrt()*sd**2*xt/(ab*sd**2 + 1 - ab)

    z = normal(2000, 1, 4, 4)
    errors = []
    for k in (10, 20, 40, 80):
        x = dpm_solver(estimate, z, schedule, timesteps(schedule, k))
        # The flow of a Gaussian keeps quantiles
        errors.append((x - sd*z).abs().mean().item())
    assert errors[0] < .02 and errors[1] < errors[0]/2 and errors[3] < errors[2]/2
    assert abs(ancestral(estimate, z, schedule, rng=generator(1)).std() - sd) < .01

@pytest.mark.parametrize('steps', [1, 2, 20, 50])
def test_timesteps_even_in_log_snr(steps):
    ts = timesteps(log_snr_schedule(), steps)
    assert len(ts) == steps and ts[0] == 999 and (ts.diff() < 0).all()
    if steps == 20: assert ts[-1] == 0

def test_denoise_asks_mixes_clips_and_keeps():
    model = randomize(Denoiser(tiny, schedule='log_snr', prediction='v', size=16,
                               classes=['a', 'b']), std=.1).eval()
    xt = normal(2, 3, 16, 16)
    t = torch.tensor([300, 600])
    label = torch.tensor([0, 1])
    known = normal(2, 3, 16, 16, seed=1)
    mask = torch.zeros(2, 1, 16, 16, dtype=torch.bool)
    mask[:, :, :8] = True
    with torch.no_grad():
        ours = denoise(model, xt, t, Condition(label, 2., known=known, mask=mask))
        free = model.estimate(xt, t)
        with_class = model.estimate(xt, t, label)
    mixed = (free + 2*(with_class - free)).clamp(-1, 1)
    assert torch.allclose(ours[:, :, :8], mixed[:, :, :8], atol=1e-4)
    assert torch.equal(ours[:, :, 8:], known[:, :, 8:])

# Saving, types

def test_weights_travel_with_their_settings(tmp_path):
    model = randomize(Denoiser(tiny, schedule='cosine', prediction='v', data_std=.5,
                               size=20, classes=['a', 'b'])).eval()
    for p in model.parameters():
        p.data = p.data.half().float()
    save(model, tmp_path)
    back = load(tmp_path, 'cpu', precision='float32')
    assert back.classes == ('a', 'b') and back.size == 20 and back.data_std == .5
    files = {f.name for f in tmp_path.iterdir()}
    assert files == {'model.safetensors', 'config.json'}
    inputs = normal(2, 3, 20, 20), torch.tensor([1, 500]), torch.tensor([0, 1])
    assert torch.equal(model(*inputs), back(*inputs))

@pytest.mark.parametrize('dtype, atol', [
    (torch.float64, 1e-4), (torch.bfloat16, .1), (torch.float16, .02)])
def test_a_cast_network_works(dtype, atol):
    model = randomize(Denoiser(tiny, schedule='log_snr', prediction='v', data_std=.5,
                               size=16, classes=['a', 'b'])).eval()
    x = normal(2, 3, 16, 16)
    t = torch.tensor([3, 700])
    label = torch.tensor([0, 1])
    def results():
        with torch.no_grad():
            return (model(x, t, label), denoise(model, x, t, Condition(label, 2.)),
                    sample(model, 2, 'a', steps=3, progress=False))
    before = results()
    model.to(dtype)
    assert model.dtype == dtype
    for a, b in zip(before, results()):
        assert b.dtype == torch.float32
        assert torch.allclose(a, b, atol=atol)

# Cells whose pixels are not centred

def dark_cells():
    return cell_dls('simulated-jurkat', size=28, n=96, bs=16,
                    channels=('brightfield', 'darkfield'))

def dark_model(**kwargs):
    settings = dict(schedule='cosine', data_std=.2, data_mean=(-.3, -.8), size=16)
    return Denoiser(dict(channels=2, dim=8, mults=[1]), **{**settings, **kwargs})

def test_pixel_statistics_are_those_of_the_training_cells():
    dls = dark_cells()
    mean, std = pixel_statistics(dls)
    x = dls.train.arrays[0]/127.5 - 1
    assert np.allclose(mean, x.mean((0, 2, 3)), atol=1e-5)
    assert std == pytest.approx(np.sqrt(x.var((0, 2, 3)).mean()), rel=1e-4)

@pytest.mark.parametrize('t', [0, 400, 700, 999])
def test_input_of_the_unet_has_mean_0_and_variance_1(t):
    model = dark_model(schedule='log_snr', prediction='v')
    x0 = normal(64, 2, 16, 16)*.2 + torch.tensor([-.3, -.8]).view(1, 2, 1, 1)
    t = torch.full((64,), t)
    xt = q_sample(x0, t, model.schedule, normal(64, 2, 16, 16, seed=1))
    x = model.scale_input(xt, t)
    assert x.mean((0, 2, 3)).abs().max() < .02
    assert (x.std((0, 2, 3)) - 1).abs().max() < .02

@pytest.mark.parametrize('prediction', ['v', 'eps', 'x0'])
def test_target_and_x0_undo_each_other_with_a_mean(prediction):
    model = dark_model(prediction=prediction)
    x0 = torch.rand(8, 2, 16, 16, generator=generator(0))*2 - 1
    eps = normal(8, 2, 16, 16, seed=1)
    t = torch.arange(50, 850, 100)
    xt = q_sample(x0, t, model.schedule, eps)
    back = model.out_to_x0(model.target(x0, eps, t), xt, t)
    assert torch.allclose(back, x0, atol=1e-3)

def test_normalize_moves_noise_levels_in_proportion_and_is_saved(tmp_path):
    dls = dark_cells()
    learn = diffusion_learner(dls, dim=8, mults=(1,), normalize=True)
    mean, std = pixel_statistics(dls)
    assert learn.model.data_mean == tuple(mean) and learn.model.data_std == std
    levels = (-.8 + math.log(std/.5), 1.)
    assert learn.noise.noise_levels == pytest.approx(levels)
    save(learn.model, tmp_path)
    again = load(tmp_path, 'cpu')
    assert again.data_mean == tuple(mean) and again.data_std == std
    other = dark_model(schedule='log_snr', prediction='v', data_std=std, size=28,
                       data_mean=(0.,))
    with pytest.raises(ValueError, match='its data_mean is'):
        warm_start(other, again)

# Several processes; what they do together is in `test_distributed.py`

launched = dict(WORLD_SIZE='4', RANK='3', LOCAL_RANK='3', MASTER_ADDR='a',
                MASTER_PORT='1')

@pytest.mark.parametrize('change, error, says', [
    (dict(MASTER_PORT=None), ValueError, 'not where they meet'),
    (dict(RANK='x'), ValueError, 'not where they meet'),
    (dict(LOCAL_RANK='2'), ValueError, 'there are 2: start no more'),
    (dict(WORLD_SIZE=None, ACCELERATE_USE_CPU='True'), UserWarning, 'one process')])
def test_a_launch_that_cannot_train_together(monkeypatch, change, error, says):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    for name, value in dict(launched, **change).items():
        if value: monkeypatch.setenv(name, value)
    expected = pytest.warns if error is UserWarning else pytest.raises
    with expected(error, match=says):
        check_processes()
