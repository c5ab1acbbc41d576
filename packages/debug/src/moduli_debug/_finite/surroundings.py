"""Modules that a function takes from around it: variables of an enclosing function, and globals.

A search runs the function on copies of its modules, so these have to become arguments too.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from typing import Any

from moduli_debug._finite.marks import is_object

__all__ = ["objects_around", "rebound"]


def objects_around(fn: Any) -> dict[str, Any]:
    """Finds modules and Variables that a Python function uses without being given them.

    Args:
      fn: any callable; only plain Python functions have surroundings.

    Returns:
      The objects by the names under which the function knows them.
    """
    if not isinstance(fn, types.FunctionType):
        return {}
    found: dict[str, Any] = {}
    for name in _names_in(fn.__code__):
        if name in fn.__globals__ and is_object(fn.__globals__[name]):
            found[name] = fn.__globals__[name]
    for name, cell in zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=True):
        try:
            value = cell.cell_contents
        except ValueError:  # not assigned yet
            continue
        if is_object(value):
            found[name] = value
    return found


def rebound(fn: types.FunctionType, objects: dict[str, Any]) -> Callable[..., Any]:
    """Returns the function with other objects in its surroundings.

    Args:
      fn: a Python function.
      objects: the objects by the names under which the function knows them.
    """
    names = fn.__code__.co_freevars
    cells = [
        types.CellType(objects[name]) if name in objects else cell
        for name, cell in zip(names, fn.__closure__ or (), strict=True)
    ]
    known = {name: value for name, value in objects.items() if name not in names}
    new = types.FunctionType(
        fn.__code__, {**fn.__globals__, **known}, fn.__name__, fn.__defaults__, tuple(cells)
    )
    new.__kwdefaults__ = fn.__kwdefaults__
    return new


def _names_in(code: types.CodeType) -> Iterator[str]:
    """Yields the names of globals in a function and in the functions inside of it."""
    yield from code.co_names
    for item in code.co_consts:
        if isinstance(item, types.CodeType):
            yield from _names_in(item)
