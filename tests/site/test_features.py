"What one does on the site: search, sliders, dark mode, menus, by key and by mouse"
import re

import pytest

from conftest import docs, root


def visit(page, site_url, name):
    page.goto(f'{site_url}{name}.html')
    page.wait_for_load_state('networkidle')


# Search

@pytest.mark.parametrize('word', ['posterior', 'anaphase'])
def test_search(page, site_url, word):
    visit(page, site_url, 'index')
    page.keyboard.press('/')
    page.keyboard.type(word)
    page.wait_for_selector('.search-result')
    href = page.locator('.search-result').first.get_attribute('href')
    page.keyboard.press('Enter')
    page.wait_for_url(f"**/{href.removeprefix('./')}")
    assert word in page.inner_text('main').lower()


def test_search_that_finds_nothing(page, site_url):
    visit(page, site_url, 'index')
    page.fill('.smalldocs-search input', 'qqqzzzqqq')
    page.wait_for_selector('.search-none')


# Sliders

pages = {p.stem: p.read_text(encoding='utf-8') for p in docs.glob('*.html')}
with_sliders = sorted(n for n, text in pages.items() if 'class="frame-slider' in text)


class Slider:
    "One slider of a page"
    def __init__(self, box):
        box.scroll_into_view_if_needed()
        self.bar = box.locator('input[type=range]')
        self.picture = box.locator('img')
        self.text = box.locator('output')
        self.last = int(self.bar.get_attribute('max'))

    def shows(self):
        "The picture, the words and the position"
        picture = self.picture.get_attribute('src')[-80:]
        return picture, self.text.inner_text(), self.bar.input_value()


@pytest.mark.parametrize('name', with_sliders)
def test_sliders(page, site_url, name):
    visit(page, site_url, name)
    boxes = page.locator('.frame-slider').all()
    assert boxes
    for slider in map(Slider, boxes):
        assert slider.last <= 23, f'{name}: {slider.last + 1} frames, not 24 or fewer'
        picture, words, _ = slider.shows()

        slider.bar.focus()
        page.keyboard.press('ArrowRight')
        _, new_words, position = slider.shows()
        assert new_words != words and position == '1', f'{name}: no answer to a key'

        page.keyboard.press('End')
        new_picture, _, position = slider.shows()
        assert position == str(slider.last) and new_picture != picture

        box = slider.bar.bounding_box()
        page.mouse.click(box['x'] + 3, box['y'] + box['height']/2)
        new_picture, _, position = slider.shows()
        assert position == '0' and new_picture == picture, f'{name}: the mouse'


# Dark mode and colours

def _paper(page):
    "The red, green and blue of the page"
    colour = 'getComputedStyle(document.body).backgroundColor'
    return page.evaluate(f'{colour}.match(/\\d+/g).map(Number)')


def test_dark_mode_is_remembered(page, site_url):
    visit(page, site_url, 'process')
    assert min(_paper(page)) > 200
    page.focus('.quarto-color-scheme-toggle')
    page.keyboard.press('Enter')
    page.wait_for_timeout(200)
    assert max(_paper(page)) < 60
    visit(page, site_url, 'schedules')
    assert max(_paper(page)) < 60


# The contrast of each kind of word in code with the ground below it (WCAG 2.1)
contrasts = '''() => {
  const numbers = (c) => c.match(/[\\d.]+/g).map(Number);
  const linear = (v) => v <= .03928 ? v/12.92 : ((v + .055)/1.055)**2.4;
  const light = (c) => {
    const [r, g, b] = numbers(c).slice(0, 3).map((v) => linear(v/255));
    return .2126*r + .7152*g + .0722*b;
  };
  const paper = (e) => {
    for (; e; e = e.parentElement) {
      const c = getComputedStyle(e).backgroundColor;
      if ((numbers(c)[3] ?? 1) === 1) return c;
    }
    return "rgb(255, 255, 255)";
  };
  const seen = {};
  for (const e of document.querySelectorAll("pre.sourceCode span[class]")) {
    if (e.className in seen) continue;
    const [a, b] = [light(getComputedStyle(e).color), light(paper(e))];
    seen[e.className] = (Math.max(a, b) + .05)/(Math.min(a, b) + .05);
  }
  return seen;
}'''


def test_colours_of_code(page, site_url):
    "Every kind of word in code stands out, in light and in dark mode"
    visit(page, site_url, 'unet')
    for theme in 'light', 'dark':
        found = page.evaluate(contrasts)
        faint = {kind: round(v, 1) for kind, v in found.items() if v < 4.5}
        assert len(found) > 5 and not faint, f'{theme}: {faint}'
        page.click('.quarto-color-scheme-toggle')
        page.wait_for_timeout(200)


def test_the_system_chooses_dark(new_page, site_url):
    page = new_page(color_scheme='dark')
    visit(page, site_url, 'process')
    is_dark = "document.documentElement.classList.contains('quarto-dark')"
    assert page.evaluate(is_dark)


# Ways through the site

def test_first_tab_leads_to_the_content(page, site_url):
    visit(page, site_url, 'process')
    page.keyboard.press('Tab')
    assert page.evaluate('document.activeElement.className') == 'skip-link'
    page.keyboard.press('Enter')
    assert page.url.endswith('#quarto-document-content')


def test_menu_on_a_phone(new_page, site_url):
    page = new_page(width=375, height=800)
    visit(page, site_url, 'process')
    assert not page.is_visible('#quarto-sidebar')
    page.focus('.quarto-btn-toggle')
    page.keyboard.press('Enter')
    page.wait_for_selector('#quarto-sidebar', state='visible')
    page.click('#quarto-sidebar a[href*="schedules.html"]')
    page.wait_for_url('**/schedules.html')


def test_home(page, site_url):
    "Every chapter is a card with a picture that leads to it"
    visit(page, site_url, 'index')
    cards = page.locator('.cards tbody tr')
    assert cards.count() >= 13
    cards.first.click(position=dict(x=30, y=30))
    page.wait_for_url('**/core.html')
    assert 'Not for clinical use' in page.inner_text('footer')


chapters = [
    'core', 'simulation', 'data', 'splits', 'process', 'schedules', 'unet', 'ddpm',
    'long_runs', 'optimizers', 'evaluation', 'samplers', 'conditioning', 'inpainting',
    'inpainting_study', 'gan', 'augmentation', 'augmentation_study']


def test_reading_order(page, site_url):
    "Next, next, next goes through all chapters"
    visit(page, site_url, chapters[0])
    for name in chapters[1:]:
        page.click('.nav-page-next a')
        assert page.url.endswith(f'/{name}.html')


def test_works_without_scripts(new_page, site_url):
    "A reader who runs no scripts has the words, the formulas and the pictures"
    page = new_page(java_script_enabled=False)
    page.goto(f'{site_url}process.html')
    assert page.locator('.katex').count() > 20
    assert page.locator('.equation').count() >= 1
    assert page.locator('main img').count() > 10


# What the pages say

def test_no_page_tells_of_the_machine_or_of_work_to_do():
    "No folder of this checkout, no address in memory, no placeholder, no raw Markdown"
    no_words = r'<(script|style|pre|code)\b.*?</\1>|<[^>]+>'
    raw = r'\b[A-Z]{3,}TEXT\b|\]\([\w./#-]+\)|\b\w+\.qmd\b'
    for name, text in sorted(pages.items()):
        assert str(root) not in text and ' object at 0x' not in text, name
        words = re.sub(no_words, ' ', text, flags=re.S)
        found = re.findall(raw, words)
        assert not found, f'{name}: {found}'


shipped = [
    'katex', 'onnxruntime', 'onnxruntime-notices', 'bootstrap', 'bootstrap-icons',
    'bootswatch', 'fuse', 'smalldocs']


@pytest.mark.parametrize('name', shipped)
def test_licences_are_there(name):
    assert (docs/'licences'/f'{name}.txt').stat().st_size > 500


def test_changes_are_those_of_the_changelog():
    "One file is the source of the page and of what GitHub shows"
    text = (root/'CHANGELOG.md').read_text(encoding='utf-8')
    for version in re.findall(r'^## \[(.+?)\]', text, re.M):
        assert version in pages['changes']
