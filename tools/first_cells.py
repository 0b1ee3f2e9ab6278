#!/usr/bin/env python3
"""Run the first cell of each chapter and its imports, as Google Colab would.

The first cell installs the course there. Each chapter has a process of its own, and
needs nothing but IPython. What failed is listed, and ends this with status 1.
"""
import argparse
import ast
import json
import re
import subprocess
import sys
import tempfile
from configparser import ConfigParser
from pathlib import Path

root = Path(__file__).resolve().parent.parent
minutes = 20

as_colab = '''
import json, sys, warnings
from IPython.core.interactiveshell import InteractiveShell

warnings.simplefilter('ignore')
shell = InteractiveShell.instance()
shell.__class__ = type('Shell', (InteractiveShell,),
                       dict(__module__='google.colab._shell'))
assert 'google.colab' in str(shell)
for source in json.load(sys.stdin):
    done = shell.run_cell(source)
    if not done.success: sys.exit(1)
    # A command of the shell fails without an exception
    if status := shell.user_ns.get('_exit_code', 0):
        sys.exit(f'a command of the first cell ended with status {status}')
'''


def is_import(source):
    "Whether a cell imports and does nothing else"
    try:
        body = ast.parse(source).body
    except SyntaxError:  # A line for IPython
        return False
    return bool(body) and all(isinstance(n, (ast.Import, ast.ImportFrom)) for n in body)


def without_address(source, course):
    "The first cell, installing `course` in the place of the published repository"
    if course is None:
        return source
    return re.sub(r"'git\+https://[^']*'", repr(course), source)


def cells_to_run(notebook, course=None):
    "The first code cell, and all others that only import"
    cells = json.loads(notebook.read_text(encoding='utf-8'))['cells']
    sources = [''.join(c['source']) for c in cells if c['cell_type'] == 'code']
    off = re.compile(r'^#\|\s*eval:\s*false', re.M)
    first, *others = [s for s in sources if not off.search(s)]
    return [without_address(first, course), *filter(is_import, others)]


def try_chapter(notebook, course=None):
    "What went wrong in a chapter, or nothing"
    cells = json.dumps(cells_to_run(notebook, course))
    command = [sys.executable, '-c', as_colab]
    try:
        done = subprocess.run(command, input=cells, capture_output=True, text=True,
                              timeout=60*minutes, cwd=tempfile.gettempdir())
    except subprocess.TimeoutExpired:
        return f'not done after {minutes} minutes'
    return '' if done.returncode == 0 else plain(done.stdout + done.stderr)


def plain(text):
    "The last lines of an output, without colours"
    lines = re.sub(r'\x1b\[[\d;]*m', '', text).strip().splitlines()
    return '\n'.join(lines[-15:]) or 'it ended without a word'


def chapters():
    "The notebooks that open in Colab"
    return [p for p in sorted((root/'nbs').glob('*.ipynb')) if p.stem != 'index']


def known_to_colab(freeze):
    "The lines of Colab's `pip freeze` that name what the course requires"
    parser = ConfigParser(delimiters=['='])
    parser.read(root/'settings.ini', encoding='utf-8')
    needs = parser['DEFAULT']['requirements'].split()
    names = {re.match(r'[\w.-]+', need)[0] for need in [*needs, 'ipython']}
    plain_names = {re.sub(r'[-_.]+', '-', name).lower() for name in names}
    for line in freeze.splitlines():
        name, is_version, version = line.strip().partition('==')
        if is_version and re.sub(r'[-_.]+', '-', name).lower() in plain_names:
            yield f"{name}=={version.partition('+')[0]}"


def main(words=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('notebooks', nargs='*', type=Path, help='by default all')
    parser.add_argument('--course', help='what to install in place of the repository')
    parser.add_argument('--report', type=Path, help='Markdown file for what failed')
    parser.add_argument('--versions', type=Path, help="Colab's pip freeze: print what "
                        'of it the course requires, and run nothing')
    given = parser.parse_args(words)
    if given.versions:
        print('\n'.join(known_to_colab(given.versions.read_text(encoding='utf-8'))))
        return False
    failed = {}
    for path in given.notebooks or chapters():
        wrong = try_chapter(path, given.course)
        print(f"{path.stem}: {'failed' if wrong else 'fine'}", flush=True)
        if wrong:
            failed[path.stem] = wrong
    parts = [f'## {name}\n\n```\n{wrong}\n```\n' for name, wrong in failed.items()]
    report = '\n'.join(parts)
    if given.report and failed:
        given.report.write_text(report, encoding='utf-8')
    print(report, end='')
    return bool(failed)


if __name__ == '__main__':
    sys.exit(main())
