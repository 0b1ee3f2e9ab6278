"The ruler for cells reads what the simulation drew and shapes whose measures are known"
import math

import numpy as np
import pytest
import torch

from cell_diffusion.core import encode
from cell_diffusion.morphology import (
    count_lobes, find_cells, find_nuclei, measure_cells, morphology,
    morphology_features, optical_density,
)
from cell_diffusion.simulation import simulate_blood


def overlap(a, b):
    "Intersection over union of masks `(n, size, size)`"
    return (a & b).sum((1, 2))/np.maximum((a | b).sum((1, 2)), 1)


@pytest.mark.parametrize('size, cell, nucleus', [(64, .85, .8), (32, .8, .75)])
def test_the_ruler_finds_what_was_drawn(size, cell, nucleus):
    labels = [i % 8 for i in range(48)]
    drawn = simulate_blood(48, size=size, labels=labels, seed=21)
    density = optical_density(encode(drawn.images)).numpy()
    cells = find_cells(density)
    nuclei = find_nuclei(density, cells)
    assert not (nuclei & ~cells).any()

    # Platelets have no nucleus, that of a basophil is hidden
    visible = np.isin(drawn.labels, (1, 2, 3, 4, 5, 6))
    true_cells = drawn.cell.numpy()
    true_nuclei = drawn.nucleus.numpy()
    assert np.median(overlap(cells, true_cells)) > cell
    assert np.median(overlap(nuclei, true_nuclei)[visible]) > nucleus

    read = measure_cells(cells, nuclei, density)[visible]
    true = measure_cells(true_cells, true_nuclei, density)[visible]
    for k in ('cell_area', 'nucleus_area', 'ratio', 'stain'):
        assert read[k].corr(true[k], 'spearman') > .75, k
    assert (read.nucleus_area - true.nucleus_area).abs().median() < .02
    assert (read.stain - true.stain).abs().median() < .15


def test_density_is_beer_and_lambert():
    shares = torch.tensor([.5, .25, .125])
    x = torch.full((1, 3, 32, 32), 1.)
    x[:, :, 8:24, 8:24] = shares[:, None, None]*2 - 1
    density = optical_density(x)
    assert torch.allclose(density[0, :, 16, 16], -shares.log(), atol=.03)
    assert density[0, :, 0, 0].abs().max() == 0
    with pytest.raises(ValueError, match='colour'):
        optical_density(x[:, :1])


def test_the_threshold_is_kept_in_its_range():
    "A nucleus of density 1.2 in cytoplasm of 0.2, and cells that are all dark or pale"
    density = np.zeros((3, 3, 64, 64), np.float32)
    cells = np.zeros((3, 64, 64), bool)
    cells[:, 8:56, 8:56] = True
    density[0, 0, 8:56, 8:56] = .2
    density[0, 0, 24:40, 24:40] = 1.2
    density[1, 0, 8:56, 8:56] = 1.2
    density[1, 0, 24:40, 24:40] = 2.
    density[2, 0, 8:56, 8:56] = .3
    nuclei = find_nuclei(density, cells)
    assert abs(nuclei[0].sum() - 16**2) < 16
    assert nuclei[1].sum() > .9*cells[1].sum()
    assert not nuclei[2].any()


def disc(x, y, r, size=64):
    pixel = np.arange(size)
    return (pixel - x)**2 + (pixel[:, None] - y)**2 < r*r


def test_lobes_of_discs_on_a_ring():
    angles = np.linspace(0, 2*math.pi, 6)[:5]
    ring = [disc(32 + 18*math.cos(a), 32 + 18*math.sin(a), 9) for a in angles]
    for k in (1, 2, 3, 4):
        assert count_lobes(np.any(ring[:k], 0)) == k
    assert count_lobes(np.zeros((8, 8), bool)) == 0


@pytest.mark.parametrize('a, b', [(12, 12), (20, 10), (24, 6)])
def test_ellipses(a, b):
    y, x = np.mgrid[:64, :64] - 32
    mask = ((x/a)**2 + (y/b)**2 < 1)[None]
    measured = measure_cells(mask, mask, np.ones((1, 3, 64, 64))).iloc[0]
    expected = math.sqrt(1 - (b/a)**2)
    assert measured.eccentricity == pytest.approx(expected, abs=.08)
    assert measured.solidity > .9
    assert measured.ratio == measured.stain == measured.lobes == 1
    assert measured.nucleus_area == pytest.approx(math.pi*a*b/64**2, rel=.06)


def test_a_dent_lowers_solidity():
    "A square without one of its quarters has 3/4 of its area, and 6/7 of its hull"
    mask = np.zeros((1, 64, 64), bool)
    mask[0, 12:52, 12:52] = True
    mask[0, 32:52, 32:52] = False
    measured = measure_cells(mask, mask, np.ones((1, 3, 64, 64))).iloc[0]
    assert measured.solidity == pytest.approx(6/7, abs=.03)


def test_nothing_to_measure():
    table = morphology(torch.ones(2, 3, 32, 32))
    assert tuple(table.columns) == morphology_features
    assert len(table) == 2 and table.isna().all().all()


def test_a_nucleus_of_few_pixels_has_no_shape():
    mask = np.zeros((1, 32, 32), bool)
    mask[0, 16, 16:20] = True
    measured = measure_cells(mask, mask, np.ones((1, 3, 32, 32))).iloc[0]
    assert math.isnan(measured.eccentricity) and math.isnan(measured.solidity)
    assert measured.nucleus_area == 4/32**2
