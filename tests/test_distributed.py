"Two processes on the CPU, with what `torchrun` and `accelerate launch` tell each of them, train one model together"
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
from cell_diffusion.ddpm import diffusion_learner, fit_for

folder, out = sys.argv[1:]
dls = rank0_first(cell_dls, folder, size=32, bs=7, augment=False, device='cpu')
epoch = torch.cat([decode(x) for x, _ in dls.train])
learn = diffusion_learner(dls, classes=True, dim=8, mults=(1, 2))
weights = lambda: torch.cat([p.detach().flatten() for p in learn.model.parameters()])
before = weights()
with learn.distrib_ctx(), learn.no_bar(), learn.no_logging():
    learn.fit(1, 1e-3)
    valid = learn.recorder.values[-1][1]
    budget = fit_for(learn, minutes=.01, checkpoint=f'{out}/run/checkpoint.pt', progress=False)
judge = Learner(dls, nn.Sequential(nn.Flatten(), nn.Linear(3072, 2)), loss_func=nn.CrossEntropyLoss())
with judge.distrib_ctx(), judge.no_bar(): said = judge.get_preds(dl=dls.test)[1]
torch.save(dict(epoch=epoch, all=torch.from_numpy(dls.train.arrays[0]), before=before, after=weights(), valid=valid, budget=[budget.steps, budget.seconds], said=said, test=torch.from_numpy(dls.test.arrays[1])), f'{out}/{rank_distrib()}.pt')
"""

def cells(folder):
    "Two classes of 20 images of random pixels: 28 cells to train on"
    rng = np.random.default_rng(0)
    for name in ('a', 'b'):
        (folder/name).mkdir(parents=True)
        for i in range(20): Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder/name/f'{i}.png')
    return folder

def together(argv, world=2, timeout=120):
    "Run a program in `world` processes that know of each other; fails with what they said"
    with socket.socket() as s: s.bind(('127.0.0.1', 0)); port = s.getsockname()[1]
    env = dict(os.environ, PYTHONPATH=str(root), OMP_NUM_THREADS='1', ACCELERATE_USE_CPU='true', WORLD_SIZE=str(world), MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
    runs = [subprocess.Popen([sys.executable, *argv], env=dict(env, RANK=str(r), LOCAL_RANK=str(r)), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) for r in range(world)]
    try:
        for r in runs:
            said = r.communicate(timeout=timeout)[0]
            assert r.returncode == 0, said
    finally: [r.kill() for r in runs]

def test_two_processes_train_one_model(tmp_path, monkeypatch):
    pytest.importorskip('accelerate')
    monkeypatch.setenv('CELL_DIFFUSION_CACHE', str(tmp_path/'cache'))
    (tmp_path/'train.py').write_text(program)
    together([str(tmp_path/'train.py'), str(cells(tmp_path/'cells')), str(tmp_path)])
    a, b = (torch.load(tmp_path/f'{r}.pt', weights_only=True) for r in (0, 1))
    first, second, every = ({x.numpy().tobytes() for x in images} for images in (a['epoch'], b['epoch'], a['all']))
    assert len(first) == len(second) == 14 and len(every) == 28 and first | second == every, 'each process deals out its own half of the epoch'
    assert torch.equal(a['after'], b['after']) and not torch.equal(a['after'], a['before']), 'different cells, and yet one model: gradients were averaged'
    assert a['budget'] == b['budget'] and a['budget'][0] and [f.name for f in (tmp_path/'run').iterdir()] == ['checkpoint.pt'], 'a budget of minutes ends for both at one step'
    assert a['valid'] == b['valid'] and all(torch.equal(o['said'], o['test']) for o in (a, b)), 'what is not training is whole, in each process and only once'
