"The forward and reverse process: against diffusers, at the ends of the chain, and with bad input"
import math, pickle
import pytest, torch
from diffusers import DDPMScheduler
from diffusers.schedulers.scheduling_ddpm import rescale_zero_terminal_snr
from cell_diffusion.core import generator
from cell_diffusion.process import *
from cell_diffusion.schedules import cosine_schedule, linear_schedule, log_snr_schedule, rescale_zero_snr

names = dict(eps='epsilon', x0='sample', v='v_prediction')
makers = dict(linear=linear_schedule, squaredcos_cap_v2=cosine_schedule)

def pair(beta_schedule, zero_snr, prediction='eps', T=1000, double=True):
    """Our schedule and diffusers' scheduler.
    Where hardly any noise is in the image, 1 - alphas_cumprod has few digits left in float32, diffusers' type: its own steps are then off by up to 1e-4.
    With `double` its formulas get the same numbers in float64, and have to agree at every t."""
    theirs = DDPMScheduler(T, beta_schedule=beta_schedule, rescale_betas_zero_snr=zero_snr and not double, prediction_type=names[prediction], clip_sample=False, variance_type='fixed_small')
    if double:
        betas = torch.linspace(1e-4, .02, T, dtype=torch.float64) if beta_schedule == 'linear' else theirs.betas.double()
        theirs.betas = rescale_zero_terminal_snr(betas) if zero_snr else betas
        theirs.alphas = 1 - theirs.betas; theirs.alphas_cumprod = theirs.alphas.cumprod(0)
    ours = makers[beta_schedule](T)
    return (rescale_zero_snr(ours) if zero_snr else ours), theirs

def images(n=4, seed=0):
    g = generator(seed)
    return torch.rand(n, 3, 8, 8, generator=g)*2 - 1, torch.randn(n, 3, 8, 8, generator=g)

@pytest.mark.parametrize('zero_snr', [False, True])
@pytest.mark.parametrize('beta_schedule', makers)
def test_forward_agrees_with_diffusers(beta_schedule, zero_snr):
    schedule, theirs = pair(beta_schedule, zero_snr)
    x0, eps = images(); t = torch.tensor([0, 10, 500, 999])
    assert torch.allclose(q_sample(x0, t, schedule, eps), theirs.add_noise(x0.double(), eps.double(), t).float(), atol=1e-5)
    assert torch.allclose(v_from(x0, eps, t, schedule), theirs.get_velocity(x0.double(), eps.double(), t).float(), atol=1e-5)

@pytest.mark.parametrize('double', [False, True])
@pytest.mark.parametrize('prediction', names)
@pytest.mark.parametrize('zero_snr', [False, True])
@pytest.mark.parametrize('beta_schedule', makers)
def test_step_back_agrees_with_diffusers(beta_schedule, zero_snr, prediction, double):
    schedule, theirs = pair(beta_schedule, zero_snr, prediction, double=double)
    x0, eps = images()
    for t in (0, 1, 2, 10, 100, 500, 900, 998, 999) if double else (100, 300, 500, 700, 900):
        if prediction == 'eps' and zero_snr and t == 999: continue  # x0 cannot be computed there: see below
        xt = q_sample(x0, t, schedule, eps)
        out = target(x0, eps, t, schedule, prediction) + .01*eps.flip(0)  # a network's answer is never exact
        x0_hat = to_x0(out, xt, t, schedule, prediction)
        theirs_back = theirs.step(out, t, xt, generator=generator(t))
        mean, variance = q_posterior(x0_hat, xt, t, schedule)
        noise = torch.randn(xt.shape, generator=generator(t)) if t else torch.zeros_like(xt)
        their_mean = theirs_back.prev_sample - theirs._get_variance(t)**.5*noise
        assert torch.allclose(mean, their_mean, atol=1e-5), (t, (mean - their_mean).abs().max())
        assert abs(variance.item() - (theirs._get_variance(t).item() if t else 0)) < 1e-5
        assert torch.allclose(p_sample(x0_hat, xt, t, schedule, generator=generator(t)), theirs_back.prev_sample, atol=1e-5)
        large = x0_hat.abs().max().clamp(min=1)  # at late t an error in eps is magnified, in both
        assert torch.allclose(x0_hat/large, theirs_back.pred_original_sample/large, atol=1e-4 if t > 990 else 1e-5)

@pytest.mark.parametrize('schedule', [linear_schedule(), cosine_schedule(), log_snr_schedule(), rescale_zero_snr(linear_schedule())])
@pytest.mark.parametrize('prediction', predictions)
def test_there_and_back(schedule, prediction):
    t = torch.arange(0, schedule.T - 1, 111); x0, eps = images(len(t))
    xt = q_sample(x0, t, schedule, eps); out = target(x0, eps, t, schedule, prediction)
    assert torch.allclose(to_x0(out, xt, t, schedule, prediction), x0, atol=1e-3)
    assert torch.allclose(to_eps(out, xt, t, schedule, prediction), eps, atol=1e-3)

def test_the_ends_are_safe():
    schedule = rescale_zero_snr(linear_schedule(100)); x0, eps = images()
    assert schedule.zero_terminal and schedule.signal[-1] == 0 and schedule.log_snr[-1] == -math.inf
    xt = q_sample(x0, 99, schedule, eps)
    assert torch.equal(xt, eps) and torch.equal(v_from(x0, eps, 99, schedule), -x0)
    assert torch.equal(x0_from_v(xt, 99, -x0, schedule), x0) and torch.equal(eps_from_v(xt, 99, -x0, schedule), eps)
    assert torch.equal(eps_from_x0(xt, 99, x0, schedule), eps)
    with pytest.raises(ValueError, match="Predict 'v' or 'x0'"): x0_from_eps(xt, 99, eps, schedule)
    with pytest.raises(ValueError, match='t=99'): to_x0(eps, xt, torch.tensor([0, 50, 98, 99]), schedule)
    assert torch.isfinite(to_x0(eps, xt, torch.tensor([0, 50, 97, 98]), schedule)).all()
    for t in range(100):
        mean, variance = q_posterior(x0, xt, t, schedule)
        assert torch.isfinite(mean).all() and 0 <= variance.item() < 1
    assert torch.equal(p_sample(x0, xt, 0, schedule, eps), x0)  # no noise at the last step

def test_steps_of_a_batch_are_its_own():
    schedule = linear_schedule(); x0, eps = images(); t = torch.tensor([0, 3, 500, 999])
    for f in (lambda x, t, e: q_sample(x, t, schedule, e), lambda x, t, e: q_step(x, t, schedule, e), lambda x, t, e: p_sample(x, e, t, schedule, e),
              lambda x, t, e: v_from(x, e, t, schedule), lambda x, t, e: x0_from_eps(x, t, e, schedule)):
        together = f(x0, t, eps)
        assert together.dtype == torch.float32 and together.shape == x0.shape
        for i in range(4): assert torch.allclose(together[i:i + 1], f(x0[i:i + 1], int(t[i]), eps[i:i + 1]), atol=1e-6)
    assert schedule.at('signal', t, torch.zeros(4)).shape == (4,) and schedule.at('signal', 3, x0).shape == (1, 1, 1, 1)

def test_chain_and_jump_have_the_same_moments():
    schedule = linear_schedule(50, .002, .4)
    x0, g = torch.full((40_000,), .7), generator(0); x = x0
    for t in range(50):
        x = q_step(x, t, schedule, generator=g)
        assert abs(x.mean() - schedule.signal[t]*.7) < .03 and abs(x.std() - schedule.noise[t]) < .03

def test_noise_comes_from_the_generator():
    x0, _ = images(); schedule = linear_schedule()
    assert torch.equal(q_sample(x0, 5, schedule, generator=generator(1)), q_sample(x0, 5, schedule, generator=generator(1)))
    assert not torch.equal(q_sample(x0, 5, schedule, generator=generator(1)), q_sample(x0, 5, schedule, generator=generator(2)))
    torch.manual_seed(0); a = noise_like(x0); torch.manual_seed(0)
    assert torch.equal(a, noise_like(x0)) and noise_like(x0.double(), generator(0)).dtype == torch.float64

@pytest.mark.parametrize('betas', [[], [[.1, .2]], [.1, 1.5], [0., .1], [.1, 1., .2], [.1, float('nan')], [-.1, .2]])
def test_bad_betas(betas):
    with pytest.raises(ValueError): Schedule(betas)

@pytest.mark.parametrize('ab', [[.9, .95], [.9, .9], [1., .5], [.5, 0., 0.], [[.5]], [.5, -.1]])
def test_bad_cumulative_products(ab):
    with pytest.raises(ValueError, match='alphas_cumprod|shape'): Schedule.from_alphas_cumprod(ab)

def test_bad_steps_and_predictions():
    x0, eps = images(); schedule = linear_schedule(10)
    for t in (-1, 10, torch.tensor([0, 1, 2, 10])):
        with pytest.raises(IndexError, match=r'0\.\.9'): q_sample(x0, t, schedule, eps)
    for f in (lambda: target(x0, eps, 0, schedule, 'noise'), lambda: to_x0(x0, eps, 0, schedule, 'noise'), lambda: to_eps(x0, eps, 0, schedule, 'noise')):
        with pytest.raises(ValueError, match="'noise'.*'eps', 'x0', 'v'"): f()

def test_a_schedule_is_light():
    schedule = linear_schedule()
    again = pickle.loads(pickle.dumps(schedule))
    for k, v in vars(schedule).items(): assert torch.equal(getattr(again, k), v) if torch.is_tensor(v) else getattr(again, k) == v
    moved = schedule.to('cpu')
    assert moved is not schedule and torch.equal(moved.betas, schedule.betas) and len(moved) == 1000 and 'T=1000' in repr(moved)
    back = Schedule.from_alphas_cumprod(schedule.alphas_cumprod.double())
    assert torch.allclose(back.betas, schedule.betas, atol=1e-5)

def test_toy_is_what_it_says():
    toy, schedule, x = Toy(), linear_schedule(50, .002, .4), torch.linspace(-4, 4, 2001)
    for t in (None, 0, 20, 49):
        args = (None, None) if t is None else (t, schedule)
        p = toy.pdf(x, *args)
        assert abs(torch.trapezoid(p, x) - 1) < 1e-3
        assert torch.allclose(torch.cumulative_trapezoid(p, x), toy.cdf(x, *args)[1:], atol=2e-3)
    for t in (0, 20, 49):
        tweedie = (x + schedule.noise[t]**2*toy.score(x, t, schedule))/schedule.signal[t]
        assert torch.allclose(toy.denoise(x, t, schedule), tweedie, atol=2e-3)
    with pytest.raises(ValueError, match='sum to 1'): Toy(weights=(.5, .2, .1))

def test_best_denoiser_of_a_set():
    cells, _ = images(8); schedule = rescale_zero_snr(linear_schedule(100)); denoise = set_denoiser(cells)
    assert torch.allclose(denoise(torch.randn(2, 3, 8, 8), 99, schedule), cells.mean(0).expand(2, -1, -1, -1), atol=1e-5)
    assert torch.allclose(denoise(q_sample(cells, 0, schedule, generator=generator(0)), 0, schedule), cells, atol=1e-5)
    g = generator(1)
    *_, (t, x, x0_hat) = reverse_walk(denoise, torch.randn(3, 3, 8, 8, generator=g), schedule, g)
    assert t == 0 and torch.equal(x, x0_hat) and (torch.cdist(x.flatten(1), cells.flatten(1)).min(1).values < 1e-2).all()
