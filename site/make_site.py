#!/usr/bin/env python3
"""make_site.py [--assets]: the course as a static site in _docs/, from the notebooks with the outputs they hold, in pure Python (and npm's KaTeX).
Nothing is run and nothing is fetched when a page is read. `--assets` makes only what the pages need beside them, which nbdev-docs with Quarto needs too."""
import argparse, os, sys, time
from pathlib import Path

root = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(root), str(root/'site')]

def step(name, f, *args):
    "Run one step and say how long it took"
    begun = time.time()
    out = f(*args)
    print(f'{name}: {time.time() - begun:.1f} s', flush=True)
    return out

def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--assets', action='store_true', help='only the files that pages need beside them')
    only_assets = parser.parse_args().assets
    os.chdir(root)
    import assets
    step('npm packages', assets.packages)
    step('assets', assets.make, root/'nbs')
    if only_assets: return
    try: import smalldocs, yaml, fontTools
    except ImportError as e: sys.exit(f"The site needs {e.name}: pip install -e '.[site]' with Python 3.11 or later (make site does it)")
    import finish, stage
    from nbdev.config import get_config
    proc, docs, cfg = root/'_proc', root/'_docs', get_config()
    home = (cfg.doc_host + cfg.doc_baseurl).rstrip('/')
    step('nbdev', stage.process, root/'nbs', proc)
    problems = step('pages', stage.stage, proc, home)
    step('smalldocs', finish.render, proc, docs)
    problems += step('formulas, styles, links', finish.finish, docs)
    if problems: sys.exit('The site is built, but:\n  ' + '\n  '.join(problems))
    print(f'{len(list(docs.glob("*.html")))} pages in {docs.relative_to(root)}: serve them with python3 -m http.server -d _docs')

if __name__ == '__main__': main()
