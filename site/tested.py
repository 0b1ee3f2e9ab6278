#!/usr/bin/env python3
"""tested.py: is the folder _docs, to the byte, the one that the tests passed on?

`make test-site` leaves the stamp that this compares with; deploying begins with this.
"""
import hashlib
import sys
from pathlib import Path

root = Path(__file__).resolve().parent.parent
docs = root/'_docs'
stamp = root/'.docs-tested'


def digest(folder):
    "Names all files of a folder and what is in them"
    whole = hashlib.sha256()
    for file in sorted(p for p in folder.rglob('*') if p.is_file()):
        content = hashlib.sha256(file.read_bytes()).hexdigest()
        whole.update(f'{file.relative_to(folder).as_posix()} {content}\n'.encode())
    return whole.hexdigest()


def main():
    here = digest(docs)
    there = stamp.read_text().strip() if stamp.is_file() else None
    if there is None:
        sys.exit('No whole run of `make test-site` has passed: nothing to deploy')
    if there != here:
        sys.exit('_docs is not the folder that was tested: make test-site')
    print(f'_docs is the folder that was tested: {here}')


if __name__ == '__main__':
    main()
