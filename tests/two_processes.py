"""Runs the functions below, most of them in two processes that train together

Everything is imported once; then each function gets copies of this process.
`python two_processes.py FOLDER` leaves in FOLDER what they say and find."""
import json
import os
import signal
import socket
import sys
import traceback
from pathlib import Path
import torch
import fastai.distributed  # noqa: F401, gives a Learner `distrib_ctx`
from fastai.learner import Learner
from torch import nn
from cell_diffusion import classifier, cli, recipes, training
from cell_diffusion.core import decode
from cell_diffusion.data import cell_dls
from cell_diffusion.recipes import train_model
from cell_diffusion.training import diffusion_learner, fit_for


def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return str(s.getsockname()[1])


def copy_of_this_process(f, out, environment):
    "Calls a function in a copy of this process; its words go into a file"
    pid = os.fork()
    if pid: return pid
    os.environ.update(environment)
    rank = environment.get('RANK', 'only')
    said = os.open(out/f'{f.__name__}-{rank}.txt', os.O_CREAT | os.O_WRONLY, 0o600)
    os.dup2(said, 1)
    os.dup2(said, 2)
    status = 1
    try:
        f(out, int(environment.get('RANK', 0)))
        status = 0
    except SystemExit as e:
        status = e.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)


def run(f, out, world=2):
    "How each of `world` processes ended; a negative number is a signal"
    shared = dict(WORLD_SIZE=str(world), MASTER_ADDR='127.0.0.1',
                  MASTER_PORT=free_port())
    if world == 1: return [wait_for(copy_of_this_process(f, out, {}))]
    pids = [copy_of_this_process(f, out, dict(shared, RANK=str(k), LOCAL_RANK=str(k)))
            for k in range(world)]
    return [wait_for(pid) for pid in pids]


def wait_for(pid): return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


# What each of the two does

def loaders(out, rank):
    "A learner in a script of its own"
    dls = cell_dls(out/'cells', size=32, bs=14, augment=False, device='cpu')
    epoch = torch.cat([decode(x) for x, _ in dls.train])
    learn = diffusion_learner(dls, classes=True, dim=8, mults=(1, 2))

    def weights():
        return torch.cat([p.detach().flatten() for p in learn.model.parameters()])

    before = weights()
    with learn.distrib_ctx(cpu=True), learn.no_bar(), learn.no_logging():
        learn.fit(1, 1e-3)
        valid = learn.recorder.values[-1][1]
        file = out/'fitted'/'checkpoint.pt'
        budget = fit_for(learn, minutes=.002, checkpoint=file, progress=False)

    linear = nn.Sequential(nn.Flatten(), nn.Linear(3072, 2))
    predictor = Learner(dls, linear, loss_func=nn.CrossEntropyLoss())
    with predictor.distrib_ctx(cpu=True), predictor.no_bar():
        labels = predictor.get_preds(dl=dls.test)[1]

    torch.save(dict(
        epoch=epoch, all=torch.from_numpy(dls.train.arrays[0]),
        before=before, after=weights(), valid=valid,
        budget=[budget.steps, budget.seconds],
        labels=labels, test=torch.from_numpy(dls.test.arrays[1]),
    ), out/f'loaders-{rank}.pt')


def train(out, folder, **options):
    "A run of 8 steps in float32, without a picture"
    if not options.get('scored'): recipes.save_grid = lambda *args, **kwargs: None
    how = dict(size=32, bs=14, epochs=4, dim=8, classes=True, optimizer='muon',
               scored=0, precision='float32', mults=(1, 2), progress=False)
    return train_model(str(out/'cells'), out=out/folder, **dict(how, **options))


def one(out, rank): train(out, 'one')


def two(out, rank):
    classifier.enough_epochs = lambda n: 1
    record = train(out, 'two', scored=4, steps=2)
    torch.save(record, out/f'record-{rank}.pt')


def filling(out, rank): train(out, 'filling', inpaint=True, epochs=1)


def one_filling(out, rank): train(out, 'one-filling', inpaint=True, epochs=1)


def killed(out, rank):
    "The second process is killed in its sixth step; the first wrote the fourth"
    always_save(out/'killed', till=4)
    die_at(rank, 6)
    train(out, 'killed')


def killed_first(out, rank):
    "The first process is killed in its sixth step"
    always_save(out/'killed-first', till=4)
    die_at(1 - rank, 6)
    train(out, 'killed-first')


def always_save(folder, till):
    save = training.Checkpoint.save
    def early(self):
        if self.learn.train_iter <= till: save(self)
    training.Checkpoint.save = early
    training.Checkpoint.__init__.__defaults__ = (None, 0.)


def die_at(rank, step):
    check = training.check_loss
    def deadly(learn, loss):
        if rank == 1 and learn.train_iter == step: os.kill(os.getpid(), signal.SIGKILL)
        check(learn, loss)
    training.check_loss = deadly


def goes_on(out, rank): train(out, 'killed')


def one_goes_on(out, rank): train(out, 'killed-first')


def command(*words):
    cli.app(['train', *map(str, words)], prog_name='cell-diffusion')


def no_cells(out, rank): command('--data', out/'nowhere', '--out', out/'nothing')


def odd_batch(out, rank): command('--bs', 7, '--out', out/'nothing')


def no_room(out, rank):
    "The first process cannot write its checkpoint"
    def full(*args): raise OSError(28, 'No space left on device', 'checkpoint.pt')
    training.write_whole = full
    command('--data', out/'cells', '--bs', 14, '--dim', 8, '--epochs', 2, '--out',
            out/'full')


def diverges(out, rank):
    "A loss that is not finite, in the second process only"
    mse = training.weighted_mse
    def lost(*args): return mse(*args)*(float('nan') if rank else 1)
    recipes.learner_for = with_loss(lost)
    command('--data', out/'cells', '--bs', 14, '--dim', 8, '--epochs', 2, '--out',
            out/'diverges')


def with_loss(loss):
    make = recipes.learner_for
    def learner_for(*args):
        learn = make(*args)
        learn.loss_func = loss
        return learn
    return learner_for


pairs = (loaders, two, filling, killed, killed_first, goes_on, no_cells, odd_batch,
         no_room, diverges)
singles = one, one_filling, one_goes_on

if __name__ == '__main__':
    folder = Path(sys.argv[1])
    names = sys.argv[2:]
    ended = {}
    for f in (*pairs, *singles):
        if not names or f.__name__ in names:
            ended[f.__name__] = run(f, folder, 1 if f in singles else 2)
    (folder/'ended.json').write_text(json.dumps(ended))
