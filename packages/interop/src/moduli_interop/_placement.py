"""Where an array is to be: what the value that it replaces says of it."""

from __future__ import annotations

from typing import Any

import jax
from jax.sharding import AbstractMesh, NamedSharding

import moduli
from moduli.errors import StructureError

__all__ = ["declared_sharding", "sharding_of"]


def sharding_of(like: Any) -> jax.sharding.Sharding | None:
    """Returns the sharding of the value that an array replaces; None if nobody chose one.

    A shape that was worked out within a mesh knows its axes and not its devices; these are those of
    the mesh in force.

    Args:
      like: an array, or a ``jax.ShapeDtypeStruct``.

    Raises:
      StructureError: the shape is laid out over a mesh, and none like it is in force.
    """
    sharding = getattr(like, "sharding", None)
    if sharding is None or not getattr(like, "committed", True):
        return None
    wanted = getattr(sharding, "mesh", None)
    if not isinstance(wanted, AbstractMesh):
        return sharding
    mesh = _mesh_in_force()
    if mesh is None or dict(mesh.shape) != dict(wanted.shape):
        axes = ", ".join(f"{name}={size}" for name, size in dict(wanted.shape).items())
        now = "none is in force" if mesh is None else f"{dict(mesh.shape)} is in force"
        raise StructureError(
            f"a shape is laid out as {sharding.spec} over a mesh of ({axes}), of which it knows no "
            f"devices, and {now}; load within `with jax.set_mesh(mesh):`"
        )
    return NamedSharding(mesh, sharding.spec, memory_kind=sharding.memory_kind)


def declared_sharding(variable: Any) -> jax.sharding.Sharding | None:
    """Returns where a Variable would be if it were made now, in the mesh in force.

    Args:
      variable: a Variable; its metadata may name the axes of a mesh.

    Raises:
      StructureError: the mesh in force has no such axes.
    """
    mesh = _mesh_in_force()
    metadata = variable.get_metadata()
    eager = metadata.get("eager_sharding", moduli.using_eager_sharding())
    if mesh is None or not eager or not metadata.get("out_sharding"):
        return None
    return moduli.get_named_sharding(variable, mesh).get_raw_value()


def _mesh_in_force() -> jax.sharding.Mesh | None:
    mesh = jax.sharding.get_mesh()
    return None if mesh.empty else mesh
