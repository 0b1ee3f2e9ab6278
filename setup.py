"Reads settings.ini, the one place for metadata and requirements"
from configparser import ConfigParser
from pathlib import Path
import re
from setuptools import setup, find_packages

here = Path(__file__).parent
parser = ConfigParser(delimiters=['='])
parser.read(here/'settings.ini', encoding='utf-8')
cfg = parser['DEFAULT']
lib = cfg['lib_path']
version = re.search(r'__version__ = "(.*?)"', (here/lib/'__init__.py').read_text(encoding='utf-8'))[1]

setup(
    version=version,
    author=cfg['author'],
    license=cfg['license'],
    keywords=cfg['keywords'],
    classifiers=[f"Development Status :: {cfg['status']}", f"Intended Audience :: {cfg['audience']}", 'Programming Language :: Python :: 3'],
    long_description=(here/'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    python_requires=f">={cfg['min_python']}",
    install_requires=cfg['requirements'].split(),
    extras_require={extra: cfg[f'{extra}_requirements'].split() for extra in ('dev', 'web', 'site')},
    packages=find_packages(include=[lib, f'{lib}.*']),
    package_data={lib: ['weights/**/*.safetensors', 'weights/**/*.json', 'weights/**/*.md', 'results/**/*.csv', 'results/**/*.json']},
    include_package_data=False,
    entry_points=dict(console_scripts=cfg['console_scripts'].split('\n'), nbdev=[f'{lib} = {lib}._modidx:d']),
    zip_safe=False,
)
