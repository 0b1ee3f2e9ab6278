"The reference classifier: network, trainer, and the finder of the one that fits"
import json
import re
from functools import partial
import numpy as np
import pytest
import torch
import torch.nn as nn
from PIL import Image
import cell_diffusion.classifier as module
from cell_diffusion.classifier import (
    CellClassifier, build_resnet, default_epochs, features_and_predictions,
    predict_classes, reference_classifier, train_classifier,
)
from cell_diffusion.classifier import classifier_folder, enough_epochs, trained_how
from cell_diffusion.core import generator
from cell_diffusion.data import CellLoader, CellLoaders, cell_dls
from cell_diffusion.denoiser import load, save
from cell_diffusion.simulation import jurkat_phases
from cell_diffusion.splits import fingerprint
from cell_diffusion.training import Checkpoint
from conftest import root

def classifier(classes=('a', 'b', 'c'), seed=0, **kwargs):
    torch.manual_seed(seed)
    return CellClassifier(list(classes), **{**dict(dim=8), **kwargs}).eval()

def images(n, channels=3, size=32, seed=0):
    return torch.rand(n, channels, size, size, generator=generator(seed))*2 - 1

def cells(n=60, bs=16, size=28, **kwargs):
    return cell_dls('simulated', size=size, bs=bs, n=n, cache=False, device='cpu',
                    **kwargs)

def same(a, b):
    state = b.state_dict()
    return all(torch.equal(v, state[k]) for k, v in a.state_dict().items())

# ---- the network

@pytest.mark.parametrize('channels, size', [(3, 28), (1, 32), (2, 40), (3, 64)])
def test_classifier_shapes(channels, size):
    net = classifier(channels=channels, size=size)
    x = images(2, channels, size)
    features = net.features(x)
    assert features.shape == (2, net.n_features) == (2, 32)
    assert net(x).shape == (2, 3)
    assert (features >= 0).all()
    assert torch.allclose(net.head(features), net(x))

@pytest.mark.parametrize('size, stride', [(28, 1), (32, 1), (39, 1), (40, 2), (64, 2)])
def test_first_stride(size, stride):
    assert classifier(size=size).body[0].stride == (stride, stride)
    assert classifier(size=size, stride=2).body[0].stride == (2, 2)

def test_classifier_comes_back_from_disk(tmp_path):
    net = classifier(('x', 'y'), channels=2, size=64)
    save(net, tmp_path)
    again = load(tmp_path, 'cpu', 'float32', CellClassifier)
    assert again.classes == ('x', 'y') and again.size == 64 and not again.training
    x = images(3, 2, 64)
    # Weights are kept in half precision
    assert torch.allclose(again(x), net.half().float()(x), atol=1e-5)

def test_shipped_classifiers_load():
    for name, size in (('blood-classifier-32', 32), ('blood-classifier-64', 64)):
        net = load(name, 'cpu', 'float32', CellClassifier)
        assert (net.size, net.channels, net.n_features) == (size, 3, 128)
        assert net.precision == 'float32' and not net.training
        features, predicted = features_and_predictions(net, images(4, size=size))
        assert features.shape == (4, 128) and features.dtype == torch.float32
        assert predicted.max() < len(net.classes) == 8

def test_features_do_not_depend_on_the_batch():
    net = classifier()
    net.train()
    x = images(9)
    features, predicted = features_and_predictions(net, x)
    features2, predicted2 = features_and_predictions(net, x, bs=4)
    assert not net.training and not features.requires_grad
    assert torch.allclose(features, features2, atol=1e-5)
    assert torch.equal(predicted, predicted2)
    assert torch.equal(predicted, net(x).argmax(1))

def test_predicted_classes_follow_the_weights():
    net = classifier()
    x = images(9)
    plain = predict_classes(net, x)
    assert plain.tolist() == net(x).argmax(1).tolist()
    assert (predict_classes(net, x, [1, 1e9, 1]) == 1).all()
    half = predict_classes(net, x, [.5, .5, .5])
    assert half.tolist() == plain.tolist(), 'a factor on all classes changes nothing'

@pytest.mark.parametrize('name', ['cell', 'resnet18'])
def test_resnets_for_small_images(name):
    net = build_resnet(name, ('a', 'b'), channels=2, size=24).eval()
    assert net(images(2, 2, 24)).shape == (2, 2)
    if name == 'cell': assert net.body[0].stride == (2, 2)

@pytest.mark.parametrize('name', ['vgg11', 'magic'])
def test_other_networks_are_refused(name):
    with pytest.raises(ValueError, match=f'{name} is not a ResNet'):
        build_resnet(name, ('a', 'b'), 3, 32)

# ---- the trainer

def test_training_starts_from_the_seed():
    dls = cells()
    nets = []
    for _ in range(2):
        dls.train.set_epoch(0)
        nets.append(train_classifier(dls, 1, dim=8))
    assert nets[0].classes == dls.vocab and same(*nets)

def test_length_of_training(monkeypatch):
    dls = cells()
    calls = []
    forward = CellClassifier.forward
    def noted(self, x):
        calls.append((self.training, len(x), self.precision))
        return forward(self, x)
    monkeypatch.setattr(CellClassifier, 'forward', noted)
    net = train_classifier(dls, steps=5, dim=8, precision='bfloat16')
    assert calls == [(True, 16, 'bfloat16')]*5
    assert net.precision == 'float32' and not net.training

    dls.train.set_epoch(0)
    by_epochs = train_classifier(dls, 2, dim=8)
    dls.train.set_epoch(0)
    by_steps = train_classifier(dls, steps=2*len(dls.train), dim=8)
    assert same(by_epochs, by_steps)
    with pytest.raises(ValueError, match='steps=0 should'):
        train_classifier(dls, steps=0)

def test_learning_rate_falls_at_the_end_of_the_steps(monkeypatch):
    rates = []
    class Spy(module.ForSteps):
        def after_step(self): rates.append(self.opt.hypers[-1]['lr'])
    monkeypatch.setattr(module, 'ForSteps', Spy)
    train_classifier(cells(), steps=11, lr=.01, dim=8)
    assert len(rates) == 11 and max(rates) == pytest.approx(.01, rel=.1)
    assert rates[0] < .001 and rates[-1] < .002
    assert np.argmax(rates) in (2, 3)

@pytest.mark.parametrize('precision, dtype', [('bfloat16', torch.bfloat16),
                                              ('float32', torch.float32)])
def test_other_networks_are_trained_too(monkeypatch, precision, dtype):
    dls = cells()
    seen = []
    def build(name, classes, channels, size):
        net = build_resnet('resnet18', classes, channels, size)
        net.fc.register_forward_hook(lambda m, inputs, out: seen.append(out.dtype))
        return net
    monkeypatch.setattr(module, 'build_resnet', build)
    net = train_classifier(dls, steps=2, network='resnet18', precision=precision)
    assert seen == [dtype]*2 and not net.training
    assert net(images(1, size=28)).dtype == torch.float32

def test_class_weights_are_those_of_the_loss(monkeypatch):
    losses = []
    loss = torch.nn.CrossEntropyLoss
    def noted(weight): return losses.append(weight) or loss(weight)
    monkeypatch.setattr(module.nn, 'CrossEntropyLoss', noted)
    dls = cells()
    a = train_classifier(dls, steps=1, dim=8)
    b = train_classifier(dls, steps=1, dim=8, class_weights=np.arange(1, 9)/4)
    assert losses[0] is None and losses[1].tolist() == [k/4 for k in range(1, 9)]
    assert not same(a, b)

def test_one_loader_is_enough_for_an_epoch_of_steps():
    dls = cells()
    x, y = dls.train.arrays
    def loaders():
        train = CellLoader(x, y, np.arange(len(y)), dls.vocab, 8, train=True)
        return CellLoaders(train, train, device='cpu')
    nets = [train_classifier(loaders(), epochs=1, network='cell') for _ in range(2)]
    assert same(*nets) and nets[0].classes == dls.vocab

def test_the_trainer_is_the_only_one():
    "Classifiers are trained with cross-entropy, which one function of the package uses"
    trainers = []
    for file in sorted((root/'cell_diffusion').rglob('*.py')):
        text = file.read_text(encoding='utf-8')
        for part in re.split(r'(?m)^(?=def |class )', text):
            if 'CrossEntropyLoss' not in part: continue
            trainers.append((file.name, part.split('(')[0]))
    assert trainers == [('classifier.py', 'def train_classifier')]

settings = dict(dim=8, precision='float32', steps=2)

@pytest.mark.parametrize('name, other', [
    ('dim', dict(dim=16)), ('precision', dict(precision='bfloat16')),
    ('class_weights', dict(class_weights=[2.] + [1.]*7)),
    ('balanced', dict(balanced=True)), ('augment', dict(augment=False)),
    ('bs', dict(bs=15)),
])
def test_a_checkpoint_of_other_settings_is_refused(tmp_path, name, other):
    file = tmp_path/'checkpoint.pt'
    train_classifier(cells(), **settings, checkpoint=file)
    train_classifier(cells(), **settings, checkpoint=file)
    loaders = {k: other[k] for k in ('balanced', 'augment', 'bs') if k in other}
    call = {**settings, **{k: v for k, v in other.items() if k not in loaders}}
    with pytest.raises(ValueError, match=f'another run: {name} was'):
        train_classifier(cells(**loaders), **call, checkpoint=file)

# ---- the finder

@pytest.fixture
def places(tmp_path, monkeypatch):
    "Nothing shipped, nothing cached, and a way of putting a classifier somewhere"
    monkeypatch.setattr(module, 'weights_folder', tmp_path/'weights')
    monkeypatch.setenv('CELL_DIFFUSION_CACHE', str(tmp_path/'cache'))
    def keep(folder, dls, seed, **other):
        _, channels, size, _ = dls.one_batch()[0].shape
        net = classifier(dls.vocab, seed, channels=channels, size=size)
        save(net, folder)
        record = dict(fingerprint=fingerprint(dls), size=size, channels=channels,
                      trained=trained_how(dls, epochs=150))
        (folder/'record.json').write_text(json.dumps({**record, **other}))
        return load(folder, 'cpu', 'float32')
    return tmp_path/'weights', keep

@pytest.fixture
def training(monkeypatch):
    "Training takes no time, and its epochs are noted"
    asked = []
    def train(dls, epochs, **kwargs):
        asked.append(epochs)
        return classifier(dls.vocab, seed=9, size=28)
    monkeypatch.setattr(module, 'train_classifier', train)
    return asked

def test_shipped_then_cached_then_new(places, training):
    weights, keep = places
    dls = cells(40, bs=8)
    new = classifier(dls.vocab, seed=9, size=28)
    assert same(reference_classifier(dls, 3), new) and training == [3]
    cached = keep(classifier_folder(dls, epochs=150), dls, 5)
    assert same(reference_classifier(dls), cached)
    shipped = keep(weights/'z-my-classifier-28', dls, 6)
    assert same(reference_classifier(dls), shipped)
    assert training == [3], 'one was trained although one was there'

def test_classifiers_of_other_cells_are_not_taken(places, training):
    weights, keep = places
    dls = cells(40, bs=8)
    wrong = [dict(fingerprint='0'*16), dict(size=32), dict(channels=2)]
    for i, record in enumerate(wrong):
        keep(weights/f'a-classifier-{i}', dls, i, **record)
    keep(weights/'a-classifier-8', cells(48, bs=8), 8)
    keep(weights/'denoiser', dls, 7)
    (weights/'b-classifier').mkdir() # Without a record
    reference_classifier(dls, 4)
    assert training == [4]

def test_weights_that_contradict_their_record_are_refused(places, training):
    weights, keep = places
    dls = cells(40, bs=8)
    keep(weights/'a-classifier', dls, 1)
    save(classifier(dls.vocab, size=32), weights/'a-classifier')
    with pytest.raises(ValueError, match='than its record says'):
        reference_classifier(dls)
    (weights/'a-classifier'/'model.safetensors').write_bytes(b'half a file')
    with pytest.raises(ValueError, match='damaged'):
        reference_classifier(dls)
    assert training == []

def test_only_classifiers_are_taken(places, training):
    weights, keep = places
    dls = cells(40, bs=8)
    keep(weights/'a-classifier', dls, 1)
    file = weights/'a-classifier'/'config.json'
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, 'class': 'Denoiser'}))
    with pytest.raises(ValueError, match='CellClassifier.* is needed'):
        reference_classifier(dls)

@pytest.mark.parametrize('file, content', [
    ('model.safetensors', b'half a file'), ('record.json', b'{"fingerprint": "06'),
    ('config.json', b'{}'), ('record.json', b'{}'),
])
def test_a_damaged_cache_is_made_again(places, training, file, content):
    _, keep = places
    dls = cells(40, bs=8)
    folder = classifier_folder(dls, epochs=150)
    keep(folder, dls, 5)
    (folder/file).write_bytes(content)
    with pytest.warns(UserWarning, match='damaged and was removed'):
        kept = reference_classifier(dls, keep=True)
    assert training == [150]
    assert same(reference_classifier(dls), kept) and training == [150]

def test_other_size_has_another_place(places):
    folders = {classifier_folder(cells(40, bs=8, size=size)) for size in (28, 32)}
    assert len(folders) == 2

def test_what_is_kept(places):
    dls = cells(40)
    net = reference_classifier(dls, 1, dim=8)
    folder = classifier_folder(dls, epochs=1, dim=8)
    assert net.classes == dls.vocab and not folder.exists()
    assert folder.name.startswith(f'{fingerprint(dls)}-3x28-')

    kept = reference_classifier(dls, 1, keep=True, dim=8)
    record = json.loads((folder/'record.json').read_text())
    assert record['fingerprint'] == fingerprint(dls)
    assert (record['channels'], record['size'], record['epochs']) == (3, 28, 1)
    assert 0 <= record['accuracy'] <= 1
    found = reference_classifier(dls, 1, dim=8)
    assert same(found, kept), 'the same, trained now or found'

def test_a_cache_that_cannot_be_written_is_done_without(places, tmp_path, monkeypatch):
    (tmp_path/'file').write_text('')
    dls = cells(40)
    monkeypatch.setenv('CELL_DIFFUSION_CACHE', str(tmp_path/'file'))
    with pytest.warns(UserWarning, match='could not be kept .*trained again') as said:
        net = reference_classifier(dls, 1, keep=True, dim=8)
    assert len(said) == 1 and next(net.parameters()).device.type == 'cpu'

@pytest.mark.parametrize('killed_at', [2, 5, 'end'])
def test_a_killed_training_goes_on(places, monkeypatch, killed_at):
    "A judge takes minutes: killed at any batch, or before it is kept, it goes on"
    dls = cells(40)
    steps = []
    def loss(scores, targets):
        steps.append(1)
        if killed_at == len(steps): raise KeyboardInterrupt
        return nn.functional.cross_entropy(scores, targets)
    def train():
        return reference_classifier(dls, 6, keep=True, dim=8, loss_func=loss)
    whole = reference_classifier(dls, 6, keep=True, dim=8,
                                 loss_func=nn.functional.cross_entropy)
    monkeypatch.setattr(module, 'Checkpoint', partial(Checkpoint, every=0))
    with monkeypatch.context() as killed, pytest.raises(KeyboardInterrupt):
        def kill(*_, **__): raise KeyboardInterrupt
        killed.setattr(module, 'keep_classifier', kill)
        train()
    done = len(steps)
    kept = train()
    assert len(steps) - done == 6 - (6 if killed_at == 'end' else killed_at - 1)
    assert same(kept, whole)
    assert not list(classifier_folder(dls, epochs=6).parent.glob('*.pt'))

def test_a_damaged_checkpoint_is_begun_anew(places):
    dls = cells(40)
    file = classifier_folder(dls, epochs=1, dim=8).with_suffix('.pt')
    file.parent.mkdir(parents=True)
    file.write_bytes(b'half a checkpoint')
    with pytest.warns(UserWarning, match='damaged and was removed'):
        reference_classifier(dls, 1, keep=True, dim=8)
    assert not file.exists()

def test_a_cache_that_may_only_be_read_gets_no_checkpoint(places, monkeypatch):
    monkeypatch.setattr(module.os, 'access', lambda *_: False)
    monkeypatch.setattr(module, 'Checkpoint', None)
    reference_classifier(cells(40), 1, keep=True, dim=8)

def test_one_number_of_epochs(monkeypatch, places, training):
    "150 steps of 28 cells at most, whatever the batches of the run are"
    for loaders in (dict(), dict(bs=1), dict(balanced=True)):
        reference_classifier(cells(40, **dict(dict(bs=8), **loaders)))
    assert training == [150]*3
    expected = {63: 150, 64: 150, 128: 75, 64*12: 13, 64*13: default_epochs}
    assert {n: enough_epochs(n) for n in expected} == expected

@pytest.mark.parametrize('loaders', [
    dict(bs=1), dict(balanced=True), dict(augment=False), dict(bs=5, balanced=True)])
def test_one_classifier_for_the_same_cells(places, loaders):
    "`train`, `balance` and `score` read cells with loaders of their own"
    plain = reference_classifier(cells(), 1, dim=8)
    dls = cells(**loaders)
    list(dls.train) # An epoch later
    assert same(reference_classifier(dls, 1, dim=8), plain)

def test_other_labels_have_another_place(places):
    dls = cells(40, bs=8)
    before = classifier_folder(dls)
    assert classifier_folder(cells(40, bs=4, balanced=True)) == before
    dls.cells.labels = dls.cells.labels[::-1].copy()
    assert fingerprint(dls) == fingerprint(cells(40, bs=8))
    assert classifier_folder(dls) != before

# ---- the fingerprint

def test_fingerprint():
    a, b, c = (cells(40, bs=8, seed=seed) for seed in (0, 0, 1))
    assert fingerprint(a) == fingerprint(b) != fingerprint(c)
    assert len(fingerprint(a)) == 16 and int(fingerprint(a), 16)
    b.idxs['train'] = b.idxs['train'][:-1]
    assert fingerprint(a) != fingerprint(b)

def jurkat_folder(path, n=6, seed=0):
    rng = np.random.default_rng(seed)
    for phase in jurkat_phases:
        folder = path/'CellCycle'/phase
        folder.mkdir(parents=True)
        for i in range(n):
            for channel in (3, 4, 6):
                pixels = rng.integers(0, 256, (40, 40), dtype=np.uint8)
                Image.fromarray(pixels).save(folder/f'{i}_Ch{channel}.ome.jpg')
    return path

def test_fingerprint_knows_the_channels(tmp_path):
    folder = jurkat_folder(tmp_path)
    choices = (('brightfield', 'darkfield'), ('brightfield', 'dna'),
               ('darkfield', 'brightfield'), ('brightfield', 'darkfield', 'dna'),
               ('dna',))
    def marks(source, **kwargs):
        return [fingerprint(cell_dls(source, bs=8, channels=c, cache=False, **kwargs))
                for c in choices]
    of_folder = marks(folder, size=40)
    assert len(set(of_folder)) == len(choices)
    # Sizes are told apart by the size itself
    assert fingerprint(cell_dls(folder, size=28, bs=8, cache=False)) == of_folder[0]
    assert len(set(marks('simulated-jurkat', size=28, n=60))) == len(choices)
