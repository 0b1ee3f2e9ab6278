"""
The mask painter: the mask goes to the browser and back, every kind of picture is
filled, buttons do what they say, errors are sentences
"""
import base64, io, re
import numpy as np, pytest, torch
from PIL import Image
from cell_diffusion.imageio import read_image
from cell_diffusion.inpainting import Inpainter
from cell_diffusion.painter import MaskCanvas, MaskPainter, png_bytes

@pytest.fixture(scope='module')
def net():
    "An untrained network that does not answer zero"
    torch.manual_seed(0)
    unet = dict(dim=8, mults=[1, 2], channels=7, out_channels=3)
    model = Inpainter(unet, schedule='log_snr', T=50, prediction='v', data_std=.5,
                      size=16, classes=('a', 'b')).eval()
    for p in model.parameters():
        if not p.detach().any(): torch.nn.init.normal_(p, std=.1)
    return model.requires_grad_(False)

def pixels(h=20, w=24, channels=(3,), dtype=np.uint8):
    top = 200 if dtype == np.uint8 else 4000
    return np.random.default_rng(0).integers(0, top, (h, w, *channels)).astype(dtype)

def hole(h=20, w=24):
    m = np.zeros((h, w), bool)
    m[5:12, 8:17] = True
    return m

def bits(mask):
    "A mask as the script writes it: pixel i is bit 128 >> (i & 7) of byte i >> 3"
    out = bytearray(-(-mask.size//8))
    for i in np.flatnonzero(mask):
        out[i >> 3] |= 128 >> (i & 7)
    return base64.b64encode(out).decode()

def opened(png):
    return np.array(Image.open(io.BytesIO(png)))

# the canvas

@pytest.mark.parametrize('h, w', [(1, 1), (5, 7), (20, 24), (33, 8)])
def test_masks_go_both_ways(h, w):
    m = np.random.default_rng(1).random((h, w)) < .3
    m[0, 0] = True
    picture = Image.new('RGB', (w, h))
    canvas = MaskCanvas(picture)
    assert canvas.mask.shape == (h, w) and canvas.mask.dtype == bool
    assert not canvas.mask.any()
    canvas.bits = bits(m)
    assert np.array_equal(canvas.mask, m)
    canvas.mask = np.ones((h, w), bool)
    assert canvas.mask.all() and canvas.bits == bits(canvas.mask)
    assert np.array_equal(MaskCanvas(picture, m).mask, m)

def test_undo_and_clear():
    canvas = MaskCanvas(Image.new('RGB', (24, 20)), hole())
    canvas.undo()
    assert np.array_equal(canvas.mask, hole()), 'the mask it was given is no stroke'
    stroke = bits(np.eye(20, 24))
    canvas.bits = stroke
    canvas.clear()
    assert not canvas.mask.any()
    canvas.clear()
    canvas.undo()
    assert canvas.bits == stroke, 'clearing nothing leaves nothing to undo'
    canvas.undo()
    assert np.array_equal(canvas.mask, hole()) and canvas.past == []

def test_wrong_masks_are_refused():
    with pytest.raises(ValueError, match='5 × 4 pixels and the image 24 × 20'):
        MaskPainter(pixels(), np.ones((4, 5)))
    with pytest.raises(ValueError, match='empty'):
        MaskPainter(pixels(), np.zeros((20, 24)))

def test_the_browser_gets_all_it_needs():
    state = MaskCanvas(Image.fromarray(pixels())).get_state()
    needed = {'image', 'bits', 'width', 'height', 'brush', 'erase', '_esm', '_css'}
    assert needed <= set(state)
    assert (state['width'], state['height']) == (24, 20)
    picture = base64.b64decode(state['image'].split(',')[1])
    assert np.array_equal(opened(picture), pixels())

def test_the_script():
    state = MaskCanvas(Image.fromarray(pixels())).get_state()
    script = state['_esm']
    assert script == MaskCanvas._esm and state['_css'] == MaskCanvas._css
    from_elsewhere = r'https?:|import[ (]|require\(|fetch\('
    assert not re.search(from_elsewhere, script + state['_css'])
    for what in ('setPointerCapture', 'aria-label', 'tabindex="0"', 'preventDefault',
                 'pointercancel', 'export default'):
        assert what in script
    assert 'touch-action: none' in state['_css']
    assert set(re.findall(r'model\.get\("(\w+)"\)', script)) <= set(state)
    opening = [script.count(c) for c in '({[']
    assert opening == [script.count(c) for c in ')}]']

# filling

every_kind = [
    ((3,), np.uint8),
    ((), np.uint8),
    ((4,), np.uint8),
    ((1,), np.uint8),
    ((2,), np.uint8),
    ((), np.uint16),
    ((3,), np.uint16),
    ((4,), np.uint16),
]

@pytest.mark.parametrize('channels, dtype', every_kind)
def test_every_kind_of_picture(net, channels, dtype):
    image = pixels(channels=channels, dtype=dtype)
    if channels in ((2,), (4,)):
        # Alpha says nothing about the colours
        image[..., -1] = np.iinfo(dtype).max
    painter = MaskPainter(image, hole(), n=2, steps=3, model=net, as_colour=True)
    fills = painter.fill()
    assert fills is painter.fills
    assert fills.shape == (2, *image.shape) and fills.dtype == dtype
    assert (fills[:, ~hole()] == image[~hole()]).all()
    assert (fills[0][hole()] != fills[1][hole()]).any()
    assert len(painter.trace) == 3
    assert all(x.shape == (2, 3, 16, 16) for x in painter.trace)
    assert painter.top == 255 if dtype == np.uint8 else 3900 < painter.top < 4000
    frames = painter.slider().images
    assert len(frames) == 4
    assert not np.array_equal(np.array(frames[0]), np.array(frames[-1]))

def test_a_window_in_a_large_picture(net):
    m = np.zeros((300, 400), bool)
    m[:30, 370:] = True
    image = pixels(300, 400)
    painter = MaskPainter(image, m, n=1, steps=2, model=net)
    shown = np.array(painter.in_hole(torch.ones(3, 16, 16)))
    assert (shown[m] == 255).all() and np.array_equal(shown[~m], image[~m])
    assert painter.slider().images[0].size == (3*192 + 8, 144)

def test_the_hook_comes_off(net):
    painter = MaskPainter(pixels(), hole(), label='z', n=1, steps=2, model=net)
    with pytest.raises(ValueError, match='z'):
        painter.fill()
    assert painter.fills is None and not net._forward_hooks
    painter.label = 'a'
    painter.fill()
    assert not net._forward_hooks

# on a page

def test_the_page(net):
    painter = MaskPainter(pixels(), hole(), label='b', n=1, steps=30, model=net)
    page = painter._repr_html_()
    assert not re.search(r'https?:|src="(?!data:)|widget', page)
    assert page.count('data:image/webp') == 24
    assert '1 fill, from noise' in page and 'class b' in page
    first = painter.fills
    assert painter.slider().id in page and painter.fills is first, 'filled once'
    painter.seed = 1
    assert painter.slider().id not in page and painter.fills is not first

def test_the_page_without_a_mask(net):
    page = MaskPainter(pixels(), model=net)._repr_html_()
    assert 'Nothing is painted yet' in page and 'data:image/png' in page
    assert '<script' not in page

# live

def test_errors_are_sentences(net):
    painter = MaskPainter(pixels(), n=2, steps=2, model=net)
    ui = painter.ui
    assert painter.widget is painter.widget

    def press():
        ui.fill.click()
        return ui.message.value

    said = press()
    assert 'role="alert"' in said and 'nothing is to be filled' in said
    assert painter.fills is None and not ui.fill.disabled
    painter.mask = hole()
    painter.label = '<z>'
    said = press()
    assert '&lt;z&gt;' in said and '<z>' not in said
    painter.label = None
    painter.n = 0
    assert 'n=0 should be' in press()
    painter.n = 1
    painter.kwargs = dict(nonsense=1)
    assert 'nonsense' in press()
    assert painter.fills is None and painter.on_step is None

def test_fill_and_choose(net):
    painter = MaskPainter(pixels(), n=2, steps=4, model=net)
    ui = painter.ui
    painter.canvas.bits = bits(hole())
    seen = []
    ui.bar.observe(lambda change: seen.append(change['new']), 'value')
    ui.label.value = 'b'
    ui.n.value = 3
    ui.seed.value = 5
    ui.fill.click()
    assert (painter.label, painter.n, painter.seed) == ('b', 3, 5)
    assert painter.fills.shape == (3, 20, 24, 3)
    assert seen == [1, 2, 3, 4] and ui.bar.max == 4
    assert ui.message.value == '3 fills of 63 pixels.'

    for i in 2, 0, 1:
        ui.choose.index = i
        file = re.search(r'base64,([^"]+)"', ui.download.value)[1]
        assert painter.chosen == i
        assert np.array_equal(opened(base64.b64decode(file)), painter.fills[i])
    assert opened(ui.result.value).shape[:2] == (20*13, 24*13)

    ui.fill.click()
    assert painter.chosen == ui.choose.index == 0
    ui.n.value = 1
    ui.fill.click()
    assert painter.fills.shape[0] == 1 and ui.choose.layout.display == 'none'
    assert ui.message.value == '1 fill of 63 pixels.'

def test_white_and_warnings(net):
    image = pixels(dtype=np.uint16)
    image[0, 0] = 65535                     # A hot pixel
    painter = MaskPainter(image, hole(), n=1, steps=2, model=net)
    shown = np.array(painter.picture)
    assert 3900 < painter.top < 4000 and (shown[0, 0] == 255).all()
    painter.ui.fill.click()
    assert 'White of this 16-bit picture' in painter.ui.message.value
    said = MaskPainter(image, hole(), n=1, steps=2, model=net, white=4095)
    assert said.top == 4095
    said.ui.fill.click()
    assert said.ui.message.value == '1 fill of 63 pixels.'

def test_white_is_that_of_the_training(net, monkeypatch):
    monkeypatch.setattr(net, 'white', 3000.)
    monkeypatch.setattr(net, 'bits', 16)
    image = pixels(dtype=np.uint16)
    assert MaskPainter(image, hole(), model=net).top == 3000
    assert MaskPainter(image, hole(), model=net, white=4095).top == 4095
    assert MaskPainter(pixels(), hole(), model=net).top == 255

def test_a_grey_picture_is_refused_in_words(net):
    painter = MaskPainter(pixels(channels=()), hole(), n=1, steps=2, model=net)
    painter.ui.fill.click()
    assert 'is grey' in painter.ui.message.value and painter.fills is None

def test_controls_reach_the_canvas(net):
    painter = MaskPainter(pixels(), hole(), model=net)
    ui = painter.ui
    ui.brush.value = 3
    ui.erase.value = True
    assert (painter.canvas.brush, painter.canvas.erase) == (3, True)
    ui.clear.click()
    assert not painter.mask.any()
    ui.undo.click()
    assert np.array_equal(painter.mask, hole())
    assert [name for name, _ in ui.label._options_full] == ['any', 'a', 'b']

def test_network_calls_of_other_samplers(net):
    painter = MaskPainter(pixels(), hole(), n=1, steps=3, model=net, sampler='heun')
    painter.ui.fill.click()
    bar = painter.ui.bar
    assert bar.value == bar.max == len(painter.trace) == 5

# saving

def test_save(net, tmp_path):
    image = pixels(channels=(), dtype=np.uint16)
    painter = MaskPainter(image, hole(), n=2, steps=2, model=net, as_colour=True)
    with pytest.raises(ValueError, match='no fill'):
        painter.save(tmp_path/'a.png')
    painter.fill()
    painter.chosen = 1
    saved = np.array(Image.open(painter.save(tmp_path/'a.png')))
    assert np.array_equal(saved, painter.fills[1])
    with pytest.raises(ValueError, match='end in .png'):
        painter.save(tmp_path/'a.jpg')

@pytest.mark.parametrize('channels, dtype', every_kind)
def test_every_kind_is_saved_as_it_is(net, channels, dtype, tmp_path):
    image = pixels(channels=channels, dtype=dtype)
    painter = MaskPainter(image, hole(), n=1, steps=2, model=net, as_colour=True)
    painter.ui.fill.click()
    assert 'Download' in painter.ui.download.value
    file = painter.save(tmp_path/'a.png')
    if channels == (2,) and dtype == np.uint16: return      # Read by no library here
    saved = read_image(file).reshape(image.shape)
    assert saved.dtype == dtype and np.array_equal(saved, painter.fills[0])

def test_one_channel_is_grey():
    assert Image.open(io.BytesIO(png_bytes(pixels(channels=(1,))))).mode == 'L'
