"""Every chapter runs from top to bottom in a fresh kernel at the smoke scale.

It runs alone: in an empty folder, with the installed wheel and nothing else of the
project. The check of every exercise fails on the stub and passes on the solution.
"""
import ast
import re
import shutil
import sys
import time
from configparser import ConfigParser
from functools import cache
from importlib import metadata

import nbformat
import pytest
from packaging.requirements import Requirement

from common import cells, chapters, code_only, flagged, marked, root, without_magics
from measure_figures import smallest, too_small
from run_notebooks import run

each_notebook = pytest.mark.parametrize('path', chapters(), ids=lambda p: p.stem)
after_home = [p for p in chapters() if p.stem != 'index']
each_chapter = pytest.mark.parametrize('path', after_home, ids=lambda p: p.stem)
numbered = [p for p in chapters() if p.stem[:2].isdigit()]


# Chapters run

tried = '''
_stub = {stub!r}
_ns = dict(globals())
try: exec(compile(_stub, 'stub', 'exec'), _ns)
except Exception: pass
else: raise AssertionError('check {k} passes although exercise {k} is not solved')
'''

from_wheel = """
import sys
_ours = [n for n in sys.modules if n.split('.')[0] == 'cell_diffusion']
_files = {{n: getattr(sys.modules[n], '__file__', None) for n in _ours}}
_other = {{n: f for n, f in _files.items() if f and not f.startswith({folder!r})}}
assert not _other, f'not from the installed wheel: {{_other}}'
"""


def _number_of_solution(cell):
    "The exercise that a hidden cell solves, or None"
    if cell.cell_type != 'code' or not flagged(cell, 'hide'):
        return None
    found = re.match(r'#\s*solution (\d+)\b', code_only(cell.source))
    return int(found[1]) if found else None


def with_stubs(nb, path):
    "Before each hidden solution, run its check on the unsolved exercise: it must fail"
    stubs = marked(path, 'exercise')
    checks = marked(path, 'check')
    out = []
    for c in nb.cells:
        k = _number_of_solution(c)
        if k is not None:
            unsolved = stubs[k][0][1] + '\n' + checks[k][0][1]
            out.append(nbformat.v4.new_code_cell(tried.format(k=k, stub=unsolved)))
        out.append(c)
    nb.cells = out
    return nb


@pytest.mark.slow
@each_notebook
def test_chapter(path, built, tmp_path):
    begun = time.time()
    alone = tmp_path/path.name
    shutil.copy(path, alone)
    nb = with_stubs(nbformat.read(alone, 4), alone)
    last = from_wheel.format(folder=str(built.folder))
    nb.cells.append(nbformat.v4.new_code_cell(last))
    figures = tmp_path/'figures.jsonl'
    run(nb, path.name, tmp_path, scale='smoke', testing=True, package=built.folder,
        figures=figures)
    assert not too_small(figures), f'letters under {smallest} pixels on the page'
    print(f'{path.stem}: {time.time() - begun:.1f} s')


# What chapters import

def _plain(name):
    "The name of a distribution as package indexes compare them"
    return re.sub(r'[-_.]+', '-', name).lower()


@cache
def _required():
    "What can be imported where the package and its requirements are installed"
    parser = ConfigParser(delimiters=['='])
    parser.read(root/'settings.ini')
    todo = parser['DEFAULT']['requirements'].split()
    seen = set()
    while todo:
        need = Requirement(todo.pop())
        left_out = need.marker and not need.marker.evaluate(dict(extra=''))
        if _plain(need.name) in seen or left_out:
            continue
        seen.add(_plain(need.name))
        try:
            todo += metadata.requires(need.name) or []
        except metadata.PackageNotFoundError:
            pass

    owners = metadata.packages_distributions().items()
    names = {m for m, dists in owners if any(_plain(d) in seen for d in dists)}
    return names | sys.stdlib_module_names | {'cell_diffusion'}


def _unguarded(source):
    "What a piece of code imports, except inside a `try`"
    todo = [ast.parse(without_magics(source))]
    names = []
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Import):
            names += [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            names.append(node.module)
        elif not isinstance(node, ast.Try):
            todo += ast.iter_child_nodes(node)
    return {n.split('.')[0] for n in names}


@each_notebook
def test_imports_what_the_package_requires(path):
    "In Colab there is no nbdev and no diffusers: what may be missing needs a `try`"
    bad = {}
    for c in cells(path, 'code'):
        if not c.source.lstrip().startswith('%%'):
            bad[c.id] = _unguarded(c.source) - _required()
    bad = {at: names for at, names in bad.items() if names}
    assert not bad, f'{path.name} imports what the package does not require: {bad}'


# Exercises

with_exercises = [p for p in chapters() if p in numbered or marked(p, 'exercise')]


@pytest.mark.parametrize('path', with_exercises, ids=lambda p: p.stem)
def test_exercises_are_whole(path):
    stubs = marked(path, 'exercise')
    checks = marked(path, 'check')
    solutions = marked(path, 'solution')
    fewest = 3 if path in numbered else 1
    assert len(stubs) >= fewest, f'{path.name} has fewer than {fewest} exercises'

    for k, found in stubs.items():
        where = f'{path.name}, exercise {k}'
        stub_hidden = [hidden for hidden, _ in found]
        solution_hidden = [hidden for hidden, _ in solutions.get(k, [])]
        check_hidden = sorted(hidden for hidden, _ in checks.get(k, []))
        assert stub_hidden == [False], f'{where}: one visible stub is needed'
        assert solution_hidden == [True], f'{where}: one hidden solution is needed'
        assert check_hidden == [False, True], (
            f'{where}: the check is needed twice, shown, and hidden after the solution')

        shown, hidden = (code for _, code in checks[k])
        assert shown == hidden, f'{where}: the two copies of the check differ'
        assert 'assert' in shown or 'test_' in shown, f'{where}: no check'


# Colab

site = 'https://colab.research.google.com/github/cell-diffusion/cell_diffusion'
badge = '[![Open in Colab](img/colab.svg)](' + site + '/blob/student/{name}.ipynb)'


def installs_in_colab(cell):
    "Whether a cell is the hidden one that installs the package in Colab"
    code = code_only(cell.source)
    return cell.cell_type == 'code' and flagged(cell, 'hide') and 'google.colab' in code


@each_chapter
def test_opens_in_colab(path):
    "The badge below the title, then the cell that installs the package in Colab"
    title, below, first = nbformat.read(path, 4).cells[:3]
    assert title.source.startswith('# ')
    assert below.source == badge.format(name=path.stem), f'{path.name} needs its badge'
    assert installs_in_colab(first), f'{path.name}: the third cell installs nothing'


class Shell:
    "A shell that says which one it is, and remembers what it is asked to run"
    def __init__(self, name):
        self.name = name
        self.ran = []

    def __str__(self):
        return self.name

    def system(self, line):
        self.ran.append(line)


def test_the_colab_cell_installs_in_colab_only():
    "It is the same cell in every chapter"
    codes = {nbformat.read(p, 4).cells[2].source for p in after_home}
    assert len(codes) == 1, 'chapters differ in the cell that installs the package'
    code = codes.pop()

    colab = Shell('<google.colab._shell.Shell object>')
    exec(code, dict(get_ipython=lambda: colab))
    assert len(colab.ran) == 1
    assert re.match(r'pip install .*cell_diffusion', colab.ran[0])

    elsewhere = Shell('<ipykernel.zmqshell.ZMQInteractiveShell object>')
    exec(code, dict(get_ipython=lambda: elsewhere))
    assert not elsewhere.ran


# Figures, captions and labels

def _options(source):
    option = r'(?m)^#\|\s*(label|fig-cap|fig-alt):\s*"?(.*?)"?\s*$'
    return dict(re.findall(option, source))


def _labels(path):
    "The labels of a notebook's figures and equations"
    found = []
    for c in cells(path):
        if c.cell_type == 'code':
            found.append(_options(c.source).get('label'))
        else:
            found += re.findall(r'\$\$ \{#([\w-]+)\}', c.source)
    return [label for label in found if label]


@each_chapter
def test_pictures_are_described(path):
    "A picture has a label, a caption and an alternative text; a slider has a text"
    for c in cells(path, 'code'):
        if flagged(c, 'hide'):
            continue
        data = [out.get('data', {}) for out in c.outputs]
        option = _options(c.source)
        where = f'{path.name}, cell {c.id}'
        if any('image/png' in d for d in data):
            assert len(option) == 3 and option['label'].startswith('fig-'), (
                f'{where}: label, fig-cap and fig-alt are needed, not {sorted(option)}')
            assert len(option['fig-alt']) > 30, f'{where}: fig-alt is too short'
            assert option['fig-alt'] != option['fig-cap'], f'{where}: fig-alt'

        pages = [d.get('text/html', '') for d in data]
        for html in pages:
            if 'class="frame-slider"' in html:
                alt = re.search(r'<img [^>]* alt="([^"]*)"', html)[1]
                assert len(alt) > 30, f'{where}: FrameSlider(…, alt=…) is too short'


def test_labels_are_unique():
    found = [label for p in chapters() for label in _labels(p)]
    twice = {label for label in found if found.count(label) > 1}
    assert not twice, f'labels that occur twice: {twice}'


@each_notebook
def test_references_have_a_target(path):
    "`@fig-…` and `@eq-…` work within a page only; to other chapters one links"
    used = set()
    for c in cells(path, 'markdown'):
        used |= {m.rstrip('-') for m in re.findall(r'@((?:fig|eq)-[\w-]+)', c.source)}
    missing = used - set(_labels(path))
    assert not missing, f'{path.name} refers to {missing}, which it does not have'
