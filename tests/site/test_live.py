"""Pages with a network of few calls, which fill and grow without a button.

The network is small and untrained, and the pages are those of `export_page`.
"""
import numpy as np
import pytest
import torch

from test_own_page import network, runtime
from test_pages import change_worker, error, go, hole, pixels
from cell_diffusion.core import decode
from cell_diffusion.denoiser import Condition
from cell_diffusion.distillation import student_of
from cell_diffusion.inpainting import Inpainter
from cell_diffusion.sampling import batched_denoise, ddim
from cell_diffusion.web import browser_noise, export_page

kinds = 'a', 'b', 'c'


@pytest.fixture(scope='module')
def student():
    return student_of(network(Inpainter, classes=kinds), (49, 20)).eval()


@pytest.fixture(scope='module')
def folder(student, tmp_path_factory):
    out = tmp_path_factory.mktemp('live')/'page'
    export_page(student, out, runtime=runtime)
    return out


@pytest.fixture
def visit(page, serve, folder):
    "Opens a page and notes what it fetches and what a screen reader would say"
    page.fetched = []
    page.on('request', lambda r: page.fetched.append(r.url.rsplit('/')[-1]))
    address = serve(folder)

    def open_page(name):
        page.goto(f'{address}/{name}.html')
        page.wait_for_selector('[name=go]')
        page.evaluate(listen)
        return page
    return open_page


listen = '''() => {
  window.said = [];
  const status = document.querySelector('.cd-status');
  new MutationObserver(() => {
    if (status.textContent) window.said.push(status.textContent);
  }).observe(status, { childList: true });
}'''

slow = "setTimeout(resolve));", "setTimeout(resolve, 250));"
ended = "document.querySelector('[name=cancel]').disabled"


def said(page, n):
    "Wait until the page has said `n` things, and a moment longer"
    page.wait_for_function(f'window.said.length >= {n} && {ended}', timeout=60_000)
    page.wait_for_timeout(700)
    return page.evaluate('window.said.splice(0)')


def to(page, u, v):
    box = page.locator('.cd-paint').bounding_box()
    page.mouse.move(box['x'] + u*box['width'], box['y'] + v*box['height'])


def stroke(page, *points):
    "A stroke of the brush, which is lifted at the end"
    page.locator('.cd-paint').scroll_into_view_if_needed()
    to(page, *points[0])
    page.mouse.down()
    for point in points:
        to(page, *point)
    page.mouse.up()


def shown(page):
    "The fill that is in view, which leaves what is not hidden as it was"
    fill = pixels(page, '.cd-shown')
    m = hole(page)
    assert np.array_equal(fill[~m], pixels(page, '.cd-picture')[~m])
    return fill


def heavy(page):
    return [name for name in page.fetched if name.endswith(('.onnx', '.wasm.gz'))]


def test_a_hole_is_filled_as_the_brush_is_lifted(visit):
    page = visit('paint')
    page.eval_on_selector('details', 'd => { d.open = true }')
    assert page.is_checked('[name=live]')
    assert page.inner_text('.cd-live').strip() == 'Fill as the brush is lifted'
    assert not page.is_visible('[name=steps]') and not page.is_visible('[name=w]')
    assert 'in 2 calls what its teacher' in page.inner_text('[name=why]')
    page.wait_for_timeout(700)
    assert not heavy(page), 'nothing comes before a hand has moved'

    # Three classes, side by side
    assert page.locator('[name=label] option:checked').inner_text() == (
        'three, side by side')
    stroke(page, (.3, .3), (.3, .6))
    words = said(page, 2)
    assert words[0].startswith('Loading the network, 4.0 MB') and len(words) == 2
    assert words[1].startswith(f'Done: 3 fills of {hole(page).sum()} pixels')
    names = page.locator('.cd-choose label').all_inner_texts()
    assert [name.strip() for name in names] == [*kinds, 'as generated']

    page.select_option('[name=label]', '1')
    words = said(page, 1)
    n = hole(page).sum()
    assert words[0].startswith(f'Done: 4 fills of {n} pixels')
    first = shown(page)
    assert page.is_checked('[name=fill][value="0"]')
    assert page.locator('[name=fill]').count() == 5

    # With the eraser, with a ready-made hole, and with another class
    page.click('[name=erase]')
    stroke(page, (.3, .3))
    assert len(said(page, 1)) == 1 and hole(page).sum() < n
    shown(page)
    page.click('[name=half]')
    assert 'of 128 pixels' in said(page, 1)[0]
    a = shown(page)
    assert not np.array_equal(a, first)
    page.select_option('[name=label]', '2')
    said(page, 1)
    assert not np.array_equal(shown(page), a)

    # Where nothing is hidden there is nothing to fill, and the last one stays
    last = pixels(page, '.cd-shown')
    page.click('[name=clear]')
    page.wait_for_timeout(700)
    assert np.array_equal(pixels(page, '.cd-shown'), last)
    assert page.is_visible('.cd-shown') and not page.evaluate('window.said.length')

    # Switched off, and so until the tab is closed; the button works as before
    page.uncheck('[name=live]')
    for _ in range(2):
        page.click('[name=middle]')
        page.wait_for_timeout(700)
        assert not page.evaluate('window.said.length')
        page = visit('paint')
        assert not page.is_checked('[name=live]')
    assert 'Done: 3 fills' in go(page)


def test_a_new_stroke_ends_the_fill(visit, page):
    change_worker(page, lambda source: source.replace(*slow))
    visit('paint')
    page.select_option('[name=label]', '1')
    page.select_option('[name=fills]', '1')
    assert 'Done: 1 fill' in said(page, 2)[-1], 'another number of fills'
    first = shown(page)

    def begin():
        page.wait_for_function(f'!{ended}', timeout=10_000)

    stroke(page, (.2, .8))
    begin()
    to(page, .8, .2)
    page.mouse.down()
    page.wait_for_function(ended)
    page.wait_for_timeout(900)
    m = hole(page)
    assert np.array_equal(pixels(page, '.cd-shown'), first), 'until the next is there'
    page.mouse.up()
    [words] = said(page, 1)
    assert words.startswith(f'Done: 1 fill of {m.sum()} pixels')
    second = shown(page)
    assert not np.array_equal(first, second)

    # Keys: nothing happens while the pen is down, and the focus stays
    page.focus('.cd-paint')
    page.keyboard.press('Enter')
    page.keyboard.press('ArrowLeft')
    page.wait_for_timeout(900)
    assert page.evaluate(ended)
    for key in 'Enter', 'ArrowUp', ' ', 'ArrowUp', ' ':
        page.keyboard.press(key)
    assert len(said(page, 1)) == 1
    assert page.evaluate("document.activeElement.className") == 'cd-paint'

    # The button ends what began by itself, and Cancel says so
    page.click('[name=middle]')
    begin()
    page.click('[name=go]')
    assert said(page, 2)[-1].startswith('Done: 1 fill')
    page.click('[name=half]')
    begin()
    page.click('[name=cancel]')
    assert said(page, 2)[-1].startswith('Cancelled')

    # Another cell ends it without a word
    page.click('[name=middle]')
    begin()
    page.check('[name=cell][value="1"]', force=True)
    page.wait_for_function(ended)
    page.wait_for_timeout(900)
    assert page.is_visible('.cd-empty') and not page.evaluate('window.said.length')


def grown(student, label, x):
    "What the library makes of this noise"
    ask = batched_denoise(student, Condition(torch.tensor([label])))
    with torch.no_grad():
        x = ddim(ask, x, student.schedule, torch.tensor(student.jumps))
    return decode(x)[0].permute(1, 2, 0).numpy().astype(int)


def test_cells_grow_at_every_change(visit, student):
    page = visit('index')
    assert page.is_checked('[name=live]') and not heavy(page)
    assert not page.is_visible('[name=steps]') and not page.is_visible('[name=w]')

    def cell(n=1):
        assert said(page, n)[-1].startswith('Done: 1 cell')
        return pixels(page, '.cd-grid canvas')[..., :3].astype(int)

    page.select_option('[name=label]', '1')
    cell(2)
    page.fill('[name=seed]', '5')
    a = cell()
    noise = [browser_noise(seed, (1, 3, 16, 16)) for seed in (5, 6)]
    assert abs(a - grown(student, 1, noise[0])).max() <= 1

    # Halfway to the next seed, and there
    page.fill('[name=mix]', '0.5')
    halfway = (noise[0] + noise[1])/2**.5
    assert abs(cell() - grown(student, 1, halfway)).max() <= 1
    told = page.get_attribute('[name=mix]', 'aria-valuetext')
    assert told == '50 % towards seed 6'
    page.fill('[name=mix]', '1')
    assert abs(cell() - grown(student, 1, noise[1])).max() <= 1

    # A slider that is dragged makes one cell, where it stops; no seed makes none
    for share in np.arange(0, 1, .1):
        page.fill('[name=mix]', f'{share:.1f}')
    cell()
    page.fill('[name=seed]', '')
    page.wait_for_timeout(700)
    assert not page.evaluate('window.said.length')
    page.fill('[name=seed]', '7')
    cell()
    page.click('[name=dice]')
    cell()
    assert 'Done: 1 cell' in go(page)


def test_cells_grow_under_the_pointer(visit, student):
    "While noise is dragged there is a new cell each time, and nothing is said"
    page = visit('index')
    page.select_option('[name=label]', '1')
    said(page, 2)
    page.locator('[name=mix]').scroll_into_view_if_needed()
    box = page.locator('[name=mix]').bounding_box()

    def drag_to(share):
        x = box['x'] + 8 + share*(box['width'] - 16)
        page.mouse.move(x, box['y'] + box['height']/2)
        page.wait_for_timeout(700)
        return pixels(page, '.cd-grid canvas')[..., :3].astype(int)

    drag_to(0)
    page.mouse.down()
    cells = [drag_to(share) for share in (.3, .6, 1)]
    assert not page.evaluate('window.said.length')
    assert 'towards' not in page.url
    for a, b in zip(cells, cells[1:]):
        assert abs(a - b).mean() > 1
    page.mouse.up()
    assert said(page, 1)[-1].startswith('Done: 1 cell') and 'towards=1' in page.url
    noise = browser_noise(8, (1, 3, 16, 16))
    finished = pixels(page, '.cd-grid canvas')[..., :3].astype(int)
    assert abs(finished - grown(student, 1, noise)).max() <= 1


def test_what_fails_by_itself_is_said_once(visit, page):
    page.route('**/network.onnx', lambda r: r.fulfill(status=404, body=''))
    visit('index')
    page.select_option('[name=label]', '1')
    assert 'The network is missing on this site' in error(page)
    assert not page.is_checked('[name=live]')
    page.unroute('**/network.onnx')
    assert 'Done: 1 cell' in go(page)


def test_a_network_of_many_steps_waits_for_its_button(page, serve, tmp_path):
    export_page(network(Inpainter, classes=kinds), tmp_path/'page', runtime=runtime)
    fetched = []
    page.on('request', lambda r: fetched.append(r.url))
    for name, change in ('paint', '[name=half]'), ('index', '[name=dice]'):
        page.goto(f"{serve(tmp_path/'page')}/{name}.html")
        page.wait_for_selector('[name=go]')
        page.eval_on_selector('details', 'd => { d.open = true }')
        assert not page.is_visible('[name=live]')
        assert page.is_visible('[name=steps]') and page.is_visible('[name=w]')
        page.click(change)
        page.wait_for_timeout(700)
        assert not page.is_visible('[name=mix]')
    assert not [url for url in fetched if url.endswith('.onnx')]
