"One optimiser step of a tiny network, worked out by hand in plain torch"
import math
import pytest
import torch
import torch.nn as nn
import cell_diffusion.denoiser as denoiser
from fastai.callback.core import CancelFitException
from fastai.learner import Callback
from cell_diffusion.data import cell_dls
from cell_diffusion.denoiser import Denoiser
from cell_diffusion.training import ddpm_learner, diffusion_learner, fit_for

n_classes = 8
tiny = dict(dim=8, mults=(1,))

class TinyNet(nn.Module):
    "A factor and one number for each class, in the place of a U-Net"
    channels = 3
    n_classes = n_classes

    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(10.))
        self.shift = nn.Parameter(torch.linspace(-1, 1, n_classes + 1))

    def forward(self, x, t, label):
        return self.factor*x + self.shift[label][:, None, None, None]

class Clean(Callback):
    "Records training batches before they are noised"
    order = -10

    def __init__(self):
        self.batches = []

    def before_batch(self):
        if self.training: self.batches.append((self.xb[0].clone(), self.yb[0].clone()))

class Watch(Callback):
    "Records what the network sees, the learning rate, and the weights after each step"
    order = 90

    def __init__(self):
        self.train = []
        self.valid = []
        self.rates = []
        self.weights = []

    def before_batch(self):
        seen = self.train if self.training else self.valid
        seen.append([o.clone() for o in self.xb])

    def before_step(self):
        self.rates.append(self.opt.hypers[-1]['lr'])

    def after_step(self):
        self.weights.append([p.detach().clone() for p in self.model.parameters()])

class OneStep(Callback):
    "Ends the run after its first step"
    order = 95
    def after_batch(self): raise CancelFitException

@pytest.fixture(scope='module')
def cells():
    return cell_dls('simulated', size=32, bs=32, n=160)

@pytest.fixture(scope='module')
def first_step(cells):
    "The first step of a run with min-SNR weights, and what was recorded"
    model = Denoiser(tiny, schedule='cosine', prediction='v', classes=list(cells.vocab))
    model.unet = TinyNet()
    clean = Clean()
    watch = Watch()
    learn = ddpm_learner(cells, model, gamma=5., label_dropout=.1, seed=7,
                         precision='float32', optimizer='adamw', cbs=[clean, watch])
    learn.add_cb(OneStep())
    before = [p.detach().clone() for p in model.parameters()]
    budget = fit_for(learn, epochs=1, lr=1e-2, progress=False)
    return learn, before, clean.batches[0], watch, budget.losses[0]

def by_hand(schedule, x0, label):
    "Noisy cells, timesteps, labels, target and weights: seed 7, epoch 0, v, min-SNR 5"
    rng = torch.Generator().manual_seed(1_000_003*8)
    t = torch.randint(1000, (len(x0),), generator=rng)
    eps = torch.randn(x0.shape, generator=rng)
    withheld = torch.rand(len(x0), generator=rng) < .1
    assert withheld.any() and not withheld.all()

    ab = schedule.alphas_cumprod[t]
    a = ab.sqrt()[:, None, None, None]
    s = (1 - ab).sqrt()[:, None, None, None]
    snr = ab/(1 - ab)
    label = torch.where(withheld, n_classes, label)
    return a*x0 + s*eps, t, label, a*eps - s*x0, snr.clamp(max=5)/(snr + 1)

@pytest.fixture(scope='module')
def expected(first_step):
    "Loss and gradients of that step"
    learn, before, (x0, label), _, _ = first_step
    xt, t, label, v, weight = by_hand(learn.model.schedule, x0, label)
    factor, shift = [p.clone().requires_grad_() for p in before]
    out = factor*xt + shift[label][:, None, None, None]
    error = ((out - v)**2).mean((1, 2, 3))
    loss = (weight*error).mean()
    grads = torch.autograd.grad(loss, [factor, shift])
    return loss.detach(), grads, (xt, t, label)

def test_the_network_sees_noisy_cells_timesteps_and_labels(first_step, expected):
    xt, t, label = first_step[3].train[0]
    assert torch.allclose(xt, expected[2][0], atol=1e-6)
    assert torch.equal(t, expected[2][1])
    assert torch.equal(label, expected[2][2])

def test_loss_has_min_snr_weights(first_step, expected):
    assert torch.allclose(first_step[4], expected[0], rtol=1e-5)

def test_gradient_is_clipped(first_step, expected):
    learn = first_step[0]
    norm = math.sqrt(sum((g**2).sum() for g in expected[1]))
    assert norm > 2, 'this test needs a large gradient'
    for p, g in zip(learn.model.parameters(), expected[1]):
        # Adam's first moment after one step is a tenth of the gradient
        moment = learn.opt.opt.state[p]['exp_avg']
        assert torch.allclose(moment, .1*g/norm, rtol=1e-4, atol=1e-7)

def test_step_is_that_of_adamw(first_step, expected):
    norm = math.sqrt(sum((g**2).sum() for g in expected[1]))
    rate = 1e-2*.001/.02 # At the start of the warm-up
    after = first_step[3].weights[0]
    for old, new, g in zip(first_step[1], after, expected[1]):
        g = g/norm
        by_hand = old*(1 - rate*.01) - rate*g/(g.abs() + 1e-8)
        assert not torch.equal(new, old)
        assert torch.allclose(new, by_hand, atol=1e-7)

def test_first_step_of_the_running_mean(first_step):
    learn, before, _, watch, _ = first_step
    averaged = learn.ema.averaged.parameters()
    for old, new, mean in zip(before, watch.weights[0], averaged):
        assert torch.allclose(mean, 2/11*old + 9/11*new, atol=1e-7)

@pytest.fixture(scope='module')
def short_run(cells):
    "Five epochs of a small U-Net that is built by `diffusion_learner`"
    watch = Watch()
    learn = diffusion_learner(cells, 'edm-mid', **tiny, precision='float32',
                              cbs=[watch])
    before = [p.detach().clone() for p in learn.model.parameters()]
    fit_for(learn, epochs=5, lr=1e-2, progress=False)
    return learn, before, watch

def test_running_mean_warms_up(short_run):
    learn, mean, watch = short_run
    assert len(watch.weights) >= 10
    for k, weights in enumerate(watch.weights, 1):
        keep = (1 + k)/(10 + k)
        mean = [keep*m + (1 - keep)*w for m, w in zip(mean, weights)]
    for m, averaged in zip(mean, learn.ema.averaged.parameters()):
        assert torch.allclose(m, averaged, atol=1e-5)

def test_running_mean_has_a_largest_decay(cells):
    watch = Watch()
    learn = diffusion_learner(cells, **tiny, precision='float32', ema=.3, cbs=[watch])
    mean = [p.detach().clone() for p in learn.model.parameters()]
    fit_for(learn, epochs=2, progress=False)
    for k, weights in enumerate(watch.weights, 1):
        keep = min(.3, (1 + k)/(10 + k))
        mean = [keep*m + (1 - keep)*w for m, w in zip(mean, weights)]
    for m, averaged in zip(mean, learn.ema.averaged.parameters()):
        assert torch.allclose(m, averaged, atol=1e-5)

def test_learning_rate_rises_stays_and_falls(short_run, cells):
    rates = short_run[2].rates
    steps = 5*len(cells.train)
    assert len(rates) == steps
    for step, rate in enumerate(rates):
        used = step/steps
        expected = 1e-2*min(1, (used + .001)/.02)
        if used > .5: expected *= (1 + math.cos(math.pi*(used - .5)/.5))/2
        assert rate == pytest.approx(expected)
    assert rates[0] < rates[1]
    assert rates[1] == 1e-2
    assert rates[-1] < 1e-3

def test_noise_of_validation_stays_and_that_of_training_changes(short_run, cells):
    watch = short_run[2]
    k = len(watch.valid)//5
    epochs = [watch.valid[i*k:(i + 1)*k] for i in range(5)]
    for later in epochs[1:]:
        for first, again in zip(epochs[0], later):
            assert all(torch.equal(a, b) for a, b in zip(first, again))

    k = len(cells.train)
    first = torch.cat([t for _, t in watch.train[:k]])
    second = torch.cat([t for _, t in watch.train[k:2*k]])
    assert not torch.equal(first, second)

@pytest.mark.parametrize('size', [32, 64])
def test_larger_images_get_more_noise(size):
    dls = cell_dls('simulated', size=size, bs=16, n=64)
    watch = Watch()
    learn = diffusion_learner(dls, 'edm', **tiny, seed=3, precision='float32',
                              cbs=[watch])
    fit_for(learn, epochs=1, progress=False)

    rng = torch.Generator().manual_seed(1_000_003*4)
    z = torch.randn(16, generator=rng)
    log_sigma = -1.2 + math.log(size/32) + 1.2*z
    ab = learn.model.schedule.alphas_cumprod
    table = .5*torch.log((1 - ab)/ab)
    t = (table[None] < log_sigma[:, None]).sum(1).clamp(max=999)
    assert (watch.train[0][1] - t).abs().max() <= 1 # The table is in float32

@pytest.mark.parametrize('precision, fast, expected', [
    ('float32', True, torch.float32),
    ('bfloat16', False, torch.bfloat16),
    ('auto', True, torch.bfloat16),
    ('auto', False, torch.float32),
])
def test_precision(cells, monkeypatch, precision, fast, expected):
    monkeypatch.setattr(denoiser, 'fast_bfloat16', lambda device: fast)
    learn = diffusion_learner(cells, **tiny, precision=precision)
    dtypes = set()
    def note(module, args, out):
        dtypes.add(out.dtype)
    learn.model.unet.conv_in.register_forward_hook(note)
    with learn.no_bar(), learn.no_logging():
        learn.validate()
    assert dtypes == {expected}
