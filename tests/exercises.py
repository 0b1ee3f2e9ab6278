"""What an exercise needs, without a run of its chapter.

From the cells before an exercise only those statements are run on which its check
depends. Exported code is taken from the package.
"""
import ast
import builtins
import contextlib
import dis
import importlib
import io
import re
from dataclasses import dataclass, field

from common import cells, code_only, flagged, without_magics

# Calls that show something and change nothing
shows = re.compile(r'(show|plot|draw|print|display|sns|plt|ax|fig)')


@dataclass
class Statement:
    "One statement of a chapter, and what it reads and binds"
    node: ast.stmt
    module: str = '' # Where nbdev writes it, if it is exported
    reads: set = field(default_factory=set)
    binds: set = field(default_factory=set)
    changes: set = field(default_factory=set)
    surely: bool = True # Whether nothing is left of what the names were before

    def __post_init__(self):
        self.reads, self.binds = _flow([self.node], set())
        self.changes = set(_changed(self.node))
        self.surely = not isinstance(self.node, (ast.If, ast.Try, ast.While))

    def run(self, names):
        "Run it among `names`, or take what it defines from the package"
        if self.module and not isinstance(self.node, (ast.Import, ast.ImportFrom)):
            package = vars(importlib.import_module(f'cell_diffusion.{self.module}'))
            names.update({n: package[n] for n in self.binds if n in package})
            return
        exec(compile(ast.Module([self.node], []), 'chapter', 'exec'), names)


def _flow(body, bound):
    "What statements read that is not bound by those before them, and what they bind"
    reads = set()
    binds = set()
    for node in body:
        if isinstance(node, (ast.Break, ast.Continue)):
            continue
        parts = _parts(node)
        if parts is None:
            code = compile(ast.Module([node], []), 'chapter', 'exec')
            read, bind = _reads_and_binds(code)
        else:
            read, bind = _flow(parts, bound | binds)
        reads |= read - bound - binds
        binds |= bind
    return reads, binds


def _assign(target, value):
    "`target = value`, as a statement"
    return _placed(ast.Assign([target], value), value)


def _evaluate(value):
    "A value by itself, as a statement"
    return _placed(ast.Expr(value), value)


def _placed(node, value):
    "A new node, at the place of an old one"
    return ast.fix_missing_locations(ast.copy_location(node, value))


def _parts(node):
    "What a compound statement does, one after the other; None for any other"
    if isinstance(node, ast.With):
        items = [_assign(i.optional_vars, i.context_expr) if i.optional_vars
                 else _evaluate(i.context_expr) for i in node.items]
        return items + node.body
    if isinstance(node, ast.For):
        return [_assign(node.target, node.iter), *node.body, *node.orelse]
    if isinstance(node, (ast.If, ast.While)):
        return [_evaluate(node.test), *node.body, *node.orelse]
    if isinstance(node, ast.Try):
        caught = [s for h in node.handlers for s in h.body]
        return [*node.body, *caught, *node.orelse, *node.finalbody]
    return None


def _reads_and_binds(code):
    "Global names that a piece of code reads, functions in it included, and binds"
    reads = set()
    binds = set()
    for step in dis.get_instructions(code):
        if step.opname in ('LOAD_NAME', 'LOAD_GLOBAL'):
            reads.add(step.argval)
        elif step.opname in ('STORE_NAME', 'STORE_GLOBAL'):
            binds.add(step.argval)
    for inner in code.co_consts:
        if hasattr(inner, 'co_code'):
            more, _ = _reads_and_binds(inner)
            is_class = inner.co_names[:1] == ('__name__',)
            reads |= _class_reads(inner) if is_class else more
    return reads - set(dir(builtins)), binds


def _class_reads(code):
    "What the body of a class reads that it does not bind itself"
    reads, binds = _reads_and_binds_flat(code)
    for inner in code.co_consts:
        if hasattr(inner, 'co_code'):
            reads |= _reads_and_binds(inner)[0]
    return reads - binds - {'__name__'}


def _reads_and_binds_flat(code):
    steps = list(dis.get_instructions(code))
    reads = {s.argval for s in steps if s.opname in ('LOAD_NAME', 'LOAD_GLOBAL')}
    return reads, {s.argval for s in steps if s.opname == 'STORE_NAME'}


def _root(node):
    "The name at the beginning of `a.b[c].d`"
    while isinstance(node, (ast.Attribute, ast.Subscript, ast.Call)):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else None


def _changed(node):
    "Names of objects that a statement may change without binding them"
    for part in ast.walk(node):
        if isinstance(part, (ast.Assign, ast.AugAssign)):
            targets = part.targets if isinstance(part, ast.Assign) else [part.target]
            for target in targets:
                if isinstance(target, (ast.Attribute, ast.Subscript)):
                    yield _root(target)
        is_call = isinstance(part, ast.Expr) and isinstance(part.value, ast.Call)
        if is_call and not shows.match(_root(part.value) or ''):
            yield _root(part.value)
            yield from (_root(a) for a in part.value.args if _root(a))


def _module_of(source, default):
    "The module that a cell is exported to, or ''"
    found = re.search(r'^#\|\s*export\w*(?:[ \t]+([\w.]+))?', source, re.M)
    return (found[1] or default) if found else ''


def statements(path):
    "Statements that run in a chapter, and its exercises by the place where they stand"
    found = []
    default = ''
    stubs = {}
    for c in cells(path, 'code'):
        if m := re.search(r'^#\|\s*default_exp[ \t]+([\w.]+)', c.source, re.M):
            default = m[1]
        code = code_only(c.source)
        if m := re.match(r'#\s*solution (\d+)\b', code):
            stubs[int(m[1])] = len(found)
        if 'get_ipython' in code or flagged(c, r'eval\s*:\s*false'):
            continue
        if c.source.lstrip().startswith('%%'):
            continue
        module = _module_of(c.source, default)
        body = ast.parse(without_magics(c.source)).body
        found += [Statement(node, module) for node in body]
    return found, stubs


def needs(found, until, code):
    "The places in `found`, before `until`, of what a piece of code depends on"
    wanted, _ = _flow(ast.parse(code).body, set())
    chosen = set()
    missing = wanted
    for _ in range(4):
        missing = _walk_back(found, until, missing, chosen)
        if not missing:
            break
    return chosen


def _walk_back(found, until, wanted, chosen):
    "Go back once, choose what binds or changes a wanted name; what is still missing"
    wanted = set(wanted)
    for i in reversed(range(until)):
        s = found[i]
        star = isinstance(s.node, ast.ImportFrom) and s.node.names[0].name == '*'
        is_assert = isinstance(s.node, ast.Assert)
        if star or not is_assert and (s.binds | s.changes) & wanted:
            chosen.add(i)
            if s.surely and not s.changes:
                wanted -= s.binds
            wanted |= set() if s.module else s.reads
    return wanted


class Chapter:
    "Runs what the exercises of a chapter need, each up to its place"
    def __init__(self, path, codes):
        self.found, self.places = statements(path)
        self.chosen = set()
        for k, code in codes.items():
            self.chosen |= needs(self.found, self.places[k], code)
        self.names = {'__name__': '__main__'}
        self.done = 0

    def before(self, k):
        "The names that a reader has before exercise `k`"
        with contextlib.redirect_stdout(io.StringIO()):
            for i in range(self.done, self.places[k]):
                if i in self.chosen:
                    self.found[i].run(self.names)
        self.done = max(self.done, self.places[k])
        return dict(self.names)
