"""Finds modules and Variables where the graph cannot see them, inside of static values.

A set, a view of a dict, an iterator, an object of a class that nobody has registered, or a function
that keeps a module in its closure, its defaults or its ``self``: all are static, so what they carry
would be constant in a compiled program and have no gradient. They are refused, and so is an array
of NumPy's whose elements are modules. Arrays that a function closes over are constants by intent,
and a State in there is a value; neither is looked for.

This is asked only when a graph is flattened anew.
"""

from __future__ import annotations

import functools
import types
from collections.abc import ItemsView, Iterator, KeysView, ValuesView
from typing import Any

import numpy as np

from moduli import errors
from moduli._base.node import Node
from moduli._graph.data import holds_objects, is_graph_leaf
from moduli._graph.opened import _fields

__all__ = ["check_array", "check_class", "check_static"]

_MOST = 500
_DEPTH = 12
_SIMPLE = frozenset((int, float, bool, str, bytes, complex, type(None), type, slice, range))
_CLOSED = (type, types.ModuleType, types.BuiltinFunctionType, types.CodeType)
_VIEWS = (KeysView, ValuesView, ItemsView)
# their `__reduce__` gives what they go through
_ITERATORS = (
    *(type(iter(empty)) for empty in ([], (), {}, {}.values(), {}.items(), set())),
    *(type(reversed(empty)) for empty in ([], {})),
    *(enumerate, filter, map, reversed, zip),
)
_LIBRARIES = frozenset(("jax", "jaxlib", "numpy", "logging", "threading", "re", "enum", "weakref"))


def check_static(value: Any, path: tuple[Any, ...]) -> None:
    """Raises if a static value carries a node or Variable that the graph would not see.

    Args:
      value: the value.
      path: where it stands.

    Raises:
      StructureError: with the attribute, how the value carries it, and what to write.
    """
    if value.__class__ in _SIMPLE:
        return
    found = _find(value)
    if found is None:
        return
    item, trail = found
    way = ", ".join(trail)
    raise errors.StructureError(
        f"the attribute `{errors.format_path(path)}` holds {_what(value)} that "
        f"carries a {type(item).__name__} ({way}); the graph cannot see it there, so its values "
        f"would be frozen into compiled programs, without gradients. {_remedy(value, item)}"
    )


def check_array(value: Any, path: tuple[Any, ...]) -> None:
    """Raises if an array has nodes or Variables as its elements, as ``check_static`` does.

    Args:
      value: an array, or another leaf.
      path: where it stands.

    Raises:
      StructureError: with the attribute, how the array carries it, and what to write.
    """
    if holds_objects(value):
        check_static(value, path)


def _remedy(value: Any, item: Any) -> str:
    name = type(item).__name__
    if isinstance(value, np.ndarray):
        return f"Keep the {name} in a list, as `moduli.List(...)` makes one"
    if isinstance(value, (set, frozenset, *_VIEWS, Iterator)):
        return f"Keep the {name} in a list, a dict or a tuple"
    if callable(value):
        return (
            f"Store the {name} itself as an attribute and call it, or its method, where the "
            "function is called; or write a Module whose `__call__` does what the function does"
        )
    return (
        f"Make {type(value).__name__} a Module or a dataclass, or keep the {name} in an attribute "
        "of the module, in a list or in a dict"
    )


def _what(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return "a NumPy array of objects"
    return f"a {type(value).__name__}"


def _find(value: Any) -> tuple[Any, list[str]] | None:
    """The first node or Variable inside, breadth first, and the way to it."""
    seen = {id(value)}
    level: list[tuple[Any, list[str]]] = [(value, [])]
    for _ in range(_DEPTH):
        following: list[tuple[Any, list[str]]] = []
        for current, trail in level:
            for way, item in _parts(current):
                if item.__class__ in _SIMPLE or id(item) in seen:
                    continue
                if is_graph_leaf(item):
                    return item, [*trail, way]
                seen.add(id(item))
                if len(seen) > _MOST:
                    return None
                following.append((item, [*trail, way]))
        level = following
    return None


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """Yields (how it is carried, item) of what a static value carries directly."""
    if isinstance(value, types.FunctionType):
        names = value.__code__.co_freevars
        for name, cell in zip(names, value.__closure__ or (), strict=True):
            try:
                yield f"closure variable `{name}`", cell.cell_contents
            except ValueError:  # not assigned yet
                continue
        for item in value.__defaults__ or ():
            yield "default argument", item
        for name, item in (value.__kwdefaults__ or {}).items():
            yield f"default of `{name}`", item
        for name, item in value.__dict__.items():
            yield f"attribute `{name}`", item
    elif isinstance(value, types.MethodType):
        yield "bound to it", value.__self__
        yield "method", value.__func__
    elif isinstance(value, functools.partial):
        yield "function of the partial", value.func
        for item in value.args:
            yield "argument of the partial", item
        for name, item in value.keywords.items():
            yield f"argument `{name}` of the partial", item
    elif isinstance(value, (tuple, list, set, frozenset, *_VIEWS)):
        for item in value:
            yield "element", item
    elif isinstance(value, np.ndarray):
        if value.dtype.hasobject:
            for item in value.flat:
                yield "element", item
    elif isinstance(value, np.void):  # an element of an array with fields
        for name in value.dtype.names or ():
            yield f"field {name!r}", value[name]
    elif isinstance(value, types.GeneratorType):
        for name, item in (value.gi_frame.f_locals if value.gi_frame else {}).items():
            yield f"variable `{name}` of the generator", item
    elif isinstance(value, _ITERATORS):
        for item in value.__reduce__()[1]:  # what it goes through; none of it is taken
            yield "iterated", item
    elif isinstance(value, (dict, types.MappingProxyType)):
        for name, item in value.items():
            yield f"entry {name!r}", item
            yield "key", name
    elif isinstance(value, _CLOSED) or getattr(type(value), "_is_moduli_state", False):
        return
    elif hasattr(type(value), "__wrapped__") or "__wrapped__" in getattr(value, "__dict__", ()):
        yield "wrapped function", value.__wrapped__
    elif type(value).__module__.partition(".")[0] not in _LIBRARIES:
        for name, item in _fields(value).items():
            yield f"attribute `{name}`", item


_of_classes: dict[type, tuple[int, tuple[str, ...]]] = {}


def check_class(node: Node, path: tuple[Any, ...]) -> None:
    """Raises if the class of a node has a module or Variable that the node itself has not.

    Args:
      node: the node.
      path: where it stands.

    Raises:
      StructureError: with the name and what to write.
    """
    cls = type(node)
    size = sum([len(vars(base)) for base in cls.__mro__])
    known = _of_classes.get(cls)
    if known is None or known[0] != size:
        found = {
            name
            for base in cls.__mro__
            if not base.__module__.startswith("moduli.")
            for name, item in vars(base).items()
            if not name.startswith("__")  # such as the fields of a dataclass
            and _is_shared(item)
            and getattr(cls, name, None) is item
        }
        known = _of_classes[cls] = (size, tuple(sorted(found)))
    for name in known[1]:
        if name not in node.__dict__:
            item = getattr(cls, name)
            raise errors.StructureError(
                f"`{errors.format_path((*path, name))}` is a {type(item).__name__} on the class "
                f"{cls.__name__}, which all its objects share; the graph cannot see it there, so "
                "it would be frozen into compiled programs, without gradients. Assign it in "
                f"`__init__`: `self.{name} = ...`"
            )


def _is_shared(item: Any) -> bool:
    if is_graph_leaf(item):
        return True
    if isinstance(item, (list, tuple, dict, set, frozenset)) and item:
        return _holds_node(item)
    return False


def _holds_node(item: Any) -> bool:
    found = _find(item)
    return found is not None and len(found[1]) <= 3 and "closure" not in " ".join(found[1])
