"A browser and the built site, served from below a path as on Pages: make site first"
import functools
import http.server
import os
import shutil
import sys
import threading
from pathlib import Path

import pytest

root = Path(__file__).resolve().parents[2]
docs = root/'_docs'
shots = root/'_docs_screenshots'
below = '/some/path/'
sys.path[:0] = [str(root/'site')]

no_site = 'There is no site in _docs: make site first'
no_browser = (
    'There is no Chromium on the PATH: install it (Debian: apt-get install chromium), '
    'or name one in CELL_DIFFUSION_CHROMIUM')
commands = 'chromium', 'chromium-browser', 'google-chrome'


class Served(http.server.SimpleHTTPRequestHandler):
    "Serve `_docs` below a path, and nothing else"
    extensions_map = {
        **http.server.SimpleHTTPRequestHandler.extensions_map,
        '.mjs': 'text/javascript',
        '.wasm': 'application/wasm',
    }

    def translate_path(self, path):
        if not path.startswith(below):
            path = below + 'not-here'
        return super().translate_path('/' + path.removeprefix(below))

    def log_message(self, *args):
        pass


class Quiet(http.server.SimpleHTTPRequestHandler):
    "Python's own server, without its messages"
    def log_message(self, *args):
        pass


@pytest.fixture
def serve():
    "Serves folders on this machine alone: `serve(folder)` is the address"
    servers = []

    def start(folder):
        handler = functools.partial(Quiet, directory=str(folder))
        servers.append(http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f'http://127.0.0.1:{servers[-1].server_port}'
    yield start
    for server in servers:
        server.shutdown()


@pytest.fixture(scope='session')
def site_url():
    if not (docs/'index.html').is_file():
        pytest.fail(no_site, pytrace=False)
    handler = functools.partial(Served, directory=str(docs))
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}{below}'
    server.shutdown()


def _chromium():
    "The Chromium to use, or None"
    named = os.environ.get('CELL_DIFFUSION_CHROMIUM')
    found = [shutil.which(c) for c in commands]
    return named or next(filter(None, found), None)


@pytest.fixture(scope='session')
def browser():
    from playwright.sync_api import sync_playwright
    found = _chromium()
    if not found:
        pytest.fail(no_browser, pytrace=False)
    args = ['--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage']
    with sync_playwright() as p:
        chromium = p.chromium.launch(executable_path=found, args=args)
        yield chromium
        chromium.close()


@pytest.fixture
def new_page(browser):
    "Opens pages, each in a window of its own: `new_page(width=375)`"
    contexts = []

    def open_page(width=1360, height=900, **options):
        options = dict(color_scheme='light', reduced_motion='reduce') | options
        size = dict(width=width, height=height)
        contexts.append(browser.new_context(viewport=size, **options))
        return contexts[-1].new_page()
    yield open_page
    for context in contexts:
        context.close()


@pytest.fixture
def page(new_page):
    return new_page()
