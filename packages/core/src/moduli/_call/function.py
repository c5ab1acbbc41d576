"""What all transforms do with the function and the arguments that they are given."""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import jax

from moduli import errors
from moduli._base.folded_frames import fold as fold
from moduli._base.modes import Modes as Modes
from moduli._base.node import Node
from moduli._base.positions import as_positions as as_positions
from moduli._graph.data import is_graph_leaf
from moduli._graph.deleted import deleted_in_call

__all__ = [
    "Function",
    "Static",
    "UNBOUND",
    "check_callable",
    "fold",
    "folded",
    "function_name",
    "holds_modules",
    "options_of",
    "split_static",
    "unbound",
    "wraps",
]

F = TypeVar("F", bound=Callable[..., Any])

UNBOUND = "_moduli_unbound"
"""The attribute of a transformed method: who has it, the module, and a function that takes it."""


def function_name(f: Any) -> str:
    """The name of a function for messages."""
    return getattr(f, "__qualname__", None) or type(f).__name__


def folded(f: F) -> F:
    """Returns a function whose errors show one frame of moduli's, and name deleted arguments."""

    @functools.wraps(f)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return f(*args, **kwargs)
        except Exception as error:
            gone = deleted_in_call(error, this(), args, kwargs)  # `wraps` gave it the user's name
            if gone is not None:
                raise gone from gone.__cause__
            fold(error)
            raise

    this = weakref.ref(call)  # (a function that refers to itself is freed late)
    return call  # type: ignore[return-value]


def holds_modules(tree: Any) -> bool:
    """Returns whether a pytree holds a module or a Variable."""
    return any(map(is_graph_leaf, jax.tree.leaves(tree, is_leaf=is_graph_leaf)))


def check_callable(f: Any, transform: str, example: str) -> None:
    """Raises if ``f`` cannot be called: most often options were passed by position."""
    if not callable(f):
        raise errors.StructureError(
            f"{transform} needs a callable; got a {type(f).__name__}. As a decorator with options "
            f"write `@moduli.{transform}({example})`"
        )


_NO_OPTIONS = ("f", "fun", "_modes")


def options_of(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the options of a transform.

    Args:
      parameters: ``locals()`` at the start of the transform: its options and its function.
    """
    return {name: value for name, value in parameters.items() if name not in _NO_OPTIONS}


def unbound(f: Any) -> tuple[Any, Any]:
    """Splits a method of a module, transformed or not, into module and function; a module too."""
    if isinstance(f, Node):
        return f, type(f).__call__
    module, function = getattr(f, "__self__", None), getattr(f, "__func__", None)
    if function is not None and isinstance(module, Node):
        return module, function
    owner, module, function = getattr(f, "__dict__", {}).get(UNBOUND, (None, None, None))
    return (module, function) if owner is not None and owner() is f else (None, f)


class Function:
    """A user's function, with what Python would fill in made explicit.

    A bound method of a module is its function with the module as first argument, a module is its
    ``__call__``, and a default argument that holds modules is an argument like any other; so their
    Variables are lifted too.

    Args:
      f: a function, a method, or a module.

    Attributes:
      call: takes all arguments.
      bound: the module that comes first, or an empty tuple.
      name: for messages.
      signature: of ``call``; None if it is not known.
    """

    def __init__(self, f: Callable[..., Any]):
        self.name = function_name(f)
        module, self.call = unbound(f)
        self.bound: tuple[Any, ...] = () if module is None else (module,)
        self.signature: inspect.Signature | None = None
        with contextlib.suppress(TypeError, ValueError):
            self.signature = inspect.signature(self.call)
        self._defaults = self._module_defaults()

    def _module_defaults(self) -> dict[str, Any]:
        parameters = self.signature.parameters if self.signature else {}
        return {
            name: parameter.default
            for name, parameter in parameters.items()
            if parameter.default is not inspect.Parameter.empty and holds_modules(parameter.default)
        }

    def complete(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Adds the bound module, and the defaults that hold modules, to the arguments."""
        args, kwargs = (*self.bound, *args), dict(kwargs)
        if self._defaults and self.signature is not None:
            given = self.signature.bind_partial(*args, **kwargs).arguments
            kwargs.update({n: v for n, v in self._defaults.items() if n not in given})
        return args, kwargs

    def positional(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Turns keyword arguments into positional ones where the signature allows it."""
        if not kwargs or self.signature is None:
            return args, dict(kwargs)
        try:
            given = self.signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{self.name}: {error}") from None
        return given.args, given.kwargs

    def by_position(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
        """Gives keyword arguments a position, so that ``argnums`` can name them.

        A default between two arguments is filled in. Without keyword arguments all stays as it is.

        Args:
          args: the positional arguments, without the bound module.
          kwargs: the keyword arguments.

        Returns:
          Both, in which only what cannot stand at a position is left a keyword argument.
        """
        if not kwargs or self.signature is None:
            return args, kwargs
        try:
            given = self.signature.bind(*self.bound, *args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{self.name}: {error}") from None
        given.apply_defaults()
        return given.args[len(self.bound) :], given.kwargs

    @property
    def has_module_defaults(self) -> bool:
        """Whether a default argument holds a module."""
        return bool(self._defaults)


def wraps(f: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """``functools.wraps`` that also takes modules, whose ``__dict__`` is their own."""
    updated = () if isinstance(f, Node) else functools.WRAPPER_UPDATES
    return functools.wraps(f, updated=updated)  # type: ignore[arg-type]


class Static:
    """Positional arguments that are not traced, taken out of a call.

    Args:
      values: by position.
    """

    def __init__(self, values: dict[int, Any]):
        self.values = values

    def around(self, function: Function, shift: int | None = None) -> Function:
        """Returns a function of the other arguments.

        Args:
          function: the function.
          shift: how many modules come before all arguments; by default those bound to it.
        """
        if not self.values:
            return function
        inner = copy.copy(function)
        outer = function.call  # (programs keep it, but no module)
        shift = len(function.bound) if shift is None else shift

        @wraps(outer)
        def call(*args: Any, **kwargs: Any) -> Any:
            merged = list(args)
            for position, value in sorted(self.values.items()):
                merged.insert(position + shift, value)
            return outer(*merged, **kwargs)

        inner.call = call
        if function.signature is not None:
            gone = {position + shift for position in self.values}
            kept = [
                p for n, p in enumerate(function.signature.parameters.values()) if n not in gone
            ]
            inner.signature = function.signature.replace(parameters=kept)
        return inner


def split_static(
    args: tuple[Any, ...], static_argnums: int | Iterable[int], transform: str, name: str
) -> tuple[Static, tuple[Any, ...]]:
    """Takes the static arguments out.

    Raises:
      StructureError: if a position is no argument, or a static argument holds a module.
    """
    values: dict[int, Any] = {}
    for number in as_positions(static_argnums):
        position = number + len(args) if number < 0 else number
        if not 0 <= position < len(args):
            raise errors.StructureError(
                f"{transform}: static_argnums has {number}, but {name} was called with {len(args)} "
                "positional arguments"
            )
        values[position] = args[position]
        if holds_modules(args[position]):
            raise errors.StructureError(
                f"{transform}: argument {position} of {name} holds a module and is marked static; "
                "modules carry arrays, so leave it out of static_argnums"
            )
    return Static(values), tuple(arg for n, arg in enumerate(args) if n not in values)
