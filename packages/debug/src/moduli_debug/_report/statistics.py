"""The statistics of one tensor: a jitted function that gives a few numbers and a histogram.

One program serves all tensors of one shape and dtype, so a model of equal layers compiles few.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

__all__ = ["BINS", "FIELDS", "describe", "describe_all", "edges_of", "units_of"]

BINS = 64
FIELDS = ("mean", "std", "min", "max", "norm", "zero_fraction", "nonfinite_fraction", "dead_units",
          "low", "high")  # fmt: skip
"""What the vector of :func:`describe` holds, in order."""

_SMALL = 1 << 20  # numbers; larger tensors are not copied into a stack
_SPREAD = 4.0  # a linear histogram reaches this many standard deviations from the mean
_DECADES = (-12.0, 4.0)  # a logarithmic histogram reaches from 1e-12 to 1e4, 4 bins a decade


@functools.partial(jax.jit, static_argnames="logarithmic")
def describe(values: tuple[jax.Array, ...], *, logarithmic: bool) -> tuple[jax.Array, jax.Array]:
    """Computes the statistics of arrays that are one tensor, such as the outputs of several calls.

    Numbers that are not finite are left out of everything but their own fraction. Arithmetic is in
    float32 at least, scaled by the largest magnitude, so that squares neither overflow nor vanish.

    Args:
      values: floating arrays, not empty.
      logarithmic: whether the histogram is of log10 of the magnitudes, without zeros, or of the
        values themselves.

    Returns:
      A vector of :data:`FIELDS`, and the counts in :data:`BINS` equal bins from ``low`` to
      ``high``; what lies outside is counted in the outermost bins.
    """
    dtype = jnp.promote_types(values[0].dtype, jnp.float32)
    x = jnp.concatenate([value.astype(dtype).ravel() for value in values])
    finite = jnp.isfinite(x)
    count = finite.sum()
    some = count > 0
    divisor = jnp.maximum(count, 1).astype(dtype)
    largest = jnp.where(finite, jnp.abs(x), 0).max()
    scale = jnp.where(largest > 0, largest, 1)
    scaled = jnp.where(finite, x, 0) / scale
    mean = scaled.sum() / divisor
    variance = jnp.where(finite, (scaled - mean) ** 2, 0).sum() / divisor
    mean, std = scale * mean, scale * jnp.sqrt(variance)
    norm = scale * jnp.sqrt((scaled**2).sum())
    smallest = jnp.where(finite, x, jnp.inf).min()
    largest = jnp.where(finite, x, -jnp.inf).max()
    if logarithmic:
        low, high = (jnp.asarray(bound, dtype) for bound in _DECADES)
        counted = finite & (x != 0)
        placed = jnp.log10(jnp.where(counted, jnp.abs(x), 1))
    else:
        low = jnp.maximum(smallest, mean - _SPREAD * std)
        high = jnp.minimum(largest, mean + _SPREAD * std)
        room = jnp.where(high > low, 0, 0.05 * jnp.maximum(jnp.abs(mean), 1e-3))
        low, high = low - room, high + room
        counted, placed = finite, jnp.where(finite, x, low)
    index = jnp.clip(jnp.floor((placed - low) / (high - low) * BINS), 0, BINS - 1)
    index = jnp.where(jnp.isfinite(index), index, 0).astype(jnp.int32)
    counts = jnp.zeros(BINS, jnp.int32).at[index].add(counted.astype(jnp.int32))
    numbers = [mean, std, smallest, largest, norm]
    numbers = [jnp.where(some, number, jnp.nan) for number in numbers]
    numbers += [(x == 0).mean(dtype=dtype), (~finite).mean(dtype=dtype)]
    numbers += [_dead_units(values).astype(dtype), low, high]
    return jnp.stack(numbers), counts


def describe_all(tensors: list[tuple[tuple[jax.Array, ...], bool]]) -> tuple[list[Any], list[Any]]:
    """Calls :func:`describe` for many tensors, each with whether its histogram is logarithmic.

    Inside of a transform, small tensors of one shape share a loop, so that the size of the compiled
    program does not grow with the number of layers.

    Returns:
      The vectors, and the counts.
    """
    groups: dict[Any, list[int]] = {}
    for number, (values, logarithmic) in enumerate(tensors):
        first, *more = values
        alone = bool(more) or first.size > _SMALL or not isinstance(first, Tracer)
        key = number if alone else (first.shape, str(first.dtype), logarithmic)
        groups.setdefault(key, []).append(number)
    results: list[Any] = [None] * len(tensors)
    for members in groups.values():
        values, logarithmic = tensors[members[0]]
        if len(members) == 1:
            results[members[0]] = describe(values, logarithmic=logarithmic)
            continue
        run = functools.partial(describe, logarithmic=logarithmic)
        stacked = jnp.stack([tensors[member][0][0] for member in members])
        vectors, counts = jax.lax.map(lambda value: run((value,)), stacked)  # noqa: B023
        for place, member in enumerate(members):
            results[member] = vectors[place], counts[place]
    return [vector for vector, _ in results], [counts for _, counts in results]


def _dead_units(values: tuple[jax.Array, ...]) -> jax.Array:
    """Counts the units (places of the last axis) that are zero everywhere."""
    if any(value.ndim < 2 for value in values):
        return jnp.zeros((), jnp.int32)
    silent = [(value == 0).all(axis=tuple(range(value.ndim - 1))) for value in values]
    if len({unit.shape for unit in silent}) == 1:
        return jnp.stack(silent).all(axis=0).sum()  # of several calls: dead in all of them
    return jnp.concatenate(silent).sum()


def units_of(shapes: list[tuple[int, ...]]) -> int | None:
    """Returns how many units arrays of these shapes have, None if they have no axis of units."""
    if any(len(shape) < 2 for shape in shapes):
        return None
    widths = [shape[-1] for shape in shapes]
    return widths[0] if len(set(widths)) == 1 else sum(widths)


def edges_of(numbers: Any) -> np.ndarray:
    """Returns the edges of the bins from the vector of a tensor; of magnitudes, their log10."""
    low, high = numbers[FIELDS.index("low")], numbers[FIELDS.index("high")]
    return np.linspace(low, high, BINS + 1)
