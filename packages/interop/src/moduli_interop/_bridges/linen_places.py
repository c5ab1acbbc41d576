"""Where the values of a layer of flax.linen stand: in collections beside it, by its place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from moduli_interop._bridges.bridge import Conversion

__all__ = ["at", "below", "fold", "gather", "read", "write"]

_Where = tuple[str, ...]
_Joined = Mapping[str, tuple[_Where | None, ...]]


def read(convert: Conversion, where: tuple[str, ...]) -> Any:
    """Returns the value at a place below the layer that is being converted, or None."""
    from flax.core import meta

    found: Any = convert.kept["variables"]
    for name in (where[0], *convert.kept["place"], *where[1:]):
        if not isinstance(found, Mapping) or name not in found:
            return None
        found = found[name]
    return found.unbox() if isinstance(found, meta.AxisMetadata) else found


def at(layer: Any, path: str) -> Any:
    """Returns what stands at a path with dots, or None."""
    for name in path.split("."):
        layer = None if layer is None else getattr(layer, name, None)
    return layer


def below(part: Any, convert: Conversion, name: str, *index: int, at_place: str = "") -> Any:
    """Converts a part of a layer, whose values stand one place further down.

    Args:
      part: the part.
      convert: the conversion.
      name: the name of the attribute that holds it.
      *index: its number there.
      at_place: the name among the variables, if it is not that of the attribute.
    """
    place = convert.kept["place"]
    convert.kept["place"] = (*place, at_place or name)
    try:
        return convert(part, name, *index)
    finally:
        convert.kept["place"] = place


def gather(convert: Conversion, wheres: tuple[_Where | None, ...]) -> Any:
    """Returns several arrays as one along the last axis, or None if one is missing.

    Args:
      convert: the conversion.
      wheres: their collections and names; None stands for zeros.
    """
    found = [None if where is None else read(convert, where) for where in wheres]
    present = [array for array in found if array is not None]
    if len(present) < sum(where is not None for where in wheres):
        return None
    zeros = jnp.zeros_like(present[0])
    return jnp.concatenate([zeros if array is None else array for array in found], axis=-1)


def fold(part: Any, joined: _Joined) -> dict[_Where, Any]:
    """Returns the arrays of which a layer's Variables are made, by collection and name.

    Args:
      part: our layer.
      joined: for the path of each Variable its arrays along the last axis. One that has no place is
        added to the array at the same number of ``dense_i.bias``.
    """
    arrays: dict[_Where, Any] = {}
    for path, wheres in joined.items():
        variable = at(part, path)
        if variable is None:  # a bias that linen has
            kernel = at(part, path.replace("bias", "kernel"))
            value = jnp.zeros(kernel.shape[-1:], kernel.dtype)
        else:
            value = variable.get_raw_value()
        for number, (where, piece) in enumerate(
            zip(wheres, jnp.split(value, len(wheres), axis=-1), strict=True)
        ):
            if where is not None:
                arrays[where] = piece
            elif (other := joined["dense_i.bias"][number]) is not None:
                arrays[other] = arrays[other] + piece
    return arrays


def write(variables: dict[str, Any], where: tuple[str, ...], value: Any) -> None:
    """Writes a value at its collection and names."""
    *parents, last = where
    for name in parents:
        variables = variables.setdefault(name, {})
    variables[last] = value
