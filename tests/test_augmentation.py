"Rare classes: scores, training sets in equal steps, the guard against leaks"
import numpy as np
import pytest
import torch
from rare_cells import some_cells
from sklearn.metrics import (
    accuracy_score, balanced_accuracy_score, confusion_matrix,
    precision_recall_fscore_support)
from cell_diffusion.augmentation import deficit
from cell_diffusion.classifier import build_resnet, predict_classes, train_classifier
from cell_diffusion.core import encode, generator
from cell_diffusion.data import StepLoader, step_dls
from cell_diffusion.metrics import c2st, class_scores
from cell_diffusion.splits import assert_disjoint, dihedral_hash
from cell_diffusion.transforms import affine_jitter, dihedral_views

# What is added, and in how many steps


def test_every_class_reaches_the_goal():
    assert deficit([10, 2, 7]).tolist() == [0, 5, 0]  # the median
    assert deficit([10, 2, 7], goal=8).tolist() == [0, 6, 1]
    assert deficit([0, 5], 5).tolist() == [5, 0]


def test_jitter_keeps_shape_and_range_and_obeys_its_seed():
    x = encode(some_cells().images)
    a, b, c = (affine_jitter(x, generator(seed)) for seed in (0, 0, 1))
    assert a.shape == x.shape and a.min() >= -1 and a.max() <= 1
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_jitter_turns_about_the_center():
    x = torch.full((64, 1, 21, 21), -1.)
    x[:, :, 10, 10] = 1  # one bright pixel in the middle
    y = affine_jitter(x, generator(0), light=0)
    assert (y.flatten(1).argmax(1) == 10*21 + 10).all()


def test_a_loader_yields_steps_instead_of_epochs():
    c = some_cells()
    loader = StepLoader(c.images, c.labels, c.names, steps=9, bs=16, seed=1)
    batches = list(loader)
    assert len(loader) == len(batches) == 9
    assert all(len(y) == 16 for _, y in batches)

    # 144 of 52 cells: none is left out, none appears four times
    order = loader.order(generator(0))[:9*16]
    assert set(np.bincount(order, minlength=len(c.labels))) <= {2, 3}


def test_a_loader_repeats_itself():
    c = some_cells()
    args = c.images, c.labels, c.names, 4, 8, 3
    for a, b in zip(StepLoader(*args), StepLoader(*args)):
        assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])


def test_a_loader_transforms_its_batches():
    c = some_cells()
    dls = step_dls(c.images, c.labels, c.names, 3, 8, transform=lambda x, g: x*0)
    assert all((x == 0).all() for x, _ in dls.train)
    assert (dls.valid.one_batch()[0] != 0).any()  # only training cells are changed


shapes = [('cell', 1, 16), ('cell', 2, 40), ('cell', 5, 32), ('resnet18', 2, 40),
          ('resnet18', 3, 64)]


@pytest.mark.parametrize('name, channels, size', shapes)
def test_resnets_take_small_images_of_any_channels(name, channels, size):
    net = build_resnet(name, 'abc', channels, size).eval()
    assert net(torch.zeros(2, channels, size, size)).shape == (2, 3)


def test_training_learns_what_is_easy_and_repeats_itself():
    c = some_cells((20, 20))
    x = encode(c.images)
    outputs = []
    for _ in range(2):
        dls = step_dls(c.images, c.labels, c.names, 30, 16)
        net = train_classifier(dls, steps=30, network='cell').cpu()
        with torch.no_grad():
            outputs.append(net(x))
    assert torch.allclose(*outputs, atol=1e-5)
    assert (outputs[0].argmax(1).numpy() == c.labels).mean() > .9


class FixedScores(torch.nn.Module):
    "Takes its input for scores"
    def __init__(self):
        super().__init__()
        self.p = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x): return x + self.p


def test_weights_raise_the_odds_of_small_classes():
    scores = torch.tensor([[1., 0, 0, -.5], [9., 0, 0, 0]])
    weights = [1, 1.23, 2.67, 5.33]
    assert predict_classes(FixedScores(), scores).tolist() == [0, 0]
    assert predict_classes(FixedScores(), scores, weights).tolist() == [3, 0]


def test_two_samples_of_one_kind_are_not_told_apart_and_others_are():
    a = some_cells((40,), seed=1).images
    b = some_cells((40,), seed=2).images
    assert c2st(a, b, steps=20, seeds=2).mean() < .75
    assert c2st(a, b//2, steps=40, seeds=2).min() > .9


# Leaks


def test_hashes_are_the_same_in_all_eight_positions():
    x = some_cells().images[:6]
    for view in dihedral_views(torch.from_numpy(x)):
        assert (dihedral_hash(view.numpy()) == dihedral_hash(x)).all()
    assert len(set(dihedral_hash(x))) == 6


@pytest.mark.parametrize('position', range(8))
def test_a_planted_leak_is_caught(position):
    x = some_cells().images
    training, test = x[:30], x[30:]
    assert_disjoint(training, test)
    leak = dihedral_views(torch.from_numpy(x[35:36]))[position].numpy()
    message = '1 of the 22 test cells .* training set of somebody .* number 5'
    with pytest.raises(ValueError, match=message):
        assert_disjoint(np.concatenate([training, leak]), test, 'somebody')


# Scores


def test_scores_are_scikit_learns():
    rng = np.random.default_rng(0)
    truth = np.repeat(np.arange(3), (200, 60, 15))
    random = rng.integers(0, 3, len(truth))
    predicted = np.where(rng.random(len(truth)) < .8, truth, random)

    scores = class_scores(confusion_matrix(truth, predicted))
    expected = precision_recall_fscore_support(truth, predicted)
    for name, values in zip(('precision', 'recall', 'f1'), expected):
        assert np.allclose(scores[name], values)
    assert np.isclose(scores['accuracy'], accuracy_score(truth, predicted))
    balanced = balanced_accuracy_score(truth, predicted)
    assert np.isclose(scores['balanced accuracy'], balanced)


def test_many_matrices_at_once():
    counts = np.random.default_rng(0).integers(1, 9, (4, 2, 3, 3))
    at_once = class_scores(counts)
    for i in np.ndindex(4, 2):
        for name, values in class_scores(counts[i]).items():
            assert np.allclose(at_once[name][i], values)


def test_a_class_that_is_never_predicted_has_no_precision():
    s = class_scores(confusion_matrix([0, 0, 1], [0, 0, 0]))
    assert s['precision'][0] == 2/3 and np.isnan(s['precision'][1])
    assert s['f1'][1] == 0 and s['macro F1'] == .4


def test_a_class_that_is_not_tested_is_left_out_of_means():
    truth, predicted = [0, 0, 1], [0, 2, 1]
    s = class_scores(confusion_matrix(truth, predicted, labels=range(3)))
    assert np.isnan(s['recall'][2]) and s['balanced accuracy'] == .75
