"""States of data loaders as JSON: bytes, tuples, arrays and tensors are marked."""

from __future__ import annotations

import base64
import importlib
from typing import Any

import numpy as np

from moduli_train._errors import RunError

__all__ = ["decoded", "encoded"]


def encoded(value: Any) -> Any:
    """Returns a value as JSON can hold it.

    Raises:
      RunError: it holds an object of another kind.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, list):
        return [encoded(item) for item in value]
    if isinstance(value, tuple):
        return {"kind of": "tuple", "items": [encoded(item) for item in value]}
    if isinstance(value, dict):
        return {"kind of": "dict", "items": [[encoded(k), encoded(v)] for k, v in value.items()]}
    if isinstance(value, (bytes, bytearray)):
        return {"kind of": "bytes", "data": base64.b64encode(value).decode()}
    kind = "tensor" if type(value).__module__.partition(".")[0] == "torch" else "array"
    kind = "scalar" if isinstance(value, np.generic) else kind
    array = _array(value)
    if array is None:
        raise RunError(
            f"the state of the data holds a {type(value).__name__}, which no checkpoint can keep; "
            "it takes numbers, texts, bytes, arrays, and lists, tuples and dicts of these"
        )
    data = base64.b64encode(array.tobytes()).decode()
    return {"kind of": kind, "dtype": _name(array.dtype), "shape": list(array.shape), "data": data}


def _array(value: Any) -> np.ndarray | None:
    """Returns a value as an array whose bytes and name of dtype say all, or None."""
    try:
        array = np.asarray(value)
        return (
            array if np.dtype(_name(array.dtype)) == array.dtype and array.dtype != object else None
        )
    except TypeError:  # a key of JAX, a bfloat16 tensor of torch
        return None


def _name(dtype: np.dtype) -> str:
    return dtype.name if dtype.kind == "V" else dtype.str  # the latter is V2 for a bfloat16


def decoded(value: Any) -> Any:
    """Returns what :func:`encoded` was given."""
    if isinstance(value, list):
        return [decoded(item) for item in value]
    if not isinstance(value, dict):
        return value
    kind = value["kind of"]
    if kind == "tuple":
        return tuple(decoded(item) for item in value["items"])
    if kind == "dict":
        return {decoded(key): decoded(item) for key, item in value["items"]}
    data = base64.b64decode(value["data"])
    if kind == "bytes":
        return data
    array = np.frombuffer(bytearray(data), np.dtype(value["dtype"])).reshape(value["shape"])
    if kind == "scalar":
        return array[()]
    return importlib.import_module("torch").from_numpy(array) if kind == "tensor" else array
