"""Writes a safetensors file from arrays that are asked for one by one."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from typing import BinaryIO, NamedTuple

import numpy as np

from moduli_interop._atomic import atomic_write
from moduli_interop._safetensors.dtypes import tag_of
from moduli_interop._safetensors.header import MAX_HEADER
from moduli_interop._tensors.errors import TensorFileError

__all__ = ["Spec", "layout", "write", "write_to"]


_json = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode
_quoted = json.encoder.encode_basestring  # what encode comes to for a text, without its detour


class Spec(NamedTuple):
    """A tensor to write.

    Attributes:
      name: its name.
      dtype: its dtype, one that the format has a name for.
      shape: its shape.
      read: gives the array; called once, when its turn has come.
    """

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        """How many bytes it takes in the file."""
        return math.prod(self.shape, start=self.dtype.itemsize)


def layout(
    specs: Iterable[Spec], metadata: Mapping[str, str] | None = None, path: str = "the file"
) -> tuple[bytes, list[Spec]]:
    """Makes the beginning of a file, and the order in which its tensors follow.

    Those with wide numbers come first, so that each begins at a multiple of its numbers' width and
    a mapped file gives aligned arrays; otherwise they stay in their order, so that what is read
    together stands together.

    Args:
      specs: the tensors.
      metadata: texts to keep in the header.
      path: the file's name, for errors.

    Returns:
      The first bytes, up to the first tensor; and the tensors in order.

    Raises:
      TensorFileError: if two have one name, one has a dtype that the format lacks, or the header
        would be over its limit.
    """
    ordered = sorted(specs, key=lambda spec: -spec.dtype.itemsize)
    names = {"__metadata__"}
    header = [f'"__metadata__":{_json(dict(metadata))}'] if metadata else []
    at = 0
    for spec in ordered:
        name, tag = spec.name, tag_of(spec.dtype)
        if tag is None:
            raise TensorFileError(
                path, f"safetensors has no dtype {spec.dtype}; cast it before", spec.name
            )
        if name in names:
            raise TensorFileError(path, "two tensors cannot have one name", spec.name)
        names.add(name)
        begin, at = at, at + spec.nbytes
        shape = ",".join([str(size) for size in spec.shape])
        header.append(
            f'{_quoted(name)}:{{"dtype":"{tag}","shape":[{shape}],"data_offsets":[{begin},{at}]}}'
        )
    text = f"{{{','.join(header)}}}".encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER:
        raise TensorFileError(
            path,
            f"the header would have {len(text)} bytes, and {MAX_HEADER} are allowed; write "
            "several files",
        )
    return len(text).to_bytes(8, "little") + text, ordered


def write(
    path: str | os.PathLike[str],
    specs: Iterable[Spec],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes a file, atomically; one array is in memory at a time.

    Args:
      path: the file to make or to replace.
      specs: the tensors.
      metadata: texts to keep in the header.

    Raises:
      TensorFileError: see :func:`layout`; or an array is not what its Spec says.
      OSError: if the file cannot be written. An old one is then untouched.
    """
    name = os.fspath(path)
    first, ordered = layout(specs, metadata, name)
    total = len(first) + sum([spec.nbytes for spec in ordered])
    with atomic_write(name, nbytes=total) as file:
        file.write(first)
        for spec in ordered:
            write_to(file, spec, name)


def write_to(file: BinaryIO, spec: Spec, path: str) -> memoryview:
    """Writes one tensor at the place where an open file stands.

    Args:
      file: the file.
      spec: the tensor.
      path: the file's name, for errors.

    Returns:
      The bytes that were written.
    """
    array = np.asarray(spec.read())
    if array.shape != spec.shape or array.dtype.newbyteorder("=") != spec.dtype.newbyteorder("="):
        raise TensorFileError(
            path,
            f"was to be {spec.dtype}{list(spec.shape)} and is {array.dtype}{list(array.shape)}",
            spec.name,
        )
    flat = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).reshape(-1)
    data = flat.view(np.uint8).data
    file.write(data)
    return data
