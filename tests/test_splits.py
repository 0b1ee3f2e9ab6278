"Groups of cells that share nothing, checks that say so, names of training sets"
from types import SimpleNamespace
import numpy as np, pytest, torch
from cell_diffusion.splits import (
    assert_disjoint, dihedral_hash, fingerprint, group_duplicates, kfold_cells,
    pixel_hash, shared_cells, split_cells)
from cell_diffusion.transforms import dihedral_views

def test_pixel_hash():
    a = np.arange(27, dtype=np.uint8).reshape(3, 3, 3)
    assert pixel_hash(a) == pixel_hash(a.copy()) == pixel_hash(np.asfortranarray(a))
    assert pixel_hash(a) != pixel_hash(a + np.uint8(1)) and len(pixel_hash(a)) == 16

# ---- splits

def test_split_is_stratified_and_seeded():
    labels = np.repeat(np.arange(4), [100, 50, 20, 10])
    s = split_cells(labels, seed=3)
    assert sorted(np.concatenate(list(s.values()))) == list(range(180))
    assert np.bincount(labels[s['train']]).tolist() == [70, 35, 14, 7]
    assert np.bincount(labels[s['test']]).tolist() == [20, 10, 4, 2]
    again = split_cells(labels, seed=3)
    assert all((again[name] == s[name]).all() for name in s)
    assert not np.array_equal(s['test'], split_cells(labels, seed=4)['test'])

def test_the_split_itself_never_changes():
    "Shipped weights were trained on it: another split would train on their test cells"
    s = split_cells(np.arange(20) % 2)
    assert s['test'].tolist() == [2, 3, 11, 16] and s['valid'].tolist() == [0, 15], s

@pytest.mark.parametrize('shares', [(.5, .5), (.5, .4, .2), (1.2, -.1, -.1)])
def test_wrong_shares(shares):
    with pytest.raises(ValueError, match='add up to 1'):
        split_cells(np.arange(20) % 2, fractions=shares)

@pytest.mark.parametrize('shares', [(1, 0, 0), (0, 0, 1), (.5, 0, .5)])
def test_empty_groups(shares):
    s = split_cells(np.arange(20) % 2, fractions=shares)
    assert [len(i) for i in s.values()] == [20*share for share in shares]

def test_duplicates_stay_together_and_two_class_duplicates_go():
    labels = np.repeat([0, 1], 60)
    hashes = np.arange(120)
    hashes[1:60:2] = hashes[0:60:2]  # pairs within class 0
    hashes[119] = hashes[0]          # one picture under both labels
    files = [f'f{i}' for i in range(120)]
    said = '1 image under two labels dropped: f0 = f1 = f119'
    with pytest.warns(UserWarning, match=said):
        s = split_cells(labels, hashes, files=files)
    assert not any(shared_cells(hashes, s).values())
    assert not {0, 1, 119} & set(np.concatenate(list(s.values())))
    with pytest.warns(UserWarning):
        folds = kfold_cells(labels, hashes, k=4)
    for fold in folds:
        assert not any(shared_cells(hashes, fold).values())
    held_out = np.concatenate([fold['valid'] for fold in folds])
    assert sorted(held_out) == sorted(set(range(120)) - {0, 1, 119})

def test_dropped_cells_without_files_are_named_by_number():
    said = r'2 images under.*cell 0 \(class 0\) = cell 2 \(class 1\); cell 1'
    with pytest.warns(UserWarning, match=said):
        assert group_duplicates([0, 0, 1, 1], list('abab')) == []

def test_shared_cells_counts_pictures():
    counts = shared_cells(list('aabcc'), dict(x=[0, 2], y=[1, 3], z=[2, 4]))
    assert counts == {('x', 'y'): 1, ('x', 'z'): 1, ('y', 'z'): 1}

def test_folds_are_stratified_and_seeded():
    labels = np.repeat(np.arange(3), [30, 20, 10])
    folds = kfold_cells(labels, k=5)
    for fold in folds:
        assert np.bincount(labels[fold['valid']]).tolist() == [6, 4, 2]
        assert sorted([*fold['train'], *fold['valid']]) == list(range(60))
    assert (kfold_cells(labels, k=5)[2]['valid'] == folds[2]['valid']).all()
    other = kfold_cells(labels, k=5, seed=1)
    assert not np.array_equal(other[2]['valid'], folds[2]['valid'])

def test_kfold_small_class():
    with pytest.raises(ValueError, match='smallest class has 3 pictures'):
        kfold_cells([0]*10 + [1]*3, k=5)

# ---- copies in any position

def images(n=12):
    "Cells of random pixels"
    return np.random.default_rng(0).integers(0, 256, (n, 2, 6, 6), np.uint8)

def test_a_hash_that_no_position_changes():
    x = images()
    assert len(set(dihedral_hash(x))) == 12
    for view in dihedral_views(torch.from_numpy(x)):
        assert (dihedral_hash(view.numpy()) == dihedral_hash(x)).all()

def test_dihedral_hashes_never_change():
    assert dihedral_hash(images(2)).tolist() == ['3b7127c24d6cbf93', '0f10a2610b9f37bc']

@pytest.mark.parametrize('position', range(8))
def test_a_leak_in_any_position_is_found(position):
    x = images()
    assert_disjoint(x[:6], x[6:])
    copy = dihedral_views(torch.from_numpy(x[8:9]))[position].numpy()
    said = '1 of the 6 test cells are in the training set of somebody .*number 2'
    with pytest.raises(ValueError, match=said):
        assert_disjoint(np.concatenate([x[:6], copy]), x[6:], 'somebody')

def test_equal_sums_are_no_leak():
    x = images(2)
    y = x.copy()
    y[:, :, 0, 0], y[:, :, 0, 1] = x[:, :, 0, 1], x[:, :, 0, 0]
    assert_disjoint(x, y)

# ---- the name of a training set

def dls(hashes=list('abcd'), train=(0, 1, 2), vocab=('x', 'y'), crop='center'):
    cells = SimpleNamespace(hashes=np.array(hashes), crop=crop)
    return SimpleNamespace(cells=cells, idxs=dict(train=np.array(train)), vocab=vocab)

def test_fingerprint():
    mark = fingerprint(dls())
    assert mark == 'fb52157368cc52c4', 'records and shipped weights hold such marks'
    assert fingerprint(dls(train=(2, 0, 1))) == mark, 'the order does not count'
    others = [dls(train=(0, 1, 3)), dls(vocab=('x', 'z')), dls(crop='field')]
    assert all(fingerprint(o) != mark for o in others)
