"Names of version 0.1: each still works, and says where it is now"
import ast
import importlib
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from cell_diffusion import moved
from cell_diffusion.classifier import CellClassifier, train_classifier
from cell_diffusion.data import cell_dls
from cell_diffusion.denoiser import Condition, Denoiser, denoise, load, save
from cell_diffusion.inpainting import Inpainter, fill_holes
from cell_diffusion.moved import where
from cell_diffusion.process import Schedule
from cell_diffusion.sampling import (
    batched_denoise, invert, sample, samplers, timesteps)
from cell_diffusion.schedules import cosine_schedule
from cell_diffusion.toys import Oracle, Toy

package = Path(moved.__file__).parent
gone = 'ddpm', 'evaluation', 'samplers', 'conditioning'

# Every public name of version 0.1, by module
names_of_0_1 = dict(
    augmentation='''
        arms changes makers symbols confusion class_scores lacking jitter Stream
        adapted_resnet Bfloat16 train_resnet called cell_marks no_leak
        AugmentationStudy ddpm_cells gan_cells recognised_first letters numbers
        load_records bootstrap arm_scores verdict judged wide plot_scores
        plot_confusion write_results told_apart balance
    ''',
    cli='''
        app sample_ inpaint_ train_ classifier_ race_ bench_ study_ balance_ download_
    ''',
    conditioning='''
        middle features Guided spread paint_arms guidance_study plot_guidance
        optical_density otsu find_cells find_nuclei count_lobes measure morphology
        morphology_study morphology_gap thin longtail_study write_studies
    ''',
    core='scales Scale get_scale encode decode show_cells default_device generator',
    data='''
        published_counts origins sources channel_codes Origin crop_box CellImages
        cache_folder find_data load_cells few_of_each download split_cells
        shared_cells kfold_cells turn_and_flip CellLoader CellLoaders cell_dls
    ''',
    ddpm='''
        weights_folder spacings samplers objectives shipped pretrained Denoiser
        uniform_t lognormal_t unwrap weighted_mse image_mse DiffusionCallback EMA
        fast_bfloat16 ddpm_learner ancestral spaced_timesteps timesteps dpm_solver
        label_tensor sample slowest Budget Checkpoint fit_for LossByLevel
        SampleEachEpoch snr_weight warm_start pixel_statistics diffusion_learner
    ''',
    evaluation='''
        CellClassifier train_classifier look fingerprint classifier_folder judge_for
        wilson recognised balanced_accuracy plot_shares frechet_distance
        kernel_distance distances summary bias_curve plot_bias precision_recall
        density_coverage nearest positions look_turned thumbnails show_nearest
        memorisation accuracy_scores plain_numbers number_gaps compare report
        plot_report score scored_records score_table
    ''',
    gan='''
        games critic_hinge critic_logistic painter_hinge painter_logistic r1_penalty
        ModulatedNorm GenBlock Generator CriticBlock Discriminator diff_augment
        gan_sample GAN GeneratorEMA GANCallback gan_learner gan_beside_ddpm
    ''',
    inpainting='''
        shapes ablation_arms methods box_mask brush_mask half_mask whole_mask
        random_masks stained_masks masked_view Inpainter Filling fill jump_schedule
        repaint_calls repaint hole_error seam_energy InpaintingCallback hole_mse
        inpainting_learner hole_means ablation_study mean_fill biharmonic_fill
        hole_scores arm_calls inpainting_study study_table Untold study_arms
        study_holes write_inpainting_study read_pixels read_mask find_window cut
        inpaint load_network
    ''',
    painter='MaskCanvas MaskPainter',
    process='''
        predictions Toy Schedule noise_like q_step q_sample q_posterior x0_from_eps
        eps_from_x0 v_from x0_from_v eps_from_v target to_x0 to_eps p_sample
        reverse_walk set_denoiser
    ''',
    recipes='''
        licences machine write_json save_weights classifier_for
        train_and_save_classifier held_out about train level_losses save_grid
        model_card classifier_card results race race_table bench bench_summary
        bench_line
    ''',
    samplers='''
        contestants Oracle euler ddim heun network_calls steps_for even_timesteps
        karras_timesteps invert slerp quality_against_cost plot_cost
    ''',
    schedules='''
        schedules linear_schedule cosine_schedule sigmoid_schedule log_snr_schedule
        rescale_zero_snr get_schedule
    ''',
    simulation='''
        blood_classes jurkat_phases jurkat_channels absorb pixel_grid capsule_sdf
        cover star_sdf union_sdf Dice smooth_noise granules SimulatedCells
        simulate_blood simulate_jurkat
    ''',
    unet='''
        timestep_embedding n_params layer_shapes GroupNorm ResBlock Attention
        Downsample Upsample Embedding UNet draw_unet gflops
    ''',
    viewer='grid_frame FrameSlider',
    web='''
        DenoiserStep step_inputs export_onnx onnx_session verify_onnx browser_noise
        browser_cells write_browser_files
    ''',
)
every_name = [f'{module}.{name}' for module, names in names_of_0_1.items()
              for name in names.split()]


def quietly(f, *args, **kwargs):
    "Call something deprecated"
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', DeprecationWarning)
        return f(*args, **kwargs)


def old(path):
    "What an old name gives"
    module, name = path.split('.')
    return quietly(getattr, importlib.import_module(f'cell_diffusion.{module}'), name)


# Every name

def test_the_table_is_of_old_names():
    assert len(every_name) == 306
    assert set(where) <= set(every_name)
    assert set(moved.adapters) <= set(where)
    for module in gone:
        here = [path for path in every_name if path.startswith(f'{module}.')]
        assert set(here) <= set(where)


def new_object(path):
    "What an old name stands for, or None if it stayed where it was"
    if path not in where: return None
    if path in moved.adapters: return moved.adapters[path]
    return moved.target(path)


@pytest.mark.parametrize('path', every_name)
def test_every_old_name_is_found(path):
    "As an attribute and by `from module import name`; the same object as the new one"
    module_name, name = path.split('.')
    new = new_object(path)
    module = importlib.import_module(f'cell_diffusion.{module_name}')
    names = {}
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        exec(f'from cell_diffusion.{module_name} import {name} as found', names)
    if name not in vars(module):
        message = said[0].message
        assert len(said) == 1 and isinstance(message, DeprecationWarning)
        assert where[path] in str(message) and f'cell_diffusion.{path} ' in str(message)
    if new is not None and name not in vars(module): assert names['found'] is new
    assert names['found'] is quietly(getattr, module, name)


@pytest.mark.parametrize('path', sorted(where))
def test_every_new_name_exists(path):
    "Adapters too stand for something that there is"
    if where[path].startswith('sk'): return
    moved.target(path)


@pytest.mark.parametrize('module', ['data', 'ddpm'])
def test_names_that_never_were(module):
    module = importlib.import_module(f'cell_diffusion.{module}')
    with pytest.raises(AttributeError, match="has no attribute 'paint_unicorns'"):
        module.paint_unicorns
    assert not hasattr(module, '__path__')


def test_the_warning_points_to_the_line_that_imports():
    with pytest.warns(DeprecationWarning) as said:
        from cell_diffusion.ddpm import lognormal_t  # noqa: F401
    assert said[0].filename == __file__


star = """
import warnings
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter('always', DeprecationWarning)
    from cell_diffusion.{module} import *
said = [str(w.message) for w in said if 'cell_diffusion' in str(w.message)]
assert len(said) == 1 and 'cell_diffusion.{module} is gone' in said[0], said
missing = set('{names}'.split()) - set(globals())
assert not missing, missing
"""


def test_star_imports_warn_once():
    "One module after the other, in one process"
    for path in where:
        if path.split('.')[0] in gone: new_object(path)
    code = [star.format(module=module, names=' '.join(names_of_0_1[module].split()))
            for module in gone]
    done = subprocess.run([sys.executable, '-c', ''.join(code)], capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stderr


def imports(file):
    "Modules of the package that a file imports at its top"
    for node in ast.parse(file.read_text(encoding='utf-8')).body:
        if isinstance(node, ast.ImportFrom) and node.module: yield node.module
        if isinstance(node, ast.Import): yield from (name.name for name in node.names)


files = sorted(f for f in package.rglob('*.py') if f.stem not in gone)


@pytest.mark.parametrize('file', files, ids=lambda f: f.stem)
def test_nothing_imports_the_old_modules(file):
    old_modules = {f'cell_diffusion.{name}' for name in ('moved', *gone)}
    used = old_modules & set(imports(file))
    assert not used


awake = """
import importlib, sys
for name in sys.argv[1:]: importlib.import_module(f'cell_diffusion.{name}')
assert 'cell_diffusion.moved' not in sys.modules
"""


def test_the_library_does_not_load_them():
    "Python asks modules for names such as `__path__`, which is no old name"
    names = [f.stem for f in files if f.parent == package and f.stem[0] != '_'
             and f.stem not in ('moved', 'painter', 'web', 'cli')]
    done = subprocess.run([sys.executable, '-c', awake, *names], capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stderr


# Calls with the old arguments, against the same with the new ones

small = dict(dim=8, mults=[1, 2])
seeing = dict(channels=7, out_channels=3, **small)


def tiny(kind=Denoiser, seed=0):
    torch.manual_seed(seed)
    model = kind(seeing if kind is Inpainter else small, schedule='cosine', T=20,
                 prediction='v', size=8, classes=('round', 'long')).eval()
    torch.nn.init.normal_(model.unet.out[-1].weight, std=.1)
    return model


x = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))*2 - 1
mask = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(1)) > .5
label = torch.tensor([0, 1])
few = dict(steps=3, progress=False)
Guided = moved.adapters['conditioning.Guided']
Filling = moved.adapters['inpainting.Filling']
Untold = moved.adapters['inpainting.Untold']

# Old wrapper, and the arguments that replace it
wrapped = {
    'guided': (lambda net: Guided(net, 2.), dict(guidance_scale=2.)),
    'interval': (lambda net: Guided(net, 3., (-2., 2.)),
                 dict(guidance_scale=3., interval=(-2., 2.))),
    'filling': (lambda net: Filling(net, x, mask), dict(known=x, mask=mask)),
    'guided filling': (lambda net: Guided(Filling(net, x, mask), 2.),
                       dict(known=x, mask=mask, guidance_scale=2.)),
    'filling guided': (lambda net: Filling(Guided(net, 2.), x, mask),
                       dict(known=x, mask=mask, guidance_scale=2.)),
    'untold': (Untold, dict(show_known=False)),
    'untold filling': (lambda net: Filling(Untold(net), x, mask),
                       dict(known=x, mask=mask, show_known=False)),
}


@torch.no_grad()
@pytest.mark.parametrize('kind', [Denoiser, Inpainter])
@pytest.mark.parametrize('case', wrapped)
def test_wrappers(case, kind):
    "In the old `sample`, in the new one, and called by themselves"
    wrap, settings = wrapped[case]
    model = tiny(kind)
    expected = sample(model, 2, label=[0, 1], **few, **settings)
    wrapper = wrap(model)
    out = old('ddpm.sample')(wrapper, 2, label=[0, 1], **few)
    assert torch.equal(out, expected)
    out = sample(wrapper, 2, label=[0, 1], **few)
    assert torch.allclose(out, expected, atol=1e-4)

    t = torch.tensor([3, 15])
    expected = denoise(model, x, t, Condition(label, **settings))
    assert torch.allclose(wrapper.x0(x, t, label), expected, atol=1e-5)
    assert wrapper.classes == model.classes and wrapper.size == 8


def test_wrappers_refuse_what_they_refused():
    model = tiny()
    with pytest.raises(ValueError, match='guidance_scale=nan'):
        Guided(model, float('nan'))
    with pytest.raises(ValueError, match='interval'):
        Guided(model, 2., (2., -2.))
    with pytest.raises(ValueError, match='without classes'):
        Guided(Denoiser(small))
    with pytest.raises(ValueError, match='same size'):
        Filling(model, x, mask[:, 0])
    with pytest.raises(ValueError, match='one mask'):
        Filling(model, x, mask[[0]*3])
    assert Guided(model, 2.).weight(torch.tensor([1, 2])).tolist() == [2., 2.]


@pytest.mark.parametrize('kind', [Denoiser, Inpainter])
def test_fill(kind):
    model = tiny(kind)
    out = old('inpainting.fill')(model, x, mask, [0, 1], 2., 5, **few)
    expected = fill_holes(model, x, mask, [0, 1], 5, guidance_scale=2., **few)
    assert torch.equal(out, expected)
    out = old('inpainting.fill')(Untold(model), x, mask, **few)
    assert torch.equal(out, fill_holes(model, x, mask, show_known=False, **few))
    with pytest.raises(ValueError, match='name one with label'):
        old('inpainting.fill')(model, x, mask, w=2., **few)


@torch.no_grad()
@pytest.mark.parametrize('name', samplers)
def test_samplers_take_a_network(name):
    old_samplers = old('ddpm.samplers')
    assert set(old_samplers) == set(samplers)
    model = tiny()
    noise = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(4))
    rng = torch.Generator().manual_seed(4)
    torch.randn(2, 3, 8, 8, generator=rng)
    fills = dict(known=x, mask=mask) if name == 'repaint' else {}
    network = Filling(model, x, mask) if fills else model
    calls = []
    out = old_samplers[name](network, noise, label, rng, steps=4,
                             callback=lambda *args: calls.append(args))
    # The old samplers begin with the noise that they are given
    condition = Condition(label, **fills)
    sampler = samplers[name]
    ts = None if sampler.every_timestep else timesteps(model.schedule, 4, 'early')
    rng = torch.Generator().manual_seed(4)
    torch.randn(2, 3, 8, 8, generator=rng)
    expected = sampler.algorithm(batched_denoise(model, condition), noise,
                                 model.schedule, ts, rng, **fills)
    if fills:
        out = torch.where(mask, out, x)
        expected = torch.where(mask, expected, x)
    assert torch.equal(out, expected) and calls


def test_samplers_by_their_names():
    for path in ('samplers.euler', 'samplers.ddim', 'samplers.heun', 'ddpm.ancestral',
                 'ddpm.dpm_solver', 'inpainting.repaint'):
        name = path.split('.')[1]
        assert old(path) is old('ddpm.samplers')[name]
    with pytest.raises(ValueError, match='fills holes'):
        old('inpainting.repaint')(tiny(), x, label, steps=2)


@torch.no_grad()
def test_oracles_and_inversion():
    schedule = cosine_schedule(50)
    noise = torch.randn(4, 1, generator=torch.Generator().manual_seed(0))
    out = old('samplers.ddim')(Oracle(Toy(), schedule), noise, steps=5)
    assert out.shape == (4, 1) and torch.isfinite(out).all()
    model = tiny()
    expected = invert(model, x, [0, 1], steps=5)
    assert torch.equal(old('samplers.invert')(model, x, label, steps=5), expected)


def test_costs():
    assert old('samplers.network_calls')('heun', 5) == 9
    assert old('samplers.network_calls')('ancestral', 5, 200) == 200
    assert old('samplers.steps_for')('heun', 9) == 5
    assert old('inpainting.repaint_calls')(25) == 105


def test_classes():
    numbers = old('ddpm.label_tensor')(tiny(), ['long', 0])
    assert numbers.tolist() == [1, 0]
    with pytest.raises(ValueError, match='Unknown class'):
        old('ddpm.label_tensor')(tiny(), 'square')


def test_saving_and_loading(tmp_path):
    pretrained = old('ddpm.pretrained')
    old('recipes.save_weights')(tiny(Inpainter), tmp_path)
    assert type(pretrained(Inpainter, tmp_path)) is Inpainter
    network = old('inpainting.load_network')(tmp_path)
    assert type(network) is Inpainter and network.precision == 'float32'
    assert type(pretrained(Denoiser, 'blood32')) is Denoiser
    assert type(pretrained(CellClassifier, 'blood-classifier-32')) is CellClassifier
    with pytest.raises(ValueError, match='CellClassifier.* is needed'):
        pretrained(CellClassifier, 'blood32')
    assert old('ddpm.shipped')('blood32').name == 'blood32'
    save(tiny(), tmp_path)
    again = Denoiser.from_pretrained(tmp_path)
    assert again.settings == load(tmp_path, 'cpu').settings


def test_bfloat16_as_a_flag():
    model = tiny()
    with pytest.warns(DeprecationWarning, match='precision'):
        model.bfloat16 = True
    assert model.precision == 'bfloat16'


@pytest.fixture(scope='module')
def dls(): return cell_dls('simulated', size=28, bs=8, n=48, device='cpu')


def test_learners(dls):
    diffusion_learner = old('ddpm.diffusion_learner')
    learn = diffusion_learner(dls, objective='v', dim=8, mults=(1, 2), bfloat16=False)
    assert learn.model.prediction == 'v' and learn.model.precision == 'float32'
    learn = diffusion_learner(dls, 'edm', dim=8, mults=(1, 2), bfloat16=True)
    assert learn.model.precision == 'bfloat16'
    with pytest.raises(ValueError, match='Unknown'):
        diffusion_learner(dls, objective='magic')
    model = Denoiser(small, size=28)
    learn = old('ddpm.ddpm_learner')(dls, model, levels=(-1.2, 1.2), bfloat16=None)
    assert learn.noise.noise_levels == (-1.2, 1.2)


def test_classifiers(dls):
    train = old('evaluation.train_classifier')
    out = train(dls, dim=8, steps=2, bfloat16=False)
    expected = train_classifier(dls, dim=8, steps=2, precision='float32')
    for a, b in zip(out.parameters(), expected.parameters()):
        assert torch.equal(a, b)


def test_reference_classifiers(dls, monkeypatch):
    asked = []
    def find(*args, **kwargs): asked.append((args, kwargs))
    monkeypatch.setattr('cell_diffusion.classifier.reference_classifier', find)
    old('evaluation.judge_for')(dls)
    old('recipes.classifier_for')(dls, True)
    assert asked == [((dls, 8), {}), ((dls, 12), dict(keep=True, progress=True))]
    with pytest.raises(ValueError, match='no longer takes make'):
        old('evaluation.judge_for')(dls, make=train_classifier)


def test_resnets(dls, monkeypatch):
    asked = []
    def train(dls, **kwargs): asked.append((dls, kwargs))
    monkeypatch.setattr('cell_diffusion.classifier.train_classifier', train)
    old('augmentation.train_resnet')(dls.train, 'resnet18', weights=[1.]*8)
    (loaders, settings), = asked
    assert loaders.train is dls.train and len(loaders.valid.idxs) == dls.train.bs
    assert settings == dict(steps=len(dls.train), lr=4e-3, seed=0, network='resnet18',
                            class_weights=[1.]*8)


def test_training_by_recipe(monkeypatch):
    asked = {}
    monkeypatch.setattr('cell_diffusion.recipes.train_model', asked.update)
    old('recipes.train')(data='simulated', objective='edm', levels=(0., 1.),
                         bfloat16=False)
    assert asked == dict(data='simulated', config='edm', noise_levels=(0., 1.),
                         precision='float32')


def test_objectives_are_dicts():
    objectives = old('ddpm.objectives')
    first = ['ddpm', 'cosine', 'v', 'min-snr', 'edm', 'edm-mid', 'eps-mid']
    assert list(objectives)[:7] == first
    edm = dict(schedule='log_snr', prediction='v', data_std=.5, levels=(-1.2, 1.2))
    assert objectives['edm'] == edm
    assert objectives['min-snr']['gamma'] == 5.


def test_other_names_are_the_new_objects():
    from cell_diffusion.transforms import random_dihedral
    assert old('data.turn_and_flip') is random_dihedral
    assert isinstance(old('schedules.schedules')['cosine']().betas, torch.Tensor)
    assert isinstance(old('schedules.schedules')['cosine'](), Schedule)
    assert old('conditioning.otsu')([0., 0., 1., 1.]) == pytest.approx(.5, abs=.5)


def test_tables_have_the_old_words():
    a = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
    compared = old('evaluation.compare')(a, a + 1)
    assert set(compared) == {'fd', 'kd', 'precision', 'recall', 'density', 'coverage'}
    curve = old('evaluation.bias_curve')(a, a + 1, ns=(10, 20), draws=2)
    assert set(curve.measure) == {'fd', 'kd'}
    assert set(curve.against) == {'real against real', 'painted against real'}
    assert set(moved.in_new_words(curve).measure) == {'fd', 'kid'}
    guessed = torch.tensor([0, 1])
    shares = old('evaluation.recognised')(guessed, asked=guessed, classes=('a', 'b'))
    assert shares.share.tolist() == [1, 1, 1]


def test_augmentation_with_its_old_arguments():
    images = torch.zeros(6, 3, 8, 8, dtype=torch.uint8).numpy()
    labels = torch.arange(6).numpy() % 2
    stream = old('augmentation.Stream')(images, labels, 'ab', 2, bs=3,
                                        change=lambda x, g: x + 5)
    assert len(stream) == 2 and all((x == 4).all() for x, _ in stream)
    confusion = old('augmentation.confusion')
    assert confusion(labels, 1 - labels, 2).tolist() == [[0, 3], [3, 0]]
    assert set(old('augmentation.changes')) == {'turns', 'jitter'}


def test_costs_of_arms():
    arm_calls = old('inpainting.arm_calls')
    assert arm_calls(torch.clamp) == 0
    assert arm_calls(dict(steps=5, sampler='heun')) == 9
    assert arm_calls(dict(steps=25, sampler='repaint')) == 105


def test_studies_still_write_csv(tmp_path):
    import pandas as pd
    def study(folder): return pd.DataFrame(dict(nfe=[5], kid=[.1]))
    table = moved.with_csv(study, tmp_path/'table.csv')
    assert list(table) == ['calls', 'kd']
    assert pd.read_csv(tmp_path/'table.csv').equals(table)
