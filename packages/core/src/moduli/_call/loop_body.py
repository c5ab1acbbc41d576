"""The body of a loop over modules: what it is given, what it carries, what it stacks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax

from moduli import errors
from moduli._call.call import Call
from moduli._call.carried import check_same_objects, check_same_types, is_array_like
from moduli._call.frame import Frame
from moduli._call.outputs import Outputs
from moduli._call.prefixes import Carry
from moduli._call.recorded_values import RecordedValues
from moduli._call.split_streams import SPLIT
from moduli._call.writeback import ChangedEffects
from moduli._graph.graphdef import OBJECT, STATIC, VARIABLE
from moduli._variable.kinds import Intermediate, RngState

__all__ = ["LoopBody"]

_SLICED, _CARRIED, _CONSTANT, _FIXED = range(4)


class LoopBody:
    """One step of a loop as a pure function, and what its result means afterwards.

    Values of modules that are not sliced are carried, whether they are marked so or not: the loop
    then does to them what it would do eagerly, and JAX takes those that never change out of the
    carry. A stream of random keys that the user broadcasts (None in a StateAxes) is read anew in
    each step, and only its last count is kept.

    Args:
      call: the labelled call.
      run: ``(frame) -> result`` runs the user's function.
      carry_of: takes the carry out of the arguments and out of the result, or None if there is
        none: a pair of functions.
      out_labels: the prefix of the result.
      out_name: what that prefix is, for messages.
      fun: the user's function, for messages.

    Attributes:
      init: the carry to start with.
      sliced: the values to slice along their first axis.
      stacked_names: after a step, where each value stands that is stacked, for messages.
    """

    def __init__(
        self,
        call: Call,
        run: Callable[[Frame], Any],
        carry_of: tuple[Callable[[Frame], Any], Callable[[Any], Any]] | None,
        out_labels: Any,
        out_name: str,
        fun: Any = None,
    ):
        self._fun = fun
        self._call, self._run, self._carry_of = call, run, carry_of
        self._out_labels, self._out_name = out_labels, out_name
        self._every, labels = call.every(), call.all_labels()
        graph_values = len(call.signature.leaves)
        self._leaves = call.signature.leaves
        self._kinds = [
            self._role(position, value, label, position < graph_values)
            for position, (value, label) in enumerate(zip(self._every, labels, strict=True))
        ]
        self._carried = [n for n, kind in enumerate(self._kinds) if kind in (_CARRIED, _FIXED)]
        self._sliced = [n for n, kind in enumerate(self._kinds) if kind == _SLICED]
        self.init = [self._every[n] for n in self._carried]
        self.sliced = [
            self._every[n] if labels[n] is SPLIT else _move(self._every[n], labels[n], 0)
            for n in self._sliced
        ]
        self._slots: dict[Any, int] = {
            self._leaves[n] if n < graph_values else n: slot for slot, n in enumerate(self._carried)
        }
        self._plain_slots = [
            slot for place, slot in self._slots.items() if not isinstance(place, tuple)
        ]
        self._outputs: Any = None
        self.stacked_names: list[str] = []
        self._axes: list[Any] = []

    def _role(self, position: int, value: Any, label: Any, is_graph_value: bool) -> int:
        if isinstance(label, int) or label is SPLIT:
            return _SLICED
        if label is Carry:
            return _CARRIED
        if not is_graph_value or not is_array_like(value):
            return _CONSTANT
        leaf = self._leaves[position]
        if self._call.is_explicit(leaf) and self._is_stream(leaf):
            return _FIXED
        return _CARRIED

    def _is_stream(self, leaf: tuple[int, int]) -> bool:
        kind = self._call.signature.graphdefs[leaf[0]].leaf_types[leaf[1]]
        return kind is not None and issubclass(kind, RngState)

    def split_names(self, names: Sequence[str]) -> tuple[list[str], list[str]]:
        """Returns, of the names of all values, those of the carry and those of the slices."""
        return [names[n] for n in self._carried], [names[n] for n in self._sliced]

    @property
    def has_run(self) -> bool:
        """Whether a step has run: not if a loop without steps runs under jax.disable_jit."""
        return self._outputs is not None

    def frame(self, carry: Sequence[Any], sliced: Sequence[Any]) -> Frame:
        """Rebuilds the arguments of one step."""
        values = list(self._every)
        for position, value in zip(self._carried, carry, strict=True):
            if self._kinds[position] == _CARRIED:
                values[position] = value
        for position, value in zip(self._sliced, sliced, strict=True):
            values[position] = value
        return self._call.frame(values)

    def step(self, carry: Sequence[Any], sliced: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        """Runs one step: ``(carry, slices) -> (carry, lists of values to stack)``."""
        call = self._call
        frame = self.frame(carry, sliced)
        given = self._carry_of[0](frame) if self._carry_of else None
        out = frame.run(call.transform, call.function, self._fun, self._run)
        if self._carry_of:
            check_same_objects(call.transform, call.function, given, self._carry_of[1](out))
        outputs = self._outputs = Outputs(
            call,
            frame,
            out,
            self._out_labels,
            self._out_name,
            intermediate_label=0,
            drop=lambda leaf: call.label_of(leaf) is SPLIT,
        )
        self._check_structure(outputs)
        new = list(carry)
        kept: list[int | None] = []  # for each output its slot in the carry, or None
        plain = iter(self._plain_slots)
        for position, (label, value) in enumerate(zip(outputs.labels, outputs.values, strict=True)):
            if position < outputs.count:
                slot = next(plain) if label is Carry else None
            else:
                slot = self._slots.get(outputs.homes[position - outputs.count])
            if slot is None and not isinstance(label, int):
                raise self._unplaced(outputs, position)
            kept.append(slot)
            if slot is not None:
                new[slot] = value
        self._kept = kept
        self.stacked_names = [
            name for name, slot in zip(outputs.names, kept, strict=True) if slot is None
        ]
        check_same_types(call.transform, call.function, carry, new, self._describe_slot)
        labels = [label for label, slot in zip(outputs.labels, kept, strict=True) if slot is None]
        self._axes = list(dict.fromkeys(labels))
        values, outputs.values = outputs.values, []  # tracers
        return new, [
            [
                value
                for value, label, slot in zip(values, outputs.labels, kept, strict=True)
                if slot is None and label == axis
            ]
            for axis in self._axes
        ]

    def _describe_slot(self, slot: int) -> str:
        place = next(place for place, number in self._slots.items() if number == slot)
        if isinstance(place, tuple):
            return self._call.describe(place)
        return self._call.describe_all(place)

    def _unplaced(self, outputs: Outputs, position: int) -> Exception:
        call, name, label = self._call, outputs.names[position], outputs.labels[position]
        if position >= outputs.count and outputs.homes[position - outputs.count] is None:
            return errors.StructureError(
                f"{call.transform}: {call.function} adds {name}, which is carried from step to "
                "step and keeps its structure; make it before the loop, give the module an axis, "
                "or use the kind moduli.Intermediate in a scan, which is stacked"
            )
        return errors.StructureError(
            f"{self._out_name} gives {name} the label {label!r}; what a step returns is stacked "
            "along an axis (an int), or carried (moduli.Carry, for a whole entry)"
        )

    def _check_structure(self, outputs: Outputs) -> None:
        """Raises if a step changes the structure of what is carried."""
        effects = outputs.effects
        if not isinstance(effects, ChangedEffects):
            return
        call = self._call
        present = {s for s in effects.sources if not isinstance(s, int)}
        present.update(home for home in outputs.homes if home is not None)
        present.difference_update(effects.removed)
        for place in self._slots:
            if isinstance(place, tuple) and place not in present:
                raise errors.StructureError(
                    f"{call.transform}: {call.function} removes {call.describe(place)}, which is "
                    "carried from step to step and keeps its structure; remove it after the loop"
                )
        for index, origin in enumerate(effects.origins):
            if origin is None or not effects.changed[index]:
                continue
            if effects.graphdef.objects[index][1] is RecordedValues:  # it takes what is recorded
                continue
            self._check_node(effects, index, origin)

    def _check_node(self, effects: ChangedEffects, index: int, origin: tuple[int, int]) -> None:
        call = self._call
        graphdef = effects.before[origin[0]]
        path = graphdef.object_paths[origin[1]]
        below = call.labels_below(*origin)
        if below and all(isinstance(label, int) or label is SPLIT for label in below):
            return
        was, now = graphdef.objects[origin[1]], effects.graphdef.objects[index]
        if was[1] is not now[1]:
            raise errors.StructureError(
                f"{call.transform}: {call.function} makes `{errors.format_path(path)}`, a "
                f"{was[1].__name__}, a {now[1].__name__}, but what is carried from step to step "
                "keeps its class; do it before or after the loop"
            )
        old, new = dict(was[2]), dict(now[2])
        for key in [*new, *old]:
            before, after = old.get(key), new.get(key)
            if after and after[0] == OBJECT:
                entry = effects.graphdef.objects[after[1]]
                home = effects.origins[after[1]]
                if entry[0] == VARIABLE and issubclass(entry[1], Intermediate) and home is None:
                    continue
                if before and before[0] == OBJECT and home == (origin[0], before[1]):
                    continue
            elif (
                before
                and after
                and before[0] == after[0]
                and (after[0] > STATIC or before[1] == after[1])
            ):
                continue
            kind = effects.graphdef.objects[index][1].__name__
            verb = "removes" if after is None else "adds" if before is None else "changes"
            raise errors.StructureError(
                f"{call.transform}: {call.function} {verb} the attribute "
                f"`{errors.format_path((*path, key))}` of a {kind} "
                "that is carried from step to step and keeps its structure; do it before or after "
                "the loop, or keep a changing number in a Variable"
            )

    def finish(self, carry: Sequence[Any], stacked: Sequence[Sequence[Any]]) -> Any:
        """Returns what the steps did, and what to do it with: (effects, out, outputs)."""
        outputs = self._outputs
        groups = {axis: iter(group) for axis, group in zip(self._axes, stacked, strict=True)}
        values = [
            carry[slot] if slot is not None else _move(next(groups[label]), 0, label)
            for label, slot in zip(outputs.labels, self._kept, strict=True)
        ]
        return (outputs.effects, *outputs.rebuild(values))


def _move(value: Any, source: int, target: int) -> Any:
    if source == target:
        return value
    return jax.tree.map(lambda leaf: jax.numpy.moveaxis(leaf, source, target), value)
