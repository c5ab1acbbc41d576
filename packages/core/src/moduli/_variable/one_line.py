"""Values and Variables on one line, for messages and reprs."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from moduli._base.compat import Tracer, is_key_array

__all__ = ["summarize", "variable_repr"]

_SMALL = 8  # arrays with at most so many elements are shown whole


def summarize(value: Any, *, elements: bool = True) -> str:
    """Formats an array as ``float32[2, 3]``, a small one with its elements, the rest as is.

    Args:
      value: the value.
      elements: whether to show the elements of small arrays.

    Example:
      >>> import jax.numpy as jnp
      >>> from moduli._variable.one_line import summarize
      >>> summarize(jnp.ones((20, 3), jnp.float32)), summarize(3)
      ('float32[20, 3]', '3')
    """
    if isinstance(value, (jax.Array, np.ndarray, jax.ShapeDtypeStruct)):
        short = f"{value.dtype}{list(value.shape)}"
        if isinstance(value, (Tracer, jax.ShapeDtypeStruct)) or value.size > _SMALL or not elements:
            return short
        if is_key_array(value):
            return f"{short} {np.asarray(jax.random.key_data(value)).tolist()}"  # type: ignore[arg-type]
        try:
            return f"{short} {np.array2string(np.asarray(value), separator=', ', precision=4)}"
        except RuntimeError:  # a deleted (donated) buffer
            return f"{short} (deleted)"
    if isinstance(value, tuple) and not hasattr(value, "_fields"):
        inner = ", ".join(summarize(item, elements=elements) for item in value)
        return f"({inner},)" if len(value) == 1 else f"({inner})"
    if isinstance(value, tuple):
        fields = zip(value._fields, value, strict=False)  # type: ignore[attr-defined]
        inner = ", ".join(f"{name}={summarize(item, elements=elements)}" for name, item in fields)
        return f"{type(value).__name__}({inner})"
    if isinstance(value, list):
        return f"[{', '.join(summarize(item, elements=elements) for item in value)}]"
    if callable(value) and hasattr(value, "__name__"):
        return value.__name__
    return repr(value)


def variable_repr(variable: Any, *, elements: bool = True) -> str:
    """Formats a Variable on one line, without the elements of a small array if asked."""
    metadata = "".join(f", {k}={summarize(v)}" for k, v in variable._metadata.items())
    value = summarize(variable._value, elements=elements)
    return f"{type(variable).__name__}({value}{metadata})"
