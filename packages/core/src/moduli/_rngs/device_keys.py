"""Keys for the devices of a ``shard_map``, each of which runs the program on its part of the data.

A key that all devices hold gives all of them the same numbers. For values that are made for data
this is a silent fault: one mask, drawn again for each part of the batch. So a layer that draws for
data folds the index of the device into its key, along the axes over which the data differ.
"""

from __future__ import annotations

import contextvars
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import jax

from moduli._base.compat import varying_axes
from moduli._rngs.streams import RngStream

__all__ = ["draw_for", "fold_in_devices", "inside_shard_map", "key_for"]

_Inside = tuple[frozenset[Any], Mapping[int, Any]]
_inside: contextvars.ContextVar[_Inside] = contextvars.ContextVar(
    "inside_shard_map", default=(frozenset(), {})
)


def draw_for(stream: RngStream, data: Any) -> jax.Array:
    """Draws the next key of a stream, for numbers that go with data.

    In a ``shard_map`` it differs between devices whose parts of the data differ, and is the same
    for devices with the same; see :func:`key_for`. Elsewhere it is ``stream()``.

    Args:
      stream: a stream of random keys.
      data: an array, for which numbers are to be drawn.

    Returns:
      A random key.

    Example:
      >>> import moduli as nnx, jax.numpy as jnp
      >>> from moduli.lowlevel import draw_for
      >>> class Noise(nnx.Module):
      ...     def __init__(self, rngs):
      ...         self.stream = rngs.noise.fork()
      ...     def __call__(self, x):
      ...         return x + jax.random.normal(draw_for(self.stream, x), x.shape)
      >>> Noise(nnx.Rngs(0))(jnp.ones(3)).shape
      (3,)
    """
    key = stream()
    _, shared = _inside.get()
    if shared and stream.key._value is not None:
        original = shared.get(id(stream.key._value))
        if original is not None:  # not the key of this device, which the data may not need
            key = jax.random.fold_in(original, stream.count.value - 1)
    return key_for(key, data)


def key_for(key: jax.Array, data: Any) -> jax.Array:
    """Returns a key that differs between the devices whose parts of the data differ.

    Inside of ``jax.shard_map`` JAX knows over which axes of the mesh a value differs. With
    ``check_vma=False`` it does not; then :func:`moduli.shard_map` takes the axes in the specs of
    the arguments that are arrays.

    Args:
      key: a random key.
      data: an array, for which numbers are to be drawn.

    Returns:
      The key itself outside of ``shard_map``, where the data are the same on all devices, and
      where the key differs already; else one with the index of the device folded in.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from moduli.lowlevel import key_for
      >>> key = jax.random.key(0)
      >>> key_for(key, jnp.ones(3)) is key
      True
    """
    axes = varying_axes(data) or _inside.get()[0]
    return fold_in_devices(key, axes - varying_axes(key)) if axes else key


def fold_in_devices(key: jax.Array, axes: Iterable[Any]) -> jax.Array:
    """Folds the index of the device along axes of a mesh into a key.

    Args:
      key: a random key.
      axes: names of axes; without any the key is returned as it is.
    """
    names = tuple(sorted(axes, key=str))
    return jax.random.fold_in(key, jax.lax.axis_index(names)) if names else key


@contextmanager
def inside_shard_map(unseen: frozenset[Any], shared: Mapping[int, Any]) -> Iterator[None]:
    """Tells what is known of the devices while the function of a ``shard_map`` runs.

    Args:
      unseen: names of the axes over which the data differ, where JAX does not know it.
      shared: for the id of each device's key the key that all devices share.
    """
    axes, known = _inside.get()
    token = _inside.set((axes | unseen, {**known, **shared}))
    try:
        yield
    finally:
        _inside.reset(token)
