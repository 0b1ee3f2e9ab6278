"Downloads from a small server of our own: good files, wrong ones, and every failure"
import errno, hashlib, http.server, io, threading, zipfile
from collections import namedtuple
from dataclasses import replace
import numpy as np, pytest
from PIL import Image
from cell_diffusion import sources
from cell_diffusion.data import load_cells
from cell_diffusion.simulation import blood_classes, jurkat_phases
from cell_diffusion.sources import download

def png(seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, 'png')
    return out.getvalue()

def zipped(files):
    out = io.BytesIO()
    with zipfile.ZipFile(out, 'w') as z:
        for name, content in files.items():
            z.writestr(name, content)
    return out.getvalue()

def pbc_zip(classes=blood_classes):
    "A zip inside a zip, with what operating systems add"
    root = 'PBC_dataset_normal_DIB'
    inner = {f'{root}/ig/.DS_Store': b'x', f'__MACOSX/{root}/ig/._ig_0.png': b'x'}
    for i, c in enumerate(classes):
        for j in range(2):
            inner[f'{root}/{c}/{c}_{j}.png'] = png(10*i + j)
    return zipped({f'snkd93bnjr-1/{root}.zip': zipped(inner)})

def jurkat_zip():
    grey = io.BytesIO()
    Image.new('L', (40, 40), 9).save(grey, 'jpeg')
    inner = {}
    for phase in jurkat_phases:
        for code in ('Ch3', 'Ch4', 'Ch6'):
            inner[f'CellCycle/{phase}/1_{code}.ome.jpg'] = grey.getvalue()
    return zipped({'CellCycle.zip': zipped(inner)})

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked += 1
        if self.path not in self.server.files: return self.send_error(404)
        body, sent = self.server.files[self.path]
        self.send_response(200)
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body[:sent])

    def log_message(self, *args): pass

@pytest.fixture
def server():
    "Its `files` are sent up to a number of bytes; `asked` counts the requests"
    s = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    s.files, s.asked = {}, 0
    s.url = f'http://127.0.0.1:{s.server_port}'
    thread = threading.Thread(target=s.serve_forever, kwargs=dict(poll_interval=.02))
    thread.start()
    yield s
    s.shutdown()
    thread.join()
    s.server_close()

@pytest.fixture(autouse=True)
def apart(tmp_path, monkeypatch):
    "A cache and a home of the test's own"
    monkeypatch.delenv('CELL_DIFFUSION_DATA', raising=False)
    monkeypatch.setenv('CELL_DIFFUSION_CACHE', str(tmp_path/'cache'))
    monkeypatch.setenv('HOME', str(tmp_path/'home'))
    monkeypatch.setenv('NO_PROXY', '127.0.0.1')

def left(folder):
    "Names of the files at or below a folder"
    if not folder.exists(): return []
    return sorted(p.name for p in folder.rglob('*') if p.is_file())

def get(server, folder, body, sent=None, source='pbc', **kwargs):
    "Download `body`, of which the server sends the first `sent` bytes"
    server.files['/cells.zip'] = body, len(body) if sent is None else sent
    url = server.url + '/cells.zip'
    return download(source, folder, url=url, progress=False, **kwargs)

# ---- what should work

def test_good_file(server, tmp_path):
    body = pbc_zip()
    checksum = 'sha256:' + hashlib.sha256(body).hexdigest()
    folder = get(server, tmp_path/'d', body, checksum=checksum)
    assert len(left(folder)) == 16, 'images only: no archive, no .DS_Store'
    assert left(folder)[0] == 'basophil_0.png'
    assert [p.name for p in folder.iterdir()] == ['PBC_dataset_normal_DIB']
    assert load_cells('pbc', folder, size=8).counts == {c: 2 for c in blood_classes}
    get(server, tmp_path/'d', body)
    assert server.asked == 1, 'what is there is not fetched again'

def test_jurkat(server, tmp_path):
    folder = get(server, tmp_path/'d', jurkat_zip(), source='jurkat')
    cells = load_cells('jurkat', folder, size=40, channels='dna')
    assert cells.images.shape == (7, 1, 40, 40)

def test_loading_downloads_by_itself(server, tmp_path, monkeypatch):
    body = pbc_zip()
    server.files['/cells.zip'] = body, len(body)
    url = server.url + '/cells.zip'
    here = replace(sources.origins['pbc'], url=url, gigabytes=.001)
    monkeypatch.setitem(sources.origins, 'pbc', here)
    for _ in range(2):
        assert len(load_cells('pbc', size=8)) == 16
    assert server.asked == 1
    assert (tmp_path/'cache'/'pbc'/'PBC_dataset_normal_DIB').is_dir()

def test_progress_bar(server, tmp_path, capsys):
    server.files['/cells.zip'] = pbc_zip(), 10**6
    download('pbc', tmp_path/'d', url=server.url + '/cells.zip')
    out = capsys.readouterr()
    assert '100%' in out.err and 'unpacking' in out.err
    assert '16 files in' in out.out and 'CC BY 4.0' in out.out

def test_bloodmnist(server, tmp_path, monkeypatch):
    import medmnist
    arrays = {}
    for name, n in dict(train=16, val=8, test=8).items():
        arrays[f'{name}_images'] = np.zeros((n, 28, 28, 3), np.uint8)
        arrays[f'{name}_labels'] = (np.arange(n) % 8)[:, None]
    file = io.BytesIO()
    np.savez(file, **arrays)
    server.files['/b.npz'] = file.getvalue(), 10**9
    monkeypatch.setitem(medmnist.INFO['bloodmnist'], 'url', server.url + '/b.npz')
    with pytest.raises(ValueError, match='hash'):
        load_cells('bloodmnist', size=28)
    assert left(tmp_path) == []
    md5 = hashlib.md5(file.getvalue()).hexdigest()
    monkeypatch.setitem(medmnist.INFO['bloodmnist'], 'MD5', md5)
    assert len(load_cells('bloodmnist', size=28)) == 32
    assert left(tmp_path/'cache'/'bloodmnist') == ['bloodmnist.npz']

# ---- what the server may do wrong

def test_wrong_checksum(server, tmp_path):
    with pytest.raises(ValueError, match='not what was expected.*hash'):
        get(server, tmp_path/'d', pbc_zip(), checksum='md5:' + '0'*32)
    assert left(tmp_path/'d') == []

@pytest.mark.parametrize('share', [0, .5, .99])
def test_connection_cut(server, tmp_path, share):
    body = pbc_zip()
    said = 'Fetching http://127.* failed: .*Nothing half-finished was kept. Run it'
    with pytest.raises(ConnectionError, match=said):
        get(server, tmp_path/'d', body, int(len(body)*share))
    assert left(tmp_path/'d') == []
    assert len(left(get(server, tmp_path/'d', body))) == 16, 'and the next try is clean'

def test_not_a_zip(server, tmp_path):
    with pytest.raises(ValueError, match='not a whole zip file'):
        get(server, tmp_path/'d', b'<html>please log in</html>')
    assert left(tmp_path/'d') == []

def test_damaged_inside(server, tmp_path):
    body = bytearray(pbc_zip())
    body[body.find(b'IDAT') + 9] ^= 255
    with pytest.raises(ValueError, match='not a whole zip file.*CRC'):
        get(server, tmp_path/'d', bytes(body))
    assert left(tmp_path/'d') == []

def test_another_archive(server, tmp_path):
    with pytest.raises(ValueError, match="holds no folder named 'platelet'"):
        get(server, tmp_path/'d', pbc_zip(blood_classes[:-1]))
    assert left(tmp_path/'d') == []

def test_not_there(server, tmp_path):
    for url, said in (
        (server.url + '/none.zip', '404'), ('http://127.0.0.1:9/x.zip', 'failed')):
        with pytest.raises(ConnectionError, match=said):
            download('pbc', tmp_path/'d', url=url, progress=False)

# ---- what may be wrong at home

@pytest.mark.parametrize('below', ['', 'PBC_dataset_normal_DIB'])
def test_some_classes_are_there(server, tmp_path, below):
    some = tmp_path/'d'/below
    for c in blood_classes[:6]:
        (some/c).mkdir(parents=True)
        (some/c/'mine.png').write_bytes(png(0))
    said = (
        'lacks 2 of the 8 class folders: neutrophil, platelet.*Nothing was fetched. '
        'Move that folder away.*pass path=')
    with pytest.raises(FileExistsError, match=said) as e:
        get(server, tmp_path/'d', pbc_zip())
    assert str(e.value).startswith(f'{some} is there') and server.asked == 0
    assert left(tmp_path/'d') == ['mine.png']*6
    some.rename(tmp_path/'away')
    assert len(left(get(server, tmp_path/'d', pbc_zip()))) == 16, 'the advice is good'

def test_other_files_are_in_the_way(server, tmp_path):
    (tmp_path/'d'/'PBC_dataset_normal_DIB').mkdir(parents=True)
    got = left(get(server, tmp_path/'d', pbc_zip()))
    assert len(got) == 16, 'an empty folder is not in the way'
    (tmp_path/'e'/'CellCycle').mkdir(parents=True)
    (tmp_path/'e'/'CellCycle'/'notes.txt').write_text('')
    said = 'CellCycle is there already, but lacks 7 of the 7'
    with pytest.raises(FileExistsError, match=said):
        get(server, tmp_path/'e', jurkat_zip(), source='jurkat')

def test_killed_while_fetching(server, tmp_path, monkeypatch):
    "As when the user presses Ctrl-C, or a laptop dies and its leftovers stay"
    def killed(*args): raise KeyboardInterrupt
    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr(sources, 'unpack', killed)
        get(server, tmp_path/'d', pbc_zip())
    assert left(tmp_path/'d') == []
    half = tmp_path/'d'/'.unfinished'/'out'/'ig'
    half.mkdir(parents=True)
    (half/'half.png').write_text('')
    got = left(get(server, tmp_path/'d', pbc_zip()))
    assert 'half.png' not in got and len(got) == 16

def test_unknown_source():
    said = "Cannot download 'retina': choose from pbc, bloodmnist, jurkat"
    with pytest.raises(ValueError, match=said):
        download('retina')
    with pytest.raises(ValueError, match='sizes 28, 64, 128 and 224'):
        download('bloodmnist', size=32)

def test_unwritable_folder(server, tmp_path):
    (tmp_path/'file').write_text('in the way')
    with pytest.raises(PermissionError, match='Cannot write into .*pass path='):
        get(server, tmp_path/'file'/'d', pbc_zip())
    assert left(tmp_path) == ['file']

def test_forbidden_folder(server, tmp_path, monkeypatch):
    "By a patch, because root may write anywhere"
    def forbidden(*args, **kwargs):
        raise PermissionError(errno.EACCES, 'Permission denied')
    monkeypatch.setattr('pooch.core.make_local_storage', forbidden)
    said = 'Cannot write into .*Permission denied.*CELL_DIFFUSION_CACHE'
    with pytest.raises(PermissionError, match=said):
        get(server, tmp_path/'d', pbc_zip())

def no_space(): return OSError(errno.ENOSPC, 'No space left on device')

class Full(io.FileIO):
    "A file on a disk that is full after 1,000 bytes"
    def write(self, b):
        room = max(0, 1000 - self.tell())
        if len(b) <= room: return super().write(b)
        super().write(bytes(b)[:room])
        raise no_space()

def test_disk_full_while_fetching(server, tmp_path, monkeypatch):
    def open_full(path, mode): return Full(path, 'w')
    monkeypatch.setattr('pooch.downloaders.open', open_full, raising=False)
    said = 'No room left in .*free some, or pass path='
    with pytest.raises(OSError, match=said) as e:
        get(server, tmp_path/'d', pbc_zip())
    assert e.value.errno == errno.ENOSPC and left(tmp_path/'d') == []

def test_disk_full_while_unpacking(server, tmp_path, monkeypatch):
    def full(*args): raise no_space()
    monkeypatch.setattr(sources.shutil, 'copyfileobj', full)
    with pytest.raises(OSError, match='No room left'):
        get(server, tmp_path/'d', pbc_zip())
    assert left(tmp_path/'d') == []

def test_room_is_checked_first(tmp_path, monkeypatch):
    usage = namedtuple('usage', 'total used free')(10, 9, 3*10**8)
    monkeypatch.setattr(sources.shutil, 'disk_usage', lambda path: usage)
    def fetch(*args): pytest.fail('started without room')
    monkeypatch.setattr(sources, 'fetch', fetch)
    said = 'No room left in .*1 GB are needed and 0.3 GB are free'
    with pytest.raises(OSError, match=said):
        download('pbc', tmp_path/'d', progress=False)
