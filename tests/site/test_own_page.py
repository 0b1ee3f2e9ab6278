"""A page for a network of one's own, as `export_page` writes it, in Chromium.

Classes have names that would be markup or code if they were not text.
"""
import numpy as np
import pytest
import torch
from PIL import Image

from conftest import root
from test_pages import go, pixels
from cell_diffusion.core import decode
from cell_diffusion.denoiser import Condition, Denoiser
from cell_diffusion.inpainting import Inpainter
from cell_diffusion.sampling import (
    batched_denoise, begin_walk, dpm_solver, timesteps)
from cell_diffusion.web import browser_noise, export_page

names = ('<img src=x onerror=alert(1)>', '"><script>alert(2)</script>', '$x_$^{', '_',
         'any', 'all', '細胞', 'תא', 'a/b|c', 'x'*120)
runtime = root/'site'


def network(kind=Denoiser, channels=3, classes=names):
    "An untrained network that does not answer zero"
    torch.manual_seed(0)
    unet = dict(dim=8, mults=[1, 2], channels=channels)
    if kind is Inpainter:
        unet.update(channels=2*channels + 1, out_channels=channels)
    model = kind(unet, schedule='log_snr', T=50, prediction='v', data_std=.5,
                 data_mean=[.4], size=16, classes=classes)
    for p in model.parameters():
        if not p.detach().any():
            torch.nn.init.normal_(p, std=.1)
    return model.eval().requires_grad_(False)


def visit(page, address, heard):
    "Open a page and note all that should not happen"
    page.on('dialog', lambda d: (heard.append(d.message), d.dismiss()))
    page.on('pageerror', lambda e: heard.append(str(e)))
    page.on('requestfailed', lambda r: heard.append(r.url))
    page.on('response', lambda r: heard.append(r.url) if r.status >= 400 else None)
    page.goto(address)
    page.wait_for_load_state('networkidle')


@pytest.mark.parametrize('channels', [1, 2, 3])
def test_own_cells_grow(page, serve, tmp_path, channels):
    model = network(channels=channels)
    export_page(model, tmp_path/'page', runtime=runtime)
    heard = []
    visit(page, serve(tmp_path/'page'), heard)
    options = page.locator('[name=label] option').all_text_contents()
    assert options == ['all 10, side by side', *names, 'any']

    page.select_option('[name=label]', '2')
    page.select_option('[name=steps]', '5')
    page.fill('[name=seed]', '5')
    go(page)
    assert page.locator('figcaption').all_text_contents() == ['$x_$^{']

    ask = batched_denoise(model, Condition(torch.tensor([2])))
    x = browser_noise(5, (1, channels, 16, 16))
    with torch.no_grad():
        ts = timesteps(model.schedule, 5, 'early')
        begin, ask = begin_walk(model, ask, x)
        x = dpm_solver(ask, begin, model.schedule, ts)
    ours = decode(x if channels == 3 else x[:, :1].expand(-1, 3, -1, -1))[0]
    theirs = pixels(page, '.cd-grid canvas')[..., :3].astype(int)
    assert abs(theirs - ours.permute(1, 2, 0).numpy()).max() <= 1

    page.select_option('[name=label]', 'all')
    go(page)
    assert page.locator('figcaption').all_text_contents() == list(names)
    page.select_option('[name=label]', '6')
    go(page)
    with page.expect_download() as waiting:
        page.click('[name=download]')
    saved = Image.open(waiting.value.path())
    assert saved.text['label'] == '細胞' and saved.text['synthetic'] == 'True'
    assert not heard and not page.locator('main img, main div script').count()


@pytest.mark.parametrize('channels, classes', [(1, ()), (3, names)])
def test_own_holes_are_filled(page, serve, tmp_path, channels, classes):
    export_page(network(Inpainter, channels, classes), tmp_path/'page', runtime=runtime)
    heard = []
    visit(page, serve(tmp_path/'page') + '/paint.html', heard)
    cells = page.locator('[name=cell]').count()
    assert cells == (len(classes) or 4)
    assert page.locator('[name=label]').is_visible() == bool(classes)
    page.click('[name=middle]')
    if classes:
        assert 'Done: 4 fills' in go(page)
        tiles = page.locator('.cd-choose label').all_text_contents()
        assert tiles == [*(names[i] for i in (0, 2, 5, 7)), 'as generated']
        page.select_option('[name=label]', '1')
    page.select_option('[name=fills]', '1')
    before = pixels(page, '.cd-picture')
    assert 'Done: 1 fill' in go(page)
    after = pixels(page, '.cd-shown')
    changed = np.any(before != after, axis=-1)
    assert 10 < changed.sum() < 80

    # The address holds the class, whatever it is called
    page.reload()
    page.wait_for_load_state('networkidle')
    if classes:
        asked = page.locator('[name=label] option:checked').text_content()
        assert asked == names[1]

    # Of a picture of any shape the largest square is in the frame at first
    rng = np.random.default_rng(0)
    mine = rng.integers(0, 255, (30, 21, channels)).astype(np.uint8)
    Image.fromarray(mine.squeeze()).save(tmp_path/'mine.png')
    page.set_input_files('[name=file]', tmp_path/'mine.png')
    page.wait_for_selector('.cd-frame:visible')
    page.click('[name=half]')
    if classes:
        page.select_option('[name=label]', 'any')
    assert 'Done: ' in go(page)
    cut = pixels(page, '.cd-picture')[..., :3].astype(float)
    assert cut.shape == (16, 16, 3)
    assert abs(cut.mean() - mine[4:25].mean()) < 5
    assert not heard and not page.locator('main img, main div script').count()


def test_a_page_of_a_file_says_what_to_do(page, tmp_path):
    index = export_page(network(), tmp_path/'page')
    page.goto(index.as_uri())
    assert 'python -m http.server --bind 127.0.0.1' in page.inner_text('main')
