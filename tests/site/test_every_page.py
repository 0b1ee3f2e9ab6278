"Every page of the built site in Chromium: nothing fails, nothing comes from elsewhere, all can be read, by everyone, on any screen"
import json, re
from urllib.parse import urlsplit
import pytest
from conftest import docs, root, shots
from finish import check_links

names = sorted(p.stem for p in docs.glob('*.html'))
axe = root/'site'/'node_modules'/'axe-core'/'axe.min.js'
limits = dict(index=700_000)          # bytes of all that a first look loads; else 2.5 MB
heard = {}

class Watch:
    "What a page says and loads: errors, failed requests, other hosts, bytes"
    def __init__(self, page, url):
        self.errors, self.bytes, self.host = [], {}, urlsplit(url).netloc
        page.on('console', lambda m: self.errors.append(f'console: {m.text}') if m.type in ('error', 'warning') else None)
        page.on('pageerror', lambda e: self.errors.append(f'error: {e}'))
        page.on('requestfailed', lambda r: self.errors.append(f'failed: {r.url}'))
        page.on('request', lambda r: self.errors.append(f'another host: {r.url}') if r.url.startswith('http') and urlsplit(r.url).netloc != self.host else None)
        page.on('response', self.came)
    def came(self, r):
        if r.status >= 400: self.errors.append(f'{r.status}: {r.url}')
        elif r.url.startswith('http'): self.bytes[r.url] = int(r.headers.get('content-length', 0))

# coloured words of code are thousands of alike spans, and have a test of their own (test_features)
faults = '''async (theme) => {
  const r = await axe.run({ exclude: [["code.sourceCode"]] }, { runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"], resultTypes: ["violations"] });
  return r.violations.filter((v) => ["serious", "critical"].includes(v.impact)).map((v) => `${theme}: ${v.id} (${v.nodes.length}): ${v.nodes.slice(0, 2).map((n) => n.html.slice(0, 160)).join(" | ")}`);
}'''
see_all = '''async () => {
  document.querySelectorAll("img[loading=lazy]").forEach((i) => { i.loading = "eager"; });
  await Promise.all([...document.images].map((i) => i.decode().catch(() => 0)));
  return [...document.images].filter((i) => !i.naturalWidth).map((i) => i.src.slice(0, 100));
}'''
sideways = '''() => {
  const w = document.documentElement.clientWidth;
  if (document.documentElement.scrollWidth <= w + 1) return [];
  const clipped = (e) => { for (let p = e.parentElement; p && p !== document.body; p = p.parentElement) if (getComputedStyle(p).overflowX !== "visible") return true; return false; };
  return [...document.querySelectorAll("main *")].filter((e) => e.getBoundingClientRect().right > w + 1 && !clipped(e)).slice(0, 5).map((e) => e.outerHTML.slice(0, 160)).concat(["the page scrolls sideways"]);
}'''

def shoot(page, name, most=9_000):
    "The page, or the first `most` pixels of a long one, to be looked at"
    shots.mkdir(exist_ok=True)
    high = min(most, page.evaluate('document.documentElement.scrollHeight'))
    page.screenshot(path=shots/f'{name}.jpg', type='jpeg', quality=70, full_page=True, clip=dict(x=0, y=0, width=page.viewport_size['width'], height=high))

@pytest.mark.parametrize('name', names)
def test_page(browser, site_url, name):
    context = browser.new_context(viewport=dict(width=1360, height=900), color_scheme='light', reduced_motion='reduce')
    page = context.new_page()
    watch = Watch(page, site_url)
    page.goto(f'{site_url}{name}.html', wait_until='networkidle')
    weight, bad = sum(watch.bytes.values()), []
    heard[name] = weight
    if weight > (most := limits.get(name, 2_500_000)): bad.append(f'{weight/1e6:.2f} MB at first, over {most/1e6:.1f}: {sorted(watch.bytes.items(), key=lambda b: -b[1])[:4]}')
    if (n := page.locator('h1').count()) != 1: bad.append(f'{n} headings of the first level')
    bad += [f'no alt text: {s}' for s in page.eval_on_selector_all('img', 'all => all.filter((i) => !(i.getAttribute("alt") || "").trim()).map((i) => i.src.slice(0, 100))')]
    bad += [f'broken picture: {s}' for s in page.evaluate(see_all)]
    page.add_script_tag(path=axe)
    shoot(page, f'{name}-light')
    bad += page.evaluate(faults, 'light')
    page.click('.quarto-color-scheme-toggle')
    page.wait_for_function("document.documentElement.classList.contains('quarto-dark')")
    page.wait_for_timeout(150)
    shoot(page, f'{name}-dark')
    bad += page.evaluate(faults, 'dark')
    page.set_viewport_size(dict(width=375, height=800))
    page.wait_for_timeout(150)
    bad += [f'375 pixels wide: {s}' for s in page.evaluate(sideways)]
    page.click('.quarto-color-scheme-toggle', force=True) if page.is_visible('.quarto-color-scheme-toggle') else page.evaluate('smalldocsToggleScheme()')
    page.wait_for_timeout(100)
    shoot(page, f'{name}-phone')
    page.emulate_media(media='print')
    bad += [f'printed: {s} is shown' for s in ('#quarto-header', '#quarto-sidebar', '.page-navigation') if page.locator(s).first.is_visible()]
    context.close()
    assert not bad + watch.errors, f'{name}.html\n' + '\n'.join(bad + watch.errors)

def test_links_and_anchors():
    assert not (bad := check_links(docs)), '\n'.join(bad)

def test_weights_are_told():
    "The bytes that a first look at each page loads are kept beside the screenshots"
    shots.mkdir(exist_ok=True)
    (shots/'weights.json').write_text(json.dumps(dict(sorted(heard.items(), key=lambda h: -h[1])), indent=1) + '\n')
    assert names, 'there are no pages'

def test_nothing_names_another_place():
    "Relative addresses only, but for links that a person follows"
    for p in docs.glob('*.html'):
        text = p.read_text(encoding='utf-8')
        absolute = [m for m in re.findall(r'(?:src|href)="(/[^/"][^"]*)"', text)]
        assert not absolute, f'{p.name}: {absolute[:3]} work from the root of a host only'
        home = re.search(r'^Documentation = "(.+?)/?"', (root/'pyproject.toml').read_text(), re.M)[1]
        assert f'href="{home}' not in text.replace(f'href="{home}/"', ''), f'{p.name} links to the published site, not to itself'
