"""Names of the arguments of a checked function, for messages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["AROUND", "parts_of", "place_of"]

AROUND = "around: "
"""Begins the names of objects that are no arguments, but that the function uses."""


def place_of(name: str) -> str:
    """Describes where a keyword argument stands, or an object that the function uses."""
    if name.startswith(AROUND):
        return f"the variable `{name.removeprefix(AROUND)}`"
    return f"argument {name!r}"


def parts_of(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], *, owned: bool
) -> list[tuple[str, Any]]:
    """Names the arguments of a call.

    Args:
      args: positional arguments.
      kwargs: keyword arguments.
      owned: whether the first argument is the module to which the function belongs.
    """
    named = [(f"argument {number - owned}", arg) for number, arg in enumerate(args)]
    if owned:
        named[0] = ("its module", args[0])
    # in the order in which JAX takes a dict apart
    return named + [(place_of(name), kwargs[name]) for name in sorted(kwargs)]
