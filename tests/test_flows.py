"Straight paths: against closed forms, against exact traces, and in other coordinates"
import inspect
import math

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import kstest

from cell_diffusion.core import generator
from cell_diffusion.data import cell_dls
from cell_diffusion.denoiser import Denoiser, save
from cell_diffusion.flows import (
    between_learner, bits_per_dim, dequantise, estimate_and_trace,
    fit_gaussian, likelihood, line_scale, log_likelihood, noise_share, of_class,
    random_signs, short_pairs, through_noise, translate, velocity,
)
from cell_diffusion.process import (
    eps_from_u, predictions, q_sample, u_from, v_from, x0_from_u,
)
from cell_diffusion.sampling import ddim, sample, timesteps
from cell_diffusion.schedules import flow_schedule, get_schedule
from cell_diffusion.studies import flows as study
from cell_diffusion.toys import Oracle, Toy
from cell_diffusion.training import (
    diffusion_learner, fit_for, lognormal_timesteps, normalized, snr_weight,
    training_configs,
)

tiny = dict(dim=16, mults=[1, 2])
every_schedule = pytest.mark.parametrize('name', ['linear', 'cosine', 'log_snr',
                                                  'flow'])


def noise(*shape, seed=0):
    return torch.randn(shape, generator=generator(seed))


def network(std=0., size=8, **settings):
    "With `std=0` it is the best denoiser of independent Gaussian pixels"
    torch.manual_seed(0)
    given = dict(schedule='log_snr', prediction='v', data_std=.5, size=size)
    model = Denoiser(tiny, **{**given, **settings}).eval()
    for p in model.parameters():
        if std: torch.nn.init.normal_(p, std=std, generator=generator(0))
    return model


@pytest.fixture(scope='module')
def cells():
    return cell_dls('simulated', size=28, bs=8, n=160)


# The bridge

@every_schedule
def test_the_velocity_is_v_in_other_coordinates(name):
    schedule = get_schedule(name)
    t = torch.arange(0, 1000, 111)
    x0 = noise(len(t), 3, 4, 4).clamp(-1, 1)
    eps = noise(len(t), 3, 4, 4, seed=1)
    xt = q_sample(x0, t, schedule, eps)
    a = schedule.at('signal', t, x0)
    b = schedule.at('noise', t, x0)
    u = u_from(x0, eps, t, schedule)
    assert torch.equal(u, eps - x0)
    v = v_from(x0, eps, t, schedule)
    assert torch.allclose(u, (a + b)*v + (b - a)*xt, atol=1e-5)
    assert torch.allclose(x0_from_u(xt, t, u, schedule), x0, atol=1e-5)
    assert torch.allclose(eps_from_u(xt, t, u, schedule), eps, atol=1e-5)

    # The weight of v's squared error
    wrong = v + noise(*v.shape, seed=2)
    as_u = (a + b)*wrong + (b - a)*xt
    assert torch.allclose((as_u - u)**2, (a + b)**2*(wrong - v)**2, atol=1e-3)


@every_schedule
def test_every_schedule_runs_along_the_straight_line(name):
    schedule = get_schedule(name)
    x0 = noise(1, 5)
    eps = noise(1, 5, seed=1)
    for t in (0, 300, 999):
        s = noise_share(schedule, t, x0)
        y = q_sample(x0, t, schedule, eps)/line_scale(schedule, t, x0)
        assert torch.allclose(y, (1 - s)*x0 + s*eps, atol=1e-5)
        sigma = schedule.noise[t]/schedule.signal[t]
        sigma = sigma.clamp(max=1e6).item()
        assert s.item() == pytest.approx(sigma/(1 + sigma), rel=1e-4)


@pytest.mark.parametrize('T', [1, 4, 1000])
def test_the_flow_schedule_is_even(T):
    schedule = flow_schedule(T)
    x = torch.zeros(1)
    shares = [noise_share(schedule, t, x).item() for t in range(T)]
    assert shares == pytest.approx([(t + 1)/T for t in range(T)], abs=1e-6)
    assert schedule.zero_terminal


@every_schedule
def test_eulers_step_is_that_of_ddim(name):
    oracle = Oracle(Toy(), get_schedule(name))
    x = noise(50)
    ts = timesteps(oracle.schedule, 12, 'time')
    shares = [noise_share(oracle.schedule, t, x).item() for t in ts.tolist()]
    y = x/line_scale(oracle.schedule, ts[0].item(), x)
    for t, here, there in zip(ts.tolist(), shares, [*shares[1:], 0.]):
        y = y + (there - here)*velocity(oracle, y, t, oracle.schedule)
    assert torch.allclose(y, ddim(oracle, x, oracle.schedule, ts), atol=1e-3)


def test_log_normal_levels_are_a_logit_normal_share():
    t = lognormal_timesteps(20_000, flow_schedule(), generator(0), .3, .8)
    def cdf(s): return torch.special.ndtr((torch.as_tensor(s).logit() - .3)/.8).numpy()
    # Within the grid of timesteps
    assert kstest(((t + 1)/1000).clamp(max=.9999).numpy(), cdf).statistic < .01


def test_min_snr_weights_of_u_are_those_of_x0():
    t = torch.arange(0, 999, 50)
    u = snr_weight(network(prediction='u', data_std=1.), t)
    x0 = snr_weight(network(prediction='x0', data_std=1.), t)
    x = torch.zeros(len(t))
    s = noise_share(network().schedule, t, x)
    assert torch.allclose(u, x0*s**2, rtol=1e-4)


def test_flow_configs_differ_where_the_chapter_says():
    mid = training_configs['flow-mid']
    assert mid.noise_levels == training_configs['edm-mid'].noise_levels
    assert training_configs['flow'].noise_levels == (0., 1.)
    assert training_configs['flow-uniform'].noise_levels is None
    for name in ('flow', 'flow-mid', 'flow-uniform'):
        config = training_configs[name]
        assert (config.schedule, config.prediction) == ('flow', 'u')
        assert config.prediction in predictions
        assert config.data_std == training_configs['edm-mid'].data_std

def test_normalized_levels_are_those_of_the_default_too(cells):
    ours, default = (normalized(training_configs[name], cells)
                     for name in ('flow-mid', 'edm-mid'))
    assert ours.noise_levels == default.noise_levels
    assert (ours.data_mean, ours.data_std) == (default.data_mean, default.data_std)


def test_a_flow_trains_samples_and_is_saved(cells, tmp_path):
    learn = diffusion_learner(cells, 'flow', classes=True, dim=16, mults=(1, 2))
    budget = fit_for(learn, epochs=1, progress=False)
    assert np.isfinite(budget.losses).all()
    model = learn.ema.averaged
    save(model, tmp_path/'flow')
    for options in (dict(), dict(sampler='ddim', spacing='time'), dict(sampler='heun')):
        x = sample(model, 2, label=0, steps=4, progress=False, guidance_scale=2.,
                   **options)
        assert torch.isfinite(x).all() and x.shape == (2, 3, 28, 28)


# Score and noise on the way

def test_the_score_follows_from_the_velocity():
    flow = flow_schedule()
    toy = Toy()
    y = torch.linspace(-1.5, 1.5, 41)
    for t in (149, 499, 899):
        s = (t + 1)/1000
        u = velocity(Oracle(toy, flow), y, t, flow)
        wide = line_scale(flow, t, y)
        exact = toy.score(y*wide, t, flow)*wide
        assert torch.allclose(-(y + (1 - s)*u)/s, exact, atol=.02, rtol=.01)


@pytest.mark.parametrize('kappa', [0., .5, 4.])
def test_noise_on_the_way_leaves_the_density(kappa):
    flow = flow_schedule()
    toy = Toy()
    oracle = Oracle(toy, flow)
    rng = generator(0)
    y = torch.randn(3000, generator=rng)
    for t in range(999, -1, -1):
        s = (t + 1)/1000
        u = velocity(oracle, y, t, flow)
        eps = y + (1 - s)*u
        z = torch.randn(3000, generator=rng)
        y = y - (u + kappa*eps)/1000 + (2*kappa*s/1000)**.5*z
    def cdf(o): return toy.cdf(torch.as_tensor(o)).numpy()
    assert kstest(y.numpy(), cdf).statistic < .04


# Likelihood

def exact_log_density(toy, x, schedule):
    "Of the numbers with the noise of the first timestep"
    a = schedule.signal[0]
    return (toy.pdf(a*x, 0, schedule)*a).log()


@every_schedule
def test_the_likelihood_of_the_toy(name):
    schedule = get_schedule(name)
    toy = Toy()
    x = torch.linspace(-1.1, 1.2, 47)
    mean = (toy.weights*toy.means).sum()
    errors = []
    for steps in (50, 200):
        ours = log_likelihood(Oracle(toy, schedule), x, schedule,
                              timesteps(schedule, steps), torch.ones(1, 47), mean)
        exact = exact_log_density(toy, x, schedule)
        errors.append((ours[0].exp() - exact.exp()).abs().max().item())
    assert errors[1] < .02 and errors[1] < .5*errors[0]


@pytest.mark.parametrize('mean', [0., .6])
def test_the_likelihood_of_gaussian_pixels(mean):
    "The whole way through a network, against the closed form"
    model = network(data_mean=[mean])
    x = mean + .5*noise(3, 3, 8, 8)
    sd = (.25 + (model.schedule.noise[0]/model.schedule.signal[0])**2)**.5
    exact = torch.distributions.Normal(mean, sd).log_prob(x.double()).flatten(1).sum(1)
    ours = likelihood(model, x, steps=60, probes=2)
    assert ours.shape == (2, 3)
    # Without anything beside the diagonal, every probe is exact
    assert torch.allclose(ours[0], ours[1], atol=.01)
    bits = bits_per_dim(ours - exact, 192) - math.log2(127.5)
    assert bits.abs().max() < .01


def test_hutchinson_against_the_whole_jacobian():
    model = network(std=.15)
    y = noise(1, 3, 8, 8)
    t = 500
    def estimate(xt, t):
        return model.estimate(xt, torch.full((len(xt),), t))
    def f(y): return estimate(y*line_scale(model.schedule, t, y), t)
    jacobian = torch.autograd.functional.jacobian(f, y).reshape(192, 192)
    exact = jacobian.trace().item()
    signs = random_signs((200, *y.shape), generator(1))
    x0, traces = estimate_and_trace(estimate, y, t, model.schedule, signs)
    assert traces.shape == (200, 1)
    assert torch.allclose(x0, f(y), atol=1e-5)

    # The variance of the estimate with random signs is known
    off = (jacobian + jacobian.T)/2
    off = off - off.diag().diag()
    sd = (2*off.pow(2).sum()).sqrt().item()
    assert abs(traces.mean().item() - exact) < 4*sd/200**.5
    assert traces.std().item() == pytest.approx(sd, rel=.25)


def test_the_likelihood_leaves_the_network_as_it_was():
    model = network().train()
    model.precision = 'bfloat16'
    likelihood(model, noise(1, 3, 8, 8), steps=2)
    assert model.training and model.precision == 'bfloat16'


def test_dequantised_cells_stay_at_their_grey_level():
    images = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16)
    x = dequantise(images, generator(0))
    levels = (x + 1)*127.5
    assert torch.equal(levels.round(), torch.from_numpy(images).float())
    assert (levels - levels.round()).std() == pytest.approx(12**-.5, rel=.1)


def test_even_grey_levels_need_eight_bits():
    d = 12
    even = torch.tensor(-d*math.log(256/127.5)).double()
    assert bits_per_dim(even, d).item() == pytest.approx(8)


def test_the_gaussian_is_one():
    x = noise(4000, 1, 2, 3)*.5 + .2
    log_p = fit_gaussian(x)(x[:50])
    exact = torch.distributions.Normal(.2, .5).log_prob(x[:50]).flatten(1).sum(1)
    assert torch.allclose(log_p, exact.double(), atol=.25)


# From one kind of cell to another

def test_short_pairs_are_shortest():
    x = noise(6, 2)
    order = torch.randperm(6, generator=generator(1))
    others = x[order] + .01
    assert torch.equal(others[short_pairs(x, others)], x + .01)


def steady(shift):
    "A flow whose velocity is the same everywhere"
    model = Denoiser(tiny, 'flow', prediction='u', size=8).eval()
    model.forward = lambda xt, t, label=None: torch.full_like(xt, shift)
    return model


def test_a_known_flow_leads_there_and_back():
    x = noise(2, 3, 8, 8).clamp(-.5, .5)
    there = translate(steady(.3), x)
    assert torch.allclose(there, x - .3, atol=2e-3)
    assert torch.allclose(translate(steady(.3), there, back=True), x, atol=4e-3)


@pytest.mark.parametrize('pairing', ['random', 'short'])
def test_others_take_the_place_of_noise(cells, pairing):
    mono = of_class(cells, 'monocyte')
    others = torch.full((5, 3, 28, 28), .25)
    learn = between_learner(mono, others, pairing, dim=16)
    seen = []
    learn.model.target = lambda x0, eps, t: seen.append(eps) or eps - x0
    fit_for(learn, epochs=1, progress=False)
    assert seen and all((eps == .25).all() for eps in seen)
    assert learn.model.schedule.zero_terminal and learn.model.prediction == 'u'


def test_an_unknown_pairing_is_refused(cells):
    with pytest.raises(ValueError, match="'near'.*random or short"):
        between_learner(cells, noise(4, 3, 28, 28), 'near')


def test_one_class_alone_keeps_the_split(cells):
    mono = of_class(cells, 'monocyte')
    number = cells.vocab.index('monocyte')
    for side in ('train', 'valid', 'test'):
        assert set(mono.idxs[side]) <= set(np.asarray(cells.idxs[side]).tolist())
        assert (cells.cells.labels[mono.idxs[side]] == number).all()
    assert (mono.test.arrays[1] == number).all()


def test_through_noise_to_the_same_class_comes_back():
    model = network(classes=['a', 'b'])
    x = (.3*noise(2, 3, 8, 8)).clamp(-1, 1)
    same = through_noise(model, x, 'a', 'a', steps=80)
    assert (same - x).abs().max() < .1


# The study, in miniature

@pytest.fixture
def small_study(cells, monkeypatch):
    "Few drawn cells, a network with random weights, and a classifier that says 1"
    class Says:
        classes = cells.vocab
    monkeypatch.setattr(study, 'cell_dls', lambda *args, **kwargs: cells)
    monkeypatch.setattr(study, 'load', lambda folder: network(
        size=28, classes=list(cells.vocab)))
    monkeypatch.setattr(study, 'reference_classifier', lambda dls: Says())
    monkeypatch.setattr(study, 'features_and_predictions',
                        lambda classifier, x: (None, torch.full((len(x),), 5)))


def test_bits_of_the_same_cells(small_study, tmp_path):
    table = study.bits_study('simulated', tmp_path/'bits', dict(tiny='x'), n=5, bs=2,
                             steps=(3,), size=28)
    counts = table.groupby('network').size()
    assert counts.to_dict() == dict(Gaussian=5, tiny=10)
    assert table.bits.between(0, 20).all()
    classes = table.groupby('cell')['class'].nunique()
    assert len(classes) == 5 and (classes == 1).all()


def test_every_way_is_measured(small_study, tmp_path):
    options = dict(epochs=1, seeds=1, n=3, size=28)
    ends = 'lymphocyte to monocyte',
    table = study.between_study('simulated', tmp_path/'between', ends=ends, **options)
    assert set(table.way) == {'real', 'random', 'short', 'through noise'}
    assert set(table.feature) == {
        'cell_area', 'nucleus_area', 'ratio', 'eccentricity', 'solidity', 'lobes',
        'stain'}
    assert (table.class_accuracy == 1).all() # Monocytes are class 5
    walks = table[table.way != 'real']
    assert walks.round_trip.notna().all()
    # All ways begin with the same cells
    first = table.pivot_table(index=['cell', 'feature'], columns='way', values='before')
    assert np.allclose(first['random'], first['through noise'], equal_nan=True)


def test_drawn_and_real_cells_are_the_ends(cells):
    ends = study.Ends('drawn to real', cells, 0, drawn=80)
    assert ends.others.shape[1:] == (3, 28, 28) and len(ends.others) == 70
    assert len(ends.tested) == 10 and len(ends.real) == len(cells.idxs['test'])


def test_all_records_are_made_by_one_call(monkeypatch, tmp_path):
    asked = {}
    def kept(name):
        takes = inspect.signature(getattr(study, name))
        def run(*args, **kwargs):
            takes.bind(*args, **kwargs)
            asked[name] = args
            return pd.DataFrame([dict(name=name)])
        return run
    others = [f'{name}_study' for name in study.every_study if name != 'race']
    for name in ('race', *others):
        monkeypatch.setattr(study, name, kept(name))
    study.make_records('simulated', tmp_path, students=['a-4'], fillers=['b-4'])
    assert {f.name for f in tmp_path.glob('*.csv')} == {
        f'flow-{name}.csv' for name in study.every_study}
    for name in ('calls', 'lost'):
        assert asked[f'{name}_study'][2:] == ('blood32', ['a-4'])
    assert asked['fills_study'][2:] == ('blood64-inpaint', ['b-4'])
    networks = asked['bits_study'][2]
    assert set(networks) == {'blood32', *study.raced}
    assert networks['flow'].endswith('race/flow-muon-None-32-0')


def test_a_table_that_is_not_there_is_empty(capsys):
    assert not len(study.kept_table('no-such-table'))
    assert 'not there yet' in capsys.readouterr().out
