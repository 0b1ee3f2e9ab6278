"""Kill the commands at random moments, start them again, and compare the results

    python tools/kill_runs.py                    # 30 kills, some minutes
    python tools/kill_runs.py train balance --kills 4 --seed 1

Each command first runs undisturbed. Then it is killed (SIGKILL) at random moments and
started again until it ends. The files that it leaves must be the same to the bit, but
for times and the names of folders. Checkpoints are written every two seconds in place
of a minute. For the processes that train, a step of training takes a fixed time, so
that a budget of minutes is the same number of steps in each run.

The table names for each kill the moment, what was there, and the seconds of work lost:
those since a file was last written (or since the start, with imports and reading the
cells). The judge of a score is trained in the first run and found by the others, which
saves a minute or more for each. The table at the end has a row a command. The exit code
is 1 if a result differs or more than `--lose` seconds are lost.
"""
import argparse
import hashlib
import http.server
import io
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors import safe_open

from cell_diffusion.simulation import blood_classes, simulate_blood

# What is started: `cell-diffusion` with checkpoints every few seconds and a fixed clock
program = """
import itertools, sys, time
every, *words = sys.argv[1:]
from cell_diffusion.training import Checkpoint
Checkpoint.__init__.__defaults__ = (None, float(every))
ticks = itertools.count()
# Sixteenths are exact, so that sums of them do not depend on where a run began
time.perf_counter = lambda: next(ticks)/16
from cell_diffusion.cli import app
app(words)
"""

fetch = """
import sys
from cell_diffusion.sources import download
download('pbc', sys.argv[2], url=sys.argv[1], checksum=sys.argv[3], progress=False)
"""

small = ['--size', '28', '-n', '160', '--bs', '8']
net = ['--dim', '8', '--seed', '3']
commands = dict(
    train=['train', *small, *net, '--classes', '--epochs', '8', '--scored', '40',
           '--means', '4', '--early-at', '.3'],
    classifier=['classifier', *small, *net, '--epochs', '16'],
    study=['study', 'simulated', '--size', '32', '-n', '240', '--keep', 'ig=4',
           '--arms', 'nothing,ddpm+turns,gan+turns,ddpm+turns+filter', '--folds', '2',
           '--replicates', '1', '--steps', '60', '--epochs', '3'],
    balance=['balance', 'CELLS', '--minutes', '.15', '--steps', '4', '--goal', '150',
             '--seed', '3', '--force'],
    download=[],
)
kills = dict(train=8, classifier=6, study=6, balance=6, download=4)


# What the commands need

def draw_cells(folder, counts):
    "A folder of class folders with drawn cells"
    from PIL import Image
    labels = np.repeat(list(counts), list(counts.values()))
    numbers = [blood_classes.index(name) for name in labels]
    cells = simulate_blood(len(labels), size=32, labels=np.array(numbers))
    for i, (name, pixels) in enumerate(zip(labels, cells.images)):
        (folder/name).mkdir(parents=True, exist_ok=True)
        pixels = np.moveaxis(np.asarray(pixels), 0, -1)
        Image.fromarray(pixels).save(folder/name/f'{i}.png')


def make_archive():
    "A zip with noise for each class of blood cells, 4 MB"
    from PIL import Image
    rng = np.random.default_rng(0)
    out = io.BytesIO()
    with zipfile.ZipFile(out, 'w') as z:
        for name in blood_classes:
            for i in range(40):
                png = io.BytesIO()
                pixels = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(png, 'png')
                z.writestr(f'PBC/{name}/{i}.png', png.getvalue())
    return out.getvalue()


class SlowServer(http.server.BaseHTTPRequestHandler):
    "Sends the archive, or the rest of it, in about three seconds"
    body = make_archive()

    def do_GET(self):
        start = int(re.sub(r'\D', '', self.headers.get('Range', '0')))
        rest = self.body[start:]
        self.send_response(206 if start else 200)
        self.send_header('Content-Length', str(len(rest)))
        self.send_header('ETag', 'one')
        self.end_headers()
        try:
            for i in range(0, len(rest), 2**16):
                self.wfile.write(rest[i:i + 2**16])
                time.sleep(.05)
        except OSError:
            pass # The client was killed

    def log_message(self, *args): pass


def serve():
    "The address of the archive on a server of our own"
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), SlowServer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f'http://127.0.0.1:{server.server_port}/cells.zip'


# One process

def start(words, out, log):
    "Start a command that writes to `out`, with a cache of its own"
    out.parent.mkdir(parents=True, exist_ok=True)
    env = dict(os.environ, CELL_DIFFUSION_CACHE=str(out.parent/'cache'),
               OMP_NUM_THREADS='1', NO_PROXY='127.0.0.1')
    return subprocess.Popen([sys.executable, '-c', *words(out)], env=env, stdout=log,
                            stderr=subprocess.STDOUT)


def finish(words, out, log):
    "Let a command end, and return the seconds that it took"
    started = time.time()
    code = start(words, out, log).wait()
    if code:
        log.flush()
        sys.exit(f'{out} ended with {code}:\n{Path(log.name).read_text()[-3000:]}')
    return time.time() - started


def kill_at(words, out, log, seconds):
    "Kill a command after so many seconds; the moment, or None if it had ended"
    process = start(words, out, log)
    try:
        code = process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return time.time()
    if code: finish(words, out, log)


# What is there

def files_in(out): return sorted(p for p in out.rglob('*') if p.is_file())


def what_is_there(out):
    "In words, for the table"
    names = sorted({p.name for p in files_in(out) if not p.name.endswith('.lock')})
    return f'{len(names)} files: {", ".join(names)}'[:60] if names else 'nothing'


def last_written(out, started):
    "When a file was last written, or when the process was started"
    times = [p.stat().st_mtime for p in files_in(out.parent)]
    return max([started, *times])


timed = re.compile(r'^(seconds.*|.*_seconds|machine|ratios)$')


def timeless(obj):
    "JSON or the content of a checkpoint without what a clock has measured"
    if isinstance(obj, dict):
        return {str(k): timeless(v) for k, v in obj.items()
                if not timed.match(str(k))}
    if isinstance(obj, (list, tuple)): return [timeless(v) for v in obj]
    if hasattr(obj, 'numpy'): obj = obj.cpu().float().numpy()
    if isinstance(obj, np.ndarray): return hashlib.sha256(obj.tobytes()).hexdigest()
    return repr(obj)


def content(path):
    "What a file holds, without times"
    import torch
    if path.suffix == '.json': return timeless(json.loads(path.read_text()))
    if path.suffix == '.safetensors':
        with safe_open(path, 'pt') as f:
            return timeless({name: f.get_tensor(name) for name in f.keys()})
    if path.suffix == '.pt': return timeless(torch.load(path, 'cpu'))
    if path.suffix == '.md':
        return [line for line in path.read_text().splitlines() if 'minutes' not in line]
    if path.suffix == '.npz':
        arrays = dict(np.load(path))
        cost = json.loads(str(arrays.pop('cost', '{}')))
        return timeless(cost), timeless(arrays)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def differences(whole, killed):
    "What is not the same in both folders: files, and the first entry in each"
    found = {}
    for folder in whole, killed:
        for path in files_in(folder):
            name = path.relative_to(folder).as_posix()
            found.setdefault(name, {})[folder] = content(path)
    return [f'{name}{first_difference(of.get(whole), of.get(killed))}'
            for name, of in found.items() if of.get(whole) != of.get(killed)]


def first_difference(a, b):
    "Where two contents differ, as text"
    if isinstance(a, dict) and isinstance(b, dict):
        key = next(k for k in {**a, **b} if a.get(k) != b.get(k))
        return f'.{key}{first_difference(a.get(key), b.get(key))}'
    return ''


# The kills

form = '{:11} {:>8} {:>7}  {}'


def copy_judges(whole, other):
    "Give the classifiers that score one run to another one; whether there are any"
    judges = Path('cache')/'classifiers'
    if not (whole.parent/judges).exists():
        return False
    shutil.copytree(whole.parent/judges, other.parent/judges)
    return True


def torment(name, words, folder, n, rng):
    "Kill a command `n` times; for each run the kills, the most lost and the result"
    rows = []
    with open(folder/f'{name}.log', 'w') as log:
        whole = folder/name/'whole'/'run'
        length = finish(words, whole, log)
        if copy_judges(whole, again := folder/name/'again'/'run'):
            length = finish(words, again, log)
        turn = 0
        while n:
            turn += 1
            out = folder/name/f'killed-{turn}'/'run'
            copy_judges(whole, out)
            killed = 0
            most = 0.
            while n:
                started = time.time()
                seconds = rng.uniform(0, length)
                moment = kill_at(words, out, log, seconds)
                if moment is None: break
                n -= 1
                killed += 1
                lost = moment - last_written(out, started)
                most = max(most, lost)
                print(form.format(name, f'{seconds:.1f} s', f'{lost:.1f} s',
                                  what_is_there(out)), flush=True)
            if not killed: continue
            finish(words, out, log)
            bad = differences(whole, out)
            said = as_text(bad)
            print(f'{name:11} killed {killed} times, ended, {said}', flush=True)
            rows.append((name, killed, most, said))
    return rows


def as_text(bad):
    "The first differences, and how many more there are"
    if not bad: return 'equal'
    more = f' and {len(bad) - 3} more' if len(bad) > 3 else ''
    return f'differs: {", ".join(bad[:3])}{more}'


def print_table(rows, lose):
    "What became of each command; whether all is as it should be"
    table = pd.DataFrame(rows, columns=['command', 'kills', 'lost', 'result'])
    by = dict(kills='sum', lost='max', result=lambda said: '; '.join(set(said)))
    whole = table.groupby('command', sort=False).agg(by)
    print(whole.to_string(float_format='{:.1f}'.format))
    print(f'{table.kills.sum()} kills, {table.lost.max():.1f} s lost at most')
    return set(table.result) == {'equal'} and table.lost.max() <= lose


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('names', nargs='*', help=f'of {", ".join(commands)}; or all')
    parser.add_argument('--kills', type=int, help='of each command; else 30 in all')
    parser.add_argument('--every', type=float, default=2., help='checkpoint seconds')
    parser.add_argument('--lose', type=float, default=60., help='seconds of lost work')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--folder', help='for the results; by default they are removed')
    args = parser.parse_args()
    names = args.names or list(commands)
    if unknown := set(names) - set(commands): parser.error(f'unknown: {unknown}')

    rng = random.Random(args.seed)
    print(form.format('command', 'killed', 'lost', 'what was there'), flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(args.folder or temporary)
        counts = dict(neutrophil=60, monocyte=24, platelet=12)
        draw_cells(folder/'cells', counts)
        url = serve()
        checksum = f'sha256:{hashlib.sha256(SlowServer.body).hexdigest()}'

        def words(name, out):
            if name == 'download': return [fetch, url, str(out), checksum]
            given = [str(folder/'cells') if w == 'CELLS' else w for w in commands[name]]
            return [program, str(args.every), *given, '--out', str(out)]

        rows = []
        for name in names:
            n = args.kills or kills[name]
            rows += torment(name, partial(words, name), folder, n, rng)
    sys.exit(0 if print_table(rows, args.lose) else 1)


if __name__ == '__main__':
    main()
