"""Pooling: functions that reduce a window which slides over the spatial axes, channels last."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from moduli.errors import ShapeError
from moduli_layers._checks import shape_text
from moduli_layers._windows import Padding, check_not_empty, padding_pairs, per_dimension
from moduli_layers.errors import ArgumentError

__all__ = ["avg_pool", "max_pool", "min_pool", "pool"]

_PADDINGS = ("SAME", "SAME_LOWER", "VALID")


def pool(
    inputs: ArrayLike,
    init: Any,
    reduce_fn: Callable[[Any, Any], Any],
    window_shape: Sequence[int],
    strides: int | Sequence[int] | None,
    padding: Padding,
    *,
    ceil_mode: bool = False,
) -> jax.Array:
    """Reduces every position of a sliding window with a function of two values.

    JAX knows the gradient for ``lax.add``, ``lax.max`` and ``lax.min``; for any other function
    the result has none.

    Args:
      inputs: array of shape ``(*batch, *spatial, features)``, with one spatial axis for each entry
        of ``window_shape`` and any number of batch axes.
      init: the value with which a reduction starts, and which padding adds.
      reduce_fn: the reduction, for example :func:`jax.lax.add`.
      window_shape: size of the window in each spatial dimension.
      strides: step of the window, one for all dimensions or one for each; None is 1.
      padding: ``"VALID"`` (none), ``"SAME"`` (output size is input size over stride, rounded
        up), an int for all sides, or for each dimension an int or a pair (before, after).
      ceil_mode: whether a last window that reaches over the end counts too, if it begins in the
        inputs or the padding before them.

    Returns:
      Array of shape ``(*batch, *new spatial, features)``.

    Raises:
      ShapeError: the inputs have too few axes, or the window does not fit into them once.
      ArgumentError: strides or padding do not fit the window.

    Example:
      >>> import jax.numpy as jnp
      >>> from jax import lax
      >>> from moduli_layers import pool
      >>> print(pool(jnp.arange(4.0).reshape(4, 1), 0.0, lax.add, (2,), 2, "VALID").ravel())
      [1. 5.]
    """
    return _pool("pool", inputs, init, reduce_fn, window_shape, strides, padding, ceil_mode)


def avg_pool(
    inputs: ArrayLike,
    window_shape: Sequence[int],
    strides: int | Sequence[int] | None = None,
    padding: Padding = "VALID",
    count_include_pad: bool = True,
    *,
    ceil_mode: bool = False,
) -> jax.Array:
    """Averages over every position of a sliding window.

    Args:
      inputs: array of shape ``(*batch, *spatial, features)``; integers become JAX's default float.
      window_shape: size of the window in each spatial dimension.
      strides: step of the window; None is 1. See :func:`pool`.
      padding: see :func:`pool`.
      count_include_pad: whether a window at the border is divided by its full size, as if the
        padding were zeros in the data; False divides by the number of real entries.
      ceil_mode: see :func:`pool`; what a window has behind inputs and padding never counts.

    Returns:
      Array of shape ``(*batch, *new spatial, features)``.

    Raises:
      ShapeError: the inputs have too few axes, or the window does not fit into them once.
      ArgumentError: strides or padding do not fit the window.

    Example:
      >>> import jax.numpy as jnp
      >>> from moduli_layers import avg_pool
      >>> print(avg_pool(jnp.arange(4.0).reshape(4, 1), (2,), strides=(2,)).ravel())
      [0.5 2.5]
    """
    inputs = jnp.asarray(inputs)
    if not jnp.issubdtype(inputs.dtype, jnp.inexact):
        inputs = inputs.astype(jax.dtypes.canonicalize_dtype(float))
    arguments = (window_shape, strides, padding, ceil_mode)
    zero = np.zeros((), inputs.dtype)  # concrete under jit too: else JAX finds no gradient
    sums = _pool("avg_pool", inputs, zero, lax.add, *arguments)
    spatial = inputs.shape[-len(tuple(window_shape)) - 1 : -1]
    if count_include_pad and ceil_mode and not isinstance(padding, str):
        # as if the padding were data: only what lies behind it does not count
        pairs: Any = padding_pairs("avg_pool", padding, len(spatial), _PADDINGS)
        padded = [n + sum(pair) for n, pair in zip(spatial, pairs, strict=True)]
        counted = _windows(spatial, window_shape, strides, pairs)
        ones = jnp.ones((*padded, 1), sums.dtype)
        behind = [(0, after - pair[1]) for (_, after), pair in zip(counted, pairs, strict=True)]
        counts = _pool("avg_pool", ones, zero, lax.add, window_shape, strides, behind)
    elif count_include_pad and not (ceil_mode and padding in ("VALID", "valid")):
        counts = jnp.asarray(math.prod(window_shape), sums.dtype)
    else:
        # the batch and the features do not change how many entries a window holds
        ones = jnp.ones((*spatial, 1), sums.dtype)
        counts = _pool("avg_pool", ones, zero, lax.add, *arguments)
    return sums / counts


def max_pool(
    inputs: ArrayLike,
    window_shape: Sequence[int],
    strides: int | Sequence[int] | None = None,
    padding: Padding = "VALID",
    *,
    ceil_mode: bool = False,
) -> jax.Array:
    """Takes the maximum over every position of a sliding window; padding is never the maximum.

    Args:
      inputs: array of shape ``(*batch, *spatial, features)``.
      window_shape: size of the window in each spatial dimension.
      strides: step of the window; None is 1. See :func:`pool`.
      padding: see :func:`pool`.
      ceil_mode: see :func:`pool`.

    Returns:
      Array of shape ``(*batch, *new spatial, features)``.

    Raises:
      ShapeError: the inputs have too few axes, or the window does not fit into them once.
      ArgumentError: strides or padding do not fit the window.

    Example:
      >>> import jax.numpy as jnp
      >>> from moduli_layers import max_pool
      >>> print(max_pool(jnp.arange(4.0).reshape(4, 1), (2,), strides=(2,)).ravel())
      [1. 3.]
    """
    inputs = jnp.asarray(inputs)
    lowest = _extreme(inputs.dtype, largest=False)
    return _pool("max_pool", inputs, lowest, lax.max, window_shape, strides, padding, ceil_mode)


def min_pool(
    inputs: ArrayLike,
    window_shape: Sequence[int],
    strides: int | Sequence[int] | None = None,
    padding: Padding = "VALID",
    *,
    ceil_mode: bool = False,
) -> jax.Array:
    """Takes the minimum over every position of a sliding window; padding is never the minimum.

    Args:
      inputs: array of shape ``(*batch, *spatial, features)``.
      window_shape: size of the window in each spatial dimension.
      strides: step of the window; None is 1. See :func:`pool`.
      padding: see :func:`pool`.
      ceil_mode: see :func:`pool`.

    Returns:
      Array of shape ``(*batch, *new spatial, features)``.

    Raises:
      ShapeError: the inputs have too few axes, or the window does not fit into them once.
      ArgumentError: strides or padding do not fit the window.

    Example:
      >>> import jax.numpy as jnp
      >>> from moduli_layers import min_pool
      >>> print(min_pool(jnp.arange(4.0).reshape(4, 1), (2,), strides=(2,)).ravel())
      [0. 2.]
    """
    inputs = jnp.asarray(inputs)
    highest = _extreme(inputs.dtype, largest=True)
    return _pool("min_pool", inputs, highest, lax.min, window_shape, strides, padding, ceil_mode)


def _pool(
    owner: str,
    inputs: ArrayLike,
    init: Any,
    reduce_fn: Callable[[Any, Any], Any],
    window_shape: Sequence[int],
    strides: int | Sequence[int] | None,
    padding: Padding,
    ceil_mode: bool = False,
) -> jax.Array:
    if not isinstance(window_shape, Sequence):
        raise ArgumentError(
            f"{owner} got window_shape={window_shape!r}; write one size for each spatial "
            f"dimension, for example window_shape=(2, 2)"
        )
    rank = len(window_shape)
    window = per_dimension(owner, "window_shape", window_shape, rank)
    steps = per_dimension(owner, "strides", strides, rank)
    pairs = padding_pairs(owner, padding, rank, _PADDINGS)
    inputs = jnp.asarray(inputs)
    batch = inputs.ndim - rank - 1
    if batch < 0:
        raise ShapeError(
            f"{owner} with window_shape={window} expects inputs of shape (*batch, *spatial, "
            f"features) with {rank} spatial axes, got shape {shape_text(inputs)}; write one "
            f"entry of window_shape for each spatial axis and keep the features last"
        )
    if ceil_mode and pairs != "SAME" and pairs != "SAME_LOWER":
        sides = ((0, 0),) * rank if isinstance(pairs, str) else pairs
        pairs = _windows(inputs.shape[batch:-1], window, steps, sides)
    outputs = lax.reduce_window(
        inputs,
        init,
        reduce_fn,
        window_dimensions=(1,) * batch + window + (1,),
        window_strides=(1,) * batch + steps + (1,),
        padding=pairs if isinstance(pairs, str) else ((0, 0),) * batch + pairs + ((0, 0),),
    )
    detail = f"window_shape={window} and padding={padding!r}"
    check_not_empty(owner, inputs, outputs, slice(batch, -1), detail)
    return outputs


def _windows(
    sizes: Sequence[int],
    window: Sequence[int],
    strides: int | Sequence[int] | None,
    pairs: Any,
) -> tuple[tuple[int, int], ...]:
    """Returns paddings with which a last window that reaches over the end has its place."""
    steps = per_dimension("pool", "strides", strides, len(window))
    found = []
    for size, width, step, (before, after) in zip(sizes, window, steps, pairs, strict=True):
        count = -(-(size + before + after - width) // step) + 1
        if (count - 1) * step >= size + before:
            count -= 1  # it would begin behind the inputs
        found.append((before, max(after, (count - 1) * step + width - size - before)))
    return tuple(found)


def _extreme(dtype: Any, *, largest: bool) -> Any:
    """Returns the value that no entry of a dtype is above (or below)."""
    if jnp.issubdtype(dtype, jnp.floating):
        value: Any = jnp.inf if largest else -jnp.inf
    elif dtype == jnp.bool_:
        value = largest
    else:
        limits = jnp.iinfo(dtype)
        value = limits.max if largest else limits.min
    return np.asarray(value, dtype)  # concrete under jit too: else JAX finds no gradient
