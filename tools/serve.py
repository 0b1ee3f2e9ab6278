#!/usr/bin/env python3
"""Serve the built site, with the page to paint on, and the notebooks in JupyterLab.

The Dockerfile's default command. JupyterLab asks for the token that it prints.
"""
import argparse
import functools
import http.server
import os
import shutil
import signal
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path

root = Path(__file__).resolve().parent.parent


class Pages(http.server.SimpleHTTPRequestHandler):
    "The files of the site, without a line for each"
    extensions_map = {
        **http.server.SimpleHTTPRequestHandler.extensions_map,
        '.mjs': 'text/javascript',
        '.wasm': 'application/wasm',
    }

    def log_message(self, *args):
        pass


def serve_pages(folder, host, port):
    "Serve a folder from a thread; the server"
    handler = functools.partial(Pages, directory=str(folder))
    server = http.server.ThreadingHTTPServer((host, port), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def lab_command(folder, host, port):
    "How JupyterLab is started; it makes a token and prints it"
    lab = shutil.which('jupyter-lab')
    if lab is None:
        sys.exit('JupyterLab is missing: pip install jupyterlab, or give --no-lab')
    return [lab, f'--ip={host}', f'--port={port}', '--no-browser',
            f'--ServerApp.root_dir={folder}', '--ServerApp.port_retries=0']


def is_served(port):
    "Does the page to paint on answer? For the health check of a container"
    try:
        with urllib.request.urlopen(f'http://127.0.0.1:{port}/paint.html', timeout=4):
            return True
    except OSError:
        return False


def arguments(words=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--site', type=Path, default=root/'_docs')
    parser.add_argument('--notebooks', type=Path, default=root/'nbs')
    parser.add_argument('--host', default='127.0.0.1', help='0.0.0.0 in a container')
    parser.add_argument('--port', type=int, default=8000, help='of the site')
    parser.add_argument('--lab-port', type=int, default=8888)
    parser.add_argument('--no-lab', action='store_true', help='the site alone')
    parser.add_argument('--check', action='store_true', help='is the site served?')
    return parser.parse_args(words)


def wait_for(lab):
    "Until JupyterLab ends, or for ever; a signal ends both"
    def end(*_):
        if lab: lab.terminate()
        sys.exit(0)
    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    if lab: return lab.wait()
    threading.Event().wait()


def main(words=None):
    given = arguments(words)
    if given.check:
        return 0 if is_served(given.port) else 1
    if not (given.site/'paint.html').is_file():
        sys.exit(f'There is no site in {given.site}: make site first')
    command = None
    if not given.no_lab:
        command = lab_command(given.notebooks, given.host, given.lab_port)
    server = serve_pages(given.site, given.host, given.port)
    port = server.server_address[1]
    print(f'Paint a cell: http://127.0.0.1:{port}/paint.html', flush=True)
    lab = subprocess.Popen(command, env=dict(os.environ)) if command else None
    return wait_for(lab)


if __name__ == '__main__':
    sys.exit(main())
