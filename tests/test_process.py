"The forward and reverse process: against diffusers, at its ends, and with bad input"
import copy, math, pickle
import pytest, torch
from diffusers import DDPMScheduler
from diffusers.schedulers.scheduling_ddpm import rescale_zero_terminal_snr
from torch import nn
from cell_diffusion.core import generator
from cell_diffusion.process import *
from cell_diffusion.process import (predictions, noise_like, reverse_walk, v_from,
    x0_from_eps, eps_from_x0, x0_from_v, eps_from_v)
from cell_diffusion.schedules import (cosine_schedule, linear_schedule,
    log_snr_schedule, rescale_zero_snr)
from cell_diffusion.toys import Toy, set_denoiser

names = dict(eps='epsilon', x0='sample', v='v_prediction')
makers = dict(linear=linear_schedule, squaredcos_cap_v2=cosine_schedule)
tables = ('betas', 'alphas', 'alphas_cumprod', 'signal', 'noise', 'snr', 'log_snr',
          'mean_x0', 'mean_xt', 'posterior_variance')

def pair(beta_schedule, zero_snr, prediction='eps', T=1000, double=True):
    """Our schedule and diffusers' scheduler.

    diffusers computes in float32. With hardly any noise in the image, its
    1 - alphas_cumprod has few digits left and its steps are off by up to 1e-4.
    With `double` its formulas get the same numbers in float64 and must agree at
    every t."""
    theirs = DDPMScheduler(
        T, beta_schedule=beta_schedule, prediction_type=names[prediction],
        rescale_betas_zero_snr=zero_snr and not double,
        clip_sample=False, variance_type='fixed_small')
    if double:
        betas = theirs.betas.double()
        if beta_schedule == 'linear':
            betas = torch.linspace(1e-4, .02, T, dtype=torch.float64)
        theirs.betas = rescale_zero_terminal_snr(betas) if zero_snr else betas
        theirs.alphas = 1 - theirs.betas
        theirs.alphas_cumprod = theirs.alphas.cumprod(0)
    ours = makers[beta_schedule](T)
    return (rescale_zero_snr(ours) if zero_snr else ours), theirs

def images(n=4, seed=0):
    "Clean images and noise"
    g = generator(seed)
    x0 = torch.rand(n, 3, 8, 8, generator=g)*2 - 1
    return x0, torch.randn(n, 3, 8, 8, generator=g)

@pytest.mark.parametrize('zero_snr', [False, True])
@pytest.mark.parametrize('beta_schedule', makers)
def test_forward_agrees_with_diffusers(beta_schedule, zero_snr):
    schedule, theirs = pair(beta_schedule, zero_snr)
    x0, eps = images()
    t = torch.tensor([0, 10, 500, 999])
    noised = theirs.add_noise(x0.double(), eps.double(), t).float()
    assert torch.allclose(q_sample(x0, t, schedule, eps), noised, atol=1e-5)
    velocity = theirs.get_velocity(x0.double(), eps.double(), t).float()
    assert torch.allclose(v_from(x0, eps, t, schedule), velocity, atol=1e-5)

@pytest.mark.parametrize('double', [False, True])
@pytest.mark.parametrize('prediction', names)
@pytest.mark.parametrize('zero_snr', [False, True])
@pytest.mark.parametrize('beta_schedule', makers)
def test_step_back_agrees_with_diffusers(beta_schedule, zero_snr, prediction, double):
    schedule, theirs = pair(beta_schedule, zero_snr, prediction, double=double)
    x0, eps = images()
    every = (0, 1, 2, 10, 100, 500, 900, 998, 999)
    for t in every if double else (100, 300, 500, 700, 900):
        # x0 cannot be computed there: see below
        if prediction == 'eps' and zero_snr and t == 999: continue
        xt = q_sample(x0, t, schedule, eps)
        # A network's output is never exact
        out = prediction_target(x0, eps, t, schedule, prediction) + .01*eps.flip(0)
        x0_hat = to_x0(out, xt, t, schedule, prediction)
        back = theirs.step(out, t, xt, generator=generator(t))

        mean, variance = q_posterior(x0_hat, xt, t, schedule)
        noise = torch.zeros_like(xt)
        if t > 0: noise = torch.randn(xt.shape, generator=generator(t))
        their_mean = back.prev_sample - theirs._get_variance(t)**.5*noise
        assert torch.allclose(mean, their_mean, atol=1e-5), t
        their_variance = theirs._get_variance(t).item() if t else 0
        assert abs(variance.item() - their_variance) < 1e-5

        ours = p_sample(x0_hat, xt, t, schedule, generator=generator(t))
        assert torch.allclose(ours, back.prev_sample, atol=1e-5)
        # At late t both magnify an error in eps
        large = x0_hat.abs().max().clamp(min=1)
        their_x0 = back.pred_original_sample
        atol = 1e-4 if t > 990 else 1e-5
        assert torch.allclose(x0_hat/large, their_x0/large, atol=atol)

@pytest.mark.parametrize('prediction', predictions)
@pytest.mark.parametrize('schedule', [
    linear_schedule(), cosine_schedule(), log_snr_schedule(),
    rescale_zero_snr(linear_schedule())])
def test_there_and_back(schedule, prediction):
    t = torch.arange(0, schedule.T - 1, 111)
    x0, eps = images(len(t))
    xt = q_sample(x0, t, schedule, eps)
    out = prediction_target(x0, eps, t, schedule, prediction)
    assert torch.allclose(to_x0(out, xt, t, schedule, prediction), x0, atol=1e-3)
    assert torch.allclose(to_eps(out, xt, t, schedule, prediction), eps, atol=1e-3)

def test_the_ends_are_safe():
    schedule = rescale_zero_snr(linear_schedule(100))
    x0, eps = images()
    assert schedule.zero_terminal
    assert schedule.signal[-1] == 0
    assert schedule.log_snr[-1] == -math.inf

    xt = q_sample(x0, 99, schedule, eps)
    assert torch.equal(xt, eps)
    assert torch.equal(v_from(x0, eps, 99, schedule), -x0)
    assert torch.equal(x0_from_v(xt, 99, -x0, schedule), x0)
    assert torch.equal(eps_from_v(xt, 99, -x0, schedule), eps)
    assert torch.equal(eps_from_x0(xt, 99, x0, schedule), eps)

    with pytest.raises(ValueError, match="Predict 'v' or 'x0'"):
        x0_from_eps(xt, 99, eps, schedule)
    with pytest.raises(ValueError, match='t=99'):
        to_x0(eps, xt, torch.tensor([0, 50, 98, 99]), schedule)
    assert torch.isfinite(to_x0(eps, xt, torch.tensor([0, 50, 97, 98]), schedule)).all()

    for t in range(100):
        mean, variance = q_posterior(x0, xt, t, schedule)
        assert torch.isfinite(mean).all()
        assert 0 <= variance.item() < 1
    # No noise at the last step
    assert torch.equal(p_sample(x0, xt, 0, schedule, eps), x0)

schedule = linear_schedule()

@pytest.mark.parametrize('f', [
    lambda x, t, e: q_sample(x, t, schedule, e),
    lambda x, t, e: q_step(x, t, schedule, e),
    lambda x, t, e: p_sample(x, e, t, schedule, e),
    lambda x, t, e: v_from(x, e, t, schedule),
    lambda x, t, e: x0_from_eps(x, t, e, schedule)])
def test_steps_of_a_batch_are_its_own(f):
    x0, eps = images()
    t = torch.tensor([0, 3, 500, 999])
    together = f(x0, t, eps)
    assert together.dtype == torch.float32
    assert together.shape == x0.shape
    for i in range(4):
        alone = f(x0[i:i + 1], int(t[i]), eps[i:i + 1])
        assert torch.allclose(together[i:i + 1], alone, atol=1e-6)

def test_shapes_of_at():
    x0, _ = images()
    t = torch.tensor([0, 3, 500, 999])
    assert schedule.at('signal', t, x0).shape == (4, 1, 1, 1)
    assert schedule.at('signal', t, torch.zeros(4)).shape == (4,)
    assert schedule.at('signal', 3, x0).shape == (1, 1, 1, 1)

def test_chain_and_jump_have_the_same_moments():
    schedule = linear_schedule(50, .002, .4)
    x = torch.full((40_000,), .7)
    g = generator(0)
    for t in range(50):
        x = q_step(x, t, schedule, generator=g)
        assert abs(x.mean() - schedule.signal[t]*.7) < .03
        assert abs(x.std() - schedule.noise[t]) < .03

def test_noise_comes_from_the_generator():
    x0, _ = images()
    def draw(seed): return q_sample(x0, 5, schedule, generator=generator(seed))
    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))

    torch.manual_seed(0)
    a = noise_like(x0)
    torch.manual_seed(0)
    assert torch.equal(a, noise_like(x0))
    assert noise_like(x0.double(), generator(0)).dtype == torch.float64

@pytest.mark.parametrize('betas', [
    [], [[.1, .2]], [.1, 1.5], [0., .1], [.1, 1., .2], [.1, float('nan')], [-.1, .2]])
def test_bad_betas(betas):
    with pytest.raises(ValueError):
        Schedule(betas)

@pytest.mark.parametrize('ab', [
    [.9, .95], [.9, .9], [1., .5], [.5, 0., 0.], [[.5]], [.5, -.1]])
def test_bad_cumulative_products(ab):
    with pytest.raises(ValueError, match='alphas_cumprod|shape'):
        Schedule.from_alphas_cumprod(ab)

@pytest.mark.parametrize('t', [-1, 10, torch.tensor([0, 1, 2, 10])])
def test_bad_steps(t):
    x0, _ = images()
    with pytest.raises(IndexError, match=r'0\.\.9'):
        q_sample(x0, t, linear_schedule(10))

@pytest.mark.parametrize('f', [prediction_target, to_x0, to_eps])
def test_bad_predictions(f):
    x0, eps = images()
    with pytest.raises(ValueError, match="'noise'.*'eps', 'x0', 'v'"):
        f(x0, eps, 0, schedule, 'noise')

# A schedule as a module

def same(a, b):
    "Whether two schedules hold the same numbers, as float32"
    return all(getattr(b, k).dtype == torch.float32
               and torch.equal(getattr(a, k), getattr(b, k)) for k in tables)

@pytest.mark.parametrize('clone', [
    copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s)),
    lambda s: Schedule.from_alphas_cumprod(s._ab)])
def test_copies_of_a_schedule(clone):
    schedule = rescale_zero_snr(linear_schedule(50))
    again = clone(schedule)
    assert again is not schedule
    assert same(schedule, again)
    assert torch.equal(again._ab, schedule._ab)
    assert again._ab.dtype == torch.float64
    assert (again.T, again.zero_terminal) == (50, True)
    assert len(again) == 50
    assert 'T=50' in repr(again)

class Net(nn.Module):
    "A network that holds a schedule"
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.schedule = cosine_schedule()

casts = dict(
    half=lambda m: m.half(),
    double=lambda m: m.double(),
    bfloat16=lambda m: m.bfloat16(),
    to=lambda m: m.to(torch.float16),
    to_both=lambda m: m.to('cpu', torch.bfloat16),
    type=lambda m: m.type(torch.float16),
    back=lambda m: m.half().float())

@pytest.mark.parametrize('cast', casts.values(), ids=casts)
def test_a_cast_leaves_a_schedule_alone(cast):
    before = cosine_schedule()
    net = Net()
    dtype = cast(nn.Linear(2, 2)).weight.dtype
    assert cast(net).layer.weight.dtype == dtype
    for schedule in (net.schedule, cast(cosine_schedule())):
        assert same(before, schedule)
        assert torch.equal(schedule._ab, before._ab)
        assert schedule._ab.dtype == torch.float64
        # The two ends that half precision would lose
        assert schedule.signal[0] < 1
        assert schedule.alphas_cumprod[-1] > 0
        t = torch.tensor([0, 999])
        assert schedule.at('signal', t, torch.zeros(2).half()).dtype == torch.float32

def test_a_model_takes_its_schedule_along():
    "The device `meta` holds no numbers and stands for a GPU"
    net = Net()
    schedule = net.schedule
    assert net.to('meta') is net
    assert net.schedule is schedule
    assert all(getattr(schedule, k).device.type == 'meta' for k in tables)
    assert schedule._ab.device.type == 'cpu'
    both = linear_schedule(10).half().to('meta', torch.float64)
    assert both.betas.dtype == torch.float32

@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_there_and_back_on_a_gpu():
    net = Net().cuda().half()
    assert net.schedule.betas.is_cuda
    x0 = torch.zeros(2, 3, 8, 8, device='cuda')
    t = torch.tensor([0, 999], device='cuda')
    assert q_sample(x0, t, net.schedule).is_cuda
    assert same(cosine_schedule(), net.cpu().schedule)

def test_a_schedule_is_not_saved():
    "Weights that were saved before a schedule was a module still load strictly"
    assert not linear_schedule().state_dict()
    net = Net()
    assert set(net.state_dict()) == {'layer.weight', 'layer.bias'}
    net.load_state_dict(nn.ModuleDict(dict(layer=nn.Linear(2, 2))).state_dict())
    assert len(list(net.parameters())) == 2

# The toys

def test_toy_is_what_it_says():
    toy = Toy()
    schedule = linear_schedule(50, .002, .4)
    x = torch.linspace(-4, 4, 2001)
    for args in [(None, None), (0, schedule), (20, schedule), (49, schedule)]:
        p = toy.pdf(x, *args)
        assert abs(torch.trapezoid(p, x) - 1) < 1e-3
        below = torch.cumulative_trapezoid(p, x)
        assert torch.allclose(below, toy.cdf(x, *args)[1:], atol=2e-3)
    for t in (0, 20, 49):
        score = toy.score(x, t, schedule)
        tweedie = (x + schedule.noise[t]**2*score)/schedule.signal[t]
        assert torch.allclose(toy.denoise(x, t, schedule), tweedie, atol=2e-3)
    with pytest.raises(ValueError, match='sum to 1'):
        Toy(weights=(.5, .2, .1))

def test_best_denoiser_of_a_set():
    cells, _ = images(8)
    schedule = rescale_zero_snr(linear_schedule(100))
    denoise = set_denoiser(cells)

    # The mean of the set for pure noise, the cell itself for hardly any noise
    guess = denoise(torch.randn(2, 3, 8, 8), 99, schedule)
    assert torch.allclose(guess, cells.mean(0).expand(2, -1, -1, -1), atol=1e-5)
    xt = q_sample(cells, 0, schedule, generator=generator(0))
    assert torch.allclose(denoise(xt, 0, schedule), cells, atol=1e-5)

    g = generator(1)
    noise = torch.randn(3, 3, 8, 8, generator=g)
    *_, (t, x, x0_hat) = reverse_walk(denoise, noise, schedule, g)
    assert t == 0
    assert torch.equal(x, x0_hat)
    gaps = torch.cdist(x.flatten(1), cells.flatten(1)).min(1).values
    assert (gaps < 1e-2).all()
