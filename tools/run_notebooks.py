#!/usr/bin/env python3
"""Run the course's notebooks from top to bottom, with progress, and keep what they show.

Cells marked `#| eval: false` are left out, as nbdev does; so are those marked `#| notest` when testing.
"""
import argparse, base64, html, io, os, re, sys, time
from pathlib import Path
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

root = Path(__file__).resolve().parent.parent
nbs = root/'nbs'
last = ['weights', 'records', 'viewer', 'painter', 'web', 'recipes', 'cli', 'moved']  # chapters without a number come at the end, in this order
widget_view = 'application/vnd.jupyter.widget-view+json'

def chapters(folder=nbs):
    "All notebooks in reading order: index, the numbered chapters, then the ones without a number"
    def key(p):
        if p.stem == 'index': return 0, 0, p.stem
        if p.stem[:2].isdigit(): return 1, 0, p.stem
        return 2, last.index(p.stem) if p.stem in last else len(last), p.stem
    return sorted(folder.glob('*.ipynb'), key=key)

def flagged(cell, flag):
    "Whether `cell` carries the nbdev directive `#| flag`"
    return re.search(rf'^\s*#\s*\|\s*{flag}\b', cell.source, re.M) is not None

def skipped(cell, testing=False):
    "Whether `cell` is not to be run"
    return cell.cell_type != 'code' or flagged(cell, r'eval\s*:\s*false') or (testing and flagged(cell, 'notest'))

def _noise(output):
    "Whether an output is only progress bars, and so would make a diff at each run"
    if output.output_type == 'stream' and output.name == 'stderr': return re.search(r'\d+%\||it/s|s/it|\r', output.text) is not None
    shown = output.get('data', {}).get('text/html', '')
    return shown == '<div></div>' or ('<progress' in shown or 'progress-bar' in shown) and '<table' not in shown

def tidy(nb):
    "Drop what cannot be shown without a kernel or changes from run to run: widget views, progress bars, run times, memory addresses, a figure that is drawn twice; make large pictures smaller"
    nb.metadata.pop('widgets', None)
    for cell in nb.cells:
        if cell.cell_type != 'code': continue
        cell.metadata.pop('execution', None)
        keep, seen = [], {o.data['image/png'] for o in cell.outputs if o.output_type == 'display_data' and 'image/png' in o.data}
        for o in cell.outputs:
            data = o.get('data', {})
            if widget_view in data:
                del data[widget_view]
                if not set(data) - {'text/plain'}: continue
            if _noise(o) or (o.output_type == 'execute_result' and data.get('image/png') in seen): continue
            if 'image/png' in data: data['image/png'] = _smaller(data['image/png'])
            if 'text/plain' in data: data['text/plain'] = re.sub(r' at 0x[0-9a-fA-F]+', '', data['text/plain'])
            keep.append(o)
        cell.outputs = keep
    return nb

def _smaller(png, limit=20_000):
    "A large picture with 256 colours of its own choice: a third of the size, and the eye sees no difference"
    raw = base64.b64decode(png)
    if len(raw) < limit: return png
    from PIL import Image
    picture, out = Image.open(io.BytesIO(raw)), io.BytesIO()
    picture.convert('RGB').quantize(256, dither=Image.Dither.NONE).save(out, 'PNG', optimize=True, dpi=picture.info.get('dpi', (72, 72)))
    return base64.b64encode(out.getvalue()).decode() if len(out.getvalue()) < len(raw) else png

class Progress:
    "One live line in a terminal; elsewhere a line now and then"
    def __init__(self, label, total): self.label, self.total, self.start, self.said = label, total, time.time(), time.time()
    def __call__(self, done):
        line = f'{self.label}  cell {done} of {self.total}  {time.time() - self.start:.0f} s'
        if sys.stdout.isatty(): print(f'\r{line}   ', end='', flush=True)
        elif time.time() - self.said > 15:
            self.said = time.time()
            print(line, flush=True)
    def close(self):
        print(('\r' if sys.stdout.isatty() else '') + f'{self.label}  {self.total} cells  {time.time() - self.start:.1f} s   ', flush=True)

def environment(scale=None, data=None, testing=False, package=None):
    "The environment a notebook's kernel gets: the package of this checkout, or the one installed in the folder `package` and nothing beside it; the scale; the data folder or none"
    env = {k:v for k, v in os.environ.items() if k not in ('CELL_DIFFUSION_DATA', 'IN_TEST')}
    env.update(MPLBACKEND='module://matplotlib_inline.backend_inline', PYDEVD_DISABLE_FILE_VALIDATION='1', JUPYTER_PREFER_ENV_PATH='1',
               PYTHONWARNINGS='ignore::FutureWarning:torch.jit._script')  # fastai's import, nothing to do with the reader
    env['PYTHONPATH'] = str(package) if package else os.pathsep.join([str(root), *filter(None, [os.environ.get('PYTHONPATH')])])
    if scale: env['CELL_DIFFUSION_SCALE'] = scale
    if data: env['CELL_DIFFUSION_DATA'] = str(Path(data).resolve())
    if testing: env['IN_TEST'] = '1'
    return env

def run(nb, name, folder=nbs, scale=None, data=None, testing=False, label=None, package=None):
    "Execute `nb` in place in a fresh kernel started in `folder`; raises `RuntimeError` that names notebook and cell when one fails"
    todo = [(i, c) for i, c in enumerate(nb.cells) if not skipped(c, testing)]
    progress = Progress(label or name, len(todo))
    client = NotebookClient(nb, timeout=None, startup_timeout=180, kernel_name='python3', store_widget_state=True, coalesce_streams=True,
                            extra_arguments=['--log-level=CRITICAL'], resources=dict(metadata=dict(path=str(folder))))
    for c in nb.cells:
        if c.cell_type == 'code': c.outputs, c.execution_count = [], None
    with client.setup_kernel(env=environment(scale, data, testing, package)):
        for done, (i, cell) in enumerate(todo):
            progress(done + 1)
            try: client.execute_cell(cell, i)
            except CellExecutionError as e:
                raise RuntimeError(f"\n{name}: cell {i + 1} of {len(nb.cells)} (id {cell.get('id', '?')}) failed:\n\n{cell.source}\n\n{e.ename}: {e.evalue}\n{_tail(e)}") from None
    progress.close()
    return tidy(nb)

def _tail(e): return '\n'.join(re.sub(r'\x1b\[[0-9;]*m', '', e.traceback).strip().splitlines()[-25:])

def save_pictures(nb, folder):
    "Write the PNG pictures of `nb` to `folder`, numbered in reading order"
    found = [o.data['image/png'] for c in nb.cells if c.cell_type == 'code' for o in c.outputs if 'image/png' in o.get('data', {})]
    for old in folder.glob('*.png'): old.unlink()
    if found: folder.mkdir(parents=True, exist_ok=True)
    for k, png in enumerate(found, 1): (folder/f'{k:02d}.png').write_bytes(base64.b64decode(png))
    return len(found)

def _option(source, name):
    "A cell's Quarto option, such as `fig-alt`, or nothing"
    m = re.search(rf'^#\|\s*{name}:\s*"?(.*?)"?\s*$', source, re.M)
    return m[1] if m else ''

def _readable(nb):
    "Numbers for the equations and figures that have labels, captions below pictures, and their alternative texts: what Quarto would write"
    labels, equation = {}, r'\$\$ \{#(eq-[\w-]+)\}'
    for c in nb.cells:
        found = re.findall(equation, c.source) if c.cell_type == 'markdown' else [_option(c.source, 'label')] if _option(c.source, 'fig-cap') else []
        for l in found: labels[l] = sum(l[:3] == k[:3] for k in labels) + 1
    for c in nb.cells:
        if c.cell_type == 'markdown':
            c.source = re.sub(equation, lambda m: rf'\tag{{{labels[m[1]]}}}$$', c.source)
            c.source = re.sub(r'@((eq|fig)-[\w-]*\w)', lambda m: f"{'Equation' if m[2] == 'eq' else 'Figure'} {labels[m[1]]}" if m[1] in labels else m[0], c.source)
        elif caption := c.cell_type == 'code' and _option(c.source, 'fig-cap'):
            for o in c.outputs:
                if 'image/png' not in o.get('data', {}): continue
                picture = f'<img alt="{html.escape(_option(c.source, "fig-alt"))}" src="data:image/png;base64,{o.data["image/png"].strip()}">'
                o.data = {'text/html': f'<figure style="margin:0">{picture}<figcaption>Figure {labels[_option(c.source, "label")]}: {html.escape(caption)}</figcaption></figure>'}
    return nb

def save_html(nb, path):
    "Write `nb` as one self-contained page: hidden cells and nbdev's directives left out, pictures inside"
    import logging; logging.getLogger('traitlets').setLevel(logging.ERROR)
    from copy import deepcopy
    from nbconvert import HTMLExporter
    nb = _readable(deepcopy(nb))
    nb.cells = [c for c in nb.cells if not flagged(c, 'hide') and not c.cell_type == 'raw']
    for c in nb.cells:
        if c.cell_type == 'code': c.source = re.sub(r'^#\|.*\n?', '', c.source, flags=re.M)
        else: c.source = re.sub(r'\]\((\w+)\.ipynb', r'](\1.html', c.source)
    nb.cells = [c for c in nb.cells if c.source.strip()]
    exporter = HTMLExporter(embed_images=True, require_js_url='', jquery_url='', exclude_input_prompt=True, exclude_output_prompt=True)
    page, _ = exporter.from_notebook_node(nb, dict(metadata=dict(name=path.stem, path=str(nbs))))
    path.write_text(page.replace('<script src=""></script>', ''), encoding='utf-8')

def clean(path):
    "What `nbdev-clean` does, for one notebook"
    from nbdev.clean import nbdev_clean
    nbdev_clean(str(path))

def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('notebooks', nargs='*', type=Path, help='notebooks to run; by default all chapters in reading order')
    parser.add_argument('--scale', choices=['smoke', 'laptop', 'gpu'], help='CELL_DIFFUSION_SCALE for the run; by default what is set, else laptop')
    parser.add_argument('--data', help='folder of real cells; by default the cells that the course draws itself')
    where = parser.add_mutually_exclusive_group()
    where.add_argument('--out', type=Path, help='folder for executed notebooks, pages and pictures')
    where.add_argument('--inplace', action='store_true', help='keep the outputs in the notebooks themselves, cleaned, to be committed')
    args = parser.parse_args(argv)
    paths = [p.resolve() for p in args.notebooks] or chapters()
    if args.data and not Path(args.data).is_dir(): parser.error(f'--data names no folder: {args.data}')
    if args.out: args.out.mkdir(parents=True, exist_ok=True)
    took, start = [], time.time()
    for k, path in enumerate(paths, 1):
        begun, nb = time.time(), nbformat.read(path, 4)
        label = f'[{k}/{len(paths)}, {begun - start:.0f} s so far] {path.stem}'
        try: run(nb, path.name, path.parent, args.scale, args.data, label=label)
        except RuntimeError as e: print(e, file=sys.stderr); return 1
        if args.inplace:
            nbformat.write(nb, path); clean(path)
        pictures = save_pictures(nb, args.out/'img'/path.stem) if args.out else 0
        if args.out: nbformat.write(nb, args.out/path.name); save_html(nb, args.out/f'{path.stem}.html')
        took.append((path.stem, time.time() - begun, pictures))
    print()
    for name, seconds, pictures in took: print(f'{name:<20} {seconds:7.1f} s' + (f'  {pictures:3d} pictures' if args.out else ''))
    print(f"{'all':<20} {time.time() - start:7.1f} s")
    if args.out: print(f"\nExecuted notebooks and pages: {args.out.resolve()}\nPictures:                     {args.out.resolve()/'img'}\n"
                       f"Begin with {args.out.resolve()/(took[0][0] + '.html')}")
    return 0

if __name__ == '__main__': sys.exit(main())
