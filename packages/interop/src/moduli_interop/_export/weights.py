"""The file of weights beside an exported program, in the format of safetensors."""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np

from moduli_interop._atomic import atomic_write
from moduli_interop._errors import UnsupportedValueError

__all__ = ["write_weights"]

_DTYPES = {
    "bool": "BOOL",
    "int8": "I8",
    "int16": "I16",
    "int32": "I32",
    "int64": "I64",
    "uint8": "U8",
    "uint16": "U16",
    "uint32": "U32",
    "uint64": "U64",
    "float16": "F16",
    "bfloat16": "BF16",
    "float32": "F32",
    "float64": "F64",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "complex64": "C64",
}


def write_weights(path: str, weights: Mapping[str, np.ndarray]) -> None:
    """Writes arrays by name; the file appears whole or not at all.

    Args:
      path: the file.
      weights: arrays by name.

    Raises:
      UnsupportedValueError: an array's dtype is none of the format's.
    """
    header: dict[str, object] = {"__metadata__": {"format": "moduli.export"}}
    blocks: list[np.ndarray] = []
    end = 0
    # large items first, so that each array begins at a multiple of its items' size
    for name in sorted(weights, key=lambda name: (-weights[name].dtype.itemsize, name)):
        array = np.asarray(weights[name])
        code = _DTYPES.get(array.dtype.name)
        if code is None:
            raise UnsupportedValueError(
                f"the weight {name!r} is of dtype {array.dtype.name}, which safetensors lacks; "
                'write weights="inside"'
            )
        start, end = end, end + array.nbytes
        header[name] = {"dtype": code, "shape": list(array.shape), "data_offsets": [start, end]}
        blocks.append(np.ascontiguousarray(array))
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with atomic_write(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for block in blocks:
            file.write(block.tobytes())
