"""What the builder of the site adds to pages, without a browser, and the reading times.

The landing page, the head of a chapter, cards of shared links, search, folds.
"""
import hashlib
import json
import re
import sys

import nbformat
import numpy as np
import pytest
import yaml
from PIL import Image

from common import cells, nbs, root

sys.path[:0] = [str(root/'site'), str(root/'tools')]
import chapters
import make_readme
import pages
import reading_time
import stage

home = 'https://example.org/course'


def index():
    return '\n\n'.join(c.source for c in cells(nbs/'index.ipynb', 'markdown'))


# Reading times

def notebook(folder, *sources):
    "A notebook of code cells, and of Markdown cells for sources that begin with `md:`"
    new = nbformat.v4
    made = []
    for s in sources:
        is_words = s.startswith('md:')
        made.append(new.new_markdown_cell(s[3:]) if is_words else new.new_code_cell(s))
    nbformat.write(new.new_notebook(cells=made), folder/'x.ipynb')
    return folder/'x.ipynb'


@pytest.mark.parametrize('source, minutes', [
    ('md:' + 'word '*200, 1),
    ('md:' + '[two words](an/address.html) '*100, 1),
    ('md:```sh\n' + 'a line\n'*6 + '```', 1),
    ('x = 1\n\n'*8, 1),
    ('#| fig-cap: "' + 'word '*200 + '"\nx = 1', 1 + 1/8),
    ('#| hide\n' + 'x = 1\n'*80, 0),
    ('#| export\nimport torch\nfrom a import b', 0),
])
def test_minutes_of_a_cell(tmp_path, source, minutes):
    whole, core = reading_time.minutes(notebook(tmp_path, source))
    assert whole == core == pytest.approx(minutes, abs=.03)


def test_the_core_leaves_out_optional_sections_and_what_is_below_them(tmp_path):
    long = 'word '*2000
    heads = '# A', '## B', '### C', '### D', '## E'
    path = notebook(tmp_path, *[f'md:{head}\n{long}' for head in heads])
    for optional, core in [((), 50), (['B'], 20), (['C'], 40), (['E'], 40)]:
        got = reading_time.minutes(path, optional)
        assert got == pytest.approx((50, core), abs=.1), optional


def _numbers(time):
    return [int(n) for n in re.findall(r'\d+', time)]


def test_the_table_says_honest_minutes():
    "Each time is what the tool measures now, within a tenth or ten minutes"
    measured = reading_time.measured()
    said = reading_time.table(index())
    assert set(said) == set(measured) - {'index.ipynb'}
    bad = []
    for name, time in said.items():
        if time == 'to look up':
            continue
        pairs = list(zip(_numbers(time), _numbers(measured[name])))
        if any(abs(a - b) > max(10, .1*b) for a, b in pairs):
            bad.append(f'{name}: {time}, measured {measured[name]}')
    assert not bad, 'run make minutes:\n' + '\n'.join(bad)


def test_the_sentence_about_all_parts():
    "Within two hours of what the tool says"
    said = re.search(r'The core of part 1 takes[^.]*\.', index())[0]
    pairs = zip(_numbers(said), _numbers(reading_time.sentence(index())))
    assert all(abs(a - b) <= 2 for a, b in pairs), reading_time.sentence(index())


def test_optional_sections_exist_and_long_chapters_have_some():
    optional = reading_time.optional_sections()
    for path in sorted(nbs.glob('[0-9]*.ipynb')):
        found = {title for _, title, _ in reading_time.sections(path)}
        missing = optional.get(path.stem, set()) - found
        assert not missing, f'{path.name} has no section {missing}'
        whole, _ = reading_time.minutes(path)
        assert whole < 75 or path.stem in optional, (
            f'{path.name} takes {whole:.0f} minutes: name what may be left out '
            'in site/optional.yml')
    assert set(optional) <= {p.stem for p in nbs.glob('*.ipynb')}


# Installation

def test_git_clone_is_the_first_command():
    for text in make_readme.readme(), (nbs/'home.qmd').read_text(encoding='utf-8'):
        first = re.search(r'```sh\n(.*)', text)[1]
        assert first == f'git clone {pages.repo}'


@pytest.mark.parametrize('system', ['Linux', 'macOS', 'Windows', 'Colab', 'Docker'])
def test_each_system_has_its_lines(system):
    part = re.search(r'## Install\n.*?(?=\n## )', make_readme.readme(), re.S)[0]
    assert system in part


def test_lines_of_installation_can_work():
    "What they name is there: targets of make, tools, extras and options"
    text = re.search(r'## Install\n.*?(?=\n## )', make_readme.readme(), re.S)[0]
    makefile = (root/'Makefile').read_text(encoding='utf-8')
    for target in set(re.findall(r'\bmake (\w+)', text)):
        assert re.search(rf'^{target}:', makefile, re.M), target
    settings = (root/'settings.ini').read_text(encoding='utf-8')
    for extras in re.findall(r'"\.\[([\w,]+)\]"', text):
        for extra in extras.split(','):
            assert f'{extra}_requirements' in settings, extra
    (tool, options), = re.findall(r'(tools\\\w+\.py)(.*)', text)
    source = (root/tool.replace('\\', '/')).read_text(encoding='utf-8')
    for option in re.findall(r'--\w+', options):
        assert f"'{option}'" in source, option
    (name,) = re.findall(r'blob/main/(nbs/\w+\.ipynb)\)', text) or ['']
    assert name == '' or (root/name).is_file()


# Chapters of the table

row = ('| <img src="img/cards/a.webp" width="400" height="240" alt="A cell"> | '
       '[A title](03_a.ipynb) | do this | `a`, `b`, 100 min, core 60 min |')


def test_a_row_of_the_table():
    c = chapters.read(row)['03_a.ipynb']
    assert (c.title, c.goal, c.modules) == ('A title', 'do this', '`a`, `b`')
    assert (c.time, c.picture, c.alt) == (
        '100 min, core 60 min', 'img/cards/a.webp', 'A cell')
    bare = chapters.read('| | [A](a.ipynb) | look | `a`, to look up |')['a.ipynb']
    assert (bare.time, bare.picture) == ('to look up', '')


def test_the_landing_page_takes_the_chapters_and_the_other_page_the_rest():
    text = f'# cell_diffusion\n\n## The chapters\n\n### 1\n\n{row}\n\n## After\n\nx\n'
    mine, rest = chapters.part(text)
    assert row in mine and 'After' not in mine
    assert row not in rest and '## After' in rest


def test_links_to_the_home_page():
    names = {'index.ipynb': 'overview', 'home.qmd': 'index', '03_a.ipynb': 'a'}
    for old, new in [('[a](index.ipynb)', '[a](index.qmd)'),
                     ('[a](index.ipynb#install)', '[a](overview.ipynb#install)'),
                     ('[a](home.qmd)', '[a](index.qmd)')]:
        assert stage.mend_links(old, names, home) == new


# What a page gets

html_page = (
    '<!doctype html><html><head><meta charset="utf-8">'
    '<meta name="description" content="About noise">'
    '<title>Noise – cell_diffusion</title>'
    '<meta property="og:title" content="old"></head><body><nav>menu</nav>'
    '<main class="content"><header id="title-block-header"><h1>Noise</h1></header>'
    '<p><a href="https://colab.research.google.com/x"><img alt="Open in Colab" src="i">'
    '</a></p><p>First words.</p>'
    '<section><h2 class="anchored" data-anchor-id="walk">The <code>walk</code></h2>'
    '<p>A stroll.</p><pre>stroll = 1</pre></section>'
    '<section id="reference" class="level2 api">\n<h2 class="anchored" '
    'data-anchor-id="reference">Reference</h2>\n<p>What is added.</p>'
    '<div class="api-entry"><h3 id="walk">walk</h3></div></section></main></body>'
    '</html>')


def test_the_head_of_a_shared_link():
    text = pages.head(html_page, 'noise', home)
    assert 'content="old"' not in text
    for tag in (f'<link rel="canonical" href="{home}/noise.html">',
                '<meta property="og:title" content="Noise">',
                '<meta property="og:description" content="About noise">',
                f'<meta property="og:image" content="{home}/cards/noise.jpg">',
                '<meta name="twitter:card" content="summary_large_image">'):
        assert text.count(tag) == 1, tag
    assert f'href="{home}/">' in pages.head(html_page, 'index', home)


def test_the_page_for_missing_addresses_knows_its_root():
    text = pages.head(html_page, '404', home)
    assert 'noindex' in text and '"/course/"' in text and 'canonical' not in text


def test_the_picture_of_a_shared_link(tmp_path):
    Image.new('RGB', (800, 480), 'blue').save(tmp_path/'a.png')
    long = 'A very long title of many words that needs several lines '*3
    card = pages.landscape(long, long, tmp_path/'a.png')
    assert card.size == (1200, 630)
    assert card.getpixel((1000, 315)) == (0, 0, 255)
    words = np.asarray(card.convert('L'))[:, 20:530]
    assert (words < 100).any() and (words[:, -5:] > 200).all(), 'words leave their side'


def test_the_first_lines_of_a_chapter():
    chapter = chapters.read(row)['03_a.ipynb']
    text = pages.begin(html_page, 'a', chapter)
    assert 'Open in Colab"' not in text, 'the badge is gone'
    assert text.index('After this page you can') < text.index('First words')
    for part in ('do this', '100 min to read, core 60 min', 'src="img/cards/a.webp"',
                 'href="notebooks/03_a.ipynb" download="03_a.ipynb"',
                 f'{pages.colab}/blob/main/nbs/03_a.ipynb',
                 f'{pages.repo}/blob/main/nbs/03_a.ipynb',
                 'issues/new?template=chapter'):
        assert part in text, part


def test_a_report_names_a_field_of_the_form():
    form = root/'.github'/'ISSUE_TEMPLATE'/'chapter.yml'
    fields = yaml.safe_load(form.read_text(encoding='utf-8'))['body']
    assert 'where' in [f.get('id') for f in fields]


def test_optional_sections_are_marked():
    text, missing = pages.mark_optional(html_page, ['The `walk`', 'Not there'])
    assert missing == ['Not there']
    mark = 'The <code>walk</code> <span class="optional">optional</span></h2>'
    assert mark in text


def test_the_reference_is_folded():
    text = pages.fold_reference(html_page)
    assert text.index('<details class="api-fold">') < text.index('api-entry')
    assert '1 name, each with its source' in text
    assert text.count('</details>') == 1 and 'What is added' not in text


def test_search_keeps_words_and_code_apart():
    entries = pages.search_entries('noise', html_page)
    assert [e['href'] for e in entries] == [
        'noise.html', 'noise.html#walk', 'noise.html#reference']
    walk = entries[1]
    assert walk['section'] == 'The walk'
    assert (walk['text'], walk['code']) == ('A stroll.', 'stroll = 1')
    assert all('menu' not in e['text'] for e in entries)


def test_words_of_the_glossary_have_addresses():
    text = pages.name_terms('<main><h1>x</h1><dl><dt>Mean <em>x</em></dt><dd>a middle'
                            '</dd></dl></main><title>Glossary</title>')
    assert '<dt id="word-mean-x">' in text
    entry = pages.search_entries('glossary', text)[-1]
    assert entry['kind'] == 'word' and entry['href'] == 'glossary.html#word-mean-x'
    assert (entry['section'], entry['text']) == ('Mean x', 'a middle')


# Pictures

def tiles(n=8, title=False, gap=4, side=60):
    "A row of dark squares with white gaps, and a bar of text over all of them"
    im = np.full((130, n*(side + gap) + gap, 3), 255, np.uint8)
    for i in range(n):
        x = gap + i*(side + gap)
        im[40:100, x:x + side] = 90
    if title:
        middle = im.shape[1]//2
        for x in range(middle - 90, middle + 90, 6):
            im[10:20, x:x + 4] = 0
    return Image.fromarray(im)


def test_a_wide_picture_has_rows_of_four_on_a_phone():
    for title in False, True:
        narrow = stage.stacked(tiles(title=title))
        assert abs(narrow.width - 260) < 12
        dark = np.asarray(narrow.convert('L')) < 120
        rows = [b - a for a, b in stage._runs(dark.sum(1) > 150) if b - a > 30]
        assert rows == [60, 60]
        # The title stands once, whole, in the middle
        ink = dark[:30].any(0)
        assert ink.any() == title
        if title:
            left, right = np.flatnonzero(ink)[[0, -1]]
            assert right - left > 170 and abs((left + right)/2 - narrow.width/2) < 8


def test_pictures_without_a_gap_stay():
    assert stage.stacked(tiles(gap=0)) is None
    assert stage.stacked(tiles(n=3)) is None, 'it is narrow enough'


def test_a_picture_with_twice_the_pixels_has_its_size(tmp_path):
    import io
    out = io.BytesIO()
    tiles().save(out, 'png')
    pictures = stage.Pictures(tmp_path/'figures', 'a')
    made = pictures.add(out.getvalue(), 'Squares', (258, 65))
    assert 'width="258" height="65"' in made
    assert '<source media="(max-width: 575.98px)"' in made
    assert {p.name for p in (tmp_path/'figures').iterdir()} == {
        'a-1.webp', 'a-1-phone.webp'}


def test_sprites_of_the_landing_page():
    "The game has as many cells as its record says, and all weigh little"
    folder = root/'img'/'home'
    says = json.loads((folder/'home.json').read_text(encoding='utf-8'))
    size, each = says['size'], says['each']
    game = Image.open(folder/'game.webp')
    assert game.size == (2*each*size, len(says['classes'])*size)
    forming = Image.open(folder/'forming.webp')
    assert forming.size == (4*size, len(says['signal'])*size)
    assert says['signal'] == sorted(says['signal']) and says['signal'][-1] == 1
    assert sum(p.stat().st_size for p in folder.iterdir()) < 220_000
    record = root/'cell_diffusion'/'weights'/says['weights']/'record.json'
    now = json.loads(record.read_text(encoding='utf-8'))['weights']
    assert says['sha256'] == now, 'other weights ship: run tools/make_home.py again'
    picture = hashlib.sha256((folder/'game.webp').read_bytes()).hexdigest()
    assert says['game'] == picture, 'the scores are of another picture'


def test_the_other_page_has_its_own_title_and_no_hero():
    raw = dict(cell_type='raw', source='---\ntitle: cell_diffusion\n---')
    hero = '::: {.hero}\n![x](y)\n\nNone\n:::\n\nStay\n'
    words = dict(cell_type='markdown', source=hero)
    empty = dict(cell_type='markdown', source=f'\n{row[:0]}')
    made = stage.overview([raw, words, empty])
    assert [c['source'].strip() for c in made] == [
        '---\ntitle: Install, use, results\n---', 'Stay']
