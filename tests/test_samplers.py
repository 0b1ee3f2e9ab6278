"Samplers: against diffusers on one network, against a flow that is known, and there and back again"
import numpy as np, pytest, torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler, HeunDiscreteScheduler
from cell_diffusion.core import generator
from cell_diffusion.ddpm import *
from cell_diffusion.evaluation import CellClassifier
from cell_diffusion.process import Toy, eps_from_x0
from cell_diffusion.schedules import *
from cell_diffusion.samplers import *
import cell_diffusion.samplers as module

short = dict(euler=euler, ddim=ddim, heun=heun, dpm_solver=dpm_solver)

@pytest.fixture(scope='module', params=['linear', 'cosine', 'log_snr'])
def network(request):
    "A small network with random weights: it paints nonsense, but every sampler must make the same nonsense of it"
    torch.manual_seed(0)
    model = Denoiser(dict(dim=16, mults=[1, 2]), schedule=request.param, prediction='v', data_std=.5, size=16).eval().requires_grad_(False)
    for p in model.parameters(): p.add_(.03*torch.randn(p.shape))
    return model

def noise(n=2, size=16, seed=1): return torch.randn(n, 3, size, size, generator=generator(seed))

def scheduler(cls, model, **kwargs):
    "One of diffusers' schedulers on exactly the model's levels: float64 `alphas_cumprod`, since their own product of float32 betas loses digits near 1"
    theirs = cls(model.schedule.T, trained_betas=model.schedule.betas.tolist(), **kwargs)
    theirs.alphas_cumprod = model.schedule._ab.clone()
    return theirs

def guess(model, xt, t): return model.x0(xt.float(), torch.full((len(xt),), int(t)))

def walk_in_x(theirs, model, x, stochastic=None):
    "diffusers' loop for schedulers whose images are xt, fed with the network's clipped estimate of x0"
    for t in theirs.timesteps: x = theirs.step(guess(model, x, t), t, x, **(stochastic or {})).prev_sample
    return x

def walk_in_y(theirs, model, x, first):
    "diffusers' loop for schedulers whose images are y = x0 + σ ε; `scale_model_input` turns them into xt for the network"
    y = x.double()/model.schedule._ab[first].sqrt()
    for i, t in enumerate(theirs.timesteps):
        x0 = guess(model, theirs.scale_model_input(y, t), t)
        y = theirs.step((y - x0)/theirs.sigmas[i].double(), t, y).prev_sample
    return y.float()

@pytest.mark.parametrize('steps', [5, 20, 50])
def test_ddim_agrees_with_diffusers(network, steps):
    # trailing spacing, ᾱ = 1 after the last step, and the noise worked out again from the clipped estimate
    theirs = scheduler(DDIMScheduler, network, timestep_spacing='trailing', prediction_type='sample', clip_sample=False, set_alpha_to_one=True)
    theirs.set_timesteps(steps)
    assert theirs.timesteps.tolist() == timesteps(network.schedule, steps, 'time').tolist()
    assert torch.allclose(ddim(network, noise(), steps=steps, spacing='time'), walk_in_x(theirs, network, noise()).float(), atol=1e-4)

def test_ddim_with_fresh_noise_agrees_with_diffusers(network):
    theirs = scheduler(DDIMScheduler, network, timestep_spacing='trailing', prediction_type='sample', clip_sample=False, set_alpha_to_one=True)
    theirs.set_timesteps(10)
    ours = ddim(network, noise(), rng=generator(3), steps=10, spacing='time', eta=.7)
    assert torch.allclose(ours, walk_in_x(theirs, network, noise(), dict(eta=.7, generator=generator(3))).float(), atol=1e-4)

@pytest.mark.parametrize('spacing', ['log_snr', 'karras', 'time'])
@pytest.mark.parametrize('steps', [5, 20])
def test_dpm_solver_agrees_with_diffusers(network, steps, spacing):
    # second order, midpoint form, first order at the last step, which goes to σ = 0
    theirs = scheduler(DPMSolverMultistepScheduler, network, prediction_type='sample', algorithm_type='dpmsolver++', solver_order=2, solver_type='midpoint',
                       lower_order_final=True, final_sigmas_type='zero')
    ts = timesteps(network.schedule, steps, spacing)
    theirs.set_timesteps(timesteps=ts.tolist())
    assert theirs.timesteps.tolist() == ts.tolist()
    assert torch.allclose(dpm_solver(network, noise(), steps=steps, spacing=spacing), walk_in_x(theirs, network, noise().double()).float(), atol=1e-4)

@pytest.mark.parametrize('spacing', ['log_snr', 'karras', 'time'])
@pytest.mark.parametrize('name', ['euler', 'heun'])
def test_euler_and_heun_agree_with_diffusers(network, name, spacing):
    # images are y = x0 + σ ε there; no noise is added (s_churn = 0), the last σ is 0
    theirs = scheduler(EulerDiscreteScheduler if name == 'euler' else HeunDiscreteScheduler, network, prediction_type='epsilon')
    ts = timesteps(network.schedule, 12, spacing)
    theirs.set_timesteps(timesteps=ts.tolist())
    assert theirs.sigmas[-1] == 0 and len(theirs.timesteps) == network_calls(name, len(ts))
    ours = short[name](network, noise(), steps=12, spacing=spacing)
    if theirs.sigmas[0] > 1000: pytest.skip('cosine with even time begins at σ = 20,000, where float32 leaves y three digits after the point, here and there')
    assert torch.allclose(ours, walk_in_y(theirs, network, noise(), int(ts[0])), atol=1e-4)

bell, table = Toy((1.,), (.3,), (.5,)), log_snr_schedule(1921)

def error(sampler, steps):
    "Largest error of the ends on a Gaussian: its flow only stretches"
    z = torch.linspace(-2, 2, 32)
    a, s = table.signal[-1], table.noise[-1]
    return (sampler(Oracle(bell, table), a*.3 + (a**2*.25 + s**2).sqrt()*z, steps=steps) - (.3 + .5*z)).abs().max().item()

@pytest.mark.parametrize('name, order', dict(euler=1, ddim=1, heun=2, dpm_solver=2).items())
def test_order_of_convergence(name, order):
    steps = [31, 61, 121]                                   # the table's 1,920 gaps divide evenly
    slope = np.polyfit(np.log(steps), np.log([error(short[name], n) for n in steps]), 1)[0]
    assert abs(slope + order) < .15*order

@pytest.mark.parametrize('name', short)
def test_one_answer_from_four_kinds_of_network(name):
    toy, z, ends = Toy(), noise(2, 8), []
    for prediction, data_std in (('eps', 1.), ('x0', 1.), ('v', 1.), ('v', .5)):
        model = Denoiser(dict(dim=16), schedule='log_snr', prediction=prediction, data_std=data_std)
        def forward(xt, t, label=None):
            x0 = toy.denoise(xt, t, model.schedule)
            return model.target(x0, eps_from_x0(xt, t, x0, model.schedule), t)
        model.forward = forward
        ends.append(short[name](model, z, steps=10))
    assert all(torch.allclose(e, ends[1], atol=1e-4) for e in ends)

def test_euler_is_ddim_and_two_steps_of_dpm_solver_are_too():
    oracle, z = Oracle(Toy(), log_snr_schedule()), torch.randn(500, generator=generator(0))
    assert torch.allclose(euler(oracle, z, steps=15), ddim(oracle, z, steps=15), atol=1e-4)
    assert torch.allclose(dpm_solver(oracle, z, steps=2), ddim(oracle, z, steps=2), atol=1e-4)

def test_ddim_with_eta_1_at_every_timestep_is_ancestral():
    oracle, z = Oracle(Toy(), linear_schedule(200, 5e-4, .1)), torch.randn(500, generator=generator(0))
    assert torch.allclose(ddim(oracle, z, rng=generator(1), steps=200, eta=1., spacing='time'), ancestral(oracle, z, rng=generator(1)), atol=1e-3)

@pytest.mark.parametrize('name', short)
@pytest.mark.parametrize('schedule', [linear_schedule(), cosine_schedule(), log_snr_schedule(), rescale_zero_snr(linear_schedule())])
def test_every_spacing_works_on_every_schedule(name, schedule):
    toy, z = Toy(), torch.randn(64, generator=generator(0))
    for spacing in spacings:
        ts = timesteps(schedule, 40, spacing)
        assert schedule.log_snr[ts[0]] < -8 and (ts.diff() < 0).all() and ts[-1] >= 0 and len(ts) <= 40
        end = short[name](Oracle(toy, schedule), z, steps=40, spacing=spacing)
        assert end.shape == z.shape and torch.isfinite(end).all()

def test_karras_spacing_is_their_equation():
    ts = karras_timesteps(log_snr_schedule(100_000), 18)
    i = torch.arange(18).double()/17
    theirs = (80**(1/7) + i*(.002**(1/7) - 80**(1/7)))**7
    sch = log_snr_schedule(100_000)
    assert torch.allclose((-.5*sch.log_snr[ts]).exp().double(), theirs, rtol=1e-3)

def test_a_wrong_spacing_is_refused():
    schedule = log_snr_schedule()
    with pytest.raises(ValueError, match="'simga'.*log_snr, time, karras"): timesteps(schedule, 5, 'simga')
    for name in spacings:
        for steps in (0, 1001):
            with pytest.raises(ValueError, match='1..1000'): timesteps(schedule, steps, name)

def test_calls_are_counted_right():
    z = torch.zeros(1)
    for name in (*short, 'ancestral'):
        oracle = Oracle(Toy(), log_snr_schedule(50)); samplers[name](oracle, z, steps=7)
        assert oracle.calls == network_calls(name, 7, 50)
        for calls in (1, 2, 9, 10): assert name == 'ancestral' or calls - 1 <= network_calls(name, steps_for(name, calls)) <= calls

def test_sample_knows_them_and_passes_arguments_on(network):
    for name in short:
        x, path = sample(network, 2, sampler=name, steps=4, seed=2, spacing='karras', trajectory=True, progress=False)
        assert x.shape == (2, 3, 16, 16) and len(path) == 4 and path[0][0] >= network.schedule.T - 10
        assert torch.equal(x, sample(network, 2, sampler=name, steps=4, seed=2, spacing='karras', progress=False))
    calm, dice = (sample(network, 2, sampler='ddim', steps=4, seed=2, eta=eta, progress=False) for eta in (0., 1.))
    assert not torch.equal(calm, dice)

def test_inversion_and_back():
    oracle = Oracle(bell, log_snr_schedule())
    cells, errors = bell.sample(200, generator(0)), []
    for steps in (20, 40, 80): errors.append((ddim(oracle, invert(oracle, cells, steps=steps), steps=steps) - cells).pow(2).mean().sqrt().item())
    assert errors[0] > 1.6*errors[1] > 1.6**2*errors[2] and errors[2] < .05
    z = invert(Oracle(Toy(), log_snr_schedule()), Toy().sample(5000, generator(1)), steps=200)
    assert abs(z.mean()) < .05 and abs(z.std() - 1) < .05

def test_slerp_stays_on_the_shell():
    a, b = noise(3, 32, 1), noise(3, 32, 2)
    assert torch.allclose(slerp(a, b, 0.), a, atol=1e-5) and torch.allclose(slerp(a, b, 1.), b, atol=1e-5)
    for w in (.2, .5, .8): assert (slerp(a, b, w).flatten(1).std(1) - 1).abs().max() < .03
    assert torch.allclose(slerp(a, a, .3), a, atol=1e-4)                                       # no angle between them
    assert torch.allclose(slerp(a, b, .3)[1:], slerp(a[1:], b[1:], .3))                        # each image by itself

def test_quality_against_cost(monkeypatch, tmp_path):
    monkeypatch.setattr(module, 'sample', lambda model, n, label, steps, **kw: noise(n, 16, steps).clamp(-1, 1))
    torch.manual_seed(0)
    judge, model = CellClassifier(['a', 'b'], size=16, dim=8).eval(), Denoiser(dict(dim=16), size=16, classes=['a', 'b'])
    x, y = noise(40, 16, 9).clamp(-1, 1), torch.arange(40) % 2
    some = {k: contestants[k] for k in ('ddim', 'heun')}
    t = quality_against_cost(model, judge, x, y, some, calls=(5, 6), n=20, draws=2, path=tmp_path/'t.csv')
    assert t.groupby(['sampler', 'calls']).size().to_dict() == {('ddim', 5): 2, ('ddim', 6): 2, ('heun', 5): 2, ('real cells', 0): 2} and (t.n == 16).all()
    assert t[t.sampler == 'heun'].steps.unique().tolist() == [3] and t.recognised.between(0, 1).all()
    monkeypatch.setattr(module, 'sample', lambda *a, **kw: pytest.fail('painted again what the file holds'))
    assert len(quality_against_cost(model, judge, x, y, some, calls=(5, 6), n=20, draws=2, path=tmp_path/'t.csv')) == len(t)
    with pytest.raises(ValueError, match='t.json'): quality_against_cost(model, judge, x, y, some, calls=(5, 6), n=20, draws=3, path=tmp_path/'t.csv')
    with torch.no_grad(): next(model.parameters()).add_(1)
    with pytest.raises(ValueError, match='another network'): quality_against_cost(model, judge, x, y, some, calls=(5, 6), n=20, draws=2, path=tmp_path/'t.csv')
    plot_cost(t)
