#!/usr/bin/env python3
"""make_student.py: the chapters to hand out, made from the ones in nbs/.

`handout/student` has no solutions. `handout/teacher` has them folded, and a last cell
that runs all checks and says which exercises are solved. `--grade FILE` puts that cell
behind the answers of a student. Nothing is run.
"""
import argparse
import re
import sys
from copy import deepcopy
from pathlib import Path

import nbformat

from run_notebooks import chapters, flagged, nbs, root

site = 'https://cell-diffusion.github.io/cell_diffusion'
raw = 'https://raw.githubusercontent.com/cell-diffusion/cell_diffusion/main/nbs'
marks = re.compile(r'(?:#\s*\|.*\n)*#\s*(exercise|check|solution) (\d+)\b')

grading = '''# Grading: every check on the answers above
import contextlib, io

checks = {checks!r}
solved = 0
for k, check in checks.items():
    said = 'solved'
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            exec(check, dict(globals()))
        solved += 1
    except Exception as e:
        said = str(e) or type(e).__name__
    print(f'exercise {{k}}: {{said}}')
print(f'{{solved}} of {{len(checks)}} solved')'''


def mark(cell):
    "What a cell is to an exercise, as `('check', 2)`, or `(None, None)`"
    found = marks.match(cell.source) if cell.cell_type == 'code' else None
    return (found[1], int(found[2])) if found else (None, None)


def checks_of(nb):
    "The checks of a chapter: `{exercise: code}`"
    found = {}
    for cell in nb.cells:
        kind, k = mark(cell)
        if kind == 'check':
            found[k] = re.sub(r'^#\s*\|.*\n', '', cell.source, flags=re.M)
    return found


def linked(text):
    "Markdown whose links to chapters and pictures work where only one file is"
    def page(found):
        name = re.sub(r'^\d+[a-zA-Z]?_', '', found[1])
        return f']({site}/{name}.html{found[2] or ""})'
    text = re.sub(r'\]\(([\w-]+)\.(?:ipynb|qmd)(#[^)]*)?\)', page, text)
    return re.sub(r'\]\((img/[^)]+)\)', rf']({raw}/\1)', text)


def student(nb):
    "A chapter without solutions; stubs and checks run like other cells"
    nb = deepcopy(nb)
    kept = []
    for cell in nb.cells:
        kind, _ = mark(cell)
        if kind and flagged(cell, 'hide'):
            continue
        if kind:
            cell.source = re.sub(r'^#\s*\|.*\n', '', cell.source, flags=re.M)
            cell.outputs = []
        if cell.cell_type == 'markdown':
            cell.source = linked(cell.source)
        kept.append(cell)
    nb.cells = kept
    return nb


def graded(nb, checks):
    "A notebook with a last cell that runs these checks"
    nb = deepcopy(nb)
    if checks:
        cell = nbformat.v4.new_code_cell(grading.format(checks=checks), id='grading')
        nb.cells.append(cell)
    return nb


def teacher(nb):
    "A chapter with its solutions folded in the places of the stubs, and the grading"
    whole = student(nb)
    solutions = {mark(c)[1]: c for c in nb.cells if mark(c)[0] == 'solution'}
    kept = []
    for cell in whole.cells:
        kept.append(cell)
        kind, k = mark(cell)
        if kind == 'exercise':
            answer = deepcopy(solutions[k])
            answer.source = re.sub(r'^#\s*\|.*\n', '', answer.source, flags=re.M)
            answer.metadata.setdefault('jupyter', {})['source_hidden'] = True
            kept.append(answer)
    whole.cells = kept
    return graded(whole, checks_of(nb))


def write(nb, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(nb, path)


def grade(path):
    "Write FILE_graded.ipynb beside a student's FILE.ipynb"
    source = nbs/path.name
    if not source.exists():
        sys.exit(f'{path.name} is no chapter: give the file the name of its chapter.')
    checks = checks_of(nbformat.read(source, 4))
    if not checks:
        sys.exit(f'{path.name} has no exercises, so there is nothing to grade.')
    answers = nbformat.read(path, 4)
    out = path.with_name(f'{path.stem}_graded.ipynb')
    write(graded(answers, checks), out)
    print(f'{out}: run it from top to bottom, its last cell says what is solved')


def main(args=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--out', type=Path, default=root/'handout', metavar='FOLDER')
    parser.add_argument('--grade', type=Path, metavar='FILE',
                        help='the notebook of a student, with the name of its chapter')
    given = parser.parse_args(args)
    if given.grade:
        return grade(given.grade)
    for path in chapters():
        nb = nbformat.read(path, 4)
        write(student(nb), given.out/'student'/path.name)
        if checks_of(nb):
            write(teacher(nb), given.out/'teacher'/path.name)
    print(f'{given.out}: student and teacher, from the chapters in nbs')


if __name__ == '__main__':
    main()
