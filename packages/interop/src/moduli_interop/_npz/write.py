"""Writes the built-in format."""

from __future__ import annotations

import hashlib
import zipfile
from typing import BinaryIO

import numpy as np

from moduli.errors import format_path
from moduli_interop._atomic import atomic_write
from moduli_interop._manifest import encode_manifest
from moduli_interop._npz.layout import (
    DATE,
    DIGITS,
    MANIFEST,
    SIGNATURE,
    TRAILER,
    VERSION,
    format_line,
)
from moduli_interop._stored import Checkpoint

__all__ = ["write"]

_ZIP64_FROM = 2**31 - 2**20


def write(path: str, checkpoint: Checkpoint) -> None:
    """Writes a checkpoint, atomically.

    Args:
      path: the file to make or to replace.
      checkpoint: what to write; arrays are read one after another.

    Raises:
      OSError: if the file cannot be written. The old file is then untouched.
    """
    manifest, arrays = encode_manifest(checkpoint, name=format_path, nested=True)
    total = len(manifest) + sum([array.nbytes for array in arrays.values()])
    with atomic_write(path, nbytes=total) as file:
        stream = _HashingStream(file)
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:  # type: ignore[call-overload]
            archive.writestr(_member(SIGNATURE), format_line(VERSION))
            archive.writestr(_member(MANIFEST), manifest)
            for name, array in arrays.items():
                assert array.read is not None
                _write_array(archive, f"{name}.npy", array.read())
            archive.comment = TRAILER + b"0" * DIGITS
        file.seek(-DIGITS, 2)
        file.write(stream.hexdigest())


def _write_array(archive: zipfile.ZipFile, name: str, bits: np.ndarray) -> None:
    large = bits.nbytes > _ZIP64_FROM
    with archive.open(_member(name), "w", force_zip64=large) as member:
        np.lib.format.write_array(member, bits, version=(1, 0), allow_pickle=False)


def _member(name: str) -> zipfile.ZipInfo:
    member = zipfile.ZipInfo(name, DATE)
    member.create_system = 3  # the same bytes on every system
    member.external_attr = 0o644 << 16
    return member


class _HashingStream:
    """Passes on what is written and hashes it. Without ``seek``: each byte is written once."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self._hash = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self._hash.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()

    def hexdigest(self) -> bytes:
        return self._hash.hexdigest().encode()
