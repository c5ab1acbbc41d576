"""Names of the arguments of a checked function, for messages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["parts_of"]


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
    return named + [(f"argument {name!r}", kwargs[name]) for name in sorted(kwargs)]
