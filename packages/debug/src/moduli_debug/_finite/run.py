"""Runs a program one operation at a time and watches where NaN and infinities come from.

A *fault* is an operation that gets finite values and gives some that are not, or an argument that
is not finite to begin with. Each value that is not finite knows the faults from which it comes, so
in the end the outputs know theirs. A run can *repair* faults: put zeros where an earlier run found
what the fault made; the rest then shows what there is besides.

A part of the program (a loop, a step of one) that gets finite values and gives finite values is run
as a whole: what happens inside has no consequences.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from moduli_debug._compat import bind_arguments, is_literal, jaxpr_core, scan_sizes
from moduli_debug._finite.marks import Mark, call_of, is_backward, mark_of
from moduli_debug._finite.statistics import ArrayStatistics, is_finite, is_inexact, statistics_of

if TYPE_CHECKING:
    from jax.extend import core

__all__ = ["Fault", "Kept", "Run", "UnendingError"]

Key = tuple[Any, ...]
"""Where an operation stands in a run: numbers of operations, of rounds of loops and of branches;
what runs first is smaller. An argument is (-1, number)."""
Masks = Sequence[Any]
"""For each output of an operation where it was not finite, or None."""

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
_IN_DETAIL = 5000  # operations of a loop that are run one by one before a step of it is compiled
_STEPS_IN_DETAIL = 64  # of a loop with values that are not finite, run one by one in any case
_WHILE_STEPS = 10_000  # of a while loop whose values were repaired, and which may not end


class UnendingError(Exception):
    """A while loop does not end with repaired values."""


class Kept:
    """What runs of one program have in common."""

    def __init__(self) -> None:
        self._compiled: dict[int, Any] = {}
        self._sizes: dict[int, int] = {}

    def call(self, body: core.ClosedJaxpr, arrays: Sequence[Any]) -> list[Any]:
        """Runs a part of the program as a whole."""
        compiled = self._compiled.get(id(body))
        if compiled is None:
            compiled = self._compiled[id(body)] = jax.jit(jaxpr_core().jaxpr_as_fun(body))
        return list(compiled(*arrays))

    def size(self, jaxpr: Any) -> int:
        """Counts the operations of a part of the program, those of loops once for each step."""
        jaxpr = _open(jaxpr)
        size = self._sizes.get(id(jaxpr))
        if size is None:
            size = 0
            for eqn in jaxpr.eqns:
                inner = [self.size(part) for part in _parts(eqn.params)]
                size += max(sum(inner), 1) * int(eqn.params.get("length", 1))
            self._sizes[id(jaxpr)] = size
        return size


class Use:
    """Whether a value that is not finite was used by something."""

    __slots__ = ("direct", "used")

    def __init__(self, direct: int):
        self.direct, self.used = direct, False


class Value(NamedTuple):
    """A value in a run.

    Attributes:
      array: the value.
      faults: the faults from which it comes if it is not finite, a bit for each.
      direct: those of them whose values came here without passing through a backward pass.
      use: whether it was used; None for finite values.
      parts: of a value that a loop has stacked, what it is made of.
    """

    array: Any
    faults: int = 0
    direct: int = 0
    use: Use | None = None
    parts: Sequence[Value] = ()


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


class _Where(NamedTuple):
    key: Key = ()
    scopes: str = ""
    steps: tuple[int, ...] = ()


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
        self._prefixes = {key[:n] for key in repairs for n in range(len(key) + 1)}
        self._marks: dict[Any, dict[str, ArrayStatistics]] = {}
        self._uses: list[Use] = []
        self._detailed: dict[Key, int] = {}
        self._spent: dict[int, int] = {}
        self._mend, self._kept = mend, kept or Kept()
        self.mended: list[Fault] = []
        self.faults: list[Fault] = []
        self.outputs: list[int] = []
        self.forward = 0

    def __call__(self, arguments: Sequence[Any]) -> Run:
        """Runs the program on its arguments; returns the run itself."""
        values = [self._argument(n, array) for n, array in enumerate(arguments)]
        consts = [Value(array) for array in self._program.consts]
        outputs = self._jaxpr(self._program.jaxpr, consts, values, _Where())
        for value in outputs:
            self.forward |= value.direct
        for use in self._uses:
            if not use.used:
                self.forward |= use.direct
        self.outputs = [value.faults for value in outputs]
        self._bad = [is_inexact(v.array) and not is_finite(v.array) for v in outputs]
        self.is_finite = not any(self._bad)
        return self

    # -- faults ----------------------------------------------------------------------------------

    def _argument(self, number: int, array: Any) -> Value:
        key = (-1, number)
        array = _repaired([array], self._repairs.get(key))[0]
        if not is_inexact(array) or is_finite(array):
            return Value(array)
        fault = Fault(
            key=key,
            number=len(self.faults),
            scopes="",
            steps=(),
            operation=None,
            traceback=None,
            operands=[],
            results=[statistics_of("", array)],
            masks=_masks([array]),
            argument=number,
        )
        self.faults.append(fault)
        return self._spoiled(array, 1 << fault.number, 1 << fault.number)

    def _spoiled(self, array: Any, faults: int, direct: int) -> Value:
        use = Use(direct)
        if direct:
            self._uses.append(use)
        return Value(array, faults, direct, use)

    def _new_fault(
        self, eqn: Any, inputs: Sequence[Value], arrays: Sequence[Any], where: _Where
    ) -> Fault:
        fault = Fault(
            key=where.key,
            number=len(self.faults),
            scopes=where.scopes,
            steps=where.steps,
            operation=str(eqn.params.get("name") or eqn.primitive.name),
            traceback=getattr(eqn.source_info, "traceback", None),
            operands=[statistics_of("", v.array) for v in inputs if is_inexact(v.array)],
            results=[statistics_of("", array) for array in arrays if is_inexact(array)],
            masks=_masks(arrays),
            equation=id(eqn),
        )
        if id(eqn) in self._mend:
            fault.number = -1
            self.mended.append(fault)
        else:
            self.faults.append(fault)
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

    def _note_mark(self, mark: Mark, value: Value, where: _Where) -> None:
        backward = is_backward(where.scopes)
        if not backward:
            self.forward |= value.direct
        if not is_inexact(value.array):
            return
        measured = statistics_of(mark.name, value.array)
        spot = (mark.call, mark.side, backward, where.steps)
        self._marks.setdefault(spot, {})[mark.name] = measured
        for fault in self.faults:
            found = call_of(fault.scopes)
            if found is None or found[0] != mark.call:
                continue
            if fault.steps[: len(where.steps)] == where.steps:
                fault.marks.setdefault((mark.side, backward), {}).setdefault(mark.name, measured)

    # -- operations ------------------------------------------------------------------------------

    def _jaxpr(
        self, jaxpr: Any, consts: Sequence[Value], args: Sequence[Value], where: _Where
    ) -> list[Value]:
        known: dict[Any, Value] = {}
        known.update(zip(jaxpr.constvars, consts, strict=True))
        known.update(zip(jaxpr.invars, args, strict=True))
        last = _last_uses(jaxpr)
        for number, eqn in enumerate(jaxpr.eqns):
            inputs = [_read(known, atom) for atom in eqn.invars]
            here = _Where(
                (*where.key, number),
                f"{where.scopes}/{eqn.source_info.name_stack}",
                where.steps,
            )
            outputs = self._equation(eqn, inputs, here)
            known.update(zip(eqn.outvars, outputs, strict=True))
            for atom in last.get(number, ()):
                known.pop(atom, None)
        return [_read(known, atom) for atom in jaxpr.outvars]

    def _equation(self, eqn: Any, inputs: list[Value], where: _Where) -> list[Value]:
        name, params = eqn.primitive.name, eqn.params
        if name == "scan" and {"jaxpr", "length"} <= params.keys():
            sizes = scan_sizes(params)
            if sizes is not None:
                return self._scan(eqn, inputs, where, *sizes)
        if name == "while" and {"cond_jaxpr", "body_jaxpr", "cond_nconsts"} <= params.keys():
            return self._while(eqn, inputs, where)
        if name == "cond" and "branches" in params:
            index = int(inputs[0].array)
            index = min(max(index, 0), len(params["branches"]) - 1)
            inner = where._replace(key=(*where.key, index))
            return self._closed(params["branches"][index], inputs[1:], inner)
        if name in _CALLS:
            inner = params.get("jaxpr", params.get("call_jaxpr"))
            if inner is not None and len(_open(inner).invars) == len(inputs):
                return self._closed(inner, inputs, where)
        if not eqn.outvars:
            return []  # prints and checks; the user's own run has done them
        return self._primitive(eqn, inputs, where)

    def _closed(self, jaxpr: Any, inputs: Sequence[Value], where: _Where) -> list[Value]:
        consts = [Value(array) for array in getattr(jaxpr, "consts", ())]
        return self._jaxpr(_open(jaxpr), consts, inputs, where)

    def _primitive(self, eqn: Any, inputs: list[Value], where: _Where) -> list[Value]:
        mark = mark_of(str(eqn.source_info.name_stack))
        if mark is not None and eqn.primitive.name == "optimization_barrier":
            self._note_mark(mark, inputs[0], where)
        arrays = _repaired(_bind(eqn, inputs), self._repairs.get(where.key))
        bad = [is_inexact(array) and not is_finite(array) for array in arrays]
        faults, direct = _united(inputs)
        if any(bad):
            if not faults:
                fault = self._new_fault(eqn, inputs, arrays, where)
                if fault.number < 0:
                    return [Value(array) for array in _repaired(arrays, fault.masks)]
                faults = direct = 1 << fault.number
            return self._spread(arrays, bad, faults, direct, where)
        return [Value(array) for array in arrays]

    def _spread(
        self, arrays: Sequence[Any], bad: list[bool], faults: int, direct: int, where: _Where
    ) -> list[Value]:
        """Notes in the values that are not finite which faults made them so."""
        if is_backward(where.scopes):
            self._activate(faults, where.key)
            direct = 0
        return [
            self._spoiled(array, faults, direct) if is_bad else Value(array)
            for array, is_bad in zip(arrays, bad, strict=True)
        ]

    def _activate(self, faults: int, key: Key) -> None:
        for fault in self.faults:
            if faults >> fault.number & 1 and fault.activated is None:
                fault.activated = key

    # -- loops -----------------------------------------------------------------------------------

    def _whole(self, eqn: Any, inputs: list[Value], where: _Where) -> list[Value] | None:
        """Runs a loop as a whole, if that is enough."""
        if where.key in self._prefixes or any(value.faults for value in inputs):
            return None
        arrays = _bind(eqn, inputs)
        if any(is_inexact(array) and not is_finite(array) for array in arrays):
            return None
        return [Value(array) for array in arrays]

    def _step(self, body: Any, inputs: Sequence[Value], where: _Where) -> list[Value]:
        """Runs one step of a loop, in detail if something in it is not finite."""
        faults, direct = _united(inputs)
        loop = where.key[:-1]
        detailed = where.key in self._prefixes or self._spent.get(id(body), 0) < _IN_DETAIL
        if detailed:
            self._spent[id(body)] = self._spent.get(id(body), 0) + self._kept.size(body)
        elif faults:
            count = self._detailed[loop] = self._detailed.get(loop, 0) + 1
            detailed = count <= _STEPS_IN_DETAIL
        if not detailed:
            arrays = self._kept.call(body, [value.array for value in inputs])
            bad = [is_inexact(array) and not is_finite(array) for array in arrays]
            if not any(bad):
                return [Value(array) for array in arrays]
            if faults:
                return self._spread(arrays, bad, faults, direct, where)
        return self._closed(body, inputs, where)

    def _scan(
        self, eqn: Any, inputs: list[Value], where: _Where, num_consts: int, num_carry: int
    ) -> list[Value]:
        params = eqn.params
        if params["length"] * self._kept.size(params["jaxpr"]) > _IN_DETAIL:
            whole = self._whole(eqn, inputs, where)
            if whole is not None:
                return whole
        first, length = num_consts + num_carry, params["length"]
        consts, carry = inputs[:num_consts], inputs[num_consts:first]
        steps = range(length)
        collected: list[list[Value]] = []
        for turn, step in enumerate(reversed(steps) if params.get("reverse") else steps):
            slices = [self._slice(value, step) for value in inputs[first:]]
            inner = _Where((*where.key, turn), where.scopes, (*where.steps, step))
            outputs = self._step(params["jaxpr"], [*consts, *carry, *slices], inner)
            carry = outputs[: len(carry)]
            collected.append(outputs[len(carry) :])
        if params.get("reverse"):
            collected.reverse()
        columns = zip(*collected, strict=True) if collected else ()
        stacked = [self._stack(column) for column in columns]
        if not collected:
            empty = eqn.outvars[len(carry) :]
            stacked = [Value(jnp.zeros(v.aval.shape, v.aval.dtype)) for v in empty]
        return [*carry, *stacked]

    def _slice(self, value: Value, step: int) -> Value:
        array = _sliced(value.array, step)
        if not value.faults or not is_inexact(array) or is_finite(array):
            return Value(array)
        if value.use is not None:
            value.use.used = True
        if value.parts:
            value = value.parts[step]
        return Value(array, value.faults, value.direct, parts=value.parts)

    def _stack(self, column: Sequence[Value]) -> Value:
        array = _stacked([value.array for value in column])
        faults, direct = _united(column)
        if not faults:
            return Value(array)
        parts = [value._replace(array=None) for value in column]
        return self._spoiled(array, faults, direct)._replace(parts=parts)

    def _while(self, eqn: Any, inputs: list[Value], where: _Where) -> list[Value]:
        params = eqn.params
        first = params["cond_nconsts"]
        second = first + params["body_nconsts"]
        limit = _WHILE_STEPS if self._repairs else math.inf
        whole_from = _IN_DETAIL // max(self._kept.size(params["body_jaxpr"]), 1)
        carry, step = inputs[second:], 0
        while True:
            known = [value.array for value in (*inputs[:first], *carry)]
            going = np.asarray(self._kept.call(params["cond_jaxpr"], known)[0])
            if not going.any():
                return list(carry)
            if step >= limit:
                raise UnendingError
            if step == whole_from and not self._repairs:
                whole = self._whole(eqn, [*inputs[:second], *carry], where)
                if whole is not None:
                    return whole
            inner = _Where((*where.key, step), where.scopes, (*where.steps, step))
            new = self._step(params["body_jaxpr"], [*inputs[first:second], *carry], inner)
            carry = new if going.all() else list(map(self._select, [going] * len(new), new, carry))
            step += 1

    def _select(self, going: np.ndarray, new: Value, old: Value) -> Value:
        """Keeps the old value of those elements of a vmapped loop that have ended."""
        mask = going.reshape(going.shape + (1,) * (new.array.ndim - going.ndim))
        array = jnp.where(mask, new.array, old.array)
        faults, direct = _united((new, old))
        if not faults or is_finite(array):
            return Value(array)
        return self._spoiled(array, faults, direct)


def _parts(params: Mapping[str, Any]) -> list[Any]:
    """Lists the programs in the parameters of an operation."""
    values = [
        item
        for value in params.values()
        for item in (value if isinstance(value, (tuple, list)) else (value,))
    ]
    return [
        item for item in values if isinstance(item, (jaxpr_core().Jaxpr, jaxpr_core().ClosedJaxpr))
    ]


def _open(jaxpr: Any) -> Any:
    return getattr(jaxpr, "jaxpr", jaxpr)


def _read(known: Mapping[Any, Value], atom: Any) -> Value:
    return Value(atom.val) if is_literal(atom) else known[atom]


def _united(values: Sequence[Value]) -> tuple[int, int]:
    """Returns the faults of all values, and notes that they are used."""
    faults = direct = 0
    for value in values:
        faults |= value.faults
        direct |= value.direct
        if value.use is not None:
            value.use.used = True
    return faults, direct


def _bind(eqn: Any, inputs: Sequence[Value]) -> list[Any]:
    """Computes one operation."""
    functions, params = bind_arguments(eqn)
    out = eqn.primitive.bind(*functions, *[value.array for value in inputs], **params)
    return list(out) if eqn.primitive.multiple_results else [out]


def _masks(arrays: Sequence[Any]) -> list[Any]:
    return [
        ~np.isfinite(np.asarray(array)) if is_inexact(array) and not is_finite(array) else None
        for array in arrays
    ]


def _repaired(arrays: list[Any], masks: Masks | None) -> list[Any]:
    if masks is None:
        return arrays
    return [
        array
        if mask is None or mask.shape != array.shape
        else jnp.where(mask, jnp.zeros((), array.dtype), array)
        for array, mask in zip(arrays, masks, strict=True)
    ]


@jax.jit
def _sliced(array: Any, step: Any) -> Any:
    return jax.lax.dynamic_index_in_dim(array, step, keepdims=False)


def _stacked(arrays: list[Any]) -> Any:
    """Stacks arrays; on the host, because a program of that many operands compiles slowly."""
    if jnp.issubdtype(arrays[0].dtype, jax.dtypes.extended):
        return jnp.stack(arrays)
    return jnp.asarray(np.stack([np.asarray(array) for array in arrays]))


def _last_uses(jaxpr: Any) -> dict[int, list[Any]]:
    """Returns, for each operation, the values that nothing after it needs."""
    needed = {atom for atom in jaxpr.outvars if not is_literal(atom)}
    seen: set[Any] = set(needed)
    found: dict[int, list[Any]] = {}
    for number in range(len(jaxpr.eqns) - 1, -1, -1):
        eqn = jaxpr.eqns[number]
        for atom in (*eqn.invars, *eqn.outvars):
            if not is_literal(atom) and atom not in seen:
                seen.add(atom)
                found.setdefault(number, []).append(atom)
    return found
