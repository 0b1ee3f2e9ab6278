"""
Networks as ONNX: the same answers as PyTorch, a JSON file that a page can trust, cells
to choose from, errors that are sentences
"""
import gzip, hashlib, json, re, shutil, subprocess, sys
from pathlib import Path
from types import SimpleNamespace
import numpy as np, onnx, pytest, torch
from PIL import Image
from scipy.ndimage import map_coordinates
from cell_diffusion import web
from cell_diffusion.classifier import CellClassifier
from common import cells, nbs, package
from cell_diffusion.denoiser import Condition, Denoiser, load, save, set_guidance
from cell_diffusion.core import encode
from cell_diffusion.inpainting import Inpainter, stained_masks
from cell_diffusion.process import q_sample
from cell_diffusion.sampling import (
    batched_denoise, begin_walk, ddim, dpm_solver, even_out, timesteps)
from cell_diffusion.simulation import simulate_blood
from cell_diffusion.web import (
    DenoiserStep, browser_cells, browser_noise, export_classifier, export_onnx,
    export_page, onnx_session, page_facts, run_session, published, runtime_files,
    verify_onnx, walk, write_browser_files)

photographs = package.parent/'img'/'photographs.png'

def tiny(kind=Denoiser, channels=3, **kwargs):
    "An untrained network that does not answer zero"
    torch.manual_seed(0)
    unet = dict(dim=8, mults=[1, 2], channels=channels)
    if kind is Inpainter: unet.update(channels=2*channels + 1, out_channels=channels)
    settings = dict(schedule='log_snr', T=50, prediction='v', data_std=.5, size=16)
    model = kind(unet, **{**settings, **kwargs}).eval()
    for p in model.parameters():
        if not p.detach().any(): torch.nn.init.normal_(p, std=.1)
    return model.requires_grad_(False)

def facts(file):
    return json.loads(file.with_suffix('.json').read_text())

# agreement

@pytest.mark.parametrize('name', ['blood32', 'blood64', 'blood64-inpaint', 'jurkat40'])
def test_shipped_networks_agree(name, tmp_path):
    model = load(name, precision='float32')
    file = export_onnx(model, tmp_path/f'{name}.onnx')
    rows = verify_onnx(file, model)
    assert {r['n'] for r in rows} == {1, 3} and len({r['t'] for r in rows}) == 5
    assert max(r['error'] for r in rows) < 1e-4
    about = facts(file)
    assert about['classes'] == list(model.classes)
    assert about['size'] == model.size and about['channels'] == model.channels

    # Half precision, and not much beside it
    weights = sum(p.numel() for p in model.parameters())
    assert file.stat().st_size < 2.1*weights + 200_000

@pytest.mark.parametrize('kind', [Denoiser, Inpainter])
@pytest.mark.parametrize('classes', [(), ('a', 'b')])
@pytest.mark.parametrize('channels, prediction', [(1, 'eps'), (2, 'x0'), (5, 'v')])
def test_networks_of_every_kind_agree(kind, classes, channels, prediction, tmp_path):
    model = tiny(kind, channels, classes=classes, prediction=prediction,
                 data_mean=(.1,)*channels)
    file = export_onnx(model, tmp_path/'net.onnx')
    assert verify_onnx(file, model)
    inputs = ['x', 't']
    if classes: inputs += ['label']
    if kind is Inpainter: inputs += ['known', 'mask']
    assert facts(file)['inputs'] == DenoiserStep(model).inputs == inputs
    assert not model.training and model.prediction == prediction, 'left as it was'

def test_other_sizes_and_every_label(tmp_path):
    model = tiny(Inpainter, classes=('a', 'b'))
    session = onnx_session(export_onnx(model, tmp_path/'net.onnx'))
    inputs = dict(
        x=torch.randn(3, 3, 24, 20),
        t=torch.tensor([0, 20, 49]).int(),
        label=torch.tensor([0, 1, 2]).int(),
        known=torch.rand(3, 3, 24, 20),
        mask=(torch.rand(3, 1, 24, 20) > .5).float(),
    )
    out = torch.from_numpy(run_session(session, inputs))
    assert torch.allclose(out, DenoiserStep(model)(**inputs), atol=1e-5)
    hidden = (inputs['mask'] > 0).expand_as(out)
    known = inputs['known'][~hidden]
    assert torch.equal(out[~hidden], known), 'known pixels come out as they went in'

    # What is hidden is not looked at
    changed = {**inputs, 'known': torch.where(hidden, 9., inputs['known'])}
    assert np.array_equal(run_session(session, changed), out.numpy())

def test_a_whole_run_with_the_json_file_alone(tmp_path):
    model = tiny(classes=('a', 'b'))
    file = export_onnx(model, tmp_path/'net.onnx', steps=(6,))
    session = onnx_session(file)
    about = facts(file)

    def estimate(xt, t):
        "Stands in for the network, guided as a page does it"
        def ask(c):
            label = torch.tensor([c]).int()
            inputs = dict(x=xt, t=torch.tensor([t]).int(), label=label)
            return run_session(session, inputs)
        unconditional = ask(about['null_class'])
        conditional = ask(1)
        x0 = unconditional + 2*(conditional - unconditional)
        return torch.from_numpy(x0).clamp(-1, 1)

    x = browser_noise(3, (1, 3, 16, 16))
    label = torch.tensor([1])
    assert about['walks']['6']['t'] == timesteps(model.schedule, 6, 'early').tolist()
    ts = timesteps(model.schedule, 6, 'early')
    exported = dpm_solver(estimate, x, model.schedule, ts)
    guided = batched_denoise(model, Condition(label, guidance_scale=2))
    library = dpm_solver(guided, x, model.schedule, ts)
    assert torch.allclose(exported, library, atol=1e-4)

def test_stored_guidance_travels(tmp_path):
    model = set_guidance(tiny(classes=('a', 'b')), 1.5, interval=(-2., 3.))
    about = facts(export_onnx(model, tmp_path/'net.onnx'))
    assert about['guidance_scale'] == 1.5 and about['interval'] == [-2, 3]

def test_a_guide_stays_behind_and_this_is_said(tmp_path):
    model = set_guidance(tiny(classes=('a', 'b')), 2., guide=tiny(classes=('a', 'b')))
    with pytest.warns(UserWarning, match='cell-diffusion distill') as said:
        index = export_page(model, tmp_path/'page')
    assert len(said) == 1
    about = facts(index.parent/'browser'/'model'/'network.onnx')
    assert about['guidance_scale'] == 1 and about['interval'] is None
    note = 'guided away from another one, which is not in the file'
    assert note in about['about'] and note in index.read_text()

@pytest.mark.skipif(shutil.which('node') is None, reason='needs node')
def test_a_page_guides_where_the_library_does(tmp_path):
    model = set_guidance(tiny(classes=('a', 'b')), 1.5, interval=(-2., 3.))
    facts = page_facts(model, tmp_path/'net.onnx', b'', '', (20,))
    steps = facts['walks'][20]['t']
    expected = Condition(torch.tensor([0]), 1.5, model.interval).scale_at(
        torch.tensor(steps), model.schedule).tolist()
    assert len(set(expected)) == 2
    shutil.copy(package/'browser'/'diffusion.js', tmp_path/'diffusion.mjs')
    script = (f"import {{ scaleIn }} from '{tmp_path/'diffusion.mjs'}';"
              f"const {{ interval, walks, guidance_scale }} = {json.dumps(facts)};"
              "const scale = scaleIn(interval, walks[20], guidance_scale);"
              "console.log(JSON.stringify(walks[20].t.map(scale)))")
    said = subprocess.run(['node', '--input-type=module', '-e', script], check=True,
                          capture_output=True)
    assert json.loads(said.stdout) == expected

@pytest.mark.skipif(shutil.which('node') is None, reason='needs node')
@pytest.mark.parametrize('distilled', [False, True])
def test_a_page_begins_and_walks_as_the_library_does(tmp_path, distilled):
    "With a network that is a formula"
    schedule = tiny().schedule
    def noisiest(eps, t): return q_sample(torch.full_like(eps, .1), t, schedule, eps)
    model = SimpleNamespace(schedule=schedule, jumps=None, noisiest=noisiest)
    ts = timesteps(schedule, 6, 'early')
    facts = dict(walk(schedule, ts.tolist()), ddim=distilled)
    if distilled:
        model.jumps = facts['t']
        facts['distilled'] = True
    asked = []
    def ask(x, t):
        asked.append(t)
        return (.7*x + t/100).clamp(-1, 1)
    eps = browser_noise(3, (1, 1, 4, 4))
    x, ask = begin_walk(model, ask, eps)
    sampler = ddim if distilled else dpm_solver
    ours = sampler(ask, x, schedule, ts)

    shutil.copy(package/'browser'/'diffusion.js', tmp_path/'diffusion.mjs')
    script = (f"import {{ noise, generate }} from '{tmp_path/'diffusion.mjs'}';"
              "const asked = [];"
              "const clip = v => Math.min(1, Math.max(-1, v));"
              "const x0Of = async (x, t) => {"
              "  asked.push(t); return x.map(v => clip(.7*v + t/100)); };"
              f"const walk = {json.dumps(facts)};"
              "const x = await generate(x0Of, noise(3, 16), [.1], 16, walk);"
              "console.log(JSON.stringify({ asked, x: [...x] }))")
    said = subprocess.run(['node', '--input-type=module', '-e', script], check=True,
                          capture_output=True)
    theirs = json.loads(said.stdout)
    assert theirs['asked'] == asked == facts['t']
    assert np.allclose(theirs['x'], ours.flatten(), atol=1e-5)

@pytest.mark.skipif(shutil.which('node') is None, reason='needs node')
def test_a_page_evens_out_as_the_library_does(tmp_path):
    shutil.copy(package/'browser'/'diffusion.js', tmp_path/'diffusion.mjs')
    x = .3*browser_noise(3, (2, 3, 8, 8))
    script = (f"import {{ evenOut }} from '{tmp_path/'diffusion.mjs'}';"
              f"const x = Float32Array.from({x.flatten().tolist()});"
              "console.log(JSON.stringify([...evenOut(x, 8)]))")
    said = subprocess.run(['node', '--input-type=module', '-e', script], check=True,
                          capture_output=True)
    ours = even_out(x).clamp(-1, 1).flatten()
    assert np.allclose(json.loads(said.stdout), ours, atol=1e-6)
    for patch in (1, 2):
        model = Denoiser(dict(dim=16, mults=[1, 2], patch=patch), 'log_snr', size=16)
        facts = page_facts(model, tmp_path/'net.onnx', b'', '', (20,))
        assert facts['even_out'] == (patch == 2)

def test_another_network_is_noticed(tmp_path):
    file = export_onnx(tiny(), tmp_path/'net.onnx')
    other = tiny()
    other.unet.conv_in.weight.data += .1
    words = 'differs from PyTorch by .* at timestep 0 with a batch of 1'
    with pytest.raises(ValueError, match=words):
        verify_onnx(file, other)

def test_answers_that_are_no_numbers_are_noticed(tmp_path):
    file = export_onnx(tiny(), tmp_path/'net.onnx')
    other = tiny()
    other.unet.conv_in.weight.data += torch.nan
    with pytest.raises(ValueError, match='differs from PyTorch by nan'):
        verify_onnx(file, other)

# files

def test_the_json_file_says_what_a_page_needs(tmp_path):
    model = tiny(Inpainter, classes=('a', 'b'), data_mean=(.1, .2, .3))
    file = export_onnx(
        model, tmp_path/'deep'/'net.onnx', about='Mine, CC0.', steps=(5, 10, 999))
    about = facts(file)
    data = file.read_bytes()
    expected = dict(
        file='net.onnx',
        bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        null_class=2,
        data_std=.5,
        data_mean=[.1, .2, .3],
        factor=2,
        about='Mine, CC0.',
    )
    assert about.items() >= expected.items()
    assert onnx.load(file).doc_string == 'Mine, CC0.'

    assert list(about['walks']) == ['5', '10'], 'the schedule has 50 timesteps'
    walk = about['walks']['10']
    assert len(walk['t']) == len(walk['signal']) == len(walk['noise'])
    assert walk['t'] == sorted(walk['t'], reverse=True)
    assert np.allclose(np.square(walk['signal']) + np.square(walk['noise']), 1)
    again = export_onnx(model, tmp_path/'again.onnx', about='Mine, CC0.')
    assert again.read_bytes() == data

def test_only_weights_that_lose_nothing_are_stored_in_half(tmp_path):
    def kinds(file):
        "The types of the convolutions' weights"
        found = set()
        for w in onnx.load(file).graph.initializer:
            name = w.name.removesuffix('.half')
            if 'conv' in name and name.endswith('weight'): found.add(w.data_type)
        return found

    model = tiny()
    full = export_onnx(model, tmp_path/'full.onnx')
    half = export_onnx(model.half().float(), tmp_path/'half.onnx')
    assert kinds(full) == {onnx.TensorProto.FLOAT}
    assert kinds(half) == {onnx.TensorProto.FLOAT16}
    assert half.stat().st_size < .8*full.stat().st_size
    assert verify_onnx(half, model)

def test_all_that_the_pages_need(tmp_path):
    files = write_browser_files(tmp_path, photographs=photographs)
    names = ['cells.json', 'cells.png', 'network.json', 'network.onnx', 'why.json',
             'why.onnx']
    assert [f.name for f in files] == names
    assert sum(f.stat().st_size for f in files) < 4.8e6
    about = json.loads(files[2].read_text())
    titles = json.loads(files[0].read_text())
    sheet = np.array(Image.open(files[1]))
    assert 'CC BY 4.0' in about['about'] and 'not for clinical use' in about['about']
    assert '20' in about['walks']
    assert sheet.shape == (64, 64*len(titles), 3) and len(titles) == 12
    assert [t['label'] for t in titles[:8]] == about['classes']
    assert np.array_equal(sheet[:, :8*64], np.array(Image.open(photographs)))
    assert titles[0] == dict(
        title='basophil, photograph', label='basophil', kind='photograph')
    assert titles[-1]['title'] == 'platelet, drawn' and sheet.std() > 20
    assert len(about['cell_sizes']) == 8
    why = json.loads(files[4].read_text())
    assert why['classes'] == about['classes'] and why['size'] == about['size']
    assert why['bytes'] == files[5].stat().st_size and why['right'] > .9
    assert why['least']['class'] in why['classes']
    assert .5 < why['least']['share'] <= why['right']

# Why: maps that add up

def small_classifier(**kwargs):
    "An untrained classifier whose norms have seen something"
    torch.manual_seed(0)
    model = CellClassifier(('a', 'b', 'c'), size=32, dim=8, **kwargs)
    model(torch.randn(16, model.channels, 32, 32) + .5)
    return model.eval().requires_grad_(False)

@pytest.mark.parametrize('channels', [1, 3])
def test_the_maps_of_a_classifier_add_up_to_its_scores(channels, tmp_path):
    model = small_classifier(channels=channels)
    file = export_classifier(model, tmp_path/'why.onnx', 'mine', right=.5)
    told = facts(file)
    assert told['classes'] == ['a', 'b', 'c'] and told['channels'] == channels
    assert told['right'] == .5 and told['about'] == 'mine'
    assert told['sha256'] == hashlib.sha256(file.read_bytes()).hexdigest()
    x = torch.rand(4, channels, 32, 32)*2 - 1
    maps = run_session(onnx_session(file), dict(x=x))
    assert maps.shape == (4, 3, 8, 8)
    scores = model(x).numpy()
    assert np.allclose(maps.mean((2, 3)), scores, atol=1e-4) and scores.std() > .01

def test_weights_of_16_bits_stay_so_beside_norms(tmp_path):
    file = export_classifier(small_classifier().half().float(), tmp_path/'why.onnx')
    weights = onnx.load(file).graph.initializer
    kinds = {w.data_type for w in weights if w.name.endswith('.half')}
    halves = [w for w in weights if len(w.dims) == 4]
    assert kinds == {onnx.TensorProto.FLOAT16} and len(halves) > 5
    assert all(w.data_type == onnx.TensorProto.FLOAT16 for w in halves)

def test_maps_that_do_not_add_up_are_refused(monkeypatch, tmp_path):
    forward = web.ClassMaps.forward
    monkeypatch.setattr(web.ClassMaps, 'forward', lambda self, x: 1.01*forward(self, x))
    with pytest.raises(ValueError, match='why.onnx would differ from PyTorch'):
        export_classifier(small_classifier(), tmp_path/'why.onnx')
    with pytest.raises(TypeError, match='A `CellClassifier` has maps, not Denoiser'):
        export_classifier(tiny(), tmp_path/'why.onnx')
    assert not list(tmp_path.iterdir())

@pytest.mark.parametrize(('judge', 'network', 'said'), [
    ('blood-classifier-32-judge', 'blood64-inpaint', 'have other size'),
    ('jurkat-classifier-40', 'blood64-inpaint', 'have other classes'),
    ('blood-classifier-64', 'blood64-inpaint', 'may have learned from the cells'),
])
def test_a_classifier_that_does_not_fit_the_network(judge, network, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        write_browser_files(tmp_path/'model', network, judge=judge)
    assert not (tmp_path/'model').exists() or not list((tmp_path/'model').iterdir())

read_map = '''
import { atPixels, difference, largestAt, scores } from '%s';
import { readFileSync } from 'fs';
const maps = Float32Array.from(JSON.parse(readFileSync('%s')));
const gap = difference(maps, 3, 2, 0);
const place = i => largestAt(Float32Array.from({ length: 9 }, (_, k) => +(k === i)));
console.log(JSON.stringify([scores(maps, 3), [...gap], [...atPixels(gap, 32)],
  [0, 4, 5, 7].map(place)]));
'''

@pytest.mark.skipif(shutil.which('node') is None, reason='needs node')
def test_a_page_reads_maps(tmp_path):
    maps = np.random.default_rng(0).normal(size=(3, 4, 4))
    (tmp_path/'maps.json').write_text(json.dumps(maps.ravel().tolist()))
    (tmp_path/'package.json').write_text('{"type": "module"}')
    for name in 'why', 'common', 'address', 'picture':
        shutil.copy(package/'browser'/f'{name}.js', tmp_path)
    script = read_map % (tmp_path/'why.js', tmp_path/'maps.json')
    said = subprocess.run(['node', '--input-type=module', '-e', script], check=True,
                          capture_output=True)
    found, gap, spread, places = map(np.array, json.loads(said.stdout))
    assert [*places] == ['upper left', 'middle', 'right', 'lower']
    assert np.allclose(found, maps.mean((1, 2)), atol=1e-6)
    assert np.allclose(gap.reshape(4, 4), maps[2] - maps[0], atol=1e-6)

    # Place i of 4 lies at pixel 8i of 32
    places = np.meshgrid(*[np.arange(32)/8]*2, indexing='ij')
    ours = map_coordinates(maps[2] - maps[0], places, order=1, mode='nearest')
    assert np.allclose(spread.reshape(32, 32), ours, atol=1e-6)

def test_a_place_of_a_map_lies_at_every_fourth_pixel():
    "What lies there moves the map there most; at 32 pixels there is one stride less"
    maps = web.ClassMaps(small_classifier())
    x = torch.zeros(1, 3, 32, 32, requires_grad=True)
    maps(x)[0, 1, 3, 5].backward()
    weight = x.grad.abs().sum((0, 1))
    middle = [(weight.sum(1 - k)*torch.arange(32)).sum()/weight.sum() for k in (0, 1)]
    assert torch.tensor(middle) == pytest.approx(torch.tensor([12., 20.]), abs=1)

def test_without_photographs_the_network_makes_the_cells():
    sheet, titles = browser_cells(load('blood64-inpaint', 'cpu', 'float32'))
    assert sheet.size == (12*64, 64)
    assert [t['kind'] for t in titles] == ['generated']*8 + ['drawn']*4

def test_the_photographs_are_eight_and_say_whose_they_are():
    facts = json.loads(photographs.with_suffix('.json').read_text())
    assert 'Acevedo' in facts['credit'] and 'CC BY 4.0' in facts['credit']
    assert len(facts['labels']) == 8 and Image.open(photographs).size == (8*64, 64)

find_stain = '''
import { stainedMasks } from '%s';
import { readFileSync } from 'fs';
const cells = JSON.parse(readFileSync('%s'));
const masks = cells.map(data => stainedMasks({ data, width: 64, height: 64 }));
console.log(JSON.stringify(masks.map(m => [[...m.cell], [...m.nucleus], m.share])));
'''

@pytest.mark.skipif(shutil.which('node') is None, reason='needs node')
def test_a_page_finds_cell_and_nucleus_as_the_library_does(tmp_path):
    strip = np.array(Image.open(photographs))
    drawn = simulate_blood(6, size=64, seed=4).images.permute(0, 2, 3, 1).numpy()
    blank = np.full((1, 64, 64, 3), 240, np.uint8)
    pixels = np.concatenate([np.split(strip, 8, axis=1), drawn, blank])
    opaque = np.full((len(pixels), 64, 64, 1), 255)
    cells = np.concatenate([pixels, opaque], axis=3).reshape(len(pixels), -1)
    (tmp_path/'cells.json').write_text(json.dumps(cells.tolist()))
    shutil.copy(package/'browser'/'stain.js', tmp_path/'stain.mjs')
    script = find_stain % (tmp_path/'stain.mjs', tmp_path/'cells.json')
    said = subprocess.run(['node', '--input-type=module', '-e', script], check=True,
                          capture_output=True)
    found = json.loads(said.stdout)
    x = encode(torch.from_numpy(pixels).permute(0, 3, 1, 2))
    for k, what in enumerate(('cell', 'nucleus')):
        theirs = np.array([masks[k] for masks in found]).reshape(-1, 64, 64) > 0
        ours = stained_masks(x, what)[:, 0].numpy()
        assert (theirs != ours).sum((1, 2)).max() <= 2 and ours[:-1].any((1, 2)).all()
    sizes = [stained_masks(x[:1], 'cell', grow=0).sum().item(), found[-1][2]]
    assert found[0][2] == pytest.approx((4/np.pi*sizes[0])**.5/64) and sizes[1] == 0

@pytest.mark.parametrize('kind, channels, pages', [
    (Denoiser, 3, ['index']), (Denoiser, 5, ['index']),
    (Inpainter, 1, ['index', 'paint']), (Inpainter, 2, ['index'])])
def test_a_page_for_a_network_of_ones_own(kind, channels, pages, tmp_path):
    folder = tmp_path/'mine & yours'
    save(tiny(kind, channels, classes=('a', '<b>')), folder)
    (folder/'README.md').write_text('# x\n## Licence and limits\nMine,\nCC0.\n')
    index = export_page(folder, tmp_path/'page')
    assert [p.stem for p in sorted(index.parent.glob('*.html'))] == pages
    text = index.read_text()
    assert 'mine &amp; yours' in text and 'Mine, CC0.' in text
    assert f'data-runtime="{published}"' in text
    about = json.loads((index.parent/'browser'/'model'/'network.json').read_text())
    assert about['classes'] == ['a', '<b>'] and about['about'] == 'Mine, CC0.'
    assert (index.parent/'browser'/'worker.js').exists()

    # Again, with a runtime of one's own
    runtime = tmp_path/'npm'/'node_modules'/'onnxruntime-web'/'dist'
    runtime.mkdir(parents=True)
    for name in (*runtime_files, 'other'):
        (runtime/name).write_text(name)
    export_page(folder, tmp_path/'page', tmp_path/'npm')
    assert 'data-runtime="ort/"' in index.read_text()
    ort = index.parent/'browser'/'ort'
    *scripts, wasm = runtime_files
    assert {p.name for p in ort.iterdir()} == {*scripts, f'{wasm}.gz'}
    assert gzip.decompress((ort/f'{wasm}.gz').read_bytes()) == wasm.encode()

def test_a_page_replaces_nothing_else(tmp_path):
    (tmp_path/'full').mkdir()
    (tmp_path/'full'/'mine.txt').touch()
    said = 'full holds other files, such as mine.txt'
    with pytest.raises(FileExistsError, match=said):
        export_page(tiny(), tmp_path/'full')
    with pytest.raises(FileExistsError, match='mine.txt is a file'):
        export_page(tiny(), tmp_path/'full'/'mine.txt')
    with pytest.raises(FileNotFoundError, match='does not hold ort.wasm'):
        export_page(tiny(), tmp_path/'new', runtime=tmp_path)
    with pytest.raises(TypeError, match='`Denoiser` can be exported'):
        export_page(tiny().unet, tmp_path/'new')
    assert not (tmp_path/'new').exists()

def test_noise_is_normal_and_seeded():
    z = browser_noise(7, (1, 3, 64, 64))
    assert z.dtype == torch.float32 and torch.equal(z, browser_noise(7, (1, 3, 64, 64)))
    assert abs(z.mean()) < .03 and abs(z.std() - 1) < .03 and z.abs().max() > 3
    pair = torch.stack([z.flatten(), browser_noise(8, (12288,))])
    assert abs(torch.corrcoef(pair)[0, 1]) < .03
    assert np.allclose(browser_noise(7, (3,)), [.1420, .0582, -.8643], atol=1e-4)
    assert browser_noise(2**32 + 7, (3,)).equal(browser_noise(7, (3,)))

def test_the_chapter_shows_the_pages_own_sampler():
    blocks = []
    for c in cells(nbs/'web.ipynb', 'markdown'):
        blocks += re.findall(r'```js\n(.*?)\n```', c.source, re.S)
    [shown] = blocks
    page = (package/'browser'/'diffusion.js').read_text(encoding='utf-8')
    assert 'export async function sample' in shown and shown in page

# errors

def test_errors_are_sentences(tmp_path):
    model = tiny(classes=('a',))
    with pytest.raises(TypeError, match='`Denoiser` can be exported, .* not UNet'):
        export_onnx(model.unet, tmp_path/'net.onnx')
    with pytest.raises(ValueError, match='net.pt should end in .onnx'):
        export_onnx(model, tmp_path/'net.pt')
    with pytest.raises(FileNotFoundError, match='write it with `export_onnx`'):
        onnx_session(tmp_path/'none.onnx')

@pytest.mark.parametrize('missing', ['onnx', 'onnxruntime'])
def test_what_is_missing_is_named(missing, tmp_path, monkeypatch):
    model = tiny()
    file = tmp_path/'net.onnx'
    monkeypatch.setitem(sys.modules, missing, None)
    words = rf'needs {missing}, .*pip install cell_diffusion\[web\]'
    with pytest.raises(ImportError, match=words):
        if missing == 'onnx':
            export_onnx(model, file)
        else:
            verify_onnx(file, model)

def test_nothing_of_the_extra_is_imported_before_it_is_needed():
    file = Path(sys.modules['cell_diffusion.web'].__file__)
    source = file.read_text(encoding='utf-8')
    assert not re.search(r'^\s*(import|from) +onnx', source, re.M)
    assert "need('onnx')" in source
