"""Every command with bad input: a sentence with the value or the file, no traceback.

The table has a row for each command, option and kind of mistake. Each runs in a folder
of its own, where nothing may be written, and the shared files must stay as they are.
"""
import json
import os
import resource
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from cell_diffusion.classifier import CellClassifier
from cell_diffusion.cli import app, commands
from cell_diffusion.denoiser import Denoiser, load, save
from cell_diffusion.inpainting import Inpainter
from cell_diffusion.knowledge import make_reference

classes = 'round', 'oval'


# The shared files

def picture(path, size=32, mode='RGB', seed=0):
    shape = (size, size, 3) if mode == 'RGB' else (size, size)
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def class_folders(folder, names=classes, n=12):
    for k, name in enumerate(names):
        for i in range(n):
            picture(folder/name/f'{i}.png', seed=100*k + i)


def mask(path, size=32, filled=True):
    hole = np.zeros((size, size), np.uint8)
    if filled: hole[10:20, 8:16] = 255
    Image.fromarray(hole).save(path)


def cut(file, share=.5):
    content = file.read_bytes()
    file.write_bytes(content[:int(share*len(content))])


def pictures():
    picture(Path('cell.png'))
    picture(Path('cell.jpg'))
    mask('mask.png')
    mask('small.png', 16)
    mask('black.png', filled=False)
    Path('text.png').write_text('no picture')
    Path('empty.png').write_bytes(b'')
    picture(Path('cut.png'))
    cut(Path('cut.png'))
    Path('folder.png').mkdir()
    Path('text.txt').write_text('some text')
    Path('empty').mkdir()


def cell_folders():
    class_folders(Path('cells'))
    class_folders(Path('one'), classes[:1])
    class_folders(Path('few'), n=1)
    class_folders(Path('hollow'))
    Path('hollow/nothing').mkdir()
    class_folders(Path('texts'), n=3)
    for file in Path('texts').glob('*/*'):
        file.write_text('no picture')
    class_folders(Path('grown'))
    picture(Path('grown/round/synthetic-0-00000.png'), seed=999)


def network(folder, kind=Denoiser, **settings):
    torch.manual_seed(0)
    unet = dict(dim=8, mults=[1, 2])
    if kind is Inpainter: unet.update(channels=7, out_channels=3)
    save(kind(unet, classes=list(classes), **settings), Path(folder))
    return Path(folder)


def known_network():
    "A network with a reference of real cells"
    folder = network('known')
    model = load(folder)
    x = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    make_reference(model, x, torch.arange(16) % 2, draws=4, seed=0).write(folder)
    (network('unknown')/'knowledge.json').write_text('{"weights": "others"}')


def networks():
    network('net')
    known_network()
    network('filler', Inpainter)
    save(CellClassifier(classes, dim=8), Path('classifier'))
    cut(network('cut')/'model.safetensors')
    (network('void')/'model.safetensors').write_bytes(b'')
    (network('headless')/'config.json').unlink()
    (network('bodiless')/'model.safetensors').unlink()
    (network('garbled')/'config.json').write_text('{"unet": ')
    (network('listed')/'config.json').write_text('[]')
    config = json.loads((network('huge')/'config.json').read_text())
    config['unet']['dim'] = 10**9
    Path('huge/config.json').write_text(json.dumps(config))


def folders_of_runs():
    trained = network('trained')
    (trained/'record.json').write_text('{"kind": "denoiser"}')
    judge = Path('judge')
    save(CellClassifier(classes, dim=8), judge)
    (judge/'record.json').write_text('{"kind": "classifier"}')
    for name, text in {'studied': '{"data": "others"}', 'torn': '{"da'}.items():
        Path(name).mkdir()
        Path(name, 'settings.json').write_text(text)


@pytest.fixture(scope='module')
def shared(tmp_path_factory):
    "A folder with all that the table names"
    before = Path.cwd()
    folder = tmp_path_factory.mktemp('shared')
    os.chdir(folder)
    try:
        pictures()
        cell_folders()
        networks()
        folders_of_runs()
    finally:
        os.chdir(before)
    return folder


def contents(folder):
    "Names, sizes and times of all that is in a folder"
    stats = {p: p.lstat() for p in sorted(folder.rglob('*'))}
    return {p: (s.st_size, s.st_mtime_ns) for p, s in stats.items() if p.is_file()}


@pytest.fixture
def bad(shared, tmp_path, monkeypatch):
    "Runs a command that must fail, and returns what it says and its status"
    monkeypatch.chdir(tmp_path)
    cache = tmp_path.parent/'cache'
    monkeypatch.setenv('CELL_DIFFUSION_CACHE', str(cache))
    monkeypatch.delenv('CELL_DIFFUSION_DATA', raising=False)

    def run(line):
        before = contents(shared)
        words = shlex.split(line.replace('@', f'{shared}/'))
        answer = CliRunner().invoke(app, words)
        assert isinstance(answer.exception, SystemExit), repr(answer.exception)
        assert 'Traceback' not in answer.output and '[Errno' not in answer.output
        assert contents(shared) == before, 'a shared file has changed'
        assert not list(tmp_path.iterdir()), list(tmp_path.iterdir())
        return ' '.join(answer.output.split()), answer.exit_code
    return run


# Numbers. Each option has the name of its parameter, and what is wrong for it

good = dict(
    sample='sample --model @net --label round',
    inpaint='inpaint @cell.png --mask @mask.png --model @filler --label round',
    train='train --data @cells --bs 8 --epochs 1',
    classifier='classifier --data @cells --bs 8',
    race='race --data @cells --epochs 1',
    bench='bench',
    study='study @cells --size 32 --folds 2 --arms nothing',
    balance='balance @cells --out out --goal 20',
    score='score @net --data @cells',
    distill='distill @net --data @cells',
    guidance='guidance @trained --data @cells',
    fid='fid @net --data @cells',
    challenge='challenge @net --data @cells',
    explain='explain @cell.png --model @known',
    calibrate='calibrate @net --data @cells',
)

no_int = 'x', '1.5', 'nan', 'inf', '""'
no_float = 'x', '""'
beyond = '-1', '0', '1' + 30*'0'
not_finite = 'nan', 'inf', '-inf', '1e39', '-1'

whole = dict(
    sample='-n --seed --steps --zoom',
    inpaint='-n --seed --steps --window',
    train='--size --epochs --bs --dim -n --seed --scored --patch --means --guided',
    classifier='--size --epochs --bs --dim -n --seed',
    race='--epochs --seeds -n',
    bench='--size --bs --rounds',
    study='--size -n --goal --folds --replicates --steps --epochs --fold --processes',
    balance='--goal --size --seed --steps',
    score='--scored --steps -n',
    distill='--calls --walks --epochs --bs -n --seed --scored',
    guidance='--scored --steps',
    fid='-n --steps --seed --bs',
    explain='--window', calibrate='-n --draws --seed',
)
fractions = dict(
    sample='--guidance-scale', inpaint='--guidance-scale --white',
    train='--minutes --lr --set-aside --early-at', classifier='--lr --set-aside',
    race='--minutes --set-aside', balance='--minutes', distill='--minutes --lr',
    study='--minutes', explain='--white', calibrate='--white',
)

# Zero is fine for these, and these are told otherwise
may_be_0 = '--seed', '--fold', '--guidance-scale'
may_be_negative = '--guidance-scale',
may_be_none = 'train --scored', 'train --means', 'train --guided', 'distill --scored'
said = {'--window': 'not {}', '--fold': 'no fold {}'}


def numbers():
    "A row for each option of numbers and each wrong number"
    for command, options in whole.items():
        for option in options.split():
            for value in no_int:
                yield f'{good[command]} {option} {value}', option, 2
            name = option.lstrip('-').replace('-', '_')
            for value in beyond:
                if value == '0' and option in may_be_0: continue
                if value == '0' and f'{command} {option}' in may_be_none: continue
                says = said.get(option, f'{name}={{}} should be').format(value)
                yield f'{good[command]} {option} {value}', says, 1
    for command, options in fractions.items():
        for option in options.split():
            for value in no_float:
                yield f'{good[command]} {option} {value}', option, 2
            for value in not_finite:
                if value == '-1' and option in may_be_negative: continue
                name = option.strip('-').replace('-', '_')
                yield f'{good[command]} {option} {value}', f'{name}={float(value)} ', 1


# Files, folders, names

def rows(command, table):
    "Rows of one command from lines `options | what it says`"
    for line in table.strip().splitlines():
        options, _, says = line.partition('|')
        yield f'{command} {options.strip()}', says.strip(), 1


def files():
    yield from rows('sample --label round -n 1 --steps 1', """
        --model @nowhere | nowhere
        --model blood31 | blood31
        --model @text.txt | text.txt is a file
        --model @empty | empty holds no config.json
        --model @cells | cells holds no config.json
        --model @cut | model.safetensors
        --model @void | model.safetensors
        --model @headless | headless holds no config.json
        --model @bodiless | bodiless holds no model.safetensors
        --model @garbled | config.json is not JSON
        --model @listed | config.json is not a table
        --model @huge | dim
        --model @classifier | CellClassifier
        --model @net --label oval2 | 'oval2'
        --model @net --label 7 | '7'
        --model @net --label платен | 'платен'
        --model @net --sampler magic | 'magic'
        --model @net --sampler repaint | fills holes
        --model @net --steps 1001 | steps=1001
        --model @net --out a.gif | a.gif
        --model @net --out a | --out a:
        --model @net --out @folder.png | folder.png is a folder
        --model @net --out @text.txt/a.png | text.txt
        --model @net --out /proc/nowhere/a.png | /proc/nowhere
        --model @net --each @text.txt | text.txt is a file
        --model @net --each @trained | trained holds a trained generator
        --model @net --each /proc/nowhere | /proc/nowhere
        --model @net -n 9000000 | n=9,000,000
        --model @net -n 40000 --out a.webp | a.webp
    """)
    yield 'sample --guidance-scale 2', 'name one with label', 1
    yield f'sample --model @net --label {5000*"1"}', 'Unknown class', 1
    yield from rows('inpaint --model @filler --label round', """
        @nowhere.png --mask @mask.png | nowhere.png
        @cell.png --mask @nowhere.png | nowhere.png
        @folder.png --mask @mask.png | folder.png
        @cell.png --mask @folder.png | folder.png
        @text.png --mask @mask.png | text.png
        @cell.png --mask @text.png | text.png
        @empty.png --mask @mask.png | empty.png
        @cell.png --mask @empty.png | empty.png
        @cut.png --mask @mask.png | cut.png
        @cell.png --mask @cut.png | cut.png
        @text.txt --mask @mask.png | text.txt
        @cell.png --mask @small.png | small.png has 16 × 16
        @cell.png --mask @black.png | black.png is empty
        @cell.png --mask @mask.png --out a.jpg | a.jpg
        @cell.png --mask @mask.png --out @folder.png | folder.png is a folder
        @cell.png --mask @mask.png --out @text.txt/a.png | text.txt
        @cell.png --mask @mask.png --out /proc/nowhere/a.png | /proc/nowhere
        @cell.png --mask @mask.png --out @cell.png | replace the picture
        @cell.png --mask @mask.png --out @mask.png | replace the mask
        @cell.png --mask @mask.png --method magic | 'magic'
        @cell.png --mask @mask.png --label oval2 | 'oval2'
        @cell.png --mask @mask.png --window 3 | not 3
        @cell.png --mask @mask.png --model @net | was not trained to fill holes
        @cell.png --mask @mask.png --model @cut | model.safetensors
        @cell.png --mask @mask.png --model @classifier | CellClassifier
        @cell.png --mask @mask.png --model @nowhere | nowhere
    """)
    yield from explanations()
    yield from trainings()
    yield from studies()
    yield from networks_to_show()


def explanations():
    yield from rows('explain', """
        @nowhere.png --model @known | nowhere.png
        @folder.png --model @known | folder.png
        @text.png --model @known | text.png
        @empty.png --model @known | empty.png
        @cut.png --model @known | cut.png
        @cell.png --model @known --out a.jpg | a.jpg
        @cell.png --model @known --out @folder.png | folder.png is a folder
        @cell.png --model @known --out @text.txt/a.png | text.txt
        @cell.png --model @known --out /proc/nowhere/a.png | /proc/nowhere
        @cell.png --model @known --out @cell.png | replace the picture
        @mask.png --model @known | is grey
        @cell.png --model @net | calibrate net
        @cell.png --model @unknown | of other weights
        @cell.png --model @filler | knows their classes
        @cell.png --model @cut | model.safetensors
        @cell.png --model @classifier | CellClassifier
        @cell.png --model @nowhere | nowhere
    """)
    yield from rows('calibrate', """
        @nowhere --data @cells | nowhere
        @filler --data @cells | knows their classes
        @cut --data @cells | model.safetensors
        @classifier --data @cells | CellClassifier
        @net --data @one | round
        @net --data @cells --crop magic | magic
        @net --data @cells --channels , | ','
        @net --data @cells --channels 2 | 2 are expected
        @net --data @cells --source nope | 'nope'
    """)
    yield from rows('calibrate @net', cells)


cells = """
    --data @nowhere | nowhere
    --data nowhere | 'nowhere'
    --data @text.txt | text.txt
    --data @empty | empty
    --data @texts | texts
    --data @hollow | 'nothing'
"""


def trainings():
    for command in ('train --epochs 1', 'classifier --epochs 1'):
        yield from rows(f'{command} --bs 8', cells)
        yield from rows(f'{command} --data @cells --bs 8', """
            --channels 2 | 2 are expected
            --channels 0 | channels=0
            --channels green | green
            --channels , | ','
            --crop magic | magic
            --bs 1000 | bs=1000
            --out @text.txt | text.txt is a file
            --out @text.txt/a | text.txt
            --out /proc/nowhere | /proc/nowhere
            --out @studied | studied holds a study
        """)
    yield 'train --data @cells --bs 8 --out @judge', 'judge holds a classifier', 1
    yield 'classifier --data @cells --bs 8 --out @trained', 'a trained generator', 1
    yield from rows('train --data @cells --bs 8 --epochs 1', """
        --size 30 | 30
        --config edn | 'edn'
        --start @nowhere | nowhere
        --start blood31 | blood31
        --start @cut | model.safetensors
        --start @classifier | CellClassifier
        --start @net | Cannot start
        --scored 1 | scored=1
        --guided 3 | guided=3
        --patch 5 | 32
        --source nope | 'nope'
        --optimizer sgd | 'sgd'
        --scales 0.4 1 | inpaint
        --inpaint --scales 0.5 0.2 | 0.5
    """)
    yield from rows('race --epochs 1', cells)
    yield from rows('race --data @cells --epochs 1', """
        --configs magic | 'magic'
        --optimizers magic | 'magic'
        --rates x | --rates x
        --rates 0 | lr=0
        --batches x | --batches x
        --batches 0 | bs=0
        --out @text.txt | text.txt is a file
        --out /proc/nowhere | /proc/nowhere
        --out @trained | trained holds a trained generator
        --out @studied | studied holds results of other settings
        --out @torn | settings.json
    """)
    yield from rows('bench', """
        --size 30 | multiple of 8
        --out @folder.png | folder.png is a folder
        --out @text.txt/a.json | text.txt
        --out /proc/nowhere/a.json | /proc/nowhere
    """)


def studies():
    yield from rows('study', cells.replace('--data ', ''))
    yield from rows('study @cells --size 32 --folds 2', """
        --arms magic | 'magic'
        --arms , | Name some arms
        --keep round | --keep round
        --keep round=x | --keep round=x
        --keep =3 | --keep =3
        --keep square=3 | 'square'
        --keep round=0 | keep['round']=0
        --fold 2 | no fold 2
        --folds 20 | 20
        --network magic | magic
        --size 34 --arms nothing,ddpm | 34
        --size 30 --arms nothing,gan | 30
        --held-back square3 | 'square3'
        --plan @nowhere | nowhere: write it with
        --plan @text.txt | text.txt is damaged
        --arms copies+turns+real10 | held_back
        --channels 2 | 2 are expected
        --out @text.txt | text.txt is a file
        --out /proc/nowhere | /proc/nowhere
        --out @trained | trained holds a trained generator
        --out @studied --arms nothing | other settings
        --out @torn --arms nothing | settings.json
        --goal 9000000 --arms nothing | n=
    """)
    yield 'study @one --size 32', 'two classes', 1
    yield 'study @grown --size 32', 'synthetic-0-00000.png', 1
    yield 'study @few --size 32', '5', 1
    yield from rows('balance --out out', cells.replace('--data ', ''))
    yield from rows('balance @cells --goal 20', """
        --out @text.txt | text.txt is a file
        --out @cells/new | lies inside
        --out @trained | trained holds
        --out /proc/nowhere | /proc/nowhere
        --out out --goal 5 | fewer than 5
        --out out --goal 9000000 | GB of memory
        --out out --weights @nowhere | nowhere
        --out out --weights @cut | model.safetensors
        --out out --weights @classifier | CellClassifier
        --out out --weights blood32 | does not know the class
        --out out --test @cells | test
        --out out --test @nowhere | nowhere
        --out out --test @empty | empty
    """)
    yield 'balance @grown --out out --goal 20', 'synthetic-0-00000.png', 1
    yield from rows('download', """
        magic | 'magic'
        @nowhere | nowhere
        simulated | 'simulated'
    """)


def networks_to_show():
    for command in ('score --data @cells', 'export-onnx --out out',
                    'challenge --data @cells'):
        yield from rows(command, """
            @nowhere | nowhere
            blood31 | blood31
            @text.txt | text.txt
            @empty | empty holds no config.json
            @cut | model.safetensors
            @garbled | config.json is not JSON
            @classifier | CellClassifier
        """)
    yield from rows('score @net', cells)
    yield from rows('score @net --data @cells', """
        --judged magic | 'magic'
        --crop magic | magic
        --channels , | ','
        --steps 1001 | steps=1001
        --out @text.txt/a.json | text.txt
        --out /proc/nowhere/a.json | /proc/nowhere
    """)
    yield 'score blood32 --data @cells', 'round', 1
    yield from rows('challenge blood32', cells)
    yield from rows('challenge', '''
        blood32 --data @cells | round
        blood32 --data @cells --source nope | 'nope'
        blood32 --data @cells --teacher blood64 | was not distilled
        blood64-classes --data @cells | 64 pixels
        @net --data @cells | record.json
        @trained --data @cells | lacks fingerprint
    ''')
    yield from rows('challenge @net --data @cells', '''
        --track magic | 'magic'
        --name a/b | 'a/b'
        --out a.txt | a.txt
        --out @text.txt/a.csv | text.txt
        --out /proc/nowhere/a.csv | /proc/nowhere
    ''')
    yield from rows('guidance @trained', cells)
    yield from rows('guidance @trained --data @cells', """
        --guide @nowhere | nowhere
        --guide @classifier | CellClassifier
        --scales x | --scales x
        --scales 2,3 | 1
    """)
    yield 'fid @net --data @cells --out /proc/nowhere/a.json', '/proc/nowhere', 1
    yield from rows('export-onnx @net', """
        --out @text.txt | text.txt
        --out /proc/nowhere | /proc/nowhere
        --out @trained | trained
        --out out --runtime @nowhere | nowhere
    """)


def empty_strings():
    "A row for each option that takes text or a path"
    options = dict(
        sample='--model --label --out --each --sampler',
        inpaint='--model --label --out --method',
        train='--data --out --config --crop --start --channels',
        classifier='--data --out --crop --channels', race='--data --out',
        bench='--out', study='--out --channels --arms --network --keep --plan',
        balance='--out --test --weights', score='--data --judged --crop --out',
        guidance='--data --guide', fid='--data --out', explain='--model --out',
        challenge='--data --track --teacher --name --source --out',
        calibrate='--data --crop --channels --source')
    for command, names in options.items():
        for name in names.split():
            yield f'{good[command]} {name} ""', name, 2
    for words in ('inpaint "" --mask @mask.png', 'inpaint @cell.png --mask ""',
                  'explain ""', 'study ""', 'balance "" --out out', 'download ""'):
        yield words, 'empty', 2


def typing_errors():
    yield 'smaple', "'smaple'", 2
    yield '--nothing', '--nothing', 2
    for command in commands:
        yield f'{command} --nothing 3', '--nothing', 2
    for words in ('inpaint', 'inpaint @cell.png', 'explain', 'calibrate', 'study',
                  'balance', 'download', 'balance @cells'):
        yield words, 'Missing', 2
    for words in ('sample a', 'train a', 'download pbc a', 'study @cells a'):
        yield words, 'unexpected', 2
    for words in ('sample --n', 'train --data', 'balance @cells --out'):
        yield words, 'requires an argument', 2


table = [*numbers(), *files(), *empty_strings(), *typing_errors()]


@pytest.mark.parametrize('line, says, status', table, ids=[line for line, *_ in table])
def test_a_bad_input_is_answered_with_a_sentence(bad, line, says, status):
    answer, code = bad(line)
    assert code == status and says in answer, answer


environments = [
    ('CELL_DIFFUSION_DEVICE', 'gpu', 'sample --model @net', "DEVICE='gpu'"),
    ('CELL_DIFFUSION_DEVICE', 'cuda:99', 'train --data @cells --bs 8', "'cuda:99'"),
    ('CELL_DIFFUSION_DATA', 'nowhere', 'classifier --data pbc', "'nowhere'"),
    ('WORLD_SIZE', '2', 'train --data @cells', 'not where they meet'),
    ('WORLD_SIZE', 'abc', 'train --data @cells', 'not where they meet'),
    ('WORLD_SIZE', '2', 'sample --model @net', 'sample` is one process'),
    ('HOME', '/proc/nowhere', 'train --data @cells --out=~/a', '/proc/nowhere/a'),
]


@pytest.mark.parametrize('name, value, line, says', environments)
def test_the_environment_can_be_wrong_too(bad, monkeypatch, name, value, line, says):
    monkeypatch.setenv(name, value)
    answer, code = bad(line)
    assert code == 1 and says in answer, answer


def test_the_table_is_whole():
    "Each command is there, and each of its options of numbers, text and paths"
    lines = ' '.join(line for line, *_ in table)
    assert len(table) > 300 and len({line for line, *_ in table}) == len(table)
    for name in commands:
        answer = CliRunner().invoke(app, [name, '--help']).output
        for line in answer.splitlines():
            takes_a_value = line.startswith('  -') and ('<' in line or '[' in line)
            if not takes_a_value or '--no-' in line: continue
            option = line.split()[0].rstrip(',')
            assert f' {option} ' in lines, f'{name} {option}'


# As it is in a real shell: one process for each kind

main = 'from cell_diffusion.cli import app; app()'


def shell(words, folder, **environment):
    "A command in a process of its own"
    code = [sys.executable, '-c', main, *shlex.split(words.replace('@', f'{folder}/'))]
    env = dict(os.environ, **environment)
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    return subprocess.Popen(code, env=env, preexec_fn=heed_interrupts, **pipes)


def heed_interrupts():
    "A job in the background ignores Ctrl-C, and so would the processes it starts"
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_a_mistake_is_one_line_of_the_error_stream(shared, tmp_path):
    out = tmp_path/'a.png'
    process = shell(f'sample --model @net --label z --out {out}', shared)
    said, errors = process.communicate()
    assert process.returncode == 1 and said == b'' and errors.count(b'\n') == 1


@pytest.mark.parametrize('page', ['cp1251', 'ascii'])
def test_another_code_page(shared, tmp_path, page):
    out = tmp_path/'a.png'
    words = f'sample --model @net --label round -n 1 --steps 1 --out {out}'
    process = shell(words, shared, PYTHONIOENCODING=page)
    said, errors = process.communicate()
    assert process.returncode == 0 and errors == b'' and out.exists()
    assert said.startswith(b'1 cell of 32 ') and b'a.png' in said


@pytest.mark.parametrize('words', [
    '--help', 'sample --model @net -n 1 --steps 1 --out OUT'])
def test_a_reader_that_goes_away(shared, tmp_path, words):
    process = shell(words.replace('OUT', str(tmp_path/'a.png')), shared)
    process.stdout.close()
    errors = process.stderr.read()
    process.wait()
    assert errors == b'' and process.returncode in (0, 1)


def test_a_command_that_is_interrupted(shared, tmp_path):
    words = f'train --data @cells --bs 8 --dim 8 --minutes 5 --out {tmp_path}/run'
    process = shell(words, shared, CELL_DIFFUSION_CACHE=str(tmp_path/'cache'))
    deadline = time.monotonic() + 60
    while not (tmp_path/'run').exists() and time.monotonic() < deadline:
        time.sleep(.1)
    process.send_signal(signal.SIGINT)
    said, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and said == b''
    lines = errors.decode().splitlines()
    assert len(lines) == 1 and 'stopped' in lines[0] and 'run' in lines[0], lines


@pytest.mark.skipif(sys.platform == 'win32', reason='there are no such terminals')
def test_the_first_line_comes_before_the_imports(shared, tmp_path):
    import pty
    ours, theirs = pty.openpty()
    before = processor_seconds()
    words = ['train', '--data', str(shared/'cells'), '--out', str(tmp_path/'run')]
    process = subprocess.Popen([sys.executable, '-c', main, *words], stdout=theirs,
                               stderr=theirs)
    try:
        first = os.read(ours, 1000).decode()
        assert first.startswith('cell-diffusion train: starting')
        assert not (tmp_path/'run').exists()
    finally:
        process.kill()
        process.wait()
    assert processor_seconds() - before < 2


def processor_seconds():
    "Of all processes that were started here and have ended"
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


bar_times = '''
import sys, time
import cell_diffusion.recipes as recipes
from cell_diffusion.optimizers import Muon

read = recipes.cell_dls
seconds = {}
early = []
batches = []
step = Muon.step

def timed(self, *args, **kwargs):
    loss = step(self, *args, **kwargs)
    batches.append(time.process_time())
    return loss

Muon.step = timed
def note(name): seconds.setdefault(name, time.process_time())
def cell_dls(*args, **kwargs):
    dls = read(*args, **kwargs)
    note('cells')
    return dls

class Terminal:
    def write(self, text):
        if 'training' in text and '%' in text and 'bar' not in seconds:
            note('bar')
            # PyTorch loads this with the first optimizer, in one to four seconds
            early.append('torch._dynamo' not in sys.modules)
            import torch._dynamo
            note('loaded')
        if 'loss' in text: note('moves')
    def flush(self): pass
    def isatty(self): return True

class Over(Exception): pass
def over(*args): raise Over

recipes.cell_dls = cell_dls
recipes.run_record = over
errors, sys.stderr = sys.stderr, Terminal()
try:
    recipes.train_model('simulated', 32, n=200, epochs=1, out=sys.argv[1])
except Over:
    a_batch = batches[1] - batches[0]
    print(seconds['bar'] - seconds['cells'], seconds['moves'] - batches[0],
          batches[0] - seconds['loaded'] - a_batch, *early)
'''


def test_a_bar_within_two_seconds_after_the_cells_that_moves_at_once(tmp_path):
    """In processor seconds of one thread, because a machine may have other work.

    It moves with the first batch. How long a batch takes is the processor's, so what is
    measured is the time that the first one takes longer than the second."""
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', bar_times,
                           str(tmp_path/'run')], capture_output=True, text=True,
                          env=os.environ | {'OMP_NUM_THREADS': '1'})
    *taken, before = done.stdout.split()
    comes, moves, longer = map(float, taken)
    assert comes < 2 and moves < .5 and longer < 1, taken
    assert before == 'True', 'the bar came after the optimizer'
