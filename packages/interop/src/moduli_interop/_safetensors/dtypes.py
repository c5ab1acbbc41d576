"""The names that safetensors has for dtypes."""

from __future__ import annotations

import functools

import ml_dtypes
import numpy as np

__all__ = ["BITS", "DTYPES", "tag_of"]

DTYPES: dict[str, np.dtype] = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "U16": np.dtype(np.uint16),
    "I16": np.dtype(np.int16),
    "U32": np.dtype(np.uint32),
    "I32": np.dtype(np.int32),
    "U64": np.dtype(np.uint64),
    "I64": np.dtype(np.int64),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
    "C64": np.dtype(np.complex64),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E4M3FNUZ": np.dtype(ml_dtypes.float8_e4m3fnuz),
    "F8_E5M2FNUZ": np.dtype(ml_dtypes.float8_e5m2fnuz),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
    "F4": np.dtype(ml_dtypes.float4_e2m1fn),
}
"""The dtype under which each tag is read."""

BITS: dict[str, int] = {tag: 8 * dtype.itemsize for tag, dtype in DTYPES.items()} | {
    "F4": 4,  # two in a byte, the first in the low half
    "F6_E2M3": 6,
    "F6_E3M2": 6,
}
"""Bits of one number in the file."""

_TAGS = {dtype: tag for tag, dtype in DTYPES.items() if BITS[tag] == 8 * dtype.itemsize}


@functools.lru_cache(maxsize=256)
def tag_of(dtype: np.dtype) -> str | None:
    """Returns safetensors' name of a dtype, whatever its byte order; None if it has none.

    Example:
      >>> import numpy as np
      >>> from moduli_interop._safetensors.dtypes import tag_of
      >>> tag_of(np.dtype(">f4")), tag_of(np.dtype(np.complex128))
      ('F32', None)
    """
    return _TAGS.get(dtype.newbyteorder("="))
