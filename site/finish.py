"The last steps: smalldocs renders, then formulas are set, styles cut to what is used, and nothing points to another host"
import html, io, json, re, shutil, subprocess
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote
from assets import here, modules

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
    "Ask `node_tools.mjs` to do a job"
    done = subprocess.run(['node', 'node_tools.mjs', job], cwd=here, input=json.dumps(data), capture_output=True, text=True)
    if done.returncode: raise SystemExit(f'node_tools.mjs {job} failed:\n{done.stderr[-2000:]}')
    return json.loads(done.stdout)

# Formulas

_math = re.compile(r'<span class="math (inline|display)">\\[(\[](.*?)\\[)\]]</span>', re.S)
_cdn = re.compile(r'<(?:link|script)\b[^>]*cdn\.jsdelivr\.net/npm/katex[^>]*>(?:</script>)?\s*')

def set_formulas(pages):
    "Set every formula of `pages`, a dict from path to HTML, with KaTeX; gives what KaTeX could not read"
    found = sorted({(m[2], m[1]) for text in pages.values() for m in _math.finditer(text)})
    made = node('formulas', [dict(tex=html.unescape(tex), display=kind == 'display') for tex, kind in found])
    known = {f: r.get('html') for f, r in zip(found, made)}
    problems = [f"KaTeX cannot read {html.unescape(tex)}: {r['error']}" for (tex, _), r in zip(found, made) if 'error' in r]
    for path, text in pages.items():
        has = _math.search(text)
        text = _math.sub(lambda m: f'<span class="math {m[1]}">{known[m[2], m[1]] or html.escape(m[2])}</span>', text)
        pages[path] = _cdn.sub('', text).replace('</head>', '<link rel="stylesheet" href="katex/katex.min.css">\n</head>' if has else '</head>')
    return problems

# What a keyboard and a screen reader need

_part = re.compile(r'<div class="sidebar-item-container"><a class="sidebar-item-text[^>]*data-bs-toggle="collapse"[^>]*><span class="menu-text">(.*?)</span></a><a class="sidebar-item-toggle.*?</a></div>', re.S)
_scheme = re.compile(r'<a class="quarto-color-scheme-toggle nav-link"[^>]*>(.*?)</a>', re.S)

def mend(text):
    "Roles and names that smalldocs leaves out: parts of the sidebar as headings, a real button for dark mode, silent icons, a link to the content"
    text = _part.sub(r'<div class="sidebar-part">\1</div>', text)
    text = re.sub(r'<ul id="(quarto-sidebar-section-\d+)" class="collapse list-unstyled', r'<ul id="\1" class="list-unstyled', text)
    text = _scheme.sub(r'<button type="button" class="quarto-color-scheme-toggle nav-link" aria-label="Dark mode" title="Dark mode" onclick="smalldocsToggleScheme()">\1</button>', text)
    text = re.sub(r'(<i class="bi[^"]*") role="img">', r'\1 aria-hidden="true">', text)
    text = text.replace('<button title="Copy to Clipboard"', '<button type="button" title="Copy" aria-label="Copy this code"')
    text = text.replace('<nav id="quarto-sidebar"', '<nav aria-label="Chapters" id="quarto-sidebar"').replace('<nav class="page-navigation"', '<nav aria-label="Next and previous chapter" class="page-navigation"')
    text = text.replace('<nav class="quarto-secondary-nav"', '<div class="quarto-secondary-nav"').replace('</nav></div></nav></header>', '</nav></div></div></header>')
    return re.sub(r'(<body[^>]*>)', r'\1<a class="skip-link" href="#quarto-document-content">To the content</a>', text, count=1)

# Styles and icons

def cut_styles(docs):
    "Leave in the style sheets only what some page uses, and no fonts from elsewhere"
    sheets = [*docs.glob('site_libs/themes/*.css'), docs/'site_libs'/'bootstrap-icons'/'bootstrap-icons.min.css']
    for s in sheets: s.write_text(re.sub(r'@import\s+url\([^)]*\)[^;]*;', '', s.read_text(encoding='utf-8')), encoding='utf-8')
    content = [str(docs/'*.html'), str(docs/'site_libs'/'*.js'), str(docs/'*.js'), str(docs/'browser'/'*.js')]
    for path, css in node('styles', dict(css=[str(s) for s in sheets], content=content)).items(): Path(path).write_text(css, encoding='utf-8')
    katex = docs/'katex'
    sheet = katex/'katex.min.css'
    sheet.write_text(re.sub(r',url\([^)]*\.(?:woff|ttf)\) format\("(?:woff|truetype)"\)', '', sheet.read_text(encoding='utf-8')), encoding='utf-8')
    for f in katex.glob('*.js'): f.unlink()

def cut_icons(docs):
    "Leave in the icon font only the icons that the style sheet still names"
    import logging
    from fontTools import subset
    from fontTools.ttLib import TTFont
    folder = docs/'site_libs'/'bootstrap-icons'
    css = folder/'bootstrap-icons.min.css'
    used = {int(c, 16) for c in re.findall(r'content:\s*"\\(f[0-9a-f]+)"', css.read_text(encoding='utf-8') + (docs/'site_libs'/'smalldocs.css').read_text(encoding='utf-8'))}
    logging.getLogger('fontTools').setLevel(logging.ERROR)
    font = TTFont(folder/'fonts'/'bootstrap-icons.woff')
    cutter = subset.Subsetter()
    cutter.populate(unicodes=used)
    cutter.subset(font)
    font.save(folder/'fonts'/'bootstrap-icons.woff')
    (folder/'fonts'/'bootstrap-icons.woff2').unlink()
    text = re.sub(r'url\([^)]*woff2[^)]*\)\s*format\("woff2"\)\s*,', '', css.read_text(encoding='utf-8'))
    css.write_text(text, encoding='utf-8')

# Links

class Links(HTMLParser):
    "What a page points to and what it loads, its ids, and its pictures without alt text"
    def __init__(self, text): super().__init__(); self.links, self.loads, self.ids, self.bare = [], [], [], []; self.feed(text)
    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        if a.get('id'): self.ids.append(a['id'])
        if tag == 'a' and a.get('href'): self.links.append(a['href'])
        if tag in ('img', 'script', 'source', 'iframe') and a.get('src'): self.loads.append(a['src'])
        if tag == 'link' and a.get('href') and a.get('rel') in ('stylesheet', 'icon', 'preload', 'modulepreload'): self.loads.append(a['href'])
        if tag == 'img' and 'alt' not in a: self.bare.append(a.get('src', '')[:80])

def check_links(
    docs,  # The site's folder
)->list:  # Each broken link, anchor or picture, each id that stands twice, each file from another host
    "Follow every link inside the site without a browser"
    found = {p.name: Links(p.read_text(encoding='utf-8')) for p in sorted(docs.glob('*.html'))}
    problems, dead = [], {}
    for name, page in found.items():
        twice = sorted({i for i in page.ids if page.ids.count(i) > 1})
        problems += [f'{name}: the id {i} stands twice' for i in twice]
        problems += [f'{name}: loads {l} from another host' for l in page.loads if re.match(r'(https?:)?//', l)]
        for link in page.links + page.loads:
            if re.match(r'[a-z]+:|//', link): continue
            path, _, anchor = unquote(link).partition('#')
            path = path.split('?')[0] or name
            target = (docs/path/'index.html') if path.endswith('/') else docs/path
            if not target.exists(): dead.setdefault(link, []).append(name)
            elif anchor and target.name in found and anchor not in found[target.name].ids: dead.setdefault(link, []).append(name)
    return problems + [f"broken link {link} on {', '.join(on[:3])}{f' and {len(on) - 3} more' if len(on) > 3 else ''}" for link, on in sorted(dead.items())]

def finish(docs):
    "Make the rendered site complete; gives what is wrong"
    pages = {p: p.read_text(encoding='utf-8') for p in sorted(docs.glob('*.html'))}
    problems = set_formulas(pages)
    for path, text in pages.items(): path.write_text(mend(text), encoding='utf-8')
    cut_styles(docs)
    cut_icons(docs)
    return problems + check_links(docs)
