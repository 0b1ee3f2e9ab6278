"The two pages where one paints, in a real browser: holes are filled by mouse and keyboard, nothing else changes, and the sampler agrees with PyTorch"
import base64
from pathlib import Path
import numpy as np, pytest, torch
from PIL import Image
from cell_diffusion.conditioning import Guided
from cell_diffusion.ddpm import dpm_solver
from cell_diffusion.inpainting import Filling, cut, find_window, load_network
from cell_diffusion.inpainting import _close_up, _put_back
from cell_diffusion.web import browser_noise

minute, axe = 60_000, Path(__file__).parents[2]/'site'/'node_modules'/'axe-core'/'axe.min.js'

def visit(page, site_url, name):
    page.goto(f'{site_url.rstrip("/")}/{name}.html')
    page.wait_for_selector('[name=go]')

def pixels(page, canvas):
    "What a canvas shows, uint8 `(height, width, 4)`"
    code = "c => { const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data; let s = ''; for (let i = 0; i < d.length; i += 8192) s += String.fromCharCode(...d.subarray(i, i + 8192)); return [c.height, c.width, btoa(s)]; }"
    h, w, data = page.eval_on_selector(canvas, code)
    return np.frombuffer(base64.b64decode(data), np.uint8).reshape(h, w, 4)

def hole(page): return pixels(page, '.cd-paint')[..., 3] > 0

def choose(page, fills=None, seed=7, steps=5, label=None):
    page.eval_on_selector('details', 'd => { d.open = true }')
    if fills: page.select_option('[name=fills]', str(fills))
    if label: page.select_option('[name=label]', label)
    page.select_option('[name=steps]', str(steps))
    page.fill('[name=seed]', str(seed))

def go(page):
    "Press the button, wait, and return what is said"
    page.click('[name=go]')
    return done(page)

def done(page):
    page.wait_for_function("document.querySelector('[aria-busy=false]')", timeout=2*minute)
    assert not page.is_visible('.cd-error'), page.inner_text('.cd-error')
    return page.inner_text('.cd-status')

def only_the_hole_changed(page):
    before, after, m = pixels(page, '.cd-picture'), pixels(page, '.cd-shown'), hole(page)
    assert np.array_equal(before[~m], after[~m]) and (before[m] != after[m]).any(1).mean() > .5
    return after

def test_a_hole_is_filled_by_keyboard(page, site_url):
    visit(page, site_url, 'paint')
    page.click('[name=clear]')
    assert 'Nothing is hidden yet' in page.inner_text('#cd-brush')
    page.focus('.cd-paint')
    for key in ['ArrowLeft', 'ArrowUp', ' ', 'Enter', *['ArrowRight']*4, *['Shift+ArrowDown']*5, 'Enter', *['ArrowDown']*3]: page.keyboard.press(key)
    n = hole(page).sum()
    assert n > 100 and f'{n} of 4,096 pixels are hidden' in page.inner_text('#cd-brush')
    page.keyboard.press('Control+z'); assert 0 < hole(page).sum() < n
    choose(page, 1)
    page.focus('[name=go]'); page.keyboard.press('Enter')
    assert 'Done: 1 fill' in done(page)
    only_the_hole_changed(page)
    page.focus('[name=step]'); page.keyboard.press('Home')
    assert page.get_attribute('[name=step]', 'aria-valuetext') == 'after 0 of 5 steps'
    m, noisy = hole(page), pixels(page, '.cd-shown')
    assert np.array_equal(noisy[~m], pixels(page, '.cd-picture')[~m]) and noisy[m].std() > 60                 # it began as noise

def test_a_hole_is_filled_by_mouse(page, site_url):
    visit(page, site_url, 'paint')
    page.check('[name=cell][value="9"]', force=True)
    assert not hole(page).any() and page.input_value('[name=label]') == 'lymphocyte'
    page.locator('.cd-paint').scroll_into_view_if_needed()
    box = page.locator('.cd-paint').bounding_box()
    at = lambda u, v: (box['x'] + u*box['width'], box['y'] + v*box['height'])
    page.mouse.move(*at(.3, .4)); page.mouse.down(); page.mouse.move(*at(.7, .6), steps=6); page.mouse.up()
    m = hole(page)
    assert m[26, 19] and m[32, 32] and m[38, 45] and not m[:10].any() and not m[60:].any()
    page.click('[name=erase]'); page.mouse.move(*at(.7, .6)); page.mouse.down(); page.mouse.up()
    assert not hole(page)[38, 45] and hole(page)[32, 32]
    page.click('[name=undo]'); assert np.array_equal(hole(page), m)
    choose(page, 2)
    assert 'Done: 2 fills' in go(page)
    second = only_the_hole_changed(page)
    page.check('[name=fill][value="0"]', force=True)
    first = only_the_hole_changed(page)
    assert not np.array_equal(first, second)
    page.click('[name=original]'); assert np.array_equal(pixels(page, '.cd-shown'), pixels(page, '.cd-picture'))

def test_the_seed_decides_and_the_class_matters(page, site_url):
    visit(page, site_url, 'paint')
    page.click('[name=all]')
    def cell(**kwargs): choose(page, 1, **kwargs); go(page); return pixels(page, '.cd-shown').astype(int)
    a = cell(seed=3, label='neutrophil')
    assert np.array_equal(a, cell(seed=3, label='neutrophil'))
    assert abs(a - cell(seed=4, label='neutrophil')).mean() > 5 and abs(a - cell(seed=3, label='platelet')).mean() > 5

def test_a_picture_of_ones_own_and_its_file(page, site_url, tmp_path):
    mine = np.random.default_rng(0).integers(90, 160, (301, 420, 3)).astype(np.uint8)
    Image.fromarray(mine).save(tmp_path/'mine.png')
    visit(page, site_url, 'paint')
    page.set_input_files('[name=file]', tmp_path/'mine.png')
    page.wait_for_function("document.querySelector('[name=named]').textContent.includes('420 × 301')")
    assert np.array_equal(pixels(page, '.cd-picture')[..., :3], mine) and page.is_disabled('[name=nucleus]')
    page.click('[name=middle]'); choose(page, 1, label='monocyte')
    go(page); only_the_hole_changed(page)
    page.wait_for_selector('[name=download]')
    with page.expect_download() as waiting: page.click('[name=download]')
    assert waiting.value.suggested_filename == 'synthetic-monocyte-7.png'
    saved = Image.open(waiting.value.path()); saved.load()
    assert saved.size == (420, 301) and saved.text['synthetic'] == 'True' and saved.text['label'] == 'monocyte'
    assert np.array_equal(np.array(saved.convert('RGB')), pixels(page, '.cd-shown')[..., :3])
    Image.new('1', (5000, 2600)).save(tmp_path/'large.png')
    page.set_input_files('[name=file]', tmp_path/'large.png')
    page.wait_for_selector('.cd-error:visible'); assert 'large.png has 13 megapixels, and 12 is the most' in page.inner_text('.cd-error') and pixels(page, '.cd-picture').shape == (301, 420, 4)
    (tmp_path/'text.png').write_text('no picture')
    page.set_input_files('[name=file]', tmp_path/'text.png')
    page.wait_for_selector('.cd-error:has-text("text.png"):visible'); assert 'cannot be read as a picture' in page.inner_text('.cd-error')

def test_nothing_hidden_and_cancel(page, site_url):
    visit(page, site_url, 'paint')
    page.click('[name=clear]'); page.click('[name=go]')
    page.wait_for_selector('.cd-error:visible', timeout=minute); assert 'Nothing is hidden yet' in page.inner_text('.cd-error')
    page.click('[name=all]'); choose(page, 4, steps=50); page.click('[name=go]')
    page.wait_for_function("document.querySelector('.cd-progress span').textContent.startsWith('step 3')", timeout=minute)
    page.click('[name=cancel]'); assert done(page).startswith('Cancelled')
    choose(page, 1); page.click('[name=go]')                                      # it can begin again
    page.wait_for_function("document.querySelector('.cd-progress span').textContent.startsWith('step 2')", timeout=minute)
    page.check('[name=cell][value="2"]', force=True)                              # and another cell ends it
    assert done(page).startswith('Cancelled') and page.is_visible('.cd-empty') and not hole(page).any()

def test_cancel_while_the_network_is_fetched(page, site_url):
    held = []
    page.route('**/blood64-inpaint.onnx', lambda r: held.append(r))                            # as slow as a network can be
    visit(page, site_url, 'paint')
    def fetching():
        n = len(held)
        page.click('[name=all]'); choose(page, 1); page.click('[name=go]')
        while len(held) == n: page.wait_for_timeout(50)
    def nothing_painted(): return page.is_visible('.cd-empty') and not page.is_visible('.cd-result') and page.is_enabled('[name=go]')
    fetching(); page.click('[name=cancel]')
    assert done(page).startswith('Cancelled') and nothing_painted()
    fetching(); page.check('[name=cell][value="2"]', force=True)                  # another cell ends it too
    assert done(page).startswith('Cancelled') and nothing_painted() and not hole(page).any()
    page.unroute('**/blood64-inpaint.onnx')
    for r in held:
        try: r.continue_()                                                        # what was asked for arrives after all
        except Exception: pass                                                    # unless the browser has given it up
    page.wait_for_timeout(1000)
    assert nothing_painted() and page.inner_text('.cd-status').startswith('Cancelled')
    page.click('[name=middle]')
    assert 'Done: 1 fill' in go(page)
    only_the_hole_changed(page)
    page.focus('[name=step]'); page.keyboard.press('Home')
    m, noisy = hole(page), pixels(page, '.cd-shown')
    assert np.array_equal(noisy[~m], pixels(page, '.cd-picture')[~m]) and noisy[m].std() > 60

def test_a_broken_session_is_replaced(page, site_url):
    broken = "session = { run() { throw RangeError('Out of memory'); } }; tell('ready'"
    page.route('**/worker.js', lambda r: r.fulfill(content_type='text/javascript', body=r.fetch().text().replace("tell('ready'", broken)), times=1)
    visit(page, site_url, 'paint'); choose(page, 1); page.click('[name=all]'); page.click('[name=go]')
    page.wait_for_selector('.cd-error:visible', timeout=minute); assert 'not enough memory' in page.inner_text('.cd-error')
    assert 'Done: 1 fill' in go(page)

def test_cells_grow(page, site_url):
    visit(page, site_url, 'grow')
    def cell(label, seed=5): choose(page, seed=seed, label=label); go(page); return pixels(page, '.cd-grid canvas').astype(int)
    a = cell('monocyte')
    assert np.array_equal(a, cell('monocyte')) and abs(a - cell('monocyte', 6)).mean() > 5 and a.shape == (64, 64, 4)
    choose(page, seed=5, label='eight')
    assert 'Done: 8 cells' in go(page) and page.locator('.cd-grid canvas').count() == 8
    assert page.locator('.cd-grid figcaption').all_inner_texts()[5] == 'monocyte'
    assert abs(pixels(page, '.cd-grid figure:nth-child(6) canvas').astype(int) - a).max() <= 2                # alone or among eight
    with page.expect_download() as waiting: page.click('[name=download]')
    assert Image.open(waiting.value.path()).size == (256, 128)

# the same as in Python

compute = '''async ({ w, h, rgba, hole, label, guidance, steps, x }) => {
  const bytes = s => Uint8Array.from(atob(s), c => c.charCodeAt(0)), here = p => new URL(`browser/${p}`, document.baseURI);
  const text = a => { const u = new Uint8Array(a.buffer, a.byteOffset, a.byteLength); let s = ''; for (let i = 0; i < u.length; i += 8192) s += String.fromCharCode(...u.subarray(i, i + 8192)); return btoa(s); };
  const P = await import(here('picture.js')), C = await import(here('common.js')), about = await C.describe(), engine = new C.Engine(about);
  await engine.load();
  const pixels = new ImageData(new Uint8ClampedArray(bytes(rgba)), w, h), m = bytes(hole), window = P.findWindow(m, w, h), seen = P.closeUp(pixels, m, window, about.size);
  const { x0 } = await engine.run({ x: new Float32Array(bytes(x).buffer), labels: label === null ? null : [label], w: guidance, steps, ...seen });
  return { window, known: text(seen.known), mask: text(seen.mask), x0: text(x0), out: text(P.putBack(pixels, m, window, x0, about.size).data) };
}'''

def text(a): return base64.b64encode(np.ascontiguousarray(a).tobytes()).decode()
def floats(s, *shape): return np.frombuffer(base64.b64decode(s), np.float32).reshape(shape)

@pytest.mark.parametrize('h, w, box, label, guidance', [(64, 64, (20, 44, 18, 50), 6, 1.), (64, 64, (0, 64, 0, 64), 2, 1.), (40, 90, (5, 35, 5, 80), 3, 2.5), (300, 500, (100, 180, 300, 400), None, 1.)])
def test_a_fill_is_that_of_the_library(page, site_url, h, w, box, label, guidance):
    rng = np.random.default_rng(0)
    image = np.array(Image.fromarray(rng.integers(0, 255, (8, 8, 3)).astype(np.uint8)).resize((w, h), Image.Resampling.BICUBIC))
    m, x, net = np.zeros((h, w), bool), browser_noise(5, (1, 3, 64, 64)), load_network('blood64-inpaint')
    m[box[0]:box[1], box[2]:box[3]] = True
    visit(page, site_url, 'paint')
    there = page.evaluate(compute, dict(w=w, h=h, rgba=text(np.dstack([image, np.full((h, w), 255, np.uint8)])), hole=text(m.astype(np.uint8)), label=label, guidance=guidance, steps=5, x=text(x.numpy())))
    place = find_window(m)
    known, mask = _close_up(cut(image.astype(float), place)/127.5 - 1, cut(m, place), 64)
    assert place == (there['window']['top'], there['window']['left'], there['window']['side']) and np.array_equal(floats(there['mask'], 1, 1, 64, 64) > 0, mask)
    keep = ~mask.expand_as(known).numpy()
    assert np.abs(floats(there['known'], 1, 3, 64, 64) - known.numpy())[keep].max(initial=0) < .02             # where two known pixels are equally near, either may be taken
    known = torch.from_numpy(floats(there['known'], 1, 3, 64, 64).copy())
    bound = Filling(net, known, mask)
    with torch.no_grad(): here = dpm_solver(bound if guidance == 1 else Guided(bound, guidance), x, None if label is None else torch.tensor([label]), steps=5)
    assert np.abs(floats(there['x0'], 1, 3, 64, 64) - here.numpy()).max() < 1e-4
    out = np.frombuffer(base64.b64decode(there['out']), np.uint8).reshape(h, w, 4)[..., :3]
    assert np.array_equal(out[~m], image[~m]) and np.abs(out.astype(int) - _put_back(image, m, place, here[0].permute(1, 2, 0).numpy(), 255)).max() <= 1

def test_the_noise_is_that_of_the_library(page, site_url):
    visit(page, site_url, 'grow')
    z = page.evaluate("async () => [...(await import(new URL('browser/diffusion.js', document.baseURI))).noise(123456, 1001)]")
    assert np.allclose(z, browser_noise(123456, (1001,)), atol=1e-6)

# what can go wrong, and what it costs

def test_missing_files_are_named(page, site_url):
    page.route('**/blood64-inpaint.onnx', lambda r: r.fulfill(status=404, body=''))
    visit(page, site_url, 'paint'); page.click('[name=go]')
    page.wait_for_selector('.cd-error:visible', timeout=minute)
    assert 'The network is missing on this site (browser/model/blood64-inpaint.onnx, answer 404)' in page.inner_text('.cd-error') and page.is_enabled('[name=go]')
    page.unroute('**/blood64-inpaint.onnx'); choose(page, 1); assert 'Done' in go(page)
    page.route('**/blood64-inpaint.json', lambda r: r.fulfill(status=404, body=''))
    for name in 'paint', 'grow':
        page.goto(f'{site_url.rstrip("/")}/{name}.html')
        page.wait_for_selector('.cd-error'); assert 'The description of the network is missing' in page.inner_text('.cd-error')

@pytest.mark.parametrize('lost, said', [('globalThis.WebAssembly = undefined;', 'no WebAssembly'), ("WebAssembly.instantiate = () => { throw RangeError('Out of memory'); };", 'not enough memory')])
def test_what_a_browser_lacks_is_said(page, site_url, lost, said):
    page.route('**/worker.js', lambda r: r.fulfill(content_type='text/javascript', body=lost + r.fetch().text()))
    visit(page, site_url, 'grow'); page.click('[name=go]')
    page.wait_for_selector('.cd-error:visible', timeout=minute)
    assert said in page.inner_text('.cd-error')

@pytest.mark.parametrize('name', ['paint', 'grow'])
def test_all_that_is_loaded(page, site_url, name):
    sizes = {}
    page.on('response', lambda r: sizes.update({r.url: r}))
    visit(page, site_url, name)
    page.wait_for_load_state('networkidle')
    assert not any(u.endswith(('.wasm', '.onnx')) for u in sizes)                 # only when it is needed
    choose(page, 1 if name == 'paint' else None, label='neutrophil', steps=20)
    page.click('[name=go]'); done(page)
    page.wait_for_load_state('networkidle')
    total = sum(len(r.body()) for r in sizes.values() if r.status == 200)
    assert all(u.startswith((site_url.rstrip('/'), 'blob:', 'data:')) for u in sizes), sizes.keys()
    heavy = sum(len(r.body()) for u, r in sizes.items() if u.endswith(('.wasm', '.onnx', '.mjs')))
    assert total <= 20e6 and round(heavy/1e6) == 18                               # 18 MB is what the pages promise
    seconds = float(page.inner_text('.cd-status').rsplit(' in ', 1)[1].split()[0])
    print(f'{name}: {total/1e6:.2f} MB, {seconds} s for 20 steps')
    assert seconds < 20

@pytest.mark.parametrize('name', ['paint', 'grow'])
@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_a_phone_and_a_screen_reader(page, site_url, name, scheme):
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size(dict(width=375, height=812))
    visit(page, site_url, name)
    choose(page, 2 if name == 'paint' else None); go(page)
    assert page.evaluate('document.documentElement.scrollWidth') <= 375
    page.add_script_tag(content=axe.read_text(encoding='utf-8'))
    faults = page.evaluate("async () => (await axe.run('.cd')).violations.filter(v => ['serious', 'critical'].includes(v.impact)).map(v => [v.id, v.nodes.map(n => n.html.slice(0, 120))])")
    assert not faults, faults
