"Two runs in one folder, and runs that are killed by the system"
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
import kill_runs
import numpy as np
import pytest
import torch
from common import root
from rare_cells import some_cells
from cell_diffusion.augmentation import balance, generator_dls
from cell_diffusion.cli import build
from cell_diffusion.data import cell_dls
from cell_diffusion.imageio import save_image
from cell_diffusion.recipes import train_model, train_reference_classifier
from cell_diffusion.records import locked
from cell_diffusion.studies import augmentation
from cell_diffusion.studies.augmentation import AugmentationStudy, Job
from cell_diffusion.training import (
    Checkpoint, diffusion_learner, fit_for, pixel_statistics,
)


@pytest.fixture
def held(tmp_path):
    "A folder in which another run is at work, with a file of that run"
    folder = tmp_path/'run'
    other = locked(folder, 'training')
    with ThreadPoolExecutor(1) as threads:
        threads.submit(other.__enter__).result()
        (folder/'checkpoint.pt').write_text('of the other run')
        yield folder
        threads.submit(other.__exit__, None, None, None).result()


@pytest.mark.parametrize('train', [
    partial(train_model, size=32, n=64, epochs=1, progress=False),
    partial(train_reference_classifier, size=32, n=64, epochs=1, progress=False)])
def test_a_second_training_is_refused_at_once(held, train):
    said = f'Another run is training in {held}: wait until it has ended, or name'
    with pytest.raises(BlockingIOError, match=said):
        train(out=held)
    assert (held/'checkpoint.pt').read_text() == 'of the other run'
    assert len(list(held.iterdir())) == 2


def test_a_second_balance_is_refused(held, tmp_path):
    cells = some_cells((12, 12, 5), size=28, channels=3)
    for i, (image, k) in enumerate(zip(cells.images, cells.labels)):
        folder = tmp_path/'cells'/cells.names[k]
        folder.mkdir(parents=True, exist_ok=True)
        save_image(folder/f'{i}.png', image, {})
    (held/'checkpoint.pt').unlink()
    with pytest.raises(BlockingIOError, match='Another run is generating cells in'):
        balance(tmp_path/'cells', held, cache=False, minutes=.01, progress=False)
    assert [f.name for f in held.iterdir()] == ['.lock']


@pytest.mark.parametrize('kind', ['ddpm', 'gan'])
def test_a_generator_of_a_study_goes_on_after_a_kill(tmp_path, monkeypatch, kind):
    "Killed after a checkpoint, it makes the same cells, and leaves no checkpoint"
    def study(out):
        return AugmentationStudy(
            some_cells((24, 16, 8, 6)), out, (kind,), folds=2, replicates=1, steps=3,
            ddpm=dict(dim=8, sampling_steps=3, bs=8), progress=False, epochs=2,
            gan=dict(dim=4, disc_dim=4, bs=8))
    whole = Job(study(tmp_path/'whole'), 0, 0).pool(kind)

    save = augmentation.fit_for.__globals__['Checkpoint'].save
    def dying(self):
        save(self)
        raise KeyboardInterrupt
    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr(augmentation.fit_for.__globals__['Checkpoint'], 'save', dying)
        Job(study(tmp_path/'killed'), 0, 0).pool(kind)
    left, = (tmp_path/'killed'/'work').glob('*.pt')
    assert torch.load(left)['epochs'] == 1
    killed = Job(study(tmp_path/'killed'), 0, 0).pool(kind)
    assert np.array_equal(whole.images, killed.images)
    assert {f.name for f in (tmp_path/'killed'/'work').iterdir()} == {
        f'{kind}-f0-r0', f'{kind}-f0-r0-rare.npz'}
    assert whole.manifest['weights'] == killed.manifest['weights']


def leaves(state, place=''):
    "What a checkpoint holds: pairs of place and value, of tensors the layout and bytes"
    if torch.is_tensor(state):
        data = state.contiguous().flatten().view(torch.uint8).numpy().tobytes()
        yield place, (state.dtype, state.shape, state.stride(), data)
    elif isinstance(state, (dict, list, tuple)):
        pairs = state.items() if isinstance(state, dict) else enumerate(state)
        yield place, (type(state), len(state))
        for key, value in pairs:
            yield from leaves(value, f'{place}/{key}')
    else:
        yield place, (type(state), state)


@pytest.mark.parametrize('saves, every', [(1, 60.), (2, 60.), (2, 0.), (5, 0.)])
def test_a_killed_training_leaves_the_same_checkpoint(tmp_path, monkeypatch, saves,
                                                      every):
    "Killed after so many writings, each at the end of an epoch or before a batch"
    cells = some_cells((16, 8))
    def train(file):
        dls = generator_dls(cells.images, cells.labels, cells.names, bs=8)
        learn = diffusion_learner(dls, classes=True, dim=4, patch=1)
        fit_for(learn, epochs=3, checkpoint=file, progress=False)
        return dict(leaves(dict(torch.load(file), seconds=0)))
    monkeypatch.setattr(Checkpoint.__init__, '__defaults__', (None, every))
    whole = train(tmp_path/'whole.pt')

    save = Checkpoint.save
    left = iter(range(saves)[::-1])
    def dying(self):
        save(self)
        if next(left) == 0: raise KeyboardInterrupt
    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr(Checkpoint, 'save', dying)
        train(tmp_path/'killed.pt')
    assert train(tmp_path/'killed.pt') == whole


def test_cells_from_the_cache_give_the_same_network_to_the_last_digit(tmp_path,
                                                                     monkeypatch):
    "A run that was killed reads its cells from the cache, and not from the files"
    monkeypatch.setenv('CELL_DIFFUSION_CACHE', str(tmp_path/'cache'))
    cells = some_cells((24, 12), size=28, channels=3)
    for i, (image, k) in enumerate(zip(cells.images, cells.labels)):
        folder = tmp_path/'cells'/cells.names[k]
        folder.mkdir(parents=True, exist_ok=True)
        save_image(folder/f'{i}.png', image, {})
    first = cell_dls('folder', tmp_path/'cells', size=32, bs=8)
    assert list((tmp_path/'cache'/'decoded').iterdir())
    again = cell_dls('folder', tmp_path/'cells', size=32, bs=8)
    assert first.cells.images.strides == again.cells.images.strides
    assert pixel_statistics(first) == pixel_statistics(again)


@pytest.mark.parametrize('name', sorted(set(kill_runs.commands) - {'download'}))
def test_the_script_that_kills_knows_the_command_line(name, tmp_path):
    command, *words = kill_runs.commands[name]
    given = [str(tmp_path) if word == 'CELLS' else word for word in words]
    build(command).make_context(command, [*given, '--out', 'run'])


@pytest.mark.slow
def test_the_script_that_kills(tmp_path):
    "One kill of each of two commands; `tools/kill_runs.py` makes 30 by default"
    command = [sys.executable, root/'tools'/'kill_runs.py', 'classifier', 'download',
               '--kills', '1', '--every', '.5']
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count('ended, equal') == 2
