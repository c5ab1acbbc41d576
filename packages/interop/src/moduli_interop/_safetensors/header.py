"""What a safetensors file says of itself, checked before anything of it is believed."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, BinaryIO

from moduli_interop._safetensors.dtypes import BITS
from moduli_interop._tensors.errors import TensorFileError

__all__ = ["MAX_HEADER", "Entry", "Header", "read_header"]

MAX_HEADER = 100_000_000
"""Most bytes of a header; the format itself sets this limit."""

_METADATA = "__metadata__"
_FIELDS = {"dtype", "shape", "data_offsets"}


@dataclasses.dataclass(frozen=True)
class Entry:
    """What the header says of one tensor.

    Attributes:
      name: its name.
      tag: the format's name of its dtype, ``"F32"``.
      shape: its shape.
      start: where its bytes begin, from the beginning of the file.
      stop: where they end.
    """

    name: str
    tag: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclasses.dataclass(frozen=True)
class Header:
    """A header that describes its file exactly: no byte of it is unaccounted for or used twice.

    Attributes:
      entries: the tensors by name, in the order of the file's header.
      metadata: texts by name.
    """

    entries: Mapping[str, Entry]
    metadata: Mapping[str, str]


def read_header(file: BinaryIO, path: str) -> Header:
    """Reads and checks the header of an open file.

    Args:
      file: the file.
      path: its name, for errors.

    Returns:
      The header.

    Raises:
      TensorFileError: if the header is longer than the file or than 100 MB, is not JSON of the
        expected form, says a name twice, or if the tensors overlap, leave a gap, are of another
        size than their shapes or do not fill the file.
    """
    size = os.fstat(file.fileno()).st_size
    file.seek(0)
    first = file.read(8)
    if len(first) < 8:
        raise TensorFileError(path, f"is {size} bytes long; a safetensors file has at least 8")
    length = int.from_bytes(first, "little")
    if length > MAX_HEADER:
        raise TensorFileError(
            path, f"says that its header has {length} bytes; at most {MAX_HEADER} are allowed"
        )
    if length > size - 8:
        raise TensorFileError(
            path,
            f"says that its header has {length} bytes, and {size - 8} follow; the file is "
            "truncated, or no safetensors file",
        )
    described = _decode(file.read(length), path)
    _check_texts(described, path)
    metadata = described.pop(_METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise TensorFileError(path, f"{_METADATA} of the header has to hold texts by name")
    start = 8 + length
    entries = {name: _entry(name, value, start, path) for name, value in described.items()}
    _check_places(entries, start, size, path)
    return Header(MappingProxyType(entries), MappingProxyType(metadata))


def _decode(text: bytes, path: str) -> dict[str, Any]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            seen: set[str] = set()
            for name, _ in pairs:
                if name in seen:
                    raise TensorFileError(path, "the header has this name twice", name)
                seen.add(name)
        return found

    try:
        described = json.loads(text.decode("utf-8"), object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        if isinstance(error, TensorFileError):
            raise
        problem = str(error)[:200] or type(error).__name__
        raise TensorFileError(path, f"the header is no JSON: {problem}") from None
    if not isinstance(described, dict):
        raise TensorFileError(path, "the header is no JSON object of names")
    return described


def _check_texts(described: dict[str, Any], path: str) -> None:
    for name in described:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise TensorFileError(path, f"the name {name[:100]!a} is no text") from None


def _entry(name: str, value: Any, start: int, path: str) -> Entry:
    if not isinstance(value, dict) or value.keys() != _FIELDS:
        raise TensorFileError(
            path, "the header has to give its dtype, shape and data_offsets, nothing else", name
        )
    tag, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(tag, str) or tag not in BITS:
        raise TensorFileError(
            path, f"has the dtype {str(tag)[:50]!r}; known are {', '.join(BITS)}", name
        )
    if not _sizes(shape):
        raise TensorFileError(path, "the shape in the header is no list of sizes", name)
    if not _sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise TensorFileError(path, "data_offsets in the header is no [begin, end]", name)
    if len(shape) > 64 or math.prod(max(n, 1) for n in shape) >= 2**60:
        raise TensorFileError(path, "has a shape that no array has", name)
    bits = math.prod(shape) * BITS[tag]
    if bits != 8 * (offsets[1] - offsets[0]):
        need = f"{bits // 8} bytes" if bits % 8 == 0 else f"{bits} bits, which are no whole bytes"
        raise TensorFileError(
            path,
            f"{tag}{shape} takes {need}, and the header gives it {offsets[1] - offsets[0]} bytes",
            name,
        )
    return Entry(name, tag, tuple(shape), start + offsets[0], start + offsets[1])


def _sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(v) is int and 0 <= v < 2**63 for v in value)


def _check_places(entries: dict[str, Entry], start: int, size: int, path: str) -> None:
    at, before = start, "the header"
    for entry in sorted(entries.values(), key=lambda entry: (entry.start, entry.stop)):
        if entry.start != at:
            what = "overlap those of" if entry.start < at else "leave a gap after"
            raise TensorFileError(path, f"its bytes {what} {before}", entry.name)
        at, before = entry.stop, repr(entry.name[:200])
    if at == size:
        return
    if at > size:
        cut = min((e for e in entries.values() if e.stop > size), key=lambda e: e.start)
        raise TensorFileError(
            path, f"the file is truncated: it has {size} bytes and should have {at}", cut.name
        )
    raise TensorFileError(
        path, f"{size - at} bytes follow the last tensor, which belong to none; the file is damaged"
    )
