"""NumPy's own files: ``.npz``, ``.npy``, and equinox's ``.eqx``, many of these in one."""

from __future__ import annotations

import functools
import io
import math
import os
from typing import Any

import ml_dtypes
import numpy as np

from moduli_interop._tensors.errors import TensorFileError
from moduli_interop._tensors.reopened import Reopened
from moduli_interop._tensors.source import Opened
from moduli_interop._tensors.stored import StoredTensor, Tensors
from moduli_interop._tensors.zip import Archive

__all__ = ["read_eqx", "read_npz", "recognises_eqx", "recognises_npz"]

_START = b"\x93NUMPY"
_HEADER = 70_000  # more than NumPy writes for any array of numbers


def recognises_npz(opened: Opened) -> bool:
    """Returns whether all members of an archive are ``.npy`` files."""
    return bool(opened.members) and all(name.endswith(".npy") for name in opened.members)


def recognises_eqx(opened: Opened) -> bool:
    """Returns whether a file begins as ``.npy`` does, perhaps after one line of JSON."""
    first, _, rest = opened.start.partition(b"\n")
    return opened.start.startswith(_START) or (
        first[:1] in (b"{", b"[") and rest.startswith(_START)
    )


def read_npz(path: str) -> Tensors:
    """Opens an archive of arrays.

    Raises:
      TensorFileError: if it is damaged; the text names the array, if one is.
    """
    archive = Archive(path)
    tensors = {}
    for member, info in archive.members.items():
        name = member.removesuffix(".npy")
        first = archive.part(member, 0, min(info.file_size, _HEADER), name).tobytes()
        header = _header(first, path, name)
        if header.stop(0) != info.file_size:
            raise TensorFileError(
                path, f"has {info.file_size} bytes and should have {header.stop(0)}", name
            )
        get = functools.partial(_read_member, archive, member, header, name)
        tensors[name] = StoredTensor(name, header.shape, header.dtype, path, get)
    return Tensors(path, "npz", tensors)


def read_eqx(path: str) -> Tensors:
    """Opens a file of arrays one after another, which have numbers for names: ``"0"``, ``"1"``.

    Raises:
      TensorFileError: if it is damaged.
    """
    tensors: dict[str, StoredTensor] = {}
    with open(path, "rb") as file:
        again = Reopened(path, file)
        size = os.fstat(file.fileno()).st_size
        at = 0
        metadata = {}
        if file.read(len(_START)) != _START:
            file.seek(0)
            line = file.readline(_HEADER)
            metadata["header"] = line.decode("utf-8", "replace").strip()
            at = len(line)
        while at < size:
            name = str(len(tensors))
            file.seek(at)
            header = _header(file.read(_HEADER), path, name)
            if header.stop(at) > size:
                raise TensorFileError(path, "the file ends inside of it", name)
            get = functools.partial(_read_at, again, at, header, name)
            tensors[name] = StoredTensor(name, header.shape, header.dtype, path, get)
            at = header.stop(at)
    return Tensors(path, "npy", tensors, metadata)


class _Header:
    """What stands before the numbers of an array."""

    def __init__(self, length: int, shape: tuple[int, ...], fortran: bool, dtype: np.dtype):
        self.length, self.shape, self.fortran, self.stored = length, shape, fortran, dtype
        two_bytes = dtype.kind == "V" and dtype.itemsize == 2
        # NumPy writes the dtypes of ml_dtypes as bytes without a meaning; two are a bfloat16
        self.dtype = np.dtype(ml_dtypes.bfloat16) if two_bytes else dtype.newbyteorder("=")

    def stop(self, start: int) -> int:
        return start + self.length + math.prod(self.shape) * self.stored.itemsize

    def array(self, data: np.ndarray) -> np.ndarray:
        flat = data.view(self.stored)
        flat = flat.view(self.dtype) if self.stored.kind == "V" else flat.astype(self.dtype)
        return np.asarray(flat.reshape(self.shape, order="F" if self.fortran else "C"), order="C")


def _header(first: bytes, path: str, name: str) -> _Header:
    file = io.BytesIO(first)
    try:
        version = np.lib.format.read_magic(file)
        readers: Any = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }
        shape, fortran, dtype = readers[version](file)
    except KeyError:
        raise TensorFileError(path, "is of a version of .npy that is not known", name) from None
    except Exception as error:  # of literal_eval and of dtype there are many
        raise TensorFileError(path, f"its header is damaged: {str(error)[:200]}", name) from None
    if not all(type(n) is int and n >= 0 for n in shape) or len(shape) > 64:
        raise TensorFileError(path, "its header has no shape", name)
    if math.prod(max(n, 1) for n in shape) * max(dtype.itemsize, 1) >= 2**62:
        raise TensorFileError(path, "has a shape that no array has", name)
    if dtype.hasobject or dtype.fields is not None or dtype.subdtype is not None:
        raise TensorFileError(
            path,
            f"holds {dtype}, no numbers; objects are pickled, and nothing here unpickles",
            name,
        )
    return _Header(file.tell(), tuple(shape), bool(fortran), dtype)


def _read_member(archive: Archive, member: str, header: _Header, name: str) -> np.ndarray:
    return header.array(archive.part(member, header.length, header.stop(0), name))


def _read_at(again: Reopened, start: int, header: _Header, name: str) -> np.ndarray:
    data = np.empty(header.stop(0) - header.length, np.uint8)
    return header.array(again.fill(data, start + header.length, name))
