"""The challenge: who may enter, what is altered, and what is written.

The networks are small, and the cells are drawn; the rules are made for them.
"""
import json
import shutil
from dataclasses import replace

import pandas as pd
import pytest
import torch

import cell_diffusion.challenge as challenge
from cell_diffusion.challenge import (
    Rules, altered, broken_rules, check_name, columns, enter_challenge, frozen_judge,
    keep_entry, side_fingerprint, steps_for, tracks,
)
from cell_diffusion.classifier import CellClassifier
from cell_diffusion.data import cell_dls
from cell_diffusion.denoiser import Denoiser, load, save, weights_folder, weights_hash
from cell_diffusion.recipes import train_model
from cell_diffusion.records import results_folder

ten, four = tracks.values()
blood32 = weights_folder/'blood32'
quick = dict(size=28, n=320, bs=16, dim=8, mults=(1, 2), classes=True, scored=0,
             guided=0, set_aside=.25, progress=False, epochs=1)


def record_of(folder):
    return json.loads((folder/'record.json').read_text(encoding='utf-8'))


# The rules, on the record of the course's own entry

def changed(**values):
    record = record_of(blood32)
    for name, value in values.items():
        if name in record['machine']:
            record['machine'][name] = value
        else:
            record[name] = value
    return record


def test_the_courses_own_entry_keeps_the_rules():
    record = record_of(blood32)
    assert not broken_rules(record, ten) and not broken_rules(record, four)
    network = load('blood32', 'cpu', 'float32')
    assert not altered(network, record)


@pytest.mark.parametrize('values, says', [
    (dict(seconds=660.), '--minutes 10'),
    (dict(seconds=590., seconds_walking=60., calls=4, start='blood32'), '10.8 minutes'),
    (dict(device='cuda'), 'CELL_DIFFUSION_DEVICE=cpu'),
    (dict(threads=4), 'OMP_NUM_THREADS=2'),
    (dict(processes=2), 'OMP_NUM_THREADS=2'),
    (dict(start='blood64'), 'without --start'),
    (dict(set_aside=0), '--set-aside 0.25'),
    (dict(set_aside=None), '--set-aside 0.25'),
    (dict(fingerprint='0'*16), 'other cells'),
    (dict(size=64), '--size 32'),
    (dict(conditional=False), '--classes'),
])
def test_a_record_against_the_rules(values, says):
    found = broken_rules(changed(**values), four)
    assert len(found) == 1 and says in found[0], found


def test_a_student_enters_one_track():
    student = changed(calls=4, start='blood32', teacher='x')
    assert not broken_rules(student, four)
    assert 'four-calls' in broken_rules(student, ten)[0]


def test_a_record_that_lacks_something():
    record = record_of(blood32)
    del record['seconds'], record['set_aside']
    found = broken_rules(record, ten)
    assert len(found) == 1 and 'lacks set_aside, seconds' in found[0]


@pytest.mark.parametrize('name', ['weights', 'parameters', 'cells_seen', 'steps'])
def test_an_altered_record_is_known(name):
    record = record_of(blood32)
    record[name] = 'x' if name == 'weights' else record[name] + 1
    assert altered(load('blood32', 'cpu', 'float32'), record)


def test_a_checkpoint_knows_the_time():
    record = record_of(blood32)
    network = load('blood32', 'cpu', 'float32')
    there = dict(seconds=record['seconds'], steps=record['steps'])
    assert not altered(network, record, there)
    assert altered(network, record, dict(there, seconds=1200.)) == ['seconds']


def test_calls_of_guidance_count():
    network = load('blood32', 'cpu', 'float32')
    assert (steps_for(network, ten), steps_for(network, four)) == (20, 2)
    network.guidance_scale = 1.
    assert (steps_for(network, ten), steps_for(network, four)) == (40, 4)
    network.jumps = tuple(range(8))
    with pytest.raises(ValueError, match='makes 8 calls for a cell, and 4'):
        steps_for(network, four)


def test_the_judge_is_frozen(tmp_path):
    rules = Rules()
    judge = frozen_judge(rules)
    its_record = record_of(weights_folder/rules.judge)
    assert its_record['fingerprint'] == rules.aside
    with torch.no_grad():
        judge.head.bias += .01
    save(judge, tmp_path/'judge')
    with pytest.raises(ValueError, match='has other weights'):
        frozen_judge(replace(rules, judge=tmp_path/'judge'))


@pytest.mark.parametrize('name', ['', ' a', 'a/b', '..', 'a\nb', 51*'a', '=1+1'])
def test_names_that_no_file_has(name):
    with pytest.raises(ValueError, match='name='):
        check_name(name)


# A challenge in miniature

@pytest.fixture(scope='module')
def made(tmp_path_factory):
    "A run that may enter, and the rules of a challenge for it"
    folder = tmp_path_factory.mktemp('challenge')
    with pytest.MonkeyPatch.context() as m:
        m.setenv('CELL_DIFFUSION_DEVICE', 'cpu')
        train_model('simulated', out=folder/'run', **quick)
    dls = cell_dls('simulated', size=28, n=320, set_aside=.25)
    torch.manual_seed(0)
    judge = CellClassifier(dls.vocab, 3, 28, dim=8)
    save(judge, folder/'judge')
    marks = {side: side_fingerprint(dls, side) for side in ('train', 'judge', 'test')}
    rules = Rules(
        judge=folder/'judge', judge_weights=weights_hash(judge), train=marks['train'],
        aside=marks['judge'], test=marks['test'], size=28, scored=16, threads=64)
    return folder/'run', rules


def enter(made, tmp_path, **options):
    run, rules = made
    options = dict(data='simulated', rules=rules, progress=False,
                   out=tmp_path/'board.csv') | options
    return enter_challenge(options.pop('model', run), **options)


def test_an_entry_gets_a_line_and_a_card(made, tmp_path):
    line = enter(made, tmp_path)
    assert list(line) == columns and line['time_from'] == 'checkpoint'
    enter(made, tmp_path, name='again')
    enter(made, tmp_path)
    board = pd.read_csv(tmp_path/'board.csv')
    assert sorted(board.name) == ['again', 'run'], 'a line for each name'
    assert board.fd.is_monotonic_increasing
    assert board.set_index('name').fd.nunique() == 1, 'the same seed, the same score'
    card = (tmp_path/'cards'/'run-ten-minutes.md').read_text(encoding='utf-8')
    machine = record_of(made[0])['machine']
    for said in (machine['name'], 'bfloat16', f"{line['fd']:.2f} (", line['judge']):
        assert str(said) in card


def test_other_cells_are_refused_before_any_is_generated(made, tmp_path, monkeypatch):
    monkeypatch.setattr(challenge, 'score_model', lambda *args: 1/0)
    run, rules = made
    for side in 'train', 'aside', 'test':
        other = replace(rules, **{side: '0'*16})
        with pytest.raises(ValueError, match='other cells'):
            enter((run, other), tmp_path)
    assert not list(tmp_path.iterdir())


def altered_copy(made, tmp_path, **values):
    copy = tmp_path/'copy'
    shutil.copytree(made[0], copy)
    record = record_of(copy)
    (copy/'record.json').write_text(json.dumps(record | values))
    return copy


@pytest.mark.parametrize('values', [
    dict(seconds=.001), dict(weights='0'*16), dict(parameters=1)])
def test_an_altered_record_is_refused(made, tmp_path, values):
    copy = altered_copy(made, tmp_path, **values)
    name, = values
    with pytest.raises(ValueError, match=f'not the record of this network: {name}'):
        enter(made, tmp_path, model=copy)


def test_too_long_a_run_is_refused(made, tmp_path):
    run, rules = made
    with pytest.raises(ValueError, match='run cannot enter. It was trained for'):
        enter((run, replace(rules, minutes=1e-9)), tmp_path)


def test_another_file_stays(made, tmp_path):
    out = tmp_path/'board.csv'
    out.write_text('a,b\n1,2\n')
    with pytest.raises(FileExistsError, match='holds something else'):
        enter(made, tmp_path)
    assert out.read_text() == 'a,b\n1,2\n'


def student(made, tmp_path):
    "A student of the run, as `distill_model` would leave it"
    teacher = load(made[0], 'cpu', 'float32', Denoiser)
    record = record_of(made[0])
    folder = tmp_path/'student'
    settings = dict(teacher.settings, jumps=[999, 500], guidance_scale=1.)
    network = Denoiser(**settings)
    network.load_state_dict(teacher.state_dict())
    save(network, folder)
    more = dict(
        calls=2, teacher=weights_hash(teacher), weights=weights_hash(network),
        seconds_walking=60., seconds=60., start='run')
    (folder/'record.json').write_text(json.dumps(record | more))
    return folder


def test_a_student_brings_its_teacher(made, tmp_path):
    folder = student(made, tmp_path)
    with pytest.raises(ValueError, match='The teacher run is not here'):
        enter(made, tmp_path, model=folder, track='four-calls')
    whole = (folder/'record.json').read_text()
    other = json.loads(whole) | dict(teacher='0'*16)
    (folder/'record.json').write_text(json.dumps(other))
    with pytest.raises(ValueError, match='from which this one was distilled'):
        enter(made, tmp_path, model=folder, track='four-calls', teacher=made[0])
    (folder/'record.json').write_text(whole)
    line = enter(made, tmp_path, model=folder, track='four-calls', teacher=made[0])
    assert line['minutes'] == round(2 + record_of(made[0])['seconds']/60, 6)
    assert line['calls'] == 4 and line['time_from'] == 'record'


# The leaderboard of the course

def board():
    return pd.read_csv(results_folder/'leaderboard.csv')


def test_every_line_keeps_the_rules():
    rules = Rules()
    table = board()
    assert list(table) == columns and not table.duplicated(['track', 'name']).any()
    assert set(table.track) <= set(tracks)
    assert (table.judge == rules.judge_weights).all()
    for row in table.itertuples():
        track = tracks[row.track]
        most = rules.minutes*(1 + track.students)*challenge.allowance
        assert row.minutes <= most and row.calls == track.calls
        check_name(row.name)


def test_the_courses_own_line_is_that_of_its_weights():
    own = board().query('name == "blood32" and track == "ten-minutes"')
    record = record_of(blood32)
    assert list(own.weights) == [record['weights']]
    assert own.parameters.item() == record['parameters']
    assert own.minutes.item() == pytest.approx(record['seconds']/60, abs=1e-4)
    assert own.processor.item() == record['machine']['name']
    scored = record['score']
    same = {key: scored[key] for key in ('n', 'steps', 'seed')}
    assert same == dict(n=1000, steps=20, seed=0)
    there = scored['generated']['fd']
    assert there['low'] < own.fd.item() < there['high'], 'as train scored it'


def test_lines_of_one_name_are_replaced(tmp_path):
    first = board().iloc[0].to_dict() | dict(name='a', track='ten-minutes')
    keep_entry(first, tmp_path/'b.csv')
    keep_entry(dict(first, name='b', fd=1.), tmp_path/'b.csv')
    keep_entry(dict(first, fd=.5), tmp_path/'b.csv')
    table = pd.read_csv(tmp_path/'b.csv')
    assert list(table.name) == ['a', 'b'] and list(table.fd) == [.5, 1.]


def test_a_damaged_leaderboard_is_not_written_back_shorter(tmp_path):
    rows = [f'{i},{i}' for i in range(40_000)]
    rows[1] = '"' + rows[1]
    board = tmp_path/'board.csv'
    board.write_text('\n'.join(['track,name', *rows]))
    before = board.read_bytes()
    with pytest.raises(ValueError, match='board.csv is damaged after row 1'):
        keep_entry(dict(track='x', name='y'), board)
    assert board.read_bytes() == before
