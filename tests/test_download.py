"Downloads from a small server of our own: good files, wrong ones, and every failure"
import errno, hashlib, http.server, io, multiprocessing, os, signal, sys
import threading, time, zipfile
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
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

def pbc_zip(classes=blood_classes, start=0):
    "A zip inside a zip, with what operating systems add"
    root = 'PBC_dataset_normal_DIB'
    inner = {f'{root}/ig/.DS_Store': b'x', f'__MACOSX/{root}/ig/._ig_0.png': b'x'}
    for i, c in enumerate(classes):
        for j in range(2):
            inner[f'{root}/{c}/{c}_{j}.png'] = png(start + 10*i + j)
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
    "Sends parts of a file, as most servers do, and says which version it is"
    def do_GET(self):
        self.server.asked += 1
        if self.path not in self.server.files: return self.send_error(404)
        body, sent = self.server.files[self.path]
        start = 0
        if (wanted := self.headers['Range']) and self.server.parts:
            start = int(wanted.removeprefix('bytes=').rstrip('-'))
        self.send_response(206 if start else 200)
        self.send_header('Content-Length', str(len(body) - start))
        if self.server.versions:
            self.send_header('ETag', hashlib.md5(body).hexdigest())
        # Before the answer: the client's next request may overtake this thread
        self.server.starts.append(start)
        self.end_headers()
        self.wfile.write(body[start:sent])
        self.wfile.flush()
        if sent < len(body): self.server.stays_open.wait(10)

    def log_message(self, *args): pass

@pytest.fixture
def server():
    """Its `files` are sent up to a number of bytes.

    `asked` counts the requests, and `starts` holds the first byte that each one got.
    While `stays_open` is not set a connection that is cut stays open and silent.
    """
    s = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    s.files = {}
    s.asked = 0
    s.starts = []
    s.parts = s.versions = True
    s.stays_open = threading.Event()
    s.stays_open.set()
    s.url = f'http://127.0.0.1:{s.server_port}'
    thread = threading.Thread(target=s.serve_forever, kwargs=dict(poll_interval=.02))
    thread.start()
    yield s
    s.stays_open.set()
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

def in_blocks(sent):
    "How much of what was sent has been written"
    return sent//2**13*2**13

@pytest.mark.parametrize('share', [0, .5, .99])
def test_connection_cut(server, tmp_path, share):
    body = pbc_zip()
    sent = int(len(body)*share)
    said = ('Fetching http://127.* failed: the connection was cut. '
            'What has come is kept. Run it again, or fetch http://127.* in a browser')
    with pytest.raises(ConnectionError, match=said):
        get(server, tmp_path/'d', body, sent)
    assert all(name.endswith('.part') for name in left(tmp_path/'d'))
    assert len(left(get(server, tmp_path/'d', body))) == 16, 'and the next try is clean'
    assert server.starts[-1] == in_blocks(sent), 'what has come was fetched again'

@pytest.mark.parametrize('change', ['another file', 'no parts', 'no versions'])
def test_what_cannot_go_on_begins_again(server, tmp_path, change):
    "Two halves of different files never become one"
    body = pbc_zip()
    server.versions = change != 'no versions'
    with pytest.raises(ConnectionError):
        get(server, tmp_path/'d', body, len(body)//2)
    server.parts = change != 'no parts'
    if change == 'another file': body = pbc_zip(start=100)
    assert len(left(get(server, tmp_path/'d', body))) == 16
    assert server.starts[-1] == 0

def test_offline(tmp_path, monkeypatch):
    said = ('Fetching https://data.broad.* failed: there is no connection to the server'
            '.*fetch https://data.broad.* in a browser, unpack it, and pass path=')
    for name in 'HTTPS_PROXY', 'https_proxy':
        monkeypatch.setenv(name, 'http://127.0.0.1:9')
    with pytest.raises(ConnectionError, match=said):
        download('jurkat', tmp_path/'d', progress=False)
    assert not (tmp_path/'d').exists()

def linked(name):
    "A member of a zip that is a link"
    member = zipfile.ZipInfo(name)
    member.external_attr = 0o120777 << 16
    return member

def nested(depth):
    return zipped({'PBC/ig/a.png': png(0)} if depth == 0 else
                  {'more.zip': nested(depth - 1)})

hostile = dict(
    link=(lambda: zipped({linked('PBC/ig/a.png'): b'/etc/passwd'}), "a link, 'PBC/ig/"),
    deep=(lambda: nested(6), 'more than two deep'),
    zips_together=(lambda: zipped({f'{i}.zip': zipped({'PBC/ig/a.png': bytes(1500)})
                                   for i in range(9)}), 'far more than it should'))

@pytest.mark.parametrize('kind', hostile)
def test_hostile_archives_leave_nothing(server, tmp_path, monkeypatch, kind):
    make, says = hostile[kind]
    if kind == 'zips_together':
        here = replace(sources.origins['pbc'], gigabytes=1e-6)
        monkeypatch.setitem(sources.origins, 'pbc', here)
    with pytest.raises(ValueError, match=says):
        get(server, tmp_path/'d', make())
    assert left(tmp_path/'d') == []

def test_paths_in_an_archive_cannot_lead_out(server, tmp_path):
    files = {f'../../{c}/../{c}/{c}.png': png(i) for i, c in enumerate(blood_classes)}
    files['../../../ig/../evil.png'] = files['/ig/..'] = png(0)
    get(server, tmp_path/'a'/'b'/'d', zipped(files))
    assert [p.name for p in tmp_path.iterdir()] == ['a']
    assert len(left(tmp_path/'a'/'b'/'d')) == 8

def test_an_archive_that_unpacks_to_too_much(server, tmp_path, monkeypatch):
    here = replace(sources.origins['pbc'], gigabytes=2e-6)
    monkeypatch.setitem(sources.origins, 'pbc', here)
    for body in pbc_zip(), zipped({'PBC/ig/a.png': bytes(9000)}):
        with pytest.raises(ValueError, match='unpacks to far more than it should'):
            get(server, tmp_path/'d', body)
    assert left(tmp_path/'d') == []

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

def test_stopped_while_unpacking(server, tmp_path, monkeypatch):
    "As when the user presses Ctrl-C, or a laptop dies and its leftovers stay"
    def killed(*args): raise KeyboardInterrupt
    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr(sources, 'unpack', killed)
        get(server, tmp_path/'d', pbc_zip())
    half = tmp_path/'d'/'.unfinished'/'out'/'ig'
    half.mkdir(parents=True)
    (half/'half.png').write_text('')
    got = left(get(server, tmp_path/'d', pbc_zip()))
    assert 'half.png' not in got and len(got) == 16
    assert len(server.starts) == 2, 'what has come was fetched again'

# ---- several processes, and killed ones

needs_fork = pytest.mark.skipif(sys.platform == 'win32', reason='Windows has no fork')

def start(f, *args):
    process = multiprocessing.get_context('fork').Process(target=f, args=args)
    process.start()
    return process

def kill(process):
    os.kill(process.pid, signal.SIGKILL)
    process.join()

def wait_until(true):
    end = time.time() + 20
    while not true():
        assert time.time() < end
        time.sleep(.005)

def size_of(folder):
    return sum(p.stat().st_size for p in folder.rglob('*.part'))

@needs_fork
@pytest.mark.parametrize('share', [0, .3, .999])
def test_killed_while_fetching(server, tmp_path, share):
    body = pbc_zip()
    checksum = 'sha256:' + hashlib.sha256(body).hexdigest()
    sent = int(share*len(body))
    server.stays_open.clear()
    server.files['/cells.zip'] = body, sent
    url = server.url + '/cells.zip'
    process = start(lambda: download('pbc', tmp_path/'d', url=url, progress=False))
    wait_until(lambda: server.starts)
    time.sleep(.05)
    kill(process)
    server.stays_open.set()
    have = size_of(tmp_path/'d')
    got = get(server, tmp_path/'d', body, checksum=checksum)
    assert len(left(got)) == 16 and have <= in_blocks(sent)
    assert [p.name for p in got.iterdir()] == ['PBC_dataset_normal_DIB']
    assert server.starts[-1] == have

@needs_fork
def test_killed_while_unpacking(server, tmp_path, monkeypatch):
    copy = sources.shutil.copyfileobj
    def slow(a, b):
        copy(a, b)
        if 'lymphocyte' in str(b.name): time.sleep(20)
    def fetch_slowly():
        sources.shutil.copyfileobj = slow
        get(server, tmp_path/'d', pbc_zip())
    server.files['/cells.zip'] = pbc_zip(), 10**6
    process = start(fetch_slowly)
    wait_until(lambda: list(tmp_path.glob('d/.unfinished/out/lymphocyte/*')))
    kill(process)
    assert not (tmp_path/'d'/'PBC_dataset_normal_DIB').exists()
    assert len(left(get(server, tmp_path/'d', pbc_zip()))) == 16
    assert len(server.starts) == 2, 'the archive was fetched again'

@needs_fork
def test_two_downloads_into_one_folder(server, tmp_path, capsys):
    "Threads and processes: one fetches, the others wait for it"
    body = pbc_zip()
    server.stays_open.clear()
    server.files['/cells.zip'] = body, 100
    url = server.url + '/cells.zip'
    def fetch(i=0): return download('pbc', tmp_path/'d', url=url, progress=False)
    process = start(fetch)
    wait_until(lambda: server.starts)
    with ThreadPoolExecutor(2) as threads:
        found = threads.map(fetch, range(2))
        wait_until(lambda: 'is fetching cells in' in capsys.readouterr().out)
        # The process is killed in the middle: one of those that wait takes over
        server.files['/cells.zip'] = body, len(body)
        kill(process)
        server.stays_open.set()
        assert [len(left(folder)) for folder in found] == [16, 16]
    assert len(server.starts) <= 3, 'fetched once more than needed'

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
    monkeypatch.setattr(sources.Path, 'mkdir', forbidden)
    said = 'Cannot write into .*Permission denied.*CELL_DIFFUSION_CACHE'
    with pytest.raises(PermissionError, match=said):
        get(server, tmp_path/'d', pbc_zip())
    assert left(tmp_path/'d') == []

def no_space(): return OSError(errno.ENOSPC, 'No space left on device')

class Full(io.FileIO):
    "A file on a disk that is full after 1,000 bytes"
    def write(self, b):
        room = max(0, 1000 - self.tell())
        if len(b) <= room: return super().write(b)
        super().write(bytes(b)[:room])
        raise no_space()

def test_disk_full_while_fetching(server, tmp_path, monkeypatch):
    def open_full(path, mode): return Full(path, 'a')
    monkeypatch.setattr(sources, 'open', open_full, raising=False)
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
