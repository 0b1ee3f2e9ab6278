"What is checked before work begins: folders, choices, and cells that can be split"
import errno
import os
import stat
from concurrent.futures import ThreadPoolExecutor

import pandas as pd
import pytest
import torch
from PIL import Image
from rare_cells import some_cells

import cell_diffusion.augmentation as augmentation
import cell_diffusion.recipes as recipes
from cell_diffusion.augmentation import balance, check_test_cells, write_synthetic
from cell_diffusion.classifier import (
    CellClassifier, reference_classifier, train_classifier)
from cell_diffusion.cli import check_each, save_each
from cell_diffusion.data import CellImages, cell_dls, is_generated, load_cells
from cell_diffusion.denoiser import Denoiser, save
from cell_diffusion.gan import Generator
from cell_diffusion.imageio import read_planes
from cell_diffusion.inpainting import Inpainter
from cell_diffusion.recipes import (
    score_weights, train_model, train_reference_classifier,
)
from cell_diffusion.records import (
    Records, check_file, check_out, kind_of_folder, locked, part_name, write_json,
)
from cell_diffusion.studies.augmentation import AugmentationStudy
from cell_diffusion.studies.race import race
from cell_diffusion.web import export_page


def write_cells(folder, sizes=(12, 12, 4), channels=1):
    c = some_cells(sizes, channels=channels)
    for i, (image, k) in enumerate(zip(c.images, c.labels)):
        file = folder/c.names[k]/f'{i}.png'
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0]).save(file)
    return folder


@pytest.fixture(scope='module')
def cells(tmp_path_factory): return write_cells(tmp_path_factory.mktemp('x')/'cells')


@pytest.fixture
def no_work(monkeypatch):
    "Reading cells counts as work"
    def works(*args, **kwargs): raise AssertionError('this is work')
    for module in (recipes, augmentation):
        monkeypatch.setattr(module, 'cell_dls', works)


# One folder, one thing

def checkpoint(folder, run):
    folder.mkdir()
    torch.save(dict(run=run), folder/'checkpoint.pt')


unet = dict(channels=1, dim=8, mults=[1, 2])
things = {
    'a record': ('denoiser', lambda f: write_json(f/'record.json',
                                                  dict(kind='denoiser'))),
    'a network': ('denoiser', lambda f: save(Denoiser(unet, size=16), f)),
    'a filler': ('denoiser', lambda f: save(
        Inpainter(dict(unet, channels=3, out_channels=1), size=16), f)),
    'a checkpoint': ('denoiser', lambda f: checkpoint(f, dict(config='edm'))),
    'classifier record': ('classifier', lambda f: write_json(
        f/'record.json', dict(kind='classifier'))),
    'classifier weights': ('classifier', lambda f: save(
        CellClassifier(['a', 'b'], dim=8), f)),
    'classifier checkpoint': ('classifier', lambda f: checkpoint(
        f, dict(classes=['a', 'b']))),
    'gan': ('gan', lambda f: save(Generator(3, 16, dim=8), f)),
    'study': ('study', lambda f: Records(f, dict(n=1))),
    'generated': ('cells', lambda f: (f/'.work').mkdir(parents=True)),
    'old generated': ('cells', lambda f: (f.mkdir(), (f/'manifest.csv').write_text(
        'file,class,synthetic,generator\n'))),
}


@pytest.mark.parametrize('name', things)
def test_what_a_folder_holds(tmp_path, name):
    kind, make = things[name]
    make(tmp_path/'f')
    assert kind_of_folder(tmp_path/'f') == kind
    check_out(tmp_path/'f', kind)


def test_an_empty_folder_is_free(tmp_path):
    assert kind_of_folder(tmp_path) is None and kind_of_folder(tmp_path/'new') is None


def study(data, out):
    AugmentationStudy(load_cells(data, size=16, cache=False), out, folds=2,
                      arms=('nothing',)).run()


commands = dict(
    denoiser=lambda data, out: train_model(data, out=out),
    classifier=lambda data, out: train_reference_classifier(data, out=out),
    cells=lambda data, out: balance(data, out),
    study=study,
    race=lambda data, out: race(data, out),
)


@pytest.mark.parametrize('command', commands)
@pytest.mark.parametrize('name', ['a record', 'classifier weights', 'study',
                                  'generated', 'a checkpoint'])
def test_another_thing_is_never_replaced(cells, tmp_path, no_work, command, name):
    kind, make = things[name]
    if kind == command or (kind, command) == ('study', 'race'): return
    make(tmp_path/'f')
    before = sorted(p.name for p in (tmp_path/'f').iterdir())
    with pytest.raises((FileExistsError, ValueError), match=str(tmp_path/'f')):
        commands[command](cells, tmp_path/'f')
    assert sorted(p.name for p in (tmp_path/'f').iterdir()) == before


@pytest.mark.parametrize('command', commands)
def test_a_file_is_no_folder(cells, tmp_path, no_work, command):
    (tmp_path/'f').write_text('mine')
    with pytest.raises((FileExistsError, ValueError), match='is a file'):
        commands[command](cells, tmp_path/'f')
    assert (tmp_path/'f').read_text() == 'mine'


@pytest.mark.parametrize('command', ['denoiser', 'classifier', 'cells'])
@pytest.mark.parametrize('place', ['', 'new', 'a', 'a/deep/er'])
def test_nothing_is_written_among_the_cells(cells, no_work, command, place):
    before = sorted(cells.rglob('*'))
    with pytest.raises(ValueError, match='lies inside'):
        commands[command](cells, cells/place)
    assert sorted(cells.rglob('*')) == before


@pytest.mark.parametrize('command', commands)
def test_a_folder_that_cannot_be_written(cells, tmp_path, no_work, command):
    "As root, permissions do not count; a place below a file counts for everybody"
    (tmp_path/'file').write_text('')
    with pytest.raises(OSError, match='annot write|cannot be written|is a file'):
        commands[command](cells, tmp_path/'file'/'out')
    if os.getuid() == 0: return
    (tmp_path/'locked').mkdir()
    (tmp_path/'locked').chmod(stat.S_IREAD | stat.S_IEXEC)
    with pytest.raises(PermissionError, match='cannot be written'):
        commands[command](cells, tmp_path/'locked'/'out')


def test_the_check_leaves_nothing(tmp_path):
    check_out(tmp_path/'a'/'b', 'denoiser')
    assert not list(tmp_path.iterdir())


# Choices

@pytest.mark.parametrize('given, says', [
    (dict(config='best'), "Unknown training config 'best'"),
    (dict(judged='train'), "judged='train' should be 'test' or 'valid'"),
    (dict(scored=3), 'scored=3 cells are too few'),
    (dict(scored=1), 'scored=1'),
    (dict(start='blood64'), 'size is 64 pixels, here it is 32; give size=64'),
    (dict(start='blood32x'), "There is no folder 'blood32x'"),
    (dict(start='blood-classifier-32'), 'generates cells .Denoiser. is needed'),
])
def test_choices_are_checked_before_cells_are_read(cells, tmp_path, no_work, given,
                                                   says):
    with pytest.raises(ValueError, match=says):
        train_model(cells, out=tmp_path/'out', progress=False, **given)
    assert not (tmp_path/'out').exists()


@pytest.mark.parametrize('dim', [4, 7, 2000])
def test_the_width_of_a_classifier_is_checked_before_cells_are_read(
        cells, tmp_path, no_work, dim):
    with pytest.raises(ValueError, match=f'dim={dim} should be .* from 8 to 1,024'):
        train_reference_classifier(cells, dim=dim, out=tmp_path/'out')
    with pytest.raises(ValueError, match=f'dim={dim} should be .* from 8 to 1,024'):
        train_classifier(None, dim=dim)
    assert not (tmp_path/'out').exists()


def test_weights_are_not_replaced_by_what_starts_from_them(tmp_path, no_work):
    save(Denoiser(unet, size=16), tmp_path/'w')
    with pytest.raises(ValueError, match='holds the weights to start from'):
        train_model('simulated', size=16, start=tmp_path/'w', out=tmp_path/'w')


@pytest.mark.parametrize('start, says', [
    (dict(unet=dict(unet, channels=3)), 'has 3 channels, and the cells have 1'),
    (dict(prediction='eps'), 'its prediction is eps, here it is v'),
])
def test_weights_that_do_not_fit(cells, tmp_path, start, says):
    network = Denoiser(**{**dict(unet=unet, schedule='log_snr', prediction='v',
                                 data_std=.5, size=16), **start})
    save(network, tmp_path/'w')
    with pytest.raises(ValueError, match=says):
        train_model(cells, size=16, start=tmp_path/'w', out=tmp_path/'out', bs=4, dim=8,
                    mults=(1, 2), classes=True, progress=False, scored=0, epochs=1)
    assert not (tmp_path/'out').exists()


# Cells that can be split

small = dict(size=16, bs=2, progress=False, dim=8)


@pytest.mark.parametrize('sizes, says', [
    ((2, 2), 'has 2 cells, too few to split'),
    ((4, 4), 'none is left for valid'),
])
@pytest.mark.parametrize('train', [train_model, train_reference_classifier])
def test_folders_that_are_too_small(tmp_path, sizes, says, train):
    write_cells(tmp_path/'few', sizes)
    with pytest.raises(ValueError, match=says):
        train(tmp_path/'few', out=tmp_path/'out', **small)
    assert not (tmp_path/'out').exists()


def test_a_class_without_test_cells_is_named_before(tmp_path):
    write_cells(tmp_path/'few', (16, 16, 1))
    with pytest.raises(ValueError, match="'c' has 1 cell, .* none is left for test"):
        train_reference_classifier(tmp_path/'few', out=tmp_path/'out', **small)
    assert not (tmp_path/'out').exists()


@pytest.mark.parametrize('channels', [0, -1, 2.5, 'red', ('red',), True])
def test_channels_of_a_folder_are_a_number(cells, channels):
    with pytest.raises(ValueError, match='channels'):
        load_cells(cells, size=16, channels=channels, cache=False)


def test_channels_of_jurkat_cells_are_names():
    with pytest.raises(ValueError, match='Unknown Jurkat channel 3'):
        load_cells('simulated-jurkat', size=16, channels=3, n=10)


def test_without_a_cache_a_classifier_is_only_not_kept(cells, tmp_path, monkeypatch):
    (tmp_path/'file').write_text('')
    monkeypatch.setenv('CELL_DIFFUSION_CACHE', str(tmp_path/'file'))
    dls = cell_dls(cells, size=16, bs=8, cache=False)
    with pytest.warns(UserWarning, match='could not be kept'):
        assert reference_classifier(dls, 1, keep=True).classes == ('a', 'b', 'c')


# Folders and files of others

commands['a page'] = lambda data, out: export_page(
    Denoiser(unet, size=16, schedule='log_snr', prediction='v'), out)


@pytest.mark.parametrize('command', commands)
@pytest.mark.parametrize('name', ['README.md', 'src/main.py', '.git/HEAD',
                                  'config.json'])
def test_files_of_others_are_left_alone(cells, tmp_path, no_work, command, name):
    file = tmp_path/'f'/name
    file.parent.mkdir(parents=True)
    file.write_text('{"classes": ["mine"]}')
    (tmp_path/'f'/'model.0a1b2c3d.part').touch()
    before = sorted((tmp_path/'f').rglob('*'))
    with pytest.raises(FileExistsError, match='f holds other files, such as'):
        commands[command](cells, tmp_path/'f')
    assert sorted((tmp_path/'f').rglob('*')) == before


@pytest.mark.parametrize('kind', ['denoiser', 'classifier', 'cells', 'study', 'page'])
def test_what_a_run_may_find(tmp_path, kind):
    "What the system leaves, an empty folder, and a run killed at its beginning"
    names = '.DS_Store', '.lock', '.a.lock', 'settings.json.lock', 'checkpoint.pt'
    for name in names:
        (tmp_path/name).touch()
    part_name(tmp_path/'checkpoint.pt').touch()
    (tmp_path/'empty').mkdir()
    check_out(tmp_path, kind)


def test_a_run_removes_its_own_unfinished_files_only(tmp_path):
    (tmp_path/'film.12345678.part').touch()
    ours = part_name(tmp_path/'checkpoint.pt')
    ours.touch()
    with locked(tmp_path, 'training'):
        assert not ours.exists() and (tmp_path/'film.12345678.part').exists()


@pytest.mark.parametrize('old, fine', [
    ('{"mine": 1}', False), ('no JSON', False), ('[]', False),
    ('{"generated": {}, "reference": {}, "n": 1}', True)])
def test_a_score_replaces_only_a_score(tmp_path, old, fine):
    (tmp_path/'s.json').write_text(old)
    keys = 'generated', 'reference'
    if fine: return check_file(tmp_path/'s.json', keys)
    with pytest.raises(FileExistsError, match='s.json holds something else'):
        score_weights('blood32', 'simulated', out=tmp_path/'s.json')
    check_file(tmp_path/'new.json', keys)


# Pages

def test_a_page_is_written_whole_and_again_after_a_kill(tmp_path, monkeypatch):
    page = commands['a page']
    page(None, tmp_path/'whole')
    names = [p.relative_to(tmp_path/'whole') for p in (tmp_path/'whole').rglob('*')
             if p.is_file()]
    moved = []
    def dies(a, b):
        if tmp_path in b.parents:
            if len(moved) == kill: raise KeyboardInterrupt
            moved.append(b)
        real(a, b)
    real = os.replace
    for kill in (0, 2):
        moved.clear()
        with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
            m.setattr(os, 'replace', dies)
            page(None, tmp_path/'killed')
        left = [p for p in (tmp_path/'killed').rglob('*') if p.is_file()]
        assert len(left) == kill
    page(None, tmp_path/'killed')
    assert all((tmp_path/'killed'/name).exists() for name in names)


def test_cells_of_a_command_go_beside_earlier_ones_of_it_only(tmp_path):
    x = torch.zeros(2, 2, 8, 8)
    for seed in (0, 1, 1):
        check_each(tmp_path/'e')
        save_each(x, tmp_path/'e', 'a', dict(seed=seed), bits=16, white=4095)
    rows = pd.read_csv(tmp_path/'e'/'manifest.csv')
    assert len(rows) == 4 and set(rows.bits) == {16} and set(rows.white) == {4095}
    files = [tmp_path/'e'/name for name in rows.file]
    assert all(map(is_generated, files)) and all(f.suffix == '.tif' for f in files)
    assert read_planes(files[0], 2, 16)[1].dtype == 'uint16'
    (tmp_path/'b'/'.work').mkdir(parents=True)
    with pytest.raises(ValueError, match='holds cells of `balance`'):
        check_each(tmp_path/'b')


def test_two_processes_write_cells_into_one_folder(tmp_path):
    "Each waits for the other; the manifest names the cells of both"
    out = tmp_path/'e'
    def write(seed):
        save_each(torch.zeros(9, 1, 8, 8), out, 'a', dict(seed=seed), white=255)
    check_each(out)
    with ThreadPoolExecutor() as threads:
        list(threads.map(write, range(5)))
    rows = pd.read_csv(out/'manifest.csv')
    assert len(rows) == 45 == len(set(rows.file))
    assert all((out/file).exists() for file in rows.file)
    assert not [f for f in out.rglob('*') if f.suffix == '.part' or 'lock' in f.name]
    check_each(out)


def test_a_generated_cell_is_whole_or_not_there(tmp_path, monkeypatch):
    def full(handle): raise OSError(errno.ENOSPC, 'No space left on device')
    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(OSError, match='No room left to write .*synthetic-0-00000.png'):
        write_synthetic(tmp_path, some_cells((1,), channels=1).images, ['a'],
                        dict(seed=0))
    assert not [p for p in tmp_path.rglob('*') if p.is_file()]


def test_bits_are_compared_before_white(tmp_path):
    "A white of 16 bits, measured on the training cells, means nothing to 8 bits"
    write_cells(tmp_path/'test')
    cells = some_cells((2, 2, 2), channels=1)
    train = CellImages(cells.images, cells.labels, cells.names, bits=16, white=4095)
    with pytest.raises(ValueError, match='of 8 bits and the training cells .* of 16'):
        check_test_cells(train, (tmp_path/'test', None), {})
