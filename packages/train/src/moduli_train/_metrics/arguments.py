"""Reads the arguments of ``update``, with errors that name what is missing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from moduli.errors import ShapeError, VariableError

__all__ = ["masked_sum_and_count", "values_named"]


def values_named(metric: object, name: str, arguments: Mapping[str, Any]) -> Any:
    """Returns one keyword argument.

    Raises:
      VariableError: (a TypeError) if it was not given.
    """
    if name not in arguments:
        raise VariableError(
            f"{type(metric).__name__}.update needs the keyword argument `{name}`; got "
            f"{sorted(arguments) or 'none'}. Write `metric.update({name}=...)`, or make the "
            "metric with another `argname`"
        )
    return arguments[name]


def masked_sum_and_count(values: Any, mask: Any) -> tuple[jax.Array, jax.Array]:
    """Sums values in float32 and counts them.

    Args:
      values: numbers or booleans, of any shape.
      mask: None, or weights (booleans, 0 and 1) that broadcast to the shape of ``values``. A
        value whose weight is 0 counts for nothing, even if it is not finite.

    Returns:
      The sum (float32) and the count (int32).

    Raises:
      ShapeError: if the mask does not broadcast to the values.
    """
    values = jnp.asarray(values).astype(jnp.float32)
    if mask is None:
        return values.sum(), jnp.asarray(values.size, jnp.int32)
    mask = jnp.asarray(mask)
    try:
        mask = jnp.broadcast_to(mask, values.shape)
    except ValueError:
        raise ShapeError(
            f"the mask has shape {mask.shape}, which does not broadcast to the shape "
            f"{values.shape} of the values"
        ) from None
    weights = mask.astype(jnp.float32)
    total = jnp.where(weights == 0, 0.0, values * weights).sum()
    return total, mask.sum().astype(jnp.int32)
