"""Pooling to a given output size, whatever the size of the input, channels last."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from moduli.errors import ShapeError
from moduli_layers._checks import shape_text
from moduli_layers.errors import ArgumentError

__all__ = ["adaptive_avg_pool", "adaptive_max_pool", "adaptive_min_pool"]

_FEW = 8  # parts of an axis


def adaptive_avg_pool(inputs: ArrayLike, output_size: Sequence[int | None]) -> jax.Array:
    """Averages over windows that divide each spatial axis into a given number of parts.

    Along an axis of size ``n``, part ``i`` of ``k`` is from ``floor(i * n / k)`` to
    ``ceil((i + 1) * n / k)``, as in PyTorch: windows differ by one in size, and may overlap by one.

    Args:
      inputs: array of shape ``(*batch, *spatial, features)``; integers become JAX's default float.
      output_size: how many parts each spatial axis is divided into; None keeps an axis.

    Returns:
      Array of shape ``(*batch, *output_size, features)``.

    Raises:
      ShapeError: the inputs have too few axes, or a spatial axis is empty.
      ArgumentError: a size is below 1.

    Example:
      >>> import jax.numpy as jnp
      >>> from moduli_layers import adaptive_avg_pool
      >>> print(adaptive_avg_pool(jnp.arange(5.0).reshape(5, 1), (2,)).ravel())
      [1. 3.]
    """
    inputs = jnp.asarray(inputs)
    if not jnp.issubdtype(inputs.dtype, jnp.inexact):
        inputs = inputs.astype(jax.dtypes.canonicalize_dtype(float))

    def average(windows: jax.Array, inside: np.ndarray, axis: int) -> jax.Array:
        counts = jnp.asarray(inside.sum(axis), windows.dtype)
        return jnp.sum(jnp.where(inside, windows, 0), axis) / counts

    return _adaptive("adaptive_avg_pool", inputs, output_size, jnp.mean, average)


def adaptive_max_pool(inputs: ArrayLike, output_size: Sequence[int | None]) -> jax.Array:
    """Takes the maximum over windows as in :func:`adaptive_avg_pool`.

    Args:
      inputs: array of shape ``(*batch, *spatial, features)``.
      output_size: how many parts each spatial axis is divided into; None keeps an axis.

    Returns:
      Array of shape ``(*batch, *output_size, features)``.

    Raises:
      ShapeError: the inputs have too few axes, or a spatial axis is empty.
      ArgumentError: a size is below 1.

    Example:
      >>> import jax.numpy as jnp
      >>> from moduli_layers import adaptive_max_pool
      >>> print(adaptive_max_pool(jnp.arange(5.0).reshape(5, 1), (2,)).ravel())
      [2. 4.]
    """

    def largest(windows: jax.Array, inside: np.ndarray, axis: int) -> jax.Array:
        return jnp.max(windows, axis)  # what is outside repeats an entry that is inside

    return _adaptive("adaptive_max_pool", jnp.asarray(inputs), output_size, jnp.max, largest)


def adaptive_min_pool(inputs: ArrayLike, output_size: Sequence[int | None]) -> jax.Array:
    """Takes the minimum over windows as in :func:`adaptive_avg_pool`.

    Args:
      inputs: array of shape ``(*batch, *spatial, features)``.
      output_size: how many parts each spatial axis is divided into; None keeps an axis.

    Returns:
      Array of shape ``(*batch, *output_size, features)``.

    Raises:
      ShapeError: the inputs have too few axes, or a spatial axis is empty.
      ArgumentError: a size is below 1.

    Example:
      >>> import jax.numpy as jnp
      >>> from moduli_layers import adaptive_min_pool
      >>> print(adaptive_min_pool(jnp.arange(5.0).reshape(5, 1), (2,)).ravel())
      [0. 2.]
    """

    def smallest(windows: jax.Array, inside: np.ndarray, axis: int) -> jax.Array:
        return jnp.min(windows, axis)

    return _adaptive("adaptive_min_pool", jnp.asarray(inputs), output_size, jnp.min, smallest)


def _adaptive(
    owner: str,
    inputs: jax.Array,
    output_size: Sequence[int | None],
    reduce: Callable[[jax.Array, Any], jax.Array],
    reduce_uneven: Callable[[jax.Array, np.ndarray, int], jax.Array],
) -> jax.Array:
    """Reduces the axes that can be cut into equal parts, then one after the other the rest.

    Average, maximum and minimum may be taken one axis at a time. Cutting is fastest by far; of a
    few windows slices take less time than a gather, of many their gradients take much more.

    Args:
      owner: the function's name in errors.
      inputs: the inputs.
      output_size: as the caller gave it.
      reduce: reduces an axis, or several, of an array.
      reduce_uneven: reduces an axis of windows, given which of their entries are no repetitions.
    """
    sizes = _sizes(owner, output_size)
    first = inputs.ndim - len(sizes) - 1
    if first < 0:
        raise ShapeError(
            f"{owner} with output_size={sizes} expects inputs of shape (*batch, *spatial, "
            f"features) with {len(sizes)} spatial axes, got shape {shape_text(inputs)}; write one "
            f"entry of output_size for each spatial axis and keep the features last"
        )
    if 0 in inputs.shape[first:-1]:
        raise ShapeError(
            f"{owner} got inputs of shape {shape_text(inputs)} with an empty spatial axis, of "
            f"which no part has an entry; give at least one entry along each"
        )
    inputs = _reduce_even(inputs, dict(enumerate(sizes, first)), reduce)
    for axis, parts in enumerate(sizes, first):
        length = inputs.shape[axis]
        if parts is None or parts == length:
            continue
        starts, ends = _bounds(length, parts)
        if parts <= _FEW:
            pairs = zip(starts, ends, strict=True)
            slices = [lax.slice_in_dim(inputs, i, j, axis=axis) for i, j in pairs]
            inputs = jnp.stack([reduce(part, axis) for part in slices], axis)
            continue
        places, inside = _windows(starts, ends)
        windows = jnp.take(inputs, places, axis, mode="clip")  # (..., parts, window, ...)
        shape = [1] * windows.ndim
        shape[axis : axis + 2] = inside.shape
        inputs = reduce_uneven(windows, inside.reshape(shape), axis + 1)
    return inputs


def _reduce_even(
    inputs: jax.Array,
    parts: dict[int, int | None],
    reduce: Callable[[jax.Array, Any], jax.Array],
) -> jax.Array:
    """Reduces each axis whose length is a multiple of its number of parts."""
    shape: list[int] = []
    windows: list[int] = []
    for axis, length in enumerate(inputs.shape):
        count = parts.get(axis)
        if count is None or count == length or length % count:
            shape.append(length)
        else:
            shape += [count, length // count]
            windows.append(len(shape) - 1)
    return reduce(inputs.reshape(shape), tuple(windows)) if windows else inputs


def _sizes(owner: str, output_size: Any) -> tuple[int | None, ...]:
    if not isinstance(output_size, Sequence) or any(
        size is not None and size < 1 for size in output_size
    ):
        raise ArgumentError(
            f"{owner} got output_size={output_size!r}; write one size of at least 1 (or None) for "
            f"each spatial axis, for example output_size=(1, 1)"
        )
    return tuple(output_size)


def _bounds(length: int, parts: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns where each part starts, and where it ends."""
    i = np.arange(parts)
    return i * length // parts, -((-(i + 1) * length) // parts)


def _windows(starts: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns for each part the indices of its entries, and which of them are not repetitions."""
    places = starts[:, None] + np.arange((ends - starts).max())
    return np.minimum(places, ends[:, None] - 1), places < ends[:, None]
