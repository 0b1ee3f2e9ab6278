"Cells from every source, good and bad: small made images, no network"
import hashlib, io, os
from pathlib import PurePosixPath
from types import SimpleNamespace
import numpy as np, pytest, tifffile, torch
from PIL import Image
from cell_diffusion import data, sources
from cell_diffusion.classifier import judge_loaders
from cell_diffusion.core import decode
from cell_diffusion.data import (
    CellLoader, cell_dls, choose_cells, few_of_each, load_cells, subsample_class)
from cell_diffusion.recipes import cells_as_trained, check_guided
from cell_diffusion.simulation import blood_classes, jurkat_phases
from cell_diffusion.sources import find_data
from cell_diffusion.splits import fingerprint

@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    "No real data, a cache and a home of the test's own, and no way to the network"
    monkeypatch.delenv('CELL_DIFFUSION_DATA', raising=False)
    folder = tmp_path_factory.mktemp('cache')
    monkeypatch.setenv('CELL_DIFFUSION_CACHE', str(folder))
    monkeypatch.setenv('HOME', str(folder/'home'))
    def fetch(*args, **kwargs): pytest.fail('a test tried to download')
    monkeypatch.setattr(sources, 'fetch', fetch)
    return folder

def picture(seed, size=(40, 44), mode='RGB'):
    "An image of random pixels"
    width, height = size
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)

def class_folders(root, names=('a', 'b'), n=6, mode='RGB', **kwargs):
    "A folder of class folders of PNG images"
    for i, name in enumerate(names):
        (root/name).mkdir(parents=True)
        for j in range(n):
            picture(100*i + j, mode=mode, **kwargs).save(root/name/f'{name}{j}.png')
    return root

def jurkat_folder(root, n=4, codes=('Ch3', 'Ch4', 'Ch6'), size=(40, 40)):
    "BBBC048's layout; the grey level of an image tells its phase, channel and number"
    for i, phase in enumerate(jurkat_phases):
        folder = root/'CellCycle'/phase
        folder.mkdir(parents=True)
        for j in range(n):
            for k, code in enumerate(codes):
                im = Image.new('L', size, 20*i + 5*k + j)
                im.save(folder/f'{10*i + j}_{code}.ome.jpg', quality=100)
    return root

def bloodmnist_file(root, stored=28, n=20):
    "A file as medmnist keeps it: n training cells, fewer others, labels as a column"
    rng, out = np.random.default_rng(0), {}
    for split, m in (('train', n), ('val', n//4), ('test', n//2)):
        images = rng.integers(0, 256, (m, stored, stored, 3), dtype=np.uint8)
        out[f'{split}_images'] = images
        out[f'{split}_labels'] = (np.arange(m) % 8)[:, None].astype(np.uint8)
    root.mkdir(exist_ok=True)
    name = 'bloodmnist.npz' if stored == 28 else f'bloodmnist_{stored}.npz'
    np.savez(root/name, **out)
    return root

# ---- sources

def test_folder(tmp_path):
    cells = load_cells(class_folders(tmp_path/'d'), size=16)
    assert cells.images.shape == (12, 3, 16, 16) and cells.images.dtype == np.uint8
    assert cells.labels.dtype == np.int64
    assert cells.names == ('a', 'b') and cells.counts == dict(a=6, b=6)
    assert cells.files[0] == 'a/a0.png' and not cells.skipped
    assert '12 cells, 3 channels, 16x16' in repr(cells)
    same = load_cells('folder', tmp_path/'d', size=16)
    assert (same.images == cells.images).all()

def test_folder_source_needs_path():
    with pytest.raises(ValueError, match="needs path="):
        load_cells('folder')

@pytest.mark.parametrize('below', ['', 'PBC_dataset_normal_DIB', 'pbc128'])
def test_pbc_is_found_at_or_below_the_folder(tmp_path, monkeypatch, below):
    class_folders(tmp_path/'d'/below, blood_classes, n=2, size=(128, 128))
    cells = load_cells('pbc', tmp_path/'d', size=16)
    assert cells.names == blood_classes and len(cells) == 16
    monkeypatch.setenv('CELL_DIFFUSION_DATA', str(tmp_path/'d'))
    assert (load_cells('pbc', size=16).images == cells.images).all()
    by_layout = load_cells(tmp_path/'d', size=16)
    assert (by_layout.images == cells.images).all(), 'a published layout is recognised'

def test_pbc_crops(tmp_path):
    class_folders(tmp_path, blood_classes, n=1, size=(36, 36))
    field = load_cells('pbc', tmp_path, size=20, crop='field')
    center = load_cells('pbc', tmp_path, size=20, crop='center')
    with Image.open(tmp_path/'ig'/'ig0.png') as im:
        middle = np.asarray(im.crop((8, 8, 28, 28))).transpose(2, 0, 1)
        whole = np.asarray(im.resize((20, 20), Image.BICUBIC)).transpose(2, 0, 1)
    assert (center.images[3] == middle).all() and (field.images[3] == whole).all()
    by_default = load_cells('pbc', tmp_path, size=20)
    assert (by_default.images == center.images).all(), 'center by default'
    with pytest.raises(ValueError, match="Unknown crop 'middle'"):
        load_cells('pbc', tmp_path, size=20, crop='middle')

@pytest.mark.parametrize('size', [(360, 363), (363, 360), (366, 369), (360, 360)])
def test_center_is_that_of_torchvision(tmp_path, size):
    from torchvision.transforms.v2.functional import center_crop
    class_folders(tmp_path, ('a', 'b'), n=1, size=size)
    center = load_cells(tmp_path, size=200, crop='center')
    with Image.open(tmp_path/'a'/'a0.png') as im:
        expected = np.asarray(center_crop(im, 200)).transpose(2, 0, 1)
    assert (center.images[0] == expected).all() and center.hashes[0].endswith('-200')

def test_center_is_a_share_of_pictures_of_another_size():
    left, top, right, bottom = data.crop_box(128, 128, 'center')
    assert left == top == 128 - right and right - left == pytest.approx(128*200/360)
    assert data.crop_box(720, 726, 'center') == (160, 163, 560, 563)
    assert data.crop_box(101, 100, 'field') == (.5, 0, 100.5, 100)

def test_jurkat(tmp_path):
    cells = load_cells('jurkat', jurkat_folder(tmp_path), size=40)
    assert cells.images.shape == (28, 2, 40, 40) and cells.names == jurkat_phases
    three = ('dna', 'brightfield', 'darkfield')
    cells = load_cells('jurkat', tmp_path, size=40, channels=three)
    level = cells.images[cells.labels == 6].mean((-1, -2)).round()
    expected = [[125 + j, 120 + j, 130 + j] for j in range(4)]
    assert level.tolist() == expected, 'channels in the order asked for'
    dna = load_cells('jurkat', tmp_path, size=40, channels='dna')
    assert dna.images.shape[1] == 1

def test_jurkat_center_keeps_40_pixels(tmp_path):
    jurkat_folder(tmp_path, n=1, codes=('Ch3',), size=(66, 66))
    asked = dict(source='jurkat', path=tmp_path, channels='brightfield')
    assert load_cells(size=40, **asked).enlarged == 0
    with pytest.warns(UserWarning, match='smaller than size=64'):
        load_cells(size=64, **asked)
    assert load_cells(size=64, crop='field', **asked).enlarged == 0

@pytest.mark.parametrize('asked, stored', [(28, 28), (32, 64), (64, 64), (100, 128)])
def test_bloodmnist(tmp_path, asked, stored):
    root = bloodmnist_file(tmp_path/'m', stored)
    cells = load_cells('bloodmnist', root, size=asked)
    assert cells.images.shape == (35, 3, asked, asked) and cells.names == blood_classes
    dls = cell_dls('bloodmnist', root, size=asked, bs=8)
    assert [len(dls.idxs[k]) for k in ('train', 'valid', 'test')] == [20, 5, 10]
    assert (dls.idxs['valid'] == np.arange(20, 25)).all()

def test_bloodmnist_errors(tmp_path):
    root = bloodmnist_file(tmp_path/'m')
    with pytest.raises(ValueError, match='size=256 is larger'):
        load_cells('bloodmnist', root, size=256)
    with pytest.raises(FileNotFoundError, match='bloodmnist_64.npz'):
        load_cells('bloodmnist', root, size=32)
    with pytest.raises(ValueError, match='cropped to its center already'):
        load_cells('bloodmnist', root, size=28, crop='field')
    file = root/'bloodmnist.npz'
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(ValueError, match='damaged'):
        load_cells('bloodmnist', root, size=28)

@pytest.mark.parametrize('source, size, channels, classes', [
    ('simulated', 32, 3, 8), ('simulated-jurkat', 40, 2, 7)])
def test_simulated(source, size, channels, classes):
    dls = cell_dls(source, size=size, n=80, bs=16)
    x, y = dls.one_batch()
    assert x.shape == (16, channels, size, size)
    assert x.dtype == torch.float32 and y.dtype == torch.int64
    assert len(dls.vocab) == classes == dls.c

def test_simulated_channels():
    dna = load_cells('simulated-jurkat', size=40, n=9, channels=('dna',))
    assert dna.images.shape[1] == 1
    with pytest.raises(ValueError, match='3 channels'):
        load_cells('simulated', size=32, n=9, channels=1)

@pytest.mark.parametrize('channels', [1, 2, 3, 5])
def test_stacks_of_channels(tmp_path, channels):
    for name in 'ab':
        (tmp_path/name).mkdir()
        for j in range(4):
            pages = [picture(j + 10*k, mode='L') for k in range(channels)]
            stack = dict(save_all=True, append_images=pages[1:])
            pages[0].save(tmp_path/name/f'{j}.tif', **stack)
    cells = load_cells(tmp_path, size=16)
    assert cells.images.shape == (8, channels, 16, 16)
    other = 4 if channels != 3 else 5
    with pytest.raises(ValueError, match='pages where|one page where|is grey where'):
        load_cells(tmp_path, size=16, channels=other)

# ---- bad input

def test_only_exactly_the_published_classes_are_a_published_set(tmp_path):
    root = class_folders(tmp_path/'d', blood_classes, n=1, size=(360, 363))
    assert load_cells(root, size=16).source == 'pbc'
    (root/'.DS_Store').write_text('')
    assert load_cells(root, size=16).crop == 'center'

    own = load_cells('folder', root, size=16)
    assert own.source == 'folder' and own.crop == 'field'
    class_folders(root, ('blast',), n=2, size=(360, 363))
    said = "holds the classes of 'pbc', and also blast: it is read as a folder of your"
    with pytest.warns(UserWarning, match=said):
        cells = load_cells(root, size=16)
    assert cells.source == 'folder' and cells.crop == 'field'
    assert cells.names == ('basophil', 'blast', *blood_classes[1:])
    assert cells.counts['blast'] == 2

    said = r'1 entry of the folder not read: blast \(2 pictures\) is left out'
    with pytest.warns(UserWarning, match=said):
        cells = load_cells('pbc', root, size=16)
    assert cells.names == blood_classes and len(cells) == 8
    with pytest.raises(ValueError, match='blast .* is left out.*strict'):
        load_cells('pbc', root, size=16, strict=True)

def test_pictures_of_another_size_are_no_published_set(tmp_path):
    class_folders(tmp_path/'d'/'pbc', blood_classes, n=1, size=(90, 80))
    with pytest.warns(UserWarning, match="pictures of another size, such as .*baso"):
        cells = load_cells(tmp_path/'d', size=16)
    assert cells.source == 'folder' and len(cells) == 8

def test_jurkat_with_another_class_is_a_folder_of_ones_own(tmp_path):
    root = jurkat_folder(tmp_path)/'CellCycle'
    assert load_cells(tmp_path, size=40).source == 'jurkat'
    class_folders(root, ('dead',), n=2, mode='L', size=(40, 40))
    with pytest.warns(UserWarning, match="classes of 'jurkat', and also dead"):
        assert 'dead' in load_cells(root, size=40).names

def test_unknown_source():
    said = "Unknown source 'blod': use one of simulated, .*folder of class folders"
    with pytest.raises(ValueError, match=said):
        load_cells('blod')
    with pytest.raises(FileNotFoundError, match='no/such is not a folder'):
        load_cells('no/such')

def test_missing_folders(tmp_path, monkeypatch):
    for source in ('folder', tmp_path/'none'):
        with pytest.raises(FileNotFoundError, match='none is not a folder: check its'):
            load_cells(source, tmp_path/'none')
    (tmp_path/'cells.zip').write_bytes(b'')
    with pytest.raises(NotADirectoryError, match='cells.zip is not a folder: unpack'):
        load_cells(tmp_path/'cells.zip')
    with pytest.raises(FileNotFoundError, match='path names .* not a folder'):
        load_cells('pbc', tmp_path/'none')
    said = "holds no 'pbc' cells: expected folders named basophil"
    with pytest.raises(FileNotFoundError, match=said):
        load_cells('pbc', tmp_path)
    monkeypatch.setenv('CELL_DIFFUSION_DATA', str(tmp_path/'none'))
    with pytest.raises(FileNotFoundError, match='CELL_DIFFUSION_DATA names'):
        load_cells('jurkat')

def test_empty_folder(tmp_path):
    said = 'holds no folders: it should hold a folder of images for each class'
    with pytest.raises(ValueError, match=said):
        load_cells(tmp_path)

def test_class_without_images(tmp_path):
    (class_folders(tmp_path)/'c').mkdir()
    (tmp_path/'c'/'.DS_Store').write_text('')
    with pytest.raises(ValueError, match="Class 'c' has no images"):
        load_cells(tmp_path, size=16)

def test_class_of_links_to_nowhere(tmp_path):
    (class_folders(tmp_path)/'c').mkdir()
    for i in range(3):
        (tmp_path/'c'/f'{i}.png').symlink_to('/annex/objects/gone')
    said = r"Class 'c' has no images \(.*0.png is a link to /annex.*missing: fetch"
    with pytest.raises(ValueError, match=said):
        load_cells(tmp_path, size=16)

def test_what_lies_beside_the_class_folders_is_named(tmp_path):
    class_folders(tmp_path)
    (tmp_path/'c').symlink_to(tmp_path/'gone')
    (tmp_path/'__MACOSX').mkdir()
    (tmp_path/'manifest.csv').write_text('')
    for name in ('Thumbs.db', '.DS_Store'):
        (tmp_path/'a'/name).write_text('')
    picture(0).save(tmp_path/'extra.PNG')
    said = ('2 entries of the folder not read: c is a link to .*; '
            'extra.PNG lies beside the class folders')
    with pytest.warns(UserWarning, match=said):
        cells = load_cells(tmp_path, size=16)
    assert len(cells) == 12 and len(cells.left_out) == 2 and not cells.skipped
    with pytest.warns(UserWarning, match=said):
        assert load_cells(tmp_path, size=16).left_out == cells.left_out

def test_a_locked_folder_is_named(tmp_path, monkeypatch):
    class_folders(tmp_path)
    iterdir = type(tmp_path).iterdir
    def locked(self):
        if self.name == 'b': raise PermissionError(13, 'Permission denied', str(self))
        return iterdir(self)
    monkeypatch.setattr(type(tmp_path), 'iterdir', locked)
    with pytest.raises(PermissionError, match='b cannot be read .Permission'):
        load_cells(tmp_path, size=16)

@pytest.mark.parametrize('n, side', [(1, 'test'), (2, 'test')])
def test_a_class_too_small_to_split_is_refused(tmp_path, n, side):
    class_folders(tmp_path)
    (tmp_path/'rare').mkdir()
    for i in range(n):
        picture(900 + i).save(tmp_path/'rare'/f'{i}.png')
    said = f"Class 'rare' has {n} cells?, too few to split: none is left for {side}"
    with pytest.raises(ValueError, match=said):
        cell_dls(tmp_path, size=16, bs=4)
    assert len(cell_dls(tmp_path, size=16, bs=4, split=(1, 0, 0)).idxs['train']) > 10
    for i in (3, 4):
        picture(900 + i).save(tmp_path/'rare'/f'{i}.png')
    cell_dls(tmp_path, size=16, bs=4)

def test_pbc_class_missing(tmp_path):
    class_folders(tmp_path, blood_classes[:-1], n=1)
    with pytest.raises(ValueError, match="Class 'platelet' has no images"):
        load_cells('pbc', tmp_path, size=16)

def test_class_with_bad_images_only(tmp_path):
    (class_folders(tmp_path)/'c').mkdir()
    (tmp_path/'c'/'x.png').write_text('')
    said = "No image of class 'c' can be used.*x.png cannot be read"
    with pytest.raises(ValueError, match=said):
        load_cells(tmp_path, size=16)

def half_jpeg(path):
    whole = io.BytesIO()
    picture(0).save(whole, 'jpeg')
    path.with_suffix('.jpg').write_bytes(whole.getvalue()[:700])

def deep_png(path): Image.fromarray(np.zeros((40, 40), np.uint16)).save(path)

bad = dict(
    truncated=(half_jpeg, 'cannot be read as an image'),
    not_an_image=(lambda p: p.write_text('hello'), 'cannot be read as an image'),
    empty=(lambda p: p.write_bytes(b''), 'cannot be read as an image'),
    grey=(lambda p: picture(0, mode='L').save(p),
          'is grey where colour is expected.*channels=1'),
    cmyk=(lambda p: picture(0, mode='CMYK').save(p.with_suffix('.jpg')),
          'CMYK.*convert it to RGB'),
    sixteen_bit=(deep_png, 'has 16 bits .*where the set has 8.*one factor'),
    folder=(lambda p: (p.with_suffix('')/'deeper').mkdir(parents=True),
            r'is a folder \(0 pictures\): move its pictures up'),
    dangling=(lambda p: p.symlink_to(p.parent/'gone.png'),
              'is a link to .*gone.png, which is missing: fetch the data set'))

@pytest.mark.parametrize('kind', bad)
def test_bad_file_is_skipped_and_named_or_an_error(tmp_path, kind):
    make, said = bad[kind]
    make(class_folders(tmp_path)/'a'/'zz.png')
    no_cell = kind in ('folder', 'dangling')
    begins = '1 entry of the folder not read' if no_cell else '1 of 13 cells skipped'
    with pytest.warns(UserWarning, match=f'{begins}: a.zz.*{said}'):
        cells = load_cells(tmp_path, size=16)
    named = cells.left_out if no_cell else cells.skipped
    assert len(cells) == 12 and len(named) == 1 and 'zz' in named[0]
    assert len(cells.skipped) + len(cells.left_out) == 1
    with pytest.warns(UserWarning, match=begins):
        again = load_cells(tmp_path, size=16)
    assert again.skipped == cells.skipped, 'the cache knows too'
    with pytest.raises(ValueError, match='strict'):
        load_cells(tmp_path, size=16, strict=True)

def test_colour_where_grey_is_expected(tmp_path):
    class_folders(tmp_path, mode='L')
    picture(0).save(tmp_path/'b'/'zz.png')
    said = 'is colour where grey is expected.*channels=3'
    with pytest.warns(UserWarning, match=said):
        cells = load_cells(tmp_path, size=16)
    assert cells.images.shape == (12, 1, 16, 16)

def test_small_images(tmp_path):
    class_folders(tmp_path)
    with pytest.warns(UserWarning, match='12 cells are smaller than size=64 and were'):
        cells = load_cells(tmp_path, size=64)
    assert cells.enlarged == 12 and cells.images.shape[-1] == 64
    with pytest.raises(ValueError, match='smaller than size=64'):
        load_cells(tmp_path, size=64, strict=True)

def test_missing_jurkat_channel(tmp_path):
    jurkat_folder(tmp_path, codes=('Ch3', 'Ch4'))
    said = r"No cell in .* has channel Ch6.*\['Ch3', 'Ch4'\]"
    with pytest.raises(ValueError, match=said):
        load_cells('jurkat', tmp_path, size=40)
    said = "Unknown Jurkat channel 'Ch6': choose from brightfield"
    with pytest.raises(ValueError, match=said):
        load_cells('jurkat', tmp_path, size=40, channels='Ch6')

def test_missing_jurkat_file(tmp_path):
    (jurkat_folder(tmp_path)/'CellCycle'/'S'/'11_Ch6.ome.jpg').unlink()
    said = '1 of 28 cells skipped: S.11_Ch6.ome.jpg is missing'
    with pytest.warns(UserWarning, match=said):
        cells = load_cells('jurkat', tmp_path, size=40)
    assert len(cells) == 27 and not any('S/11_' in f for f in cells.files)

def test_channels_of_other_sizes(tmp_path):
    jurkat_folder(tmp_path)
    Image.new('L', (30, 30)).save(tmp_path/'CellCycle'/'S'/'11_Ch6.ome.jpg')
    said = 'S.11_Ch3.ome.jpg and its other channels differ in size'
    with pytest.warns(UserWarning, match=said):
        load_cells('jurkat', tmp_path, size=40)

@pytest.mark.parametrize('kwargs, said', [
    (dict(size=0), 'size=0'), (dict(size=32.5), 'size=32.5'), (dict(n=0), 'n=0')])
def test_senseless_numbers(kwargs, said):
    with pytest.raises(ValueError, match=said):
        load_cells('simulated', **kwargs)

@pytest.mark.parametrize('bs, says', [
    (0, 'bs=0 should be'), (1000, 'bs=1000 does not fit the 8 training cells')])
def test_batch_size_out_of_range(tmp_path, bs, says):
    with pytest.raises(ValueError, match=says):
        cell_dls(class_folders(tmp_path), size=16, bs=bs)

# ---- cache

@pytest.fixture
def read(monkeypatch):
    "The arguments of each call of `read_cell`"
    calls, original = [], data.read_cell
    def counted(*args, **kwargs):
        calls.append(args)
        return original(*args, **kwargs)
    monkeypatch.setattr(data, 'read_cell', counted)
    return calls

def test_cache_follows_the_files(tmp_path, read):
    class_folders(tmp_path)
    first = load_cells(tmp_path, size=16)
    again = load_cells(tmp_path, size=16)
    assert len(read) == 12 and (again.images == first.images).all()
    assert again.files == first.files and (again.hashes == first.hashes).all()
    load_cells(tmp_path, size=20)
    assert len(read) == 24, 'another size is decoded'
    picture(999, size=(50, 50)).save(tmp_path/'a'/'a0.png')
    changed = load_cells(tmp_path, size=16)
    assert len(read) == 36 and (changed.images[0] != first.images[0]).any()
    assert (changed.images[1:] == first.images[1:]).all()

def test_cache_follows_the_content_where_size_and_time_stay(tmp_path, read):
    "As after unpacking an archive with fixed times, or `cp -p`"
    class_folders(tmp_path)
    file = tmp_path/'a'/'a0.bmp'
    picture(1).save(file)
    old = file.stat()
    first = load_cells(tmp_path, size=16)
    picture(2).save(file)
    os.utime(file, ns=(old.st_atime_ns, old.st_mtime_ns))
    assert file.stat().st_size == old.st_size
    again = load_cells(tmp_path, size=16)
    assert (again.images[0] != first.images[0]).any()
    assert len(read) == 26

def test_the_mark_of_a_file_follows_its_bytes(tmp_path, monkeypatch):
    file = tmp_path/'large'
    marks = set()
    for size in (300_000, 5000):
        for place in (0, size//2, size - 1):
            content = bytearray(size)
            content[place] = 1
            file.write_bytes(content)
            marks.add(data.file_mark(file).split('|')[-1])
    assert len(marks) == 6, 'beginning, middle and end count'
    before = data.file_mark(file)
    os.utime(file, ns=(0, 0))
    assert data.file_mark(file) != before and data.file_mark(tmp_path/'no') == 'missing'

def test_every_byte_of_a_usual_file_counts(tmp_path):
    file = tmp_path/'large'
    marks = set()
    for place in range(0, 2_000_000, 250_000):
        content = bytearray(2_000_000)
        content[place] = 1
        file.write_bytes(content)
        marks.add(data.file_mark(file).split('|')[-1])
    assert len(marks) == 8

def test_a_cache_heals_whatever_bit_is_flipped(tmp_path, cache):
    load_cells(class_folders(tmp_path), size=16)
    file, = (cache/'decoded').iterdir()
    whole = file.read_bytes()
    for place in range(0, 200):
        content = bytearray(whole)
        content[place] ^= 1 << place % 8
        file.write_bytes(content)
        data.load_cache(file)  # Cells or None, and no error
    file.write_bytes(whole[:30])
    assert data.load_cache(file) is None

def test_what_a_killed_process_left_in_the_cache_is_removed(tmp_path, cache):
    (cache/'decoded').mkdir()
    part = cache/'decoded'/'0123.npz.abcdef01.cell-diffusion.part'
    part.write_bytes(b'half')
    load_cells(class_folders(tmp_path), size=16)
    assert not part.exists()
    assert [p.suffix for p in (cache/'decoded').iterdir()] == ['.npz']

def test_a_cache_that_cannot_be_written_is_done_without(tmp_path, monkeypatch):
    (tmp_path/'file').write_text('')
    monkeypatch.setenv('CELL_DIFFUSION_CACHE', str(tmp_path/'file'))
    folder = class_folders(tmp_path/'d')
    with pytest.warns(UserWarning, match='could not be cached') as said:
        cells = load_cells(folder, size=16)
    assert len(cells) == 12 and len(said) == 1

def test_cells_of_an_older_reader_are_decoded_again(tmp_path, read, monkeypatch):
    load_cells(class_folders(tmp_path), size=16)
    monkeypatch.setattr(data, 'reader_version', data.reader_version + 1)
    load_cells(tmp_path, size=16)
    assert len(read) == 24

def test_damaged_cache_is_made_again(tmp_path, cache):
    class_folders(tmp_path)
    first = load_cells(tmp_path, size=16)
    file, = cache.rglob('*.npz')
    file.write_bytes(file.read_bytes()[:1000])
    assert (load_cells(tmp_path, size=16).images == first.images).all()
    left = [p.suffix for p in cache.rglob('*') if p.is_file()]
    assert left == ['.npz'], 'no temporary file stays'

def test_full_disk_only_costs_the_cache(tmp_path, cache, monkeypatch):
    def full(f, **kwargs):
        f.write(b'half')
        raise OSError(28, 'No space left on device')
    monkeypatch.setattr(np, 'savez', full)
    with pytest.warns(UserWarning, match='could not be cached.*No space left'):
        cells = load_cells(class_folders(tmp_path), size=16)
    assert len(cells) == 12 and not [p for p in cache.rglob('*') if p.is_file()]

def test_unwritable_cache(tmp_path, monkeypatch):
    (tmp_path/'file').write_text('in the way')
    monkeypatch.setenv('CELL_DIFFUSION_CACHE', str(tmp_path/'file'))
    with pytest.warns(UserWarning, match='could not be cached'):
        assert len(load_cells(class_folders(tmp_path/'d'), size=16)) == 12

# ---- fewer cells

def test_fewer_cells_keep_proportions():
    labels = np.repeat(np.arange(3), [600, 390, 10])
    idx = choose_cells(labels, 100, 0)
    assert np.bincount(labels[idx]).tolist() == [60, 39, 1] and (np.diff(idx) > 0).all()
    few = choose_cells(labels, 30, 0)
    assert np.bincount(labels[few]).tolist()[2] == 1, 'at least one of each'
    assert not np.array_equal(idx, choose_cells(labels, 100, 1))
    assert len(choose_cells(labels, None, 0)) == 1000

def test_the_choice_itself_never_changes():
    labels = np.repeat(np.arange(3), [12, 6, 2])
    assert choose_cells(labels, 8, 0).tolist() == [2, 4, 5, 7, 9, 13, 14, 18]

def test_duplicate_files_are_found_whatever_their_name(tmp_path):
    class_folders(tmp_path, n=20)
    picture(0).save(tmp_path/'a'/'copy.png')
    picture(1).save(tmp_path/'b'/'mislabelled.png')
    with pytest.warns(UserWarning, match='a/a1.png = b/mislabelled.png'):
        dls = cell_dls(tmp_path, size=16, bs=4)
    where = {}
    for name, idxs in dls.idxs.items():
        for file in np.array(dls.cells.files)[idxs]:
            where[file] = name
    assert where['a/a0.png'] == where['a/copy.png'] and 'a/a1.png' not in where

# ---- batches

@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return class_folders(tmp_path_factory.mktemp('cells'), names=('a', 'b', 'c'), n=30)

def epoch(dls): return torch.cat([x for x, _ in dls.train])

def test_batches(folder):
    dls = cell_dls(folder, size=16, bs=8)
    assert [len(dls.idxs[k]) for k in dls.idxs] == [63, 9, 18]
    assert [len(d) for d in (dls.train, dls.valid, dls.test)] == [7, 2, 3]
    for x, y in dls.train:
        assert x.shape == (8, 3, 16, 16) and x.dtype == torch.float32
        assert -1 <= x.min() and x.max() <= 1 and y.dtype == torch.int64

    x, y = (torch.cat(o) for o in zip(*dls.test))
    images, labels = dls[2].arrays
    assert (decode(x).numpy() == images).all(), 'test cells come in order, as they are'
    assert (y.numpy() == labels).all()
    assert len(dls.test.dataset) == 18 and dls.vocab == ('a', 'b', 'c')
    assert len(cell_dls(folder, size=16, bs=8, labels=False).one_batch()) == 1

def test_an_epoch_depends_on_seed_and_number_only(folder):
    a = cell_dls(folder, size=16, bs=8)
    b = cell_dls(folder, size=16, bs=8)
    e0 = epoch(a)
    e1 = epoch(a)
    assert a.train.epoch == 2 and not torch.equal(e0, e1)
    b.one_batch()
    next(iter(b.train))
    assert b.train.epoch == 0, 'looking does not count'
    b.set_epoch(1)
    assert torch.equal(epoch(b), e1)
    assert not torch.equal(epoch(cell_dls(folder, size=16, bs=8, seed=1)), e0)

@pytest.mark.parametrize('balanced, expected', [
    (False, '15515a26dc022702'), (True, '0783b647d8345fcf')])
def test_epochs_never_change(balanced, expected):
    "The order and the turns for a seed: published training runs depend on them"
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (50, 3, 8, 8), dtype=np.uint8)
    labels = np.repeat([0, 1, 2], [30, 15, 5])
    how = dict(bs=8, train=True, augment=True, seed=3, balanced=balanced)
    dl = CellLoader(images, labels, np.arange(0, 50, 2), ('a', 'b', 'c'), **how)
    h = hashlib.sha256()
    for _ in range(2):
        for x, y in dl:
            h.update(decode(x).numpy().tobytes() + y.numpy().tobytes())
    assert h.hexdigest()[:16] == expected

def test_no_augmentation(folder):
    dls = cell_dls(folder, size=16, bs=63, augment=False)
    x, y = dls.one_batch()
    shown = {o.tobytes() for o in decode(x).numpy()}
    assert shown == {o.tobytes() for o in dls.arrays[0]}

def test_balanced():
    labels = np.repeat([0, 1], [900, 100])
    images = np.zeros((1000, 1, 8, 8), np.uint8)
    how = dict(bs=100, train=True, balanced=True)
    dl = CellLoader(images, labels, np.arange(1000), ('a', 'b'), **how)
    n = np.bincount(torch.cat([y for _, y in dl]))
    assert len(dl) == 10 and 420 < n[1] < 580

def test_subsample_class(folder):
    dls = subsample_class(cell_dls(folder, size=16, bs=8), 'b', keep=3)
    assert np.bincount(dls.train.arrays[1]).tolist() == [21, 3, 21]
    assert len(dls.idxs['train']) == 45 and len(dls.valid.idxs) == 9
    with pytest.raises(ValueError, match="Unknown class 'z': use one of a, b, c"):
        subsample_class(dls, 'z', keep=3)

@pytest.mark.parametrize('world', [2, 3, 4])
def test_processes_share_a_batch(folder, monkeypatch, world):
    whole = epoch(cell_dls(folder, size=16, bs=12))
    monkeypatch.setenv('WORLD_SIZE', str(world))
    monkeypatch.setattr(data, 'keep_loaders', lambda: None)
    dls, parts = cell_dls(folder, size=16, bs=12), []
    for rank in range(world):
        monkeypatch.setenv('RANK', str(rank))
        dls.set_epoch(0)
        parts.append(torch.stack([x for x, _ in dls.train]))
        assert len(dls.train) == 5 and parts[-1].shape[1] == 12//world
        assert sum(len(y) for _, y in dls.test) == 18, 'the test is whole'
        predicted = dls.train.new(shuffle=False, drop_last=False)
        assert sum(len(y) for _, y in predicted) == 63, 'and so are predictions'
    assert torch.equal(torch.cat(parts, 1).flatten(0, 1), whole)
    said = f'bs=13 cannot be shared out equally among {world} processes'
    with pytest.raises(ValueError, match=said):
        cell_dls(folder, size=16, bs=13)

def test_learner(folder):
    from torch import nn
    import fastai.callback.progress  # gives a Learner `no_bar`  # noqa: F401
    from fastai.learner import Learner
    dls = cell_dls(folder, size=16, bs=8, device='cpu')
    model = nn.Sequential(nn.Flatten(), nn.Linear(768, 3))
    learn = Learner(dls, model, loss_func=nn.CrossEntropyLoss())
    with learn.no_bar(), learn.no_logging():
        learn.fit(2, 1e-3)
        assert dls.train.epoch == 2
        assert learn.get_preds(dl=dls.test)[0].shape == (18, 3)
        assert learn.get_preds(ds_idx=0)[0].shape == (63, 3)
    assert len(dls.show_batch(4).axes) == 4

def test_show_batch_without_labels(folder):
    dls = cell_dls(folder, size=16, bs=8, labels=False)
    assert len(dls.show_batch(4).axes) == 4

def test_few_of_each():
    labels = np.array([0]*9 + [1]*2)
    idx = few_of_each(labels, 4)
    assert labels[idx].tolist() == [0]*4 + [1]*4 and len(set(idx[:4])) == 4

# ---- 16 bits

def deep_folder(root, top=4095, colour=True, names=('a', 'b'), n=12, dtype=np.uint16):
    "Class folders of TIFFs of a camera; the brightest pixel of each is `top`"
    rng = np.random.default_rng(0)
    for name in names:
        (root/name).mkdir(parents=True)
        for i in range(n):
            shape = (40, 44, 3) if colour else (40, 44)
            image = rng.integers(0, top + 1, shape).astype(dtype)
            image.flat[0] = top
            tifffile.imwrite(root/name/f'{i}.tif', image,
                             photometric='rgb' if colour else 'minisblack')
    return root

def eight_bits(root, to, white):
    "The same folder with files of 8 bits, scaled by hand"
    for file in root.rglob('*.tif'):
        image = tifffile.imread(file)*(255/white)
        new = to/file.relative_to(root).with_suffix('.png')
        new.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.clip(0, 255).round().astype(np.uint8)).save(new)
    return to

@pytest.mark.parametrize('colour', [True, False])
@pytest.mark.parametrize('white', [None, 4095, 2000.5])
def test_files_of_16_bits_are_read_by_one_level_for_the_set(tmp_path, colour, white):
    root = deep_folder(tmp_path/'deep', colour=colour)
    if white is None:
        with pytest.warns(UserWarning, match='16 bits. Grey level 40.* became'):
            cells = load_cells(root, size=16, strict=True)
        pixels = np.stack([tifffile.imread(f) for f in root.rglob('*.tif')])
        assert cells.white == np.percentile(pixels, 99.9, method='inverted_cdf')
    else:
        # 2000.5 cuts off half of the pixels, of which a test of its own is warned
        cells = load_cells(root, size=16, white=white, strict=white == 4095)
        assert cells.white == white
    assert cells.bits == 16 and cells.images.dtype == np.uint8
    by_hand = load_cells(eight_bits(root, tmp_path/'8', cells.white), size=16)
    assert (cells.images == by_hand.images).all()
    assert by_hand.white == 255 and by_hand.bits == 8
    assert cells.hashes[0].endswith(f'-white{cells.white:g}')

def test_the_level_does_not_depend_on_hot_pixels_nor_on_what_is_read(tmp_path, read):
    root = deep_folder(tmp_path, top=1000, colour=False)
    hot = tifffile.imread(root/'a'/'3.tif')
    hot[5, 5] = 65535
    tifffile.imwrite(root/'a'/'3.tif', hot)
    with pytest.warns(UserWarning, match='Grey level (999|1000) '):
        whole = load_cells(root, size=16)
    with pytest.warns(UserWarning, match='Grey level (999|1000) '):
        few = load_cells(root, size=16, n=4, seed=3)
    assert few.white == whole.white < 1001
    assert len(read) == 28
    with pytest.warns(UserWarning, match='Grey level (999|1000) '):
        again = load_cells(root, size=16)
    assert len(read) == 28 and again.white == whole.white and again.bits == 16
    assert (again.images == whole.images).all()
    other = load_cells(root, size=16, white=500)
    assert other.images.mean() > whole.images.mean()*1.3

def test_dark_fields_are_not_black(tmp_path):
    rng = np.random.default_rng(0)
    for name in 'ab':
        (tmp_path/name).mkdir()
        for i in range(8):
            image = rng.poisson(20, (64, 64)).astype(np.uint16)
            image[24:40, 24:40] += 900 + 100*i
            Image.fromarray(image).save(tmp_path/name/f'{i}.png')
    with pytest.warns(UserWarning, match='Grey level 1'):
        cells = load_cells(tmp_path, size=32, strict=True)
    assert cells.images[:, 0, 14:18, 14:18].mean() > 150
    means = cells.images[:8, 0, 14:18, 14:18].mean((1, 2))
    assert (np.diff(means) > 5).all(), 'faint cells stay fainter'

def test_nearly_black_cells_are_said_or_an_error(tmp_path):
    root = eight_bits(deep_folder(tmp_path/'deep'), tmp_path/'8', white=65535)
    said = 'nearly black or flat, with the grey levels 4 to 12 and .* of 255.*pass whi'
    with pytest.warns(UserWarning, match=said):
        load_cells(root, size=16)
    with pytest.raises(ValueError, match=said):
        load_cells(root, size=16, strict=True)
    assert load_cells(root, size=16, strict=True, white=16).images.max() > 200
    with pytest.raises(ValueError, match=said):
        load_cells(tmp_path/'deep', size=16, strict=True, white=65535)

@pytest.mark.parametrize('white, bits', [
    (0, 8), (256, 8), (4095, 8), (-1, 16), (65536, 16), (float('nan'), 16),
    (True, 16), ('4095', 16)])
def test_levels_that_cannot_be_white(tmp_path, white, bits):
    root = deep_folder(tmp_path/'d', top=200, dtype=np.uint8 if bits == 8 else 'u2')
    with pytest.raises(ValueError, match='white=.* should be a grey level from 1 to'):
        load_cells(root, size=16, white=white)

def test_bits_are_not_mixed(tmp_path):
    root = deep_folder(tmp_path, colour=True)
    picture(0).save(root/'b'/'zz.png')
    said = '1 of 25 cells skipped: b/zz.png has 8 bits .*where the set has 16'
    with pytest.warns(UserWarning, match=said):
        load_cells(root, size=16, white=4095)

def test_floating_point_is_refused(tmp_path):
    root = deep_folder(tmp_path, colour=False, dtype=np.float32)
    with pytest.raises(ValueError, match="No image of class 'a'.*floating-point"):
        load_cells(root, size=16)

def test_pages_of_16_bits(tmp_path):
    for name in 'ab':
        (tmp_path/name).mkdir()
        for i in range(8):
            pages = np.random.default_rng(i).integers(0, 4096, (2, 40, 40))
            tifffile.imwrite(tmp_path/name/f'{i}.tif', pages.astype(np.uint16))
    assert load_cells(tmp_path, size=16, white=4095).images.shape == (16, 2, 16, 16)

def test_the_split_names_the_level(tmp_path):
    from cell_diffusion.splits import fingerprint
    deep_folder(tmp_path)
    prints = []
    for white in (900, 4095):
        prints.append(fingerprint(cell_dls(tmp_path, size=16, bs=4, white=white)))
    assert prints[0] != prints[1]

def test_pictures_are_read_upright(tmp_path):
    class_folders(tmp_path, n=4)
    exif = Image.Exif()
    exif[0x0112] = 3
    picture(0).save(tmp_path/'a'/'a0.png', exif=exif)
    turned = load_cells(tmp_path, size=16).images[0]
    picture(0).rotate(180).save(tmp_path/'a'/'a0.png')
    assert (turned == load_cells(tmp_path, size=16).images[0]).all()


# ---- odd names, tables and numbers

def few_cells(folder):
    for k, name in enumerate(('a', 'b')):
        for i in range(3):
            (folder/name).mkdir(parents=True, exist_ok=True)
            noise = np.random.default_rng(10*k + i).integers(0, 256, (16, 16))
            Image.fromarray(noise.astype(np.uint8)).save(folder/name/f'{i}.png')
    return folder

@pytest.mark.skipif(os.name == 'nt', reason='names are Unicode there')
@pytest.mark.parametrize('old, new', [(b'/a', b'/\xe9'), (b'/a/0.png', b'/a/\xff.png')])
def test_names_in_another_code_page_are_named(tmp_path, old, new):
    few_cells(tmp_path)
    here = os.fsencode(tmp_path)
    try:
        os.rename(here + old, here + new)
    except OSError:
        pytest.skip('this file system takes no such names')
    with pytest.raises(ValueError, match='rename it'):
        load_cells(tmp_path, size=16)

@pytest.mark.parametrize('value', [np.int64(1), np.float32(1), torch.tensor(1)])
def test_numbers_of_numpy_and_torch(tmp_path, value):
    few_cells(tmp_path)
    cells = load_cells(tmp_path, size=16, channels=value, white=value*200)
    assert cells.images.shape == (6, 1, 16, 16) and type(cells.white) in (int, float)

@pytest.mark.parametrize('table, n', [
    ('file,class,synthetic\na/1.png,a,True\n', 1),
    ('\ufefffile,class,synthetic\na/1.png,a,TRUE\n', 1),
    ('file,synthetic\n"' + 200_000*'x' + '",True\n', 0), ('', 0), ('\0', 0)])
def test_manifests_as_other_programs_leave_them(tmp_path, table, n):
    few_cells(tmp_path)
    (tmp_path/'manifest.csv').write_text(table, encoding='utf-8')
    assert len(load_cells(tmp_path, size=16).generated) == n

def test_a_folder_of_pictures_alone_is_not_called_empty(tmp_path):
    few_cells(tmp_path)
    with pytest.raises(ValueError, match='a holds no folders'):
        load_cells(tmp_path/'a', size=16)

# ---- random crops

def scaled(tmp_path, **kwargs):
    "Loaders of published-looking cells, with random crops and without"
    folder = tmp_path/'d'
    if not folder.exists(): class_folders(folder, blood_classes, 20, size=(48, 50))
    asked = dict(size=16, bs=16, device='cpu', crop='center', **kwargs)
    return cell_dls('pbc', folder, **asked), cell_dls(
        'pbc', folder, **asked, scales=(.386, 1))

@pytest.mark.parametrize('options', [{}, dict(set_aside=.25), dict(n=100)])
def test_random_crops_change_nothing_but_the_training_batches(tmp_path, options):
    plain, dls = scaled(tmp_path, **options)
    assert fingerprint(plain) == fingerprint(dls)
    assert dls.cells.kept == pytest.approx(200/360) and dls.cells.crop == 'center'
    for side, idxs in plain.idxs.items():
        assert (idxs == dls.idxs[side]).all()
    for a, b in zip([*plain.valid, *plain.test], [*dls.valid, *dls.test]):
        assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])
    assert (plain.train.arrays[0] == dls.train.arrays[0]).all()
    judge = judge_loaders(dls).one_batch()[0]
    assert torch.equal(judge, judge_loaders(plain).one_batch()[0])
    for loaders in (plain, dls):
        seen = loaders.train.new(shuffle=False).one_batch()[0]
        assert torch.equal(decode(seen), torch.from_numpy(plain.train.arrays[0][:16]))

def test_a_quarter_of_a_batch_is_cropped_as_usual(tmp_path):
    plain, dls = scaled(tmp_path, augment=False)
    for (a, y), (b, z) in zip(plain.train, dls.train):
        assert torch.equal(y, z) and torch.equal(a[:4], b[:4])
        assert not (a[4:] == b[4:]).flatten(1).all(1).any()

def test_random_crops_begin_again_to_the_bit(tmp_path):
    _, dls = scaled(tmp_path)
    first, second = [[x for x, _ in dls.train] for _ in range(2)]
    dls.train.set_epoch(1)
    assert all(map(torch.equal, second, [x for x, _ in dls.train]))
    assert not torch.equal(first[0], second[0])

def test_simulated_cells_are_drawn_larger_for_crops():
    dls = cell_dls('simulated', size=32, n=60, bs=16, scales=(.5, 1), device='cpu')
    whole = dls.train.fields.float()
    small = torch.nn.functional.avg_pool2d(whole, 2) - dls.train.images
    assert dls.train.fields.shape[-1] == 64 and small.abs().mean() < 12

@pytest.mark.parametrize('scales', [
    .5, (.5,), (.5, .4), (0, 1), (.5, 1.1), ('a', 1), (float('nan'), 1), (.3, .5, 1)])
def test_scales_that_are_none(scales):
    with pytest.raises(ValueError, match='smallest and the largest side'):
        cell_dls('simulated', size=16, n=60, scales=scales)

def test_bloodmnist_has_no_whole_pictures(tmp_path):
    bloodmnist_file(tmp_path/'b')
    with pytest.raises(ValueError, match='whole field'):
        cell_dls('bloodmnist', tmp_path/'b', size=28, bs=4, scales=(.4, 1))


@pytest.mark.parametrize('source', ['pbc', 'bloodmnist', 'simulated'])
def test_blood_cells_are_in_colour(source, tmp_path):
    folder = None
    if source == 'pbc': folder = class_folders(tmp_path, blood_classes, n=1)
    if source == 'bloodmnist': folder = bloodmnist_file(tmp_path/'m')
    with pytest.raises(ValueError, match='Blood cells have 3 channels, not 1'):
        load_cells(source, folder, size=28, channels=1, n=8)


@pytest.mark.parametrize('source', ['simulated', 'simulated-jurkat'])
def test_an_unknown_crop_is_refused_for_drawn_cells_too(source):
    with pytest.raises(ValueError, match="Unknown crop 'nonsense'"):
        load_cells(source, size=16, n=8, crop='nonsense')


def test_less_than_a_batch_is_no_rare_class(tmp_path):
    dls = cell_dls(class_folders(tmp_path, n=20), size=16, bs=20)
    subsample_class(dls, 'b', 6)
    assert len(dls.train) == 1
    with pytest.raises(ValueError, match='leaves 19 training cells, fewer than'):
        subsample_class(dls, 'b', 5)
    assert len(dls.train) == 1


def test_no_channel_no_cell_and_no_source():
    with pytest.raises(ValueError, match='names none: choose from'):
        load_cells('simulated-jurkat', size=16, n=8, channels=())
    with pytest.raises(ValueError, match='needs a cell to pick'):
        few_of_each([])
    with pytest.raises(ValueError, match="pbc and jurkat, not 'bloodmnist'"):
        find_data('bloodmnist')
    with pytest.raises(FileNotFoundError, match='nowhere'):
        load_cells(PurePosixPath('/nowhere/x'), size=16)

def test_a_network_of_one_jurkat_channel_finds_its_cells(tmp_path):
    "Also where the folder holds no other channel"
    folder = jurkat_folder(tmp_path, n=12, codes=('Ch3',))
    network = SimpleNamespace(white=255, bits=8, size=40, channels=1, classes=())
    run = SimpleNamespace(data=str(folder), source='jurkat', channels=None, white=None,
                          crop=None, n=None, judged='valid', model='run')
    record = dict(source='jurkat', channel_names=['brightfield'], bits=8)
    assert cells_as_trained(network, record, run).cells.images.shape[1] == 1


def test_guidance_is_not_chosen_by_a_handful_of_cells():
    def check(n, classes):
        cells = SimpleNamespace(labels=np.arange(n) % 2)
        dls = SimpleNamespace(cells=cells, idxs=dict(valid=np.arange(n)), vocab='ab')
        check_guided(SimpleNamespace(classes=classes), dls)
    for n, classes in ((7, ()), (6, ('a', 'b')), (7, ('a', 'b'))):
        with pytest.raises(ValueError, match=f'{n} validation cells are too few'):
            check(n, classes)
    check(8, ())
    check(8, ('a', 'b'))
