"""What happens to a class of modules when it is defined: doors for plugins, checks, signature."""

from __future__ import annotations

import functools
import inspect
import operator
import types
from collections.abc import Callable
from typing import Any

from moduli import _plugins, errors
from moduli._base.error_places import place
from moduli._base.folded_frames import fold
from moduli._base.node import Node
from moduli._graph.data import (
    adopt,
    is_array,
    is_data,
)
from moduli._graph.deleted import deleted_in_call, deleted_in_module
from moduli._module.borrowed import Borrowed
from moduli._module.hooked_calls import call_method, call_module

__all__ = [
    "Constructor",
    "check_slots",
    "is_frozen",
    "note_abstract_methods",
    "watch_cached_properties",
    "wrap_call",
    "wrap_init",
    "wrap_methods",
]

_OURS = "moduli"  # what the names of moduli's packages begin with
_attributes: Callable[[Any], dict[str, Any]] = operator.attrgetter("__dict__")


class Constructor:
    """``cls.__signature__``: what a class is called with, for ``inspect``, ``help`` and Sphinx.

    These would find ``Pytree.__new__``, which takes anything, where a class has no ``__init__`` of
    its own. An instance has no such attribute, and a class may say another.
    """

    def __get__(self, instance: object, cls: type) -> inspect.Signature:
        if instance is not None:
            raise AttributeError("__signature__")
        for base in cls.__mro__:
            own = isinstance(vars(base).get("__signature__"), Constructor)  # Pytree's constructor
            if base is Node or own or getattr(base, "_is_protocol", False):
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


def check_slots(cls: type) -> None:
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


def watch_cached_properties(cls: type) -> None:
    for name, item in list(vars(cls).items()):
        if type(item) is functools.cached_property:
            watched = _CachedProperty(item.func)
            watched.__set_name__(cls, name)
            setattr(cls, name, watched)


def note_abstract_methods(cls: type) -> None:
    """Lets ``abc.abstractmethod`` hold without a metaclass, which could conflict with others."""
    names = {name for base in cls.__bases__ for name in getattr(base, "__abstractmethods__", ())}
    names.update(vars(cls))
    abstract = [n for n in names if getattr(getattr(cls, n, None), "__isabstractmethod__", False)]
    cls.__abstractmethods__ = frozenset(abstract)  # type: ignore[attr-defined]


def is_frozen(cls: type) -> bool:
    parameters = getattr(cls, "__dataclass_params__", None)
    return parameters is not None and parameters.frozen


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


def wrap_call(cls: type[Any]) -> None:
    """Gives plugins a door into ``__call__`` of every class, at its definition."""
    call = cls.__dict__.get("__call__")
    if call is None or not callable(call) or hasattr(call, "_moduli_function"):
        return
    if isinstance(call, (staticmethod, classmethod)):
        return
    instrumented = _plugins.instrumented
    lends = (call.__module__ or "").partition("_")[0] == _OURS  # a layer, not a user's module

    @functools.wraps(call)
    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        if lends and not isinstance(self, Node):
            return call(Borrowed(cls, self), *args, **kwargs)
        try:
            if instrumented():
                return call_module(self, call, args, kwargs)
            return call(self, *args, **kwargs)
        except Exception as error:
            gone = deleted_in_module(error, self)
            if gone is not None:
                raise gone from gone.__cause__
            place(error, self)
            fold(error)
            raise

    __call__._moduli_function = call  # type: ignore[attr-defined]
    cls.__call__ = __call__  # type: ignore[method-assign,assignment]


def wrap_methods(cls: type[Any]) -> None:
    """Gives plugins a door into the public methods of every class, at its definition."""
    watches_methods = _plugins.watches_methods

    def wrapped(function: types.FunctionType) -> Any:
        @functools.wraps(function)
        def method(*args: Any, **kwargs: Any) -> Any:
            try:
                if watches_methods() and args and isinstance(args[0], Node):
                    return call_method(function, args, kwargs)
                return function(*args, **kwargs)
            except Exception as error:
                gone = deleted_in_call(error, function, args, kwargs)
                if gone is not None:
                    raise gone from gone.__cause__
                raise

        method._moduli_function = function  # type: ignore[attr-defined]
        return method

    for name, item in list(vars(cls).items()):
        public = isinstance(item, types.FunctionType) and not name.startswith("_")
        if public and not hasattr(item, "_moduli_function"):
            setattr(cls, name, wrapped(item))
