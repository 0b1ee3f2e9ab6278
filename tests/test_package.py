"The package builds from a clean copy, holds what it should, and imports with no notebook tool in sight"
import email, os, subprocess, sys, tarfile, zipfile
from configparser import ConfigParser
import pytest
from common import modules, root

pytestmark = pytest.mark.xdist_group('built')

@pytest.fixture(scope='module')
def settings():
    parser = ConfigParser(delimiters=['='])
    parser.read(root/'settings.ini')
    return parser['DEFAULT']

def _weights(): return sorted(p.relative_to(root).as_posix() for p in (root/'cell_diffusion').glob('weights/**/*') if p.suffix in ('.safetensors', '.json', '.csv', '.md'))

def test_metadata_comes_from_settings(built, settings):
    with zipfile.ZipFile(built.wheel) as z: info = email.message_from_bytes(z.read(next(n for n in z.namelist() if n.endswith('METADATA'))))
    import cell_diffusion
    assert info['Version'] == cell_diffusion.__version__ and info['Name'].replace('-', '_') == settings['lib_name']
    assert info['Requires-Python'] == f">={settings['min_python']}" and info['Author'] == settings['author']
    needs = [r for r in info.get_all('Requires-Dist') if 'extra ==' not in r]
    assert sorted(needs) == sorted(settings['requirements'].split())
    assert info.get_payload().strip().startswith('<!-- Made from'), 'README.md is not the long description'

def test_wheel_holds_code_and_weights_only(built):
    with zipfile.ZipFile(built.wheel) as z: names = z.namelist()
    for m in modules(): assert f'cell_diffusion/{m}.py' in names
    assert sorted(n for n in names if n.startswith('cell_diffusion/weights/')) == _weights()
    assert not [n for n in names if n.endswith('.ipynb') or n.startswith(('nbs/', 'tests/', 'tools/'))]
    assert any(n.endswith('LICENSE') for n in names)
    with zipfile.ZipFile(built.wheel) as z: assert 'cell-diffusion = cell_diffusion.cli:app' in z.read(next(n for n in names if n.endswith('entry_points.txt'))).decode().replace('=cell', '= cell').replace('n=', 'n =')

def test_sdist_holds_what_a_build_needs(built):
    with tarfile.open(built.sdist) as t: names = ['/'.join(n.split('/')[1:]) for n in t.getnames()]
    for f in 'settings.ini', 'setup.py', 'pyproject.toml', 'README.md', 'LICENSE', *_weights(): assert f in names, f'{f} is missing'

blocked = '''
import sys, importlib
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {'nbdev', 'nbclient', 'nbconvert', 'nbformat', 'ipykernel', 'jupyter_client', 'diffusers', 'pytest'}: raise ImportError(f'{name} is not part of the package')
sys.meta_path.insert(0, Block())
sys.path.insert(0, sys.argv[1])
for m in sys.argv[2:]:
    f = importlib.import_module(f'cell_diffusion.{m}').__file__
    assert f.startswith(sys.argv[1]), f
'''

def test_imports_without_notebook_tools(built, tmp_path):
    env = dict(os.environ, PYTHONPATH='')
    done = subprocess.run([sys.executable, '-c', blocked, str(built.folder), *modules()], cwd=tmp_path, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
