"A student's jumps end where its teacher's walk does, and it knows how many there are"
import ast
import json
from pathlib import Path
from types import SimpleNamespace
import numpy as np
import pytest
import torch
from fastai.learner import Callback
from typer.testing import CliRunner
from common import package
from cell_diffusion.augmentation import balance
from cell_diffusion.cli import app
from cell_diffusion.core import generator
from cell_diffusion.data import cell_dls
from cell_diffusion.denoiser import (Condition, Denoiser, denoise, load, save,
                                     set_guidance, weights_hash)
from cell_diffusion.distillation import (WalkLoader, Walks, distillation_learner,
                                         jump_timesteps, jump_x0, states_from,
                                         student_of, teacher_walks)
from cell_diffusion.flows import likelihood, translate
from cell_diffusion.gan import gan_learner
from cell_diffusion.inpainting import Inpainter, fill_holes, inpaint
from cell_diffusion.recipes import (
    choose_guidance, describe_data, distill_model, score_weights,
    train_and_save_classifier, train_reference_classifier)
from cell_diffusion.records import write_json
from cell_diffusion.sampling import ddim, invert, sample
from cell_diffusion.studies.augmentation import AugmentationStudy
from cell_diffusion.studies.fid import published_distances
from cell_diffusion.studies.guidance import generate_arms
from cell_diffusion.studies.inpainting import NetworkArm
from cell_diffusion.studies.race import race
from cell_diffusion.studies.samplers import quality_against_cost
from cell_diffusion.training import SampleEachEpoch, fit_for
from cell_diffusion.web import page_facts

tiny = dict(dim=16, mults=[1, 2])
kinds = 'basophil', 'neutrophil'

@pytest.fixture(scope='module')
def cells():
    return cell_dls('simulated', size=28, bs=16, n=96)

def network(kind=Denoiser, std=.05, classes=None, data_std=.5, size=28,
            data_mean=0.):
    "A small network; with `std=0` it is the best denoiser of Gaussian pixels"
    torch.manual_seed(0)
    unet = tiny
    if kind is Inpainter: unet = dict(tiny, channels=7, out_channels=3)
    model = kind(unet, 'log_snr', prediction='v', data_std=data_std, size=size,
                 data_mean=[data_mean], classes=classes or [])
    rng = generator(0)
    for p in model.parameters():
        if std: torch.nn.init.normal_(p, std=std, generator=rng)
    return model.eval()

def noise(*shape, seed=0):
    return torch.randn(shape, generator=generator(seed))

def test_walks_begin_about_the_mean_of_the_data(cells):
    plain = network()
    bright = network(data_mean=.6)
    starts = [teacher_walks(n, cells.train, (999,), 8, progress=False).states[:, 0]
              for n in (plain, bright)]
    expected = .6*bright.schedule.signal[-1].item()
    assert (starts[1] - starts[0]).float().mean().item() == pytest.approx(expected, .1)


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
    with torch.no_grad():
        states = states_from(teacher, x, Condition(), jumps)
    assert states.shape == (3, calls + 1, 3, 28, 28)

    def perfect(xt, t):
        i = jumps.index(t)
        s = teacher.schedule
        here = s.signal[t], s.noise[t]
        last = i + 1 == calls
        there = (1., 0.) if last else (s.signal[jumps[i + 1]], s.noise[jumps[i + 1]])
        assert torch.allclose(xt, states[:, i], atol=1e-4)
        return jump_x0(xt, states[:, i + 1], here, there)

    begin = teacher.noisiest(x)
    end = ddim(perfect, begin, teacher.schedule, torch.tensor(jumps))
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
        with torch.no_grad():
            x0 = denoise(model, x, model.jumps[0])
        return (x0 - .2*x).pow(2).mean().sqrt().item()
    before = error(learn.model)
    fit_for(learn, epochs=7, lr=4e-3, progress=False)
    assert before > .15
    assert error(learn.ema.averaged.eval()) < .08

@pytest.mark.parametrize('kind', [Denoiser, Inpainter])
def test_teacher_with_the_same_jumps_is_a_fixed_point(cells, kind):
    "What a student says is what its own student should say"
    first = network(kind, classes=cells.vocab)
    teacher = student_of(first, jump_timesteps(first, 4))
    learn = distillation_learner(cells, teacher, 4, 20, 16, progress=False,
                                 precision='float32')
    assert learn.model.jumps == teacher.jumps
    # What an `Inpainter` says of known pixels is not used on its way
    learn.noise.outside = 0
    with learn.no_bar(), learn.no_logging():
        loss = learn.validate()[0]
    # Walks are kept in half precision
    assert loss < 6e-5

def test_walks_are_guided_as_the_teacher_is(cells):
    "With the same noise, classes and masks, other walks where there is a class"
    teacher = network(Inpainter, classes=cells.vocab)
    jumps = jump_timesteps(teacher, 2)
    def walks(scale):
        set_guidance(teacher, scale)
        return teacher_walks(teacher, cells.train, jumps, 20, progress=False)
    plain = walks(1)
    guided = walks(3)
    null = len(cells.vocab)
    assert torch.equal(plain.label, guided.label) and len(plain) == 20
    assert 0 < (plain.label == null).sum() < 10
    same = (plain.states[:, -1] == guided.states[:, -1]).flatten(1).all(1)
    assert torch.equal(same, (plain.label == null) | ~plain.mask.flatten(1).any(1))
    assert torch.equal(plain.states[:, 0], guided.states[:, 0])
    shown = plain.known*~plain.mask
    assert torch.equal(plain.states[:, -1]*~plain.mask, shown)
    assert not (plain.known*plain.mask).any()

@pytest.mark.parametrize('kind', [Denoiser, Inpainter])
def test_killed_distillation_goes_on_to_the_bit(cells, tmp_path, kind):
    "The walks are read from their file, and the jumps come in the same order"
    teacher = network(kind, classes=cells.vocab)
    def learner():
        return distillation_learner(cells, teacher, 2, 30, 16, progress=False,
                                    file=tmp_path/'walks.pt', precision='float32')
    class Kill(Callback):
        order = 70
        def after_batch(self):
            if self.training and self.train_iter == 4: raise KeyboardInterrupt

    whole = learner()
    fit_for(whole, epochs=2, progress=False)
    checkpoint = tmp_path/'checkpoint.pt'
    killed = learner()
    killed.add_cb(Kill())
    with pytest.raises(KeyboardInterrupt):
        fit_for(killed, epochs=2, checkpoint=checkpoint, progress=False)
    with pytest.MonkeyPatch.context() as m:
        m.setattr('cell_diffusion.distillation.teacher_walks', lambda *_: 1/0)
        again = learner()
    fit_for(again, epochs=2, checkpoint=checkpoint, progress=False)
    assert weights_hash(again.ema.averaged) == weights_hash(whole.ema.averaged)

@pytest.mark.parametrize('kind', [Denoiser, Inpainter])
def test_student_knows_its_jumps(tmp_path, kind):
    "Saved and loaded, it samples with as many calls, and fills holes"
    student = student_of(network(kind, classes=kinds), (999, 500))
    save(student, tmp_path/'s')
    student = load(tmp_path/'s', 'cpu', 'float32')
    assert student.jumps == (999, 500)
    x, path = sample(student, 2, 'basophil', trajectory=True, progress=False)
    assert [t for t, _, _ in path] == [999, 500]
    assert torch.equal(x, path[-1][2]) and torch.equal(
        x, sample(student, 2, 0, steps=2, sampler='ddim', progress=False))

    images = noise(2, 3, 28, 28).clamp(-1, 1)
    mask = torch.zeros(2, 1, 28, 28).bool()
    mask[..., :14] = True
    filled = fill_holes(student, images, mask, 'basophil', progress=False)
    assert torch.equal(torch.where(mask, images, filled), images)

refused = {
    'other steps': (dict(steps=20), 'distilled for ddim in 2 steps'),
    'another sampler': (dict(sampler='heun'), 'leave steps, sampler'),
    'a spacing': (dict(spacing='time'), 'leave steps, sampler'),
    'guidance': (dict(label=0, guidance_scale=2), 'leave guidance_scale'),
    'a guide': (dict(guide=True), 'leave guidance_scale'),
}

@pytest.mark.parametrize('given, said', refused.values(), ids=refused.keys())
def test_student_refuses_other_walks(given, said):
    teacher = network(classes=kinds)
    student = student_of(teacher, (999, 500))
    if 'guide' in given: given = dict(guide=teacher)
    with pytest.raises(ValueError, match=said):
        sample(student, 2, progress=False, **given)

def test_what_a_student_cannot_be(tmp_path):
    student = student_of(network(classes=kinds), (999, 500))
    with pytest.raises(ValueError, match='walks in one way only: invert with'):
        invert(student, noise(2, 3, 28, 28))
    with pytest.raises(ValueError, match='guide was distilled'):
        set_guidance(network(classes=kinds), 2, guide=student)
    for jumps in ([], [500], [999, 999], [999, 1000], [999, 2.5], [999, -1]):
        with pytest.raises(ValueError, match='timesteps that fall from 999'):
            Denoiser(tiny, 'log_snr', jumps=jumps)
    assert jump_timesteps(student, 1) == (999,)
    with pytest.raises(ValueError, match='calls'):
        jump_timesteps(student, 3)

def pictures_after_an_epoch(student):
    pictures = SampleEachEpoch(n=2)
    means = SimpleNamespace(averaged=student)
    pictures.learn = SimpleNamespace(ema=means, epoch=0)
    pictures.after_epoch()
    assert len(pictures.images[0]) == 2

def an_arm(student):
    arm = NetworkArm(student)
    images = noise(1, 3, 28, 28).clamp(-1, 1)
    mask = torch.ones(1, 1, 28, 28).bool()
    assert arm.nfe == 2 and len(arm.fill(images, mask, None, 0)) == 1

def a_clamped_picture(student):
    hole = np.zeros((28, 28), bool)
    hole[8:20, 8:20] = True
    picture = np.full((28, 28, 3), 200, np.uint8)
    assert len(inpaint(picture, hole, method='clamp', model=student, progress=False))

@pytest.mark.parametrize('use', [pictures_after_an_epoch, an_arm, a_clamped_picture])
@pytest.mark.filterwarnings('ignore::UserWarning')
def test_a_student_makes_its_own_steps_unless_told(use):
    use(student_of(network(), (999, 500)))

in_several_ways = {
    'invert': lambda net: invert(net, noise(2, 3, 28, 28)),
    'compare samplers': lambda net: quality_against_cost(net, *[None]*3),
    'compare guidance scales': generate_arms,
    'measure likelihoods': lambda net: likelihood(net, None),
    'translate': lambda net: translate(net, None),
    'fill by method repaint': lambda net: inpaint(
        np.zeros((28, 28, 3), np.uint8), np.eye(28) > 0, method='repaint', model=net),
}

@pytest.mark.parametrize('doing, work', in_several_ways.items(), ids=in_several_ways)
def test_a_student_is_refused_where_walks_are_compared(doing, work):
    student = student_of(network(classes=kinds), (999, 500))
    with pytest.raises(ValueError, match=f'walks in one way only: {doing} with'):
        work(student)

# These sample with networks of their own training, or refuse students
own_networks = {
    'c2st', 'classifier_accuracy_score', 'train_model', 'gan_beside_ddpm', 'draw_ddpm',
    'likelihood', 'bits_study', 'translate', 'through_noise', 'longtail_study',
    'choose_guidance', 'generate_arms', 'write_studies', 'invert', 'orthogonalize',
    'AugmentationStudy', 'export_onnx', 'sampler', 'as_class', 'change_study',
    'channel_study', 'lost_study', 'trained_pair', 'toy_paths'}

def with_steps(node):
    "Does a function or a dataclass have a number of steps by default?"
    pairs = []
    if isinstance(node, ast.FunctionDef):
        names = [a.arg for a in node.args.args]
        pairs = zip(names[::-1], node.args.defaults[::-1])
    if isinstance(node, ast.ClassDef):
        fields = [f for f in node.body if isinstance(f, ast.AnnAssign) and f.value]
        pairs = [(f.target.id, f.value) for f in fields]
    return any(name.endswith('steps') and ast.unparse(value) != 'None'
               for name, value in pairs)

def test_nobody_else_has_steps_by_default():
    "`None` is what a network is made for, so distilled ones work everywhere"
    found = set()
    for file in package.rglob('[a-z]*.py'):
        tree = ast.walk(ast.parse(file.read_text(encoding='utf-8')))
        found |= {node.name for node in tree if with_steps(node)}
    assert found == own_networks

def test_a_page_knows_the_jumps():
    "And that it should not guide"
    student = student_of(network(classes=kinds), (999, 500))
    facts = page_facts(student, Path('net.onnx'), b'', '', (5, 10, 20))
    signal = student.schedule.signal[[999, 500]].tolist()
    noise = student.schedule.noise[[999, 500]].tolist()
    walk = dict(t=[999, 500], signal=signal, noise=noise, ddim=True)
    assert facts['walks'] == {2: walk}
    assert facts['guided'] is False

def test_distil_from_the_shell(tmp_path):
    "Weights, record and card say what the network is; the same command goes on"
    vocab = cell_dls('simulated', size=28, bs=16, n=96).vocab
    save(network(classes=vocab), tmp_path/'teacher')
    words = ['distill', str(tmp_path/'teacher'), '--data', 'simulated', '--calls', '2',
             '--walks', '20', '--epochs', '1', '--n', '96', '--scored', '0', '--bs',
             '8', '--out', str(tmp_path/'s')]
    said = CliRunner().invoke(app, words)
    assert said.exit_code == 0, said.output
    record = json.loads((tmp_path/'s'/'record.json').read_text())
    assert record['calls'] == 2 and record['walks'] == 20
    assert record['start'] == 'teacher'
    card = (tmp_path/'s'/'README.md').read_text()
    assert 'distilled into 2 network calls with 20 walks of its teacher' in card
    assert len(load(tmp_path/'s').jumps) == 2
    again = CliRunner().invoke(app, words)
    assert again.exit_code == 0 and json.loads(
        (tmp_path/'s'/'record.json').read_text())['steps'] == record['steps']
    other = CliRunner().invoke(app, words[:4] + ['--calls', '1'] + words[6:])
    assert other.exit_code == 1 and 'calls was 2' in other.output


@pytest.mark.parametrize('schedule', ['cosine', 'linear', 'log_snr', 'sigmoid'])
@pytest.mark.parametrize('calls', [1, 2, 4])
def test_the_first_jump_begins_at_the_noise(schedule, calls):
    model = Denoiser(tiny, schedule, size=28)
    jumps = jump_timesteps(model, calls)
    assert jumps[0] == 999 and len(jumps) == calls
    student_of(model, jumps)


def test_walks_move_with_their_loader():
    states = torch.arange(18.).view(3, 3, 2, 1, 1)
    walks = Walks(states, torch.tensor([0, 1, 2]), seconds=7.)
    loader = WalkLoader(walks, bs=2, train=False).to('meta')
    assert loader.walks.states.device.type == loader.walks.label.device.type == 'meta'
    assert loader.walks.mask is None and loader.walks.seconds == 7.
    assert walks.states.device.type == 'cpu'


def test_too_few_walks_for_a_batch_are_refused():
    walks = Walks(torch.zeros(3, 3, 3, 28, 28))
    assert len(WalkLoader(walks, bs=6)) == 1
    with pytest.raises(ValueError, match='6 jumps do not fill a batch of bs=7'):
        WalkLoader(walks, bs=7)


# What a record says of cells, and which are refused

@pytest.fixture
def taught(tmp_path):
    "Makes the folder of a teacher whose record says what it was trained on"
    def make(kind=Denoiser, known=True):
        dls = cell_dls('simulated', size=28, bs=16, n=96)
        folder = tmp_path/'teacher'
        save(network(kind, classes=dls.vocab), folder)
        if known: write_json(folder/'record.json', dict(describe_data(dls), loaded=96))
        return folder
    return make

def distilled(teacher, **given):
    how = dict(calls=1, walks=10, epochs=1, bs=4, scored=0, progress=False)
    return distill_model(teacher, 'simulated', out=teacher.parent/'s', **how | given)

@pytest.mark.filterwarnings('ignore:The training was too short')
@pytest.mark.parametrize('given', [{}, dict(n=80)])
def test_a_student_knows_the_cells_of_its_teacher(taught, given):
    "Even where it walked on others, so that a score of other cells warns"
    teacher = taught()
    of_teacher = json.loads((teacher/'record.json').read_text())
    record = distilled(teacher, **given)
    for key in ('fingerprint', 'cells', 'loaded', 'source'):
        assert record[key] == of_teacher[key], key
    assert (record['walked_on'] == record['fingerprint']) is not bool(given)

@pytest.mark.filterwarnings('ignore:The training was too short')
def test_cells_that_nothing_is_known_of(taught):
    said = 'Nothing says which cells .* was trained on'
    with pytest.warns(UserWarning, match=said):
        record = distilled(taught(known=False), n=96)
    assert record['fingerprint'] == 'unknown' and record['loaded'] == 96
    assert 'Nothing says which cells its teacher' in record['advice'][1]

@pytest.mark.parametrize('kind, scored, said', [
    (Denoiser, 4, 'scored=0'), (Inpainter, 0, 'distil it on the same cells')])
def test_other_cells_are_refused_before_any_walk(taught, kind, scored, said):
    teacher = taught(kind)
    with pytest.raises(ValueError, match=f'not the cells that .* trained on.*{said}'):
        distilled(teacher, n=80, scored=scored)
    assert not list(teacher.parent.glob('s/*.pt'))

in_one_process = dict(
    distill_model=distilled,
    score_weights=lambda to: score_weights(to, 'nowhere'),
    choose_guidance=lambda to: choose_guidance(to, 'nowhere'),
    train_reference_classifier=lambda to: train_reference_classifier('nowhere', out=to),
    train_and_save_classifier=lambda to: train_and_save_classifier(None, to),
    race=lambda to: race('nowhere', to),
    balance=lambda to: balance('nowhere', to),
    published_distances=lambda to: published_distances('nowhere'),
    gan_learner=lambda to: gan_learner(None),
)
in_one_process['AugmentationStudy.run'] = lambda to: AugmentationStudy.run(None)

@pytest.mark.parametrize('what, work', in_one_process.items(), ids=in_one_process)
def test_several_processes_are_told_at_once(what, work, tmp_path, monkeypatch):
    monkeypatch.setenv('WORLD_SIZE', '2')
    monkeypatch.setenv('RANK', '1')
    with pytest.raises(ValueError, match=f'{what} runs in one process: start it witho'):
        work(tmp_path/'new')
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('name', ['gamma', 'label_dropout', 'noise_levels'])
def test_what_a_student_does_not_learn_by_is_refused(cells, name):
    with pytest.raises(ValueError, match=f'learns jumps: {name} means nothing'):
        distillation_learner(cells, network(), 2, 30, 16, progress=False, **{name: .5})
