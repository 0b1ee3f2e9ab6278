#!/usr/bin/env python3
"""The pictures of the landing page: cells that form, and those of its game.

    python tools/make_home.py --weights blood64-classes --data PBC_FOLDER

They go to img/home/, with what they show in home.json. Make them again when other
weights ship. No cell is chosen by hand: generated ones are the first of a seed, and
real ones the first test cells of each class. A network has seen none of these.

`others` in home.json are those who played before a visitor, and how many of the
cells that they chose are real. They stay as long as the pictures do.
"""
import argparse
import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

root = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(root))

from cell_diffusion.core import decode, encode  # noqa: E402
from cell_diffusion.data import cell_dls  # noqa: E402
from cell_diffusion.denoiser import load  # noqa: E402
from cell_diffusion.sampling import sample  # noqa: E402

folder = root/'img'/'home'
forming = 'neutrophil', 'eosinophil', 'lymphocyte', 'platelet'


def sheet(rows):
    "One picture of rows of cells in -1..1, each `(n, channel, size, size)`"
    pixels = [decode(x).permute(0, 2, 3, 1).cpu().numpy() for x in rows]
    return Image.fromarray(np.concatenate([np.concatenate(p, 1) for p in pixels]))


def save(picture, name, quality):
    "Write a WebP file and say how large it is"
    path = folder/name
    picture.save(path, quality=quality, method=6)
    print(f'{path.relative_to(root)}: {path.stat().st_size/1024:.0f} KB')


def form(
    model,  # A network with classes
    frames,  # How many rows
    seed,  # Of the noise, the same for every class
):
    "Rows of four cells on their way out of one noise, and the signal in each row"
    options = dict(seed=seed, trajectory=True, progress=False)
    walks = [sample(model, 1, label=name, **options) for name in forming]
    ends = [end for end, _ in walks]
    steps = [[(t, xt) for t, xt, _ in path] for _, path in walks]
    at = np.linspace(0, len(steps[0]), frames).round().astype(int)[:-1]
    rows = [torch.cat([path[i][1] for path in steps]) for i in at]
    signal = [float(model.schedule.signal[steps[0][i][0]])**2 for i in at]
    return [*rows, torch.cat(ends)], [round(s, 3) for s in signal] + [1.]


def real_cells(dls, each):
    "Test cells of each class, from all over the list: neighbours share their stain"
    images, labels = dls.cells.images, dls.cells.labels
    test = np.array(dls.idxs['test'])
    rng = np.random.default_rng(0)
    some = [rng.permutation(test[labels[test] == k])[:each]
            for k in range(len(dls.vocab))]
    return [encode(images[i]) for i in some]


def checksum(weights):
    "The checksum of a network's weights, from its record"
    path = Path(weights)
    if not path.is_dir():
        path = root/'cell_diffusion'/'weights'/weights
    return json.loads((path/'record.json').read_text(encoding='utf-8'))['weights']


def others(game):
    "Who has played with the picture of this checksum, as the file of before says"
    if not (folder/'home.json').exists():
        return []
    says = json.loads((folder/'home.json').read_text(encoding='utf-8'))
    return says['others'] if says.get('game') == game else []


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--weights', default='blood64-classes', help='name or folder')
    parser.add_argument('--data', required=True, help='the folder of the blood cells')
    parser.add_argument('--each', type=int, default=6, help='of a class and a kind')
    parser.add_argument('--frames', type=int, default=14)
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args()

    folder.mkdir(parents=True, exist_ok=True)
    model = load(args.weights, precision='float32')
    rows, signal = form(model, args.frames, args.seed)
    save(sheet(rows), 'forming.webp', 62)
    save(sheet(rows[-1:]), 'formed.webp', 82)

    dls = cell_dls('pbc', args.data, size=model.size, device='cpu')
    if list(dls.vocab) != list(model.classes):
        raise SystemExit(f'{args.weights} has other classes than {args.data}')
    real = real_cells(dls, args.each)
    labels = [name for name in model.classes for _ in range(args.each)]
    made = sample(model, label=labels, seed=args.seed + 1, progress=False).cpu()
    pairs = zip(real, made.split(args.each))
    save(sheet([torch.cat(pair) for pair in pairs]), 'game.webp', 80)

    game = hashlib.sha256((folder/'game.webp').read_bytes()).hexdigest()
    says = dict(
        weights=args.weights, sha256=checksum(args.weights), seed=args.seed,
        size=model.size, classes=list(model.classes), each=args.each,
        forming=list(forming), signal=signal, game=game, others=others(game))
    text = json.dumps(says, indent=1)
    (folder/'home.json').write_text(text + '\n', encoding='utf-8')


if __name__ == '__main__':
    main()
