"Every chapter runs from top to bottom in a fresh kernel at the smoke scale, alone: in an empty folder, with the installed wheel and nothing else of the project; every exercise's check fails on its stub"
import ast, re, shutil, sys, time
from configparser import ConfigParser
from functools import cache
from importlib import metadata
import nbformat, pytest
from common import cells, chapters, code_only, flagged, marked, root
from run_notebooks import run

tried = '''
_stub = {stub!r}
_ns = dict(globals())
try: exec(compile(_stub, 'stub', 'exec'), _ns)
except Exception: pass
else: raise AssertionError('check {k} passes although exercise {k} is not solved')
'''

def with_stubs(nb, path):
    "Before each hidden solution, try its check on the unsolved exercise: that must fail"
    stubs, checks, out = marked(path, 'exercise'), marked(path, 'check'), []
    for c in nb.cells:
        m = c.cell_type == 'code' and flagged(c, 'hide') and re.match(r'#\s*solution (\d+)\b', code_only(c.source))
        if m:
            k = int(m[1])
            out.append(nbformat.v4.new_code_cell(tried.format(k=k, stub=stubs[k][0][1] + '\n' + checks[k][0][1])))
        out.append(c)
    nb.cells = out
    return nb

from_wheel = """
import sys
_files = {{n: m.__file__ for n, m in sys.modules.items() if n.split('.')[0] == 'cell_diffusion' and getattr(m, '__file__', None)}}
_other = {{n: f for n, f in _files.items() if not f.startswith({folder!r})}}
assert not _other, f'not from the installed wheel: {{_other}}'
"""

@pytest.mark.parametrize('path', chapters(), ids=lambda p: p.stem)
def test_chapter(path, built, tmp_path):
    begun, alone = time.time(), tmp_path/path.name
    shutil.copy(path, alone)
    nb = with_stubs(nbformat.read(alone, 4), alone)
    nb.cells.append(nbformat.v4.new_code_cell(from_wheel.format(folder=str(built.folder))))
    run(nb, path.name, tmp_path, scale='smoke', testing=True, package=built.folder)
    print(f'{path.stem}: {time.time() - begun:.1f} s')

@cache
def _required():
    "Names that can be imported where the package and what it requires are installed, and nothing else"
    from packaging.requirements import Requirement
    parser = ConfigParser(delimiters=['=']); parser.read(root/'settings.ini')
    plain, seen, todo = lambda name: re.sub(r'[-_.]+', '-', name).lower(), set(), parser['DEFAULT']['requirements'].split()
    while todo:
        r = Requirement(todo.pop())
        if plain(r.name) in seen or r.marker and not r.marker.evaluate(dict(extra='')): continue
        seen.add(plain(r.name))
        try: todo += metadata.requires(r.name) or []
        except metadata.PackageNotFoundError: pass
    return {m for m, dists in metadata.packages_distributions().items() if any(plain(d) in seen for d in dists)} | sys.stdlib_module_names | {'cell_diffusion'}

def _unguarded(source):
    "What a piece of code imports, but for what stands in a `try`"
    todo, names = [ast.parse('\n'.join(l for l in source.splitlines() if not l.lstrip().startswith(('%', '!'))))], []
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Import): names += [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom): names.append(node.module)
        elif not isinstance(node, ast.Try): todo += ast.iter_child_nodes(node)
    return {n.split('.')[0] for n in names}

@pytest.mark.parametrize('path', chapters(), ids=lambda p: p.stem)
def test_imports_what_the_package_requires(path):
    "A reader with the package alone, as in Colab, has no nbdev and no diffusers; what may be missing is imported in a `try`"
    bad = {c.id: more for c in cells(path, 'code') if not c.source.lstrip().startswith('%%') and (more := _unguarded(c.source) - _required())}
    assert not bad, f'{path.name} imports what the package does not require: {bad}'

numbered = [p for p in chapters() if p.stem[:2].isdigit()]

@pytest.mark.parametrize('path', numbered, ids=lambda p: p.stem)
def test_exercises_are_whole(path):
    stubs, checks, solutions = (marked(path, w) for w in ('exercise', 'check', 'solution'))
    assert len(stubs) >= 3, f'{path.name} has {len(stubs)} exercises, at least 3 are wanted'
    for k, found in stubs.items():
        assert [hidden for hidden, _ in found] == [False], f'{path.name}: exercise {k} needs one visible stub'
        assert [hidden for hidden, _ in solutions.get(k, [])] == [True], f'{path.name}: exercise {k} needs one hidden solution'
        assert sorted(hidden for hidden, _ in checks.get(k, [])) == [False, True], f'{path.name}: exercise {k} needs its check twice: shown, and hidden behind the solution'
        assert len({code for _, code in checks[k]}) == 1, f'{path.name}: the two copies of check {k} differ'
        assert 'assert' in checks[k][0][1] or 'test_' in checks[k][0][1], f'{path.name}: check {k} checks nothing'

badge = '[![Open in Colab](img/colab.svg)](https://colab.research.google.com/github/cell-diffusion/cell_diffusion/blob/main/nbs/{name}.ipynb)'
colab = """#| hide
# In Google Colab this installs the course; anywhere else it does nothing
if 'google.colab' in str(get_ipython()): get_ipython().system('pip install -q git+https://github.com/cell-diffusion/cell_diffusion')"""

@pytest.mark.parametrize('path', [p for p in chapters() if p.stem != 'index'], ids=lambda p: p.stem)
def test_opens_in_colab(path):
    "The badge below the title, then the cell that installs the package in Colab and does nothing elsewhere"
    title, below, first = nbformat.read(path, 4).cells[:3]
    assert title.source.startswith('# ') and below.source == badge.format(name=path.stem), f'{path.name} needs its badge in the second cell'
    assert first.cell_type == 'code' and first.source == colab, f'the third cell of {path.name} should install the package in Colab'

def test_the_colab_cell_installs_in_colab_only():
    for where, calls in ('<google.colab._shell.Shell object>', 1), ('<ipykernel.zmqshell.ZMQInteractiveShell object>', 0):
        shell = type('Shell', (), dict(__str__=lambda self: where, said=[], system=lambda self, line: self.said.append(line)))()
        exec(colab, dict(get_ipython=lambda: shell))
        assert len(shell.said) == calls and all(line.startswith('pip install ') for line in shell.said)

def _options(source): return dict(re.findall(r'(?m)^#\|\s*(label|fig-cap|fig-alt):\s*"?(.*?)"?\s*$', source))

@pytest.mark.parametrize('path', [p for p in chapters() if p.stem != 'index'], ids=lambda p: p.stem)
def test_pictures_are_described(path):
    "Each picture has a label, a caption, and words for who cannot see it that are not the caption; a slider has such words too"
    for c in cells(path, 'code'):
        if flagged(c, 'hide'): continue
        data, o = [out.get('data', {}) for out in c.outputs], _options(c.source)
        if any('image/png' in d for d in data):
            assert len(o) == 3 and o['label'].startswith('fig-'), f'{path.name}, cell {c.id}: label, fig-cap and fig-alt are wanted, there are {sorted(o)}'
            assert len(o['fig-alt']) > 30 and o['fig-alt'] != o['fig-cap'], f'{path.name}, {o["label"]}: the alternative text should say what is seen'
        for page in (d['text/html'] for d in data if 'class="frame-slider"' in d.get('text/html', '')):
            assert len(re.search(r'<img [^>]* alt="([^"]*)"', page)[1]) > 30, f'{path.name}, cell {c.id}: FrameSlider(..., alt=...) should say what the frames show'

def test_labels_are_unique():
    found = [_options(c.source).get('label') for p in chapters() for c in cells(p, 'code')] + [m for p in chapters() for c in cells(p, 'markdown') for m in re.findall(r'\$\$ \{#([\w-]+)\}', c.source)]
    found = [l for l in found if l]
    assert not (twice := {l for l in found if found.count(l) > 1}), f'labels that occur twice: {twice}'

@pytest.mark.parametrize('path', chapters(), ids=lambda p: p.stem)
def test_references_have_a_target(path):
    "A site resolves `@fig-…` and `@eq-…` within a page only; to other chapters one links"
    own = {_options(c.source).get('label') for c in cells(path, 'code')} | {m for c in cells(path, 'markdown') for m in re.findall(r'\$\$ \{#([\w-]+)\}', c.source)}
    asked = {m.rstrip('-') for c in cells(path, 'markdown') for m in re.findall(r'@((?:fig|eq)-[\w-]+)', c.source)}
    assert asked <= own, f'{path.name} refers to {asked - own}, which it does not have'
