"Downloads from a small server of our own: a good file, a wrong one, a connection that is cut, no room, no permission"
import errno, hashlib, http.server, io, threading, zipfile
import numpy as np, pytest
from PIL import Image
from cell_diffusion import data
from cell_diffusion.data import *
from cell_diffusion.simulation import blood_classes, jurkat_phases

def png(seed):
    b = io.BytesIO(); Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(b, 'png'); return b.getvalue()

def zipped(files):
    b = io.BytesIO()
    with zipfile.ZipFile(b, 'w') as z:
        for name, content in files.items(): z.writestr(name, content)
    return b.getvalue()

def pbc_zip(classes=blood_classes):
    "A zip inside a zip, with what operating systems add"
    inner = {f'PBC_dataset_normal_DIB/{c}/{c}_{j}.png': png(10*i + j) for i, c in enumerate(classes) for j in range(2)}
    inner |= {'PBC_dataset_normal_DIB/ig/.DS_Store': b'x', '__MACOSX/PBC_dataset_normal_DIB/ig/._ig_0.png': b'x'}
    return zipped({'snkd93bnjr-1/PBC_dataset_normal_DIB.zip': zipped(inner)})

def jurkat_zip():
    grey = io.BytesIO(); Image.new('L', (40, 40), 9).save(grey, 'jpeg')
    return zipped({'CellCycle.zip': zipped({f'CellCycle/{p}/1_{c}.ome.jpg': grey.getvalue() for p in jurkat_phases for c in ('Ch3', 'Ch4', 'Ch6')})})

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        files, self.server.asked = self.server.files, self.server.asked + 1
        if self.path not in files: return self.send_error(404)
        body, sent = files[self.path]
        self.send_response(200); self.send_header('Content-Length', str(len(body))); self.end_headers()
        self.wfile.write(body[:sent])
    def log_message(self, *args): pass

@pytest.fixture
def server():
    s = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler); s.files, s.asked = {}, 0
    thread = threading.Thread(target=s.serve_forever, kwargs=dict(poll_interval=.02)); thread.start()
    s.url = f'http://127.0.0.1:{s.server_port}'
    yield s
    s.shutdown(); thread.join(); s.server_close()

@pytest.fixture(autouse=True)
def apart(tmp_path, monkeypatch):
    monkeypatch.delenv('CELL_DIFFUSION_DATA', raising=False)
    monkeypatch.setenv('CELL_DIFFUSION_CACHE', str(tmp_path/'cache')); monkeypatch.setenv('HOME', str(tmp_path/'home'))
    monkeypatch.setenv('NO_PROXY', '127.0.0.1')

def left(folder): return sorted(p.name for p in folder.rglob('*') if p.is_file()) if folder.exists() else []

def get(server, folder, body, sent=None, source='pbc', **kwargs):
    server.files['/cells.zip'] = body, len(body) if sent is None else sent
    return download(source, folder, url=server.url + '/cells.zip', progress=False, **kwargs)

def test_good_file(server, tmp_path):
    body = pbc_zip()
    folder = get(server, tmp_path/'d', body, checksum='sha256:' + hashlib.sha256(body).hexdigest())
    assert len(left(folder)) == 16 and left(folder)[0] == 'basophil_0.png', 'images only: no archive, no .DS_Store'
    assert [p.name for p in folder.iterdir()] == ['PBC_dataset_normal_DIB']
    assert load_cells('pbc', folder, size=8).counts == {c: 2 for c in blood_classes}
    get(server, tmp_path/'d', body); assert server.asked == 1, 'what is there is not fetched again'

def test_jurkat(server, tmp_path):
    assert load_cells('jurkat', get(server, tmp_path/'d', jurkat_zip(), source='jurkat'), size=40, channels='dna').images.shape == (7, 1, 40, 40)

def test_loading_downloads_by_itself(server, tmp_path, monkeypatch):
    from dataclasses import replace
    body = pbc_zip(); server.files['/cells.zip'] = body, len(body)
    monkeypatch.setitem(data.origins, 'pbc', replace(data.origins['pbc'], url=server.url + '/cells.zip', gigabytes=.001))
    assert len(load_cells('pbc', size=8)) == 16 and len(load_cells('pbc', size=8)) == 16 and server.asked == 1
    assert (tmp_path/'cache'/'pbc'/'PBC_dataset_normal_DIB').is_dir()

def test_progress_bar(server, tmp_path, capsys):
    server.files['/cells.zip'] = pbc_zip(), 10**6
    download('pbc', tmp_path/'d', url=server.url + '/cells.zip')
    out = capsys.readouterr()
    assert '100%' in out.err and 'unpacking' in out.err and '16 files in' in out.out and 'CC BY 4.0' in out.out

def test_wrong_checksum(server, tmp_path):
    with pytest.raises(ValueError, match='not what was expected.*hash'): get(server, tmp_path/'d', pbc_zip(), checksum='md5:' + '0'*32)
    assert left(tmp_path/'d') == []

@pytest.mark.parametrize('share', [0, .5, .99])
def test_connection_cut(server, tmp_path, share):
    body = pbc_zip()
    with pytest.raises(ConnectionError, match='Fetching http://127.* failed: .*Nothing half-finished was kept. Run it again'): get(server, tmp_path/'d', body, int(len(body)*share))
    assert left(tmp_path/'d') == []
    assert len(left(get(server, tmp_path/'d', body))) == 16, 'and the next try is clean'

@pytest.mark.parametrize('below', ['', 'PBC_dataset_normal_DIB'])
def test_some_classes_are_there(server, tmp_path, below):
    some = tmp_path/'d'/below
    for c in blood_classes[:6]: (some/c).mkdir(parents=True); (some/c/'mine.png').write_bytes(png(0))
    with pytest.raises(FileExistsError, match='lacks 2 of the 8 class folders: neutrophil, platelet.*Nothing was fetched. Move that folder away.*pass path=') as e: get(server, tmp_path/'d', pbc_zip())
    assert str(e.value).startswith(f'{some} is there') and server.asked == 0 and left(tmp_path/'d') == ['mine.png']*6
    some.rename(tmp_path/'away')
    assert len(left(get(server, tmp_path/'d', pbc_zip()))) == 16, 'and the advice is good'

def test_other_files_are_in_the_way(server, tmp_path):
    (tmp_path/'d'/'PBC_dataset_normal_DIB').mkdir(parents=True)
    assert len(left(get(server, tmp_path/'d', pbc_zip()))) == 16, 'an empty folder is not in the way'
    (tmp_path/'e'/'CellCycle').mkdir(parents=True); (tmp_path/'e'/'CellCycle'/'notes.txt').write_text('')
    with pytest.raises(FileExistsError, match='CellCycle is there already, but lacks 7 of the 7'): get(server, tmp_path/'e', jurkat_zip(), source='jurkat')

def test_killed_while_fetching(server, tmp_path, monkeypatch):
    "As when the user presses Ctrl-C, or a laptop dies and its leftovers stay"
    def killed(*args): raise KeyboardInterrupt
    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr(data, '_unpack', killed); get(server, tmp_path/'d', pbc_zip())
    assert left(tmp_path/'d') == []
    (tmp_path/'d'/'.unfinished'/'out'/'ig').mkdir(parents=True); (tmp_path/'d'/'.unfinished'/'out'/'ig'/'half.png').write_text('')
    assert 'half.png' not in left(get(server, tmp_path/'d', pbc_zip())) and len(left(tmp_path/'d')) == 16

def test_not_a_zip(server, tmp_path):
    with pytest.raises(ValueError, match='not a whole zip file'): get(server, tmp_path/'d', b'<html>please log in</html>')
    assert left(tmp_path/'d') == []

def test_damaged_inside(server, tmp_path):
    body = bytearray(pbc_zip()); body[body.find(b'IDAT') + 9] ^= 255
    with pytest.raises(ValueError, match='not a whole zip file.*CRC'): get(server, tmp_path/'d', bytes(body))
    assert left(tmp_path/'d') == []

def test_another_archive(server, tmp_path):
    with pytest.raises(ValueError, match="holds no folder named 'platelet'"): get(server, tmp_path/'d', pbc_zip(blood_classes[:-1]))
    assert left(tmp_path/'d') == []

def test_not_there(server, tmp_path):
    with pytest.raises(ConnectionError, match='404'): download('pbc', tmp_path/'d', url=server.url + '/none.zip', progress=False)
    with pytest.raises(ConnectionError, match='failed'): download('pbc', tmp_path/'d', url='http://127.0.0.1:9/x.zip', progress=False)

def test_unknown_source():
    with pytest.raises(ValueError, match="Cannot download 'retina': choose from pbc, bloodmnist, jurkat"): download('retina')
    with pytest.raises(ValueError, match='sizes 28, 64, 128 and 224'): download('bloodmnist', size=32)

def test_unwritable_folder(server, tmp_path):
    (tmp_path/'file').write_text('in the way')
    with pytest.raises(PermissionError, match='Cannot write into .*pass path='): get(server, tmp_path/'file'/'d', pbc_zip())
    assert left(tmp_path) == ['file']

def test_forbidden_folder(server, tmp_path, monkeypatch):
    "By a patch, because root may write anywhere"
    def forbidden(*args, **kwargs): raise PermissionError(errno.EACCES, 'Permission denied')
    monkeypatch.setattr('pooch.core.make_local_storage', forbidden)
    with pytest.raises(PermissionError, match='Cannot write into .*Permission denied.*CELL_DIFFUSION_CACHE'): get(server, tmp_path/'d', pbc_zip())

class _Full(io.FileIO):
    "A file on a disk that is full after 1,000 bytes"
    def write(self, b):
        if self.tell() + len(b) > 1000: super().write(bytes(b)[:max(0, 1000 - self.tell())]); raise OSError(errno.ENOSPC, 'No space left on device')
        return super().write(b)

def test_disk_full_while_fetching(server, tmp_path, monkeypatch):
    monkeypatch.setattr('pooch.downloaders.open', lambda p, mode: _Full(p, 'w'), raising=False)
    with pytest.raises(OSError, match='No room left in .*free some, or pass path=') as e: get(server, tmp_path/'d', pbc_zip())
    assert e.value.errno == errno.ENOSPC and left(tmp_path/'d') == []

def test_disk_full_while_unpacking(server, tmp_path, monkeypatch):
    def full(*args): raise OSError(errno.ENOSPC, 'No space left on device')
    monkeypatch.setattr(data.shutil, 'copyfileobj', full)
    with pytest.raises(OSError, match='No room left'): get(server, tmp_path/'d', pbc_zip())
    assert left(tmp_path/'d') == []

def test_room_is_checked_first(tmp_path, monkeypatch):
    from collections import namedtuple
    monkeypatch.setattr(data.shutil, 'disk_usage', lambda p: namedtuple('usage', 'total used free')(10, 9, 3*10**8))
    monkeypatch.setattr(data, '_fetch', lambda *a: pytest.fail('started without room'))
    with pytest.raises(OSError, match='No room left in .*1 GB are needed and 0.3 GB are free'): download('pbc', tmp_path/'d', progress=False)

def test_bloodmnist(server, tmp_path, monkeypatch):
    import medmnist
    b = io.BytesIO(); n = dict(train=16, val=8, test=8)
    np.savez(b, **{f'{k}_images': np.zeros((m, 28, 28, 3), np.uint8) for k, m in n.items()}, **{f'{k}_labels': (np.arange(m) % 8)[:, None] for k, m in n.items()})
    server.files['/b.npz'] = b.getvalue(), 10**9
    monkeypatch.setitem(medmnist.INFO['bloodmnist'], 'url', server.url + '/b.npz')
    with pytest.raises(ValueError, match='hash'): load_cells('bloodmnist', size=28)
    assert left(tmp_path) == []
    monkeypatch.setitem(medmnist.INFO['bloodmnist'], 'MD5', hashlib.md5(b.getvalue()).hexdigest())
    assert len(load_cells('bloodmnist', size=28)) == 32 and left(tmp_path/'cache'/'bloodmnist') == ['bloodmnist.npz']
