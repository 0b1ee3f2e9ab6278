"A student's jumps end where its teacher's walk does, and it knows how many there are"
import pytest
import torch
from cell_diffusion.core import generator
from cell_diffusion.data import cell_dls
from cell_diffusion.denoiser import (Condition, Denoiser, denoise, load, save,
                                     set_guidance, weights_hash)
from cell_diffusion.distillation import (JumpCallback, distillation_learner, jump_x0,
                                         jump_timesteps, student_of, teacher_walks,
                                         walk)
from cell_diffusion.inpainting import Inpainter, fill_holes
from cell_diffusion.sampling import ddim, invert, sample
from cell_diffusion.training import fit_for

tiny = dict(dim=16, mults=[1, 2])
kinds = 'basophil', 'neutrophil'

@pytest.fixture(scope='module')
def cells():
    return cell_dls('simulated', size=28, bs=16, n=96)

def network(kind=Denoiser, std=.05, classes=None, data_std=.5, size=28):
    "A small network; with `std=0` it is the best denoiser of Gaussian pixels"
    torch.manual_seed(0)
    unet = tiny
    if kind is Inpainter: unet = dict(tiny, channels=7, out_channels=3)
    model = kind(unet, 'log_snr', prediction='v', data_std=data_std, size=size,
                 classes=classes or [])
    rng = generator(0)
    for p in model.parameters():
        if std: torch.nn.init.normal_(p, std=std, generator=rng)
    return model.eval()

def noise(*shape, seed=0):
    return torch.randn(shape, generator=generator(seed))

def test_jump_undoes_a_step_of_ddim():
    schedule = network().schedule
    x0 = noise(4, 3, 8, 8).clamp(-1, 1)
    xt = noise(4, 3, 8, 8, seed=1)
    for t, s in ((999, 700), (500, 20), (300, None)):
        here = schedule.signal[t], schedule.noise[t]
        there = (1., 0.) if s is None else (schedule.signal[s], schedule.noise[s])
        xs = there[0]*x0 + there[1]*(xt - here[0]*x0)/here[1]
        assert torch.allclose(jump_x0(xt, xs, here, there), x0, atol=1e-4), (t, s)

@pytest.mark.parametrize('calls', [1, 2, 4])
def test_exact_student_ends_where_the_teacher_does(calls):
    "With the estimates that it should learn, a student's jumps are the teacher's walk"
    teacher = network()
    x = noise(3, 3, 28, 28)
    jumps = jump_timesteps(teacher, calls)
    with torch.no_grad(): states = walk(teacher, x, Condition(), jumps)
    assert states.shape == (3, calls + 1, 3, 28, 28)

    def perfect(xt, t):
        i = jumps.index(t)
        s = teacher.schedule
        here = s.signal[t], s.noise[t]
        last = i + 1 == calls
        there = (1., 0.) if last else (s.signal[jumps[i + 1]], s.noise[jumps[i + 1]])
        assert torch.allclose(xt, states[:, i], atol=1e-4)
        return jump_x0(xt, states[:, i + 1], here, there)

    end = ddim(perfect, x, teacher.schedule, torch.tensor(jumps))
    assert torch.allclose(end, states[:, -1], atol=1e-4)
    seen = sample(teacher, 3, seed=0, progress=False)
    assert torch.allclose(states[:, -1], seen, atol=1e-5)

def test_student_learns_the_one_step_map_of_gaussian_pixels(cells):
    "The way of a Gaussian from noise ends at data_std times the noise"
    teacher = network(std=0, data_std=.2)
    learn = distillation_learner(cells, teacher, calls=1, n=90, bs=16, progress=False,
                                 precision='float32', optimizer='muon')
    x = noise(8, 3, 28, 28, seed=5)
    def error(model):
        with torch.no_grad(): x0 = denoise(model, x, model.jumps[0])
        return (x0 - .2*x).pow(2).mean().sqrt().item()
    before = error(learn.model)
    fit_for(learn, epochs=10, lr=4e-3, progress=False)
    assert before > .15
    assert error(learn.ema.averaged.eval()) < .06

@pytest.mark.parametrize('kind', [Denoiser, Inpainter])
def test_teacher_with_the_same_jumps_is_a_fixed_point(cells, kind):
    "What a student with four calls says is what its own student should say"
    teacher = student_of(network(kind, classes=cells.vocab), (999, 800, 600, 400))
    learn = distillation_learner(cells, teacher, 4, 20, 16, progress=False,
                                 precision='float32')
    assert learn.model.jumps == teacher.jumps
    learn.loss_func = lambda pred, target, weight: ((pred - target)**2*weight).mean()
    with learn.no_bar(): learn.create_opt()
    loss = learn.validate()[0]
    assert loss < 1e-4
