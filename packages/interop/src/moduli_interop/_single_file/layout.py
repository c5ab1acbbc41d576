"""The layout of a checkpoint in a safetensors file, version 1.

Any program that reads safetensors finds every array in it under its path, ``blocks.0.kernel``. What
makes it a checkpoint stands in the texts of its header, in this order:

- ``moduli.checkpoint``: the version of this layout.
- ``moduli.sha256``: the SHA-256 of the header, the eight bytes of its length with it, with ``0`` in
  the place of each of these 64 digits.
- ``moduli.crc32``: for each array, in the order of the manifest, the CRC-32 of each 16 MiB of it
  (eight hexadecimal digits each). It does not begin with 0 but with the CRC-32 of the array's
  name, dtype and shape, and with one more at each block, so bytes in a wrong place do not fit.
- ``moduli.manifest``: what ``_manifest`` describes.

The arrays fill the file without a gap, so every byte of it is covered. Dtypes that safetensors
cannot name (int4, some small floats) are there as unsigned integers of the same width, complex128
as pairs of float64; the manifest says what they are.

The digests find damage. They are no protection from somebody who writes a file on purpose; what
keeps such a file from doing harm is that nothing in it is executed and no size in it is believed
before it was compared with the length of the file.
"""

from __future__ import annotations

import functools
import hashlib
import os
import zlib
from typing import Any

import ml_dtypes
import numpy as np

from moduli_interop._dtypes import dtype_from_name, storage_dtype
from moduli_interop._safetensors.dtypes import tag_of
from moduli_interop._stored import StoredArray

__all__ = [
    "DIGEST",
    "DIGITS",
    "MANIFEST",
    "PREFIX",
    "SUMS",
    "VERSION",
    "VERSION_KEY",
    "described",
    "header_digest",
    "is_ours",
    "member_name",
    "place_of",
    "start_of",
    "stored_as",
]

VERSION = 1
VERSION_KEY = "moduli.checkpoint"
DIGEST = "moduli.sha256"
SUMS = "moduli.crc32"
MANIFEST = "moduli.manifest"
DIGITS = 64

PREFIX = b'{"__metadata__":{"moduli.checkpoint":"'
"""How the header of a checkpoint begins."""


def is_ours(path: str) -> bool:
    """Returns whether a file begins as a checkpoint of this format does."""
    if not os.path.isfile(path):
        return False
    with open(path, "rb") as file:
        return file.read(8 + len(PREFIX))[8:] == PREFIX


def member_name(path: tuple[Any, ...]) -> str:
    """Returns the name of an array as other programs write it: ``blocks.0.kernel``.

    Empty for the one name that safetensors has for itself.
    """
    name = ".".join(map(str, path))
    return "" if name == "__metadata__" else name


def stored_as(array: StoredArray) -> tuple[np.dtype, tuple[int, ...]]:
    """Returns the dtype and shape under which safetensors keeps an array."""
    dtype = _stored_dtype(array.dtype)
    return dtype, array.shape if array.dtype != "complex128" else (*array.shape, 2)


@functools.lru_cache(maxsize=256)
def _stored_dtype(name: str) -> np.dtype:
    dtype = dtype_from_name(name)
    if dtype == np.complex128:
        return np.dtype(np.float64)
    if tag_of(dtype) is None or dtype == ml_dtypes.float4_e2m1fn:
        return storage_dtype(name).newbyteorder("=")
    return dtype


def described(array: StoredArray) -> tuple[str | None, tuple[int, ...]]:
    """Returns the dtype and shape of an array as the header says them."""
    dtype, shape = stored_as(array)
    return tag_of(dtype), shape


def start_of(member: str, array: StoredArray) -> int:
    """Returns what the digest of an array begins with."""
    return zlib.crc32(f"{member}{_kind(array.dtype, array.shape)}".encode())


@functools.lru_cache(maxsize=256)
def _kind(dtype: str, shape: tuple[int, ...]) -> str:
    return f" {dtype} {shape}"


def place_of(header: bytes, key: str, length: int) -> int:
    """Returns where the text of a key stands in the first bytes of a file.

    Args:
      header: the first bytes, up to the first array.
      key: one of the keys above.
      length: how long its text is.

    Raises:
      ValueError: if it does not stand there.
    """
    mark = f'"{key}":"'.encode()  # a quote within a text has a backslash before it
    start = header.find(mark) + len(mark)
    if start < len(mark) or header[start + length : start + length + 1] != b'"':
        raise ValueError(f"the header has no {key} of {length} digits")
    return start


def header_digest(header: bytes) -> str:
    """Returns the digest of the first bytes of a file, as they should state it."""
    start = place_of(header, DIGEST, DIGITS)
    digest = hashlib.sha256(header[:start])
    digest.update(b"0" * DIGITS)
    digest.update(memoryview(header)[start + DIGITS :])
    return digest.hexdigest()
