"The package builds from a clean copy and imports where no notebook tool is installed"
import email
import os
import subprocess
import sys
import tarfile
import zipfile
from configparser import ConfigParser

import pytest

from common import module_file, modules, package, root

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def settings():
    parser = ConfigParser(delimiters=['='])
    parser.read(root/'settings.ini')
    return parser['DEFAULT']


def _weights():
    "Everything that ships beside the code"
    kinds = '.safetensors', '.json', '.csv', '.md'
    files = [p for p in package.glob('weights/**/*') if p.suffix in kinds]
    files += [p for p in package.glob('browser/*') if p.is_file()]
    return sorted(p.relative_to(root).as_posix() for p in files)


def _names(built):
    with zipfile.ZipFile(built.wheel) as z:
        return z.namelist()


def _text(built, ending):
    "The one file of the wheel whose name has this ending"
    name = next(n for n in _names(built) if n.endswith(ending))
    with zipfile.ZipFile(built.wheel) as z:
        return z.read(name).decode()


def test_metadata_comes_from_settings(built, settings):
    from cell_diffusion import __version__
    info = email.message_from_string(_text(built, 'METADATA'))
    assert info['Version'] == __version__
    assert info['Name'].replace('-', '_') == settings['lib_name']
    assert info['Requires-Python'] == f">={settings['min_python']}"
    assert info['Author'] == settings['author']

    needs = [r for r in info.get_all('Requires-Dist') if 'extra ==' not in r]
    assert sorted(needs) == sorted(settings['requirements'].split())
    described = info.get_payload().strip()
    assert described.startswith('<!-- Made from'), 'README.md is not the description'


def test_wheel_holds_code_and_weights_only(built):
    names = _names(built)
    for m in modules():
        file = module_file(m)
        assert file.relative_to(root).as_posix() in names
        assert (file.parent/'__init__.py').relative_to(root).as_posix() in names
    shipped_folders = 'cell_diffusion/weights/', 'cell_diffusion/browser/'
    shipped = sorted(n for n in names if n.startswith(shipped_folders))
    assert shipped == _weights()
    assert not [n for n in names if n.endswith('.ipynb')]
    assert not [n for n in names if n.startswith(('nbs/', 'tests/', 'tools/', 'site/'))]
    assert any(n.endswith('LICENSE') for n in names)


def test_wheel_has_the_command(built):
    parser = ConfigParser(delimiters=['='])
    parser.read_string(_text(built, 'entry_points.txt'))
    assert parser['console_scripts']['cell-diffusion'] == 'cell_diffusion.cli:app'


def test_sdist_holds_what_a_build_needs(built):
    with tarfile.open(built.sdist) as t:
        names = ['/'.join(n.split('/')[1:]) for n in t.getnames()]
    needed = ['settings.ini', 'setup.py', 'pyproject.toml', 'README.md', 'LICENSE']
    for f in needed + _weights():
        assert f in names, f'{f} is missing'


blocked = '''
import sys, importlib

tools = {'nbdev', 'nbclient', 'nbconvert', 'nbformat', 'ipykernel', 'jupyter_client',
         'diffusers', 'pytest'}

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in tools:
            raise ImportError(f'{name} is not part of the package')

folder, *names = sys.argv[1:]
sys.meta_path.insert(0, Block())
sys.path.insert(0, folder)
for m in names:
    file = importlib.import_module(f'cell_diffusion.{m}').__file__
    assert file.startswith(folder), file
'''


def test_imports_without_notebook_tools(built, tmp_path):
    args = [sys.executable, '-c', blocked, str(built.folder), *modules()]
    env = dict(os.environ, PYTHONPATH='')
    done = subprocess.run(args, cwd=tmp_path, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
