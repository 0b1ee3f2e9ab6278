#!/usr/bin/env python3
"""The photographs of the painting page, one of each class.

    python tools/make_photographs.py --data PBC_FOLDER

They go to img/photographs.png, as a strip, with their names and the credit in
photographs.json. Each is the first test cell of its class, at the scale of training: no
shipped network has seen it, and none was chosen by hand.
"""
import argparse
import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

root = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(root))

from cell_diffusion.data import cell_dls  # noqa: E402
from cell_diffusion.records import write_json  # noqa: E402
from cell_diffusion.splits import dihedral_hash  # noqa: E402

strip = root/'img'/'photographs.png'
trained = 'blood64-inpaint'
credit = 'Acevedo et al. 2020, doi:10.17632/snkd93bnjr.1, CC BY 4.0'


def first_of_each(dls):
    "The first test cell of each class"
    test = np.array(dls.idxs['test'])
    labels = dls.cells.labels[test]
    return [int(test[labels == k][0]) for k in range(len(dls.vocab))]


def refuse_seen(dls, chosen):
    "Stop if another group holds one of these cells, turned or mirrored"
    hashes = dihedral_hash(dls.cells.images)
    others = np.concatenate([i for name, i in dls.idxs.items() if name != 'test'])
    seen = set(hashes[others]) & set(hashes[chosen])
    if seen:
        raise SystemExit(f'{len(seen)} of the photographs are training cells too')


def refuse_other_cells(dls):
    "Stop if the network was trained on another division of the cells"
    record = root/'cell_diffusion'/'weights'/trained/'record.json'
    cells = json.loads(record.read_text(encoding='utf-8'))['cells']
    if len(dls.idxs['test']) != cells['test']:
        raise SystemExit(f"{trained} was tested on {cells['test']} cells, and here are "
                         f"{len(dls.idxs['test'])}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--data', required=True, help='the folder of the blood cells')
    parser.add_argument('--size', type=int, default=64)
    args = parser.parse_args()

    dls = cell_dls('pbc', args.data, size=args.size, device='cpu')
    refuse_other_cells(dls)
    chosen = first_of_each(dls)
    refuse_seen(dls, chosen)
    images = dls.cells.images[chosen].transpose(0, 2, 3, 1)
    Image.fromarray(np.concatenate(images, axis=1)).save(strip, optimize=True)
    write_json(strip.with_suffix('.json'), dict(credit=credit, labels=list(dls.vocab)))
    print(f'{strip.relative_to(root)}: {strip.stat().st_size/1024:.0f} KB')


if __name__ == '__main__':
    main()
