"""Runs a program one operation at a time and watches where NaN and infinities come from.

A *fault* is an operation that gets finite values and gives some that are not, or an argument that
is not finite to begin with. Each value that is not finite knows the faults from which it comes, so
in the end the outputs know theirs. A run can *repair* faults: put zeros where an earlier run found
what the fault made; the rest then shows what there is besides.

A part of the program (a loop, a step of one) that gets finite values and gives finite values is run
as a whole: what happens inside has no consequences.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from moduli_debug._compat import is_literal, scan_sizes
from moduli_debug._finite.faults import Fault, Faults, Key, Where
from moduli_debug._finite.loops import Loops
from moduli_debug._finite.marks import mark_of
from moduli_debug._finite.parts import Kept, compute, last_uses, open_jaxpr
from moduli_debug._finite.values import Masks, Value, are_bad, repaired, united

if TYPE_CHECKING:
    from jax.extend import core

__all__ = ["Run"]

_CALLS = (
    "jit",
    "pjit",
    "closed_call",
    "core_call",
    "remat",
    "remat2",
    "checkpoint",
    "custom_jvp_call",
    "custom_vjp_call",
    "custom_vjp_call_jaxpr",
)


class Run:
    """One run of a program.

    Args:
      program: the program.
      repairs: the faults to repair, by their keys.
      mend: operations (their ids) of which every fault is repaired at once.
      kept: what an earlier run of the same program has compiled.

    Attributes:
      faults: what was found, in order.
      mended: what was found and repaired at once.
      outputs: for each output of the program the faults from which it comes.
      forward: the faults whose values stand in the forward pass (and not only in what it keeps for
        the backward pass), a bit for each.
      is_finite: whether all outputs are finite.
    """

    def __init__(
        self,
        program: core.ClosedJaxpr,
        repairs: Mapping[Key, Masks],
        mend: Collection[int] = (),
        kept: Kept | None = None,
    ):
        self._program, self._repairs = program, repairs
        self._faults = Faults(repairs, mend)
        self._loops = Loops(self._faults, kept or Kept(), repairs, self._closed)
        self.faults: list[Fault] = self._faults.found
        self.mended: list[Fault] = self._faults.mended
        self.outputs: list[int] = []
        self.forward = 0

    def __call__(self, arguments: Sequence[Any]) -> Run:
        """Runs the program on its arguments; returns the run itself."""
        values = [self._faults.argument(n, array) for n, array in enumerate(arguments)]
        consts = [Value(array) for array in self._program.consts]
        outputs = self._jaxpr(self._program.jaxpr, consts, values, Where())
        self.forward = self._faults.forward(outputs)
        self.outputs = [value.faults for value in outputs]
        self.is_finite = not any(are_bad([value.array for value in outputs]))
        return self

    def _jaxpr(
        self, jaxpr: Any, consts: Sequence[Value], args: Sequence[Value], where: Where
    ) -> list[Value]:
        known: dict[Any, Value] = {}
        known.update(zip(jaxpr.constvars, consts, strict=True))
        known.update(zip(jaxpr.invars, args, strict=True))
        last = last_uses(jaxpr)
        for number, eqn in enumerate(jaxpr.eqns):
            inputs = [_read(known, atom) for atom in eqn.invars]
            here = Where(
                (*where.key, number),
                f"{where.scopes}/{eqn.source_info.name_stack}",
                where.steps,
            )
            outputs = self._equation(eqn, inputs, here)
            known.update(zip(eqn.outvars, outputs, strict=True))
            for atom in last.get(number, ()):
                known.pop(atom, None)
        return [_read(known, atom) for atom in jaxpr.outvars]

    def _equation(self, eqn: Any, inputs: list[Value], where: Where) -> list[Value]:
        name, params = eqn.primitive.name, eqn.params
        if name == "scan" and {"jaxpr", "length"} <= params.keys():
            sizes = scan_sizes(params)
            if sizes is not None:
                return self._loops.scan(eqn, inputs, where, *sizes)
        if name == "while" and {"cond_jaxpr", "body_jaxpr", "cond_nconsts"} <= params.keys():
            return self._loops.repeat(eqn, inputs, where)
        if name == "cond" and "branches" in params:
            index = int(inputs[0].array)
            index = min(max(index, 0), len(params["branches"]) - 1)
            inner = where._replace(key=(*where.key, index))
            return self._closed(params["branches"][index], inputs[1:], inner)
        if name in _CALLS:
            inner = params.get("jaxpr", params.get("call_jaxpr"))
            if inner is not None and len(open_jaxpr(inner).invars) == len(inputs):
                return self._closed(inner, inputs, where)
        if not eqn.outvars:
            return []  # prints and checks; the user's own run has done them
        return self._primitive(eqn, inputs, where)

    def _closed(self, jaxpr: Any, inputs: Sequence[Value], where: Where) -> list[Value]:
        consts = [Value(array) for array in getattr(jaxpr, "consts", ())]
        return self._jaxpr(open_jaxpr(jaxpr), consts, inputs, where)

    def _primitive(self, eqn: Any, inputs: list[Value], where: Where) -> list[Value]:
        mark = mark_of(str(eqn.source_info.name_stack))
        if mark is not None and eqn.primitive.name == "optimization_barrier":
            self._faults.note_mark(mark, inputs[0], where)
        arrays = repaired(
            compute(eqn, [value.array for value in inputs]), self._repairs.get(where.key)
        )
        bad = are_bad(arrays)
        faults, direct = united(inputs)
        if any(bad):
            if not faults:
                fault = self._faults.new(eqn, inputs, arrays, where)
                if fault.number < 0:
                    return [Value(array) for array in repaired(arrays, fault.masks)]
                faults = direct = 1 << fault.number
            return self._faults.spread(arrays, bad, faults, direct, where)
        return [Value(array) for array in arrays]


def _read(known: Mapping[Any, Value], atom: Any) -> Value:
    return Value(atom.val) if is_literal(atom) else known[atom]
