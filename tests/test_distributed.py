"Two processes on the CPU train one model, as accelerate and `torchrun` start them"
import json
import os
import subprocess
import sys
import numpy as np
import pytest
import torch
from PIL import Image
from common import root

pytest.importorskip('accelerate')
pytestmark = pytest.mark.skipif(not hasattr(os, 'fork'), reason="needs fork")


def write_cells(to):
    "Two classes of 20 images of random pixels: 28 cells to train on"
    rng = np.random.default_rng(0)
    for name in ('a', 'b'):
        (to/'cells'/name).mkdir(parents=True)
        for i in range(20):
            pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(to/'cells'/name/f'{i}.png')


def environment(folder):
    return dict(os.environ, PYTHONPATH=str(root), OMP_NUM_THREADS='1',
                CELL_DIFFUSION_DEVICE='cpu', CELL_DIFFUSION_CACHE=str(folder/'cache'))


def train_together(to):
    "Runs every function of `two_processes.py`"
    write_cells(to)
    program = [sys.executable, str(root/'tests'/'two_processes.py'), str(to)]
    subprocess.run(program, env=environment(to), check=True, timeout=1800)


@pytest.fixture(scope='module')
def folder(once):
    "Cells, and what all functions of `two_processes.py` left beside them"
    return once('two_processes', train_together)


@pytest.fixture(scope='module')
def ended(folder):
    "How the processes of each function ended"
    return json.loads((folder/'ended.json').read_text())


def checkpoint(folder, name):
    return torch.load(folder/name/'checkpoint.pt', weights_only=True)


def said(folder, name, rank):
    "The lines of a process, without warnings of Python"
    lines = (folder/f'{name}-{rank}.txt').read_text().splitlines()
    return [line for line in lines if line.startswith(('cell-diffusion', 'Connection'))]


def pictures(images): return {x.numpy().tobytes() for x in images}


def test_learners_of_a_script(ended, folder):
    assert ended['loaders'] == [0, 0]
    a, b = (torch.load(folder/f'loaders-{rank}.pt') for rank in (0, 1))

    # Each process deals out its own half of every batch
    first, second, every = map(pictures, (a['epoch'], b['epoch'], a['all']))
    assert len(first) == len(second) == 14 and len(every) == 28
    assert first | second == every

    # Different cells, and yet one model: gradients were averaged
    assert torch.equal(a['after'], b['after'])
    assert not torch.equal(a['after'], a['before'])

    # A budget of minutes ends for both at one step, and one of them writes
    assert a['budget'] == b['budget'] and a['budget'][0]
    assert [f.name for f in (folder/'fitted').iterdir()] == ['checkpoint.pt']

    # What is not training is whole, in each process, and only once
    assert a['valid'] == b['valid']
    for one in (a, b):
        assert torch.equal(one['labels'], one['test'])


@pytest.mark.parametrize('one, two, steps', [
    ('one', 'two', 8), ('one-filling', 'filling', 2), ('one', 'killed-first', 8)])
def test_two_processes_do_the_steps_of_one(ended, folder, one, two, steps):
    "Also where they were killed, and one process alone went on"
    assert all(not any(ended[name]) for name in ('one', 'two', 'filling'))
    a = checkpoint(folder, one)
    b = checkpoint(folder, two)
    assert a['steps'] == b['steps'] == len(a['losses']) == steps
    assert torch.allclose(a['losses'], b['losses'], rtol=1e-5)
    for kind in 'model', 'ema':
        for name, weight in a[kind].items():
            assert torch.allclose(weight, b[kind][name], rtol=0, atol=3e-6), name


def test_one_writes_and_both_know_the_record(ended, folder):
    first, second = (torch.load(folder/f'record-{rank}.pt', weights_only=False)
                     for rank in (0, 1))
    assert first == second and first['machine']['processes'] == 2
    assert first['score']['n'] == 4
    assert '2 processes of 1 thread' in (folder/'two'/'README.md').read_text()
    assert 'too short' in (folder/'two-0.txt').read_text()
    assert (folder/'two-1.txt').read_text() == ''


@pytest.mark.parametrize('name, status, rank', [
    ('killed', [1, -9], 0), ('killed_first', [-9, 1], 1)])
def test_a_kill_ends_both(ended, folder, name, status, rank):
    assert ended[name] == status
    line, = said(folder, name, rank)
    assert 'Another process of this training has ended' in line


def test_a_killed_training_goes_on_to_the_bit(ended, folder):
    "Two processes after two, from a checkpoint within an epoch"
    assert ended['goes_on'] == [0, 0]
    whole = checkpoint(folder, 'two')
    killed = checkpoint(folder, 'killed')
    assert torch.equal(whole['losses'], killed['losses'])
    for name, weight in whole['model'].items():
        assert torch.equal(weight, killed['model'][name]), name


@pytest.mark.parametrize('name, says', [
    ('no_cells', 'nowhere is not a folder'), ('odd_batch', 'choose a multiple of 2'),
    ('diverges', 'The loss became nan')])
def test_one_process_tells_of_what_ends_both(ended, folder, name, says):
    assert ended[name] == [1, 1]
    line, = said(folder, name, 0)
    assert says in line and not said(folder, name, 1)


def test_the_first_process_fails_alone(ended, folder):
    assert ended['no_room'] == [1, 1]
    assert 'No space left' in said(folder, 'no_room', 0)[0]
    assert 'Another process' in said(folder, 'no_room', 1)[0]


def test_the_launcher(tmp_path):
    "The line of the README, on the CPU"
    folder = tmp_path
    write_cells(folder)
    launch = ['--multi_gpu', '--num_processes', '2', '--main_process_port', '0']
    words = f'--data {folder}/cells --bs 14 --dim 8 --epochs 1 --scored 0'.split()
    done = subprocess.run(
        [sys.executable, '-m', 'accelerate.commands.launch', *launch, '-m',
         'cell_diffusion', 'train', *words, '--out', str(folder/'launched')],
        env=environment(folder), capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('# launched') == 1
    assert done.stderr.count('cell-diffusion: warning') == 1, done.stderr
    record = json.loads((folder/'launched'/'record.json').read_text())
    assert record['steps'] == 2 and record['machine']['processes'] == 2
