"""transform_metadata as a decorator: which name the mapped axis of a function has."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import moduli

__all__ = ["transform_metadata"]


def transform_metadata(
    f: Callable[..., Any] | None = None,
    *,
    in_axes: Any = 0,
    out_axes: Any = 0,
    partition: str | None,
    graph: bool | None = None,
) -> Any:
    """Names the axis that vmap, pmap or scan maps: ``nnx.vmap(transform_metadata(f, ...))``.

    It is the argument ``transform_metadata={moduli.PARTITION_NAME: partition}`` of these three,
    said with the function. A function that none of them maps is called as it is.

    Args:
      f: the function. Without it a decorator is returned.
      in_axes: accepted; the axes are those of the transform.
      out_axes: likewise.
      partition: the name.
      graph: accepted, as everywhere.

    Returns:
      The function, marked.

    Example:
      >>> import moduli as nnx, jax.numpy as jnp
      >>> param = nnx.Param(jnp.ones((2, 3)), out_sharding=("layers", "in"))
      >>> seen = []
      >>> @nnx.vmap
      ... @nnx.transform_metadata(partition="layers")
      ... def look(param):
      ...     seen.append(param.out_sharding)
      >>> look(param)
      >>> seen, param.out_sharding
      ([('in',)], ('layers', 'in'))
    """
    if f is None:
        return functools.partial(
            transform_metadata, in_axes=in_axes, out_axes=out_axes, partition=partition
        )

    @functools.wraps(f)
    def marked(*args: Any, **kwargs: Any) -> Any:
        return f(*args, **kwargs)

    marked.__moduli_transform_metadata__ = {moduli.PARTITION_NAME: partition}  # type: ignore[attr-defined]
    return marked
