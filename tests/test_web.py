"Networks as ONNX: the same answers as PyTorch, a JSON file that a page can trust, cells to choose from, errors that are sentences"
import hashlib, json, re, sys
from pathlib import Path
import numpy as np, onnx, pytest, torch
from PIL import Image
from common import cells, nbs
from cell_diffusion.conditioning import Guided
from cell_diffusion.ddpm import *
from cell_diffusion.inpainting import *
from cell_diffusion.web import *

def tiny(kind=Denoiser, channels=3, **kwargs):
    "An untrained network that does not answer zero"
    torch.manual_seed(0)
    unet = dict(dim=8, mults=[1, 2], channels=channels) if kind is Denoiser else dict(dim=8, mults=[1, 2], channels=2*channels + 1, out_channels=channels)
    model = kind(unet, **{**dict(schedule='log_snr', T=50, prediction='v', data_std=.5, size=16), **kwargs}).eval()
    for p in model.parameters():
        if not p.detach().any(): torch.nn.init.normal_(p, std=.1)
    return model.requires_grad_(False)

def facts(file): return json.loads(file.with_suffix('.json').read_text())

# agreement

@pytest.mark.parametrize('name', ['blood32', 'blood64', 'blood64-inpaint', 'jurkat40'])
def test_shipped_networks_agree(name, tmp_path):
    model = load_network(name)
    file = export_onnx(model, tmp_path/f'{name}.onnx')
    rows = verify_onnx(file, model)
    assert {r['n'] for r in rows} == {1, 3} and len({r['t'] for r in rows}) == 5 and max(r['error'] for r in rows) < 1e-4
    about = facts(file)
    assert about['classes'] == list(model.classes) and about['size'] == model.size and about['channels'] == model.channels
    assert file.stat().st_size < 2.1*sum(p.numel() for p in model.parameters()) + 200_000              # half precision, and not much beside it

@pytest.mark.parametrize('kind', [Denoiser, Inpainter])
@pytest.mark.parametrize('classes', [(), ('a', 'b')])
@pytest.mark.parametrize('channels, prediction', [(1, 'eps'), (2, 'x0'), (5, 'v')])
def test_networks_of_every_kind_agree(kind, classes, channels, prediction, tmp_path):
    model = tiny(kind, channels, classes=classes, prediction=prediction, data_mean=(.1,)*channels)
    file = export_onnx(model, tmp_path/'net.onnx')
    assert verify_onnx(file, model)
    assert facts(file)['inputs'] == ['x', 't', *['label']*bool(classes), *(['known', 'mask'] if kind is Inpainter else [])]
    assert not model.training and model.prediction == prediction                 # the network itself is left alone

def test_other_sizes_and_every_label(tmp_path):
    model = tiny(Inpainter, classes=('a', 'b'))
    session = onnx_session(export_onnx(model, tmp_path/'net.onnx'))
    inputs = dict(x=torch.randn(3, 3, 24, 20), t=torch.tensor([0, 20, 49]).int(), label=torch.tensor([0, 1, 2]).int(), known=torch.rand(3, 3, 24, 20), mask=(torch.rand(3, 1, 24, 20) > .5).float())
    there = torch.from_numpy(session.run(None, {k: v.numpy() for k, v in inputs.items()})[0])
    assert torch.allclose(there, DenoiserStep(model)(**inputs), atol=1e-5)
    hidden = (inputs['mask'] > 0).expand_as(there)
    assert torch.equal(there[~hidden], inputs['known'][~hidden])                  # known pixels come out as they went in
    changed = {**inputs, 'known': torch.where(hidden, 9., inputs['known'])}       # what is hidden is not looked at
    assert np.array_equal(session.run(None, {k: v.numpy() for k, v in changed.items()})[0], there.numpy())

def test_a_whole_run_with_the_json_file_alone(tmp_path):
    model = tiny(classes=('a', 'b'))
    file = export_onnx(model, tmp_path/'net.onnx', steps=(6,))
    session, about, x = onnx_session(file), facts(file), browser_noise(3, (1, 3, 16, 16))
    class Exported:                                                               # stands in for the network
        schedule = model.schedule
        def x0(self, xt, t, label, clip=True):
            ask = lambda c: session.run(None, dict(x=xt.numpy(), t=t.int().numpy(), label=np.int32([c])))[0]
            free, asked = ask(about['null_class']), ask(label.item())
            return torch.from_numpy(free + 2*(asked - free)).clamp(-1, 1)
    label = torch.tensor([1])
    assert about['walks']['6']['t'] == timesteps(model.schedule, 6).tolist()
    assert torch.allclose(dpm_solver(Exported(), x, label, steps=6), dpm_solver(Guided(model, 2), x, label, steps=6), atol=1e-4)

def test_another_network_is_noticed(tmp_path):
    file = export_onnx(tiny(), tmp_path/'net.onnx')
    other = tiny(); other.unet.conv_in.weight.data += .1
    with pytest.raises(ValueError, match='differs from PyTorch by .* at timestep 0 with a batch of 1'): verify_onnx(file, other)

# files

def test_the_json_file_says_what_a_page_needs(tmp_path):
    model = tiny(Inpainter, classes=('a', 'b'), data_mean=(.1, .2, .3))
    file = export_onnx(model, tmp_path/'deep'/'net.onnx', about='Mine, CC0.', steps=(5, 10, 999))
    about, data = facts(file), file.read_bytes()
    assert about['bytes'] == len(data) and about['sha256'] == hashlib.sha256(data).hexdigest() and about['file'] == 'net.onnx'
    assert about['null_class'] == 2 and about['data_std'] == .5 and about['data_mean'] == [.1, .2, .3] and about['factor'] == 2 and about['about'] == onnx.load(file).doc_string == 'Mine, CC0.'
    assert list(about['walks']) == ['5', '10']                                    # the schedule has 50 timesteps
    walk = about['walks']['10']
    assert len(walk['t']) == len(walk['signal']) == len(walk['noise']) and walk['t'] == sorted(walk['t'], reverse=True)
    assert np.allclose(np.square(walk['signal']) + np.square(walk['noise']), 1)
    assert export_onnx(model, tmp_path/'again.onnx', about='Mine, CC0.').read_bytes() == data

def test_only_weights_that_lose_nothing_are_stored_in_half(tmp_path):
    model = tiny()
    kinds = lambda file: {i.data_type for i in onnx.load(file).graph.initializer if 'conv' in i.name and i.name.split('.half')[0].endswith('weight')}
    full = export_onnx(model, tmp_path/'full.onnx')
    half = export_onnx(model.half().float(), tmp_path/'half.onnx')
    assert kinds(full) == {onnx.TensorProto.FLOAT} and kinds(half) == {onnx.TensorProto.FLOAT16} and half.stat().st_size < .8*full.stat().st_size
    assert verify_onnx(half, model)

def test_all_that_the_pages_need(tmp_path):
    files = write_browser_files(tmp_path)
    assert [f.name for f in files] == ['blood64-inpaint.json', 'blood64-inpaint.onnx', 'cells.json', 'cells.png'] and sum(f.stat().st_size for f in files) < 4.2e6
    about, titles, sheet = json.loads(files[0].read_text()), json.loads(files[2].read_text()), np.array(Image.open(files[3]))
    assert 'CC BY 4.0' in about['about'] and 'not for clinical use' in about['about'] and '20' in about['walks']
    assert sheet.shape == (128, 64*len(titles), 3) and len(titles) == 12 and {t['label'] for t in titles} == set(about['classes'])
    assert set(np.unique(sheet[64:])) == {0, 255} and sheet[:64].std() > 20

def test_noise_is_normal_and_seeded():
    z = browser_noise(7, (1, 3, 64, 64))
    assert z.dtype == torch.float32 and abs(z.mean()) < .03 and abs(z.std() - 1) < .03 and torch.equal(z, browser_noise(7, (1, 3, 64, 64)))
    assert abs(torch.corrcoef(torch.stack([z.flatten(), browser_noise(8, (12288,))]))[0, 1]) < .03 and z.abs().max() > 3
    assert np.allclose(browser_noise(7, (3,)), [.1420, .0582, -.8643], atol=1e-4) and browser_noise(2**32 + 7, (3,)).equal(browser_noise(7, (3,)))

def test_the_chapter_shows_the_pages_own_sampler():
    [shown] = [block for c in cells(nbs/'web.ipynb', 'markdown') for block in re.findall(r'```js\n(.*?)\n```', c.source, re.S)]
    assert 'export async function sample' in shown and shown in (nbs/'browser'/'diffusion.js').read_text(encoding='utf-8')

# errors

def test_errors_are_sentences(tmp_path, monkeypatch):
    model = tiny(classes=('a',))
    with pytest.raises(TypeError, match='`Denoiser` can be exported, not Guided'): export_onnx(Guided(model, 2), tmp_path/'net.onnx')
    with pytest.raises(ValueError, match='net.pt should end in .onnx'): export_onnx(model, tmp_path/'net.pt')
    with pytest.raises(FileNotFoundError, match='write it with `export_onnx`'): onnx_session(tmp_path/'none.onnx')
    for missing, f in dict(onnx=lambda: export_onnx(model, tmp_path/'net.onnx'), onnxruntime=lambda: verify_onnx(tmp_path/'net.onnx', model)).items():
        monkeypatch.setitem(sys.modules, missing, None)
        with pytest.raises(ImportError, match=rf'needs {missing}, .*pip install cell_diffusion\[web\]'): f()

def test_nothing_of_the_extra_is_imported_before_it_is_needed():
    source = Path(sys.modules['cell_diffusion.web'].__file__).read_text(encoding='utf-8')
    assert not re.search(r'^\s*(import|from) +onnx', source, re.M) and "_need('onnx')" in source
