"Every page in each browser: nothing fails, nothing is cut off, everyone can read it"
import json
import re
from urllib.parse import urlsplit

import pytest

from conftest import docs, root, shots
from finish import check_links

names = sorted(p.stem for p in docs.glob('*.html'))
axe = root/'site'/'node_modules'/'axe-core'/'axe.min.js'

# Bytes of all that a first look at a page loads
limits = dict(index=700_000)
usual_limit = 1_200_000
heard = {}


class Watch:
    "What a page says and loads: errors, failed requests, other hosts, bytes"
    def __init__(self, page, url):
        self.errors = []
        self.bytes = {}
        self.host = urlsplit(url).netloc
        page.on('console', self.said)
        page.on('pageerror', lambda e: self.errors.append(f'error: {e}'))
        page.on('requestfailed', lambda r: self.errors.append(f'failed: {r.url}'))
        page.on('request', self.asked)
        page.on('response', self.came)

    def said(self, message):
        if message.type in ('error', 'warning'):
            self.errors.append(f'console: {message.text}')

    def asked(self, request):
        url = request.url
        if url.startswith('http') and urlsplit(url).netloc != self.host:
            self.errors.append(f'another host: {url}')

    def came(self, response):
        if response.status >= 400:
            self.errors.append(f'{response.status}: {response.url}')
        elif response.url.startswith('http'):
            length = response.headers.get('content-length', 0)
            self.bytes[response.url] = int(length)


# What runs in the page

# The coloured words of code are thousands of similar spans; test_features tests them
faults = '''async (theme) => {
  const tags = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"];
  const found = await axe.run(
    { exclude: [["code.sourceCode"]] },
    { runOnly: tags, resultTypes: ["violations"] });
  const grave = (v) => ["serious", "critical"].includes(v.impact);
  const where = (v) => v.nodes.slice(0, 2).map((n) => n.html.slice(0, 160)).join(" | ");
  const told = (v) => `${theme}: ${v.id} (${v.nodes.length}): ${where(v)}`;
  return found.violations.filter(grave).map(told);
}'''

# Load all pictures; gives those that are broken
see_all = '''async () => {
  const lazy = document.querySelectorAll("img[loading=lazy]");
  lazy.forEach((i) => { i.loading = "eager"; });
  await Promise.all([...document.images].map((i) => i.decode().catch(() => 0)));
  const broken = [...document.images].filter((i) => !i.naturalWidth);
  return broken.map((i) => i.src.slice(0, 100));
}'''

no_alt = '''(all) => {
  const bare = all.filter((i) => !(i.getAttribute("alt") || "").trim());
  return bare.map((i) => i.src.slice(0, 100));
}'''

# What makes a page scroll sideways
sideways = '''() => {
  const w = document.documentElement.clientWidth;
  if (document.documentElement.scrollWidth <= w + 1) return [];
  const clipped = (e) => {
    for (let p = e.parentElement; p && p !== document.body; p = p.parentElement)
      if (getComputedStyle(p).overflowX !== "visible") return true;
    return false;
  };
  const all = [...document.querySelectorAll("main *")];
  const out = all.filter((e) => e.getBoundingClientRect().right > w + 1 && !clipped(e));
  const some = out.slice(0, 5).map((e) => e.outerHTML.slice(0, 160));
  return some.concat(["the page scrolls sideways"]);
}'''

# Code and text outputs that are wider than their box
cut_off = '''() => {
  document.querySelectorAll("main details").forEach((d) => { d.open = true; });
  const all = [...document.querySelectorAll("main pre")];
  const bad = all.filter((p) => p.clientWidth && p.scrollWidth > p.clientWidth);
  const longer = (a, b) => b.length - a.length;
  const longest = (p) => p.innerText.split("\\n").sort(longer)[0];
  return bad.map((p) => `${longest(p).length} characters: ${longest(p).trim()}`);
}'''


def shoot(page, name, most=9_000):
    "A picture of the page in Chromium, or of the first `most` pixels of a long one"
    if page.context.browser.browser_type.name != 'chromium':
        return
    shots.mkdir(exist_ok=True)
    height = page.evaluate('document.documentElement.scrollHeight')
    width = page.viewport_size['width']
    clip = dict(x=0, y=0, width=width, height=min(most, height))
    path = shots/f'{name}.jpg'
    page.screenshot(path=path, type='jpeg', quality=70, full_page=True, clip=clip)


def _weight(watch, name):
    "What is wrong with the bytes that a page loads"
    weight = sum(watch.bytes.values())
    heard[name] = weight
    most = limits.get(name, usual_limit)
    if weight <= most:
        return []
    largest = sorted(watch.bytes.items(), key=lambda b: -b[1])[:4]
    return [f'{weight/1e6:.2f} MB at first, over {most/1e6:.1f}: {largest}']


def _content(page):
    "What is wrong with headings and pictures"
    n = page.locator('h1').count()
    bad = [] if n == 1 else [f'{n} headings of the first level']
    bad += [f'no alt text: {s}' for s in page.eval_on_selector_all('img', no_alt)]
    return bad + [f'broken picture: {s}' for s in page.evaluate(see_all)]


def _dark(page, name):
    "Go to dark mode; gives what is wrong there"
    page.click('.quarto-color-scheme-toggle')
    dark = "document.documentElement.classList.contains('quarto-dark')"
    page.wait_for_function(dark)
    page.wait_for_timeout(150)
    shoot(page, f'{name}-dark')
    return page.evaluate(faults, 'dark')


def _phone(page, name):
    "Make the window as narrow as a phone; gives what is wrong there"
    page.set_viewport_size(dict(width=375, height=800))
    page.wait_for_timeout(150)
    bad = [f'375 pixels wide: {s}' for s in page.evaluate(sideways)]
    if page.is_visible('.quarto-color-scheme-toggle'):
        page.click('.quarto-color-scheme-toggle', force=True)
    else:
        page.evaluate('smalldocsToggleScheme()')
    page.wait_for_timeout(100)
    shoot(page, f'{name}-phone')
    return bad


def _paper(page):
    "What is wrong when the page is printed"
    page.emulate_media(media='print')
    screen_only = '#quarto-header', '#quarto-sidebar', '.page-navigation'
    shown = [s for s in screen_only if page.locator(s).first.is_visible()]
    return [f'printed: {s} is shown' for s in shown]


@pytest.mark.parametrize('name', names)
def test_page(page, site_url, name):
    watch = Watch(page, site_url)
    page.goto(f'{site_url}{name}.html')
    page.wait_for_load_state('networkidle')
    bad = _weight(watch, name) + _content(page)
    page.add_script_tag(path=axe)
    shoot(page, f'{name}-light')
    bad += page.evaluate(faults, 'light')
    bad += _dark(page, name)
    bad += _phone(page, name)
    bad += _paper(page)
    assert not bad + watch.errors, '\n'.join([f'{name}.html', *bad, *watch.errors])


def _with_old_lines():
    "Pages whose notebooks are listed in `style_todo.txt`"
    text = (root/'tests'/'style_todo.txt').read_text(encoding='utf-8')
    return set(re.findall(r'^nbs/(?:\d+_)?(\w+)\.ipynb$', text, re.M))


def _each_page():
    old = _with_old_lines()
    for name in names:
        later = [pytest.mark.xfail(strict=False)] if name in old else []
        yield pytest.param(name, marks=later)


@pytest.mark.parametrize('name', list(_each_page()))
def test_no_code_is_cut_off(new_page, site_url, name):
    "On a window of 1280 pixels, code and text outputs fit"
    page = new_page(width=1280)
    page.goto(f'{site_url}{name}.html')
    page.wait_for_function('document.fonts.status === "loaded"')
    bad = page.evaluate(cut_off)
    first = f'{name}.html: {len(bad)} blocks are cut off'
    assert not bad, '\n'.join([first, *bad[:10]])


def test_88_characters_fit(new_page, site_url):
    "Wherever a cell stands, and with the scroll bar of a desktop beside the page"
    page = new_page(width=1280 - 15)
    page.goto(f'{site_url}core.html')
    fill = '''() => {
      const cells = document.querySelectorAll("main pre.cell-code code");
      cells.forEach((c) => { c.textContent = "m".repeat(88); });
    }'''
    page.evaluate(fill)
    assert not page.evaluate(cut_off)


def test_links_and_anchors():
    bad = check_links(docs)
    assert not bad, '\n'.join(bad)


def test_weights_are_kept():
    "The bytes that a first look at each page loads, beside the screenshots"
    assert names, 'there are no pages'
    shots.mkdir(exist_ok=True)
    heaviest_first = dict(sorted(heard.items(), key=lambda h: -h[1]))
    text = json.dumps(heaviest_first, indent=1)
    (shots/'weights.json').write_text(text + '\n')


def test_addresses_are_relative():
    "But for links that a person follows"
    project = (root/'pyproject.toml').read_text(encoding='utf-8')
    home = re.search(r'^Documentation = "(.+?)/?"', project, re.M)[1]
    for p in docs.glob('*.html'):
        text = p.read_text(encoding='utf-8')
        absolute = re.findall(r'(?:src|href)="(/[^/"][^"]*)"', text)
        assert not absolute, f'{p.name}: {absolute[:3]} need the root of a host'
        canonical = r'<link rel="canonical" href="[^"]*">'
        inside = re.sub(canonical, '', text).replace(f'href="{home}/"', '')
        assert f'href="{home}' not in inside, f'{p.name} links to the published site'
