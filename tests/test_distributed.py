"Two processes on the CPU, started as `torchrun` starts them, train one model"
import os, socket, subprocess, sys
import numpy as np, pytest, torch
from PIL import Image
from common import root

program = """
import sys, torch
from torch import nn
from fastai.distributed import *
from fastai.learner import Learner
from fastai.torch_core import rank_distrib
from cell_diffusion.core import decode
from cell_diffusion.data import cell_dls
from cell_diffusion.training import diffusion_learner, fit_for

folder, out = sys.argv[1:]
dls = rank0_first(cell_dls, folder, size=32, bs=7, augment=False, device='cpu')
epoch = torch.cat([decode(x) for x, _ in dls.train])

learn = diffusion_learner(dls, classes=True, dim=8, mults=(1, 2))
def weights():
    return torch.cat([p.detach().flatten() for p in learn.model.parameters()])

before = weights()
with learn.distrib_ctx(), learn.no_bar(), learn.no_logging():
    learn.fit(1, 1e-3)
    valid = learn.recorder.values[-1][1]
    checkpoint = f'{out}/run/checkpoint.pt'
    budget = fit_for(learn, minutes=.01, checkpoint=checkpoint, progress=False)

classifier = nn.Sequential(nn.Flatten(), nn.Linear(3072, 2))
predictor = Learner(dls, classifier, loss_func=nn.CrossEntropyLoss())
with predictor.distrib_ctx(), predictor.no_bar():
    labels = predictor.get_preds(dl=dls.test)[1]

torch.save(dict(
    epoch=epoch, all=torch.from_numpy(dls.train.arrays[0]),
    before=before, after=weights(), valid=valid,
    budget=[budget.steps, budget.seconds],
    labels=labels, test=torch.from_numpy(dls.test.arrays[1]),
), f'{out}/{rank_distrib()}.pt')
"""

def cells(folder):
    "Two classes of 20 images of random pixels: 28 cells to train on"
    rng = np.random.default_rng(0)
    for name in ('a', 'b'):
        (folder/name).mkdir(parents=True)
        for i in range(20):
            pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder/name/f'{i}.png')
    return folder

def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return str(s.getsockname()[1])

def together(argv, world=2, timeout=120):
    "Run a program in `world` processes that know of each other"
    shared = dict(
        PYTHONPATH=str(root), OMP_NUM_THREADS='1', ACCELERATE_USE_CPU='true',
        WORLD_SIZE=str(world), MASTER_ADDR='127.0.0.1', MASTER_PORT=free_port())
    output = dict(text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    runs = []
    for rank in range(world):
        env = {**os.environ, **shared, 'RANK': str(rank), 'LOCAL_RANK': str(rank)}
        runs.append(subprocess.Popen([sys.executable, *argv], env=env, **output))
    try:
        for run in runs:
            said = run.communicate(timeout=timeout)[0]
            assert run.returncode == 0, said
    finally:
        for run in runs:
            run.kill()

def pictures(images): return {x.numpy().tobytes() for x in images}

def test_two_processes_train_one_model(tmp_path, monkeypatch):
    pytest.importorskip('accelerate')
    monkeypatch.setenv('CELL_DIFFUSION_CACHE', str(tmp_path/'cache'))
    (tmp_path/'train.py').write_text(program)
    together([str(tmp_path/'train.py'), str(cells(tmp_path/'cells')), str(tmp_path)])
    a, b = (torch.load(tmp_path/f'{rank}.pt', weights_only=True) for rank in (0, 1))

    # Each process deals out its own half of the epoch
    first, second, every = map(pictures, (a['epoch'], b['epoch'], a['all']))
    assert len(first) == len(second) == 14 and len(every) == 28
    assert first | second == every

    # Different cells, and yet one model: gradients were averaged
    assert torch.equal(a['after'], b['after'])
    assert not torch.equal(a['after'], a['before'])

    # A budget of minutes ends for both at one step, and one of them writes
    assert a['budget'] == b['budget'] and a['budget'][0]
    assert [f.name for f in (tmp_path/'run').iterdir()] == ['checkpoint.pt']

    # What is not training is whole, in each process, and only once
    assert a['valid'] == b['valid']
    for one in (a, b):
        assert torch.equal(one['labels'], one['test'])
