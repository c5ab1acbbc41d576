"""The operators of a Variable, made from a table."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

__all__ = ["add_operators"]

_BINARY = (
    "add",
    "sub",
    "mul",
    "truediv",
    "floordiv",
    "mod",
    "pow",
    "matmul",
    "and",
    "or",
    "xor",
    "lshift",
    "rshift",
    "divmod",
)


def add_operators(cls: Any, value_of: Callable[[Any], Any]) -> None:
    """Gives the operators to the class of boxes.

    Arithmetic acts on the value and gives an array; augmented assignment writes the box.

    Args:
      cls: ``Variable``.
      value_of: returns the value of a Variable, and anything else as it is.
    """

    def set_method(name: str, function: Callable[..., Any]) -> None:
        function.__name__ = name
        function.__qualname__ = f"Variable.{name}"
        setattr(cls, name, function)

    for name in _BINARY:
        function: Callable[..., Any] = (
            divmod if name == "divmod" else getattr(operator, f"__{name}__")
        )

        def forward(self: Any, other: Any, function: Callable[..., Any] = function) -> Any:
            return function(self.value, value_of(other))

        def reflected(self: Any, other: Any, function: Callable[..., Any] = function) -> Any:
            return function(value_of(other), self.value)

        def inplace(self: Any, other: Any, function: Callable[..., Any] = function) -> Any:
            self.set_value(function(self.value, value_of(other)))
            return self

        set_method(f"__{name}__", forward)
        set_method(f"__r{name}__", reflected)
        if name != "divmod":
            set_method(f"__i{name}__", inplace)
    for name in ["eq", "ne", "lt", "le", "gt", "ge"]:
        compare = getattr(operator, name)

        def comparison(self: Any, other: Any, compare: Callable[..., Any] = compare) -> Any:
            return compare(self.value, value_of(other))

        set_method(f"__{name}__", comparison)
    for name in ["neg", "pos", "abs", "invert"]:
        unary = getattr(operator, f"__{name}__")

        def apply(self: Any, unary: Callable[..., Any] = unary) -> Any:
            return unary(self.value)

        set_method(f"__{name}__", apply)

    def rounded(self: Any, ndigits: Any = None) -> Any:
        return round(self.value) if ndigits is None else round(self.value, ndigits)

    set_method("__round__", rounded)
