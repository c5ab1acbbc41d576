"""Static values as keys: equal only when a traced program may not tell them apart.

Python says ``1 == True == 1.0`` and ``0.0 == -0.0``; a program compiled for one of them must not
serve another. A key carries the exact type, through nested tuples, and writes floats bit by bit.
"""

from __future__ import annotations

import types
from collections.abc import Hashable
from typing import Any

__all__ = ["metadata_key", "static_key", "static_value", "UnhashableStatic"]

_BY_VALUE = frozenset(
    (int, bool, str, bytes, type(None), type, types.FunctionType, types.BuiltinFunctionType)
)


class UnhashableStatic(TypeError):
    """A static value cannot be hashed; ``value`` is the value."""

    def __init__(self, value: object):
        super().__init__(f"unhashable static value of type {type(value).__name__}")
        self.value = value


def static_key(value: Any) -> tuple[Any, ...]:
    """Returns a hashable key of a static value, which keeps the exact type.

    Args:
      value: any hashable value; tuples, frozensets and slices are keyed element by element.

    Returns:
      A tuple from which :func:`static_value` gives the value back.

    Raises:
      UnhashableStatic: if the value, or one inside it, cannot be hashed.

    Example:
      >>> from moduli._base.static_keys import static_key, static_value
      >>> static_key(1) == static_key(True), static_key((1, 0.0)) == static_key((1, -0.0))
      (False, False)
      >>> static_value(static_key((1, 0.5, "a")))
      (1, 0.5, 'a')
    """
    cls = value.__class__
    if cls in _BY_VALUE:
        return (cls, value)
    if cls is float:
        return (cls, value.hex())
    if cls is complex:
        return (cls, value.real.hex(), value.imag.hex())
    if isinstance(value, tuple):
        return (cls, *map(static_key, value))
    if cls is frozenset:
        return (cls, frozenset(map(static_key, value)))
    if cls is slice:
        return (cls, static_key(value.start), static_key(value.stop), static_key(value.step))
    try:
        hash(value)
    except TypeError:
        raise UnhashableStatic(value) from None
    return (cls, value)


def static_value(key: tuple[Any, ...]) -> Any:
    """Gives back the value of a key made by :func:`static_key`."""
    cls = key[0]
    if cls is float:
        return float.fromhex(key[1])
    if cls is complex:
        return complex(float.fromhex(key[1]), float.fromhex(key[2]))
    if issubclass(cls, tuple):
        values = map(static_value, key[1:])
        return tuple(values) if cls is tuple else cls(*values)
    if cls is frozenset:
        return frozenset(map(static_value, key[1]))
    if cls is slice:
        return slice(*map(static_value, key[1:]))
    return key[1]


def metadata_key(value: Any) -> Hashable:
    """Like :func:`static_key`, and keys lists and dicts of a Variable's metadata by content."""
    if isinstance(value, list):
        return (list, tuple(map(metadata_key, value)))
    if isinstance(value, tuple):
        return (value.__class__, *map(metadata_key, value))
    if isinstance(value, dict):
        return (dict, tuple((name, metadata_key(item)) for name, item in value.items()))
    return static_key(value)
