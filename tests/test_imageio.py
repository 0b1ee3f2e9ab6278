"Pictures, masks and stacks: what is read, what is refused, and with which words"
import json, struct, zlib
import numpy as np, pytest, tifffile, torch
from PIL import Image, ImageOps
from cell_diffusion.data import is_generated
from cell_diffusion.imageio import (
    channels_and_bits, from_8_bits, picture_kind, read_image, read_mask, read_planes,
    save_image, save_pixels, to_8_bits)

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
    assert channels_and_bits(tmp_path/'a.tif') == (5, 8)

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
    assert (plane == colour).all() and plane.dtype == np.uint8
    planes = read_planes(stack(tmp_path/'a.tif', 3), 3)
    assert [p.shape for p in planes] == [(7, 9)]*3
    assert [p[0, 0] for p in planes] == [0, 10, 20]

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
    ('I;16', 'png', 1, 'has 16 bits a pixel .*where the set has 8.*one factor'),
    ('F', 'tif', 1, 'floating-point pixels.*by one factor to whole numbers'),
    ('LAB', 'tif', 3, 'mode LAB: convert it')])
def test_planes_that_do_not_fit(tmp_path, mode, suffix, channels, says):
    path = tmp_path/f'a.{suffix}'
    Image.new(mode, (9, 7)).save(path)
    with pytest.raises(ValueError, match=says):
        read_planes(path, channels)

def test_transparency_and_palettes_do_not_matter_in_a_training_set(tmp_path):
    rgba = Image.fromarray(pixels(7, 9, 4))
    for mode, channels in (('RGBA', 3), ('LA', 1), ('P', 3), ('1', 1)):
        path = tmp_path/f'{mode}.png'
        im = rgba.convert('RGB').convert(mode) if mode in 'P1' else rgba.convert(mode)
        im.save(path)
        plane, = read_planes(path, channels)
        assert (plane == np.asarray(im.convert('RGB' if channels == 3 else 'L'))).all()

# ---- 16 bits

layouts = [dict(), dict(rowsperstrip=8), dict(tile=(32, 32)), dict(byteorder='>'),
           dict(compression='zlib', predictor=True), dict(planarconfig='separate'),
           dict(tile=(32, 32), compression='zlib', byteorder='>'),
           dict(planarconfig='separate', compression='zlib')]

@pytest.mark.parametrize('layout', layouts, ids=str)
@pytest.mark.parametrize('channels', [1, 3, 4])
def test_tiffs_of_16_bits_come_to_the_bit(tmp_path, layout, channels):
    image = pixels(70, 90, channels, dtype=np.uint16, top=65536)
    if channels == 1 and 'planarconfig' in layout: return
    stored = image[..., 0] if channels == 1 else image
    how = dict(photometric='minisblack' if channels == 1 else 'rgb', **layout)
    if channels == 4: how['extrasamples'] = ['unassalpha']
    planar = 'planarconfig' in layout
    tifffile.imwrite(tmp_path/'a.tif', np.moveaxis(stored, -1, 0) if planar else stored,
                     **how)
    for given in (tmp_path/'a.tif', Image.open(tmp_path/'a.tif')):
        assert (read_image(given) == stored).all()
    plane, = read_planes(tmp_path/'a.tif', min(channels, 3), 16)
    assert plane.dtype == np.uint16 and (plane == stored[..., :3].reshape(
        plane.shape)).all() if channels > 1 else (plane == stored).all()
    assert channels_and_bits(tmp_path/'a.tif') == (min(channels, 3), 16)

@pytest.mark.parametrize('compression', ['tiff_lzw', 'tiff_adobe_deflate', 'packbits'])
def test_grey_tiffs_of_12_bits_of_any_compression(tmp_path, compression):
    grey = pixels(40, 50, dtype=np.uint16, top=4096)
    Image.fromarray(grey).save(tmp_path/'a.tif', compression=compression)
    assert (read_planes(tmp_path/'a.tif', 1, 16)[0] == grey).all()

@pytest.mark.parametrize('channels', [1, 2, 3, 4])
def test_pngs_of_16_bits_come_to_the_bit(tmp_path, channels):
    image = pixels(40, 50, channels, dtype=np.uint16, top=65536)
    path = deep_png(tmp_path/'a.png', image)
    stored = image[..., 0] if channels == 1 else image
    assert (read_image(path) == stored).all()
    with Image.open(path) as im:
        assert (read_image(im) == stored).all()

@pytest.mark.parametrize('layout', layouts, ids=str)
@pytest.mark.parametrize('suffix', ['png', 'tif'])
def test_grey_and_alpha_of_16_bits(tmp_path, suffix, layout):
    "As a picture, as a cell of a set, as a mask, and turned by its orientation"
    image = pixels(70, 90, 2, dtype=np.uint16, top=65536)
    path = tmp_path/f'a.{suffix}'
    stored = np.moveaxis(image, -1, 0) if 'planarconfig' in layout else image
    how = dict(photometric='minisblack', extrasamples=['unassalpha'], **layout)
    def write(**more):
        if suffix == 'png': return deep_png(path, image)
        tifffile.imwrite(path, stored, **how, **more)
    write()
    assert (read_image(path) == image).all()
    assert channels_and_bits(path) == (1, 16)
    assert (read_planes(path, 1, 16)[0] == image[..., 0]).all()
    with pytest.raises(ValueError, match='is grey where colour is expected'):
        read_planes(path, 3, 16)
    if suffix == 'png': return

    write(extratags=[(0x112, 'H', 1, 3, True)])
    assert (read_image(path) == image[::-1, ::-1]).all()
    assert not is_generated(path)

def test_a_mask_of_grey_and_alpha_of_16_bits(tmp_path):
    hole = np.zeros((7, 9), np.uint16)
    hole[2:4, 3:7] = 65535
    for name in ('a.png', 'a.tif'):
        save_pixels(tmp_path/name, np.stack([hole, hole*0 + 65535], -1))
        assert (read_mask(tmp_path/name, (7, 9)) == (hole > 0)).all()

def test_other_tiffs_of_two_values_a_pixel_are_refused(tmp_path):
    image = pixels(3, 7, 9, 2, dtype=np.uint16)
    how = dict(photometric='minisblack', planarconfig='contig')
    tifffile.imwrite(tmp_path/'pages.tif', image, extrasamples=['unassalpha'], **how)
    with pytest.raises(ValueError, match='pages.tif has 3 pages of grey and alpha'):
        read_image(tmp_path/'pages.tif')
    tifffile.imwrite(tmp_path/'two.tif', image[0], extrasamples=['unspecified'], **how)
    with pytest.raises(ValueError, match='two.tif cannot be read as an image'):
        read_image(tmp_path/'two.tif')
    (tmp_path/'cut.tif').write_bytes(b'II*\0' + bytes(9))
    with pytest.raises(ValueError, match='cut.tif cannot be read as an image'):
        read_image(tmp_path/'cut.tif')

def test_pages_of_16_bits(tmp_path):
    pages = pixels(3, 40, 50, dtype=np.uint16, top=4096)
    tifffile.imwrite(tmp_path/'a.tif', pages, photometric='minisblack')
    assert (np.stack(read_planes(tmp_path/'a.tif', 3, 16)) == pages).all()

@pytest.mark.parametrize('channels, bits, says', [
    (2, 16, 'is grey where colour is expected'),
    (3, 8, 'has 16 bits a pixel .*where the set has 8')])
def test_what_would_lose_bits_is_refused(tmp_path, channels, bits, says):
    deep = deep_png(tmp_path/'a.png', pixels(7, 9, channels, dtype=np.uint16))
    with pytest.raises(ValueError, match=says):
        read_planes(deep, 3, bits)

def test_a_picture_that_was_cut_before_is_refused(tmp_path):
    deep = pixels(7, 9, 3, dtype=np.uint16, top=65536)
    tifffile.imwrite(tmp_path/'a.tif', deep, photometric='rgb')
    im = Image.open(tmp_path/'a.tif')
    im.load()
    with pytest.raises(ValueError, match="was cut to 8 when it was loaded: pass"):
        read_image(im)

def test_scaling_by_one_level():
    deep = np.array([0, 10, 2000, 4000, 65535], np.uint16)
    assert to_8_bits(deep, 4000).tolist() == [0, 1, 128, 255, 255]
    eight = np.arange(256, dtype=np.uint8)
    assert to_8_bits(eight, 255) is eight and from_8_bits(eight, 255, 8) is eight
    for white, bits in ((4095, 16), (65535, 16), (300.5, 16), (255, 16)):
        back = from_8_bits(eight, white, bits)
        assert back.dtype == np.uint16 and (to_8_bits(back, white) == eight).all()
    assert from_8_bits(eight, 100, 8).max() == 100

# ---- orientation

@pytest.mark.parametrize('orientation', range(1, 9))
def test_the_orientation_of_a_picture_is_obeyed(tmp_path, orientation):
    image = pixels(16, 24, 3)
    exif = Image.Exif()
    exif[0x0112] = orientation
    im = Image.fromarray(image)
    for name in ('a.jpg', 'a.png', 'a.tif', 'grey.png'):
        im.convert('L' if 'grey' in name else 'RGB').save(tmp_path/name, exif=exif)
        upright = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path/name)))
        assert (read_image(tmp_path/name) == upright).all()
        assert (read_planes(tmp_path/name, upright.ndim*2 - 3)[0] == upright).all()
    assert upright.shape == ((16, 24) if orientation < 5 else (24, 16))

    # A mask of 16 bits, and one as a photograph
    mask = np.zeros((16, 24), np.uint16)
    mask[:3, :4] = 65535
    Image.fromarray(mask).save(tmp_path/'mask.png', exif=exif)
    where = read_mask(tmp_path/'mask.png', upright.shape)
    grey = ImageOps.exif_transpose(Image.open(tmp_path/'mask.png'))
    assert (where == (np.asarray(grey) > 0)).all() and where.sum() == 12

def test_the_orientation_of_colours_of_16_bits(tmp_path):
    deep = pixels(16, 24, 3, dtype=np.uint16, top=65536)
    tag = [(274, 'H', 1, 6, True)]
    tifffile.imwrite(tmp_path/'a.tif', deep, photometric='rgb', extratags=tag)
    assert (read_image(tmp_path/'a.tif') == np.rot90(deep, -1)).all()

def test_a_damaged_orientation_is_no_reason_to_refuse(tmp_path):
    image = pixels(16, 24, 3)
    Image.fromarray(image).save(tmp_path/'a.png', exif=b'Exif\0\0nonsense')
    assert (read_image(tmp_path/'a.png') == image).all()

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
    with pytest.raises(ValueError, match='s.tif has 3 pages: choose one'):
        read_mask(tmp_path/'s.tif', (7, 9))

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

def test_alpha_of_a_mask_does_not_count_where_it_is_the_same_everywhere():
    for alpha in (255, 0, 7):
        mask = np.stack([half*255]*3 + [half*0 + alpha], -1).astype(np.uint8)
        assert (read_mask(mask, (4, 4)) == half).all()

def layer(colour, alpha=half*255):
    "A layer of one colour `(4, 4, 4)`"
    return np.stack([*np.full((3, 4, 4), colour).astype(int), alpha], -1).astype('u1')

def palette(*colours):
    im = Image.fromarray(half.astype(np.uint8), 'P')
    im.putpalette([v for c in colours for v in c])
    return im

meanings = dict(
    white_layer=layer(255), black_layer=layer(0), soft_layer=layer(255, half*200 + 20),
    grey_and_alpha=np.stack([half*0 + 255, half*255], -1).astype(np.uint8),
    layer_0_1=layer(1, half), twelve_bits=(half*4095).astype(np.uint16),
    camera=(half*3800 + 9).astype(np.uint16), label=(half*7).astype(np.uint16),
    faint=(half*60).astype(np.uint8), red=np.stack([half*255, half*0, half*0], -1),
    palette=palette((0, 0, 0), (128, 0, 0)), zero_one=palette((0, 0, 0), (1, 1, 1)),
    soft_numbers=half*.9 + .05, soft=(half*220 + 17).astype(np.uint8))

@pytest.mark.filterwarnings('ignore:The mask is a layer')
@pytest.mark.parametrize('name', meanings)
def test_the_meaning_of_a_mask(tmp_path, name):
    mask = meanings[name]
    assert (read_mask(mask, (4, 4)) == half).all()
    a = np.asarray(mask)
    if a.ndim == 3 and a.dtype != np.uint8 or a.dtype == float: return
    im = mask if isinstance(mask, Image.Image) else Image.fromarray(a)
    im.save(tmp_path/'mask.png')
    assert (read_mask(tmp_path/'mask.png', (4, 4)) == half).all()

def test_a_layer_says_how_it_is_read():
    with pytest.warns(UserWarning, match='its painted part, 50.0% of the picture'):
        read_mask(layer(255), (4, 4))

several = np.arange(48).reshape(4, 4, 3)*5
photo = np.arange(60, 220, 10).reshape(4, 4).astype(np.uint8)

@pytest.mark.parametrize('mask, says', [
    (np.zeros((4, 4)), 'empty.*Paint white'), (np.full((4, 4), 100), 'empty'),
    (np.ones((5, 4)), '4 × 5 pixels and the image 4 × 4'), (None, r'shape \(\)'),
    (np.ones((2, 2, 2, 2)), 'a mask is'), (np.ones(4), 'a mask is'),
    (np.concatenate([several, half[..., None]*255], -1), 'several colours and transp'),
    (photo, 'no mask: .* neither black nor white. Is it the picture'),
    (np.arange(16).reshape(4, 4), 'up to 15 where white is 255.*mask == number'),
    (half*-1., 'from -1.0 to'), (half*np.nan, 'from nan'), (half*70000, 'to 70000')])
def test_masks_that_are_refused(mask, says):
    with pytest.raises(ValueError, match='The mask .*' + says):
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

@pytest.mark.parametrize('channels', [1, 2, 3])
def test_saved_pictures_go_back_to_the_range_of_their_files(tmp_path, channels):
    image = pixels(channels, 7, 9)
    path = tmp_path/('a.tif' if channels == 2 else 'a.png')
    save_image(path, image, dict(synthetic='True'), bits=16, white=4095)
    deep = np.stack(read_planes(path, channels, 16))
    deep = deep[0].transpose(2, 0, 1) if channels == 3 else deep
    assert deep.max() == np.rint(int(image.max())*4095/255)
    assert (to_8_bits(deep, 4095) == image).all()
    if channels != 2:
        with Image.open(path) as im:
            assert im.text == dict(synthetic='True')

@pytest.mark.parametrize('shape', [(7, 9), *((7, 9, c) for c in (1, 2, 3, 4))])
@pytest.mark.parametrize('dtype, top', [(np.uint8, 256), (np.uint16, 65536)])
@pytest.mark.parametrize('suffix', ['png', 'tif'])
def test_what_is_read_can_be_written_unchanged(tmp_path, shape, dtype, top, suffix):
    image = pixels(*shape, dtype=dtype, top=top)
    save_pixels(tmp_path/f'a.{suffix}', image)
    read = read_image(tmp_path/f'a.{suffix}')
    assert read.dtype == dtype and (read == image.squeeze()).all()


# ---- forms of TIFF

def turned(image, orientation):
    "How Pillow shows a picture of an orientation"
    im = Image.fromarray(image)
    exif = Image.Exif()
    exif[274] = orientation
    im.info['exif'] = exif.tobytes()
    return np.asarray(ImageOps.exif_transpose(im))

@pytest.mark.parametrize('orientation', range(1, 9))
@pytest.mark.parametrize('dtype, shape, layout', [
    (np.uint8, (7, 9), {}), (np.uint16, (7, 9), {}), (np.uint8, (7, 9, 3), {}),
    (np.uint8, (7, 9, 4), dict(extrasamples=['unassalpha'])),
    (np.uint16, (7, 9, 3), {}), (np.uint16, (7, 9, 3), dict(planarconfig='separate'))])
def test_a_tiff_on_its_side(tmp_path, orientation, dtype, shape, layout):
    image = pixels(*shape, dtype=dtype, top=np.iinfo(dtype).max)
    planes = np.atleast_3d(image)
    first = [turned(p.astype(np.uint8), orientation) for p in planes.transpose(2, 0, 1)]
    stored = image.transpose(2, 0, 1) if 'planarconfig' in layout else image
    colours = dict(photometric='rgb') if len(shape) == 3 else {}
    tag = (274, 3, 1, orientation, True)
    tifffile.imwrite(tmp_path/'a.tif', stored, extratags=[tag], **colours, **layout)
    read = np.atleast_3d(read_image(tmp_path/'a.tif'))
    assert (read.astype(np.uint8) == np.stack(first, -1)).all()

@pytest.mark.parametrize('dtype, order', [
    (np.uint8, '<'), (np.uint8, '>'), (np.uint16, '<')])
def test_a_tiff_whose_0_is_white(tmp_path, dtype, order):
    image = pixels(7, 9, dtype=dtype, top=np.iinfo(dtype).max)
    tifffile.imwrite(tmp_path/'a.tif', ~image, photometric='miniswhite',
                     byteorder=order)
    assert (read_image(tmp_path/'a.tif') == image).all()

@pytest.mark.parametrize('dtype, channels, photometric, says', [
    (np.uint8, 2, 'minisblack', 'has 2 channels a pixel'),
    (np.uint8, 5, 'rgb', 'has 5 channels a pixel'),
    (np.uint16, 2, 'minisblack', 'a TIFF of a kind')])
def test_no_channel_of_a_tiff_is_lost(tmp_path, dtype, channels, photometric, says):
    image = pixels(7, 9, channels, dtype=dtype)
    tifffile.imwrite(tmp_path/'a.tif', image, photometric=photometric,
                     planarconfig='contig')
    with pytest.raises(ValueError, match=says):
        read_image(tmp_path/'a.tif')
    with pytest.raises(Exception):
        read_planes(tmp_path/'a.tif', 1 if channels == 2 else 3)

@pytest.mark.parametrize('dtype, shape', [
    (np.float64, (7, 9)), (np.float16, (7, 9)), (np.float32, (7, 9, 3)),
    (np.uint32, (7, 9, 3))])
def test_a_tiff_of_another_kind_is_called_one(tmp_path, dtype, shape):
    colours = 'rgb' if len(shape) == 3 else 'minisblack'
    tifffile.imwrite(tmp_path/'a.tif', pixels(*shape, dtype=dtype), photometric=colours)
    with pytest.raises(ValueError, match='a TIFF of a kind'):
        read_image(tmp_path/'a.tif')

def test_arrays_of_another_byte_order():
    image = pixels(7, 9, dtype=np.uint16, top=5000)
    assert (read_image(image.astype('>u2')) == image).all()

@pytest.mark.parametrize('mask', [
    torch.ones(7, 9, requires_grad=True), torch.ones(7, 9, dtype=torch.bfloat16)])
def test_masks_from_any_tensor(mask): assert read_mask(mask, (7, 9)).all()

@pytest.mark.parametrize('mask', [
    np.full((7, 9), 'a'), np.zeros((7, 9, 0)), np.ones((7, 9), complex), 'a b'.split()])
def test_no_numbers_are_no_mask(mask):
    with pytest.raises(ValueError, match='use numbers or bools'):
        read_mask(mask, (7, 9))
