"The simulator: seeds, chunks, sizes, masks, proportions, DNA, and errors"
from functools import partial
import numpy as np
import pytest
import torch
from cell_diffusion import simulation as sim
from cell_diffusion.simulation import SimulatedCells, blood_classes, jurkat_phases
from cell_diffusion.simulation import simulate_blood, simulate_jurkat

parts = 'images', 'labels', 'cell', 'nucleus'

def same(a, b):
    return all(torch.equal(getattr(a, k), getattr(b, k)) for k in parts)

def first(cells, n):
    return SimulatedCells(*[getattr(cells, k)[:n] for k in parts], cells.names)

both = pytest.mark.parametrize('simulate', [simulate_blood, simulate_jurkat])

@both
def test_a_seed_gives_the_same_pixels_and_another_seed_others(simulate):
    cells = simulate(6, 32, seed=5)
    assert same(cells, simulate(6, 32, seed=5))
    assert not torch.equal(cells.images, simulate(6, 32, seed=6).images)

@both
def test_a_cell_does_not_depend_on_how_many_are_drawn(simulate):
    assert same(simulate(5, 29, seed=1), first(simulate(50, 29, seed=1), 5))

def test_a_cell_does_not_depend_on_the_chunks():
    labels = np.arange(9) % 8
    draw = partial(sim.draw_blood, size=40, seed=3)

    def drawn(cells):
        return sim.draw_in_chunks(draw, labels, 40, pixels=cells*40**2)

    one_by_one = drawn(1)
    for cells in (4, 7, 10):
        assert all(torch.equal(a, b) for a, b in zip(one_by_one, drawn(cells)))

@pytest.mark.parametrize('size', [28, 45, 64, 128])
def test_shapes_and_types_at_any_size(size):
    cells = simulate_blood(2, size)
    assert cells.images.shape == (2, 3, size, size)
    assert cells.images.dtype == torch.uint8
    assert cells.labels.dtype == torch.int64 and cells.names == blood_classes
    for mask in (cells.cell, cells.nucleus):
        assert mask.shape == (2, size, size) and mask.dtype == torch.bool

    jurkat = simulate_jurkat(2, size, channels=('dna', 'brightfield'))
    assert jurkat.images.shape == (2, 2, size, size) and jurkat.names == jurkat_phases

def test_a_cell_is_the_same_drawing_at_two_sizes():
    labels = np.arange(16) % 8
    small = simulate_blood(16, 32, labels, seed=2)
    large = simulate_blood(16, 64, labels, seed=2)
    shrunk = torch.nn.functional.avg_pool2d(large.images.float(), 2)
    assert (shrunk - small.images.float()).abs().mean() < 6
    areas = [cells.cell.float().mean((1, 2)) for cells in (small, large)]
    assert (areas[0] - areas[1]).abs().max() < .02

def test_masks_nucleus_within_cell_and_none_in_platelets():
    cells = simulate_blood(64, 48, labels=np.arange(64) % 8, seed=7)
    assert not (cells.nucleus & ~cells.cell).any()
    has_nucleus = cells.nucleus.flatten(1).any(1)
    platelet = cells.labels == blood_classes.index('platelet')
    assert torch.equal(has_nucleus, ~platelet) and cells.cell.flatten(1).any(1).all()

    jurkat = simulate_jurkat(28, labels=np.arange(28) % 7)
    assert not (jurkat.nucleus & ~jurkat.cell).any()
    assert jurkat.nucleus.flatten(1).any(1).all()

def test_the_nucleus_mask_lies_on_the_dark_pixels():
    cells = simulate_blood(30, 64, 'lymphocyte', seed=4)
    green = cells.images[:, 1].float()
    assert green[cells.nucleus].mean() < 90 < 180 < green[~cells.cell].mean()

def test_lobes_are_what_the_class_says():
    labels = np.arange(80) % 8
    lobes = sim.blood_shapes(sim.Random(1, range(80)), labels, 32).lobes
    n = (lobes.radius > 0).sum(1)
    assert set(n[labels == blood_classes.index('neutrophil')]) <= {2, 3, 4, 5}
    assert set(n[labels == blood_classes.index('erythroblast')]) == {1}
    assert set(n[labels == blood_classes.index('platelet')]) == {0}

@pytest.mark.parametrize('counts', [sim.blood_counts, sim.jurkat_counts])
def test_labels_come_in_the_published_proportions(counts):
    labels = sim.draw_labels(40000, counts, 0)
    shares = np.bincount(labels, minlength=len(counts))/40000
    assert np.abs(shares - np.array(counts)/sum(counts)).max() < .01
    assert (labels[:100] == sim.draw_labels(100, counts, 0)).all()

def test_labels_by_name_by_number_and_one_for_all():
    assert simulate_blood(2, 28, ['ig', 'platelet']).labels.tolist() == [3, 7]
    assert simulate_blood(2, 28, torch.tensor([3, 7])).labels.tolist() == [3, 7]
    assert simulate_jurkat(2, 28, 'S').labels.tolist() == [1, 1]

@pytest.mark.parametrize('size', [40, 66])
def test_dna_doubles_from_g1_to_g2(size):
    labels = np.arange(120) % 3
    cells = simulate_jurkat(120, size, labels, seed=8, channels='dna')
    light = cells.images.double().mean((1, 2, 3)) - 1.7
    g1, s, g2 = [light[cells.labels == k].mean().item() for k in range(3)]
    assert g2/g1 == pytest.approx(2, abs=.08) and 1.3*g1 < s < 1.7*g1

def test_channels_are_the_same_whatever_is_asked_for():
    every = simulate_jurkat(3, 40, seed=1).images
    some = simulate_jurkat(3, 40, seed=1, channels=('dna', 'darkfield')).images
    assert torch.equal(some, every[:, [2, 1]])

@pytest.mark.parametrize('simulate, request_, words', [
    (simulate_blood, dict(n=2, size=27), '28 and 128'),
    (simulate_jurkat, dict(n=2, size=129), '28 and 128'),
    (simulate_blood, dict(n=0), 'n=0 should be'),
    (simulate_blood, dict(n=10_000_000, size=128), 'GB of memory'),
    (simulate_blood, dict(n=2, labels='red'), 'basophil'),
    (simulate_blood, dict(n=2, labels=[0, 8]), '0..7'),
    (simulate_blood, dict(n=2, labels=[0]), '1 labels for 2'),
    (simulate_jurkat, dict(n=2, labels='M'), 'Telophase'),
    (simulate_jurkat, dict(n=2, channels='green'), 'darkfield'),
    (simulate_jurkat, dict(n=2, channels=()), 'brightfield'),
])
def test_errors_say_what_is_wrong(simulate, request_, words):
    with pytest.raises(ValueError, match=words):
        simulate(**request_)
