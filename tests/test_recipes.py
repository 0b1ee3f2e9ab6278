"Long runs in miniature: what they leave behind, the race and the benchmark"
import functools
import json
import shutil
import warnings
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

import cell_diffusion.classifier as classifiers
import cell_diffusion.recipes as recipes
import cell_diffusion.studies.race as races
from cell_diffusion.classifier import (
    CellClassifier, classifier_folder, features_and_predictions, reference_classifier,
)
from cell_diffusion.data import cell_dls, load_cells
from cell_diffusion.denoiser import (
    Denoiser, load, save, shipped, weights_folder, weights_hash,
)
from cell_diffusion.imageio import save_pixels
from cell_diffusion.metrics import class_accuracy
from cell_diffusion.recipes import (
    best_guidance, choose_guidance, classifier_card, held_out, model_card, read_record,
    result_lines, train_and_save_classifier, train_model, train_reference_classifier,
    training_lines, usual_share,
)
from cell_diffusion.records import Records, locked, results_folder, write_json
from cell_diffusion.simulation import jurkat_phases, simulate_blood
from cell_diffusion.splits import fingerprint
from cell_diffusion.studies.bench import bench, bench_line, bench_summary
from cell_diffusion.studies.race import race, race_row, race_table
from cell_diffusion.unet import n_params

tiny = dict(size=28, classes=True, dim=16, mults=(1, 2), n=160, bs=16, progress=False)


def card_of(folder):
    return (folder/'README.md').read_text(encoding='utf-8')


# Train

def deep_cells(root):
    "Class folders with pictures of 12 bits in colour"
    drawn = simulate_blood(60, size=32, labels=np.arange(60) % 3, seed=0)
    for i, image in enumerate(np.asarray(drawn.images)):
        file = root/'abc'[i % 3]/f'{i}.png'
        file.parent.mkdir(parents=True, exist_ok=True)
        save_pixels(file, image.transpose(1, 2, 0).astype(np.uint16)*16)
    return root

def test_record_and_card_name_the_white_of_16_bits(tmp_path):
    data = deep_cells(tmp_path/'d')
    quick = dict(tiny, n=None, epochs=1, source='folder')
    record = train_model(str(data), out=tmp_path/'r', scored=0, **quick)
    measured = load_cells(data, size=28, cache=False).white
    assert record['bits'] == 16 and record['white'] == measured
    assert record['source'] == 'folder' and 3500 < measured <= 4080
    said = f'files of 16 bits with grey level {measured} as white'
    assert said in card_of(tmp_path/'r')
    written = json.loads((tmp_path/'r'/'record.json').read_text())
    assert written['white'] == record['white']

def test_a_start_is_read_by_its_white(tmp_path, monkeypatch):
    cells = deep_cells(tmp_path/'cells')
    start = tmp_path/'start'
    unet = dict(dim=8, mults=[1, 2])
    kind = dict(schedule='log_snr', prediction='v', data_std=.5)
    save(Denoiser(unet, size=28, white=4000., bits=16, **kind), start)
    def begin(learn, *args):
        raise InterruptedError(learn.dls.cells.white, learn.model.white)
    monkeypatch.setattr(recipes, 'fit_run', begin)
    settings = dict(size=28, dim=8, mults=(1, 2), bs=8, scored=0, progress=False)
    for given, white in ((None, 4000), (3000, 3000)):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter('always')
            with pytest.raises(InterruptedError) as e:
                train_model(cells, start=str(start), white=given, out=tmp_path/'out',
                            **settings)
        assert e.value.args == (white, white)
        said = [str(w.message) for w in said if 'Grey level' in str(w.message)]
        assert len(said) == (given is None)
        assert given or said[0].startswith('Grey level 4000 of these files of 16 bits')


def test_the_card_of_a_classifier_names_the_white(tmp_path):
    train_reference_classifier(str(deep_cells(tmp_path/'d')), 28, epochs=1, dim=8, bs=8,
                               out=tmp_path/'c', white=4000, progress=False)
    assert 'grey level 4000 as white' in card_of(tmp_path/'c')
    assert json.loads((tmp_path/'c'/'record.json').read_text())['bits'] == 16

@pytest.fixture(scope='module')
def run(tmp_path_factory):
    "The folder of a short run, and its record"
    out = tmp_path_factory.mktemp('runs')/'small'
    return out, train_model('simulated', minutes=.03, out=out, scored=0, **tiny)


def test_train_leaves_all_that_is_needed(run):
    out, _ = run
    needed = {'model.safetensors', 'config.json', 'record.json', 'samples.png',
              'README.md', 'checkpoint.pt'}
    assert needed <= {f.name for f in out.iterdir()}


def test_the_record_says_what_was_done(run):
    out, record = run
    written = json.loads((out/'record.json').read_text())
    dls = cell_dls('simulated', size=28, n=160)
    assert written['fingerprint'] == record['fingerprint'] == fingerprint(dls)
    assert sum(record['cells'].values()) == 160
    assert record['cells_seen'] == 16*record['steps']
    assert record['config'] == 'edm-mid'
    assert {'t', 'loss'} == set(record['loss_by_timestep'][0])


def test_the_card_is_made_from_the_record(run):
    out, record = run
    card = card_of(out)
    assert card == model_card(record, 'small')
    for said in ('# small', 'clinical', 'simulated', f"{record['steps']} steps",
                 '`edm-mid`', 'conditioned on a class: basophil'):
        assert said in card
    assert '## Score' not in card and '$' not in card


filling = dict(tiny, epochs=1, inpaint=True, balanced=True, outside=.5)


@pytest.fixture(scope='module')
def filler(run, tmp_path_factory):
    "A scored run of a network that fills holes, started from the other one"
    out = tmp_path_factory.mktemp('runs')/'filler'
    return out, train_model('simulated', out=out, scored=20, steps=2, judged='valid',
                            start=run[0], **filling)


def test_train_a_network_that_fills(filler):
    out, record = filler
    assert record['inpaint'] and record['balanced']
    assert record['start'] == 'small' and record['outside'] == .5
    assert record['score']['judged'] == 'valid'
    for said in ('Fills what a mask hides', '`small`', 'equally often',
                 'validation cells', 'each class equally often', 'precision',
                 '| kernel distance (KID) | '):
        assert said in card_of(out)


def test_train_on_random_crops(tmp_path):
    out = tmp_path/'crops'
    asked = dict(filling, out=out, scored=0, steps=2)
    record = train_model('simulated', scales=(.5, 1), **asked)
    assert record['scales'] == [.5, 1.]
    assert 'random crops of 50% to 100% of the picture' in card_of(out)
    assert load(out).cell_scales == (1., 2.)
    with pytest.raises(ValueError, match='scales was'):
        train_model('simulated', **asked)
    with pytest.raises(ValueError, match='add inpaint=True'):
        train_model('simulated', scales=(.5, 1), **dict(asked, inpaint=False))


def test_a_finished_run_says_so(filler, run, capsys):
    out, record = filler
    same = dict(filling, start=run[0], out=out, scored=0)
    with pytest.warns(UserWarning, match='nothing was left to train'):
        again = train_model('simulated', **dict(same, progress=True))
    assert again['steps'] == record['steps']
    assert 'minutes of this run are done' not in ''.join(capsys.readouterr())
    with pytest.raises(ValueError, match='outside'):
        train_model('simulated', **dict(same, outside=.1))


def test_train_on_chosen_channels(tmp_path):
    settings = dict(tiny, epochs=1, patch=2, channels=('darkfield',), scored=0)
    record = train_model('simulated-jurkat', out=tmp_path/'j', **settings)
    net = load(tmp_path/'j', kind=Denoiser)
    assert record['channel_names'] == ['darkfield']
    assert record['channels'] == net.channels == 1
    assert record['patch'] == net.unet.patch == 2
    assert record['source'] == 'simulated-jurkat'
    assert '1 channel (darkfield)' in card_of(tmp_path/'j')


# Shipped weights and their records, which are of version 0.1

files = weights_folder.glob('*/model.safetensors')
shipped_names = sorted(f.parent.name for f in files)


def test_weights_of_blood_are_shipped():
    needed = {'blood32', 'blood64', 'blood-classifier-32', 'blood-classifier-64'}
    assert needed <= set(shipped_names)
    for name, judge in (('blood32', 'blood-classifier-32-judge'),
                        ('blood64-classes', 'blood-classifier-64-judge')):
        trained = read_record(shipped(name))
        judged_by = read_record(shipped(judge))
        assert trained['cells']['judge'] == judged_by['cells']['train']
        assert trained['set_aside'] == judged_by['set_aside']
        assert trained['fingerprint'] != judged_by['fingerprint']


@pytest.mark.parametrize('name', shipped_names)
def test_shipped_weights_have_config_record_and_card(name):
    folder = shipped(name)
    record = read_record(folder)
    assert (folder/'config.json').exists() and record['fingerprint']
    assert (folder/'model.safetensors').stat().st_size < 8.4e6
    licence = 'not confirmed' if record['source'] == 'jurkat' else 'CC BY 4.0'
    assert licence in card_of(folder)


@pytest.mark.parametrize('name', shipped_names)
def test_shipped_cards_are_made_from_their_records(name):
    record = json.loads((shipped(name)/'record.json').read_text(encoding='utf-8'))
    make = classifier_card if record['kind'] == 'classifier' else model_card
    card = make(record, name)
    assert f'# {name}' in card and '$' not in card and 'None' not in card
    assert card == card_of(shipped(name))
    if 'score' in record: assert '| real against real |' in card


def test_a_record_of_0_1_has_the_names_of_today(tmp_path):
    score = dict(floor=dict(kd=dict(mean=1.)), recognised=[dict(share=.5)])
    old = dict(objective='edm', loss_by_level=[dict(t=1., loss=2.)], score=score)
    write_json(tmp_path/'record.json', old)
    new = read_record(tmp_path)
    assert new['config'] == 'edm' and new['loss_by_timestep'] == old['loss_by_level']
    assert new['score'] == dict(reference=dict(kid=dict(mean=1.)),
                                class_accuracy=[dict(share=.5)])


scored = [n for n in shipped_names if 'classifier' not in n]


def test_the_table_of_results_names_each_generator():
    "Generated cells in one row, real ones below, without brackets"
    lines = result_lines().splitlines()
    generated, real = lines[2::2], lines[3::2]
    assert [line.split('`')[1] for line in generated] == scored
    assert all('| generated |' in line for line in generated)
    assert all(line.startswith('|  | real |') for line in real)
    assert {line.count('|') for line in lines} == {8}
    assert not any(sign in line for line in lines for sign in '();')


def test_the_table_of_trainings_names_each_generator():
    lines = training_lines().splitlines()
    assert [line.split('`')[1] for line in lines[2:]] == scored
    assert {line.count('|') for line in lines} == {6}


# Reference classifiers

def weights(model):
    return torch.cat([p.detach().cpu().flatten() for p in model.parameters()])


def test_a_classifier_is_trained_once_for_a_split(tmp_path, monkeypatch):
    monkeypatch.setenv('CELL_DIFFUSION_CACHE', str(tmp_path))
    dls = cell_dls('simulated', size=28, n=160, bs=32)
    first, second = [reference_classifier(dls, 1, keep=True) for _ in range(2)]
    assert torch.equal(weights(first), weights(second))
    kept = tmp_path/'classifiers'
    assert [f.name for f in kept.iterdir()] == [classifier_folder(dls, epochs=1).name]

    other = cell_dls('simulated', size=28, n=150, bs=32)
    third = reference_classifier(other, 1, keep=True)
    assert not torch.equal(weights(first), weights(third))
    assert len(list(kept.iterdir())) == 2


def test_a_shipped_classifier_is_not_trained_again(tmp_path, monkeypatch):
    monkeypatch.setenv('CELL_DIFFUSION_CACHE', str(tmp_path/'cache'))
    monkeypatch.setattr(classifiers, 'weights_folder', tmp_path/'weights')
    dls = cell_dls('simulated', size=28, n=160, bs=32)
    folder = tmp_path/'weights'/'my-classifier-28'
    kept = train_and_save_classifier(dls, folder, epochs=1)
    found = reference_classifier(dls)
    assert torch.allclose(weights(found), weights(kept).half().float())
    assert not (tmp_path/'cache'/'classifiers').exists()


@pytest.fixture(scope='module')
def own(tmp_path_factory):
    "The folder of a reference classifier"
    out = tmp_path_factory.mktemp('runs')/'my-classifier'
    train_reference_classifier(
        'simulated-jurkat', 28, ('brightfield', 'darkfield'), epochs=1, balanced=True,
        out=out, dim=8, bs=32, n=400, seed=3, progress=False)
    return out


def test_record_of_a_classifier(own):
    record = read_record(own)
    net = load(own, kind=CellClassifier)
    channels = 'brightfield', 'darkfield'
    dls = cell_dls('simulated-jurkat', size=28, n=400, channels=channels)
    assert record['kind'] == 'classifier' and record['channel_names'] == [*channels]
    assert record['fingerprint'] == fingerprint(dls)
    wanted = dict(channels=2, size=28, seed=3, balanced=True, epochs=1)
    assert {k: record[k] for k in wanted} == wanted
    assert net.channels == 2 and list(net.classes) == list(jurkat_phases)
    assert sum(record['cells'].values()) == 400


def test_accuracy_in_the_record_is_that_of_the_test_cells(own):
    record = read_record(own)
    channels = 'brightfield', 'darkfield'
    dls = cell_dls('simulated-jurkat', size=28, n=400, channels=channels)
    x, y = held_out(dls)
    _, predicted = features_and_predictions(load(own, kind=CellClassifier), x)
    table = class_accuracy(predicted, y, dls.vocab)
    *rows, everything = record['accuracy']
    assert [row['n'] for row in record['accuracy']] == table.n.tolist()
    assert everything['share'] == pytest.approx(table['share'].iloc[-1], abs=.03)
    assert everything['n'] == record['cells']['test']

    balanced = record['balanced_accuracy']
    mean = np.mean([row['share'] for row in rows])
    assert balanced['value'] == pytest.approx(mean)
    assert balanced['low'] <= balanced['value'] <= balanced['high']


def test_a_finished_classifier_is_returned(own):
    again = functools.partial(
        train_reference_classifier, 'simulated-jurkat', 28,
        ('brightfield', 'darkfield'), balanced=True, out=own, dim=8, bs=32, n=400,
        seed=3, progress=False)
    before = {f.name: f.read_bytes() for f in own.iterdir()}
    with pytest.warns(UserWarning, match='nothing was left to train'):
        again(epochs=1)
    assert {f.name: f.read_bytes() for f in own.iterdir()} == before
    for other, says in ((dict(epochs=2), 'steps was 8 there and is 16 here'),
                        (dict(epochs=1, dim=16), 'dim was 8 there'),
                        (dict(epochs=1, n=390), 'its cells were others')):
        with pytest.raises(ValueError, match=says):
            again(**other)


@pytest.mark.parametrize('kind', ['classifier', 'generator'])
def test_finished_weights_without_a_checkpoint_are_not_replaced(run, own, kind,
                                                                tmp_path):
    source = own if kind == 'classifier' else run[0]
    train = train_reference_classifier if kind == 'classifier' else train_model
    out = shutil.copytree(source, tmp_path/'out')
    (out/'checkpoint.pt').unlink()
    before = {f: f.read_bytes() for f in out.rglob('*') if f.is_file()}
    with pytest.raises(FileExistsError, match='holds trained weights, but no check'):
        train('simulated', 28, epochs=1, out=out, n=160, progress=False)
    assert {f: f.read_bytes() for f in out.rglob('*') if f.is_file()} == before


def test_card_of_a_classifier(own):
    card = card_of(own)
    for said in ('# my-classifier', '2 channels (brightfield, darkfield)',
                 '| Prophase | ', 'the mean over classes', 'drawn equally often',
                 'largest class', 'seed 3', 'simulated cells', 'clinical'):
        assert said in card
    record = dict(read_record(own), source='jurkat')
    for said in ('human T lymphocytes', 'not confirmed', 'BBBC048',
                 'none of them comes with the package'):
        assert said in classifier_card(record, 'x')
    assert 'Acevedo' not in classifier_card(dict(record, source='folder'), 'x')


# The race

one_score = dict(
    class_accuracy=[dict(share=.5)],
    generated=dict(fd=dict(mean=1.), kid=dict(mean=.1)),
    reference=dict(fd=dict(mean=.2)),
)


def fake_record(config, seed):
    return dict(config=config, seed=seed, seconds=1, cells_seen=2, score=one_score)


@pytest.fixture
def made(monkeypatch):
    "The runs that a race makes; none of them trains"
    runs = []

    def train(data, size, classes, minutes, epochs, out, config, seed, **kwargs):
        runs.append((config, seed))
        how = {name: kwargs[name] for name in ('optimizer', 'bs')}
        record = dict(fake_record(config, seed), **how)
        write_json(out/'record.json', record)
        return record
    monkeypatch.setattr(races, 'train_model', train)
    return runs


def test_race_makes_the_runs_that_have_no_record(tmp_path, made):
    names = 'ddpm', 'edm'
    first = race('simulated', tmp_path, seeds=1, names=names, progress=False)
    assert made == [('ddpm', 0), ('edm', 0)] and len(first) == 2
    table = race('simulated', tmp_path, seeds=2, names=names, progress=False)
    assert made[2:] == [('ddpm', 1), ('edm', 1)]
    assert list(zip(table.config, table.seed)) == made and (table.fd == 1).all()
    assert len(Records(tmp_path)) == 4


def test_race_refuses_results_of_other_settings(tmp_path, made):
    race('simulated', tmp_path, seeds=1, names=('edm',), progress=False)
    with pytest.raises(ValueError, match='dim'):
        race('simulated', tmp_path, seeds=1, names=('edm',), dim=32, progress=False)


def test_a_race_tries_a_few_cells_before_anything_is_written(tmp_path, made):
    data = deep_cells(tmp_path/'d')
    race(data, tmp_path/'race', seeds=1, names=('edm',), progress=False)
    for file in data.rglob('*.*'):
        file.write_text('no picture')
    for wrong in ('nothing', str(tmp_path/'nothing'), data):
        with pytest.raises((ValueError, FileNotFoundError)):
            race(wrong, tmp_path/'other', seeds=1, names=('edm',), progress=False)
    assert not (tmp_path/'other').exists()


def test_a_race_holds_its_folder(tmp_path, made):
    call = dict(seeds=1, names=('edm',), progress=False)
    with ThreadPoolExecutor() as threads, locked(tmp_path/'race', 'racing'):
        other = threads.submit(race, 'simulated', tmp_path/'race', **call)
        with pytest.raises(BlockingIOError, match='Another run is racing'):
            other.result()
    assert len(race('simulated', tmp_path/'race', **call)) == 1


def test_table_of_a_race(tmp_path, made):
    table = race('simulated', tmp_path, seeds=2, names=('v', 'edm'), progress=False)
    again = race_table(tmp_path).sort_values(['seed', 'config'])
    expected = table.sort_values(['seed', 'config'])[again.columns]
    pd.testing.assert_frame_equal(again.reset_index(drop=True),
                                  expected.reset_index(drop=True))


def test_table_of_an_old_race(tmp_path):
    old = dict(
        recognised=[dict(share=.5)],
        generated=dict(fd=dict(mean=1.), kd=dict(mean=.1)),
        floor=dict(fd=dict(mean=.2)),
    )
    record = dict(objective='edm', seed=0, seconds=1, cells_seen=2, score=old)
    write_json(tmp_path/'edm-0'/'record.json', record)
    assert race_table(tmp_path).to_dict('records') == [race_row(fake_record('edm', 0))]


# The benchmark

def test_bench_in_miniature():
    table = bench(size=16, bs=2, rounds=1, calls=1)
    summary = bench_summary(table)
    ours = table.parameters[table.network == 'cell_diffusion'].iloc[0]
    assert ((table.parameters/ours - 1).abs() < .05).all()
    assert (table['train img/s'] > 0).all() and summary['share'] > 0
    best = table.groupby('network')['train img/s'].max()
    assert {*summary['ratios']} == {'diffusers', 'lucidrains'}
    for name, ratio in summary['ratios'].items():
        assert ratio['train'] == best['cell_diffusion']/best[name]


def test_bench_line_tells_the_record(tmp_path):
    ratios = dict(diffusers=dict(train=1.5, sample=.8),
                  lucidrains=dict(train=2, sample=3))
    found = dict(ratios=ratios, share=.25, size=64, bs=16, rounds=3,
                 machine=dict(name='A', device='cpu', threads=1))
    write_json(tmp_path/'b.json', found)
    line = bench_line(tmp_path/'b.json')
    wanted = ('1.50 and 2.00 times', '0.80 and 3.00 times', '25%', '64 × 64',
              '1 thread)')
    for said in wanted:
        assert said in line


@pytest.mark.parametrize('name, said', [
    ('bench', 'with bfloat16'), ('bench-float32', 'without bfloat16')])
def test_a_shipped_benchmark_can_be_told(name, said):
    line = bench_line(results_folder/f'{name}.json')
    assert 'times as fast in training' in line and said in line


# Guidance is chosen by a rule, on validation cells, and stored

def test_the_best_guidance_keeps_the_recall():
    table = pd.DataFrame(dict(guidance_scale=[1., 1.5, 1.5, 2.], fd=[4., 2., 1.5, 1.],
                              told=[True, True, False, False],
                              recall=[.80, .79, .77, .60]))
    assert best_guidance(table) == (1.5, False)
    assert best_guidance(table.assign(fd=[4., 2., 3., 1.])) == (1.5, True)
    assert best_guidance(table.assign(fd=[1., 2., 3., 4.])) == (1., True)
    assert best_guidance(table.assign(recall=[.8, .7, .7, .9])) == (2., False)


def test_no_guide_is_kept_where_none_was_best(tmp_path, monkeypatch):
    out = tmp_path/'run'
    with pytest.warns(UserWarning):
        train_model('simulated', out=out, size=28, n=240, dim=8, mults=(1, 2), bs=16,
                    classes=True, epochs=1, scored=0, early_at=.5, set_aside=.25,
                    progress=False)
    monkeypatch.setattr('cell_diffusion.recipes.best_guidance', lambda _: (1., True))
    choose_guidance(out, 'simulated', guide=out/'early', scales=(1., 2.), scored=32,
                    steps=2, progress=False)
    assert load(out).guide is None and not (out/'guide').exists()
    card = ' '.join((out/'README.md').read_text().split())
    assert 'Guidance: none. Of the scales that were tried, away from early' in card


def test_guidance_is_found_stored_and_written_into_the_card(tmp_path):
    run = dict(size=28, n=240, dim=8, mults=(1, 2), bs=16, classes=True, epochs=2,
               scored=16, steps=2, early_at=.5, set_aside=.25, progress=False)
    out = tmp_path/'run'
    search = dict(data='simulated', guide=out/'early', scales=(1., 2.), scored=32,
                  steps=2, progress=False)
    with pytest.warns(UserWarning):
        train_model('simulated', out=out, **run)
        table = choose_guidance(out, **search)
    assert table.guidance_scale.tolist() == [1., 2., 2.]
    assert table.told.tolist() == [True, True, False]
    assert table.fd.nunique() == 3
    assert {'fd', 'recall', 'real_recall', 'class_accuracy'} <= {*table}

    record = json.loads((out/'record.json').read_text())
    network = load(out)
    found = record['guidance']
    assert (network.guidance_scale, found['told']) == best_guidance(table)
    assert found['best'] == network.guidance_scale
    assert bool(network.guide.classes) == found['told']
    assert network.guide is not None and 'score' not in record
    card = ' '.join((out/'README.md').read_text().split())
    size = f"{n_params(load(out/'early'))/1e6:.2f} M parameters"
    untold = '' if found['told'] else ', which is not told the class'
    wanted = (f"Guidance: scale {network.guidance_scale:g}, away from early ({size})"
              f"{untold}. ")
    assert wanted in card
    assert 'for the judge of the score' in card

    # Called again it finds its records
    again = choose_guidance(out, **search)
    assert again.equals(table)

    # A finished training that is called again leaves the guidance as it is
    with pytest.warns(UserWarning, match='nothing was left to train'):
        again = train_model('simulated', out=out, **dict(run, scored=0))
    assert load(out).guide is not None and again['guidance'] == record['guidance']

    # More training has other weights, which are to be searched again
    with pytest.warns(UserWarning, match='guidance was taken out'):
        train_model('simulated', out=out, **dict(run, epochs=3, scored=0))
    assert load(out).guide is None


def test_a_run_guides_its_generator(tmp_path):
    run = dict(size=28, n=1400, dim=8, mults=(1, 2), bs=64, epochs=1, scored=16,
               steps=2, guided=16, progress=False)
    out = tmp_path/'run'
    with pytest.warns(UserWarning):
        record = train_model('simulated', out=out, **run)
    network = load(out)
    assert network.guide is not None and not network.classes
    assert weights_hash(network.guide) == weights_hash(load(out/'early'))
    scales = [row['guidance_scale'] for row in record['guidance']['rows']]
    assert scales == [1., 1.25, 1.5]
    assert network.guidance_scale == record['guidance']['best']
    assert record == json.loads((out/'record.json').read_text())
    assert record['score']['n'] == 16

    # More training finds other guidance, beside the records of the first
    with pytest.warns(UserWarning, match='guidance was taken out'):
        again = train_model('simulated', out=out, **dict(run, epochs=2))
    assert again['weights'] != record['weights'] and again['guidance']
    assert len([*(out/'guidance').iterdir()]) == 2


@pytest.mark.parametrize('left_out', [
    dict(guided=0), dict(n=240), dict(early_at=0.), dict(inpaint=True)])
def test_a_run_without_guidance(left_out, tmp_path):
    run = dict(size=28, n=1400, dim=8, mults=(1, 2), bs=64, epochs=1, scored=0,
               steps=2, guided=16, progress=False) | left_out
    with pytest.warns(UserWarning):
        assert 'guidance' not in train_model('simulated', out=tmp_path/'run', **run)


def test_a_run_without_its_early_mean_still_ends(tmp_path, monkeypatch):
    "It is guided away from no class, or not at all"
    asked = []
    monkeypatch.setattr(recipes, 'search_guidance', lambda *args: asked.append(args[1]))
    monkeypatch.setattr(recipes, 'read_record', lambda folder: {})
    dls = SimpleNamespace(idxs=dict(valid=range(100)))
    run = SimpleNamespace(out=tmp_path, inpaint=False, early_at=.1, guided=16, steps=2,
                          progress=False)
    for classes in (('a', 'b'), ()):
        model = Denoiser(dict(dim=8, mults=[1, 2]), size=16, classes=classes)
        recipes.add_guidance(model, dls, {}, run)
    assert asked == [None]


def test_guidance_is_not_stored_with_what_comes_with_the_package(tmp_path):
    with pytest.raises(ValueError, match='copy those weights'):
        choose_guidance('blood32', 'simulated')
    shutil.copytree(shipped('blood64'), tmp_path/'plain')
    with pytest.raises(ValueError, match='knows no classes to guide towards'):
        choose_guidance(tmp_path/'plain', 'simulated', progress=False)


def test_what_is_set_aside_by_default(tmp_path):
    many, few = (cell_dls('simulated', size=28, n=n) for n in (1400, 200))
    assert usual_share(many, None) == .25 and usual_share(few, None) == 0
    # A network goes on with the share that it was trained without
    assert usual_share(many, 'blood64-classes') == .25
    write_json(tmp_path/'record.json', dict())
    assert usual_share(many, tmp_path) == 0
    write_json(tmp_path/'record.json', dict(set_aside=.1))
    assert usual_share(few, tmp_path) == .1


def test_the_judge_of_a_start_is_kept(tmp_path, monkeypatch):
    def begun(*args): raise InterruptedError
    monkeypatch.setattr(recipes, 'fit_run', begun)
    start = tmp_path/'start'
    save(load('blood64', 'cpu'), start)
    write_json(start/'record.json', dict())
    with pytest.raises(ValueError, match='knows cells of the judge'):
        train_model('simulated', size=64, start=start, set_aside=.25,
                    out=tmp_path/'out', progress=False)
