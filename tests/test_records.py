"The store of results: kills, damage, several processes, refused settings, exact values"
import json
import multiprocessing
import os
import signal
import sys
import time
import numpy as np
import pandas as pd
import pytest
import torch
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from filelock import FileLock
import cell_diffusion.records as stored
from cell_diffusion.records import (
    Records, check_out, file_name, jobs_of, locked, machine, part_name, read_table,
    write_json, write_whole)

grid = dict(arm=['plain', 'balanced'], seed=range(3))
needs_fork = pytest.mark.skipif(sys.platform == 'win32', reason='Windows has no fork')


def score(arm, seed):
    rng = np.random.default_rng([len(arm), seed])
    return dict(score=rng.random(), n=rng.integers(9))


def start(f, *args):
    "A process that runs `f(*args)`"
    process = multiprocessing.get_context('fork').Process(target=f, args=args)
    process.start()
    return process


def kill(process):
    os.kill(process.pid, signal.SIGKILL)
    process.join()


def wait_for(path):
    end = time.time() + 20
    while not path.exists():
        assert time.time() < end, f'{path} did not appear'
        time.sleep(.002)


def contents(folder):
    return {f.name: f.read_bytes() for f in folder.iterdir()}


# jobs and names

def test_grids():
    jobs = [dict(arm=a, seed=s) for a in ('plain', 'balanced') for s in range(3)]
    assert jobs_of(grid) == jobs_of(jobs) == jobs
    assert jobs_of(dict(arm='plain', seed=[1, 2], size=32)) == [
        dict(arm='plain', seed=s, size=32) for s in (1, 2)]


def test_a_plain_job_has_a_plain_name():
    assert file_name(dict(arm='plain', seed=0)) == 'arm=plain,seed=0.json'
    assert file_name(dict(seed=np.int64(0), arm='plain')) == 'arm=plain,seed=0.json'
    assert file_name(dict(w=.25, kept=None, on=True)) == 'kept=null,on=true,w=0.25.json'


unusual = [
    'a/b', 'a_b', 'a b', 'ε 0.1', 'ε 0.2', '..', '', 'GAN', 'gan', 'x'*300, 'x'*301,
    'a\\b', 'a\nb', 'con', '*?', '1', 1, '1.5', 1.5, 'true', True, 'null', None, 'NaN',
    float('nan'), float('inf'), 'a,b=c', [1, 2], '[1, 2]', {'k': 'v'}, 1e300, -1e-300,
]


def test_names_are_unique_and_allowed_everywhere():
    names = [file_name(dict(arm=v)) for v in unusual]
    names += [file_name(j) for j in (dict(arm='a', b='c'), {'arm/b': 1}, {'Arm': 1})]
    assert len({n.lower() for n in names}) == len(names)
    for name in names:
        assert name.isascii() and len(name) < 130
        assert not set(name) & set('/\\:*?"<>| \n')


def test_unusual_jobs_are_kept(tmp_path):
    records = Records(tmp_path, {})
    jobs = [dict(arm=v) for v in unusual]
    for i, job in enumerate(records.todo(jobs)):
        records.write(job, dict(i=i))
    assert [records.read(job)['i'] for job in jobs] == list(range(len(jobs)))
    assert records.table(jobs).i.tolist() == sorted(records.table().i)
    assert not list(records.todo(jobs))


def test_equal_numbers_name_one_job(tmp_path):
    records = Records(tmp_path, {})
    records.write(dict(w=1, seed=0), {})
    assert dict(seed=np.float32(0), w=1.) in records
    assert dict(seed=0, w=True) not in records


@pytest.mark.parametrize('seeds', [(i for i in range(3)), np.arange(3), {0, 1, 2}])
def test_values_of_a_grid_may_come_in_any_form(tmp_path, seeds):
    table = Records(tmp_path, {}).run(lambda seed: dict(a=seed), dict(seed=seeds))
    assert table.a.tolist() == [0, 1, 2]


def test_one_value_in_a_grid():
    for value in 'plain', 3, None, {'bs': 8}, np.float32(.5), torch.tensor(2):
        assert jobs_of(dict(arm=value, seed=[0])) == [dict(arm=value, seed=0)]


def test_an_empty_job_is_refused(tmp_path):
    with pytest.raises(ValueError, match='at least one name'):
        Records(tmp_path, {}).write({}, {})


# settings

def test_settings_are_compared_as_json(tmp_path):
    nan = float('nan')
    Records(tmp_path, dict(bs=(32, 16), n=np.int64(3), data=Path('cells'), lr=nan))
    again = Records(tmp_path, dict(data='cells', n=3., bs=[32, 16], lr=nan))
    assert again.settings['bs'] == [32, 16]
    assert list(again.settings) == ['bs', 'n', 'data', 'lr']


def test_refused_settings_leave_the_folder_untouched(tmp_path):
    Records(tmp_path, dict(steps=20, n=5)).run(score, grid)
    before = contents(tmp_path)
    message = (
        r'other settings \(steps: 20 there, 10 here, n: 5 there, nothing here, size: '
        r'nothing there, "big" here\): give this study a folder of its own, or delete')
    with pytest.raises(ValueError, match=message) as e:
        Records(tmp_path, dict(steps=10, size='big'))
    assert str(tmp_path) in str(e.value) and contents(tmp_path) == before


deep = '['*100_000 + ']'*100_000

@pytest.mark.parametrize('damage', ['', '{"steps": 2', '[]', deep])
def test_damaged_settings_are_refused(tmp_path, damage):
    Records(tmp_path, dict(steps=20))
    (tmp_path/'settings.json').write_text(damage)
    for settings in dict(steps=20), None:
        with pytest.raises(ValueError, match='damaged: give'):
            Records(tmp_path, settings)


def test_settings_that_are_a_folder_are_refused(tmp_path):
    (tmp_path/'settings.json').mkdir()
    with pytest.raises(ValueError, match='settings.json is damaged: give'):
        Records(tmp_path, dict(steps=20))


def test_records_without_settings_are_refused(tmp_path):
    Records(tmp_path, {}).run(score, grid)
    (tmp_path/'settings.json').unlink()
    before = contents(tmp_path)
    with pytest.raises(ValueError, match='without settings'):
        Records(tmp_path, {})
    assert contents(tmp_path) == before


def test_a_study_can_be_opened_to_read(tmp_path):
    with pytest.raises(FileNotFoundError, match='no study'):
        Records(tmp_path/'none')
    assert not (tmp_path/'none').exists()
    table = Records(tmp_path, dict(n=1)).run(score, grid)
    pd.testing.assert_frame_equal(Records(tmp_path).table(grid), table)
    assert Records(tmp_path).settings == dict(n=1)


@needs_fork
def test_one_of_two_settings_wins_in_a_new_folder(tmp_path):
    def begin(n):
        def slow(*args):
            time.sleep(.05 + n/10)
            write_json(*args)
        stored.write_json = slow
        try:
            Records(tmp_path/'study', dict(n=n))
        except ValueError:
            os._exit(3)
    both = [start(begin, n) for n in range(2)]
    for process in both:
        process.join()
    assert sorted(process.exitcode for process in both) == [0, 3]
    assert [f.name for f in (tmp_path/'study').iterdir()] == ['settings.json']


# results

def test_values_come_back_exactly(tmp_path):
    result = dict(
        none=None, nan=float('nan'), inf=-float('inf'), big=2**53 + 1, small=5e-324,
        third=1/3, whole=2., yes=True, text='ε\n"', listed=[1, None, .1])
    records = Records(tmp_path, {})
    records.write(dict(seed=0), result)
    back = records.read(dict(seed=0))
    assert repr(back) == repr(result)
    row = records.table().iloc[0]
    assert row.big == 2**53 + 1 and row.third == 1/3 and row.small == 5e-324
    assert pd.isna(row.none) and np.isnan(row.nan) and row.inf == -np.inf
    assert row.text == 'ε\n"'


def test_frames_come_back(tmp_path):
    frame = pd.DataFrame(dict(
        cell=[0, 1, 2], score=[1/3, np.nan, 2.], ok=[True, False, True],
        name=['a', 'b', 'c'], w=[1., 2., 3.]))
    records = Records(tmp_path, {})
    records.write(dict(arm='x'), frame)
    records.write(dict(arm='y'), frame.to_dict('records'))
    table = records.table()
    assert table.columns.tolist() == ['arm', *frame.columns]
    for arm in 'xy':
        part = table[table.arm == arm].drop(columns='arm').reset_index(drop=True)
        pd.testing.assert_frame_equal(part, frame)


def test_arrays_and_tensors(tmp_path):
    records = Records(tmp_path, {})
    records.write(dict(seed=0), dict(
        a=np.arange(3), b=torch.tensor(.5), c=np.float32(.25), d=Path('a/b'), e=pd.NA))
    expected = dict(a=[0, 1, 2], b=.5, c=.25, d=str(Path('a/b')), e=None)
    assert records.read(dict(seed=0)) == expected


others = [3, None, [1, 2], 'text', dict(a={1, 2}), dict(a=object())]

@pytest.mark.parametrize('result', others)
def test_other_results_are_refused(tmp_path, result):
    records = Records(tmp_path, {})
    with pytest.raises(TypeError, match='A result is a dict|JSON cannot hold'):
        records.write(dict(seed=0), result)
    assert dict(seed=0) not in records and len(contents(tmp_path)) == 1


def test_a_result_must_agree_with_its_job(tmp_path):
    records = Records(tmp_path, {})
    records.write(dict(seed=0), dict(seed=0, a=1))
    with pytest.raises(ValueError, match='another seed'):
        records.write(dict(seed=1), dict(seed=2))


def test_reading_what_is_not_there(tmp_path):
    records = Records(tmp_path, {})
    with pytest.raises(FileNotFoundError, match="no whole record of .'seed': 0"):
        records.read(dict(seed=0))
    assert len(records) == 0 and records.jobs() == [] and records.table().empty


def test_order_of_tables(tmp_path):
    records = Records(tmp_path, {})
    jobs = jobs_of(dict(arm=['b', 'a'], n=[.5, .25, 10, 9]))
    for job in jobs[::-1]:
        records.write(job, {})
    assert records.table(jobs).to_dict('records') == jobs
    by_size = jobs_of(dict(arm=['a', 'b'], n=[.25, .5, 9, 10]))
    assert records.jobs() == by_size and len(records) == 8


def test_a_table_warns_of_missing_records(tmp_path):
    records = Records(tmp_path, {})
    records.write(dict(arm='plain', seed=1), dict(a=1))
    with pytest.warns(UserWarning, match='5 of the 6 jobs'):
        assert len(records.table(grid)) == 1


# damage

damaged = [
    b'', b'{"job": {"arm": "pl', b'[]', b'null', b'{"job": 3}', b'\xff\xfe\x00',
    b'{"job": {"arm": "plain", "seed": 2}, "result": {}}',
    b'{"job": {"arm": "plain", "seed": 1}, "result": 4}', deep.encode(),
]

@pytest.mark.parametrize('damage', damaged)
def test_a_damaged_record_is_made_again(tmp_path, damage):
    records = Records(tmp_path, {})
    table = records.run(score, grid)
    file = records.path(dict(arm='plain', seed=1))
    file.write_bytes(damage)
    says = f'{file} is not a whole record: '
    with pytest.warns(UserWarning, match=says + 'left out'):
        assert len(records.table()) == 5
    with pytest.warns(UserWarning, match=says + 'the job is done again'):
        todo = list(records.todo(grid))
    assert todo == [dict(arm='plain', seed=1)]
    with pytest.warns(UserWarning):
        again = records.run(score, grid)
    pd.testing.assert_frame_equal(again, table)


def test_a_copy_of_a_record_does_not_count(tmp_path):
    records = Records(tmp_path, {})
    records.run(score, grid)
    file = records.path(dict(arm='plain', seed=1))
    (tmp_path/'arm=plain,seed=1 (copy).json').write_bytes(file.read_bytes())
    (tmp_path/'cells.json').write_text('{}')
    with pytest.warns(UserWarning, match='copy'):
        assert len(records) == 6


def test_a_failed_write_leaves_the_old_record(tmp_path, monkeypatch):
    records = Records(tmp_path, {})
    job = dict(seed=0)
    records.write(job, dict(a=1))
    before = contents(tmp_path)
    def full(fd): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(OSError, match='No room left to write .*seed=0.json.*free some'):
        records.write(job, dict(a=2))
    assert contents(tmp_path) == before


# one process: stopped and started again

class Stop(Exception):
    pass


@pytest.mark.parametrize('stop', [Stop, KeyboardInterrupt])
def test_a_stopped_study_goes_on(tmp_path, stop):
    done = []
    def f(**job):
        done.append(job)
        if len(done) == 3: raise stop
        return score(**job)
    whole = Records(tmp_path/'whole', {}).run(score, grid)
    with pytest.raises(stop) as kept:
        Records(tmp_path/'stopped', {}).run(f, grid, progress=True)
    for file in tmp_path.glob('stopped/*.lock'):
        with FileLock(file, timeout=0):
            pass              # free for other processes
    table = Records(tmp_path/'stopped', {}).run(f, grid)
    pd.testing.assert_frame_equal(table, whole)
    assert len(done) == 7 and done[2] == done[3] and kept
    assert contents(tmp_path/'stopped') == contents(tmp_path/'whole')


def test_a_loop_that_was_left_does_not_block_its_own_process(tmp_path):
    records = Records(tmp_path, {})
    left = records.todo(grid)
    next(left)
    assert len(list(Records(tmp_path).todo(grid))) == 6
    records.run(score, grid)
    left.close()
    assert not list(tmp_path.glob('*.lock'))


def test_a_finished_study_may_be_read_only(tmp_path):
    table = Records(tmp_path, dict(n=1)).run(score, grid)
    def times(): return [f.stat().st_mtime_ns for f in [tmp_path, *tmp_path.iterdir()]]
    before = times()
    pd.testing.assert_frame_equal(Records(tmp_path, dict(n=1)).run(score, grid), table)
    assert times() == before


def test_jobs_are_given_as_they_are_in_the_grid(tmp_path):
    sizes = [(1, 2), (3, 4)]
    todo = Records(tmp_path, {}).todo(dict(size=sizes))
    assert [job['size'] for job in todo] == sizes


# several processes

@needs_fork
def test_killed_while_writing(tmp_path):
    "Killed before the rename: no half record, and the same table in the end"
    def dying():
        fsync, left = os.fsync, iter(range(4))
        def hang(fd):
            if next(left) == 3:
                (tmp_path/'hangs').touch()
                time.sleep(60)
            fsync(fd)
        records = Records(tmp_path/'killed', {})
        os.fsync = hang
        records.run(score, grid)
    whole = Records(tmp_path/'whole', {}).run(score, grid)
    process = start(dying)
    wait_for(tmp_path/'hangs')
    kill(process)
    records = Records(tmp_path/'killed', {})
    assert len(records) == 3 and len(list(records.folder.glob('*.part'))) == 1
    pd.testing.assert_frame_equal(records.run(score, grid), whole)
    assert contents(tmp_path/'killed') == contents(tmp_path/'whole')


@needs_fork
def test_killed_at_any_moment(tmp_path):
    "A process that only writes is killed again and again: every file is whole"
    def busy():
        while True:
            for i in range(5):
                records.write(dict(i=i), dict(numbers=list(range(5000))))
    records = Records(tmp_path, {})
    for wait in (.02, .05, .08, .11):
        process = start(busy)
        time.sleep(wait)
        kill(process)
        for file in tmp_path.glob('*.json'):
            json.loads(file.read_text())
    process = start(busy)
    wait_for(records.path(dict(i=4)))
    kill(process)
    assert len(records) == 5


def share(folder, log, everyone, n_jobs=40):
    "Do the grid together, and note each job in a file of this process"
    records = Records(folder, dict(n=n_jobs))
    everyone.wait()
    with open(log/str(os.getpid()), 'w') as f:
        for job in records.todo(dict(job=range(n_jobs))):
            time.sleep(.01)
            f.write(f"{job['job']}\n")
            records.write(job, dict(square=job['job']**2))


@needs_fork
@pytest.mark.parametrize('n', [2, 4])
def test_processes_share_a_grid(tmp_path, n):
    log = tmp_path/'log'
    log.mkdir()
    everyone = multiprocessing.get_context('fork').Barrier(n)
    processes = [start(share, tmp_path/'study', log, everyone) for _ in range(n)]
    for process in processes:
        process.join()
    assert all(process.exitcode == 0 for process in processes)
    done = [[int(line) for line in f.read_text().split()] for f in log.iterdir()]
    assert sorted(sum(done, [])) == list(range(40))
    assert len(done) == n and sum(len(jobs) > 0 for jobs in done) > 1
    table = Records(tmp_path/'study').table()
    assert table.square.tolist() == [i**2 for i in range(40)]
    assert len(contents(tmp_path/'study')) == 41


@needs_fork
def test_the_job_of_a_killed_process_is_taken_over(tmp_path):
    def hold():
        for job in Records(tmp_path/'study', {}).todo(grid):
            (tmp_path/'holds').touch()
            time.sleep(60)
    process = start(hold)
    wait_for(tmp_path/'holds')
    records = Records(tmp_path/'study', {})
    assert list(records.todo(grid)) == jobs_of(grid)[1:]
    with pytest.warns(UserWarning, match='1 of the 6'):
        assert len(records.run(score, grid)) == 5
    kill(process)
    assert list(records.todo(grid)) == jobs_of(grid)[:1]
    assert len(records.run(score, grid)) == 6
    assert not list(tmp_path.glob('study/*.lock'))


# one run in a folder

def hold(folder):
    "In a process of its own: hold the folder, with a file half written, and stay"
    with locked(folder, 'training'):
        part_name(folder/'checkpoint.pt').write_text('half')
        # By another name first: who waits for it must not find it empty
        (folder/'new').write_text('whole')
        (folder/'new').rename(folder/'checkpoint.pt')
        time.sleep(60)


@needs_fork
def test_a_second_run_is_refused_at_once(tmp_path):
    folder = tmp_path/'run'
    process = start(hold, folder)
    wait_for(folder/'checkpoint.pt')
    before = contents(folder)
    started = time.time()
    with pytest.raises(BlockingIOError, match=f'Another run is training in {folder}: '
                       'wait until it has ended, or name another folder'):
        with locked(folder, 'training'):
            pytest.fail('two runs in one folder')
    assert time.time() - started < 2 and contents(folder) == before
    kill(process)
    with locked(folder, 'training'):
        left = {'.lock', 'checkpoint.pt'}
        assert set(contents(folder)) == left, 'a killed run blocks, or leaves files'
    assert set(contents(folder)) == {'checkpoint.pt'}


@needs_fork
def test_work_that_is_waited_for(tmp_path, capsys):
    process = start(hold, tmp_path)
    wait_for(tmp_path/'checkpoint.pt')
    with ThreadPoolExecutor(1) as threads:
        killed = threads.submit(lambda: time.sleep(.3) or kill(process))
        with locked(tmp_path, 'fetching', wait=True):
            assert killed.running() or killed.done()
    said = f'Another run is fetching in {tmp_path}: waiting for it.'
    assert said in capsys.readouterr().out


def test_a_run_within_a_run(tmp_path):
    folder = tmp_path/'run'
    with locked(folder, 'racing'), ThreadPoolExecutor(1) as threads:
        with locked(folder/'..'/'run', 'training'), locked(folder, 'training', 'a'):
            pass
        other = threads.submit(locked(folder, 'training').__enter__)
        with pytest.raises(BlockingIOError, match='Another run'):
            other.result()
    assert not folder.exists(), 'an empty folder stays'


def test_a_run_that_fails_gives_the_folder_back(tmp_path):
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt), locked(tmp_path, 'training'):
            raise KeyboardInterrupt
    assert not contents(tmp_path)


def test_pieces_of_work_side_by_side(tmp_path):
    "The lock of one piece removes what was left of that piece only"
    names = 'fold-1', 'fold-10', 'fold-[1]'
    parts = {name: part_name(tmp_path/f'{name}.npz') for name in names}
    for part in parts.values():
        part.touch()
    with ExitStack() as stack:
        for name in names:
            stack.enter_context(locked(tmp_path, 'training', name))
            assert not parts.pop(name).exists()
            assert all(part.exists() for part in parts.values())


def forbidden(*args, **kwargs): raise PermissionError(13, 'Permission denied')


@pytest.mark.parametrize('mend', [write_json, locked])
def test_folders_that_cannot_be_written(tmp_path, monkeypatch, mend):
    "By a patch, because root may write anywhere"
    def write(folder):
        if mend is write_json: return write_json(folder/'a.json', {})
        with locked(folder, 'training'):
            pytest.fail('a folder that cannot be written')
    (tmp_path/'file').touch()
    for folder in tmp_path/'file', tmp_path/'file'/'below':
        with pytest.raises(OSError, match=f'Cannot write {folder}.*/file is a file'):
            write(folder)
    monkeypatch.setattr(Path, 'mkdir', forbidden)
    said = r'Cannot write .*new.* \(Permission denied\): name a folder that you may'
    with pytest.raises(PermissionError, match=said) as e:
        write(tmp_path/'new')
    assert e.value.errno == 13


def test_a_new_folder_is_not_made_to_try_it(tmp_path, monkeypatch):
    "It would have to be removed again, perhaps under the feet of another process"
    monkeypatch.setattr(Path, 'mkdir', forbidden)
    check_out(tmp_path/'new'/'run', 'study')
    assert not contents(tmp_path)
    monkeypatch.setattr(stored, 'TemporaryFile', forbidden)
    with pytest.raises(PermissionError, match='Cannot write .*run .Permission denied'):
        check_out(tmp_path/'new'/'run', 'study')


def test_a_link_to_nowhere_is_refused(tmp_path):
    (tmp_path/'link').symlink_to(tmp_path/'nowhere')
    with pytest.raises(OSError, match='Cannot write .*link'):
        check_out(tmp_path/'link', 'study')


@needs_fork
def test_a_full_disk_leaves_the_old_file(tmp_path):
    "The system stops the writing, as it does on a full disk"
    import resource
    def fill():
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
        try:
            write_whole(tmp_path/'a.bin', bytes(9000))
        except OSError as e:
            os._exit(3 if f'No room left to write {tmp_path}/a.bin' in str(e) else 4)
    write_whole(tmp_path/'a.bin', b'old')
    process = start(fill)
    process.join()
    assert process.exitcode == 3
    assert contents(tmp_path) == {'a.bin': b'old'}


# write_json and machine

def test_write_json(tmp_path):
    path = tmp_path/'new'/'a.json'
    write_json(path, dict(a=np.float32(.5), b=(1, 2)))
    assert path.read_text() == '{\n "a": 0.5,\n "b": [\n  1,\n  2\n ]\n}\n'
    with pytest.raises(TypeError, match='cannot hold a set'):
        write_json(path, {1})
    assert os.listdir(path.parent) == ['a.json']
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask()


def umask():
    now = os.umask(0)
    os.umask(now)
    return now


def test_machine(monkeypatch):
    from cell_diffusion import core, ddpm
    if not hasattr(core, 'fast_bfloat16'):
        monkeypatch.setattr(core, 'fast_bfloat16', ddpm.fast_bfloat16, raising=False)
    found = machine()
    names = 'device', 'name', 'threads', 'bfloat16', 'python', 'torch', 'cell_diffusion'
    assert tuple(found) == names
    assert found['name'] and found['threads'] >= 1
    json.dumps(found)


def test_a_link_to_a_file_stays_one(tmp_path):
    "A checkpoint on another disk is written there"
    (tmp_path/'far').mkdir()
    real = tmp_path/'far'/'file.txt'
    real.write_text('old')
    link = tmp_path/'link.txt'
    link.symlink_to(real)
    write_whole(link, 'new')
    assert link.is_symlink() and real.read_text() == 'new'
    assert sorted(os.listdir(tmp_path)) == ['far', 'link.txt']
    assert os.listdir(real.parent) == ['file.txt']


def test_a_damaged_table_is_not_written_back_shorter(tmp_path):
    rows = [f'cell{i}.png,{i}' for i in range(20_000)]
    rows[2] = '"' + rows[2]
    table = tmp_path/'manifest.csv'
    table.write_text('\n'.join(['file,label', *rows]))
    assert len(read_table(table)) == 2
    with pytest.raises(ValueError, match='manifest.csv is damaged after row 2'):
        read_table(table, strict=True)
