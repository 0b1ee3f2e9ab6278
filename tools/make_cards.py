#!/usr/bin/env python3
"""The small pictures of the home page's cards, cut from what the notebooks show.

They go to img/cards/. None of them holds a photograph of a Jurkat cell. Run it again
when a figure has changed much.
"""
import base64
import io
import json
from pathlib import Path

from PIL import Image, ImageOps

root = Path(__file__).resolve().parent.parent
size = 400, 240

# Page: the notebook, the label of the figure or a word of its cell, and the part to
# show as left, top, right and bottom in shares of the figure's sides
cuts = {
    'core': ('00_core', 'fig-core-sizes', (.26, .17, .755, 1)),
    'simulation': ('01_simulation', 'fig-simulation-classes', (0, .25, .63, 1)),
    'data': ('02_data', 'fig-data-classes', (0, .02, .675, .47)),
    'process': ('03_process', 'fig-process-cells', (0, 0, .5, .67)),
    'schedules': ('04_schedules', 'fig-schedules-curves', (0, .33, .572, 1)),
    'unet': ('05_unet', 'fig-unet-drawing', (.08, .05, 1, .9)),
    'ddpm': ('06_ddpm', 'fig-ddpm-painted', (0, 0, .5, .49)),
    'evaluation': ('07_evaluation', 'share the judge recognises', (0, 0, 1, 1)),
    'samplers': ('08_samplers', 'fig-samplers-flow', (.49, .0, .97, 1)),
    'conditioning': ('09_conditioning', 'fig-conditioning-first', (.5, 0, 1, .66)),
    'inpainting': ('10_inpainting', 'fig-inpainting-fills', (0, 0, .5, .67)),
    'gan': ('11_gan', 'fig-gan-dirac', (0, 0, 1, 1)),
    'flow_matching': ('13_flow_matching', 'fig-flow-lines', (.52, .13, .985, .8)),
    'few_calls': ('13b_few_calls', 'fig-few-map', (.075, .11, .412, .81)),
    'augmentation': (
        '12b_augmentation_study', 'fig-augmentation-gain', (0, .1, .68, 1)),
    'viewer': ('viewer', 'fig-viewer-ripples', (.25, 0, .48, 1)),
    'painter': ('painter', 'fig-painter-trace', (.245, 0, .755, 1)),
    'recipes': ('recipes', 'fig-recipes-records', (0, 0, .5, 1)),
}

# Shown whole, on white
plots = 'augmentation', 'evaluation', 'gan', 'recipes', 'unet'

# Pictures of img/ in place of a figure
from_files = {
    'cli': ('samples32.png', (0, 0, .5, .25)),
    'web': ('samples64.png', (.5, .5, 1, .78)),
}


def _pictures(cell):
    "The PNG pictures that a cell shows"
    data = [o.get('data', {}) for o in cell.get('outputs', [])]
    return [''.join(d['image/png']) for d in data if 'image/png' in d]


def figure(notebook, mark):
    "The first picture of the cell of a notebook that holds `mark`"
    path = root/'nbs'/f'{notebook}.ipynb'
    for cell in json.loads(path.read_text(encoding='utf-8'))['cells']:
        pictures = _pictures(cell)
        if pictures and mark in ''.join(cell['source']):
            return Image.open(io.BytesIO(base64.b64decode(pictures[0])))
    raise SystemExit(f'{notebook}.ipynb has no picture in a cell with {mark!r}: '
                     'name another one in tools/make_cards.py')


def card(im, box, whole=False):
    "A part of a picture, cut to the size of a card, or all of it on white"
    w, h = im.size
    left, top, right, bottom = box
    edges = [left*w, top*h, right*w, bottom*h]
    part = im.convert('RGB').crop([round(e) for e in edges])
    if whole:
        return ImageOps.pad(part, size, Image.LANCZOS, color='white')
    return ImageOps.fit(part, size, Image.LANCZOS)


def cards():
    "Every card as a pair `(page, picture)`"
    for page, (notebook, mark, box) in cuts.items():
        yield page, card(figure(notebook, mark), box, whole=page in plots)
    for page, (file, box) in from_files.items():
        yield page, card(Image.open(root/'img'/file), box)


if __name__ == '__main__':
    folder = root/'img'/'cards'
    folder.mkdir(exist_ok=True)
    for page, picture in cards():
        picture.save(folder/f'{page}.webp', quality=78, method=6)
    files = list(folder.iterdir())
    total = sum(p.stat().st_size for p in files)
    print(f'{len(files)} cards, {total/1024:.0f} KB')
