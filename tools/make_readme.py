#!/usr/bin/env python3
"""README.md from nbs/index.ipynb.

Words stay as they are, code is shown with its text output, and links work from the
root of the repository.
"""
import re
from pathlib import Path

import nbformat

root = Path(__file__).resolve().parent.parent
note = (
    '<!-- Made from nbs/index.ipynb by tools/make_readme.py: edit the notebook, '
    'then `make readme` -->')


def _address(name):
    "An address of the project, from pyproject.toml"
    text = (root/'pyproject.toml').read_text(encoding='utf-8')
    return re.search(rf'^{name} = "(.+?)/?"', text, re.M)[1]


site = _address('Documentation')
repo = _address('Repository')


def links(text):
    "The words of a notebook in nbs/ with links that work from the root"
    # Divs are for the site alone, and so are pages that are no notebooks
    text = re.sub(r'^:::.*\n?', '', text, flags=re.M)
    text = re.sub(r'(\]\()(\w+)\.qmd', rf'\1{site}/\2.html', text)

    # GitHub's tables are narrow
    text = text.replace('width="400" height="240"', 'width="200" height="120"')
    text = text.replace(f'{repo}/blob/main/', '')
    text = re.sub(r'(\]\(|href="|src=")\.\./', r'\1', text)
    return re.sub(r'(\]\(|href=")(\w+\.ipynb)', r'\1nbs/\2', text)


def _block(text, language=''):
    return f'```{language}\n{text.rstrip()}\n```'


def shown(output):
    "One output as Markdown, or None for a picture: those are named in the words"
    if output.output_type == 'stream':
        return _block(output.text)
    data = output.get('data', {})
    if 'text/markdown' in data:
        return data['text/markdown']
    if 'text/plain' in data and 'image/png' not in data:
        return _block(data['text/plain'])
    return None


def _is_hidden(directives):
    hides = re.compile(r'(hide|exec_doc|include:\s*false)\b')
    return any(hides.match(d) for d in directives)


def cell(c):
    "One cell as Markdown, or None if it is not for the README"
    if c.cell_type == 'raw' or not c.source.strip():
        return None
    if c.cell_type == 'markdown':
        return links(c.source)
    directives = re.findall(r'^#\s*\|\s*(.+?)\s*$', c.source, re.M)
    if _is_hidden(directives):
        return None

    code = re.sub(r'^#\s*\|.*\n?', '', c.source, flags=re.M).strip()
    parts = [shown(o) for o in c.outputs]
    if code and 'echo: false' not in directives:
        parts.insert(0, _block(code, 'python'))
    return '\n\n'.join(filter(None, parts))


def readme(path=root/'nbs'/'index.ipynb'):
    "The README's text"
    parts = [cell(c) for c in nbformat.read(path, 4).cells]
    return '\n\n'.join([note, *filter(None, parts)]) + '\n'


if __name__ == '__main__':
    (root/'README.md').write_text(readme(), encoding='utf-8')
    print(f'README.md: {len(readme().splitlines())} lines')
