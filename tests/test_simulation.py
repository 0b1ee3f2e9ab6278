"The simulator: seeds, chunks, sizes, masks, proportions, DNA, and errors"
import numpy as np, pytest, torch
from cell_diffusion import simulation as sim
from cell_diffusion.simulation import blood_classes, jurkat_phases, simulate_blood, simulate_jurkat

def same(a, b): return all(torch.equal(getattr(a, k), getattr(b, k)) for k in ('images', 'labels', 'cell', 'nucleus'))

def first(cells, n): return sim.SimulatedCells(cells.images[:n], cells.labels[:n], cells.cell[:n], cells.nucleus[:n], cells.names)

@pytest.mark.parametrize('simulate', [simulate_blood, simulate_jurkat])
def test_a_seed_gives_the_same_pixels_and_another_seed_others(simulate):
    cells = simulate(6, 32, seed=5)
    assert same(cells, simulate(6, 32, seed=5))
    assert not torch.equal(cells.images, simulate(6, 32, seed=6).images)

@pytest.mark.parametrize('simulate', [simulate_blood, simulate_jurkat])
def test_a_cell_does_not_depend_on_how_many_are_drawn(simulate): assert same(simulate(5, 29, seed=1), first(simulate(50, 29, seed=1), 5))

def test_a_cell_does_not_depend_on_the_chunks():
    labels = np.arange(9) % 8
    def draw(pixels): return sim._in_chunks(sim._draw_blood, 9, labels, 40, 3, blood_classes, False, pixels)
    assert same(draw(40**2), draw(10*40**2)) and same(draw(4*40**2), draw(7*40**2))

@pytest.mark.parametrize('size', [28, 45, 64, 128])
def test_shapes_and_types_at_any_size(size):
    cells = simulate_blood(2, size)
    assert cells.images.shape == (2, 3, size, size) and cells.images.dtype == torch.uint8 and cells.names == blood_classes
    assert cells.labels.dtype == torch.int64 and cells.cell.shape == cells.nucleus.shape == (2, size, size) and cells.cell.dtype == cells.nucleus.dtype == torch.bool
    jurkat = simulate_jurkat(2, size, channels=('dna', 'brightfield'))
    assert jurkat.images.shape == (2, 2, size, size) and jurkat.names == jurkat_phases

def test_a_cell_is_the_same_drawing_at_two_sizes():
    small, large = (simulate_blood(16, s, labels=np.arange(16) % 8, seed=2) for s in (32, 64))
    apart = torch.nn.functional.avg_pool2d(large.images.float(), 2) - small.images.float()
    assert apart.abs().mean() < 6
    assert (large.cell.float().mean((1, 2)) - small.cell.float().mean((1, 2))).abs().max() < .02

def test_masks_nucleus_within_cell_and_none_in_platelets():
    cells = simulate_blood(64, 48, labels=np.arange(64) % 8, seed=7)
    assert not (cells.nucleus & ~cells.cell).any()
    nuclei, platelet = cells.nucleus.any(2).any(1), cells.labels == blood_classes.index('platelet')
    assert (nuclei == ~platelet).all() and cells.cell.any(2).any(1).all()
    jurkat = simulate_jurkat(28, labels=np.arange(28) % 7)
    assert not (jurkat.nucleus & ~jurkat.cell).any() and jurkat.nucleus.any(2).any(1).all()

def test_the_nucleus_mask_lies_on_the_dark_pixels():
    cells = simulate_blood(30, 64, 'lymphocyte', seed=4)
    green = cells.images[:, 1].float()
    assert green[cells.nucleus].mean() < 90 < 180 < green[~cells.cell].mean()

@pytest.mark.parametrize('names, counts', [(blood_classes, sim._blood_counts), (jurkat_phases, sim._jurkat_counts)])
def test_labels_come_in_the_published_proportions(names, counts):
    labels = sim._as_labels(40000, None, names, counts, 0)
    assert np.abs(np.bincount(labels, minlength=len(names))/40000 - np.array(counts)/sum(counts)).max() < .01
    assert (labels[:100] == sim._as_labels(100, None, names, counts, 0)).all()

def test_labels_by_name_by_number_and_one_for_all():
    assert simulate_blood(2, 28, ['ig', 'platelet']).labels.tolist() == [3, 7]
    assert simulate_blood(2, 28, torch.tensor([3, 7])).labels.tolist() == [3, 7]
    assert simulate_jurkat(2, 28, 'S').labels.tolist() == [1, 1]

@pytest.mark.parametrize('size', [40, 66])
def test_dna_doubles_from_g1_to_g2(size):
    cells = simulate_jurkat(120, size, labels=np.arange(120) % 3, seed=8, channels='dna')
    light = cells.images.double().mean((1, 2, 3)) - 1.7
    g1, s, g2 = (light[cells.labels == k].mean().item() for k in range(3))
    assert g2/g1 == pytest.approx(2, abs=.08) and 1.3*g1 < s < 1.7*g1

def test_channels_are_the_same_whatever_is_asked_for():
    all_of_them = simulate_jurkat(3, 40, seed=1).images
    assert torch.equal(simulate_jurkat(3, 40, seed=1, channels=('dna', 'darkfield')).images, all_of_them[:, [2, 1]])

@pytest.mark.parametrize('call, words', [
    (lambda: simulate_blood(2, 27), '28 and 128'), (lambda: simulate_jurkat(2, 129), '28 and 128'), (lambda: simulate_blood(0), 'at least'),
    (lambda: simulate_blood(2, labels='red'), 'basophil'), (lambda: simulate_blood(2, labels=[0, 8]), '0..7'), (lambda: simulate_blood(2, labels=[0]), '1 labels for 2'),
    (lambda: simulate_jurkat(2, labels='M'), 'Telophase'), (lambda: simulate_jurkat(2, channels='green'), 'darkfield'), (lambda: simulate_jurkat(2, channels=()), 'brightfield')])
def test_errors_say_what_is_wrong(call, words):
    with pytest.raises(ValueError, match=words): call()
