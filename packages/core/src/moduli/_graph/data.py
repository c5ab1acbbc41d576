"""Which values of attributes are data, and how data in plain containers is reached."""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np

from moduli import errors
from moduli._base.locate import describe_owner
from moduli._base.node import Node
from moduli._graph import opened
from moduli._variable.box import Variable

__all__ = [
    "Annotated",
    "adopt",
    "child_of",
    "contains_data",
    "holds_objects",
    "is_array",
    "is_array_of_numbers",
    "is_data",
    "is_graph_leaf",
    "is_traceable",
    "register_data_type",
]

T = TypeVar("T")
_MISSING: Any = object()


_data_types: tuple[type, ...] = ()
_ARRAY_TYPES = (jax.Array, np.ndarray, jax.ShapeDtypeStruct)


def is_array(value: object) -> bool:
    """Returns whether a bare attribute value is an array (or the shape and dtype of one)."""
    return isinstance(value, _ARRAY_TYPES)


def holds_objects(value: object) -> bool:
    """Returns whether a value is an array of NumPy's whose elements are Python objects."""
    return isinstance(value, np.ndarray) and value.dtype.hasobject


def is_array_of_numbers(value: object) -> bool:
    """Returns whether a value is an array in whose place another one may stand unseen."""
    return isinstance(value, _ARRAY_TYPES) and not holds_objects(value)


def is_traceable(leaf: object, *, bare: bool) -> bool:
    """Returns whether JAX can trace what is no array of its own or NumPy's.

    Args:
      leaf: a leaf of an attribute that is marked as data.
      bare: whether it is the attribute's value itself. Inside of a container, flags and whole
        numbers say how to compute, while a float may be written in each step, as a rate.
    """
    if isinstance(leaf, (bool, int)):
        return bare
    return (
        isinstance(leaf, (float, complex, np.generic))
        or hasattr(leaf, "__jax_array__")
        or hasattr(leaf, "dtype")
    )


def is_graph_leaf(value: object) -> bool:
    """Returns whether pytree traversal has to stop at ``value`` because the graph code owns it."""
    return isinstance(value, (Node, Variable))


def register_data_type(type_: type[T], /) -> type[T]:
    """Makes attributes that hold a value of this type data instead of static.

    Args:
      type_: any class; JAX pytrees are flattened, other values are one leaf. Usable as a
        decorator.

    Returns:
      The class.

    Example:
      >>> import moduli as nnx
      >>> @nnx.register_data_type
      ... class Frame:
      ...     pass
      >>> nnx.is_data(Frame())
      True
    """
    global _data_types
    if type_ not in _data_types:
        _data_types = (*_data_types, type_)
        opened.data_types.append(type_)
    return type_


def contains_data(value: Any, _inside: frozenset[int] = frozenset()) -> bool:
    """Returns whether a tuple or another container holds data somewhere inside."""
    for leaf in jax.tree.leaves(value, is_leaf=is_graph_leaf):
        if is_graph_leaf(leaf) or is_array(leaf) or isinstance(leaf, _data_types):
            return True
        if leaf.__class__ in _PLAIN or not opened.is_container(leaf) or id(leaf) in _inside:
            continue
        level = opened.open_level(leaf)
        inside = _inside | {id(leaf)}
        if level is not None and any(contains_data(child, inside) for child in level.children):
            return True
    return False


_PLAIN = frozenset((int, float, bool, str, bytes, complex, type(None), type))
_FUNCTIONS = (
    type,
    types.FunctionType,
    types.BuiltinFunctionType,
    types.MethodType,
    functools.partial,
)


def is_data(value: Any, /) -> bool:
    """Returns whether an attribute with this value is data (traversed, traced) or static.

    Args:
      value: a candidate attribute value.

    Returns:
      True for Variables, arrays, Modules and other nodes, lists and dicts, registered data types,
      and tuples, other mappings and sequences, dataclasses and JAX pytrees that hold one of these.

    Example:
      >>> import moduli as nnx, jax.numpy as jnp
      >>> [nnx.is_data(v) for v in (jnp.ones(2), nnx.Param(1.0), [], (1, 2), "relu")]
      [True, True, True, False, False]
    """
    if value.__class__ in _PLAIN:
        return False
    if isinstance(value, (Node, Variable, list, dict, *_ARRAY_TYPES, *_data_types)):
        return True
    if isinstance(value, Annotated):
        return value.status == "data"
    if isinstance(value, tuple) or is_mapping_pytree(value):
        return contains_data(value)
    if isinstance(value, _FUNCTIONS):
        return False
    if opened.is_container(value) or not jax.tree_util.all_leaves([value]):
        return contains_data(value)
    return False


def is_mapping_pytree(value: Any) -> bool:
    """Returns whether ``value`` is a State (a mapping that JAX flattens)."""
    return getattr(type(value), "_is_moduli_state", False)


class Annotated:
    """A value with the status that the user chose for its attribute; lives until assignment."""

    __slots__ = ("status", "value")

    def __init__(self, value: Any, status: str):
        self.value, self.status = value, status

    def __repr__(self) -> str:
        return f"moduli.{self.status}({self.value!r})"


# -- plain containers --------------------------------------------------------------------------

containers: dict[type, Callable[[Any], Node]] = {}
"""``list`` and ``dict`` -> the function that makes a node of one; filled in ``_module``."""


def adopt(value: Any) -> Any:
    """Turns plain lists and dicts into nodes, inside tuples too; returns anything else as is."""
    convert = containers.get(value.__class__)
    if convert is not None:
        return convert(value)
    if isinstance(value, tuple) and value:
        items = [adopt(item) for item in value]
        if any(new is not old for new, old in zip(items, value, strict=True)):
            return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


def check_source(node: Node, items: Callable[[Any], tuple[Any, ...]], kind: str, hint: str) -> None:
    """Raises if the plain container behind ``node`` was changed through another reference.

    The plain container is watched only while something else refers to it.
    """
    source = node._moduli.source
    if source is None:
        return
    original, snapshot = source
    current = items(original)
    if len(current) != len(snapshot) or any(
        new is not old for new, old in zip(current, snapshot, strict=True)
    ):
        raise errors.StructureError(
            f"the plain {kind} that was assigned to {describe_owner(node)} has been changed "
            f"through another reference since (it held {len(snapshot)} items, now "
            f"{len(current)}); the module keeps its own copy, so the change would be lost. Change "
            f"it through the module, {hint}."
        )
    if sys.getrefcount(original) <= 3:  # the tuple, this frame, the call: nobody else
        node._moduli.source = None


def child_of(node: Node, key: Any) -> Any:
    """Returns one item of a node or of a pytree attribute by its path key, or raises KeyError."""
    try:
        return node._read(key)
    except (KeyError, IndexError, TypeError):
        raise KeyError(key) from None


def sort_key(key: Any) -> tuple[str, Any]:
    """Orders keys of mixed types: by type name, then by value."""
    return (type(key).__name__, key)


def iter_pytree(value: Any) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Yields (path, leaf) of a tuple or another JAX pytree, stopping at nodes and Variables."""
    pairs, _ = jax.tree_util.tree_flatten_with_path(value, is_leaf=is_graph_leaf)
    for path, leaf in pairs:
        yield tuple(map(plain_key, path)), leaf


def iter_held(value: Any) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Yields (path, leaf) of the value of an attribute, stopping at nodes and Variables."""
    tree = opened.open_tree(value)
    return zip(tree.names, tree.leaves, strict=True)


def part_of(value: Any, key: Any) -> Any:
    """Returns what stands at one part of a path, in a node or another container.

    Raises:
      KeyError: if nothing does.
    """
    if isinstance(value, Node):
        return child_of(value, key)
    try:
        return value[key]
    except (KeyError, IndexError, TypeError):
        found = getattr(value, key, _MISSING) if isinstance(key, str) else _MISSING
        if found is _MISSING:
            raise KeyError(key) from None
        return found


def plain_key(entry: Any) -> Any:
    """Turns a JAX key path entry into a plain path part."""
    for name in ("key", "idx", "name"):
        if hasattr(entry, name):
            return getattr(entry, name)
    return str(entry)
