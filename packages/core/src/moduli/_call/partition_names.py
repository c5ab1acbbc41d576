"""Partition names under transforms that add or remove an axis.

A Variable's metadata may name the axes of its value for sharding (``sharding_names``, or
``out_sharding``). Inside vmap and scan a mapped value has one axis less, so its name is taken out,
and put back for the value outside; a Variable made inside gets the name of the new axis: the one in
``transform_metadata``, or None. So there are always as many names as axes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import jax

from moduli import errors
from moduli._call.call import Call
from moduli._call.frame import Frame
from moduli._call.prefixes import label_finder, spread
from moduli._graph.cache import flat_of
from moduli._graph.data import is_graph_leaf
from moduli._graph.flatten import flatten_roots
from moduli._variable.box import Variable
from moduli._variable.kinds import Intermediate
from moduli._variable.mapped_axis_names import NAMES, with_axis, without_axis

__all__ = ["PARTITION_NAME", "PartitionNames", "add_axis_name", "remove_axis_name"]

PARTITION_NAME = "partition_name"
"""The key of ``transform_metadata`` whose value is the name of the mapped axis."""


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
        self.check = bool(metadata)
        name = metadata.pop(PARTITION_NAME, None)
        self.inserts = {**dict.fromkeys(NAMES, name), **metadata}

    def inside(self, call: Call) -> _Inside:
        """Returns what renames for one call."""
        return _Inside(self, call)


class _Inside:
    def __init__(self, names: PartitionNames, call: Call):
        self._names, self._call = names, call
        self._before: dict[int, tuple[Mapping[str, Any], Mapping[str, Any]]] = {}

    def enter(self, frame: Frame) -> None:
        """Takes the name of the mapped axis out of the fresh arguments."""
        names = self._names
        for (number, index), holder in frame.variables():
            before = holder._metadata
            axis = self._call.value_labels[number][index]
            if before and isinstance(axis, int):
                inner = without_axis(before, axis, holder._value, names.inserts, check=names.check)
                self._before[id(holder)] = (before, inner)
                holder._set_all_metadata(inner)

    def leave(self, frame: Frame, out: Any, out_axes: Any) -> None:
        """Puts the name back, and into Variables that are new."""
        known: set[int] = set()
        for (number, index), holder in frame.variables():
            known.add(id(holder))
            axis = self._call.value_labels[number][index]
            if holder._metadata and isinstance(axis, int):
                holder._set_all_metadata(self._outer(holder, axis))
        self._before.clear()
        for holder, axis in [*self._added(frame), *self._returned(out, out_axes)]:
            if id(holder) not in known and holder._metadata and isinstance(axis, int):
                known.add(id(holder))
                metadata = with_axis(holder._metadata, axis, holder._value, self._names.inserts)
                holder._set_all_metadata(metadata)

    def _outer(self, holder: Variable[Any], axis: int) -> Mapping[str, Any]:
        """Returns the metadata of a mapped argument, outside: the user may have changed it."""
        now = holder._metadata
        before, inner = self._before.get(id(holder), ({}, {}))
        if now is inner:
            return before
        inserts = self._names.inserts
        kept = {key: before[key] for key in inserts if key in now and now[key] is inner.get(key)}
        new = {key: name for key, name in inserts.items() if key not in kept}
        return {**with_axis(now, axis, holder._value, new), **kept}

    def _added(self, frame: Frame) -> Iterator[tuple[Variable[Any], Any]]:
        """Yields the Variables that the function added to its arguments, with their axes."""
        for new in frame.new_variables():
            axis = self._call.label_of_new(new)
            stacked = isinstance(new.holder, Intermediate) and not isinstance(axis, int)
            yield new.holder, 0 if stacked else axis

    def _returned(self, out: Any, out_axes: Any) -> Iterator[tuple[Variable[Any], Any]]:
        """Yields the Variables below the objects that the function returned, with their axes."""
        pairs, _ = jax.tree_util.tree_flatten_with_path(out, is_leaf=is_graph_leaf)
        marks = spread(out_axes, out, f"{self._call.transform}: out_axes")
        for (_, leaf), (label, base) in zip(pairs, marks, strict=True):
            if is_graph_leaf(leaf):
                find = label_finder(label, base, f"{self._call.transform}: out_axes")
                flat = flatten_roots((leaf,))
                for path, holder in zip(flat.graphdef.leaf_paths, flat.holders, strict=True):
                    if isinstance(holder, Variable) and holder._metadata:
                        yield holder, find(path, holder)


_UNNAMED: Mapping[str, Any] = dict.fromkeys(NAMES)


def add_axis_name(node: Any, axis: int = 0, metadata: Mapping[str, Any] | None = None) -> None:
    """Names an axis that every value below a node has got, in their metadata.

    Args:
      node: a Module or Variable, whose values have the axis already.
      axis: where it is.
      metadata: as ``transform_metadata`` of :func:`moduli.vmap`; without it the name is None.

    Raises:
      StructureError: if the metadata has no ``moduli.PARTITION_NAME``.

    Example:
      >>> import moduli as nnx, jax.numpy as jnp
      >>> from moduli.lowlevel import add_axis_name
      >>> param = nnx.Param(jnp.ones((2, 3)), out_sharding=("in",))
      >>> add_axis_name(param, metadata={nnx.PARTITION_NAME: "layers"})
      >>> param.out_sharding
      ('layers', 'in')
    """
    inserts = PartitionNames(metadata, "add_axis_name").inserts
    for holder in flat_of(node).holders:
        if isinstance(holder, Variable) and holder._metadata:
            value = _without(holder, axis)
            holder._set_all_metadata(with_axis(holder._metadata, axis, value, inserts))


def remove_axis_name(node: Any, axis: int = 0) -> None:
    """Takes out the name of an axis that every value below a node has lost.

    Args:
      node: a Module or Variable, whose values do not have the axis any more.
      axis: where it was.

    Example:
      >>> import moduli as nnx, jax.numpy as jnp
      >>> from moduli.lowlevel import remove_axis_name
      >>> param = nnx.Param(jnp.ones(3), out_sharding=("layers", "in"))
      >>> remove_axis_name(param)
      >>> param.out_sharding
      ('in',)
    """
    for holder in flat_of(node).holders:
        if isinstance(holder, Variable) and holder._metadata:
            inner = without_axis(holder._metadata, axis, holder._value, _UNNAMED)
            holder._set_all_metadata(inner)


class _Rank:
    """Stands for a value of which only the number of axes matters."""

    def __init__(self, ndim: int):
        self.ndim = ndim


def _without(holder: Variable[Any], axis: int) -> Any:
    """Returns a stand-in for the value before it had the axis."""
    rank = getattr(holder._value, "ndim", None)
    return None if rank is None else _Rank(rank - 1)
