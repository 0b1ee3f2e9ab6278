"Files beside the pages: KaTeX, ONNX Runtime, the network, and the package's scripts"
import gzip
import hashlib
import importlib.metadata
import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

here = Path(__file__).resolve().parent
package = here.parent/'cell_diffusion'
modules = here/'node_modules'
scripts = 'ort.wasm.bundle.min.mjs', 'ort-wasm-simd-threaded.mjs'
wasm = 'ort-wasm-simd-threaded.wasm'
# The two browser pages run the first of these that the package ships
networks = 'blood64-inpaint-4', 'blood64-inpaint'
# The live figures of the chapters ask at any noise level, and a distilled one cannot
any_level = 'blood64-inpaint'
photographs = here.parent/'img'/'photographs.png'

no_npm = (
    'The site needs Node.js with npm (version 20 or later) for KaTeX and '
    'onnxruntime-web; there is no npm on the PATH')
no_export = (
    'The network could not be exported. It needs the extra `web`: '
    "pip install -e '.[site,web]'")


def _sha256(data):
    return hashlib.sha256(data).hexdigest()


def _says(stamp, text):
    "Whether a file holds this text"
    return stamp.is_file() and stamp.read_text() == text


def packages():
    "`npm ci`, unless what the lock asks for is already there"
    lock = _sha256((here/'package-lock.json').read_bytes())
    stamp = modules/'.lock-sha256'
    if _says(stamp, lock):
        return
    if not shutil.which('npm'):
        sys.exit(no_npm)
    command = ['npm', 'ci', '--ignore-scripts', '--no-audit', '--no-fund']
    done = subprocess.run(command, cwd=here, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f'npm ci failed in site/:\n{done.stderr[-2000:]}')
    stamp.write_text(lock)


def copy(source, target):
    "Copy a file, unless the same is already there"
    if target.is_file():
        old = target.stat()
        new = source.stat()
        if (old.st_size, old.st_mtime) == (new.st_size, new.st_mtime):
            return
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(source, target)


def pack(source, target):
    "A file in packed form, which the pages unpack"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(gzip.compress(source.read_bytes(), mtime=0))


def network():
    "The name of the network that the two browser pages run"
    return next(n for n in networks if (package/'weights'/n/'config.json').is_file())


def export(model, name, call):
    "A network as ONNX by a call of `web`, if its code or weights have changed"
    weights = package/'weights'/name
    sources = [*sorted(package.rglob('*.py')), *sorted(weights.rglob('*')), photographs]
    now = _sha256(b''.join(s.read_bytes() for s in sources if s.is_file()))
    stamp = model/'.sources-sha256'
    if _says(stamp, now) and any(model.glob('*.onnx')):
        return
    shutil.rmtree(model, ignore_errors=True)
    model.mkdir(parents=True)
    imports = 'from cell_diffusion.web import export_onnx, load, write_browser_files'
    code = f'{imports}; folder = {str(model)!r}; {call}'
    command = [sys.executable, '-c', code]
    done = subprocess.run(command, cwd=here.parent, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f'{no_export}:\n{done.stderr[-2000:]}')
    stamp.write_text(now)


def networks_of_pages(browser):
    "The network of the two pages, and that of the live figures where it is another"
    name = network()
    call = f'write_browser_files(folder, {name!r}, {str(photographs)!r})'
    export(browser/'model', name, call)
    if name == any_level:
        shutil.rmtree(browser/'live', ignore_errors=True)
    else:
        call = (f"model = load({any_level!r}, 'cpu', 'float32'); "
                "export_onnx(model, folder + '/network.onnx')")
        export(browser/'live', any_level, call)


def _folder_of(package):
    return Path(importlib.util.find_spec(package).origin).parent


def _smalldocs_licence():
    "The licence of smalldocs itself, and not of what it brings along"
    files = importlib.metadata.files('smalldocs')
    mine = [f for f in files if f.name == 'LICENSE' and 'vendor' not in f.parts]
    return mine[0].read_text(encoding='utf-8')


def licences(folder):
    "The licences of what the pages ship, as text: `licences.qmd` links to them"
    onnxruntime = _folder_of('onnxruntime')
    vendor = _folder_of('smalldocs')/'assets'/'vendor'
    files = {
        'katex': modules/'katex'/'LICENSE',
        'onnxruntime': onnxruntime/'LICENSE',
        'onnxruntime-notices': onnxruntime/'ThirdPartyNotices.txt',
    }
    for name in 'bootstrap', 'bootstrap-icons', 'bootswatch', 'fuse':
        files[name] = vendor/name/'LICENSE'
    for name, file in files.items():
        copy(file, folder/f'{name}.txt')
    (folder/'smalldocs.txt').write_text(_smalldocs_licence(), encoding='utf-8')


def make(nbs):
    "Bring the assets into `nbs`, beside the sources of the pages"
    for file in sorted((package/'browser').glob('*.[jc]s*')):
        copy(file, nbs/'browser'/file.name)
    runtime = modules/'onnxruntime-web'/'dist'
    for name in scripts:
        copy(runtime/name, nbs/'browser'/'ort'/name)
    pack(runtime/wasm, nbs/'browser'/'ort'/f'{wasm}.gz')
    katex = modules/'katex'/'dist'
    fonts = sorted((katex/'fonts').glob('*.woff2'))
    for file in [katex/'katex.min.css', katex/'katex.min.js', *fonts]:
        copy(file, nbs/'katex'/file.relative_to(katex))
    networks_of_pages(nbs/'browser')
    licences(nbs/'licences')
