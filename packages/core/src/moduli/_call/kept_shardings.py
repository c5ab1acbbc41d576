"""Shardings that a jitted function keeps: its Variables come back as they were laid out.

XLA chooses how the results of a program are laid out where nobody says it, so a value that was
whole on every device may come back divided, and the next call compiles again. With
``jit(keep_shardings=True)`` each value that is written has the sharding that it came with, which is
part of the program's key.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from moduli._base.compat import Tracer
from moduli._call.bind import Binding
from moduli._variable.axis_names import current_mesh

__all__ = ["Kept", "kept_shardings", "placed"]

Kept = tuple[tuple[Any, ...], ...]
"""The sharding of each value of each graph; None where nothing is to be kept."""


def kept_shardings(binding: Binding) -> Kept:
    """Returns how the values of a call are laid out.

    A value that was put nowhere on purpose, as a step count, counts as whole on every device of the
    mesh: so it would come back.

    Args:
      binding: the arguments of the call.
    """
    values = binding.values()
    given = [_sharding(value) for group in values for value in group]
    mesh = _mesh([*given, *[_sharding(leaf) for leaf in jax.tree.leaves(binding.plain)]])
    whole = None if mesh is None else NamedSharding(mesh, PartitionSpec())
    kept = iter([whole if sharding is _ANYWHERE else sharding for sharding in given])
    return tuple(tuple([next(kept) for _ in group]) for group in values)


def placed(values: Sequence[Sequence[Any]], kept: Kept) -> list[list[Any]]:
    """Returns the values, those that were put nowhere on purpose brought to where they are kept."""
    return [
        [
            jax.device_put(value, sharding)
            if sharding is not None and _sharding(value) is _ANYWHERE
            else value
            for value, sharding in zip(group, shardings, strict=True)
        ]
        for group, shardings in zip(values, kept, strict=True)
    ]


_ANYWHERE: Any = object()


def _sharding(value: Any) -> Any:
    """The sharding of an array that was put somewhere; None for what is no concrete array."""
    if isinstance(value, Tracer):
        return None
    if isinstance(value, jax.Array):
        if not getattr(value, "committed", True):
            return _ANYWHERE
        return value.sharding if value.sharding.num_devices > 1 else None
    leaves = jax.tree.leaves(value)
    if not leaves or leaves[0] is value:
        return None
    found = {_sharding(leaf) for leaf in leaves}
    return found.pop() if len(found) == 1 else None


def _mesh(shardings: Iterable[Any]) -> Any:
    """The mesh of the first value that is on one, or the one in force.

    A mesh with explicit axes only if it is in force: to put a value there changes its type.
    """
    now = current_mesh()
    for sharding in shardings:
        if isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, Mesh):
            mesh = sharding.mesh
            return mesh if mesh == now or AxisType.Explicit not in mesh.axis_types else None
    return now if isinstance(now, Mesh) and now.size > 1 else None
