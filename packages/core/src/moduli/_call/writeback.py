"""What a traced function did to its arguments, and how the same is done to the caller's objects."""

from __future__ import annotations

import collections
import copy
import operator
from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax

from moduli._base.compat import is_eager, trace_state
from moduli._base.foreign_trace import check_mutable
from moduli._base.static_keys import has_key
from moduli._graph.flat import Flat
from moduli._graph.graphdef import HELD, LEAF, NODE, TREE, VARIABLE, GraphDef
from moduli._graph.holders import Slot
from moduli._graph.opened import pour
from moduli._graph.unflatten import build, decode, refill
from moduli._variable.box import Variable
from moduli._variable.metadata import EMPTY

__all__ = ["ChangedEffects", "Effects", "Packed", "only_written"]

_write_value = Variable.__dict__["_value"].__set__
_exhaust = collections.deque(maxlen=0).extend  # runs an iterator at the speed of C


def _picker(indices: list[int]) -> Callable[[Sequence[Any]], Sequence[Any]]:
    """Returns a function, in C, that picks these items of a sequence, always as a sequence."""
    if len(indices) == 1:
        return operator.itemgetter(slice(indices[0], indices[0] + 1))
    return operator.itemgetter(*indices)


class Effects:
    """What a traced function did to its arguments when it changed values alone.

    Args:
      written: (graph number, leaf index) of each written value, in the order of the outputs.
      only_variables: whether all of them are values of Variables.
    """

    __slots__ = ("__weakref__", "_groups", "_only_variables")

    def __init__(self, written: Sequence[tuple[int, int]], only_variables: bool):
        self._only_variables = only_variables
        groups: dict[int, list[int]] = {}
        for number, index in written:
            groups.setdefault(number, []).append(index)
        self._groups = [(number, _picker(indices)) for number, indices in groups.items()]

    def apply(
        self,
        flats: tuple[Flat, ...],
        values: Sequence[Sequence[Any]],
        out: Any,
        outputs: Sequence[Any],
    ) -> Any:
        """Does the same to the caller's objects.

        Args:
          flats: of the call's Binding.
          values: the values that were passed in.
          out: first part of what the pure function returned.
          outputs: second part.

        Returns:
          What the call returns.

        Raises:
          TraceError: if the caller's objects belong to another trace than the current one.
        """
        if outputs and not is_eager():
            self._check(flats)
        new = iter(outputs)
        for number, getter in self._groups:
            holders = getter(flats[number].holders)
            if self._only_variables:
                _exhaust(map(_write_value, holders, new))
            else:
                for holder, value in zip(holders, new, strict=False):
                    setattr(holder, "_value", value)  # noqa: B010 - a Slot or a Variable
        return out

    def result(self, values: Sequence[Sequence[Any]], out: Any, outputs: Sequence[Any]) -> Any:
        """Returns what the call returns and leaves the caller's objects as they are."""
        return out

    def _check(self, flats: tuple[Flat, ...]) -> None:
        """Raises before a value of this trace is written into an object of another."""
        for number, getter in self._groups:
            for holder in getter(flats[number].holders):
                check_holder(holder)


def check_holder(holder: Any) -> None:
    """Raises a TraceError if the holder of a value belongs to another trace."""
    if isinstance(holder, Slot):
        check_mutable(holder.node, f"write `{holder.key}`")
    else:
        holder._check_trace()


class ChangedEffects:
    """What a traced function did when it changed the structure, or returned objects.

    Attributes:
      graphdef: the structure afterwards, with the returned objects as further roots.
      before: the structures that the call was given.
      num_roots: how many of the roots are arguments.
      origins: for each object afterwards the (graph, index) of the object it was before, or None.
      sources: for each value afterwards where it comes from: an input (graph, leaf), or the number
        of an output.
      sites: for each object afterwards the line where it was made, if it is a Variable.
      changed: for each object afterwards whether it is a node with other items than before.
      removed: for values of Variables that are no longer reachable, but were written, the number of
        the output; somebody may still hold them.
      treedef, marks: how the result is put together from plain outputs and returned objects.
    """

    __slots__ = (
        "__weakref__",
        "before",
        "changed",
        "graphdef",
        "marks",
        "num_roots",
        "origins",
        "removed",
        "sites",
        "sources",
        "treedef",
    )

    def __init__(
        self,
        *,
        graphdef: GraphDef,
        before: tuple[GraphDef, ...],
        num_roots: int,
        origins: list[tuple[int, int] | None],
        sources: list[tuple[int, int] | int],
        sites: list[Any],
        changed: list[bool],
        removed: dict[tuple[int, int], int],
        treedef: Any,
        marks: tuple[bool, ...],
    ):
        self.graphdef, self.before, self.num_roots = graphdef, before, num_roots
        self.origins, self.sources, self.changed = origins, sources, changed
        self.sites, self.removed = sites, removed
        self.treedef, self.marks = treedef, marks

    def apply(
        self,
        flats: tuple[Flat, ...],
        values: Sequence[Sequence[Any]],
        plain: list[Any],
        outputs: list[Any],
    ) -> Any:
        """Does the same to the caller's objects; see :meth:`Effects.apply`."""
        self._check(flats)
        new_values = self._new_values(values, outputs)
        existing = {
            index: flats[origin[0]].objects[origin[1]]
            for index, origin in enumerate(self.origins)
            if origin is not None
        }
        objects = build(self.graphdef, new_values, existing)
        self._note_sites(objects)
        held: dict[int, Any] = {}
        for index, target in existing.items():
            entry, origin = self.graphdef.objects[index], self.origins[index]
            assert origin is not None
            if entry[0] == VARIABLE:
                if self.sources[entry[3]] != self._leaf_before(origin):
                    _write_value(target, new_values[entry[3]])
                before = self.before[origin[0]].metadatas.get(origin[1], EMPTY)
                metadata = self.graphdef.metadatas.get(index, EMPTY)
                if target.__class__ is not entry[1]:
                    target.__class__ = entry[1]
                if metadata is not before and entry[2] != self._entry_before(origin)[2]:
                    target._set_all_metadata(metadata)
            elif self.changed[index]:
                if target.__class__ is not entry[1]:
                    target.__class__ = entry[1]
                held.update(self._unchanged(target, index))
                refill(target, self.graphdef, index, objects, new_values, held)
                target._moduli.changed()
            else:
                self._write_arrays(target, entry, objects, new_values)
        for (number, leaf), output in self.removed.items():
            _write_value(flats[number].holders[leaf], outputs[output])
        return self._result(objects, new_values, plain)

    def result(self, values: Sequence[Sequence[Any]], plain: list[Any], outputs: list[Any]) -> Any:
        """Returns what the call returns around new objects; the caller's stay as they are."""
        new_values = self._new_values(values, outputs)
        objects = build(self.graphdef, new_values)
        self._note_sites(objects)
        return self._result(objects, new_values, plain)

    def _note_sites(self, objects: list[Any]) -> None:
        for item, site in zip(objects, self.sites, strict=True):
            if site is not None:
                object.__setattr__(item, "_made", site)

    def _new_values(self, values: Sequence[Sequence[Any]], outputs: list[Any]) -> list[Any]:
        return [
            outputs[source] if isinstance(source, int) else values[source[0]][source[1]]
            for source in self.sources
        ]

    def _result(self, objects: list[Any], new_values: list[Any], plain: list[Any]) -> Any:
        roots = [decode(code, objects, new_values) for code in self.graphdef.roots]
        returned, others = iter(roots[self.num_roots :]), iter(plain)
        leaves = [next(returned if is_object else others) for is_object in self.marks]
        return jax.tree.unflatten(self.treedef, leaves)

    def _check(self, flats: tuple[Flat, ...]) -> None:
        """Raises before an object of another trace would be changed."""
        trace = trace_state()
        for index, origin in enumerate(self.origins):
            if origin is None:
                continue
            target, entry = flats[origin[0]].objects[origin[1]], self.graphdef.objects[index]
            if entry[0] == VARIABLE:
                if self.sources[entry[3]] != self._leaf_before(origin) and target._trace != trace:
                    target._check_trace()
            elif self.changed[index] and target._moduli.trace != trace:
                check_mutable(target, "change attributes")
        for number, leaf in self.removed:
            check_holder(flats[number].holders[leaf])

    def _entry_before(self, origin: tuple[int, int]) -> Any:
        return self.before[origin[0]].objects[origin[1]]

    def _leaf_before(self, origin: tuple[int, int]) -> tuple[int, int]:
        return (origin[0], self._entry_before(origin)[3])

    def _unchanged(self, target: Any, index: int) -> dict[int, Any]:
        """The static values of a node that may change and did not: they stay the same objects."""
        now = dict(target._items())
        return {
            code[2]: now[name]
            for name, code in self.graphdef.objects[index][2]
            if code[0] == HELD and name in now and has_key(now[name], code[1])
        }

    @staticmethod
    def _write_arrays(
        node: Any, entry: tuple[Any, ...], objects: list[Any], values: list[Any]
    ) -> None:
        """Writes bare arrays of a node whose structure is the same."""
        assert entry[0] == NODE
        for key, code in entry[2]:
            if code[0] == LEAF:
                node._write(key, values[code[1]])
            elif code[0] == TREE:
                node._write(key, pour(node._read(key), decode(code, objects, values)))


def only_written(
    effects: Any,
    homes: Sequence[tuple[int, int] | None],
    outputs: Sequence[Any],
    written: Collection[tuple[int, int]],
) -> tuple[Any, Sequence[Any]]:
    """Leaves out the values that are outputs because all must be, but were not written.

    Args:
      effects: what the function did.
      homes: for each output the leaf that it is the new value of, or None.
      outputs: the outputs.
      written: the leaves that were written.

    Returns:
      (effects, outputs) for ``effects.apply``.
    """
    if isinstance(effects, Effects):
        places = {leaf: position for position, leaf in enumerate(homes)}
        leaves = sorted(written)
        return Effects(leaves, only_variables=False), [outputs[places[leaf]] for leaf in leaves]
    narrowed = copy.copy(effects)
    narrowed.sources = [
        home
        if isinstance(source, int) and (home := homes[source]) is not None and home not in written
        else source
        for source in effects.sources
    ]
    narrowed.removed = {leaf: n for leaf, n in effects.removed.items() if leaf in written}
    return narrowed, outputs


class Packed:
    """The result of a pure function: a pytree whose static part is the Effects.

    JAX keeps the static part with the compiled program, so a call that hits it gets the Effects of
    the trace that made it. (Unflattening has to give a pytree back: JAX's C++ dispatch re-flattens
    the first result, and leaves the fast path if that gives anything but arrays.)

    Attributes:
      effects: what the function did.
      parts: the pair (out, outputs) for ``effects.apply``.
    """

    __slots__ = ("effects", "parts")

    def __init__(self, effects: Any, parts: Any):
        self.effects, self.parts = effects, parts


jax.tree_util.register_pytree_node(
    Packed,
    lambda packed: (packed.parts, packed.effects),
    Packed,  # its arguments are those of an unflattener
)
