"""The check of every exercise takes its solution, and refuses what learners write.

The wrong answers are in `wrong_answers/CHAPTER.txt`. Each begins with a line
`== exercise: what is wrong`, and is a whole answer, or changes of the solution, one a
line: `old => new`.
"""
import ast
import contextlib
import io
import linecache
import random
import re
from functools import cache
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from common import cells, chapters, flagged, marked
from exercises import Chapter

folder = Path(__file__).parent/'wrong_answers'
with_exercises = [p for p in chapters() if marked(p, 'exercise')]
each = pytest.mark.parametrize('path', with_exercises, ids=lambda p: p.stem)
fewest = 3


def changed(solution, lines):
    "The solution with some of its parts exchanged"
    for line in lines:
        old, _, new = line.partition(' =>')
        old, new = [s.strip().replace('\\n', '\n') for s in (old, new)]
        assert solution.count(old) == 1, f'{old!r} is not once in\n{solution}'
        solution = solution.replace(old, new)
    return solution


def wrong_answers(path):
    "`{exercise: {what is wrong: answer}}`"
    file = folder/f'{path.stem}.txt'
    text = file.read_text(encoding='utf-8') if file.exists() else ''
    solutions = marked(path, 'solution')
    found = {k: {} for k in solutions}
    for part in re.split(r'(?m)^== ', text)[1:]:
        head, _, body = part.partition('\n')
        k, name = re.fullmatch(r'(\d+): (.+)', head).groups()
        lines = [l for l in body.splitlines() if l.strip()]
        answer = body
        if all(' =>' in l for l in lines):
            answer = changed(solutions[int(k)][0][1], lines)
        assert name not in found[int(k)], f'{path.stem}: {name} is there twice'
        found[int(k)][name] = answer
    return found


def run(code, names):
    "Run an answer or a check; its source can be looked up, as in a notebook"
    file = f'<{hash(code)}>'
    linecache.cache[file] = len(code), None, code.splitlines(True), file
    exec(compile(code, file, 'exec'), names)


def refused(check, answer, names):
    "What a check says to an answer: '' if it is accepted"
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    names = dict(names)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            run(answer, names)
            run(check, names)
    except BaseException as e:
        is_said = isinstance(e, AssertionError) and str(e)
        return f'{e}' if is_said else f'{type(e).__name__} without a word: {e}'
    finally:
        plt.close('all')
    return ''


def judge(path):
    "What is wrong with the checks of a chapter"
    first = {what: {k: found[0][1] for k, found in marked(path, what).items()}
             for what in ('exercise', 'check', 'solution')}
    checks, solutions = first['check'], first['solution']
    codes = {k: '\n'.join(f[k] for f in first.values()) for k in checks}
    chapter = Chapter(path, codes)
    for k, answers in wrong_answers(path).items():
        names = chapter.before(k)
        # The stub first: a solution may leave something behind, such as a command
        if not refused(checks[k], first['exercise'][k], names):
            yield f'exercise {k} accepts its stub'
        said = refused(checks[k], solutions[k], names)
        if said:
            yield f'exercise {k} refuses its solution: {said}'
        if len(answers) < fewest:
            yield f'exercise {k} has {len(answers)} wrong answers, {fewest} are needed'
        for name, answer in answers.items():
            said = refused(checks[k], answer, names)
            if not said:
                yield f'exercise {k} accepts: {name}'
            elif 'without a word' in said:
                yield f'exercise {k}, {name}: {said}'


@each
def test_wrong_answers_are_refused_with_a_reason(path, monkeypatch):
    monkeypatch.setenv('CELL_DIFFUSION_SCALE', 'smoke')
    bad = list(judge(path))
    assert not bad, '\n'.join([f'{len(bad)} in {path.name}', *bad])


@cache
def _asserts(code):
    return [n for n in ast.walk(ast.parse(code)) if isinstance(n, ast.Assert)]


@each
def test_every_assertion_of_a_check_says_what_is_wrong(path):
    for k, found in marked(path, 'check').items():
        bare = [ast.unparse(n) for n in _asserts(found[0][1]) if n.msg is None]
        assert not bare, f'{path.name}, check {k}: no message in {bare}'


@each
def test_solutions_are_folded(path):
    "In JupyterLab, and where a notebook's metadata are obeyed"
    for c in cells(path, 'code'):
        begins = re.match(r'(#\|.*\n)*# (solution|check) \d', c.source)
        if begins and flagged(c, 'hide'):
            folded = c.metadata.get('jupyter', {}).get('source_hidden')
            assert folded, f'{path.name}, cell {c.id} is not folded'


def test_each_table_has_its_chapter():
    stems = {p.stem for p in with_exercises}
    assert {p.stem for p in folder.glob('*.txt')} <= stems


def test_an_accepted_wrong_answer_is_found():
    check = "assert f(2) == 4, 'twice 2 is 4'"
    assert refused(check, 'def f(x): return x + 1', {}) == 'twice 2 is 4'
    assert not refused(check, 'def f(x): return x*x', {})
    assert 'without a word' in refused(check, 'def f(x): return x.y', {})
    assert changed('a + b', ['a => c', 'b => d']) == 'c + d'
