"The last steps: smalldocs renders, then formulas, styles, icons and links"
import html
import json
import logging
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pages as whole
from assets import here


def render(
    proc,  # The staged sources
    docs,  # The folder of the site, replaced
):
    "Render with smalldocs, and move the site where it belongs"
    from smalldocs.site import build
    out = build(proc, quiet=True).out
    shutil.rmtree(docs, ignore_errors=True)
    shutil.move(out, docs)
    shutil.copytree(proc/'figures', docs/'figures')


def node(job, data):
    "Let `node_tools.mjs` do a job"
    command = ['node', 'node_tools.mjs', job]
    pipes = dict(input=json.dumps(data), capture_output=True, text=True)
    done = subprocess.run(command, cwd=here, **pipes)
    if done.returncode:
        raise SystemExit(f'node_tools.mjs {job} failed:\n{done.stderr[-2000:]}')
    return json.loads(done.stdout)


# Formulas

_math = re.compile(
    r'<span class="math (inline|display)">\\[(\[](.*?)\\[)\]]</span>', re.S)
_cdn = re.compile(
    r'<(?:link|script)\b[^>]*cdn\.jsdelivr\.net/npm/katex[^>]*>(?:</script>)?\s*')
_katex_sheet = '<link rel="stylesheet" href="katex/katex.min.css">\n</head>'


def _drawn(formulas):
    "Each formula `(kind, tex)` as KaTeX draws it, and what KaTeX could not read"
    given = [dict(tex=html.unescape(tex), display=kind == 'display')
             for kind, tex in formulas]
    made = node('formulas', given)
    known = {f: answer.get('html') for f, answer in zip(formulas, made)}
    problems = [f"KaTeX cannot read {g['tex']}: {answer['error']}"
                for g, answer in zip(given, made) if 'error' in answer]
    return known, problems


def set_formulas(
    pages,  # From path to HTML; changed in place
)->list:  # What KaTeX could not read
    "Draw every formula of `pages` with KaTeX"
    found = {m.groups() for text in pages.values() for m in _math.finditer(text)}
    known, problems = _drawn(sorted(found))

    def drawn(m):
        kind, tex = m.groups()
        picture = known[kind, tex] or html.escape(tex)
        return f'<span class="math {kind}">{picture}</span>'
    for path, text in pages.items():
        has_formulas = _math.search(text)
        text = _cdn.sub('', _math.sub(drawn, text))
        if has_formulas:
            text = text.replace('</head>', _katex_sheet)
        pages[path] = text
    return problems


# What a keyboard and a screen reader need

# Parts of the sidebar become headings that are always open
_part = re.compile(
    r'<div class="sidebar-item-container"><a class="sidebar-item-text[^>]*'
    r'data-bs-toggle="collapse"[^>]*><span class="menu-text">(.*?)</span></a>'
    r'<a class="sidebar-item-toggle.*?</a></div>', re.S)
_heading = r'<div class="sidebar-part">\1</div>'
_folded = re.compile(
    r'<ul id="(quarto-sidebar-section-\d+)" class="collapse list-unstyled')
_open = r'<ul id="\1" class="list-unstyled'

# The switch for dark mode becomes a button
_scheme = re.compile(
    r'<a class="quarto-color-scheme-toggle nav-link"[^>]*>(.*?)</a>', re.S)
_button = (
    r'<button type="button" class="quarto-color-scheme-toggle nav-link" '
    r'aria-label="Dark mode" title="Dark mode" '
    r'onclick="smalldocsToggleScheme()">\1</button>')

_skip = (
    r'\1<a class="skip-link" href="#quarto-document-content">To the content</a>')

# Names and roles: (what smalldocs writes, what it should be)
_named = [
    ('<button title="Copy to Clipboard"',
     '<button type="button" title="Copy" aria-label="Copy this code"'),
    ('<nav id="quarto-sidebar"',
     '<nav aria-label="Chapters" id="quarto-sidebar"'),
    ('<nav class="page-navigation"',
     '<nav aria-label="Next and previous chapter" class="page-navigation"'),
    ('<nav class="quarto-secondary-nav"', '<div class="quarto-secondary-nav"'),
    ('</nav></div></nav></header>', '</nav></div></div></header>'),
]


def mend(text):
    "A page with the roles and names that smalldocs leaves out"
    text = _part.sub(_heading, text)
    text = _folded.sub(_open, text)
    text = _scheme.sub(_button, text)
    text = re.sub(r'(<i class="bi[^"]*") role="img">', r'\1 aria-hidden="true">', text)
    for old, new in _named:
        text = text.replace(old, new)
    return re.sub(r'(<body[^>]*>)', _skip, text, count=1)


# Styles and icons

def _change(path, pattern, new=''):
    "Replace a pattern in a file"
    text = path.read_text(encoding='utf-8')
    path.write_text(re.sub(pattern, new, text), encoding='utf-8')


def cut_styles(docs):
    "Leave in the style sheets only what some page uses, and no fonts from elsewhere"
    libs = docs/'site_libs'
    icons = libs/'bootstrap-icons'/'bootstrap-icons.min.css'
    sheets = [*libs.glob('themes/*.css'), icons]
    for sheet in sheets:
        _change(sheet, r'@import\s+url\([^)]*\)[^;]*;')

    places = docs/'*.html', libs/'*.js', docs/'*.js', docs/'browser'/'*.js'
    job = dict(css=[str(s) for s in sheets], content=[str(p) for p in places])
    for path, css in node('styles', job).items():
        Path(path).write_text(css, encoding='utf-8')

    # KaTeX has drawn everything: its style stays, its script and older fonts go
    older = r',url\([^)]*\.(?:woff|ttf)\) format\("(?:woff|truetype)"\)'
    _change(docs/'katex'/'katex.min.css', older)
    for file in (docs/'katex').glob('*.js'):
        file.unlink()


def _used_icons(*sheets):
    "The code points of the icons that style sheets name"
    text = ''.join(sheet.read_text(encoding='utf-8') for sheet in sheets)
    return {int(c, 16) for c in re.findall(r'content:\s*"\\(f[0-9a-f]+)"', text)}


def cut_icons(docs):
    "Leave in the icon font only the icons that the style sheets still name"
    from fontTools import subset
    from fontTools.ttLib import TTFont
    folder = docs/'site_libs'/'bootstrap-icons'
    css = folder/'bootstrap-icons.min.css'
    used = _used_icons(css, docs/'site_libs'/'smalldocs.css')

    logging.getLogger('fontTools').setLevel(logging.ERROR)
    path = folder/'fonts'/'bootstrap-icons.woff'
    font = TTFont(path)
    cutter = subset.Subsetter()
    cutter.populate(unicodes=used)
    cutter.subset(font)
    font.save(path)

    (folder/'fonts'/'bootstrap-icons.woff2').unlink()
    _change(css, r'url\([^)]*woff2[^)]*\)\s*format\("woff2"\)\s*,')


# Links

class Links(HTMLParser):
    "What a page points to, what it loads, its ids, and its pictures without alt text"
    sources = 'img', 'script', 'source', 'iframe'
    sheets = 'stylesheet', 'icon', 'preload', 'modulepreload'

    def __init__(self, text):
        super().__init__()
        self.links = []
        self.loads = []
        self.ids = []
        self.bare = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        if a.get('id'):
            self.ids.append(a['id'])
        if tag == 'a' and a.get('href'):
            self.links.append(a['href'])
        if tag in self.sources and a.get('src'):
            self.loads.append(a['src'])
        if tag == 'link' and a.get('href') and a.get('rel') in self.sheets:
            self.loads.append(a['href'])
        if tag == 'img' and 'alt' not in a:
            self.bare.append(a.get('src', '')[:80])


def _is_dead(link, name, found, docs):
    "Whether a link from the page `name` leads nowhere inside the site"
    path, _, anchor = unquote(link).partition('#')
    path = path.split('?')[0] or name
    target = docs/path/'index.html' if path.endswith('/') else docs/path
    if not target.exists():
        return True
    if not anchor or target.name not in found:
        return False
    return anchor not in found[target.name].ids


def check_links(
    docs,  # The site's folder
)->list:  # Broken links and pictures, ids that stand twice, files from another host
    "Follow every link inside the site without a browser"
    pages = sorted(docs.glob('*.html'))
    found = {p.name: Links(p.read_text(encoding='utf-8')) for p in pages}
    problems = []
    dead = {}
    for name, page in found.items():
        twice = sorted({i for i in page.ids if page.ids.count(i) > 1})
        other = [l for l in page.loads if re.match(r'(https?:)?//', l)]
        problems += [f'{name}: the id {i} stands twice' for i in twice]
        problems += [f'{name}: loads {l} from another host' for l in other]

        inside = [l for l in page.links + page.loads if not re.match(r'[a-z]+:|//', l)]
        for link in inside:
            if _is_dead(link, name, found, docs):
                dead.setdefault(link, []).append(name)

    for link, pages in sorted(dead.items()):
        more = f' and {len(pages) - 3} more' if len(pages) > 3 else ''
        problems.append(f"broken link {link} on {', '.join(pages[:3])}{more}")
    return problems


_linked_name = re.compile(
    r'<a href="([\w-]+\.html)?#([\w.]+)"[^>]*>(<code>[^<]*</code>)</a>')

def unlink_helpers(pages):
    "nbdev links every name of the package, but helpers have no entry to go to"
    ids = {path.name: set(re.findall(r'\bid="([^"]+)"', text))
           for path, text in pages.items()}
    for path, text in pages.items():
        def plain(m, here=path.name):
            return m[0] if m[2] in ids.get(m[1] or here, ()) else m[3]
        pages[path] = _linked_name.sub(plain, text)


def finish(docs, home):
    "Make the rendered site complete; gives what is wrong"
    pages = {p: p.read_text(encoding='utf-8') for p in sorted(docs.glob('*.html'))}
    problems = set_formulas(pages)
    unlink_helpers(pages)
    problems += whole.complete(pages, docs, home)
    for path, text in pages.items():
        path.write_text(mend(text), encoding='utf-8')
    cut_styles(docs)
    cut_icons(docs)
    return problems + check_links(docs)
