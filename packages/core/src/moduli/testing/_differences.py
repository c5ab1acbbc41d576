"""What differs between two graphs or States, a line for each path, for people who read a test."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.core
import numpy as np

from moduli import errors
from moduli._base.compat import is_key_array
from moduli._graph.state import to_flat_state
from moduli._graph.tree_repr import structure_entries
from moduli._variable.box import Variable

__all__ = ["state_differences", "structure_differences"]

_MOST = 40


def state_differences(left: Mapping[Any, Any], right: Mapping[Any, Any]) -> list[str]:
    """Returns a line for each path at which two States differ, at most forty.

    Args:
      left: a State.
      right: another one.
    """
    ours, theirs = dict(to_flat_state(left)), dict(to_flat_state(right))
    lines = []
    for path in dict.fromkeys([*ours, *theirs]):
        where = f"`{errors.format_path(path)}`"
        if path not in theirs:
            lines.append(f"{where} is on the left alone: {_form(ours[path])}")
        elif path not in ours:
            lines.append(f"{where} is on the right alone: {_form(theirs[path])}")
        elif text := _difference(ours[path], theirs[path]):
            lines.append(f"{where} {text}")
    return _cut(lines)


def structure_differences(left: object, right: object) -> str:
    """Returns the lines that differ of two structures, a line for each object or attribute.

    Args:
      left: a GraphDef.
      right: another one.
    """
    ours, theirs = structure_entries(left), structure_entries(right)
    lines = []
    for path in dict.fromkeys([*ours, *theirs]):
        if path not in theirs or path not in ours:
            sign, (kind, _) = ("-", ours[path]) if path in ours else ("+", theirs[path])
            side = "left" if path in ours else "right"
            lines.append(f"{sign} {path} is on the {side} alone: a {kind}")
            continue
        (kind, attributes), (other, others) = ours[path], theirs[path]
        if kind != other:
            lines.append(f"{path} is a {kind} on the left and a {other} on the right")
            continue
        for name in dict.fromkeys([*attributes, *others]):
            pair = attributes.get(name, "absent"), others.get(name, "absent")
            if pair[0] != pair[1]:
                lines.append(f"{path} {kind}.{name}: {pair[0]} on the left, {pair[1]} on the right")
    return "\n".join(_cut(lines) or ["in what the text of their attributes does not show"])


def _difference(ours: Any, theirs: Any) -> str | None:
    forms = _form(ours), _form(theirs)
    if forms[0] != forms[1]:
        return f"is {forms[0]} on the left and {forms[1]} on the right"
    a, b = _array(ours), _array(theirs)
    if a is None or b is None:
        return None if _raw(ours) == _raw(theirs) else f"is {_raw(ours)!r} and {_raw(theirs)!r}"
    number = np.inexact if np.issubdtype(a.dtype, np.inexact) else None
    unequal = ~((a == b) | ((a != a) & (b != b))) if number else a != b
    count = int(np.count_nonzero(unequal))
    if not count:
        if not isinstance(ours, Variable) or not isinstance(theirs, Variable):
            return None
        names = [
            name
            for name in dict.fromkeys([*ours._metadata, *theirs._metadata])
            if ours._metadata.get(name) != theirs._metadata.get(name)
        ]
        return f"has other metadata: {', '.join(names)}" if names else None
    if a.size == 1:
        return f"is {a.item()} on the left and {b.item()} on the right"
    text = f"differs in {count:,} of {a.size:,} values"
    if number:
        apart = np.abs(a.astype(np.complex128) - b.astype(np.complex128))[unequal]
        text += f", by up to {np.max(apart):.3g}"
    return text


def _raw(leaf: Any) -> Any:
    return leaf._value if isinstance(leaf, Variable) else leaf


def _array(leaf: Any) -> np.ndarray | None:
    value = _raw(leaf)
    if is_key_array(value):
        value = jax.random.key_data(value)
    if not isinstance(value, (jax.Array, np.ndarray, np.generic, int, float, complex)):
        return None
    if isinstance(value, jax.core.Tracer):
        return None
    return np.asarray(value)


def _form(leaf: Any) -> str:
    value = _raw(leaf)
    kind = f"{type(leaf).__name__} " if isinstance(leaf, Variable) else ""
    if hasattr(value, "dtype"):
        return f"{kind}{value.dtype}{list(value.shape)}"
    return f"{kind}{type(value).__name__}"


def _cut(lines: list[str]) -> list[str]:
    rest = len(lines) - _MOST
    return lines if rest <= 0 else [*lines[:_MOST], f"... and {rest} more lines"]
