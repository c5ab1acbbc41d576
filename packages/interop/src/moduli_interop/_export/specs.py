"""What the inputs of an exported program look like, as users write them."""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.export
import jax.numpy as jnp

from moduli.errors import ShapeError

__all__ = ["input_specs"]

_WRITTEN = re.compile(r"\s*([A-Za-z]\w*)\s*\[([^\]]*)\]\s*")


def input_specs(specs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Makes shapes and dtypes of what a user writes.

    Args:
      specs: for each input an array, a ``jax.ShapeDtypeStruct``, text such as
        ``"float32[batch, 28, 28, 1]"``, or a pytree of these. Equal names of sizes are one size.

    Returns:
      The same with ``jax.ShapeDtypeStruct`` in the place of each.

    Raises:
      ShapeError: text that says no dtype and shape.
    """
    scope = jax.export.SymbolicScope()

    def spec(item: Any) -> Any:
        if not isinstance(item, str):
            if hasattr(item, "shape") and hasattr(item, "dtype"):
                return jax.ShapeDtypeStruct(item.shape, item.dtype)
            array = jnp.asarray(item)
            return jax.ShapeDtypeStruct(array.shape, array.dtype)
        match = _WRITTEN.fullmatch(item)
        try:
            if match is None:
                raise ValueError("it has another form")
            shape = jax.export.symbolic_shape(match[2], scope=scope) if match[2].strip() else ()
            return jax.ShapeDtypeStruct(shape, jnp.dtype(match[1]))
        except (TypeError, ValueError) as error:
            raise ShapeError(
                f"the spec {item!r} of an input is not understood ({error}); write a dtype and a "
                'shape, "float32[batch, 28, 28, 1]", where names are sizes that may change'
            ) from error

    return tuple(jax.tree.map(spec, item) for item in specs)
