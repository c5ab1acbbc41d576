"""Pytree: an object whose attributes are nodes of a graph; the base of Module, Rngs, Optimizer.

Setting an attribute decides what it is: Variables, arrays, modules and containers are *data*, the
rest is *static* (part of the structure, compared by hash and ``==`` or else by content). Every
Pytree is also a JAX pytree with key paths. JAX copies shared references when it takes a pytree
apart, so a graph that is not a tree raises there instead.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import operator
import types
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar, dataclass_transform, overload

import jax
import numpy as np

from moduli import _plugins, errors
from moduli._base.compat import trace_state
from moduli._base.epoch import EPOCH
from moduli._base.error_places import place
from moduli._base.foreign_trace import check_mutable
from moduli._base.lost_writes import Watch, note_trace, now_inside
from moduli._base.node import Bookkeeping, BorrowedBookkeeping, Node
from moduli._base.source_lines import describe_site
from moduli._base.static_keys import has_key, is_held, object_key, static_key, static_value
from moduli._graph.cache import flat_of
from moduli._graph.data import (
    Annotated,
    adopt,
    containers,
    is_array,
    is_data,
    is_graph_leaf,
    iter_held,
    part_of,
)
from moduli._graph.opened import for_jax
from moduli._graph.split import clone
from moduli._module.copying import deepcopy_item, picklable_item
from moduli._module.hooked_calls import call_method, call_module
from moduli._variable.box import Variable

__all__ = ["Pytree", "refuse_replacing", "data", "dataclass", "static"]

T = TypeVar("T")

_SIMPLE = frozenset((int, float, bool, str, bytes, complex, type(None)))
_NUMBERS = (int, float, complex, np.generic)
_MISSING: Any = object()
_attributes: Callable[[Any], dict[str, Any]] = operator.attrgetter("__dict__")


@overload
def data(value: T, /) -> T: ...
@overload
def data(*, default: T, **kwargs: Any) -> T: ...
@overload
def data(*, default_factory: Callable[[], T], **kwargs: Any) -> T: ...
@overload
def data(**kwargs: Any) -> Any: ...
def data(value: Any = _MISSING, /, **kwargs: Any) -> Any:
    """Marks an attribute value as data, whatever its type; assign the result to an attribute.

    Args:
      value: a pytree whose leaves JAX can trace.
      **kwargs: without a value: arguments of ``dataclasses.field``, for use in dataclasses.

    Returns:
      A marker that the assignment turns into the value.

    Example:
      >>> import moduli as nnx, jax
      >>> class Counter(nnx.Module):
      ...     def __init__(self):
      ...         self.count, self.limit = nnx.data(0), 10
      >>> jax.tree.leaves(Counter())
      [0]
    """
    return _annotated("data", value, kwargs)


@overload
def static(value: T, /) -> T: ...
@overload
def static(*, default: T, **kwargs: Any) -> T: ...
@overload
def static(*, default_factory: Callable[[], T], **kwargs: Any) -> T: ...
@overload
def static(**kwargs: Any) -> Any: ...
def static(value: Any = _MISSING, /, **kwargs: Any) -> Any:
    """Marks an attribute value as static; assign the result to an attribute.

    Args:
      value: any value that can be hashed; or a config object, a set and the like, which is compared
        by what it contains whenever the module is used.
      **kwargs: without a value: arguments of ``dataclasses.field``, for use in dataclasses.

    Returns:
      A marker that the assignment turns into the value.
    """
    return _annotated("static", value, kwargs)


@overload
@dataclass_transform(eq_default=False, field_specifiers=(data, static, dataclasses.field))
def dataclass(cls: type[T], /, **options: Any) -> type[T]: ...
@overload
@dataclass_transform(eq_default=False, field_specifiers=(data, static, dataclasses.field))
def dataclass(cls: None = None, /, **options: Any) -> Callable[[type[T]], type[T]]: ...
def dataclass(cls: Any = None, /, **options: Any) -> Any:
    """``dataclasses.dataclass`` for modules: they keep their identity (``eq=False``).

    Args:
      cls: the class; without it a decorator is returned.
      **options: arguments of ``dataclasses.dataclass``.

    Raises:
      StructureError: (a ValueError) if a default is a Variable or a module, or holds one: all
        instances would share it.

    Example:
      >>> import moduli as nnx, jax.numpy as jnp
      >>> @nnx.dataclass
      ... class Scale(nnx.Module):
      ...     factor: nnx.Param
      ...     steps: int = nnx.data(default=0)
      >>> list(nnx.state(Scale(nnx.Param(2.0))))
      ['factor', 'steps']
    """
    options = {"eq": False, "repr": False, **options}
    if cls is None:
        return functools.partial(dataclass, **options)
    made = dataclasses.dataclass(**options)(cls)
    _check_defaults(made)
    return made


def _annotated(status: str, value: Any, kwargs: dict[str, Any]) -> Any:
    if value is not _MISSING:
        return Annotated(value, status)
    metadata = {**kwargs.pop("metadata", {}), "moduli": status}
    return dataclasses.field(metadata=metadata, **kwargs)


class _Constructor:
    """``cls.__signature__``: what a class is called with, for ``inspect``, ``help`` and Sphinx.

    These would find ``Pytree.__new__``, which takes anything, where a class has no ``__init__`` of
    its own. An instance has no such attribute, and a class may say another.
    """

    def __get__(self, instance: object, cls: type) -> inspect.Signature:
        if instance is not None:
            raise AttributeError("__signature__")
        for base in cls.__mro__:
            if base in (Node, Pytree) or getattr(base, "_is_protocol", False):
                continue
            for name in ("__new__", "__init__"):
                if name in vars(base) and base is not object:
                    return _constructor_signature(getattr(base, name))
        return inspect.Signature()


def _constructor_signature(constructor: Callable[..., Any]) -> inspect.Signature:
    """Returns the signature of a function, without ``self``."""
    signature = inspect.signature(constructor)
    first, *others = signature.parameters.values()
    kept = [first, *others] if first.kind is inspect.Parameter.VAR_POSITIONAL else others
    return signature.replace(parameters=kept, return_annotation=inspect.Signature.empty)


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

    _descriptors: frozenset[str] = frozenset()
    _is_jax_pytree: bool = True

    if not TYPE_CHECKING:  # for type checkers, a constructor is a class's own __init__
        __signature__ = _Constructor()

        def __new__(cls, /, *args: Any, **kwargs: Any) -> Any:
            init = cls.__init__
            if not hasattr(init, "_moduli_function"):  # dataclasses write one after the class
                if _is_frozen(cls):  # its fields are not set by __setattr__
                    _check_defaults(cls)
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
        )
        _check_slots(cls)
        _watch_cached_properties(cls)
        _note_abstract_methods(cls)
        if "__init__" in vars(cls):
            wrap_init(cls, cls.__init__)
        if cls._is_jax_pytree:
            _register(cls)

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
                object.__setattr__(self, name, value)
                return
            attributes = _attributes(self)
            book: Bookkeeping = attributes["_moduli"]
            old = attributes.get(name, _MISSING)
            if old is _MISSING and hasattr(type(self), "__dataclass_fields__"):
                value = _as_field_says(type(self), name, value)
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
            if old is value or (book.annotations is None and is_array(old) and is_array(value)):
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
        f"`{where}` is a {kind}, and a {type(value).__name__} in its place would be no {kind} any "
        f"more. Write the value into it (`{name}{key}.value = ...`), put a new one there "
        f"(`{name}{key} = moduli.{kind}(...)`), or say that a plain value is meant "
        f"(`{name}{key} = moduli.data(...)` or `moduli.static(...)`)"
    )


def _as_field_says(cls: type, name: str, value: Any) -> Any:
    """Applies ``moduli.data()``, ``moduli.static()`` or ``metadata={"static": ...}`` of a field.

    A default that is a Variable or holds one is copied: each instance has its own.
    """
    field = cls.__dataclass_fields__.get(name)  # type: ignore[attr-defined]
    if field is not None and field.default is value and _shared(value) is not None:
        value = clone(value)
    metadata: Any = {} if field is None else field.metadata
    status = metadata.get("moduli")
    if status is None and isinstance(metadata.get("static"), bool):  # JAX's own way to say it
        status = "static" if metadata["static"] else "data"
    if status is None or isinstance(value, Annotated):
        return value
    return Annotated(value, status)


def _check_slots(cls: type) -> None:
    """Raises if attributes of a class would stand in slots, where the graph does not look."""
    for base in cls.__mro__:
        slots = vars(base).get("__slots__", ())
        names = [slots] if isinstance(slots, str) else list(slots)
        names = [name for name in names if name not in ("__dict__", "__weakref__")]
        if (names and issubclass(base, Node)) or (names and _is_python(base)):
            raise errors.ClassDefinitionError(
                f"{cls.__name__} has `__slots__` = {tuple(names)!r}"
                + (f" (of {base.__name__})" if base is not cls else "")
                + "; attributes in slots are no part of a model: its state, its gradients and its "
                "copies would lack them. Leave `__slots__` (or `dataclass(slots=True)`) out"
            )


def _is_python(cls: type) -> bool:
    return any(isinstance(item, types.MemberDescriptorType) for item in vars(cls).values()) and (
        "__module__" in vars(cls)
    )


class _CachedProperty(functools.cached_property):  # type: ignore[type-arg]
    """A cached_property that tells the graph of modules and Variables that it stores."""

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        value = super().__get__(instance, owner)
        if instance is None or is_array(value) or not is_data(value):
            return value
        name: Any = self.attrname
        value = _attributes(instance)[name] = adopt(value)
        instance._moduli.changed()
        return value


def _watch_cached_properties(cls: type) -> None:
    for name, item in list(vars(cls).items()):
        if type(item) is functools.cached_property:
            watched = _CachedProperty(item.func)
            watched.__set_name__(cls, name)
            setattr(cls, name, watched)


def _new(cls: type[Node]) -> Any:
    return cls._make_empty(trace_state())


def _note_abstract_methods(cls: type) -> None:
    """Lets ``abc.abstractmethod`` hold without a metaclass, which could conflict with others."""
    names = {name for base in cls.__bases__ for name in getattr(base, "__abstractmethods__", ())}
    names.update(vars(cls))
    abstract = [n for n in names if getattr(getattr(cls, n, None), "__isabstractmethod__", False)]
    cls.__abstractmethods__ = frozenset(abstract)  # type: ignore[attr-defined]


def _is_frozen(cls: type) -> bool:
    parameters = getattr(cls, "__dataclass_params__", None)
    return parameters is not None and parameters.frozen


def _shared(default: Any) -> Any:
    """The first Variable or node in the default of a field; None without one."""
    if default is dataclasses.MISSING or default.__class__ in _SIMPLE:
        return None
    leaves = jax.tree.leaves(default, is_leaf=is_graph_leaf)
    return next((leaf for leaf in leaves if is_graph_leaf(leaf)), None)


def _check_defaults(cls: type) -> None:
    """Raises if all instances of a dataclass would share a Variable or a module by default."""
    for name, field in getattr(cls, "__dataclass_fields__", {}).items():
        shared = _shared(field.default)
        if shared is not None:
            what = type(shared).__name__
            raise errors.StructureError(
                f"the default of the field {name!r} of the dataclass {cls.__name__} holds a {what} "
                f"that all its instances would share. Write `{name}: ... = "
                f"dataclasses.field(default_factory=lambda: {what}(...))` (or "
                "`moduli.data(default_factory=...)`), which makes one for each instance"
            )


def wrap_init(cls: type, init: Any) -> None:
    """Tells plugins that watch it of every object that has been built, after the last line.

    Args:
      cls: the class that gets the wrapped function.
      init: its ``__init__``.
    """
    if hasattr(init, "_moduli_function") or not callable(init):
        return
    watches_creation = _plugins.watches_creation

    @functools.wraps(init)
    def __init__(self: Any, /, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        if watches_creation() and type(self).__init__ is __init__:  # not one that super() called
            _plugins.module_created(self)

    __init__._moduli_function = init  # type: ignore[attr-defined]
    cls.__init__ = __init__  # type: ignore[misc]


def wrap_call(cls: type[Pytree]) -> None:
    """Gives plugins a door into ``__call__`` of every class, at its definition."""
    call = cls.__dict__.get("__call__")
    if call is None or not callable(call) or hasattr(call, "_moduli_function"):
        return
    if isinstance(call, (staticmethod, classmethod)):
        return
    instrumented = _plugins.instrumented

    @functools.wraps(call)
    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            if instrumented():
                return call_module(self, call, args, kwargs)
            return call(self, *args, **kwargs)
        except Exception as error:
            place(error, self)
            raise

    __call__._moduli_function = call  # type: ignore[attr-defined]
    cls.__call__ = __call__  # type: ignore[method-assign,assignment]


def wrap_methods(cls: type[Pytree]) -> None:
    """Gives plugins a door into the public methods of every class, at its definition."""
    watches_methods = _plugins.watches_methods

    def wrapped(function: types.FunctionType) -> Any:
        @functools.wraps(function)
        def method(*args: Any, **kwargs: Any) -> Any:
            if watches_methods() and args and isinstance(args[0], Node):
                return call_method(function, args, kwargs)
            return function(*args, **kwargs)

        method._moduli_function = function  # type: ignore[attr-defined]
        return method

    for name, item in list(vars(cls).items()):
        public = isinstance(item, types.FunctionType) and not name.startswith("_")
        if public and not hasattr(item, "_moduli_function"):
            setattr(cls, name, wrapped(item))


# -- as a JAX pytree -----------------------------------------------------------------------------


class Structure:
    """The static half of one node for JAX: class, attribute names, static values, annotations.

    ``trace``, the trace in which the node was taken apart, is no part of what is compared.
    """

    __slots__ = ("annotations", "hash", "key", "names", "order", "static", "trace")

    def __init__(
        self,
        order: tuple[Any, ...],
        names: tuple[Any, ...],
        static: tuple[Any, ...],
        annotations: dict[str, str] | None,
        trace: Any,
    ):
        self.trace = trace
        self.order, self.names, self.static = order, names, static
        self.annotations = annotations
        noted = annotations is not None and "" in annotations  # the rest shows in the names
        self.key = (names, tuple([(name, object_key(value)) for name, value in static]), noted)
        self.hash = hash(self.key)

    def static_items(self) -> list[tuple[Any, Any]]:
        """The static items as they were: one that has changed since is made again."""
        return [
            (name, static_value(key) if is_held(key) and not has_key(value, key) else value)
            for (name, value), (_, key) in zip(self.static, self.key[1], strict=True)
        ]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Structure) and self.key == other.key

    def __hash__(self) -> int:
        return self.hash

    def __repr__(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.static)


def check_tree(node: Node) -> None:
    """Raises if JAX would copy a shared reference, or never end in a cycle, below ``node``."""
    book = node._moduli
    if book.tree_epoch == EPOCH[0]:
        return
    flat = flat_of(node)
    if not flat.graphdef.is_tree or len(flat.graphdef.roots) != 1:
        _raise_shared(node)
    epoch = EPOCH[0]
    if flat.has_containers:
        return
    for item in flat.objects:
        if isinstance(item, Node):
            item._moduli.tree_epoch = epoch


def _raise_shared(node: Node) -> None:
    from moduli._graph.walk import find_duplicates

    paths = find_duplicates(node)[0]
    first, second = errors.format_path(paths[0]), errors.format_path(paths[1])
    shared: Any = node
    for part in paths[0]:
        shared = part_of(shared, part)
    site = describe_site(shared)
    raise errors.StructureError(
        f"{type(node).__name__} cannot be taken as a plain JAX pytree: `{first}` and `{second}` "
        f"are the same {type(shared).__name__}{f' ({site})' if site else ''}, and JAX would copy "
        "it (or never end, if it is a cycle). Use "
        "moduli's transforms (`moduli.jit`, `moduli.grad`, ...), which keep shared references, or "
        "`graphdef, state = moduli.split(model)` and pass the state."
    )


def node_structure(node: Node) -> tuple[list[Any], list[Any], Structure]:
    """Sorts the items of one node into data keys, data values and the static rest."""
    check_tree(node)
    annotations = node._moduli.annotations
    keys: list[Any] = []
    children: list[Any] = []
    rest: list[tuple[Any, Any]] = []
    items = node._items()
    for key, value in items:
        status = annotations.get(key) if annotations else None
        if status == "data" or (
            status is None
            and value.__class__ not in _SIMPLE  # quicker to say than what follows
            and (is_graph_leaf(value) or is_array(value) or is_data(value))
        ):
            keys.append(key)
            children.append(value if is_graph_leaf(value) else for_jax(value))
        else:
            rest.append((key, value))
    order = tuple(key for key, _ in items)
    return keys, children, Structure(order, tuple(keys), tuple(rest), annotations, note_trace())


def _watch(node: Node, names: Iterable[Any], items: dict[Any, Any]) -> None:
    """Watches for writes into a copy that JAX has made inside a trace; see ``_dropped``."""
    variables: list[tuple[tuple[Any, ...], Variable[Any]]] = []
    parts: list[tuple[tuple[Any, ...], Bookkeeping]] = []
    for name in names:
        for path, leaf in iter_held(items[name]):
            if isinstance(leaf, Variable):
                variables.append(((name, *path), leaf))
            elif isinstance(leaf, Node):
                parts.append(((name, *path), leaf._moduli))
    node.__dict__["_moduli"] = book = BorrowedBookkeeping(node._moduli.trace)
    book.watch = Watch(type(node).__name__, variables, parts)


def register_node(cls: type[Node], entry: Any) -> None:
    """Registers a node class with JAX.

    Args:
      cls: the class.
      entry: turns an item's key into JAX's key path entry.
    """

    def flatten(node: Node) -> tuple[list[Any], Structure]:
        _, children, structure = node_structure(node)
        return children, structure

    def flatten_with_keys(node: Node) -> tuple[list[Any], Structure]:
        keys, children, structure = node_structure(node)
        return list(zip(map(entry, keys), children, strict=True)), structure

    def unflatten(structure: Structure, children: Iterable[Any]) -> Node:
        trace = trace_state()
        node = cls._make_empty(trace)
        items = dict(zip(structure.names, children, strict=True))
        annotations = dict(structure.annotations or ())
        for name, child in items.items():
            if not (is_graph_leaf(child) or is_data(child)):
                annotations[name] = "data"  # JAX puts any object in the place of an array
        items.update(structure.static_items())
        node._fill((name, items[name]) for name in structure.order)
        if structure.trace != trace and now_inside(structure.trace):
            _watch(node, structure.names, items)
        node._moduli.annotations = annotations or None
        return node

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)


def _register(cls: type[Node]) -> None:
    if issubclass(cls, list):
        register_node(cls, jax.tree_util.SequenceKey)
    elif issubclass(cls, dict):
        register_node(cls, jax.tree_util.DictKey)
    else:
        register_node(cls, jax.tree_util.GetAttrKey)


wrap_init(Pytree, Pytree.__init__)
_register(Pytree)
