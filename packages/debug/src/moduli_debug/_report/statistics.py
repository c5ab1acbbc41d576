"""The statistics of one tensor: a jitted function that gives a few numbers and a histogram.

One program serves all tensors of one shape and dtype, so that a model of equal layers compiles few.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

__all__ = ["BINS", "FIELDS", "dead_units", "describe", "describe_all", "edges_of", "units_of"]

BINS = 64
FIELDS = ("mean", "std", "min", "max", "norm", "zero_fraction", "nonfinite_fraction", "low", "high")
"""What the vector of :func:`describe` holds, in order."""

_SMALL = 1 << 18  # numbers; larger tensors are not copied into a stack
_SPREAD = 4.0  # a linear histogram reaches this many standard deviations from the mean
_DECADES = (-12.0, 4.0)  # a logarithmic histogram reaches from 1e-12 to 1e4, 4 bins a decade

Values = tuple[jax.Array, ...]
"""Floating arrays, not empty, that are one tensor, such as the outputs of several calls."""


@jax.jit
def describe(x: jax.Array, logarithmic: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Computes the statistics of a tensor.

    Numbers that are not finite are left out of everything but their own fraction. Arithmetic is in
    float32 at least, scaled by the largest magnitude, so that squares neither overflow nor vanish.

    Args:
      x: an array of floating numbers, not empty.
      logarithmic: whether the histogram is of log10 of the magnitudes, without zeros, or of the
        values themselves.

    Returns:
      A vector of :data:`FIELDS`, and the counts in :data:`BINS` equal bins from ``low`` to
      ``high``; what lies outside is counted in the outermost bins.
    """
    dtype = x.dtype if jnp.finfo(x.dtype).bits >= 32 else jnp.dtype(jnp.float32)
    x = x.astype(dtype)
    finite = jnp.isfinite(x)
    count = finite.sum()
    divisor = jnp.maximum(count, 1).astype(dtype)
    smallest = jnp.where(finite, x, jnp.inf).min()
    largest = jnp.where(finite, x, -jnp.inf).max()
    magnitude = jnp.where(count > 0, jnp.maximum(jnp.abs(smallest), jnp.abs(largest)), 0)
    scale = jnp.where(magnitude > 0, magnitude, 1)
    scaled = jnp.where(finite, x, 0) / scale
    mean = scaled.sum() / divisor
    variance = jnp.where(finite, (scaled - mean) ** 2, 0).sum() / divisor
    mean, std = scale * mean, scale * jnp.sqrt(variance)
    norm = scale * jnp.sqrt((scaled**2).sum())
    low, high = _bounds(mean, std, smallest, largest)
    low = jnp.where(logarithmic, jnp.asarray(_DECADES[0], dtype), low)
    high = jnp.where(logarithmic, jnp.asarray(_DECADES[1], dtype), high)
    zero = x == 0
    counted = finite & ~(logarithmic & zero)
    logarithms = jnp.log10(jnp.where(zero, 1, jnp.abs(x)))
    index = (jnp.where(logarithmic, logarithms, x) - low) / (high - low) * BINS
    index = jnp.clip(jnp.where(counted, index, 0), 0, BINS - 1).astype(jnp.int32)
    if _is_sharded(x):  # without gathering it; otherwise this is the slower way
        counts = jax.lax.map(lambda bin: (counted & (index == bin)).sum(), jnp.arange(BINS))
    else:
        ones = counted.astype(jnp.int32).ravel()
        counts = jnp.zeros(BINS, jnp.int32).at[index.ravel()].add(ones)
    numbers = jnp.stack([mean, std, smallest, largest, norm])
    numbers = jnp.where(count > 0, numbers, jnp.nan)
    shares = [zero.mean(dtype=dtype), (~finite).mean(dtype=dtype)]
    return jnp.concatenate([numbers, jnp.stack([*shares, low, high])]), counts


def _is_sharded(x: jax.Array) -> bool:
    """Returns whether an array's type is sharded (on a mesh with explicit axes)."""
    return any(part is not None for part in getattr(jax.typeof(x).sharding, "spec", ()))


def _bounds(
    mean: jax.Array, std: jax.Array, smallest: jax.Array, largest: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The ends of a linear histogram."""
    low = jnp.maximum(smallest, mean - _SPREAD * std)
    high = jnp.minimum(largest, mean + _SPREAD * std)
    room = jnp.where(high > low, 0, 0.05 * jnp.maximum(jnp.abs(mean), 1e-3))  # of equal values
    return low - room, high + room


def describe_all(tensors: list[tuple[Values, bool]]) -> tuple[Any, Any]:
    """Calls :func:`describe` for many tensors, each with whether its histogram is logarithmic.

    Inside of a transform, small tensors of one shape are described together and results are
    stacked, because what XLA takes to compile grows with the number of operations and of outputs.

    Returns:
      The vectors and the counts, as lists or stacked.
    """
    arrays = [_joined(values) for values, _ in tensors]
    flags = np.array([logarithmic for _, logarithmic in tensors])
    if not any(isinstance(array, Tracer) for array in arrays):
        results = [describe(array, flag) for array, flag in zip(arrays, flags, strict=True)]
        return [vector for vector, _ in results], [counts for _, counts in results]
    groups: dict[Any, list[int]] = {}
    for number, array in enumerate(arrays):
        alone = array.size > _SMALL or _is_sharded(array)
        key = number if alone else (array.shape, str(array.dtype))
        groups.setdefault(key, []).append(number)
    vectors, counts = [], []
    for members in groups.values():
        if len(members) == 1:
            found = [one[None] for one in describe(arrays[members[0]], flags[members[0]])]
        else:
            stacked = jnp.stack([arrays[number] for number in members])
            found = jax.vmap(describe)(stacked, flags[np.array(members)])
        vectors.append(found[0].astype(jnp.float32))
        counts.append(found[1])
    order = np.argsort(np.concatenate(list(groups.values())))
    return jnp.concatenate(vectors)[order], jnp.concatenate(counts)[order]


def _joined(values: Values) -> jax.Array:
    """Joins the arrays of a tensor to one."""
    if len(values) == 1:
        return values[0]
    if len({value.shape for value in values}) == 1:
        return jnp.stack(values)
    return jnp.concatenate([value.ravel() for value in values])


@jax.jit
def dead_units(values: Values) -> jax.Array:
    """Counts the units (places of the last axis) that are zero everywhere.

    Args:
      values: arrays with an axis of units; see :func:`units_of`.
    """
    silent = [(value == 0).all(axis=tuple(range(value.ndim - 1))) for value in values]
    if len({unit.shape for unit in silent}) == 1:
        return jnp.stack(silent).all(axis=0).sum()  # of several calls: dead in all of them
    return jnp.concatenate(silent).sum()


def units_of(values: Values) -> int | None:
    """Returns how many units a tensor has, None if it has no axis of units."""
    if any(value.ndim < 2 for value in values):
        return None
    widths = [value.shape[-1] for value in values]
    return widths[0] if len(set(widths)) == 1 else sum(widths)


def edges_of(numbers: Any) -> np.ndarray:
    """Returns the edges of the bins from the vector of a tensor; of magnitudes, their log10."""
    low, high = numbers[FIELDS.index("low")], numbers[FIELDS.index("high")]
    return np.linspace(low, high, BINS + 1)
