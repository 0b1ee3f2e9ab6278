"Reads settings.ini, the one place for metadata and requirements"
import re
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
parser = ConfigParser(delimiters=['='])
parser.read(here/'settings.ini', encoding='utf-8')
cfg = parser['DEFAULT']
lib = cfg['lib_path']

begin = (here/lib/'__init__.py').read_text(encoding='utf-8')
version = re.search(r'__version__ = "(.*?)"', begin)[1]

extras = 'dev', 'gpus', 'web', 'fid', 'site'
shipped = ['weights/**/*.safetensors', 'weights/**/*.json', 'weights/**/*.md',
           'results/**/*.csv', 'results/**/*.json', 'results/**/*.png',
           'browser/*.js', 'browser/*.css', 'browser/*.html']

setup(
    version=version,
    author=cfg['author'],
    license=cfg['license'],
    keywords=cfg['keywords'],
    classifiers=[
        f"Development Status :: {cfg['status']}",
        f"Intended Audience :: {cfg['audience']}",
        'Programming Language :: Python :: 3',
    ],
    long_description=(here/'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    python_requires=f">={cfg['min_python']}",
    install_requires=cfg['requirements'].split(),
    extras_require={e: cfg[f'{e}_requirements'].split() for e in extras},
    packages=find_packages(include=[lib, f'{lib}.*']),
    package_data={lib: shipped},
    include_package_data=False,
    entry_points=dict(
        console_scripts=cfg['console_scripts'].split('\n'),
        nbdev=[f'{lib} = {lib}._modidx:d'],
    ),
    zip_safe=False,
)
