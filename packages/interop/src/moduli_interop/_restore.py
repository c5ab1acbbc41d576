"""Restore: from the leaves of a checkpoint to live values, bit by bit as they were."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moduli_interop._dtypes import dtype_from_name, from_bits, storage_dtype
from moduli_interop._errors import CorruptCheckpointError, UnsupportedValueError
from moduli_interop._placement import sharding_of
from moduli_interop._reading import read_in_order
from moduli_interop._stored import StoredArray, StoredNamedTuple

__all__ = ["restore"]

_WORTH_SHARING = 1 << 14  # bytes; below, asarray takes less time
_KINDS = {"b": False, "i": 0, "u": 0, "f": 0.0, "c": 0j}


def restore(
    values: Sequence[Any],
    likes: Sequence[Any] | None = None,
    *,
    read_all: Callable[[list[tuple[StoredArray, Any]]], list[Any]] | None = None,
    done: Callable[[int], None] = lambda nbytes: None,
) -> list[Any]:
    """Turns stored values into live ones; arrays are read ahead and put on devices one by one.

    Args:
      values: what the Leaves hold.
      likes: the values that they replace in a model, if there is one: these give the classes of
        named tuples and the shardings of JAX arrays.
      read_all: see :class:`Checkpoint`.
      done: called with the size of each array that is in its place.

    Returns:
      The values. A named tuple without ``likes`` becomes a plain tuple. An array of a dtype that
      JAX would narrow (64 bits without ``jax_enable_x64``) stays a numpy array.

    Raises:
      UnsupportedValueError: if JAX does not know the implementation of stored PRNG keys.
      CheckpointError: if an array is not as it was written.
    """
    olds = [None] * len(values) if likes is None else likes
    wanted: list[tuple[StoredArray, Any]] = []
    for value, old in zip(values, olds, strict=True):
        if type(value) is StoredArray:
            wanted.append((value, old))
        else:
            wanted.extend(_wanted(value, old))
    arrays = [array for array, _ in wanted]
    narrowed = functools.lru_cache(_is_narrowed)  # for this call: a user may change the mode
    if read_all is not None:
        placed = iter(read_all([(array, _sharding(array, like)) for array, like in wanted]))
        live = [_finished(array, next(placed), like, narrowed) for array, like in wanted]
    else:
        live = []
        for (array, like), bits in zip(wanted, read_in_order(arrays), strict=True):
            live.append(_array(array, bits, like, narrowed))
            done(array.nbytes)
    rest = iter(live)
    return [
        next(rest) if type(value) is StoredArray else _assembled(value, old, rest)
        for value, old in zip(values, olds, strict=True)
    ]


def _wanted(value: Any, like: Any) -> Iterator[tuple[StoredArray, Any]]:
    """Yields each array of a stored value with what it replaces, in order."""
    if isinstance(value, StoredArray):
        yield value, like
    else:
        for item, old in _children(value, like):
            yield from _wanted(item, old)


def _children(value: Any, like: Any) -> list[tuple[Any, Any]]:
    if isinstance(value, StoredNamedTuple):
        value = value.items
    if isinstance(value, (tuple, list)):
        fits = isinstance(like, (tuple, list)) and len(like) == len(value)
        return list(zip(value, like if fits else [None] * len(value), strict=True))
    if isinstance(value, dict):
        olds = like if isinstance(like, dict) else {}
        return [(item, olds.get(key)) for key, item in value.items()]
    return []


def _assembled(value: Any, like: Any, live: Iterator[Any]) -> Any:
    if isinstance(value, StoredArray):
        return next(live)
    if isinstance(value, (StoredNamedTuple, tuple, list, dict)):
        items = [_assembled(item, old, live) for item, old in _children(value, like)]
        if isinstance(value, StoredNamedTuple):
            return type(like)(*items) if isinstance(like, tuple) else tuple(items)
        if isinstance(value, dict):
            return dict(zip(value, items, strict=True))
        return type(value)(items)
    return value


def _array(
    stored: StoredArray, bits: np.ndarray, like: Any, narrowed: Callable[[np.dtype], bool]
) -> Any:
    if bits.shape != stored.shape or bits.dtype != storage_dtype(stored.dtype):
        raise CorruptCheckpointError(
            f"the format of the checkpoint gave {bits.dtype}{list(bits.shape)} as the bits of "
            f"{stored.dtype}{list(stored.shape)}; it has to give "
            f"{stored.storage_dtype}{list(stored.shape)}, little-endian, or raise a CheckpointError"
        )
    try:
        if not stored.owned:
            bits = np.array(bits, copy=True)
        array = from_bits(bits, stored.dtype)
        if stored.container == "numpy scalar":
            return array[()]
        if stored.container == "numpy" or narrowed(array.dtype):
            return array
        return _typed(stored, _placed(_weak(array) if stored.weak_type else array, like), like)
    except (ValueError, TypeError, OverflowError) as error:
        if like is not None:
            raise
        raise CorruptCheckpointError(
            f"the checkpoint holds {stored.dtype}{list(stored.shape)}, which JAX cannot: {error}"
        ) from error


def _finished(
    stored: StoredArray, array: Any, like: Any, narrowed: Callable[[np.dtype], bool]
) -> Any:
    """Finishes what a format has read itself: an array on its devices, or the bits of one."""
    if isinstance(array, jax.Array):
        return _placed(_weak(array), array) if stored.weak_type else array
    return _array(stored, array, like, narrowed)


def _typed(stored: StoredArray, array: Any, like: Any) -> Any:
    """Turns key data into keys."""
    if stored.key_impl is None:
        return array
    try:
        keys = jax.random.wrap_key_data(array, impl=stored.key_impl)
    except (ValueError, TypeError, AssertionError) as error:
        raise UnsupportedValueError(
            f"the checkpoint holds PRNG keys of the implementation {stored.key_impl!r}: {error}"
        ) from error
    return _placed(keys, like) if like is not None else keys


def _is_narrowed(dtype: np.dtype) -> bool:
    return jax.dtypes.canonicalize_dtype(dtype) != dtype


def _sharding(array: StoredArray, like: Any) -> Any:
    """Returns where an array shall be; None for a numpy array."""
    if array.container != "jax" or array.key_impl is not None:
        return None
    if _is_narrowed(dtype_from_name(array.dtype)):
        return None
    return sharding_of(like) or jax.sharding.SingleDeviceSharding(jax.devices()[0])


def _placed(array: Any, like: Any) -> jax.Array:
    """Puts an array where the one that it replaces is, if that place was chosen by the user."""
    sharding = sharding_of(like)
    if sharding is None or (isinstance(array, jax.Array) and not array.is_fully_addressable):
        # device_put takes over aligned memory, which is ours alone, where asarray copies it
        return jax.device_put(array) if array.nbytes > _WORTH_SHARING else jnp.asarray(array)
    if sharding.is_fully_addressable or isinstance(array, jax.Array):
        return jax.device_put(array, sharding)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


@jax.jit
def _made_weak(array: jax.Array) -> jax.Array:
    return jnp.full(array.shape, _KINDS[array.dtype.kind]).at[...].set(array)


def _weak(array: Any) -> Any:
    """Makes a weakly typed array: JAX gives that type to what is made of Python numbers only.

    How wide it makes those depends on ``jax_enable_x64``. Where the array comes from a program that
    had it otherwise, it is made as there.
    """
    kind = _KINDS.get(array.dtype.kind, array)
    if jnp.result_type(kind) == array.dtype:
        return _made_weak(array)
    with jax.enable_x64(not jax.config.read("jax_enable_x64")):
        if jnp.result_type(kind) == array.dtype:
            return _made_weak(array)
    return array
