"FID, KID and DINOv2 distances, with small stand-ins for both networks and the cells"
import json
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import requests
import torch
import torch.nn as nn
from typer.testing import CliRunner

from test_data import bloodmnist_file

import cell_diffusion.studies.fid as fid
from cell_diffusion.cli import app
from cell_diffusion.denoiser import Denoiser, save
from cell_diffusion.metrics import frechet_distance, kernel_distance
from cell_diffusion.simulation import blood_classes

small = dict(dim=8, mults=(1, 2))


class Corners(nn.Module):
    "A stand-in: three numbers of each image"
    def forward(self, x):
        assert x.dtype == torch.uint8 and x.shape[1] == 3
        return x[:, :, 0, 0].float()


stand_ins = dict(inception=Corners(), dinov2=Corners()), dict(inception='a', dinov2='b')


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return bloodmnist_file(tmp_path_factory.mktemp('m'))


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp('net')/'net'
    save(Denoiser(dict(small, channels=3), classes=blood_classes, size=28), folder)
    return folder


def measure(model, data, **call):
    return fid.published_distances(model, str(data), source='bloodmnist', steps=1,
                                   networks=stand_ins, progress=False, **call)


def test_generated_and_test_cells_against_training_cells(model, data, monkeypatch):
    asked = []

    def sample(network, n, label, *args, **kwargs):
        asked.extend(label)
        return torch.rand(n, 3, 28, 28)*2 - 1
    monkeypatch.setattr(fid, 'sample', sample)
    table, record = measure(model, data)
    assert (record['train'], record['test']) == (20, 10)
    assert sorted(asked) == sorted(np.arange(20) % 8)
    for name, rows in table.groupby('features'):
        assert rows.cells.tolist() == ['generated', 'test', 'generated']
        assert rows.n.tolist() == [20, 10, 10]

    stored = np.load(data/'bloodmnist.npz')
    real, test = (torch.tensor(stored[f'{side}_images'][:, 0, 0]).float()
                  for side in ('train', 'test'))
    row = table[table.cells == 'test'].iloc[0]
    assert row.fd == pytest.approx(frechet_distance(real, test))
    assert row.kid == pytest.approx(kernel_distance(real, test, 1000, 100))
    assert row.kid_sd >= 0


def test_cells_set_aside_for_a_judge_are_training_cells():
    cells = SimpleNamespace(images=np.arange(9), labels=np.arange(9)*2)
    idxs = dict(train=[0, 3], judge=[5], test=[7])
    images, labels = fid.training_cells(SimpleNamespace(cells=cells, idxs=idxs))
    assert images.tolist() == [0, 3, 5] and labels.tolist() == [0, 6, 10]


def test_one_command(model, data, monkeypatch, tmp_path):
    monkeypatch.setattr(fid, 'published_networks', lambda progress: stand_ins)
    words = ['fid', model, '--data', data, '--source', 'bloodmnist', '--steps', 1,
             '--n', 6, '--out', tmp_path/'fid.json']
    result = CliRunner().invoke(app, [str(w) for w in words])
    assert result.exit_code == 0, result.output
    assert 'dinov2' in result.output and 'kid_sd' in result.output
    kept = json.loads((tmp_path/'fid.json').read_text())
    assert kept['sha256'] == stand_ins[1] and len(kept['rows']) == 4
    assert pd.DataFrame(kept['rows']).n.tolist() == [6, 10]*2


def test_cells_without_colours_are_refused(tmp_path, data):
    save(Denoiser(dict(small, channels=2), size=28), tmp_path/'net')
    with pytest.raises(ValueError, match='has 2 channels, and Inception and DINOv2'):
        measure(tmp_path/'net', data)


# The real networks, as far as one can go without them

@pytest.mark.parametrize('missing', ['timm', 'torch_fidelity'])
def test_what_is_missing_is_named_before_any_cell_is_read(model, monkeypatch, missing):
    for name in ('timm', 'torch_fidelity'):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=r'pip install cell_diffusion\[fid\]'):
        fid.published_distances(model)


def test_without_a_connection_it_says_what_to_do(monkeypatch, tmp_path):
    def refuse(*args, **kwargs): raise requests.ConnectionError('no route')
    monkeypatch.setattr(fid.pooch, 'retrieve', refuse)
    with pytest.raises(ConnectionError, match='save it as .*inception.pth'):
        fid.weights_file('inception.pth', False)


def test_the_networks_get_what_they_expect(monkeypatch):
    "Inception whole numbers, resized by itself; DINOv2 224 pixels, normalised"
    seen = {}

    class Extractor(nn.Module):
        def __init__(self, name, features, file):
            super().__init__()
            seen['inception'] = name, features, file

        def forward(self, x):
            assert x.dtype == torch.uint8
            return (x.flatten(1).float(),)

    def create_model(name, **kwargs):
        seen['dinov2'] = name, kwargs
        return nn.Identity()
    inner = ModuleType('torch_fidelity.feature_extractor_inceptionv3')
    inner.FeatureExtractorInceptionV3 = Extractor
    for module in (ModuleType('torch_fidelity'), inner):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(sys.modules, 'timm', SimpleNamespace(create_model=create_model))
    monkeypatch.setattr(fid, 'weights_file', lambda name, progress: __file__)
    networks, hashes = fid.published_networks(False)
    assert set(networks) == set(hashes) == {'inception', 'dinov2'}
    assert seen['inception'] == ('inception-v3-compat', ['2048'], __file__)
    assert seen['dinov2'][1]['pretrained_cfg_overlay'] == dict(file=__file__)
    assert seen['dinov2'][1]['img_size'] == 224

    white = torch.full((2, 3, 64, 64), 255, dtype=torch.uint8)
    assert fid.features_of(networks['inception'], white, 1).shape == (2, 3*64*64)
    x = networks['dinov2'](white)
    expected = (1 - torch.tensor([.485, .456, .406]))/torch.tensor([.229, .224, .225])
    assert x.shape == (2, 3, 224, 224)
    assert torch.allclose(x[0, :, 0, 0], expected, atol=1e-5)
