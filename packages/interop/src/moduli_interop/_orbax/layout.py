"""The layout of a checkpoint that orbax writes, version 1.

A folder with ``arrays``, which is orbax's (zarr, one folder for each array, in which each process
has written its shards), and ``manifest.json``, of two
lines of JSON::

    {"moduli.checkpoint": 1, "sha256": of the bytes of the second line}
    {"manifest": text, see _manifest,
     "stored_as_bits": [member, ...],       dtypes that zarr does not know
     "files": {path below the folder: [size, CRC-32], ...}}

Orbax keeps no digests, so each file has one here; the files of an array are verified before it is
read. They find damage; they are no protection from somebody who forges a folder.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Iterator
from typing import Any

from moduli_interop._errors import MissingExtraError

__all__ = [
    "ARRAYS",
    "MANIFEST",
    "VERSION",
    "checkpointer",
    "file_digest",
    "files_of",
    "first_line",
    "import_orbax",
    "is_ours",
]

VERSION = 1
MANIFEST = "manifest.json"
ARRAYS = "arrays"
_BLOCK = 1 << 22


def is_ours(path: str) -> bool:
    """Returns whether a folder looks as one of this format."""
    manifest = os.path.join(path, MANIFEST)
    if not os.path.isfile(manifest):
        return False
    with open(manifest, "rb") as file:
        return file.read(22) == b'{"moduli.checkpoint": '


def first_line(version: int, content: bytes) -> bytes:
    """Returns the first line of a manifest, for the second one."""
    digest = hashlib.sha256(content).hexdigest()
    return f'{{"moduli.checkpoint": {version}, "sha256": "{digest}"}}\n'.encode()


def files_of(folder: str) -> Iterator[str]:
    """Yields the paths of all files below a folder, relative to it; with ``/`` everywhere."""
    for directory, _, names in os.walk(folder):
        for name in names:
            yield os.path.relpath(os.path.join(directory, name), folder).replace(os.sep, "/")


def file_digest(path: str) -> list[int]:
    """Returns the size and the CRC-32 of a file."""
    size, digest = 0, 0
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            size += len(block)
            digest = zlib.crc32(block, digest)
    return [size, digest]


def import_orbax() -> Any:
    """Imports orbax.

    Raises:
      MissingExtraError: if it is not installed; the text is the pip command.
    """
    try:
        import orbax.checkpoint as orbax
    except ImportError as error:
        raise MissingExtraError(
            'the format "orbax" needs orbax-checkpoint: pip install "moduli-interop[orbax]"'
        ) from error
    return orbax


def checkpointer(orbax: Any) -> Any:
    """Returns what reads and writes the folder ``arrays``: one folder for each array."""
    return orbax.Checkpointer(orbax.PyTreeCheckpointHandler(use_ocdbt=False))
