"""Runs that are killed anywhere go on to the bit; what is damaged is named.

Every training loop of the library is killed several times within its epochs. Its last
checkpoint must hold the same numbers as that of a run that was never killed.
"""
import errno
import os
import numpy as np
import pytest
import torch
from fastai.learner import Recorder
from cell_diffusion import training
from cell_diffusion.classifier import train_classifier
from cell_diffusion.core import decode
from cell_diffusion.data import cell_dls, step_dls
from cell_diffusion.gan import gan_learner
from cell_diffusion.inpainting import inpainting_learner
from cell_diffusion.recipes import save_grid, train_and_save_classifier
from cell_diffusion.training import Checkpoint, diffusion_learner, fit_for
from cell_diffusion.transforms import affine_jitter

small = dict(dim=8, mults=(1, 2), precision='float32')

def cells():
    return cell_dls('simulated', size=28, bs=16, n=96, cache=False)

def ddpm(file):
    learn = diffusion_learner(cells(), 'min-snr', classes=True, **small,
                              unet=dict(dropout=.2))
    fit_for(learn, epochs=2, checkpoint=file, progress=False)

def minutes(file):
    learn = diffusion_learner(cells(), **small)
    fit_for(learn, minutes=1.1/60, checkpoint=file, progress=False)

def inpainting(file):
    learn = inpainting_learner(cells(), **small)
    fit_for(learn, epochs=2, checkpoint=file, progress=False)

def gan(file):
    learn = gan_learner(cells(), dim=4, disc_dim=4, latent=8, precision='float32')
    fit_for(learn, epochs=2, checkpoint=file, progress=False)

def classifier(file):
    train_classifier(cells(), epochs=2, dim=8, precision='float32', checkpoint=file)

def by_steps(file):
    "On a `StepLoader` with random shifts, as in the study of augmentation"
    images = decode(torch.cat([x for x, _ in cells().valid])).numpy()
    labels = np.arange(len(images)) % 3
    dls = step_dls(images, labels, ['a', 'b', 'c'], 8, 4, transform=affine_jitter)
    train_classifier(dls, steps=8, dim=8, precision='float32', checkpoint=file,
                     class_weights=[1., 2., 3.])

def another(file):
    train_classifier(cells(), steps=5, network='cell', precision='bfloat16',
                     checkpoint=file)

loops = [ddpm, minutes, inpainting, gan, classifier, by_steps, another]

@pytest.fixture
def kill(monkeypatch):
    "Kill training after so many more batches; None for never"
    left = dict(batches=None)
    after_batch = Recorder.after_batch
    def count(self):
        after_batch(self)
        if left['batches'] is None or not self.training: return
        left['batches'] -= 1
        if not left['batches']: raise KeyboardInterrupt
    monkeypatch.setattr(Recorder, 'after_batch', count)
    return lambda batches: left.update(batches=batches)

@pytest.fixture
def clock(monkeypatch):
    "A batch takes an eighth of a second by this clock"
    class Clock:
        now = 0.
        def tick(self):
            self.now += .125
            return self.now
    monkeypatch.setattr(training.time, 'perf_counter', Clock().tick)

def write_before_each_batch(monkeypatch):
    monkeypatch.setattr(Checkpoint.__init__, '__defaults__', (None, 0.))

def same(a, b, where=''):
    "Where two states differ"
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        keys = [k for k in a if k != 'seconds']
        return [d for k in keys for d in same(a[k], b[k], f'{where}.{k}')]
    if isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        return [d for i, (x, y) in enumerate(zip(a, b))
                for d in same(x, y, f'{where}[{i}]')]
    equal = torch.equal(a, b) if torch.is_tensor(a) else a == b or a != a and b != b
    return [] if equal else [where]

@pytest.mark.parametrize('loop', loops, ids=lambda f: f.__name__)
def test_a_killed_run_goes_on_to_the_bit(loop, kill, clock, monkeypatch, tmp_path):
    loop(tmp_path/'whole.pt')
    write_before_each_batch(monkeypatch)
    steps = []
    for batches in (2, 3, 2):
        kill(batches)
        torch.manual_seed(999)
        with pytest.raises(KeyboardInterrupt):
            loop(tmp_path/'killed.pt')
        steps.append(torch.load(tmp_path/'killed.pt')['steps'])
    kill(None)
    loop(tmp_path/'killed.pt')
    assert steps == [1, 3, 4]

    whole, killed = (torch.load(tmp_path/f'{name}.pt') for name in ('whole', 'killed'))
    assert whole['steps'] >= 5 and not same(whole, killed)
    assert {f.name for f in tmp_path.iterdir()} == {'whole.pt', 'killed.pt'}

    # Nothing is left to train
    kill(1)
    loop(tmp_path/'killed.pt')

def test_a_killed_classifier_recipe_ends_with_the_same_weights(kill, monkeypatch,
                                                               tmp_path):
    def train(folder):
        train_and_save_classifier(cells(), folder, epochs=2, dim=8)
    train(tmp_path/'whole')
    write_before_each_batch(monkeypatch)
    for batches in (3, 4):
        kill(batches)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path/'killed')
    kill(None)
    train(tmp_path/'killed')
    names = sorted(file.name for file in (tmp_path/'whole').iterdir())
    assert names == ['README.md', 'checkpoint.pt', 'config.json', 'model.safetensors',
                     'record.json']
    assert names == sorted(file.name for file in (tmp_path/'killed').iterdir())
    weights = [(tmp_path/name/'model.safetensors').read_bytes()
               for name in ('whole', 'killed')]
    assert weights[0] == weights[1]

# Files that are damaged, foreign, old, or cannot be written

def sentence(error):
    "The message of an error, which is one sentence"
    text = str(error.value)
    assert '\n' not in text and text.endswith('.') and 'occured' not in text
    return text

@pytest.fixture(scope='module')
def run(tmp_path_factory):
    "The checkpoint of a whole run, not to be changed"
    file = tmp_path_factory.mktemp('run')/'checkpoint.pt'
    classifier(file)
    return file

def cut(file): file.write_bytes(file.read_bytes()[:-5000])

def empty(file): file.write_bytes(b'')

def text(file): file.write_text('not a checkpoint')

def flip(file):
    data = bytearray(file.read_bytes())
    data[len(data)//3] ^= 4
    file.write_bytes(data)

def weights_alone(file): torch.save(torch.load(file)['model'], file)

def a_list(file): torch.save([1, 2], file)

def a_program(file): torch.save(print, file)

damages = [cut, empty, text, flip, weights_alone, a_list, a_program]

@pytest.mark.parametrize('damage', damages, ids=lambda f: f.__name__)
def test_a_damaged_checkpoint_is_named(damage, run, tmp_path):
    file = tmp_path/'checkpoint.pt'
    file.write_bytes(run.read_bytes())
    damage(file)
    damaged = file.read_bytes()
    with pytest.raises(ValueError, match='is damaged, or no checkpoint') as e:
        classifier(file)
    assert str(file) in sentence(e) and file.read_bytes() == damaged

def test_the_checkpoint_of_another_network_is_named(run, tmp_path):
    file = tmp_path/'checkpoint.pt'
    file.write_bytes(run.read_bytes())
    learn = diffusion_learner(cells(), **small)
    with pytest.raises(ValueError, match='another network') as e:
        fit_for(learn, epochs=2, checkpoint=file, progress=False)
    assert str(file) in sentence(e)

@pytest.mark.parametrize('loop', [ddpm, gan, classifier], ids=lambda f: f.__name__)
def test_checkpoints_of_older_versions(loop, kill, monkeypatch, tmp_path):
    "They lack what was added, and go on from their last whole epoch"
    file = tmp_path/'old.pt'
    kill(5) # In the second epoch
    with pytest.raises(KeyboardInterrupt):
        loop(file)
    state = torch.load(file)
    assert state['epochs'] == 1 and state['batches'] == 0
    for key in ('batches', 'ema_steps', 'random', 'recorder'):
        del state[key]
    torch.save(state, file)
    kill(None)
    loop(file)
    assert torch.load(file)['steps'] == 8

@pytest.mark.parametrize('loop', [minutes, gan, classifier], ids=lambda f: f.__name__)
def test_a_full_disk(loop, clock, monkeypatch, tmp_path):
    "One sentence with the file; the last good checkpoint stays, and nothing else"
    file = tmp_path/'checkpoint.pt'
    write_before_each_batch(monkeypatch)
    good = []
    fsync = os.fsync
    def full(handle):
        if len(good) == 3: raise OSError(errno.ENOSPC, 'No space left on device')
        fsync(handle)
        good.append(1)
    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(OSError, match='No room left') as e:
        loop(file)
    assert str(file) in sentence(e)
    assert [f.name for f in tmp_path.iterdir()] == ['checkpoint.pt']
    assert torch.load(file)['steps'] == 2

def test_a_picture_is_written_whole_or_not_at_all(monkeypatch, tmp_path):
    model = diffusion_learner(cells(), **small).model.eval()
    file = tmp_path/'samples.png'
    save_grid(model, file, 1, 2, steps=1, progress=False)
    before = file.read_bytes()
    def full(handle): raise OSError(errno.ENOSPC, 'No space left on device')
    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(OSError, match='No room left') as e:
        save_grid(model, file, 1, 2, steps=1, seed=1, progress=False)
    assert str(file) in sentence(e)
    assert file.read_bytes() == before and len(list(tmp_path.iterdir())) == 1

def test_what_a_kill_left_half_written_is_removed(run, tmp_path):
    names = ['checkpoint.pt.01234567.part', 'notes.part',
             'other.pt.01234567.cell-diffusion.part']
    for name in ['checkpoint.pt.01234567.cell-diffusion.part', *names]:
        (tmp_path/name).write_text('half')
    classifier(tmp_path/'checkpoint.pt')
    left = ['checkpoint.pt', *names]
    assert sorted(f.name for f in tmp_path.iterdir()) == left

# Losses that are no number

@pytest.fixture
def diverge(monkeypatch):
    "The third step makes a weight NaN"
    after_batch = Recorder.after_batch
    def spoil(self):
        after_batch(self)
        if self.learn.train_iter == 3: next(self.model.parameters()).data[0] = torch.nan
    monkeypatch.setattr(Recorder, 'after_batch', spoil)

@pytest.mark.parametrize('loop', [ddpm, gan, classifier, another],
                         ids=lambda f: f.__name__)
def test_the_first_loss_that_is_no_number_ends_the_run(loop, diverge, monkeypatch,
                                                       tmp_path):
    "With step and learning rate; the checkpoint holds the last finite weights"
    file = tmp_path/'checkpoint.pt'
    write_before_each_batch(monkeypatch)
    words = r'The loss became nan after 3 steps: lower the learning rate \(it was'
    with pytest.raises(FloatingPointError, match=words) as e:
        loop(file)
    sentence(e)
    state = torch.load(file)
    assert state['steps'] == 2
    assert all(t.isfinite().all() for t in state['model'].values())

def test_the_bar_moves_at_once_and_ends_before_an_error(diverge, capsys):
    learn = diffusion_learner(cells(), **small)
    with pytest.raises(FloatingPointError):
        fit_for(learn, epochs=2)
    shown = capsys.readouterr().err
    assert 'training   0%' in shown and shown.endswith('\n')
    assert learn.ema.averaged is not None and shown.count('\n') == 1

def test_a_penalty_or_a_generators_loss_counts_too(monkeypatch):
    "Both were passed over in silence when they were not finite"
    for name in ('penalty', 'generator_loss'):
        learn = gan_learner(cells(), dim=4, disc_dim=4, latent=8, precision='float32')
        monkeypatch.setattr(learn.noise, name, lambda *args: torch.tensor(torch.inf))
        with pytest.raises(FloatingPointError, match='The loss became inf after 0'):
            fit_for(learn, epochs=1, progress=False)
