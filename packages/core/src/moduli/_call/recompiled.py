"""A warning for functions that are made anew, and so compiled anew, at each step of a loop.

A lambda or a function defined inside of a loop is another function object in each round, so its
programs are never found again. JAX compiles it each time without a word. It is told apart from
functions that are rightly compiled more than once: the same code has compiled the same structures
and shapes for the same models, and each earlier wrapper was called once and is gone.
"""

from __future__ import annotations

import types
import warnings
import weakref
from collections.abc import Sequence
from typing import Any

import jax

from moduli import errors
from moduli._base.compat import is_eager
from moduli._base.node import Node
from moduli._base.source_lines import describe_place, find_site, place_of
from moduli._call.again import recipe_of
from moduli._call.seen import closure_values

__all__ = ["Compiled", "note_compiled"]

_ENOUGH = 3


class Compiled:
    """The last time that a piece of code was compiled.

    Attributes:
      once: whether the wrapper was called only once so far.
    """

    __slots__ = ("beside", "code", "count", "key", "once", "warned", "wrapper")

    def __init__(self, code: types.CodeType):
        number = id(code)
        self.code = weakref.ref(code, lambda _: _compiled.pop(number, None))
        self.wrapper: Any = None
        self.key: Any = None
        self.beside: list[Any] = []
        self.count, self.once, self.warned = 0, True, False

    def called_again(self) -> None:
        """Notes that the wrapper is called a second time."""
        self.once = False


_compiled: dict[int, Compiled] = {}


def note_compiled(
    wrapper: Any, function: Any, key: Any, roots: Sequence[Any], values: Any
) -> Compiled | None:
    """Notes that a function is compiled, and warns if it is so at each step of a loop.

    Args:
      wrapper: the transformed function.
      function: the user's function.
      key: the key of the program.
      roots: the modules and Variables in the call.
      values: the values in the call.

    Returns:
      What to tell that the wrapper is called again; None if the function cannot be made anew.
    """
    recipe = recipe_of(function) if is_eager() else None  # (within a trace it is only traced)
    if recipe is None:
        return None
    base = recipe.base
    code = base.__code__
    last = _compiled.get(id(code))
    if last is None or last.code() is not code:
        last = _compiled[id(code)] = Compiled(code)
    shapes = tuple([_shape(leaf) for leaf in jax.tree.leaves(values)])
    number = hash((recipe.key, key, shapes))
    beside = _beside(base, roots)
    alike = (
        last.once
        and last.key == number
        and last.wrapper() is None
        and len(beside) == len(last.beside)
        and all(map(_same, last.beside, beside))
    )
    last.count = last.count + 1 if alike else 1
    last.wrapper, last.key, last.once = weakref.ref(wrapper), number, True
    last.beside = [_hold(item) for item in beside]
    if last.count >= _ENOUGH and not last.warned:
        last.warned = True
        _warn(base, last.count)
    return last


def _beside(base: Any, roots: Sequence[Any]) -> list[Any]:
    """The models of a call; without one, what the function closes over."""
    if roots:
        return list(roots)
    cells = closure_values(base)
    modules = [item for item in cells if isinstance(item, Node)]
    return modules or cells


def _shape(value: Any) -> Any:
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return (value.shape, str(value.dtype))
    return type(value)


def _hold(value: Any) -> Any:
    """Refers to a value so that it can be known again; an array is known by its shape."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return _shape(value)
    try:
        return weakref.ref(value)
    except TypeError:
        return id(value)


def _same(held: Any, value: Any) -> bool:
    if type(held) is weakref.ref:
        return held() is value
    return held == _hold(value)


def _warn(base: Any, count: int) -> None:
    code = base.__code__
    names = ", ".join(f"`{name}`" for name in code.co_freevars)
    outside = f", and pass what it takes from outside ({names}) as arguments" if names else ""
    name = "this lambda" if base.__name__ == "<lambda>" else f"`{base.__name__}`"
    message = (
        f"{base.__qualname__} at {describe_place((code, -1))} was compiled {count} times for the "
        "same structure and shapes. It is a new function each time, as when it is defined inside "
        f"of a loop, and a program is kept with its function. Define {name} outside of the loop"
        f"{outside}; then it is compiled once"
    )
    site = find_site()
    file, line = (__file__, 1) if site is None else (site[0].co_filename, place_of(site)[1])
    warnings.warn_explicit(message, errors.RecompilationWarning, file, line)
