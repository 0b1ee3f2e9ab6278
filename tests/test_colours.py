"One colour for each config, sampler, generator, arm and class in the whole course"
import colorsys
import re

import matplotlib.colors as mcolors
import pytest

from cell_diffusion.plots import colour_of, colours_of, name_colours
from cell_diffusion.sampling import samplers
from cell_diffusion.simulation import blood_classes, jurkat_phases
from cell_diffusion.studies.augmentation import arms, usual_arms
from cell_diffusion.training import training_configs
from common import cells, chapters

compared = [samplers, training_configs, blood_classes, jurkat_phases, usual_arms(),
            ('gan', 'ddpm'), ('GAN', 'DDPM'), ('adamw', 'muon')]


@pytest.mark.parametrize('names', compared, ids=lambda names: next(iter(names)))
def test_what_is_compared_has_colours_of_its_own(names):
    colours = [colour_of(name) for name in names]
    assert None not in colours, 'a name is missing in the table of plots'
    assert len(set(colours)) == len(colours)


def light(colour):
    "Relative luminance (WCAG 2.1)"
    linear = [v/12.92 if v <= .03928 else ((v + .055)/1.055)**2.4
              for v in mcolors.to_rgb(colour)]
    return .2126*linear[0] + .7152*linear[1] + .0722*linear[2]


@pytest.mark.parametrize('name', [*name_colours, *arms])
def test_colours_stand_out_from_white(name):
    assert 1.05/(light(colour_of(name)) + .05) >= 3


def test_an_arm_keeps_its_hue():
    def hue(name):
        return colorsys.rgb_to_hsv(*mcolors.to_rgb(colour_of(name)))[0]
    assert colour_of('ddpm') == colour_of('ddpm+turns') == colour_of('DDPM')
    assert colour_of('ddpm+turns+filter') != colour_of('ddpm+turns')
    assert hue('ddpm+turns+filter') == pytest.approx(hue('ddpm'), abs=.02)


def test_names_that_are_not_in_the_table():
    found = colours_of(['gan', 'mine', 'yours', 'gan'])
    assert list(found) == ['gan', 'mine', 'yours'] and len(set(found.values())) == 3
    assert found['gan'] == colour_of('gan')
    assert colours_of(['mine', 'yours']) == colours_of(['mine', 'yours'])
    assert len(colours_of(map(str, range(30)))) == 30
    assert len(colours_of([*name_colours, 'mine'])) == len(name_colours) + 1
    assert colours_of([]) == {}


def test_figures_use_the_table():
    "No palette of other colours where named things are compared"
    pattern = re.compile(r"hue='(config|sampler|model)'")
    bad = []
    for path in chapters():
        for c in cells(path, 'code'):
            if pattern.search(c.source) and 'colours_of' not in c.source:
                bad.append(f'{path.name}, cell {c.id}')
    assert not bad, bad
