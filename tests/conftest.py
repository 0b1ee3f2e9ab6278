"What the tests share: where things are, the runner of notebooks, and the built package"
import shutil, subprocess, sys
from collections import namedtuple
from pathlib import Path
import pytest
from filelock import FileLock
root = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(root), str(root/'tools')]

Built = namedtuple('Built', 'sdist wheel folder')

def _make(to):
    "Build the sdist from a clean copy and the wheel from that, and install the wheel alone into `to/installed`"
    from common import copy_project
    def call(*args, cwd):
        done = subprocess.run([sys.executable, '-m', *args], cwd=cwd, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    call('build', '--no-isolation', '--outdir', str(to/'dist'), cwd=copy_project(to/'project'))
    call('pip', 'install', '--quiet', '--no-deps', '--no-index', '--target', str(to/'installed'), *map(str, (to/'dist').glob('*.whl')), cwd=to)
    (to/'ready').touch()

@pytest.fixture(scope='session')
def built(tmp_path_factory, worker_id):
    "The sdist, the wheel made from it, and the folder that holds the installed wheel and nothing else: made once, by whichever of pytest's processes comes first"
    base = tmp_path_factory.getbasetemp()
    to = (base if worker_id == 'master' else base.parent)/'built'
    with FileLock(f'{to}.lock'):
        if not (to/'ready').exists():
            shutil.rmtree(to, ignore_errors=True); to.mkdir()
            _make(to)
    return Built(next((to/'dist').glob('*.tar.gz')), next((to/'dist').glob('*.whl')), to/'installed')
