"""Arrays in memory, of any library, as a source of tensors."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from moduli_interop._tensors.errors import TensorFileError
from moduli_interop._tensors.flat import flatten
from moduli_interop._tensors.stored import StoredTensor, Tensors

__all__ = ["read"]

_SOURCE = "the dict"


def read(mapping: Mapping[Any, Any]) -> Tensors:
    """Gives the arrays of a nested mapping by name; no array is copied before it is read.

    Raises:
      TensorFileError: if a value is no array, or two have one name.
    """
    tensors = {}
    for name, array in flatten(mapping, _is_leaf, _SOURCE).items():
        value = getattr(array, "value", array) if hasattr(array, "get_metadata") else array
        if isinstance(value, StoredTensor):
            tensors[name] = value
            continue
        if value is None:
            continue
        tensors[name] = _stored(name, value)
    return Tensors(_SOURCE, "arrays", tensors)


def _is_leaf(value: Any) -> bool:
    return not isinstance(value, (Mapping, list, tuple))


def _stored(name: str, value: Any) -> StoredTensor:
    if isinstance(value, (bool, int, float, complex)):
        value = np.asarray(value)
    if not hasattr(value, "shape") or not hasattr(value, "dtype"):
        raise TensorFileError(
            _SOURCE, f"is a {type(value).__name__}, no array; take it out before loading", name
        )
    if isinstance(value, np.ma.MaskedArray):
        raise TensorFileError(
            _SOURCE, "is a masked array, whose mask would be lost; fill it first: .filled()", name
        )
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        return _stored_of_torch(torch, name, value)
    try:
        dtype = value.dtype if isinstance(value.dtype, np.dtype) else np.asarray(value).dtype
    except TypeError as error:  # typed PRNG keys
        raise TensorFileError(_SOURCE, f"cannot be read by NumPy: {error}", name) from None
    if dtype.hasobject:
        raise TensorFileError(_SOURCE, "holds Python objects, no numbers", name)
    return StoredTensor(
        name,
        tuple(value.shape),
        dtype,
        _SOURCE,
        lambda: np.array(value),
        (lambda rows: np.array(value[rows])) if value.shape else None,
    )


def _stored_of_torch(torch: Any, name: str, tensor: Any) -> StoredTensor:
    """Describes a tensor of torch's; one that is no plain array is refused when it is read."""
    problem = ""
    if tensor.is_meta:
        problem = "is on torch's device meta, which keeps no numbers"
    elif tensor.is_quantized or tensor.is_nested or tensor.layout is not torch.strided:
        problem = "is no plain array; give it dense, as tensor.to_dense() or tensor.dequantize()"
    elif tensor.dtype is torch.complex32:
        problem = "is of torch's dtype complex32, for which NumPy has none"

    def refuse() -> np.ndarray:
        raise TensorFileError(_SOURCE, problem, name)

    if problem:
        shape = () if tensor.is_nested else tuple(tensor.shape)
        return StoredTensor(name, shape, np.dtype(np.void), _SOURCE, refuse)
    dtype = _torch_dtype(torch, tensor.dtype, name)

    def read() -> np.ndarray:
        try:
            return _from_torch(torch, tensor, dtype)
        except (RuntimeError, NotImplementedError, TypeError) as error:  # subclasses of Tensor
            raise TensorFileError(_SOURCE, f"cannot be read as an array: {error}", name) from error

    return StoredTensor(name, tuple(tensor.shape), dtype, _SOURCE, read)


def _torch_dtype(torch: Any, dtype: Any, name: str) -> np.dtype:
    text = str(dtype).removeprefix("torch.")
    special = getattr(ml_dtypes, text, None)
    if special is not None:
        return np.dtype(special)
    try:
        return np.dtype(text)
    except TypeError:
        raise TensorFileError(_SOURCE, f"is of torch's dtype {text}, unknown here", name) from None


def _from_torch(torch: Any, tensor: Any, dtype: np.dtype) -> np.ndarray:
    tensor = tensor.detach().cpu().contiguous().resolve_conj().resolve_neg()
    if hasattr(ml_dtypes, dtype.name):
        bits = tensor.reshape(-1).view(torch.uint8 if dtype.itemsize == 1 else torch.int16)
        return bits.numpy().copy().view(dtype).reshape(tuple(tensor.shape))
    return np.array(tensor.numpy())
