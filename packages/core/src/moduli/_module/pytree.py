"""Pytree: an object whose attributes are nodes of a graph; the base of Module, Rngs, Optimizer.

Setting an attribute decides what it is: Variables, arrays, modules and containers are *data*, the
rest is *static* (part of the structure, compared by hash and ``==`` or else by content). Every
Pytree is also a JAX pytree with key paths. JAX copies shared references when it takes a pytree
apart, so a graph that is not a tree raises there instead.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from moduli import errors
from moduli._base.compat import trace_state
from moduli._base.epoch import EPOCH
from moduli._base.foreign_trace import check_mutable
from moduli._base.node import Bookkeeping, Node
from moduli._base.static_keys import static_key
from moduli._graph.data import (
    Annotated,
    adopt,
    containers,
    is_array,
    is_array_of_numbers,
)
from moduli._graph.split import clone
from moduli._module.class_definition import (
    Constructor,
    check_slots,
    is_frozen,
    note_abstract_methods,
    watch_cached_properties,
    wrap_init,
)
from moduli._module.copying import deepcopy_item, picklable_item
from moduli._module.field_markers import annotated_statuses, check_defaults, shared_default
from moduli._module.jax_pytree import register
from moduli._variable.box import Variable

__all__ = ["Pytree", "change_class", "refuse_replacing"]


_SIMPLE = frozenset((int, float, bool, str, bytes, complex, type(None)))
_NUMBERS = (int, float, complex, np.generic)
_MISSING: Any = object()
_attributes: Callable[[Any], dict[str, Any]] = operator.attrgetter("__dict__")


class Pytree(Node):
    """Base of objects that are nodes of a graph without being Modules.

    JAX sees every such object as a pytree. ``class Opaque(moduli.Pytree, pytree=False)`` is one
    that only moduli's functions take apart; classes derived from it follow it.

    Example:
      >>> import moduli as nnx, jax
      >>> class Box(nnx.Pytree):
      ...     def __init__(self, value):
      ...         self.value, self.name = nnx.Variable(value), "box"
      >>> jax.tree.map(lambda x: x + 1, Box(1)).value.value
      2
    """

    _descriptors: frozenset[str] = frozenset(("__class__",))
    _is_jax_pytree: bool = True
    _statuses: Mapping[str, str] | None = None  # of attributes whose annotation says it

    if not TYPE_CHECKING:  # for type checkers, a constructor is a class's own __init__
        __signature__ = Constructor()

        def __new__(cls, /, *args: Any, **kwargs: Any) -> Any:
            init = cls.__init__
            if not hasattr(init, "_moduli_function"):  # dataclasses write one after the class
                if is_frozen(cls):  # its fields are not set by __setattr__
                    check_defaults(cls)
                wrap_init(cls, init)
            return super().__new__(cls, *args, **kwargs)

        def __init__(self, /, *args: Any, **kwargs: Any) -> None:
            following = super().__init__  # of another base class, or object's
            if (args or kwargs) and getattr(following, "__objclass__", None) is object:
                raise TypeError(f"{type(self).__name__}() takes no arguments")
            following(*args, **kwargs)

    def __init_subclass__(cls, *, pytree: bool | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if pytree is not None:
            cls._is_jax_pytree = pytree
        cls._descriptors = frozenset(
            name
            for base in cls.__mro__
            if base not in (object, Node)
            for name, item in vars(base).items()
            if hasattr(type(item), "__set__") and name not in ("__dict__", "__weakref__")
        ) | {"__class__"}
        statuses = {**(cls._statuses or {}), **annotated_statuses(cls)}
        cls._statuses = statuses or None
        check_slots(cls)
        watch_cached_properties(cls)
        note_abstract_methods(cls)
        if "__init__" in vars(cls):
            wrap_init(cls, cls.__init__)
        if cls._is_jax_pytree:
            register(cls)

    # -- items, as the graph code reads and writes them -----------------------------------------

    def _items(self) -> list[tuple[str, Any]]:
        items = sorted(_attributes(self).items())
        return [item for item in items if item[0] != "_moduli"]

    def _snapshot(self) -> tuple[tuple[Any, ...], tuple[Any, ...]] | None:
        if self._moduli.annotations is not None or type(self)._items is not Pytree._items:
            return None
        attributes = _attributes(self)
        return tuple(attributes), tuple(attributes.values())

    def _fill(self, items: Iterable[tuple[Any, Any]]) -> None:
        attributes = _attributes(self)
        book = attributes["_moduli"]
        attributes.clear()
        attributes["_moduli"] = book
        attributes.update(items)

    def _read(self, key: Any) -> Any:
        if key == "_moduli":
            raise KeyError(key)
        return _attributes(self)[key]

    def _write(self, key: Any, value: Any) -> None:
        _attributes(self)[key] = value

    def _remove(self, key: Any) -> None:
        del _attributes(self)[key]

    # -- attributes ------------------------------------------------------------------------------

    if not TYPE_CHECKING:  # for type checkers, there are the attributes that a class sets itself

        def __setattr__(self, name: str, value: Any) -> None:
            if name in type(self)._descriptors:
                if name == "__class__":
                    change_class(self, value)
                else:
                    object.__setattr__(self, name, value)
                return
            attributes = _attributes(self)
            book: Bookkeeping = attributes["_moduli"]
            old = attributes.get(name, _MISSING)
            if old is _MISSING:
                if hasattr(type(self), "__dataclass_fields__"):
                    value = _as_field_says(type(self), name, value)
                statuses = type(self)._statuses
                if statuses is not None and name in statuses and value.__class__ is not Annotated:
                    value = Annotated(value, statuses[name])
            kind = value.__class__
            if kind in _SIMPLE and old.__class__ is kind and static_key(old) == static_key(value):
                return
            if kind is Annotated:
                check_mutable(self, f"set the attribute `{name}`")
                book.annotate(name, value.status)
                adopts = value.status == "data" and value.value.__class__ in containers
                value = adopt(value.value) if adopts else value.value  # other pytrees stay
                old = _MISSING  # the status may change though the value does not
            elif kind in containers or isinstance(value, tuple):
                value = adopt(value)
            if book.trace != trace_state():
                check_mutable(self, f"set the attribute `{name}`")
            if isinstance(old, Variable):
                refuse_replacing(self, f".{name}", old, value)
            attributes[name] = value
            if old is value or (
                book.annotations is None and is_array(old) and is_array_of_numbers(value)
            ):
                return
            book.version += 1
            if book.tracked:
                EPOCH[0] += 1

        def __delattr__(self, name: str) -> None:
            if name in type(self)._descriptors:
                object.__delattr__(self, name)
                return
            if name == "_moduli" or name not in _attributes(self):
                raise AttributeError(f"{type(self).__name__} has no attribute {name!r} to delete")
            check_mutable(self, f"delete the attribute `{name}`")
            del _attributes(self)[name]
            self._moduli.annotate(name, None)
            self._moduli.changed()

    def __dir__(self) -> list[str]:
        return [name for name in super().__dir__() if name != "_moduli"]

    # -- copies ----------------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        attributes = {name: picklable_item(value) for name, value in _attributes(self).items()}
        attributes["_moduli"] = self._moduli.annotations
        return attributes

    def __setstate__(self, state: dict[str, Any]) -> None:
        book = _attributes(self).setdefault("_moduli", Bookkeeping(trace_state()))
        _attributes(self).update(state)
        _attributes(self)["_moduli"] = book
        book.annotations = state.get("_moduli")

    def __reduce__(self) -> tuple[Any, ...]:
        return _new, (type(self),), self.__getstate__()

    def __copy__(self) -> Any:
        new = type(self)._make_empty(trace_state())
        new._fill(self._items())
        new._moduli.annotations = self._moduli.annotations
        return new

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        new = type(self)._make_empty(trace_state())
        memo[id(self)] = new
        new._fill([(key, deepcopy_item(value, memo)) for key, value in self._items_in_order()])
        new._moduli.annotations = self._moduli.annotations
        return new

    def _items_in_order(self) -> list[tuple[Any, Any]]:
        """The items in the order in which they were set, for people to read."""
        return [item for item in _attributes(self).items() if item[0] != "_moduli"]

    def __repr__(self) -> str:
        from moduli._graph.tree_repr import node_repr

        return node_repr(self)


def change_class(node: Node, cls: Any) -> None:
    """Makes a node an object of another class, with the attributes that it has.

    Args:
      node: the node.
      cls: the class; ``__init__`` is not run.

    Raises:
      ClassDefinitionError: it is no class of nodes: the graph would not see the node any more.
      TypeError: (of Python's) objects of the two classes are laid out in other ways, as a Module
        and a List.
      TraceError: the node belongs to another trace.
    """
    if not (isinstance(cls, type) and issubclass(cls, Pytree)):
        name = cls.__name__ if isinstance(cls, type) else repr(cls)
        raise errors.ClassDefinitionError(
            f"the class of a {type(node).__name__} cannot become {name}, which is no subclass of "
            "moduli.Module or moduli.Pytree: its Variables would be no part of the model any more"
        )
    check_mutable(node, "change the class")
    if node.__class__ is not cls:
        object.__setattr__(node, "__class__", cls)
        node._moduli.changed()


def refuse_replacing(node: Node, key: str, old: Variable[Any], value: Any) -> None:
    """Raises for a plain value in the place of a Variable: nothing would train or save it.

    Args:
      node: the node that holds the Variable.
      key: where, as code: ``".kernel"``, ``"[0]"``.
      old: the Variable.
      value: what is to stand there.
    """
    if not (is_array(value) or isinstance(value, _NUMBERS)):
        return
    if value.__class__ is bool:  # a flag, as in `layer.bias = False`
        return
    kind, where = type(old).__name__, f"{type(node).__name__}{key}"
    name = "module" if key.startswith(".") else type(node).__name__.lower()
    raise errors.VariableError(
        f"`{where}` is a {kind}, and {_what(value)} in its place would be no {kind} any "
        f"more. Write the value into it (`{name}{key}.value = ...`), put a new one there "
        f"(`{name}{key} = moduli.{kind}(...)`), or say that a plain value is meant "
        f"(`{name}{key} = moduli.data(...)` or `moduli.static(...)`)"
    )


def _what(value: Any) -> str:
    return "an array" if is_array(value) else f"a {type(value).__name__}"


def _as_field_says(cls: type, name: str, value: Any) -> Any:
    """Applies ``moduli.data()``, ``moduli.static()`` or ``metadata={"static": ...}`` of a field.

    A default that is a Variable or holds one is copied: each instance has its own.
    """
    field = cls.__dataclass_fields__.get(name)  # type: ignore[attr-defined]
    if field is not None and field.default is value and shared_default(value) is not None:
        value = clone(value)
    metadata: Any = {} if field is None else field.metadata
    status = metadata.get("moduli")
    if status is None and isinstance(metadata.get("static"), bool):  # JAX's own way to say it
        status = "static" if metadata["static"] else "data"
    if status is None or isinstance(value, Annotated):
        return value
    return Annotated(value, status)


def _new(cls: type[Node]) -> Any:
    return cls._make_empty(trace_state())


wrap_init(Pytree, Pytree.__init__)
register(Pytree)
