"Files, folders and arguments as people have them: read right, or refused in a sentence"
import inspect
import linecache
import os
import shutil
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from typer.testing import CliRunner

from cell_diffusion import augmentation
from cell_diffusion.augmentation import (
    balance, generator_dls, write_synthetic)
from cell_diffusion.classifier import CellClassifier
from cell_diffusion.cli import app, save_sheet, write_pictures
from cell_diffusion.data import (
    cell_dls, check_real, generated_files, is_generated, load_cells)
from cell_diffusion.denoiser import Denoiser, load, save
from cell_diffusion.imageio import read_image, read_mask, read_planes, save_pixels
from cell_diffusion.inpainting import Inpainter, inpaint
from cell_diffusion.recipes import (
    save_grid, train_and_save_classifier, train_model,
    train_reference_classifier)
from cell_diffusion.records import (
    Records, kind_of_folder, part_name, read_json, remove_parts, write_json,
    write_whole)
from cell_diffusion.studies.race import race
from cell_diffusion.training import diffusion_learner

def picture(shape=(16, 16, 3), low=0, high=256, dtype=np.uint8, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(low, high, shape).astype(dtype)


def class_folders(folder, n=4, suffix='.png', names='ab', **kwargs):
    for k, name in enumerate(names):
        (folder/name).mkdir(parents=True)
        for i in range(n):
            save_pixels(folder/name/f'{i}{suffix}', picture(**kwargs, seed=100*k + i))
    return folder


def network(folder, kind=Denoiser, classes=('a', 'b'), size=16):
    torch.manual_seed(0)
    unet = dict(dim=8, mults=[1, 2])
    if kind is Inpainter: unet.update(channels=7, out_channels=3)
    save(kind(unet, classes=list(classes), size=size), folder)
    return str(folder)


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    "Every test has a home, a cache and a working folder of its own"
    for name in ('home', 'work'):
        (tmp_path/name).mkdir()
    monkeypatch.chdir(tmp_path/'work')
    monkeypatch.setenv('HOME', str(tmp_path/'home'))
    monkeypatch.setenv('CELL_DIFFUSION_CACHE', str(tmp_path/'cache'))
    monkeypatch.delenv('CELL_DIFFUSION_DATA', raising=False)


# ---- white that cuts off too much

deep = dict(low=200, high=4000, dtype=np.uint16)

@pytest.mark.parametrize('white, share', [(10, '100%'), (300, '97%'), (3000, '26%')])
@pytest.mark.parametrize('cache', [False, True])
def test_white_that_is_too_low_is_called_so(tmp_path, white, share, cache):
    class_folders(tmp_path/'c', 30, **deep)
    for _ in range(1 + cache):
        with pytest.warns(UserWarning) as said:
            load_cells(tmp_path/'c', size=16, white=white, cache=cache)
        said = ' '.join(str(w.message) for w in said)
        assert f'{share} of the pixels are brighter than white={white} ' in said
        assert 'larger white=' in said and 'nearly black' not in said

def test_white_that_is_high_enough_is_not_warned_of(tmp_path, recwarn):
    class_folders(tmp_path/'c', **deep)
    load_cells(tmp_path/'c', size=16, white=3999)
    # A camera that was overexposed is no fault of white
    for file in (tmp_path/'c').rglob('*.png'):
        save_pixels(file, read_image(file).clip(0, 2000))
    load_cells(tmp_path/'c', size=16, white=2000)
    assert not recwarn.list, [str(w.message) for w in recwarn]


# ---- networks that do not fit

@pytest.mark.parametrize('kind, classes, asked, says', [
    (Denoiser, 'ab', {}, 'plain generates whole cells and was not trained to fill .*'
     'blood64-inpaint .*train --inpaint`.* method clamp or repaint'),
    (Denoiser, '', {}, 'generates whole cells'),
    (Denoiser, '', dict(method='clamp', label='a'), 'plain was trained without classes '
     'and takes no label.* blood64-inpaint .*--inpaint --classes'),
    (Inpainter, '', dict(label='a'), 'without classes')])
def test_networks_that_cannot_fill_say_so_in_plain_words(kind, classes, asked, says):
    network('plain', kind, classes)
    image = picture()
    with pytest.raises(ValueError, match=says):
        inpaint(image, image[..., 0] > 200, model='plain', progress=False, **asked)

def test_a_network_that_has_no_classes_still_fills():
    network('plain', Inpainter, '')
    image = picture()
    assert inpaint(image, image[..., 0] > 200, model='plain', steps=2,
                   progress=False).shape == (1, *image.shape)


# ---- generated files among those of the user

@pytest.mark.parametrize('suffix, bits', [
    ('.tif', 8), ('.tif', 16), ('.png', 8), ('.jpg', 8), ('.bmp', 8)])
@pytest.mark.parametrize('channels', [1, 3])
def test_generated_files_have_the_form_of_the_others(tmp_path, suffix, bits, channels):
    shape = (16, 16, 3)[:2 + (channels == 3)]
    top = 256 if bits == 8 else 65536
    class_folders(tmp_path/'c', suffix=suffix, shape=shape, high=top,
                  dtype=np.uint8 if bits == 8 else np.uint16)
    cells = load_cells(tmp_path/'c', size=16, white=top - 1)
    if suffix in ('.jpg', '.bmp'):
        with pytest.warns(UserWarning, match=f'end in {suffix}.*written as .png'):
            written = augmentation.suffix_for(cells)
    else:
        written = augmentation.suffix_for(cells)
    assert written == ('tif' if suffix == '.tif' else 'png')

    image = picture((1, channels, 16, 16))
    notes = dict(generator='x', seed=0)
    row, = write_synthetic(tmp_path, image, 'a', notes, 0, bits, top - 1, written)
    file = tmp_path/row['file']
    assert file.suffix == f'.{written}'
    plane, = read_planes(file, channels, bits)
    plane = np.atleast_3d(plane).transpose(2, 0, 1)
    assert (plane == image[0]*np.uint16((top - 1)//255)).all()
    assert is_generated(file.rename(tmp_path/f'renamed.{written}'))


@pytest.mark.parametrize('suffix', ['.png', '.jpg', '.webp'])
@pytest.mark.parametrize('channels', [1, 3])
def test_sheets_of_generated_cells_are_marked(tmp_path, suffix, channels):
    file = tmp_path/f'cells{suffix}'
    save_sheet(torch.rand(9, channels, 16, 16)*2 - 1, file, 3)
    assert is_generated(file)

def test_a_grid_of_generated_cells_is_marked_and_refused(tmp_path):
    folder = class_folders(tmp_path/'c')
    network('net')
    save_grid(load('net'), folder/'a'/'samples.png', cols=2, steps=2, progress=False)
    assert is_generated(folder/'a'/'samples.png')
    with pytest.raises(ValueError, match='generated ones.*samples.png'):
        check_real(load_cells(folder, size=16))

def test_real_pictures_are_not_marked(tmp_path):
    for suffix in ('.png', '.jpg', '.webp', '.tif', '.bmp'):
        save_pixels(tmp_path/f'a{suffix}', picture())
        assert not is_generated(tmp_path/f'a{suffix}')


# ---- tables as spreadsheets leave them

rows = ['file{0}class{0}synthetic', 'a/0.png{0}a{0}{1}', 'b/1.png{0}b{0}{1}', '']

@pytest.mark.parametrize('code', ['utf-8', 'utf-8-sig', 'utf-16', 'cp1252'])
@pytest.mark.parametrize('between', [',', ';', '\t'])
@pytest.mark.parametrize('true', ['True', 'TRUE', 'WAHR'])
@pytest.mark.parametrize('first', ['', 'sep={0}\r\n'])
def test_manifests_of_spreadsheets(tmp_path, code, between, true, first):
    text = (first + '\r\n'.join(rows)).format(between, true)
    if code == 'cp1252': text += 'größe/1.png'
    (tmp_path/'manifest.csv').write_bytes(text.encode(code))
    class_folders(tmp_path)
    files = ['a/0.png', 'a/1.png', 'b/1.png']
    assert generated_files(tmp_path, files) == ('a/0.png', 'b/1.png')
    assert kind_of_folder(tmp_path) == 'cells'

def test_cells_are_added_to_a_manifest_that_a_spreadsheet_saved():
    network('net')
    words = 'sample --model net --label a -n 2 --steps 2 --each out --seed {}'
    assert CliRunner().invoke(app, words.format(0).split()).exit_code == 0
    file = Path('out/manifest.csv')
    file.write_text(file.read_text().replace(',', ';').replace('True', 'TRUE'),
                    encoding='utf-8-sig')
    answer = CliRunner().invoke(app, words.format(1).split())
    assert answer.exit_code == 0, answer.output
    assert len(generated_files(Path('out'), ['a/synthetic-0-00000.png'])) == 1
    lines = file.read_text().splitlines()
    assert len(lines) == 5 and all(line.count(',') == lines[0].count(',')
                                   for line in lines)


# ---- names

@pytest.mark.parametrize('name', [
    242*'n', 251*'n', 120*'é' + '1234567890', 62*'細' + '1', 'a b', 'a\nb', '*[x]'])
def test_every_legal_name_can_be_written(tmp_path, name):
    file = tmp_path/f'{name}.png'
    write_whole(file, 'text')
    write_pictures([file], [picture()])
    assert read_image(file).shape == (16, 16, 3)
    part = part_name(file)
    part.touch()
    assert os.listdir(tmp_path/'work') == [] and len(os.fsencode(part.name)) <= 255
    remove_parts(tmp_path)
    assert not part.exists() and file.exists()


home_calls = dict(
    classifier=lambda p: train_reference_classifier(
        'cells', size=16, epochs=1, out=p, bs=4, dim=8, progress=False),
    train_and_save=lambda p: train_and_save_classifier(
        cell_dls('cells', size=16, bs=4), p, 1, dim=8),
    save=lambda p: network(p), write_json=lambda p: write_json(p, {}),
    records=lambda p: Records(p, {'a': 1}), grid=lambda p: save_grid(
        load('net'), p, cols=2, steps=2, progress=False))

@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('name', home_calls)
def test_a_tilde_is_the_home_folder(tmp_path, name):
    class_folders(Path('cells'), 12)
    network('net')
    home_calls[name]('~/x')
    assert not Path('~').exists() and (tmp_path/'home'/'x').exists()

def test_a_tilde_is_the_home_folder_of_a_run(tmp_path):
    (tmp_path/'home'/'x').touch()
    for run in (train_model, race):
        with pytest.raises(FileExistsError, match=f'{tmp_path}/home/x is a file'):
            run('simulated', out='~/x')

def test_a_tilde_is_the_home_folder_of_what_is_read(tmp_path):
    home = tmp_path/'home'
    network(home/'net', Inpainter)
    image = picture()
    save_pixels(home/'i.png', image)
    save_pixels(home/'m.png', ((image[..., 0] > 200)*255).astype(np.uint8))
    class_folders(home/'c')
    write_json(home/'x.json', dict(a=1))
    assert inpaint('~/i.png', '~/m.png', model='~/net', steps=2, progress=False).any()
    assert len(load_cells('~/c', size=16)) == 8 and read_json('~/x.json', '')


# ---- outputs that are inputs

@pytest.mark.parametrize('link', [os.link, os.symlink, None])
@pytest.mark.parametrize('name', ['i.png', 'm.png'])
def test_an_output_that_is_an_input_is_refused(tmp_path, link, name):
    network('net', Inpainter)
    image = picture()
    save_pixels('i.png', image)
    save_pixels('m.png', ((image[..., 0] > 200)*255).astype(np.uint8))
    before = Path(name).read_bytes()
    out = 'other.png'
    if link:
        link(Path(name).resolve(), out)
    else:
        out = f'../work/{name}'
    words = f'inpaint i.png --mask m.png --model net --out {out} --steps 2'
    answer = CliRunner().invoke(app, words.split())
    assert answer.exit_code == 1 and 'would replace' in answer.output
    assert Path(name).read_bytes() == before

def test_folders_that_are_inputs_are_refused(tmp_path):
    class_folders(Path('cells'))
    os.symlink('cells', 'linked')
    for out in ('linked', 'linked/new', 'cells/../cells'):
        with pytest.raises(ValueError, match='lies inside'):
            balance('cells', out, goal=9)


# ---- marks at the beginning of JSON

def test_a_byte_order_mark_in_json_is_read():
    network('net')
    write_json('net/record.json', dict(kind='denoiser', bits=16))
    for file in Path('net').glob('*.json'):
        file.write_bytes(b'\xef\xbb\xbf' + file.read_bytes())
    assert load('net').size == 16 and kind_of_folder('net') == 'denoiser'
    assert read_json('net/record.json', '')['bits'] == 16


# ---- cells without anything to see

@pytest.mark.parametrize('level', [0, 7, 255])
def test_flat_cells_cannot_be_normalised(level):
    images = np.full((40, 3, 16, 16), level, np.uint8)
    dls = generator_dls(images, np.arange(40) % 2, ('a', 'b'), 4)
    with pytest.raises(ValueError, match=f'flat: .* the grey level {level} of 255'):
        diffusion_learner(dls, dim=8, normalize=True)

def test_identical_cells_are_counted_once(tmp_path):
    class_folders(tmp_path/'c', 12)
    for file in (tmp_path/'c'/'b').iterdir():
        shutil.copy(tmp_path/'c'/'b'/'0.png', tmp_path/'one.png')
        shutil.copy(tmp_path/'one.png', file)
    with pytest.raises(ValueError, match=r"'b' has 12 cells \(1 different\), too few"):
        cell_dls(tmp_path/'c', size=16, bs=4)


# ---- masks of floats

@pytest.mark.parametrize('scale', [1., 255.])
@pytest.mark.parametrize('error', [1e-7, -1e-7, 1e-6])
@pytest.mark.parametrize('dtype', [np.float32, np.float64])
def test_rounding_in_a_mask_is_tolerated(scale, error, dtype):
    hole = np.arange(16).reshape(4, 4) % 3 == 0
    mask = (hole*scale*(1 + error) + error*~hole).astype(dtype)
    assert (read_mask(mask, (4, 4)) == hole).all()

@pytest.mark.parametrize('top, low', [(1.01, 0), (1, -.01), (65536., 0)])
def test_more_than_rounding_is_not(top, low):
    mask = np.full((4, 4), low, float)
    mask[0] = top
    mask[1] = top/3
    with pytest.raises(ValueError):
        read_mask(mask, (4, 4))


# ---- None, text and NaN where a number is expected

@pytest.fixture(scope='module')
def things():
    "What the functions of the table are called with"
    labels = np.arange(40) % 2
    dls = generator_dls(picture((40, 3, 16, 16)), labels, ('a', 'b'), 4)
    unet = dict(dim=8, mults=[1, 2])
    net = Denoiser(unet, classes=['a', 'b'], size=16)
    inpainter = Inpainter(dict(unet, channels=7, out_channels=3), size=16)
    return dict(dls=dls, net=net, inpainter=inpainter, image=picture(),
                hole=picture()[..., 0] > 200, labels=labels, unet=unet,
                x=torch.rand(4, 3, 16, 16), features=torch.rand(20, 4),
                classifier=CellClassifier(['a', 'b'], size=16, dim=8))

# A function, its arguments (names of `things`, or values), and those to be wrong
numbers = [
    ('core.show_cells', dict(x='x'), 'ncols zoom'),
    ('core.generator', {}, 'seed'),
    ('simulation.simulate_blood', dict(n=4), 'n size seed'),
    ('simulation.simulate_jurkat', dict(n=4), 'n size seed'),
    ('splits.split_cells', dict(labels='labels'), 'fractions seed'),
    ('splits.kfold_cells', dict(labels='labels'), 'k seed'),
    ('data.few_of_each', dict(labels='labels'), 'k seed'),
    ('data.load_cells', dict(source='simulated', n=8), 'size seed'),
    ('data.cell_dls', dict(source='simulated', n=80), 'size bs split seed set_aside'),
    ('data.subsample_class', dict(dls='dls', name='a'), 'keep'),
    ('schedules.linear_schedule', {}, 'T start end'),
    ('schedules.cosine_schedule', {}, 'T s max_beta'),
    ('schedules.sigmoid_schedule', {}, 'T start end tau max_beta'),
    ('schedules.log_snr_schedule', {}, 'T sigma_min sigma_max'),
    ('unet.UNet', {}, 'channels dim mults blocks patch n_classes dropout'),
    ('denoiser.Denoiser', dict(unet='unet'), 'T size data_std data_mean white'),
    ('sampling.sample', dict(model='net'), 'seed steps guidance_scale bs'),
    ('training.ddpm_learner', dict(dls='dls', model='net'),
     'label_dropout ema clip seed'),
    ('training.diffusion_learner', dict(dls='dls'), 'dim mults seed'),
    ('classifier.CellClassifier', dict(classes=['a']), 'channels size dim'),
    ('classifier.train_classifier', dict(dls='dls'), 'epochs lr seed dim'),
    ('classifier.features_and_predictions', dict(classifier='classifier', x='x'),
     'bs'),
    ('metrics.wilson', dict(hits=1, n=2), 'hits n'),
    ('metrics.kernel_distance', dict(real='features', fake='features'),
     'subset draws seed'),
    ('metrics.precision_recall', dict(real='features', fake='features'), 'k'),
    ('inpainting.random_masks', dict(n=1, size=16), 'n size seed'),
    ('inpainting.stained_masks', dict(x='x'), 'grow'),
    ('inpainting.inpaint', dict(image='image', mask='hole', model='inpainter'),
     'n seed guidance_scale'),
    ('gan.gan_learner', dict(dls='dls'),
     'dim disc_dim latent r1 r2 disc_rate ema betas seed'),
    ('augmentation.deficit', dict(counts=[1]), 'counts'),
    ('augmentation.balance', dict(folder='none', out='out'),
     'minutes seed steps'),
    ('recipes.train_model', dict(out='out'), 'size minutes bs dim seed steps scored'),
    ('recipes.train_reference_classifier', dict(out='out'),
     'size epochs bs dim lr seed'),
    ('recipes.score_weights', dict(model='none', data='none'), 'scored'),
    ('recipes.save_grid', dict(model='net', path='a.png'), 'rows cols steps seed'),
    ('studies.race.race', dict(out='out'), 'minutes seeds n size dim names'),
    ('studies.augmentation.AugmentationStudy', dict(cells='dls', out='out'), 'arms'),
]

def function(path):
    module, name = path.rsplit('.', 1)
    return getattr(import_module(f'cell_diffusion.{module}'), name)

def parameter(path, name): return inspect.signature(function(path)).parameters[name]

@pytest.mark.parametrize('path, given, wrong', numbers, ids=[n[0] for n in numbers])
def test_no_number_is_a_sentence(things, path, given, wrong):
    given = {name: things.get(value, value) if isinstance(value, str) else value
             for name, value in given.items()}
    for name in wrong.split():
        for value in (None, 'abc', float('nan')):
            if value is None and parameter(path, name).default is None: continue
            if path.endswith('Study'): given['cells'] = things['dls'].cells
            with pytest.raises(ValueError) as e:
                function(path)(**{**given, name: value})
            said = str(e.value)
            at = e.traceback[-1]
            line = linecache.getline(str(at.path), at.lineno + 1)
            assert line.strip().startswith('raise'), (name, value, said)
            assert repr(value)[:4] in said and said.endswith('.'), (name, value, said)
    assert not Path('out').exists()


# ---- pictures of other kinds

def odd_pictures(folder):
    "Files as people have them, by name: `True` where they can be read"
    image = picture(low=30)
    rgb = Image.fromarray(image)
    grey = image[..., 0]
    def save(name, im, **more): im.save(folder/name, **more)
    save('palette.png', rgb.quantize(17))
    save('four.png', rgb.quantize(4), bits=2)
    save('holes.png', rgb.quantize(17), transparency=bytes([0, 128, 255]*5))
    save('one.png', Image.fromarray(grey > 128))
    save('fax.tif', Image.fromarray(grey > 128), compression='group4')
    save('grey_alpha.png', Image.fromarray(np.stack([grey, grey], -1), 'LA'))
    save('alpha.png', Image.fromarray(np.dstack([image, grey])))
    save('still.gif', rgb.quantize(16))
    save('still.webp', rgb, lossless=True)
    save('a\nb.png', rgb)
    save(' ünï 细*胞?.png', rgb)
    save('UPPER.PNG', rgb)
    good = [p.name for p in folder.iterdir()]

    for name, more in {'anim.gif': {}, 'anim.webp': {}, 'anim.png': {}, 'two.tif': {}
                       }.items():
        save(name, rgb, save_all=True, append_images=[Image.fromarray(image[::-1])])
    for name in ('cmyk.jpg', 'cmyk.tif'):
        save(name, rgb.convert('CMYK'))
    save('lab.tif', rgb.convert('LAB'))
    save('float.tif', Image.fromarray(grey.astype(np.float32)/255))
    for name, plane in {'signed.tif': grey.view(np.int8),
                        'signed16.tif': grey.astype(np.int16) - 200,
                        'large.tif': grey.astype(np.uint32)*70000,
                        'complex.tif': grey.astype(np.complex64)}.items():
        tifffile.imwrite(folder/name, plane)
    whole = (folder/'UPPER.PNG').read_bytes()
    (folder/'cut.png').write_bytes(whole[:len(whole)//2])
    (folder/'empty.png').write_bytes(b'')
    (folder/'text.png').write_text('no picture')
    (folder/'folder.png').mkdir()
    os.symlink('nowhere', folder/'dead.png')
    return {p.name: p.name in good for p in folder.iterdir()}

@pytest.mark.filterwarnings('ignore')
def test_pictures_of_other_kinds(tmp_path):
    (tmp_path/'p').mkdir()
    for name, good in odd_pictures(tmp_path/'p').items():
        file = tmp_path/'p'/name
        if good:
            assert read_image(file).dtype == np.uint8
        else:
            with pytest.raises((ValueError, FileNotFoundError), match=name[:4]):
                read_image(file)
        mixed = tmp_path/'mixed'/str(len(name))/name.replace('\n', '')/'a'
        mixed.mkdir(parents=True)
        shutil.move(file, mixed/name)
        grey = name.startswith(('one', 'fax', 'grey'))
        for i in range(3):
            save_pixels(mixed/f'{i}.png', picture(seed=i)[..., 0] if grey
                        else picture(seed=i))
        cells = load_cells(mixed.parent, size=16, cache=False)
        assert len(cells) == 3 + good and cells.images.shape[1] == (1 if grey else 3)
        assert len(cells.skipped) + len(cells.left_out) == (not good), name

def test_a_name_of_several_lines_is_named_whole(tmp_path):
    Path('a\nb.png').write_text('no picture')
    answer = CliRunner().invoke(app, ['inpaint', 'a\nb.png', '--mask', 'a\nb.png'])
    assert answer.exit_code == 1 and 'a b.png cannot be read' in answer.output
