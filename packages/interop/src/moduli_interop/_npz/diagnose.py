"""Finds out where a file of the built-in format is damaged or cut off, for the error message.

Whatever goes wrong here is no news: the file is known to be bad, so the answer is then less exact.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO

from moduli.errors import format_path
from moduli_interop._manifest import decode_path
from moduli_interop._match import cut
from moduli_interop._npz.layout import MANIFEST

__all__ = ["where_cut", "where_damaged"]

_BAD_FILE = (
    zipfile.BadZipFile,
    zlib.error,
    NotImplementedError,
    RuntimeError,  # zipfile: "encrypted", or a JSON nested too deep
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    EOFError,
    OSError,
    OverflowError,
    MemoryError,
)


def where_damaged(file: BinaryIO) -> str:
    """Names the arrays whose CRC-32 is wrong.

    Args:
      file: the damaged file.

    Returns:
      A clause for an error message, beginning with ``"; "`` unless it is empty.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            manifest = archive.getinfo(MANIFEST)
            if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
                raise ValueError("moduli compresses nothing")  # it might grow without end
            paths = {f"{member}.npy": path for member, path in _members(archive.read(manifest))}
            bad = [name for name in archive.namelist() if not _is_intact(archive, name)]
    except _BAD_FILE:
        return "; the zip directory or the manifest is hit, so the arrays cannot be told apart"
    if not bad:
        return "; the arrays are whole, but what describes them is not"
    return "; damaged: " + cut([f"`{paths.get(name, name)}`" for name in bad])


def _is_intact(archive: zipfile.ZipFile, name: str) -> bool:
    try:
        with archive.open(name) as member:
            while member.read(1 << 20):
                pass
    except _BAD_FILE:
        return False
    return True


def where_cut(file: BinaryIO, size: int) -> str:
    """Names the array in which a file ends, from the manifest at its beginning.

    Args:
      file: the truncated file.
      size: its length.

    Returns:
      A clause for an error message, beginning with ``"; "`` unless it is empty.
    """
    file.seek(0)
    try:
        names = list(_members(_manifest_in(file)))
    except _BAD_FILE:
        return "; it ends before the first array"
    offset, last = 0, None
    for member, path in names:
        found = _find(file, member.encode() + b".npy", offset, size)
        if found is None:
            break
        offset, last = found, path
    whole = [path for _, path in names]
    if last is None:
        return "; it ends before the first array" if names else ""
    return (
        f"; the last array that begins in it is `{last}`, {whole.index(last) + 1} of {len(whole)}"
    )


def _manifest_in(file: BinaryIO) -> bytes:
    """Cuts the manifest out of a file that has no zip directory any more."""
    head = b""
    while block := file.read(1 << 20):
        head += block
        start = head.find(MANIFEST.encode())
        end = head.find(b"PK\x07\x08", start)
        if start >= 0 and end >= 0:
            return head[start + len(MANIFEST) : end]
    raise ValueError("no manifest")


def _find(file: BinaryIO, name: bytes, offset: int, size: int) -> int | None:
    block_size = 1 << 20
    while offset < size:
        file.seek(offset)
        block = file.read(block_size + len(name))
        found = block.find(name)
        if found >= 0:
            return offset + found + len(name)
        offset += block_size
    return None


def _members(manifest: bytes) -> Iterator[tuple[str, str]]:
    """Yields (member, path as text) of every array of a manifest, in order."""
    for leaf in json.loads(manifest)["leaves"]:
        for path, member in _arrays(leaf["value"], decode_path(leaf["path"])):
            yield member, format_path(path)


def _arrays(value: Any, path: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], str]]:
    ((kind, item),) = value.items()
    if kind == "array":
        yield path, item["member"]
    elif kind in ("tuple", "list"):
        for index, child in enumerate(item):
            yield from _arrays(child, (*path, index))
    elif kind == "dict":
        for key, child in item:
            yield from _arrays(child, (*path, *decode_path([key])))
    elif kind == "namedtuple":
        for field, child in zip(item["fields"], item["items"], strict=True):
            yield from _arrays(child, (*path, field))
