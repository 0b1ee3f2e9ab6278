"""The two pages that run a network in the browser.

Holes are filled by mouse and keyboard, nothing else changes, and the sampler agrees
with PyTorch.
"""
import base64

import numpy as np
import pytest
import torch
from PIL import Image

from cell_diffusion.denoiser import Condition, load
from cell_diffusion.inpainting import close_up, crop_window, find_window, put_back
from cell_diffusion.sampling import batched_denoise, stored_walk, timesteps
from cell_diffusion.web import browser_noise
from conftest import root
from assets import network

minute = 60_000
axe = root/'site'/'node_modules'/'axe-core'/'axe.min.js'
model = load(network(), 'cpu', 'float32')
# A distilled network has nothing to cancel: `test_live.py` tries pages with such a one
many_steps = pytest.mark.skipif(
    model.jumps is not None, reason='the pages run a network of few calls')
both_pages = pytest.mark.parametrize('name', ['paint', 'grow'])


# What one does on a page

def visit(page, site_url, name):
    page.goto(f"{site_url.rstrip('/')}/{name}.html")
    page.wait_for_selector('[name=go]')

    # The button alone fills and grows, as it does with every network
    if page.is_visible('[name=live]'):
        page.uncheck('[name=live]')


read_canvas = '''c => {
  const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
  let s = '';
  for (let i = 0; i < d.length; i += 8192)
    s += String.fromCharCode(...d.subarray(i, i + 8192));
  return [c.height, c.width, btoa(s)];
}'''


def pixels(page, canvas):
    "What a canvas shows, uint8 `(height, width, 4)`"
    h, w, data = page.eval_on_selector(canvas, read_canvas)
    return np.frombuffer(base64.b64decode(data), np.uint8).reshape(h, w, 4)


def hole(page):
    "The hidden pixels, bool `(height, width)`"
    return pixels(page, '.cd-paint')[..., 3] > 0


def choose(page, fills=None, seed=7, steps=5, label=None):
    "Choose how to fill"
    page.eval_on_selector('details', 'd => { d.open = true }')
    if fills: page.select_option('[name=fills]', str(fills))
    if label: page.select_option('[name=label]', label)
    if model.jumps is None:
        page.select_option('[name=steps]', str(steps))
    page.fill('[name=seed]', str(seed))


def go(page):
    "Press the button, wait, and return what the page says"
    page.click('[name=go]')
    return done(page)


def done(page):
    idle = "document.querySelector('[aria-busy=false]')"
    page.wait_for_function(idle, timeout=2*minute)
    assert not page.is_visible('.cd-error'), page.inner_text('.cd-error')
    return page.inner_text('.cd-status')


def error(page):
    "Wait for an error and return its words"
    page.wait_for_selector('.cd-error:visible', timeout=minute)
    return page.inner_text('.cd-error')


def wait_for_step(page, n):
    text = "document.querySelector('.cd-progress span').textContent"
    page.wait_for_function(f"{text}.startsWith('step {n}')", timeout=minute)


def pick_cell(page, n):
    page.check(f'[name=cell][value="{n}"]', force=True)


def only_the_hole_changed(page):
    before = pixels(page, '.cd-picture')
    after = pixels(page, '.cd-shown')
    m = hole(page)
    assert np.array_equal(before[~m], after[~m])
    assert (before[m] != after[m]).any(1).mean() > .5
    return after


def began_as_noise(page):
    "Go back to the first step: noise in the hole, the picture around it"
    page.focus('[name=step]')
    page.keyboard.press('Home')
    m = hole(page)
    noisy = pixels(page, '.cd-shown')
    assert np.array_equal(noisy[~m], pixels(page, '.cd-picture')[~m])
    assert noisy[m].std() > 60


# Paint a cell

def test_a_hole_is_filled_by_keyboard(page, site_url):
    visit(page, site_url, 'paint')
    page.click('[name=clear]')
    assert 'Nothing is hidden yet' in page.inner_text('#cd-brush')

    page.focus('.cd-paint')
    to_start = ['ArrowLeft', 'ArrowUp', ' ', 'Enter']
    across = ['ArrowRight']*4 + ['Shift+ArrowDown']*5 + ['Enter'] + ['ArrowDown']*3
    for key in to_start + across:
        page.keyboard.press(key)
    n = hole(page).sum()
    assert n > 100
    assert f'{n} of 4,096 pixels are hidden' in page.inner_text('#cd-brush')
    page.keyboard.press('Control+z')
    assert 0 < hole(page).sum() < n

    choose(page, 1)
    page.focus('[name=go]')
    page.keyboard.press('Enter')
    assert 'Done: 1 fill' in done(page)
    only_the_hole_changed(page)
    began_as_noise(page)
    told = page.get_attribute('[name=step]', 'aria-valuetext')
    n_steps = len(model.jumps or range(5))
    assert told == f'after 0 of {n_steps} steps'


def test_a_hole_is_filled_by_mouse(page, site_url):
    visit(page, site_url, 'paint')
    pick_cell(page, 9)
    assert not hole(page).any()
    chosen = page.locator('[name=label] option:checked')
    assert chosen.text_content() == 'lymphocyte'

    page.locator('.cd-paint').scroll_into_view_if_needed()
    box = page.locator('.cd-paint').bounding_box()

    def move(u, v, **options):
        x = box['x'] + u*box['width']
        y = box['y'] + v*box['height']
        page.mouse.move(x, y, **options)

    move(.3, .4)
    page.mouse.down()
    move(.7, .6, steps=6)
    page.mouse.up()
    m = hole(page)
    assert m[26, 19] and m[32, 32] and m[38, 45]
    assert not m[:10].any() and not m[60:].any()

    page.click('[name=erase]')
    move(.7, .6)
    page.mouse.down()
    page.mouse.up()
    assert not hole(page)[38, 45] and hole(page)[32, 32]
    page.click('[name=undo]')
    assert np.array_equal(hole(page), m)

    choose(page, 2)
    assert 'Done: 2 fills' in go(page)
    page.check('[name=fill][value="1"]', force=True)
    second = only_the_hole_changed(page)
    page.check('[name=fill][value="0"]', force=True)
    first = only_the_hole_changed(page)
    assert not np.array_equal(first, second)
    page.click('[name=original]')
    assert np.array_equal(pixels(page, '.cd-shown'), pixels(page, '.cd-picture'))


def test_the_seed_decides_and_the_class_matters(page, site_url):
    visit(page, site_url, 'paint')
    page.click('[name=all]')

    def cell(**options):
        choose(page, 1, **options)
        go(page)
        return pixels(page, '.cd-shown').astype(int)

    a = cell(seed=3, label='neutrophil')
    assert np.array_equal(a, cell(seed=3, label='neutrophil'))
    assert abs(a - cell(seed=4, label='neutrophil')).mean() > 5
    assert abs(a - cell(seed=3, label='platelet')).mean() > 5


def test_a_picture_of_ones_own(page, site_url, tmp_path):
    rng = np.random.default_rng(0)
    mine = rng.integers(90, 160, (301, 420, 3)).astype(np.uint8)
    Image.fromarray(mine).save(tmp_path/'mine.png')
    visit(page, site_url, 'paint')
    page.set_input_files('[name=file]', tmp_path/'mine.png')
    named = "document.querySelector('[name=named]').textContent"
    page.wait_for_function(f"{named}.includes('420 × 301')")
    assert np.array_equal(pixels(page, '.cd-picture')[..., :3], mine)
    assert page.is_disabled('[name=nucleus]')

    page.click('[name=middle]')
    choose(page, 1, label='monocyte')
    go(page)
    only_the_hole_changed(page)

    # The file that one can download is marked as synthetic
    page.wait_for_selector('[name=download]')
    with page.expect_download() as waiting:
        page.click('[name=download]')
    assert waiting.value.suggested_filename == 'synthetic-monocyte-7.png'
    saved = Image.open(waiting.value.path())
    saved.load()
    assert saved.size == (420, 301)
    assert saved.text['synthetic'] == 'True' and saved.text['label'] == 'monocyte'
    shown = pixels(page, '.cd-shown')[..., :3]
    assert np.array_equal(np.array(saved.convert('RGB')), shown)


def test_files_that_cannot_be_used_are_refused(page, site_url, tmp_path):
    visit(page, site_url, 'paint')
    before = pixels(page, '.cd-picture').shape
    Image.new('1', (5000, 2600)).save(tmp_path/'large.png')
    page.set_input_files('[name=file]', tmp_path/'large.png')
    assert 'large.png has 13 megapixels, and 12 is the most' in error(page)
    assert pixels(page, '.cd-picture').shape == before

    (tmp_path/'text.png').write_text('no picture')
    page.set_input_files('[name=file]', tmp_path/'text.png')
    page.wait_for_selector('.cd-error:has-text("text.png"):visible')
    assert 'cannot be read as a picture' in error(page)


@many_steps
def test_nothing_hidden_and_cancel(page, site_url):
    visit(page, site_url, 'paint')
    page.click('[name=clear]')
    page.click('[name=go]')
    assert 'Nothing is hidden yet' in error(page)

    page.click('[name=all]')
    choose(page, 4, steps=50)
    page.click('[name=go]')
    wait_for_step(page, 3)
    page.click('[name=cancel]')
    assert done(page).startswith('Cancelled')

    # It can begin again, and another cell ends it too
    choose(page, 1, steps=50)
    page.click('[name=go]')
    wait_for_step(page, 2)
    pick_cell(page, 2)
    assert done(page).startswith('Cancelled')
    assert page.is_visible('.cd-empty') and not hole(page).any()


def _nothing_is_filled(page):
    shown = page.is_visible('.cd-result')
    return page.is_visible('.cd-empty') and not shown and page.is_enabled('[name=go]')


def test_cancel_while_the_network_is_fetched(page, site_url):
    held = []
    page.route('**/network.onnx', lambda r: held.append(r))  # It never arrives
    visit(page, site_url, 'paint')

    def begin():
        n = len(held)
        page.click('[name=all]')
        choose(page, 1)
        page.click('[name=go]')
        while len(held) == n:
            page.wait_for_timeout(50)

    begin()
    page.click('[name=cancel]')
    assert done(page).startswith('Cancelled') and _nothing_is_filled(page)
    begin()
    pick_cell(page, 2)
    assert done(page).startswith('Cancelled') and _nothing_is_filled(page)
    assert not hole(page).any()

    # What was asked for arrives after all, unless the browser has given it up
    page.unroute('**/network.onnx')
    for request in held:
        try:
            request.continue_()
        except Exception:
            pass
    page.wait_for_timeout(1000)
    assert _nothing_is_filled(page)
    assert page.inner_text('.cd-status').startswith('Cancelled')

    page.click('[name=middle]')
    assert 'Done: 1 fill' in go(page)
    only_the_hole_changed(page)
    began_as_noise(page)


# Grow a cell

def test_cells_grow(page, site_url):
    visit(page, site_url, 'grow')

    def cell(label, seed=5):
        choose(page, seed=seed, label=label)
        go(page)
        return pixels(page, '.cd-grid canvas').astype(int)

    a = cell('monocyte')
    assert a.shape == (64, 64, 4)
    assert np.array_equal(a, cell('monocyte'))
    assert abs(a - cell('monocyte', 6)).mean() > 5

    choose(page, seed=5, label='all')
    assert 'Done: 8 cells' in go(page)
    assert page.locator('.cd-grid canvas').count() == 8
    assert page.locator('.cd-grid figcaption').all_inner_texts()[5] == 'monocyte'

    # A cell is the same alone and among eight
    sixth = pixels(page, '.cd-grid figure:nth-child(6) canvas').astype(int)
    assert abs(sixth - a).max() <= 2
    with page.expect_download() as waiting:
        page.click('[name=download]')
    assert Image.open(waiting.value.path()).size == (256, 128)


# The same as in Python

compute = '''async ({ w, h, rgba, hole, label, guidance, steps, x }) => {
  const bytes = (s) => Uint8Array.from(atob(s), (c) => c.charCodeAt(0));
  const text = (a) => {
    const u = new Uint8Array(a.buffer, a.byteOffset, a.byteLength);
    let s = '';
    for (let i = 0; i < u.length; i += 8192)
      s += String.fromCharCode(...u.subarray(i, i + 8192));
    return btoa(s);
  };
  const here = (p) => new URL(`browser/${p}`, document.baseURI);
  const P = await import(here('picture.js'));
  const C = await import(here('common.js'));
  const about = await C.describe();
  const engine = new C.Engine(about);
  await engine.load();

  const pixels = new ImageData(new Uint8ClampedArray(bytes(rgba)), w, h);
  const m = bytes(hole);
  const window = P.findWindow(m, w, h);
  const seen = P.closeUp(pixels, m, window, about.size);
  const labels = label === null ? null : [label];
  const noise = new Float32Array(bytes(x).buffer);
  const { x0 } = await engine.run({ x: noise, labels, w: guidance, steps, ...seen });
  const out = P.putBack(pixels, m, window, x0, about.size).data;
  return {
    window, known: text(seen.known), mask: text(seen.mask), x0: text(x0), out: text(out)
  };
}'''


def text(a):
    return base64.b64encode(np.ascontiguousarray(a).tobytes()).decode()


def floats(s, *shape):
    return np.frombuffer(base64.b64decode(s), np.float32).reshape(shape)


def smooth_picture(h, w):
    "A picture of soft colours, uint8 `(h, w, 3)`"
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 255, (8, 8, 3)).astype(np.uint8))
    return np.array(small.resize((w, h), Image.Resampling.BICUBIC))


def fill_in_browser(page, image, m, x, label, guidance):
    "What the page computes for a picture and a hole"
    h, w = m.shape
    opaque = np.full((h, w), 255, np.uint8)
    given = dict(
        w=w, h=h, label=label, guidance=guidance, steps=len(model.jumps or range(5)),
        rgba=text(np.dstack([image, opaque])),
        hole=text(m.astype(np.uint8)),
        x=text(x.numpy()),
    )
    return page.evaluate(compute, given)


def fill_in_python(known, mask, x, label, guidance):
    "The same with PyTorch"
    steps, sampler, spacing = stored_walk(model, None if model.jumps else 5)
    ts = timesteps(model.schedule, steps, spacing)
    labels = None if label is None else torch.tensor([label])
    condition = Condition(labels, guidance, known=known, mask=mask)
    ask = batched_denoise(model, condition)
    with torch.no_grad():
        return sampler.algorithm(ask, model.noisiest(x), model.schedule, ts)


@pytest.mark.parametrize('h, w, box, label, guidance', [
    (64, 64, (20, 44, 18, 50), 6, 1.),
    (64, 64, (0, 64, 0, 64), 2, 1.),
    (40, 90, (5, 35, 5, 80), 3, 2.5),
    (300, 500, (100, 180, 300, 400), None, 1.),
])
def test_a_fill_is_that_of_the_library(page, site_url, h, w, box, label, guidance):
    image = smooth_picture(h, w)
    m = np.zeros((h, w), bool)
    m[box[0]:box[1], box[2]:box[3]] = True
    x = browser_noise(5, (1, 3, 64, 64))
    if model.jumps:
        guidance = 1.
    visit(page, site_url, 'paint')
    theirs = fill_in_browser(page, image, m, x, label, guidance)

    # The window, and what the network gets to see
    place = find_window(m)
    window = theirs['window']
    assert place == (window['top'], window['left'], window['side'])
    view = crop_window(image.astype(float), place)/127.5 - 1
    known, mask = close_up(view, crop_window(m, place), 64)
    assert np.array_equal(floats(theirs['mask'], 1, 1, 64, 64) > 0, mask)
    their_known = floats(theirs['known'], 1, 3, 64, 64)
    keep = ~mask.expand_as(known).numpy()

    # Where two known pixels are equally near, either may be taken
    assert np.abs(their_known - known.numpy())[keep].max(initial=0) < .02

    # The fill from the same view, and the picture with it
    known = torch.from_numpy(their_known.copy())
    ours = fill_in_python(known, mask, x, label, guidance)
    their_x0 = floats(theirs['x0'], 1, 3, 64, 64)
    assert np.abs(their_x0 - ours.numpy()).max() < 1e-4

    out = np.frombuffer(base64.b64decode(theirs['out']), np.uint8)
    out = out.reshape(h, w, 4)[..., :3]
    assert np.array_equal(out[~m], image[~m])
    filled = put_back(image, m, place, ours[0], 255)
    assert np.abs(out.astype(int) - filled).max() <= 1


draw_noise = '''async () => {
  const { noise } = await import(new URL('browser/diffusion.js', document.baseURI));
  return [...noise(123456, 1001)];
}'''


def test_the_noise_is_that_of_the_library(page, site_url):
    visit(page, site_url, 'grow')
    z = page.evaluate(draw_noise)
    assert np.allclose(z, browser_noise(123456, (1001,)), atol=1e-6)


# What can go wrong

def change_worker(page, change, **options):
    "Serve `worker.js` with a change"
    def serve(route):
        body = change(route.fetch().text())
        route.fulfill(content_type='text/javascript', body=body)
    page.route('**/worker.js', serve, **options)


def test_a_broken_session_is_replaced(page, site_url):
    out_of_memory = "session = { run() { throw RangeError('Out of memory'); } };"

    def broken(source):
        return source.replace("tell('ready'", f"{out_of_memory} tell('ready'")
    change_worker(page, broken, times=1)
    visit(page, site_url, 'paint')
    choose(page, 1)
    page.click('[name=all]')
    page.click('[name=go]')
    assert 'not enough memory' in error(page)
    assert 'Done: 1 fill' in go(page)


def test_missing_files_are_named(page, site_url):
    def missing(route):
        route.fulfill(status=404, body='')
    page.route('**/network.onnx', missing)
    visit(page, site_url, 'paint')
    page.click('[name=go]')
    network = 'browser/model/network.onnx, answer 404'
    assert f'The network is missing on this site ({network})' in error(page)
    assert page.is_enabled('[name=go]')

    page.unroute('**/network.onnx')
    choose(page, 1)
    assert 'Done' in go(page)

    page.route('**/network.json', missing)
    for name in 'paint', 'grow':
        page.goto(f"{site_url.rstrip('/')}/{name}.html")
        page.wait_for_selector('.cd-error')
        words = page.inner_text('.cd-error')
        assert 'The description of the network is missing' in words


@pytest.mark.parametrize('lost, words', [
    ('globalThis.WebAssembly = undefined;', 'no WebAssembly'),
    ("WebAssembly.instantiate = () => { throw RangeError('Out of memory'); };",
     'not enough memory'),
])
def test_what_a_browser_lacks_is_said(page, site_url, lost, words):
    change_worker(page, lambda source: lost + source)
    visit(page, site_url, 'grow')
    page.click('[name=go]')
    assert words in error(page)


# What it costs, and who can use it

def _bytes(responses):
    return sum(len(r.body()) for r in responses if r.status == 200)


@both_pages
def test_all_that_is_loaded(page, site_url, name):
    came = {}
    page.on('response', lambda r: came.update({r.url: r}))
    visit(page, site_url, name)
    page.wait_for_load_state('networkidle')

    # The network and what runs it come only when they are needed
    assert not any(url.endswith(('.wasm.gz', '.onnx')) for url in came)
    choose(page, 1 if name == 'paint' else None, label='neutrophil', steps=20)
    page.click('[name=go]')
    done(page)
    page.wait_for_load_state('networkidle')
    ours = site_url.rstrip('/'), 'blob:', 'data:'
    assert all(url.startswith(ours) for url in came), came.keys()

    total = _bytes(came.values())
    ends = '.wasm.gz', '.onnx', '.mjs'
    heavy = [r for url, r in came.items() if url.endswith(ends)]
    assert total <= 12e6
    assert round(_bytes(heavy)/1e6, 1) == 7.5, 'the pages promise 7.5 MB'

    status = page.inner_text('.cd-status')
    seconds = float(status.rsplit(' in ', 1)[1].split()[0])
    n_steps = len(model.jumps or range(20))
    print(f'{name}: {total/1e6:.2f} MB, {seconds} s for {n_steps} steps')
    assert seconds < 20


grave_faults = '''async () => {
  const found = await axe.run('.cd');
  const grave = (v) => ['serious', 'critical'].includes(v.impact);
  const where = (v) => v.nodes.map((n) => n.html.slice(0, 120));
  return found.violations.filter(grave).map((v) => [v.id, where(v)]);
}'''


@both_pages
@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_a_phone_and_a_screen_reader(new_page, site_url, name, scheme):
    page = new_page(width=375, height=812, color_scheme=scheme)
    visit(page, site_url, name)
    choose(page, 2 if name == 'paint' else None)
    go(page)
    assert page.evaluate('document.documentElement.scrollWidth') <= 375
    page.add_script_tag(content=axe.read_text(encoding='utf-8'))
    faults = page.evaluate(grave_faults)
    assert not faults, faults
