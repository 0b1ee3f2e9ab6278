"""What keeps the course alive: versions, workflows, the image, and what it serves.

No image is built here; the Dockerfile is read line by line.
"""
import json
import re
import shutil
import subprocess
import sys
import urllib.request
from importlib import metadata
from types import SimpleNamespace

import pytest
import yaml
from packaging.requirements import Requirement

from common import chapters, root

import first_cells
import make_constraints
import serve

sys.path.insert(0, str(root/'site'))
import tested  # noqa: E402


def workflow(name):
    text = (root/'.github'/'workflows'/f'{name}.yml').read_text(encoding='utf-8')
    return yaml.safe_load(text)


def steps(job):
    "What the steps of a job run or use, in order"
    return [step.get('run', step.get('uses', '')) for step in job['steps']]


# Versions that are known to work

def constraints():
    lines = (root/'constraints.txt').read_text(encoding='utf-8').splitlines()
    return [Requirement(line) for line in lines if not line.startswith('#')]


def test_there_is_a_version_for_all_that_is_required():
    pinned = {make_constraints.plain(c.name): c for c in constraints()}
    assert all(re.fullmatch(r'==[\w.]+', str(c.specifier)) for c in pinned.values())
    asked = make_constraints.asked_for(root/'settings.ini')
    assert len(asked) > 30
    for need in asked:
        version = str(pinned[make_constraints.plain(need.name)].specifier)[2:]
        assert need.specifier.contains(version, prereleases=True), need


def test_constraints_are_those_of_the_tested_pythons():
    matrix = workflow('test')['jobs']['test']['strategy']['matrix']['python']
    assert matrix[-1] == make_constraints.newest, 'as in tools/make_constraints.py'
    marker = constraints()[0].marker
    at = [v for v in ('3.9', '3.11', '3.12', '3.13', '3.14')
          if marker.evaluate(dict(python_version=v))]
    assert at[-1] == make_constraints.newest and '3.12' in at and '3.9' not in at


def test_what_is_not_installed_is_named():
    with pytest.raises(SystemExit, match='no-such-package is not installed'):
        make_constraints.versions([Requirement('no_such.package')])


def test_constraints_hold_what_requirements_need():
    found = make_constraints.versions([Requirement('pytest')])
    assert found['pytest'] == metadata.version('pytest') and 'pluggy' in found
    text = make_constraints.text_of({'a': '1.0'}, (3, 11))
    line = Requirement(text.splitlines()[-1])
    assert str(line.specifier) == '==1.0' and line.marker is not None


def test_make_and_the_image_use_them():
    make = (root/'Makefile').read_text(encoding='utf-8')
    assert 'CONSTRAINTS ?= constraints.txt' in make
    assert '$(addprefix -c ,$(CONSTRAINTS))' in make
    installs = re.findall(r'pip install(.*?)(?=\n[A-Z]|\Z)', dockerfile, re.S)
    assert installs and all('-c constraints.txt' in line for line in installs)


# The first cell of each chapter, as in Colab

def notebook(folder, *sources):
    cells = [dict(cell_type='code', source=source) for source in sources]
    path = folder/'chapter.ipynb'
    path.write_text(json.dumps(dict(cells=cells)))
    return path


first = "if 'google.colab' in str(get_ipython()):\n    get_ipython().system('{}')"


@pytest.mark.parametrize('command, other, wrong', [
    ('true', 'import json', ''),
    ('exit 3', 'import json', 'status 3'),
    ('true', 'import no_such_module', 'no_such_module'),
])
def test_a_chapter_is_tried_as_in_colab(tmp_path, command, other, wrong):
    path = notebook(tmp_path, first.format(command), 'x = 1/0', other)
    found = first_cells.try_chapter(path)
    assert wrong in found and bool(found) == bool(wrong), found


def test_what_failed_is_reported(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(first_cells, 'try_chapter', lambda path, course: 'no luck')
    report = tmp_path/'report.md'
    assert first_cells.main(['a.ipynb', '--report', str(report)])
    assert '## a' in report.read_text() and 'no luck' in report.read_text()
    monkeypatch.setattr(first_cells, 'try_chapter', lambda path, course: '')
    assert not first_cells.main(['a.ipynb'])
    assert 'a: fine' in capsys.readouterr().out


def test_every_chapter_has_cells_to_try():
    for path in chapters():
        if path.stem == 'index': continue
        install, *imports = first_cells.cells_to_run(path, course='here')
        assert 'google.colab' in install and "'here'" in install and imports, path.stem
        assert 'github' not in install


def test_versions_of_colab_that_matter():
    freeze = ['torch==2.9.0+cu126', 'foo==1.0', 'scikit_learn==1.5', 'x @ file:///x',
              'Pillow==11']
    found = list(first_cells.known_to_colab('\n'.join(freeze)))
    assert found == ['torch==2.9.0', 'scikit_learn==1.5', 'Pillow==11']


def test_the_weekly_workflow_opens_an_issue_on_failure_alone():
    week = workflow('weekly')
    # YAML reads `on` as true
    assert re.fullmatch(r'\d+ \d+ \* \* \d', week[True]['schedule'][0]['cron'])
    tried, tell = week['jobs']['first-cells'], week['jobs']['tell']
    assert any('tools/first_cells.py --report' in run for run in steps(tried))
    assert tried['strategy']['matrix']['versions'] == ['colab', 'newest']
    assert tell['needs'] == 'first-cells' and tell['if'] == 'failure()'
    assert tell['permissions']['issues'] == 'write'
    assert 'issues' not in week['permissions'] and 'permissions' not in tried
    said = steps(tell)[-1]
    assert 'gh issue create' in said and 'gh issue list --state open' in said
    assert 'constraints.txt' not in str(week), 'the newest versions are tried'


def test_scripts_of_workflows_are_shell():
    for name in 'weekly', 'site', 'test', 'release':
        for job in workflow(name)['jobs'].values():
            for step in job['steps']:
                script = re.sub(r'\$\{\{.*?\}\}', 'x', step.get('run', ''))
                done = subprocess.run(['bash', '-n', '-c', script], text=True,
                                      capture_output=True)
                assert done.returncode == 0, done.stderr


# The image

dockerfile = (root/'Dockerfile').read_text(encoding='utf-8')


def instructions(text=dockerfile):
    "Pairs of an instruction and its arguments, with joined lines"
    lines = [l for l in text.splitlines() if l.strip() and not l.startswith('#')]
    joined = re.sub(r'\\\n\s*', ' ', '\n'.join(lines))
    return [tuple(line.split(None, 1)) for line in joined.splitlines()
            if line[0] != ' ']


def faults(text):
    "Rules of hadolint that matter here, by their numbers"
    found = instructions(text)
    runs = [args for word, args in found if word == 'RUN']
    stages = [args.split()[0] for word, args in found if word == 'FROM']
    if any(':' not in s or s.endswith(':latest') for s in stages): yield 'DL3006'
    users = [args for word, args in found if word == 'USER']
    if not users or users[-1] in ('root', '0'): yield 'DL3002'
    if any(word == 'ADD' for word, _ in found): yield 'DL3020'
    starts = [args for word, args in found if word in ('CMD', 'ENTRYPOINT')]
    if not all(args.startswith(('[', 'CMD [')) for args in starts): yield 'DL3025'
    if any(re.search(r'(^|&& )(cd|sudo) ', run) for run in runs): yield 'DL3003'
    pips = [run for run in runs if 'pip install' in run]
    if not all('--no-cache-dir' in run for run in pips): yield 'DL3042'
    if not all('-c constraints.txt' in run for run in pips): yield 'DL3013'
    apts = [run for run in runs if 'apt-get install' in run]
    if not all('--no-install-recommends' in run for run in apts): yield 'DL3015'
    if any('|' in run for run in runs) and 'pipefail' not in text: yield 'DL4006'
    if not any(word == 'HEALTHCHECK' for word, _ in found): yield 'DL3057'


def test_the_dockerfile_keeps_the_rules():
    assert not list(faults(dockerfile))


@pytest.mark.parametrize('rule, old, new', [
    ('DL3006', 'FROM python:${PYTHON}-slim-bookworm\nRUN', 'FROM python:latest\nRUN'),
    ('DL3002', 'USER reader', 'USER root'),
    ('DL3020', 'COPY constraints', 'ADD constraints'),
    ('DL3025', 'CMD ["python", "/course/tools/serve.py", "--host", "0.0.0.0"]',
     'CMD python /course/tools/serve.py'),
    ('DL3042', ' --no-cache-dir', ''),
    ('DL3013', "-c constraints.txt '.[", "'.["),
    ('DL4006', 'SHELL ["/bin/bash", "-o", "pipefail", "-c"]\n', ''),
    ('DL3057', 'HEALTHCHECK', 'LABEL a='),
])
def test_the_rules_find_what_they_should(rule, old, new):
    assert old in dockerfile and rule in list(faults(dockerfile.replace(old, new)))


def test_the_image_for_a_processor_and_for_a_gpu():
    words = instructions()
    assert ('ARG', 'DEVICE=cpu') in words
    assert 'https://download.pytorch.org/whl/${DEVICE}' in dockerfile
    assert [args for word, args in words if word == 'EXPOSE'] == ['8000 8888']


def test_the_image_gets_what_it_copies():
    "Every file that is copied is there, and none of them is left out of the context"
    ignored = (root/'.dockerignore').read_text(encoding='utf-8').splitlines()
    for word, args in instructions():
        if word != 'COPY' or '--from' in args: continue
        *sources, _ = args.split()
        for source in sources:
            assert (root/source).exists() and source not in ignored, source
    needed = 'settings.ini', 'setup.py', 'nbs', 'img', 'site', 'constraints.txt'
    assert not set(needed) & set(ignored)


def test_its_default_command_is_an_option_of_the_server():
    [last] = [args for word, args in instructions() if word == 'CMD'][-1:]
    python, file, *options = json.loads(last)
    assert file == '/course/tools/serve.py'
    given = serve.arguments(options)
    assert given.host == '0.0.0.0' and (given.port, given.lab_port) == (8000, 8888)
    assert not given.no_lab and not given.check


# The server

@pytest.fixture
def pages(tmp_path):
    site = tmp_path/'site'
    site.mkdir()
    (site/'paint.html').write_text('<h1>Paint a cell</h1>')
    return site


def test_the_pages_are_served(pages):
    server = serve.serve_pages(pages, '127.0.0.1', 0)
    try:
        port = server.server_address[1]
        with urllib.request.urlopen(f'http://127.0.0.1:{port}/paint.html') as page:
            assert b'Paint a cell' in page.read()
        assert serve.is_served(port)
        assert serve.main(['--check', '--port', str(port)]) == 0
    finally:
        server.shutdown()
        server.server_close()
    assert serve.main(['--check', '--port', str(port)]) == 1


def test_both_are_started_and_end_together(pages, tmp_path, monkeypatch):
    ran = []
    def start(command, env):
        ran.append(command)
        return SimpleNamespace(wait=lambda: 7, terminate=lambda: None)
    monkeypatch.setattr(shutil, 'which', lambda name: f'/bin/{name}')
    monkeypatch.setattr(subprocess, 'Popen', start)
    monkeypatch.setattr(serve.signal, 'signal', lambda *args: None)
    words = ['--site', str(pages), '--notebooks', str(tmp_path), '--port', '0']
    assert serve.main(words) == 7
    [command] = ran
    assert command[0] == '/bin/jupyter-lab' and f'root_dir={tmp_path}' in str(command)
    assert '--ip=127.0.0.1' in command and 'token' not in str(command)


def test_what_the_server_lacks_is_said(pages, tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match='make site first'):
        serve.main(['--site', str(tmp_path)])
    monkeypatch.setattr(shutil, 'which', lambda name: None)
    with pytest.raises(SystemExit, match='JupyterLab is missing'):
        serve.main(['--site', str(pages)])


def test_the_recipe_names_what_there_is():
    "Ports, build argument and volume are those of the image; no port is open to all"
    page = (root/'nbs'/'deploy.qmd').read_text(encoding='utf-8')
    command = re.search(r'docker run -d.*?cell-diffusion:cuda\n', page, re.S)[0]
    assert re.findall(r'-p (\S+)', command) == [
        '127.0.0.1:8000:8000', '127.0.0.1:8888:8888']
    assert '--gpus all' in command and '--build-arg DEVICE=cu' in page
    volume = re.search(r'-v course-work:(\S+)', command)[1]
    assert ('VOLUME', volume) in instructions()


# What is deployed is what was tested

def test_another_folder_is_not_deployed(tmp_path, monkeypatch, capsys):
    docs = tmp_path/'docs'
    docs.mkdir()
    (docs/'a.html').write_text('a')
    monkeypatch.setattr(tested, 'docs', docs)
    monkeypatch.setattr(tested, 'stamp', tmp_path/'stamp')
    with pytest.raises(SystemExit, match='nothing to deploy'):
        tested.main()
    tested.stamp.write_text(tested.digest(docs))
    tested.main()
    assert 'is the folder that was tested' in capsys.readouterr().out
    for name, text in {'a.html': 'b', 'b.html': 'a'}.items():
        (docs/name).write_text(text)
        with pytest.raises(SystemExit, match='not the folder that was tested'):
            tested.main()
        (docs/'a.html').write_text('a')
    (docs/'b.html').rename(docs/'c.html')
    with pytest.raises(SystemExit):
        tested.main()


def test_the_deployed_folder_is_the_tested_one():
    "Built, tested, compared and uploaded in one job, with nothing between that writes"
    job = workflow('site')['jobs']['site']
    order = steps(job)
    places = [order.index(run) for run in
              ('make site', 'make test-site', 'python site/tested.py')]
    upload, = [i for i, run in enumerate(order) if 'upload-pages-artifact' in run]
    assert places == sorted(places) and upload == places[-1] + 1
    assert job['steps'][upload]['with'] == dict(path='_docs')
    assert 'deploy-pages' in order[-1] and upload == len(order) - 2
    assert 'playwright install --with-deps firefox' in ' '.join(order[:places[1]])
    assert not any(step.get('continue-on-error') for step in job['steps'])


whole = '''
import pytest
def test_a(): pass
'''


@pytest.mark.parametrize('words, leaves', [
    ([], True), (['-k', 'test_a'], False), (['test_x.py'], False)])
def test_a_stamp_is_left_by_a_whole_run_that_passed(tmp_path, words, leaves):
    "The real conftest.py, beside one small test and a site of one page"
    for name in ('tests/site', 'site', '_docs'):
        (tmp_path/name).mkdir(parents=True)
    shutil.copy(root/'tests'/'site'/'conftest.py', tmp_path/'tests'/'site')
    shutil.copy(root/'site'/'tested.py', tmp_path/'site')
    (tmp_path/'_docs'/'index.html').write_text('x')
    (tmp_path/'tests'/'site'/'test_x.py').write_text(whole)
    command = [sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', *words]
    if not words[:1] == ['test_x.py']: command.append('.')
    done = subprocess.run(command, cwd=tmp_path/'tests'/'site', capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path/'.docs-tested').exists() == leaves
