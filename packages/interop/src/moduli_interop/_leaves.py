"""From a live model to the leaves of a checkpoint, without copying any array."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

import moduli
from moduli.errors import PathError, format_path
from moduli_interop._dtypes import dtype_name, to_bits
from moduli_interop._errors import UnsupportedValueError
from moduli_interop._parts import Bare, Parts
from moduli_interop._stored import Leaf, Path, StoredArray, StoredNamedTuple, arrays_in, replaced

__all__ = ["capture", "check_savable", "copied_to_host"]

_SCALARS = frozenset((bool, int, float, complex, str, type(None)))
_NUMPY = frozenset((np.ndarray, np.memmap))


def capture(parts: Parts) -> list[Leaf]:
    """Describes every leaf of a model; arrays are read only when a format asks for their bits.

    Args:
      parts: the model.

    Raises:
      UnsupportedValueError: if a leaf holds something that a checkpoint cannot store.
    """
    leaves = []
    names: dict[type[Any], str | None] = {}
    shared = {first: others for first, *others in parts.aliases}
    for path, leaf in parts.live:
        if not {str}.issuperset(map(type, path)):
            _check_path(path)
        if isinstance(leaf, moduli.Variable):
            variable = type(leaf)
            if variable not in names:
                names[variable] = _kind_name(variable)
            kind, kind_name, value = variable.__name__, names[variable], leaf.get_raw_value()
        else:
            value = leaf.value if isinstance(leaf, Bare) else leaf
            kind, kind_name = "array" if hasattr(value, "dtype") else "value", None
        others = tuple(_other_paths(path, shared)) if shared else ()
        leaves.append(Leaf(path, kind, kind_name, _stored(value, path), others))
    return leaves


def check_savable(leaves: Iterable[Leaf], *, shards: bool) -> None:
    """Refuses arrays that have no values to save, or not all of them here.

    Args:
      leaves: what :func:`capture` gave.
      shards: whether the format writes arrays that are spread over several processes.

    Raises:
      UnsupportedValueError: naming the place of such an array.
    """
    for leaf in leaves:
        held = leaf.value
        for array in (held,) if type(held) is StoredArray else arrays_in(held):
            if array.read is None:
                raise UnsupportedValueError(
                    f"`{leaf.name}` holds a jax.ShapeDtypeStruct, the shape and dtype of an array "
                    "without its values, so there is nothing to save; build the model outside of "
                    "eval_shape"
                )
            if array.live is not None:
                _check_live(array.live, leaf, shards)


def _check_live(array: jax.Array, leaf: Leaf, shards: bool) -> None:
    if array.is_deleted():
        raise UnsupportedValueError(
            f"`{leaf.name}` has been deleted, probably by a jitted function to which it "
            "was donated; save before that call, or save what the call returned"
        )
    if not (shards or _is_here(array.sharding) or array.is_fully_replicated):
        raise UnsupportedValueError(
            f"`{leaf.name}` is spread over several hosts, and this one cannot read all of it; save "
            'it with format="orbax", which writes from each process its part, or gather it first '
            "with jax.experimental.multihost_utils.process_allgather"
        )


@functools.lru_cache(maxsize=256)
def _is_here(sharding: jax.sharding.Sharding) -> bool:
    return sharding.is_fully_addressable


def copied_to_host(leaves: Iterable[Leaf]) -> list[Leaf]:
    """Copies every array into memory that nothing else writes.

    Args:
      leaves: what :func:`capture` gave.

    Returns:
      The same leaves; what becomes of the model's arrays afterwards changes nothing in them.
    """
    leaves = list(leaves)
    for leaf in leaves:
        for array in arrays_in(leaf.value):
            if array.live is not None and array.live.is_fully_addressable:
                array.live.copy_to_host_async()  # all under way before the first is waited for
    return [dataclasses.replace(leaf, value=replaced(leaf.value, _copy)) for leaf in leaves]


def _copy(array: StoredArray) -> StoredArray:
    assert array.read is not None
    bits = np.array(array.read(), copy=True)
    return dataclasses.replace(array, read=lambda: bits, live=None, owned=False)


def _other_paths(path: Path, shared: dict[Path, list[Path]]) -> list[Path]:
    """Returns the other paths to an object, through every shared node on the way to it."""
    found = [path]
    for here in found:  # grows
        for length in range(len(here) + 1):
            start = here[:length]
            for other in shared.get(start, ()):
                inside = (
                    other[:length] == start
                )  # a node that is reached from itself: go round once
                if not inside or here is path:
                    new = other + here[length:]
                    if new not in found:
                        found.append(new)
    return found[1:]


def _kind_name(kind: type[Any]) -> str | None:
    try:
        return moduli.variable_name_from_type(kind)
    except PathError:
        return None


def _check_path(path: Path) -> None:
    for part in path:
        if type(part) is not str and not _is_name(part):
            raise UnsupportedValueError(
                f"the path `{format_path(path)}` has the {type(part).__name__} {part!r} in it; "
                "a checkpoint names leaves by attribute names and by keys that are str, int or "
                "tuples of these"
            )


def _is_name(part: object) -> bool:
    return type(part) in (str, int) or (type(part) is tuple and all(map(_is_name, part)))


def _stored(value: Any, path: tuple[Any, ...]) -> Any:
    if isinstance(value, jax.Array):
        return _stored_jax(value, path)
    if isinstance(value, (np.ndarray, np.generic, jax.ShapeDtypeStruct)):
        return _stored_array(value, path)
    if type(value) in _SCALARS:
        return value
    fields = getattr(value, "_fields", None)
    if isinstance(value, tuple) and fields is not None:
        items = (_stored(getattr(value, field), (*path, field)) for field in fields)
        return StoredNamedTuple(type(value).__name__, tuple(fields), tuple(items))
    if type(value) in (tuple, list):
        return type(value)(_stored(item, (*path, i)) for i, item in enumerate(value))
    if type(value) is dict:
        for key in value:
            _check_path((*path, key))
        return {key: _stored(item, (*path, key)) for key, item in value.items()}
    raise UnsupportedValueError(
        f"`{format_path(path)}` holds a {type(value).__module__}.{type(value).__qualname__}, "
        "which a checkpoint cannot store (nothing is ever pickled); it stores arrays, PRNG keys, "
        "numbers, str, None, and tuples, lists and dicts of these"
    )


def _stored_jax(array: jax.Array, path: tuple[Any, ...]) -> StoredArray:
    if isinstance(array, jax.core.Tracer):
        raise UnsupportedValueError(
            f"`{format_path(path)}` is being traced and has no value yet; save and load outside "
            "of jit, grad and JAX's other transforms"
        )
    name = dtype_name(array.dtype)
    if name is None:
        return _stored_array(array, path)

    def read() -> np.ndarray:
        return to_bits(np.asarray(array), name)

    return StoredArray(name, array.shape, "jax", bool(array.weak_type), None, read, False, array)


def _stored_array(array: Any, path: tuple[Any, ...]) -> StoredArray:
    if isinstance(array, np.ndarray) and type(array) not in _NUMPY:
        raise UnsupportedValueError(
            f"`{format_path(path)}` holds a {type(array).__module__}.{type(array).__qualname__}, "
            "whose mask, unit or kind a checkpoint would lose; save what it is made of, such as "
            "`array.data` and `array.mask`, or a plain array: `numpy.asarray(array)`"
        )
    name = dtype_name(array.dtype)
    if name is None:
        if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
            return _stored_keys(array)
        raise UnsupportedValueError(
            f"`{format_path(path)}` has dtype {array.dtype}, which a checkpoint cannot store "
            "(object arrays would need pickle, which can run any code); it stores bool, int, "
            "uint, float and complex dtypes of at most 64 bits a part, those of ml_dtypes, and "
            "PRNG keys"
        )
    shape = tuple(array.shape)
    if isinstance(array, jax.ShapeDtypeStruct):
        return StoredArray(name, shape, "abstract", bool(array.weak_type))

    def read() -> np.ndarray:
        return to_bits(np.asarray(array), name)

    container = "numpy" if isinstance(array, np.ndarray) else "numpy scalar"
    return StoredArray(name, shape, container, read=read)


def _stored_keys(keys: Any) -> StoredArray:
    name, shape, implementation = _key_data(keys.dtype, tuple(keys.shape))
    if isinstance(keys, jax.ShapeDtypeStruct):
        return StoredArray(name, shape, "abstract", key_impl=implementation)
    return StoredArray(
        name,
        shape,
        "jax",
        key_impl=implementation,
        read=lambda: to_bits(np.asarray(jax.random.key_data(keys)), name),
        live=keys,
    )


@functools.lru_cache(maxsize=256)
def _key_data(dtype: Any, shape: tuple[int, ...]) -> tuple[str, tuple[int, ...], str]:
    """Returns dtype and shape of the data of keys, and the name of their implementation."""
    names: list[str] = []

    def look(live: Any) -> Any:
        names.append(str(jax.random.key_impl(live)))
        return jax.random.key_data(live)

    data = jax.eval_shape(look, jax.ShapeDtypeStruct(shape, dtype))
    return data.dtype.name, tuple(data.shape), names[0]
