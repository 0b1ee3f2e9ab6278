"Cells set aside for the judge reach no generator, and only they reach the judge"
import numpy as np
import pytest

from cell_diffusion.classifier import judge_loaders, reference_classifier
from cell_diffusion.data import cell_dls
from cell_diffusion.recipes import train_model, train_reference_classifier
from cell_diffusion.records import read_json
from cell_diffusion.splits import assert_disjoint, fingerprint, set_aside_for_judge

few = dict(size=28, n=240, device='cpu')


@pytest.fixture(scope='module')
def dls():
    return cell_dls('simulated', set_aside=.25, **few)


def test_the_sides_share_no_cell_and_lose_none(dls):
    usual = cell_dls('simulated', **few)
    both = np.sort(np.concatenate([dls.idxs['train'], dls.idxs['judge']]))
    assert both.tolist() == usual.idxs['train'].tolist()
    for side in ('valid', 'test'):
        assert dls.idxs[side].tolist() == usual.idxs[side].tolist()
    assert_disjoint(dls.train.arrays[0], judge_loaders(dls).train.arrays[0])


def test_a_cell_is_set_aside_by_its_picture_alone(dls):
    aside = {dls.cells.hashes[i] for i in dls.idxs['judge']}
    other = cell_dls('simulated', set_aside=.25, size=28, n=240, device='cpu',
                     split=(.5, .2, .3))
    for i in other.idxs['train']:
        assert other.cells.hashes[i] not in aside
    # A larger share only adds cells
    more = set_aside_for_judge(dls.idxs, dls.cells.hashes, .5)
    assert not set(more['judge']) & set(dls.idxs['judge'])


def test_the_reference_classifier_sees_only_them(dls, monkeypatch):
    seen = {}
    def train(loaders, *args, **kwargs):
        seen.update(cells=loaders.train.arrays[0], balanced=loaders.train.balanced)
        raise InterruptedError
    monkeypatch.setattr('cell_diffusion.classifier.train_classifier', train)
    with pytest.raises(InterruptedError):
        reference_classifier(dls, epochs=1)
    assert (seen['cells'] == dls.cells.images[dls.idxs['judge']]).all()


def test_a_shipped_judge_is_found_by_its_cells(tmp_path, monkeypatch, dls):
    made = train_reference_classifier('simulated', size=28, n=240, epochs=1, dim=8,
                                      set_aside=.25, out=tmp_path/'a-classifier',
                                      progress=False)
    record = read_json(tmp_path/'a-classifier'/'record.json', '')
    assert record['fingerprint'] == fingerprint(judge_loaders(dls))
    assert record['cells']['train'] == len(dls.idxs['judge'])
    assert '--set-aside 0.25' in (tmp_path/'a-classifier'/'README.md').read_text()

    monkeypatch.setattr('cell_diffusion.classifier.weights_folder', tmp_path)
    found = reference_classifier(dls)
    weights = zip(made.half().state_dict().values(), found.half().state_dict().values())
    assert all((a == b).all() for a, b in weights)


def test_record_and_card_of_a_run_say_who_judged(tmp_path):
    run = dict(size=28, n=240, dim=8, mults=(1, 2), epochs=1, bs=16, set_aside=.25,
               classes=True, optimizer='muon', steps=2, progress=False)
    with pytest.warns(UserWarning):
        record = train_model('simulated', out=tmp_path/'run', scored=16, **run)
    assert record['set_aside'] == .25 and record['lr'] == 4e-3
    card = (tmp_path/'run'/'README.md').read_text()
    assert f"{record['cells']['judge']} cells that the network never saw" in ' '.join(
        card.split())
    assert 'optimizer Muon, learning rate 0.004' in card


@pytest.mark.parametrize('share', [-.1, 1, 'half', float('nan'), None])
def test_shares_that_are_none(share):
    with pytest.raises(ValueError, match='set_aside'):
        cell_dls('simulated', set_aside=share, **few)


def test_too_few_cells_to_set_some_aside(tmp_path):
    with pytest.raises(ValueError, match='without a judge cell: add pictures'):
        cell_dls('simulated', size=28, n=80, set_aside=.001, device='cpu')
