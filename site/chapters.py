"""What the table of the home page says of each chapter, and its optional sections.

`nbs/index.ipynb` is the one source: the README, the landing page, the head of each
chapter and the cards that a shared link shows are made from it.
"""
import json
import re
from dataclasses import dataclass
from pathlib import Path

import yaml

here = Path(__file__).resolve().parent
nbs = here.parent/'nbs'

_row = re.compile(
    r'^\| *(?:<img src="(?P<picture>[^"]+)"[^>]*? alt="(?P<alt>[^"]*)"> *)?'
    r'\| *\[(?P<title>[^\]]+)\]\((?P<file>\w+\.ipynb)\) *'
    r'\| *(?P<goal>[^|\n]+?) *\| *(?P<last>[^|\n]+?) *\|$', re.M)
# The chapters in `nbs/index.ipynb`: from this heading to the next of its level
_part = re.compile(r'^## The chapters\n.*?(?=^## |\Z)', re.M | re.S)


@dataclass
class Chapter:
    "A row of the table"
    file: str       # Such as `03_process.ipynb`
    title: str
    goal: str       # What a reader can do after it
    time: str       # Such as `105 min, core 60 min`
    modules: str    # Markdown
    picture: str    # Below `nbs/`, or empty
    alt: str        # What the picture shows


def cells(path):
    "The cells of a notebook"
    return json.loads(path.read_text(encoding='utf-8'))['cells']


def _is_time(text):
    return re.search(r'\d (min|hours?)$|^to look up$', text) is not None


def read(text):
    "The chapters that Markdown lists, by the names of their notebooks"
    found = {}
    for m in _row.finditer(text):
        parts = m['last'].split(', ')
        n = next(i for i, part in enumerate(parts) if _is_time(part))
        found[m['file']] = Chapter(
            m['file'], m['title'], m['goal'], ', '.join(parts[n:]),
            ', '.join(parts[:n]), m['picture'] or '', m['alt'] or '')
    return found


def chapters(folder=nbs):
    "Every chapter of the table"
    parts = [''.join(c['source']) for c in cells(folder/'index.ipynb')]
    return read('\n\n'.join(parts))


def part(text):
    "The chapters of Markdown, and the Markdown without them"
    m = _part.search(text)
    return (m[0], text[:m.start()] + text[m.end():]) if m else ('', text)


def optional():
    "Titles of optional sections, by the name of the notebook"
    text = (here/'optional.yml').read_text(encoding='utf-8')
    return {f'{stem}.ipynb': titles for stem, titles in yaml.safe_load(text).items()}
