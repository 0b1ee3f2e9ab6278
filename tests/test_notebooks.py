"Every chapter runs from top to bottom, alone, in a fresh kernel at the smoke scale; every exercise's check fails on its stub"
import re, time
import nbformat, pytest
from common import chapters, code_only, flagged, marked, root
from run_notebooks import run

tried = '''
_stub = {stub!r}
_ns = dict(globals())
try: exec(compile(_stub, 'stub', 'exec'), _ns)
except Exception: pass
else: raise AssertionError('check {k} passes although exercise {k} is not solved')
'''

def with_stubs(nb, path):
    "Before each hidden solution, try its check on the unsolved exercise: that must fail"
    stubs, checks, out = marked(path, 'exercise'), marked(path, 'check'), []
    for c in nb.cells:
        m = c.cell_type == 'code' and flagged(c, 'hide') and re.match(r'#\s*solution (\d+)\b', code_only(c.source))
        if m:
            k = int(m[1])
            out.append(nbformat.v4.new_code_cell(tried.format(k=k, stub=stubs[k][0][1] + '\n' + checks[k][0][1])))
        out.append(c)
    nb.cells = out
    return nb

@pytest.mark.parametrize('path', chapters(), ids=lambda p: p.stem)
def test_chapter(path):
    begun = time.time()
    run(with_stubs(nbformat.read(path, 4), path), path.name, path.parent, scale='smoke', testing=True)
    print(f'{path.stem}: {time.time() - begun:.1f} s')

numbered = [p for p in chapters() if p.stem[:2].isdigit()]

@pytest.mark.parametrize('path', numbered, ids=lambda p: p.stem)
def test_exercises_are_whole(path):
    stubs, checks, solutions = (marked(path, w) for w in ('exercise', 'check', 'solution'))
    assert len(stubs) >= 3, f'{path.name} has {len(stubs)} exercises, at least 3 are wanted'
    for k, found in stubs.items():
        assert [hidden for hidden, _ in found] == [False], f'{path.name}: exercise {k} needs one visible stub'
        assert [hidden for hidden, _ in solutions.get(k, [])] == [True], f'{path.name}: exercise {k} needs one hidden solution'
        assert sorted(hidden for hidden, _ in checks.get(k, [])) == [False, True], f'{path.name}: exercise {k} needs its check twice: shown, and hidden behind the solution'
        assert len({code for _, code in checks[k]}) == 1, f'{path.name}: the two copies of check {k} differ'
        assert 'assert' in checks[k][0][1] or 'test_' in checks[k][0][1], f'{path.name}: check {k} checks nothing'
