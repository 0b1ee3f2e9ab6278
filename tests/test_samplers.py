"Samplers: against diffusers, against a flow that is known, and there and back again"
import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from diffusers import (
    DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler,
    HeunDiscreteScheduler,
)

from cell_diffusion.classifier import CellClassifier
from cell_diffusion.core import generator
from cell_diffusion.denoiser import (
    Condition, Denoiser, denoise, load, weights_hash)
from cell_diffusion.plots import plot_cost
from cell_diffusion.process import eps_from_x0, q_sample
from cell_diffusion.records import results_folder
from cell_diffusion.sampling import (
    ancestral, batched_denoise, begin_walk, ddim, ddim_inverse, dpm_solver,
    early_timesteps, euler, even_out, _generate, heun, invert, karras_timesteps,
    nfe, sample, samplers, slerp, spacings, steps_for, timesteps,
)
from cell_diffusion.schedules import (
    cosine_schedule, linear_schedule, log_snr_schedule, rescale_zero_snr,
)
from cell_diffusion.studies import samplers as study
from cell_diffusion.studies.samplers import contestants, quality_against_cost
from cell_diffusion.toys import Oracle, Toy

short = dict(euler=euler, ddim=ddim, heun=heun, dpm_solver=dpm_solver)
each_short = pytest.mark.parametrize('name', short)


@pytest.fixture(scope='module', params=['linear', 'cosine', 'log_snr'])
def network(request):
    """A small network with random weights.

    It generates nonsense, but every sampler must make the same nonsense of it.
    """
    torch.manual_seed(0)
    model = Denoiser(dict(dim=16, mults=[1, 2]), schedule=request.param,
                     prediction='v', data_std=.5, size=16)
    model.eval().requires_grad_(False)
    for p in model.parameters():
        p.add_(.03*torch.randn(p.shape))
    return model


def noise(n=2, size=16, seed=1):
    return torch.randn(n, 3, size, size, generator=generator(seed))


def solve(sampler, oracle, x, steps, spacing='log_snr', **options):
    "What a sampler makes of `x` with an oracle"
    ts = timesteps(oracle.schedule, steps, spacing)
    return sampler(oracle, x, oracle.schedule, ts, **options)


def generate(sampler, model, x, steps, spacing='log_snr', **options):
    "What a sampler makes of `x` with a network"
    ts = timesteps(model.schedule, steps, spacing)
    denoise = batched_denoise(model, Condition())
    return sampler(denoise, x, model.schedule, ts, **options)


# Against diffusers

def scheduler(cls, model, **settings):
    """One of diffusers' schedulers on exactly the noise levels of the model.

    Their own product of float32 betas loses digits near 1.
    """
    theirs = cls(model.schedule.T, trained_betas=model.schedule.betas.tolist(),
                 **settings)
    theirs.alphas_cumprod = model.schedule._ab.clone()
    return theirs


def ddim_scheduler(model):
    "Trailing spacing, and ᾱ = 1 after the last step"
    return scheduler(DDIMScheduler, model, timestep_spacing='trailing',
                     prediction_type='sample', clip_sample=False,
                     set_alpha_to_one=True)


def estimate(model, xt, t):
    return model.x0(xt.float(), torch.full((len(xt),), int(t)))


def walk_in_x(theirs, model, x, **options):
    "diffusers' loop for schedulers whose images are xt, fed with the clipped estimate"
    for t in theirs.timesteps:
        x = theirs.step(estimate(model, x, t), t, x, **options).prev_sample
    return x.float()


def walk_in_y(theirs, model, x, first):
    """diffusers' loop for schedulers whose images are y = x0 + σ ε.

    `scale_model_input` turns them into xt for the network.
    """
    y = x.double()/model.schedule._ab[first].sqrt()
    for i, t in enumerate(theirs.timesteps):
        x0 = estimate(model, theirs.scale_model_input(y, t), t)
        y = theirs.step((y - x0)/theirs.sigmas[i].double(), t, y).prev_sample
    return y.float()


@pytest.mark.parametrize('steps', [5, 20, 50])
def test_ddim_agrees_with_diffusers(network, steps):
    theirs = ddim_scheduler(network)
    theirs.set_timesteps(steps)
    ts = timesteps(network.schedule, steps, 'time')
    assert theirs.timesteps.tolist() == ts.tolist()

    ours = generate(ddim, network, noise(), steps, 'time')
    assert torch.allclose(ours, walk_in_x(theirs, network, noise()), atol=1e-4)


def test_ddim_with_fresh_noise_agrees_with_diffusers(network):
    theirs = ddim_scheduler(network)
    theirs.set_timesteps(10)
    expected = walk_in_x(theirs, network, noise(), eta=.7, generator=generator(3))
    ours = generate(ddim, network, noise(), 10, 'time', rng=generator(3), eta=.7)
    assert torch.allclose(ours, expected, atol=1e-4)


@pytest.mark.parametrize('spacing', ['log_snr', 'karras', 'time'])
@pytest.mark.parametrize('steps', [5, 20])
def test_dpm_solver_agrees_with_diffusers(network, steps, spacing):
    # Second order, midpoint form, first order at the last step, which goes to σ = 0
    theirs = scheduler(
        DPMSolverMultistepScheduler, network, prediction_type='sample',
        algorithm_type='dpmsolver++', solver_order=2, solver_type='midpoint',
        lower_order_final=True, final_sigmas_type='zero')
    ts = timesteps(network.schedule, steps, spacing)
    theirs.set_timesteps(timesteps=ts.tolist())
    assert theirs.timesteps.tolist() == ts.tolist()

    expected = walk_in_x(theirs, network, noise().double())
    ours = generate(dpm_solver, network, noise(), steps, spacing)
    assert torch.allclose(ours, expected, atol=1e-4)


theirs_in_y = dict(euler=EulerDiscreteScheduler, heun=HeunDiscreteScheduler)


@pytest.mark.parametrize('spacing', ['log_snr', 'karras', 'time'])
@pytest.mark.parametrize('name', theirs_in_y)
def test_euler_and_heun_agree_with_diffusers(network, name, spacing):
    # No noise is added (s_churn = 0), and the last σ is 0
    theirs = scheduler(theirs_in_y[name], network, prediction_type='epsilon')
    ts = timesteps(network.schedule, 12, spacing)
    theirs.set_timesteps(timesteps=ts.tolist())
    assert theirs.sigmas[-1] == 0
    assert len(theirs.timesteps) == nfe(name, len(ts))

    ours = generate(short[name], network, noise(), 12, spacing)
    if theirs.sigmas[0] > 1000:
        pytest.skip('cosine with even time begins at σ = 20,000, where float32 leaves '
                    'y three digits after the point')
    expected = walk_in_y(theirs, network, noise(), int(ts[0]))
    assert torch.allclose(ours, expected, atol=1e-4)


# Against a flow that is known

bell = Toy((1.,), (.3,), (.5,))
table = log_snr_schedule(1921)


def error(sampler, steps):
    "Largest error of the ends on a Gaussian: its flow only stretches"
    z = torch.linspace(-2, 2, 32)
    a = table.signal[-1]
    s = table.noise[-1]
    x = a*.3 + (a**2*.25 + s**2).sqrt()*z
    ends = solve(sampler, Oracle(bell, table), x, steps)
    return (ends - (.3 + .5*z)).abs().max().item()


orders = dict(euler=1, ddim=1, heun=2, dpm_solver=2)


@pytest.mark.parametrize('name, order', orders.items())
def test_order_of_convergence(name, order):
    # The table's 1,920 gaps divide evenly
    steps = [31, 61, 121]
    errors = [error(short[name], n) for n in steps]
    slope, _ = np.polyfit(np.log(steps), np.log(errors), 1)
    assert abs(slope + order) < .15*order


def knowing(prediction, data_std):
    "A network whose output is what the toy's best denoiser knows"
    toy = Toy()
    model = Denoiser(dict(dim=16), schedule='log_snr', prediction=prediction,
                     data_std=data_std)

    def forward(xt, t, label=None):
        x0 = toy.denoise(xt, t, model.schedule)
        return model.target(x0, eps_from_x0(xt, t, x0, model.schedule), t)
    model.forward = forward
    return model


@each_short
def test_one_answer_from_four_kinds_of_network(name):
    kinds = [('eps', 1.), ('x0', 1.), ('v', 1.), ('v', .5)]
    ends = [generate(short[name], knowing(*k), noise(2, 8), 10) for k in kinds]
    assert all(torch.allclose(end, ends[1], atol=1e-4) for end in ends)


def test_euler_is_ddim_and_two_steps_of_dpm_solver_are_too():
    oracle = Oracle(Toy(), log_snr_schedule())
    z = torch.randn(500, generator=generator(0))
    fifteen = solve(ddim, oracle, z, 15)
    two = solve(ddim, oracle, z, 2)
    assert torch.allclose(solve(euler, oracle, z, 15), fifteen, atol=1e-4)
    assert torch.allclose(solve(dpm_solver, oracle, z, 2), two, atol=1e-4)


def test_ddim_with_eta_1_at_every_timestep_is_ancestral():
    oracle = Oracle(Toy(), linear_schedule(200, 5e-4, .1))
    z = torch.randn(500, generator=generator(0))
    ours = solve(ddim, oracle, z, 200, 'time', rng=generator(1), eta=1.)
    known = ancestral(oracle, z, oracle.schedule, rng=generator(1))
    assert torch.allclose(ours, known, atol=1e-3)


# Timesteps and costs

all_schedules = [linear_schedule(), cosine_schedule(), log_snr_schedule(),
                 rescale_zero_snr(linear_schedule())]


@each_short
@pytest.mark.parametrize('schedule', all_schedules)
def test_every_spacing_works_on_every_schedule(name, schedule):
    z = torch.randn(64, generator=generator(0))
    for spacing in spacings:
        ts = timesteps(schedule, 40, spacing)
        assert schedule.log_snr[ts[0]] < -8
        assert (ts.diff() < 0).all()
        assert ts[-1] >= 0
        assert len(ts) <= 40

        end = solve(short[name], Oracle(Toy(), schedule), z, 40, spacing)
        assert end.shape == z.shape
        assert torch.isfinite(end).all()


def test_karras_spacing_is_their_equation():
    schedule = log_snr_schedule(100_000)
    ts = karras_timesteps(schedule, 18)
    ours = (-.5*schedule.log_snr[ts]).exp().double()
    i = torch.arange(18).double()/17
    theirs = (80**(1/7) + i*(.002**(1/7) - 80**(1/7)))**7
    assert torch.allclose(ours, theirs, rtol=1e-3)


@pytest.mark.parametrize('schedule', all_schedules)
@pytest.mark.parametrize('steps', [1, 2, 16])
def test_an_early_end_leaves_grey_levels_to_the_last_call(schedule, steps):
    ts = timesteps(schedule, steps, early_timesteps)
    assert ts[0] == schedule.T - 1 and len(ts) == steps
    left = 127.5*(-.5*schedule.log_snr[ts[-1]]).exp()
    if steps > 1: assert left == pytest.approx(3, abs=.2)
    end = dpm_solver(Oracle(Toy(), schedule), torch.zeros(3), schedule, ts)
    assert torch.isfinite(end).all()


def test_sample_ends_its_walk_early(network):
    "Where three grey levels of noise are left, unless it is told otherwise"
    def visited(**options):
        _, path = sample(network, 1, steps=8, trajectory=True, progress=False,
                         **options)
        return [t for t, *_ in path]

    schedule = network.schedule
    assert visited() == timesteps(schedule, 8, 'early').tolist()
    assert visited(spacing='log_snr') == timesteps(schedule, 8).tolist()
    assert visited()[-1] > visited(spacing='log_snr')[-1] == 0


def test_a_wrong_spacing_is_refused():
    schedule = log_snr_schedule()
    with pytest.raises(ValueError, match="'simga'.*log_snr, time, karras, early"):
        timesteps(schedule, 5, 'simga')
    for name in spacings:
        for steps in (0, 1001):
            with pytest.raises(ValueError, match='from 1 to 1,000'):
                timesteps(schedule, steps, name)


@pytest.mark.parametrize('name', [*short, 'ancestral'])
def test_calls_are_counted_right(name):
    oracle = Oracle(Toy(), log_snr_schedule(50))
    solve(samplers[name].algorithm, oracle, torch.zeros(1), 7)
    assert oracle.calls == nfe(name, 7, 50)


@each_short
@pytest.mark.parametrize('calls', [1, 2, 9, 10])
def test_steps_for_spends_the_calls(name, calls):
    assert calls - 1 <= nfe(name, steps_for(name, calls)) <= calls
    assert nfe(name, steps_for(name, calls) + 1) > calls


# With a network

@each_short
def test_sample_knows_them(network, name):
    options = dict(sampler=name, steps=4, seed=2, spacing='karras', progress=False)
    x, path = sample(network, 2, trajectory=True, **options)
    assert x.shape == (2, 3, 16, 16)
    assert len(path) == 4
    assert path[0][0] >= network.schedule.T - 10
    assert torch.equal(x, sample(network, 2, **options))


class FlatPictures(torch.nn.Module):
    "The exact denoiser of pictures of one grey each: normal about .5, deviation .1"
    jumps = None
    channels = 3
    size = 32
    classes = ()
    device = torch.device('cpu')
    sees_known = False
    unet = SimpleNamespace(patch=1)
    mean = .5
    std = .1

    def __init__(self):
        super().__init__()
        self.schedule = log_snr_schedule(1000)
        self.asked = 0

    def noisiest(self, eps, t):
        return eps

    def estimate(self, xt, t, label=None):
        self.asked += 1
        signal = self.schedule.at('signal', t, xt)
        noise = self.schedule.at('noise', t, xt)
        precision = xt[0].numel()*(signal/noise)**2
        seen = xt.mean((1, 2, 3), keepdim=True)/signal
        grey = (self.mean/self.std**2 + precision*seen)/(1/self.std**2 + precision)
        return grey.expand_as(xt)


def test_cells_are_as_bright_as_those_of_the_data():
    model = FlatPictures()
    eps = torch.randn(200, 3, 32, 32, generator=generator(0))
    ts = timesteps(model.schedule, 20, 'early')
    ask = batched_denoise(model, Condition())
    dark = dpm_solver(ask, eps, model.schedule, ts).mean((1, 2, 3))
    assert dark.mean() < .48, 'noise alone is the end of dark pictures'
    x = _generate(model, 200, Condition(), samplers['dpm_solver'], 0, 20, 'early', 256,
                  False, False, {})
    grey = x.mean((1, 2, 3))
    # The mean of 200 greys has a deviation of .007
    assert abs(grey.mean() - .5) < .02
    assert abs(grey.std() - .1) < .02


def test_a_walk_begins_with_the_trace_of_the_first_estimate():
    mean = [.6, .3, -.2]
    model = Denoiser(dict(dim=16, mults=[1, 2]), schedule='log_snr', prediction='v',
                     data_mean=mean, size=16)
    last = model.schedule.T - 1
    eps = torch.randn(2, 3, 16, 16, generator=generator(2))
    options = dict(seed=2, steps=4, trajectory=True, progress=False)
    _, path = sample(model, 2, **options)
    _, xt, x0 = path[0]
    assert torch.allclose(xt, q_sample(x0, last, model.schedule, eps), atol=1e-5)
    with torch.no_grad():
        assert torch.allclose(x0, denoise(model, model.noisiest(eps), last), atol=1e-5)
    about_the_mean = torch.tensor(mean).view(1, 3, 1, 1).expand_as(eps)
    noisiest = q_sample(about_the_mean, last, model.schedule, eps)
    assert torch.allclose(model.noisiest(eps), noisiest, atol=1e-3)

    # A spacing of one's own may begin later
    _, path = sample(model, 2, spacing=lambda *_: [700, 300], **options)
    t, xt, x0 = path[0]
    assert t == 700
    assert torch.allclose(xt, q_sample(x0, t, model.schedule, eps), atol=1e-5)
    asked = q_sample(about_the_mean, t, model.schedule, eps)
    with torch.no_grad():
        assert torch.allclose(x0, denoise(model, asked, t), atol=1e-5)


def test_only_the_first_question_is_answered_already():
    "A sampler of one's own may ask what it likes"
    model = FlatPictures()
    ask = batched_denoise(model, Condition())
    eps = torch.randn(4, 3, 32, 32, generator=generator(0))
    begin, kept = begin_walk(model, ask, eps)
    assert torch.equal(kept(begin, 999), ask(model.noisiest(eps, 999), 999))
    for x, t in ((begin, 999), (begin, 500), (begin[:1], 999)):
        _, kept = begin_walk(model, ask, eps)
        if t == 999 and len(x) == 4:
            kept(x, t)
        assert torch.equal(kept(x, t), ask(x, t))


def lattices(x):
    "The four means of the lattices of every second pixel, less their own mean"
    means = x.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).mean((2, 4)).flatten(2)
    return means - means.mean(2, keepdim=True)


@pytest.mark.parametrize('patch, evened', [(1, False), (2, True)])
def test_cells_of_a_network_that_folds_pixels_are_evened_out(patch, evened):
    unet = dict(dim=16, mults=[1, 2], patch=patch)
    model = Denoiser(unet, schedule='log_snr', prediction='v', data_std=.3, size=16)
    torch.nn.init.normal_(model.unet.out[-1].bias, std=.2, generator=generator(0))
    options = dict(seed=2, steps=4, progress=False)
    x, path = sample(model, 2, trajectory=True, **options)
    last = path[-1][2]
    assert lattices(last).abs().max() > 1e-3
    assert (lattices(x).abs().max() < 1e-6) == evened
    assert torch.allclose(x.mean((2, 3)), last.mean((2, 3)), atol=1e-3)
    expected = even_out(last) if evened else last
    assert torch.allclose(x, expected, atol=1e-6)

    # A hole has too few pixels, unless all is hidden
    known = torch.rand(1, 3, 16, 16)
    mask = torch.zeros(1, 1, 16, 16, dtype=torch.bool)
    mask[..., 4:9, 4:9] = True
    filled, path = sample(model, 2, known=known, mask=mask, trajectory=True, **options)
    assert torch.equal(filled, path[-1][2])
    assert lattices(filled).abs().max() > 1e-3
    filled = sample(model, 2, known=known, mask=torch.ones_like(mask), **options)
    assert (lattices(filled).abs().max() < 1e-6) == evened


@pytest.mark.parametrize('unet, size', [
    (dict(dim=16, mults=[1], patch=3), 33), (dict(kind='transformer', token=3), 27)])
def test_odd_squares_are_left_as_they_are(unet, size):
    model = Denoiser(unet, schedule='log_snr', prediction='v', size=size)
    assert sample(model, 1, steps=2, progress=False).shape == (1, 3, size, size)


def test_evening_out_keeps_all_but_the_shortest_waves():
    x = torch.rand(2, 3, 16, 24, generator=generator(0))
    y = even_out(x)
    before = torch.fft.fft2(x)
    after = torch.fft.fft2(y)
    rows, columns = torch.meshgrid(torch.arange(16), torch.arange(24), indexing='ij')
    shortest = (rows % 8 == 0) & (columns % 12 == 0) & (rows + columns > 0)
    assert shortest.sum() == 3
    assert torch.allclose(before[..., ~shortest], after[..., ~shortest], atol=1e-4)
    assert after[..., shortest].abs().max() < 1e-4


@pytest.mark.parametrize('name', [*short, 'ancestral'])
def test_the_first_estimate_costs_no_call(name):
    model = FlatPictures()
    model.schedule = log_snr_schedule(50)
    _generate(model, 2, Condition(), samplers[name], 0, 4, 'early', 256, False, False,
              {})
    assert model.asked == nfe(name, 4, 50)


def test_sample_passes_arguments_on(network):
    options = dict(sampler='ddim', steps=4, seed=2, progress=False)
    calm = sample(network, 2, eta=0., **options)
    assert torch.equal(calm, sample(network, 2, **options))
    assert not torch.equal(calm, sample(network, 2, eta=1., **options))


def test_sample_takes_a_function(network):
    options = dict(steps=4, seed=2, progress=False)
    by_name = sample(network, 2, sampler='ddim', **options)
    assert torch.equal(by_name, sample(network, 2, sampler=ddim, **options))


# There and back again

def test_inversion_and_back():
    oracle = Oracle(bell, log_snr_schedule())
    cells = bell.sample(200, generator(0))
    errors = []
    for steps in (20, 40, 80):
        z = ddim_inverse(oracle, cells, oracle.schedule,
                         timesteps(oracle.schedule, steps))
        back = solve(ddim, oracle, z, steps)
        errors.append((back - cells).pow(2).mean().sqrt().item())
    assert errors[0] > 1.6*errors[1] > 1.6**2*errors[2]
    assert errors[2] < .05


def test_inverted_toy_is_noise():
    schedule = log_snr_schedule()
    numbers = Toy().sample(5000, generator(1))
    z = ddim_inverse(Oracle(Toy(), schedule), numbers, schedule,
                     timesteps(schedule, 200))
    assert abs(z.mean()) < .05
    assert abs(z.std() - 1) < .05


def test_invert_is_the_inverse_with_a_network(network):
    cells = noise().clamp(-1, 1)
    ts = timesteps(network.schedule, 8, 'time')
    denoise = batched_denoise(network, Condition())
    with torch.no_grad():
        expected = ddim_inverse(denoise, cells, network.schedule, ts)
    z = invert(network, cells, steps=8, spacing='time')
    assert torch.equal(z, expected)
    assert z.shape == cells.shape


def test_slerp_stays_on_the_shell():
    a = noise(3, 32, 1)
    b = noise(3, 32, 2)
    assert torch.allclose(slerp(a, b, 0.), a, atol=1e-5)
    assert torch.allclose(slerp(a, b, 1.), b, atol=1e-5)
    for share in (.2, .5, .8):
        sds = slerp(a, b, share).flatten(1).std(1)
        assert (sds - 1).abs().max() < .03

    # No angle between them
    assert torch.allclose(slerp(a, a, .3), a, atol=1e-4)
    # Each image by itself
    assert torch.allclose(slerp(a, b, .3)[1:], slerp(a[1:], b[1:], .3))


# The study

@pytest.fixture
def tiny(monkeypatch, tmp_path):
    "Arguments of a tiny study; what it generates is noise"
    def generated(model, n, label, steps, **options):
        return noise(n, 16, steps).clamp(-1, 1)
    monkeypatch.setattr(study, 'sample', generated)
    torch.manual_seed(0)
    return dict(
        model=Denoiser(dict(dim=16), size=16, classes=['a', 'b']),
        classifier=CellClassifier(['a', 'b'], size=16, dim=8).eval(),
        x=noise(40, 16, 9).clamp(-1, 1), y=torch.arange(40) % 2,
        samplers={name: contestants[name] for name in ('ddim', 'heun')},
        calls=(5, 6), n=20, draws=2, folder=tmp_path/'samplers')


def test_quality_against_cost(tiny):
    t = quality_against_cost(**tiny)
    sizes = t.groupby(['sampler', 'nfe']).size().to_dict()
    assert sizes == {('ddim', 5): 2, ('ddim', 6): 2, ('heun', 5): 2,
                     ('real cells', 0): 2}
    assert (t.n == 16).all()
    assert t[t.sampler == 'heun'].steps.unique().tolist() == [3]
    assert t.class_accuracy.between(0, 1).all()
    plot_cost(t)
    plot_cost(t.assign(class_accuracy=.986), 'class_accuracy')


def test_quality_against_cost_is_the_same_without_a_folder(tiny):
    kept = quality_against_cost(**tiny)
    tiny['folder'] = None
    pd.testing.assert_frame_equal(quality_against_cost(**tiny)[kept.columns], kept)


def test_a_network_without_classes_has_no_class_accuracy(tiny):
    tiny['model'] = Denoiser(dict(dim=16), size=16)
    t = quality_against_cost(**tiny)
    real = t.sampler == 'real cells'
    assert t[real].class_accuracy.notna().all()
    assert t[~real].class_accuracy.isna().all()


def test_a_stopped_study_goes_on(tiny, monkeypatch):
    t = quality_against_cost(**tiny)
    def fail(*args, **options): pytest.fail('generated again what the folder holds')
    monkeypatch.setattr(study, 'sample', fail)
    pd.testing.assert_frame_equal(quality_against_cost(**tiny), t)


def test_results_of_other_settings_are_refused(tiny):
    quality_against_cost(**tiny)
    with pytest.raises(ValueError, match='other settings.*draws'):
        quality_against_cost(**{**tiny, 'draws': 3})
    with pytest.raises(ValueError, match='other settings.*labels'):
        quality_against_cost(**{**tiny, 'y': tiny['y'].flip(0)})

    for name in ('model', 'classifier'):
        parameter = next(tiny[name].parameters())
        with torch.no_grad():
            parameter.add_(1)
        what = 'weights' if name == 'model' else 'classifier'
        with pytest.raises(ValueError, match=f'other settings.*{what}'):
            quality_against_cost(**tiny)
        with torch.no_grad():
            parameter.sub_(1)


def test_the_shipped_table_is_of_the_shipped_network():
    settings = json.loads((results_folder/'samplers.json').read_text())
    model = load('blood32', 'cpu', precision='float32')
    assert weights_hash(model) == settings['weights']
    judge = load('blood-classifier-32-judge', 'cpu', precision='float32')
    assert weights_hash(judge) == settings['classifier']
