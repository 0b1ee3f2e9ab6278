"""From notebooks to pages: nbdev's own processing, then what the Python renderer smalldocs leaves open.
Reads nbs/, writes _proc/ (the folder that nbdev-docs uses too), ready for smalldocs."""
import ast, base64, html, importlib, inspect, io, json, os, re, shutil
from pathlib import Path
import yaml
from PIL import Image
from refs import Labels, labels_in, outside_code

image_types = 'image/png', 'image/jpeg'
root = Path(__file__).resolve().parent.parent

# nbdev's part

def _docs_class():
    "nbdev's processing with two changes: exported code stays visible, and what show_doc prints comes from the package, so that no chapter's code is run"
    from nbdev import processors as P
    from nbdev.doclinks import _get_exps
    from nbdev.showdoc import show_doc

    class FromPackage(P.Processor):
        "Give each `show_doc(name)` cell its output"
        def begin(self):
            name = [c.directives_['default_exp'] for c in self.nb.cells if 'default_exp' in getattr(c, 'directives_', {})]
            if not name: return
            module = importlib.import_module(f'cell_diffusion.{name[0]}')
            self.names, self.lines = vars(module), _get_exps(module.__name__.replace('.', '/') + '.py')
        def cell(self, cell):
            if not P._is_showdoc(cell): return
            found = re.search(r'^show_doc\(([\w.]+)', cell.source, re.M)[1]
            told = plain(show_doc(eval(found, self.names))._repr_markdown_(), eval(found, self.names)).replace('#LNone', f"#L{self.lines.get(found, 1)}")
            cell.outputs = [dict(output_type='display_data', metadata={}, data={'text/markdown': f'::: {{.api-entry}}\n{told}\n:::'})]

    def rm_hidden(cell):
        "Remove hidden cells, and those that only name the module"
        if cell.cell_type == 'code' and (cell.directives_.keys() & {'hide', 'exporti', 'default_exp'}): del(cell['source'])

    class Docs(P.FilterDefaults):
        swap = dict(exec_show_docs=FromPackage, rm_export=rm_hidden)
        def base_procs(self): return [self.swap.get(p.__name__, p) for p in super().base_procs() if p.__name__ not in ('mv_exports', 'add_fold')]
    return Docs

def plain(text, of):
    "The reference of a function or class without the addresses of typer's options and without the folder of this checkout"
    options = [p.default for p in inspect.signature(of).parameters.values() if hasattr(p.default, 'help')] if callable(of) else []
    for o in options:
        default = '…' if o.default is ... else repr(o.default)
        for name in (repr(o), html.escape(repr(o))): text = text.replace(name, default, 1).replace(name, f'{default}: {o.help}' if o.help else default)
    return text.replace(f'{root}/', '')

def process(
    nbs,  # The folder of the notebooks
    proc,  # The folder to write, emptied first
):
    "Copy all that `nbs` holds to `proc`, with the notebooks as nbdev makes them for the documentation"
    from nbdev.quarto import refresh_quarto_yml
    from nbdev.serve_drv import exec_nb
    refresh_quarto_yml()
    shutil.rmtree(proc, ignore_errors=True)
    shutil.copytree(nbs, proc, ignore=shutil.ignore_patterns('*.ipynb', '.*', '_*', 'models', 'runs', '__pycache__'))
    shutil.copy(nbs/'_quarto.yml', proc)
    docs = _docs_class()
    for nb in sorted(nbs.glob('*.ipynb')): exec_nb(nb, proc/nb.name, docs)

# The names of pages, and links between them

def page_names(proc):
    "The page that each source becomes: {'03_process.ipynb': 'process'}"
    return {p.name: re.sub(r'^\d+[a-zA-Z]?_', '', p.stem) for p in sorted([*proc.glob('*.ipynb'), *proc.glob('*.qmd')])}

def mend_links(
    text,  # Markdown or HTML
    names,  # As `page_names` gives them
    home,  # The address under which the site is published, as nbdev writes it into links
):
    "Links to notebooks by the names of their pages, and nbdev's absolute links to this site made relative"
    notebook = lambda m: m[1] + names.get(m[2], m[2].rsplit('.', 1)[0]) + ('.' + m[2].rsplit('.', 1)[1])
    text = re.sub(r'(\]\(|href=")(?:\./)?([\w-]+\.(?:ipynb|qmd))(?=[)#"? ])', notebook, text)
    return re.sub(re.escape(home.rstrip('/')) + r'/?(?=[\w#])', '', text)

# Pictures and tables

def to_webp(
    data,  # A picture's bytes
    quality=86,  # Of what is stored with loss
)->bytes:  # WebP without loss where that is hardly larger (plots), with a little loss where not (photographs)
    "The smaller good WebP of a picture"
    im = Image.open(io.BytesIO(data))
    im = im.convert('RGBA' if 'A' in im.getbands() and im.getextrema()[-1][0] < 255 else 'RGB')
    def saved(**kw): out = io.BytesIO(); im.save(out, 'webp', method=4, **kw); return out.getvalue()
    lossy, exact = saved(quality=quality), saved(lossless=True, quality=50)
    return exact if len(exact) < 1.25*len(lossy) else lossy

class Pictures:
    "Pictures of one page as files: `add` stores one and gives its <img>"
    def __init__(self, folder, page): self.folder, self.page, self.n, self.bare = folder, page, 0, []
    def add(self,
        data,  # Its bytes
        alt,  # What is seen, or None where nobody has written that yet
    ):
        "Store a picture, and say how a page shows it: loaded when it comes into view"
        self.n += 1
        path = self.folder/f'{self.page}-{self.n}.webp'
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(webp := to_webp(data))
        w, h = Image.open(io.BytesIO(webp)).size
        if alt is None: self.bare.append(path.name)
        told = '' if alt is None else f' alt="{html.escape(str(alt))}"'
        return f'<img src="figures/{path.name}"{told} width="{w}" height="{h}" loading="lazy" decoding="async" class="img-fluid figure-img">'

def smaller_pictures(text, proc):
    "Large PNG pictures that Markdown names, as WebP beside them"
    def change(m):
        png = proc/m[2]
        if not png.is_file() or png.stat().st_size < 30_000: return m[0]
        webp = png.with_suffix('.webp')
        if not webp.exists(): webp.write_bytes(to_webp(png.read_bytes(), quality=80))
        return f"{m[1]}{m[2][:-4]}.webp{m[3]}"
    return re.sub(r'(!\[[^\]]*\]\()([\w/.-]+\.png)(\))', change, text)

def plain_table(text):
    "A pandas table, or what a terminal shows, in the site's own style"
    text = re.sub(r'<style scoped>.*?</style>', '', text, flags=re.S)
    text = re.sub(r'<pre style="white-space:pre.*?</pre>', lambda m: re.sub(r'(text-decoration-)?color: #[0-9a-f]{6}(; )?', '', m[0]), text, flags=re.S)  # a terminal's colours
    return re.sub(r'<table border="1" class="dataframe">', '<table class="dataframe table table-sm">', text)

# Cells

def options(source):
    "A code cell's `#|` options, and its code without those that concern figures and labels"
    lines = source.split('\n')
    n = next((i for i, l in enumerate(lines) if not l.startswith('#|')), len(lines))
    try: opts = yaml.safe_load('\n'.join(l[2:].strip() for l in lines[:n])) or {}
    except yaml.YAMLError: opts = {}
    rest = [l for l in lines[:n] if not re.match(r'#\|\s*(label|fig-|tbl-)', l)]
    return (opts if isinstance(opts, dict) else {}), '\n'.join(rest + lines[n:])

def only_imports(code):
    "Whether a cell does nothing but import, quietly or where it can"
    try: tree = ast.parse(code)
    except SyntaxError: return False
    leaves = [n for n in ast.walk(tree) if isinstance(n, ast.stmt) and not isinstance(n, (ast.With, ast.Try))]
    return bool(leaves) and all(isinstance(n, (ast.Import, ast.ImportFrom)) or ast.unparse(n).startswith('warnings.') for n in leaves)

def _several(value, n):
    "An option for `n` pictures: a list, or one text for all"
    return value if isinstance(value, list) and len(value) == n else [value]*n

def figure(
    inner,  # The HTML of pictures, a slider or a table
    label,  # Such as `fig-process-strip`, or None
    caption,  # HTML, or None
):
    "A figure with its caption, above the table or below the picture"
    if not label and not caption: return f'<div class="figure-plain">{inner}</div>'
    told = f'<figcaption class="figure-caption">{caption}</figcaption>' if caption else ''
    whole = told + inner if str(label).startswith('tbl-') else inner + told
    return f'<figure class="figure"{f" id={chr(34)}{label}{chr(34)}" if label else ""}>{whole}</figure>'

class Page:
    "One notebook or .qmd file on its way to a page"
    def __init__(self,
        path,  # In the processed folder
        names,  # As `page_names` gives them
        home,  # The published address
    ):
        self.path, self.names, self.home = path, names, home
        self.labels, self.pictures = Labels(path.name), Pictures(path.parent/'figures', names[path.name])

    def words(self, text):
        "Markdown with numbers, references, links and small pictures"
        text = re.sub(r'\[(`_\w+`)\]\([^)]*#_\w+\)', r'\1', self.labels.resolve(text))  # private names have no entry to link to
        return outside_code(text, lambda s: smaller_pictures(mend_links(s, self.names, self.home), self.path.parent))

    def caption(self, text, label):
        "A caption as HTML, with its number"
        from markdown_it import MarkdownIt
        from mdit_py_plugins.dollarmath import dollarmath_plugin
        if label in self.labels.text: text = f'{self.labels.name(label)}: {text or ""}'.rstrip(': ')
        if not text: return None
        md = MarkdownIt().use(dollarmath_plugin, allow_space=False, renderer=lambda s, _: html.escape(s))
        md.add_render_rule('math_inline', lambda _, ts, i, *a: f'<span class="math inline">\\({html.escape(ts[i].content)}\\)</span>')
        links = re.sub(r'\{\.quarto-xref\}', '', self.labels.resolve(text))
        return md.renderInline(mend_links(links, self.names, self.home))

    def outputs(self, outs, opts):
        "What a cell shows: widget views dropped, pictures as files, figures with captions"
        outs = [o for o in outs if not any('widget-view' in k for k in o.get('data', {}))]
        joined = lambda v: ''.join(v) if isinstance(v, list) else v
        pics = [o for o in outs if any(k in image_types for k in o.get('data', {})) and 'text/html' not in o['data']]
        alts, label = _several(opts.get('fig-alt'), len(pics)), opts.get('label')
        imgs = [self.pictures.add(base64.b64decode(joined(next(o['data'][k] for k in image_types if k in o['data']))), alt) for o, alt in zip(pics, alts)]
        caps = opts.get('fig-cap')
        cap = opts.get('tbl-cap') if str(label).startswith('tbl-') else ' '.join(caps) if isinstance(caps, list) else caps
        tables = [o for o in outs if 'text/html' in o.get('data', {})]
        first, done = (pics or tables or [None])[0], []
        for o in outs:
            if o in pics and o is not first: continue
            if o.get('data') and 'text/html' in o['data']: o = html_output(plain_table(mend_links(joined(o['data']['text/html']), self.names, self.home)), o)
            if o.get('data') and 'text/markdown' in o['data']: o = dict(o, data={'text/markdown': self.words(joined(o['data']['text/markdown']))})
            if o is first or (first in tables and tables and o.get('was') is first):
                inner = '\n'.join(imgs) if imgs else o['data']['text/html']
                o = html_output(figure(inner, label, self.caption(cap, label)), o) if imgs or cap or label else o
            done.append({k: v for k, v in o.items() if k != 'was'})
        return done

    def notebook(self):
        "Write the notebook as a page's source: chapter first, then the reference of what it exports"
        nb = json.loads(self.path.read_text(encoding='utf-8'))
        text = lambda c: ''.join(c['source'])
        cells = [c for c in nb['cells'] if text(c).strip() and 'AUTOGENERATED' not in text(c)]
        for c in cells:
            if c['cell_type'] == 'markdown': [self.labels.add(*l) for l in labels_in(text(c))]
            elif c['cell_type'] == 'code' and (l := options(text(c))[0].get('label')) and re.match('(fig|tbl)-', l): self.labels.add(l)
        api = [c for c in cells if c['cell_type'] == 'code' and 'show_doc(' in text(c)]
        for c in cells:
            if c['cell_type'] == 'markdown': c['source'] = self.words(text(c))
            elif c['cell_type'] == 'code':
                opts, c['source'] = options(text(c))
                if only_imports(c['source']) and not c['outputs']: c['source'] = f'#| code-fold: true\n#| code-summary: "Imports"\n{c["source"]}'
                c['outputs'] = self.outputs(c['outputs'], opts)
        module = re.sub(r'\W', '', self.names[self.path.name])
        heading = dict(cell_type='markdown', metadata={}, source=f'## Reference: `cell_diffusion.{module}` {{#reference .api}}\n\nWhat this chapter adds to the library. Each name links to its source.')
        nb['cells'] = [c for c in cells if c not in api] + ([heading] + api if api else [])
        nb['metadata'].pop('widgets', None)
        self.path.with_name(self.names[self.path.name] + '.ipynb').write_text(json.dumps(nb), encoding='utf-8')
        if self.path.stem != self.names[self.path.name]: self.path.unlink()

    def qmd(self):
        "Write a .qmd page's source, with what it includes"
        text = self.path.read_text(encoding='utf-8')
        include = lambda m: (self.path.parent/m[1]).read_text(encoding='utf-8')
        text = re.sub(r'\{\{<\s*include\s+(\S+)\s*>\}\}', include, text)
        for l in labels_in(text): self.labels.add(*l)
        self.path.write_text(self.words(text), encoding='utf-8')

    def write(self): return self.notebook() if self.path.suffix == '.ipynb' else self.qmd()

def html_output(text, old):
    "An output that shows only HTML, and remembers which it was"
    return dict(output_type='display_data', metadata={}, data={'text/html': text}, was=old.get('was', old))

def _config(proc, names):
    "The site's configuration with the names of pages"
    path = proc/'_quarto.yml'
    text = path.read_text(encoding='utf-8')
    path.unlink()
    path.write_text(re.sub(r'[\w-]+\.ipynb', lambda m: names.get(m[0], m[0][:-6]) + '.ipynb', text), encoding='utf-8')

def stage(
    proc,  # The folder of processed notebooks
    home,  # The published address
)->list:  # What is wrong: references to labels that are not there, labels that stand twice
    "Make every source in `proc` one that smalldocs renders fully"
    names, problems, bare = page_names(proc), [], []
    _config(proc, names)
    for name in names:
        page = Page(proc/name, names, home)
        page.write()
        problems += page.labels.problems
        bare += page.pictures.bare
    if bare: print(f'  {len(bare)} pictures have no alt text yet: {" ".join(bare)}')
    return problems
