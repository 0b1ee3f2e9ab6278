"What one does on the site: search, sliders, dark mode, menus, all of it by key and by mouse"
import re
import pytest
from conftest import docs, root

def visit(page, site_url, name): page.goto(f'{site_url}{name}.html', wait_until='networkidle')

@pytest.mark.parametrize('word', ['posterior', 'anaphase'])
def test_search(page, site_url, word):
    visit(page, site_url, 'index')
    page.keyboard.press('/')
    page.keyboard.type(word)
    page.wait_for_selector('.search-result')
    first = page.locator('.search-result').first
    href = first.get_attribute('href')
    page.keyboard.press('Enter')
    page.wait_for_url(f'**/{href.removeprefix("./")}')
    assert word in page.inner_text('main').lower()

def test_search_that_finds_nothing(page, site_url):
    visit(page, site_url, 'index')
    page.fill('.smalldocs-search input', 'qqqzzzqqq')
    page.wait_for_selector('.search-none')

with_sliders = sorted(p.stem for p in docs.glob('*.html') if 'class="frame-slider' in p.read_text(encoding='utf-8'))

@pytest.mark.parametrize('name', with_sliders)
def test_sliders(page, site_url, name):
    visit(page, site_url, name)
    sliders = page.locator('.frame-slider')
    assert sliders.count()
    for i in range(sliders.count()):
        slider = sliders.nth(i)
        slider.scroll_into_view_if_needed()
        bar, picture, told = slider.locator('input[type=range]'), slider.locator('img'), slider.locator('output')
        now = lambda: (picture.get_attribute('src')[-80:], told.inner_text(), bar.input_value())
        last = int(bar.get_attribute('max'))
        assert last <= 23, f'{name}: {last + 1} frames, at most 24 are wanted'
        start = now()
        bar.focus(); page.keyboard.press('ArrowRight')
        by_key = now()
        assert by_key[1] != start[1] and by_key[2] == '1', f'{name}: slider {i} does not follow a key'
        page.keyboard.press('End')
        assert now()[2] == str(last) and now()[0] != start[0]
        box = bar.bounding_box()
        page.mouse.click(box['x'] + 3, box['y'] + box['height']/2)
        assert now()[2] == '0' and now()[0] == start[0], f'{name}: slider {i} does not follow the mouse'

def test_dark_mode_is_remembered(page, site_url):
    paper = lambda: page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    visit(page, site_url, 'process')
    assert min(paper()) > 200
    page.focus('.quarto-color-scheme-toggle'); page.keyboard.press('Enter')
    page.wait_for_timeout(200)
    assert max(paper()) < 60
    visit(page, site_url, 'schedules')
    assert max(paper()) < 60

contrasts = '''() => {
  const numbers = (c) => c.match(/[\\d.]+/g).map(Number);
  const light = (c) => { const [r, g, b] = numbers(c).slice(0, 3).map((v) => (v /= 255) <= .03928 ? v/12.92 : ((v + .055)/1.055)**2.4); return .2126*r + .7152*g + .0722*b; };
  const paper = (e) => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor; if ((numbers(c)[3] ?? 1) === 1) return c; } return "rgb(255, 255, 255)"; };
  const seen = {};
  for (const e of document.querySelectorAll("pre.sourceCode span[class]")) {
    if (e.className in seen) continue;
    const [a, b] = [light(getComputedStyle(e).color), light(paper(e))];
    seen[e.className] = (Math.max(a, b) + .05)/(Math.min(a, b) + .05);
  }
  return seen;
}'''

def test_colours_of_code(page, site_url):
    "Every kind of word in code stands out from its ground, in light and in dark"
    visit(page, site_url, 'unet')
    for theme in 'light', 'dark':
        found = page.evaluate(contrasts)
        assert len(found) > 5 and not (faint := {k: round(v, 1) for k, v in found.items() if v < 4.5}), f'{theme}: {faint}'
        page.click('.quarto-color-scheme-toggle'); page.wait_for_timeout(200)

def test_the_system_chooses_dark(browser, site_url):
    context = browser.new_context(color_scheme='dark')
    page = context.new_page()
    visit(page, site_url, 'process')
    assert page.evaluate("document.documentElement.classList.contains('quarto-dark')")
    context.close()

def test_first_tab_leads_to_the_content(page, site_url):
    visit(page, site_url, 'process')
    page.keyboard.press('Tab')
    assert page.evaluate("document.activeElement.className") == 'skip-link'
    page.keyboard.press('Enter')
    assert page.url.endswith('#quarto-document-content')

def test_menu_on_a_phone(browser, site_url):
    context = browser.new_context(viewport=dict(width=375, height=800), reduced_motion='reduce')
    page = context.new_page()
    visit(page, site_url, 'process')
    assert not page.is_visible('#quarto-sidebar')
    page.focus('.quarto-btn-toggle'); page.keyboard.press('Enter')
    page.wait_for_selector('#quarto-sidebar', state='visible')
    page.click('#quarto-sidebar >> text=Noise schedules')
    page.wait_for_url('**/schedules.html')
    context.close()

def test_home(page, site_url):
    "Every chapter is a card with a picture that leads to it"
    visit(page, site_url, 'index')
    cards = page.locator('.cards tbody tr')
    assert cards.count() >= 13
    cards.first.click(position=dict(x=30, y=30))
    page.wait_for_url('**/core.html')
    assert 'Not for clinical use' in page.inner_text('footer')

def test_reading_order(page, site_url):
    "Next, next, next goes through all chapters"
    visit(page, site_url, 'core')
    seen = ['core']
    while len(seen) < 13:
        page.click('.nav-page-next a')
        seen.append(page.url.rsplit('/', 1)[1].removesuffix('.html'))
    assert seen == ['core', 'simulation', 'data', 'process', 'schedules', 'unet', 'ddpm', 'evaluation', 'samplers', 'conditioning', 'inpainting', 'gan', 'augmentation']

def test_works_without_scripts(browser, site_url):
    "Words, formulas and pictures are there for a reader who runs no scripts"
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(f'{site_url}process.html')
    assert page.locator('.katex').count() > 20 and page.locator('.equation').count() >= 1
    assert page.locator('main img').count() > 10
    context.close()

def test_no_page_tells_of_the_machine_or_of_work_to_do():
    "No folder of this checkout, no address in memory, no placeholder, no Markdown that nobody read"
    for path in sorted(docs.glob('*.html')):
        text = path.read_text(encoding='utf-8')
        words = re.sub(r'<(script|style|pre|code)\b.*?</\1>|<[^>]+>', ' ', text, flags=re.S)
        assert str(root) not in text and ' object at 0x' not in text, path.name
        assert not (found := re.findall(r'\b[A-Z]{3,}TEXT\b|\]\([\w./#-]+\)|\b\w+\.qmd\b', words)), f'{path.name}: {found}'

def test_licences_are_there():
    for name in ('katex', 'onnxruntime', 'onnxruntime-notices', 'bootstrap', 'bootstrap-icons', 'bootswatch', 'fuse', 'smalldocs'):
        assert (docs/'licences'/f'{name}.txt').stat().st_size > 500, name
