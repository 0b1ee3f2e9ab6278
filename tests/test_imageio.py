"Pictures, masks and stacks: what is read, what is refused, and with which words"
import json, struct, zlib
import numpy as np, pytest, torch
from PIL import Image
from cell_diffusion.imageio import (
    count_channels, picture_kind, read_image, read_mask, read_planes, save_image)

def pixels(*shape, dtype=np.uint8, top=256):
    "An array of random pixels"
    return np.random.default_rng(0).integers(0, top, shape).astype(dtype)

def deep_png(path, image):
    "Write a PNG of 16 bits a channel, which Pillow cannot"
    h, w, c = image.shape
    def chunk(kind, data):
        checksum = struct.pack('>I', zlib.crc32(kind + data))
        return struct.pack('>I', len(data)) + kind + data + checksum
    rows = b''.join(b'\0' + row.astype('>u2').tobytes() for row in image)
    colour_type = {1: 0, 2: 4, 3: 2, 4: 6}[c]
    header = struct.pack('>IIBBBBB', w, h, 16, colour_type, 0, 0, 0)
    parts = chunk(b'IHDR', header) + chunk(b'IDAT', zlib.compress(rows))
    path.write_bytes(b'\x89PNG\r\n\x1a\n' + parts + chunk(b'IEND', b''))
    return path

def stack(path, n, size=(9, 7)):
    "Write a TIFF of n grey pages"
    pages = [Image.new('L', size, 10*k) for k in range(n)]
    pages[0].save(path, save_all=True, append_images=pages[1:])
    return path

# ---- what a picture holds

@pytest.mark.parametrize('mode, suffix, channels, bits', [
    ('1', 'png', 1, 1), ('L', 'png', 1, 8), ('LA', 'png', 1, 8), ('P', 'gif', 3, 8),
    ('RGB', 'png', 3, 8), ('RGBA', 'png', 3, 8), ('I;16', 'png', 1, 16),
    ('I', 'tif', 1, 32), ('F', 'tif', 1, 32), ('CMYK', 'jpg', 0, 8)])
def test_kind(tmp_path, mode, suffix, channels, bits):
    Image.new(mode, (9, 7)).save(tmp_path/f'a.{suffix}')
    with Image.open(tmp_path/f'a.{suffix}') as im:
        kind = picture_kind(im)
    assert (kind.mode, kind.channels) == (mode, channels)
    assert (kind.bits, kind.pages) == (bits, 1)

def test_kind_of_colours_of_16_bits(tmp_path):
    for c in (2, 3, 4):
        path = deep_png(tmp_path/'a.png', pixels(7, 9, c, dtype=np.uint16, top=65536))
        with Image.open(path) as im:
            assert picture_kind(im).bits == 16
    (tmp_path/'a.ppm').write_bytes(b'P6 9 7 65535\n' + bytes(9*7*6))
    with Image.open(tmp_path/'a.ppm') as im:
        assert picture_kind(im).bits == 16

def test_pages(tmp_path):
    with Image.open(stack(tmp_path/'a.tif', 5)) as im:
        kind = picture_kind(im)
    assert kind.pages == 5
    assert count_channels(tmp_path/'a.tif') == 5

def test_the_second_frame_of_a_camera_is_no_page(tmp_path):
    preview = Image.new('RGB', (16, 16))
    frames = dict(format='MPO', save_all=True, append_images=[preview])
    Image.fromarray(pixels(16, 16, 3)).save(tmp_path/'a.jpg', **frames)
    assert read_image(tmp_path/'a.jpg').shape == (16, 16, 3)
    assert len(read_planes(tmp_path/'a.jpg', 3)) == 1

# ---- cells of a training set

def test_planes(tmp_path):
    colour = pixels(7, 9, 3)
    Image.fromarray(colour).save(tmp_path/'a.png')
    plane, = read_planes(tmp_path/'a.png', 3)
    assert (np.asarray(plane) == colour).all()
    planes = read_planes(stack(tmp_path/'a.tif', 3), 3)
    assert [p.mode for p in planes] == ['L']*3
    assert [np.asarray(p)[0, 0] for p in planes] == [0, 10, 20]

@pytest.mark.parametrize('channels, says', [
    (2, 'has 3 pages where 2 channels'), (1, 'has 3 pages where 1 channels')])
def test_pages_that_do_not_fit(tmp_path, channels, says):
    with pytest.raises(ValueError, match=says):
        read_planes(stack(tmp_path/'a.tif', 3), channels)

@pytest.mark.parametrize('mode, suffix, channels, says', [
    ('L', 'png', 3, 'is grey where colour is expected.*channels=1'),
    ('RGB', 'png', 1, 'is colour where grey is expected.*channels=3'),
    ('RGB', 'png', 5, 'has one page where 5 are expected'),
    ('CMYK', 'jpg', 3, 'CMYK.*convert it to RGB'),
    ('I;16', 'png', 1, 'more than 8 bits.*one factor'),
    ('F', 'tif', 1, 'more than 8 bits'),
    ('LAB', 'tif', 3, 'mode LAB: convert it')])
def test_planes_that_do_not_fit(tmp_path, mode, suffix, channels, says):
    path = tmp_path/f'a.{suffix}'
    Image.new(mode, (9, 7)).save(path)
    with pytest.raises(ValueError, match=says):
        read_planes(path, channels)

def test_colours_of_16_bits_are_not_cut_to_8_in_a_training_set(tmp_path):
    deep = deep_png(tmp_path/'a.png', pixels(7, 9, 3, dtype=np.uint16, top=65536))
    with pytest.raises(ValueError, match='more than 8 bits'):
        read_planes(deep, 3)

# ---- pictures as they are

@pytest.mark.parametrize('mode, shape, dtype', [
    ('1', (7, 9), 'uint8'), ('L', (7, 9), 'uint8'), ('LA', (7, 9, 2), 'uint8'),
    ('P', (7, 9, 3), 'uint8'), ('RGB', (7, 9, 3), 'uint8'),
    ('RGBA', (7, 9, 4), 'uint8'), ('I', (7, 9), 'uint16'), ('I;16', (7, 9), 'uint16')])
def test_image(tmp_path, mode, shape, dtype):
    im = Image.new(mode, (9, 7))
    path = tmp_path/('a.tif' if mode == 'I' else 'a.png')
    im.save(path)
    for image in (im, path, str(path)):
        read = read_image(image)
        assert read.shape == shape and read.dtype == dtype

def test_transparent_palette(tmp_path):
    im = Image.fromarray(pixels(7, 9)).convert('P')
    im.save(tmp_path/'a.png', transparency=0)
    assert read_image(tmp_path/'a.png').shape == (7, 9, 4)

def test_arrays_come_back_as_they_are():
    for a in (pixels(7, 9), pixels(7, 9, 4), pixels(7, 9, 2, dtype=np.uint16)):
        assert read_image(a) is a

def test_grey_of_16_bits(tmp_path):
    grey = pixels(40, 50, 1, dtype=np.uint16, top=65536)
    assert (read_image(deep_png(tmp_path/'a.png', grey)) == grey[..., 0]).all()

@pytest.mark.parametrize('image, error, says', [
    (pixels(4, 4)/255, TypeError, 'float64.*0..255'),
    (np.zeros((4, 4), bool), TypeError, 'bool'), (None, TypeError, 'uint8 or uint16'),
    (torch.zeros(3, 4, 4), TypeError, 'A tensor of shape'),
    (pixels(4, 4, 5), ValueError, r'\(4, 4, 5\)'),
    (pixels(0, 4, 3), ValueError, r'\(0, 4, 3\)'),
    (Image.new('CMYK', (4, 4)), ValueError, 'The picture has CMYK pixels .mode CMYK'),
    (Image.new('F', (4, 4)), ValueError, 'mode F'),
    (Image.new('HSV', (4, 4)), ValueError, 'mode HSV: convert it'),
    (Image.new('I', (4, 4), 70_000), ValueError, '70000 to 70000.*16 bits'),
    (Image.new('I', (4, 4), -1), ValueError, 'from -1')])
def test_images_that_are_refused(image, error, says):
    with pytest.raises(error, match=says):
        read_image(image)

def test_files_that_are_refused(tmp_path):
    (tmp_path/'a.png').write_text('no picture')
    for bad in (tmp_path/'a.png', tmp_path):
        with pytest.raises(ValueError, match=f'{bad.name} cannot be read as an image'):
            read_image(bad)
    with pytest.raises(FileNotFoundError, match='b.png does not exist'):
        read_image(tmp_path/'b.png')
    with pytest.raises(ValueError, match='s.tif has 3 pages: choose one'):
        read_image(stack(tmp_path/'s.tif', 3))
    deep = deep_png(tmp_path/'d.png', pixels(7, 9, 3, dtype=np.uint16, top=65536))
    for image in (deep, Image.open(deep)):
        with pytest.raises(ValueError, match='16 bits a colour.*pass the array'):
            read_image(image)

# ---- masks

half = np.arange(16).reshape(4, 4) > 7

@pytest.mark.parametrize('mask', [
    half, half.astype(int), half.astype(float), (half*255).astype(np.uint8),
    (half*65535).astype(np.uint16), half[..., None], half[None],
    np.stack([half*255]*3, -1).astype(np.uint8), Image.fromarray(half),
    Image.fromarray((half*255).astype(np.uint8)), torch.as_tensor(half)])
def test_mask(mask):
    read = read_mask(mask, (4, 4))
    assert read.dtype == bool and (read == half).all()

def test_alpha_of_a_mask_does_not_count():
    mask = np.stack([half*255]*3 + [half*0 + 255], -1).astype(np.uint8)
    assert (read_mask(mask, (4, 4)) == half).all()

@pytest.mark.parametrize('mask, says', [
    (np.zeros((4, 4)), 'empty.*Paint white'), (np.full((4, 4), 100), 'empty'),
    (np.ones((5, 4)), '4 × 5 pixels and the image 4 × 4'), (None, r'shape \(\)'),
    (np.ones((2, 2, 2, 2)), 'a mask is'), (np.ones(4), 'a mask is')])
def test_masks_that_are_refused(mask, says):
    with pytest.raises(ValueError, match=says):
        read_mask(mask, (4, 4))

# ---- writing

@pytest.mark.parametrize('channels', [1, 2, 3, 5])
def test_saved_pictures_carry_notes(tmp_path, channels):
    image = pixels(channels, 7, 9)
    notes = dict(synthetic='True', seed='3')
    path = tmp_path/('a.png' if channels in (1, 3) else 'a.tif')
    save_image(path, image, notes)
    with Image.open(path) as im:
        assert (im.text if channels in (1, 3) else json.loads(im.tag_v2[270])) == notes
    planes = [np.asarray(p) for p in read_planes(path, channels)]
    read = planes[0].transpose(2, 0, 1) if channels == 3 else np.stack(planes)
    assert (read == image).all()
