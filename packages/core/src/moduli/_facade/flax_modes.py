"""``graph=`` and ``graph_updates=``: flax.nnx's modes, taken here for every function of core.

flax.nnx has modes; moduli has one behaviour, which keeps what both promise: shared references stay
shared and the caller's objects are updated, as with True; and what a mode takes or returns there
(prefixes of axes, modules as cotangents) is taken and returned here too. So the two arguments are
accepted wherever flax accepts them, and change something only where flax returns another thing:

- ``split_rngs`` and ``fork_rngs`` with ``graph_updates=False`` return a copy of the node;
- the backward rule of a ``custom_vjp`` gets the cotangent of the result alone.

What is not kept: with ``graph=False`` flax raises for a module that is referred to twice, and
drops changes of structure; here both work as with True.
"""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

from moduli._base.folded_frames import fold
from moduli._graph.split import clone

__all__ = ["TAKING", "set_graph_mode", "set_graph_updates", "take_modes"]

F = TypeVar("F", bound=Callable[..., Any])

TAKING = """
    cached_partial checkify clone cond custom_vjp eval_shape flatten fori_loop fork_rngs grad
    graphdef iter_children iter_graph iter_module_children iter_modules jit jit_partial jvp
    make_jaxpr map pmap prefix recursive_map remat reseed scan shard_map split split_rngs state
    switch value_and_grad variables view vjp vmap while_loop with_attributes with_rngs
    abstract_with_sharding get_abstract_model
"""
"""The functions of core that take the two arguments."""

METHODS = {"Module": ["set_attributes"]}
"""Likewise of classes of core."""


class _Values(threading.local):
    graph = True
    graph_updates = True


_values = _Values()


class _Setting:
    """Sets a mode from now on; as a context manager for a block, as a decorator for calls."""

    name: ClassVar[str]

    def __init__(self, value: bool, /):
        self._value = value
        self._before = getattr(_values, self.name)
        setattr(_values, self.name, value)

    @classmethod
    def current_value(cls) -> bool:
        """Returns what was set last."""
        return getattr(_values, cls.name)

    def __enter__(self) -> None:
        setattr(_values, self.name, self._value)

    def __exit__(self, *error: object) -> None:
        setattr(_values, self.name, self._before)

    def __call__(self, f: F) -> F:
        setattr(_values, self.name, self._before)  # as a decorator it sets nothing yet

        @functools.wraps(f)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            with type(self)(self._value):
                return f(*args, **kwargs)

        return wrapper  # type: ignore[return-value]


class set_graph_mode(_Setting):
    """Sets flax.nnx's mode ``graph`` where a call does not say it; see the text of this file.

    Args:
      value: True or False.

    Example:
      >>> import moduli as nnx
      >>> with nnx.set_graph_mode(False):
      ...     nnx.set_graph_mode.current_value()
      False
      >>> nnx.set_graph_mode.current_value()
      True
    """

    name = "graph"


class set_graph_updates(_Setting):
    """Sets flax.nnx's mode ``graph_updates`` where a call does not say it.

    Args:
      value: True or False.

    Example:
      >>> import moduli as nnx
      >>> rngs = nnx.Rngs(0)
      >>> with nnx.set_graph_updates(False):
      ...     split = nnx.split_rngs(rngs, splits=2)
      >>> split.default.key.shape, rngs.default.key.shape
      ((2,), ())
    """

    name = "graph_updates"


def take_modes(namespace: dict[str, Any]) -> None:
    """Lets those functions of :data:`TAKING` that a namespace has take the two arguments.

    Args:
      namespace: public names and objects; the functions are replaced.
    """
    made: dict[int, Any] = {}
    for name in namespace.keys() & set(TAKING.split()):
        function = namespace[name]
        if id(function) not in made:
            made[id(function)] = _taking(function)
        namespace[name] = made[id(function)]
    for name in namespace.keys() & METHODS.keys():
        for method in METHODS[name]:
            setattr(namespace[name], method, _taking(getattr(namespace[name], method)))


def _keywords(function: Any) -> frozenset[str] | None:
    """Returns the keywords of a function with ``**_modes``, for checkers alone; else None."""
    code = inspect.unwrap(function).__code__
    count = code.co_argcount + code.co_kwonlyargcount
    if code.co_flags & inspect.CO_VARKEYWORDS == 0:
        return None
    rest = code.co_varnames[count + bool(code.co_flags & inspect.CO_VARARGS)]
    return frozenset(code.co_varnames[code.co_posonlyargcount : count]) if rest == _MODES else None


_MODES = "_modes"  # see _base/modes.py


def _check(function: Any, kwargs: dict[str, Any], known: frozenset[str]) -> None:
    """Raises as Python does for keywords that a function has not."""
    for name in kwargs:
        if name not in known:
            raise TypeError(f"{function.__name__}() got an unexpected keyword argument {name!r}")


def _taking(function: Any) -> Any:
    name = function.__name__
    if name in _MAPPING:
        return _taking_names(function)
    functional = _FUNCTIONAL.get(name)
    if functional is not None:
        return _telling(function, functional)

    known = _keywords(function)

    @functools.wraps(function)
    def taking(*args: Any, **kwargs: Any) -> Any:
        kwargs.pop("graph", None)
        kwargs.pop("graph_updates", None)
        if kwargs and known is not None:
            _check(function, kwargs, known)
        try:
            return function(*args, **kwargs)
        except Exception as error:
            fold(error)
            raise

    return taking


def _telling(function: Any, functional: Callable[[Any, Any, Any], Any]) -> Any:
    """As :func:`_taking`, of a function that does another thing in one of the modes."""
    known = _keywords(function)

    @functools.wraps(function)
    def telling(*args: Any, **kwargs: Any) -> Any:
        modes = [kwargs.pop("graph", None), kwargs.pop("graph_updates", None)]
        if kwargs and known is not None:
            _check(function, kwargs, known)
        for place, current in enumerate((_values.graph, _values.graph_updates)):
            modes[place] = current if modes[place] is None else modes[place]
        try:
            return function(*args, **kwargs) if all(modes) else functional(function, args, kwargs)
        except Exception as error:
            fold(error)
            raise

    return telling


def _taking_names(function: Any) -> Any:
    """As :func:`_taking`, of a function that may be marked by ``transform_metadata``."""
    known = _keywords(function)

    @functools.wraps(function)
    def taking_names(*args: Any, **kwargs: Any) -> Any:
        kwargs.pop("graph", None)
        kwargs.pop("graph_updates", None)
        if kwargs and known is not None:
            _check(function, kwargs, known)
        mapped = args[0] if args else kwargs.get("f")
        if mapped is None:
            return functools.partial(taking_names, **kwargs)
        names = getattr(mapped, "__moduli_transform_metadata__", None)
        if names is not None and kwargs.get("transform_metadata") is None:
            kwargs["transform_metadata"] = names
        try:
            return function(*args, **kwargs)
        except Exception as error:
            fold(error)
            raise

    return taking_names


_MAPPING = ("vmap", "pmap", "scan")


def _on_a_copy(function: Any, args: Any, kwargs: Any) -> Any:
    """Returns a copy whose streams are changed; those of the node go on behind what was drawn."""
    if not args:
        return function(**kwargs)  # a decorator: its calls change no object of the caller's
    with function(*args, **kwargs):
        return clone(args[0])


def _with_bare_cotangent(function: Any, args: Any, kwargs: Any) -> Any:
    """Gives the backward rule the cotangent of the result without that of updates."""
    made = function(*args, **kwargs)
    if hasattr(made, "defvjp"):
        return _bare(made)
    return lambda fun: _bare(made(fun))  # it was called for a decorator


def _bare(rule: Any) -> Any:
    define = rule.defvjp

    def defvjp(fwd: Callable[..., Any], bwd: Callable[..., Any]) -> None:
        signature = inspect.signature(bwd)
        if "updates_g" in signature.parameters:
            define(fwd, bwd)
            return

        @functools.wraps(bwd)
        def backward(*args: Any, updates_g: Any) -> Any:
            return bwd(*args)

        added = inspect.Parameter("updates_g", inspect.Parameter.KEYWORD_ONLY)
        parameters = [*signature.parameters.values(), added]
        backward.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        define(fwd, backward)

    rule.defvjp = defvjp
    return rule


_FUNCTIONAL: dict[str, Callable[..., Any]] = {
    "split_rngs": _on_a_copy,
    "fork_rngs": _on_a_copy,
    "custom_vjp": _with_bare_cotangent,
}
