"""Writes a version into each place that has it: ``python tools/set_version.py 0.2.0``.

The packages have one version: in their ``pyproject.toml``, in the pins between them, and in
``__version__``.
"""

from __future__ import annotations

import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
VERSION = r"\d+\.\d+\.\d+(?:(?:a|b|rc)\d+)?"
PROJECT = re.compile(rf'^version = "{VERSION}"$', re.M)
PIN = re.compile(rf'"(moduli(?:-\w+)?)=={VERSION}"')
MODULE = re.compile(rf'^__version__ = "{VERSION}"$', re.M)


def changed(path: pathlib.Path, version: str) -> str:
    """Returns the text of a file with the version in its places.

    Raises:
      SystemExit: the file has no version.
    """
    text = path.read_text()
    if path.suffix == ".toml":
        text, count = PROJECT.subn(f'version = "{version}"', text)
        text = PIN.sub(rf'"\1=={version}"', text)
    else:
        text, count = MODULE.subn(f'__version__ = "{version}"', text)
    if count != 1:
        raise SystemExit(f"{path.relative_to(ROOT)} has {count} versions, not one")
    return text


def places() -> list[pathlib.Path]:
    """Returns the files that have the version."""
    projects = [ROOT / "pyproject.toml", *ROOT.glob("packages/*/pyproject.toml")]
    modules = ROOT.glob("packages/*/src/*/__init__.py")
    return sorted([*projects, *(path for path in modules if MODULE.search(path.read_text()))])


def main(version: str) -> None:
    """Writes the version everywhere, or nowhere if it is none or a file has no place for it."""
    if not re.fullmatch(VERSION, version):
        raise SystemExit(f"{version!r} is no version; write one such as 0.2.0 or 0.2.0rc1")
    texts = {path: changed(path, version) for path in places()}
    for path, text in texts.items():
        path.write_text(text)
    sys.stdout.write(f"{version} in {len(texts)} files\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
