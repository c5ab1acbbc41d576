"""Functions of arrays that take a Variable in the place of any array."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import moduli

__all__ = ["takes_variables"]

F = TypeVar("F", bound=Callable[..., Any])


def takes_variables(function: F) -> F:
    """Returns the function with Variables among its arguments read: it sees their values alone.

    JAX takes a Variable as a pytree, so its rules of derivatives would get Variables for tangents,
    and functions that it does not compile whole would meet what is no array. The values are read
    here instead; a call without Variables is the function's own, with the same jaxpr.

    Args:
      function: any function of arrays.

    Returns:
      A function of the same name, signature and documentation, that pickles by its public name.
    """

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        for arg in args:
            if isinstance(arg, moduli.Variable):
                args = tuple(map(_value, args))
                break
        if kwargs:
            kwargs = {name: _value(arg) for name, arg in kwargs.items()}
        return function(*args, **kwargs)

    call.__module__ = "moduli_layers"
    return call  # type: ignore[return-value]


def _value(arg: Any) -> Any:
    return arg.value if isinstance(arg, moduli.Variable) else arg
