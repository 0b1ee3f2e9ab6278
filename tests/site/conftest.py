"Browsers and the built site, served from below a path as on Pages: make site first"
import functools
import http.server
import os
import shutil
import sys
import threading
from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright

here = Path(__file__).resolve().parent
root = here.parents[1]
docs = root/'_docs'
shots = root/'_docs_screenshots'
below = '/some/path/'
sys.path[:0] = [str(root/'site')]
import tested  # noqa: E402

no_site = 'There is no site in _docs: make site first'
no_browser = (
    'There is no Chromium on the PATH: install it (Debian: apt-get install chromium), '
    'or name one in CELL_DIFFUSION_CHROMIUM')
no_firefox = (
    'Firefox is not installed, so its tests are skipped: `playwright install firefox` '
    'fetches one, or name a new Firefox in CELL_DIFFUSION_FIREFOX')
commands = 'chromium', 'chromium-browser', 'google-chrome'
browsers = 'chromium', 'firefox'


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


def _chromium(p):
    "Chromium, or a failure that says what is missing"
    on_path = filter(None, map(shutil.which, commands))
    found = os.environ.get('CELL_DIFFUSION_CHROMIUM') or next(on_path, None)
    if not found:
        pytest.fail(no_browser, pytrace=False)
    args = ['--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage']
    return p.chromium.launch(executable_path=found, args=args)


def _firefox(p):
    "Playwright's own Firefox, or the one that is named; skips where there is none"
    named = os.environ.get('CELL_DIFFUSION_FIREFOX')
    if not named and not Path(p.firefox.executable_path).exists():
        pytest.skip(no_firefox)
    kind = dict(channel='moz-firefox', executable_path=named) if named else {}
    return p.firefox.launch(firefox_user_prefs={'ui.prefersReducedMotion': 1}, **kind)


@pytest.fixture(scope='session')
def playwright():
    with sync_playwright() as p:
        yield p


@pytest.fixture(scope='session', params=browsers)
def browser(request, playwright):
    "Every test that opens a page runs in each of the browsers"
    launch = dict(chromium=_chromium, firefox=_firefox)[request.param]
    started = launch(playwright)
    yield started
    started.close()


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


# What is deployed is what was tested

begun = pytest.StashKey()


def _is_whole(config):
    "Whether all tests of the site run, and not some that were chosen"
    options = 'keyword', 'markexpr', 'lf', 'deselect'
    chosen = any(getattr(config.option, name, None) for name in options)
    return not chosen and [Path(a).resolve() for a in config.args] == [here]


def _is_part(config):
    "Whether this is one of several processes that share the tests"
    return hasattr(config, 'workerinput')


def pytest_sessionstart(session):
    "Forget what an earlier run has found, and remember what the site is now"
    if _is_part(session.config):
        return
    tested.stamp.unlink(missing_ok=True)
    session.config.stash[begun] = tested.digest(docs)


def pytest_sessionfinish(session, exitstatus):
    "Leave a stamp of the site, if all tests passed on it as it is"
    if _is_part(session.config):
        return
    same = session.config.stash[begun] == tested.digest(docs)
    if exitstatus == 0 and same and _is_whole(session.config):
        tested.stamp.write_text(tested.digest(docs) + '\n')


def pytest_terminal_summary(terminalreporter):
    "Say in a line of its own why a browser was left out"
    skipped = terminalreporter.stats.get('skipped', [])
    reasons = [r.longrepr[2] for r in skipped if isinstance(r.longrepr, tuple)]
    for reason in sorted({r for r in reasons if no_firefox in r}):
        terminalreporter.write_line(f'{reasons.count(reason)} tests: {reason}')
