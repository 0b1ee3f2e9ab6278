"Guidance is what its formula says, in every sampler, and costs what the chapter says"
import math

import pytest
import torch

from cell_diffusion.core import generator
from cell_diffusion.denoiser import Condition, Denoiser, denoise
from cell_diffusion.sampling import sample, samplers

classes = 'a', 'b', 'c'
tiny = dict(dim=16, mults=[1, 2])


def network(prediction='v', classes=classes, **kwargs):
    "An untrained network that does not answer zero"
    torch.manual_seed(0)
    settings = dict(schedule='log_snr', prediction=prediction, size=16, classes=classes)
    settings['data_std'] = .5 if prediction == 'v' else 1.
    model = Denoiser(tiny, **{**settings, **kwargs}).eval()
    for p in model.parameters():
        if not p.detach().any():
            torch.nn.init.normal_(p, std=.05)
    return model


def noisy_cells(n=5, t=500):
    "Images, timesteps and classes"
    xt = torch.randn(n, 3, 16, 16, generator=generator(1))
    return xt, torch.full((n,), t), torch.arange(n) % 3


def guided(model, xt, t, label, scale, interval=None):
    return denoise(model, xt, t, Condition(label, scale, interval))


@pytest.mark.parametrize('prediction', ['v', 'eps', 'x0'])
@torch.no_grad()
def test_ends_are_the_network_itself(prediction):
    model = network(prediction)
    xt, t, label = noisy_cells()
    null = torch.full_like(label, 3)
    assert torch.equal(guided(model, xt, t, label, 0), model.x0(xt, t, null))
    assert torch.equal(guided(model, xt, t, label, 0), model.x0(xt, t))
    assert torch.equal(guided(model, xt, t, label, 1), model.x0(xt, t, label))
    assert torch.equal(denoise(model, xt, t), model.x0(xt, t))

    # Or else this test says nothing
    unconditional = model.estimate(xt, t)
    assert not torch.allclose(unconditional, model.estimate(xt, t, label), atol=1e-3)


@pytest.mark.parametrize('w', [-1., .3, .999, 1.5, 7.])
@torch.no_grad()
def test_it_is_a_straight_line_clipped_after_mixing(w):
    model = network()
    xt, t, label = noisy_cells()
    a = model.estimate(xt, t)
    b = model.estimate(xt, t, label)
    line = a + w*(b - a)
    assert line.abs().max() > 1
    assert torch.allclose(guided(model, xt, t, label, w), line.clamp(-1, 1), atol=1e-4)


@torch.no_grad()
def test_one_call_of_twice_the_batch(monkeypatch):
    model = network()
    xt, t, label = noisy_cells()
    forward = model.forward
    calls = []

    def spy(x, t, label=None):
        calls.append((len(x), label))
        return forward(x, t, label)

    monkeypatch.setattr(model, 'forward', spy)
    for w in (0, 1, 2.5):
        guided(model, xt, t, label, w)
    assert [n for n, _ in calls] == [5, 5, 10]
    assert calls[2][1].tolist() == [3]*5 + label.tolist()


@torch.no_grad()
def test_interval():
    model = network()
    xt, _, label = noisy_cells(4)
    log_snr = model.schedule.log_snr
    low, high = -2., 2.5
    t = torch.tensor([int((log_snr - v).abs().argmin()) for v in (-6, -1, 1, 6)])
    condition = Condition(label, 4., (low, high))
    assert condition.scale_at(t, model.schedule).tolist() == [1, 4, 4, 1]

    everywhere = guided(model, xt, t, label, 4.)
    plain = model.x0(xt, t, label)
    mixed = denoise(model, xt, t, condition)
    assert torch.allclose(mixed[[0, 3]], plain[[0, 3]], atol=1e-4)
    assert torch.allclose(mixed[[1, 2]], everywhere[[1, 2]], atol=1e-4)

    # Where there is nothing to guide, exactly the network as it is
    outside = t[[0, 0, 3, 3]]
    assert torch.equal(denoise(model, xt, outside, condition),
                       model.x0(xt, outside, label))

    inside = (log_snr >= low) & (log_snr <= high)
    scales = condition.scale_at(torch.arange(model.schedule.T), model.schedule)
    assert torch.equal(scales == 4, inside) and 0 < inside.sum() < len(inside)


@pytest.mark.parametrize('sampler', sorted({*samplers} - {'repaint'}))
def test_every_sampler_takes_it(sampler):
    "`repaint` is left out: it fills holes"
    # A short schedule, since the ancestral sampler visits every timestep
    model = network(schedule='cosine', T=12)

    def generate(n=None, **kwargs):
        return sample(model, n, seed=3, steps=4, sampler=sampler, progress=False,
                      **kwargs)

    label = ['a', 'b', 2]
    plain = generate(label=label)
    strong = generate(label=label, guidance_scale=5.)
    assert torch.equal(plain, generate(label=label, guidance_scale=1))
    assert torch.equal(generate(3), generate(label=label, guidance_scale=0.))
    assert strong.shape == (3, 3, 16, 16) and torch.isfinite(strong).all()
    assert not torch.allclose(plain, strong, atol=1e-3)


@pytest.mark.parametrize('classes, kwargs, message', [
    ((), dict(label=0), 'without classes'),
    (classes, dict(label='a', guidance_scale=math.nan), 'scale=nan'),
    (classes, dict(label='a', guidance_scale=2, interval=(3, -1)), 'interval'),
    (classes, dict(label='z', guidance_scale=2), 'Unknown class'),
    (classes, dict(guidance_scale=2), 'name one with label'),
])
def test_it_says_what_is_wrong(classes, kwargs, message):
    with pytest.raises(ValueError, match=message):
        sample(network(classes=classes), 1, progress=False, **kwargs)
