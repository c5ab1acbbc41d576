"""The faults of a run: what made NaN or infinities, and what is known of each."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from moduli_debug._finite.marks import Mark, call_of, is_backward
from moduli_debug._finite.statistics import ArrayStatistics, is_finite, is_inexact, statistics_of
from moduli_debug._finite.values import Masks, Use, Value, masks_of, repaired

__all__ = ["Fault", "Faults", "Key", "Where"]

Key = tuple[Any, ...]
"""Where an operation stands in a run: numbers of operations, of rounds of loops and of branches;
what runs first is smaller. An argument is (-1, number)."""


@dataclass
class Fault:
    """Where NaN or infinities come from.

    Attributes:
      key: where it stands in the program, and in which steps of loops.
      number: its bit.
      scopes: the scopes of the operation.
      steps: in which step of each loop around it, the outermost first.
      operation: the name of the operation; None for an argument.
      traceback: of the operation, as JAX keeps it.
      operands: statistics of what it got.
      results: statistics of what it made.
      masks: where its outputs were not finite.
      equation: the id of the operation, the same in all steps of a loop.
      argument: the number of the argument.
      activated: the key of the operation of a backward pass that first gave something that is not
        finite because of it; None if there is none.
      marks: statistics of the inputs and outputs of its call: (side, backward) -> name -> them.
    """

    key: Key
    number: int
    scopes: str
    steps: tuple[int, ...]
    operation: str | None
    traceback: Any
    operands: list[ArrayStatistics]
    results: list[ArrayStatistics]
    masks: Masks
    equation: int | None = None
    argument: int | None = None
    activated: Key | None = None
    marks: dict[tuple[str, bool], dict[str, ArrayStatistics]] = field(default_factory=dict)

    @property
    def call(self) -> Any:
        """The innermost call of a module around it, None if there is none."""
        found = call_of(self.scopes)
        return found and found[1]


class Where(NamedTuple):
    """Where an operation stands: its key, its scopes, the steps of the loops around it."""

    key: Key = ()
    scopes: str = ""
    steps: tuple[int, ...] = ()


class Faults:
    """What a run finds.

    Args:
      repairs: the faults to repair, by their keys.
      mend: operations (their ids) of which every fault is repaired at once.

    Attributes:
      found: the faults, in order.
      mended: those that were repaired at once.
    """

    def __init__(self, repairs: Mapping[Key, Masks], mend: Collection[int]):
        self._repairs, self._mend = repairs, mend
        self._marks: dict[Any, dict[str, ArrayStatistics]] = {}
        self._uses: list[Use] = []
        self._forward = 0
        self.found: list[Fault] = []
        self.mended: list[Fault] = []

    def argument(self, number: int, array: Any) -> Value:
        """Takes an argument of the program, which is a fault if it is not finite."""
        key = (-1, number)
        array = repaired([array], self._repairs.get(key))[0]
        if not is_inexact(array) or is_finite(array):
            return Value(array)
        fault = Fault(
            key=key,
            number=len(self.found),
            scopes="",
            steps=(),
            operation=None,
            traceback=None,
            operands=[],
            results=[statistics_of("", array)],
            masks=masks_of([array]),
            argument=number,
        )
        self.found.append(fault)
        return self.spoiled(array, 1 << fault.number, 1 << fault.number)

    def new(self, eqn: Any, inputs: Sequence[Value], arrays: Sequence[Any], where: Where) -> Fault:
        """Notes an operation that got finite values and gave some that are not."""
        fault = Fault(
            key=where.key,
            number=len(self.found),
            scopes=where.scopes,
            steps=where.steps,
            operation=str(eqn.params.get("name") or eqn.primitive.name),
            traceback=getattr(eqn.source_info, "traceback", None),
            operands=[statistics_of("", v.array) for v in inputs if is_inexact(v.array)],
            results=[statistics_of("", array) for array in arrays if is_inexact(array)],
            masks=masks_of(arrays),
            equation=id(eqn),
        )
        if id(eqn) in self._mend:
            fault.number = -1
            self.mended.append(fault)
        else:
            self.found.append(fault)
        found = call_of(where.scopes)
        if found is not None:
            backward = is_backward(where.scopes)
            sides = [("input", False)]
            if backward:
                sides += [("output", False), ("output", True)]
            for side in sides:
                for stop in range(len(where.steps), -1, -1):
                    known = self._marks.get((found[0], *side, where.steps[:stop]))
                    if known is not None:
                        fault.marks[side] = dict(known)
                        break
        return fault

    def note_mark(self, mark: Mark, value: Value, where: Where) -> None:
        """Notes an input or output of a module's call, for the faults of that call."""
        backward = is_backward(where.scopes)
        if not backward:
            self._forward |= value.direct
        if not is_inexact(value.array):
            return
        measured = statistics_of(mark.name, value.array)
        spot = (mark.call, mark.side, backward, where.steps)
        self._marks.setdefault(spot, {})[mark.name] = measured
        for fault in self.found:
            found = call_of(fault.scopes)
            if found is None or found[0] != mark.call:
                continue
            if fault.steps[: len(where.steps)] == where.steps:
                fault.marks.setdefault((mark.side, backward), {}).setdefault(mark.name, measured)

    def activate(self, faults: int, key: Key) -> None:
        """Notes the operation of a backward pass that faults have reached."""
        for fault in self.found:
            if faults >> fault.number & 1 and fault.activated is None:
                fault.activated = key

    def spread(
        self, arrays: Sequence[Any], bad: list[bool], faults: int, direct: int, where: Where
    ) -> list[Value]:
        """Notes in the values that are not finite which faults made them so."""
        if is_backward(where.scopes):
            self.activate(faults, where.key)
            direct = 0
        return [
            self.spoiled(array, faults, direct) if is_bad else Value(array)
            for array, is_bad in zip(arrays, bad, strict=True)
        ]

    def spoiled(self, array: Any, faults: int, direct: int) -> Value:
        """Makes a value that is not finite, and watches whether it is used."""
        use = Use(direct)
        if direct:
            self._uses.append(use)
        return Value(array, faults, direct, use)

    def forward(self, outputs: Sequence[Value]) -> int:
        """Returns which faults have values in the forward pass, given the program's outputs."""
        for value in outputs:
            self._forward |= value.direct
        for use in self._uses:
            if not use.used:
                self._forward |= use.direct
        return self._forward
