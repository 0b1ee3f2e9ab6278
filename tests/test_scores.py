"Runs as they end: what a kill leaves, what goes on, and the score beside the weights"
import errno
import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from common import root

import cell_diffusion.recipes as recipes
import cell_diffusion.training as training
from cell_diffusion.classifier import CellClassifier
from cell_diffusion.cli import app
from cell_diffusion.denoiser import load, shipped, weights_hash
from cell_diffusion.imageio import save_pixels
from cell_diffusion.recipes import model_card, score_weights, too_short, train_model
from cell_diffusion.records import locked
from cell_diffusion.simulation import blood_classes
from cell_diffusion.training import check_unet

run = dict(data='simulated', size=28, n=160, bs=16, dim=8, mults=(1, 2), classes=True,
           progress=False, steps=1, scored=16, judged='valid')
epochs = dict(epochs=1)


@pytest.fixture(autouse=True)
def classifier(monkeypatch):
    "Any classifier will do"
    def untrained(dls, **kwargs):
        torch.manual_seed(0)
        _, channels, size, _ = dls.one_batch()[0].shape
        return CellClassifier(dls.vocab, channels, size, dim=8).eval()
    monkeypatch.setattr(recipes, 'reference_classifier', untrained)


def card_of(folder): return (folder/'README.md').read_text(encoding='utf-8')


def record_of(folder): return json.loads((folder/'record.json').read_text())


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    "A run of one epoch, not scored"
    out = tmp_path_factory.mktemp('made')/'run'
    train_model(**dict(run, scored=0), epochs=1, out=out)
    return out


@pytest.fixture
def out(made, tmp_path):
    shutil.copytree(made, tmp_path/'run')
    return tmp_path/'run'


class Killed(BaseException):
    "Nobody catches it"


def kill(*args, **kwargs): raise Killed


# Killed

@pytest.mark.parametrize('where', ['save_grid', 'score_model', 'reference_classifier'])
def test_card_and_record_are_written_with_the_weights(tmp_path, monkeypatch, where):
    out = tmp_path/'run'
    with monkeypatch.context() as m, pytest.raises(Killed):
        m.setattr(recipes, where, kill)
        train_model(**run, **epochs, out=out)
    record = record_of(out)
    assert record['weights'] == weights_hash(load(out, precision='float32'))
    assert card_of(out) == model_card(record, 'run') and 'simulated' in card_of(out)
    assert '## Score' not in card_of(out) and 'was not measured' in card_of(out)

    # Started again, only what is missing is done
    def trained(learn): assert learn.ema.steps == record['steps']
    saved = recipes.loss_by_timestep
    monkeypatch.setattr(recipes, 'loss_by_timestep',
                        lambda learn: (trained(learn), saved(learn))[1])
    again = train_model(**run, **epochs, out=out)
    assert again['weights'] == record['weights'] and (out/'samples.png').exists()
    assert '## Score' in card_of(out) and record_of(out)['score']['n'] == 15


def test_a_score_is_not_computed_twice(out, monkeypatch):
    first = train_model(**run, **epochs, out=out)
    for name in ('score_model', 'save_grid'):
        monkeypatch.setattr(recipes, name, kill)
    again = train_model(**run, **epochs, out=out)
    assert first['score'] == again['score'] == record_of(out)['score']
    with pytest.raises(Killed):
        train_model(**dict(run, judged='test'), **epochs, out=out)


def test_a_score_in_the_proportions_of_the_data_is_made_again(out):
    score = train_model(**run, **epochs, out=out)['score']
    record = record_of(out)
    new = 'labels', 'data_proportions'
    earlier = {k: v for k, v in score.items() if k not in new}
    (out/'record.json').write_text(json.dumps(dict(record, score=earlier)))
    assert train_model(**run, **epochs, out=out)['score'] == score


def test_a_score_stays_with_its_weights(out):
    train_model(**run, **epochs, out=out)
    score = record_of(out)['score']
    train_model(**dict(run, scored=0), **epochs, out=out)
    assert record_of(out)['score'] == score and '## Score' in card_of(out)


def test_a_score_stays_until_another_is_there(out, monkeypatch):
    train_model(**run, **epochs, out=out)
    score = record_of(out)['score']
    monkeypatch.setattr(recipes, 'score_model', kill)
    with pytest.raises(Killed):
        train_model(**dict(run, judged='test'), **epochs, out=out)
    assert record_of(out)['score'] == score and '## Score' in card_of(out)


@pytest.mark.parametrize('scored, then', [(0, 'score. makes one'), (16, 'one follows')])
def test_a_score_goes_with_its_weights(out, scored, then, monkeypatch):
    train_model(**run, **epochs, out=out)
    steps = record_of(out)['steps']
    monkeypatch.setattr(recipes, 'add_score', lambda *args: None) # Killed before
    said = f'weights in .* have changed, so the earlier .*{then}'
    with pytest.warns(UserWarning, match=said):
        train_model(**dict(run, scored=scored), epochs=2, out=out)
    record = record_of(out)
    assert 'score' not in record and '## Score' not in card_of(out)
    assert record['steps'] == 2*steps


nothing_left = ('run: nothing was left to train, this run had 0.[0-9] minutes. .* '
                'count the whole run.*: minutes=10[.0-9]* for ten minutes more')


def test_an_option_that_the_run_did_not_have_is_refused(out):
    before = {f: f.read_bytes() for f in out.rglob('*') if f.is_file()}
    said = "options was 'mults' there and is 'mults, normalize' here"
    with pytest.raises(ValueError, match=said):
        train_model(**run, **epochs, normalize=True, out=out)
    assert {f: f.read_bytes() for f in out.rglob('*') if f.is_file()} == before


def test_a_run_that_is_over_goes_on_with_a_larger_budget(out):
    before = record_of(out)
    record = train_model(**run, epochs=2, out=out)
    assert record['steps'] == 2*before['steps']
    assert record['went_on_after'] == [before['seconds']]
    assert 'ended after' in card_of(out) and 'rose again' in card_of(out)

    # The history stays where nothing is left to do, and grows where more is done
    with pytest.warns(UserWarning, match=nothing_left):
        again = train_model(**run, epochs=2, out=out)
    assert again['went_on_after'] == record['went_on_after']
    more = train_model(**run, epochs=3, out=out)
    assert more['went_on_after'] == [before['seconds'], record['seconds']]


def test_minutes_go_on_too(tmp_path, monkeypatch):
    # A step takes 1/32 seconds of this clock
    ticks = count()
    clock = SimpleNamespace(monotonic=time.monotonic,
                            perf_counter=lambda: next(ticks)/32)
    monkeypatch.setattr(training, 'time', clock)
    first, second = (train_model(**dict(run, scored=0), minutes=m, out=tmp_path/'run')
                     for m in (.005, .015))
    assert (first['steps'], second['steps']) == (10, 29)
    assert second['seconds'] >= .015*60
    assert second['went_on_after'] == [first['seconds']]

    # Fewer minutes than are done
    with pytest.warns(UserWarning, match=nothing_left):
        third = train_model(**dict(run, scored=0), minutes=.01, out=tmp_path/'run')
    assert third['steps'] == 29 and third['machine'] == second['machine']


# Class

def said_by(share):
    "A `score_model` whose generated cells are recognised in this share"
    def table(share, n):
        rows = [{'class': k, 'share': share, 'low': max(0, share - .05), 'n': n,
                 'high': min(1, share + .05)}
                for k in [*recipes_classes, 'all']]
        rows[-1]['n'] = n*len(recipes_classes)
        return rows
    span = dict(mean=1., low=0., high=2.)
    side = dict(draws=10, n=16, fd=span, kid=span)
    return lambda *a, **k: dict(
        n=16, steps=1, seed=0, classifier_accuracy=table(.95, 50), generated=side,
        reference=side, class_accuracy=table(share, 50))


recipes_classes = ('basophil', 'eosinophil', 'erythroblast', 'ig', 'lymphocyte',
                   'monocyte', 'neutrophil', 'platelet')


def test_a_network_that_ignores_the_class_says_so(out, monkeypatch):
    monkeypatch.setattr(recipes, 'score_model', said_by(.14))
    with pytest.warns(UserWarning, match='does not obey the class: 14%'):
        record = train_model(**run, **epochs, out=out)
    assert any('train longer' in said for said in record['advice'])
    assert '**Note:** The network does not obey the class: 14%' in card_of(out)
    card = card_of(out)
    equal, in_data = card.split('*each class equally often')[1].split('*in the prop')
    assert '| class accuracy | 14.0% (' in equal and '| 95.0% |' in equal
    assert 'Fréchet' in in_data # A record of before does not say otherwise


def test_a_network_that_obeys_is_not_blamed(out, monkeypatch):
    monkeypatch.setattr(recipes, 'score_model', said_by(.8))
    record = train_model(**run, **epochs, out=out)
    assert not any('obey' in said for said in record['advice'])
    assert record['score']['balanced']['share'] == pytest.approx(.8)


# Too short

def like(steps=2000, passes=20, last=1., **more):
    loss = np.r_[np.full(40, 1.), np.full(10, last)].tolist()
    return dict(steps=steps, cells_seen=passes*100, cells=dict(train=100), loss=loss,
                **more)


@pytest.mark.parametrize('record, says', [
    (like(), None),
    (like(steps=499), '499 steps, 20.0 passes'),
    (like(steps=499, start='blood32'), None),
    (like(passes=1.5), '1.5 passes'),
    (like(last=.5), 'still falling'),
])
def test_too_short(record, says):
    said = too_short(record)
    assert said is None if says is None else says in said


@pytest.mark.parametrize('name', ['blood32', 'blood64', 'blood64-inpaint', 'jurkat40'])
def test_shipped_networks_were_trained_for_long_enough(name):
    assert too_short(recipes.read_record(shipped(name))) is None


# Score of any network

same_cells = dict(scored=16, steps=1, judged='valid', progress=False)


def test_score_of_a_run(out, recwarn):
    score = score_weights(out, 'simulated', **same_cells)
    assert not [w for w in recwarn if 'not the cells' in str(w.message)]
    assert record_of(out)['score'] == score and '## Score' in card_of(out)
    assert {'reference', 'generated', 'class_accuracy', 'balanced'} <= set(score)
    assert score['labels'] == 'equal'
    assert 'with each class equally often' in card_of(out)
    for row in ('Fréchet distance', 'kernel distance', 'precision', 'recall'):
        assert card_of(out).count(f'| {row}') == 2, row
    again = train_model(**dict(run, scored=0), **epochs, out=out)
    assert again['score'] == score


def test_a_score_without_a_record_to_keep_it_says_so(out):
    (out/'record.json').write_text('')
    (out/'samples.png').write_bytes(b'')
    with pytest.warns(UserWarning, match='record.json is missing or damaged, so'):
        score_weights(out, 'simulated', **same_cells)
    assert (out/'record.json').read_text() == ''

    # Both are made again
    train_model(**dict(run, scored=0), **epochs, out=out)
    assert record_of(out)['steps'] and (out/'samples.png').read_bytes()


def test_score_on_other_cells_says_so(out):
    with pytest.warns(UserWarning, match='not the cells that .* was trained on'):
        score_weights(out, 'simulated', n=150, **same_cells)


def test_score_does_not_go_beside_other_weights(out):
    record = dict(record_of(out), weights='0'*16)
    (out/'record.json').write_text(json.dumps(record))
    with pytest.warns(UserWarning, match='describes other weights'):
        score_weights(out, 'simulated', **same_cells)
    assert 'score' not in record_of(out)


def test_shipped_weights_are_only_read(tmp_path):
    before = (shipped('blood32')/'record.json').read_bytes()
    words = ['score', 'blood32', '--data', 'simulated', '--n', 400, '--scored', 8,
             '--steps', 1, '--out', tmp_path/'s.json']
    result = CliRunner().invoke(app, [str(w) for w in words])
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert 'real against real' in result.output and 'real cells' in result.output
    header = 'class share low high n real real_low real_high real_n'
    at = [line.split() for line in lines].index(header.split())
    rows = {line.split()[0]: line.split() for line in lines[at + 1:]}
    assert 'mean' in rows and len({*blood_classes} & {*rows}) > 5
    assert len(rows['platelet']) == 9
    assert (shipped('blood32')/'record.json').read_bytes() == before
    assert json.loads((tmp_path/'s.json').read_text())['n'] == 8


@pytest.mark.parametrize('given, says', [
    (dict(model='blood64', data='simulated-jurkat'), 'leaves class .* without'),
    (dict(model='jurkat40', data='simulated'), 'Blood cells have 3 channels, not '),
    (dict(model='blood-classifier-32'), 'generates cells .Denoiser. is needed'),
    (dict(scored=2), 'scored=2'),
    (dict(judged='all'), "judged='all'"),
])
def test_what_cannot_be_scored(out, given, says):
    call = {**dict(model=out, data='simulated', n=160), **same_cells, **given}
    with pytest.raises(ValueError, match=says):
        score_weights(**call)


def forbidden(*args, **kwargs): raise AssertionError('work was done')


def score_in_a_thread(out, **call):
    with ThreadPoolExecutor() as threads:
        return threads.submit(score_weights, out, 'simulated', **same_cells,
                              **call).result()


def test_a_folder_in_use_is_not_scored(out, monkeypatch):
    monkeypatch.setattr(recipes, 'load', forbidden)
    with locked(out, 'training'), pytest.raises(BlockingIOError, match='Another run'):
        score_in_a_thread(out)


def test_a_run_does_not_train_on_while_it_is_scored(out, monkeypatch):
    def score(*args):
        with ThreadPoolExecutor() as threads, pytest.raises(BlockingIOError):
            threads.submit(train_model, out=out, **dict(run, scored=0),
                           **epochs).result()
        raise Killed
    monkeypatch.setattr(recipes, 'score_of_network', score)
    with pytest.raises(Killed):
        score_weights(out, 'simulated', **same_cells)


def test_a_file_that_is_a_folder_is_no_place_for_a_score(out, tmp_path, monkeypatch):
    monkeypatch.setattr(recipes, 'cell_dls', forbidden)
    with pytest.raises(ValueError, match='is a folder: name a file'):
        score_weights(out, 'simulated', **same_cells, out=tmp_path)


@pytest.mark.parametrize('where', ['write_json', 'write_run'])
def test_a_score_that_cannot_be_written_is_not_lost(out, tmp_path, monkeypatch, where):
    def full(*args): raise OSError(errno.ENOSPC, 'no room left')
    monkeypatch.setattr(recipes, where, full)
    with pytest.warns(UserWarning, match='score could not be kept: .*no room left'):
        score = score_weights(out, 'simulated', **same_cells, out=tmp_path/'s.json')
    assert score['n'] == 15


def test_white_of_other_files_is_not_taken(out, tmp_path):
    "255 is white in 8 bits and black in 16"
    rng = np.random.default_rng(0)
    for name in recipes_classes:
        (tmp_path/'d'/name).mkdir(parents=True)
        for i in range(12):
            pixels = rng.integers(0, 60_000, (28, 28, 3), dtype=np.uint16)
            save_pixels(tmp_path/'d'/name/f'{i}.png', pixels)
    call = dict(same_cells, source='folder', n=96)
    with pytest.raises(ValueError, match='trained on files of 8 bits, and these are of '
                                         '16: save them in the same way'):
        score_weights(out, str(tmp_path/'d'), **call)
    assert score_weights(out, str(tmp_path/'d'), **call, white=60_000)['n'] > 3


# What the README says

def command_for_a_gpu():
    "The words of the README's `train` command for a GPU, without the program"
    text = (root/'README.md').read_text(encoding='utf-8')
    block = text.split('### I have a GPU')[1].split('```')[1].replace('\\\n', ' ')
    line = next(line for line in block.splitlines() if ' train ' in line)
    return line.split(' train ')[1].split()


def test_the_command_for_a_gpu_runs_in_miniature(tmp_path):
    words = command_for_a_gpu()
    assert {'--classes', '--dim', '--bs', '--lr', '--minutes'} <= set(words)
    options = dict(zip(words, words[1:]))
    check_unet(int(options['--size']), int(options['--dim']))
    assert int(options['--dim']) >= 96 and int(options['--size']) >= 64

    small = {'--data': 'simulated', '--size': 28, '--dim': 8, '--bs': 16,
             '--minutes': .002}
    for name, value in small.items():
        words[words.index(name) + 1] = str(value)
    words += ['--n', '160', '--scored', '0', '--out', str(tmp_path/'run')]
    result = CliRunner().invoke(app, ['train', *words])
    assert result.exit_code == 0, result.output
    assert record_of(tmp_path/'run')['lr'] == float(options['--lr'])


@pytest.mark.parametrize('scored, says', [(16, 'at least 4 test cells'), (0, None)])
def test_too_few_cells_to_compare_with_are_noticed_before_training(
        tmp_path, monkeypatch, scored, says):
    "Without a score there is nothing to compare"
    def begun(*args): raise InterruptedError
    monkeypatch.setattr(recipes, 'fit_run', begun)
    few = dict(size=28, n=16, dim=8, mults=(1, 2), bs=4, epochs=1, progress=False)
    with pytest.raises(ValueError if says else InterruptedError, match=says):
        train_model('simulated', out=tmp_path/'out', scored=scored, **few)
    assert not list((tmp_path/'out').glob('[!.]*'))
