"""The one place for what differs between the JAX versions that moduli-debug supports.

Parameters of operations are open to see, but JAX does not promise to keep them. What reads them
asks here, and does without where a future JAX has others.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["bind_arguments", "is_literal", "jaxpr_core", "scan_sizes"]


def scan_sizes(params: Mapping[str, Any]) -> tuple[int, int] | None:
    """Returns how many of a scan's inputs are constants, and how many the carry.

    Args:
      params: the parameters of the operation.

    Returns:
      The two numbers; None if they cannot be told.
    """
    if "num_consts" in params and "num_carry" in params:
        return params["num_consts"], params["num_carry"]
    try:  # jax >= 0.12: the flattened trees of constants, carry and slices
        constants, carry, _ = params["ft_in"].unpack()
        return len(constants.vals), len(carry.vals)
    except (AttributeError, KeyError, TypeError, ValueError):
        return None


def jaxpr_core() -> Any:
    """Returns ``jax.extend.core``, imported at the first need: it brings Pallas along."""
    from jax.extend import core

    return core


def is_literal(atom: Any) -> bool:
    """Returns whether an input of an operation is a constant written into the program."""
    return isinstance(atom, jaxpr_core().Literal)


def bind_arguments(equation: Any) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    """Returns the functions and the parameters with which to bind an operation again."""
    found = equation.primitive.get_bind_params(equation.params)
    if isinstance(found, tuple):  # jax < 0.10
        functions, params = found
        return tuple(functions), params
    return (), found
