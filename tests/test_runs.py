"""Runs that are killed anywhere go on to the bit; what is damaged is named.

Every training loop of the library is killed several times within its epochs. Its last
checkpoint must hold the same numbers as that of a run that was never killed.
"""
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
    train_classifier(cells(), epochs=2, dim=4, precision='float32', checkpoint=file)

def by_steps(file):
    "On a `StepLoader` with random shifts, as in the study of augmentation"
    images = decode(torch.cat([x for x, _ in cells().valid])).numpy()
    labels = np.arange(len(images)) % 3
    dls = step_dls(images, labels, ['a', 'b', 'c'], 8, 4, transform=affine_jitter)
    train_classifier(dls, steps=8, dim=4, precision='float32', checkpoint=file,
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
    for batches in (1, 2, 3, 2, 2):
        kill(batches)
        torch.manual_seed(999)
        try:
            loop(tmp_path/'killed.pt')
        except KeyboardInterrupt:
            steps.append(torch.load(tmp_path/'killed.pt')['steps'])
        else:
            break
    kill(None)
    loop(tmp_path/'killed.pt')
    assert len(steps) > 2 and steps[0] == 0 and 0 < steps[1] < steps[2]

    whole, killed = (torch.load(tmp_path/f'{name}.pt') for name in ('whole', 'killed'))
    assert whole['steps'] >= 5 and not same(whole, killed)
    assert {f.name for f in tmp_path.iterdir()} == {'whole.pt', 'killed.pt'}

    # Nothing is left to train
    kill(1)
    loop(tmp_path/'killed.pt')
