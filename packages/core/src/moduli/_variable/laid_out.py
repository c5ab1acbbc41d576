"""A new Variable laid out: under a mesh its value goes where its metadata say.

Without a mesh, names of axes are only names. In a program that is traced, the value is told to XLA,
or resharded along explicit axes; along the axes that ``shard_map`` has divided already it stays.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

from moduli import errors
from moduli._base.compat import Tracer, is_eager
from moduli._variable.axis_names import (
    axes_of_entry,
    current_mesh,
    declared,
    named_sharding,
    resolved,
    spec_in,
    using_eager_sharding,
)

__all__ = ["lay_out"]


def lay_out(value: Any, metadata: Mapping[str, Any], kind: str) -> Any:
    """Returns a new Variable's value laid out as its metadata say.

    Args:
      value: the value.
      metadata: the metadata.
      kind: the name of the Variable's class, for messages.

    Returns:
      The value, on the devices of the mesh; the same one without a mesh or names.

    Raises:
      StructureError: see :func:`resolved` and :func:`named_sharding`.
      ShapeError: if there are more names than axes.
    """
    names = declared(metadata)
    shape = () if isinstance(value, (int, float, complex)) else getattr(value, "shape", None)
    if (
        names is None
        or not metadata.get("eager_sharding", using_eager_sharding())
        or shape is None
        or isinstance(value, jax.ShapeDtypeStruct)
    ):
        return value
    place, now = f"the {kind} of shape {tuple(shape)}", current_mesh()
    mesh = _own_mesh(names, metadata, place)
    if mesh is None or _is_alike(mesh, now):
        mesh = now
    manual = _manual_axes(now)
    if (
        mesh is None
        or (isinstance(mesh, AbstractMesh) and is_eager())  # it has no devices
        or (now is not None and len(manual) == len(now.axis_names))
    ):
        return value
    found = resolved(names, metadata.get("sharding_rules"))
    spec = spec_in(found)
    if len(spec) > len(shape):
        raise errors.ShapeError(
            f"{place} has {len(spec)} names of axes, {spec!r}, for {len(shape)} axes; name each "
            "axis once, None for one that is not divided"
        )
    if manual:
        spec = _without(spec, manual)
        return _constrained(value, now, spec, place) if any(spec) else value
    if not isinstance(found, (PartitionSpec, NamedSharding)):
        return _moved(value, found)
    return _constrained(value, mesh, spec, place)


def _own_mesh(names: Any, metadata: Mapping[str, Any], place: str) -> Any:
    """The mesh that metadata name, or the sharding in them is over; None if none."""
    given = metadata.get("mesh")
    own = getattr(getattr(names, "sharding", names), "mesh", None)
    if given is not None and own is not None and given != own:
        raise errors.StructureError(
            f"{place} has the metadata mesh={given!r}, but its out_sharding is over {own!r}; leave "
            "out one of them"
        )
    return given if own is None else own


def _is_alike(mesh: Any, now: Any) -> bool:
    """Returns whether the mesh in force is what a trace knows of this one."""
    return isinstance(now, AbstractMesh) and dict(mesh.shape) == dict(now.shape)


def _manual_axes(mesh: Any) -> set[Any]:
    """The axes over which values are parts already, inside of ``shard_map``."""
    if mesh is None:
        return set()
    types = zip(mesh.axis_names, mesh.axis_types, strict=True)
    return {name for name, kind in types if kind == AxisType.Manual}


def _without(spec: PartitionSpec, axes: set[Any]) -> PartitionSpec:
    entries: list[Any] = []
    for entry in spec:
        left = tuple(axis for axis in axes_of_entry(entry) if axis not in axes)
        free = entry is PartitionSpec.UNCONSTRAINED
        entries.append(entry if free else left[0] if len(left) == 1 else left or None)
    return PartitionSpec(*entries)


def _constrained(value: Any, mesh: Any, spec: Any, place: str) -> Any:
    """Lays a value out by a spec: moves an array, or says so in the program that is traced."""
    sharding = named_sharding(mesh, spec, place)
    if not isinstance(value, Tracer) and is_eager():
        return _moved(value, sharding)
    kinds = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    explicit = {name for name, kind in kinds.items() if kind == AxisType.Explicit}
    if explicit:
        value = jax.sharding.reshard(
            value, named_sharding(mesh, _without(spec, set(kinds) - explicit), place)
        )
        spec = _without(spec, explicit)
        if not any(spec):
            return value
        sharding = NamedSharding(mesh, spec)
    return jax.lax.with_sharding_constraint(value, sharding)


def _moved(value: Any, sharding: Any) -> Any:
    if isinstance(value, Tracer) or not is_eager():
        return jax.lax.with_sharding_constraint(value, sharding)
    return jax.device_put(value, sharding)
