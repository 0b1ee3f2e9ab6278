"""Filling holes: known pixels stay, hidden ones are never looked at, RePaint is that of
diffusers, and every kind of picture is filled or refused with a reason"""
import hashlib
import json
import re
import struct
import warnings
import zlib
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import RePaintScheduler
from fastai.learner import Callback
from PIL import Image
from scipy import ndimage

from cell_diffusion import inpainting
from cell_diffusion.core import encode, generator
from cell_diffusion.data import cell_dls
from cell_diffusion.denoiser import Condition, Denoiser, denoise, load, save, warm_start
from cell_diffusion.denoiser import ask, mix, weights_hash
from cell_diffusion.imageio import read_image
from cell_diffusion.inpainting import (
    Inpainter, InpaintingCallback, biharmonic_fill, close_up, crop_window, fill_holes,
    find_window, hole_error, hole_mse, inpaint, inpainting_learner, masked_view,
    mean_fill, put_back, random_masks, seam_energy, shapes, stained_masks,
    typical_sizes, white_level,
)
from cell_diffusion.sampling import (
    batched_denoise, ddim, dpm_solver, heun, jump_schedule, nfe, repaint, repaint_nfe,
    sample, spacings, timesteps,
)
from cell_diffusion.schedules import linear_schedule, log_snr_schedule
from cell_diffusion.simulation import simulate_blood, simulate_jurkat
from cell_diffusion.training import diffusion_learner, fit_for, snr_weight

classes = ('a', 'b', 'c')

def unclipped(model, xt, t, condition):
    "The estimate as `denoise` mixes it, before it is clipped"
    scale = condition.scale_at(t, model.schedule)
    return mix(*ask(model, xt, t, condition, scale), scale)


def network(kind=Inpainter, prediction='v', channels=3, size=16, classes=classes,
            seed=0, T=20, **unet):
    "An untrained network that does not answer zero"
    torch.manual_seed(seed)
    inputs = dict(channels=channels)
    if kind is Inpainter:
        inputs = dict(channels=2*channels + 1, out_channels=channels)
    model = kind(dict(dim=8, mults=[1, 2], **inputs) | unet, schedule='log_snr', T=T,
                 prediction=prediction, data_std=.5 if prediction == 'v' else 1.,
                 size=size, classes=classes)
    for p in model.parameters():
        if not p.detach().any(): torch.nn.init.normal_(p, std=.1)
    return model.eval().requires_grad_(False)

def pictures(n=3, channels=3, size=16, seed=1):
    return torch.rand(n, channels, size, size, generator=generator(seed))*2 - 1

def holes(n=3, size=16): return random_masks(n, size, dict(box=1), seed=3)

def everything(n=3, size=16): return torch.ones(n, 1, size, size, dtype=torch.bool)

def fill(model, images, masks, label=None, **kwargs):
    return fill_holes(model, images, masks, label, progress=False, **kwargs)

# masks

@pytest.mark.parametrize('size', [28, 33, 64, 128])
def test_masks(size):
    masks = random_masks(60, size, seed=1)
    assert masks.shape == (60, 1, size, size) and masks.dtype == torch.bool
    assert masks.flatten(1).any(1).all()
    assert torch.equal(masks, random_masks(60, size, seed=1))
    assert not torch.equal(masks, random_masks(60, size, seed=2))
    def areas(name): return random_masks(60, size, {name: 1}).float().mean((1, 2, 3))
    assert areas('everything').eq(1).all()
    assert (areas('half') - .5).abs().max() <= .5/size + 1e-6
    assert .03 < areas('box').min() and areas('box').max() < .46
    brush = areas('brush')
    assert .01 < brush.min() and brush.max() < .75 and .15 < brush.median() < .35

def test_how_often_each_shape_comes():
    shares = dict(half=1, everything=3, box=0)
    area = random_masks(1000, 28, shares).float().mean((1, 2, 3))
    assert set(area.tolist()) == {.5, 1.}
    assert abs((area == 1).float().mean() - .75) < .05
    with pytest.raises(ValueError, match="'star'.*box, brush"):
        random_masks(2, 28, dict(star=1))
    assert set(shapes) == {'box', 'brush', 'half', 'everything'}

def test_all_four_halves_come():
    sides = set()
    for mask in random_masks(60, 28, dict(half=1)):
        sides.add(mask.numpy().tobytes())
    assert len(sides) == 4

@pytest.mark.parametrize('size, nucleus, cell', [(64, .86, .93), (32, .84, .9)])
def test_stained_masks_find_what_was_drawn(size, nucleus, cell):
    drawn = simulate_blood(48, size=size, labels=[i % 8 for i in range(48)], seed=21)
    x = encode(drawn.images)
    # Platelets have no nucleus, and that of a basophil is hidden by granules
    clear = torch.isin(torch.as_tensor(drawn.labels), torch.arange(1, 7))
    def area(mask): return mask.sum((1, 2, 3))
    for what, true, rows, bound in (('nucleus', drawn.nucleus, clear, nucleus),
                                    ('cell', drawn.cell, clear | ~clear, cell)):
        true = torch.as_tensor(true)[rows][:, None]
        bare = stained_masks(x, what, grow=0)[rows]
        grown = stained_masks(x, what)[rows]
        overlap = area(bare & true)/area(bare | true).clamp(min=1)
        assert overlap.median() > bound
        assert not (bare & ~grown).any()
        assert (area(grown & true)/area(true)).median() > .999       # No rim is left
        assert grown.shape == (int(rows.sum()), 1, size, size)
        assert grown.dtype == torch.bool
    with pytest.raises(ValueError, match='colour'):
        stained_masks(x[:1, :1])
    with pytest.raises(ValueError, match="'nucleus' or 'cell'"):
        stained_masks(x[:1], 'cytoplasm')

# the network

@pytest.mark.parametrize('prediction', ['eps', 'x0', 'v'])
@pytest.mark.parametrize('channels', [1, 3, 5])
def test_inpainter_sees_image_known_and_mask(prediction, channels):
    model = network(prediction=prediction, channels=channels)
    xt = pictures(2, channels)
    known = pictures(2, channels, seed=2)
    mask = holes(2).float()
    t = torch.tensor([3, 15])
    label = torch.tensor([0, 2])
    out = model.unet(torch.cat([xt/model.std(t, xt), known, mask], 1), t, label)
    a = model.schedule.at('signal', t, xt)
    s = model.schedule.at('noise', t, xt)
    r2 = (s/a)**2
    v_part = (r2/(r2 + .25))**.5*.5*out
    expected = dict(x0=out, eps=(xt - s*out)/a,
                    v=.25/(r2 + .25)*xt*(1 + r2)**.5 - v_part)
    x0 = model.estimate(xt, t, label, known=known, mask=mask)
    assert model.channels == channels == out.shape[1]
    assert torch.allclose(x0, expected[prediction], atol=1e-4)

def test_inpainter_without_a_mask_generates_everything():
    model = network()
    whole = fill(model, pictures(), everything(), seed=4, steps=4)
    assert torch.equal(sample(model, 3, seed=4, steps=4, progress=False), whole)
    for part in (dict(known=pictures()), dict(mask=holes().float())):
        with pytest.raises(ValueError, match='both'):
            model(pictures(), torch.tensor([3]), **part)

def test_inpainter_is_saved_with_its_settings(tmp_path):
    model = network(patch=2)
    save(model, tmp_path/'fills')
    save(network(Denoiser), tmp_path/'generates')
    back = load(tmp_path/'fills', 'cpu', 'float32')
    args = (pictures(2), torch.tensor([1, 12]), torch.tensor([0, 1]),
            pictures(2, seed=2), holes(2).float())
    assert torch.allclose(model.half().float()(*args), back(*args))
    assert back.classes == classes and back.channels == 3
    kinds = [type(load(tmp_path/name)) for name in ('fills', 'generates')]
    assert kinds == [Inpainter, Denoiser]

def test_inpainter_in_bfloat16():
    model = network()
    def estimate():
        return model.estimate(pictures(2), torch.tensor([1, 12]),
                              known=pictures(2, seed=2), mask=holes(2).float())
    whole = estimate()
    model.precision = 'bfloat16'
    half = estimate()
    assert half.dtype == torch.float32 and 0 < (half - whole).abs().max() < .1

# warm start

@pytest.mark.parametrize('patch', [1, 2])
@pytest.mark.parametrize('taught', [(), classes])
def test_warm_start_changes_nothing_at_first(patch, taught):
    old = network(Denoiser, classes=taught, patch=patch)
    xt = pictures(4)
    t = torch.tensor([3, 8, 15, 19])
    label = torch.tensor([0, 1, 2, 3])
    expected = old.estimate(xt, t, label if taught else None)
    fills = warm_start(network(seed=1, patch=patch), old)
    seen = dict(known=pictures(4, seed=2), mask=holes(4).float())
    assert torch.equal(fills.estimate(xt, t, label, **seen), expected)
    generates = warm_start(network(Denoiser, seed=1, patch=patch), old)
    assert torch.equal(generates.estimate(xt, t, label), expected)

def test_warm_start_keeps_what_was_learned_of_a_class():
    "Others, more or fewer classes: by name, and new ones begin as the null class"
    old = network(Denoiser, classes=('a', 'b', 'c'))
    xt = pictures(4)
    t = torch.tensor([3, 8, 15, 19])
    for mine, theirs in (('c', 'x', 'a', 'y'), [2, 3, 0, 3]), (('b',), [1, 3, 1, 3]):
        new = warm_start(network(Denoiser, seed=1, classes=mine), old)
        labels = torch.arange(4) % (len(mine) + (len(mine) == 1))
        expected = old.estimate(xt, t, torch.tensor(theirs))
        assert torch.equal(new.estimate(xt, t, labels), expected)

def test_warm_start_without_classes_names_none():
    old = network(Denoiser)
    old.unet.embedding.label.weight.data.normal_()
    new = warm_start(network(Denoiser, seed=1, classes=()), old)
    xt = pictures(4)
    t = torch.tensor([3, 8, 15, 19])
    torch.testing.assert_close(new.estimate(xt, t), old.estimate(xt, t))
    labels = torch.zeros(4, dtype=torch.long)
    assert not torch.allclose(new.estimate(xt, t), old.estimate(xt, t, labels))

@pytest.mark.parametrize('new, old, says', [
    (dict(prediction='eps'), dict(), 'prediction'), (dict(size=32), dict(), 'size'),
    (dict(dim=16), dict(), 'shape'), (dict(mults=[1, 2, 3]), dict(), 'shape'),
    (dict(patch=2), dict(), 'shape'), (dict(channels=1), dict(), 'shape'),
    (dict(kind=Denoiser), dict(kind=Inpainter), 'conv_in')])
def test_warm_start_refuses_what_does_not_fit(new, old, says):
    with pytest.raises(ValueError, match=f'Cannot start.*{says}'):
        warm_start(network(**new), network(**(dict(kind=Denoiser) | old)))

# training

def pairs(x0, callback=None, validate=False, classes=classes, **kwargs):
    "What the callback makes of two batches: inputs of the network, target and weight"
    callback = callback or InpaintingCallback(**kwargs)
    dls = SimpleNamespace(device=torch.device('cpu'), train=None)
    learn = SimpleNamespace(model=network(classes=classes), dls=dls)
    callback.learn = learn
    if validate:
        callback.before_validate()
    else:
        callback.before_train()
    batches = []
    for _ in range(2):
        learn.xb = x0,
        learn.yb = torch.arange(len(x0)) % 3,
        callback.before_batch()
        xt, t, label, known, mask = learn.xb
        target, weight = learn.yb
        batches.append(SimpleNamespace(xt=xt, t=t, label=label, known=known, mask=mask,
                                       target=target, weight=weight))
    if not validate: callback.after_train()
    return batches

def test_what_the_network_sees_in_training():
    x0 = pictures(8)
    first, second = pairs(x0, outside=.3)
    hidden = first.mask.bool()
    assert torch.equal(first.known, torch.where(hidden, 0., x0))
    assert first.mask.shape == (8, 1, 16, 16)
    assert set(first.mask.unique().tolist()) == {0, 1} and len(first.label) == 8
    assert torch.allclose(first.weight, torch.where(hidden, 1., .3))
    assert first.target.shape == x0.shape
    # Fresh in every batch
    assert not torch.equal(first.mask, second.mask)
    assert pairs(x0, classes=())[0].label is None

def test_min_snr_weights_multiply_those_of_pixels():
    batch = pairs(pictures(8), outside=.3, gamma=5.)[0]
    levels = snr_weight(network(), batch.t)[:, None, None, None]
    pixels = torch.where(batch.mask.bool(), 1., .3)
    assert torch.allclose(batch.weight, levels*pixels)

def test_nothing_hidden_reaches_the_network_but_the_noisy_image():
    x0 = pictures(8)
    first = pairs(x0)[0]
    hidden = first.mask.bool()
    other = pairs(torch.where(hidden, pictures(8, seed=9), x0))[0]
    assert torch.equal(first.known, other.known) and torch.equal(first.mask, other.mask)
    assert not torch.equal(first.xt, other.xt)
    assert torch.equal(first.xt.masked_fill(hidden, 0), other.xt.masked_fill(hidden, 0))

def test_masks_of_a_resumed_run():
    x0 = pictures(8)
    unbroken = InpaintingCallback()
    epochs = [pairs(x0, unbroken) for _ in range(2)]
    resumed = InpaintingCallback()
    resumed.epochs_seen = 1
    for a, b in zip(epochs[1], pairs(x0, resumed)):
        assert torch.equal(a.mask, b.mask) and torch.equal(a.xt, b.xt)
    assert not torch.equal(epochs[0][0].mask, epochs[1][0].mask)

def test_masks_of_validation_are_the_same_each_time():
    x0 = pictures(8)
    used = InpaintingCallback()
    pairs(x0, used)
    a = pairs(x0, used, validate=True)
    b = pairs(x0, InpaintingCallback(), validate=True)
    assert all(torch.equal(p.mask, q.mask) for p, q in zip(a, b))
    assert not torch.equal(a[0].mask, a[1].mask)

def test_masks_that_are_drawn_once_are_turned(monkeypatch):
    "As on a GPU, where drawing fresh ones takes longer than a step"
    kept = torch.zeros(2, 1, 16, 16, dtype=torch.bool)
    kept[0, :, :8] = True       # the upper half
    kept[1, :, 0, 1:3] = True   # two pixels, in eight positions
    monkeypatch.setattr(inpainting, 'random_masks', lambda *_: kept)
    callback = InpaintingCallback()
    callback.rng = generator(0)
    found = callback.reuse_masks(400, 16, None, seed=3)
    assert found.shape == (400, 1, 16, 16) and found.dtype == torch.bool
    assert torch.equal(found, callback.reuse_masks(400, 16, None, seed=3))
    assert not torch.equal(found, callback.reuse_masks(400, 16, None, seed=4))
    sizes = found.sum((1, 2, 3))
    assert set(sizes.tolist()) == {2, 128} and 150 < (sizes == 2).sum() < 250
    assert len(found[sizes == 128].unique(dim=0)) == 4
    assert len(found[sizes == 2].unique(dim=0)) == 8

@pytest.mark.parametrize('device, kept', [('cpu', False), ('meta', True)])
def test_only_a_gpu_gets_masks_that_were_drawn_before(device, kept):
    "A device without numbers stands for the GPU"
    callback = InpaintingCallback()
    callback.learn = SimpleNamespace(dls=SimpleNamespace(train=None))
    callback.rng = generator(0)
    masks = callback.draw_masks(torch.zeros(2, 3, 16, 16, device=device))
    assert masks.shape == (2, 1, 16, 16) and masks.device.type == device
    assert (callback.drawn is not None) == kept

def test_shares_reach_the_masks():
    for batch in pairs(pictures(8), shares=dict(everything=1)):
        assert batch.mask.all()
    for batch in pairs(pictures(8), shares=dict(half=1)):
        assert batch.mask.mean() == .5

def test_hole_mse():
    pred = pictures(2, size=3)
    target = pictures(2, size=3, seed=2)
    weight = torch.rand(2, 1, 3, 3, generator=generator(0))
    total = 0.
    for i, c, y, x in np.ndindex(2, 3, 3, 3):
        total += weight[i, 0, y, x]*(pred[i, c, y, x] - target[i, c, y, x])**2
    assert torch.allclose(hole_mse(pred, target, weight), total/54)
    plain = hole_mse(pred, target, torch.ones_like(weight))
    assert torch.allclose(plain, F.mse_loss(pred, target))
    assert (pairs(pictures(4), outside=1.)[0].weight == 1).all()

@pytest.fixture(scope='module')
def cells(): return cell_dls('simulated', size=28, bs=16, n=96)

def learner(cells, **kwargs):
    return inpainting_learner(cells, 'edm', dim=8, mults=(1, 2), precision='float32',
                              **kwargs)

def test_training_lowers_the_loss(cells):
    learn = learner(cells)
    def loss():
        with learn.no_bar(), learn.no_logging():
            return learn.validate()[0]
    before = loss()
    assert loss() == before                                # The same masks each time
    fit_for(learn, epochs=3, lr=3e-3, progress=False)
    assert loss() < .9*before
    assert isinstance(learn.ema.averaged, Inpainter)
    assert learn.model.classes == tuple(cells.vocab)

class Kill(Callback):
    "Ends a run after its first epoch"
    order = 100
    def after_epoch(self): raise KeyboardInterrupt

def test_a_killed_run_goes_on_as_if_unbroken(cells, tmp_path):
    whole = learner(cells, classes=False)
    unbroken = fit_for(whole, epochs=2, progress=False)
    settings = dict(epochs=2, checkpoint=tmp_path/'run.pt', progress=False)
    with pytest.raises(KeyboardInterrupt):
        fit_for(learner(cells, classes=False, cbs=[Kill()]), **settings)
    again = learner(cells, classes=False)
    resumed = fit_for(again, **settings)
    losses = [torch.stack(list(run.losses)) for run in (resumed, unbroken)]
    assert torch.allclose(*losses, atol=1e-5)
    for a, b in zip(whole.ema.averaged.parameters(), again.ema.averaged.parameters()):
        assert torch.allclose(a, b, atol=1e-5)

def test_a_learner_begins_with_another_networks_weights(cells):
    old = network(Denoiser, size=28, classes=(), T=1000)
    new = learner(cells, start=old).model.eval().cpu()
    x = pictures(2, size=28)
    t = torch.tensor([5, 800])
    assert torch.equal(new.estimate(x, t, torch.tensor([1, 2])), old.estimate(x, t))

# filling with every sampler

every = dict(
    dpm_solver={}, ancestral={}, ddim={}, ddim_eta_1=dict(sampler='ddim', eta=1.),
    euler={}, heun={}, repaint=dict(jump=2, repeats=2),
)
kinds = pytest.mark.parametrize('kind', [Inpainter, Denoiser])

@pytest.mark.parametrize('name', every)
@kinds
def test_known_pixels_come_out_as_they_went_in(name, kind):
    model = network(kind)
    x = pictures()
    settings = dict(sampler=name, steps=3) | every[name]
    for spacing in spacings if name != 'ancestral' else ['log_snr']:
        for masks, more in ((holes(), dict(label='b')),
                            (holes(1), dict(label=[0, 1, 2], guidance_scale=3.)),
                            (holes().float(), dict(label='a', guidance_scale=0.))):
            y = fill(model, x, masks, spacing=spacing, **settings, **more)
            hidden = masks.bool().expand_as(x)
            assert y.dtype == x.dtype and torch.equal(y[~hidden], x[~hidden])
            assert (y != x)[hidden].float().mean() > .9
            assert y.isfinite().all() and y.abs().max() < 1.5

@pytest.mark.parametrize('sampler, more', [('repaint', {}), ('ddim', dict(eta=1.))])
@pytest.mark.parametrize('schedule', [linear_schedule(), log_snr_schedule()])
def test_two_steps_stay_real_numbers(sampler, more, schedule):
    "A variance of 0 must not become the root of -1e-12"
    model = network(Denoiser)
    model.schedule = schedule
    y = fill(model, pictures(), holes(), sampler=sampler, steps=2, **more)
    assert y.dtype == torch.float32

@pytest.mark.parametrize('name', every)
@kinds
def test_everything_hidden_and_nothing_hidden(name, kind):
    model = network(kind)
    x = pictures()
    settings = dict(sampler=name, steps=3, seed=2, label='a') | every[name]
    if name != 'repaint':
        y = fill(model, x, everything(1), **settings)
        assert torch.equal(y, sample(model, 3, progress=False, **settings))
    assert torch.equal(fill(model, x, ~everything(), **settings), x)

def walk(x, masks, sampler, **kwargs):
    "Every `(t, xt, x0)` on the way of a fill"
    _, path = sample(network(), len(x), known=x, mask=masks, sampler=sampler,
                     trajectory=True, progress=False, **kwargs)
    return path

@pytest.mark.parametrize('name', ['dpm_solver', 'ddim', 'euler', 'heun'])
def test_known_pixels_on_the_way_are_the_image_with_one_noise(name):
    x = pictures()
    known = ~holes().expand_as(x)
    schedule = network().schedule
    path = walk(x, holes(), name, steps=6)
    first, xt, _ = path[0]
    eps = (xt - schedule.signal[first]*x)/schedule.noise[first]
    for t, xt, x0 in path:
        expected = schedule.signal[t]*x + schedule.noise[t]*eps
        assert torch.allclose(xt[known], expected[known], atol=1e-4)
        assert torch.equal(x0[known], x[known])

def test_known_pixels_of_ancestral_sampling_follow_q():
    x = torch.full((10, 3, 16, 16), .6)
    known = ~holes(1).expand_as(x)
    schedule = network().schedule
    n = known.sum()
    for t, xt, _ in walk(x, holes(1), 'ancestral')[::3]:
        a = schedule.signal[t]
        s = schedule.noise[t]
        assert abs(xt[known].mean() - a*.6) < 5*s/n**.5 + .01
        assert abs(xt[known].var()/s**2 - 1) < 8/n**.5 + .01

@pytest.mark.parametrize('kind, sampler', [
    (Inpainter, 'dpm_solver'), (Denoiser, 'ddim'), (Denoiser, 'repaint')])
def test_what_lies_under_the_mask_does_not_matter(kind, sampler):
    x = pictures()
    masks = holes()
    model = network(kind)
    y = fill(model, x, masks, steps=4, sampler=sampler)
    others = torch.where(masks, pictures(seed=7), x), x.masked_fill(masks, float('nan'))
    for other in others:
        assert torch.equal(fill(model, other, masks, steps=4, sampler=sampler), y)

def test_guidance_mixes_two_estimates_of_the_right_picture():
    model = network()
    xt = pictures(seed=5)
    t = torch.full((3,), 15)
    label = torch.arange(3)
    seen = dict(known=pictures(), mask=holes())
    weak = unclipped(model, xt, t, Condition(**seen))
    strong = unclipped(model, xt, t, Condition(label, **seen))
    guided = unclipped(model, xt, t, Condition(label, 3., **seen))
    assert torch.allclose(guided, weak + 3*(strong - weak), atol=1e-4)
    assert not torch.allclose(weak, strong, atol=1e-3)

@torch.no_grad()
def test_an_inpainter_whose_known_pixels_are_hidden():
    model = network()
    xt = torch.randn(2, 3, 16, 16, generator=generator(0))
    t = torch.tensor([3, 12])
    label = torch.tensor([0, 1])
    known = pictures(2)
    mask = holes(2)
    seen = dict(known=known, mask=mask)
    x0 = denoise(model, xt, t, Condition(label, show_known=False, **seen))
    alone = model.estimate(xt, t, label, known=torch.zeros_like(xt),
                           mask=torch.ones(2, 1, 16, 16)).clamp(-1, 1)
    assert torch.equal(x0, torch.where(mask, alone, known))
    shown = denoise(model, xt, t, Condition(label, **seen))
    assert not torch.allclose(shown, x0, atol=1e-3)

def test_fill_in_batches():
    model = network()
    x = pictures(5)
    masks = holes(5)
    label = ['a', 'b', 'c', 0, 1]
    settings = dict(bs=2, steps=4)
    whole = fill(model, x, masks, label, seed=7, **settings)
    first = fill(model, x[:2], masks[:2], label[:2], seed=7, steps=4)
    assert torch.allclose(whole[:2], first, atol=1e-5)
    assert torch.equal(whole, fill(model, x, masks, label, seed=7, **settings))
    assert not torch.equal(whole, fill(model, x, masks, label, seed=8, **settings))
    backwards = fill(model, x, masks, label[::-1], seed=7, **settings)
    assert not torch.allclose(whole, backwards, atol=1e-3)

@pytest.mark.parametrize('sampler', ['dpm_solver', 'ddim', 'repaint'])
def test_noise_is_that_of_the_seed_and_not_of_the_batches(sampler):
    model = network()
    x = pictures(1).expand(4, -1, -1, -1)
    settings = dict(sampler=sampler, steps=3)
    if sampler == 'ddim': settings['eta'] = 1.
    fills = [fill(model, x, holes(1), seed=s, bs=1, **settings) for s in range(4)]
    several = torch.cat(fills)
    assert len({x.numpy().tobytes() for x in several}) == len(several)
    for bs in (2, 3, 100):
        together = fill(model, x, holes(1), seed=0, bs=bs, **settings)
        assert torch.allclose(together, fills[0], atol=1e-4)

def test_fill_more_than_a_network_takes_at_once():
    many = pictures(300)
    known = ~holes(1).expand_as(many)
    y = fill(network(), many, holes(1), bs=1000, steps=1)
    assert torch.equal(y[known], many[known])

@pytest.mark.parametrize('change, says', [
    (dict(images=pictures()[0]), 'fills images'),
    (dict(masks=holes()[:, 0]), 'fills images'),
    (dict(masks=holes().expand(3, 3, 16, 16)), 'fills images'),
    (dict(masks=holes(size=32)), 'fills images'),
    (dict(masks=holes(2)), '3 images and 2 masks'),
    (dict(images=pictures(1)), 'one mask for each'),
    (dict(images=pictures(channels=1)), r'fills images \(n, 3, 16, 16\)'),
    (dict(images=pictures(size=32), masks=holes(size=32)), r'images \(n, 3, 16, 16\)'),
    (dict(label='z'), "Unknown class 'z'"), (dict(label=[0, 1]), '2 labels for 3'),
    (dict(model=network(classes=()), label='a'), 'without classes'),
    (dict(model=network(classes=()), guidance_scale=2.), 'guidance towards a class'),
    (dict(sampler='dimm'), 'Unknown sampler'), (dict(steps=0), 'steps'),
    (dict(images=pictures()*2), r'-1..1, and one is -?1\.'),
    (dict(images=pictures()*float('nan')), 'one is nan'),
    (dict(images=pictures()/0), 'one is -?inf'),
    (dict(masks=holes()*255), 'True or 1.*not 255'),
    (dict(masks=holes()*.5), 'not 0.5'),
    (dict(masks=torch.full((3, 1, 16, 16), float('nan'))), 'not nan')])
def test_fill_says_what_is_wrong(change, says):
    good = dict(model=network(), images=pictures(), masks=holes())
    with pytest.raises(ValueError, match=says):
        fill(**(good | change))

@pytest.mark.parametrize('change, says', [
    (dict(images=encode(torch.zeros(3, 3, 16, 16, dtype=torch.uint8)).byte()),
     'uint8: `encode`'),
    (dict(images=pictures().long()), 'int64'), (dict(images=pictures().numpy()),
     'images should be a tensor, got ndarray'),
    (dict(masks=holes().numpy()), 'masks should be a tensor'),
    (dict(masks=[1]), 'got list')])
def test_fill_says_what_is_no_tensor_of_floats(change, says):
    good = dict(model=network(), images=pictures(), masks=holes())
    with pytest.raises(TypeError, match=says):
        fill(**(good | change))
    good = dict(images=pictures(), masks=holes()) | change
    with pytest.raises(TypeError, match=says):
        sample(network(), known=good['images'], mask=good['masks'], progress=False)

def test_masks_of_numbers_are_masks():
    model = network()
    expected = fill(model, pictures(), holes(), steps=2)
    for dtype in (torch.uint8, torch.int64, torch.float32, torch.float16):
        y = fill(model, pictures(), holes().to(dtype), steps=2)
        assert torch.equal(y, expected)
        seen = masked_view(pictures(), holes().to(dtype))
        assert torch.equal(seen, masked_view(pictures(), holes()))
        energy = seam_energy(pictures(), holes().to(dtype))
        assert torch.equal(energy, seam_energy(pictures(), holes()))

@pytest.mark.parametrize('measure', [
    lambda x, m: hole_error(x, x, m), seam_energy, masked_view, mean_fill,
    biharmonic_fill])
@pytest.mark.parametrize('images, masks, error', [
    (pictures(), holes()[:, 0], ValueError), (pictures(), holes(2), ValueError),
    (pictures(), holes(size=32), ValueError), (pictures()[0], holes(), ValueError),
    (pictures(), holes()*255, ValueError), (pictures().byte(), holes(), TypeError)])
def test_measures_take_no_other_masks(measure, images, masks, error):
    with pytest.raises(error):
        measure(images, masks)

def test_repaint_says_what_is_wrong():
    with pytest.raises(ValueError, match='known pixels and a mask'):
        sample(network(Denoiser), 2, sampler='repaint', progress=False)
    for wrong in ((0, 1, 1), (5, 0, 1), (5, 1, 0), (5, 1.5, 2), (5, 1, float('nan')),
                  (5, 1, 10**9)):
        with pytest.raises(ValueError, match='should be a whole number from 1'):
            jump_schedule(*wrong)

# two pixels of which everything is known

rho, sd = .8, .5
schedule = log_snr_schedule()
pair_mask = torch.tensor([False, True])
left = sd*torch.randn(20_000, generator=generator(0))
pair_known = torch.stack([left, left], -1)

def joint(xt, t):
    "The exact denoiser of two pixels with correlation `rho`, clamped on the left"
    a = schedule.signal[t]
    s = schedule.noise[t]
    cov = sd**2*torch.tensor([[1, rho], [rho, 1]])
    x0 = xt@(a*cov@torch.linalg.inv(a*a*cov + s*s*torch.eye(2))).T
    return torch.where(pair_mask, x0, pair_known)

def conditional(xt, t):
    "The exact denoiser of the right pixel, given the left one"
    a = schedule.signal[t]
    s = schedule.noise[t]
    mean = rho*pair_known
    var = sd**2*(1 - rho**2)
    x0 = mean + a*var/(a*a*var + s*s)*(xt - a*mean)
    return torch.where(pair_mask, x0, pair_known)

def regress(denoise, sampler, steps, **options):
    "Fill the right pixel: its slope on the left one, and the spread around the line"
    if sampler is repaint: options.update(known=pair_known, mask=pair_mask)
    noise = torch.randn(20_000, 2, generator=generator(1))
    ts = timesteps(schedule, steps)
    a, b = sampler(denoise, noise, schedule, ts, generator(2), **options).T
    slope = (a*b).mean()/(a*a).mean()
    return slope.item(), (b - slope*a).std().item()

@pytest.mark.parametrize('sampler, steps, options', [
    (dpm_solver, 20, {}), (ddim, 100, {}), (ddim, 200, dict(eta=1.)), (heun, 30, {})])
def test_a_conditional_denoiser_fills_as_it_should(sampler, steps, options):
    slope, width = regress(conditional, sampler, steps, **options)
    assert slope == pytest.approx(.8, abs=.01) and width == pytest.approx(.3, rel=.05)

def test_clamping_is_biased_and_repaint_less_with_every_repeat():
    slope, width = regress(joint, dpm_solver, 100)
    assert slope < .45 and width > .37                     # .8 and .3 would be right
    one, four, sixteen = [regress(joint, repaint, 25, jump=5, repeats=r)[0]
                          for r in (1, 4, 16)]
    assert slope < one < four - .08 < sixteen - .16 and abs(sixteen - .8) < .12

# RePaint against its authors' schedule, and against diffusers

published = {  # Steps, jump and repeats, with the timesteps that the authors list
    (10, 3, 2): [9, 8, 7, 6, 7, 8, 9, 8, 7, 6, 5, 4, 3, 4, 5, 6, 5, 4, 3, 2, 1, 0, 1,
                 2, 3, 2, 1, 0, -1],
    (6, 2, 3): [5, 4, 3, 2, 3, 4, 3, 2, 3, 4, 3, 2, 1, 0, 1, 2, 1, 0, 1, 2, 1, 0, -1],
    (5, 1, 2): [4, 3, 4, 3, 2, 3, 2, 1, 2, 1, 0, 1, 0, -1],
    (4, 3, 3): [3, 2, 1, 0, 1, 2, 3, 2, 1, 0, 1, 2, 3, 2, 1, 0, -1],
    (7, 3, 2): [6, 5, 4, 3, 4, 5, 6, 5, 4, 3, 2, 1, 0, 1, 2, 3, 2, 1, 0, -1],
    (5, 5, 4): [4, 3, 2, 1, 0, -1],
    (4, 9, 4): [3, 2, 1, 0, -1],
    (4, 2, 1): [3, 2, 1, 0, -1],
    (1, 1, 1): [0, -1]}

@pytest.mark.parametrize('settings', published)
def test_the_walk_is_that_of_its_authors(settings):
    "Timestep t is where t + 1 steps are left"
    walk = jump_schedule(*settings)
    assert walk == [t + 1 for t in published[settings]]
    assert repaint_nfe(*settings) == sum(b < a for a, b in pairwise(walk))

@pytest.mark.parametrize('steps, jump, repeats', [
    (250, 10, 10), (25, 5, 5), (20, 3, 2), (50, 10, 10), (7, 1, 3), (10, 2, 1),
    (5, 10, 4), (1, 1, 1)])
def test_the_list_is_that_of_diffusers(steps, jump, repeats):
    "Whose pipeline takes these timesteps for steps that are left"
    theirs = RePaintScheduler(num_train_timesteps=steps*3)
    theirs.set_timesteps(steps, jump, repeats)
    ours = jump_schedule(steps, jump, repeats)
    assert [3*(left - 1) for left in ours[:-1]] == theirs.timesteps.tolist()
    assert ours[0] == steps and ours[-1] == 0 and 0 not in ours[:-1]

def diffusers_repaint(ask, schedule, image, mask, x, rng, walk):
    "A walk by the steps of diffusers, with our estimate; the end, and the calls"
    betas = schedule.betas.double().numpy()
    theirs = RePaintScheduler(len(betas), trained_betas=betas, eta=1.,
                              clip_sample=False)
    theirs.set_timesteps(walk[0])
    stride = len(betas)//walk[0]
    ab = theirs.alphas_cumprod
    calls = []
    for here, there in pairwise(walk):
        if there > here:
            x = theirs.undo_step(x, here*stride, generator=rng).float()
            continue
        t = (here - 1)*stride
        calls.append((t, x))
        eps = ((x - ab[t].sqrt()*ask(x, t))/(1 - ab[t]).sqrt()).float()
        step = theirs.step(eps, t, x, image, (~mask).float(), generator=rng)
        x = step.prev_sample.float()
    return x, calls

@kinds
@pytest.mark.parametrize('jump, repeats', [(4, 3), (3, 2), (1, 2)])
def test_repaint_is_that_of_diffusers(kind, jump, repeats):
    "The same noise, and every step of the walk, down and up"
    model = network(kind, size=8)
    model.schedule = linear_schedule(12, .01, .6)
    seen = dict(known=pictures(2, size=8), mask=holes(2, 8))
    ask = batched_denoise(model, Condition(**seen))
    z = torch.randn(2, 3, 8, 8, generator=generator(5))
    calls = []
    def record(t, xt, x0): calls.append((t, xt))
    ts = timesteps(model.schedule, 12, 'time')
    ours = repaint(ask, z, model.schedule, ts, generator(6), record, **seen, jump=jump,
                   repeats=repeats)
    theirs, their_calls = diffusers_repaint(
        ask, model.schedule, *seen.values(), z, generator(6),
        jump_schedule(12, jump, repeats))
    assert [t for t, _ in calls] == [t for t, _ in their_calls]
    assert len(calls) == repaint_nfe(12, jump, repeats)
    for (_, a), (_, b) in zip(calls, their_calls):
        assert torch.allclose(a, b, atol=1e-4)
    assert torch.allclose(ours, theirs, atol=1e-4) and not torch.equal(ours, z)

def test_repaint_with_fewer_steps_than_timesteps():
    "Without jumps: diffusers goes up by the betas of the next stretch"
    model = network(Denoiser)
    model.schedule = linear_schedule()
    seen = dict(known=pictures(2), mask=holes(2))
    ask = batched_denoise(model, Condition(**seen))
    z = torch.randn(2, 3, 16, 16, generator=generator(5))
    ours = repaint(ask, z, model.schedule, torch.arange(900, -1, -100), generator(6),
                   **seen, jump=10)
    theirs, _ = diffusers_repaint(
        ask, model.schedule, *seen.values(), z, generator(6), jump_schedule(10, 10, 5))
    assert torch.allclose(ours, theirs, atol=1e-4)

@pytest.mark.parametrize('steps, jump, repeats', [(25, 5, 5), (12, 4, 3), (3, 1, 1)])
def test_repaint_calls_are_counted(steps, jump, repeats):
    calls = []
    def unchanged(xt, t): return xt
    def count(*args): calls.append(args)
    repaint(unchanged, torch.randn(1, 2), schedule, timesteps(schedule, steps),
            callback=count, known=torch.zeros(1, 2), mask=pair_mask, jump=jump,
            repeats=repeats)
    assert len(calls) == repaint_nfe(steps, jump, repeats)
    assert len(calls) == nfe('repaint', steps, jump=jump, repeats=repeats)

def test_cost_of_the_settings_of_the_study():
    assert repaint_nfe(25) == 105 and repaint_nfe(100, 10, 5) == 460

def test_the_bar_of_repaint_counts_its_calls(capsys):
    sample(network(), 1, known=pictures(1), mask=holes(1), sampler='repaint', steps=6,
           jump=2, repeats=2)
    calls = repaint_nfe(6, 2, 2)
    assert f'{calls}/{calls}' in capsys.readouterr().err

# measures and baselines

def test_hole_error_by_hand():
    real = torch.zeros(2, 1, 2, 2)
    mask = torch.zeros(2, 1, 2, 2, dtype=torch.bool)
    mask[0, :, 0] = True
    filled = torch.full_like(real, 9.)
    filled[0, 0, 0] = torch.tensor([.2, .4])
    expected = torch.tensor([127.5*(.1)**.5, 0])
    assert torch.allclose(hole_error(real, filled, mask), expected)

def test_hole_error_is_that_of_the_hole():
    x = pictures()
    y = pictures(seed=2)
    m = holes()
    other = torch.where(m, y, pictures(seed=3))
    assert torch.equal(hole_error(x, y, m), hole_error(x, other, m))
    assert hole_error(x, x, m).eq(0).all()
    inside = (y - x)[1][m[1].expand(3, -1, -1)]*127.5
    expected = inside.square().mean().sqrt().item()
    assert hole_error(x, y, m)[1] == pytest.approx(expected, rel=1e-5)

def test_seam_energy_is_a_loop():
    x = pictures(2, size=8)
    m = random_masks(2, 8, dict(box=1), seed=1)
    for i in range(2):
        steps = []
        for c, y, u, (dy, du) in ((*at, d) for at in np.ndindex(3, 8, 8)
                                  for d in ((0, 1), (1, 0))):
            if y + dy == 8 or u + du == 8: continue
            if m[i, 0, y, u] == m[i, 0, y + dy, u + du]: continue
            steps.append((127.5*(x[i, c, y, u] - x[i, c, y + dy, u + du]))**2)
        assert seam_energy(x, m)[i] == pytest.approx(np.mean(steps), rel=1e-4)
    assert seam_energy(x, ~everything(2, 8)).eq(0).all()

@pytest.mark.parametrize('baseline', [mean_fill, biharmonic_fill])
@pytest.mark.parametrize('masks', [
    holes(), holes(1), random_masks(3, 16, dict(half=1)),
    random_masks(3, 16, dict(brush=1))])
def test_baselines_keep_known_pixels(baseline, masks):
    x = pictures()
    known = ~masks.expand_as(x)
    before = x.clone()
    y = baseline(x, masks)
    assert y.shape == x.shape and torch.equal(y[known], x[known])
    assert y.isfinite().all() and y.abs().max() <= 1 and torch.equal(x, before)

def test_mean_fill_by_hand():
    x = pictures()
    hole = holes()[0, 0]
    filled = mean_fill(x, holes())[0, 1][hole]
    assert torch.allclose(filled, x[0, 1][~hole].mean())
    assert mean_fill(x, everything(1)).eq(0).all()

def test_biharmonic_fill_continues_a_slope():
    ramp = torch.linspace(-1, 1, 16).expand(1, 3, 16, 16)
    inner = F.pad(torch.ones(1, 1, 4, 4), (6, 6, 6, 6)).bool()
    assert torch.allclose(biharmonic_fill(ramp, inner), ramp, atol=1e-4)

def laplacian(x):
    x = F.pad(x, (1, 1, 1, 1), mode='replicate')
    middle = x[..., 1:-1, 1:-1]
    across = x[..., 1:-1, 2:] + x[..., 1:-1, :-2]
    return x[..., 2:, 1:-1] + x[..., :-2, 1:-1] + across - 4*middle

def test_biharmonic_fill_solves_its_equation_at_the_edge_too():
    smooth = .3*F.avg_pool2d(pictures(1, size=20), 5, 1)
    # So that nothing is clipped to the range of known pixels
    smooth[..., 10, 10] = 1.
    smooth[..., 15, 15] = -1.
    corner = torch.zeros(1, 1, 16, 16, dtype=torch.bool)
    corner[..., :3, :3] = True
    y = biharmonic_fill(smooth, corner).double()
    assert laplacian(laplacian(y))[corner.expand_as(y)].abs().max() < 1e-5

def test_masked_view():
    for channels in (1, 3):
        x = pictures(channels=channels)
        y = masked_view(x, holes())
        hidden = holes().expand_as(x)
        assert y.shape == x.shape and torch.equal(y[~hidden], x[~hidden])
        for c in range(channels):
            assert len(y[:, c][holes()[:, 0]].unique()) == 1

# pictures of any kind

inpainter = network()
plain = network(Denoiser)

def pixels(*shape, dtype=np.uint8, top=256, seed=0):
    return np.random.default_rng(seed).integers(0, top, shape).astype(dtype)

def spot(h, w, y=.3, x=.4, size=.3):
    "A box-shaped hole, of at least one pixel"
    mask = np.zeros((h, w), bool)
    mask[int(y*h):int((y + size)*h) + 1, int(x*w):int((x + size)*w) + 1] = True
    return mask

def filled(image, mask, **kwargs):
    settings = dict(model=inpainter, steps=2, progress=False, as_colour=True) | kwargs
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', 'White of this 16-bit picture')
        return inpaint(image, mask, **settings)

def check(out, image, mask, n=1):
    "Known pixels and alpha are the same to the bit; the hole has changed"
    assert out.shape == (n, *image.shape) and out.dtype == image.dtype
    for o in out:
        assert (o[~mask] == image[~mask]).all()
    has_alpha = image.ndim == 3 and image.shape[2] in (2, 4)
    if has_alpha: assert (out[..., -1] == image[..., -1]).all()
    if mask.sum() > 1: assert (out[0] != image)[mask].any()

@pytest.mark.parametrize('dtype, top', [
    (np.uint8, 256), (np.uint16, 4096), (np.uint16, 65536)])
@pytest.mark.parametrize('channels', [None, 1, 2, 3, 4])
def test_arrays(dtype, top, channels):
    shape = (40, 50, channels) if channels else (40, 50)
    image = pixels(*shape, dtype=dtype, top=top)
    has_alpha = channels in (2, 4)
    # Alpha says nothing about the range of the colours
    if has_alpha: image[..., -1] = np.iinfo(dtype).max
    before = image.copy()
    mask = spot(40, 50)
    out = filled(image, mask, n=2)
    check(out, image, mask, 2)
    colours = out[:, mask][..., :-1] if has_alpha else out[:, mask]
    assert colours.max() <= np.iinfo(dtype).max and (top == 256 or colours.max() > 255)
    assert (out[0] != out[1]).any() and (image == before).all()

@pytest.mark.parametrize('mode', ['1', 'L', 'LA', 'P', 'RGB', 'RGBA', 'I', 'I;16'])
def test_pil_modes_and_files(mode, tmp_path):
    image = Image.fromarray(pixels(40, 50, 3)).convert(mode if mode != 'I;16' else 'L')
    if mode == 'I;16':
        image = Image.fromarray(pixels(40, 50, dtype=np.uint16, top=4096))
    assert image.mode == mode
    array = np.array(image.convert({'P': 'RGB', '1': 'L'}.get(mode, mode)))
    if mode == 'I': array = array.astype(np.uint16)
    mask = spot(40, 50)
    out = filled(image, mask)
    check(out, array, mask)
    file = tmp_path/('cell.tif' if mode == 'I' else 'cell.png')
    image.save(file)
    Image.fromarray(mask).save(tmp_path/'mask.png')
    assert (filled(file, str(tmp_path/'mask.png')) == out).all()

def test_a_palette_with_transparency():
    image = Image.fromarray(pixels(40, 50, 3)).convert('P')
    image.info['transparency'] = 3
    assert filled(image, spot(40, 50)).shape == (1, 40, 50, 4)

@pytest.mark.parametrize('shape', [
    (1, 1), (2, 3), (1, 40), (17, 300), (64, 64), (360, 363)])
@pytest.mark.parametrize('kind', ['spot', 'everything', 'edge'])
def test_sizes(shape, kind):
    image = pixels(*shape, 3)
    masks = dict(spot=spot(*shape), everything=np.ones(shape, bool),
                 edge=spot(*shape, .9, .9, .09))
    check(filled(image, masks[kind]), image, masks[kind])

def test_a_large_picture():
    image = pixels(2000, 3000)
    mask = np.zeros((2000, 3000), bool)
    mask[1990:, 2900:2960] = True
    check(filled(image, mask), image, mask)

def test_every_kind_of_mask_is_the_same_mask(tmp_path):
    image = pixels(40, 50, 3)
    mask = spot(40, 50)
    white = mask.astype(np.uint8)*255
    opaque = np.full_like(white, 255)
    Image.fromarray(white).save(tmp_path/'mask.tif')
    kinds = (
        mask.astype(np.uint8), white, mask.astype(float), mask.astype(np.uint16)*65535,
        white[..., None], white[None], np.stack([white]*3, -1),
        np.dstack([white]*3 + [opaque]), Image.fromarray(mask), Image.fromarray(white),
        Image.fromarray(white).convert('RGB'), tmp_path/'mask.tif',
        torch.from_numpy(mask))
    expected = filled(image, mask)
    for kind in kinds:
        assert (filled(image, kind) == expected).all()

@pytest.mark.parametrize('method, model', [
    ('trained', inpainter), ('clamp', plain), ('repaint', plain)])
@pytest.mark.parametrize('shape, window', [
    ((40, 50), None), ((40, 50), 15), ((40, 50), 44), ((40, 50), 90), ((9, 60), None),
    ((300, 280), None)])
@pytest.mark.parametrize('where', ['inside', 'corner', 'everything'])
def test_what_lies_under_the_mask_never_shows(method, model, shape, window, where):
    masks = dict(inside=spot(*shape, .3, .3, .15), corner=spot(*shape, .9, .85, .1),
                 everything=np.ones(shape, bool))
    mask = masks[where]
    if where == 'everything' and window and window < max(shape): return
    for dtype, top in ((np.uint8, 256), (np.uint16, 1000)):
        image = pixels(*shape, 3, dtype=dtype, top=top)
        other = image.copy()
        other[mask] = np.iinfo(dtype).max - other[mask]
        settings = dict(method=method, model=model, window=window)
        out = filled(image, mask, **settings)
        assert (filled(other, mask, **settings) == out).all()

@pytest.mark.parametrize('side', [11, 16, 37, 64])
def test_the_close_up_holds_nothing_hidden(side):
    x = np.random.default_rng(0).uniform(-1, 1, (side, side, 3))
    hole = spot(side, side)
    a, mask = close_up(x, hole, 16)
    b, _ = close_up(np.where(hole[..., None], 5., x), hole, 16)
    assert torch.equal(a, b)
    assert a.shape == (1, 3, 16, 16) and mask.shape == (1, 1, 16, 16)
    # A pixel with any hidden part is hidden
    share = F.adaptive_avg_pool2d(torch.from_numpy(hole)[None, None].float(), 16)
    assert torch.equal(mask, share > 0) and (~mask).any()

    # Far from the hole it is the picture itself, shrunk
    planes = []
    for c in range(3):
        plane = Image.fromarray(x[..., c].astype(np.float32))
        planes.append(np.asarray(plane.resize((16, 16), Image.Resampling.BICUBIC)))
    shrunk = torch.from_numpy(np.stack(planes)).clamp(-1, 1)[None]
    far = ~(F.max_pool2d(mask.float(), 7, 1, 3) > 0).expand_as(a)
    assert torch.allclose(a[far], shrunk[far], atol=1e-5)

def test_the_window_holds_the_hole():
    hole = spot(40, 50)
    ys, xs = np.nonzero(hole)
    for window in (None, 20, 44, 100):
        top, left, side = find_window(hole, window)
        assert side == (window or 40)
        assert top <= ys.min() and ys.max() < top + side
        assert left <= xs.min() and xs.max() < left + side
    assert find_window(spot(360, 363, size=.1))[2] == 200
    assert find_window(np.ones((300, 500), bool))[2] == 500

def test_a_window_beyond_the_picture_repeats_its_edge():
    picture = pixels(4, 5)
    padded = np.pad(picture, ((1, 3), (2, 1)), mode='edge')
    assert (crop_window(picture, (-1, -2, 8)) == padded).all()
    assert (crop_window(picture, (1, 2, 3)) == picture[1:4, 2:5]).all()

def test_fills_depend_on_seed_class_and_guidance():
    image = pixels(40, 50, 3)
    mask = spot(40, 50)
    first = dict(seed=1, label='a')
    a = filled(image, mask, **first)
    assert (a == filled(image, mask, **first)).all()
    for other in (dict(seed=2), dict(label='b'), dict(label=None),
                  dict(guidance_scale=4.), dict(steps=5), dict(sampler='ddim', eta=1.)):
        assert (a != filled(image, mask, **(first | other))).any()
    several = filled(image, mask, n=3, seed=1)
    assert (several[0] == filled(image, mask, n=1, seed=1)[0]).mean() > .98

def test_methods_of_a_network_that_could_see_the_known_pixels():
    for method in ('clamp', 'repaint'):
        out = filled(good['image'], good['mask'], method=method, label='a', steps=3)
        check(out, good['image'], good['mask'])
        seen = filled(good['image'], good['mask'], label='a', steps=3)
        assert (out != seen).any()

def truncated(folder):
    "A file of which the end is missing"
    file = folder/'a.png'
    Image.fromarray(pixels(40, 50, 3)).save(file)
    file.write_bytes(file.read_bytes()[:2000])
    return file

def text(folder):
    (folder/'a.png').write_text('no picture')
    return folder/'a.png'

# What is refused, made when its turn comes: (makes it in a folder, error, its words)
refused = dict(
    text=(text, ValueError, 'a.png cannot be read'),
    half=(truncated, ValueError, 'a.png cannot be read'),
    lazy=(lambda d: Image.open(truncated(d)), ValueError, 'cannot be read'),
    folder=(lambda d: d, ValueError, 'cannot be read'),
    missing=(lambda d: d/'nothing.png', FileNotFoundError,
             'nothing.png does not exist'),
    cmyk=(lambda d: Image.fromarray(pixels(40, 50, 3)).convert('CMYK'), ValueError,
          'mode CMYK'),
    floating=(lambda d: pixels(40, 50, 3)/255, TypeError, 'float64.*0..255'),
    tensor=(lambda d: torch.zeros(3, 40, 50), TypeError, 'use `fill_holes`'),
    flags=(lambda d: np.zeros((40, 50), bool), TypeError, 'bool'),
    five=(lambda d: pixels(40, 50, 5), ValueError, r'\(40, 50, 5\)'),
    four_axes=(lambda d: pixels(1, 40, 50, 3), ValueError, r'\(1, 40, 50, 3\)'),
    empty=(lambda d: pixels(0, 50, 3), ValueError, r'\(0, 50, 3\)'),
    nothing=(lambda d: None, TypeError, 'uint8 or uint16'),
    long=(lambda d: Image.fromarray(np.full((40, 50), 70_000, np.int32)), ValueError,
          '70000 to 70000.*16 bits'),
    below=(lambda d: Image.fromarray(np.full((40, 50), -1, np.int32)), ValueError,
           '-1'),
    real=(lambda d: Image.fromarray(np.zeros((40, 50), np.float32)), ValueError,
          'mode F'),
)

@pytest.mark.parametrize('name', refused)
def test_pictures_that_cannot_be_filled(name, tmp_path):
    make, error, says = refused[name]
    with pytest.raises(error, match=says):
        filled(make(tmp_path), spot(40, 50))

def test_a_decompression_bomb(tmp_path, monkeypatch):
    Image.fromarray(pixels(40, 50)).save(tmp_path/'bomb.png')
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 900)
    with pytest.raises(ValueError, match='bomb.png.*decompression bomb'):
        filled(tmp_path/'bomb.png', spot(40, 50))

def deep_png(path, image):
    "Write a PNG of 16 bits a channel, which Pillow cannot"
    h, w, c = image.shape
    def chunk(kind, data):
        checksum = struct.pack('>I', zlib.crc32(kind + data))
        return struct.pack('>I', len(data)) + kind + data + checksum
    colour_type = {1: 0, 2: 4, 3: 2, 4: 6}[c]
    header = struct.pack('>IIBBBBB', w, h, 16, colour_type, 0, 0, 0)
    rows = b''.join(b'\0' + row.astype('>u2').tobytes() for row in image)
    path.write_bytes(b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header)
                     + chunk(b'IDAT', zlib.compress(rows)) + chunk(b'IEND', b''))
    return path

@pytest.mark.parametrize('channels', [1, 3, 4])
def test_colours_of_16_bits_are_not_cut_to_8(channels, tmp_path):
    image = pixels(40, 50, channels, dtype=np.uint16, top=65536)
    path = deep_png(tmp_path/'a.png', image)
    if channels == 1: image = image[..., 0]
    for picture in (path, Image.open(path)):
        check(filled(picture, spot(40, 50)), image, spot(40, 50))

def test_other_files_of_16_bits(tmp_path):
    (tmp_path/'a.ppm').write_bytes(b'P6 50 40 65535\n' + bytes(40*50*6))
    with pytest.raises(ValueError, match='16 bits'):
        filled(tmp_path/'a.ppm', spot(40, 50))

@pytest.mark.parametrize('suffix', ['bmp', 'tif', 'png', 'ppm', 'webp', 'gif', 'jpg'])
def test_files_of_8_bits_are_read_as_they_are(suffix, tmp_path):
    # Rows of a BMP of 205 pixels have 616 bytes: not to be mistaken for 16 bits
    for width in (54, 160, 205, 533):
        picture = pixels(4, width, 3)
        file = tmp_path/f'a.{suffix}'
        Image.fromarray(picture).save(
            file, **(dict(lossless=True) if suffix == 'webp' else {}))
        read = read_image(file)
        assert read.shape == (4, width, 3)
        if suffix not in ('gif', 'jpg'): assert (read == picture).all()

good = dict(image=pixels(40, 50, 3), mask=spot(40, 50))

@pytest.mark.parametrize('change, says', [
    (dict(mask=np.zeros((40, 50), bool)), 'empty'),
    (dict(mask=np.full((40, 50), 100, np.uint8)), 'Paint white'),
    (dict(mask=spot(50, 40)), '40 × 50 pixels and the image 50 × 40'),
    (dict(mask=None), r'\(\)'), (dict(mask=np.zeros((2, 2, 2, 2))), 'a mask is'),
    (dict(mask=np.ones(40)), 'a mask is'),
    (dict(window=5), '16 pixels long.*16..100, not 5'), (dict(window=0), 'not 0'),
    (dict(window=-3), 'not -3'), (dict(window=10**6), 'not 1000000'),
    (dict(method='magic'), "'magic'.*trained, clamp"), (dict(n=0), 'n=0 should'),
    (dict(steps=0), 'steps'), (dict(steps=-1), 'steps'),
    (dict(steps=0, method='repaint', model=plain), 'steps'),
    (dict(label='z'), "Unknown class 'z'"),
    (dict(label='a', model=network(classes=())), 'without classes'),
    (dict(model=plain), 'not trained to fill holes'),
    (dict(model='blood31'), 'blood31'),
    (dict(model=network(channels=1)), 'in colour.*generates grey'),
    (dict(model=network(channels=2)), '2 channels'),
    (dict(image=pixels(40, 50), as_colour=False), 'is grey.*as_colour'),
    (dict(image=pixels(40, 50, 1), as_colour=False), 'is grey.*as_colour'),
    (dict(image=pixels(40, 50, 2), as_colour=False), 'is grey.*as_colour'),
    (dict(image=pixels(40, 50, 1).repeat(3, -1), as_colour=False), 'is grey'),
    (dict(white=0), 'white=0.*from 1 to 255'), (dict(white=256), 'from 1 to 255'),
    (dict(white=float('nan')), 'white=nan'), (dict(white='4095'), "white='4095'"),
    (dict(white=True), 'white=True'), (dict(white=2**16,
     image=pixels(40, 50, 3, dtype=np.uint16)), 'white=65536.*65,535'),
    (dict(sampler='dimm'), 'Unknown sampler'),
    (dict(guidance_scale=float('nan'), label='a'), 'scale=nan')])
def test_inpaint_says_what_is_wrong(change, says):
    with pytest.raises(ValueError, match=says):
        filled(**(good | change))

def test_masks_that_cannot_be_read(tmp_path):
    with pytest.raises(FileNotFoundError, match='nothing.png'):
        filled(good['image'], tmp_path/'nothing.png')
    with pytest.raises(ValueError, match='a.png cannot be read'):
        filled(good['image'], text(tmp_path))
    Image.fromarray(spot(9, 9)).save(tmp_path/'small.png')
    with pytest.raises(ValueError, match='small.png has 9 × 9'):
        filled(good['image'], tmp_path/'small.png')

def test_shipped_network_fills_a_cell():
    drawn = simulate_blood(1, size=64, labels='neutrophil', seed=3)
    image = np.moveaxis(np.asarray(drawn.images[0]), 0, -1)
    mask = np.asarray(drawn.nucleus[0])
    out = inpaint(image, mask, label='neutrophil', steps=5, n=2, progress=False)
    check(out, image, mask, 2)
    assert (out[0] != out[1]).any() and out[:, mask].std() > 5
    assert isinstance(load('blood64-inpaint'), Inpainter)

# White of 16 bits, grey and colour, and the scale of the cells

def drawn_cell(label='neutrophil', size=64, seed=3):
    drawn = simulate_blood(1, size=size, labels=label, seed=seed)
    image = np.moveaxis(np.asarray(drawn.images[0]), 0, -1)
    mask = np.asarray(drawn.nucleus[0])
    return image, ndimage.binary_dilation(mask, iterations=size//32)

def share_of_white(image, mask, **kwargs):
    "Mean brightness of the fill, in units of the median known pixel"
    out = filled(image, mask, model=load('blood64-inpaint', 'cpu', 'float32'), steps=3,
                 **kwargs)[0]
    return out[mask].mean()/np.median(image[~mask])

def test_the_brightness_of_a_fill_goes_with_that_of_the_picture():
    cell, mask = drawn_cell()
    shares = [share_of_white(cell, mask)]
    for factor in (4, 16, 16.5, 100, 257):
        image = (cell.astype(float)*factor).round().astype(np.uint16)
        shares.append(share_of_white(image, mask))
    assert np.ptp(shares) < .01*min(shares), shares

@pytest.mark.parametrize('hot', [1, 5])
def test_hot_pixels_change_nothing(hot):
    cell, mask = drawn_cell()
    image = cell.astype(np.uint16)*9
    damaged = image.copy()
    ys, xs = np.nonzero(~mask)
    places = np.random.default_rng(0).choice(len(ys), hot, replace=False)
    far = [i for i in places if not mask[max(0, ys[i] - 4):ys[i] + 5,
                                         max(0, xs[i] - 4):xs[i] + 5].any()]
    damaged[ys[far], xs[far]] = 65535
    before = share_of_white(image, mask)
    assert abs(share_of_white(damaged, mask)/before - 1) < .02

def test_white_is_what_the_user_says():
    cell, mask = drawn_cell()
    image = cell.astype(np.uint16)*16
    expected = inpaint(cell, mask, model=inpainter, steps=2, progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        out = inpaint(image, mask, model=inpainter, steps=2, progress=False, white=4080)
    assert abs(out[0][mask]/16 - expected[0][mask]).max() <= 1
    with pytest.warns(UserWarning, match='White of this 16-bit picture.*4095'):
        inpaint(image, mask, model=inpainter, steps=1, progress=False)

def test_a_fill_can_be_brighter_than_all_that_is_known():
    rng = np.random.default_rng(0)
    dark = rng.normal(200, 20, (64, 64, 3)).round().astype(np.uint16)
    hole = spot(64, 64)
    values = {}
    for white in (3000., 65535):
        level = white_level(dark, hole, white)
        bright = put_back(dark, hole, (0, 0, 64), torch.ones(3, 16, 16), level)
        values[white] = bright[hole].max()
    assert values[3000.] == 3000 and values[65535] == 65535

def test_known_pixels_above_white_stay_and_a_fill_ends_there():
    cell = drawn_cell()[0].astype(np.uint16)*16
    hole = spot(64, 64)
    out = filled(cell, hole, white=1000., n=2)
    check(out, cell, hole, 2)
    assert cell[~hole].max() > 3000 and 500 < out[:, hole].max() < 1100

def flat(level, dtype=np.uint16, channels=3):
    return np.full((5, 10, channels), level, dtype)

@pytest.mark.parametrize('image, hidden, white', [
    (flat(90), False, 90), (flat(0), False, 1), (flat(65000, channels=1), False, 65000),
    (flat(0), True, 65535), (flat(90, np.uint8), False, 255),
    (flat(0, np.uint8, 1), True, 255)])
def test_the_value_of_white(image, hidden, white):
    assert white_level(image, np.full((5, 10), hidden)) == pytest.approx(white)

# Dark fields: few bright spots on black

def dark_fields(n=40, size=64, margin=0):
    "Drawn dark-field cells of 12 bits, in a field of noise that goes on around them"
    drawn = simulate_jurkat(n, size=size, channels=('darkfield',), seed=0)
    images = np.asarray(drawn.images)[:, 0].astype(np.uint16)*16
    side = size + 2*margin
    noise = np.random.default_rng(1).normal(336, 30, (n, side, side)).clip(0)
    fields = noise.round().astype(np.uint16)
    fields[:, margin:margin + size, margin:margin + size] = images
    return fields

def square(side, rng, margin, width=16):
    y, x = rng.integers(14, 50 - width, 2) + margin
    hole = np.zeros((side, side), bool)
    hole[y:y + width, x:x + width] = True
    return hole

@pytest.mark.parametrize('margin', [0, 100])
def test_hidden_spots_of_a_dark_field_come_as_bright_as_they_are(monkeypatch, margin):
    "A network that knows the truth is only limited by white"
    rng = np.random.default_rng(0)
    shares = []
    for field in dark_fields(margin=margin):
        hole = square(len(field), rng, margin)
        bright = hole & (field > 960)
        if bright.sum() < 5: continue
        def truth(model, x, mask, *args, **kwargs):
            level = white_level(field[..., None], hole)
            whole = torch.from_numpy(field/level*2 - 1)[None, None].clamp(-1, 1).float()
            return whole.expand(1, 3, -1, -1)
        monkeypatch.setattr('cell_diffusion.inpainting.fill_holes', truth)
        out = filled(field, hole, window=len(field))[0]
        shares.append(np.median(out[bright])/np.median(field[bright]))
    assert len(shares) > 15
    assert np.median(shares) > .99 and np.mean(shares) > .93, shares

def test_white_of_a_dark_field_goes_with_its_exposure_and_not_with_hot_pixels():
    rng = np.random.default_rng(0)
    for field in dark_fields(8, margin=20):
        hole = square(len(field), rng, 20)
        image = field[..., None]
        levels = []
        for factor in (1/16, 1, 1.03, 10):
            scaled = (image*factor).round().astype(np.uint16)
            levels.append(white_level(scaled, hole)/factor)
        assert np.ptp(levels) < .01*min(levels), levels
        hot = image.copy()
        hot[3, 3] = hot[0, 0] = hot[40, 0] = 65535
        assert white_level(hot, hole) < 1.05*white_level(image, hole)

# The white of the training

def trained_on(white, bits, **kwargs):
    model = network(**kwargs)
    model.white = white
    model.bits = bits
    return model

@pytest.mark.parametrize('network_white, bits, dtype, white, expected, says', [
    (4095., 16, np.uint16, None, 4095, "4095, as in the network's training"),
    (4095., 16, np.uint16, 3000., 3000, None),
    (255., 8, np.uint16, None, None, 'from its known pixels'),
    (4095., 16, np.uint8, None, 255, None),
    (200., 8, np.uint8, None, 200, "200, as in the network's training"),
    (200., 8, np.uint16, None, None, 'from its known pixels'),
    (255., 8, np.uint8, None, 255, None)])
def test_which_white(monkeypatch, network_white, bits, dtype, white, expected, says):
    "What the user says, else that of the network for files of its depth, else measured"
    monkeypatch.setattr('cell_diffusion.inpainting.fill_holes',
                        lambda model, x, *args, **kwargs: x*0 + 1)
    model = trained_on(network_white, bits)
    image = pixels(40, 50, 3, dtype=dtype)
    mask = spot(40, 50)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        out = inpaint(image, mask, model=model, progress=False, white=white)[0]
    measured = np.percentile(image[~mask].max(-1), 99.9, method='lower')
    assert out[mask].max() == (expected or measured)
    texts = [str(w.message) for w in said if 'White of' in str(w.message)]
    assert len(texts) == (says is not None) and all(says in text for text in texts)

def test_a_network_keeps_the_white_of_its_training(tmp_path):
    dls = cell_dls('simulated', size=32, n=100, device='cpu')
    plain = inpainting_learner(dls, dim=8).model.cpu()
    assert (plain.white, plain.bits) == (255, 8)
    dls.cells = replace(dls.cells, white=4095, bits=16)
    for make in (inpainting_learner, diffusion_learner):
        model = make(dls, dim=8).model.cpu()
        save(model, tmp_path/'a')
        again = load(tmp_path/'a')
        assert (again.white, again.bits) == (4095, 16)
        assert weights_hash(model) != weights_hash(plain)

def test_folders_from_before_the_white_was_kept(tmp_path):
    model = network()
    save(model, tmp_path/'a')
    file = tmp_path/'a'/'config.json'
    config = json.loads(file.read_text())
    assert (config.pop('white'), config.pop('bits')) == (255, 8)
    later = dict(cell_scales=None, guidance_scale=1, interval=None, jumps=None)
    for name, value in later.items():
        assert config.pop(name) == value
    before = {k: v for k, v in config.items() if k not in ('class', 'format_version')}
    hashed = hashlib.sha256(json.dumps(before, sort_keys=True).encode())
    for name, tensor in model.state_dict().items():
        hashed.update(name.encode())
        hashed.update(tensor.half().numpy().tobytes())
    assert weights_hash(model) == hashed.hexdigest()[:16]
    again = load('blood64-inpaint')
    assert (again.white, again.bits) == (255, 8)

@pytest.mark.parametrize('white, bits', [
    (0., 8), (256., 8), (65536., 16), (4095., 8), (float('nan'), 16), (100., 12)])
def test_a_white_that_is_none(white, bits):
    with pytest.raises(ValueError, match='white is a grey level|white=nan'):
        Denoiser(dict(channels=3, dim=8, mults=[1, 2]), white=white, bits=bits)

@pytest.mark.parametrize('mode', ['L', 'LA', '1', 'I;16', 'RGB'])
def test_grey_pictures_and_coloured_networks(mode):
    shade = pixels(40, 50, dtype=np.uint16 if mode == 'I;16' else np.uint8)
    image = Image.fromarray(shade) if mode == 'I;16' else (
        Image.fromarray(shade).convert('L').convert(mode))
    mask = spot(40, 50)
    with pytest.raises(ValueError, match='is grey and the network.*in colour'):
        filled(image, mask, as_colour=False)
    out = filled(image, mask)[0]
    if mode == 'RGB': assert np.ptp(out, axis=-1).max() == 0

    grey_network = network(channels=1)
    own = filled(image, mask, model=grey_network, as_colour=False)[0]
    check(own[None], read_image(image), mask)
    with pytest.raises(ValueError, match='in colour and the network.*grey'):
        filled(pixels(40, 50, 3), mask, model=grey_network)

def test_blank_colour_is_not_grey():
    "Nothing but a white background is known"
    image = pixels(40, 50, 3)
    mask = spot(40, 50)
    image[~mask] = 255
    check(filled(image, mask, as_colour=False), image, mask)

def said_of_scale(image, mask, **kwargs):
    "What `inpaint` warns of"
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter('always')
        inpaint(image, mask, steps=1, progress=False, **kwargs)
    return [str(n.message) for n in notes]

@pytest.fixture(scope='module')
def of_one_scale():
    "The shipped network, as if it had been trained on its middle scale alone"
    model = load('blood64-inpaint', 'cpu', 'float32')
    model.cell_scales = None
    return model

def smaller(image, mask, size=128):
    "The same cell in the middle of a field of twice the side, with others around it"
    field = [drawn_cell(label, size//2, seed)[0] for seed, label in
             enumerate(('erythroblast', 'lymphocyte', 'monocyte', 'neutrophil'))]
    rows = [np.concatenate(field[i:i + 2], 1) for i in (0, 2)]
    pixels = np.concatenate(rows)
    hole = np.zeros((size, size), bool)
    middle = slice(size//4, size//4 + size//2)
    pixels[middle, middle] = image
    hole[middle, middle] = mask
    return pixels, hole

@pytest.mark.parametrize('label', ['neutrophil', 'eosinophil', 'ig', 'monocyte', None])
def test_a_cell_of_half_the_size_is_noticed(label, of_one_scale):
    asked = dict(label=label, model=of_one_scale)
    cell, mask = drawn_cell(label or 'neutrophil')
    assert said_of_scale(cell, mask, **asked) == []
    field, hole = smaller(cell, mask)
    said, = said_of_scale(field, hole, **asked)
    window = int(re.search(r'window=(\d+)', said)[1])
    assert 'side of the window (128 pixels)' in said and 50 <= window <= 85
    assert said_of_scale(field, hole, window=window, **asked) == []

def test_small_kinds_of_cells_fit_where_they_are_named(of_one_scale):
    cell, mask = drawn_cell('platelet', seed=2)
    mask = mask if mask.any() else spot(64, 64, .45, .45, .1)
    assert said_of_scale(cell, mask, label='platelet', model=of_one_scale) == []
    assert 'label' in said_of_scale(cell, mask, model=of_one_scale)[0]

def test_a_cell_that_is_too_large_is_noticed(of_one_scale):
    cell, _ = drawn_cell('monocyte', 128)
    mask = spot(128, 128, .45, .45, .1)
    asked = dict(label='neutrophil', model=of_one_scale)
    assert said_of_scale(cell, mask, **asked) == []
    assert 'window=' in said_of_scale(cell, mask, window=60, **asked)[0]

def test_the_shipped_network_fills_half_the_size_and_notices_a_quarter():
    cell, mask = drawn_cell('neutrophil')
    field, hole = smaller(cell, mask)
    assert said_of_scale(field, hole) == []
    quarter = np.tile(field, (2, 2, 1))
    far = np.zeros((256, 256), bool)
    far[:128, :128] = hole
    said, = said_of_scale(quarter, far, window=256)
    assert 'side of the window (256 pixels)' in said

def test_nothing_is_claimed_where_nothing_was_measured():
    cell, mask = drawn_cell()
    field, hole = smaller(cell, mask)
    assert inpainter.cell_sizes is None
    assert said_of_scale(field, hole, model=inpainter) == []

def test_training_cells_are_measured():
    blood = cell_dls('simulated', size=64, n=200, device='cpu')
    sizes = typical_sizes(blood)
    by_class = dict(zip(blood.vocab, sizes))
    assert len(sizes) == 8 and all(.2 < s < .9 for s in sizes)
    assert by_class['platelet'] < .6*by_class['neutrophil']
    assert len(typical_sizes(blood, classes=False)) == 1
    jurkat = dict(channels=('brightfield', 'darkfield', 'dna'), size=40, n=100)
    for cells in (dict(size=40, n=100), jurkat):
        dls = cell_dls('simulated-jurkat', device='cpu', **cells)
        assert typical_sizes(dls) is None

def test_sizes_are_saved_with_the_network(tmp_path):
    dls = cell_dls('simulated', size=32, n=200, device='cpu')
    model = inpainting_learner(dls, dim=8).model.cpu()
    assert model.cell_sizes == typical_sizes(dls)
    save(model, tmp_path/'a')
    assert load(tmp_path/'a').cell_sizes == model.cell_sizes
    shipped = load('blood64-inpaint')
    sizes = dict(zip(shipped.classes, shipped.cell_sizes))
    assert .6 < sizes['neutrophil'] < .7 and .25 < sizes['platelet'] < .35
    assert load('blood64').cell_sizes == (pytest.approx(.64, abs=.03),)

@pytest.mark.parametrize('sizes', [(.5, .5), (0.,), (3.,), (float('nan'),), ()])
def test_sizes_that_are_none(sizes):
    "Three classes take three sizes or one"
    unet = dict(channels=3, dim=8, mults=[1, 2])
    if sizes == ():
        assert Denoiser(unet, classes=classes, cell_sizes=sizes).cell_sizes == ()
        return
    with pytest.raises(ValueError, match='cell_sizes'):
        Denoiser(unet, classes=classes, cell_sizes=sizes)

def test_a_network_of_several_scales_knows_their_range(tmp_path):
    "Crops of 2/5 of a simulated picture show its cell 2.5 times as large"
    dls = cell_dls('simulated', size=32, n=100, bs=16, scales=(.4, .8), device='cpu')
    learn = inpainting_learner(dls, dim=8)
    assert learn.model.cell_scales == (1., 2.5)
    dls.cells.kept = .5
    model = inpainting_learner(dls, dim=8).model.cpu()
    assert model.cell_scales == (.625, 1.25)
    assert model.cell_sizes == typical_sizes(dls)
    save(model, tmp_path/'a')
    assert load(tmp_path/'a').cell_scales == (.625, 1.25)
    assert inpainting_learner(cell_dls('simulated', size=32, n=100, bs=16), dim=8
                              ).model.cell_scales is None

def test_nothing_is_said_of_a_scale_of_training():
    "As of half the size, and of twice"
    model = load('blood64-inpaint', 'cpu', 'float32')
    model.cell_scales = None
    cell, mask = drawn_cell()
    field, hole = smaller(cell, mask)
    large, _ = drawn_cell('monocyte', 128)
    close = large, spot(128, 128, .45, .45, .1)
    looks = dict(label='neutrophil', window=60, model=model)
    assert said_of_scale(field, hole, model=model) and said_of_scale(*close, **looks)
    model.cell_scales = (.5, 2.)
    assert said_of_scale(field, hole, model=model) == []
    assert said_of_scale(*close, **looks) == []
    model.cell_scales = (.8, 2.)
    said, = said_of_scale(field, hole, model=model)
    assert 60 < int(re.search(r'window=(\d+)', said)[1]) < 105

@pytest.mark.parametrize('scales', [(.5,), (2., .5), (0., 1.), (.5, 1., 2.)])
def test_ranges_that_are_none(scales):
    with pytest.raises(ValueError, match='cell_scales'):
        Denoiser(dict(channels=3, dim=8, mults=[1, 2]), cell_scales=scales)

def test_wholly_hidden_cells_are_cropped_as_usual():
    "So with everything hidden the network generates cells of the usual size"
    dls = cell_dls('simulated', size=32, n=100, bs=32, scales=(.4, 1), device='cpu')
    learn = inpainting_learner(dls, dim=4, shares=dict(everything=1, half=6))
    seen = []
    class Watch(Callback):
        order = 0
        def before_batch(self):
            if self.training: seen.append(self.xb[4].flatten(1).all(1))
    with learn.no_bar(), learn.no_logging():
        learn.fit(4, cbs=Watch())
    whole = torch.stack(seen).float()
    assert whole[:, :8].mean() > .3 and not whole[:, 8:].any()

def test_the_old_name_of_guidance():
    settings = dict(label='a', seed=1)
    image, mask = good['image'], good['mask']
    with pytest.warns(DeprecationWarning, match='w of inpaint is now guidance_scale'):
        old = filled(image, mask, w=3., **settings)
    assert (old == filled(image, mask, guidance_scale=3., **settings)).all()
    with pytest.raises(TypeError, match='both'):
        filled(image, mask, w=3., guidance_scale=3., **settings)


def test_what_is_no_network_is_refused():
    picture = np.zeros((32, 32, 3), np.uint8)
    hole = np.eye(32, dtype=bool)
    with pytest.raises(TypeError, match='A network is expected'):
        inpaint(picture, hole, model=5)
