#!/usr/bin/env python3
"""make_cards.py: the small pictures of the home page's cards, cut from what the committed notebooks show, into img/cards/.
No photograph of a Jurkat cell is in any of them. Run it again when a figure has changed much."""
import base64, io, json
from pathlib import Path
from PIL import Image, ImageOps

root = Path(__file__).resolve().parent.parent
size = 400, 240

# page: (notebook, label of the figure or words of its cell, the part to show as left, top, right, bottom in shares of its sides)
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
    'augmentation': ('12b_augmentation_study', 'fig-augmentation-gain', (0, .1, .68, 1)),
    'viewer': ('viewer', 'fig-viewer-ripples', (.25, 0, .48, 1)),
    'painter': ('painter', 'fig-painter-trace', (.245, 0, .755, 1)),
    'recipes': ('recipes', 'fig-recipes-records', (0, 0, .5, 1)),
}
plots = 'augmentation', 'evaluation', 'gan', 'recipes', 'unet'   # shown whole, on white
painted = {'cli': ('samples32.png', (0, 0, .5, .25)), 'web': ('samples64.png', (.5, .5, 1, .78))}   # pictures of img/ in place of a figure

def figure(notebook, mark):
    "The first picture of the cell of a notebook that holds `mark`"
    for c in json.loads((root/'nbs'/f'{notebook}.ipynb').read_text(encoding='utf-8'))['cells']:
        pngs = [o['data']['image/png'] for o in c.get('outputs', []) if 'image/png' in o.get('data', {})]
        if pngs and mark in ''.join(c['source']): return Image.open(io.BytesIO(base64.b64decode(''.join(pngs[0]))))
    raise SystemExit(f'{notebook}.ipynb has no picture in a cell with {mark!r}: name another one in tools/make_cards.py')

def card(im, box, whole=False):
    "A part of a picture, cut to the size of a card, or all of it on white"
    w, h = im.size
    part = im.convert('RGB').crop([round(s*e) for s, e in zip(box, (w, h, w, h))])
    return ImageOps.pad(part, size, Image.LANCZOS, color='white') if whole else ImageOps.fit(part, size, Image.LANCZOS)

if __name__ == '__main__':
    folder = root/'img'/'cards'
    folder.mkdir(exist_ok=True)
    for name, (notebook, mark, box) in cuts.items(): card(figure(notebook, mark), box, name in plots).save(folder/f'{name}.webp', quality=78, method=6)
    for name, (file, box) in painted.items(): card(Image.open(root/'img'/file), box).save(folder/f'{name}.webp', quality=78, method=6)
    print(f'{len(list(folder.iterdir()))} cards, {sum(p.stat().st_size for p in folder.iterdir())/1024:.0f} KB')
