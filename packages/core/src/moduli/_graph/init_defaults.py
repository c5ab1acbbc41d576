"""Which attributes of a module only say again what its class says: defaults of ``__init__``."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np

__all__ = ["defaults_of", "says_nothing_new"]

_ABSENT = inspect.Parameter.empty


def defaults_of(cls: type) -> dict[str, Any]:
    """Returns the parameters of a class's ``__init__`` by name, with their defaults.

    Those of its bases count too, where a class hands arguments on. A parameter without a default
    has ``inspect.Parameter.empty``.
    """
    found: dict[str, Any] = {}
    for base in cls.__mro__:
        init = vars(base).get("__init__")
        if init is None or base.__module__ == "builtins":
            continue
        try:
            parameters = inspect.signature(init).parameters.values()
        except (TypeError, ValueError):  # written in C, or with a signature that lies
            continue
        for parameter in parameters:
            found.setdefault(parameter.name, parameter.default)
    return found


def says_nothing_new(name: str, value: Any, defaults: dict[str, Any]) -> bool:
    """Returns whether an attribute has the default of its parameter, or is an absent part.

    Args:
      name: the attribute.
      value: what it holds.
      defaults: of ``defaults_of`` its object's class.
    """
    default = defaults.get(name)
    if value is default:
        return True
    if default is _ABSENT or value is None or default is None:
        return False
    if isinstance(default, (bool, int, float, str, bytes, tuple)):
        try:
            return type(value) is type(default) and bool(value == default)
        except Exception:  # of a tuple of arrays
            return False
    return _is_dtype(value) and _is_dtype(default) and np.dtype(value) == np.dtype(default)


def _is_dtype(value: Any) -> bool:
    if not isinstance(value, (type, np.dtype)):
        return False
    try:
        np.dtype(value)
    except TypeError:
        return False
    return value is not object
