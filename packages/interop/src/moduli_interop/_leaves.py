"""From a live model to the leaves of a checkpoint, without copying any array."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

import moduli
from moduli.errors import PathError, format_path
from moduli_interop._dtypes import dtype_name, to_bits
from moduli_interop._errors import UnsupportedValueError
from moduli_interop._stored import Leaf, Path, StoredArray, StoredNamedTuple

__all__ = ["capture", "live_leaves", "root_of"]

_SCALARS = frozenset((bool, int, float, complex, str, type(None)))


def root_of(model: Any) -> Any:
    """Returns the graph node or State that stands for what a user passed as the model.

    Args:
      model: a Module or another node, a State, or a dict of nodes.

    Raises:
      UnsupportedValueError: if it is anything else.
    """
    if isinstance(model, (moduli.Pytree, moduli.State)):
        return model
    if isinstance(model, Mapping) and model and all(map(_is_graph_part, model.values())):
        return moduli.Dict(model)
    raise UnsupportedValueError(
        f"got a {type(model).__name__} as the model; pass a Module, an Optimizer or another "
        "moduli.Pytree, a State, or a dict of these nodes such as "
        '{"model": model, "optimizer": optimizer}'
    )


def _is_graph_part(value: object) -> bool:
    return isinstance(value, (moduli.Pytree, moduli.Variable))


def live_leaves(root: Any) -> list[tuple[Path, Any]]:
    """Pairs the path of each Variable and bare array with the object itself, each object once."""
    state = root if isinstance(root, moduli.State) else moduli.state(root)
    return list(moduli.to_flat_state(state).items())


def capture(root: Any, live: list[tuple[Path, Any]]) -> list[Leaf]:
    """Describes every leaf of a graph; arrays are read only when a format asks for their bits.

    Args:
      root: what :func:`root_of` returned.
      live: what :func:`live_leaves` returned for it.

    Raises:
      UnsupportedValueError: if a leaf holds something that a checkpoint cannot store.
    """
    aliases = _aliases(root)
    leaves = []
    for path, leaf in live:
        _check_path(path)
        if isinstance(leaf, moduli.Variable):
            kind, value = type(leaf).__name__, leaf.get_raw_value()
            kind_name = _kind_name(type(leaf))
        else:
            kind, kind_name, value = "array", None, leaf
        others = tuple(_other_paths(path, aliases))
        leaves.append(Leaf(path, kind, kind_name, _stored(value, path), others))
    return leaves


def _aliases(root: Any) -> list[list[Path]]:
    return [] if isinstance(root, moduli.State) else moduli.find_duplicates(root)


def _other_paths(path: Path, aliases: list[list[Path]]) -> Iterator[Path]:
    for first, *others in aliases:
        if path[: len(first)] == first:
            for other in others:
                yield other + path[len(first) :]


def _kind_name(kind: type[Any]) -> str | None:
    try:
        return moduli.variable_name_from_type(kind)
    except PathError:
        return None


def _check_path(path: Path) -> None:
    for part in path:
        if not _is_name(part):
            raise UnsupportedValueError(
                f"the path `{format_path(path)}` has the {type(part).__name__} {part!r} in it; "
                "a checkpoint names leaves by attribute names and by keys that are str, int or "
                "tuples of these"
            )


def _is_name(part: object) -> bool:
    return type(part) in (str, int) or (type(part) is tuple and all(map(_is_name, part)))


def _stored(value: Any, path: tuple[Any, ...]) -> Any:
    if isinstance(value, (jax.Array, np.ndarray, np.generic, jax.ShapeDtypeStruct)):
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


def _stored_array(array: Any, path: tuple[Any, ...]) -> StoredArray:
    if isinstance(array, jax.core.Tracer):
        raise UnsupportedValueError(
            f"`{format_path(path)}` is being traced and has no value yet; save and load outside "
            "of jit, grad and JAX's other transforms"
        )
    if not isinstance(array, (np.ndarray, np.generic)) and jnp.issubdtype(
        array.dtype, jax.dtypes.prng_key
    ):
        return _stored_keys(array)
    name = dtype_name(array.dtype)
    if name is None:
        raise UnsupportedValueError(
            f"`{format_path(path)}` has dtype {array.dtype}, which a checkpoint cannot store "
            "(object arrays would need pickle, which can run any code); it stores bool, int, "
            "uint, float and complex dtypes of at most 64 bits a part, those of ml_dtypes, and "
            "PRNG keys"
        )
    shape = tuple(array.shape)
    if isinstance(array, jax.ShapeDtypeStruct):
        return StoredArray(name, shape, "abstract", bool(array.weak_type))
    if isinstance(array, jax.Array):
        _check_addressable(array, path)
        weak = bool(jax.typeof(array).weak_type)
        return StoredArray(name, shape, "jax", weak, None, lambda: to_bits(np.asarray(array), name))
    container = "numpy" if isinstance(array, np.ndarray) else "numpy scalar"
    return StoredArray(name, shape, container, read=lambda: to_bits(np.asarray(array), name))


def _stored_keys(keys: Any) -> StoredArray:
    if isinstance(keys, jax.ShapeDtypeStruct):
        names: list[str] = []

        def look(live: Any) -> Any:
            names.append(str(jax.random.key_impl(live)))
            return jax.random.key_data(live)

        shape = jax.eval_shape(look, keys)
        return StoredArray(shape.dtype.name, shape.shape, "abstract", key_impl=names[0])
    data = jax.random.key_data(keys)
    name = data.dtype.name
    return StoredArray(
        name,
        tuple(data.shape),
        "jax",
        key_impl=str(jax.random.key_impl(keys)),
        read=lambda: to_bits(np.asarray(data), name),
    )


def _check_addressable(array: jax.Array, path: tuple[Any, ...]) -> None:
    if not (array.is_fully_addressable or array.is_fully_replicated):
        raise UnsupportedValueError(
            f"`{format_path(path)}` is spread over several hosts, and this one cannot read all of "
            "it; gather it first with jax.experimental.multihost_utils.process_allgather"
        )
    if array.is_deleted():
        raise UnsupportedValueError(
            f"`{format_path(path)}` has been deleted, probably by a jitted function to which it "
            "was donated; save before that call, or save what the call returned"
        )
