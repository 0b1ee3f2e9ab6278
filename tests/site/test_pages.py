"""The two pages that run a network in the browser.

Holes are filled by mouse and keyboard, nothing else changes, and the sampler agrees
with PyTorch.
"""
import base64
from urllib.parse import parse_qsl, urlsplit

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import map_coordinates

from cell_diffusion.classifier import CellClassifier
from cell_diffusion.core import encode
from cell_diffusion.denoiser import Condition, load
from cell_diffusion.inpainting import (
    crop_window, put_back, resize, seam_energy, stained_masks)
from cell_diffusion.sampling import (
    batched_denoise, begin_walk, even_out, stored_walk, timesteps)
from cell_diffusion.web import ClassMaps, browser_noise
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
    if fills:
        page.select_option('[name=label]', label or 'any')
        page.select_option('[name=fills]', str(fills))
    elif label:
        page.select_option('[name=label]', label)
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


def asked(page):
    "The class that is asked for"
    return page.locator('[name=label] option:checked').text_content()


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
    assert asked(page) == 'four, side by side'
    page.select_option('[name=label]', 'any')
    pick_cell(page, 4)
    assert asked(page) == 'lymphocyte'

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
    page.check('[name=fill][value="truth"]', force=True)
    assert np.array_equal(pixels(page, '.cd-shown'), pixels(page, '.cd-picture'))
    assert not page.is_visible('[name=download]') and page.is_disabled('[name=step]')


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


def test_files_that_cannot_be_used_are_refused(page, site_url, tmp_path):
    visit(page, site_url, 'paint')
    before = pixels(page, '.cd-picture')
    Image.new('1', (5000, 2600)).save(tmp_path/'large.png')
    page.set_input_files('[name=file]', tmp_path/'large.png')
    assert 'large.png has 13 megapixels, and 12 is the most' in error(page)
    assert np.array_equal(pixels(page, '.cd-picture'), before)
    assert not page.is_visible('.cd-frame')

    (tmp_path/'text.png').write_text('no picture')
    page.set_input_files('[name=file]', tmp_path/'text.png')
    page.wait_for_selector('.cd-error:has-text("text.png"):visible')
    assert 'cannot be read as a picture' in error(page)


def test_nothing_hidden_is_noticed_before_anything_is_loaded(page, site_url):
    came = []
    page.on('request', lambda r: came.append(r.url))
    visit(page, site_url, 'paint')
    page.click('[name=clear]')
    page.click('[name=go]')
    assert 'Nothing is hidden yet' in error(page)
    page.wait_for_timeout(300)
    assert not [url for url in came if url.endswith(('worker.js', '.onnx', '.wasm.gz'))]
    page.click('[name=half]')
    choose(page, 1)
    assert 'Done: 1 fill of 2,048' in go(page)


@many_steps
def test_cancel(page, site_url):
    visit(page, site_url, 'paint')
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


# Photographs, and pictures of one's own

strip = np.array(Image.open(root/'img'/'photographs.png'))
photographs = np.stack(np.split(strip, 8, axis=1))


def test_a_photograph_shows_the_truth_after_the_fill(page, site_url):
    visit(page, site_url, 'paint')
    read_titles = 'all => all.map((label) => label.title)'
    titles = page.eval_on_selector_all('.cd-cells label', read_titles)
    assert titles[:8] == [f'{c}, photograph' for c in model.classes]
    assert titles[8:] == [f'{c}, drawn' for c in
                          ('neutrophil', 'lymphocyte', 'eosinophil', 'platelet')]
    assert 'Acevedo et al. 2020, CC BY 4.0' in page.inner_text('[name=kinds]')

    # The page begins with the neutrophil, whose cell is hidden
    cell = stained_masks(batch(photographs[6]), 'cell')[0, 0].numpy()
    assert np.array_equal(hole(page), cell)
    page.click('[name=nucleus]')
    nucleus = stained_masks(batch(photographs[6]))[0, 0].numpy()
    assert np.array_equal(hole(page), nucleus)
    choose(page, 1)
    go(page)
    only_the_hole_changed(page)
    names = page.locator('.cd-choose label').all_inner_texts()
    assert [n.strip() for n in names] == ['fill 1', 'the photograph']
    page.focus('[name=fill]:checked')
    page.keyboard.press('ArrowRight')
    assert np.array_equal(pixels(page, '.cd-shown')[..., :3], photographs[6])
    assert 'the photograph' in page.get_attribute('.cd-shown', 'aria-label')


def test_four_classes_side_by_side(page, site_url):
    visit(page, site_url, 'paint')
    choose(page)
    assert not page.is_visible('[name=fills]')
    assert 'Done: 4 fills' in go(page)
    names = page.locator('.cd-choose label').all_inner_texts()
    four = ['neutrophil', 'basophil', 'erythroblast', 'lymphocyte']
    assert [n.strip() for n in names] == [*four, 'the photograph']

    def fills():
        n = page.locator('.cd-choose canvas').count()
        tiles = [f'.cd-choose label:nth-of-type({k + 1}) canvas' for k in range(n)]
        return [pixels(page, tile).astype(int) for tile in tiles]
    *made, truth = fills()
    m = hole(page)
    for k in range(4):
        assert np.array_equal(made[k][~m], truth[~m])
        assert all(abs(made[k] - made[j])[m].mean() > 5 for j in range(k)), four[k]

    # One noise for all: alone, a class gives the same
    choose(page, 1, label='erythroblast')
    go(page)
    assert np.array_equal(fills()[0], made[2])


def batch(pixels):
    "One cell in -1..1 for the library"
    return encode(torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None])


def field_of(cell, side, h, w):
    "A photograph of a whole field, `h` x `w`, whose middle `side` pixels are the cell"
    middle = Image.fromarray(cell).resize((side, side), Image.Resampling.BICUBIC)
    top = (h - side)//2
    left = (w - side)//2
    pad = (top, h - side - top), (left, w - side - left), (0, 0)
    return np.pad(np.array(middle), pad, mode='symmetric')


def bring(page, picture, file):
    "Open a picture of one's own"
    Image.fromarray(picture).save(file)
    page.set_input_files('[name=file]', file)
    h, w = picture.shape[:2]
    named = "document.querySelector('[name=named]').textContent"
    page.wait_for_function(f"{named}.includes('{w} × {h} pixels')")


def overlap(a, b):
    return (a & b).sum()/(a | b).sum()


@pytest.mark.parametrize('h, w, side', [(363, 360, 200), (128, 128, 71)])
@pytest.mark.parametrize('label', ['lymphocyte', 'platelet'])
def test_a_photograph_of_ones_own(page, site_url, tmp_path, h, w, side, label):
    cell = photographs[model.classes.index(label)]
    mine = field_of(cell, side, h, w)
    visit(page, site_url, 'paint')
    bring(page, mine, tmp_path/'mine.png')

    # The frame begins with the crop of training: the cell as the network knows it
    cut = pixels(page, '.cd-picture')[..., :3]
    assert cut.shape == (64, 64, 3) and abs(cut.astype(int) - cell).mean() < 9
    assert not page.locator('[name=cell]:checked').count()
    page.click('[name=nucleus]')
    nucleus = stained_masks(batch(cell))[0, 0].numpy()
    assert overlap(hole(page), nucleus) > .8
    page.click('[name=body]')
    whole = stained_masks(batch(cell), 'cell')[0, 0].numpy()
    assert overlap(hole(page), whole) > .85

    choose(page, 1, steps=20, label=label)
    go(page)
    filled = only_the_hole_changed(page)[..., :3]

    # The seam: neighbours across it differ no more than those of the photograph do
    m = torch.from_numpy(hole(page))[None, None]
    seams = [seam_energy(batch(p), m).item()**.5 for p in (filled, cut)]
    print(f'{label}, {h} × {w}: seam {seams[0]:.1f}, of the photograph {seams[1]:.1f}')
    assert seams[0] < 1.25*seams[1]

    # The whole picture with the fill in it is a file that says it is synthetic
    page.wait_for_selector('[name=whole]')
    with page.expect_download() as waiting:
        page.click('[name=whole]')
    assert waiting.value.suggested_filename == f'synthetic-{label}-7-whole.png'
    saved = Image.open(waiting.value.path())
    saved.load()
    assert saved.text['synthetic'] == 'True' and saved.text['label'] == label
    changed = (np.array(saved.convert('RGB')) != mine).any(-1)
    share = hole(page).sum()*(side/64)**2
    assert saved.size == (w, h) and .8*share < changed.sum() <= 1.05*share


def test_the_frame_finds_a_cell_and_can_be_moved(page, site_url, tmp_path):
    "A cell of 35 pixels, not in the middle of a wide picture"
    cell = np.array(Image.fromarray(photographs[4]).resize((60, 60)))
    mine = np.tile(np.median(cell[:8], axis=(0, 1)).astype(np.uint8), (240, 400, 1))
    mine[80:140, 190:250] = cell
    visit(page, site_url, 'paint')
    bring(page, mine, tmp_path/'mine.png')
    wide = page.locator('[name=width]')
    assert abs(float(wide.input_value()) - 35) < 5
    before = pixels(page, '.cd-picture').astype(int)
    nucleus = stained_masks(batch(before[..., :3].astype(np.uint8)))[0, 0]
    page.click('[name=nucleus]')
    assert np.array_equal(hole(page), nucleus)

    # By keys: a larger frame shows a smaller cell, and arrows move it
    page.focus('.cd-square')
    for _ in range(6):
        page.keyboard.press('+')
    assert pixels(page, '.cd-picture').shape == before.shape and not hole(page).any()
    page.click('[name=body]')
    smaller = hole(page).sum()
    page.focus('[name=width]')
    for _ in range(12):
        page.keyboard.press('ArrowLeft')
    page.click('[name=body]')
    assert hole(page).sum() > 1.2*smaller
    page.focus('.cd-square')
    at = pixels(page, '.cd-picture')
    page.keyboard.press('ArrowRight')
    assert abs(pixels(page, '.cd-picture').astype(int) - at).mean() > 2

    # By mouse: at the empty end there is no cell to hide
    page.locator('.cd-whole').scroll_into_view_if_needed()
    box = page.locator('.cd-whole').bounding_box()
    page.mouse.move(box['x'] + .45*box['width'], box['y'] + .5*box['height'])
    page.mouse.down()
    page.mouse.move(box['x'] + .9*box['width'], box['y'] + .5*box['height'], steps=4)
    page.mouse.up()
    assert page.is_disabled('[name=nucleus]') and page.is_disabled('[name=body]')


# What is shared by an address

def at_address(page, site_url, address):
    page.goto(site_url.rstrip('/') + '/' + address)
    page.wait_for_selector('[name=go]')


def words(page):
    return dict(parse_qsl(urlsplit(page.url).query))


def test_an_address_for_a_fill(page, new_page, site_url):
    visit(page, site_url, 'paint')
    assert not urlsplit(page.url).query
    pick_cell(page, 1)
    page.click('[name=nucleus]')
    choose(page, 1, seed=12, label='platelet')
    page.click('[name=go]')
    done(page)
    said = words(page)
    expected = dict(cell='eosinophil, photograph', hole='nucleus', seed='12')
    assert said.items() >= {**expected, 'class': 'platelet'}.items()

    # Someone else sees the same
    other = new_page()
    at_address(other, site_url, page.url.rsplit('/', 1)[1])
    assert asked(other) == 'platelet' and other.input_value('[name=seed]') == '12'
    assert np.array_equal(hole(other), hole(page))
    if other.is_visible('[name=live]'):
        other.uncheck('[name=live]')
    other.select_option('[name=fills]', '1')
    go(other)
    assert np.array_equal(pixels(other, '.cd-shown'), pixels(page, '.cd-shown'))

    # A hole of one's own is not in the address
    page.bring_to_front()
    page.focus('.cd-paint')
    page.keyboard.press(' ')
    page.wait_for_function("!new URLSearchParams(location.search).has('hole')")


def test_an_address_for_a_cell(page, site_url):
    at_address(page, site_url, 'grow.html?class=monocyte&seed=5&guidance=2.5')
    assert asked(page) == 'monocyte' and page.input_value('[name=seed]') == '5'
    guidance = 1. if model.jumps else 2.5
    assert float(page.input_value('[name=w]')) == guidance
    page.click('[name=dice]')
    said = words(page)
    assert said['seed'] == page.input_value('[name=seed]') != '5'
    assert said['class'] == 'monocyte'


@pytest.mark.parametrize('name', ['paint', 'grow'])
def test_an_address_that_makes_no_sense(page, site_url, name):
    heard = []
    page.on('pageerror', lambda e: heard.append(str(e)))
    query = 'class=<b>&seed=-3.5&guidance=99&steps=7&cell=%22&hole=constructor'
    at_address(page, site_url, f'{name}.html?{query}')
    assert page.input_value('[name=seed]') == '7' and not heard
    first = 'four, side by side' if name == 'paint' else 'all 8, side by side'
    assert asked(page) == first
    if name == 'paint':
        assert hole(page).any() and page.is_checked('[name=cell][value="6"]')


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

compute = '''async ({ w, h, rgba, window, hole, label, guidance, steps, x }) => {
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
  const cut = P.cutOut(pixels, window, about.size);
  const m = bytes(hole);
  const labels = label === null ? null : [label];
  const noise = new Float32Array(bytes(x).buffer);
  const seen = P.seen(cut, m);
  const { x0 } = await engine.run({ x: noise, labels, w: guidance, steps, ...seen });
  const whole = P.enlarge(m, about.size, window, w, h);
  const out = P.putBack(pixels, whole, window, x0, about.size).data;
  return { cut: text(cut.data), whole: text(whole), x0: text(x0), out: text(out) };
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


def fill_in_browser(page, image, window, m, x, label, guidance):
    "What the page computes for a picture, its frame and a hole in the frame"
    h, w = image.shape[:2]
    opaque = np.full((h, w), 255, np.uint8)
    given = dict(
        w=w, h=h, label=label, guidance=guidance, steps=len(model.jumps or range(5)),
        rgba=text(np.dstack([image, opaque])),
        window=dict(zip(('top', 'left', 'side'), window)),
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
        begin, ask = begin_walk(model, ask, x)
        x0 = sampler.algorithm(ask, begin, model.schedule, ts)
    return even_out(x0).clamp(-1, 1) if mask.all() else x0


def of_text(s, *shape):
    return np.frombuffer(base64.b64decode(s), np.uint8).reshape(shape)


@pytest.mark.parametrize('h, w, window, box, label, guidance', [
    (64, 64, (0, 0, 64), (20, 44, 18, 50), 6, 1.),
    (64, 64, (0, 0, 64), (0, 64, 0, 64), 2, 1.),
    (40, 90, (-10, 20, 60), (20, 40, 10, 60), 3, 2.5),
    (300, 500, (90, 250, 200), (10, 40, 25, 50), None, 1.),
])
def test_a_fill_is_that_of_the_library(
        page, site_url, h, w, window, box, label, guidance):
    image = smooth_picture(h, w)
    m = np.zeros((64, 64), bool)
    m[box[0]:box[1], box[2]:box[3]] = True
    x = browser_noise(5, (1, 3, 64, 64))
    if model.jumps:
        guidance = 1.
    visit(page, site_url, 'paint')
    theirs = fill_in_browser(page, image, window, m, x, label, guidance)

    # What is in the frame, at the scale of training
    cut = of_text(theirs['cut'], 64, 64, 4)[..., :3]
    ours = resize(crop_window(image.astype(float), window), 64).round().clip(0, 255)
    assert np.abs(cut - ours).max() <= 1

    # The fill of the same pixels, and the picture with it
    known = encode(torch.from_numpy(cut.copy()).permute(2, 0, 1)[None])
    fill = fill_in_python(known, torch.from_numpy(m)[None, None], x, label, guidance)
    x0 = floats(theirs['x0'], 1, 3, 64, 64)
    assert np.abs(x0 - fill.numpy()).max() < 1e-4
    out = of_text(theirs['out'], h, w, 4)[..., :3]
    whole = of_text(theirs['whole'], h, w) > 0
    assert np.array_equal(out[~whole], image[~whole])
    filled = put_back(image, whole, window, fill[0], 255)
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


# Why

def ask_why(page):
    page.click('[name=ask]')
    page.wait_for_selector('[name=ask]:enabled', timeout=minute)
    assert not page.is_visible('.cd-unasked'), page.inner_text('.cd-unasked')
    assert page.is_visible('.cd-because')
    return page.inner_text('.cd-called')


def no_answer(page):
    return not page.is_visible('.cd-because') and not page.inner_text('.cd-called')


def says(maps, first, second):
    gap = maps[first].mean() - maps[second].mean()
    return (f'The classifier says {first}, with a score {gap:.1f} above that of '
            f'{second}.')


def maps_of(picture):
    "The maps of a picture `(height, width, 3)`, by name of the class"
    judge = load('blood-classifier-64-judge', 'cpu', 'float32', kind=CellClassifier)
    with torch.no_grad():
        maps = ClassMaps(judge)(batch(picture))[0].numpy()
    return dict(zip(judge.classes, maps))


def tinted(picture, gap):
    "The picture under a map of 8 × 8 places, which lie at every eighth pixel"
    places = np.meshgrid(*[np.arange(64)/8]*2, indexing='ij')
    gap = map_coordinates(gap, places, order=1, mode='nearest')[..., None]
    share = .65*abs(gap)/abs(gap).max()
    return (1 - share)*picture + share*np.where(gap > 0, [178, 24, 43], [33, 102, 172])


@pytest.mark.parametrize('n', [2, 5])
def test_a_class_is_named_and_the_map_adds_up(page, site_url, n):
    visit(page, site_url, 'paint')
    pick_cell(page, n)
    said = ask_why(page)
    maps = maps_of(photographs[n])
    first, second = sorted(maps, key=lambda name: -maps[name].mean())[:2]
    assert first == model.classes[n]
    assert said == says(maps, first, second)
    seen = pixels(page, '.cd-because canvas')[..., :3].astype(float)
    wanted = tinted(photographs[n], maps[first] - maps[second])
    assert np.abs(seen - wanted).max() < 3

    # Another rival, another map
    page.select_option('[name=rival]', label='platelet')
    gap = maps[first] - maps['platelet']
    seen = pixels(page, '.cd-because canvas')[..., :3].astype(float)
    assert np.abs(seen - tinted(photographs[n], gap)).max() < 3
    assert page.inner_text('.cd-called') == says(maps, first, 'platelet')
    assert f'{gap.mean():.1f}' in page.inner_text('.cd-because')
    disabled = page.locator('[name=rival] option:disabled').all_text_contents()
    assert disabled == [first]


def test_a_fill_is_asked_about_and_an_answer_is_forgotten(page, site_url):
    visit(page, site_url, 'paint')
    pick_cell(page, 6)
    choose(page, 1)
    go(page)
    fill = pixels(page, '.cd-shown')[..., :3]
    assert not np.array_equal(fill, photographs[6])
    said = ask_why(page)
    maps = maps_of(fill)
    first = max(maps, key=lambda name: maps[name].mean())
    assert said.startswith(f'The classifier says {first},')

    # What is beside another picture would be read as an answer about it
    page.check('[name=fill][value=truth]', force=True)
    assert no_answer(page)
    assert ask_why(page).startswith('The classifier says neutrophil,')
    page.check('[name=fill][value="0"]', force=True)
    assert no_answer(page)
    assert ask_why(page) == said
    page.focus('[name=step]')
    page.keyboard.press('Home')
    assert no_answer(page)
    pick_cell(page, 1)
    assert ask_why(page).startswith('The classifier says eosinophil,')
    pick_cell(page, 2)
    assert no_answer(page)


def test_a_late_answer_is_not_given_for_another_cell(page, site_url):
    visit(page, site_url, 'paint')
    held = []
    page.route('**/why.onnx', lambda r: held.append(r))
    page.click('[name=ask]')
    page.wait_for_selector('[name=ask]:disabled')
    page.wait_for_function("document.querySelector('.cd-called').textContent")
    while not held:
        page.wait_for_timeout(50)
    pick_cell(page, 1)
    held[0].continue_()
    page.wait_for_selector('[name=ask]:enabled', timeout=minute)
    assert no_answer(page) and not page.is_visible('.cd-unasked')
    assert ask_why(page).startswith('The classifier says eosinophil,')


def test_a_classifier_that_does_not_come(page, site_url):
    visit(page, site_url, 'paint')
    for file in 'why.json', 'why.onnx':
        page.route(f'**/{file}', lambda r: r.fulfill(status=404, body=''))
        page.click('[name=ask]')
        page.wait_for_selector('.cd-unasked:visible', timeout=minute)
        assert file in page.inner_text('.cd-unasked')
        page.unroute(f'**/{file}')
        pick_cell(page, 1 if file == 'why.json' else 6)
        assert not page.is_visible('.cd-unasked')
    assert 'neutrophil' in ask_why(page)


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
    if name == 'paint':
        ask_why(page)
    assert page.evaluate('document.documentElement.scrollWidth') <= 375
    page.add_script_tag(content=axe.read_text(encoding='utf-8'))
    faults = page.evaluate(grave_faults)
    assert not faults, faults
