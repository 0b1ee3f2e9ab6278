#!/usr/bin/env python3
"""Run the notebooks of the course, with progress, and keep what they show.

Cells marked `#| eval: false` are left out, as nbdev does; so are those marked
`#| notest` when testing.
"""
import argparse
import base64
import html
import io
import logging
import os
import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from threading import Event

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

root = Path(__file__).resolve().parent.parent
nbs = root/'nbs'

# Chapters without a number come at the end, in this order
last = ['challenge', 'own_cells', 'samples_are_noise', 'imageio', 'sources', 'weights',
        'records', 'viewer', 'painter', 'web', 'distillation', 'flow_study',
        'knowledge_study', 'recipes', 'cli', 'moved']
widget_view = 'application/vnd.jupyter.widget-view+json'


def chapters(folder=nbs):
    "All notebooks in reading order: index, the numbered chapters, then the others"
    def key(p):
        if p.stem == 'index':
            return 0, 0, p.stem
        if p.stem[:2].isdigit():
            return 1, 0, p.stem
        return 2, last.index(p.stem) if p.stem in last else len(last), p.stem
    return sorted(folder.glob('*.ipynb'), key=key)


def flagged(cell, flag):
    "Whether `cell` carries the nbdev directive `#| flag`"
    return re.search(rf'^\s*#\s*\|\s*{flag}\b', cell.source, re.M) is not None


def skipped(cell, testing=False):
    "Whether `cell` is left out of a run"
    if cell.cell_type != 'code' or flagged(cell, r'eval\s*:\s*false'):
        return True
    return testing and flagged(cell, 'notest')


def _code_cells(nb):
    return [c for c in nb.cells if c.cell_type == 'code']


# Outputs that can be committed

def _is_progress(output):
    "Whether an output is only progress bars, and so would make a diff at each run"
    if output.output_type == 'stream' and output.name == 'stderr':
        return re.search(r'\d+%\||it/s|s/it|\r', output.text) is not None
    shown = output.get('data', {}).get('text/html', '')
    bar = '<progress' in shown or 'progress-bar' in shown
    return shown == '<div></div>' or bar and '<table' not in shown


def _smaller(png, limit=20_000):
    "A large picture with 256 colours of its own choice: a third of the size"
    raw = base64.b64decode(png)
    if len(raw) < limit:
        return png
    from PIL import Image
    picture = Image.open(io.BytesIO(raw))
    dpi = picture.info.get('dpi', (72, 72))
    picture = picture.convert('RGB').quantize(256, dither=Image.Dither.NONE)
    out = io.BytesIO()
    picture.save(out, 'PNG', optimize=True, dpi=dpi)
    small = out.getvalue()
    return base64.b64encode(small).decode() if len(small) < len(raw) else png


def _drawn(cell):
    "The figures that a cell draws, which it may give as its result too"
    data = [o.data for o in cell.outputs if o.output_type == 'display_data']
    return {d['image/png'] for d in data if 'image/png' in d}


# A warning's file, which is temporary in a kernel, and the line of code after it
_place_of_warning = r'^/\S*ipykernel_\d+/\d+\.py:\d+: (\w+: .*\n)  .*\n'


def _tidy_outputs(cell):
    "The outputs of a cell that are worth keeping"
    drawn = _drawn(cell)
    for o in cell.outputs:
        data = o.get('data', {})
        had_view = data.pop(widget_view, None) is not None
        if had_view and not set(data) - {'text/plain'}:
            continue
        is_twice = o.output_type == 'execute_result' and data.get('image/png') in drawn
        if _is_progress(o) or is_twice:
            continue
        if 'image/png' in data:
            data['image/png'] = _smaller(data['image/png'])
        if 'text' in o:
            o.text = re.sub(_place_of_warning, r'\1', o.text, flags=re.M)
        if 'text/plain' in data:
            data['text/plain'] = re.sub(r' at 0x[0-9a-fA-F]+', '', data['text/plain'])
        yield o


def tidy(nb):
    """Drop what cannot be shown without a kernel or changes from run to run.

    That is widget views, progress bars, run times, addresses in memory, the temporary
    files of warnings, and figures that are drawn twice. Large pictures become smaller.
    """
    nb.metadata.pop('widgets', None)
    for cell in _code_cells(nb):
        cell.metadata.pop('execution', None)
        cell.outputs = list(_tidy_outputs(cell))
    return nb


# Running

class Progress:
    "One live line in a terminal; elsewhere a line now and then"
    def __init__(self, label, total, live):
        self.label = label
        self.total = total
        self.live = live
        self.start = time.time()
        self.last = self.start

    def __call__(self, done):
        now = time.time()
        spent = f'{now - self.start:.0f} s'
        line = f'{self.label}  cell {done} of {self.total}  {spent}'
        if self.live:
            print(f'\r{line}   ', end='', flush=True)
        elif now - self.last > 15:
            self.last = now
            print(line, flush=True)

    def close(self):
        begin = '\r' if self.live else ''
        spent = f'{time.time() - self.start:.1f} s'
        print(f'{begin}{self.label}  {self.total} cells  {spent}   ', flush=True)


def environment(scale=None, data=None, testing=False, package=None, jobs=1):
    """The environment of a notebook's kernel: package, scale, and data folder or none.

    The package is that of this checkout, or the one installed in the folder `package`
    with nothing beside it. Several kernels at once share the cores.
    """
    not_passed_on = 'CELL_DIFFUSION_DATA', 'IN_TEST'
    env = {k: v for k, v in os.environ.items() if k not in not_passed_on}
    env.update(
        MPLBACKEND='module://matplotlib_inline.backend_inline',
        PYDEVD_DISABLE_FILE_VALIDATION='1',
        JUPYTER_PREFER_ENV_PATH='1',
        # From fastai's import; it does not concern the reader
        PYTHONWARNINGS='ignore::FutureWarning:torch.jit._script',
    )
    here = [str(root), os.environ.get('PYTHONPATH')]
    ours = os.pathsep.join(filter(None, here))
    env['PYTHONPATH'] = str(package) if package else ours
    if scale:
        env['CELL_DIFFUSION_SCALE'] = scale
    if data:
        env['CELL_DIFFUSION_DATA'] = str(Path(data).resolve())
    if testing:
        env['IN_TEST'] = '1'
    if jobs > 1:
        threads = max(1, (os.cpu_count() or 1)//jobs)
        env.setdefault('OMP_NUM_THREADS', str(threads))
    return env


# Figures have twice the pixels, for screens that have them and for a closer look
twice = "figure_formats={'retina'}"

# Measures the letters of each figure in a kernel
watcher = Path(__file__).with_name('measure_figures.py')


def _client(nb, folder, figures=None):
    "A client for a fresh kernel that starts in `folder`"
    options = ['--log-level=CRITICAL', f'--InlineBackend.{twice}']
    if figures:
        watch = f"__import__('runpy').run_path({str(watcher)!r})['watch']"
        options.append(f'--IPKernelApp.exec_lines={watch}({str(figures)!r})')
    return NotebookClient(
        nb,
        timeout=None,
        startup_timeout=180,
        kernel_name='python3',
        store_widget_state=True,
        coalesce_streams=True,
        extra_arguments=options,
        resources=dict(metadata=dict(path=str(folder))),
    )


def _failure(e, name, i, n, cell):
    "The words of an error in a cell"
    lines = re.sub(r'\x1b\[[0-9;]*m', '', e.traceback).strip().splitlines()
    where = f"{name}: cell {i + 1} of {n} (id {cell.get('id', '?')}) failed:"
    tail = '\n'.join(lines[-25:])
    return f'\n{where}\n\n{cell.source}\n\n{e.ename}: {e.evalue}\n{tail}'


def run(
    nb,  # The notebook, executed in place
    name,  # Its name, for messages
    folder=nbs,  # Where its kernel starts
    scale=None,  # The scale, or None for what is set
    data=None,  # A folder of real cells
    testing=False,  # Leave out cells with `#| notest`?
    label=None,  # What the line of progress begins with
    package=None,  # A folder with an installed package, see `environment`
    jobs=1,  # How many notebooks run at once
    figures=None,  # A file for the smallest letters of each figure, or None
):
    "Execute a notebook. Raises `RuntimeError` that names the cell if one fails."
    todo = [(i, c) for i, c in enumerate(nb.cells) if not skipped(c, testing)]
    live = jobs == 1 and sys.stdout.isatty()
    progress = Progress(label or name, len(todo), live)
    for c in _code_cells(nb):
        c.outputs = []
        c.execution_count = None

    client = _client(nb, folder, figures)
    env = environment(scale, data, testing, package, jobs)
    with client.setup_kernel(env=env):
        for done, (i, cell) in enumerate(todo, 1):
            progress(done)
            try:
                client.execute_cell(cell, i)
            except CellExecutionError as e:
                words = _failure(e, name, i, len(nb.cells), cell)
                raise RuntimeError(words) from None
    progress.close()
    return tidy(nb)


# Pages and pictures

def save_pictures(nb, folder):
    "Write the PNG pictures of `nb` to `folder`, numbered in reading order"
    data = [o.get('data', {}) for c in _code_cells(nb) for o in c.outputs]
    found = [d['image/png'] for d in data if 'image/png' in d]
    for old in folder.glob('*.png'):
        old.unlink()
    if found:
        folder.mkdir(parents=True, exist_ok=True)
    for k, png in enumerate(found, 1):
        (folder/f'{k:02d}.png').write_bytes(base64.b64decode(png))
    return len(found)


def _option(source, name):
    "A cell's option, such as `fig-alt`, or nothing"
    m = re.search(rf'^#\|\s*{name}:\s*"?(.*?)"?\s*$', source, re.M)
    return m[1] if m else ''


_equation = r'\$\$ \{#(eq-[\w-]+)\}'


def _numbers(nb):
    "The number of each label: figures and equations count for themselves"
    labels = {}
    for c in nb.cells:
        if c.cell_type == 'markdown':
            found = re.findall(_equation, c.source)
        else:
            found = [_option(c.source, 'label')] if _option(c.source, 'fig-cap') else []
        for label in found:
            kind = label[:3]
            labels[label] = 1 + sum(k.startswith(kind) for k in labels)
    return labels


def _with_numbers(text, labels):
    "Markdown with numbers at the equations and at the references"
    def refer(m):
        label, kind = m.groups()
        word = 'Equation' if kind == 'eq' else 'Figure'
        return f'{word} {labels[label]}' if label in labels else m[0]
    text = re.sub(_equation, lambda m: rf'\tag{{{labels[m[1]]}}}$$', text)
    return re.sub(r'@((eq|fig)-[\w-]*\w)', refer, text)


def _figure(png, source, labels):
    "A picture with its caption and its alternative text, as HTML"
    alt = html.escape(_option(source, 'fig-alt'))
    caption = html.escape(_option(source, 'fig-cap'))
    number = labels[_option(source, 'label')]
    picture = f'<img alt="{alt}" src="data:image/png;base64,{png.strip()}">'
    below = f'<figcaption>Figure {number}: {caption}</figcaption>'
    return f'<figure style="margin:0">{picture}{below}</figure>'


def _readable(nb):
    "The notebook with numbers for equations and figures, and with captions"
    labels = _numbers(nb)
    for c in nb.cells:
        if c.cell_type == 'markdown':
            c.source = _with_numbers(c.source, labels)
        elif c.cell_type == 'code' and _option(c.source, 'fig-cap'):
            for o in c.outputs:
                png = o.get('data', {}).get('image/png')
                if png:
                    o.data = {'text/html': _figure(png, c.source, labels)}
    return nb


def _visible(nb):
    "The notebook without hidden cells and nbdev's directives, with links to pages"
    cells = [c for c in nb.cells if not flagged(c, 'hide') and c.cell_type != 'raw']
    for c in cells:
        if c.cell_type == 'code':
            c.source = re.sub(r'^#\|.*\n?', '', c.source, flags=re.M)
        else:
            c.source = re.sub(r'\]\((\w+)\.ipynb', r'](\1.html', c.source)
    nb.cells = [c for c in cells if c.source.strip()]
    return nb


def save_html(nb, path):
    "Write `nb` as one page with everything inside"
    from nbconvert import HTMLExporter
    logging.getLogger('traitlets').setLevel(logging.ERROR)
    nb = _visible(_readable(deepcopy(nb)))
    exporter = HTMLExporter(
        embed_images=True,
        require_js_url='',
        jquery_url='',
        exclude_input_prompt=True,
        exclude_output_prompt=True,
    )
    about = dict(metadata=dict(name=path.stem, path=str(nbs)))
    page, _ = exporter.from_notebook_node(nb, about)
    page = page.replace('<script src=""></script>', '')
    path.write_text(page, encoding='utf-8')


def clean(path):
    "What `nbdev-clean` does, for one notebook"
    from nbdev.clean import nbdev_clean
    nbdev_clean(str(path))


# The command

def arguments(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument(
        'notebooks', nargs='*', type=Path,
        help='notebooks to run; by default all chapters in reading order')
    parser.add_argument(
        '--scale', choices=['smoke', 'laptop', 'gpu'],
        help='CELL_DIFFUSION_SCALE for the run; by default what is set, else laptop')
    parser.add_argument(
        '--data',
        help='folder of real cells; by default the cells that the course draws itself')
    parser.add_argument(
        '--jobs', type=int, default=1,
        help='how many notebooks to run at once, each with its share of the cores')
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        '--out', type=Path, help='folder for executed notebooks, pages and pictures')
    where.add_argument(
        '--inplace', action='store_true',
        help='keep the outputs in the notebooks themselves, cleaned, to be committed')
    args = parser.parse_args(argv)
    if args.data and not Path(args.data).is_dir():
        parser.error(f'--data names no folder: {args.data}')
    if args.jobs < 1:
        parser.error(f'--jobs should be at least 1: {args.jobs}')
    return args


@dataclass
class Took:
    "What a chapter took"
    name: str
    seconds: float
    pictures: int = None  # Where pictures are saved

    def __str__(self):
        pictures = '' if self.pictures is None else f'  {self.pictures:3d} pictures'
        return f'{self.name:<20} {self.seconds:7.1f} s{pictures}'


def keep(nb, path, args):
    "Write an executed notebook to where it belongs; gives the number of its pictures"
    if args.inplace:
        nbformat.write(nb, path)
        clean(path)
    if not args.out:
        return None
    nbformat.write(nb, args.out/path.name)
    save_html(nb, args.out/f'{path.stem}.html')
    return save_pictures(nb, args.out/'img'/path.stem)


def report(took, seconds, out):
    "Print what each chapter took, and where everything is"
    print()
    for line in [*took, Took('all', seconds)]:
        print(line)
    if out:
        out = out.resolve()
        print(f'\nExecuted notebooks and pages: {out}')
        print(f"Pictures:                     {out/'img'}")
        print(f"Begin with {out/(took[0].name + '.html')}")


def run_and_keep(path, label, args):
    "Run one notebook and write it; says what it took"
    begun = time.time()
    nb = nbformat.read(path, 4)
    run(nb, path.name, path.parent, args.scale, args.data, label=label, jobs=args.jobs)
    pictures = keep(nb, path, args)
    return Took(path.stem, time.time() - begun, pictures)


def run_all(paths, args):
    "Run notebooks, `args.jobs` at once. After a `RuntimeError` no further one begins"
    failed = Event()

    def job(numbered):
        k, path = numbered
        if failed.is_set():
            return None
        try:
            return run_and_keep(path, f'[{k}/{len(paths)}] {path.stem}', args)
        except RuntimeError:
            failed.set()
            raise

    with ThreadPoolExecutor(args.jobs) as pool:
        try:
            return list(pool.map(job, enumerate(paths, 1)))
        except KeyboardInterrupt:
            os._exit(130)  # Threads cannot be stopped; the kernels end with us


def main(argv=None):
    args = arguments(argv)
    paths = [p.resolve() for p in args.notebooks] or chapters()
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)

    start = time.time()
    try:
        took = run_all(paths, args)
    except RuntimeError as e:
        print(e, file=sys.stderr)
        return 1
    report(took, time.time() - start, args.out)
    return 0


if __name__ == '__main__':
    sys.exit(main())
