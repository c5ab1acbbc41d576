"""The layout of the built-in format, version 1.

A checkpoint is an uncompressed zip archive, as ``numpy.savez`` writes it, so ``numpy.load(path)``
opens it and gives every array by the name of its path. Its members, in this order:

1. ``moduli.checkpoint``: the line ``moduli checkpoint, format 1``. It comes first, with a zip
   header of fixed length, so the first bytes of the file say what it is.
2. ``manifest.json``: what ``_manifest`` describes.
3. one ``<name>.npy`` for each array, little-endian and in C order. Dtypes that numpy cannot name
   (bfloat16, float8, int4, ...) are there as unsigned integers of the same width.

Every member has its CRC-32 in the zip directory. The archive's comment, the last 78 bytes of the
file, is ``moduli sha256 `` and 64 hexadecimal digits: the SHA-256 of the whole file with ``0`` in
the place of each of these digits. So any changed byte is noticed, and the CRCs tell where it is.
Equal models and metadata give equal files: nothing in it depends on time or machine.
"""

from __future__ import annotations

import os
import re
import struct

__all__ = [
    "DATE",
    "DIGITS",
    "MANIFEST",
    "SIGNATURE",
    "TRAILER",
    "VERSION",
    "format_line",
    "is_beginning",
    "is_ours",
    "version_of",
]

VERSION = 1
"""The version that this release writes, and the newest that it reads."""

SIGNATURE = "moduli.checkpoint"
MANIFEST = "manifest.json"
DATE = (1980, 1, 1, 0, 0, 0)

TRAILER = b"moduli sha256 "
DIGITS = 64

_LOCAL_HEADER = 30
_LINE = re.compile(rb"moduli checkpoint, format (\d{1,9})\n")


def format_line(version: int) -> bytes:
    """Returns the content of the first member."""
    return b"moduli checkpoint, format %d\n" % version


def version_of(head: bytes) -> int | None:
    """Reads the format version from the first bytes of a file.

    Args:
      head: at least the first 100 bytes, if the file has so many.

    Returns:
      The version, or None if they are not the beginning of a checkpoint.
    """
    if head[:4] != b"PK\x03\x04" or len(head) < _LOCAL_HEADER:
        return None
    name_length, extra_length = struct.unpack("<HH", head[26:_LOCAL_HEADER])
    name_end = _LOCAL_HEADER + name_length
    if head[_LOCAL_HEADER:name_end] != SIGNATURE.encode() or extra_length:
        return None
    line = _LINE.match(head, name_end)
    return int(line[1]) if line else None


def is_beginning(data: bytes) -> bool:
    """Returns whether a few bytes may be the beginning of a checkpoint that was cut off there."""
    signature = SIGNATURE.encode() + format_line(VERSION)
    start = data[:4] == b"PK\x03\x04"[: len(data)] and bool(data)
    return start and len(data) < 100 and signature.startswith(data[_LOCAL_HEADER:])


def is_ours(path: str) -> bool:
    """Returns whether a file begins as a checkpoint of this format does."""
    if not os.path.isfile(path):
        return False
    with open(path, "rb") as file:
        return version_of(file.read(128)) is not None
