"""What a function's code takes from outside: globals, closures, those of functions beside it.

These are constants in the programs that are made from the function. A program that is kept looks
again at each call whether the names stand for the same objects, and whether the modules among them
have the same parts and the same structure.
"""

from __future__ import annotations

import types
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from moduli import errors
from moduli._base.compat import Tracer, eager_trace_state
from moduli._base.node import Node
from moduli._graph.cache import flat_of
from moduli._variable.box import Variable

__all__ = ["Seen", "closure_values", "is_outdated", "python_functions"]

_MOST_FUNCTIONS = 32  # that are looked into
_UNKNOWN: Any = object()


class Seen:
    """What some functions see, as it was when they were last looked at. Keeps nothing alive.

    Args:
      functions: the functions.
    """

    __slots__ = ("_inner", "_nodes", "_values")

    def __init__(self, functions: Sequence[Any]):
        self._inner = [
            (weakref.ref(function), tuple(dict.fromkeys(_names_in(function.__code__))))
            for function in _reached(functions)
        ]
        found = self._now()
        self._values = list(map(_hold, found))
        self._nodes = [
            (weakref.ref(value), *_flat_of(value))
            for value in found
            if isinstance(value, Node) and not _in_trace(value)
        ]

    def is_another(self) -> bool:
        """Returns whether a name stands for something else now."""
        now = self._now()
        return len(now) != len(self._values) or not all(map(_is_same, self._values, now))

    def changed_modules(self) -> list[Any]:
        """Lists the modules that have other parts, or another structure, than before."""
        pairs = [(ref(), known) for ref, *known in self._nodes]
        return [node for node, known in pairs if node is not None and not _is_flat(node, *known)]

    def is_in_trace(self) -> bool:
        """Returns whether a value that is seen belongs to a trace that is running."""
        return any(map(_in_trace, self._now()))

    def _now(self) -> list[Any]:
        found: list[Any] = []
        for ref, names in self._inner:
            function = ref()
            if function is not None:
                found.extend(_values_of(function, names))
        return found


def is_outdated(program: Any) -> bool:
    """Returns whether a program holds constants that are others now; warns if so.

    Args:
      program: with ``closed_over``, and ``seen``: what its function saw, if it read anything.
    """
    if not program.closed_over:
        return False
    if program.closed_over.is_stale():
        return True
    changed = [] if program.seen is None else program.seen.changed_modules()
    if changed:
        program.closed_over.warn_of(changed)
    return bool(changed)


def python_functions(function: Any) -> list[types.FunctionType]:
    """The Python function behind a callable, with those that it wraps."""
    found = []
    if isinstance(function, (types.MethodType, type)):
        return []
    for _ in range(64):
        if isinstance(function, types.FunctionType):
            found.append(function)
        function = getattr(function, "__wrapped__", None)
        if function is None:
            break
    return found


def _reached(functions: Sequence[Any]) -> list[types.FunctionType]:
    """The functions, what they wrap, and the functions of the same file that their code names."""
    found = [inner for function in functions for inner in python_functions(function)]
    for function in found:  # it grows
        for value in _values_of(function, _names_in(function.__code__)):
            near = isinstance(value, types.FunctionType) and (
                value.__globals__ is function.__globals__
            )
            if near and value not in found and len(found) < _MOST_FUNCTIONS:
                found.append(value)
    return found


def _values_of(function: types.FunctionType, names: Iterable[str]) -> list[Any]:
    found = closure_values(function) if function.__closure__ else []
    found.extend(map(function.__globals__.get, names))
    return found


def closure_values(function: types.FunctionType) -> list[Any]:
    """What a function closes over."""
    found: list[Any] = []
    for cell in function.__closure__ or ():
        try:
            found.append(cell.cell_contents)
        except ValueError:  # not filled yet
            found.append(_UNKNOWN)
    return found


def _names_in(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names_in(constant)


def _hold(value: Any) -> Any:
    """Refers to a value so that it is known again: weakly where that is possible."""
    try:
        return weakref.ref(value)
    except TypeError:
        return value


def _is_same(held: Any, value: Any) -> bool:
    """Returns whether a value is the one that :func:`_hold` was given."""
    return held is value or (type(held) is weakref.ref and held() is value)


def _in_trace(value: Any) -> bool:
    """Returns whether a value belongs to a trace that is running."""
    if isinstance(value, Tracer):
        return True
    if isinstance(value, Node):
        return value._moduli.trace != eager_trace_state()
    return isinstance(value, Variable) and value._trace != eager_trace_state()


def _flat_of(node: Any) -> tuple[Any, Any]:
    """What tells whether a module has other parts, or another structure, than before."""
    try:
        flat = flat_of(node)
    except errors.ModuliError:  # it says so where the node is used
        return _gone, None
    return weakref.ref(flat), flat.graphdef


def _is_flat(node: Any, known: Callable[[], Any], graphdef: Any) -> bool:
    flat, now = _flat_of(node)
    return flat() is known() and now is graphdef


def _gone() -> None:
    return None
