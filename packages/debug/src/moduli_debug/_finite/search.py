"""Finds the first fault whose values reach an output.

Several faults may stand in a program, and most programs have some that do no harm: the ``-inf`` of
a mask, the ``0 / 0`` in the branch of a ``where`` that is not taken. A fault counts if an output is
not finite when all others are repaired; the first that counts is the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from moduli_debug._finite.faults import Fault, Key
from moduli_debug._finite.loops import UnendingError
from moduli_debug._finite.marks import is_backward
from moduli_debug._finite.parts import Kept
from moduli_debug._finite.run import Run
from moduli_debug._finite.values import Masks

__all__ = ["Found", "search"]

_ROUNDS = 16  # of repairing what is left
_TRIALS = 8  # of repairing all but one


class Found(NamedTuple):
    """A fault, and the direction in which it acts."""

    fault: Fault
    backward: bool

    @property
    def order(self) -> Key:
        """What happens first is smaller: in a backward pass, what first has consequences there."""
        fault = self.fault
        return fault.activated if self.backward and fault.activated is not None else fault.key


def search(program: Any, arguments: Sequence[Any]) -> Found | None:
    """Finds the first fault whose values reach an output.

    Args:
      program: a ClosedJaxpr.
      arguments: what it is run on.

    Returns:
      The fault; None if all outputs are finite.
    """
    kept = Kept()

    def run_with(repairs: Mapping[Key, Masks], mend: Collection[int] = ()) -> Run:
        return Run(program, repairs, mend, kept)(arguments)

    first = run_with({})
    if first.is_finite:
        return None
    suspects, repairs = _collect(first, run_with)
    suspects.sort(key=lambda found: found.fault.key, reverse=True)  # of those that have their first
    suspects.sort(key=lambda found: found.order)  # consequence together, the last goes first
    if len(suspects) > 1:
        for suspect in suspects[:_TRIALS]:
            others = {key: masks for key, masks in repairs.items() if key != suspect.fault.key}
            try:
                run = run_with(others)
            except UnendingError:
                continue
            if not run.is_finite:
                return _alone(run, suspect)
    return suspects[0]


def _collect(run: Run, again: Callable[..., Run]) -> tuple[list[Found], dict[Key, Masks]]:
    """Repairs faults until all outputs are finite; returns what was repaired."""
    suspects: dict[Key, Found] = {}
    repairs: dict[Key, Masks] = {}
    mend: set[int] = set()
    for _ in range(_ROUNDS):
        reached = 0
        for faults in run.outputs:
            reached |= faults
        known = [fault for fault in run.faults if reached >> fault.number & 1]
        for fault in (*known, *run.mended):
            suspects.setdefault(fault.key, _found(run, fault))
            repairs[fault.key] = _joined(repairs.get(fault.key), fault.masks)
            if fault.equation is not None:
                mend.add(fault.equation)
        if run.is_finite:
            break
        try:
            run = again(repairs, mend)
        except UnendingError:
            break
    return list(suspects.values()), repairs


def _joined(known: Masks | None, new: Masks) -> Masks:
    if known is None:
        return new
    return [
        b if a is None else a if b is None or a.shape != b.shape else np.logical_or(a, b)
        for a, b in zip(known, new, strict=True)
    ]


def _found(run: Run, fault: Fault) -> Found:
    backward = is_backward(fault.scopes)
    if not backward and fault.argument is None and "jvp(" in fault.scopes:
        # what the forward pass of a differentiated function computes for the backward pass alone
        backward = not (fault.number >= 0 and run.forward >> fault.number & 1)
    return Found(fault, backward)


def _alone(run: Run, suspect: Found) -> Found:
    """Returns what a run shows of a fault in which all others were repaired."""
    for fault in run.faults:
        if fault.key == suspect.fault.key:
            return _found(run, fault)
    return suspect
