"""Flax's msgpack files: nested maps whose arrays are an extension type."""

from __future__ import annotations

import dataclasses
import functools
import math
import mmap
import struct
from typing import Any

import numpy as np

from moduli_interop._dtypes import dtype_from_name
from moduli_interop._tensors.errors import TensorFileError
from moduli_interop._tensors.flat import MAX_DEPTH, flatten
from moduli_interop._tensors.reopened import Reopened
from moduli_interop._tensors.source import Opened
from moduli_interop._tensors.stored import StoredTensor, Tensors

__all__ = ["read", "recognises"]

_CHUNKED = "__msgpack_chunked_array__"


@dataclasses.dataclass(frozen=True)
class _Array:
    """An array of the file: where its bytes are, in one run or several."""

    shape: tuple[int, ...]
    dtype: np.dtype
    runs: tuple[tuple[int, int], ...]


class _Damaged(ValueError):
    pass


def recognises(opened: Opened) -> bool:
    """Returns whether a file begins with a map whose first key is a text."""
    start = opened.start
    if not start:
        return False
    at = 1 if 0x80 <= start[0] <= 0x8F else {0xDE: 3, 0xDF: 5}.get(start[0], 0)
    if at == 0 or len(start) <= at:
        return False
    return 0xA0 <= start[at] <= 0xBF or start[at] in (0xD9, 0xDA)


def read(path: str) -> Tensors:
    """Opens a file.

    Raises:
      TensorFileError: if it is damaged.
    """
    with open(path, "rb") as file:
        again = Reopened(path, file)
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            decoder = _Decoder(mapped, 0, len(mapped))
            try:
                described = decoder.value(0)
                if decoder.at != len(mapped):
                    raise _Damaged(f"{len(mapped) - decoder.at} bytes follow its end")
            except (_Damaged, struct.error, UnicodeDecodeError, OverflowError) as error:
                raise TensorFileError(path, f"the msgpack is damaged: {error}") from None
    found = flatten(described, lambda value: isinstance(value, _Array), path)
    tensors = {}
    for name, array in found.items():
        get = functools.partial(_read, again, array, name)
        tensors[name] = StoredTensor(name, array.shape, array.dtype, path, get)
    return Tensors(path, "msgpack", tensors)


class _Decoder:
    """Decodes what stands between two places of a buffer; of bytes it notes only the place."""

    def __init__(self, buffer: Any, at: int, stop: int):
        self._buffer, self.at, self._stop = buffer, at, stop

    def value(self, depth: int) -> Any:
        """Decodes one value; arrays become :class:`_Array`, bytes their (start, stop)."""
        if depth > MAX_DEPTH:
            raise _Damaged(f"it is nested deeper than {MAX_DEPTH} levels")
        code = self._number("B")
        if code <= 0x7F:
            return code
        if code <= 0x8F:
            return self._map(code & 15, depth)
        if code <= 0x9F:
            return self._list(code & 15, depth)
        if code <= 0xBF:
            return self._text(code & 31)
        if code >= 0xE0:
            return code - 256
        match code:
            case 0xC0:
                return None
            case 0xC2 | 0xC3:
                return code == 0xC3
            case 0xC4 | 0xC5 | 0xC6:
                return self._take(self._number("BHI"[code - 0xC4]))
            case 0xC7 | 0xC8 | 0xC9:
                return self._extension(self._number("BHI"[code - 0xC7]))
            case 0xCA | 0xCB:
                return self._number("fd"[code - 0xCA])
            case 0xCC | 0xCD | 0xCE | 0xCF:
                return self._number("BHIQ"[code - 0xCC])
            case 0xD0 | 0xD1 | 0xD2 | 0xD3:
                return self._number("bhiq"[code - 0xD0])
            case 0xD4 | 0xD5 | 0xD6 | 0xD7 | 0xD8:
                return self._extension(1 << (code - 0xD4))
            case 0xD9 | 0xDA | 0xDB:
                return self._text(self._number("BHI"[code - 0xD9]))
            case 0xDC | 0xDD:
                return self._list(self._number("HI"[code - 0xDC]), depth)
            case 0xDE | 0xDF:
                return self._map(self._number("HI"[code - 0xDE]), depth)
        raise _Damaged(f"the byte {code} begins no value")

    def _take(self, count: int) -> tuple[int, int]:
        start = self.at
        if count > self._stop - start:
            raise _Damaged("it ends early")
        self.at += count
        return start, self.at

    def _number(self, kind: str) -> Any:
        start, stop = self._take(struct.calcsize(f">{kind}"))
        return struct.unpack(f">{kind}", self._buffer[start:stop])[0]

    def _text(self, count: int) -> str:
        start, stop = self._take(count)
        return self._buffer[start:stop].decode("utf-8")

    def _list(self, count: int, depth: int) -> list[Any]:
        if count > self._stop - self.at:
            raise _Damaged("it ends early")
        return [self.value(depth + 1) for _ in range(count)]

    def _map(self, count: int, depth: int) -> Any:
        if 2 * count > self._stop - self.at:
            raise _Damaged("it ends early")
        found: dict[Any, Any] = {}
        for _ in range(count):
            key = self.value(depth + 1)
            if not isinstance(key, (str, int)):
                raise _Damaged("a key is no text and no number")
            if key in found:
                raise _Damaged(f"it has the key {str(key)[:100]!r} twice")
            found[key] = self.value(depth + 1)
        return _joined(found) if _CHUNKED in found else found

    def _extension(self, count: int) -> Any:
        kind = self._number("b")
        start, stop = self._take(count)
        if kind not in (1, 3):  # an array, a scalar of NumPy's; the other is a complex number
            return None
        inner = _Decoder(self._buffer, start, stop)
        match inner.value(MAX_DEPTH - 2):
            case (list(shape), str(name), (int(first), int(last))) if _sizes(shape):
                pass
            case _:
                raise _Damaged("an array is not described by shape, dtype and bytes")
        try:
            dtype = dtype_from_name(name)
        except KeyError:
            raise _Damaged(f"an array has the dtype {name[:50]!r}, which is not known") from None
        if math.prod(shape) * dtype.itemsize != last - first or inner.at != stop:
            raise _Damaged(f"{name}{shape} has {last - first} bytes")
        return _Array(tuple(shape), dtype, ((first, last),))


def _joined(found: dict[Any, Any]) -> _Array:
    """Puts the parts of a large array together."""
    shape, parts = found.get("shape"), found.get("chunks")
    if not isinstance(shape, dict) or not isinstance(parts, dict) or not parts:
        raise _Damaged("a large array has no shape or no parts")
    sizes: list[Any] = [shape.get(str(i)) for i in range(len(shape))]
    arrays: list[Any] = [parts.get(str(i)) for i in range(len(parts))]
    if not _sizes(sizes) or not all(isinstance(array, _Array) for array in arrays):
        raise _Damaged("a large array has no shape or no parts")
    runs = tuple(run for array in arrays for run in array.runs)
    if math.prod(sizes) * arrays[0].dtype.itemsize != sum(b - a for a, b in runs) or (
        len({array.dtype for array in arrays}) > 1
    ):
        raise _Damaged("the parts of a large array do not make up its shape")
    return _Array(tuple(sizes), arrays[0].dtype, runs)


def _sizes(shape: list[Any]) -> bool:
    return (
        len(shape) <= 64
        and all(type(n) is int and 0 <= n < 2**62 for n in shape)
        and math.prod(max(n, 1) for n in shape) < 2**60
    )


def _read(again: Reopened, array: _Array, name: str) -> np.ndarray:
    data = np.empty(math.prod(array.shape) * array.dtype.itemsize, np.uint8)
    at = 0
    for start, stop in array.runs:
        again.fill(data[at : at + stop - start], start, name)
        at += stop - start
    return data.view(array.dtype).reshape(array.shape)
