#!/usr/bin/env python3
"""README.md from nbs/index.ipynb, without Quarto: words as they are, visible code with its text output, links that work from the root."""
import re, sys
from pathlib import Path
import nbformat

root = Path(__file__).resolve().parent.parent

site = re.search(r'^Documentation = "(.+?)/?"', (root/'pyproject.toml').read_text(encoding='utf-8'), re.M)[1]
repo = re.search(r'^Repository = "(.+?)/?"', (root/'pyproject.toml').read_text(encoding='utf-8'), re.M)[1]

def links(text):
    "Links of a notebook in nbs/, as seen from the root; pages that are no notebooks are on the site, and divs are for the site alone"
    text = re.sub(r'^:::.*\n?', '', text, flags=re.M)
    text = text.replace(f'{repo}/blob/main/', '')
    text = re.sub(r'(\]\()(\w+)\.qmd', rf'\1{site}/\2.html', text)
    text = re.sub(r'(\]\(|href="|src=")\.\./', r'\1', text)
    return re.sub(r'(\]\(|href=")(\w+\.ipynb)', r'\1nbs/\2', text)

def shown(output):
    "One output as Markdown: text as text; pictures belong in img/ and are named in the words"
    if output.output_type == 'stream': return f'```\n{output.text.rstrip()}\n```'
    data = output.get('data', {})
    if 'text/markdown' in data: return data['text/markdown']
    return f"```\n{data['text/plain'].rstrip()}\n```" if 'text/plain' in data and 'image/png' not in data else None

def cell(c):
    "One cell as Markdown, or None if it is not for the README"
    flags = re.findall(r'^#\s*\|\s*(.+?)\s*$', c.source, re.M)
    if c.cell_type == 'raw' or not c.source.strip(): return None
    if c.cell_type == 'markdown': return links(c.source)
    if any(re.match(r'(hide|exec_doc|include:\s*false)\b', f) for f in flags): return None
    code = re.sub(r'^#\s*\|.*\n?', '', c.source, flags=re.M).strip()
    parts = [] if 'echo: false' in flags or not code else [f'```python\n{code}\n```']
    return '\n\n'.join(parts + [s for o in c.outputs if (s := shown(o))])

def readme(path=root/'nbs'/'index.ipynb'):
    "The README's text"
    nb = nbformat.read(path, 4)
    note = '<!-- Made from nbs/index.ipynb by tools/make_readme.py: edit the notebook, then `make readme` -->'
    return '\n\n'.join([note] + [s for c in nb.cells if (s := cell(c))]) + '\n'

if __name__ == '__main__':
    (root/'README.md').write_text(readme(), encoding='utf-8')
    print(f'README.md: {len(readme().splitlines())} lines')
