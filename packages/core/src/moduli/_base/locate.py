"""Finds where in a model an object stands, for error messages only.

An object does not know its owner. When an error is about to be raised, the garbage collector's
referrers tell who holds it; that costs milliseconds, which no successful call ever pays.
"""

from __future__ import annotations

import gc
from typing import Any

from moduli import errors
from moduli._base.node import Node

__all__ = ["describe_owner", "locate"]

_DEPTH = 32


def locate(target: Any) -> tuple[Any, tuple[Any, ...]]:
    """Returns the topmost node above ``target`` and the path from it down to ``target``."""
    path: list[Any] = []
    seen = {id(target)}
    current = target
    for _ in range(_DEPTH):
        owner = _owner(current, seen)
        if owner is None:
            break
        current, key = owner
        seen.add(id(current))
        path.append(key)
    return current, tuple(reversed(path))


def _owner(target: Any, seen: set[int]) -> tuple[Any, Any] | None:
    for referrer in gc.get_referrers(target):
        candidates: list[Any] = []
        if _is_node(referrer):
            candidates = [referrer]
        elif type(referrer) is dict and "_moduli" in referrer:
            candidates = [r for r in gc.get_referrers(referrer) if _is_node(r)]
            if not candidates:  # Python 3.11+ keeps attributes inline until asked for
                candidates = [r for r in gc.get_objects() if _has_dict(r, referrer)]
        for node in candidates:
            if id(node) in seen:
                continue
            for key, value in node._items():
                if value is target:
                    return node, key
    return None


def _is_node(candidate: Any) -> bool:
    """Like isinstance, without asking the object: a lazy proxy in memory may do anything then."""
    return issubclass(type(candidate), Node)


def _has_dict(candidate: Any, attributes: dict[str, Any]) -> bool:
    return _is_node(candidate) and candidate.__dict__ is attributes


def describe_owner(target: Any) -> str:
    """Formats a Variable or node and its place: ``BatchStat at `mean` of BatchNorm```."""
    root, path = locate(target)
    name = type(target).__name__
    if not path:
        return f"this {name}"
    return f"the {name} at `{errors.format_path(path)}` of {type(root).__name__}"
