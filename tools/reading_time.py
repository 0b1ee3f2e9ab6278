#!/usr/bin/env python3
"""How long each chapter takes to read: `make minutes` writes it into nbs/index.ipynb.

Prose at 200 words a minute and code at eight lines a minute, rounded to five minutes.
What a page does not show (solutions, installation, imports) is not counted.
Sections of `site/optional.yml` may be left out; the time without them is the core.
"""
import ast
import json
import re
import sys
from pathlib import Path

import yaml

root = Path(__file__).resolve().parent.parent
nbs = root/'nbs'
words_a_minute = 200
lines_a_minute = 8

_heading = re.compile(r'^(#{1,3}) +(.+?) *(?:\{[^}]*\})?$', re.M)
_fence = re.compile(r'^```.*?^```', re.M | re.S)
# In the table of nbs/index.ipynb: the notebook of a row, and its last column
_row = re.compile(
    r'^(\|[^|\n]*\| *\[[^\]]+\]\((?P<file>\w+\.ipynb)\) *\|[^|\n]*\|)'
    r' *(?P<modules>[^|\n]*?), (?P<time>[^,|\n]*(?:, core [^,|\n]*)?) *\|$', re.M)


def optional_sections():
    "The sections that one may leave out: `{'03_process': {'The walk back', …}}`"
    text = (root/'site'/'optional.yml').read_text(encoding='utf-8')
    return {name: set(titles) for name, titles in yaml.safe_load(text).items()}


def _words(text):
    "How many words Markdown has, with what is in a line of code and in formulas"
    text = re.sub(r'\]\([^)]*\)|<[^>]+>|^\|[ |:-]+$', ' ', text, flags=re.M)
    return sum(any(c.isalnum() for c in word) for word in text.split())


def _lines(code):
    return sum(bool(line.strip()) for line in code.split('\n'))


def _only_imports(code):
    try:
        tree = ast.parse(code)
    except SyntaxError:
        return False
    return all(isinstance(n, (ast.Import, ast.ImportFrom)) for n in tree.body)


def _code_minutes(source):
    "Minutes for a code cell with its caption, or none if the page does not show it"
    directives = re.findall(r'^#\s*\|\s*(.*)$', source, re.M)
    if any(re.match(r'(hide|default_exp|echo: *false|include: *false)\b', d)
           for d in directives):
        return 0
    captions = [d for d in directives if re.match(r'(fig|tbl)-cap:', d)]
    code = re.sub(r'^#\s*\|.*\n?', '', source, flags=re.M)
    if _only_imports(code):
        return 0
    return _lines(code)/lines_a_minute + _words(' '.join(captions))/words_a_minute


def sections(path):
    "Each section of a notebook as `(level, title, minutes)`, in order"
    found = [[1, path.stem, 0]]
    for c in json.loads(path.read_text(encoding='utf-8'))['cells']:
        source = ''.join(c['source'])
        if c['cell_type'] == 'code':
            found[-1][2] += _code_minutes(source)
        elif c['cell_type'] == 'markdown':
            _add_prose(found, source)
    return [tuple(s) for s in found]


def _add_prose(found, source):
    "Count the words of a Markdown cell for its sections"
    code = ' '.join(_fence.findall(source))
    found[-1][2] += _lines(code)/lines_a_minute
    text = _fence.sub('', source)
    at = 0
    for m in _heading.finditer(text):
        found[-1][2] += _words(text[at:m.start()])/words_a_minute
        found.append([len(m[1]), m[2], 0])
        at = m.end()
    found[-1][2] += _words(text[at:])/words_a_minute


def minutes(path, optional=()):
    "All minutes of a notebook, and those without the optional sections"
    whole = core = 0
    skipped = 9
    for level, title, m in sections(path):
        if level <= skipped:
            skipped = level if title in optional else 9
        whole += m
        core += m if skipped == 9 else 0
    return whole, core


def rounded(m):
    return max(5, 5*round(m/5))


def in_words(whole, core):
    "As the table says it, such as `105 min, core 60 min`"
    whole, core = map(rounded, (whole, core))
    return f'{whole} min' if whole == core else f'{whole} min, core {core} min'


def measured():
    "What the table should say for each notebook: `{'03_process.ipynb': '70 min', …}`"
    optional = optional_sections()
    times = {p: minutes(p, optional.get(p.stem, ())) for p in nbs.glob('*.ipynb')}
    return {p.name: in_words(*m) for p, m in times.items()}


def table(text):
    "What the table of the home page says: `{'03_process.ipynb': '60 min', …}`"
    return {m['file']: m['time'] for m in _row.finditer(text)}


def _hours(files, optional):
    "Hours to read notebooks: their core, and everything"
    each = [minutes(nbs/f, optional.get(Path(f).stem, ())) for f in files]
    whole, core = (sum(m) for m in zip(*each))
    return round(core/60), round(whole/60)


# `## 1 · …` to the next part, and the sentence about all of them
_part = re.compile(r'^### (\d) · .*?(?=^### )', re.M | re.S)
_sentence = re.compile(r'The core of part 1 takes[^.]*\.')


def sentence(text):
    "How long the parts take, for the list of chapters"
    parts = {m[1]: list(table(m[0])) for m in _part.finditer(text)}
    optional = optional_sections()
    core, whole = zip(*(_hours(parts[n], optional) for n in '123'))
    return ('The core of part 1 takes about {} hours to read, part 2 takes {} and part '
            '3 takes {}; with the optional sections it is {}, {} and {} hours.'
            ).format(*core, *whole)


def write(text, times):
    "The table with these times; what is only looked up has none"
    def row(m):
        time = times[m['file']] if m['time'][0].isdigit() else m['time']
        return f"{m[1]} {m['modules']}, {time} |"
    return _row.sub(row, text)


def main():
    path = nbs/'index.ipynb'
    nb = json.loads(path.read_text(encoding='utf-8'))
    times = measured()
    all_text = '\n\n'.join(''.join(c['source']) for c in nb['cells'])
    for c in nb['cells']:
        source = ''.join(c['source'])
        new = _sentence.sub(sentence(all_text), write(source, times))
        if new != source:
            c['source'] = new.splitlines(keepends=True)
    text = json.dumps(nb, indent=1, ensure_ascii=False) + '\n'
    path.write_text(text, encoding='utf-8')
    for name, time in sorted(times.items()):
        print(f'{name:32} {time}')


if __name__ == '__main__':
    sys.exit(main())
