"""Partition names under transforms that add or remove an axis.

A Variable's metadata may name the axes of its value for sharding (``sharding_names``, or
``out_sharding``). Inside vmap and scan a mapped value has one axis less, so its name is taken out,
and put back for the value outside; a Variable made inside gets the name of the new axis.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax

from moduli import errors
from moduli._call.call import Call
from moduli._call.frame import Frame
from moduli._call.prefixes import label_finder, spread
from moduli._graph.data import is_graph_leaf
from moduli._graph.flatten import flatten_roots
from moduli._variable.box import Variable

__all__ = ["PARTITION_NAME", "PartitionNames"]

PARTITION_NAME = "partition_name"
"""The key of ``transform_metadata`` whose value is the name of the mapped axis."""
_KEYS = ("out_sharding", "sharding_names", "sharding")


class PartitionNames:
    """What ``transform_metadata`` asks for.

    Args:
      metadata: the user's mapping, or None.
      transform: for messages.
    """

    def __init__(self, metadata: Mapping[str, Any] | None, transform: str):
        metadata = dict(metadata or {})
        if metadata and PARTITION_NAME not in metadata:
            raise errors.StructureError(
                f"{transform}: transform_metadata has the keys {sorted(metadata)}, but not "
                "moduli.PARTITION_NAME, whose value is the name of the mapped axis (or None)"
            )
        self.active = bool(metadata)
        name = metadata.pop(PARTITION_NAME, None)
        self.inserts = {**dict.fromkeys(_KEYS, name), **metadata}

    def inside(self, call: Call) -> _Inside:
        """Returns what renames for one call."""
        return _Inside(self, call)


class _Inside:
    def __init__(self, names: PartitionNames, call: Call):
        self._names, self._call = names, call
        self._before: dict[int, tuple[Variable[Any], Mapping[str, Any], Mapping[str, Any]]] = {}

    def enter(self, frame: Frame) -> None:
        """Takes the name of the mapped axis out of the fresh arguments."""
        if not self._names.active:
            return
        for (number, index), holder in frame.variables():
            axis = self._call.value_labels[number][index]
            if isinstance(axis, int):
                before = holder._metadata
                inner = _edited(before, axis, self._names.inserts)
                if inner is not before:
                    holder._set_all_metadata(inner)
                    self._before[id(holder)] = (holder, before, inner)

    def leave(self, frame: Frame, out: Any, out_axes: Any) -> None:
        """Puts the name back, and into Variables that are new."""
        if not self._names.active:
            return
        known = {id(holder) for _, holder in frame.variables()}
        for holder, before, inner in self._before.values():
            if holder._metadata is inner:
                holder._set_all_metadata(before)
        self._before.clear()
        pairs, _ = jax.tree_util.tree_flatten_with_path(out, is_leaf=is_graph_leaf)
        marks = spread(out_axes, out, f"{self._call.transform}: out_axes")
        for (_, leaf), (label, base) in zip(pairs, marks, strict=True):
            if is_graph_leaf(leaf):
                find = label_finder(label, base, f"{self._call.transform}: out_axes")
                for path, variable in _variables_below(leaf):
                    axis = find(path, variable)
                    if id(variable) not in known and isinstance(axis, int):
                        known.add(id(variable))
                        metadata = _edited(variable._metadata, axis, self._names.inserts, add=True)
                        variable._set_all_metadata(metadata)


def _variables_below(root: Any) -> list[tuple[tuple[Any, ...], Variable[Any]]]:
    flat = flatten_roots((root,))
    pairs = zip(flat.graphdef.leaf_paths, flat.holders, strict=True)
    return [(path, holder) for path, holder in pairs if isinstance(holder, Variable)]


def _edited(
    metadata: Mapping[str, Any], axis: int, inserts: Mapping[str, Any], *, add: bool = False
) -> Mapping[str, Any]:
    """Returns metadata with one axis more or less in each tuple of names."""
    changed = {}
    for key, name in inserts.items():
        names = metadata.get(key)
        if not isinstance(names, tuple):
            continue
        edited = list(names)
        place = axis + len(edited) + add if axis < 0 else axis
        if add:
            edited += [None] * (place - len(edited))
            edited.insert(place, name)
        elif place < len(edited):
            if edited[place] != name:
                raise errors.StructureError(
                    f"the mapped axis {axis} is named {name!r} in transform_metadata, but "
                    f"{edited[place]!r} in the metadata {key}={names!r} of a mapped Variable"
                )
            del edited[place]
        changed[key] = tuple(edited)
    return {**metadata, **changed} if changed else metadata
