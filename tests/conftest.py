"What the tests share: where things are, which are slow, and the built package"
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
from filelock import FileLock

here = Path(__file__).resolve().parent
root = here.parent
sys.path[:0] = [str(root), str(root/'tools')]

Built = namedtuple('Built', 'sdist wheel folder')


def _listed(name):
    "The lines of a list beside the tests, without its comments"
    lines = (here/name).read_text(encoding='utf-8').splitlines()
    return [l.strip() for l in lines if l.strip() and not l.startswith('#')]


def _is_slow(item, slow):
    "Whether a test needs the built wheel, or `slow.txt` names it or its file"
    file = item.path.name
    function = f'{file}::{item.originalname}'
    whole = f'{file}::{item.name}'
    return 'built' in item.fixturenames or bool(slow & {file, function, whole})


def pytest_collection_modifyitems(items):
    "Mark the slow tests; `make test-fast` leaves them out"
    slow = set(_listed('slow.txt'))
    for item in items:
        if isinstance(item, pytest.Function) and _is_slow(item, slow):
            item.add_marker(pytest.mark.slow)


def _call(*args, cwd):
    "Run a module of Python, and show what it said if it fails"
    command = [sys.executable, '-m', *map(str, args)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def _make(to):
    "Build the sdist from a clean copy and the wheel from it; install the wheel alone"
    from common import copy_project
    project = copy_project(to/'project')
    _call('build', '--no-isolation', '--outdir', to/'dist', cwd=project)

    alone = ['--no-deps', '--no-index', '--target', to/'installed']
    _call('pip', 'install', '--quiet', *alone, *(to/'dist').glob('*.whl'), cwd=to)


@pytest.fixture(scope='session')
def once(tmp_path_factory, worker_id):
    """Makes a folder by its name and a function that fills it.

    Whichever of pytest's processes comes first makes it, once for all.
    """
    base = tmp_path_factory.getbasetemp()

    def folder(name, make):
        to = (base if worker_id == 'master' else base.parent)/name
        with FileLock(f'{to}.lock'):
            if not (to/'ready').exists():
                shutil.rmtree(to, ignore_errors=True)
                to.mkdir()
                make(to)
                (to/'ready').touch()
        return to
    return folder


@pytest.fixture(scope='session')
def built(once):
    "The sdist, the wheel made from it, and a folder with the installed wheel alone"
    to = once('built', _make)
    sdist = next((to/'dist').glob('*.tar.gz'))
    wheel = next((to/'dist').glob('*.whl'))
    return Built(sdist, wheel, to/'installed')
