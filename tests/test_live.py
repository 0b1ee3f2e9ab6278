"Live figures: what they write into a page, their answers in a notebook, their toy"
import html
import json
import re
import shutil
import subprocess
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from common import package
from test_web import tiny
from cell_diffusion.flows import velocity
from cell_diffusion.inpainting import Inpainter
from cell_diffusion.schedules import flow_schedule
from cell_diffusion.toys import Oracle, Toy
from cell_diffusion.web import (
    LiveFigure, answer_question, ask_network, live_figures, live_noise, live_script,
    walk_network,
)

classes = ('a', '"><script>alert(1)</script>', 'c', 'd', 'e')
with_network = [name for name in live_figures if name != 'toy']
needs_node = pytest.mark.skipif(shutil.which('node') is None, reason='needs node')


@pytest.fixture(scope='module')
def model():
    return tiny(classes=classes)


def facts_of(page):
    return json.loads(html.unescape(re.search('data-facts="([^"]*)"', page)[1]))


@pytest.mark.parametrize('name', with_network)
def test_a_figure_is_a_picture_until_scripts_run(name, model):
    page = LiveFigure(name, model)._repr_html_()
    assert not re.search(r'https?:|<script|\n\n|src="(?!data:)', page)
    assert re.search('alt="[^"]{40,}"', page) and '<figcaption' in page

    # A tile for each place of the slider, in the rows that the script takes
    facts = facts_of(page)
    width, height = [int(v) for v in re.findall(r'(?:width|height)="(\d+)"', page)]
    columns, rows = dict(
        guidance=lambda: (len(facts['scales']), len(facts['names'])),
        samplers=lambda: (len(facts['calls']) + 1, 2),
        schedules=lambda: (7, len(facts['levels'])),
        estimate=lambda: (len(facts['ts']), 2*len(facts['names'])),
    )[name]()
    assert (width, height) == (columns*facts['size'], rows*facts['size'])
    assert facts['none'] == len(classes) and facts['seed'] == 7


def test_what_is_shown_first_has_a_tile(model):
    guidance, samplers, estimate = [facts_of(LiveFigure(name, model).html)
                                    for name in ('guidance', 'samplers', 'estimate')]
    assert guidance['scale'] in guidance['scales']
    assert samplers['call'] in samplers['calls']
    assert estimate['t'] in estimate['ts'] and estimate['ts'][0] == 0
    gaps = samplers['errors']
    assert gaps['ddim'][:2] == pytest.approx(gaps['dpm_solver'][:2], abs=1e-3)
    assert list(samplers['walks']) == [str(k) for k in [*samplers['calls'], 40]]


def test_the_script_knows_log_snr_along_each_schedule(model):
    facts = facts_of(LiveFigure('schedules', model).html)
    levels = dict(zip(facts['names'], np.array(facts['levels'])))
    assert all(len(v) == 101 and (np.diff(v) < 0).all() for v in levels.values())
    assert all(v[0] >= 8 and v[100] <= -8 for v in levels.values()), 'see `places`'
    linear = np.prod(1 - np.linspace(1e-4, .02, 1000)[:501])
    assert levels['linear'][50] == pytest.approx(np.log(linear/(1 - linear)), abs=.006)
    assert levels['cosine'][50] == pytest.approx(0, abs=.06)
    low, here, high = 1/(1 + np.exp([3, 3 - 6*.251, -3]))
    share = (high - here)/(high - low)
    assert levels['sigmoid'][25] == pytest.approx(np.log(share/(1 - share)), abs=.006)
    ends = [-2*np.log(sigma) for sigma in (.002, 80)]
    assert levels['uniform'][[0, 100]] == pytest.approx(ends, abs=.006)


def test_the_toy_needs_no_network():
    figure = LiveFigure('toy')
    assert figure.model is None and len(figure.html) < 60_000


def test_what_cannot_be_shown_is_refused(model):
    with pytest.raises(ValueError, match='Unknown figure .toys.: use one of guidance'):
        LiveFigure('toys')
    with pytest.raises(ValueError, match='this network has none'):
        LiveFigure('guidance', tiny(classes=())).html


def test_a_walk_is_that_of_sample(model):
    "Guided, each class from the same noise"
    two = walk_network(model, live_noise(model, 3), [0, 2], 4, 2.)
    one = walk_network(model, live_noise(model, 3), [2], 4, 2.)
    assert torch.allclose(two[1:], one, atol=1e-5) and not torch.allclose(two[:1], one)


# In a notebook

class Heard:
    "A widget that notes what is sent"
    def send(self, message, buffers):
        self.message = message
        self.buffers = buffers


@pytest.mark.parametrize('kind', ['plain', 'holes'])
def test_python_answers(kind, model):
    if kind == 'holes': model = tiny(Inpainter, classes=classes)
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    widget = Heard()
    message = dict(id=5, t=20, label=[1, 5])
    figure = SimpleNamespace(model=model)
    answer_question(figure, widget, message, [x.numpy().tobytes()])
    assert widget.message == dict(id=5)
    x0 = np.frombuffer(widget.buffers[0], np.float32).reshape(2, 3, 16, 16)
    assert np.allclose(x0, ask_network(model, x, 20, [1, 5]).numpy())
    assert not np.allclose(x0[0], ask_network(model, x, 20, [2, 5])[0].numpy())


def test_a_network_that_fails_says_so(model):
    widget = Heard()
    answer_question(SimpleNamespace(model=model), widget, dict(id=6, t=0, label=[0, 0]),
                    [np.zeros(3*16*16, np.float32).tobytes()])
    assert widget.message['id'] == 6 and widget.message['error']


def test_the_widget_holds_all_it_needs():
    widget = LiveFigure('toy').widget
    assert widget.html.startswith('<figure class="live"')
    assert '.live-box' in str(widget._css)


@needs_node
def test_the_script_of_the_widget_is_one_module(tmp_path):
    text = live_script()
    assert not re.search(r'^import ', text, re.M)
    (tmp_path/'live.mjs').write_text(text, encoding='utf-8')
    script = (f"import * as live from '{tmp_path/'live.mjs'}';"
              'console.log(typeof live.default.render, typeof live.mountAll)')
    said = subprocess.run(['node', '--input-type=module', '-e', script], check=True,
                          capture_output=True, text=True)
    assert said.stdout.split() == ['function', 'function']


@needs_node
def test_the_toy_of_the_script_is_the_toy():
    starts = [-1.5, 0., .9, 1.3, 2.]
    script = (f"import {{ toyWalk }} from '{package/'browser'/'live.js'}';"
              f"const ends = {starts}.map((y) => [1, 3, 10].map((k) => "
              "toyWalk(y, k).at(-1)[1]));"
              'console.log(JSON.stringify(ends))')
    said = subprocess.run(['node', '--input-type=module', '-e', script], check=True,
                          capture_output=True, text=True)
    theirs = np.array(json.loads(said.stdout)).T
    for steps, ends in zip((1, 3, 10), theirs):
        schedule = flow_schedule(steps)
        y = torch.tensor(starts)
        for t in range(steps - 1, -1, -1):
            y = y - velocity(Oracle(Toy(), schedule), y, t, schedule)/steps
        assert np.allclose(ends, y.numpy(), atol=1e-4), steps


# Scripts of the browser, run by node beside what stands in for a browser

def run_in_node(folder, script):
    "What a script says that imports from a copy of the scripts"
    shutil.copytree(package/'browser', folder/'browser', dirs_exist_ok=True)
    (folder/'package.json').write_text('{"type": "module"}')
    (folder/'script.js').write_text(script, encoding='utf-8')
    done = subprocess.run(['node', folder/'script.js'], capture_output=True, text=True,
                          timeout=60)
    assert not done.returncode, done.stderr
    return json.loads(done.stdout)


@needs_node
@pytest.mark.parametrize('file', sorted((package/'browser').glob('*.js')),
                         ids=lambda file: file.name)
def test_scripts_can_be_read(file, tmp_path):
    "The merge of two branches left its marks in one"
    copy = shutil.copy(file, tmp_path/f'{file.stem}.mjs')
    done = subprocess.run(['node', '--check', copy], capture_output=True, text=True)
    assert not done.returncode, done.stderr


fake_runtime = '''
export const env = { wasm: {} };
export class Tensor { constructor(type, data) { this.data = data; } }
export const InferenceSession = { create: async () => ({
  run: async ({ x, known }) => ({ x0: { data: x.data.map((v) => v/2) } }),
}) };
'''

use_worker = '''
const said = [];
globalThis.self = globalThis;
globalThis.postMessage = (m) => said.push(m);
let lost = false;
globalThis.fetch = async () => new Response(new ReadableStream({ start(c) {
  if (lost) c.error(new TypeError('network error'));
  else { c.enqueue(new Uint8Array([1, 2])); c.close(); }
} }));
await import('./browser/worker.js');
const hash = await crypto.subtle.digest('SHA-256', new Uint8Array([1, 2]));
const sha256 = Buffer.from(hash).toString('hex');
const place = { model: 'model/network.json', runtime: 'ort/' };
const t = [9, 5, 2], signal = [.1, .5, .9], noise = [.9, .5, .1];
const about = { sha256, place, file: 'x.onnx', channels: 3, size: 2, null_class: 1,
  inputs: ['x', 't', 'label', 'known', 'mask'], walks: { 3: { t, signal, noise } } };
const tell = (data) => self.onmessage({ data });
await tell({ type: 'load', about, total: 4 });
await tell({ type: 'ask', x: new Float32Array(24).fill(1), t: 3, label: [0, 1] });
const known = new Float32Array(12), mask = new Float32Array(4).fill(1);
const x = new Float32Array(12);
for (const calls of [undefined, 2])
  await tell({ type: 'run', x, labels: [0], steps: 3, calls, known, mask });
lost = true;
await tell({ type: 'load', about, total: 4 });
const types = said.map((m) => m.type).filter((type) => type !== 'loading');
const asked = [...said.find((m) => m.type === 'done').x0];
console.log(JSON.stringify([types, asked, said.at(-1).message]));
'''


@needs_node
def test_the_worker_answers(tmp_path):
    "Questions, whole walks and rough ones, and a connection that breaks"
    (tmp_path/'browser'/'ort').mkdir(parents=True)
    runtime = tmp_path/'browser'/'ort'/'ort.wasm.bundle.min.mjs'
    runtime.write_text(fake_runtime)
    types, asked, last = run_in_node(tmp_path, use_worker)
    steps = [*['step']*3, 'done', *['step']*2, 'done']
    assert types == ['ready', 'done', *steps, 'error'] and asked == [.5]*24
    assert last.endswith('could not be fetched. Is there a connection?')


two_figures = '''
import { Work, pythonEngine } from './browser/live.js';
const wait = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
let open = 0, most = 0;
const engine = { ready: async () => {}, ask: async (x) => {
  most = Math.max(most, ++open);
  await wait(5);
  open -= 1;
  return x;
} };
const jobs = [1, 2].map((k) => new Work(engine, () => {}).start(async (ask) => {
  for (let i = 0; i < 3; i++) await ask(k);
  return '';
}));
await Promise.all(jobs);

// Two views of one widget hear all answers
const ears = [], asked = [];
const model = { on: (_, f) => ears.push(f), send: (message) => asked.push(message) };
const views = [pythonEngine(model), pythonEngine(model)];
const x = new Float32Array(1);
const answers = Promise.all(views.map((view) => view.ask(x, 0, [0])));
asked.forEach(({ id }, k) => ears.forEach((hear) =>
  hear({ id }, [new Float32Array([k + 1])])));
console.log(JSON.stringify([most, (await answers).map(([v]) => v)]));
'''


@needs_node
def test_two_figures_ask_one_after_the_other(tmp_path):
    assert run_in_node(tmp_path, two_figures) == [1, [1, 2]]


broken_engine = '''
import { pageEngine } from './browser/live.js';
let workers = 0;
globalThis.fetch = async () => ({ ok: true, json: async () => ({ bytes: 1 }) });
globalThis.Worker = class {
  constructor() { this.n = ++workers; }
  terminate() {}
  postMessage({ type }) {
    const fails = type === 'ask' && this.n === 1;
    const data = fails ? { type: 'error', message: 'no memory' }
      : { type: 'done', x0: [this.n] };
    setTimeout(() => this.onmessage({ data }));
  }
};
const engine = pageEngine(), said = [];
for (let k = 0; k < 2; k++) {
  await engine.ready();
  said.push(await engine.ask([], 0, []).catch((e) => e.message));
}
console.log(JSON.stringify(said));
'''


@needs_node
def test_after_a_broken_session_comes_a_new_one(tmp_path):
    assert run_in_node(tmp_path, broken_engine) == ['no memory', [2]]


two_files = '''
import { offer, withdraw } from './browser/common.js';
import { share } from './browser/address.js';
const link = { hidden: true, href: '', removeAttribute() { this.href = ''; } };
const canvas = (ms) => ({ toBlob: (f) => setTimeout(() => f(new Blob(['x'])), ms) });
await Promise.all([offer(link, canvas(40), 'old'), offer(link, canvas(5), 'new')]);
const shown = [link.download, link.hidden];
const late = offer(link, canvas(5), 'late');
withdraw(link);
await late;
globalThis.location = { hash: '', pathname: '/' };
globalThis.history = { replaceState() { throw Error('SecurityError'); } };
share({ seed: 7 });
console.log(JSON.stringify([...shown, link.download, link.hidden]));
'''


@needs_node
def test_a_file_that_is_late_is_not_offered(tmp_path):
    "Nor does an address that may not be written stop anything"
    assert run_in_node(tmp_path, two_files) == ['new', False, 'new', True]
