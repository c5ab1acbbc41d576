"""Checks of the names and values that go into Variables."""

from __future__ import annotations

from typing import Any

import jax

import moduli
from moduli import errors

__all__ = ["MISSING", "check_name", "unboxed"]

MISSING: Any = object()
"""Stands for an attribute that a module does not have."""


def check_name(name: Any, caller: str) -> None:
    """Raises a VariableError unless ``name`` can be the name of an attribute."""
    if not isinstance(name, str) or not name:
        raise errors.VariableError(
            f"{caller} needs the name of an attribute, a non-empty str; got {name!r}"
        )


def unboxed(value: Any, where: str) -> Any:
    """Replaces the Variables in a pytree by their values.

    Args:
      value: any pytree.
      where: how an error begins, such as ``"sow: 'features' of Model"``.

    Raises:
      VariableError: if the pytree holds a module, which no Variable can hold.
    """
    if isinstance(value, (jax.Array, float, int)):
        return value

    def unbox(leaf: Any) -> Any:
        if isinstance(leaf, moduli.Pytree):
            raise errors.VariableError(
                f"{where} holds a {type(leaf).__name__}, and a Variable holds arrays alone; pass "
                "its arrays, such as `moduli.state(module).to_pure_dict()`"
            )
        return leaf.value if isinstance(leaf, moduli.Variable) else leaf

    return jax.tree.map(
        unbox, value, is_leaf=lambda leaf: isinstance(leaf, (moduli.Variable, moduli.Pytree))
    )
