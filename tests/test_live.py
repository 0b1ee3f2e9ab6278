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
        estimate=lambda: (len(facts['ts']), 2*len(facts['names'])),
    )[name]()
    assert (width, height) == (columns*facts['size'], rows*facts['size'])
    assert facts['none'] == len(classes) and facts['seed'] == 7


def test_what_is_shown_first_has_a_tile(model):
    guidance, samplers, estimate = [facts_of(LiveFigure(name, model).html)
                                    for name in with_network]
    assert guidance['scale'] in guidance['scales']
    assert samplers['call'] in samplers['calls']
    assert estimate['t'] in estimate['ts'] and estimate['ts'][0] == 0
    gaps = samplers['errors']
    assert gaps['ddim'][:2] == pytest.approx(gaps['dpm_solver'][:2], abs=1e-3)
    assert list(samplers['walks']) == [str(k) for k in [*samplers['calls'], 40]]


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
