"Training and sampling: what the network is asked, how a run goes on after a kill, what the samplers do"
import copy, math
import numpy as np, pytest, torch
from fastai.learner import Callback
from cell_diffusion.core import generator
from cell_diffusion.data import cell_dls
from cell_diffusion.ddpm import *
from cell_diffusion.process import q_sample
from cell_diffusion.schedules import log_snr_schedule

tiny = dict(dim=16, mults=[1, 2])

@pytest.fixture(scope='module')
def cells(): return cell_dls('simulated', size=28, bs=16, n=96)

def learner(cells, **kw): return diffusion_learner(cells, 'edm', dim=16, mults=(1, 2), bfloat16=False, **kw)

class GaussianModel:
    "The exact denoiser of cells that are Gaussian noise of standard deviation `sd`, in the place of a network"
    classes, training, size = (), False, 4
    class unet: channels = 1
    def __init__(self, sd): self.sd, self.schedule, self.device = sd, log_snr_schedule(), torch.device('cpu')
    def eval(self): pass
    def train(self, mode): pass
    def x0(self, xt, t, label=None, clip=True):
        ab = self.schedule.at('alphas_cumprod', t, xt)
        return ab.sqrt()*self.sd**2*xt/(ab*self.sd**2 + 1 - ab)

@pytest.mark.parametrize('prediction,data_std', [('eps', 1.), ('x0', 1.), ('v', 1.), ('v', .5)])
def test_target_and_x0_undo_each_other(prediction, data_std):
    model = Denoiser(tiny, schedule='linear', prediction=prediction, data_std=data_std)
    x0, eps, t = torch.randn(8, 3, 8, 8).clamp(-1, 1), torch.randn(8, 3, 8, 8), torch.arange(0, 800, 100)
    xt = q_sample(x0, t, model.schedule, eps)
    assert torch.allclose(model.out_to_x0(model.target(x0, eps, t), xt, t), x0, atol=2e-4)

def test_edm_is_v_prediction_for_data_of_known_spread():
    model = Denoiser(tiny, schedule='log_snr', prediction='v', data_std=.5)
    x0, eps, t, f = torch.randn(8, 3, 8, 8), torch.randn(8, 3, 8, 8), torch.randint(1000, (8,)), torch.randn(8, 3, 8, 8)
    xt = q_sample(x0, t, model.schedule, eps)
    s, sd = (model.schedule.at('noise', t, x0)/model.schedule.at('signal', t, x0)).double(), .5
    paper = sd**2/(s**2 + sd**2)*xt*(1 + s**2)**.5 + s*sd/(s**2 + sd**2)**.5*f
    assert torch.allclose(model.out_to_x0(-f, xt, t), paper.float(), atol=1e-4)

def test_min_snr_counts_the_error_of_x0_alike_for_every_prediction():
    t, err = torch.tensor([5, 200, 600, 950]), torch.randn(4, 3, 8, 8)
    losses = []
    for prediction in ('eps', 'x0', 'v'):
        model = Denoiser(tiny, schedule='cosine', prediction=prediction)
        x0, eps = torch.zeros(4, 3, 8, 8), torch.zeros(4, 3, 8, 8)
        xt = q_sample(x0, t, model.schedule, eps)
        out = torch.randn(4, 3, 8, 8)
        x0_error = (model.out_to_x0(model.target(x0, eps, t) + out, xt, t) - x0).pow(2).flatten(1).mean(1)
        losses.append((snr_weight(model, t)*out.pow(2).flatten(1).mean(1)/x0_error))
    assert torch.allclose(losses[0], losses[1], rtol=1e-3) and torch.allclose(losses[1], losses[2], rtol=1e-3)
    assert torch.allclose(losses[1], model.schedule.snr[t].clamp(max=5), rtol=1e-3)

def test_lognormal_levels():
    sch = log_snr_schedule()
    s = -.5*sch.log_snr[lognormal_t(50_000, sch, generator(0))]
    assert abs(s.mean() + 1.2) < .03 and abs(s.std() - 1.2) < .03

def test_first_loss_is_one_and_training_lowers_it(cells):
    learn = ddpm_learner(cells, Denoiser(tiny, size=28), bfloat16=False)
    with learn.no_bar(), learn.no_logging(): before = learn.validate()[0]
    budget = fit_for(learn, epochs=3, lr=3e-3, progress=False)
    with learn.no_bar(), learn.no_logging(): after = learn.validate()[0]
    assert abs(before - 1) < .1 and after < .9*before and budget.steps == 3*len(cells.train)

def test_resumed_run_repeats_the_unbroken_one(cells, tmp_path):
    class Kill(Callback):
        order = 100
        def after_epoch(self):
            if self.epoch == 1: raise KeyboardInterrupt
    whole = learner(cells); unbroken = fit_for(whole, epochs=3, progress=False)
    with pytest.raises(KeyboardInterrupt): fit_for(learner(cells, cbs=[Kill()]), epochs=3, checkpoint=tmp_path/'run.pt', progress=False)
    again = learner(cells); resumed = fit_for(again, epochs=3, checkpoint=tmp_path/'run.pt', progress=False)
    assert len(resumed.losses) == len(unbroken.losses)
    assert torch.allclose(torch.stack(list(resumed.losses)), torch.stack(unbroken.losses), atol=1e-5)
    for a, b in zip(whole.ema.averaged.parameters(), again.ema.averaged.parameters()): assert torch.allclose(a, b, atol=1e-5)
    assert [f.name for f in tmp_path.iterdir()] == ['run.pt']
    done = fit_for(learner(cells), epochs=3, checkpoint=tmp_path/'run.pt', progress=False)      # nothing is left to do
    assert done.steps == unbroken.steps

def test_checkpoint_of_another_network_is_a_clear_error(cells, tmp_path):
    fit_for(learner(cells), epochs=1, checkpoint=tmp_path/'run.pt', progress=False)
    with pytest.raises(ValueError, match='another network'):
        fit_for(diffusion_learner(cells, 'edm', dim=32, mults=(1, 2)), epochs=1, checkpoint=tmp_path/'run.pt', progress=False)

def test_checkpoint_of_another_run_is_a_clear_error(cells, tmp_path):
    fit_for(learner(cells), epochs=1, checkpoint=tmp_path/'run.pt', run=dict(objective='edm'), progress=False)
    with pytest.raises(ValueError, match="another run: objective was 'edm'"):
        fit_for(learner(cells), epochs=1, checkpoint=tmp_path/'run.pt', run=dict(objective='ddpm'), progress=False)

def test_a_loss_that_is_no_number_stops_the_run_and_spares_the_mean(cells):
    class Break(Callback):
        def before_batch(self):
            if self.learn.budget.steps == 2: self.learn.yb = (self.learn.yb[0]*float('nan'), self.learn.yb[1])
    learn = learner(cells, cbs=[Break()])
    with pytest.raises(FloatingPointError, match='learning rate'): fit_for(learn, epochs=2, progress=False)
    assert all(torch.isfinite(p).all() for p in learn.ema.averaged.parameters()) and learn.ema.steps == 2

def test_budget_of_minutes_ends(cells, tmp_path):
    for wrong in (dict(), dict(minutes=0), dict(epochs=0), dict(minutes=1, epochs=1)):
        with pytest.raises(ValueError): Budget(1e-3, **wrong)
    budget = fit_for(learner(cells), minutes=.02, checkpoint=tmp_path/'run.pt', progress=False)
    assert fit_for(learner(cells), minutes=.02, checkpoint=tmp_path/'run.pt', progress=False).steps == budget.steps
    assert 1.2 <= budget.seconds < 6 and budget.used == 1
    assert budget.rate(0.) < .1*budget.lr and budget.rate(.3) == budget.lr and budget.rate(1.) < 1e-9

def test_ema_warms_up(cells):
    learn = learner(cells); fit_for(learn, epochs=2, progress=False)
    gap = sum((a - b).abs().sum() for a, b in zip(learn.model.parameters(), learn.ema.averaged.parameters()))
    start = sum(a.abs().sum() for a in learn.model.parameters())
    assert 0 < gap < .2*start and not any(p.requires_grad for p in learn.ema.averaged.parameters())

def test_labels_are_dropped_to_the_null_class(cells):
    learn = learner(cells, classes=True, label_dropout=1.)
    seen = []
    class Watch(Callback):
        def after_batch(self): seen.append(self.learn.xb[2])
    fit_for(learn, epochs=1, progress=False); learn.add_cb(Watch()); fit_for(learn, epochs=1, progress=False)
    assert (torch.cat(seen) == 8).all()

def test_sampling_is_reproducible_and_independent_of_batches():
    model = Denoiser(tiny, schedule='log_snr', prediction='v', size=16, classes=['a', 'b'])
    for p in model.parameters(): torch.nn.init.normal_(p, std=.05, generator=generator(1))
    a = sample(model, 5, label='a', seed=3, steps=5, progress=False)
    assert torch.equal(a, sample(model, 5, label=0, seed=3, steps=5, progress=False))
    assert not torch.equal(a, sample(model, 5, label='b', seed=3, steps=5, progress=False))
    assert torch.allclose(a[:2], sample(model, 2, label='a', seed=3, steps=5, progress=False), atol=1e-4)
    assert a.shape == (5, 3, 16, 16) and a.abs().max() <= 1

@pytest.mark.parametrize('wrong', [dict(label='monocite'), dict(label=[0, 1, 0]), dict(label=7), dict(sampler='dimm'), dict(steps=0)])
def test_wrong_arguments_of_sample(wrong):
    with pytest.raises(ValueError): sample(Denoiser(tiny, size=16, classes=['a', 'b']), 2, progress=False, **wrong)

def test_wrong_names():
    with pytest.raises(ValueError, match='eps, x0, v'): Denoiser(tiny, prediction='noise')
    with pytest.raises(ValueError, match='No weights named'): shipped('blood31')
    with pytest.raises(ValueError, match='edm'): diffusion_learner(None, 'edn')

def test_samplers_on_a_gaussian_with_known_score():
    model = GaussianModel(.2)
    z = torch.randn(2000, 1, 4, 4, generator=generator(0))
    exact = .2*z                                     # the flow of a Gaussian keeps quantiles
    errors = [(dpm_solver(model, z, steps=k) - exact).abs().mean().item() for k in (10, 20, 40, 80)]
    assert errors[0] < .02 and errors[1] < errors[0]/2 and errors[3] < errors[2]/2
    assert abs(ancestral(model, z, rng=generator(1)).std() - .2) < .01

def test_spaced_timesteps():
    for steps in (1, 2, 20, 50):
        ts = spaced_timesteps(log_snr_schedule(), steps)
        assert len(ts) == steps and ts[0] == 999 and (ts.diff() < 0).all()
    assert spaced_timesteps(log_snr_schedule(), 20)[-1] == 0

def test_weights_travel_with_their_configuration(tmp_path):
    model = Denoiser(tiny, schedule='cosine', prediction='v', data_std=.5, size=20, classes=['a', 'b']).eval()
    for p in model.parameters(): torch.nn.init.normal_(p, std=.05)
    model.save_pretrained(tmp_path)
    back = pretrained(Denoiser, tmp_path)
    assert back.classes == ('a', 'b') and back.size == 20 and back.data_std == .5 and {f.suffix for f in tmp_path.iterdir()} <= {'.safetensors', '.json', '.md'}
    x, t, y = torch.randn(2, 3, 20, 20), torch.tensor([1, 500]), torch.tensor([0, 1])
    assert torch.equal(model(x, t, y), back(x, t, y))

# cells whose pixels are not centred

def dim_cells(bs=16):
    return cell_dls('simulated-jurkat', size=28, n=96, channels=('brightfield', 'darkfield'), bs=bs)

def test_pixel_statistics_are_those_of_the_training_cells():
    dls = dim_cells(); mean, std = pixel_statistics(dls)
    x = dls.train.arrays[0]/127.5 - 1
    assert np.allclose(mean, x.mean((0, 2, 3)), atol=1e-5)
    assert std == pytest.approx(np.sqrt(x.var((0, 2, 3)).mean()), rel=1e-4)

def test_what_the_unet_sees_has_mean_0_and_variance_1():
    model = Denoiser(dict(channels=2, dim=8, mults=[1]), schedule='log_snr', prediction='v', data_std=.2, data_mean=(-.3, -.8), size=16)
    g = torch.Generator().manual_seed(0)
    x0 = torch.randn(64, 2, 16, 16, generator=g)*.2 + torch.tensor([-.3, -.8]).view(1, 2, 1, 1)
    for t in (0, 400, 700, 999):
        ts = torch.full((64,), t)
        seen = model.seen(q_sample(x0, ts, model.schedule, torch.randn(x0.shape, generator=g)), ts)
        assert seen.mean((0, 2, 3)).abs().max() < .02 and (seen.std((0, 2, 3)) - 1).abs().max() < .02

@pytest.mark.parametrize('prediction', ['v', 'eps', 'x0'])
def test_a_mean_changes_neither_target_nor_way_back(prediction):
    model = Denoiser(dict(channels=2, dim=8, mults=[1]), prediction=prediction, schedule='cosine', data_std=.2, data_mean=(-.3, -.8), size=16)
    g = torch.Generator().manual_seed(0)
    x0, eps, t = torch.rand(8, 2, 16, 16, generator=g)*2 - 1, torch.randn(8, 2, 16, 16, generator=g), torch.arange(50, 850, 100)
    xt = q_sample(x0, t, model.schedule, eps)
    assert torch.allclose(model.out_to_x0(model.target(x0, eps, t), xt, t), x0, atol=1e-3)

def test_normalize_moves_levels_in_proportion_and_is_saved(tmp_path):
    dls = dim_cells(); learn = diffusion_learner(dls, dim=8, mults=(1,), normalize=True)
    mean, std = pixel_statistics(dls)
    assert learn.model.data_mean == tuple(mean) and learn.model.data_std == std
    assert learn.diffusion.levels == pytest.approx((-.8 + math.log(std/.5), 1.))
    learn.model.save_pretrained(tmp_path); again = pretrained(Denoiser, tmp_path)
    assert again.data_mean == tuple(mean) and again.data_std == std
    with pytest.raises(ValueError, match='its data_mean is'): warm_start(Denoiser(dict(channels=2, dim=8, mults=[1]), schedule="log_snr", prediction="v", data_std=std, size=28), again)
