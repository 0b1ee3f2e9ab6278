#!/usr/bin/env python3
"""The pictures of the home page's cards, cut from what the notebooks show.

They go to img/cards/, 800 × 480 pixels for 400 × 240 on the page. Nothing in them is
cut off: they are whole figures, or some of the columns of one. None of them holds a
photograph of a Jurkat cell. Run it again when a figure has changed much.
"""
import base64
import io
import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

root = Path(__file__).resolve().parent.parent
size = 800, 480

whole = 0, 0, 1, 1
left_half = 0, 0, .5, 1

# Page: the notebook, the label of the figure, the part of it to look at (left, top,
# right and bottom as shares of its sides), and for pictures in columns how many rows
# and columns to show, and the first of them
cuts = {
    'core': ('00_core', 'core-sizes', whole, (1, 2, 1)),
    'simulation': ('01_simulation', 'simulation-classes', whole),
    'data': ('02_data', 'data-batch', (0, 0, 1, .93), (1, 4, 3)),
    'splits': ('02b_splits', 'data-positions', (0, .2, 1, .82), (2, 4, 0)),
    'process': ('03_process', 'process-cells', whole, (1, 6, 0)),
    'schedules': ('04_schedules', 'schedules-curves', whole),
    'unet': ('05_unet', 'unet-drawing', whole),
    'ddpm': ('06_ddpm', 'ddpm-painted', whole),
    'long_runs': ('06b_long_runs', 'ddpm-large', (0, .12, 1, 1), (1, 4, 0)),
    'optimizers': ('06c_optimizers', 'optimizers-ellipse', (0, 0, .505, 1)),
    'evaluation': ('07_evaluation', 'evaluation-game', (0, .11, 1, 1), (1, 4, 0)),
    'samplers': ('08_samplers', 'samplers-dice', whole),
    'conditioning': ('09_conditioning', 'conditioning-first', whole, (1, 5, 3)),
    'inpainting': ('10_inpainting', 'inpainting-fills', whole, (1, 5, 0)),
    'inpainting_study': ('10b_inpainting_study', 'inpainting-many', whole),
    'gan': ('11_gan', 'gan-dirac', (0, 0, .66, 1)),
    'augmentation': (
        '12_augmentation', 'augmentation-phases', (0, .1, 1, 1), (1, 4, 3)),
    'augmentation_study': (
        '12b_augmentation_study', 'augmentation-toy-painted', (0, .5, 1, 1)),
    'comparison': ('12c_comparison', 'comparison-price', whole),
    'answer': ('12d_answer', 'answer-arms', whole),
    'flow_matching': ('13_flow_matching', 'flow-lines', (0, 0, .53, 1)),
    'few_calls': ('13b_few_calls', 'few-map', (0, 0, .515, 1)),
    # Its own figures once it has been run
    'knowledge': ('09_conditioning', 'conditioning-density', whole),
    'challenge': ('challenge', 'challenge-board', whole),
    'samples_are_noise': (
        'samples_are_noise', 'noise-prediction', whole, (2, 4, 0)),
    'knowledge_study': ('07_evaluation', 'evaluation-recognised', whole),
    'own_cells': ('own_cells', 'own-class', whole, (1, 4, 0)),
    'painter': ('painter', 'painter-trace', (.248, 0, .752, 1)),
    'viewer': ('viewer', 'viewer-ripples', (.25, 0, .5, 1)),
    'web': ('web', 'web-grown', whole),
    'recipes': ('recipes', 'recipes-records', left_half),
    'distillation': ('distillation', 'few-calls-bend', whole),
    'flow_study': ('13_flow_matching', 'flow-between', whole),
    'imageio': ('imageio', 'imageio-mask', whole, (1, 2, 1)),
    'sources': ('sources', 'sources-first', (0, 0, 1, .81), (2, 4, 0)),
    'weights': ('weights', 'weights-monocytes', whole, (2, 4, 0)),
    'records': ('07_evaluation', 'evaluation-scores', whole),
}

# Pictures of img/ in place of a figure
from_files = {
    'cli': ('samples32.png', (0, 0, .5, .25)),
    'moved': ('samples64.png', (.5, .5, 1, .75)),
}


def _pictures(cell):
    "The PNG pictures that a cell shows"
    data = [o.get('data', {}) for o in cell.get('outputs', [])]
    return [''.join(d['image/png']) for d in data if 'image/png' in d]


def figure(notebook, label):
    "The first picture of the cell of a notebook with a label"
    path = root/'nbs'/f'{notebook}.ipynb'
    for cell in json.loads(path.read_text(encoding='utf-8'))['cells']:
        pictures = _pictures(cell)
        if pictures and f'label: fig-{label}\n' in ''.join(cell['source']):
            return Image.open(io.BytesIO(base64.b64decode(pictures[0]))).convert('RGB')
    raise SystemExit(f'{notebook}.ipynb has no picture with the label fig-{label}: '
                     'name another one in tools/make_cards.py')


def part(im, box):
    "A part of a picture, as shares of its sides"
    w, h = im.size
    left, top, right, bottom = box
    edges = [left*w, top*h, right*w, bottom*h]
    return im.crop([round(e) for e in edges])


def columns(im, least=24):
    "The columns of a picture that white gaps divide; text before one belongs to it"
    white = np.asarray(im).min((0, 2)) > 253
    edges = np.flatnonzero(np.diff(np.concatenate([[1], white, [1]])))
    found = []
    start = None
    for left, right in edges.reshape(-1, 2):
        start = left if start is None else start
        if right - left >= least:
            found.append((int(start), int(right)))
            start = None
    return [im.crop((left, 0, right, im.height)) for left, right in found]


def arranged(pictures, rows, gap=6):
    "Pictures in rows, on white"
    per_row = len(pictures)//rows
    w = max(p.width for p in pictures) + gap
    h = max(p.height for p in pictures)
    out = Image.new('RGB', (w*per_row - gap, h*rows), 'white')
    for i, p in enumerate(pictures):
        out.paste(p, (i % per_row*w, i//per_row*h))
    return out


def chosen(im, rows, per_row, first):
    "Some of the columns of a picture"
    found = columns(im)[first:first + rows*per_row]
    if len(found) < rows*per_row:
        raise SystemExit(f'{rows*per_row} columns were wanted, and there are '
                         f'{len(found)}: look at the figure in tools/make_cards.py')
    return arranged(found, rows)


def card(im):
    "A picture on white, as large as a card and a little margin allow"
    inner = ImageOps.pad(im, (size[0] - 24, size[1] - 24), Image.LANCZOS, color='white')
    return ImageOps.expand(inner, 12, 'white')


def cards():
    "Every card as a pair `(page, picture)`"
    for page, (notebook, label, box, *tiles) in cuts.items():
        im = part(figure(notebook, label), box)
        yield page, card(chosen(im, *tiles[0]) if tiles else im)
    for page, (file, box) in from_files.items():
        yield page, card(part(Image.open(root/'img'/file).convert('RGB'), box))


def write(picture, path, most=36_000):
    "Write a card; noise is large, so it gets a lower quality, or fewer pixels"
    smaller = picture.resize((size[0]*3//4, size[1]*3//4), Image.LANCZOS)
    for im, quality in (picture, 70), (picture, 50), (smaller, 50), (smaller, 30):
        im.save(path, quality=quality, method=6)
        if path.stat().st_size < most:
            return


if __name__ == '__main__':
    folder = root/'img'/'cards'
    folder.mkdir(exist_ok=True)
    for page, picture in cards():
        write(picture, folder/f'{page}.webp')
    files = list(folder.iterdir())
    total = sum(p.stat().st_size for p in files)
    print(f'{len(files)} cards, {total/1024:.0f} KB')
