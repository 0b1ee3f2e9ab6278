"The chapters that are handed out: no solutions, and a cell that grades"
import contextlib
import io
import re

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

import make_student
from common import chapters, marked, nbs, root

check = "# check 1\nassert f(2) == 4, 'twice 2 is 4'\nassert f(3) == 6, 'and of 3, 6'"


@pytest.fixture
def chapter():
    "A chapter with one exercise"
    return new_notebook(cells=[
        new_markdown_cell('See [noise](03_process.ipynb#cells) ![](img/a.svg)'),
        new_code_cell('#| eval: false\n# exercise 1: twice\ndef f(x): ...'),
        new_code_cell(f'#| eval: false\n{check}'),
        new_code_cell('#| hide\n# solution 1\ndef f(x): return 2*x'),
        new_code_cell(f'#| hide\n{check}')])


def printed(nb, answer):
    "What the last cell prints behind an answer"
    names = {}
    exec(answer, names)
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(nb.cells[-1].source, names)
    return out.getvalue()


def test_a_student_gets_stubs_and_checks(chapter):
    nb = make_student.student(chapter)
    sources = [c.source for c in nb.cells]
    assert len(sources) == 3 and sources[2] == check
    assert sources[1] == '# exercise 1: twice\ndef f(x): ...'
    assert f']({make_student.site}/process.html#cells)' in sources[0]
    assert f']({make_student.raw}/img/a.svg)' in sources[0]
    assert len(chapter.cells) == 5 and '](03_process' in chapter.cells[0].source


def test_a_teacher_gets_solutions_and_grades(chapter):
    nb = make_student.teacher(chapter)
    kinds = [make_student.mark(c)[0] for c in nb.cells]
    assert kinds == [None, 'exercise', 'solution', 'check', None]
    assert nb.cells[2].metadata.jupyter.source_hidden
    said = printed(nb, nb.cells[2].source)
    assert said == 'exercise 1: solved\n1 of 1 solved\n'
    said = printed(nb, 'def f(x): return x + 2')
    assert said == 'exercise 1: and of 3, 6\n0 of 1 solved\n'


def test_a_students_notebook_is_graded(tmp_path, capsys):
    path = tmp_path/'03_process.ipynb'
    nbformat.write(make_student.student(nbformat.read(nbs/path.name, 4)), path)
    make_student.main(['--grade', str(path)])
    nb = nbformat.read(tmp_path/'03_process_graded.ipynb', 4)
    assert 'flow_step' in nb.cells[-1].source and 'Grading' in nb.cells[-1].source
    assert 'its last cell says what is solved' in capsys.readouterr().out

    for name, words in (('mine', 'is no chapter'), ('index', 'has no exercises')):
        with pytest.raises(SystemExit, match=words):
            make_student.main(['--grade', str(tmp_path/f'{name}.ipynb')])


def test_no_solution_is_handed_out(tmp_path):
    "In any chapter; everything else is there"
    make_student.main(['--out', str(tmp_path)])
    for path in chapters():
        nb = nbformat.read(tmp_path/'student'/path.name, 4)
        kinds = [make_student.mark(c) for c in nb.cells]
        exercises = marked(path, 'exercise')
        assert not [k for kind, k in kinds if kind == 'solution']
        assert [k for kind, k in kinds if kind == 'check'] == list(exercises)
        hidden = 2*len(exercises)
        assert len(nb.cells) == len(nbformat.read(path, 4).cells) - hidden
        assert (tmp_path/'teacher'/path.name).exists() == bool(exercises)
        shown = '\n'.join(c.source for c in nb.cells if c.cell_type == 'markdown')
        assert not re.search(r'\]\((?!http|#)[\w/.-]+\.(ipynb|qmd|svg)', shown)


def test_nothing_made_is_committed_and_the_site_publishes_it():
    assert 'handout/' in (root/'.gitignore').read_text().splitlines()
    workflow = (root/'.github'/'workflows'/'site.yml').read_text()
    assert 'make student' in workflow and 'HEAD:student' in workflow
