"Long runs and the command line, in miniature"
import json
import numpy as np, pandas as pd, pytest, torch
from PIL import Image
from typer.testing import CliRunner
from cell_diffusion.cli import app
from cell_diffusion.data import cell_dls
from cell_diffusion.ddpm import Denoiser, pretrained, shipped, weights_folder
from cell_diffusion.evaluation import *
from cell_diffusion.recipes import *
from cell_diffusion.simulation import jurkat_phases

@pytest.fixture(scope='module')
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp('runs')/'small'
    return out, train('simulated', size=28, classes=True, minutes=.03, dim=16, mults=(1, 2), out=out, n=160, bs=16, scored=0, progress=False)

def cli(*args): return CliRunner().invoke(app, [str(a) for a in args])

def test_train_leaves_all_that_is_needed(run):
    out, record = run
    assert {'model.safetensors', 'config.json', 'record.json', 'samples.png', 'README.md'} <= {f.name for f in out.iterdir()}
    assert json.loads((out/'record.json').read_text())['fingerprint'] == record['fingerprint'] == fingerprint(cell_dls('simulated', size=28, n=160))
    assert record['cells']['train'] + record['cells']['valid'] + record['cells']['test'] == 160 and record['cells_seen'] == 16*record['steps']
    card = (out/'README.md').read_text()
    assert 'clinical' in card and 'simulated' in card and f"{record['steps']} steps" in card

def test_sample_from_a_folder(run, tmp_path):
    answer = cli('sample', '--model', run[0], '--label', 'platelet', '-n', 4, '--steps', 3, '--out', tmp_path/'a'/'cells.png', '--each', tmp_path/'each')
    assert answer.exit_code == 0, answer.output
    assert Image.open(tmp_path/'a'/'cells.png').mode == 'RGB' and len(list((tmp_path/'each').glob('*.png'))) == 4

def test_sample_sampler_guidance_and_zoom(run, tmp_path):
    for i, more in enumerate((('--sampler', 'ddim'), ('--w', 2), ('--w', 0), ('--zoom', 1))):
        answer = cli('sample', '--model', run[0], '--label', 'platelet', '-n', 1, '--steps', 2, '--out', tmp_path/f'{i}.png', *more)
        assert answer.exit_code == 0, answer.output
    assert [Image.open(tmp_path/f'{i}.png').width for i in range(4)] == [84, 84, 84, 28]
    pixels = [np.array(Image.open(tmp_path/f'{i}.png')) for i in range(3)]
    assert not any((a == b).all() for a, b in zip(pixels, pixels[1:]))

@pytest.fixture(scope='module')
def filler(run, tmp_path_factory):
    out = tmp_path_factory.mktemp('runs')/'filler'
    return out, train('simulated', size=28, classes=True, epochs=1, dim=16, mults=(1, 2), out=out, n=160, bs=16, scored=20, steps=2, judged='valid',
                      inpaint=True, start=run[0], balanced=True, outside=.5, progress=False)

def test_train_a_network_that_fills(filler):
    out, record = filler
    assert record['inpaint'] and record['balanced'] and record['start'] == 'small' and record['outside'] == .5 and record['score']['judged'] == 'valid'
    card = (out/'README.md').read_text()
    assert 'Fills what a mask hides' in card and '`small`' in card and 'equally often' in card and 'validation cells' in card
    assert cli('sample', '--model', out, '--label', 'platelet', '-n', 2, '--steps', 2, '--out', out/'cells.png').exit_code == 0

def test_a_finished_run_says_so(filler, run, capsys):
    again = train('simulated', size=28, classes=True, epochs=1, dim=16, mults=(1, 2), out=filler[0], n=160, bs=16, scored=0, inpaint=True, start=run[0], balanced=True, outside=.5)
    assert 'nothing is left to train' in ''.join(capsys.readouterr()) and again['steps'] == filler[1]['steps']
    with pytest.raises(ValueError, match='outside'):
        train('simulated', size=28, classes=True, epochs=1, dim=16, mults=(1, 2), out=filler[0], n=160, bs=16, scored=0, inpaint=True, start=run[0], balanced=True, outside=.1, progress=False)

def test_inpaint_from_the_shell(filler, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng, hole = np.random.default_rng(0), np.zeros((50, 40), np.uint8); hole[10:30, 5:25] = 255
    pixels = rng.integers(0, 256, (50, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save('cell.png'); Image.fromarray(hole).save('hole.png')
    answer = cli('inpaint', 'cell.png', '--mask', 'hole.png', '--model', filler[0], '--label', 'monocyte', '-n', 2, '--steps', 2)
    assert answer.exit_code == 0, answer.output
    fills = [np.array(Image.open(f'cell_filled_{i}.png')) for i in (1, 2)]
    assert all((f[hole == 0] == pixels[hole == 0]).all() for f in fills) and (fills[0] != fills[1]).any()
    for args, says in ((('cell.png', '--mask', 'cell.txt'), 'cell.txt'), (('cell.png', '--mask', 'hole.png', '--out', 'a.jpg'), '.png'),
                       (('hole.png', '--mask', 'hole.png', '--out', 'hole.png', '--steps', 1), 'replace'), (('cell.png', '--mask', 'hole.png', '--label', 'monocite'), 'monocyte')):
        answer = cli('inpaint', *args, '--model', filler[0])
        assert answer.exit_code == 1 and says in answer.output and 'Traceback' not in answer.output

def test_train_is_one_process(monkeypatch):
    monkeypatch.setenv('WORLD_SIZE', '2')
    assert 'several GPUs' in (answer := cli('train')).output and answer.exit_code == 1

@pytest.mark.parametrize('args,says', [
    (('sample', '--w', '2'), '--label'), (('sample', '--model', 'blood31'), 'blood31'), (('sample', '--label', 'monocite'), 'monocyte'), (('sample', '--out', 'cells.gif'), '.png'),
    (('train', '--data', 'no/such/folder'), 'no/such/folder'), (('train', '--objective', 'edn', '--n', '160'), 'edm'), (('sample', '--model', 'nbs'), 'nbs')])
def test_a_mistake_is_answered_with_a_sentence(args, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path); (tmp_path/'nbs').mkdir()
    answer = cli(*args)
    assert answer.exit_code == 1 and says in answer.output and 'Traceback' not in answer.output

def test_shipped_weights_have_config_record_and_card():
    names = [f.parent.name for f in weights_folder.glob('*/model.safetensors')]
    assert {'blood32', 'blood64', 'blood-classifier-32', 'blood-classifier-64'} <= set(names)
    for name in names:
        folder = shipped(name)
        assert (folder/'config.json').exists() and json.loads((folder/'record.json').read_text())['fingerprint']
        jurkat = json.loads((folder/'record.json').read_text())['source'] == 'jurkat'
        assert ('not confirmed' if jurkat else 'CC BY 4.0') in (folder/'README.md').read_text() and (folder/'model.safetensors').stat().st_size < 8.4e6
    assert {json.loads((shipped(n)/'record.json').read_text())['fingerprint'] for n in names if n.endswith('32')} == {json.loads((shipped('blood32')/'record.json').read_text())['fingerprint']}

def test_a_classifier_is_trained_once_for_a_split(tmp_path, monkeypatch):
    monkeypatch.setenv('CELL_DIFFUSION_CACHE', str(tmp_path))
    dls = cell_dls('simulated', size=28, n=160, bs=32)
    a, b = classifier_for(dls, epochs=1), classifier_for(dls, epochs=1)
    assert all(torch.allclose(p.cpu().half().float(), q) for p, q in zip(a.parameters(), b.parameters()))
    assert [f.name for f in (tmp_path/'classifiers').iterdir()] == [classifier_folder(dls).name]
    other = cell_dls('simulated', size=28, n=150, bs=32)
    assert not all(torch.equal(p, q) for p, q in zip(b.parameters(), classifier_for(other, epochs=1).parameters())) and len(list((tmp_path/'classifiers').iterdir())) == 2
    assert judge_for(dls, make=None).classes == dls.vocab, 'what one recipe keeps, every chapter finds'

def test_a_shipped_classifier_is_not_trained_again(tmp_path, monkeypatch):
    import cell_diffusion.evaluation as evaluation
    monkeypatch.setenv('CELL_DIFFUSION_CACHE', str(tmp_path/'cache')); monkeypatch.setattr(evaluation, 'weights_folder', tmp_path/'weights')
    dls = cell_dls('simulated', size=28, n=160, bs=32)
    kept = train_and_save_classifier(dls, tmp_path/'weights'/'my-classifier-28', epochs=1)
    assert torch.allclose(classifier_for(dls).head.weight, kept.head.weight.cpu().half().float()) and not (tmp_path/'cache'/'classifiers').exists()

@pytest.fixture(scope='module')
def judge(tmp_path_factory):
    out = tmp_path_factory.mktemp('runs')/'my-classifier'
    return out, cli('classifier', '--data', 'simulated-jurkat', '--size', 28, '--channels', 'brightfield,darkfield', '--epochs', 1, '--n', 400, '--bs', 32, '--dim', 8, '--balanced', '--seed', 3, '--out', out)

def test_classifier_from_the_shell(judge):
    out, answer = judge
    assert answer.exit_code == 0, answer.output
    r, net = json.loads((out/'record.json').read_text()), pretrained(CellClassifier, out)
    dls = cell_dls('simulated-jurkat', size=28, n=400, channels=('brightfield', 'darkfield'))
    assert r['fingerprint'] == fingerprint(dls) and r['channel_names'] == ['brightfield', 'darkfield'] and (r['channels'], r['size'], r['seed'], r['balanced'], r['epochs']) == (2, 28, 3, True, 1)
    assert net.channels == 2 and net.classes == jurkat_phases and r['kind'] == 'classifier' and sum(r['cells'].values()) == 400
    table = recognised(look(net, held_out(dls)[0])[1], held_out(dls)[1], dls.vocab)
    assert [a['n'] for a in r['accuracy']] == table.n.tolist() and r['accuracy'][-1]['share'] == pytest.approx(table['share'].iloc[-1], abs=.03) and r['accuracy'][-1]['n'] == r['cells']['test']
    b = r['balanced_accuracy']
    assert b['value'] == pytest.approx(np.mean([a['share'] for a in r['accuracy'][:-1]])) and b['low'] <= b['value'] <= b['high']

def test_card_of_a_classifier(judge):
    card = (judge[0]/'README.md').read_text()
    assert judge[1].output.startswith('# my-classifier') or '# my-classifier' in judge[1].output
    for said in ('2 channels (brightfield, darkfield)', '| Prophase | ', 'each class counting alike', 'drawn equally often', 'largest class', 'simulated cells', 'clinical'): assert said in card
    record = dict(json.loads((judge[0]/'record.json').read_text()), source='jurkat')
    for said in ('human T lymphocytes', 'not confirmed', 'none of them comes with the package', 'BBBC048'): assert said in classifier_card(record, 'x')
    assert 'Acevedo' not in classifier_card(dict(record, source='folder'), 'x')

@pytest.mark.parametrize('args, says', [(('--data', 'simulated-jurkat', '--channels', 'brightfield,green'), 'green'), (('--data', 'no/such/folder'), 'no/such/folder'), (('--channels', '2'), '3 channels')])
def test_mistakes_about_channels(args, says, tmp_path):
    for command in ('classifier', 'train'):
        answer = cli(command, '--size', 28, '--n', 60, '--out', tmp_path/'x', *args)
        assert answer.exit_code == 1 and says in answer.output and 'Traceback' not in answer.output and not (tmp_path/'x'/'model.safetensors').exists()

def test_train_on_chosen_channels(tmp_path):
    r = train('simulated-jurkat', size=28, classes=True, epochs=1, dim=16, mults=(1, 2), patch=2, channels=('darkfield',), out=tmp_path/'j', n=160, bs=16, scored=0, progress=False)
    net = pretrained(Denoiser, tmp_path/'j')
    assert r['channel_names'] == ['darkfield'] and r['channels'] == net.channels == 1 and r['patch'] == 2 and net.unet.patch == 2 and r['source'] == 'simulated-jurkat'
    assert '1 channel (darkfield)' in (tmp_path/'j'/'README.md').read_text()

def test_channels_and_patch_from_the_shell(tmp_path, monkeypatch):
    import cell_diffusion.recipes as recipes
    seen = []
    def spy(*args, **kwargs): seen.append(kwargs); (tmp_path/'README.md').write_text('card')
    monkeypatch.setattr(recipes, 'train', spy)
    for text, wanted in (('brightfield,darkfield', ('brightfield', 'darkfield')), ('dna', ('dna',)), ('1', 1)):
        assert cli('train', '--channels', text, '--patch', 2, '--out', tmp_path).exit_code == 0 and (seen[-1]['channels'], seen[-1]['patch']) == (wanted, 2)
    cli('train', '--out', tmp_path); assert (seen[-1]['channels'], seen[-1]['patch']) == (None, None)

def test_race_makes_the_runs_that_have_no_record(tmp_path, monkeypatch):
    import cell_diffusion.recipes as recipes
    score, made = dict(recognised=[dict(share=.5)], generated=dict(fd=dict(mean=1.), kd=dict(mean=.1)), floor=dict(fd=dict(mean=.2))), []
    def fake_train(data, size, classes, minutes, epochs, out, objective, seed, **kwargs):
        made.append((objective, seed)); write_json(out/'record.json', dict(objective=objective, seed=seed, seconds=1, cells_seen=2, score=score))
    monkeypatch.setattr(recipes, 'train', fake_train)
    write_json(tmp_path/'edm-0'/'record.json', dict(objective='edm', seed=0, seconds=1, cells_seen=2, score=score))
    table = race('simulated', tmp_path, seeds=2, names=('ddpm', 'edm'))
    assert made == [('ddpm', 0), ('ddpm', 1), ('edm', 1)] and len(table) == 4 and (table.fd == 1).all()

def test_fingerprint_tells_split_crop_and_classes_apart():
    a, b, c = (cell_dls('simulated', size=28, n=n, seed=s) for n, s in ((160, 0), (160, 1), (150, 0)))
    marks = [fingerprint(d) for d in (a, b, c)]
    a.cells.crop = 'center'
    assert len({*marks, fingerprint(a)}) == 4

def test_bench_in_miniature():
    table = bench(size=16, bs=2, rounds=1, calls=1)
    ratios = bench_summary(table)
    assert (table.parameters.max()/table.parameters.min() < 1.05) and (table['train img/s'] > 0).all() and 0 < ratios['share']
    best = table.groupby('network')['train img/s'].max()
    assert ratios['train_ratio'] == best['cell_diffusion']/best['diffusers']

def test_bench_line_tells_the_record(tmp_path):
    write_json(tmp_path/'b.json', dict(train_ratio=1.5, sample_ratio=.8, share=.25, size=64, bs=16, rounds=3, machine=dict(name='A', device='cpu', threads=1)))
    line = bench_line(tmp_path/'b.json')
    for said in ('1.50 times', '0.80 times', '25%', '64 × 64', '1 thread)'): assert said in line
    assert bench_line()                                             # the one that ships

def test_two_channels_are_painted_in_grey(tmp_path):
    Denoiser(dict(channels=2, dim=16, mults=[1, 2]), size=16).save_pretrained(tmp_path/'two')
    assert cli('sample', '--model', tmp_path/'two', '-n', 2, '--steps', 2, '--out', tmp_path/'two.png').exit_code == 0
    assert Image.open(tmp_path/'two.png').mode in ('L', 'RGB')
