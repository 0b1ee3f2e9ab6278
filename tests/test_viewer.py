"The slider: what it writes into a page, what it weighs, what it refuses, and that it works live"
import base64, html, io, json, re
import numpy as np, pytest, torch
import matplotlib
matplotlib.use('Agg')
import matplotlib.pyplot as plt
from html.parser import HTMLParser
from PIL import Image
from common import chapters, cells
from cell_diffusion.viewer import *

def noise(n=20, cells=8, size=32): return list(torch.rand(n, cells, 3, size, size, generator=torch.Generator().manual_seed(0))*2 - 1)

class Tags(HTMLParser):
    "Collects start tags, and checks that tags close in order"
    def __init__(self, page):
        super().__init__(); self.found, self.open = [], []
        self.feed(page); assert not self.open
    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in ('img', 'input'): self.open.append(tag)
    def handle_endtag(self, tag): assert self.open.pop() == tag
    def first(self, tag): return next(a for t, a in self.found if t == tag)

def test_page_is_self_contained():
    page = FrameSlider(noise(), range(20), 't', 'Cells in noise.')._repr_html_()
    assert 'widget-view' not in page and '\n\n' not in page and not re.search(r'https?:|src="(?!data:)|import\(|require\(', page)
    tags = Tags(page)
    assert tags.first('img')['src'].startswith('data:image/webp;base64,') and tags.first('img')['alt'] == 't = 0'
    box = tags.first('input')
    assert (box['type'], box['min'], box['max'], box['value']) == ('range', '0', '19', '0') and box['aria-label'] == 't'
    assert tags.first('figure')['aria-label'] == 'Cells in noise.' and tags.first('button')['aria-label'] == 'Play'
    assert 'display:none' in tags.first('div')['style']  # without scripts: the first frame and no dead slider
    assert 'color:inherit' in tags.first('figure')['style'] and 'max-width' in tags.first('figure')['style']

def test_frames_are_all_there_as_webp():
    page = FrameSlider(noise(5), 'abcde')._repr_html_()
    frames = re.findall(r'data:image/webp;base64,([A-Za-z0-9+/=]+)', page)
    assert len(frames) == 5
    for f in frames:
        im = Image.open(io.BytesIO(base64.b64decode(f))); assert im.format == 'WEBP' and im.size == (8*64 + 7*4, 64)
    assert json.loads(re.search(r'names = (\[.*?\])', page)[1]) == [f't = {c}' for c in 'abcde']

def test_a_chapter_of_noise_stays_light():
    assert len(FrameSlider(noise(24), range(24))._repr_html_()) < 700_000

def test_id_comes_from_the_content():
    make = lambda f, l, **k: FrameSlider(f, l, **k)
    a = make(noise(3), 'abc')
    assert a.id == make(noise(3), 'abc').id and a._repr_html_() == make(noise(3), 'abc')._repr_html_()
    assert len({a.id, make(noise(3), 'abd').id, make(noise(3)[::-1], 'abc').id, make(noise(3), 'abc', caption='x').id, make(noise(3), 'abc', label='s').id}) == 5
    assert f'id="{a.id}"' in a._repr_html_()

def test_texts_cannot_break_the_page():
    page = FrameSlider(noise(2), ['</script><b>', '"x"'], 'a<b', 'say "hi" & <i>')._repr_html_()
    assert page.count('</script>') == 1 and '<b>' not in page and '<i>' not in page
    assert Tags(page).first('figure')['aria-label'] == 'say "hi" & <i>'

def test_kinds_of_frames():
    array = np.zeros((10, 20, 3), np.uint8)
    assert FrameSlider([array, Image.fromarray(array), array], 'abc').images[0].size == (20, 10)
    assert FrameSlider([np.zeros((10, 20), np.uint8)], 'a').images[0].mode == 'L'
    before = plt.get_fignums()
    def figure(k):
        fig, ax = plt.subplots(figsize=(2, 1)); ax.plot([0, k]); return fig
    slider = FrameSlider((figure(k) for k in range(3)), range(3))
    assert plt.get_fignums() == before and slider.images[0].size == (200, 100)
    assert 'FrameSlider(3 frames of 200x100, t = 0 to 2' in repr(slider)

@pytest.mark.parametrize('frames, labels, what', [(0, 0, 'got 0'), (25, 25, 'got 25'), (3, 2, '3 frames and 2 labels')])
def test_refuses_wrong_numbers(frames, labels, what):
    with pytest.raises(ValueError, match=what): FrameSlider(noise(frames, 1, 8) if frames else [], range(labels))

def test_refuses_frames_of_two_sizes():
    with pytest.raises(ValueError, match='one size'): FrameSlider([noise(1, 1, 8)[0], noise(1, 1, 9)[0]], 'ab')

def test_grid_frame():
    x = torch.full((3, 1, 4, 4), -1.); x[1] = 1
    grid = np.asarray(grid_frame(x, ncols=2, zoom=2, pad=1))
    assert grid.shape == (17, 17, 4) and (grid[:8, :8, :3] == 0).all() and (grid[:8, 9:, :3] == 255).all()
    assert (grid[8] [:, 3] == 0).all() and (grid[9:, 9:, 3] == 0).all()  # gaps and the empty place are transparent
    assert np.array_equal(np.asarray(grid_frame(x.expand(-1, 5, -1, -1), 2, 2, 1)), grid)
    with pytest.raises(ValueError, match='batch, channel, height, width'): grid_frame(torch.zeros(3, 8, 8))

def test_live_widget_follows_its_slider():
    slider = FrameSlider(noise(4, 2, 8), 'abcd', 't', 'A <caption>')
    image, control, text = slider.widget.children
    assert bytes(image.value) == slider.webp[0] and image.format == 'webp'
    control.value = 3
    assert bytes(image.value) == slider.webp[3] and text.value == html.escape('A <caption>')

@pytest.mark.parametrize('path', chapters(), ids=lambda p: p.stem)
def test_no_notebook_holds_a_widget_view(path):
    for c in cells(path, 'code'):
        for o in c.outputs: assert 'application/vnd.jupyter.widget-view+json' not in o.get('data', {}), 'show a FrameSlider itself, not its .widget'

def test_alt_says_what_is_seen():
    plain, told = (FrameSlider(noise(2), 'ab', alt=alt)._repr_html_() for alt in ('', 'Eight "cells" in <noise>.'))
    assert Tags(plain).first('img')['alt'] == 't = a' and 'im.alt = names[i];' in plain
    assert Tags(told).first('img')['alt'] == 'Eight "cells" in <noise>, t = a' and json.loads(re.search(r'im\.alt = (".*?") \+ names\[i\];', told)[1]) == 'Eight "cells" in <noise>, '
    assert re.search(r'id="(fs-\w+)"', plain)[1] == re.search(r'id="(fs-\w+)"', told)[1], 'the frames are the same'
