"Helpers of the tests: notebooks and their cells, the map of modules, a scratch copy"
import ast
import re
import shutil
from pathlib import Path

import nbformat

from run_notebooks import chapters, flagged  # noqa: F401, `chapters` is for the tests

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

root = Path(__file__).resolve().parent.parent
nbs = root/'nbs'
package = root/'cell_diffusion'

# What is made from the project, and therefore not copied with it
left_out = shutil.ignore_patterns(
    '.git', '.venv', 'venv', '*.egg-info', 'course', 'handout', 'runs', 'build', 'dist',
    '__pycache__', '.pytest_cache', '.ruff_cache', '_proc', '_docs',
    '_docs_screenshots', '.ipynb_checkpoints', 'node_modules', 'katex', 'ort',
)


def copy_project(to):
    "A copy of the project without what is made from it; symlinks stay symlinks"
    return Path(shutil.copytree(root, to, symlinks=True, ignore=left_out))


def cells(path, kind=None):
    "The cells of the notebook at `path`, all of them or those of one kind"
    found = nbformat.read(path, 4).cells
    return [c for c in found if kind is None or c.cell_type == kind]


def project():
    "What `pyproject.toml` says"
    return tomllib.loads((root/'pyproject.toml').read_text(encoding='utf-8'))


def modules():
    "The modules in import order: `core`, …, `studies.race`"
    return list(project()['tool']['nbdev']['modules'])


def module_file(name):
    "The file of a module: `studies.race` is `cell_diffusion/studies/race.py`"
    return package/f"{name.replace('.', '/')}.py"


def public_names(name):
    "The names in a module's `__all__`, read from its file without running it"
    for node in ast.parse(module_file(name).read_text(encoding='utf-8')).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == '__all__':
            return ast.literal_eval(node.value)
    return []


def code_only(source):
    "A cell's code without nbdev's directives"
    return re.sub(r'^#\s*\|.*\n?', '', source, flags=re.M).strip()


def without_magics(source):
    "A cell's code without lines for IPython or the shell, which Python cannot parse"
    lines = source.splitlines()
    return '\n'.join(l for l in lines if not l.lstrip().startswith(('%', '!')))


def marked(path, what):
    "Cells that begin with `# exercise k` (check, solution): `{k: [(hidden, code), …]}`"
    out = {}
    for c in cells(path, 'code'):
        code = code_only(c.source)
        if m := re.match(rf'#\s*{what} (\d+)\b', code):
            out.setdefault(int(m[1]), []).append((flagged(c, 'hide'), code))
    return out


def _absolute(node, inside):
    "The full name of what a `from … import` imports from, in the module `inside`"
    if not node.level:
        return node.module
    parents = ['cell_diffusion', *inside.split('.')][:-node.level]
    return '.'.join([*parents, node.module] if node.module else parents)


def _is_module(name):
    "Whether `cell_diffusion.core`, for example, is a file or folder of the package"
    path = root/name.replace('.', '/')
    return path.with_suffix('.py').exists() or path.is_dir()


def imported(source, inside=''):
    "The modules of this package that a piece of code imports, anywhere in it"
    found = []
    for node in ast.walk(ast.parse(without_magics(source))):
        if isinstance(node, ast.ImportFrom):
            whole = _absolute(node, inside)
            parts = [f'{whole}.{alias.name}' for alias in node.names]

            # What is imported may be a module itself, or a name in one
            found += [whole, *filter(_is_module, parts)]
        elif isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
    ours = [n for n in found if n and n.startswith('cell_diffusion.')]
    return [n.split('.', 1)[1] for n in dict.fromkeys(ours)]
