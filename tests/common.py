"Helpers of the tests: the notebooks, their cells, and a scratch copy of the project"
import ast, re, shutil
from pathlib import Path
import nbformat
from run_notebooks import chapters, flagged

root = Path(__file__).resolve().parent.parent
nbs = root/'nbs'
left_out = shutil.ignore_patterns('.git', '.venv', 'venv', '*.egg-info', 'course', 'runs', 'build', 'dist', '__pycache__', '.pytest_cache', '_proc', '_docs', '_docs_screenshots', '.ipynb_checkpoints', 'node_modules', 'katex', 'ort')

def copy_project(to):
    "A copy of the project without what is made from it; symlinks stay symlinks"
    return Path(shutil.copytree(root, to, symlinks=True, ignore=left_out))

def cells(path, kind=None):
    "The cells of the notebook at `path`, of one kind if asked"
    return [c for c in nbformat.read(path, 4).cells if kind is None or c.cell_type == kind]

def module_of(path):
    "The module that a notebook exports, or None"
    found = [m[1] for c in cells(path, 'code') if (m := re.search(r'^#\s*\|\s*default_exp\s+(\S+)', c.source, re.M))]
    return found[0] if found else None

def modules():
    "Modules in the order in which one may import another: as the chapters are read, with the viewer right after core"
    names = [m for p in chapters() if (m := module_of(p))]
    if 'viewer' in names and 'core' in names: names.remove('viewer'); names.insert(names.index('core') + 1, 'viewer')
    return names

def code_only(source):
    "A cell's code without nbdev's directives"
    return re.sub(r'^#\s*\|.*\n?', '', source, flags=re.M).strip()

def marked(path, what):
    "Cells by number that begin with `# exercise k`, `# check k` or `# solution k`: {k: [(hidden, code)]}"
    out = {}
    for c in cells(path, 'code'):
        if m := re.match(rf'#\s*{what} (\d+)\b', code_only(c.source)): out.setdefault(int(m[1]), []).append((flagged(c, 'hide'), code_only(c.source)))
    return out

def imported(source):
    "Modules of this package that a piece of code imports, anywhere in it"
    source = '\n'.join(l for l in source.splitlines() if not l.lstrip().startswith(('%', '!')))
    names = []
    for n in ast.walk(ast.parse(source)):
        if isinstance(n, ast.ImportFrom) and n.module and n.module.startswith('cell_diffusion.'): names.append(n.module.split('.')[1])
        elif isinstance(n, ast.ImportFrom) and n.module == 'cell_diffusion': names += [a.name for a in n.names if not a.name.startswith('__')]
        elif isinstance(n, ast.Import): names += [a.name.split('.')[1] for a in n.names if a.name.startswith('cell_diffusion.')]
    return names
