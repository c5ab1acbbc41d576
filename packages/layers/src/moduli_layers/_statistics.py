"""Mean and variance over axes of an array, and normalisation by them; what all norms share.

Statistics are computed in float32 or wider. A mask says which entries count, and ``axis_name``
combines the statistics of a mapped axis (of ``vmap``, ``shard_map``) with one reduction for each
pass over the data. ``group_size`` neighbours on the last axis may have their statistics in common:
they are taken of each by itself first, which keeps the long loops along memory as it lies, and then
averaged.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from moduli.errors import ShapeError
from moduli_layers._checks import shape_text
from moduli_layers._traced_once import traced_once
from moduli_layers.errors import DtypeError

__all__ = ["Moments", "at_least_float32", "boolean_mask", "moments", "normalize", "static_groups"]

Groups = tuple[tuple[int, ...], ...]


class Moments(NamedTuple):
    """What :func:`moments` returns; arrays without the axes that were reduced.

    Attributes:
      mean: the mean; None if it was not asked for.
      var: the biased variance; the mean square if the mean was not asked for.
      counted: how many entries counted; None without a mask.
    """

    mean: jax.Array | None
    var: jax.Array
    counted: jax.Array | None


def at_least_float32(x: jax.Array) -> jax.Array:
    """Returns the array, in float32 if it has fewer bits."""
    return x.astype(jnp.float32) if jnp.finfo(x.dtype).bits < 32 else x


def static_groups(groups: Sequence[Sequence[int]] | None) -> Groups | None:
    """Returns ``axis_index_groups`` as tuples, which are part of a layer's structure."""
    return None if groups is None else tuple(tuple(group) for group in groups)


def boolean_mask(layer: object, mask: ArrayLike | None, shape: tuple[int, ...]) -> Any:
    """Returns a mask broadcast to the inputs' shape, or None.

    Args:
      layer: the layer that is being called.
      mask: what the caller passed.
      shape: the inputs' shape.

    Raises:
      DtypeError: the mask is not boolean.
      ShapeError: it does not broadcast to the shape.
    """
    if mask is None:
        return None
    name = type(layer).__name__
    mask = jnp.asarray(mask)
    if mask.dtype != jnp.bool_:
        raise DtypeError(
            f"{name} expects a boolean mask, got {mask.dtype.name}; write mask=mask != 0"
        )
    try:
        return jnp.broadcast_to(mask, shape)
    except ValueError:
        raise ShapeError(
            f"{name} expects a mask that broadcasts to the inputs' shape {shape}, "
            f"got shape {shape_text(mask)}; give it an axis of size 1 for each axis along "
            f"which it is the same, as mask[:, None]"
        ) from None


@traced_once(
    static_argnames=("axes", "group_size", "center", "fast", "axis_name", "axis_index_groups")
)
def moments(
    x: jax.Array,
    mask: jax.Array | None,
    *,
    axes: tuple[int, ...],
    group_size: int = 1,
    center: bool = True,
    fast: bool = True,
    axis_name: Hashable | None = None,
    axis_index_groups: Groups | None = None,
) -> Moments:
    """Computes mean and variance over axes. Where nothing counts, both are zero.

    Args:
      x: array in float32 or wider, real or complex.
      mask: boolean array of the same shape, where False does not count; None if all count.
      axes: the axes to reduce, none of them negative.
      group_size: how many neighbours on the last axis, which is then none of ``axes``, are reduced
        to one.
      center: False takes the mean for zero.
      fast: variance as ``mean(|x|²) - |mean(x)|²``, in one pass; False takes two.
      axis_name: the mapped axis to combine; None for none.
      axis_index_groups: which indices of that axis are combined with each other.
    """

    def combined(values: Any, reduce: Any) -> Any:
        if axis_name is None:
            return values
        return reduce(values, axis_name, axis_index_groups=axis_index_groups)

    count = None
    if mask is None:

        def averages(*terms: jax.Array) -> tuple[jax.Array, ...]:
            means = tuple(_grouped(jnp.mean(term, axes), group_size, jnp.mean) for term in terms)
            return combined(means, lax.pmean)
    else:
        x = jnp.where(mask, x, 0)  # whatever stands there, NaN too, is not summed
        counts = jnp.sum(mask, axes, dtype=jnp.finfo(x.dtype).dtype)
        count = combined(_grouped(counts, group_size, jnp.sum), lax.psum)
        at_least_one = jnp.maximum(count, 1)

        def averages(*terms: jax.Array) -> tuple[jax.Array, ...]:
            sums = tuple(_grouped(jnp.sum(term, axes), group_size, jnp.sum) for term in terms)
            totals = combined(sums, lax.psum)
            return tuple(total / at_least_one.astype(total.dtype) for total in totals)

    if not center:
        (mean_square,) = averages(_size_squared(x))
        return Moments(None, mean_square, count)
    if fast:
        mean, mean_square = averages(x, _size_squared(x))
        # rounding can bring the difference below zero
        return Moments(mean, jnp.maximum(mean_square - _size_squared(mean), 0), count)
    (mean,) = averages(x)
    centered = x - jnp.expand_dims(_spread(mean, group_size), axes)
    if mask is not None:
        centered = jnp.where(mask, centered, 0)
    (var,) = averages(_size_squared(centered))
    return Moments(mean, var, count)


@traced_once(static_argnames=("stats_axes", "feature_axes", "epsilon", "group_size"))
def normalize(
    x: jax.Array,
    mean: jax.Array | None,
    var: jax.Array,
    scale: jax.Array | None,
    bias: jax.Array | None,
    *,
    stats_axes: tuple[int, ...],
    feature_axes: tuple[int, ...],
    epsilon: float,
    group_size: int = 1,
) -> jax.Array:
    """Computes ``(x - mean) / sqrt(var + epsilon) * scale + bias``.

    Args:
      x: the inputs.
      mean: their mean; None for zero.
      var: their variance.
      scale: factors of the features; None for one.
      bias: what is added to the features; None for zero.
      stats_axes: the axes of ``x`` that mean and variance have, ascending.
      feature_axes: the axes of ``x`` that scale and bias have, ascending; flattened there.
      epsilon: added to the variance.
      group_size: how many neighbours on the last axis have their mean and variance in common.
    """

    def along(values: jax.Array, axes: tuple[int, ...]) -> jax.Array:
        # expand_dims, not reshape: XLA merges it with the broadcast that follows
        values = values.astype(x.dtype).reshape([x.shape[axis] for axis in axes])
        return lax.expand_dims(values, [axis for axis in range(x.ndim) if axis not in axes])

    factor = lax.rsqrt(var.astype(jnp.finfo(x.dtype).dtype) + epsilon).astype(x.dtype)
    factor = _spread(factor, group_size)
    if scale is None:
        factor = along(factor, stats_axes)
    elif stats_axes == feature_axes:  # multiplied while both are small
        factor = along(factor.reshape(scale.shape) * scale.astype(x.dtype), stats_axes)
    else:
        factor = along(factor, stats_axes) * along(scale, feature_axes)
    y = x if mean is None else x - along(_spread(mean, group_size), stats_axes)
    y = y * factor
    return y if bias is None else y + along(bias, feature_axes)


def _size_squared(x: jax.Array) -> jax.Array:
    if jnp.iscomplexobj(x):
        return lax.square(lax.real(x)) + lax.square(lax.imag(x))
    return lax.square(x)


def _grouped(values: jax.Array, size: int, reduce: Any) -> jax.Array:
    """Reduces each ``size`` neighbours on the last axis to one."""
    if size == 1:
        return values
    *others, last = values.shape
    return reduce(values.reshape((*others, last // size, size)), -1)


def _spread(values: jax.Array, size: int) -> jax.Array:
    """Repeats each entry of the last axis ``size`` times, as :func:`jax.numpy.repeat` does."""
    if size == 1:
        return values
    *others, last = values.shape
    return jnp.broadcast_to(values[..., None], (*values.shape, size)).reshape(
        (*others, last * size)
    )
