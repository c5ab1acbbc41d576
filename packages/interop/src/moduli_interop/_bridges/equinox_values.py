"""Arrays of our Variables in modules of equinox."""

from __future__ import annotations

from typing import Any

import jax

from moduli_interop._bridges.bridge import Conversion
from moduli_interop._bridges.conventions import ChannelsFirst, OneExample, check_once

__all__ = ["inside", "key", "replaced", "value"]


def key() -> jax.Array:
    """Returns a key for parameters that are replaced."""
    return jax.random.key(0)


def value(variable: Any, convert: Conversion) -> Any:
    """Returns a Variable's value; raises if it was met before.

    Args:
      variable: the Variable, or None.
      convert: the conversion.
    """
    if variable is None:
        return None
    check_once(variable, convert, " (see equinox.nn.Shared)")
    return variable.value


def replaced(module: Any, **arrays: Any) -> Any:
    """Returns a module of equinox with other arrays.

    Args:
      module: the module.
      **arrays: arrays by the names of its attributes; None is left out.
    """
    import equinox

    names = [name for name, array in arrays.items() if array is not None]
    return equinox.tree_at(
        lambda module: [getattr(module, name) for name in names],
        module,
        [arrays[name] for name in names],
    )


def inside(made: Any) -> Any:
    """Returns our layer without what keeps equinox's order of axes."""
    while isinstance(made, (ChannelsFirst, OneExample)):
        made = made.layer
    return made
