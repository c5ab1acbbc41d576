"""Torch's files before version 1.6: five pickles one after another, then the storages."""

from __future__ import annotations

import os
from typing import Any, BinaryIO

import numpy as np

from moduli_interop._tensors.errors import TensorFileError
from moduli_interop._tensors.reopened import Reopened
from moduli_interop._tensors.source import Opened
from moduli_interop._tensors.stored import Tensors
from moduli_interop._tensors.torch.files import tensors_of
from moduli_interop._tensors.torch.objects import TABLE, Storage, storage_dtype
from moduli_interop._tensors.torch.unpickle import PickleError, Record, unpickle

__all__ = ["read", "recognises"]

_MAGIC = 0x1950A86A20F9469CFC6C
_START = b"\x80\x02\x8a\x0a" + _MAGIC.to_bytes(10, "little")


def recognises(opened: Opened) -> bool:
    """Returns whether a file begins with the number of these files."""
    return opened.start.startswith(_START)


def read(path: str) -> Tensors:
    """Opens a file.

    Raises:
      TensorFileError: if it is damaged.
    """
    with open(path, "rb") as file:
        again = Reopened(path, file)
        try:
            described, places, big_endian = _describe(_Bounded(file))
        except PickleError as error:
            raise TensorFileError(path, str(error)) from None

    def span(key: str, start: int, stop: int, tensor: str) -> np.ndarray:
        return again.fill(np.empty(stop - start, np.uint8), places[key] + start, tensor)

    return tensors_of(described, path, "torch (legacy)", span, big_endian)


def _describe(file: _Bounded) -> tuple[Any, dict[str, int], bool]:
    """Returns what the file describes, where each storage begins, and the order of its bytes."""
    for expected in (_MAGIC, 1001):
        if unpickle(file, {}) != expected:
            raise PickleError("the file does not begin as torch's legacy files do")
    system = unpickle(file, {})
    big_endian = isinstance(system, dict) and system.get("little_endian") is False
    storages: dict[str, Storage] = {}

    def storage(identity: Any) -> Any:
        match identity:
            case ("module", *rest):
                return rest[0] if rest else Record("module")
            case ("storage", kind, str(key), _, int(size), *view) if size >= 0 and len(view) < 2:
                made = Storage(key, storage_dtype(kind), size)
            case _:
                raise PickleError("a persistent id of the pickle is none of a storage")
        if storages.setdefault(key, made) != made:
            raise PickleError(f"the storage {key[:50]!r} is described in two ways")
        match view:
            case [] | [None]:
                return made
            case [(str(), int(base), int(length))] if base >= 0 and 0 <= length <= size - base:
                return Storage(key, made.dtype, length, base)
            case _:
                raise PickleError(f"a part of the storage {key[:50]!r} lies outside of it")

    described = unpickle(file, TABLE, storage)
    order = unpickle(file, {})
    if not isinstance(order, list) or not all(isinstance(key, str) for key in order):
        raise PickleError("the list of storages is damaged")
    if len(set(order)) != len(order) or set(order) != set(storages):
        raise PickleError("the storages of the file are not those that it describes")
    places: dict[str, int] = {}
    for key in order:
        found = storages[key]
        count = int.from_bytes(file.read(8), "big" if big_endian else "little")
        nbytes = found.size * (1 if found.dtype is None else found.dtype.itemsize)
        if count != found.size:
            raise PickleError(
                f"the storage {key[:50]!r} has {count} numbers and should have {found.size}"
            )
        places[key] = file.tell()
        file.skip(nbytes)
    if file.left:
        raise PickleError(f"{file.left} bytes follow the last storage")
    return described, places, big_endian


class _Bounded:
    """A file that takes no more memory than it has bytes, whatever it is asked for."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self._size = os.fstat(file.fileno()).st_size

    @property
    def left(self) -> int:
        return self._size - self.tell()

    def tell(self) -> int:
        return self._file.tell()

    def read(self, count: int) -> bytes:
        return self._file.read(min(count, self.left))

    def readline(self) -> bytes:
        return self._file.readline()

    def skip(self, count: int) -> None:
        if count > self.left:
            raise PickleError("the file is truncated")
        self._file.seek(count, os.SEEK_CUR)
