"Losses, networks, augmentation and learner of the GAN, and its study"
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fastai.callback.core import Callback

from cell_diffusion import gan
from cell_diffusion.classifier import train_classifier
from cell_diffusion.core import encode, generator
from cell_diffusion.data import cell_dls
from cell_diffusion.denoiser import load, save
from cell_diffusion.gan import (
    Discriminator, GANCallback, Generator, adapt_p, append_group_std,
    discriminator_hinge, discriminator_logistic, gan_learner, gan_losses, gan_sample,
    generator_hinge, generator_logistic, halvings, r1_penalty,
)
from cell_diffusion.studies import augmentation
from cell_diffusion.studies import gan as study
from cell_diffusion.studies.gan import gan_beside_ddpm, gan_results
from cell_diffusion.training import fit_for
from cell_diffusion.transforms import diff_augment, dihedral_views


def loaders(n=96, bs=16, **kwargs):
    return cell_dls('simulated', size=32, n=n, bs=bs, device='cpu', **kwargs)


def small(dls=None, **kwargs):
    settings = dict(dim=8, disc_dim=8, precision='float32')
    return gan_learner(dls or loaders(), **{**settings, **kwargs})


def classes(*numbers):
    return torch.tensor(numbers)


# The networks

sizes = [(size, channels) for size in (32, 36, 40, 64) for channels in (1, 2, 3, 5)]


@pytest.mark.parametrize('size, channels', [*sizes, (128, 3)])
def test_shapes(size, channels):
    g = Generator(channels, size, dim=4, classes=('a', 'b'))
    d = Discriminator(channels, size, dim=4, n_classes=2)
    label = classes(0, 0, 1, 1)
    x = g(torch.randn(4, g.latent, generator=generator(0)), label)
    assert x.shape == (4, channels, size, size)
    assert x.dtype == torch.float32 and x.abs().max() <= 1
    assert d(x, label).shape == (4,)


@pytest.mark.parametrize('size, expected', [
    (32, (4, 3)), (36, (9, 2)), (40, (5, 3)), (48, (6, 3)), (64, (4, 4)), (128, (4, 5)),
])
def test_halvings(size, expected):
    assert halvings(size) == expected


@pytest.mark.parametrize('kind', [Generator, Discriminator])
@pytest.mark.parametrize('size', [8, 30, 33, 50])
def test_wrong_size(kind, size):
    with pytest.raises(ValueError, match='multiple of 4'):
        kind(size=size)


def test_generator_checks_its_label():
    conditional = Generator(size=32, dim=4, classes=('a', 'b'))
    unconditional = Generator(size=32, dim=4)
    z = torch.randn(2, 64)
    with pytest.raises(ValueError, match='pass a class number'):
        conditional(z)
    with pytest.raises(ValueError, match='leave label out'):
        unconditional(z, classes(0, 0))


@pytest.mark.parametrize('n, label, message', [
    (3, None, 'one of a, b'),
    (None, 'c', "Unknown class 'c'"),
    (3, ['a', 'b'], '2 labels for 3 images'),
])
def test_sampling_checks_its_label(n, label, message):
    g = Generator(size=32, dim=4, classes=('a', 'b'))
    with pytest.raises(ValueError, match=message):
        gan_sample(g, n, label=label)


def test_sampling_without_classes_takes_no_label():
    with pytest.raises(ValueError, match='trained without classes'):
        gan_sample(Generator(size=32, dim=4), label='a')


def test_discriminator_checks_its_inputs():
    conditional = Discriminator(3, 32, 4, n_classes=2)
    unconditional = Discriminator(3, 32, 4)
    x = torch.zeros(2, 3, 32, 32)
    with pytest.raises(ValueError, match='pass labels'):
        conditional(x)
    with pytest.raises(ValueError, match='images of shape'):
        conditional(x[:, :1], classes(0, 0))
    with pytest.raises(ValueError, match='leave label out'):
        unconditional(x, classes(0, 0))


def test_spectral_norm_holds_through_training():
    learn = small()
    fit_for(learn, epochs=2, lr=2e-3, progress=False)
    discriminator = learn.model.discriminator.eval()
    layers = [m for m in discriminator.modules() if hasattr(m, 'parametrizations')]
    assert len(layers) == 1 + 3*len(discriminator.blocks) + 3

    def largest(weight):
        return torch.linalg.matrix_norm(weight.detach().flatten(1), 2)
    assert all(largest(m.weight) < 1.3 for m in layers)
    # Without the norm some weights would stretch
    assert max(largest(m.parametrizations.weight.original) for m in layers) > 1.01


def test_projection():
    "The score of another class differs by the projection on the class vectors"
    d = Discriminator(3, 32, 4, n_classes=3).eval()
    features = []
    d.score.register_forward_pre_hook(lambda m, args: features.append(args[0]))
    x = torch.randn(4, 3, 32, 32, generator=generator(0))
    with torch.no_grad():
        first = d(x, classes(0, 0, 0, 0))
        third = d(x, classes(2, 2, 2, 2))
    direction = d.label.weight[2] - d.label.weight[0]
    assert torch.allclose(third - first, features[0] @ direction, atol=1e-5)


def test_group_std_sees_copies():
    h = torch.randn(8, 2, 3, 3, generator=generator(0))
    h[:4] = h[0]
    std = append_group_std(h)[:, -1, 0, 0]
    assert std[:4].max() < .01
    assert std[4:].min() > .3 and (std[4:] == std[4]).all()
    by_hand = h[4:].var(0, unbiased=False).add(1e-6).sqrt().mean()
    assert torch.allclose(std[4], by_hand)
    # Seven cells: groups of one
    assert append_group_std(h[:7]).shape == (7, 3, 3, 3)


def test_saved_and_loaded(tmp_path):
    g = Generator(2, 40, dim=4, latent=16, classes=('G1', 'S'), turns=False)
    # So that the norms have seen something
    g(torch.randn(8, 16), torch.arange(8) % 2)
    save(g, tmp_path)
    again = load(tmp_path, 'cpu', 'float32', Generator)
    assert (again.classes, again.channels, again.size) == (('G1', 'S'), 2, 40)
    assert (again.latent, again.turns) == (16, False)
    # Weights are kept in half precision
    half = g.half().float()
    expected = gan_sample(half, 4, label='S')
    assert torch.allclose(gan_sample(again, 4, label='S'), expected, atol=1e-5)
    assert json.loads((tmp_path/'config.json').read_text())['latent'] == 16


# Losses

def test_losses_by_hand():
    score = torch.tensor([2., -.5, .3, -3.])
    real = torch.tensor([True, True, False, False])
    p = score.sigmoid()
    hinge = torch.tensor((0 + 1.5)/2 + (1.3 + 0)/2)
    cross_entropy = -(p[:2].log().mean() + (1 - p[2:]).log().mean())
    assert torch.isclose(discriminator_hinge(score, real), hinge)
    assert torch.isclose(discriminator_logistic(score, real), cross_entropy)
    assert torch.isclose(generator_hinge(score), -score.mean())
    assert torch.isclose(generator_logistic(score), -p.log().mean())
    # The first real cell and the first generated one are a pair, and so on
    gap = torch.tensor([2. - .3, -.5 + 3.])
    loss = gan_losses['relativistic']
    by_pair = -gap.sigmoid().log().mean()
    assert torch.isclose(loss.discriminator(score, real), by_pair)
    swapped = loss.generator(score[~real], score[real])
    assert torch.isclose(swapped, -(-gap).sigmoid().log().mean())
    # A constant in all scores changes nothing
    assert torch.isclose(loss.discriminator(score + 3, real), by_pair)


def test_r1_by_hand():
    linear = torch.nn.Linear(27, 1)
    penalty = r1_penalty(lambda x: linear(x.flatten(1)).flatten(),
                         torch.randn(5, 3, 3, 3))
    penalty.backward()
    assert torch.isclose(penalty, linear.weight.pow(2).sum())
    assert torch.allclose(linear.weight.grad, 2*linear.weight)
    # |x|²/2 has the gradient x
    x = torch.randn(6, 4, generator=generator(0))
    penalty = r1_penalty(lambda x: .5*x.pow(2).sum(1), x)
    assert torch.isclose(penalty, x.pow(2).sum(1).mean())


def radius(loss, gamma, steps=250, lr=.1):
    "How far from its solution the smallest GAN ends"
    theta = torch.tensor([1.], requires_grad=True)
    psi = torch.tensor([0.], requires_grad=True)
    real = torch.tensor([True, False])

    def score(x):
        return psi*x
    for _ in range(steps):
        both = torch.cat([0*psi, psi*theta.detach()])
        value = loss.discriminator(both, real)
        value = value + gamma/2*r1_penalty(score, torch.zeros(1))
        d_psi, = torch.autograd.grad(value, psi)
        generated = loss.generator(psi.detach()*theta, torch.zeros(1))
        d_theta, = torch.autograd.grad(generated, theta)
        with torch.no_grad():
            psi -= lr*d_psi
            theta -= lr*d_theta
    return torch.cat([theta, psi]).norm().item()


@pytest.mark.parametrize('loss', gan_losses)
def test_smallest_gan_settles_only_with_r1(loss):
    assert radius(gan_losses[loss], 1.) < .01
    assert radius(gan_losses[loss], 0.) > .3


def test_unknown_loss():
    with pytest.raises(ValueError, match='Unknown loss .*hinge'):
        GANCallback('chess')


# Augmentation

nothing = dict(dihedral=False, shift=0, hole=0, light=0, contrast=0)
only_dihedral = {**nothing, 'dihedral': True}


def test_augmentation_passes_gradients_and_is_seeded():
    x = torch.randn(8, 2, 40, 40, generator=generator(0), requires_grad=True)
    y = diff_augment(x, generator(1))
    y.sum().backward()
    assert y.shape == x.shape
    assert (x.grad != 0).float().mean() > .8
    assert torch.equal(y, diff_augment(x, generator(1)))
    assert not torch.equal(y, diff_augment(x, generator(2)))


def test_augmentation_can_be_switched_off():
    x = torch.randn(8, 2, 40, 40, generator=generator(0))
    assert torch.allclose(diff_augment(x, generator(1), **nothing), x, atol=1e-5)


def test_holes():
    x = torch.ones(500, 1, 40, 40)
    cut = diff_augment(x, generator(3), **{**nothing, 'hole': .25})
    lost = (cut == 0).flatten(1).sum(1)
    # A square of 10 × 10, at a corner a quarter of it
    assert lost.max() == 100 and lost.min() >= 25


def test_shifts():
    x = torch.eye(40)[None, None].expand(200, 1, 40, 40)
    moved = diff_augment(x, generator(4), **{**nothing, 'shift': .1})
    still = moved[:, 0].diagonal(dim1=1, dim2=2).sum(1) == 40
    assert 0 < still.float().mean() < .5


def test_augmentation_uses_the_dihedral_group():
    "Every result is one of the eight positions, and each comes equally often"
    x = torch.randn(1, 1, 8, 8, generator=generator(0))
    turned = diff_augment(x.repeat(8000, 1, 1, 1), generator(0), **only_dihedral)
    gaps = torch.cdist(turned.flatten(1), dihedral_views(x).flatten(1))
    assert gaps.min(1).values.max() < .01
    share = gaps.argmin(1).bincount(minlength=8)/8000
    assert (share - .125).abs().max() < .02


def test_augmentation_keeps_the_symmetry_of_a_set():
    pixels = torch.randint(0, 255, (2000, 1, 16, 16), generator=generator(1),
                           dtype=torch.uint8)
    x = encode(pixels) + torch.linspace(-1, 1, 16)
    mean = diff_augment(x, generator(2), **only_dihedral).mean(0)[0]
    for other in (mean.flip(0), mean.flip(1), mean.T):
        assert (mean - other).abs().max() < .15


def positions(cells, image):
    "Which of the eight positions of an image each cell shows"
    gaps = torch.cdist(cells.flatten(1), dihedral_views(image).flatten(1))
    assert gaps.min(1).values.max() < .01
    return gaps.argmin(1)


@pytest.mark.parametrize('p', [0., .3, .8])
def test_share_of_augmented_cells(p):
    "Each position but the first has a share of p/8, so turns are not hidden"
    image = torch.randn(1, 1, 8, 8, generator=generator(0))
    turned = diff_augment(image.repeat(8000, 1, 1, 1), generator(1),
                          **only_dihedral, p=p)
    share = positions(turned, image).bincount(minlength=8)/8000
    expected = torch.full((8,), p/8)
    expected[0] += 1 - p
    assert (share - expected).abs().max() < .02


def test_probability_of_each_image():
    x = torch.randn(400, 1, 16, 16, generator=generator(0))
    p = (torch.arange(400) >= 200).float()
    y = diff_augment(x, generator(1), p=p)
    same = (x == y).flatten(1).all(1)
    assert same[:200].all() and not same[200:].any()


@pytest.mark.parametrize('known, rises', [(4., True), (0., False), (-4., False)])
@pytest.mark.parametrize('offset', [0., 30.])
def test_p_follows_the_memory_of_the_discriminator(known, rises, offset):
    "Of the class that is known by heart p rises; what all scores share is no matter"
    real = torch.arange(400) < 200
    score = torch.randn(400, generator=generator(0)) + offset
    label = torch.arange(200) % 2
    of_first = torch.cat([label, label]) == 0
    score[of_first] += torch.where(real, known, -known)[of_first]
    p = torch.tensor([.4, .4])
    adapt_p(p, score, real, label)
    assert (p[0] > .41) if rises else (p[0] < .37)
    # The discriminator guesses the second class
    assert p[1] < .4
    for _ in range(40):
        adapt_p(p, score, real, label)
    assert p[0] == (.8 if rises else 0) and p[1] == 0


def test_p_rests_at_its_target():
    "With 80% of real cells above the mean their mean sign is .6"
    score = torch.cat([torch.ones(80), -torch.ones(20), torch.full((100,), -.5)])
    p = torch.tensor([.5])
    adapt_p(p, score, torch.arange(200) < 100)
    assert torch.isclose(p, torch.tensor([.5]), atol=1e-6)


# The learner

def test_real_and_generated_cells_get_the_same_changes():
    "Holes, light and positions of what the discriminator sees, from one image"
    image = torch.randn(1, 1, 16, 16, generator=generator(0))/3
    x = image.repeat(4000, 1, 1, 1)

    def same(z, label):
        return x
    same.latent = 4
    same.classes = 'ab'
    callback = GANCallback(augment=dict(shift=0, contrast=0))
    callback.rng = generator(1)
    callback.learn = SimpleNamespace(
        xb=(x,), yb=(torch.arange(4000) % 2,), training=True,
        model=SimpleNamespace(generator=same, p=torch.tensor([.2, .6])))
    callback.before_batch()
    (seen, label), (real,) = callback.learn.xb, callback.learn.yb
    assert real.sum() == 4000 and torch.equal(label[real], label[~real])
    holes = (seen == 0).flatten(1).any(1).float()
    light = seen.flatten(1).amax(1) - image.max()
    corner = seen[:, 0, 0, 0] - image[0, 0, 0, 0]
    for change in (holes, (light.abs() > 1e-6).float(), light, corner):
        for k in (0, 1):
            a = change[real & (label == k)]
            b = change[~real & (label == k)]
            error = ((a.var() + b.var())/2000)**.5
            assert a.std() > 0 and (a.mean() - b.mean()).abs() < 4*error
    shares = torch.stack([holes[label == k].mean() for k in (0, 1)])
    assert torch.allclose(shares, callback.learn.model.p, atol=.03)


def brightness_gap(model, dls):
    "How far the mean picture of generated cells is from that of real ones"
    images, labels = dls.valid.arrays
    generated = gan_sample(model, label=labels.tolist(), seed=0)
    return (generated.mean(0) - encode(images).mean(0)).pow(2).mean().item()


def test_it_learns():
    dls = loaders(n=240)
    learn = small(dls, ema=.9)
    before = brightness_gap(learn.model.generator, dls)
    budget = fit_for(learn, epochs=4, lr=2e-3, progress=False)
    assert len(budget.losses) == budget.steps == 4*len(dls.train)
    assert brightness_gap(learn.ema.averaged, dls) < .3*before


@pytest.mark.parametrize('kwargs', [
    dict(classes=False),
    dict(augment=False, loss='hinge', r1=.5),
    dict(precision='bfloat16'),
    dict(augment=dict(hole=0.)),
])
def test_options_run(kwargs):
    learn = small(**kwargs)
    budget = fit_for(learn, epochs=1, progress=False)
    assert torch.isfinite(torch.stack(budget.losses)).all()
    label = 'monocyte' if kwargs.get('classes', True) else None
    x = gan_sample(learn.ema.averaged, 3, label=label)
    assert x.shape == (3, 3, 32, 32) and x.isfinite().all()


class WatchSteps(Callback):
    "Sums of all weights before and after the steps of each batch"
    order = -6 # Before `GANCallback`

    def __init__(self):
        self.sums = []

    def keep(self):
        gan = self.learn.model
        networks = gan.generator, gan.discriminator
        self.sums.append([sum(p.detach().double().sum().item() for p in m.parameters())
                          for m in networks])

    def before_step(self): self.keep()
    def after_step(self): self.keep()
    def after_batch(self): self.keep()


def test_networks_step_in_turn():
    "The discriminator's step leaves the generator as it is, and the reverse"
    watch = WatchSteps()
    learn = small(cbs=[watch])
    learn.fit(1, lr=1e-3)
    for i in range(0, 9, 3):
        before, between, after = watch.sums[i:i + 3]
        assert before[0] == between[0] and before[1] != between[1]
        assert between[0] != after[0] and between[1] == after[1]


def test_first_steps_of_the_mean_by_hand():
    "(1 + step)/(10 + step) of the old mean is kept, in weights and running statistics"
    kept = []

    class Keep(Callback):
        order = 4 # After the generator's step, before the mean is updated

        def after_step(self):
            state = self.learn.model.generator.state_dict()
            kept.append({k: v.clone() for k, v in state.items()})

    learn = small(cbs=[Keep()])
    names = 'out.weight', 'norm.norm.running_mean'
    state = learn.model.generator.state_dict()
    mean = {name: state[name].clone() for name in names}
    learn.fit(1, lr=1e-3)
    for step, weights in enumerate(kept, 1):
        decay = (1 + step)/(10 + step)
        for name in names:
            mean[name] = decay*mean[name] + (1 - decay)*weights[name]
    averaged = learn.ema.averaged.state_dict()
    assert learn.ema.steps == len(kept) > 2
    assert all(torch.allclose(averaged[k], mean[k], atol=1e-6) for k in names)


class Stop(Callback):
    order = 100

    def after_epoch(self):
        raise KeyboardInterrupt


def all_close(a, b):
    b = b.state_dict()
    return all(torch.allclose(v, b[k], atol=1e-5) for k, v in a.state_dict().items())


def test_resumed_equals_unbroken(tmp_path):
    checkpoint = tmp_path/'run.pt'
    unbroken = small()
    whole = fit_for(unbroken, epochs=2, progress=False)
    with pytest.raises(KeyboardInterrupt):
        fit_for(small(cbs=[Stop()]), epochs=2, checkpoint=checkpoint, progress=False)
    resumed = small()
    rest = fit_for(resumed, epochs=2, checkpoint=checkpoint, progress=False)
    losses = [torch.stack(list(budget.losses)) for budget in (whole, rest)]
    assert torch.allclose(*losses, atol=1e-4)
    assert all_close(unbroken.model, resumed.model)
    assert all_close(unbroken.ema.averaged, resumed.ema.averaged)


def test_schedule_reaches_both():
    rates = []

    class Watch(Callback):
        order = 80

        def before_step(self):
            rates.append([h['lr'] for h in self.opt.hypers])

    fit_for(small(cbs=[Watch()]), epochs=2, lr=1e-3, progress=False)
    assert all(a == b for a, b in rates)
    assert len({a for a, _ in rates}) > 3 and rates[-1][0] < 5e-4


def test_the_discriminator_has_its_rate():
    "Of every step, with a schedule"
    rates = []

    class Watch(Callback):
        order = 80

        def before_step(self):
            rates.append([h['lr'] for h in self.opt.hypers])

    learn = small(cbs=[Watch()], disc_rate=.25)
    fit_for(learn, epochs=2, lr=1e-3, progress=False)
    discriminator, generator = np.array(rates).T
    assert np.allclose(discriminator, generator/4)
    assert generator.max() > 9e-4
    with pytest.raises(ValueError, match='disc_rate'):
        small(disc_rate=0)


def test_p_is_adapted_and_kept_in_checkpoints(tmp_path):
    learn = small()
    learn.model.p.fill_(.5)
    checkpoint = tmp_path/'run.pt'
    fit_for(learn, epochs=1, checkpoint=checkpoint, progress=False)
    assert len(learn.model.p) == 8 and (learn.model.p != .5).all()
    state = torch.load(checkpoint, weights_only=True)
    assert torch.equal(state['model']['p'], learn.model.p)


def grid_power(x):
    "Power of rows at waves of 8, 4 and 8/3 pixels, relative to their neighbours"
    power = np.abs(np.fft.rfft(x.double().numpy()))**2
    power = power.mean((0, 1, 2))
    lines = np.array([5, 10, 15])
    return np.mean(2*power[lines]/(power[lines - 1] + power[lines + 1]))


def test_untrained_cells_have_no_grid(monkeypatch):
    g = Generator(2, 40).eval()
    smooth = grid_power(gan_sample(g, 100))
    def copies(x):
        return torch.nn.functional.interpolate(x, scale_factor=2)
    monkeypatch.setattr(gan, 'enlarge', copies)
    assert grid_power(gan_sample(g, 100)) < .75 < .85 < smooth < 1.1


# Sampling

def test_sampling_is_seeded():
    g = Generator(1, 32, dim=4, classes=('a', 'b')).eval()
    x = gan_sample(g, 5, label=1, seed=3)
    assert x.shape == (5, 1, 32, 32)
    assert x.device.type == 'cpu' and not x.requires_grad
    assert torch.equal(x, gan_sample(g, label=['b']*5, seed=3))
    assert not torch.equal(x, gan_sample(g, 5, label=1, seed=4))
    assert torch.allclose(x, gan_sample(g, 5, label='b', seed=3, bs=2), atol=1e-6)
    assert not torch.allclose(x, gan_sample(g, 5, label='a', seed=3), atol=1e-3)


def test_how_many_cells():
    g = Generator(1, 32, dim=4, classes=('a', 'b'))
    assert len(gan_sample(g, label='a')) == 1
    assert len(gan_sample(Generator(1, 32, dim=4))) == 16


def test_sampling_keeps_the_mode():
    g = Generator(1, 32, dim=4)
    gan_sample(g.train(), 4)
    assert g.training
    gan_sample(g.eval(), 4)
    assert not g.training


def test_turns():
    "Weights of an earlier version may ask for turns"
    g = Generator(1, 32, dim=4, turns=True).eval()
    still = Generator(1, 32, dim=4).eval()
    still.load_state_dict(g.state_dict())
    x = gan_sample(g, 40)
    y = gan_sample(still, 40)
    unmoved = sum(torch.equal(a, b) for a, b in zip(x, y))
    assert 0 < unmoved < 20
    # Turned or not, the pixels are the same
    assert torch.allclose(x.flatten(1).sort(1).values, y.flatten(1).sort(1).values)


@pytest.mark.parametrize('augment', [True, False])
def test_turns_are_those_of_the_loaders(augment):
    "Cells with an up and a down are never turned, and no generated cell is"
    learn = small(loaders(augment=augment))
    assert learn.noise.augment['dihedral'] is augment
    assert learn.model.generator.turns is False


# The study

@pytest.fixture
def quick(monkeypatch):
    "A reference classifier of four steps"
    def reference_classifier(dls, keep):
        return train_classifier(dls, dim=8, steps=4)
    monkeypatch.setattr(study, 'reference_classifier', reference_classifier)


def run_study(folder, **kwargs):
    settings = dict(
        epochs=1, seeds=1, n_cells=150, n=14, steps=2, size=32,
        gan=dict(dim=4, disc_dim=4),
        ddpm=dict(dim=8, mults=(1, 2), patch=1, normalize=False,
                  unet=dict(attention=False)))
    return gan_beside_ddpm('simulated-jurkat', folder=folder, progress=False,
                           **{**settings, **kwargs})


def test_study_resumes_and_refuses(tmp_path, quick):
    table = run_study(tmp_path)
    assert table.model.tolist() == ['GAN', 'DDPM']
    columns = {'fd', 'fd_reference', 'kid', 'precision', 'recall', 'class_accuracy',
               'parameters', 'cells_seen', 'seconds_per_100'}
    assert columns <= set(table)
    assert table.equals(run_study(tmp_path))

    # Stopped after the GAN
    ddpm, = tmp_path.glob('*DDPM*.json')
    ddpm.unlink()
    again = run_study(tmp_path)
    assert again.model.tolist() == ['GAN', 'DDPM']
    assert again.seconds[0] == table.seconds[0] and again.seconds[1] != table.seconds[1]
    assert np.isclose(again.fd[1], table.fd[1], rtol=1e-3)
    with pytest.raises(ValueError, match='other settings .n: '):
        run_study(tmp_path, n=21)


def test_a_judge_of_ones_own_scores_and_identifies_the_study(tmp_path, monkeypatch):
    monkeypatch.setattr(study, 'reference_classifier', None)
    dls = study.cell_dls('simulated-jurkat', n=150, size=32, balanced=True)
    judges = [train_classifier(dls, dim=8, steps=1, seed=seed) for seed in (0, 1)]
    run_study(tmp_path, classifier=judges[0])
    with pytest.raises(ValueError, match='other settings .classifier: '):
        run_study(tmp_path, classifier=judges[1])


def test_both_chapters_train_the_same_networks():
    "The comparison and the augmentation study have the same settings"
    for kind, settings in study.defaults.items():
        there = augmentation.generators[kind.lower()].settings
        assert settings == {name: there[name] for name in settings}


def test_study_without_a_folder(quick):
    table = run_study(None)
    assert table.model.tolist() == ['GAN', 'DDPM'] and table.seed.tolist() == [0, 0]


# Test cells come class by class, and their classes are not equally frequent
labels = torch.arange(3).repeat_interleave(torch.tensor([80, 30, 10]))
cells = labels.float()[:, None, None, None]
three = SimpleNamespace(classes='abc')


def perfect(label, seed):
    "Generated cells are their labels, and so are the real ones"
    return label.float()[:, None, None, None]


def test_reference_counts_classes_equally(monkeypatch):
    "A classifier that always predicts `a` is right for a third of the classes"
    def always_a(classifier, x):
        return x.flatten(1), torch.zeros(len(x), dtype=torch.long)
    monkeypatch.setattr(study, 'features_and_predictions', always_a)
    row = study.balanced_class_accuracy(perfect, three, cells, labels, 60, 0)
    assert np.isclose(row['class_accuracy'], 1/3)
    assert np.isclose(row['class_accuracy_reference'], 1/3)


def test_reference_has_the_requested_mixture(monkeypatch):
    "Both sides of a comparison are drawn from all classes"
    seen = []

    def look(classifier, x):
        return x.flatten(1), x.flatten(1)[:, 0].long()

    def compare(a, b):
        seen.append([x.long().flatten().bincount(minlength=3) for x in (a, b)])
        return dict.fromkeys(('fd', 'kid', 'precision', 'recall'), 0.)
    monkeypatch.setattr(study, 'features_and_predictions', look)
    monkeypatch.setattr(study, 'compare_features', compare)
    study.compare_with_real(perfect, three, cells, labels, 60, 0)
    assert len(seen) == 2
    for a, b in seen:
        assert a.sum() == b.sum() == 60
        assert (a > 0).all() and (a - b).abs().max() <= 12
    row = study.balanced_class_accuracy(perfect, three, cells, labels, 60, 0)
    assert row['class_accuracy'] == row['class_accuracy_reference'] == 1


def test_shipped_study_covers_all_phases():
    "Two sets of real cells of one mixture are near; without some classes they are not"
    table = gan_results()
    seeds = table.groupby('model').seed.apply(sorted).to_dict()
    assert seeds == dict(GAN=[0, 1, 2], DDPM=[0, 1, 2])
    names = 'fd', 'kid', 'precision', 'recall', 'class_accuracy'
    assert {f'{name}_reference' for name in names} <= set(table)
    assert (table.kid_reference.abs() < .01).all()
    assert (table.fd_reference < 1).all()
    assert (table.fd > 3*table.fd_reference).all()


@pytest.mark.parametrize('name', ['gan-turned', 'gan-tuning', 'gan-today'])
def test_shipped_tables_have_new_names(name):
    table = gan_results(name)
    assert {'class_accuracy', 'fd'} <= set(table)
    assert name == 'gan-today' or 'diversity' in table
    assert not {'recognised', 'spread', 'game', 'kd'} & set(table)


def test_old_keywords_of_the_learner():
    dls = loaders()
    with pytest.warns(DeprecationWarning) as notes:
        learn = gan_learner(dls, dim=8, critic=8, game='hinge', bfloat16=False)
    assert len([n for n in notes if 'of gan_learner is now' in str(n.message)]) == 3
    assert learn.loss_func is gan_losses['hinge'].discriminator
    assert learn.model.generator.precision == 'float32'
    with pytest.raises(TypeError, match='both loss'):
        gan_learner(dls, game='hinge', loss='hinge')
