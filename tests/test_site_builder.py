"The builder of the site without a browser: numbers, links, pictures, and its sources"
import ast
import base64
import io
import json
import re
import sys
from types import SimpleNamespace

import pytest
import yaml
from PIL import Image

from common import cells, chapters, nbs, root, without_magics

sys.path.insert(0, str(root/'site'))
import assets
import finish
import refs
import stage
from chapters import chapters as chapters_of_the_table

names = {
    '03_process.ipynb': 'process',
    '04_schedules.ipynb': 'schedules',
    'index.ipynb': 'index',
    'glossary.qmd': 'glossary',
}
home = 'https://example.org/course'
each_notebook = pytest.mark.parametrize('path', chapters(), ids=lambda p: p.stem)


# Numbers and references

def numbered(text, *labels):
    "The text with its numbers, and what is wrong with its labels"
    found = refs.Labels('page')
    for label in labels or refs.labels_in(text):
        found.add(*([label] if isinstance(label, str) else label))
    return found.resolve(text), found.problems


def test_equations_are_numbered_in_order():
    first = '$$a$$ {#eq-one}'
    second = '$$\nb\n+ c\n$$ {#eq-two}'
    sentence = 'so @eq-two follows from [@eq-one], (-@eq-two).'
    text, problems = numbered(f'{first}\n\nand\n\n{second}\n\n{sentence}')
    assert not problems
    order = '{#eq-one .equation}', '[(1)]', '{#eq-two .equation}', '[(2)]'
    places = [text.index(part) for part in order]
    assert places == sorted(places)
    links = (
        'so [Equation 2](#eq-two){.quarto-xref} follows from '
        '[Equation 1](#eq-one){.quarto-xref}, ([2](#eq-two){.quarto-xref}).')
    assert links in text and '$$\nb\n+ c\n$$' in text


def test_each_kind_counts_for_itself():
    text, _ = numbered('@fig-a @fig-b @tbl-c', 'fig-a', 'tbl-c', 'fig-b')
    assert re.findall(r'\[(.*?)\]', text) == ['Figure 1', 'Figure 2', 'Table 1']


def test_tables_and_sections():
    table = '| a |\n|---|\n| 1 |\n\n: What it took {#tbl-race}'
    page = f'## The race {{#sec-race}}\n\n{table}\n\nIn @sec-race, @tbl-race.'
    text, problems = numbered(page)
    assert not problems
    assert ': Table 1: What it took {#tbl-race}' in text
    assert '[Section “The race”](#sec-race)' in text


def test_code_and_addresses_stay():
    block = '```python\nx @fig-a $$a$$ {#eq-z}\n```'
    text = f'`@fig-a` and\n\n{block}\n\nme@fig-a.org, @someone'
    assert numbered(text)[0] == text and not refs.labels_in(text)


def test_mistakes_are_reported():
    text, problems = numbered('see @fig-nowhere', 'fig-a', 'fig-a')
    assert text == 'see @fig-nowhere' and len(problems) == 2
    assert any('fig-nowhere' in p for p in problems)
    assert any('twice' in p for p in problems)


def test_a_page_without_labels_is_left_alone():
    text = 'Costs $5, not $6.\n\n$$x$$\n\nDone.'
    assert numbered(text) == (text, [])


# Links and names of pages

@pytest.mark.parametrize('old, new', [
    ('[a](03_process.ipynb)', '[a](process.ipynb)'),
    ('[a](03_process.ipynb#the-jump)', '[a](process.ipynb#the-jump)'),
    ('[a](./index.ipynb "x")', '[a](index.ipynb "x")'),
    ('<a href="04_schedules.ipynb">', '<a href="schedules.ipynb">'),
    ('[a](glossary.qmd)', '[a](glossary.qmd)'),
    (f'[`q`]({home}/process.html#q)', '[`q`](process.html#q)'),
    ('[a](https://example.com/03_process.ipynb)',) * 2,
])
def test_links(old, new):
    assert stage.mend_links(old, names, home) == new


def test_page_names(tmp_path):
    pages = {'00_core.ipynb': 'core', 'cli.ipynb': 'cli', 'glossary.qmd': 'glossary',
             '12_augmentation.ipynb': 'augmentation'}
    for name in pages:
        (tmp_path/name).touch()
    assert stage.page_names(tmp_path) == pages


# Cells and their outputs

def png(colour, size=(40, 30)):
    out = io.BytesIO()
    Image.new('RGB', size, colour).save(out, 'png')
    return out.getvalue()


def shown(data):
    return dict(output_type='display_data', metadata={}, data=data)


def picture(colour):
    "The output of a cell that draws one colour"
    return shown({'image/png': base64.b64encode(png(colour)).decode()})


def code_cell(source, outputs=(), **metadata):
    return dict(cell_type='code', metadata=metadata, source=source,
                outputs=list(outputs), execution_count=None)


def page(folder, *code):
    "What becomes of a notebook with these cells"
    nb = dict(nbformat=4, nbformat_minor=5, metadata={'widgets': {}}, cells=list(code))
    (folder/'03_process.ipynb').write_text(json.dumps(nb))
    p = stage.Page(folder/'03_process.ipynb', names, home)
    p.write()
    return json.loads((folder/'process.ipynb').read_text()), p


def html_of(nb, cell=0, output=0):
    return nb['cells'][cell]['outputs'][output]['data']['text/html']


def test_pictures_become_files(tmp_path):
    options = ('#| label: fig-red\n#| fig-cap: "A red field, see @fig-red"\n'
               '#| fig-alt: "All is \'red\'"\n')
    nb, p = page(tmp_path, code_cell(options + 'show()', [picture('red')]))
    html = html_of(nb)
    assert '<figure class="figure" id="fig-red">' in html
    assert 'Figure 1: A red field' in html and 'href="#fig-red"' in html
    assert 'alt="All is &#x27;red&#x27;"' in html
    assert 'width="40" height="30"' in html and 'loading="lazy"' in html
    assert Image.open(tmp_path/'figures'/'process-1.webp').size == (40, 30)
    assert nb['cells'][0]['source'] == 'show()'
    assert 'widgets' not in nb['metadata'] and not p.pictures.bare
    assert not (tmp_path/'03_process.ipynb').exists()


@pytest.mark.parametrize(('dpi', 'shown'), [(72, 40), (100, 40), (144, 20), (200, 20)])
def test_figures_with_twice_the_pixels_are_shown_at_half(dpi, shown):
    out = io.BytesIO()
    Image.new('RGB', (40, 30)).save(out, 'png', dpi=(dpi, dpi))
    assert stage.shown_size(out.getvalue()) == (shown, 30*shown//40)


def test_several_pictures_make_one_figure(tmp_path):
    source = '#| fig-cap: Two\n#| fig-alt: ["red", "blue"]\nshow()'
    nb, _ = page(tmp_path, code_cell(source, [picture('red'), picture('blue')]))
    assert len(nb['cells'][0]['outputs']) == 1
    assert html_of(nb).count('<img') == 2
    assert re.findall('alt="(.*?)"', html_of(nb)) == ['red', 'blue']


def test_a_missing_alt_text_is_noticed(tmp_path):
    nb, p = page(tmp_path, code_cell('show()', [picture('red')]))
    assert p.pictures.bare == ['process-1.webp'] and 'alt=' not in html_of(nb)


def test_widget_views_are_dropped_and_tables_plain(tmp_path):
    table = ('<div><style scoped>x</style><table border="1" class="dataframe">'
             '<tr><td>1</td></tr></table></div>')
    view = {'application/vnd.jupyter.widget-view+json': {}, 'text/plain': 'x'}
    nb, _ = page(tmp_path, code_cell('df', [shown(view), shown({'text/html': table})]))
    assert len(nb['cells'][0]['outputs']) == 1
    assert 'class="dataframe table table-sm"' in html_of(nb)
    assert 'scoped' not in html_of(nb)


def test_sliders_get_captions(tmp_path):
    source = '#| label: fig-walk\n#| fig-cap: A walk\nFrameSlider()'
    slider = shown({'text/html': '<div>slider</div>', 'text/plain': 'x'})
    nb, _ = page(tmp_path, code_cell(source, [slider]))
    caption = '<figcaption class="figure-caption">Figure 1: A walk</figcaption>'
    whole = f'<figure class="figure" id="fig-walk"><div>slider</div>{caption}</figure>'
    assert html_of(nb) == whole


def test_imports_are_folded(tmp_path):
    quiet = ('import warnings\nwith warnings.catch_warnings():\n'
             '    warnings.simplefilter("ignore")\n    import a')
    assert stage.only_imports('import a\nfrom b import c')
    assert stage.only_imports(quiet)
    assert not stage.only_imports('import a\nx = 1')
    assert not stage.only_imports('%magic')
    nb, _ = page(
        tmp_path, code_cell('#| exporti x\nimport torch\nfrom a import (\n    b,\n)'),
        code_cell('x = 1'), code_cell('import torch\nimport c'))
    one, code = (c['source'] for c in nb['cells'])
    assert one.startswith('#| code-fold: true\n') and code == 'x = 1'
    assert one.endswith('import torch\nfrom a import (\n    b,\n)\nimport c')


def test_directives_for_nbdev_are_not_shown(tmp_path):
    source = '#| exporti: sampling\n#| export sampling\n#| label: fig-a\nx = 1'
    nb, p = page(tmp_path, code_cell(source))
    assert nb['cells'][0]['source'] == 'x = 1' and 'fig-a' in p.labels.text


def test_a_chapter_of_several_modules_has_a_reference_for_each(tmp_path):
    nb, _ = page(
        tmp_path,
        code_cell('show_doc(sample)', module='sampling'),
        code_cell('x = 1'),
        code_cell('show_doc(race)', module='studies.race'),
        code_cell('show_doc(ddim)', module='sampling'))
    found = [c['source'].splitlines()[0] for c in nb['cells']]
    assert found == [
        'x = 1',
        '## Reference: `cell_diffusion.sampling` {#reference .api}',
        'show_doc(sample)', 'show_doc(ddim)',
        '## Reference: `cell_diffusion.studies.race` {#reference-studies-race .api}',
        'show_doc(race)']


@pytest.mark.parametrize('directives, module', [
    (dict(export=''), 'gan'),
    (dict(export='sampling'), 'sampling'),
    (dict(exports='studies.race'), 'studies.race'),
    (dict(exporti='sampling'), None),
    ({}, None),
])
def test_the_module_of_a_cell(directives, module):
    assert stage._module_of(SimpleNamespace(directives_=directives), 'gan') == module


def test_large_pictures_are_made_small(tmp_path):
    Image.effect_noise((300, 300), 80).save(tmp_path/'big.png')
    text = stage.smaller_pictures('![x](big.png) ![y](none.png)', tmp_path)
    assert text == '![x](big.webp) ![y](none.png)'
    assert (tmp_path/'big.webp').stat().st_size < (tmp_path/'big.png').stat().st_size


# The finished pages

def test_broken_links_are_found(tmp_path):
    (tmp_path/'a.html').write_text(
        '<h1 id="top">x</h1><a href="b.html#there">1</a><a href="b.html#not">2</a>'
        '<a href="c.html">3</a><a href="#top">4</a><a href="https://example.org">5</a>'
        '<img src="no.webp"><script src="//cdn.example/x.js"></script>')
    (tmp_path/'b.html').write_text(
        '<p id="there" ></p><p id="twice"></p><p id="twice"></p>')
    problems = finish.check_links(tmp_path)
    assert len(problems) == 5
    for word in 'b.html#not', 'c.html', 'no.webp', 'another host', 'twice':
        assert any(word in p for p in problems), word


def test_no_cdn_is_left():
    katex = 'https://cdn.jsdelivr.net/npm/katex@1/dist/katex.min'
    head = (f'<head><link rel="stylesheet" href="{katex}.css">'
            f'<script src="{katex}.js" defer></script></head>')
    assert 'cdn' not in finish._cdn.sub('', head)


# What the sources must hold

def rows(text):
    "The rows of a table of symbols, with single spaces"
    lines = [l for l in text.splitlines() if l.startswith('| `')]
    return [re.sub(r'\s+', ' ', l) for l in lines]


def test_one_table_of_symbols():
    "Every row of a chapter's table of symbols is also on the page of symbols"
    all_rows = rows((nbs/'symbols.qmd').read_text(encoding='utf-8'))
    for path in chapters():
        for c in cells(path, 'markdown'):
            if '| in the code | symbol |' in c.source:
                bad = [r for r in rows(c.source) if r not in all_rows]
                assert not bad, f'{path.name} and symbols.qmd differ: {bad}'


def test_glossary():
    text = (nbs/'glossary.qmd').read_text(encoding='utf-8')
    entries = re.findall(r'^(\S.*)\n:   (.*)$', text, re.M)
    words = {word for word, _ in entries}
    assert len(entries) >= 40 and len(words) == len(entries)
    link = re.compile(r'\]\(\w+\.ipynb[^)]*\)$')
    bad = [word for word, meaning in entries if not link.search(meaning)]
    assert not bad, f'an entry ends with a link to its chapter: {bad}'


def test_every_page_has_its_place():
    "The sidebar names each notebook and each .qmd page once"
    text = (root/'_quarto.yml').read_text(encoding='utf-8')
    order = []
    for part in yaml.safe_load(text)['website']['sidebar']['contents']:
        order += [p['href'] if isinstance(p, dict) else p for p in part['contents']]
    pages = [p.name for p in [*nbs.glob('*.ipynb'), *nbs.glob('*.qmd')]]
    assert sorted(order) == sorted(set(pages) - {'404.qmd'})
    numbers = [n[:2] for n in order if n[:2].isdigit()]
    assert numbers == sorted(numbers)


def test_changes_are_included_not_copied():
    text = (nbs/'changes.qmd').read_text(encoding='utf-8')
    assert '{{< include ../CHANGELOG.md >}}' in text


def test_lock_names_no_place():
    "npm's lock holds versions and checksums, and everything the site needs"
    text = (root/'site'/'package-lock.json').read_text()
    packages = json.loads(text)['packages']
    assert '"resolved"' not in text
    assert all(p.get('integrity') for name, p in packages.items() if name)
    wanted = json.loads((root/'site'/'package.json').read_text())
    needed = {**wanted['dependencies'], **wanted['devDependencies']}
    for name, version in needed.items():
        assert packages[f'node_modules/{name}']['version'] == version


def test_cards_are_there():
    text = '\n'.join(c.source for c in cells(nbs/'index.ipynb', 'markdown'))
    used = re.findall(r'src="(img/cards/[\w.]+)"', text)
    assert len(used) >= 33
    assert all((root/u).stat().st_size < 40_000 for u in used)
    listed = chapters_of_the_table()
    assert [c.file for c in listed.values() if not c.picture] == []
    on_disk = {p.name for p in nbs.glob('*.ipynb')} - {'index.ipynb'}
    assert set(listed) == on_disk, 'the table of index.ipynb lists every notebook once'


@each_notebook
def test_labels(path):
    "Labels are unique, and references point to the same page"
    labels = refs.Labels(path.name)
    text = []
    for c in cells(path):
        if c.cell_type == 'markdown':
            for label, title in refs.labels_in(c.source):
                labels.add(label, title)
            text.append(c.source)
        elif c.cell_type == 'code':
            opts, _ = stage.options(c.source)
            label = str(opts.get('label', ''))
            if re.match('(fig|tbl)-', label):
                labels.add(label)
            text += [str(opts.get(k) or '') for k in ('fig-cap', 'tbl-cap')]
    for part in text:
        labels.resolve(part)
    assert not labels.problems, '\n'.join(labels.problems)


def _is_run_for_the_documentation(source):
    flags = re.findall(r'^#\|\s*(.+?)\s*$', source, re.M)
    code = re.sub(r'^#\|.*\n?', '', source, flags=re.M)
    left_out = any(re.match(r'eval:\s*false|export', flag) for flag in flags)
    return not left_out and not re.match(r'\s*(# (check|solution)|[%!])', code)


@each_notebook
def test_imports_stand_alone(path):
    "A cell that imports does only that, so that the page can fold it"
    imports = ast.Import, ast.ImportFrom
    around = *imports, ast.Try, ast.With, ast.If
    for c in cells(path, 'code'):
        if not _is_run_for_the_documentation(c.source):
            continue
        tree = ast.parse(without_magics(c.source))
        if not any(isinstance(n, imports) for n in ast.walk(tree)):
            continue
        rest = [ast.unparse(n) for n in tree.body if not isinstance(n, around)]
        bad = [r for r in rest if not r.startswith(('warnings.', 'os.environ'))]
        assert not bad, f'{path.name}: a cell imports and does more:\n{c.source[:300]}'


# The network of the browser pages

def test_the_pages_take_the_first_network_that_is_shipped(tmp_path, monkeypatch):
    assert assets.network() in assets.networks
    monkeypatch.setattr(assets, 'package', tmp_path)
    for name in reversed(assets.networks):
        folder = tmp_path/'weights'/name
        folder.mkdir(parents=True)
        (folder/'config.json').write_text('{}')
        assert assets.network() == name
