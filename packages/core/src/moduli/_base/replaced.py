"""Whether somebody has put other functions in the place of JAX's.

Quantizers, counters and profilers replace ``jax.lax.dot_general`` and the like for a while, by
setting the attribute or the function's code. What is traced meanwhile computes, and does, something
else, so that no program made then may be kept for later calls, nor an earlier one be run.
"""

from __future__ import annotations

from types import FunctionType
from typing import Any

import jax.numpy as jnp
from jax import lax, nn

__all__ = ["jax_is_replaced"]

_NAMESPACES: tuple[Any, ...] = (vars(lax), vars(jnp), vars(nn))
_VALUES = [list(names.values()) for names in _NAMESPACES]
_OWN = [dict(names) for names in _NAMESPACES]
_FUNCTIONS = [
    function
    for name, function in vars(lax).items()
    if type(function) is FunctionType and ("dot" in name or "conv" in name or "matmul" in name)
]
_CODES = [function.__code__ for function in _FUNCTIONS]


def jax_is_replaced() -> bool:
    """Returns whether a public function of JAX is another than at the import of moduli.

    This costs a few microseconds: all names of ``jax.lax``, ``jax.numpy`` and ``jax.nn`` are
    compared, and the code of what multiplies and convolves.

    Returns:
      Whether one is.

    Example:
      >>> jax_is_replaced()
      False
    """
    if [function.__code__ for function in _FUNCTIONS] != _CODES:
        return True
    for index, names in enumerate(_NAMESPACES):
        values = list(names.values())
        if values != _VALUES[index]:
            if any(names.get(name) is not value for name, value in _OWN[index].items()):
                return True
            _VALUES[index] = values  # a submodule was imported since: it replaces nothing
    return False
