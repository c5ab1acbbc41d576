"""From the tensors that a torch file describes to arrays."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from moduli_interop._tensors.errors import TensorFileError
from moduli_interop._tensors.flat import flatten
from moduli_interop._tensors.stored import StoredTensor, Tensors
from moduli_interop._tensors.torch.objects import OtherTensor, TensorView, children

__all__ = ["Span", "tensors_of"]

Span = Callable[[str, int, int, str], np.ndarray]
"""``read(key, start, stop, tensor)`` gives the bytes from ``start`` to ``stop`` of a storage."""


def tensors_of(described: Any, path: str, kind: str, read: Span, big_endian: bool) -> Tensors:
    """Names the tensors of what a pickle describes.

    Args:
      described: what it describes.
      path: the file.
      kind: the name of its kind.
      read: reads bytes of a storage.
      big_endian: whether its numbers are stored with the highest byte first.

    Raises:
      TensorFileError: if two tensors have one name.
    """
    kinds = (TensorView, OtherTensor)
    found = flatten(described, lambda value: isinstance(value, kinds), path, children)
    tensors = {}
    for name, view in found.items():
        if isinstance(view, OtherTensor):
            refuse = functools.partial(_refuse, view, name, path)
            tensors[name] = StoredTensor(name, (), np.dtype(np.void), path, refuse)
            continue
        dtype = np.dtype(np.void) if view.dtype is None else view.dtype
        get = functools.partial(_read, view, name, path, read, big_endian)
        tensors[name] = StoredTensor(name, view.shape, dtype, path, get)
    return Tensors(path, kind, tensors)


def _refuse(view: OtherTensor, name: str, path: str) -> np.ndarray:
    if "meta" in view.name:
        raise TensorFileError(
            path, "is on torch's device meta, which keeps no numbers; save it from another", name
        )
    raise TensorFileError(
        path,
        f"is no plain array (torch makes it with {view.name}); save it dense, as tensor.to_dense() "
        "or tensor.dequantize()",
        name,
    )


def _read(view: TensorView, name: str, path: str, read: Span, big_endian: bool) -> np.ndarray:
    dtype = view.dtype
    if dtype is None:
        raise TensorFileError(
            path, f"is of torch's dtype {view.dtype_name}, for which NumPy has none", name
        )
    start, stop = view.span
    data = read(view.storage.key, start * dtype.itemsize, stop * dtype.itemsize, name)
    flat = data.view(dtype)
    if big_endian != (sys.byteorder == "big"):
        flat = _swapped(flat, dtype)
    strides = tuple(step * dtype.itemsize for step in view.strides)
    array = np.ndarray(view.shape, dtype, flat.view(np.uint8), strides=strides)
    if not array.flags.c_contiguous or array.size != flat.size:
        array = array.copy(order="C")
    if view.conjugate:
        array = np.conjugate(array)
    return -array if view.negative else array


def _swapped(flat: np.ndarray, dtype: np.dtype) -> np.ndarray:
    if dtype.itemsize == 1:
        return flat
    if dtype.kind == "V":  # bfloat16: NumPy does not swap its bytes
        return flat.view(np.uint16).byteswap().view(dtype)
    return flat.byteswap()
