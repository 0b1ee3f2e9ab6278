"The slider: what it writes into a page, what it weighs, what it refuses; the live one"
import base64
import html
import io
import json
import re
from html.parser import HTMLParser
import matplotlib
matplotlib.use('Agg')
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image
from common import cells, chapters
from cell_diffusion.viewer import FrameSlider, grid_frame

def noise(n=20, cells=8, size=32):
    rng = torch.Generator().manual_seed(0)
    return list(torch.rand(n, cells, 3, size, size, generator=rng)*2 - 1)

def page_of(frames, labels, *args, **kwargs):
    return FrameSlider(frames, labels, *args, **kwargs)._repr_html_()

class Tags(HTMLParser):
    "Collects start tags, and checks that tags close in order"
    def __init__(self, page):
        super().__init__()
        self.found = []
        self.open = []
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in ('img', 'input'): self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def first(self, tag):
        return next(attrs for name, attrs in self.found if name == tag)

def test_page_is_self_contained():
    page = page_of(noise(), range(20), 't', 'Cells in noise.')
    assert 'widget-view' not in page and '\n\n' not in page
    assert not re.search(r'https?:|src="(?!data:)|import\(|require\(', page)

def test_page_can_be_used_by_key_and_by_ear():
    tags = Tags(page_of(noise(), range(20), 't', 'Cells in noise.'))
    image = tags.first('img')
    assert image['src'].startswith('data:image/webp;base64,')
    assert image['alt'] == 't = 0'
    slider = tags.first('input')
    expected = dict(type='range', min='0', max='19', value='0')
    assert expected.items() <= slider.items() and slider['aria-label'] == 't'
    assert tags.first('figure')['aria-label'] == 'Cells in noise.'
    assert tags.first('button')['aria-label'] == 'Play'

def test_page_without_scripts_and_in_dark_mode():
    tags = Tags(page_of(noise(), range(20)))
    assert 'display:none' in tags.first('div')['style'], 'no dead slider'
    style = tags.first('figure')['style']
    assert 'color:inherit' in style and 'max-width' in style

def test_frames_are_all_there_as_webp():
    page = page_of(noise(5), 'abcde')
    frames = re.findall(r'data:image/webp;base64,([A-Za-z0-9+/=]+)', page)
    assert len(frames) == 5
    for frame in frames:
        image = Image.open(io.BytesIO(base64.b64decode(frame)))
        assert image.format == 'WEBP' and image.size == (8*64 + 7*4, 64)
    names = json.loads(re.search(r'names = (\[.*?\])', page)[1])
    assert names == [f't = {c}' for c in 'abcde']

def test_a_chapter_of_noise_stays_light():
    assert len(page_of(noise(24), range(24))) < 700_000

def test_id_comes_from_the_content():
    slider = FrameSlider(noise(3), 'abc')
    again = FrameSlider(noise(3), 'abc')
    assert slider.id == again.id and slider._repr_html_() == again._repr_html_()
    assert f'id="{slider.id}"' in slider._repr_html_()

    others = [
        FrameSlider(noise(3), 'abd'),
        FrameSlider(noise(3)[::-1], 'abc'),
        FrameSlider(noise(3), 'abc', caption='x'),
        FrameSlider(noise(3), 'abc', label='s'),
    ]
    assert len({slider.id, *(other.id for other in others)}) == 5

def test_texts_cannot_break_the_page():
    page = page_of(noise(2), ['</script><b>', '"x"'], 'a<b', 'say "hi" & $now <i>')
    assert page.count('</script>') == 1 and '<b>' not in page and '<i>' not in page
    assert Tags(page).first('figure')['aria-label'] == 'say "hi" & $now <i>'

def test_kinds_of_frames():
    array = np.zeros((10, 20, 3), np.uint8)
    slider = FrameSlider([array, Image.fromarray(array), array], 'abc')
    assert slider.images[0].size == (20, 10)
    assert FrameSlider([np.zeros((10, 20), np.uint8)], 'a').images[0].mode == 'L'

def test_figures_are_drawn_and_closed():
    def figure(k):
        fig, ax = plt.subplots(figsize=(2, 1))
        ax.plot([0, k])
        return fig

    before = plt.get_fignums()
    slider = FrameSlider((figure(k) for k in range(3)), range(3))
    assert plt.get_fignums() == before and slider.images[0].size == (200, 100)
    assert 'FrameSlider(3 frames of 200x100, t = 0 to 2' in repr(slider)

@pytest.mark.parametrize('frames, labels, what', [
    (0, 0, 'got 0'),
    (25, 25, 'got 25'),
    (3, 2, '3 frames and 2 labels'),
])
def test_refuses_wrong_numbers(frames, labels, what):
    frames = noise(frames, 1, 8) if frames else []
    with pytest.raises(ValueError, match=what):
        FrameSlider(frames, range(labels))

def test_refuses_frames_of_two_sizes():
    with pytest.raises(ValueError, match='one size'):
        FrameSlider([noise(1, 1, 8)[0], noise(1, 1, 9)[0]], 'ab')

def test_grid_frame():
    x = torch.full((3, 1, 4, 4), -1.)
    x[1] = 1
    grid = np.asarray(grid_frame(x, ncols=2, zoom=2, pad=1))
    assert grid.shape == (17, 17, 4)
    assert (grid[:8, :8, :3] == 0).all() and (grid[:8, 9:, :3] == 255).all()

    # Gaps and the empty place are transparent
    assert (grid[8][:, 3] == 0).all() and (grid[9:, 9:, 3] == 0).all()

    # Of five channels the first is shown
    five = x.expand(-1, 5, -1, -1)
    assert np.array_equal(np.asarray(grid_frame(five, 2, 2, 1)), grid)

@pytest.mark.parametrize('shape', [(3, 8, 8), (0, 3, 8, 8)])
def test_grid_frame_refuses_what_is_no_batch(shape):
    with pytest.raises(ValueError, match='batch, channel, height, width'):
        grid_frame(torch.zeros(shape))

def test_live_widget_follows_its_slider():
    slider = FrameSlider(noise(4, 2, 8), 'abcd', 't', 'A <caption>')
    image, control, text = slider.widget.children
    assert bytes(image.value) == slider.webp[0] and image.format == 'webp'
    control.value = 3
    assert bytes(image.value) == slider.webp[3]
    assert text.value == html.escape('A <caption>')

@pytest.mark.parametrize('path', chapters(), ids=lambda p: p.stem)
def test_no_notebook_holds_a_widget_view(path):
    advice = 'show a FrameSlider itself, not its .widget'
    for cell in cells(path, 'code'):
        for out in cell.outputs:
            kinds = out.get('data', {})
            assert 'application/vnd.jupyter.widget-view+json' not in kinds, advice

def test_alt_says_what_is_seen():
    plain = page_of(noise(2), 'ab')
    assert Tags(plain).first('img')['alt'] == 't = a' and 'im.alt = names[i];' in plain

    spoken = page_of(noise(2), 'ab', alt='Eight "cells" in <noise>.')
    assert Tags(spoken).first('img')['alt'] == 'Eight "cells" in <noise>, t = a'
    start = re.search(r'im\.alt = (".*?") \+ names\[i\];', spoken)[1]
    assert json.loads(start) == 'Eight "cells" in <noise>, '

    first, second = [re.search(r'id="(fs-\w+)"', page)[1] for page in (plain, spoken)]
    assert first == second, 'the frames are the same'
