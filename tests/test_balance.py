"Generated cells for a folder: size, class, marks, and calls that were killed"
import json
import re
import shutil
import warnings
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from rare_cells import some_cells
from typer.testing import CliRunner
import cell_diffusion.augmentation as augmentation
from cell_diffusion.augmentation import balance, network_size, own_size, write_synthetic
from cell_diffusion.cli import app
from cell_diffusion.data import cell_dls, load_cells
from cell_diffusion.denoiser import Denoiser, load, save
from cell_diffusion.imageio import read_image, save_pixels
from cell_diffusion.metrics import beside_real, class_accuracy, class_warning, disobeyed
from cell_diffusion.recipes import (
    cells_to_score, train_model, train_reference_classifier,
)
from cell_diffusion.records import part_name, write_whole
from cell_diffusion.studies.augmentation import AugmentationStudy


def write_cells(folder, sizes=(12, 12, 4), size=16):
    c = some_cells(sizes, size=size, channels=1)
    for i, (image, k) in enumerate(zip(c.images, c.labels)):
        file = folder/c.names[k]/f'{i}.png'
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0]).save(file)
    return folder


@pytest.fixture
def folder(tmp_path): return write_cells(tmp_path/'cells')


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv('CELL_DIFFUSION_CACHE', str(tmp_path/'cache'))


@pytest.fixture(scope='module')
def untrained(tmp_path_factory):
    "Weights of a network that knows the classes and obeys none of them"
    to = tmp_path_factory.mktemp('weights')/'untrained'
    torch.manual_seed(0)
    unet = dict(channels=1, dim=8, mults=[1, 2])
    save(Denoiser(unet, size=16, classes=('a', 'b', 'c')), to)
    return to


def said_of(share, real=.9):
    "What `class_check` finds: shares of class c, and of real cells; then the mean"
    row = {'class': 'c', 'share': share, 'low': share, 'high': share, 'n': 32}
    row.update(real=real, real_low=real, real_n=9)
    return pd.DataFrame([row, {**row, 'class': 'mean'}])


@pytest.fixture
def obeys(monkeypatch):
    "No class is checked with a classifier; the share is what a test says"
    shares = [.9]
    monkeypatch.setattr(augmentation, 'reference_classifier', lambda *a, **k: None)
    monkeypatch.setattr(augmentation, 'class_check',
                        lambda *a, **k: said_of(shares[-1]))
    return shares


small = dict(cache=False, progress=False, steps=1)
short = dict(small, minutes=.005)


def names(folder): return sorted(p.as_posix() for p in folder.rglob('*'))


def test_balance_marks_every_file_as_synthetic(folder, tmp_path):
    out = tmp_path/'added'
    before = names(folder)
    table = balance(folder, out, force=True, **short)
    assert names(folder) == before
    assert len(table) == 8 and set(table['class']) == {'c'} and table.synthetic.all()
    assert pd.read_csv(out/'manifest.csv').file.tolist() == table.file.tolist()
    for file in table.file:
        im = Image.open(out/file)
        assert im.info['synthetic'] == 'True' and 'synthetic' in file
        assert im.size == (16, 16) and im.mode == 'L'
    assert len(load_cells(out, size=16, cache=False)) == 8

    with pytest.raises(ValueError, match='other settings .*goal|missing'):
        balance(folder, out, goal=20, **short)
    shutil.rmtree(out/'.work')
    with pytest.raises(FileExistsError, match='holds generated cells'):
        balance(folder, out)


# Whatever learns or tests refuses generated cells, in whichever way they are marked

def by_name(out):
    shutil.copy(out/'a'/'0.png', out/'a'/'synthetic-0-00003.png')
    return 'a/synthetic-0-00003.png'


def by_note(out):
    write_synthetic(out, some_cells((1,), channels=1).images, ['b'], dict(seed=0))
    (out/'b'/'synthetic-0-00000.png').rename(out/'b'/'x.png')
    return 'b/x.png'


def by_manifest(out):
    (out/'manifest.csv').write_text('file,class,synthetic\nc/24.png,c,True\n')
    return 'c/24.png'


readers = dict(
    dls=lambda f, out: cell_dls(f, size=16, bs=4, cache=False),
    train=lambda f, out: train_model(f, size=16, bs=4, out=out, progress=False),
    classifier=lambda f, out: train_reference_classifier(f, 16, out=out, bs=4),
    balance=lambda f, out: balance(f, out, **small),
    study=lambda f, out: AugmentationStudy(load_cells(f, size=16, cache=False), out),
)


@pytest.mark.parametrize('mark', [by_name, by_note, by_manifest])
@pytest.mark.parametrize('reader', readers)
def test_generated_cells_are_never_taken_for_real_ones(folder, tmp_path, mark, reader):
    marked = mark(folder)
    with pytest.raises(ValueError, match=f'1 of these cells are .* {marked}'):
        readers[reader](folder, tmp_path/'out')
    assert not (tmp_path/'out').exists()


def test_a_stack_is_marked_inside(tmp_path):
    images = some_cells().images[:2]
    rows = write_synthetic(tmp_path, images, ['a', 'b'], dict(generator='x', seed=3))
    im = Image.open(tmp_path/'a'/'synthetic-3-00000.tif')
    assert im.n_frames == 2 and len(rows) == 2
    assert json.loads(im.tag_v2[270])['synthetic'] == 'True'
    for k in 'ab':
        file = next((tmp_path/k).iterdir())
        file.rename(file.with_name('x.tif'))
    found = load_cells(tmp_path, size=16, cache=False).generated
    assert found == ('a/x.tif', 'b/x.tif')


# Size

@pytest.mark.parametrize('side, made', [(16, 16), (28, 28), (30, 28), (64, 64),
                                        (70, 64), (8, 8), (100, 96)])
def test_size_of_a_new_network(side, made): assert network_size(side) == made


def test_files_have_the_size_of_the_cells(tmp_path, untrained, obeys):
    folder = write_cells(tmp_path/'large', (6, 6, 4), size=24)
    assert own_size(folder) == 24
    with pytest.warns(UserWarning, match='makes 16 × 16 pixels and .* 24 × 24'):
        table = balance(folder, tmp_path/'added', weights=untrained, **small)
    assert set(table['size']) == {24} and set(table.made) == {16}
    for file in table.file:
        im = Image.open(tmp_path/'added'/file)
        assert im.size == (24, 24) and im.info['made'] == '16'


def test_files_have_the_size_that_was_asked_for(folder, tmp_path, untrained, obeys):
    table = balance(folder, tmp_path/'added', weights=untrained, size=40, **small)
    assert Image.open(tmp_path/'added'/table.file[0]).size == (40, 40)
    assert set(table['size']) == {40} and set(table.made) == {16}


# Class

def test_a_class_that_is_not_obeyed_is_not_written(folder, tmp_path, untrained, obeys):
    obeys.append(.1)
    call = dict(folder=folder, out=tmp_path/'added', weights=untrained, **small)
    with pytest.raises(ValueError, match=r'not obey .*10% of c \(real cells 90%\)'):
        balance(**call)
    assert not list((tmp_path/'added').rglob('*.png'))

    with pytest.warns(UserWarning, match='not obey'):
        table = balance(**call, force=True)
    assert set(table.obeyed) == {'no'} and set(table.class_accuracy) == {.1}
    assert pd.read_csv(tmp_path/'added'/'manifest.csv').real_accuracy.iloc[0] == .9
    obeys.append(.8)
    other = balance(**dict(call, out=tmp_path/'other'))
    assert set(other.obeyed) == {'yes'}


def test_what_is_measured_of_a_network(folder, tmp_path, untrained):
    "With a real classifier; so few cells of class c that nothing can be said"
    write_cells(folder, (60, 60, 40))
    with pytest.raises(ValueError, match='does not obey the class: recognised are'):
        balance(folder, tmp_path/'added', weights=untrained, **small)


def shares_of(*hits):
    predicted = torch.tensor([k if i < h else (k + 1) % 3 for k, h in enumerate(hits)
                              for i in range(20)])
    return class_accuracy(predicted, torch.arange(3).repeat_interleave(20), 'abc')


@pytest.mark.parametrize('hits, real, says', [
    ((18, 17, 19), (20, 20, 19), None),
    ((6, 7, 8), (20, 20, 19), 'does not obey the class: 35% .*chance 33%, .* 98%'),
    ((20, 20, 2), (20, 20, 19), r'every class: c 10% \(real cells 95%\)'),
    ((20, 20, 20), (6, 6, 9), 'cannot be said'),
])
def test_sentence_on_the_class(hits, real, says):
    table = beside_real(shares_of(*hits), shares_of(*real))
    said = class_warning(table, 1/3)
    assert (said is None) == (says is None)
    if says: assert re.search(says, said)
    assert disobeyed(table, 1/3).any() == (says is not None and 'cannot' not in says)


# Killed

def contents(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes()
            for p in sorted(folder.rglob('*')) if p.suffix in ('.png', '.csv')}


@pytest.mark.parametrize('kill', range(1, 9, 3))
def test_a_killed_call_goes_on(folder, tmp_path, untrained, obeys, monkeypatch, kill):
    monkeypatch.setattr(augmentation, 'group_size', 3)
    call = dict(weights=untrained, **small)
    balance(folder, tmp_path/'whole', **call)

    written = []
    def dies(contents):
        for path, content in contents.items():
            written.append(path)
            if len(written) == kill:
                path.parent.mkdir(parents=True, exist_ok=True)
                part_name(path).write_bytes(b'half a pict')
                raise KeyboardInterrupt
            write_whole(path, content)
    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr(augmentation, 'write_together', dies)
        balance(folder, tmp_path/'killed', **call)
    for file in (tmp_path/'killed').rglob('synthetic*.png'):
        Image.open(file).load()

    obeys.append(.1)  # Not measured again
    table = balance(folder, tmp_path/'killed', **call)
    assert contents(tmp_path/'killed') == contents(tmp_path/'whole')
    assert not list((tmp_path/'killed').rglob('*.part'))
    assert len(table) == 8 and set(table.obeyed) == {'yes'}

    # What somebody deleted is made again, and all else stays
    (tmp_path/'killed'/table.file[4]).unlink()
    balance(folder, tmp_path/'killed', **call)
    assert contents(tmp_path/'killed') == contents(tmp_path/'whole')


def test_training_goes_on_with_more_minutes(folder, tmp_path, obeys):
    obeys.append(.1)
    with pytest.raises(ValueError, match='Nothing was written'):
        balance(folder, tmp_path/'added', **short)
    checkpoint = tmp_path/'added'/'.work'/'network'/'checkpoint.pt'
    before = torch.load(checkpoint, weights_only=True)['steps']
    obeys.append(.9)
    balance(folder, tmp_path/'added', **dict(short, minutes=.1))
    assert torch.load(checkpoint, weights_only=True)['steps'] > before


# What is wrong

def test_balance_keeps_apart_what_will_be_tested(folder, tmp_path):
    message = '28 of the 28 test cells are in the training set of the generator'
    with pytest.raises(ValueError, match=message):
        balance(folder, tmp_path/'added', test=folder, **small)
    with pytest.raises(ValueError, match='lies inside'):
        balance(folder, folder/'added', **small)
    assert not (tmp_path/'added').exists() and not (folder/'added').exists()


@pytest.mark.filterwarnings('ignore')
def test_balance_says_what_is_wrong(folder, tmp_path):
    out = tmp_path/'added'
    with pytest.raises(ValueError, match='fewer than 3 cells: set goal higher'):
        balance(folder, out, goal=3, **small)
    with pytest.raises(ValueError, match='generates 3 channels, .* have 1'):
        balance(folder, out, weights='blood32', cache=False)

    for file in folder.rglob('*.png'):
        Image.open(file).convert('RGB').save(file)
    with pytest.raises(ValueError, match="does not know the class 'c'.*basophil"):
        balance(folder, out, weights='blood32', cache=False)
    assert not out.exists()


@pytest.mark.filterwarnings('default')
def test_balance_warns_of_few_cells(folder, tmp_path, untrained, obeys):
    with pytest.warns(UserWarning, match=r'may repeat them: c \(4\)'):
        balance(folder, tmp_path/'added', weights=untrained, **small)


def test_command(folder, tmp_path, obeys):
    args = ['balance', folder, '--out', tmp_path/'added', '--minutes', .005,
            '--steps', 1]
    r = CliRunner().invoke(app, [str(a) for a in args])
    assert r.exit_code == 0 and 'manifest.csv' in r.output, r.output


# Files of 16 bits

@pytest.fixture
def deep_folder(tmp_path):
    "Cells of a camera of 12 bits, in colour; class c is rare"
    c = some_cells((12, 12, 4), channels=3)
    for i, (image, k) in enumerate(zip(c.images, c.labels)):
        file = tmp_path/'deep'/c.names[k]/f'{i}.png'
        file.parent.mkdir(parents=True, exist_ok=True)
        save_pixels(file, image.transpose(1, 2, 0).astype(np.uint16)*12 + 3)
    return tmp_path/'deep'


def brightest(folder):
    return max(int(read_image(f).max()) for f in folder.rglob('*.png'))


def test_generated_files_go_back_to_depth_and_range(deep_folder, tmp_path, obeys):
    out = tmp_path/'added'
    quick = dict(short, force=True)
    table = balance(deep_folder, out, white=3000, **quick)
    assert set(table.bits) == {16} and set(table.white) == {3000}
    for file in table.file:
        pixels = read_image(out/file)
        assert pixels.dtype == np.uint16 and pixels.shape == (16, 16, 3)
    assert 255 < brightest(out) <= 3000
    with Image.open(out/table.file[0]) as im:
        assert im.text['white'] == '3000' and im.text['synthetic'] == 'True'
    again = load_cells(out, white=3000, size=16, cache=False)
    assert again.bits == 16 and len(again) == 8


def test_test_cells_share_the_white_of_the_training_cells(deep_folder, tmp_path, obeys):
    quick = dict(short, force=True)
    test = tmp_path/'test'
    for i, file in enumerate(sorted(deep_folder.rglob('*.png'))[::3]):
        # The same cells darker: only their own white would make them the same
        copy = test/file.relative_to(deep_folder)
        copy.parent.mkdir(parents=True, exist_ok=True)
        save_pixels(copy, read_image(file)//2)
    balance(deep_folder, tmp_path/'added', test=test, white=3000, **quick)

    shutil.copy(next((deep_folder/'a').glob('*.png')), test/'a'/'leak.png')
    with pytest.raises(ValueError, match='1 of the .* test cells are in the training'):
        balance(deep_folder, tmp_path/'more', test=test, **quick)


def colour_network(folder, **kwargs):
    "Weights of a network of cells in colour that remembers the files of its training"
    torch.manual_seed(0)
    unet = dict(channels=3, dim=8, mults=[1, 2])
    save(Denoiser(unet, size=16, classes=('a', 'b', 'c'), **kwargs), folder)
    return folder


rules = pytest.mark.parametrize('trained, white, expected', [
    (dict(white=3000., bits=16), None, 3000), (dict(white=3000., bits=16), 2000, 2000),
    (dict(), None, None), (dict(white=200., bits=8), None, None)])


@rules
def test_white_is_that_of_the_training_of_the_weights(deep_folder, tmp_path, obeys,
                                                      trained, white, expected):
    weights = colour_network(tmp_path/'w', **trained)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        table = balance(deep_folder, tmp_path/'added', weights=weights, white=white,
                        force=True, **small)
    measured = load_cells(deep_folder, size=16, cache=False).white
    assert set(table.white) == {expected or measured} and set(table.bits) == {16}
    texts = [str(w.message) for w in said if 'white=' in str(w.message)
             or 'Grey level' in str(w.message)]
    assert len(texts) == (white is None), texts
    if white is None: assert ("the network's training" in texts[0]) == bool(expected)


@rules
@pytest.mark.parametrize('recorded', [True, False])
def test_a_score_reads_cells_by_the_same_rule(deep_folder, tmp_path, trained, white,
                                              expected, recorded):
    network = load(colour_network(tmp_path/'w', **({} if recorded else trained)), 'cpu')
    record = dict(dict(white=255, bits=8), **trained) if recorded else {}
    run = SimpleNamespace(model='w', data=deep_folder, source=None, crop=None, n=None,
                          channels=None, white=white, judged='test')
    if recorded and white is None and record['bits'] != 16:
        with pytest.raises(ValueError, match='was trained on files of 8 bits'):
            cells_to_score(network, record, run)
        return
    dls = cells_to_score(network, record, run)
    measured = load_cells(deep_folder, size=16, cache=False).white
    assert dls.cells.white == (expected or measured)


def test_training_and_test_files_have_the_same_bits(folder, deep_folder, tmp_path):
    grey = tmp_path/'grey'
    for file in folder.rglob('*.png'):
        copy = grey/file.relative_to(folder)
        copy.parent.mkdir(parents=True, exist_ok=True)
        save_pixels(copy, read_image(file).astype(np.uint16)*16)
    with pytest.raises(ValueError, match='test cells come from files of 8 bits'):
        balance(grey, tmp_path/'added', test=folder, white=200, **small)


def test_a_folder_can_be_read_as_ones_own(folder, tmp_path, obeys):
    args = ['balance', folder, '--out', tmp_path/'added', '--minutes', .005,
            '--steps', 1, '--source', 'pbc']
    r = CliRunner().invoke(app, [str(a) for a in args])
    assert r.exit_code == 1 and "holds no 'pbc' cells" in r.output
    args[-1] = 'folder'
    r = CliRunner().invoke(app, [str(a) for a in args])
    assert r.exit_code == 0, r.output


def test_weights_of_cells_with_another_crop_are_said(folder, tmp_path):
    from cell_diffusion.augmentation import warn_of_other_crop
    with pytest.warns(UserWarning, match="crop 'center', and these are .* 'field'"):
        warn_of_other_crop('blood32', 'field')
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        warn_of_other_crop('blood32', 'center')
        warn_of_other_crop('blood32', None)
        warn_of_other_crop(tmp_path, 'field')
