"Weights and their folders, what a network is conditioned on, and the samplers"
import errno
import itertools
import json
import os
import resource
import shutil
import subprocess
import sys
from fnmatch import fnmatch

import pytest
import torch
from huggingface_hub import PyTorchModelHubMixin
from safetensors.torch import load_file, save_file

from cell_diffusion import denoiser
from cell_diffusion.classifier import CellClassifier
from cell_diffusion.denoiser import (Condition, Denoiser, denoise, load, save,
                                     set_guidance, warm_start, weights_folder,
                                     weights_hash)
from cell_diffusion.gan import Generator, gan_sample
from cell_diffusion.inpainting import Inpainter
from cell_diffusion.sampling import nfe, sample, samplers
from cell_diffusion.unet import UNet

small = dict(dim=8, mults=[1, 2])
seeing = dict(channels=7, out_channels=3, **small)
classes = 'round', 'long', 'lobed'


def randomise(model, seed=0):
    "The same network with weights that do something, the last layers included"
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            spread = .5/p[0].numel()**.5 if p.ndim > 1 else .1
            p.copy_(spread*torch.randn(p.shape, generator=rng) + (p == 1))
    return model.eval()


def tiny(kind=Denoiser, classes=classes, seed=0, **settings):
    "A tiny random network with few timesteps"
    unet = seeing if kind is Inpainter else small
    settings = dict(schedule='cosine', prediction='v', T=6, size=8,
                    classes=classes) | settings
    return randomise(kind(unet, **settings), seed)


everything = dict(
    Denoiser=lambda: randomise(Denoiser(
        small, schedule='cosine', T=50, prediction='v', data_std=.4,
        data_mean=(.1, .2, .3), size=16, classes=classes)),
    Inpainter=lambda: randomise(Inpainter(
        seeing, schedule='log_snr', prediction='x0', size=16, classes=classes)),
    CellClassifier=lambda: randomise(CellClassifier(classes, 2, 16, 8, stride=2)),
    Generator=lambda: randomise(Generator(1, 16, 4, 8, classes)),
)


def is_one_sentence(message):
    return '\n' not in message and message.endswith('.') and len(message) < 400


# Saving and loading

@pytest.mark.parametrize('name', everything)
def test_round_trip(name, tmp_path):
    "Class, settings and weights come back; the folder holds two files and no template"
    model = everything[name]()
    save(model, tmp_path/'net')
    again = load(tmp_path/'net', 'cpu', 'float32')
    assert type(again) is type(model) and again.settings == model.settings
    assert not again.training and again.precision == 'float32'
    theirs = again.state_dict()
    assert set(theirs) == set(model.state_dict())
    for key, tensor in model.state_dict().items():
        half = tensor.half() if tensor.is_floating_point() else tensor
        assert torch.equal(theirs[key], half.to(tensor.dtype)), key
    files = {'config.json', 'model.safetensors'}
    assert {f.name for f in (tmp_path/'net').iterdir()} == files


@pytest.mark.parametrize('name', everything)
def test_tensors_are_stored_in_half_precision(name, tmp_path):
    model = everything[name]()
    save(model, tmp_path)
    stored = load_file(tmp_path/'model.safetensors')
    floats = [t.dtype for t in stored.values() if t.is_floating_point()]
    assert set(floats) == {torch.float16}
    config = json.loads((tmp_path/'config.json').read_text())
    assert config['class'] == name and config['format_version'] == 2


@pytest.mark.parametrize('name', everything)
def test_hub_reads_the_folders_too(name, tmp_path):
    "By its own names, and with no card of a template"
    model = everything[name]()
    model.save_pretrained(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ['config.json', 'model.safetensors']
    again = type(model).from_pretrained(tmp_path)
    assert again.settings == model.settings
    for a, b in zip(model.parameters(), again.parameters()):
        assert torch.equal(a.half(), b.half())


@pytest.mark.parametrize('name', everything)
def test_folders_of_the_first_release(name, tmp_path):
    "It saved through huggingface_hub: no class, no format version"
    model = everything[name]().half()
    PyTorchModelHubMixin.save_pretrained(model, tmp_path)
    assert 'class' not in json.loads((tmp_path/'config.json').read_text())
    again = load(tmp_path, 'cpu', 'float32')
    assert type(again) is type(model) and again.settings == model.settings
    for a, b in zip(model.parameters(), again.parameters()):
        assert torch.equal(a.float(), b)


# Mean absolute output for fixed noise, as computed with the code of release 0.1
outputs_of_release = {
    'blood-classifier-32': (CellClassifier, 57.45672),
    'blood-classifier-32-judge': (CellClassifier, 96.40937), # Since 0.2
    'blood-classifier-64': (CellClassifier, 50.69675),
    'blood-classifier-64-judge': (CellClassifier, 47.75555), # Since 0.2
    'blood32': (Denoiser, 0.81986), # Since 0.2
    'blood32-4': (Denoiser, 0.73067), # Since 0.2
    'blood32-long': (Denoiser, 0.79719), # Since 0.2
    'blood64': (Denoiser, 0.94196), # Since 0.2
    'blood64-classes': (Denoiser, 0.98724), # Since 0.2
    'blood64-classes-long': (Denoiser, 0.98100), # Since 0.2
    'blood64-inpaint': (Inpainter, 0.96285), # Since 0.2
    'blood64-inpaint-4': (Inpainter, 0.82356), # Since 0.2
    'blood64-inpaint-long': (Inpainter, 0.97687), # Since 0.2
    'jurkat-classifier-40': (CellClassifier, 27.75951),
    'jurkat-classifier-40-dna': (CellClassifier, 30.94054),
    'jurkat40': (Denoiser, 0.52300), # Since 0.2
}


def test_every_shipped_folder_is_checked():
    assert set(outputs_of_release) == {f.name for f in weights_folder.iterdir()}


@torch.no_grad()
@pytest.mark.parametrize('name', outputs_of_release)
def test_shipped_networks_answer_as_before(name):
    kind, expected = outputs_of_release[name]
    model = load(name, 'cpu', 'float32', kind=kind)
    assert type(model) is kind
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(2, model.channels, model.size, model.size, generator=rng)
    if kind is CellClassifier:
        out = model(x.clamp(-1, 1))
    else:
        label = torch.tensor([0, 1]) if model.classes else None
        out = model(x, torch.tensor([100, 700]), label)
    assert out.double().abs().mean().item() == pytest.approx(expected, rel=1e-3)


# Refusals: one row for each fault

@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    "A folder with a small network, not to be changed"
    folder = tmp_path_factory.mktemp('saved')/'net'
    save(everything['Denoiser'](), folder)
    return folder


def with_config(**changes):
    "A fault that changes settings"
    def change(folder):
        config = json.loads((folder/'config.json').read_text()) | changes
        (folder/'config.json').write_text(json.dumps(config))
    return change


def with_unet(**changes): return with_config(unet={**small, **changes})


def without(name):
    "A fault that takes a setting away"
    def change(folder):
        config = json.loads((folder/'config.json').read_text())
        del config[name]
        (folder/'config.json').write_text(json.dumps(config))
    return change


def with_text(text, file='config.json'):
    "A fault that replaces a whole file"
    def change(folder):
        (folder/file).write_bytes(text if isinstance(text, bytes) else text.encode())
    return change


def with_tensors(edit):
    "A fault that edits the tensors"
    def change(folder):
        state = load_file(folder/'model.safetensors')
        edit(state)
        save_file(state, folder/'model.safetensors')
    return change


def as_pickle(folder): torch.save({'a': torch.ones(2)}, folder/'model.safetensors')


def truncated(folder):
    data = (folder/'model.safetensors').read_bytes()
    (folder/'model.safetensors').write_bytes(data[:len(data)//2])


def set_first(value):
    def edit(state): state['unet.conv_in.bias'][0] = value
    return edit


def set_tensor(name, tensor):
    def edit(state): state[name] = tensor
    return edit


def drop(state): del state['unet.conv_in.bias']


version_1 = dict(format_version=1)
bias = 'unet.conv_in.bias'
faults = {
    # Settings with a wrong name, type or value
    'unknown key': (with_config(sizes=8), 'unknown setting sizes'),
    'unknown key in unet': (with_unet(width=8), 'unknown setting unet.width'),
    'size is text': (with_config(size='16'), "size to '16'"),
    'size is a float': (with_config(size=16.), 'size to 16.0'),
    'size is a bool': (with_config(size=True), 'size to True'),
    'size is null': (with_config(size=None), 'size to None'),
    'size is zero': (with_config(size=0), 'size to 0'),
    'size is negative': (with_config(size=-16), 'size to -16'),
    'size is absurd': (with_config(size=10**9), 'size to 1000000000'),
    'T is absurd': (with_config(T=10**12), 'T to 1'),
    'std is a list': (with_config(data_std=[1.]), 'data_std to'),
    'std is a bool': (with_config(data_std=True), 'data_std to True'),
    'mean is a number': (with_config(data_mean=0.), 'data_mean to'),
    'mean is empty': (with_config(data_mean=[]), 'data_mean to'),
    'mean is text': (with_config(data_mean=['0']), 'data_mean to'),
    'classes are text': (with_config(classes='round'), "classes to 'round'"),
    'classes are numbers': (with_config(classes=[1, 2, 3]), 'classes to'),
    'classes twice': (with_config(classes=['a', 'a', 'b']), 'classes to'),
    'unet is a list': (with_config(unet=[8]), 'unet to'),
    'mults are text': (with_unet(mults='12'), "unet.mults to '12'"),
    'mults are floats': (with_unet(mults=[1., 2.]), 'unet.mults to'),
    'mults are nested': (with_unet(mults=[[1], [2]]), 'unet.mults to'),
    'mults without end': (with_unet(mults=[1]*100), 'unet.mults to'),
    'blocks without end': (with_unet(blocks=10**6), 'unet.blocks to'),
    'schedule unknown': (with_config(schedule='steep'), 'build no network.*steep'),
    'prediction unknown': (with_config(prediction='y'), "build no network.*'y'"),
    'another width': (with_unet(dim=16), 'shape'),
    # More than 200 million parameters
    'network too large': (with_unet(dim=512, mults=[4, 8]), 'parameters, and at most'),
    'network absurd': (with_unet(dim=4096, mults=[64]*8), 'parameters|no network'),
    # A class, a version or settings that do not belong to the weights
    'class unknown': (with_config(**{'class': 'Oracle'}), "no network.*'Oracle'"),
    'class is a path': (with_config(**{'class': 'os.system'}), 'no network'),
    'class is a list': (with_config(**{'class': ['Denoiser']}), 'no network'),
    'class is missing': (without('class'), 'no network of the course: None'),
    'class of another': (with_config(**{'class': 'Generator'}), 'unknown setting'),
    'version is newer': (with_config(format_version=3), 'version is 3'),
    'version is zero': (with_config(format_version=0), 'version is 0'),
    'version is text': (with_config(format_version='2'), "version is '2'"),
    'version is a bool': (with_config(format_version=True), 'version is True'),
    'version is a list': (with_config(format_version=[2]), 'version is'),
    'other mean': (with_config(data_mean=[0., 0., 0.]), 'not the one saved'),
    'other prediction': (with_config(prediction='eps'), 'not the one saved'),
    'missing setting': (without('T'), 'lacks the setting T'),
    # A config.json that is no table
    'no JSON': (with_text('size: 16'), 'not JSON'),
    'empty config': (with_text(''), 'not JSON'),
    'bytes': (with_text(b'\xff\xfe\x00'), 'not JSON'),
    'NaN': (with_text('{"size": NaN}'), 'not JSON.*NaN'),
    'infinity': (with_text('{"data_std": -Infinity}'), 'not JSON'),
    'endless number': (with_text('{"size": ' + '1'*5000 + '}'), 'not JSON'),
    'deep JSON': (with_text('['*100_000), 'not JSON'),
    'a list': (with_text('[1, 2]'), 'not a table'),
    'a number': (with_text('2'), 'not a table'),
    'null': (with_text('null'), 'not a table'),
    'empty table': (with_text('{}'), 'no network of the course'),
    # Weights that are no safetensors file
    'pickle': (as_pickle, 'not a safetensors file'),
    'zero bytes': (with_text('', 'model.safetensors'), 'not a safetensors file'),
    'zeros': (with_text(bytes(1000), 'model.safetensors'), 'not a safetensors file'),
    'text': (with_text('x'*99, 'model.safetensors'), 'not a safetensors file'),
    'truncated': (truncated, 'not a safetensors file'),
    # Tensors that are not those of the network
    'tensor missing': (with_tensors(drop), f'lacks tensors.*{bias}'),
    'tensor foreign': (with_tensors(set_tensor('x', torch.ones(2))), 'another.*: x'),
    'tensor NaN': (with_tensors(set_first(torch.nan)), f'{bias}.*not finite'),
    'tensor infinite': (with_tensors(set_first(torch.inf)), f'{bias}.*not finite'),
    'tensor wider': (with_tensors(set_tensor(bias, torch.ones(9))), r'shape \(9,\)'),
    'tensor deeper': (with_tensors(set_tensor(bias, torch.ones(8, 1))), 'shape'),
    'tensor of ints': (with_tensors(set_tensor(bias, torch.ones(8).long())), 'I64'),
    'tensor of bools': (with_tensors(set_tensor(bias, torch.ones(8).bool())), 'BOOL'),
}


@pytest.mark.parametrize('fault', faults)
def test_faults_are_refused(fault, saved, tmp_path):
    "Each in one sentence that names the folder, as `ValueError`"
    damage, reason = faults[fault]
    folder = shutil.copytree(saved, tmp_path/'folder')
    damage(folder)
    with pytest.raises(ValueError, match=reason) as e:
        load(folder, 'cpu')
    assert str(e.value).startswith(f'{folder} cannot be loaded: ')
    assert is_one_sentence(str(e.value))


@pytest.mark.parametrize('file', ['config.json', 'model.safetensors'])
@pytest.mark.parametrize('how', ['missing', 'directory'])
def test_missing_files(file, how, saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path/'folder')
    (folder/file).unlink()
    if how == 'directory': (folder/file).mkdir()
    with pytest.raises(FileNotFoundError, match=file) as e:
        load(folder, 'cpu')
    assert str(folder) in str(e.value) and is_one_sentence(str(e.value))


def test_required_settings(tmp_path):
    save(everything['CellClassifier'](), tmp_path)
    without('classes')(tmp_path)
    with pytest.raises(ValueError, match='lacks the setting classes'):
        load(tmp_path, 'cpu')


def test_weights_of_the_first_release_are_checked_as_strictly(tmp_path):
    PyTorchModelHubMixin.save_pretrained(everything['Denoiser']().half(), tmp_path)
    with_tensors(drop)(tmp_path)
    with pytest.raises(ValueError, match='lacks tensors'):
        load(tmp_path, 'cpu')


@pytest.mark.parametrize('name', ['blood33', '', 'no/such/folder', 'blood32/', '../x'])
def test_unknown_names(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if name == 'blood32/': name = 'BLOOD32'
    says = 'which has .*blood32, .*jurkat40' if name else 'names no file or folder'
    with pytest.raises(ValueError, match=says) as e:
        load(name)
    assert is_one_sentence(str(e.value))


def test_a_file_is_no_folder(saved):
    with pytest.raises(ValueError, match='is a file: name the folder'):
        load(saved/'model.safetensors')
    with pytest.raises(ValueError, match='is a file: name a folder'):
        save(everything['Denoiser'](), saved/'model.safetensors')


def test_unknown_precision(saved):
    with pytest.raises(ValueError, match="'half': use auto, float32 or bfloat16"):
        load(saved, 'cpu', 'half')


kinds = dict(Denoiser=Denoiser, Inpainter=Inpainter, CellClassifier=CellClassifier,
             Generator=Generator)


@pytest.mark.parametrize('needed', kinds)
@pytest.mark.parametrize('held', kinds)
def test_the_class_that_is_needed(held, needed, tmp_path):
    "An `Inpainter` is a `Denoiser`; anything else that is not asked for is refused"
    save(everything[held](), tmp_path)
    if issubclass(kinds[held], kinds[needed]):
        assert type(load(tmp_path, 'cpu', kind=kinds[needed])) is kinds[held]
    else:
        words = rf'holds .*\({held}\), and .*{needed}\)? is needed'
        with pytest.raises(ValueError, match=words):
            load(tmp_path, 'cpu', kind=kinds[needed])


def test_a_large_network_is_counted_without_memory(saved, tmp_path):
    "Its weights would fill eight gigabytes"
    folder = shutil.copytree(saved, tmp_path/'folder')
    with_unet(dim=1024, mults=[4, 8])(folder)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match='parameters, and at most 200,000,000'):
        load(folder, 'cpu')
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert after - before < 200_000  # Kilobytes


def test_loading_draws_as_many_random_numbers_as_building(saved):
    "So that a script with one seed gives the same cells as it did"
    torch.manual_seed(0)
    everything['Denoiser']()
    expected = torch.rand(3)
    torch.manual_seed(0)
    load(saved, 'cpu')
    assert torch.equal(torch.rand(3), expected)


# Saving what cannot be loaded, and saves that are cut short

class Private(Denoiser):
    "A class that nobody else has"


def overflow(model):
    model.unet.conv_in.weight.data[0] = 1e5
    return model


not_saved = {
    'class of somebody': (lambda: Private(small), 'A Private cannot be saved'),
    'part of a network': (lambda: UNet(**small), 'A UNet cannot be saved'),
    'too large for half': (lambda: overflow(tiny()), 'conv_in.weight.*not finite'),
    'NumPy number': (lambda: Denoiser(small, data_std=torch.tensor(.5).numpy()),
                     'data_std is .*0.5'),
    'no class name': (lambda: tiny(classes=('round', '')), 'classes'),
}


@pytest.mark.parametrize('case', not_saved)
def test_what_cannot_be_loaded_is_not_saved(case, tmp_path):
    make, reason = not_saved[case]
    with pytest.raises(ValueError, match=reason):
        save(make(), tmp_path/'new')
    assert not (tmp_path/'new').exists()


@pytest.mark.parametrize('where, call', [('fsync', 1), ('fsync', 2), ('replace', 1)])
def test_a_failed_save_changes_nothing(where, call, saved, tmp_path, monkeypatch):
    "The disk is full at the first file or at the second"
    calls = []
    def fail(*args):
        calls.append(args)
        if len(calls) == call: raise OSError(errno.ENOSPC, 'No space left on device')
    folder = shutil.copytree(saved, tmp_path/'folder')
    monkeypatch.setattr(os, where, fail)
    with pytest.raises(OSError, match='No room left to write .*folder/') as e:
        save(tiny(), folder)
    monkeypatch.undo()
    assert is_one_sentence(str(e.value))
    assert sorted(os.listdir(folder)) == ['config.json', 'model.safetensors']
    for file in folder.iterdir():
        assert file.read_bytes() == (saved/file.name).read_bytes()


kill_at = '''
import os, sys
from cell_diffusion.denoiser import Denoiser, save

calls = []
replace = os.replace
def replace_or_die(a, b):
    calls.append(b)
    if len(calls) > int(sys.argv[2]): os._exit(9)
    replace(a, b)
os.replace = replace_or_die
save(Denoiser(dict(dim=8, mults=[1, 2]), data_std=.3, size=16), sys.argv[1])
'''


def test_a_killed_save_never_mixes_two_networks(saved, tmp_path):
    "Before the first rename the old network is there; between the two it is refused"
    for renamed in (0, 1):
        folder = tmp_path/str(renamed)
        save(randomise(Denoiser(small, size=16)), folder)
        done = subprocess.run([sys.executable, '-c', kill_at, folder, str(renamed)])
        assert done.returncode == 9
        if renamed == 0:
            assert load(folder, 'cpu').data_std == 1.
        else:
            with pytest.raises(ValueError, match='not the one saved'):
                load(folder, 'cpu')
        # A new save repairs it
        save(randomise(Denoiser(small, size=16, data_std=.7)), folder)
        assert load(folder, 'cpu').data_std == .7


def flip_bit(file, at):
    data = bytearray(file.read_bytes())
    data[at] ^= 4
    file.write_bytes(data)


@pytest.mark.parametrize('name', everything)
def test_a_flipped_bit_is_found(name, tmp_path):
    save(everything[name](), tmp_path)
    size = (tmp_path/'model.safetensors').stat().st_size
    for at in (-1, -size//10, -size//3):
        flip_bit(tmp_path/'model.safetensors', at)
        with pytest.raises(ValueError, match='checksum has changed|not finite') as e:
            load(tmp_path, 'cpu')
        assert is_one_sentence(str(e.value))
        with pytest.raises(ValueError, match='checksum has changed|not finite'):
            kinds[name].from_pretrained(tmp_path)
        flip_bit(tmp_path/'model.safetensors', at)
    load(tmp_path, 'cpu')


@pytest.mark.parametrize('name', outputs_of_release)
def test_shipped_weights_have_a_checksum(name, tmp_path):
    folder = shutil.copytree(weights_folder/name, tmp_path/name)
    flip_bit(folder/'model.safetensors', -1000)
    with pytest.raises(ValueError, match='checksum has changed'):
        load(folder, 'cpu')


def test_a_damaged_record_does_not_keep_weights_from_loading(saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path/'folder')
    for text in ('', '[', '['*100_000, '[1]', '{"sha256": 5}'):
        (folder/'record.json').write_text(text)
        load(folder, 'cpu')


@pytest.mark.parametrize('name', ['no/such/folder/anywhere', 'someone/some-cells'])
def test_a_repository_that_is_not_there(name, monkeypatch):
    def offline(*args, **kwargs): raise OSError('We have no connection.\nTwo lines.')
    monkeypatch.setattr(denoiser, 'snapshot_download', offline)
    with pytest.raises(ValueError, match=f'{name} is no folder') as e:
        Denoiser.from_pretrained(name)
    assert is_one_sentence(str(e.value))


def test_other_files_of_a_folder_stay(tmp_path):
    (tmp_path/'README.md').write_text('# A card')
    save(everything['Denoiser'](), tmp_path)
    assert (tmp_path/'README.md').read_text() == '# A card'


# Casts

casts = dict(half=torch.half, bfloat16=torch.bfloat16, double=torch.double)


@torch.no_grad()
@pytest.mark.parametrize('name', casts)
@pytest.mark.parametrize('how', ['method', 'to'])
@pytest.mark.parametrize('kind', [Denoiser, Inpainter])
def test_cast_networks_work(kind, how, name):
    "Within the precision of the type, for `forward`, `denoise` and `sample`"
    model = tiny(kind)
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([1, 4])
    label = torch.tensor([0, 2])

    def answers():
        condition = Condition(label, guidance_scale=2.)
        return (model(x, t, label), denoise(model, x, t, condition),
                sample(model, 2, label=[0, 2], steps=3, progress=False))
    expected = answers()
    model = getattr(model, name)() if how == 'method' else model.to(casts[name])
    assert model.dtype == casts[name]
    assert model.schedule.signal.dtype == torch.float32
    for out, exact in zip(answers(), expected):
        assert torch.isfinite(out).all()
        assert (out - exact).abs().mean() < .05*exact.abs().mean()


@torch.no_grad()
@pytest.mark.parametrize('name', casts)
def test_cast_classifiers_work(name):
    x = torch.rand(2, 2, 16, 16)*2 - 1
    classifier = everything['CellClassifier']().to(casts[name])
    assert torch.isfinite(classifier(x)).all()


@torch.no_grad()
@pytest.mark.parametrize('name', casts)
def test_cast_generators_are_refused(name):
    generator = everything['Generator']().to(casts[name])
    with pytest.raises(ValueError, match='call .float()'):
        gan_sample(generator, 2, label=0)


# The estimate, against the formula

def formula(model, xt, t, label=None, guidance_scale=1., interval=None, guide=None,
            known=None, mask=None, show_known=True):
    "weak + scale*(strong - weak), clipped, with the known pixels in their place"
    def estimate(net, label):
        seen = {}
        if mask is not None and isinstance(net, Inpainter) and show_known:
            seen = dict(known=known*~mask, mask=mask.float())
        return net.out_to_x0(net(xt, t, label, **seen), xt, t)

    strong = estimate(model, label)
    weak = estimate(model, None)
    if guide is not None: weak = estimate(guide, label if guide.classes else None)
    scale = torch.full((len(xt),), float(guidance_scale))
    if interval:
        log_snr = model.schedule.log_snr[t]
        scale[(log_snr < interval[0]) | (log_snr > interval[1])] = 1.
    x0 = weak + scale[:, None, None, None]*(strong - weak)
    x0 = x0.clamp(-1, 1)
    return x0 if mask is None else torch.where(mask, x0, known)


def pictures(n, seed=5):
    "Known pixels and masks for `n` images"
    rng = torch.Generator().manual_seed(seed)
    known = torch.rand(n, 3, 8, 8, generator=rng)*2 - 1
    mask = torch.rand(n, 1, 8, 8, generator=rng) > .5
    return known, mask


networks = {
    'plain': lambda: tiny(),
    'plain without classes': lambda: tiny(classes=()),
    'inpainter': lambda: tiny(Inpainter),
    'inpainter without classes': lambda: tiny(Inpainter, classes=()),
}
guides = {
    'no guide': lambda: None,
    'guide': lambda: tiny(seed=1),
    'guide without classes': lambda: tiny(classes=(), seed=2),
    'guide that sees': lambda: tiny(Inpainter, seed=3),
}
labels = [2, 0, 1]
hole = dict(zip(('known', 'mask'), pictures(3)))
fillings = {
    'nothing known': {},
    'shown': hole,
    'known, not shown': hole | dict(show_known=False),
}


def conditions(network):
    "Every allowed choice of class, scale, interval, guide and known pixels"
    grid = itertools.product(
        [None, 'classes'], [0., 1., 2.5], [None, (-1., 3.)], guides, fillings)
    for label, scale, interval, guide, filling in grid:
        if label and 'without' in network: continue
        if scale != 1 and label is None and guide == 'no guide': continue
        yield label, scale, interval, guide, filling


def pairs(choice): return set(itertools.combinations(enumerate(choice), 2))


def in_pairs(choices):
    "Few of these choices, in which each two values meet that meet in all of them"
    choices = list(choices)
    missing = set().union(*map(pairs, choices))
    while missing:
        best = max(choices, key=lambda choice: len(missing & pairs(choice)))
        missing -= pairs(best)
        yield best


def settings_of(label, scale, interval, guide, filling):
    "What `sample` takes for a choice"
    return dict(label=labels if label else None, guidance_scale=scale,
                interval=interval, guide=guides[guide](), **fillings[filling])


def as_tensors(settings):
    label = settings['label']
    return settings | dict(label=None if label is None else torch.tensor(label))


@torch.no_grad()
@pytest.mark.parametrize('network', networks)
def test_denoise_is_the_formula(network):
    model = networks[network]()
    xt = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    t = torch.tensor([0, 3, 5])
    tried = 0
    for choice in conditions(network):
        settings = as_tensors(settings_of(*choice))
        expected = formula(model, xt, t, **settings)
        out = denoise(model, xt, t, Condition(**settings))
        assert torch.allclose(out, expected, atol=1e-5), settings
        tried += 1
    assert tried >= 36


def test_the_formula_can_tell_the_conditions_apart():
    "Each part of a condition changes the answer, so the test above would notice"
    model = tiny(Inpainter)
    xt = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    t = torch.tensor([0, 3, 5])
    known, mask = pictures(3)
    label = torch.tensor(labels)
    guided = dict(label=label, guidance_scale=2.5)
    filled = guided | dict(known=known, mask=mask)
    different = [{}, dict(label=label), guided, guided | dict(interval=(-1., 3.)),
                 guided | dict(guide=tiny(seed=1)), filled,
                 filled | dict(show_known=False)]
    with torch.no_grad():
        outs = [formula(model, xt, t, **kw) for kw in different]
    for a, b in itertools.combinations(outs, 2):
        assert (a - b).abs().max() > 1e-3


def step_of_ddim(schedule, ts, i, x, x0):
    "Song et al. 2021, equation 12, with no fresh noise"
    signal = [*schedule.signal[ts].clamp(min=1e-5), 1.]
    noise = [*schedule.noise[ts], 0.]
    eps = (x - signal[i]*x0)/noise[i]
    return signal[i + 1]*x0 + noise[i + 1]*eps


def written_ddim(ask, x, schedule, rng):
    ts = [5, 3, 1]
    for i, t in enumerate(ts):
        x = step_of_ddim(schedule, ts, i, x, ask(x, t))
    return x


def written_ancestral(ask, x, schedule, rng):
    "Ho et al. 2020, algorithm 2, with the mean and variance of equation 7"
    ab = schedule.alphas_cumprod
    for t in reversed(range(schedule.T)):
        before = ab[t - 1] if t else torch.tensor(1.)
        beta = schedule.betas[t]
        x0 = ask(x, t)
        mean = before.sqrt()*beta/(1 - ab[t])*x0
        mean = mean + schedule.alphas[t].sqrt()*(1 - before)/(1 - ab[t])*x
        variance = beta*(1 - before)/(1 - ab[t])
        x = mean + variance.sqrt()*torch.randn(x.shape, generator=rng)
    return x


written = dict(ddim=written_ddim, ancestral=written_ancestral)


def every_second(schedule, steps): return torch.tensor([5, 3, 1])


def with_leak(ask, noise, schedule):
    "The first estimate, asked of noise, leaks into it and is the first answer"
    last = schedule.T - 1
    signal = schedule.signal[last]
    spread = schedule.noise[last]
    answers = [ask(spread*noise, last)]
    begin = signal*answers[0] + spread*noise

    def ask_on(x, t): return answers.pop() if answers else ask(x, t)
    return begin, ask_on


@torch.no_grad()
@pytest.mark.parametrize('sampler', written)
@pytest.mark.parametrize('network', networks)
def test_sample_is_the_formula(network, sampler):
    "Each two values of a condition, by two samplers whose steps are written out here"
    model = networks[network]()
    for choice in in_pairs(conditions(network)):
        settings = settings_of(*choice)
        rng = torch.Generator().manual_seed(7)
        noise = torch.randn(3, 3, 8, 8, generator=rng)

        def ask(x, t):
            t = torch.full((3,), t)
            return formula(model, x, t, **as_tensors(settings))
        begin, ask_on = with_leak(ask, noise, model.schedule)
        expected = written[sampler](ask_on, begin, model.schedule, rng)
        if settings.get('mask') is not None:
            expected = torch.where(settings['mask'], expected, settings['known'])
        out = sample(model, 3, seed=7, steps=3, sampler=sampler,
                     spacing=every_second, progress=False, **settings)
        assert torch.allclose(out, expected, atol=1e-4), settings


def test_the_order_of_arguments_does_not_matter():
    known, mask = pictures(3)
    model = tiny(Inpainter)
    parts = [dict(label=labels, guidance_scale=2.), dict(known=known, mask=mask),
             dict(guide=tiny(seed=1), interval=(-1., 3.))]
    outs = []
    for order in itertools.permutations(parts):
        settings = {k: v for part in order for k, v in part.items()}
        outs.append(sample(model, steps=3, progress=False, **settings))
    assert all(torch.equal(outs[0], other) for other in outs[1:])


def test_small_batches_change_nothing():
    known, mask = pictures(3)
    settings = dict(label=labels, guidance_scale=2., known=known, mask=mask, steps=3,
                    progress=False)
    model = tiny(Inpainter)
    whole = sample(model, **settings)
    assert torch.allclose(sample(model, bs=2, **settings), whole, atol=1e-5)


def test_one_for_all():
    "One label, one image and one mask stand for as many as are generated"
    known, mask = pictures(1)
    model = tiny(Inpainter)
    settings = dict(steps=3, progress=False)
    one = sample(model, 3, label='lobed', known=known, mask=mask, **settings)
    each = sample(model, label=[2]*3, known=known.repeat(3, 1, 1, 1),
                  mask=mask.repeat(3, 1, 1, 1), **settings)
    assert torch.equal(one, each)


# Conditions that cannot be honoured: one row each

known, mask = pictures(2)
two = dict(known=known, mask=mask)
refused = {
    'unknown class': (tiny, dict(label='square'), 'Unknown class .square.: use one of'),
    'number too large': (tiny, dict(label=3), 'Unknown class 3.*0..2'),
    'number below 0': (tiny, dict(label=-1), 'Unknown class -1'),
    'too many labels': (tiny, dict(n=2, label=labels), '3 labels for 2 images'),
    'scale without class': (tiny, dict(guidance_scale=2.), 'name one with label'),
    'scale 0 without class': (tiny, dict(guidance_scale=0.), 'name one with label'),
    'class, classless': (networks['plain without classes'], dict(label=0),
                         'trained without classes'),
    'guided, classless': (networks['plain without classes'],
                          dict(label='round', guidance_scale=2.),
                          'trained without classes'),
    'scale NaN': (tiny, dict(label=0, guidance_scale=float('nan')), 'scale=nan'),
    'scale infinite': (tiny, dict(label=0, guidance_scale=float('inf')), 'scale=inf'),
    'interval reversed': (tiny, dict(label=0, guidance_scale=2., interval=(3., -1.)),
                          'the lowest and'),
    'interval empty': (tiny, dict(label=0, guidance_scale=2., interval=(1., 1.)),
                       'the lowest and'),
    'interval of nothing': (tiny, dict(label=0, interval=()), 'the lowest'),
    'interval of text': (tiny, dict(label=0, interval='ab'), 'the lowest and'),
    'interval of one': (tiny, dict(label=0, interval=3), 'the lowest and'),
    'known, no mask': (tiny, dict(known=known), 'both the known pixels and the mask'),
    'mask, no known': (tiny, dict(mask=mask), 'both the known pixels and the mask'),
    'mask too small': (tiny, dict(known=known, mask=mask[..., :4]), 'fills images'),
    'mask of two channels': (tiny, dict(known=known, mask=mask.expand(2, 2, 8, 8)),
                             'fills images'),
    'image too large': (tiny, dict(known=torch.zeros(2, 3, 16, 16), mask=mask),
                        'fills images'),
    'image is grey': (tiny, dict(known=known[:, :1], mask=mask), 'fills images'),
    'more images than n': (tiny, dict(n=1, **two), 'fills images'),
    'guide of another size': (tiny, dict(guide=tiny(size=16)), 'guide must have'),
    'guide, other schedule': (tiny, dict(guide=tiny(schedule='linear')),
                              'guide must have'),
    'guide, other T': (tiny, dict(guide=tiny(T=7)), 'guide must have'),
    'sampler unknown': (tiny, dict(sampler='magic'), 'Unknown sampler.*heun'),
    'spacing unknown': (tiny, dict(spacing='odd'), 'Unknown spacing.*karras'),
    'no steps': (tiny, dict(steps=0), 'steps=. should be a whole number from 1 to 6'),
    'too many steps': (tiny, dict(steps=7), 'steps=7 should be .* from 1 to 6'),
    'RePaint, no mask': (tiny, dict(sampler='repaint'), 'fills holes'),
    'RePaint, jump 0': (tiny, dict(sampler='repaint', jump=0, **two), 'jump'),
}


@pytest.mark.parametrize('case', refused)
def test_impossible_conditions(case):
    make, settings, reason = refused[case]
    with pytest.raises(ValueError, match=reason) as e:
        sample(make(), **dict(n=2, steps=3, progress=False) | settings)
    assert is_one_sentence(str(e.value))


# Samplers

fills = dict(known=known, mask=mask)
all_names = list(samplers)


@pytest.mark.parametrize('kind', [Denoiser, Inpainter])
@pytest.mark.parametrize('sampler', all_names)
def test_known_pixels_come_out_to_the_bit(sampler, kind):
    x = sample(tiny(kind), 2, sampler=sampler, steps=3, progress=False, **fills)
    assert torch.equal(x.masked_fill(mask, 0), known.masked_fill(mask, 0))
    assert torch.isfinite(x).all()


options = [(name, {}) for name in all_names] + [
    ('ddim', dict(eta=1.)), ('repaint', dict(jump=2, repeats=3)),
    ('repaint', dict(repeats=1))]


@pytest.mark.parametrize('steps', [1, 2, 5, 6])
@pytest.mark.parametrize('sampler,more', options)
def test_nfe_is_the_number_of_calls(sampler, more, steps):
    model = tiny(schedule='log_snr')
    calls = []
    model.unet.register_forward_hook(lambda *args: calls.append(1))
    filling = fills if samplers[sampler].fills_holes else {}
    sample(model, 2, sampler=sampler, steps=steps, spacing='time', progress=False,
           **more, **filling)
    assert len(calls) == nfe(sampler, steps, model.schedule.T, **more)


def test_a_function_as_sampler():
    def in_one_call(denoise, x, schedule, ts, rng, callback):
        return denoise(x, schedule.T - 1)
    model = tiny()
    out = sample(model, 3, label=labels, sampler=in_one_call, progress=False, steps=3)
    noise = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        begin = model.noisiest(noise)
        expected = formula(model, begin, torch.full((3,), 5), torch.tensor(labels))
    assert torch.allclose(out, expected, atol=1e-5)


every_name = '''
import torch
from cell_diffusion import sampling

model = sampling.Denoiser(dict(dim=8, mults=[1]), T=6, size=8)
fills = dict(known=torch.zeros(1, 3, 8, 8), mask=torch.ones(1, 1, 8, 8, dtype=bool))
for name, sampler in sampling.samplers.items():
    filling = fills if sampler.fills_holes else {}
    x = sampling.sample(model, 1, sampler=name, steps=3, progress=False, **filling)
    print(name, tuple(x.shape))
'''


def test_every_sampler_works_whatever_was_imported():
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', every_name],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f'{name} (1, 3, 8, 8)' for name in all_names]


def test_ancestral_sampling_ignores_steps():
    "Also on a schedule with fewer timesteps than `sample` takes by default"
    settings = dict(sampler='ancestral', progress=False)
    few = sample(tiny(), 2, steps=3, **settings)
    assert torch.equal(sample(tiny(), 2, **settings), few)


def test_training_mode_comes_back():
    model = tiny().train()
    sample(model, 1, steps=2, progress=False)
    assert model.training


def tiny_denoiser(**settings):
    return Denoiser(dict(dim=8, mults=[1, 2]), **{**dict(size=16, T=50), **settings})


@pytest.mark.parametrize('settings, says', [
    (dict(data_std=0.), 'data_std'), (dict(data_std=-.5), 'data_std'),
    (dict(data_mean=(0., 0.)), 'channels'), (dict(size=15), 'multiple of 2')])
def test_settings_without_sense_are_refused(settings, says):
    with pytest.raises(ValueError, match=says):
        tiny_denoiser(**settings)


def test_requests_without_sense_are_refused():
    model = tiny_denoiser(classes=('a', 'b'))
    quick = dict(steps=1, progress=False)
    with pytest.raises(ValueError, match='n=0 should be'):
        sample(model, 0, **quick)
    with pytest.raises(ValueError, match="no option 'eta'"):
        sample(model, 1, eta=1., **quick)
    other = tiny_denoiser(classes=('b', 'a'))
    with pytest.raises(ValueError, match='same classes in the same order'):
        sample(model, 1, label='a', guide=other, guidance_scale=2., **quick)


def test_a_refused_warm_start_changes_nothing():
    model = tiny_denoiser()
    before = {name: w.clone() for name, w in model.state_dict().items()}
    trained = Denoiser(dict(dim=8, mults=[1, 3]), size=16, T=50)
    with pytest.raises(ValueError, match='Cannot start'):
        warm_start(model, trained)
    assert all(torch.equal(w, before[n]) for n, w in model.state_dict().items())


# Guidance that is stored with the weights

def _with_guide(folder, scale=2., interval=(-3., 3.)):
    "Two small networks with random weights, one the guide of the other, saved"
    torch.manual_seed(0)
    networks = [Denoiser(dict(dim=16, mults=[1, 2]), size=16, classes=('a', 'b'))
                for _ in range(2)]
    for p in [p for net in networks for p in net.parameters()]:
        torch.nn.init.normal_(p, std=.05)
    model, guide = networks
    save(set_guidance(model.eval(), scale, interval, guide.eval()), folder)
    return model


def test_stored_guidance_is_what_sample_uses(tmp_path):
    _with_guide(tmp_path/'w')
    model = load(tmp_path/'w', 'cpu', 'float32')
    few = dict(n=3, label='a', steps=4, progress=False)
    stored = sample(model, **few)
    given = dict(guidance_scale=2., interval=(-3, 3), guide=model.guide)
    assert torch.equal(stored, sample(model, **few, **given))
    assert not torch.allclose(stored, sample(model, guidance_scale=1, **few))
    assert not torch.allclose(stored, sample(model, guidance_scale=2., **few))


def test_a_guide_is_no_part_of_the_network_but_moves_with_it(tmp_path):
    model = _with_guide(tmp_path/'w')
    assert not [name for name in model.state_dict() if 'guide' in name]
    again = load(tmp_path/'w', 'cpu', 'float32')
    assert weights_hash(again) == weights_hash(model)
    assert again.double().guide.dtype == torch.float64


def test_without_a_class_stored_guidance_towards_it_is_left_out():
    model = Denoiser(dict(dim=16, mults=[1, 2]), size=16, classes=('a', 'b'))
    set_guidance(model, 3.)
    few = dict(n=2, steps=2, progress=False)
    assert torch.equal(sample(model, **few), sample(model, guidance_scale=1, **few))


def test_another_guide_is_refused(tmp_path):
    _with_guide(tmp_path/'w')
    other = load(tmp_path/'w'/'guide', 'cpu')
    with torch.no_grad():
        next(other.parameters()).add_(1)
    save(other, tmp_path/'w'/'guide')
    with pytest.raises(ValueError, match='guide is not the one'):
        load(tmp_path/'w')


def test_a_guide_of_a_guide_and_one_of_another_size_are_refused(tmp_path):
    model = _with_guide(tmp_path/'w')
    with pytest.raises(ValueError, match='guide of its own'):
        set_guidance(load(tmp_path/'w'/'guide', 'cpu'), 2., guide=model)
    with pytest.raises(ValueError, match='the size'):
        set_guidance(model, 2., guide=Denoiser(dict(dim=16, mults=[1, 2]), size=32))
    (tmp_path/'w'/'guide'/'config.json').unlink()
    (tmp_path/'w'/'guide'/'model.safetensors').unlink()
    (tmp_path/'w'/'guide').rmdir()
    os.symlink(tmp_path/'w', tmp_path/'w'/'guide')
    with pytest.raises(ValueError, match='guide of its own'):
        load(tmp_path/'w')


def test_a_guide_comes_with_its_network_from_the_hub(tmp_path, monkeypatch):
    model = _with_guide(tmp_path/'there')
    def fetch(name, allow_patterns, **kwargs):
        for file in (tmp_path/'there').rglob('*.*'):
            path = file.relative_to(tmp_path/'there').as_posix()
            if not any(fnmatch(path, pattern) for pattern in allow_patterns): continue
            (tmp_path/'here'/path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, tmp_path/'here'/path)
        return tmp_path/'here'
    monkeypatch.setattr(denoiser, 'snapshot_download', fetch)
    again = Denoiser.from_pretrained('somebody/cells')
    assert weights_hash(again) == weights_hash(model)


def test_a_network_and_its_guide_are_written_together(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(denoiser, 'write_together', written.append)
    _with_guide(tmp_path/'w')
    names = [path.relative_to(tmp_path/'w').as_posix() for path in written[0]]
    assert len(written) == 1 and sorted(names) == [
        'config.json', 'guide/config.json', 'guide/model.safetensors',
        'model.safetensors']
