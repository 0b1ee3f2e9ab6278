"What every page has beside its text: head, first lines of a chapter, folds, and search"
import html
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import quote

from PIL import Image, ImageDraw, ImageFont

import chapters

repo = 'https://github.com/cell-diffusion/cell_diffusion'
colab = repo.replace('//github.com', '//colab.research.google.com/github')
card_size = 1200, 630
usual_picture = 'img/samples64.png'


# The head: what a shared link shows, and where the page really is

def _description(text):
    found = re.search(r'<meta name="description" content="([^"]*)"', text)
    return found[1] if found else ''


def _title(text):
    return re.search(r'<title>(.*?)(?: – cell_diffusion)?</title>', text, re.S)[1]


def head(text, name, home):
    "A page with the tags of a shared link, and with its address on the published site"
    text = re.sub(r'<meta (?:property="og:|name="twitter:)[^>]*>', '', text)
    if name == '404':
        # The host shows it for addresses of any depth
        base = json.dumps(re.sub(r'^https?://[^/]+', '', home) + '/')
        script = (f'<meta name="robots" content="noindex"><script>var root = {base};'
                  'if (location.pathname.startsWith(root)) document.write('
                  '\'<base href="\' + root + \'">\')</script>')
        return text.replace('<meta charset="utf-8">', f'<meta charset="utf-8">{script}')
    address = f'{home}/' if name == 'index' else f'{home}/{name}.html'
    words = _description(text)
    picture = f'{home}/cards/{name}.jpg'
    width, height = card_size
    tags = {
        'og:type': 'website' if name == 'index' else 'article',
        'og:site_name': 'cell_diffusion', 'og:title': _title(text),
        'og:description': words, 'og:url': address, 'og:image': picture,
        'og:image:width': width, 'og:image:height': height,
        'og:image:alt': 'A picture from this page'}
    lines = [f'<link rel="canonical" href="{address}">']
    lines += [f'<meta property="{k}" content="{v}">' for k, v in tags.items()]
    cards = dict(card='summary_large_image', title=_title(text), description=words,
                 image=picture)
    lines += [f'<meta name="twitter:{k}" content="{v}">' for k, v in cards.items()]
    return text.replace('</title>', '</title>' + ''.join(lines), 1)


def _font(size, bold=False):
    from matplotlib.font_manager import FontProperties, findfont
    weight = 'bold' if bold else 'normal'
    found = findfont(FontProperties(family='DejaVu Sans', weight=weight))
    return ImageFont.truetype(found, size)


def _wrapped(words, font, width):
    "Words in lines that are not wider"
    lines = ['']
    for word in words.split():
        longer = f'{lines[-1]} {word}'.strip()
        if font.getlength(longer) > width and lines[-1]:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def landscape(title, words, picture):
    "The picture that a shared link shows: title and first line beside a figure"
    width, height = card_size
    card = Image.new('RGB', card_size, '#fffefc')
    shown = Image.open(picture).convert('RGB')
    shown.thumbnail((600, 500), Image.LANCZOS)
    scale = min(600/shown.width, 500/shown.height)
    shown = shown.resize((round(scale*shown.width), round(scale*shown.height)))
    card.paste(shown, (width - shown.width - 40, (height - shown.height)//2))

    room = width - shown.width - 130
    draw = ImageDraw.Draw(card)
    draw.text((50, 50), 'cell_diffusion', '#75308a', _font(26, bold=True))
    y = 130
    sizes = [(title, 48, True, '#26222b'), (words, 25, False, '#625a6b')]
    for text, size, bold, colour in sizes:
        font = _font(size, bold)
        for line in _wrapped(html.unescape(text), font, room)[:7]:
            draw.text((50, y), line, colour, font)
            y += round(1.3*size)
        y += 26
    return card


def _picture_of(name, found, docs):
    "The file of a page's picture"
    chapter = found.get(name)
    named = docs/(chapter.picture if chapter and chapter.picture else usual_picture)
    webp = named.with_suffix('.webp')
    return named if named.is_file() else webp


def shared_cards(pages, found, docs):
    "A landscape picture for every page"
    folder = docs/'cards'
    folder.mkdir(exist_ok=True)
    for path, text in pages.items():
        if path.stem != '404':
            picture = _picture_of(path.stem, found, docs)
            card = landscape(_title(text), _description(text), picture)
            card.save(folder/f'{path.stem}.jpg', quality=82, optimize=True)


# The first lines of a chapter

def _link(href, words, **more):
    extra = ''.join(f' {k}="{v}"' for k, v in more.items())
    return f'<a href="{href}"{extra}>{words}</a>'


def _report(chapter):
    where = quote(f'{chapter.title}: ')
    return f'{repo}/issues/new?template=chapter.yml&amp;where={where}'


def begin(text, name, chapter):
    "A page of a notebook with picture, aim, time, and what one can do with it"
    file = chapter.file
    path = f'blob/main/nbs/{file}'
    links = [
        _link(f'notebooks/{file}', 'Download the notebook', download=file),
        _link(f'{colab}/{path}', 'Open in Colab'),
        _link(f'{repo}/{path}', 'View on GitHub'),
        _link(_report(chapter), 'Report a mistake')]
    picture = ''
    if chapter.picture:
        picture = (f'<img src="{chapter.picture}" width="400" height="240" '
                   f'alt="{chapter.alt}">')
    time = chapter.time
    if time[0].isdigit():
        time = time.replace(', core', ' to read, core') if 'core' in time \
            else f'{time} to read'
    block = (
        f'<div class="chapter-head">{picture}<div><p class="aim"><strong>After this '
        f'page you can</strong> {html.escape(chapter.goal, quote=False)}.</p>'
        f'<p class="time">{time}</p><p class="chapter-links">{" ".join(links)}</p>'
        '</div></div>')
    badge = r'<p><a href="https://colab[^"]*"><img alt="Open in Colab"[^>]*></a></p>'
    text = re.sub(badge, '', text, count=1)
    end = '</header>'
    at = text.index(end, text.index('id="title-block-header"')) + len(end)
    return text[:at] + block + text[at:]


# Optional sections

def _plain(text):
    return html.unescape(re.sub(r'<[^>]+>', '', text)).strip()


def mark_optional(text, titles):
    "Marks at the headings of optional sections; gives titles that no heading has"
    wanted = {t.replace('`', '') for t in titles}
    missing = set(wanted)
    marked = []

    def mark(m):
        title = _plain(m[3])
        if title not in wanted:
            return m[0]
        missing.discard(title)
        marked.append(re.search('data-anchor-id="([^"]+)"', m[1])[1])
        return f'{m[1]}{m[3]} <span class="optional">optional</span>{m[4]}'
    heading = r'(<h([23]) class="anchored"[^>]*>)(.*?)(</h\2>)'
    text = re.sub(heading, mark, text, flags=re.S)
    for id in marked:
        link = re.compile(rf'(<a href="#{re.escape(id)}"[^>]*class="nav-link)')
        text = link.sub(r'\1 skip-it', text)
    return text, sorted(missing)


# The reference, folded

_reference = re.compile(
    r'(<section id="reference[^"]*" class="level2 api">\s*<h2[^>]*>.*?</h2>\s*)'
    r'<p>.*?</p>(.*?)</section>', re.S)


def fold_reference(text):
    "The reference of each module behind a line that says how many names it holds"
    def fold(m):
        n = m[2].count('class="api-entry"')
        names = 'name' if n == 1 else 'names'
        summary = (f'What this page adds to the module: {n} {names}, each with its '
                   'source')
        return (f'{m[1]}<details class="api-fold"><summary>{summary}</summary>{m[2]}'
                '</details></section>')
    return _reference.sub(fold, text)


# Search

class Sections(HTMLParser):
    "The sections of a page: what they say, and apart from it their code and outputs"
    breaks = 'p', 'li', 'td', 'th', 'dd', 'dt', 'pre', 'div', 'summary', 'figcaption'
    silent = 'script', 'style', 'nav', 'button', 'math'

    def __init__(self, text):
        super().__init__()
        self.found = [dict(id='', section='', text='', code='')]
        self.quiet = 0
        self.code = 0
        self.heading = False
        self.term = False
        self.feed(text[text.index('<main'):text.index('</main>')])

    def _begin(self, id):
        self.found.append(dict(id=id, section='', text='', code=''))
        self.heading = True

    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        self.quiet += tag in self.silent
        self.code += tag == 'pre'
        if tag in ('h2', 'h3') and a.get('data-anchor-id'):
            self._begin(a['data-anchor-id'])
        if tag == 'dt' and a.get('id'):
            self._begin(a['id'])
        if tag in self.breaks:
            self.handle_data(' ')

    def handle_endtag(self, tag):
        self.quiet -= tag in self.silent
        self.code -= tag == 'pre'
        if tag in ('h2', 'h3', 'dt'):
            self.heading = False

    def handle_data(self, data):
        if self.quiet:
            return
        place = 'section' if self.heading else 'code' if self.code else 'text'
        self.found[-1][place] += data


def name_terms(text):
    "Addresses for the words of the glossary, so that search leads to them"
    def named(m):
        slug = re.sub(r'[^a-z0-9]+', '-', _plain(m[1]).lower()).strip('-')
        return f'<dt id="word-{slug}">{m[1]}</dt>'
    return re.sub(r'<dt>(.*?)</dt>', named, text)


def search_entries(name, text):
    "What the search knows of a page, a section each: words first, code apart"
    title = html.unescape(_title(text))
    out = []
    for s in Sections(text).found:
        href = f'{name}.html' + (f"#{s['id']}" if s['id'] else '')
        words = {k: ' '.join(s[k].split()) for k in ('section', 'text', 'code')}
        words['section'] = words['section'].removesuffix(' optional')
        if words['text'] or words['code']:
            kind = 'word' if s['id'].startswith('word-') else ''
            out.append(dict(href=href, title=title, kind=kind, **words))
    return out


def write_search(pages, docs):
    entries = [e for path, text in pages.items() if path.stem != '404'
               for e in search_entries(path.stem, text)]
    text = json.dumps(entries, ensure_ascii=False)
    (docs/'search.json').write_text(text, encoding='utf-8')


# All of it

def complete(pages, docs, home, nbs=chapters.nbs):
    "Change pages, from path to HTML, in place; gives what is wrong"
    import shutil
    found = {}
    for file, chapter in chapters.chapters(nbs).items():
        found[re.sub(r'^\d+[a-zA-Z]?_', '', Path(file).stem)] = chapter
    optional = chapters.optional()
    problems = []
    for path, text in pages.items():
        name = path.stem
        chapter = found.get(name)
        if chapter:
            text = begin(text, name, chapter)
            target = docs/'notebooks'/chapter.file
            target.parent.mkdir(exist_ok=True)
            shutil.copy(nbs/chapter.file, target)
            text, missing = mark_optional(text, optional.get(chapter.file, ()))
            problems += [f'{name}.html has no section {m!r}: see site/optional.yml'
                         for m in missing]
        text = fold_reference(text)
        if name == 'glossary':
            text = name_terms(text)
        pages[path] = head(text, name, home)
    shared_cards(pages, found, docs)
    write_search(pages, docs)
    sitemap = docs/'sitemap.xml'
    places = sitemap.read_text(encoding='utf-8')
    lost = r'\s*<url>\s*<loc>[^<]*/404\.html</loc>.*?</url>'
    sitemap.write_text(re.sub(lost, '', places, flags=re.S), encoding='utf-8')
    robots = f'User-agent: *\nAllow: /\nSitemap: {home}/sitemap.xml\n'
    (docs/'robots.txt').write_text(robots, encoding='utf-8')
    return problems
