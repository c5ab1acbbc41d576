"""Names of the dtypes that a checkpoint may hold, and how their bits are stored.

numpy cannot name the small floats and ints of machine learning (bfloat16, float8, int4, ...) in a
``.npy`` header, so these are stored as unsigned integers of the same width; the name says what
they are. Names are looked up in a fixed table: what a file says is never evaluated.
"""

from __future__ import annotations

import functools

import ml_dtypes
import numpy as np

__all__ = ["dtype_from_name", "dtype_name", "from_bits", "storage_dtype", "to_bits"]

_NATIVE = {
    name: np.dtype(name)
    for name in (
        "bool",
        *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
        *("float16", "float32", "float64", "complex64", "complex128"),
    )
}


def _extended() -> dict[str, np.dtype]:
    found = {}
    for name, scalar in vars(ml_dtypes).items():
        if isinstance(scalar, type) and issubclass(scalar, np.generic):
            dtype = np.dtype(scalar)
            if dtype.itemsize in (1, 2, 4):
                found[name] = dtype
    return found


_EXTENDED = _extended()


@functools.lru_cache(maxsize=256)
def dtype_name(dtype: np.dtype) -> str | None:
    """Returns the name of a dtype, whatever its byte order, or None if it cannot be stored.

    Example:
      >>> import numpy as np, ml_dtypes
      >>> from moduli_interop._dtypes import dtype_name
      >>> dtype_name(np.dtype(">f4")), dtype_name(np.dtype(ml_dtypes.bfloat16))
      ('float32', 'bfloat16')
      >>> dtype_name(np.dtype(object)) is None
      True
    """
    name = dtype.name
    known = _NATIVE.get(name) or _EXTENDED.get(name)
    return name if known is not None and known == dtype.newbyteorder("=") else None


def dtype_from_name(name: str) -> np.dtype:
    """Returns the dtype of a name that :func:`dtype_name` gave.

    Raises:
      KeyError: if there is no such name.
    """
    native = _NATIVE.get(name)
    return _EXTENDED[name] if native is None else native


@functools.lru_cache(maxsize=256)
def storage_dtype(name: str) -> np.dtype:
    """Returns the little-endian dtype under which the bits of a dtype are written."""
    if name in _NATIVE:
        return _NATIVE[name].newbyteorder("<")
    return np.dtype(f"<u{_EXTENDED[name].itemsize}")


def to_bits(array: np.ndarray, name: str) -> np.ndarray:
    """Returns the array, C-contiguous, under its storage dtype; no bit of a value changes."""
    if name in _NATIVE:
        return np.asarray(array, dtype=storage_dtype(name), order="C")
    return np.asarray(array, order="C").view(storage_dtype(name))


def from_bits(bits: np.ndarray, name: str) -> np.ndarray:
    """Turns what :func:`to_bits` gave back into an array of the named dtype."""
    dtype = dtype_from_name(name)
    if name in _NATIVE:
        return np.asarray(bits, dtype=dtype)
    return np.asarray(bits, dtype=f"=u{dtype.itemsize}").view(dtype)
