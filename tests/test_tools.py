"The tool that runs the course: several notebooks at once, and failures"
import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

import run_notebooks


@pytest.fixture
def course(tmp_path):
    "Writes small notebooks, each of one cell"
    def write(**sources):
        paths = []
        for name, source in sources.items():
            paths.append(tmp_path/f'{name}.ipynb')
            nbformat.write(new_notebook(cells=[new_code_cell(source)]), paths[-1])
        return paths
    return write


def printed(folder, name):
    nb = nbformat.read(folder/f'{name}.ipynb', 4)
    return nb.cells[0].outputs[0].text.strip()


def test_two_notebooks_at_once(course, tmp_path, capfd, monkeypatch):
    monkeypatch.delenv('OMP_NUM_THREADS', raising=False)
    monkeypatch.setattr(run_notebooks.os, 'cpu_count', lambda: 6)
    asked = 'import os; print(os.environ["OMP_NUM_THREADS"])'
    paths = course(first=asked, second=asked)
    out = tmp_path/'out'
    assert not run_notebooks.main([*map(str, paths), '--jobs', '2', '--out', str(out)])
    assert printed(out, 'first') == printed(out, 'second') == '3'
    said = capfd.readouterr().out
    assert said.index('first   ') < said.index('second   ') < said.index('all   ')


@pytest.mark.parametrize('jobs', [1, 2])
def test_no_notebook_begins_after_a_failure(jobs, course, tmp_path, capfd):
    paths = course(wrong='1/0', waits='import time; time.sleep(2)', last='print(1)')
    out = tmp_path/'out'
    options = ['--jobs', str(jobs), '--out', str(out)]
    assert run_notebooks.main([*map(str, paths), *options])
    assert 'wrong.ipynb: cell 1 of 1' in capfd.readouterr().err
    assert not (out/'last.ipynb').exists()


def test_jobs_are_at_least_one(course, capfd):
    with pytest.raises(SystemExit):
        run_notebooks.main(['--jobs', '0'])
    assert '--jobs should be at least 1' in capfd.readouterr().err
