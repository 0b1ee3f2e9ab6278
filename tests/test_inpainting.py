"Filling holes: known pixels stay, hidden ones are never looked at, RePaint is diffusers' RePaint, and every kind of picture is filled or refused with a reason"
import struct, zlib
from types import SimpleNamespace
import numpy as np, pytest, torch, torch.nn.functional as F
from diffusers import RePaintScheduler
from fastai.learner import Callback
from PIL import Image
from cell_diffusion.conditioning import Guided
from cell_diffusion.core import encode, generator
from cell_diffusion.data import cell_dls
from cell_diffusion.ddpm import *
from cell_diffusion.evaluation import CellClassifier
from cell_diffusion.inpainting import *
from cell_diffusion.inpainting import _close_up
from cell_diffusion.samplers import *
from cell_diffusion.schedules import linear_schedule, log_snr_schedule
from cell_diffusion.simulation import simulate_blood

classes = ('a', 'b', 'c')

def network(kind=Inpainter, prediction='v', channels=3, size=16, classes=classes, seed=0, T=20, **unet):
    "An untrained network that does not answer zero"
    torch.manual_seed(seed)
    unet = dict(dim=8, mults=[1, 2], **(dict(channels=2*channels + 1, out_channels=channels) if kind is Inpainter else dict(channels=channels))) | unet
    model = kind(unet, schedule='log_snr', T=T, prediction=prediction, data_std=.5 if prediction == 'v' else 1., size=size, classes=classes).eval()
    for p in model.parameters():
        if not p.detach().any(): torch.nn.init.normal_(p, std=.1)
    return model.requires_grad_(False)

def pictures(n=3, channels=3, size=16, seed=1): return torch.rand(n, channels, size, size, generator=generator(seed))*2 - 1

def holes(n=3, size=16): return random_masks(n, size, dict(box=1), seed=3)

def everything(n=3, size=16): return torch.ones(n, 1, size, size, dtype=torch.bool)

# masks

@pytest.mark.parametrize('size', [28, 33, 64, 128])
def test_masks(size):
    m = random_masks(60, size, seed=1)
    assert m.shape == (60, 1, size, size) and m.dtype == torch.bool and m.flatten(1).any(1).all()
    assert torch.equal(m, random_masks(60, size, seed=1)) and not torch.equal(m, random_masks(60, size, seed=2))
    share = {k: random_masks(60, size, {k: 1}).float().mean((1, 2, 3)) for k in shapes}
    assert share['everything'].eq(1).all() and (share['half'] - .5).abs().max() <= .5/size + 1e-6
    assert .03 < share['box'].min() and share['box'].max() < .46 and .01 < share['brush'].min() and share['brush'].max() < .75 and .15 < share['brush'].median() < .35

def test_how_often_each_shape_comes():
    area = random_masks(1000, 28, dict(half=1, everything=3, box=0)).float().mean((1, 2, 3))
    assert set(area.tolist()) == {.5, 1.} and abs((area == 1).float().mean() - .75) < .05
    sides = {tuple(m[0].float().mean(d).round().flatten().tolist()) for m in random_masks(60, 28, dict(half=1)) for d in (0, 1)}
    assert len(sides) == 3                                                         # beginning, end, and across: all four halves
    with pytest.raises(ValueError, match="'star'.*box, brush"): random_masks(2, 28, dict(star=1))

@pytest.mark.parametrize('size, nucleus, cell', [(64, .86, .93), (32, .84, .9)])
def test_stained_masks_find_what_was_drawn(size, nucleus, cell):
    c = simulate_blood(48, size=size, labels=[i%8 for i in range(48)], seed=21)
    x, seen = encode(c.images), torch.isin(torch.as_tensor(c.labels), torch.arange(1, 7))       # platelets have no nucleus, that of a basophil is hidden
    for what, true, some, bound in (('nucleus', c.nucleus, seen, nucleus), ('cell', c.cell, seen | ~seen, cell)):
        true = torch.as_tensor(true)[some][:, None]
        bare, grown = stained_masks(x, what, grow=0)[some], stained_masks(x, what)[some]
        assert ((bare & true).sum((1, 2, 3))/(bare | true).sum((1, 2, 3)).clamp(min=1)).median() > bound
        assert not (bare & ~grown).any() and ((grown & true).sum((1, 2, 3))/true.sum((1, 2, 3))).median() > .999       # the rim is covered
        assert grown.shape == (int(some.sum()), 1, size, size) and grown.dtype == torch.bool
    with pytest.raises(ValueError, match='colour'): stained_masks(x[:1, :1])
    with pytest.raises(ValueError, match="'nucleus' or 'cell'"): stained_masks(x[:1], 'cytoplasm')

# the network

@pytest.mark.parametrize('prediction', ['eps', 'x0', 'v'])
@pytest.mark.parametrize('channels', [1, 3, 5])
def test_inpainter_sees_image_known_and_mask(prediction, channels):
    model = network(prediction=prediction, channels=channels)
    xt, t, label, known, mask = pictures(2, channels), torch.tensor([3, 15]), torch.tensor([0, 2]), pictures(2, channels, seed=2), holes(2).float()
    out = model.unet(torch.cat([xt/model.std(t, xt), known, mask], 1), t, label)
    a, s = model.schedule.at('signal', t, xt), model.schedule.at('noise', t, xt)
    r2 = (s/a)**2
    x0 = dict(x0=out, eps=(xt - s*out)/a, v=.25/(r2 + .25)*xt*(1 + r2)**.5 - (r2/(r2 + .25))**.5*.5*out)[prediction]
    assert model.channels == channels == out.shape[1] and torch.allclose(model.x0(xt, t, label, False, known, mask), x0, atol=1e-4)
    assert torch.equal(model.x0(xt, t, label, True, known, mask), model.x0(xt, t, label, False, known, mask).clamp(-1, 1))

def test_inpainter_that_is_told_nothing_paints_everything():
    model = network()
    whole = fill(model, pictures(), everything(), seed=4, steps=4, progress=False)
    assert torch.equal(sample(model, 3, seed=4, steps=4, progress=False), whole)
    for told in (dict(known=pictures()), dict(mask=holes().float())):
        with pytest.raises(ValueError, match='both'): model(pictures(), torch.tensor([3]), **told)

def test_inpainter_travels_with_its_configuration(tmp_path):
    model = network(patch=2)
    model.save_pretrained(tmp_path/'fills'); network(Denoiser).save_pretrained(tmp_path/'paints')
    back = pretrained(Inpainter, tmp_path/'fills')
    args = pictures(2), torch.tensor([1, 12]), torch.tensor([0, 1]), pictures(2, seed=2), holes(2).float()
    assert torch.equal(model(*args), back(*args)) and back.classes == classes and back.channels == 3
    assert [type(load_network(tmp_path/k)) for k in ('fills', 'paints')] == [Inpainter, Denoiser]

def test_inpainter_in_bfloat16():
    model, args = network(), (pictures(2), torch.tensor([1, 12]), None, False, pictures(2, seed=2), holes(2).float())
    whole = model.x0(*args)
    model.bfloat16 = True
    half = model.x0(*args)
    assert half.dtype == torch.float32 and 0 < (half - whole).abs().max() < .1

# warm start

@pytest.mark.parametrize('patch', [1, 2])
@pytest.mark.parametrize('taught', [(), classes])
def test_warm_start_changes_nothing_at_first(patch, taught):
    old = network(Denoiser, classes=taught, patch=patch)
    xt, t, label, known, mask = pictures(4), torch.tensor([3, 8, 15, 19]), torch.tensor([0, 1, 2, 3]), pictures(4, seed=2), holes(4).float()
    asked = label if taught else None
    assert torch.equal(warm_start(network(seed=1, patch=patch), old).x0(xt, t, label, False, known, mask), old.x0(xt, t, asked, False))
    assert torch.equal(warm_start(network(Denoiser, seed=1, patch=patch), old).x0(xt, t, label, False), old.x0(xt, t, asked, False))

@pytest.mark.parametrize('new, old, says', [
    (dict(prediction='eps'), dict(), 'prediction'), (dict(size=32), dict(), 'size'), (dict(dim=16), dict(), 'shape'), (dict(mults=[1, 2, 3]), dict(), 'shape'), (dict(patch=2), dict(), 'shape'),
    (dict(kind=Denoiser), dict(kind=Inpainter), 'conv_in'), (dict(classes=()), dict(classes=classes), 'here they are none'),
    (dict(classes=('a', 'c', 'b')), dict(classes=classes), 'classes are a, b, c'), (dict(channels=1), dict(), 'shape')])
def test_warm_start_refuses_what_does_not_fit(new, old, says):
    with pytest.raises(ValueError, match=f'Cannot start.*{says}'): warm_start(network(**new), network(**(dict(kind=Denoiser) | old)))

# training

def pairs(x0, cb=None, validate=False, classes=classes, **kwargs):
    "What an `InpaintingCallback` makes of one batch of images: the network's inputs, its target and the weights"
    cb = cb or InpaintingCallback(**kwargs)
    cb.learn = SimpleNamespace(model=network(classes=classes), dls=SimpleNamespace(device=torch.device('cpu'), train=None))
    cb.before_validate() if validate else cb.before_train()
    batches = []
    for _ in range(2):
        cb.learn.xb, cb.learn.yb = (x0,), (torch.arange(len(x0)) % 3,)
        cb.before_batch(); batches.append((*cb.learn.xb, *cb.learn.yb))
    if not validate: cb.after_train()
    return batches

def test_what_the_network_is_told_in_training():
    x0 = pictures(8)
    (xt, t, label, known, mask, target, weight), (*_, mask2, _, _) = pairs(x0, outside=.3)
    assert torch.equal(known, torch.where(mask.bool(), 0., x0)) and mask.shape == (8, 1, 16, 16) and set(mask.unique().tolist()) == {0, 1} and len(label) == 8
    assert torch.allclose(weight, torch.where(mask.bool(), 1., .3)) and target.shape == x0.shape
    assert not torch.equal(mask, mask2)                                            # fresh ones in every batch
    assert pairs(x0, classes=())[0][2] is None
    model, weighed = network(), pairs(x0, outside=.3, gamma=5.)[0]
    assert torch.allclose(weighed[6], snr_weight(model, weighed[1])[:, None, None, None]*torch.where(weighed[4].bool(), 1., .3))

def test_nothing_hidden_reaches_the_network_but_the_noisy_image():
    x0 = pictures(8)
    first = pairs(x0)[0]
    other = pairs(torch.where(first[4].bool(), pictures(8, seed=9), x0))[0]
    assert torch.equal(first[3], other[3]) and torch.equal(first[4], other[4]) and not torch.equal(first[0], other[0])
    assert torch.equal(torch.where(first[4].bool(), 0., first[0]), torch.where(first[4].bool(), 0., other[0]))

def test_masks_of_a_resumed_run_and_of_validation():
    x0, whole, again = pictures(8), InpaintingCallback(), InpaintingCallback()
    epochs = [pairs(x0, whole) for _ in range(2)]
    again.epochs_seen = 1
    resumed = pairs(x0, again)
    assert all(torch.equal(a[4], b[4]) and torch.equal(a[0], b[0]) for a, b in zip(epochs[1], resumed)) and not torch.equal(epochs[0][0][4], epochs[1][0][4])
    a, b = pairs(x0, whole, validate=True), pairs(x0, InpaintingCallback(), validate=True)
    assert all(torch.equal(p[4], q[4]) for p, q in zip(a, b)) and not torch.equal(a[0][4], a[1][4])

def test_shares_reach_the_masks():
    assert all(b[4].all() for b in pairs(pictures(8), shares=dict(everything=1)))
    assert all(b[4].mean() == .5 for b in pairs(pictures(8), shares=dict(half=1)))

def test_hole_mse():
    pred, target, weight = pictures(2, size=3), pictures(2, size=3, seed=2), torch.rand(2, 1, 3, 3, generator=generator(0))
    total = sum(weight[i, 0, y, x]*(pred[i, c, y, x] - target[i, c, y, x])**2 for i in range(2) for c in range(3) for y in range(3) for x in range(3))
    assert torch.allclose(hole_mse(pred, target, weight), total/54) and torch.allclose(hole_mse(pred, target, torch.ones_like(weight)), F.mse_loss(pred, target))
    assert (pairs(pictures(4), outside=1.)[0][6] == 1).all()

@pytest.fixture(scope='module')
def cells(): return cell_dls('simulated', size=28, bs=16, n=96)

def learner(cells, **kw): return inpainting_learner(cells, 'edm', dim=8, mults=(1, 2), bfloat16=False, **kw)

def test_training_lowers_the_loss(cells):
    learn = learner(cells)
    with learn.no_bar(), learn.no_logging(): before = learn.validate()[0]; assert learn.validate()[0] == before       # the same masks each time
    fit_for(learn, epochs=3, lr=3e-3, progress=False)
    with learn.no_bar(), learn.no_logging(): assert learn.validate()[0] < .9*before
    assert isinstance(learn.ema.averaged, Inpainter) and learn.model.classes == tuple(cells.vocab)

def test_a_killed_run_goes_on_as_if_unbroken(cells, tmp_path):
    class Kill(Callback):
        order = 100
        def after_epoch(self): raise KeyboardInterrupt
    whole = learner(cells, classes=False); unbroken = fit_for(whole, epochs=2, progress=False)
    with pytest.raises(KeyboardInterrupt): fit_for(learner(cells, classes=False, cbs=[Kill()]), epochs=2, checkpoint=tmp_path/'run.pt', progress=False)
    again = learner(cells, classes=False); resumed = fit_for(again, epochs=2, checkpoint=tmp_path/'run.pt', progress=False)
    assert torch.allclose(torch.stack(list(resumed.losses)), torch.stack(unbroken.losses), atol=1e-5)
    for a, b in zip(whole.ema.averaged.parameters(), again.ema.averaged.parameters()): assert torch.allclose(a, b, atol=1e-5)

def test_a_learner_begins_with_another_networks_weights(cells):
    old = network(Denoiser, size=28, classes=(), T=1000)
    new = learner(cells, start=old).model.eval()
    x, t = pictures(2, size=28), torch.tensor([5, 800])
    assert torch.equal(new.x0(x, t, torch.tensor([1, 2]), False).cpu(), old.x0(x, t, None, False))

# filling with every sampler

every = dict(dpm_solver={}, ancestral={}, ddim={}, ddim_eta_1=dict(sampler='ddim', eta=1.), euler={}, heun={}, repaint=dict(jump=2, repeats=2))

@pytest.mark.parametrize('name', every)
@pytest.mark.parametrize('kind', [Inpainter, Denoiser])
def test_known_pixels_come_out_as_they_went_in(name, kind):
    model, x = network(kind), pictures()
    for spacing in spacings if name != 'ancestral' else [None]:
        settings = dict(sampler=name, steps=3, progress=False) | every[name] | (dict(spacing=spacing) if spacing else {})
        for masks, more in ((holes(), dict(label='b')), (holes(1), dict(label=[0, 1, 2], w=3.)), (holes().float(), dict(w=0., label='a'))):
            y, hidden = fill(model, x, masks, **settings, **more), masks.bool().expand_as(x)
            assert y.dtype == x.dtype and torch.equal(y[~hidden], x[~hidden]) and (y != x)[hidden].float().mean() > .9 and y.isfinite().all() and y.abs().max() < 1.5

@pytest.mark.parametrize('sampler, more', [('repaint', {}), ('ddim', dict(eta=1.))])
@pytest.mark.parametrize('schedule', [linear_schedule(), log_snr_schedule()])
def test_two_steps_stay_real_numbers(sampler, more, schedule): # a variance of 0 must not become the root of -1e-12
    model = network(Denoiser); model.schedule = schedule
    assert fill(model, pictures(), holes(), sampler=sampler, steps=2, progress=False, **more).dtype == torch.float32

@pytest.mark.parametrize('name', every)
@pytest.mark.parametrize('kind', [Inpainter, Denoiser])
def test_everything_hidden_and_nothing_hidden(name, kind):
    model, x, settings = network(kind), pictures(), dict(sampler=name, steps=3, seed=2, label='a', progress=False) | every[name]
    if name != 'repaint': assert torch.equal(fill(model, x, everything(1), **settings), sample(model, 3, **settings))
    assert torch.equal(fill(model, x, ~everything(), **settings), x)

@pytest.mark.parametrize('name', ['dpm_solver', 'ddim', 'euler', 'heun'])
def test_known_pixels_on_the_way_are_the_image_with_one_noise(name):
    model, x, known = network(), pictures(), ~holes().expand(3, 3, 16, 16)
    _, path = sample(Filling(model, x, ~known[:, :1]), 3, sampler=name, steps=6, trajectory=True, progress=False)
    a, s = ([table[t] for t, *_ in path] for table in (model.schedule.signal, model.schedule.noise))
    eps = (path[0][1] - a[0]*x)/s[0]
    for (_, xt, x0), a_t, s_t in zip(path, a, s): assert torch.allclose(xt[known], (a_t*x + s_t*eps)[known], atol=1e-4) and torch.equal(x0[known], x[known])

def test_known_pixels_of_ancestral_sampling_follow_q():
    model, x = network(), torch.full((10, 3, 16, 16), .6)
    known = ~holes(1).expand(10, 3, 16, 16)
    _, path = sample(Filling(model, x[:1], ~known[:1, :1]), 10, sampler='ancestral', trajectory=True, progress=False)
    for t, xt, _ in path[::3]:
        a, s, n = model.schedule.signal[t], model.schedule.noise[t], known.sum()
        assert abs(xt[known].mean() - a*.6) < 5*s/n**.5 + .01 and abs(xt[known].var()/s**2 - 1) < 8/n**.5 + .01

def test_what_lies_under_the_mask_does_not_matter():
    x, masks = pictures(), holes()
    for other in (torch.where(masks, pictures(seed=7), x), x.masked_fill(masks, float('nan'))):
        for kind, sampler in ((Inpainter, 'dpm_solver'), (Denoiser, 'ddim'), (Denoiser, 'repaint')):
            a, b = (fill(network(kind), y, masks, steps=4, sampler=sampler, progress=False) for y in (x, other))
            assert torch.equal(a, b)

def test_guidance_asks_twice_about_the_right_picture():
    filling, xt, t, label = Filling(network(), pictures(), holes()), pictures(seed=5), torch.full((3,), 15), torch.arange(3)
    free, asked = filling.x0(xt, t, None, False), filling.x0(xt, t, label, False)
    assert torch.allclose(Guided(filling, 3.).x0(xt, t, label, False), free + 3*(asked - free), atol=1e-4) and not torch.allclose(free, asked, atol=1e-3)

def test_fill_in_portions():
    model, x, masks, label = network(), pictures(5), holes(5), ['a', 'b', 'c', 0, 1]
    whole = fill(model, x, masks, label, seed=7, bs=2, steps=4, progress=False)
    for i in (0, 2, 4): assert torch.allclose(whole[i:i + 2], fill(model, x[i:i + 2], masks[i:i + 2], label[i:i + 2], seed=7 + i, steps=4, progress=False), atol=1e-5)
    assert torch.equal(whole, fill(model, x, masks, label, seed=7, bs=2, steps=4, progress=False)) and not torch.equal(whole, fill(model, x, masks, label, seed=8, bs=2, steps=4, progress=False))
    assert not torch.allclose(whole, fill(model, x, masks, label[::-1], seed=7, bs=2, steps=4, progress=False), atol=1e-3)
    many = pictures(300)
    assert torch.equal(fill(model, many, masks[:1], bs=1000, steps=1, progress=False)[~masks[:1].expand_as(many)], many[~masks[:1].expand_as(many)])

@pytest.mark.parametrize('change, says', [
    (dict(images=pictures()[0]), 'A filling takes'), (dict(masks=holes()[:, 0]), 'A filling takes'), (dict(masks=holes().expand(3, 3, 16, 16)), 'A filling takes'), (dict(masks=holes(size=32)), 'of the same size'),
    (dict(masks=holes(2)), '3 images and 2 masks'), (dict(images=pictures(1)), 'a mask for each'), (dict(images=pictures(channels=1)), r'fills images \(n, 3, 16, 16\)'),
    (dict(images=pictures(size=32), masks=holes(size=32)), r'fills images \(n, 3, 16, 16\)'), (dict(label='z'), "Unknown class 'z'"), (dict(label=[0, 1]), '2 labels for 3'),
    (dict(model=network(classes=()), label='a'), 'without classes'), (dict(model=network(classes=()), w=2.), 'guidance towards a class'), (dict(sampler='dimm'), 'Unknown sampler'), (dict(steps=0), 'steps')])
def test_fill_says_what_is_wrong(change, says):
    with pytest.raises(ValueError, match=says): fill(**(dict(model=network(), images=pictures(), masks=holes(), progress=False) | change))

def test_repaint_and_fillings_say_what_is_wrong():
    with pytest.raises(ValueError, match='Filling'): sample(network(Denoiser), 2, sampler='repaint', progress=False)
    with pytest.raises(ValueError, match='asked for 4'): sample(Filling(network(), pictures(), holes()), 4, progress=False)
    for wrong in ((0, 1, 1), (5, 0, 1), (5, 1, 0)):
        with pytest.raises(ValueError, match='1 or more'): jump_schedule(*wrong)

# two pixels of which everything is known

class Pair:
    "The exact denoiser of rows of two pixels that are Gaussian with correlation `rho`, in the place of a network"
    classes, training, size, channels, device, rho, sd = (), False, 2, 1, torch.device('cpu'), .8, .5
    schedule = log_snr_schedule()
    def __init__(self): pass
    def eval(self): pass
    def train(self, mode): pass
    def x0(self, xt, t, label=None, clip=True):
        a, s, cov = self.schedule.signal[t[0]], self.schedule.noise[t[0]], self.sd**2*torch.tensor([[1, self.rho], [self.rho, 1]])
        return xt @ (a*cov @ torch.linalg.inv(a*a*cov + s*s*torch.eye(2))).T

class ToldPair(Pair, Inpainter):
    "The same, told the left pixel"
    def x0(self, xt, t, label=None, clip=True, known=None, mask=None):
        a, s, mean, var = self.schedule.signal[t[0]], self.schedule.noise[t[0]], self.rho*known[..., :1], self.sd**2*(1 - self.rho**2)
        return (mean + a*var/(a*a*var + s*s)*(xt - a*mean)).expand_as(xt)

def regress(model, sampler, n=20_000, **kwargs):
    "Fill the right pixel of many pairs: its slope on the left one, and the spread around the line"
    left = Pair.sd*torch.randn(1, 1, n, 1, generator=generator(0))
    filling = Filling(model, torch.cat([left, left], -1), torch.tensor([False, True]).expand(1, 1, n, 2))
    a, b = samplers[sampler](filling, torch.randn(1, 1, n, 2, generator=generator(1)), rng=generator(2), **kwargs)[0, 0].T
    slope = (a*b).mean()/(a*a).mean()
    return slope.item(), (b - slope*a).std().item()

@pytest.mark.parametrize('sampler, kwargs', [('dpm_solver', dict(steps=20)), ('ddim', dict(steps=100)), ('ddim', dict(steps=200, eta=1.)), ('heun', dict(steps=30))])
def test_a_network_that_is_told_fills_as_it_should(sampler, kwargs):
    slope, width = regress(ToldPair(), sampler, **kwargs)
    assert slope == pytest.approx(.8, abs=.01) and width == pytest.approx(.3, rel=.05)

def test_clamping_listens_too_little_and_repaint_listens_more_with_every_repeat():
    slope, width = regress(Pair(), 'dpm_solver', steps=100)
    assert slope < .45 and width > .37                                             # .8 and .3 would be right: hidden pixels hear the known ones only through their noise
    slopes = [regress(Pair(), 'repaint', steps=25, jump=5, repeats=r)[0] for r in (1, 4, 16)]
    assert slope < slopes[0] < slopes[1] - .08 < slopes[2] - .16 and abs(slopes[2] - .8) < .12

# RePaint against diffusers

@pytest.mark.parametrize('steps, jump, repeats', [(10, 10, 10), (25, 5, 5), (20, 3, 2), (50, 10, 10), (7, 1, 3), (10, 2, 1), (5, 10, 4), (1, 1, 1)])
def test_the_walk_is_that_of_diffusers(steps, jump, repeats):
    theirs = RePaintScheduler(num_train_timesteps=steps*3)
    theirs.set_timesteps(steps, jump, repeats)
    walk = jump_schedule(steps, jump, repeats)
    assert [3*left for left in walk[1:]] == theirs.timesteps.tolist() and walk[0] == steps and walk[-1] == 0

def diffusers_repaint(model, image, mask, x, rng, T, steps, jump, repeats):
    "RePaint as in diffusers' pipeline, fed with our network's estimate; returns the end and what the network was asked on the way"
    theirs = RePaintScheduler(T, trained_betas=model.schedule.betas.double().numpy(), eta=1., clip_sample=False)
    theirs.set_timesteps(steps, jump, repeats)
    last, asked, ab = T, [], theirs.alphas_cumprod
    for t in theirs.timesteps.tolist():
        if t < last:
            asked.append((t, x))
            eps = ((x - ab[t].sqrt()*model.x0(x, torch.full((len(x),), t)))/(1 - ab[t]).sqrt()).float()
            x = theirs.step(eps, t, x, image, (~mask).float(), generator=rng).prev_sample.float()
        else: x = theirs.undo_step(x, last, generator=rng).float()
        last = t
    return x, asked

@pytest.mark.parametrize('kind', [Inpainter, Denoiser])
@pytest.mark.parametrize('jump, repeats', [(4, 3), (3, 2), (1, 2)])
def test_repaint_is_diffusers_repaint(kind, jump, repeats): # the same noise, every step of the walk, down and up
    model, x, masks, z, asked = network(kind, size=8), pictures(2, size=8), holes(2, 8), torch.randn(2, 3, 8, 8, generator=generator(5)), []
    model.schedule = linear_schedule(12, .01, .6)
    filling = Filling(model, x, masks)
    ours = repaint(filling, z, rng=generator(6), steps=12, spacing='time', jump=jump, repeats=repeats, callback=lambda t, xt, x0: asked.append((t, xt)))
    theirs, path = diffusers_repaint(filling, x, masks, z, generator(6), 12, 12, jump, repeats)
    assert [t for t, _ in asked] == [t for t, _ in path] and len(asked) == repaint_calls(12, jump, repeats)
    for (_, a), (_, b) in zip(asked, path): assert torch.allclose(a, b, atol=1e-4)
    assert torch.allclose(ours, theirs, atol=1e-4) and not torch.equal(ours, z)

def test_repaint_with_fewer_steps_than_timesteps(): # without jumps: diffusers' `undo_step` goes up by the betas of the next stretch
    model, x, masks, z = network(Denoiser), pictures(2), holes(2), torch.randn(2, 3, 16, 16, generator=generator(5))
    model.schedule = linear_schedule()
    ours = repaint(Filling(model, x, masks), z, rng=generator(6), steps=10, jump=10, spacing=lambda schedule, steps: torch.arange(900, -1, -100))
    assert torch.allclose(ours, diffusers_repaint(model, x, masks, z, generator(6), 1000, 10, 10, 5)[0], atol=1e-4)

def test_repaint_calls_are_counted():
    for steps, jump, repeats in ((25, 5, 5), (12, 4, 3), (3, 1, 1)):
        calls = []
        repaint(Filling(network(Denoiser, size=8, T=30), pictures(1, size=8), holes(1, 8)), torch.randn(1, 3, 8, 8), steps=steps, jump=jump, repeats=repeats, callback=lambda *a: calls.append(a))
        assert len(calls) == repaint_calls(steps, jump, repeats) == arm_calls(dict(sampler='repaint', steps=steps, jump=jump, repeats=repeats))
    assert repaint_calls(25) == 105 and repaint_calls(100, 10, 5) == 460 and arm_calls(mean_fill) == 0 and arm_calls(dict(steps=7)) == 7

# measures

def test_hole_error_by_hand():
    real, mask = torch.zeros(2, 1, 2, 2), torch.tensor([[[[1, 1], [0, 0]]], [[[0, 0], [0, 0]]]]).bool()
    filled = torch.tensor([[[[.2, .4], [9, 9]]], [[[9., 9], [9, 9]]]])
    assert torch.allclose(hole_error(real, filled, mask), torch.tensor([127.5*(.1)**.5, 0]))
    x, y, m = pictures(), pictures(seed=2), holes()
    assert torch.equal(hole_error(x, y, m), hole_error(x, torch.where(m, y, pictures(seed=3)), m)) and hole_error(x, x, m).eq(0).all()
    assert hole_error(x, y, m)[1] == pytest.approx(((y - x)[1][m[1].expand(3, -1, -1)]*127.5).square().mean().sqrt().item(), rel=1e-5)

def test_seam_energy_is_a_loop():
    x, m = pictures(2, size=6), random_masks(2, 6, dict(box=1), seed=1)
    for i in range(2):
        steps = [(127.5*(x[i, c, y, u] - x[i, c, y + dy, u + du]))**2 for c in range(3) for y in range(6) for u in range(6) for dy, du in ((0, 1), (1, 0))
                 if y + dy < 6 and u + du < 6 and m[i, 0, y, u] != m[i, 0, y + dy, u + du]]
        assert seam_energy(x, m)[i] == pytest.approx(np.mean(steps), rel=1e-4)
    assert seam_energy(x, ~everything(2, 6)).eq(0).all()

def test_floors_keep_known_pixels():
    x = pictures()
    for masks in (holes(), holes(1)):
        known = ~masks.expand_as(x)
        for floor in (mean_fill, biharmonic_fill):
            y = floor(x, masks)
            assert y.shape == x.shape and torch.equal(y[known], x[known]) and y.isfinite().all() and y.abs().max() <= 1
    assert torch.allclose(mean_fill(x, holes())[0, 1][holes()[0, 0]], x[0, 1][~holes()[0, 0]].mean())
    ramp = torch.linspace(-1, 1, 16).expand(1, 3, 16, 16)
    inner = F.pad(torch.ones(1, 1, 4, 4), (6, 6, 6, 6)).bool()
    assert torch.allclose(biharmonic_fill(ramp, inner), ramp, atol=1e-4)
    assert mean_fill(x, everything(1)).eq(0).all()

def test_masked_view():
    for channels in (1, 3):
        x = pictures(channels=channels)
        y, hidden = masked_view(x, holes()), holes().expand_as(x)
        assert y.shape == x.shape and torch.equal(y[~hidden], x[~hidden]) and all(len(y[:, c][holes()[:, 0]].unique()) == 1 for c in range(channels))

@pytest.fixture(scope='module')
def study():
    torch.manual_seed(0)
    c = simulate_blood(24, size=28, labels=[i//3 for i in range(24)], seed=1)
    noise = lambda x, m: torch.where(m, torch.randn(x.shape, generator=generator(0)).clamp(-1, 1), x)
    some = holes(24, 28); some[5] = False
    arms = dict(perfect=lambda x, m: x, noise=noise, net=dict(model=network(size=28, classes=c.names), label=True, steps=2), clamp=dict(model=network(Denoiser, size=28, classes=()), steps=2))
    return inpainting_study(arms, encode(c.images), torch.as_tensor(c.labels), dict(box=some, none=torch.zeros_like(some)), CellClassifier(c.names, size=28, dim=8).eval(), fills=2, progress=False)

def test_study_tells_perfect_from_noise(study):
    arm = {k: d for k, d in study.groupby('arm')}
    assert set(study.hole) == {'box'} and all(sorted(d.cell) == [i for i in range(24) if i != 5] for d in arm.values())       # a hole that is not there is left out
    p = arm['perfect']
    assert p.error.eq(0).all() and p.features.eq(0).all() and np.allclose(p.seam, 1) and (p.recognised == p.recognised_real).all() and p.spread.isna().all() and p.calls.eq(0).all()
    assert (arm['noise'].error > 50).all() and arm['noise'].features.mean() > 0 and arm['noise'].seam.median() > 2
    assert arm['net'].calls.eq(2).all() and (arm['net'].spread > 0).all() and arm['clamp'].error.gt(0).all()

def test_table_of_the_study(study):
    t = study_table(study, by=('arm', 'hole'))
    assert (t.low <= t['mean'] + 1e-9).all() and (t['mean'] <= t.high + 1e-9).all() and (t.n == 23).all()
    row = t[(t.arm == 'noise') & (t.measure == 'error')].iloc[0]
    assert row['mean'] == pytest.approx(study[study.arm == 'noise'].error.mean()) and row.low < row['mean'] < row.high
    assert set(t[t.arm == 'perfect'].measure) == {'error', 'features', 'seam', 'recognised'} and 'spread' in set(t[t.arm == 'net'].measure)
    assert len(study_table(study)) == len(t)

def test_means_of_one_network():
    torch.manual_seed(0)
    c = simulate_blood(8, size=28, labels=range(8), seed=1)
    means = hole_means(network(size=28, classes=c.names), encode(c.images).repeat(2, 1, 1, 1), torch.arange(16) % 8, CellClassifier(c.names, size=28, dim=8).eval(), steps=1)
    assert set(means) == {'error', 'features', 'seam', 'recognised', 'spread'} and means['error'] > 0 and means['spread'] > 0

def test_arms_and_holes_of_the_shipped_study():
    arms = study_arms(network(), network(Denoiser))
    assert {k: arm_calls(a) for k, a in arms.items() if 'calls' in k} == {k: int(k.split()[-2]) for k in arms if 'calls' in k}
    x = encode(simulate_blood(3, size=64, labels=[1, 2, 6]).images)
    assert all(m.shape == (3, 1, 64, 64) and m.dtype == torch.bool and m.flatten(1).any(1).all() for m in study_holes(x).values())

# pictures of any kind

net, plain = network(), network(Denoiser)

def pixels(*shape, dtype=np.uint8, top=256, seed=0): return np.random.default_rng(seed).integers(0, top, shape).astype(dtype)

def spot(h, w, y=.3, x=.4, size=.3):
    "A box-shaped hole, of at least one pixel"
    m = np.zeros((h, w), bool); m[int(y*h):int((y + size)*h) + 1, int(x*w):int((x + size)*w) + 1] = True
    return m

def filled(image, mask, **kwargs): return inpaint(image, mask, **(dict(model=net, steps=2, progress=False) | kwargs))

def check(out, image, mask, n=1):
    "Known pixels and alpha are the same to the bit; in the hole something was painted"
    assert out.shape == (n, *image.shape) and out.dtype == image.dtype
    for o in out: assert (o[~mask] == image[~mask]).all()
    if image.ndim == 3 and image.shape[2] in (2, 4): assert (out[..., -1] == image[..., -1]).all()
    if mask.sum() > 1: assert (out[0] != image)[mask].any()

@pytest.mark.parametrize('dtype, top', [(np.uint8, 256), (np.uint16, 4096), (np.uint16, 65536)])
@pytest.mark.parametrize('channels', [None, 1, 2, 3, 4])
def test_arrays(dtype, top, channels):
    image = pixels(40, 50, *([channels] if channels else []), dtype=dtype, top=top)
    if channels in (2, 4): image[..., -1] = np.iinfo(dtype).max                    # alpha says nothing about the range of the colours
    before, mask = image.copy(), spot(40, 50)
    out = filled(image, mask, n=2)
    check(out, image, mask, 2)
    colours = out[:, mask] if channels in (None, 1, 3) else out[:, mask][..., :-1]
    assert colours.max() < top and (top == 256 or colours.max() > 255) and (out[0] != out[1]).any() and (image == before).all()

@pytest.mark.parametrize('mode', ['1', 'L', 'LA', 'P', 'RGB', 'RGBA', 'I', 'I;16'])
def test_pil_modes_and_files(mode, tmp_path):
    image = Image.fromarray(pixels(40, 50, dtype=np.uint16, top=4096)) if mode == 'I;16' else Image.fromarray(pixels(40, 50, 3)).convert(mode)
    assert image.mode == mode
    mask, array = spot(40, 50), np.array(image.convert(dict(P='RGB', **{'1': 'L'}).get(mode, mode)))
    if mode == 'I': array = array.astype(np.uint16)
    out = filled(image, mask)
    check(out, array, mask)
    file = tmp_path/('cell.tif' if mode == 'I' else 'cell.png')
    image.save(file); Image.fromarray(mask).save(tmp_path/'mask.png')
    assert (filled(file, str(tmp_path/'mask.png')) == out).all()

def test_a_palette_with_transparency():
    image = Image.fromarray(pixels(40, 50, 3)).convert('P'); image.info['transparency'] = 3
    assert filled(image, spot(40, 50)).shape == (1, 40, 50, 4)

@pytest.mark.parametrize('shape', [(1, 1), (2, 3), (1, 40), (17, 300), (64, 64), (360, 363)])
@pytest.mark.parametrize('kind', ['spot', 'everything', 'edge'])
def test_sizes(shape, kind):
    image, mask = pixels(*shape, 3), dict(spot=spot(*shape), everything=np.ones(shape, bool), edge=spot(*shape, .9, .9, .09))[kind]
    check(filled(image, mask), image, mask)

def test_a_large_picture():
    image, mask = pixels(2000, 3000), np.zeros((2000, 3000), bool); mask[1990:, 2900:2960] = True
    check(filled(image, mask), image, mask)

def test_every_kind_of_mask_is_the_same_mask(tmp_path):
    image, mask = pixels(40, 50, 3), spot(40, 50)
    Image.fromarray(mask.astype(np.uint8)*255).save(tmp_path/'mask.tif')
    white = mask.astype(np.uint8)*255
    kinds = (mask.astype(np.uint8), white, mask.astype(float), mask.astype(np.uint16)*65535, white[..., None], white[None], np.stack([white]*3, -1), np.dstack([white]*3 + [np.full_like(white, 255)]),
             Image.fromarray(mask), Image.fromarray(white), Image.fromarray(white).convert('RGB'), tmp_path/'mask.tif', torch.from_numpy(mask))
    wanted = filled(image, mask)
    for kind in kinds: assert (filled(image, kind) == wanted).all()

@pytest.mark.parametrize('method, model', [('trained', net), ('clamp', plain), ('repaint', plain)])
@pytest.mark.parametrize('shape, window', [((40, 50), None), ((40, 50), 15), ((40, 50), 44), ((40, 50), 90), ((9, 60), None), ((300, 280), None)])
@pytest.mark.parametrize('where', ['inside', 'corner', 'everything'])
def test_what_lies_under_the_mask_never_shines_through(method, model, shape, window, where):
    mask = dict(inside=spot(*shape, .3, .3, .15), corner=spot(*shape, .9, .85, .1), everything=np.ones(shape, bool))[where]
    if where == 'everything' and window and window < max(shape): return
    for dtype, top in ((np.uint8, 256), (np.uint16, 1000)):
        image = pixels(*shape, 3, dtype=dtype, top=top)
        other = image.copy(); other[mask] = np.iinfo(dtype).max - other[mask]
        a, b = (filled(i, mask, method=method, model=model, window=window) for i in (image, other))
        assert (a == b).all()

@pytest.mark.parametrize('side', [11, 16, 37, 64])
def test_the_close_up_holds_nothing_hidden(side):
    x, hole = np.random.default_rng(0).uniform(-1, 1, (side, side, 3)), spot(side, side)
    other = np.where(hole[..., None], 5., x)
    (a, m), (b, _) = _close_up(x, hole, 16), _close_up(other, hole, 16)
    assert torch.equal(a, b) and a.shape == (1, 3, 16, 16) and m.shape == (1, 1, 16, 16)
    share = F.adaptive_avg_pool2d(torch.from_numpy(hole)[None, None].float(), 16)
    assert torch.equal(m, share > 0)                                               # a pixel with any hidden part is hidden
    known = ~m.expand_as(a)
    plain = np.stack([np.asarray(Image.fromarray(x[..., c].astype(np.float32)).resize((16, 16), Image.Resampling.BICUBIC)) for c in range(3)])
    far = ~(F.max_pool2d(m.float(), 7, 1, 3) > 0).expand_as(a)                     # far from the hole it is the picture itself
    assert known.any() and torch.allclose(a[far], torch.from_numpy(plain).clamp(-1, 1)[None][far], atol=1e-5)

def test_the_window():
    hole = spot(40, 50)
    ys, xs = np.nonzero(hole)
    for window in (None, 20, 44, 100):
        top, left, side = find_window(hole, window)
        assert top <= ys.min() and left <= xs.min() and ys.max() < top + side and xs.max() < left + side and side == (window or 40)
    assert find_window(spot(360, 363, size=.1))[2] == 200 and find_window(np.ones((300, 500), bool))[2] == 500
    picture = pixels(4, 5)
    assert (cut(picture, (-1, -2, 8)) == np.pad(picture, ((1, 3), (2, 1)), mode='edge')).all() and (cut(picture, (1, 2, 3)) == picture[1:4, 2:5]).all()

def test_fills_depend_on_seed_class_and_guidance():
    image, mask = pixels(40, 50, 3), spot(40, 50)
    a = filled(image, mask, seed=1, label='a')
    assert (a == filled(image, mask, seed=1, label='a')).all()
    for other in (dict(seed=2, label='a'), dict(seed=1, label='b'), dict(seed=1), dict(seed=1, label='a', w=4.), dict(seed=1, label='a', steps=5), dict(seed=1, label='a', sampler='ddim', eta=1.)):
        assert (a != filled(image, mask, **other)).any()
    assert (filled(image, mask, n=3, seed=1)[0] == filled(image, mask, n=1, seed=1)[0]).mean() > .98

class Refused:
    "Pictures that cannot be filled, each written into a folder when its turn comes"
    def text(d): (d/'a.png').write_text('no picture'); return d/'a.png'
    def half(d):
        Image.fromarray(pixels(40, 50, 3)).save(d/'a.png'); (d/'a.png').write_bytes((d/'a.png').read_bytes()[:2000]); return d/'a.png'
    def folder(d): return d
    def missing(d): return d/'nothing.png'
    def cmyk(d): return Image.fromarray(pixels(40, 50, 3)).convert('CMYK')
    def floating(d): return pixels(40, 50, 3)/255
    def tensor(d): return torch.zeros(3, 40, 50)
    def flags(d): return np.zeros((40, 50), bool)
    def five(d): return pixels(40, 50, 5)
    def four_axes(d): return pixels(1, 40, 50, 3)
    def empty(d): return pixels(0, 50, 3)
    def nothing(d): return None
    def long(d): return Image.fromarray(np.full((40, 50), 70_000, np.int32))
    def below(d): return Image.fromarray(np.full((40, 50), -1, np.int32))
    def real(d): return Image.fromarray(np.zeros((40, 50), np.float32))
    def lazy(d): return Image.open(Refused.half(d))

@pytest.mark.parametrize('name, error, says', [
    ('text', ValueError, 'a.png cannot be read'), ('half', ValueError, 'a.png cannot be read'), ('folder', ValueError, 'cannot be read'), ('missing', FileNotFoundError, 'nothing.png does not exist'), ('cmyk', ValueError, 'mode CMYK'),
    ('floating', TypeError, 'float64.*0..255'), ('tensor', TypeError, 'use `fill`'), ('flags', TypeError, 'bool'), ('five', ValueError, r'\(40, 50, 5\)'), ('four_axes', ValueError, r'\(1, 40, 50, 3\)'),
    ('empty', ValueError, r'\(0, 50, 3\)'), ('nothing', TypeError, 'uint8 or uint16'), ('long', ValueError, '70000 to 70000.*16 bits'), ('below', ValueError, '-1'), ('real', ValueError, 'mode F'), ('lazy', ValueError, 'cannot be read')])
def test_pictures_that_cannot_be_filled(name, error, says, tmp_path):
    with pytest.raises(error, match=says): filled(getattr(Refused, name)(tmp_path), spot(40, 50))

def test_a_decompression_bomb(tmp_path, monkeypatch):
    Image.fromarray(pixels(40, 50)).save(tmp_path/'bomb.png')
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 900)
    with pytest.raises(ValueError, match='bomb.png.*decompression bomb'): filled(tmp_path/'bomb.png', spot(40, 50))

def deep_png(path, image):
    "Write a PNG of 16 bits a channel, which Pillow cannot"
    h, w, c = image.shape
    def chunk(kind, data): return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
    rows = b''.join(b'\0' + row.astype('>u2').tobytes() for row in image)
    path.write_bytes(b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', w, h, 16, {1: 0, 2: 4, 3: 2, 4: 6}[c], 0, 0, 0)) + chunk(b'IDAT', zlib.compress(rows)) + chunk(b'IEND', b''))
    return path

def test_colours_of_16_bits_are_not_cut_to_8(tmp_path):
    for c in (2, 3, 4):
        path = deep_png(tmp_path/f'{c}.png', pixels(40, 50, c, dtype=np.uint16, top=65536))
        for image in (path, Image.open(path)):
            with pytest.raises(ValueError, match='16 bits a colour.*pass the array'): filled(image, spot(40, 50))
    (tmp_path/'a.ppm').write_bytes(b'P6 50 40 65535\n' + bytes(40*50*6))
    with pytest.raises(ValueError, match='16 bits'): filled(tmp_path/'a.ppm', spot(40, 50))
    grey = pixels(40, 50, 1, dtype=np.uint16, top=65536)
    assert (read_pixels(deep_png(tmp_path/'1.png', grey)) == grey[..., 0]).all()

@pytest.mark.parametrize('suffix', ['bmp', 'tif', 'png', 'ppm', 'webp', 'gif', 'jpg'])
def test_files_of_8_bits_are_read_as_they_are(suffix, tmp_path):
    for width in (54, 160, 205, 533):                                              # rows of a BMP of 205 pixels have 616 bytes: not to be mistaken for 16 bits
        Image.fromarray(pixels(4, width, 3)).save(tmp_path/f'a.{suffix}', **(dict(lossless=True) if suffix == 'webp' else {}))
        read = read_pixels(tmp_path/f'a.{suffix}')
        assert read.shape == (4, width, 3) and (suffix in ('gif', 'jpg') or (read == pixels(4, width, 3)).all())

good = dict(image=pixels(40, 50, 3), mask=spot(40, 50))

@pytest.mark.parametrize('change, says', [
    (dict(mask=np.zeros((40, 50), bool)), 'empty'), (dict(mask=np.full((40, 50), 100, np.uint8)), 'Paint white'), (dict(mask=spot(50, 40)), '40 × 50 pixels and the image 50 × 40'), (dict(mask=None), r'\(\)'),
    (dict(mask=np.zeros((2, 2, 2, 2))), 'a mask is'), (dict(mask=np.ones(40)), 'a mask is'), (dict(window=5), '16 pixels long.*16..100, not 5'), (dict(window=0), 'not 0'), (dict(window=-3), 'not -3'), (dict(window=10**6), 'not 1000000'),
    (dict(method='magic'), "'magic'.*trained, clamp"), (dict(n=0), 'n must be 1'), (dict(steps=0), 'steps'), (dict(steps=-1), 'steps'), (dict(steps=0, method='repaint', model=plain), 'steps'), (dict(label='z'), "Unknown class 'z'"),
    (dict(label='a', model=network(classes=())), 'without classes'), (dict(model=plain), 'an `Inpainter`'), (dict(model='blood31'), 'blood31'),
    (dict(model=network(channels=1)), r'fills images \(n, 1, 16, 16\)'), (dict(sampler='dimm'), 'Unknown sampler'), (dict(w=float('nan'), label='a'), 'finite')])
def test_inpaint_says_what_is_wrong(change, says):
    with pytest.raises(ValueError, match=says): filled(**(good | change))

@torch.no_grad()
def test_an_inpainter_that_is_told_nothing():
    model = network()
    xt, t, label = torch.randn(2, 3, 16, 16, generator=generator(0)), torch.tensor([3, 12]), torch.tensor([0, 1])
    nothing = dict(known=torch.zeros_like(xt), mask=torch.ones(2, 1, 16, 16))
    assert torch.equal(Untold(model).x0(xt, t, label), model.x0(xt, t, label, **nothing))
    image, hole = good['image'], good['mask']
    for method in ('clamp', 'repaint'):                                                  # the same network, the surroundings seen through the clamp alone
        out = filled(image, hole, method=method, model=model, label='a', steps=3)
        assert (out[0][~np.asarray(hole).astype(bool)] == np.asarray(image)[~np.asarray(hole).astype(bool)]).all()

def test_the_bar_of_repaint_counts_its_calls(capsys):
    sample(Filling(network(), pictures(1), holes(1)), 1, sampler='repaint', steps=6, jump=2, repeats=2)
    calls = repaint_calls(6, 2, 2)
    assert f'{calls}/{calls}' in capsys.readouterr().err

def test_masks_that_cannot_be_read(tmp_path):
    with pytest.raises(FileNotFoundError, match='nothing.png'): filled(good['image'], tmp_path/'nothing.png')
    with pytest.raises(ValueError, match='a.png cannot be read'): filled(good['image'], Refused.text(tmp_path))
    Image.fromarray(spot(9, 9)).save(tmp_path/'small.png')
    with pytest.raises(ValueError, match='small.png has 9 × 9'): filled(good['image'], tmp_path/'small.png')

def test_shipped_network_fills_a_cell():
    c = simulate_blood(1, size=64, labels='neutrophil', seed=3)
    image, mask = np.moveaxis(np.asarray(c.images[0]), 0, -1), np.asarray(c.nucleus[0])
    out = inpaint(image, mask, label='neutrophil', steps=5, n=2, progress=False)
    check(out, image, mask, 2)
    assert (out[0] != out[1]).any() and out[:, mask].std() > 5 and isinstance(load_network('blood64-inpaint'), Inpainter)
