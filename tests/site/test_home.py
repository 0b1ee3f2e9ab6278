"""The first minute: cells that form, the game, ways in, chapters, and what links show.

By mouse and by keyboard, in the light and in the dark, on a desktop and on a phone.
"""
import json
import re
from urllib.parse import urlsplit

import pytest
from PIL import Image

from cell_diffusion.metrics import wilson
from conftest import docs, root

sizes = pytest.mark.parametrize('width', [1360, 375])
names = sorted(p.stem for p in docs.glob('*.html'))
home = 'https://cell-diffusion.github.io/cell_diffusion'
says = json.loads((root/'img'/'home'/'home.json').read_text(encoding='utf-8'))
others = says['others']


def visit(page, site_url, name='index'):
    page.goto(f'{site_url}{name}.html', wait_until='load')
    page.wait_for_load_state('networkidle')


def at(page, element):
    "Where an element is, or None"
    return page.locator(element).first.bounding_box()


# The first look

@sizes
def test_the_first_screen(new_page, site_url, width):
    "One sentence, a cell and a way in, before anything is scrolled"
    page = new_page(width=width, height=800)
    visit(page, site_url)
    sentence = page.inner_text('.hero .lead')
    assert sentence.count('.') == 1 and 10 < len(sentence.split()) < 40
    for element in '.hero h1', '.hero .lead', '.hero .start a', '.forming canvas':
        box = at(page, element)
        assert box['y'] + min(box['height'], 60) <= 800, element
    order = [at(page, s)['y'] for s in ('.hero', '#game', '.ways', '.cards')]
    assert order == sorted(order)


def _shown(page):
    "The pixels of the cells that form, as one text"
    return page.eval_on_selector('.forming canvas', 'c => c.toDataURL()')


def test_cells_form_when_they_are_seen(new_page, site_url):
    page = new_page(reduced_motion='no-preference')
    visit(page, site_url)
    last = str(len(says['signal']) - 1)
    frame = 'document.querySelector("[name=frame]").value'
    page.wait_for_function(f'{frame} === "{last}"', timeout=20_000)
    assert page.inner_text('.forming output') == '100% signal'
    assert page.inner_text('[name=play]') == 'Play'


def test_cells_stand_still_for_those_who_asked_for_that(page, site_url):
    visit(page, site_url)
    formed = _shown(page)
    page.wait_for_timeout(600)
    assert _shown(page) == formed
    assert page.inner_text('.forming output') == '100% signal'

    # A key goes back into the noise, and the button starts by itself
    page.focus('[name=frame]')
    page.keyboard.press('Home')
    assert _shown(page) != formed and page.inner_text('.forming output') == '0% signal'
    told = page.get_attribute('[name=frame]', 'aria-valuetext')
    assert told == '0% signal'


# The game

truth = '''() => {
  const sheet = document.querySelector('#game');
  return [...sheet.querySelectorAll('.game-cells button span')].map((s) => s.innerText);
}'''


def play(page, how='mouse'):
    "Choose the first four and check: how many of them are real"
    cells = page.locator('.game-cells button')
    assert cells.count() == 8 and page.is_disabled('[name=check]')
    for i in range(4):
        if how == 'mouse':
            cells.nth(i).click()
        else:
            cells.nth(i).focus()
            page.keyboard.press('Space')
    assert page.locator('[aria-pressed=true]').count() == 4
    if how == 'mouse':
        page.click('[name=check]')
    else:
        page.focus('[name=check]')
        page.keyboard.press('Enter')
    answers = page.evaluate(truth)
    real = ['real' in a for a in answers]
    assert sum(real) == 4
    kinds = sorted(a.split()[-1] for a in answers)
    assert len(set(kinds)) == 8, 'each class is there once'
    return sum(real[:4])


def percent(share):
    "Half of a percent goes up, as on the page"
    return f'{int(100*share + .5)}%'


@pytest.mark.parametrize('how', ['mouse', 'keys'])
def test_the_game(page, site_url, how):
    "Rounds, and the score with Wilson's interval, as the library computes it"
    visit(page, site_url)
    page.wait_for_selector('.game-cells button')
    hits = 0
    for n in 1, 2, 3:
        right = play(page, how)
        hits += right
        assert page.inner_text('.game-says').startswith(str(right))
        low, high = map(percent, wilson(hits, 4*n))
        score = page.inner_text('.game-score')
        assert f'{percent(hits/(4*n))} of {4*n}' in score
        assert f'{low} to {high}' in score and 'Guessing finds 50%' in score
        for other in others:
            share = percent(other['hits']/other['picks'])
            assert f"{share} of {other['picks']}" in score and other['how'] in score
        before = page.eval_on_selector_all(
            '.game-cells canvas', 'all => all.map((c) => c.toDataURL())')
        page.keyboard.press('Enter')  # The button for eight more has the focus
        after = page.eval_on_selector_all(
            '.game-cells canvas', 'all => all.map((c) => c.toDataURL())')
        assert not set(before) & set(after), 'no cell comes twice'


def test_no_fifth_cell_can_be_chosen(page, site_url):
    visit(page, site_url)
    page.wait_for_selector('.game-cells button')
    for i in range(5):
        page.locator('.game-cells button').nth(i).click()
    assert page.locator('[aria-pressed=true]').count() == 4
    page.locator('.game-cells button').nth(0).click()
    assert page.inner_text('[name=check]') == 'Choose 1 more'
    assert page.is_disabled('[name=check]')


def test_answers_are_true(page, site_url):
    "A cell that is called real is one of the left half of the sheet, of its class"
    visit(page, site_url)
    page.wait_for_selector('.game-cells button')
    play(page)
    shown = page.eval_on_selector_all('.game-cells canvas', '''all => all.map((c) => [
      ...c.getContext('2d').getImageData(0, 0, c.width, c.height).data])''')
    size, each = says['size'], says['each']
    sheet = Image.open(root/'img'/'home'/'game.webp').convert('RGB')
    for answer, flat in zip(page.evaluate(truth), shown):
        cell = Image.frombytes('RGBA', (size, size), bytes(flat)).convert('RGB')
        kind = answer.split()[-1].replace('immature', 'ig')
        row = says['classes'].index(kind)
        columns = range(each) if 'real' in answer else range(each, 2*each)
        tiles = [sheet.crop((c*size, row*size, (c + 1)*size, (row + 1)*size))
                 for c in columns]
        assert any(_near(cell, tile) for tile in tiles), answer


def _near(a, b):
    "Whether two pictures are one, but for how they were decoded"
    pairs = list(zip(a.tobytes(), b.tobytes()))
    return sum(abs(x - y) for x, y in pairs)/len(pairs) < 2


def test_photographs_have_their_credit(page, site_url):
    visit(page, site_url)
    credit = page.inner_text('.game .credit')
    for words in 'Acevedo et al. 2020', '10.17632/snkd93bnjr.1', 'CC BY 4.0', 'reduced':
        assert words in credit


# Ways in, and chapters

def test_three_ways_in(page, site_url):
    visit(page, site_url)
    assert page.locator('.way h3').all_inner_texts() == ['Read', 'Run', 'Use']
    for way in page.locator('.way').all():
        assert way.locator('a').count() >= 1
    first = page.locator('.way pre').first.inner_text()
    assert first.startswith('git clone https://')
    page.click('.way >> text=Windows')
    page.wait_for_url('**/overview.html#install')
    install = page.inner_text('#install')
    assert all(s in install for s in ('macOS', 'Windows', 'Colab', 'Docker'))


@sizes
def test_cards_show_whole_pictures(new_page, site_url, width):
    "Each card has a picture in its own proportions, up to 400 pixels wide"
    page = new_page(width=width)
    visit(page, site_url)
    page.eval_on_selector_all('img', 'all => all.forEach(i => { i.loading = "eager" })')
    page.wait_for_function('[...document.images].every((i) => i.naturalWidth > 0)')
    cards = page.locator('.cards tbody tr')
    pictures = page.locator('.cards tbody tr td:first-child img')
    assert cards.count() == pictures.count() >= 33
    found = page.eval_on_selector_all('.cards td:first-child img', '''all => all.map(
      (i) => [i.src, i.width/i.height, i.naturalWidth/i.naturalHeight, i.width,
              i.naturalWidth])''')
    for src, shown, natural, wide, pixels in found:
        assert abs(shown - natural) < .03, f'{src} is cut off or stretched'
        assert 240 <= wide <= 400 and pixels >= 1.5*wide, (src, wide, pixels)
    assert re.search(r'\d+ min', cards.first.inner_text())


def test_the_home_page_has_the_minutes_of_the_readme(page, site_url):
    visit(page, site_url)
    text = (root/'README.md').read_text(encoding='utf-8')
    for line in page.locator('.cards td:last-child').all_inner_texts():
        assert re.sub(r'\s+', ' ', line) in text.replace('`', ''), line


# Chapter pages

chapter_names = sorted(set(names) & {
    'core', 'process', 'ddpm', 'conditioning', 'gan', 'augmentation_study', 'cli'})


@pytest.mark.parametrize('name', chapter_names)
def test_a_chapter_begins_with_what_it_is_for(page, site_url, name):
    visit(page, site_url, name)
    head = page.locator('.chapter-head')
    assert 'After this page you can' in head.inner_text()
    assert re.search(r'\d+ min to read', head.inner_text())
    assert page.eval_on_selector('.chapter-head img', 'i => i.naturalWidth') >= 500
    links = {a.inner_text(): a.get_attribute('href') for a in head.locator('a').all()}
    assert list(links) == ['Download the notebook', 'Open in Colab', 'View on GitHub',
                           'Report a mistake']
    file = docs/links['Download the notebook']
    source = root/'nbs'/file.name
    assert file.read_bytes() == source.read_bytes()
    assert links['View on GitHub'].endswith(f'/blob/main/nbs/{file.name}')


@pytest.mark.parametrize('name', chapter_names)
def test_one_fold_of_imports_at_most(page, site_url, name):
    visit(page, site_url, name)
    folds = page.locator('details.code-fold')
    assert folds.count() <= 1
    for fold in folds.all():
        fold.locator('summary').click()
        assert 'import' in fold.locator('pre').inner_text()


def test_the_notebook_downloads(page, site_url):
    visit(page, site_url, 'process')
    with page.expect_download() as download:
        page.click('text=Download the notebook')
    assert download.value.suggested_filename == '03_process.ipynb'


def test_the_reference_is_folded_and_links_open_it(page, site_url):
    visit(page, site_url, 'process')
    entry = page.locator('#q_sample')
    assert entry.count() == 1 and not entry.is_visible()
    page.evaluate('location.hash = "q_sample"')
    entry.wait_for(state='visible')
    visit(page, site_url, 'schedules')
    page.goto(f'{site_url}process.html#q_sample')
    page.locator('#q_sample').wait_for(state='visible')


def test_long_chapters_mark_what_is_optional(page, site_url):
    visit(page, site_url, 'evaluation')
    marks = page.locator('main h2 .optional, main h3 .optional')
    assert marks.count() >= 5
    assert 'core' in page.inner_text('.chapter-head .time')
    assert page.locator('#TOC .skip-it').count() >= 3


# Figures

def test_a_figure_is_enlarged(page, site_url):
    "By mouse and by key; Escape closes it and gives the focus back"
    visit(page, site_url, 'process')
    button = page.locator('button.enlarge').first
    small = button.locator('img').bounding_box()['width']
    button.click()
    large = page.locator('dialog.large img')
    large.wait_for(state='visible')
    assert large.bounding_box()['width'] > small
    assert large.get_attribute('alt')
    page.keyboard.press('Escape')
    page.wait_for_selector('dialog.large', state='detached')
    button.focus()
    page.keyboard.press('Enter')
    page.locator('dialog.large button').wait_for(state='visible')
    page.click('dialog.large button')
    page.wait_for_selector('dialog.large', state='detached')


def test_wide_figures_have_rows_of_four_on_a_phone(new_page, site_url):
    page = new_page(width=375, height=800)
    visit(page, site_url, 'process')
    img = page.locator('#fig-process-strip img').first
    img.scroll_into_view_if_needed()
    page.wait_for_function('i => i.currentSrc.includes("-phone")',
                           arg=img.element_handle())
    shape = img.bounding_box()
    assert shape['height'] > .5*shape['width'], 'two rows of four'
    assert page.evaluate('document.documentElement.scrollWidth') <= 375


# What machines read

@pytest.mark.parametrize('name', names)
def test_a_shared_link_has_its_card(name):
    text = (docs/f'{name}.html').read_text(encoding='utf-8')
    if name == '404':
        assert 'content="noindex"' in text
        return
    address = f'{home}/' if name == 'index' else f'{home}/{name}.html'
    assert f'<link rel="canonical" href="{address}">' in text
    for tag in 'og:title', 'og:description', 'og:image', 'og:url', 'twitter:card':
        values = re.findall(f'<meta (?:property|name)="{tag}" content="([^"]*)">', text)
        assert len(values) == 1 and values[0], f'{name}: {tag} {values}'
    card = Image.open(docs/'cards'/f'{name}.jpg')
    assert card.size == (1200, 630)
    assert (docs/'cards'/f'{name}.jpg').stat().st_size < 200_000


def test_robots_and_the_map_of_the_site():
    robots = (docs/'robots.txt').read_text()
    assert f'Sitemap: {home}/sitemap.xml' in robots and 'Allow: /' in robots
    places = re.findall(r'<loc>(.*?)</loc>', (docs/'sitemap.xml').read_text())
    assert not any('404' in p for p in places)
    assert {urlsplit(p).path.rsplit('/', 1)[1] for p in places} >= {'process.html'}


def test_a_missing_page_looks_like_the_site(page, site_url):
    "At any depth, as Pages serves it: below the folder of the project"
    lost = (docs/'404.html').read_text(encoding='utf-8')
    root_address = site_url.replace('/some/path/', '/')

    def answer(route):
        path = urlsplit(route.request.url).path
        file = docs/path.removeprefix('/cell_diffusion/')
        if file.is_file():
            route.fulfill(path=file)
        else:
            route.fulfill(status=404, body=lost, content_type='text/html')
    page.route('**/cell_diffusion/**', answer)
    page.goto(f'{root_address}cell_diffusion/deep/er/nothing.html')
    assert 'not here' in page.inner_text('h1')
    colour = page.evaluate('getComputedStyle(document.body).fontFamily')
    assert 'system-ui' in colour, 'the style sheet was found'
    assert page.get_attribute('main a >> nth=0', 'href') == 'index.html'
    page.click('main a >> text=home page')
    page.wait_for_url('**/cell_diffusion/index.html')


# Search

def _found(page, site_url, words):
    visit(page, site_url)
    page.keyboard.press('/')
    page.keyboard.type(words)
    page.wait_for_selector('.search-result')
    page.wait_for_timeout(300)
    return page.locator('.search-result').all()


def test_search_finds_the_glossary_first(page, site_url):
    for words in 'attention', 'batch', 'guidance':
        first = _found(page, site_url, words)[0]
        assert 'glossary.html#word-' in first.get_attribute('href'), words


def test_search_finds_words_before_code(page, site_url):
    "`posterior` is a word of the process chapter, and a name in code elsewhere"
    entries = json.loads((docs/'search.json').read_text(encoding='utf-8'))
    by_href = {e['href']: e for e in entries}
    for words in 'posterior', 'seed':
        order = [words in by_href[_address(r)]['text'].lower() or
                 words in (by_href[_address(r)]['section']).lower()
                 for r in _found(page, site_url, words)]
        assert order == sorted(order, reverse=True) and order[0], words


def _address(result):
    return result.get_attribute('href').removeprefix('./')


def test_search_forgives_a_mistyped_word(page, site_url):
    assert _found(page, site_url, 'difusion modle')
