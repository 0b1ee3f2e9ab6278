"A browser and the built site, served from below a path as on Pages: make site first"
import functools, http.server, os, shutil, sys, threading
from pathlib import Path
import pytest

root = Path(__file__).resolve().parents[2]
docs, shots, below = root/'_docs', root/'_docs_screenshots', '/some/path/'
sys.path[:0] = [str(root/'site')]

class Served(http.server.SimpleHTTPRequestHandler):
    "Serve `_docs` below a path, and nothing else"
    extensions_map = {**http.server.SimpleHTTPRequestHandler.extensions_map, '.mjs': 'text/javascript', '.wasm': 'application/wasm'}
    def translate_path(self, path): return super().translate_path('/' + path[len(below):] if path.startswith(below) else '/not-here')
    def log_message(self, *args): pass

@pytest.fixture(scope='session')
def site_url():
    if not (docs/'index.html').is_file(): pytest.fail('There is no site in _docs: make site first', pytrace=False)
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Served, directory=str(docs)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}{below}'
    server.shutdown()

@pytest.fixture(scope='session')
def browser():
    from playwright.sync_api import sync_playwright
    found = os.environ.get('CELL_DIFFUSION_CHROMIUM') or next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
    if not found: pytest.fail('There is no Chromium on the PATH: install it (Debian: apt-get install chromium), or name one in CELL_DIFFUSION_CHROMIUM', pytrace=False)
    with sync_playwright() as p:
        chromium = p.chromium.launch(executable_path=found, args=['--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage'])
        yield chromium
        chromium.close()

@pytest.fixture
def page(browser):
    context = browser.new_context(viewport=dict(width=1360, height=900), color_scheme='light', reduced_motion='reduce')
    yield context.new_page()
    context.close()
