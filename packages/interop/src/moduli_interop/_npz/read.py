"""Reads the built-in format, after proving that every byte is as it was written."""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np

from moduli_interop._dtypes import storage_dtype
from moduli_interop._errors import (
    CheckpointVersionError,
    CorruptCheckpointError,
    NotACheckpointError,
    TruncatedCheckpointError,
)
from moduli_interop._manifest import decode_manifest
from moduli_interop._npz.diagnose import where_cut, where_damaged
from moduli_interop._npz.layout import DIGITS, MANIFEST, TRAILER, VERSION, is_beginning, version_of
from moduli_interop._stored import Checkpoint, StoredArray

__all__ = ["read"]

_BLOCK = 1 << 20


def read(path: str) -> Checkpoint:
    """Reads a checkpoint.

    Args:
      path: the file.

    Returns:
      The checkpoint; its arrays are in memory.

    Raises:
      NotACheckpointError: if the file is something else.
      TruncatedCheckpointError: if it ends early.
      CorruptCheckpointError: if any byte differs from what was written.
      CheckpointVersionError: if it was written by a later release in another format.
      OSError: if it cannot be opened.
    """
    with open(path, "rb") as file:
        version = _verify(file, path)
        if version != VERSION:
            raise _wrong_version(path, version)
        try:
            with zipfile.ZipFile(file) as archive:

                def reader(name: str, array: StoredArray) -> Callable[[], np.ndarray]:
                    bits = _read_array(archive, f"{name}.npy", array)
                    return lambda: bits

                return decode_manifest(archive.read(MANIFEST), reader)
        except (ValueError, LookupError, zipfile.BadZipFile, NotImplementedError) as error:
            raise CorruptCheckpointError(
                f"the checkpoint {path} has the right checksum, but its content is not that of "
                f"format {VERSION}: {error}. It was not written by moduli.save"
            ) from error


def _verify(file: BinaryIO, path: str) -> int:
    """Checks the SHA-256 of the whole file and returns the format version."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = file.read(128)
    version = version_of(head)
    ending = len(TRAILER) + DIGITS
    file.seek(max(size - ending, 0))
    end = file.read()
    if len(end) < ending or not end.startswith(TRAILER):
        if version is None and not is_beginning(head):
            raise _not_a_checkpoint(file, path, size)
        if version not in (None, VERSION):
            raise _wrong_version(path, version)
        raise TruncatedCheckpointError(
            f"the checkpoint {path} does not end as it should after {size} bytes: it was cut off, "
            f"or something was appended to it{where_cut(file, size)}. moduli.save never leaves "
            "such a file, so it was probably copied or downloaded in part; copy it again"
        )
    if _digest(file, size - DIGITS) != end[len(TRAILER) :]:
        raise CorruptCheckpointError(
            f"the checkpoint {path} is damaged: its bytes do not have the SHA-256 that was "
            f"written with them{where_damaged(file)}. Nothing was loaded; use another copy"
        )
    if version is None:
        raise _not_a_checkpoint(file, path, size)
    return version


def _digest(file: BinaryIO, length: int) -> bytes:
    digest = hashlib.sha256()
    file.seek(0)
    while length > 0:
        block = file.read(min(_BLOCK, length))
        if not block:
            break
        digest.update(block)
        length -= len(block)
    digest.update(b"0" * DIGITS)
    return digest.hexdigest().encode()


def _not_a_checkpoint(file: BinaryIO, path: str, size: int) -> Exception:
    file.seek(0)
    head = file.read(4)
    if not size:
        what = "it is empty"
    elif head == b"PK\x03\x04":
        what = "it is another zip archive, such as an .npz file of numpy.savez"
    elif head[:1] == b"\x80":
        what = "it may be a pickle, which moduli never reads, because a pickle can run any code"
    else:
        what = f"it begins with the bytes {head!r}"
    return NotACheckpointError(f"{path} is not a checkpoint of moduli.save: {what}")


def _wrong_version(path: str, version: int | None) -> Exception:
    return CheckpointVersionError(
        f"the checkpoint {path} is of format {version}; this release of moduli-interop reads "
        f"format {VERSION}. Upgrade it: pip install -U moduli-interop"
    )


def _read_array(archive: zipfile.ZipFile, name: str, array: StoredArray) -> np.ndarray:
    if archive.getinfo(name).compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"the member {name} is compressed")
    with archive.open(name) as member:
        bits: Any = np.lib.format.read_array(member, allow_pickle=False)
        if member.read(1):
            raise ValueError(f"the member {name} is longer than its array")
    expected = storage_dtype(array.dtype)
    if bits.dtype != expected or bits.shape != array.shape:
        raise ValueError(
            f"the member {name} is {bits.dtype}{list(bits.shape)}, and the manifest says "
            f"{expected}{list(array.shape)}"
        )
    return bits
