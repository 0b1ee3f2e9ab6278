"Notebooks, package and README say the same; what is committed is clean, documented and belongs to no machine"
import ast, importlib, inspect, os, re, subprocess, sys
from pathlib import Path
import nbformat, pytest
from fastcore.docments import docments
from common import cells, chapters, copy_project, imported, module_of, modules, nbs, root
from make_readme import readme

def _tool(name): return str(Path(sys.executable).parent/name)

@pytest.fixture(scope='module')
def redone(tmp_path_factory):
    "A copy of the project after `nbdev-export` and `nbdev-clean`"
    copy = copy_project(tmp_path_factory.mktemp('redone')/'project')
    env = {k:v for k, v in os.environ.items() if k != 'PYTHONPATH'}
    for tool in 'nbdev-export', 'nbdev-clean': subprocess.run([_tool(tool)], cwd=copy, check=True, capture_output=True, env=env)
    return copy

@pytest.mark.xdist_group('redone')
def test_export_is_in_step(redone):
    files = lambda d: {p.name: p.read_text() for p in sorted((d/'cell_diffusion').glob('*.py'))}
    old, new = files(root), files(redone)
    assert sorted(old) == sorted(new), 'the package has other files than nbdev-export writes'
    assert not (bad := [n for n in old if old[n] != new[n]]), f'run nbdev-export: {bad} differ from the notebooks'

@pytest.mark.xdist_group('redone')
def test_notebooks_are_clean(redone):
    bad = [p.name for p in chapters() if p.read_text() != (redone/'nbs'/p.name).read_text()]
    assert not bad, f'run nbdev-clean: it would change {bad}'

def test_readme_is_in_step():
    assert (root/'README.md').read_text() == readme(), 'run make readme: README.md differs from nbs/index.ipynb'
    assert 'TODO' not in readme(), 'nbs/index.ipynb still has things to fill in'

def test_readme_links():
    text = (root/'README.md').read_text()
    local = [l for l in re.findall(r'\]\(([^)#]+)[^)]*\)|src="([^"]+)"', text) for l in l if l and '://' not in l and not l.startswith('mailto:')]
    assert not (bad := [l for l in local if not (root/l).exists()]), f'README.md points to what is not there: {bad}'

def test_symlinks():
    for name in '_quarto.yml', 'img':
        link = nbs/name
        assert link.is_symlink() and link.exists(), f'nbs/{name} should be a symlink to ../{name}'
        assert link.resolve() == (root/name).resolve()

def test_version_in_one_place():
    import cell_diffusion
    assert re.fullmatch(r'\d+\.\d+\.\d+\S*', cell_diffusion.__version__)
    for f in 'settings.ini', 'pyproject.toml', 'setup.py': assert cell_diffusion.__version__ not in (root/f).read_text(), f'{f} repeats the version'
    assert f'## {cell_diffusion.__version__}' in (root/'CHANGELOG.md').read_text(), 'CHANGELOG.md has no entry for this version'

def test_no_machine_paths():
    files = [*chapters(), *(root/'cell_diffusion').glob('*.py'), *(root/'tools').glob('*.py'), *(root/'cell_diffusion').rglob('weights/**/*.json'), *root.glob('*.md'), *root.glob('*.toml'), *root.glob('*.ini'),
             *nbs.glob('*.qmd'), *(nbs/'browser').glob('*.js'), *(root/'site').glob('*.*'), *(root/'tests'/'site').glob('*.py')]
    machine = re.compile(r'(?<![\w.~:/-])/(?:home|Users|root|work|mnt|opt|srv)/\w+|site-packages|ipykernel_\d+')
    bad = {p.name: m[0] for p in files if (m := machine.search(_words(p)))}
    assert not bad, f'paths of one machine in {bad}'

def _words(path):
    "A file's text; a notebook's without its pictures"
    if path.suffix != '.ipynb': return path.read_text()
    out = []
    for c in cells(path):
        out.append(c.source)
        for o in c.get('outputs', []): out += [o.get('text', ''), *(v for k, v in o.get('data', {}).items() if k in ('text/plain', 'text/markdown'))]
    return '\n'.join(out)

@pytest.mark.parametrize('path', chapters(), ids=lambda p: p.stem)
def test_what_is_committed(path):
    nb = nbformat.read(path, 4)
    views = [c.id for c in nb.cells if c.cell_type == 'code' for o in c.outputs if any('widget-view' in k for k in o.get('data', {}))]
    assert 'widgets' not in nb.metadata and not views, 'holds a widget view, which shows an error where there is no kernel'
    assert path.stat().st_size < 1_500_000, 'over 1.5 MB'
    long = [c.id for c in nb.cells if c.cell_type == 'code' and len([l for l in c.source.splitlines() if l.strip()]) > 40]
    assert not long, f'cells of over 40 lines: {long}'
    twice = [c.id for c in nb.cells if c.cell_type == 'code' and re.match(r'(?!def )[\w.]*show_cells\(.*\)$', (c.source.splitlines() or [''])[-1])]
    assert not twice, f'end show_cells(...) with a semicolon, or the figure is drawn twice: {twice}'
    failed = [c.id for c in nb.cells if c.cell_type == 'code' for o in c.outputs if o.output_type == 'error']
    assert not failed, f'committed with an error in {failed}'

@pytest.mark.parametrize('path', chapters(), ids=lambda p: p.stem)
def test_equations_have_one_backslash(path):
    "Two before a letter would be a line break and a word"
    bad = [c.id for c in cells(path, 'markdown') for formula in re.findall(r'\$\$?[^$]+\$', c.source) if re.search(r'\\\\[A-Za-z]', formula)]
    assert not bad, f'doubled backslashes in the equations of {bad}'

order = modules()

@pytest.mark.parametrize('path', [p for p in chapters() if module_of(p)], ids=lambda p: p.stem)
def test_imports_point_backwards(path):
    me = order.index(module_of(path))
    for c in cells(path, 'code'):
        if c.source.lstrip().startswith('%%'): continue
        for name in imported(c.source):
            own = name == module_of(path) and '#| export' not in c.source
            assert name in order, f'{path.name} imports cell_diffusion.{name}, which no notebook makes'
            assert own or order.index(name) < me, f'{path.name} imports cell_diffusion.{name}, a later chapter'

@pytest.mark.parametrize('name', order)
def test_every_public_name_is_documented(name):
    module = importlib.import_module(f'cell_diffusion.{name}')
    bad = []
    for n in module.__all__:
        o = getattr(module, n)
        if not (inspect.isfunction(o) or inspect.isclass(o)) or o.__module__ != module.__name__: continue
        if not (o.__doc__ or '').strip() or (inspect.isclass(o) and o.__doc__.startswith(f'{n}(')): bad.append(f'{n}: no docstring'); continue
        bad += [f'{n}: parameter {p} has no comment' for p in _bare(o)]
    assert not bad, '\n'.join(bad)

def _bare(o):
    "Parameters of `o` with no comment behind them"
    try: params = inspect.signature(o).parameters
    except (ValueError, TypeError): return []
    if inspect.isclass(o) and issubclass(o, BaseException) or len(params) == 0: return []
    if inspect.isclass(o) and '__init__' not in vars(o): return []
    told = docments(o, eval_str=False)
    plain = [p for p in params.values() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) and p.name not in ('self', 'cls') and not p.name.startswith('_')]
    return [p.name for p in plain if not told.get(p.name) and not getattr(p.default, 'help', None)]  # typer's help counts
