"The builder of the published pages, without a browser: numbers and references, links, pictures; and what its sources must hold"
import ast, base64, io, json, re, sys
import pytest, yaml
from PIL import Image
from common import cells, chapters, module_of, nbs, root

sys.path.insert(0, str(root/'site'))
import assets, finish, refs, stage

names = {'03_process.ipynb': 'process', '04_schedules.ipynb': 'schedules', 'index.ipynb': 'index', 'glossary.qmd': 'glossary'}
home = 'https://example.org/course'

def numbered(text, *labels):
    found = refs.Labels('page')
    for l in labels or refs.labels_in(text): found.add(*([l] if isinstance(l, str) else l))
    return found.resolve(text), found.problems

def test_equations_are_numbered_in_order():
    text, problems = numbered('$$a$$ {#eq-one}\n\nand\n\n$$\nb\n+ c\n$$ {#eq-two}\n\nso @eq-two follows from [@eq-one], (-@eq-two).')
    assert not problems
    assert text.index('{#eq-one .equation}') < text.index('[(1)]') < text.index('{#eq-two .equation}') < text.index('[(2)]')
    assert 'so [Equation 2](#eq-two){.quarto-xref} follows from [Equation 1](#eq-one){.quarto-xref}, ([2](#eq-two){.quarto-xref}).' in text
    assert '$$\nb\n+ c\n$$' in text

def test_each_kind_counts_for_itself():
    text, _ = numbered('@fig-a @fig-b @tbl-c', 'fig-a', 'tbl-c', 'fig-b')
    assert [m for m in re.findall(r'\[(.*?)\]', text)] == ['Figure 1', 'Figure 2', 'Table 1']

def test_tables_and_sections():
    text, problems = numbered('## The race {#sec-race}\n\n| a |\n|---|\n| 1 |\n\n: What it took {#tbl-race}\n\nIn @sec-race, @tbl-race.')
    assert not problems and ': Table 1: What it took {#tbl-race}' in text and '[Section “The race”](#sec-race)' in text

def test_code_and_addresses_stay():
    text = '`@fig-a` and\n\n```python\nx @fig-a $$a$$ {#eq-z}\n```\n\nme@fig-a.org, @someone'
    assert numbered(text)[0] == text and not refs.labels_in(text)

def test_what_is_wrong_is_told():
    text, problems = numbered('see @fig-nowhere', 'fig-a', 'fig-a')
    assert text == 'see @fig-nowhere' and len(problems) == 2
    assert any('fig-nowhere' in p for p in problems) and any('twice' in p for p in problems)

def test_a_page_without_labels_is_left_alone():
    text = 'Costs $5, not $6.\n\n$$x$$\n\nDone.'
    assert numbered(text) == (text, [])

@pytest.mark.parametrize('old, new', [
    ('[a](03_process.ipynb)', '[a](process.ipynb)'), ('[a](03_process.ipynb#the-jump)', '[a](process.ipynb#the-jump)'), ('[a](./index.ipynb "x")', '[a](index.ipynb "x")'),
    ('<a href="04_schedules.ipynb">', '<a href="schedules.ipynb">'), ('[a](glossary.qmd)', '[a](glossary.qmd)'),
    (f'[`q`]({home}/process.html#q)', '[`q`](process.html#q)'), ('[a](https://example.com/03_process.ipynb)', '[a](https://example.com/03_process.ipynb)')])
def test_links(old, new): assert stage.mend_links(old, names, home) == new

def test_page_names(tmp_path):
    for n in '00_core.ipynb', 'cli.ipynb', '12_augmentation.ipynb', 'glossary.qmd': (tmp_path/n).touch()
    assert stage.page_names(tmp_path) == {'00_core.ipynb': 'core', 'cli.ipynb': 'cli', '12_augmentation.ipynb': 'augmentation', 'glossary.qmd': 'glossary'}

def png(colour, size=(40, 30)): out = io.BytesIO(); Image.new('RGB', size, colour).save(out, 'png'); return out.getvalue()

def page(tmp_path, source, outputs=()):
    "What becomes of a notebook with one code cell"
    nb = dict(nbformat=4, nbformat_minor=5, metadata={'widgets': {}}, cells=[dict(cell_type='code', metadata={}, source=source, outputs=list(outputs), execution_count=None)])
    (tmp_path/'03_process.ipynb').write_text(json.dumps(nb))
    p = stage.Page(tmp_path/'03_process.ipynb', names, home)
    p.write()
    return json.loads((tmp_path/'process.ipynb').read_text()), p

def shown(data): return dict(output_type='display_data', metadata={}, data=data)

def test_pictures_become_files(tmp_path):
    picture = shown({'image/png': base64.b64encode(png('red')).decode(), 'text/plain': '<Figure>'})
    nb, p = page(tmp_path, '#| label: fig-red\n#| fig-cap: "A red field, see @fig-red"\n#| fig-alt: "All is \'red\'"\nshow()', [picture])
    html = nb['cells'][0]['outputs'][0]['data']['text/html']
    assert '<figure class="figure" id="fig-red">' in html and 'Figure 1: A red field' in html and 'href="#fig-red"' in html
    assert 'alt="All is &#x27;red&#x27;"' in html and 'width="40" height="30"' in html and 'loading="lazy"' in html
    assert Image.open(tmp_path/'figures'/'process-1.webp').size == (40, 30)
    assert nb['cells'][0]['source'] == 'show()' and 'widgets' not in nb['metadata'] and not p.pictures.bare
    assert not (tmp_path/'03_process.ipynb').exists()

def test_several_pictures_make_one_figure(tmp_path):
    two = [shown({'image/png': base64.b64encode(png(c)).decode()}) for c in ('red', 'blue')]
    nb, p = page(tmp_path, '#| fig-cap: Two\n#| fig-alt: ["red", "blue"]\nshow()', two)
    (only,) = nb['cells'][0]['outputs']
    assert only['data']['text/html'].count('<img') == 2 and re.findall('alt="(.*?)"', only['data']['text/html']) == ['red', 'blue']

def test_a_missing_alt_text_is_noticed(tmp_path):
    nb, p = page(tmp_path, 'show()', [shown({'image/png': base64.b64encode(png('red')).decode()})])
    assert p.pictures.bare == ['process-1.webp'] and 'alt=' not in nb['cells'][0]['outputs'][0]['data']['text/html']

def test_widget_views_are_dropped_and_tables_plain(tmp_path):
    table = '<div><style scoped>x</style><table border="1" class="dataframe"><tr><td>1</td></tr></table></div>'
    nb, _ = page(tmp_path, 'df', [shown({'application/vnd.jupyter.widget-view+json': {}, 'text/plain': 'x'}), shown({'text/html': table})])
    (only,) = nb['cells'][0]['outputs']
    assert 'class="dataframe table table-sm"' in only['data']['text/html'] and 'scoped' not in only['data']['text/html'] and 'was' not in only

def test_sliders_get_captions(tmp_path):
    nb, _ = page(tmp_path, '#| label: fig-walk\n#| fig-cap: A walk\nFrameSlider()', [shown({'text/html': '<div>slider</div>', 'text/plain': 'x'})])
    assert nb['cells'][0]['outputs'][0]['data']['text/html'] == '<figure class="figure" id="fig-walk"><div>slider</div><figcaption class="figure-caption">Figure 1: A walk</figcaption></figure>'

def test_imports_are_folded(tmp_path):
    assert stage.only_imports('import a\nfrom b import c') and not stage.only_imports('import a\nx = 1') and not stage.only_imports('%magic')
    assert stage.only_imports('import warnings\nwith warnings.catch_warnings():\n    warnings.simplefilter("ignore")\n    import a')
    assert '#| code-fold: true' in page(tmp_path, 'import torch')[0]['cells'][0]['source']

def test_large_pictures_are_made_small(tmp_path):
    Image.effect_noise((300, 300), 80).save(tmp_path/'big.png')
    assert stage.smaller_pictures('![x](big.png) ![y](none.png)', tmp_path) == '![x](big.webp) ![y](none.png)'
    assert (tmp_path/'big.webp').stat().st_size < (tmp_path/'big.png').stat().st_size

def test_broken_links_are_found(tmp_path):
    (tmp_path/'a.html').write_text('<h1 id="top">x</h1><a href="b.html#there">1</a><a href="b.html#not">2</a><a href="c.html">3</a><a href="#top">4</a><a href="https://example.org">5</a><img src="no.webp"><script src="//cdn.example/x.js"></script>')
    (tmp_path/'b.html').write_text('<p id="there" ></p><p id="twice"></p><p id="twice"></p>')
    told = '\n'.join(finish.check_links(tmp_path))
    assert all(w in told for w in ('b.html#not', 'c.html', 'no.webp', 'another host', 'twice')) and told.count('\n') == 4

def test_no_cdn_is_left():
    page = {'p': '<head><link rel="stylesheet" href="https://cdn.jsdelivr.net/npm/katex@1/dist/katex.min.css"><script src="https://cdn.jsdelivr.net/npm/katex@1/dist/katex.min.js" defer></script></head>'}
    assert not re.search('cdn', finish._cdn.sub('', page['p']))

# What the sources must hold

def rows(text): return [re.sub(r'\s+', ' ', l) for l in text.splitlines() if l.startswith('| `')]

def test_one_table_of_symbols():
    "The table of the process chapter is, row by row, part of the page of symbols, and no other chapter has one that differs"
    mine = rows((nbs/'symbols.qmd').read_text(encoding='utf-8'))
    for path in chapters():
        for c in cells(path, 'markdown'):
            if '| in the code | symbol |' in c.source:
                assert not (bad := [r for r in rows(c.source) if r not in mine]), f'{path.name} and symbols.qmd differ: {bad}'

def test_glossary():
    text = (nbs/'glossary.qmd').read_text(encoding='utf-8')
    entries = re.findall(r'^(\S.*)\n:   (.*)$', text, re.M)
    assert len(entries) >= 40 and len({w for w, _ in entries}) == len(entries)
    assert all(re.search(r'\]\(\w+\.ipynb[^)]*\)$', told) for _, told in entries), 'each entry ends with a link to its chapter'

def test_every_page_has_its_place():
    "The sidebar names each notebook and each .qmd page once"
    text = (root/'_quarto.yml').read_text(encoding='utf-8')
    order = []
    for part in yaml.safe_load(text)['website']['sidebar']['contents']: order += [p['href'] if isinstance(p, dict) else p for p in part['contents']]
    assert sorted(order) == sorted(p.name for p in [*nbs.glob('*.ipynb'), *nbs.glob('*.qmd')])
    numbers = [n[:2] for n in order if n[:2].isdigit()]
    assert numbers == sorted(numbers)

def test_changes_are_included_not_copied(): assert '{{< include ../CHANGELOG.md >}}' in (nbs/'changes.qmd').read_text()

def test_lock_names_no_place():
    "npm's lock holds versions and checksums, and everything the site needs"
    text = (root/'site'/'package-lock.json').read_text()
    packages = json.loads(text)['packages']
    assert '"resolved"' not in text and all(p.get('integrity') for n, p in packages.items() if n)
    wanted = json.loads((root/'site'/'package.json').read_text())
    for n, v in {**wanted['dependencies'], **wanted['devDependencies']}.items(): assert packages[f'node_modules/{n}']['version'] == v

def test_cards_are_there():
    used = re.findall(r'src="(img/cards/[\w.]+)"', '\n'.join(c.source for c in cells(nbs/'index.ipynb', 'markdown')))
    assert len(used) >= 13 and all((root/u).stat().st_size < 40_000 for u in used)

@pytest.mark.parametrize('path', chapters(), ids=lambda p: p.stem)
def test_labels(path):
    "Labels are unique, figures with a label say what is seen, and references point to the same page"
    labels, problems, text = refs.Labels(path.name), [], []
    for c in cells(path):
        if c.cell_type == 'markdown': [labels.add(*l) for l in refs.labels_in(c.source)]
        elif c.cell_type == 'code':
            opts = stage.options(c.source)[0]
            if re.match('(fig|tbl)-', l := str(opts.get('label', ''))): labels.add(l)
            text.append(' '.join(str(opts.get(k) or '') for k in ('fig-cap', 'tbl-cap')))
    for s in [c.source for c in cells(path, 'markdown')] + text: labels.resolve(s)
    assert not labels.problems, '\n'.join(labels.problems)

@pytest.mark.parametrize('path', chapters(), ids=lambda p: p.stem)
def test_imports_stand_alone(path):
    "nbdev runs a cell that imports when it makes the documentation, where nothing else has been run: so it should do only that"
    for c in cells(path, 'code'):
        flags = re.findall(r'^#\|\s*(.+?)\s*$', c.source, re.M)
        code = re.sub(r'^#\|.*\n?', '', c.source, flags=re.M)
        if any(re.match(r'eval:\s*false|export', f) for f in flags) or re.match(r'\s*(# (check|solution)|[%!])', code): continue
        tree = ast.parse('\n'.join(l for l in code.splitlines() if not l.lstrip().startswith(('%', '!'))))
        if not any(isinstance(n, (ast.Import, ast.ImportFrom)) for n in ast.walk(tree)): continue
        rest = [n for n in tree.body if not isinstance(n, (ast.Import, ast.ImportFrom, ast.Try, ast.With, ast.If))]
        assert all(ast.unparse(n).startswith(('warnings.', 'os.environ')) for n in rest), f'{path.name}: a cell imports and does more:\n{c.source[:300]}'
