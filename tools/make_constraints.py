#!/usr/bin/env python3
"""Write constraints.txt: the versions with which everything is known to work.

They are those of the environment that runs this, so run the tests there first.
"""
import re
import sys
from configparser import ConfigParser
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

root = Path(__file__).resolve().parent.parent
extras = 'dev', 'site', 'web', 'gpus'

# The newest Python of the tests in .github/workflows/test.yml
newest = '3.13'

# PyTorch asks for these itself, and for others on other machines
of_pytorch = re.compile(r'(nvidia|cuda)-.*|triton')

header = """\
# Versions with which all tests passed, for `pip install -c`: make, CI and the
# Dockerfile use them. Made again by `make constraints`, from the environment in which
# the tests have just passed.
"""


def plain(name):
    "The name of a distribution as package indexes compare them"
    return re.sub(r'[-_.]+', '-', name).lower()


def asked_for(settings):
    "The requirements of the package and of its extras"
    parser = ConfigParser(delimiters=['='])
    parser.read(settings, encoding='utf-8')
    names = ['requirements', *(f'{extra}_requirements' for extra in extras)]
    texts = ' '.join(parser['DEFAULT'][name] for name in names)
    needs = [Requirement(text) for text in texts.split()]
    return [need for need in needs if need.marker is None or need.marker.evaluate()]


def needs_of(name, wanted):
    "What an installed distribution needs itself, with the extras that were asked for"
    for text in metadata.requires(name) or []:
        need = Requirement(text)
        cases = [dict(extra=extra) for extra in ('', *wanted)]
        if need.marker is None or any(map(need.marker.evaluate, cases)):
            yield need


def versions(requirements):
    "The installed version of all that is required, `{name: version}`"
    found = {}
    seen = set()
    todo = list(requirements)
    while todo:
        need = todo.pop()
        name = plain(need.name)
        key = name, frozenset(need.extras)
        if key in seen or of_pytorch.fullmatch(name):
            continue
        seen.add(key)
        found[name] = installed(name)
        todo += needs_of(name, need.extras)
    return dict(sorted(found.items()))


def installed(name):
    "The installed version, without what names a build, such as `+cu130`"
    try:
        return metadata.version(name).partition('+')[0]
    except metadata.PackageNotFoundError:
        sys.exit(f'{name} is not installed here: make constraints after make test')


def text_of(found, python=sys.version_info):
    "The file: a version a line, for the Pythons for which these versions exist"
    first = f'{python[0]}.{python[1]}'
    where = f"python_version >= '{first}' and python_version <= '{newest}'"
    lines = [f'{name}=={version}; {where}' for name, version in found.items()]
    return header + '\n'.join(lines) + '\n'


def main():
    found = versions(asked_for(root/'settings.ini'))
    (root/'constraints.txt').write_text(text_of(found), encoding='utf-8')
    print(f'constraints.txt: {len(found)} versions')


if __name__ == '__main__':
    main()
