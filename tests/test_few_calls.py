"Few calls: the transformer, and the study of quality against calls"
import json

import numpy as np
import pytest
import torch
from torch import nn

from cell_diffusion.classifier import CellClassifier
from cell_diffusion.core import generator
from cell_diffusion.data import cell_dls
from cell_diffusion.denoiser import Denoiser, load, save, set_guidance, weights_hash
from cell_diffusion.distillation import student_of
from cell_diffusion.inpainting import Inpainter, inpainting_learner
from cell_diffusion.sampling import sample
from cell_diffusion.studies import flows as study
from cell_diffusion.studies.samplers import counting, quality_against_cost
from cell_diffusion.training import diffusion_learner, fit_for, training_configs
from cell_diffusion.transformer import Block, Transformer, places
from cell_diffusion.unet import UNet, n_params
from cell_diffusion.web import export_onnx

kinds = 'a', 'b'
tiny = dict(dim=16, mults=[1, 2])


def noise(*shape, seed=0):
    return torch.randn(shape, generator=generator(seed))


@pytest.fixture(scope='module')
def cells():
    return cell_dls('simulated', size=28, bs=8, n=160)


# The transformer

def awake(net):
    "With random numbers where a new network has zeros"
    for p in net.parameters():
        if not p.any(): nn.init.normal_(p, std=.1, generator=generator(1))
    return net.eval()


@pytest.mark.parametrize('size, given', [
    (32, {}), (28, dict(channels=1)), (64, dict(patch=2)),
    (32, dict(channels=7, out_channels=3, n_classes=8)), (32, dict(token=2, dim=24))])
def test_shape_of_the_transformer(size, given):
    net = awake(Transformer(**{'dim': 16, **given}))
    x = noise(2, net.channels, size, size)
    label = torch.tensor([0, 8]) if net.n_classes else None
    out = net(x, torch.tensor([3, 900]), label)
    assert out.shape == (2, given.get('out_channels') or net.channels, size, size)
    assert out.dtype == torch.float32 and out.isfinite().all()


def test_a_new_block_is_the_identity_and_a_new_transformer_says_nothing():
    block = Block(64, 2)
    h = noise(2, 9, 64)
    emb = noise(2, 64, seed=1)
    assert torch.equal(block(h, emb), h)
    assert not torch.equal(awake(block)(h, emb), h)
    net = Transformer(dim=16)
    assert not net(noise(1, 3, 32, 32), torch.tensor([5])).any()


@pytest.mark.parametrize('dim', [16, 24, 32, 64])
def test_it_is_as_large_as_the_unet(dim):
    ours = n_params(Transformer(dim=dim, n_classes=8))
    assert ours == pytest.approx(n_params(UNet(dim=dim, n_classes=8)), rel=.05)


def test_it_knows_time_class_and_place():
    net = awake(Transformer(dim=16, n_classes=2))
    x = noise(1, 3, 32, 32)
    t = torch.tensor([500])
    out = net(x, t, torch.tensor([0]))
    assert not torch.allclose(out, net(x, t + 300, torch.tensor([0])))
    assert not torch.allclose(out, net(x, t, torch.tensor([1])))
    null = torch.tensor([2])
    assert torch.equal(net(x, t), net(x, t, null))

    # The same tokens elsewhere: without names for places the answer would move along
    moved = net(x.roll(4, -1), t, null)
    assert not torch.allclose(net(x, t).roll(4, -1), moved, atol=1e-4)
    names = places(torch.zeros(1, 64, 8, 8)).flatten(1).T
    assert torch.cdist(names, names).fill_diagonal_(1).min() > .1


def test_each_token_sees_all_others():
    net = awake(Transformer(dim=16))
    x = noise(1, 3, 32, 32).requires_grad_()
    net(x, torch.tensor([500]))[0, 0, 0, 0].backward()
    assert (x.grad.abs().amax(1) > 0).all()


@pytest.mark.parametrize('kind', [Denoiser, Inpainter])
def test_it_is_a_network_of_the_course(cells, tmp_path, kind):
    "It trains, samples, is saved and comes back to the bit"
    make = inpainting_learner if kind is Inpainter else diffusion_learner
    learn = make(cells, 'transformer-mid', classes=True, dim=16)
    budget = fit_for(learn, epochs=1, progress=False)
    assert np.isfinite(budget.losses).all()
    model = learn.ema.averaged
    assert isinstance(model.unet, Transformer) and type(model) is kind
    save(model, tmp_path/'t')
    again = load(tmp_path/'t', 'cpu', 'float32', kind)
    assert weights_hash(again) == weights_hash(load(tmp_path/'t'))
    x = sample(again, 2, 0, steps=3, progress=False)
    assert x.shape == (2, 3, 28, 28) and x.isfinite().all()
    assert export_onnx(again, tmp_path/'t.onnx').stat().st_size > 100_000


@pytest.mark.parametrize('unet, said', [
    (dict(kind='fractal'), 'unknown setting unet.kind'),
    (dict(kind='transformer', mults=[1, 2]), 'unknown setting unet.mults'),
    (dict(kind='transformer', depth='six'), 'unet.depth')])
def test_settings_of_another_network_are_refused(tmp_path, unet, said):
    save(Denoiser(dict(kind='transformer', dim=16)), tmp_path/'t')
    file = tmp_path/'t'/'config.json'
    config = json.loads(file.read_text())
    config['unet'] = dict(unet, dim=16)
    file.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=said):
        load(tmp_path/'t')


# The study

def network(kind=Denoiser, **settings):
    torch.manual_seed(0)
    unet = dict(tiny, channels=7, out_channels=3) if kind is Inpainter else tiny
    model = kind(unet, 'log_snr', prediction='v', size=28,
                 **{'classes': kinds, **settings})
    nn.init.normal_(model.unet.out[-1].weight, std=.02, generator=generator(0))
    return model.eval()


@pytest.mark.parametrize('given, calls', [
    (dict(sampler='ddim'), 4), (dict(sampler='heun'), 7),
    (dict(guidance_scale=2.), 8), (dict(guidance_scale=2., interval=(-1, 1e6)), 6)])
def test_calls_are_counted_with_guidance(given, calls):
    model = network()
    with counting(model) as shown:
        sample(model, 3, 0, steps=4, progress=False, **given)
    assert sum(shown)/3 == calls or 'interval' in given and 4 < sum(shown)/3 < 8
    set_guidance(model, 2., guide=network())
    with counting(model) as shown:
        sample(model, 3, 0, steps=4, progress=False)
    assert sum(shown) == 3*8
    before = len(shown)
    sample(model, 1, 0, steps=1, progress=False)
    assert len(shown) == before


@pytest.fixture
def small_study(cells, monkeypatch, tmp_path):
    "Few drawn cells, networks with random weights, and a classifier that knows nothing"
    torch.manual_seed(0)
    classifier = CellClassifier(cells.vocab, size=28, dim=8).eval()
    monkeypatch.setattr(study, 'cell_dls', lambda *args, **kwargs: cells)
    monkeypatch.setattr(study, 'reference_classifier', lambda dls: classifier)
    made = {}
    for name, kind in dict(net=Denoiser, inpaint=Inpainter).items():
        teacher = network(kind, classes=list(cells.vocab))
        save(teacher, tmp_path/name)
        save(student_of(teacher, (999, 500)), tmp_path/f'{name}-2')
        made[name] = str(tmp_path/name), str(tmp_path/f'{name}-2')
    return made


def test_all_samplers_and_a_student(small_study, tmp_path):
    teacher, student = small_study['net']
    out = tmp_path/'calls'
    options = dict(calls=(1, 3), n=10, draws=2)
    before = study.calls_study('simulated', out, teacher, **options)
    table = study.calls_study('simulated', out, teacher, [student], **options)
    assert table.iloc[:len(before)].equals(before[table.columns])
    by_way = table.groupby(['network', 'sampler']).calls.unique().map(list).to_dict()
    assert by_way['net-2', 'net-2'] == [2]
    assert by_way['net', 'heun'] == [1, 3] and by_way['net', 'ddim'] == [1, 3]
    measures = ['fd', 'kid', 'precision', 'recall', 'diversity', 'class_accuracy']
    assert table[measures].notna().all().all()
    real = table[table.sampler == 'real cells']
    assert real.diversity.between(.5, 2).all() and (real.calls == 0).all()


def test_holes_filled_in_few_calls(small_study, tmp_path):
    teacher, student = small_study['inpaint']
    table = study.fills_study('simulated', tmp_path/'fills', teacher, [student],
                              calls=(1, 2), n=1)
    ways = set(zip(table.network, table.sampler, table.calls))
    assert ways == {('inpaint', s, k) for s in ('ddim', 'dpm_solver') for k in (1, 2)} \
        | {('inpaint-2', 'student', 2)}
    assert table[['error', 'spread', 'seam']].notna().all().all()


def test_networks_of_one_name_are_not_told_apart(tmp_path):
    save(network(), tmp_path/'a'/'net')
    with pytest.raises(ValueError, match='folders of different names'):
        study.networks_by_name([tmp_path/'a'/'net', tmp_path/'a'/'net'], Denoiser)


def test_what_is_lost(small_study, tmp_path):
    teacher, student = small_study['net']
    table = study.lost_study('simulated', tmp_path/'lost', teacher, [student], n=4,
                             steps=(3, 12))
    sizes = table.groupby(['what', 'network', 'steps']).size()
    assert (sizes == 4).all() and len(sizes) == 3 + 2 + 2
    assert table.value.notna().all()
    bits = table[table.what == 'bits']
    assert bits.value.between(0, 20).all()
    assert bits.groupby('cell').size().eq(3).all()


def test_finer_walks_come_back_better():
    "And what comes back from its own noise is the cell"
    model = network()
    x = (.3*noise(3, 3, 28, 28)).clamp(-1, 1)
    asked = study.Lost(model, ((x + 1)*127.5).round().byte(), torch.zeros(3).long(),
                       CellClassifier(kinds, size=28, dim=8).eval(), 100, 0)
    coarse, fine = [asked.there_and_back(k).value.mean() for k in (5, 80)]
    assert fine < .5*coarse
    assert asked.back(model).value.mean() < .1


def test_a_student_has_one_sampler(cells):
    student = student_of(network(), (999, 500))
    with pytest.raises(ValueError, match='walks in one way only: compare samplers'):
        quality_against_cost(student, None, None, None, dict(ddim=dict(sampler='ddim')))


def test_a_race_knows_the_transformer():
    assert 'transformer-mid' in study.raced
    ours = training_configs['transformer-mid']
    default = training_configs['edm-mid']
    assert vars(ours) == vars(default) and (ours.kind, default.kind) == (
        'transformer', None)
