"""A class may have any name that a folder can have, and it is text everywhere.

In figures, cards, tables, file names and records, from Python and in the shell.
"""
import html
import json
import re
from pathlib import Path

import matplotlib.pyplot as plt
import mistune
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from common import nbs, package
import cell_diffusion.plots as plots
from cell_diffusion.augmentation import balance
from cell_diffusion.cli import kept_cells, save_each
from cell_diffusion.core import as_text, show_cells
from cell_diffusion.data import load_cells
from cell_diffusion.metrics import beside_real, class_accuracy
from cell_diffusion.recipes import (
    as_markdown, train_model, train_reference_classifier,
)
from cell_diffusion.simulation import simulate_blood
from cell_diffusion.studies.comparison import Scores

names = ('mean', 'all', 'real', '$x_$^{', '_', '_x', '%s', '{}', 'a|b', 'con', ' & ',
         '<img src=x onerror=alert(1)>', '`*[b]*`', 'long ' + 'x'*150, 'תא', '細胞',
         '🦠')

# Fonts lack some letters, and that is no error
pytestmark = pytest.mark.filterwarnings('ignore:Glyph')


def drawn(fig):
    "All texts of a figure, which is written to a file too"
    fig.savefig('/dev/null', format='png')
    found = {t.get_text() for t in fig.findobj(plt.Text) if t.get_text()}
    plt.close(fig)
    return found


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    "Class folders with these names, and drawn cells"
    root = tmp_path_factory.mktemp('named')/'cells'
    cells = simulate_blood(16*len(names), size=28, seed=0).images
    for i, name in enumerate(names):
        (root/name).mkdir(parents=True)
        for j, x in enumerate(cells[16*i:16*(i + 1)]):
            pixels = x.numpy().transpose(1, 2, 0)
            Image.fromarray(pixels).save(root/name/f'{j}.png')
    return root


# Figures

@pytest.mark.parametrize('name', names)
def test_titles_are_text(name):
    fig = show_cells(torch.zeros(1, 1, 8, 8), [name], title=name)
    assert fig.axes[0].get_title() == as_text(name, 60)
    assert fig._suptitle.get_text() == as_text(name, 200)
    drawn(fig)


@pytest.mark.parametrize('bad', ['\ud800', '\x1b[31m', 'a\0b', '$' + 'x'*300 + '$'])
def test_titles_of_any_characters_can_be_drawn(bad):
    fig = show_cells(torch.zeros(1, 1, 8, 8), [bad])
    assert len(fig.axes[0].get_title()) < 70
    drawn(fig)


def test_class_accuracy_shows_every_name():
    table = pd.DataFrame({'class': names, 'share': .5, 'low': .4, 'high': .6})
    both = {'_mine': table, '$\\frac$': table}
    ax = plots.plot_class_accuracy(both)
    legend = [t.get_text() for t in ax.get_legend().get_texts()]
    assert legend == [as_text(name) for name in both]
    assert {as_text(name) for name in names} <= drawn(ax.figure)


def test_the_bias_shows_every_name():
    rows = []
    for against in 'real against real', '$x_$^{', '_':
        for measure in 'fd', 'kid':
            rows += [dict(measure=measure, against=against, n=n, value=1/n)
                     for n in (10, 20, 40)]
    fig = plots.plot_bias(pd.DataFrame(rows))
    assert {as_text('_'), as_text('$x_$^{')} <= drawn(fig)


def test_the_confusion_shows_every_name():
    truth = np.arange(len(names))
    log_p = np.log(np.full((2, len(names), len(names)), 1/len(names)))
    shown = drawn(plots.plot_confusion(Scores(names, [truth], {'$a_$^{': [log_p]})))
    assert {as_text(name) for name in names} <= shown and as_text('$a_$^{') in shown


# Cards

def plain(markdown):
    "What a reader of a card sees, without any markup"
    page = mistune.html(markdown)
    assert '<img' not in page and '<script' not in page
    return html.unescape(re.sub(r'<[^>]+>', '', page))


@pytest.mark.parametrize('name', [*names, '__init__', 'a\nb', 'a\\b', '&lt;', 'a_b_c'])
def test_markdown_shows_the_name(name):
    seen = ' '.join(plain(f'x {as_markdown(name)} y').split())
    assert seen == ' '.join(f'x {name} y'.split())
    table = f'| a | b |\n|---|---|\n| {as_markdown(name)} | 1 |\n'
    assert '<td>1</td>' in mistune.create_markdown(plugins=['table'])(table)


def test_from_folder_to_card_and_back(folder, tmp_path):
    cells = load_cells(folder, size=28)
    assert set(cells.names) == set(names) and not cells.skipped
    out = tmp_path/'$a_$^{ | `b`'
    train_model(folder, size=28, classes=True, epochs=1, out=out, dim=8, mults=(1, 2),
                bs=32, scored=0, progress=False)
    card = (out/'README.md').read_text(encoding='utf-8')
    seen = ' '.join(plain(card).split())
    for name in [*names, out.name]:
        assert ' '.join(name.split()) in seen
    record = json.loads((out/'record.json').read_text(encoding='utf-8'))
    assert set(record['classes']) == set(names)

    table = balance(folder, tmp_path/'added', goal=17, weights=out, steps=2, force=True,
                    progress=False)
    assert set(table['class']) == set(names)
    written = pd.read_csv(tmp_path/'added'/'manifest.csv', keep_default_na=False)
    assert list(written['class']) == list(table['class'])
    assert all((tmp_path/'added'/file).is_file() for file in written.file)


def test_a_classifier_of_such_classes_has_a_card(folder, tmp_path):
    train_reference_classifier(folder, size=28, epochs=1, out=tmp_path/'c', dim=8,
                               progress=False)
    card = (tmp_path/'c'/'README.md').read_text(encoding='utf-8')
    rows = [l for l in card.splitlines() if l.startswith('| ')]
    assert len(rows) == 1 + len(names)
    assert all(len(re.findall(r'(?<!\\)\|', row)) == 5 for row in rows)


# Files and the shell

@pytest.mark.parametrize('name', [*names, 'a/b\\c', '../up', 'x'*300, '漢'*200, 'b=c'])
def test_files_of_a_class_lie_where_they_should(name, tmp_path):
    save_each(torch.zeros(2, 3, 8, 8), tmp_path, name, dict(seed=7))
    folder, = filter(Path.is_dir, tmp_path.iterdir())
    files = sorted(f.name for f in folder.iterdir())
    assert files == ['synthetic-7-00000.png', 'synthetic-7-00001.png']
    assert not set(folder.name) & set('<>:"/\\|?*') and len(folder.name.encode()) < 255
    assert kept_cells(f'{name}=5') == (name, 5)


# Scripts of the pages and of the widgets

scripts = [*sorted((package/'browser').glob('*.js')), package/'painter.py',
           package/'viewer.py', nbs/'page.js']
# Ours, or numbers
constant = {'go', 'live', 'more', 'open', 'last', 'stepSlider', 'w', 'h'}


def _is_constant(inside):
    "Whether what a template puts into markup is no name of a class, cell or file"
    return inside.strip() in constant or inside.startswith('settings(')


def _markup(code):
    "The template strings of a script that hold HTML"
    return [t for t in re.findall(r'`([^`]*)`', code) if re.search(r'<[a-z]', t)]


@pytest.mark.parametrize('file', scripts, ids=lambda p: p.name)
def test_no_name_becomes_markup(file):
    code = file.read_text(encoding='utf-8')
    assert not re.search(r'insertAdjacentHTML|outerHTML|document\.write|eval\(', code)
    for text in re.findall(r'innerHTML\s*\+?=\s*(.+)', code):
        assert re.match(r'(page;|"[^"]*";|`)', text), f'{file.name}: innerHTML = {text}'
    for text in _markup(code):
        bad = [x for x in re.findall(r'\$\{([^}]*)', text) if not _is_constant(x)]
        assert not bad, f'{file.name}: {bad} in {text[:60]}'


def test_a_page_shows_its_name_and_licence_as_text(tmp_path):
    from cell_diffusion.web import page_of
    evil = '<img src=x onerror=alert(1)>'
    page = page_of('grow', '', name=evil, about=evil, runtime=evil, megabytes=1)
    assert '<img' not in page and page.count(html.escape(evil)) == 4


def test_rows_of_the_whole_are_found_by_place():
    "A class may be called `all` or `mean`, as the last row of a table is"
    predicted = torch.tensor([0, 0, 1, 1, 2, 2])
    truth = torch.tensor([0, 0, 1, 1, 2, 0])
    real = class_accuracy(predicted, truth, ('all', 'mean', 'x'))
    table = beside_real(real, real)
    assert list(table['class']) == ['all', 'mean', 'x', 'mean']
    assert np.allclose(table['share'], table['real'])
    assert list(table.n) == [3, 2, 1, 6]
