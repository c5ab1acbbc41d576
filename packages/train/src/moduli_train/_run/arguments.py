"""What a Run takes: numbers of steps, and nodes."""

from __future__ import annotations

import difflib
import operator
from collections.abc import Iterable
from typing import Any

import moduli
from moduli.errors import VariableError

__all__ = ["nodes_of", "whole"]


def whole(name: str, value: Any, least: int = 1) -> int:
    """Returns a number of steps as an int; raises VariableError for what is none."""
    try:
        number = least - 1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = least - 1
    if number < least:
        raise VariableError(f"{name} is a number of steps, at least {least}; got {value!r}")
    return number


def nodes_of(given: dict[str, Any], options: Iterable[str]) -> dict[str, Any]:
    """Returns what a run saves; raises VariableError for what cannot be filled in its place."""
    nodes = {name: node for name, node in given.items() if node is not None}
    for name, node in nodes.items():
        if not _can_be_filled(node):
            near = difflib.get_close_matches(name, options, 1)
            raise VariableError(
                f"{name}= is a {type(node).__name__}: "
                + (f"did you mean {near[0]}=? " if near else "")
                + "A run takes nodes by name, which it fills when it resumes: modules, optimizers, "
                "metrics, Rngs, Variables, and dicts and lists of these. What a step returns anew, "
                "such as raw arrays or a state of optax, stands in a dict: `{'state': state}`"
            )
    return nodes


def _can_be_filled(node: Any) -> bool:
    if isinstance(node, tuple):
        return any(map(_can_be_filled, node))
    return isinstance(node, (moduli.Pytree, moduli.Variable, moduli.State, dict, list))
