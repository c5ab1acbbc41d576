"""Eager random draws that compile a handful of programs, not one for each shape.

XLA compiles a random function anew for every shape, which takes most of the time in which a model
is built. Up to JAX 0.10, with its partitionable threefry (the default), the bits of an array depend
on the place of each element in row-major order alone. So a draw of any shape is the beginning of a
flat draw of one of a few sizes, equal to the bit, and is cut from it.

Traced draws, arrays of keys, other implementations of keys, other devices than a CPU, draws under a
mesh, and very large ones go JAX's own way; so do all with JAX 0.11 and newer, where XLA's last bits
depend on the shape.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moduli._base.compat import draws_alike_in_any_shape, is_eager

__all__ = ["FLAT", "flat_draw", "flat_full"]

FLAT = ("exponential", "gumbel", "laplace", "logistic", "normal", "truncated_normal", "uniform")
"""The functions of ``jax.random`` whose elements depend on their own bits alone."""

_SMALLEST, _LARGEST = 2**10, 2**24
_DTYPES = frozenset(("float32", "float64", "bfloat16", "float16"))


def _size(count: int) -> int:
    """Returns the size of the flat draw for a number of elements: at most four times as many."""
    size = _SMALLEST
    while size < count:
        size *= 4 if size < 2**20 else 2
    return size


@functools.partial(jax.jit, static_argnames=("name", "size", "dtype"))
def _flat(
    key: jax.Array, bounds: tuple[float, ...], *, name: str, size: int, dtype: Any
) -> jax.Array:
    function = getattr(jax.random, name)
    if name == "truncated_normal":
        return function(key, *bounds, (size,), dtype)
    return function(key, (size,), dtype, *bounds)


_scaled = jax.jit(jnp.multiply)  # apart from the draw, whose last factor XLA would join with it


@functools.partial(jax.jit, static_argnames=("shape",))
def _cut(flat: jax.Array, *, shape: tuple[int, ...]) -> jax.Array:
    return flat[: math.prod(shape)].reshape(shape)


def flat_draw(
    name: str,
    key: Any,
    shape: Sequence[int],
    dtype: Any,
    bounds: tuple[float, ...] = (),
    factor: Any = None,
) -> jax.Array | None:
    """Draws like ``jax.random.<name>``, eagerly and with few programs for many shapes.

    Args:
      name: one of :data:`FLAT`.
      key: a random key.
      shape: the shape of the array.
      dtype: its dtype.
      bounds: (minval, maxval) of ``uniform``, or (lower, upper) of ``truncated_normal``.
      factor: a scalar of that dtype to multiply with; None for none.

    Returns:
      The array, the same to the bit as JAX's; None if the draw has to go JAX's own way.

    Example:
      >>> import jax
      >>> from moduli.lowlevel import flat_draw
      >>> key = jax.random.key(0)
      >>> values = flat_draw("normal", key, (3, 5), "float32")
      >>> values is None or bool((values == jax.random.normal(key, (3, 5), "float32")).all())
      True
      >>> jax.jit(lambda key: flat_draw("normal", key, (3, 5), "float32"))(key) is None
      True
    """
    if not draws_alike_in_any_shape() or not _can_be_cut(key, shape, dtype, bounds):
        return None
    shape = tuple(map(int, shape))
    size = _size(math.prod(shape))
    flat = _flat(key, bounds, name=name, size=size, dtype=jnp.dtype(dtype))
    if factor is not None:
        flat = _scaled(flat, factor)
    return flat if shape == (size,) else _begin(flat, shape)


def _can_be_cut(key: Any, shape: Any, dtype: Any, bounds: Sequence[Any]) -> bool:
    """Returns whether a flat draw has the same bits, and costs less than a program of its own."""
    config: Any = jax.config
    if not isinstance(key, jax.Array) or not is_eager():
        return False
    if key.shape != () or not str(key.dtype).startswith("key<fry>"):
        return False
    if not config.jax_threefry_partitionable or config.jax_disable_jit:
        return False
    if not isinstance(shape, (tuple, list)) or not all(map(_is_size, shape)):
        return False
    try:
        known = jnp.dtype(dtype).name
    except TypeError:
        return False
    if known not in _DTYPES or (known == "float64" and not config.jax_enable_x64):
        return False
    if not all(isinstance(bound, (int, float)) for bound in bounds):
        return False
    count = math.prod(shape)
    if not 0 < count <= _LARGEST or not _no_mesh():
        return False
    return [device.platform for device in key.devices()] == ["cpu"]


def _is_size(size: Any) -> bool:
    return isinstance(size, (int, np.integer)) and not isinstance(size, bool)


def _no_mesh() -> bool:
    return jax.sharding.get_abstract_mesh().empty


def _begin(flat: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Returns the first elements of a flat array in a shape; on a CPU without a program."""
    if flat.committed:
        return _cut(flat, shape=shape)
    return jax.device_put(np.array(np.asarray(flat)[: math.prod(shape)]).reshape(shape))


def flat_full(value: float, shape: Sequence[int], dtype: Any) -> jax.Array | None:
    """Makes an array full of one value: eagerly, on a CPU, without a program for each shape.

    Args:
      value: the value.
      shape: the shape of the array.
      dtype: its dtype.

    Returns:
      The array; None if JAX has to make it.

    Example:
      >>> from moduli.lowlevel import flat_full
      >>> flat_full(1, (2,), "float32").tolist()
      [1.0, 1.0]
    """
    if jax.default_backend() != "cpu" or not is_eager() or not _no_mesh():
        return None
    return jax.device_put(np.full(shape, value, jax.dtypes.canonicalize_dtype(dtype)))
