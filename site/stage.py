"""From notebooks to pages: nbdev's processing, then what smalldocs leaves open.

Reads `nbs/` and writes `_proc/`, whose files smalldocs renders.
"""
import ast
import base64
import html
import importlib
import inspect
import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

import chapters
from refs import Labels, labels_in, outside_code

image_types = 'image/png', 'image/jpeg'
root = Path(__file__).resolve().parent.parent


# nbdev's part

def _module_of(cell, default):
    "The module that a cell with `#| export` or `#| export sampling` goes to, or None"
    directives = getattr(cell, 'directives_', {})
    for word in 'export', 'exports':
        if word in directives:
            return directives[word].split()[0] if directives[word] else default
    return None


def _from_package():
    "The processor that gives each `show_doc(name)` cell its output"
    from nbdev import processors
    from nbdev.doclinks import _get_exps
    from nbdev.showdoc import show_doc

    class FromPackage(processors.Processor):
        "Documentation from the installed package, so that no chapter's code is run"
        def begin(self):
            cells = [getattr(c, 'directives_', {}) for c in self.nb.cells]
            named = [d['default_exp'] for d in cells if 'default_exp' in d]
            self.default = named[0] if named else None
            self.module = self.default

        def cell(self, cell):
            # nbdev puts the `show_doc` cells right behind the cell they are about
            self.module = _module_of(cell, self.default) or self.module
            if not processors._is_showdoc(cell):
                return
            name = re.search(r'^show_doc\(([\w.]+)', cell.source, re.M)[1]
            cell.metadata['module'] = self.module
            text = f'::: {{.api-entry}}\n{self.entry(name)}\n:::'
            cell.outputs = [output({'text/markdown': text})]

        def entry(self, name):
            "The reference of a name, with a link to its line"
            module = importlib.import_module(f'cell_diffusion.{self.module}')
            thing = eval(name, vars(module))
            lines = _get_exps(module.__name__.replace('.', '/') + '.py')
            text = plain(show_doc(thing)._repr_markdown_(), thing)
            return text.replace('#LNone', f'#L{lines.get(name, 1)}')

    return FromPackage


def _docs_class():
    "nbdev's processing for pages that show exported code and run no chapter"
    from nbdev import processors

    def rm_hidden(cell):
        "Remove hidden cells, and those that only name the module"
        if cell.cell_type != 'code':
            return
        if cell.directives_.keys() & {'hide', 'default_exp'}:
            del(cell['source'])

    class Docs(processors.FilterDefaults):
        swap = dict(exec_show_docs=_from_package(), rm_export=rm_hidden)
        left_out = 'mv_exports', 'add_fold'

        def base_procs(self):
            procs = [p for p in super().base_procs() if p.__name__ not in self.left_out]
            return [self.swap.get(p.__name__, p) for p in procs]

    return Docs


def plain(text, of):
    "A reference without the addresses of typer's options or the path of this checkout"
    params = inspect.signature(of).parameters.values() if callable(of) else []
    for option in [p.default for p in params if hasattr(p.default, 'help')]:
        default = '…' if option.default is ... else repr(option.default)
        helped = f'{default}: {option.help}' if option.help else default
        for name in repr(option), html.escape(repr(option)):
            # First in the signature, then in the comment
            text = text.replace(name, default, 1).replace(name, helped)

    # Types of this package by their names alone
    text = re.sub(r'(:|->|\[)cell_diffusion\.(?:\w+\.)*(\w+)', r'\1\2', text)
    return text.replace(f'{root}/', '')


def process(
    nbs,  # The folder of the notebooks
    proc,  # The folder to write, emptied first
):
    "Copy `nbs` to `proc`, with the notebooks as nbdev makes them for the documentation"
    from nbdev.quarto import refresh_quarto_yml
    from nbdev.serve_drv import exec_nb
    refresh_quarto_yml()
    shutil.rmtree(proc, ignore_errors=True)
    other = '*.ipynb', '.*', '_*', 'models', 'runs', '__pycache__'
    shutil.copytree(nbs, proc, ignore=shutil.ignore_patterns(*other))
    shutil.copy(nbs/'_quarto.yml', proc)
    docs = _docs_class()
    for nb in sorted(nbs.glob('*.ipynb')):
        exec_nb(nb, proc/nb.name, docs)


# The names of pages, and links between them

def page_names(proc):
    "The page that each source becomes: `{'03_process.ipynb': 'process'}`"
    sources = sorted([*proc.glob('*.ipynb'), *proc.glob('*.qmd')])
    names = {p.name: re.sub(r'^\d+[a-zA-Z]?_', '', p.stem) for p in sources}
    own = {'home.qmd': 'index', 'index.ipynb': 'overview'}
    return names | {name: page for name, page in own.items() if 'home.qmd' in names}


def target(
    file,  # A source, such as `03_process.ipynb`
    names,  # As `page_names` gives them
)->str:  # The file that smalldocs renders
    "A source by the name of its page"
    stem, ending = file.rsplit('.', 1)
    return f'{names.get(file, stem)}.{ending}'


def mend_links(
    text,  # Markdown or HTML
    names,  # As `page_names` gives them
    home,  # The address under which the site is published
):
    "Links to notebooks by the names of their pages, and absolute links made relative"
    # Back to the start leads to the landing page, to a section to the other one
    home_page = 'index.qmd' if 'home.qmd' in names else 'index.ipynb'

    def page(m):
        before, file = m.groups()
        to_section = text[m.end():m.end() + 1] == '#'
        if file == 'index.ipynb' and not to_section:
            return before + home_page
        return before + target(file, names)
    link = r'(\]\(|href=")(?:\./)?([\w-]+\.(?:ipynb|qmd))(?=[)#"? ])'
    text = re.sub(link, page, text)

    # nbdev links from a name in the text to its page on the published site
    return re.sub(re.escape(home.rstrip('/')) + r'/?(?=[\w#])', '', text)


# Pictures and tables

def _saved(im, **options):
    "A picture as the bytes of a WebP file"
    out = io.BytesIO()
    im.save(out, 'webp', method=4, **options)
    return out.getvalue()


def to_webp(
    data,  # A picture's bytes
    quality=86,  # Of what is stored with loss
)->bytes:  # WebP
    "Without loss where that is hardly larger (plots), else with a little (photographs)"
    im = Image.open(io.BytesIO(data))
    see_through = 'A' in im.getbands() and im.getextrema()[-1][0] < 255
    im = im.convert('RGBA' if see_through else 'RGB')
    lossy = _saved(im, quality=quality)
    exact = _saved(im, lossless=True, quality=50)
    return exact if len(exact) < 1.25*len(lossy) else lossy


def _runs(flags):
    "Where flags are true, as pairs `(first, last + 1)`"
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flags, [0]])))
    return [(int(a), int(b)) for a, b in edges.reshape(-1, 2)]


def _gap(white):
    "A white gap near the middle of a picture: its column, its first row and the next"
    h, w = white.shape
    wide = max(3, w//300)
    shifted = [np.roll(white, i - wide//2, 1) for i in range(wide)]
    white = np.logical_and.reduce(shifted)
    best = 0, 0, 0, 0
    for x in range(round(.42*w), round(.58*w)):
        for top, bottom in _runs(white[:, x]):
            best = max(best, (bottom - top, -abs(x - w/2), x, top))
    rows, _, x, top = best
    return x, top, top + rows


def _without_titles(white, x, top, bottom):
    "The rows of a gap without those where a title or a note goes over it between words"
    ink = ~white
    w = white.shape[1]
    reach = max(9, w//90)
    near = ink[:, x - reach:x].any(1) & ink[:, x:x + reach].any(1)
    runs = _runs(near[top:bottom])
    tall = [(a, b) for a, b in runs if b - a >= w//35]
    if not tall:
        return top, bottom
    above = [b for a, b in runs if b < tall[0][0]]
    below = [a for a, b in runs if a > tall[-1][1]]
    # Titles of single pictures begin at the left, one of all is in the middle
    last = top + below[0] - 1 if below else bottom
    if above and not ink[top:top + above[-1], :w//7].any():
        return top + above[-1] + 1, last
    return top, last


def _strip(im, width):
    "A title or a note that goes over both halves, no wider than one of them"
    ink = np.asarray(im).min(2) < 254
    if not ink.size or not ink.any():
        return None
    left, right = np.flatnonzero(ink.any(0))[[0, -1]]
    im = im.crop((max(0, left - 4), 0, right + 5, im.height))
    scale = min(1, width/im.width)
    return im.resize((round(scale*im.width), round(scale*im.height)), Image.LANCZOS)


def stacked(
    im,  # RGB
    wide=1.9,  # Pictures that are narrower, as a multiple of their height, stay
):
    "The halves of a wide picture below each other for a phone, or None without a gap"
    if im.width < wide*im.height or im.width < 480:
        return None
    white = np.asarray(im).min(2) > 253
    x, *rows = _gap(white)
    top, bottom = _without_titles(white, x, *rows)
    if bottom - top < .7*im.height:
        return None
    halves = im.crop((0, top, x, bottom)), im.crop((x, top, im.width, bottom))
    width = max(half.width for half in halves)
    title = _strip(im.crop((0, 0, im.width, top)), width)
    note = _strip(im.crop((0, bottom, *im.size)), width)
    parts = [p for p in (title, *halves, note) if p is not None]
    out = Image.new('RGB', (width, sum(p.height for p in parts) + 6), 'white')
    y = 0
    for p in parts:
        middle = 0 if p in halves else (width - p.width)//2
        out.paste(p, (middle, y))
        y += p.height + (6 if p is halves[0] else 0)
    return out


def shown_size(data):
    "Width and height of a picture on the page"
    picture = Image.open(io.BytesIO(data))
    # Of 72 or 100 pixels an inch, or twice that: `twice` in tools/run_notebooks.py
    twice = picture.info.get('dpi', (100, 100))[0] > 140
    return tuple(side//2 for side in picture.size) if twice else picture.size


class Pictures:
    "The pictures of one page as files"
    def __init__(self,
        folder,  # Where the files go
        page,  # The page's name, with which the names of files begin
    ):
        self.folder = folder
        self.page = page
        self.n = 0
        self.bare = []  # Names of pictures without an alternative text

    def add(self,
        data,  # A picture's bytes
        alt,  # What one sees, or None where nobody has written that yet
        size=None,  # Width and height on the page, by default its pixels
    ):
        "Store a picture and give its `<img>`, which loads when it comes into view"
        self.n += 1
        path = self.folder/f'{self.page}-{self.n}.webp'
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(to_webp(data))
        if alt is None:
            self.bare.append(path.name)

        picture = Image.open(path)
        w, h = size or picture.size
        words = '' if alt is None else f' alt="{html.escape(str(alt))}"'
        size = f'width="{w}" height="{h}"'
        how = 'loading="lazy" decoding="async" class="img-fluid figure-img"'
        img = f'<img src="figures/{path.name}"{words} {size} {how}>'
        return self.for_phones(picture.convert('RGB'), path, img)

    def for_phones(self, picture, path, img):
        "An `<img>` that shows the halves of a wide picture below each other on a phone"
        narrow = stacked(picture)
        if narrow is None:
            return img
        out = io.BytesIO()
        narrow.save(out, 'png')
        phone = path.with_name(f'{path.stem}-phone.webp')
        phone.write_bytes(to_webp(out.getvalue()))
        size = f'width="{narrow.width}" height="{narrow.height}"'
        source = f'<source media="(max-width: 575.98px)" {size}'
        return f'<picture>{source} srcset="figures/{phone.name}">{img}</picture>'


def smaller_pictures(text, proc):
    "Large PNG pictures that Markdown names, as WebP beside them"
    def change(m):
        before, name, after = m.groups()
        png = proc/name
        if not png.is_file() or png.stat().st_size < 30_000:
            return m[0]
        webp = png.with_suffix('.webp')
        if not webp.exists():
            webp.write_bytes(to_webp(png.read_bytes(), quality=80))
        return f'{before}{name[:-4]}.webp{after}'
    return re.sub(r'(!\[[^\]]*\]\()([\w/.-]+\.png)(\))', change, text)


def plain_table(text):
    "A pandas table, or what a terminal shows, in the site's own style"
    text = re.sub(r'<style scoped>.*?</style>', '', text, flags=re.S)

    terminal = r'<pre style="white-space:pre[^>]*>(.*?)</pre>'
    text = re.sub(terminal, _terminal, text, flags=re.S)
    ours = '<table class="dataframe table table-sm">'
    return text.replace('<table border="1" class="dataframe">', ours)


def _terminal(m):
    "What a terminal shows, without its colours; the style sheet needs its width"
    text = re.sub(r'(text-decoration-)?color: #[0-9a-f]{6}(; )?', '', m[1])
    lines = html.unescape(re.sub(r'<[^>]+>', '', text)).splitlines()
    columns = max(map(len, lines))
    return f'<pre class="terminal" style="--columns: {columns}">{text}</pre>'


# Cells

def text_of(value):
    "A notebook's text, which may be one string or a list of lines"
    return ''.join(value) if isinstance(value, list) else value


def output(data):
    "An output that shows `data`"
    return dict(output_type='display_data', metadata={}, data=data)


def options(source):
    "A code cell's `#|` options, and its code without those that are not for smalldocs"
    lines = source.split('\n')
    starts = [i for i, line in enumerate(lines) if not line.startswith('#|')]
    n = starts[0] if starts else len(lines)
    named = [l[2:].strip() for l in lines[:n] if ':' in l]
    try:
        opts = yaml.safe_load('\n'.join(named))
    except yaml.YAMLError:
        opts = {}
    hidden = re.compile(r'#\|\s*(label|fig-|tbl-|export)')
    rest = [l for l in lines[:n] if not hidden.match(l)]
    return (opts if isinstance(opts, dict) else {}), '\n'.join(rest + lines[n:])


def only_imports(code):
    "Whether a cell does nothing but import, quietly or where it can"
    try:
        tree = ast.parse(code)
    except SyntaxError:
        return False
    statements = [n for n in ast.walk(tree) if isinstance(n, ast.stmt)]
    leaves = [n for n in statements if not isinstance(n, (ast.With, ast.Try))]

    def is_import(n):
        quiet = ast.unparse(n).startswith('warnings.')
        return quiet or isinstance(n, (ast.Import, ast.ImportFrom))
    return bool(leaves) and all(map(is_import, leaves))


def _statements(code):
    "The imports of a cell, each once, as they are written"
    lines = code.split('\n')
    found = [n for n in ast.parse(code).body]
    return ['\n'.join(lines[n.lineno - 1:n.end_lineno]) for n in found]


def gather_imports(cells):
    "All cells that only import become one folded cell, where the first of them stood"
    def imports(c):
        is_code = c['cell_type'] == 'code' and not c['outputs'] and not _is_entry(c)
        return is_code and only_imports(options(c['source'])[1])
    mine = [c for c in cells if imports(c)]
    if not mine:
        return cells
    codes = [_statements(options(c['source'])[1]) for c in mine]
    unique = dict.fromkeys(statement for code in codes for statement in code)
    head = '#| code-fold: true\n#| code-summary: "What this page imports"\n'
    mine[0]['source'] = head + '\n'.join(unique)
    return [c for c in cells if c is mine[0] or not any(c is m for m in mine)]


def _several(value, n):
    "An option for `n` pictures: a list, or one text for all"
    return value if isinstance(value, list) and len(value) == n else [value]*n


def figure(
    inner,  # The HTML of pictures, a slider or a table
    label,  # Such as `fig-process-strip`, or None
    caption,  # HTML, or None
):
    "A figure with its caption, above a table or below a picture"
    if not label and not caption:
        return f'<div class="figure-plain">{inner}</div>'
    below = ''
    if caption:
        below = f'<figcaption class="figure-caption">{caption}</figcaption>'
    whole = below + inner if str(label).startswith('tbl-') else inner + below
    named = f' id="{label}"' if label else ''
    return f'<figure class="figure"{named}>{whole}</figure>'


# Pages

class Page:
    "One notebook or .qmd file on its way to a page"
    def __init__(self,
        path,  # In the processed folder
        names,  # As `page_names` gives them
        home,  # The published address
    ):
        self.path = path
        self.names = names
        self.home = home
        self.name = names[path.name]
        self.labels = Labels(path.name)
        self.pictures = Pictures(path.parent/'figures', self.name)

    def write(self):
        "Write the source that smalldocs renders"
        return self.notebook() if self.path.suffix == '.ipynb' else self.qmd()

    # Words

    def links(self, text):
        return mend_links(text, self.names, self.home)

    def words(self, text):
        "Markdown with numbers, references, links and small pictures"
        text = self.labels.resolve(text)

        # Private names have no entry to link to
        text = re.sub(r'\[(`_\w+`)\]\([^)]*#_\w+\)', r'\1', text)
        # A name that nbdev has linked within a link: one link is enough
        text = re.sub(r'\[([^\[\]]*)\[(`[^`\]]+`)\]\([^()]*\)([^\[\]]*)\]\(',
                      r'[\1\2\3](', text)

        def change(part):
            return smaller_pictures(self.links(part), self.path.parent)
        return outside_code(text, change)

    def caption(self, text, label):
        "A caption as HTML, with its number"
        if label in self.labels.text:
            text = f'{self.labels.name(label)}: {text or ""}'.rstrip(': ')
        if not text:
            return None
        text = self.labels.resolve(text).replace('{.quarto-xref}', '')
        return _inline_markdown().renderInline(self.links(text))

    # Outputs

    def images(self, outs, alts):
        "The `<img>` of each picture"
        imgs = []
        for o, alt in zip(outs, alts):
            kind = next(k for k in image_types if k in o['data'])
            raw = base64.b64decode(text_of(o['data'][kind]))
            imgs.append(self.pictures.add(raw, alt, shown_size(raw)))
        return imgs

    def outputs(self, outs, opts):
        "What a cell shows: no widget views, pictures as files, figures with captions"
        outs = [o for o in outs if not _is_widget_view(o)]
        pictures = [o for o in outs if _is_picture(o)]
        tables = [o for o in outs if 'text/html' in o.get('data', {})]
        main = (pictures or tables or [None])[0]

        alts = _several(opts.get('fig-alt'), len(pictures))
        imgs = self.images(pictures, alts)
        label = opts.get('label')
        caption = self.caption(_caption_text(opts), label)

        done = []
        for o in outs:
            if _is_picture(o) and o is not main:
                continue
            new = self.words_of_output(o)
            if o is main and (imgs or caption or label):
                inner = '\n'.join(imgs) if imgs else new['data']['text/html']
                new = output({'text/html': figure(inner, label, caption)})
            done.append(new)
        return done

    def words_of_output(self, o):
        "An output with tables in the site's style, and with links that work"
        data = o.get('data', {})
        if 'text/html' in data:
            text = self.links(text_of(data['text/html']))
            return output({'text/html': plain_table(text)})
        if 'text/markdown' in data:
            text = self.words(text_of(data['text/markdown']))
            return dict(o, data={'text/markdown': text})
        return o

    # Notebooks

    def number(self, cells):
        "Give every label of a notebook its number, in the order of the page"
        for c in cells:
            if c['cell_type'] == 'markdown':
                for label, title in labels_in(c['source']):
                    self.labels.add(label, title)
            elif c['cell_type'] == 'code':
                label = str(options(c['source'])[0].get('label'))
                if re.match('(fig|tbl)-', label):
                    self.labels.add(label)

    def change(self, c):
        "Bring a cell into the form in which the page shows it"
        if c['cell_type'] == 'markdown':
            c['source'] = self.words(c['source'])
        elif c['cell_type'] == 'code':
            opts, code = options(c['source'])
            c['source'] = code
            c['outputs'] = self.outputs(c['outputs'], opts)

    def notebook(self):
        "The chapter first, then the reference of each module that it writes to"
        nb = json.loads(self.path.read_text(encoding='utf-8'))
        for c in nb['cells']:
            c['source'] = text_of(c['source'])
        cells = [c for c in nb['cells'] if c['source'].strip()]
        cells = [c for c in cells if 'AUTOGENERATED' not in c['source']]
        is_overview = self.name == 'overview'
        cells = overview(cells) if is_overview else gather_imports(cells)
        self.number(cells)
        entries = [c for c in cells if _is_entry(c)]
        for c in cells:
            self.change(c)

        chapter = [c for c in cells if c not in entries]
        nb['cells'] = chapter + reference(entries)
        nb['metadata'].pop('widgets', None)
        page = self.path.with_name(f'{self.name}.ipynb')
        page.write_text(json.dumps(nb), encoding='utf-8')
        if page != self.path:
            self.path.unlink()

    def qmd(self):
        "A page of words, with what it includes"
        def include(m):
            return (self.path.parent/m[1]).read_text(encoding='utf-8')
        text = self.path.read_text(encoding='utf-8')
        text = re.sub(r'\{\{<\s*include\s+(\S+)\s*>\}\}', include, text)
        text = re.sub(r'\{\{<\s*chapters\s*>\}\}', lambda m: chapter_list(), text)
        for label, title in labels_in(text):
            self.labels.add(label, title)
        self.path.unlink()
        self.path.with_name(f'{self.name}.qmd').write_text(
            self.words(text), encoding='utf-8')


def chapter_list():
    "The chapters as the home page shows them, from `nbs/index.ipynb`"
    cells = chapters.cells(chapters.nbs/'index.ipynb')
    parts = [chapters.part(text_of(c['source']))[0] for c in cells]
    return ''.join(parts)


_only_home = re.compile(r'^::: \{\.(hero|start)\}\n.*?^:::\n', re.M | re.S)

def overview(cells):
    "The notebook of the README without what stands on the landing page"
    for c in cells:
        if c['cell_type'] == 'markdown':
            c['source'] = _only_home.sub('', chapters.part(c['source'])[1])
        elif c['cell_type'] == 'raw':
            title = 'title: Install, use, results'
            c['source'] = re.sub(r'(?m)^title: .*$', title, c['source'])
    return [c for c in cells if c['source'].strip()]


def _inline_markdown():
    "A renderer of captions, with formulas as smalldocs writes them"
    from markdown_it import MarkdownIt
    from mdit_py_plugins.dollarmath import dollarmath_plugin

    def formula(_, tokens, i, *args):
        tex = html.escape(tokens[i].content)
        return f'<span class="math inline">\\({tex}\\)</span>'
    md = MarkdownIt().use(dollarmath_plugin, allow_space=False)
    md.add_render_rule('math_inline', formula)
    return md


def _is_widget_view(o):
    return any('widget-view' in kind for kind in o.get('data', {}))


def _is_picture(o):
    data = o.get('data', {})
    return 'text/html' not in data and any(kind in data for kind in image_types)


def _is_entry(cell):
    "Whether a cell is an entry of the reference"
    return cell['cell_type'] == 'code' and 'show_doc(' in cell['source']


def _caption_text(opts):
    "The caption of a cell's figure or table, as Markdown"
    if str(opts.get('label')).startswith('tbl-'):
        return opts.get('tbl-cap')
    caption = opts.get('fig-cap')
    return ' '.join(caption) if isinstance(caption, list) else caption


def reference(entries):
    "The reference at the end of a chapter: a section for each module, as cells"
    by_module = {}
    for c in entries:
        by_module.setdefault(c['metadata'].get('module'), []).append(c)

    cells = []
    for module, mine in by_module.items():
        label = 'reference' if not cells else f"reference-{module.replace('.', '-')}"
        heading = f'## Reference: `cell_diffusion.{module}` {{#{label} .api}}'
        intro = 'What this chapter adds to the module. Each name links to its source.'
        text = f'{heading}\n\n{intro}'
        cells.append(dict(cell_type='markdown', metadata={}, source=text))
        cells += mine
    return cells


def _config(proc, names):
    "The site's configuration with the names of pages"
    def page(m):
        return target(m[0], names)
    path = proc/'_quarto.yml'
    text = path.read_text(encoding='utf-8')
    path.unlink()  # It may be a link to the one of the project
    path.write_text(re.sub(r'[\w-]+\.(ipynb|qmd)', page, text), encoding='utf-8')


def stage(
    proc,  # The folder of processed notebooks
    home,  # The published address
)->list:  # What is wrong: references without a label, labels that stand twice
    "Make every source in `proc` one that smalldocs renders fully"
    names = page_names(proc)
    _config(proc, names)
    problems = []
    bare = []
    for name in names:
        page = Page(proc/name, names, home)
        page.write()
        problems += page.labels.problems
        bare += page.pictures.bare
    if bare:
        print(f'  {len(bare)} pictures have no alt text yet: {" ".join(bare)}')
    return problems
