"The command line: each command in miniature, its options and its mistakes"
import errno
import functools
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
import torch
from fastcore.docments import docments
from PIL import Image
from typer.testing import CliRunner

import cell_diffusion.imageio as imageio
import cell_diffusion.recipes as recipes
import cell_diffusion.records as records
from cell_diffusion.cli import app, commands, described, find_function, in_file
from cell_diffusion.data import is_generated
from cell_diffusion.denoiser import Denoiser, save
from cell_diffusion.imageio import read_image, save_pixels
from cell_diffusion.inpainting import Inpainter
from cell_diffusion.simulation import blood_classes, simulate_blood
from cell_diffusion.sources import find_data


def cli(*words):
    return CliRunner().invoke(app, [str(w) for w in words])


def succeeds(*words):
    answer = cli(*words)
    assert answer.exit_code == 0, answer.output
    return answer.output


def fails(*words):
    "What a mistake is answered with: a sentence and status 1"
    answer = cli(*words)
    assert answer.exit_code == 1 and 'Traceback' not in answer.output, answer.output
    return answer.output


def random_network(kind, folder, **unet):
    "Save a small network with random weights that knows the classes of blood cells"
    torch.manual_seed(0)
    unet = dict(channels=3, dim=16, mults=[1, 2]) | unet
    model = kind(unet, size=28, classes=list(blood_classes))
    for p in model.parameters():
        torch.nn.init.normal_(p, std=.05)
    save(model, folder)
    return folder


@pytest.fixture(scope='module')
def generator(tmp_path_factory):
    return random_network(Denoiser, tmp_path_factory.mktemp('weights')/'small')


@pytest.fixture(scope='module')
def filler(tmp_path_factory):
    folder = tmp_path_factory.mktemp('weights')/'filler'
    return random_network(Inpainter, folder, channels=7, out_channels=3)


# Help

@pytest.mark.parametrize('name', commands)
def test_every_option_is_explained(name):
    said = succeeds(name, '--help')
    assert commands[name]['run'].__doc__ in said
    options = [l for l in said.splitlines() if l.startswith('  -')]
    for line in options:
        assert len(line.split()) > 1, f'{name}: {line}'


def test_options_have_the_names_of_the_functions():
    sample = succeeds('sample', '--help')
    train = succeeds('train', '--help')
    assert '--guidance-scale' in sample and '--progress' not in sample
    assert '--config' in train and 'eps-mid' in train


@pytest.mark.parametrize('name', commands)
def test_options_read_from_a_file_are_those_of_the_function(name):
    "Names, types, defaults and comments, as after an import"
    entry = commands[name]
    work = find_function(entry['calls'])
    comments = docments(work, eval_str=False)
    signature = inspect.signature(work).parameters
    read = in_file(entry['calls'])
    own = described(entry['run'])
    several = inspect.Parameter.VAR_KEYWORD
    assert list(read) == [n for n, p in signature.items() if p.kind != several]
    for option in set(read) - {*entry['leave_out'], *own}:
        parameter, help = read[option]
        assert parameter.default == signature[option].default, option
        assert parameter.annotation == signature[option].annotation, option
        assert help == comments[option], option


mistyped = """
import sys
from typer.testing import CliRunner
from cell_diffusion.cli import app
for words in ('--help', 'train --help', 'train --size x', 'study', 'balance --no 3',
              'inpaint a.png', 'score --help'):
    answer = CliRunner().invoke(app, words.split())
    assert answer.exit_code in (0, 2), answer.output
heavy = 'torch', 'fastai', 'pandas', 'matplotlib', 'numpy', 'PIL'
print([name for name in heavy if name in sys.modules])
"""


def test_help_and_mistyped_options_need_no_imports():
    done = subprocess.run([sys.executable, '-c', mistyped], capture_output=True,
                          text=True)
    assert done.stdout.strip() == '[]', done.stderr


# Sample

def test_sample_from_a_folder(generator, tmp_path):
    out = tmp_path/'a'/'cells.png'
    succeeds('sample', '--model', generator, '--label', 'platelet', '-n', 4,
             '--steps', 3, '--out', out, '--each', tmp_path/'each')
    assert Image.open(out).mode == 'RGB'
    files = sorted((tmp_path/'each'/'platelet').glob('synthetic-0-*.png'))
    assert len(files) == 4 and all(map(is_generated, files))
    rows = pd.read_csv(tmp_path/'each'/'manifest.csv')
    assert set(rows['class']) == {'platelet'} and rows.synthetic.all()


def test_cells_one_by_one_on_a_full_disk(tmp_path, monkeypatch):
    grey = random_network(Denoiser, tmp_path/'grey', channels=1)
    words = ('sample', '--model', grey, '--label', 'platelet', '-n', 3, '--steps', 1,
             '--out', tmp_path/'a.png', '--each', tmp_path/'each')
    write = records._write_synced
    def is_full(path, part, content):
        if '00002' in path.name: raise OSError(errno.ENOSPC, 'full')
        write(path, part, content)
    with monkeypatch.context() as full:
        full.setattr(records, '_write_synced', is_full)
        said = fails(*words)
    assert 'No room left to write' in said and '00002.png' in said
    assert not [f for f in (tmp_path/'each').rglob('*') if f.is_file()]
    succeeds(*words)
    files = sorted((tmp_path/'each').rglob('*.png'))
    assert [Image.open(file).mode for file in files] == ['L', 'L', 'L']
    assert len(pd.read_csv(tmp_path/'each'/'manifest.csv')) == 3


def test_sample_sampler_guidance_and_zoom(generator, tmp_path):
    pictures = []
    for more in (['--sampler', 'ddim'], ['--guidance-scale', 2],
                 ['--guidance-scale', 0], ['--w', 2], ['--zoom', 1]):
        out = tmp_path/f'{len(pictures)}.png'
        succeeds('sample', '--model', generator, '--label', 'platelet', '-n', 1,
                 '--steps', 2, '--out', out, *more)
        pictures.append(np.array(Image.open(out)))
    assert [p.shape[1] for p in pictures] == [84, 84, 84, 84, 28]
    ddim, strong, none, old_option, _ = pictures
    assert not (ddim == strong).all() and not (strong == none).all()
    assert (old_option == strong).all(), '--w is the name of version 0.1'


def test_two_channels_are_shown_in_grey(tmp_path):
    model = Denoiser(dict(channels=2, dim=16, mults=[1, 2]), size=16)
    save(model, tmp_path/'two')
    out = tmp_path/'two.png'
    succeeds('sample', '--model', tmp_path/'two', '-n', 2, '--steps', 2, '--out', out)
    pixels = np.array(Image.open(out).convert('RGB'))
    assert (pixels == pixels[..., :1]).all()


def test_a_network_that_fills_can_generate_too(filler, tmp_path):
    succeeds('sample', '--model', filler, '--label', 'platelet', '-n', 2, '--steps', 2,
             '--out', tmp_path/'cells.png')


# Inpaint

@pytest.fixture
def picture(tmp_path, monkeypatch):
    "A picture and a mask in the working folder; the picture's pixels, and the hole"
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (50, 40, 3), dtype=np.uint8)
    hole = np.zeros((50, 40), np.uint8)
    hole[10:30, 5:25] = 255
    Image.fromarray(pixels).save('cell.png')
    Image.fromarray(hole).save('hole.png')
    return pixels, hole > 0


def test_inpaint_from_the_shell(filler, picture):
    pixels, hole = picture
    succeeds('inpaint', 'cell.png', '--mask', 'hole.png', '--model', filler,
             '--label', 'monocyte', '-n', 2, '--steps', 2)
    fills = [np.array(Image.open(f'cell_filled_{i}.png')) for i in (1, 2)]
    for filled in fills:
        assert (filled[~hole] == pixels[~hole]).all()
    assert (fills[0] != fills[1]).any()


def oriented(path, pixels, orientation=6):
    "A file whose viewers turn it: they show `pixels`"
    # 6: the first row of what is stored is the right column of what is shown
    stored = Image.fromarray(np.rot90(pixels, 1))
    exif = Image.Exif()
    exif[0x112] = orientation
    stored.save(path, exif=exif)


@pytest.mark.parametrize('suffix', ['.png', '.tif', '.jpg'])
def test_a_mask_drawn_on_what_a_viewer_shows(filler, picture, suffix):
    pixels, hole = picture
    oriented(f'turned{suffix}', pixels)
    succeeds('inpaint', f'turned{suffix}', '--mask', 'hole.png', '--model', filler,
             '--steps', 1)
    filled = np.array(Image.open('turned_filled.png'))
    assert filled.shape == pixels.shape
    if suffix != '.jpg': assert (filled[~hole] == pixels[~hole]).all()
    assert Image.open('turned_filled.png').getexif().get(0x112, 1) == 1


def camera_cell():
    "A real neutrophil of 8 bits where there is one, else a drawn one, 71 pixels at 128"
    folder = find_data('pbc')
    if folder is not None and (folder/'neutrophil').is_dir():
        image = read_image(sorted((folder/'neutrophil').iterdir())[0])
        start = np.array(image.shape[:2])//2 - 35
        image = image[start[0]:start[0] + 71, start[1]:start[1] + 71]
    else:
        image = np.asarray(simulate_blood(1, size=71, labels='neutrophil').images[0])
        image = image.transpose(1, 2, 0)
    return np.asarray(Image.fromarray(image).resize((128, 128), Image.BICUBIC))


@pytest.mark.parametrize('suffix', ['.png', '.tif'])
def test_a_camera_of_12_bits_from_end_to_end(tmp_path, monkeypatch, suffix):
    "A fill is as bright as that of the same picture of 8 bits, also turned by a note"
    monkeypatch.chdir(tmp_path)
    cell = camera_cell()
    hole = np.zeros(cell.shape[:2], bool)
    hole[40:90, 36:80] = True
    Image.fromarray(hole).save('hole.png')
    words = ['--mask', 'hole.png', '--label', 'neutrophil', '--steps', 5]
    def fill(name, *more):
        said = succeeds('inpaint', name, '--out', f'out-{name}', *words, *more)
        assert 'side of the window' not in said
        return read_image(f'out-{name}')

    save_pixels(f'8{suffix}', cell)
    expected = fill(f'8{suffix}')
    deep = cell.astype(np.uint16)*16
    save_pixels(f'12{suffix}', deep)
    for more in ([], ['--white', 4080]):
        filled = fill(f'12{suffix}', *more)
        assert filled.dtype == np.uint16 and filled.shape == cell.shape
        assert (filled[~hole] == deep[~hole]).all()
        assert abs(filled[hole].mean()/16/expected[hole].mean() - 1) < .01

    turned(f'turned{suffix}', deep)
    assert (read_image(f'turned{suffix}') == deep).all()
    upright = fill(f'turned{suffix}')
    assert (upright == fill(f'12{suffix}')).all()

    pages = np.stack([deep]*5)
    tifffile.imwrite('stack.tif', pages, photometric='rgb')
    assert '5 pages' in fails('inpaint', 'stack.tif', *words)
    assert not list(Path().glob('stack_filled*'))


def turned(path, deep):
    "Colours of 16 bits upside down, with a note (orientation 3) that says so"
    stored = np.ascontiguousarray(deep[::-1, ::-1])
    if path.endswith('.tif'):
        tifffile.imwrite(path, stored, photometric='rgb',
                         extratags=[(0x112, 'H', 1, 3, True)])
        return
    exif = Image.Exif()
    exif[0x112] = 3
    note = exif.tobytes().removeprefix(b'Exif\0\0')
    content = imageio.deep_colours_file(stored, chunks=[(b'eXIf', note)])
    Path(path).write_bytes(content)


def test_pages_are_refused(filler, picture):
    pages = [Image.fromarray(np.full((50, 40, 3), i, np.uint8)) for i in range(5)]
    pages[0].save('stack.tif', save_all=True, append_images=pages[1:])
    said = fails('inpaint', 'stack.tif', '--mask', 'hole.png', '--model', filler)
    assert '5 pages' in said
    said = fails('inpaint', 'cell.png', '--mask', 'stack.tif', '--model', filler)
    assert '5 pages' in said


@pytest.mark.parametrize('suffix', ['.png', '.tif'])
@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
@pytest.mark.parametrize('channels', [(), (2,), (3,), (4,)])
def test_what_is_written_is_as_deep_and_wide(filler, picture, channels, dtype, suffix):
    top = np.iinfo(dtype).max//3
    pixels = np.random.default_rng(0).integers(0, top, (50, 40, *channels), dtype)
    save_pixels(f'deep{suffix}', pixels)
    out = f'out{suffix}'
    grey = [] if channels in ((3,), (4,)) else ['--as-colour']
    white = ['--white', top] if dtype == np.uint16 else []
    said = succeeds('inpaint', f'deep{suffix}', '--mask', 'hole.png', '--model', filler,
                    '--steps', 1, '--out', out, *grey, *white)
    assert 'warning' not in said
    written = read_image(out)
    hole = picture[1]
    assert written.dtype == dtype and written.shape == pixels.shape
    assert (written[~hole] == pixels[~hole]).all()
    assert (written != pixels)[hole].any()
    assert not list(Path().glob('*.part'))


def test_all_fills_are_written_or_none(filler, picture, monkeypatch):
    words = ['inpaint', 'cell.png', '--mask', 'hole.png', '--model', filler, '--steps',
             1, '-n', 3]
    def full(handle):
        if len(list(Path().glob('*.part'))) == 3: raise OSError(28, 'No space left')
    monkeypatch.setattr(os, 'fsync', full)
    assert 'No room left' in fails(*words)
    assert sorted(p.name for p in Path().iterdir()) == ['cell.png', 'hole.png']


def test_where_fills_go_is_checked_first(filler, picture, monkeypatch):
    monkeypatch.setattr('cell_diffusion.inpainting.fill_holes', None)
    Path('cell_filled_2.png').mkdir()
    words = ['inpaint', 'cell.png', '--mask', 'hole.png', '--model', filler]
    assert 'folder' in fails(*words, '-n', 2)
    Path('file').write_text('')
    assert 'file' in fails(*words, '--out', 'file/a.png')


@pytest.mark.parametrize('words, says', [
    ('cell.png --mask cell.txt', 'cell.txt'),
    ('cell.png --mask hole.png --out a.jpg', '.png'),
    ('hole.png --mask hole.png --out hole.png --steps 1', 'replace'),
    ('cell.png --mask hole.png --label monocite', 'monocyte'),
])
def test_mistakes_of_inpaint(filler, picture, words, says):
    assert says in fails('inpaint', *words.split(), '--model', filler)


# Train and classifier

def test_other_commands_are_one_process(monkeypatch):
    monkeypatch.setenv('WORLD_SIZE', '2')
    assert '`cell-diffusion classifier` is one process' in fails('classifier')
    monkeypatch.setenv('RANK', '1')
    assert fails('classifier') == cli('classifier', '--nothing').output == ''


@pytest.fixture
def asked(tmp_path, monkeypatch):
    "What `train_model` is called with; nothing is trained"
    calls = []

    @functools.wraps(recipes.train_model)
    def spy(**options):
        calls.append(options)
        (tmp_path/'README.md').write_text('card')
    monkeypatch.setattr(recipes, 'train_model', spy)
    return calls


@pytest.mark.parametrize('words, wanted', [
    ('--channels brightfield,darkfield --patch 2',
     dict(channels=('brightfield', 'darkfield'), patch=2)),
    ('--channels dna', dict(channels=('dna',))),
    ('--channels 1', dict(channels=1)),
    ('', dict(channels=None, patch=None, config='edm-mid', scored=1000, epochs=None)),
    ('--config v --seed 3 --balanced', dict(config='v', seed=3, balanced=True)),
    ('--objective v', dict(config='v')),
    ('--normalize', dict(normalize=True)),
])
def test_train_passes_its_options_on(asked, tmp_path, words, wanted):
    assert 'card' in succeeds('train', *words.split(), '--out', tmp_path)
    assert {name: asked[0][name] for name in wanted} == wanted


def test_classifier_from_the_shell(tmp_path):
    out = tmp_path/'my-classifier'
    said = succeeds(
        'classifier', '--data', 'simulated-jurkat', '--size', 28,
        '--channels', 'brightfield,darkfield', '--epochs', 1, '--n', 200, '--bs', 32,
        '--dim', 8, '--balanced', '--seed', 3, '--out', out)
    assert '# my-classifier' in said
    record = json.loads((out/'record.json').read_text())
    wanted = dict(channel_names=['brightfield', 'darkfield'], size=28, seed=3, bs=32,
                  balanced=True, epochs=1)
    assert {k: record[k] for k in wanted} == wanted


@pytest.mark.parametrize('command', ['classifier', 'train'])
@pytest.mark.parametrize('words, says', [
    ('--data simulated-jurkat --channels brightfield,green', 'green'),
    ('--data no/such/folder', 'no/such/folder'),
    ('--channels 2', '3 channels'),
])
def test_mistakes_about_cells(command, words, says, tmp_path):
    out = tmp_path/'x'
    said = fails(command, '--size', 28, '-n', 60, '--out', out, *words.split())
    assert says in said and not (out/'model.safetensors').exists()


# Mistakes

@pytest.mark.parametrize('words, says', [
    ('sample --guidance-scale 2', 'name one with label'),
    ('sample --model blood31', 'blood31'),
    ('sample --label monocite', 'monocyte'),
    ('sample --out cells.gif', '.png'),
    ('sample --model nbs', 'nbs'),
    ('sample -n 0', 'n=0 should be'),
    ('train --config edn -n 160', 'edm'),
])
def test_a_mistake_is_answered_with_a_sentence(words, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path/'nbs').mkdir()
    assert says in fails(*words.split())


only_sample = """
import sys
from typer.testing import CliRunner
from cell_diffusion.cli import app
before = set(sys.modules)
words = ['sample', '--label', 'monocyte', '-n', '1', '--steps', '1']
assert CliRunner().invoke(app, [*words, '--out', sys.argv[1]]).exit_code == 0
heavy = ('cell_diffusion.metrics', 'cell_diffusion.training', 'skimage', 'seaborn',
         'fastai', 'sklearn', 'torchmetrics', 'scipy')
print('torch' in before, [name for name in heavy if name in sys.modules])
"""


@pytest.mark.parametrize('words', ['', '--label monocyte'])
def test_sample_takes_the_larger_networks(tmp_path, words):
    out = tmp_path/'cell.png'
    said = CliRunner().invoke(app, ['sample', *words.split(), '-n', '1', '--steps', '1',
                                    '--out', str(out)])
    assert '64 × 64 pixels' in said.output


def test_sample_imports_only_what_it_needs(tmp_path):
    picture = str(tmp_path/'cell.png')
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', only_sample, picture],
                          capture_output=True, text=True)
    assert done.stdout.strip() == 'False []', done.stderr


@pytest.mark.parametrize('suffix', ['png', 'tif', 'tiff'])
@pytest.mark.parametrize('shape', [(9, 7), (9, 7, 3), (9, 7, 4)])
def test_pictures_are_written_with_all_their_bits(tmp_path, suffix, shape):
    from cell_diffusion.cli import write_picture
    from cell_diffusion.imageio import read_image
    pixels = np.random.default_rng(0).integers(0, 65536, shape).astype(np.uint16)
    write_picture(tmp_path/f'a.{suffix}', pixels)
    assert (read_image(tmp_path/f'a.{suffix}') == pixels).all()
