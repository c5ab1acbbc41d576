"""Names of the axes of a value, in a Variable's metadata, when an axis comes or goes.

Names are a tuple or list with an entry for each axis, a ``PartitionSpec``, or a ``NamedSharding``
or ``Format`` that holds one. They may be shorter than the value has axes: the rest has no name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jax.sharding import NamedSharding, PartitionSpec

from moduli import errors

__all__ = ["NAMES", "with_axis", "without_axis"]

NAMES = ("out_sharding", "sharding_names", "sharding", "optimizer_sharding")
"""The keys of metadata that name axes."""


def with_axis(
    metadata: Mapping[str, Any], axis: int, value: Any, inserts: Mapping[str, Any]
) -> Mapping[str, Any]:
    """Returns metadata in which an axis is named that the value does not have yet.

    Args:
      metadata: the metadata; returned as it is if it names no axes.
      axis: where the axis will be; a negative one counts from the end of the new value's axes.
      value: the value without the axis.
      inserts: for each key of the metadata the name of the axis, or None.
    """
    changed = {}
    for key, name in inserts.items():
        entries = _entries(metadata.get(key))
        if entries is None:
            continue
        place = axis + _rank(value, entries) + 1 if axis < 0 else axis
        edited = [*entries, *[None] * (place - len(entries))]
        edited.insert(place, name)
        changed[key] = _rebuilt(metadata[key], edited, place, added=True)
    return {**metadata, **changed} if changed else metadata


def without_axis(
    metadata: Mapping[str, Any],
    axis: int,
    value: Any,
    inserts: Mapping[str, Any],
    *,
    check: bool = False,
) -> Mapping[str, Any]:
    """Returns metadata without the name of an axis that the value does not have any more.

    Args:
      metadata: the metadata; returned as it is if it does not name the axis.
      axis: where the axis was; a negative one counts from the end of the old value's axes.
      value: the value without the axis.
      inserts: for each key of the metadata the name of the axis.
      check: whether the axis has to have this name.

    Raises:
      StructureError: if it has another one.
    """
    changed = {}
    for key, name in inserts.items():
        entries = _entries(metadata.get(key))
        if entries is None:
            continue
        place = axis + _rank(value, entries[1:]) + 1 if axis < 0 else axis
        if place >= len(entries):
            continue
        if check and entries[place] != name:
            raise errors.StructureError(
                f"the mapped axis {axis} is named {name!r} in transform_metadata, but "
                f"{entries[place]!r} in the metadata {key}={metadata[key]!r} of a mapped Variable"
            )
        edited = [*entries[:place], *entries[place + 1 :]]
        changed[key] = _rebuilt(metadata[key], edited, place, added=False)
    return {**metadata, **changed} if changed else metadata


def _entries(names: Any) -> tuple[Any, ...] | None:
    """Returns the entry of each axis; None if it is nothing that names axes."""
    if isinstance(names, (tuple, list, PartitionSpec)):
        return tuple(names)
    sharding = getattr(names, "sharding", names)  # of a jax.experimental.layout.Format
    return tuple(sharding.spec) if isinstance(sharding, NamedSharding) else None


def _rank(value: Any, entries: Sequence[Any]) -> int:
    """Returns how many axes the value has; a tree of arrays is taken to have a name for each."""
    rank = getattr(value, "ndim", None)
    return len(entries) if rank is None else rank


def _rebuilt(names: Any, entries: list[Any], place: int, *, added: bool) -> Any:
    """Returns names of the same kind with other entries."""
    if isinstance(names, PartitionSpec):
        return names.update(partitions=entries)
    if isinstance(names, list):
        return entries
    if isinstance(names, tuple):
        return tuple(entries)
    if isinstance(names, NamedSharding):
        known = names.mesh.axis_names  # a name that the mesh has not is one of no device axis
        spec = [None if isinstance(name, str) and name not in known else name for name in entries]
        return names.update(spec=names.spec.update(partitions=spec))
    layout = names.layout
    order = getattr(layout, "major_to_minor", None)
    if order is not None:
        rest = [n for n in order if added or n != place]
        moved = [n + 1 if added and n >= place else n - (not added and n > place) for n in rest]
        layout = type(layout)((*[place] * added, *moved), tiling=layout.tiling)
    return type(names)(layout, _rebuilt(names.sharding, entries, place, added=added))
