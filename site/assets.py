"Files that the pages need beside them and git does not hold: npm's packages, KaTeX, onnxruntime-web and the exported network"
import hashlib, importlib.metadata, importlib.util, shutil, subprocess, sys
from pathlib import Path

here = Path(__file__).resolve().parent
modules = here/'node_modules'
ort = 'ort.wasm.bundle.min.mjs', 'ort-wasm-simd-threaded.mjs', 'ort-wasm-simd-threaded.wasm'
network = 'blood64-inpaint'

def packages():
    "`npm ci`, unless what the lock asks for is already there"
    lock = hashlib.sha256((here/'package-lock.json').read_bytes()).hexdigest()
    stamp = modules/'.lock-sha256'
    if stamp.is_file() and stamp.read_text() == lock: return
    if not shutil.which('npm'): sys.exit('The site needs Node.js with npm (version 20 or later) for KaTeX and onnxruntime-web; there is no npm on the PATH')
    done = subprocess.run(['npm', 'ci', '--ignore-scripts', '--no-audit', '--no-fund'], cwd=here, capture_output=True, text=True)
    if done.returncode: sys.exit(f'npm ci failed in site/:\n{done.stderr[-2000:]}')
    stamp.write_text(lock)

def copy(source, target):
    "Copy a file, unless the same lies there already"
    if target.is_file() and (target.stat().st_size, target.stat().st_mtime) == (source.stat().st_size, source.stat().st_mtime): return
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(source, target)

def export(model):
    "The network of the two browser pages as ONNX, written anew when its code or its weights have changed"
    package = here.parent/'cell_diffusion'
    sources = [*sorted(package.glob('*.py')), *sorted((package/'weights'/network).iterdir())]
    now = hashlib.sha256(b''.join(s.read_bytes() for s in sources)).hexdigest()
    stamp = model/'.sources-sha256'
    if stamp.is_file() and stamp.read_text() == now and any(model.glob('*.onnx')): return
    code = f'from cell_diffusion.web import write_browser_files as w; w({str(model)!r}, {network!r})'
    done = subprocess.run([sys.executable, '-c', code], cwd=here.parent, capture_output=True, text=True)
    if done.returncode: sys.exit(f"The network could not be exported (it needs the extra `web`: pip install -e '.[site,web]'):\n{done.stderr[-2000:]}")
    stamp.write_text(now)

def licences(folder):
    "The licences of what the pages ship, as text: `licences.qmd` links to them"
    of = lambda package: Path(importlib.util.find_spec(package).origin).parent
    files = {'katex': modules/'katex'/'LICENSE', 'onnxruntime': of('onnxruntime')/'LICENSE', 'onnxruntime-notices': of('onnxruntime')/'ThirdPartyNotices.txt',
             **{name: of('smalldocs')/'assets'/'vendor'/name/'LICENSE' for name in ('bootstrap', 'bootstrap-icons', 'bootswatch', 'fuse')}}
    for name, file in files.items(): copy(file, folder/f'{name}.txt')
    (folder/'smalldocs.txt').write_text(next(f for f in importlib.metadata.files('smalldocs') if f.name == 'LICENSE' and 'vendor' not in f.parts).read_text(encoding='utf-8'), encoding='utf-8')

def make(nbs):
    "Bring the assets into `nbs`, where both builders find them"
    for f in ort: copy(modules/'onnxruntime-web'/'dist'/f, nbs/'browser'/'ort'/f)
    katex = modules/'katex'/'dist'
    for f in [katex/'katex.min.css', katex/'katex.min.js', *sorted((katex/'fonts').glob('*.woff2'))]: copy(f, nbs/'katex'/f.relative_to(katex))
    export(nbs/'browser'/'model')
    licences(nbs/'licences')
