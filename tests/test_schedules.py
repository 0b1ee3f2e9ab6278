"Noise schedules: against diffusers, and what each promises about its ends"
import math, warnings
import pytest, torch
from diffusers import DDPMScheduler
from cell_diffusion.process import Schedule
from cell_diffusion.schedules import *
from cell_diffusion.schedules import schedule_makers

makers = dict(linear=linear_schedule, squaredcos_cap_v2=cosine_schedule)

@pytest.mark.parametrize('zero_snr', [False, True])
@pytest.mark.parametrize('T', [50, 100, 1000])
@pytest.mark.parametrize('beta_schedule', makers)
def test_agrees_with_diffusers(beta_schedule, T, zero_snr):
    theirs = DDPMScheduler(T, beta_schedule=beta_schedule, variance_type='fixed_small',
                           rescale_betas_zero_snr=zero_snr)
    ours = makers[beta_schedule](T)
    if zero_snr: ours = rescale_zero_snr(ours)
    assert torch.allclose(ours.betas, theirs.betas, atol=1e-5)
    assert torch.allclose(ours.alphas_cumprod, theirs.alphas_cumprod, atol=1e-5)
    for t in range(1, T, 7):
        assert abs(ours.posterior_variance[t] - theirs._get_variance(t)) < 1e-5

@pytest.mark.filterwarnings('ignore:.*of the signal left')
@pytest.mark.parametrize('zero_snr', [False, True])
@pytest.mark.parametrize('T', [2, 10, 1000, 4000])
@pytest.mark.parametrize('name', schedule_makers)
def test_every_schedule_falls(name, T, zero_snr):
    s = get_schedule(name, T, zero_snr=zero_snr)
    assert s.T == T
    assert s.betas.dtype == torch.float32
    assert ((s.betas > 0) & (s.betas <= 1)).all()
    assert (s._ab.diff() < 0).all()
    assert torch.allclose(s.signal**2 + s.noise**2, torch.ones(T))
    for k in ('mean_x0', 'mean_xt', 'posterior_variance', 'snr'):
        assert torch.isfinite(getattr(s, k)).all(), k
    assert s.mean_x0[0] == 1
    assert s.mean_xt[0] == 0
    assert s.posterior_variance[0] == 0
    no_signal = zero_snr or name == 'flow'
    assert (s.alphas_cumprod[-1] == 0) == no_signal == s.zero_terminal

def test_names_are_known():
    assert list(schedule_makers) == ['linear', 'cosine', 'sigmoid', 'log_snr', 'flow']

@pytest.mark.parametrize('schedule', [
    linear_schedule(), cosine_schedule(), linear_schedule(100)])
def test_rescaling_keeps_the_first_step(schedule):
    rescaled = rescale_zero_snr(schedule)
    assert torch.isclose(rescaled.signal[0], schedule.signal[0])
    assert rescaled.signal[-1] == 0
    assert (rescaled.signal <= schedule.signal + 1e-6).all()

def test_rescaling_needs_two_steps():
    with pytest.raises(ValueError, match='two steps'):
        rescale_zero_snr(Schedule([.5]))

def test_rescaling_is_exact_after_a_cast():
    "It computes from the products in float64, which no cast changes"
    cast = rescale_zero_snr(linear_schedule().half())
    assert torch.equal(cast.signal, rescale_zero_snr(linear_schedule()).signal)

def test_log_snr_is_uniform_over_its_range():
    s = log_snr_schedule(200, .01, 50)
    sigma = (1/s.snr).sqrt()
    assert torch.allclose(sigma[[0, -1]], torch.tensor([.01, 50]), rtol=1e-3)
    step = torch.tensor(-2*math.log(5000)/199)
    assert torch.allclose(s.log_snr.diff(), step, atol=1e-4)

def test_sigmoid_follows_its_curve():
    s = sigmoid_schedule(100, -3, 3, 1, max_beta=1)
    u = torch.arange(1, 101)/100
    low, high = torch.sigmoid(torch.tensor([-3., 3.]))
    curve = (high - torch.sigmoid(u*6 - 3))/(high - low)
    assert torch.allclose(s.alphas_cumprod, curve, atol=1e-5)

def test_cosine_clips_only_the_end():
    clipped = cosine_schedule()
    free = cosine_schedule(max_beta=1)
    assert (clipped.betas != free.betas).sum() == 1
    assert clipped.signal[-1] > 0
    assert abs(free.signal[-1]) < 1e-7

def test_a_short_chain_warns():
    with pytest.warns(UserWarning, match=r'0\.60.*1000/T'):
        get_schedule('linear', 100)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        for name in schedule_makers:
            get_schedule(name)
        get_schedule('linear', 100, start=1e-3, end=.2)
        get_schedule('linear', 100, zero_snr=True)

def test_a_wrong_name_is_refused():
    with pytest.raises(ValueError, match="'quadratic'.*'linear', 'cosine'"):
        get_schedule('quadratic')
