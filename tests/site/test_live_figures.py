"""Live figures of the chapters: by mouse, finger and key, on a phone, without scripts.

What they compute is compared with the library.
"""
import base64

import pytest
import torch

from conftest import root
from test_every_page import Watch, sideways
from test_pages import pixels
from cell_diffusion.core import decode
from cell_diffusion.denoiser import load
from cell_diffusion.process import Schedule, q_sample
from cell_diffusion.schedules import (
    cosine_schedule, linear_schedule, log_snr_schedule, sigmoid_schedule,
)
from cell_diffusion.web import (
    LiveFigure, answer_question, ask_network, ddim, live_noise, live_script, rms,
    walk_network,
)

model = load('blood64-inpaint', 'cpu', 'float32')
axe = root/'site'/'node_modules'/'axe-core'/'axe.min.js'
figures = dict(process='estimate', schedules='schedules', samplers='samplers',
               conditioning='guidance', flow_matching='toy')
every_figure = pytest.mark.parametrize('name', figures)
heavy = '.onnx', '.wasm.gz', 'worker.js', 'network.json'
most_bytes = 1_200_000

# As much signal as noise
half_and_half = Schedule(torch.tensor([.5]))


class Figure:
    "A live figure of a page"
    def __init__(self, page):
        page.locator('figure.live').scroll_into_view_if_needed()
        page.wait_for_selector('.live-on')
        self.page = page
        self.box = page.locator('.live-on')
        self.bar = self.box.locator('input[type=range]').first
        self.status = self.box.locator('.live-says')

    def canvas(self, n):
        "The pixels of one of its pictures"
        canvas = f'.live-cells figure:nth-child({n + 1}) canvas'
        return pixels(self.page, canvas)[..., :3]

    def wait(self, words, seconds=120):
        "Until the figure says something, and no error"
        expect = '''([words]) => {
          const says = document.querySelector(".live-says");
          return says.textContent.includes(words) || says.matches(".live-error");
        }'''
        self.page.wait_for_function(expect, arg=[words], timeout=1000*seconds)
        says = self.status.inner_text()
        assert words in says, says


def visit(page, site_url, name):
    page.fetched = []
    page.on('request', lambda r: page.fetched.append(r.url))
    page.goto(f'{site_url}{name}.html')
    page.wait_for_load_state('networkidle')
    return Figure(page)


def loads(page):
    return [url for url in page.fetched if url.endswith(heavy)]


def close(ours, theirs, most=2):
    "Whether a picture of the page is that of the library"
    ours = decode(ours).permute(1, 2, 0).numpy().astype(int)
    return abs(ours - theirs.astype(int)).max() <= most


@every_figure
def test_a_page_is_light_until_its_figure_is_touched(page, site_url, name):
    watch = Watch(page, site_url)
    figure = visit(page, site_url, name)
    assert figure.box.get_attribute('data-figure') == figures[name]
    assert not loads(page) and not watch.errors
    weight = sum(watch.bytes.values())
    print(f'{name}: {weight/1e6:.2f} MB')
    assert weight < most_bytes


def test_guidance(page, site_url):
    figure = visit(page, site_url, 'conditioning')

    # What is there from the beginning answers to keys at once
    figure.bar.focus()
    page.keyboard.press('Home')
    assert figure.bar.get_attribute('aria-valuetext') == '0'
    same = [figure.canvas(n).astype(int) for n in range(4)]
    assert abs(same[0] - same[3]).mean() < 8, 'without a class all are one cell'
    page.keyboard.press('End')
    assert figure.bar.get_attribute('aria-valuetext') == '8'
    assert abs(figure.canvas(0).astype(int) - figure.canvas(3)).mean() > 20
    alt = page.get_attribute('.live-cells canvas', 'aria-label')
    assert alt == 'Generated cell, class monocyte, guidance scale 8'
    assert not loads(page)

    # Another noise is for the network; what is asked for last counts
    page.keyboard.press('Home')
    figure.box.locator('button').click()
    figure.wait('Computing')
    figure.bar.focus()
    page.keyboard.press('ArrowRight')
    page.keyboard.press('ArrowRight')
    figure.wait('Scales to come')
    names = page.locator('.live-cells figcaption').all_text_contents()
    labels = [model.classes.index(name) for name in names]
    ours = walk_network(model, live_noise(model, 8), labels, 6, 1.)
    assert all(close(ours[n], figure.canvas(n)) for n in range(4))
    networks = [url for url in loads(page) if url.endswith('.onnx')]
    assert len(networks) == 1


def test_samplers(page, site_url):
    figure = visit(page, site_url, 'samplers')
    figure.bar.focus()
    page.keyboard.press('Home')
    assert 'Noise 7. Distance' in figure.status.inner_text() and not loads(page)
    page.keyboard.press('ArrowRight')
    assert page.locator('.live-dpm_solver circle').count() == 9

    # Another class by DDIM in two calls, and the cell of forty
    sampler, label = figure.box.locator('select').all()
    sampler.select_option(label='DDIM')
    label.select_option(label='platelet')
    figure.wait('Noise 7. Distance')
    k = model.classes.index('platelet')
    z = live_noise(model)
    ours = walk_network(model, z, [k], 2, sampler=ddim)
    end = walk_network(model, z, [k], 40)
    assert close(ours[0], figure.canvas(0)) and close(end[0], figure.canvas(1))
    said = float(figure.status.inner_text().rsplit(' ', 1)[1].rstrip('.'))
    assert abs(said - rms(ours, end)) < .006
    circles = [page.locator(f'.live-{kind} circle').count()
               for kind in ('ddim', 'dpm_solver')]
    assert circles == [1, 0]


def test_estimate(page, site_url):
    figure = visit(page, site_url, 'process')
    clean = torch.from_numpy(figure.canvas(0).copy()).permute(2, 0, 1)[None]/127.5 - 1
    box = figure.bar.bounding_box()
    page.mouse.click(box['x'] + .7*box['width'], box['y'] + box['height']/2)
    figure.wait('Noise 7')
    t = int(figure.bar.input_value())
    assert abs(t - 700) < 20
    xt = q_sample(clean, t, model.schedule, live_noise(model))
    x0 = ask_network(model, xt, t, [len(model.classes)])
    assert close(xt[0].clamp(-1, 1), figure.canvas(1))
    assert close(x0[0].clamp(-1, 1), figure.canvas(2))

    # By key, with another cell
    before = figure.canvas(2)
    figure.box.locator('select').select_option(label='platelet')
    figure.wait('Noise 7')
    figure.bar.focus()
    page.keyboard.press('ArrowLeft')
    page.wait_for_timeout(100)
    figure.wait('Noise 7')
    assert figure.bar.input_value() == str(t - 1)
    assert abs(before.astype(int) - figure.canvas(2)).mean() > 5


def test_schedules(page, site_url):
    figure = visit(page, site_url, 'schedules')
    cell = page.evaluate('''() => {
      const sheet = document.querySelector(".live-on > img");
      const canvas = new OffscreenCanvas(64, 64);
      const pen = canvas.getContext("2d");
      pen.drawImage(sheet, 0, 0);
      return [...pen.getImageData(0, 0, 64, 64).data];
    }''')
    cell = torch.tensor(cell).reshape(1, 64, 64, 4)[..., :3]
    cell = cell.permute(0, 3, 1, 2)/127.5 - 1

    # The same moment by key: pictures of four chains
    figure.bar.focus()
    page.keyboard.press('ArrowLeft')
    assert figure.bar.get_attribute('aria-valuetext') == 't/T = 0.49'
    chains = [f() for f in (linear_schedule, cosine_schedule, sigmoid_schedule,
                            log_snr_schedule)]
    for n, chain in enumerate(chains):
        xt = q_sample(cell, 490, chain, live_noise(model))
        assert close(xt[0].clamp(-1, 1), figure.canvas(n))

    # The same log-SNR: one picture, at four moments
    figure.box.locator('select').select_option(label='log-SNR')
    figure.bar.fill('50')
    assert all((figure.canvas(n) == figure.canvas(0)).all() for n in range(4))
    words = page.locator('.live-cells figcaption').all_text_contents()
    moments = [float(text.rsplit(' ', 1)[1]) for text in words]
    for moment, chain in zip(moments, chains):
        first = (chain.log_snr <= 0).nonzero()[0].item()
        assert abs(moment - first/1000) <= .01
    figure.box.locator('button').click()
    assert (figure.canvas(3) == figure.canvas(0)).all()
    xt = q_sample(cell, 0, half_and_half, live_noise(model, 8))
    assert close(xt[0].clamp(-1, 1), figure.canvas(0))
    assert not loads(page)


def toy_says(figure):
    "Where the point starts, and what is said of its end"
    return float(figure.box.locator('output').first.inner_text()), \
        figure.status.inner_text()


def test_the_toy(new_page, site_url):
    page = new_page(has_touch=True)
    figure = visit(page, site_url, 'flow_matching')
    figure.box.locator('input[type=range]').nth(1).fill('0')
    plane = page.locator('.live-plane')
    plane.scroll_into_view_if_needed()
    box = plane.bounding_box()

    def at(share):
        return box['x'] + 30, box['y'] + share*box['height']
    page.mouse.move(*at(.3))
    page.mouse.down()
    page.mouse.move(*at(.6))
    page.mouse.up()
    low, words = toy_says(figure)
    assert low < 0 and words.startswith('1 step ends at -0.43'), words
    page.mouse.move(*at(.2))
    assert toy_says(figure)[0] == low, 'nothing moves without a button'
    page.touchscreen.tap(*at(.25))
    high, words = toy_says(figure)
    assert high > .5 and words.startswith('1 step ends at -0.43'), words
    figure.bar.focus()
    page.keyboard.press('ArrowLeft')
    assert toy_says(figure)[0] == pytest.approx(high - .01, abs=1e-6)
    assert not loads(page)


def test_what_fails_is_said_and_can_be_tried_again(page, site_url):
    page.route('**/network.onnx', lambda r: r.fulfill(status=404, body=''))
    figure = visit(page, site_url, 'process')
    figure.bar.fill('600')
    page.wait_for_selector('.live-error', timeout=30_000)
    assert 'The network is missing on this site' in figure.status.inner_text()
    page.unroute('**/network.onnx')
    figure.bar.fill('610')
    page.wait_for_selector('.live-says:not(.live-error)')
    figure.wait('Noise 7')


@every_figure
def test_without_scripts_there_is_a_picture(new_page, site_url, name):
    page = new_page(java_script_enabled=False)
    page.goto(f'{site_url}{name}.html')
    picture = page.locator('figure.live img')
    assert picture.is_visible() and len(picture.get_attribute('alt')) > 40
    assert page.locator('figure.live figcaption').is_visible()


faults = '''async () => {
  const found = await axe.run("figure.live");
  const grave = (v) => ["serious", "critical"].includes(v.impact);
  return found.violations.filter(grave).map((v) => [v.id, v.nodes[0].html]);
}'''

# Text of a drawing is as large as it is drawn
small_text = '''() => [...document.querySelectorAll(".live svg text")].filter((t) => {
  const { width } = t.ownerSVGElement.getBoundingClientRect();
  const scale = width/t.ownerSVGElement.viewBox.baseVal.width;
  return scale*parseFloat(getComputedStyle(t).fontSize) < 9;
}).map((t) => t.textContent)'''


@every_figure
@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_a_phone_and_a_screen_reader(new_page, site_url, name, scheme):
    page = new_page(width=400, height=800, color_scheme=scheme)
    figure = visit(page, site_url, name)
    box = figure.box.bounding_box()
    assert box['x'] >= 0 and box['x'] + box['width'] <= 400
    assert not page.evaluate(sideways)
    assert not page.evaluate(small_text)
    page.add_script_tag(content=axe.read_text(encoding='utf-8'))
    assert not page.evaluate(faults)


# In a notebook, where Python answers

notebook = '''async ({ script, html }) => {
  const blob = new Blob([script], { type: "text/javascript" });
  const { default: widget } = await import(URL.createObjectURL(blob));
  let heard;
  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const model = {
    get: () => html,
    on: (event, f) => { heard = f; },
    send: async (message, _, [buffer]) => {
      const letters = [...new Uint8Array(buffer)].map((b) => String.fromCharCode(b));
      const [answer, x0] = await window.python(message, btoa(letters.join("")));
      heard(answer, [new DataView(bytes(x0).buffer)]);
    },
  };
  document.body.replaceChildren();
  widget.render({ model, el: document.body });
}'''


def test_in_a_notebook_python_answers(page, serve, tmp_path):
    (tmp_path/'index.html').write_text('<!doctype html><title>A notebook</title>')
    page.goto(serve(tmp_path))
    figure = LiveFigure('estimate', model)

    def python(message, text):
        heard = []

        class Widget:
            def send(self, answer, buffers):
                heard.append((answer, base64.b64encode(buffers[0]).decode()))
        answer_question(figure, Widget(), message, [base64.b64decode(text)])
        return heard[0]
    page.expose_function('python', python)
    page.evaluate(notebook, dict(script=live_script(), html=figure.html))
    shown = Figure(page)
    clean = torch.from_numpy(shown.canvas(0).copy()).permute(2, 0, 1)[None]/127.5 - 1
    shown.bar.fill('640')
    shown.wait('Noise 7')
    xt = q_sample(clean, 640, model.schedule, live_noise(model))
    x0 = ask_network(model, xt, 640, [len(model.classes)])
    assert close(x0[0].clamp(-1, 1), shown.canvas(2))
