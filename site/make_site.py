#!/usr/bin/env python3
"""make_site.py: the course as a static site in _docs/.

It is made from the notebooks with the outputs they hold, in pure Python and npm's
KaTeX. Nothing is run, and a page loads nothing from another host.
"""
import importlib.util
import os
import sys
import time
from pathlib import Path

root = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(root), str(root/'site')]


def step(name, f, *args):
    "Run one step and say how long it took"
    begun = time.time()
    out = f(*args)
    print(f'{name}: {time.time() - begun:.1f} s', flush=True)
    return out


def check_requirements():
    "Stop with a sentence if something is not installed"
    for name in 'smalldocs', 'yaml', 'fontTools':
        if importlib.util.find_spec(name) is None:
            sys.exit(f"The site needs {name}: pip install -e '.[site]' with Python "
                     '3.11 or later (make site does it)')


def main():
    os.chdir(root)
    check_requirements()
    import assets
    import finish
    import stage
    from nbdev.config import get_config

    proc = root/'_proc'
    docs = root/'_docs'
    cfg = get_config()
    home = (cfg.doc_host + cfg.doc_baseurl).rstrip('/')

    step('npm packages', assets.packages)
    step('assets', assets.make, root/'nbs')
    step('nbdev', stage.process, root/'nbs', proc)
    problems = step('pages', stage.stage, proc, home)
    step('smalldocs', finish.render, proc, docs)
    problems += step('formulas, styles, links', finish.finish, docs, home)

    if problems:
        sys.exit('\n  '.join(['The site is built, but:', *problems]))
    n = len(list(docs.glob('*.html')))
    serve = 'python3 -m http.server --bind 127.0.0.1 -d _docs'
    print(f'{n} pages in _docs: serve them with {serve}')


if __name__ == '__main__':
    main()
