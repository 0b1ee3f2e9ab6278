"Muon: singular values, PyTorch's own as the reference, which weights, and training"
import pytest
import torch
import torch.nn as nn
from fastai.learner import Callback

from cell_diffusion.core import generator
from cell_diffusion.data import cell_dls
from cell_diffusion.optimizers import (
    Muon, learning_rates, matrices_and_others, orthogonalize,
)
from cell_diffusion.training import diffusion_learner, fit_for
from cell_diffusion.unet import UNet


@pytest.mark.parametrize('shape', [(4, 4), (3, 40), (40, 3), (2, 5, 8, 16)])
def test_singular_values_come_near_one(shape):
    g = torch.randn(shape, generator=generator(0))
    values = torch.linalg.svdvals(orthogonalize(1e-3*g))
    known = torch.linalg.svdvals(g)
    is_large = known > .02*g.norm(dim=(-2, -1))[..., None]
    assert values[is_large].min() > .6 and values.max() < 1.3


def test_zeros_stay_zeros():
    assert torch.equal(orthogonalize(torch.zeros(3, 5)), torch.zeros(3, 5))


def two_groups(matrices, others, **kwargs):
    return Muon([dict(params=matrices), dict(params=others)], **kwargs)


def test_matrices_move_as_with_pytorch():
    "Several shapes at once; PyTorch's Muon computes in bfloat16"
    ours = [nn.Parameter(torch.randn(s, generator=generator(1)))
            for s in [(8, 8), (8, 8), (6, 20), (20, 6)]]
    theirs = [nn.Parameter(p.detach().clone()) for p in ours]
    start = [p.detach().clone() for p in ours]
    muon = two_groups(ours, [nn.Parameter(torch.zeros(2))], lr=.02)
    reference = torch.optim.Muon(theirs, lr=.02, weight_decay=.01,
                                 adjust_lr_fn='match_rms_adamw')
    rng = generator(2)
    for _ in range(5):
        for p, q in zip(ours, theirs):
            p.grad = torch.randn(p.shape, generator=rng)
            q.grad = p.grad.clone()
        muon.step()
        reference.step()
    for p, q, p0 in zip(ours, theirs, start):
        assert (p - q).norm() < .03*(q - p0).norm()


def test_the_others_move_as_with_adamw():
    ours = nn.Parameter(torch.ones(5))
    theirs = nn.Parameter(torch.ones(5))
    muon = two_groups([nn.Parameter(torch.ones(2, 2))], [ours], lr=.02)
    reference = torch.optim.AdamW([theirs], lr=2e-3, betas=(.9, .99))
    for i in range(4):
        ours.grad = torch.arange(5.) - i
        theirs.grad = ours.grad.clone()
        muon.step()
        reference.step()
    assert torch.equal(ours, theirs)


def test_every_weight_is_in_one_group_and_edges_are_not_matrices():
    net = nn.Module()
    net.unet = UNet(dim=8, n_classes=3)
    matrices, others = matrices_and_others(net)
    assert len(matrices) + len(others) == len(list(net.parameters()))
    assert all(p.ndim in (2, 4) for p in matrices)
    ids = {id(p) for p in others}
    edges = net.unet.conv_in, net.unet.out[-1], net.unet.embedding.label
    assert all(id(layer.weight) in ids for layer in edges)


@pytest.fixture(scope='module')
def dls(): return cell_dls('simulated', size=28, n=48, bs=8, device='cpu')


def test_training_by_name(dls):
    learn = diffusion_learner(dls, dim=8, mults=(1, 2), optimizer='muon')
    fit_for(learn, epochs=1, progress=False)
    matrices = learn.opt.opt.param_groups[0]['params']
    assert isinstance(learn.opt.opt, Muon) and len(matrices) > 5
    assert all('momentum' in learn.opt.opt.state[p] for p in matrices)
    with pytest.raises(ValueError, match="Unknown optimizer 'adam': use one of adamw"):
        diffusion_learner(dls, optimizer='adam')


@pytest.mark.parametrize('name', learning_rates)
def test_a_run_takes_the_rate_of_its_optimizer(dls, name):
    learn = diffusion_learner(dls, dim=8, mults=(1, 2), optimizer=name)
    assert fit_for(learn, epochs=1, progress=False).lr == learning_rates[name]
    assert fit_for(learn, epochs=1, lr=.002, progress=False).lr == .002


class StopAfter(Callback):
    "A kill after some steps"
    order = 100

    def __init__(self, steps): self.left = steps

    def after_batch(self):
        self.left -= self.training
        if self.left < 0: raise KeyboardInterrupt


def test_a_killed_run_goes_on_to_the_bit(dls, tmp_path):
    "Momentum and AdamW's moments are in the checkpoint"
    def weights(folder, *epochs):
        for n in epochs:
            learn = diffusion_learner(dls, dim=8, mults=(1, 2), optimizer='muon')
            if n < epochs[-1]: learn.add_cb(StopAfter(n*len(dls.train)))
            try:
                fit_for(learn, epochs=epochs[-1], progress=False,
                        checkpoint=folder/'checkpoint.pt')
            except KeyboardInterrupt:
                pass
        return list(learn.model.parameters())

    whole = weights(tmp_path/'whole', 2)
    killed = weights(tmp_path/'killed', 1, 2)
    assert all(torch.equal(a, b) for a, b in zip(whole, killed))
