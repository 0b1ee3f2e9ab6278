"""No letters of a figure are smaller than nine pixels where the site shows it.

`test_notebooks.py` measures each figure that a chapter draws in the same way.
"""

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import pytest
import seaborn as sns
import torch

from cell_diffusion import plots
from cell_diffusion.core import show_cells
from cell_diffusion.studies.comparison import Scores
from cell_diffusion.unet import UNet
from measure_figures import measure, page_width, smallest, too_small
from run_notebooks import run

phases = ['G1', 'S', 'G2', 'Prophase', 'Metaphase', 'Anaphase', 'Telophase']
arms = ['nothing', 'copies', 'adjusted', 'gan+turns', 'ddpm+turns', 'remix']
ends = dict(value=.5, low=.4, high=.6)


@pytest.fixture(autouse=True)
def like_the_chapters():
    "The style that chapters set, with figures of 100 pixels an inch"
    with plt.rc_context({'figure.dpi': 100}):
        sns.set_theme(style='ticks', font_scale=.85)
        yield
    plt.close('all')


# What is measured

def drawn(fig):
    "The figure, with all in its place"
    fig.draw_without_rendering()
    return fig


def figure(width, **text):
    fig, ax = plt.subplots(figsize=(width, 3), layout='constrained')
    ax.set_title('a title', **text)
    return drawn(fig)


@pytest.mark.parametrize(('width', 'points', 'good'), [
    (8, 7.5, True), (8, 6.9, False), (11, 8, False), (5, 6.7, True), (5, 6, False),
])
def test_a_wide_figure_makes_letters_small(width, points, good):
    pixels, text = measure(figure(width, fontsize=points))
    assert (pixels >= smallest) == good and text == 'a title'


def test_it_is_the_size_on_the_page():
    fig = figure(10, fontsize=7)
    inches = fig.get_tightbbox().width + .2
    assert measure(fig)[0] == pytest.approx(7/72*page_width/inches)
    assert measure(figure(4, fontsize=7))[0] == pytest.approx(7/72*100)


def test_the_index_of_a_formula_counts():
    fig = figure(8, fontsize=9.5)
    fig.axes[0].set_title('$10^{-2}$', fontsize=9.5)
    assert measure(fig)[0] < smallest
    fig.axes[0].set_title(r'5 \$', fontsize=9.5)
    assert measure(fig)[0] > smallest


def test_what_nobody_sees_does_not_count():
    fig = figure(8)
    fig.axes[0].tick_params(labelsize=2)
    assert measure(fig)[0] < smallest
    fig.axes[0].axis('off')
    assert measure(fig)[1] == 'a title'
    fig.axes[0].set_title('')
    assert measure(fig)[0] == float('inf')


def test_a_kernel_notes_its_figures(tmp_path):
    draw = ('import matplotlib.pyplot as plt\n'
            'plt.subplots(figsize=(12, 2))[1].set_title("{0}", fontsize={0})\n'
            'plt.xticks([]);\nplt.yticks([]);')
    code = [nbformat.v4.new_code_cell(draw.format(points)) for points in (7, 11)]
    nb = nbformat.v4.new_notebook(cells=code)
    file = tmp_path/'figures.jsonl'
    assert too_small(file) == []
    run(nb, 'toy', tmp_path, figures=file)
    assert len(file.read_text().splitlines()) == 2
    assert [text for _, text in too_small(file)] == ['7']


def test_a_kernel_lays_figures_out_first(tmp_path):
    "Long labels make a figure wider, and its letters smaller, until there is a layout"
    draw = ('import matplotlib.pyplot as plt\n'
            'fig, ax = plt.subplots(figsize=(10, 2), layout="constrained")\n'
            'ax.set_yticks([0, 1], ["a long name of a row"*3]*2, fontsize=9.8)\n'
            'plt.xticks([]);')
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(draw)])
    file = tmp_path/'figures.jsonl'
    run(nb, 'toy', tmp_path, figures=file)
    assert file.exists() and too_small(file) == []


# Figures of the library

def class_accuracy():
    table = pd.DataFrame([dict(ends, share=.5) | {'class': k} for k in phases])
    return plots.plot_class_accuracy(dict(real=table, generated=table)).figure


def bias():
    against = 'real against real', 'generated against real'
    return plots.plot_bias(pd.DataFrame([
        dict(measure=measure, against=name, n=n, value=1/n)
        for measure in ('fd', 'kid') for name in against for n in (10, 20, 40)]))


def report():
    measures = dict(fd='distance', kid='distance', precision='sets', coverage='sets')
    measures |= {'balanced accuracy': 'class', 'near copies in pixels': 'copies'}
    measures |= {f'brightness {k}': 'numbers' for k in range(12)}
    reference = {f'reference{end}': .5 for end in ('', '_low', '_high')}
    return plots.plot_report(pd.DataFrame([
        dict(ends, model=model, measure=measure, group=group, **reference)
        for model in ('generated', 'gan') for measure, group in measures.items()]))


def guidance():
    scales = dict(real=[np.nan], everywhere=[0, 1, 3, 5], interval=[3])
    rows = [dict(ends, measure=measure, where=where, guidance_scale=w)
            for measure in plots.guidance_panels for where in scales
            for w in scales[where]]
    return plots.plot_guidance(pd.DataFrame(rows).assign(**{'class': 'all'}))


def confusion():
    truth = np.arange(700) % 7
    log_p = np.log(np.full((2, 700, 7), .02) + .86*np.eye(7)[truth])
    return plots.plot_confusion(Scores(phases, [truth], dict.fromkeys(arms, [log_p])))


def cost():
    return plots.plot_cost(pd.DataFrame([
        dict(sampler=name, nfe=nfe, fd=nfe) for nfe in (5, 10, 20, 50)
        for name in ('ddim', 'heun', 'dpm_solver', 'real cells')])).figure


def unet():
    return plots.draw_unet(UNet(dim=8, mults=(1, 2, 3, 4), n_classes=8), 64)


def rows_of_cells():
    return show_cells(torch.zeros(16, 3, 8, 8), ['immature granulocyte']*16, zoom=1)


figures = [class_accuracy, bias, report, guidance, confusion, cost, unet,
           rows_of_cells]


@pytest.mark.parametrize('draw', figures, ids=lambda draw: draw.__name__)
def test_letters_of_the_library(draw):
    pixels, text = measure(drawn(draw()))
    assert pixels >= smallest, text


# What keeps figures readable

@pytest.mark.parametrize(('value', 'text'), [
    (0, '0'), (.97, '.97'), (.996, '1.0'), (1.04, '1.0'), (-.01, '-.01'), (-.003, '0'),
    (4.27, '4.3'), (9.96, '10'), (130, '130'), (42_700, '4e4'), (4.3e17, '4e17'),
    (np.nan, ''),
])
def test_short_numbers(value, text):
    assert plots.short_number(value) == text


def test_numbers_of_a_heat_map_stay_in_their_cells():
    "In the confusion matrices of a study they ran together"
    fig = drawn(confusion())
    for ax in fig.axes:
        if not ax.texts: continue
        boxes = [t.get_window_extent() for t in ax.texts]
        cell = ax.get_window_extent().width/len(phases)
        assert max(box.width for box in boxes) < .95*cell


def test_lines_are_named_at_their_ends_and_names_do_not_meet():
    fig, ax = plt.subplots(figsize=(7, 2))
    for k, name in enumerate(['one', 'two', 'three']):
        ax.plot([0, 1], [k, 1 + .01*k], label=name)
    plots.label_lines(ax)
    drawn(fig)
    boxes = sorted((t.get_window_extent() for t in ax.texts), key=lambda box: box.y0)
    assert [t.get_text() for t in ax.texts] == ['one', 'two', 'three']
    assert [t.get_color() for t in ax.texts] == [line.get_color() for line in ax.lines]
    assert all(low.y0 + .7*low.height < high.y0 for low, high in zip(boxes, boxes[1:]))


along = np.linspace(0, 3, 31)


@pytest.mark.parametrize(('x', 'y', 'settings', 'end'), [
    (along, 0*along, dict(xlim=(0, 1)), (1, 0)),
    (along[::-1], 0*along, dict(xlim=(0, 1)), (1, 0)),
    (3 - along, 0*along, dict(xlim=(3, 1)), (1, 0)),
    (along, along, dict(ylim=(0, 2)), (2, 2)),
    (along, 3 - along, dict(yscale='log', ylim=(1, 10)), (2, 1)),
    (along, 3 - along, dict(yscale='log'), (2.9, .1)),
])
def test_a_line_that_goes_on_is_named_where_it_leaves(x, y, settings, end):
    fig, ax = plt.subplots()
    ax.plot(x, y, label='one')
    ax.set(**settings)
    plots.label_lines(ax)
    fig.canvas.draw()
    text = ax.texts[0]
    assert text.xy == pytest.approx(end)
    assert text._check_xy(fig.canvas.get_renderer()), 'it is not drawn'
    place = ax.transData.transform(text.xy)[0]
    assert text.get_window_extent().x0 > place
    assert not ax.spines['right'].get_visible()


def test_words_in_place_of_identifiers():
    assert plots.in_words('fd') == 'Fréchet distance'
    assert plots.in_words('near_copies') == 'near copies'
    assert plots.in_words('grain 2') == 'grain, channel 2'
