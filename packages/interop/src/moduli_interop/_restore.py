"""Restore: from the leaves of a checkpoint to live values, bit by bit as they were."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moduli_interop._dtypes import from_bits
from moduli_interop._errors import UnsupportedValueError
from moduli_interop._stored import StoredArray, StoredNamedTuple

__all__ = ["restore"]


def restore(value: Any, like: Any = None) -> Any:
    """Turns a stored value into a live one.

    Args:
      value: what a :class:`Leaf` holds.
      like: the value that it replaces in a model, if there is one: gives the classes of named
        tuples and the sharding of JAX arrays.

    Returns:
      The value. A named tuple without ``like`` becomes a plain tuple. An array of a dtype that JAX
      would narrow (64 bits without ``jax_enable_x64``) stays a numpy array.

    Raises:
      UnsupportedValueError: if JAX does not know the implementation of stored PRNG keys.
    """
    if isinstance(value, StoredArray):
        return _array(value, like)
    if isinstance(value, StoredNamedTuple):
        olds = like if isinstance(like, tuple) else [None] * len(value.items)
        items = [restore(item, old) for item, old in zip(value.items, olds, strict=True)]
        return type(like)(*items) if isinstance(like, tuple) else tuple(items)
    if isinstance(value, (tuple, list)):
        olds = like if isinstance(like, (tuple, list)) else [None] * len(value)
        return type(value)(restore(item, old) for item, old in zip(value, olds, strict=True))
    if isinstance(value, dict):
        olds = like if isinstance(like, dict) else {}
        return {key: restore(item, olds.get(key)) for key, item in value.items()}
    return value


def _array(stored: StoredArray, like: Any) -> Any:
    assert stored.read is not None
    array = from_bits(stored.read(), stored.dtype).reshape(stored.shape)
    if stored.key_impl is not None:
        return _placed(_keys(array, stored.key_impl), like)
    if stored.container == "numpy scalar":
        return array[()]
    if stored.container == "numpy" or jax.dtypes.canonicalize_dtype(array.dtype) != array.dtype:
        return array.copy()
    if stored.weak_type:
        return _placed(_weak(array), like)
    return _placed(array, like)


def _keys(data: np.ndarray, implementation: str) -> jax.Array:
    try:
        return jax.random.wrap_key_data(jnp.asarray(data), impl=implementation)
    except ValueError as error:
        raise UnsupportedValueError(
            f"the checkpoint holds PRNG keys of the implementation {implementation!r}: {error}"
        ) from error


def _placed(array: Any, like: Any) -> jax.Array:
    """Puts an array where the one that it replaces is, if that place was chosen by the user."""
    sharding = getattr(like, "sharding", None)
    if sharding is not None and getattr(like, "committed", True):
        return jax.device_put(array, sharding)
    return jnp.asarray(array)


def _weak(array: np.ndarray) -> jax.Array:
    """Makes a weakly typed array: JAX gives that type to what is made of Python numbers only."""
    zero: Any = np.zeros((), array.dtype).item()
    return jnp.full(array.shape, zero).at[...].set(array)
