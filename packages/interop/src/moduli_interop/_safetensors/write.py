"""Writes a safetensors file from arrays that are asked for one by one."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from typing import BinaryIO

import numpy as np

from moduli_interop._atomic import atomic_write
from moduli_interop._safetensors.dtypes import tag_of
from moduli_interop._safetensors.header import MAX_HEADER
from moduli_interop._tensors.errors import TensorFileError

__all__ = ["Spec", "layout", "write", "write_to"]


@dataclasses.dataclass(frozen=True)
class Spec:
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
        return math.prod(self.shape) * self.dtype.itemsize


def layout(
    specs: Iterable[Spec], metadata: Mapping[str, str] | None = None, path: str = "the file"
) -> tuple[bytes, list[Spec]]:
    """Makes the beginning of a file, and the order in which its tensors follow.

    Those with wide numbers come first, so that each begins at a multiple of its numbers' width and
    a mapped file gives aligned arrays.

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
    ordered = sorted(specs, key=lambda spec: (-spec.dtype.itemsize, spec.name))
    header: dict[str, object] = {}
    if metadata:
        header["__metadata__"] = dict(metadata)
    at = 0
    for spec in ordered:
        tag = tag_of(spec.dtype)
        if tag is None:
            raise TensorFileError(
                path, f"safetensors has no dtype {spec.dtype}; cast it before", spec.name
            )
        if spec.name in header or spec.name == "__metadata__":
            raise TensorFileError(path, "two tensors cannot have one name", spec.name)
        offsets = [at, at + spec.nbytes]
        header[spec.name] = {"dtype": tag, "shape": list(spec.shape), "data_offsets": offsets}
        at = offsets[1]
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
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
    with atomic_write(name) as file:
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
