"""Loops of a program, step by step as far as something in them is not finite."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moduli_debug._finite.faults import Faults, Key, Where
from moduli_debug._finite.parts import Kept, compute
from moduli_debug._finite.statistics import is_finite, is_inexact
from moduli_debug._finite.values import Value, are_bad, united

__all__ = ["Loops", "UnendingError"]

_IN_DETAIL = 5000  # operations of a loop that are run one by one before a step of it is compiled
_STEPS_IN_DETAIL = 64  # of a loop with values that are not finite, run one by one in any case
_WHILE_STEPS = 10_000  # of a while loop whose values were repaired, and which may not end


class UnendingError(Exception):
    """A while loop does not end with repaired values."""


class Loops:
    """Runs the loops of one run.

    Args:
      faults: the faults of the run.
      kept: what is compiled of the program.
      repairs: the keys of the faults that are repaired.
      run_part: runs a part of the program in detail: ``run_part(part, inputs, where)``.
    """

    def __init__(
        self,
        faults: Faults,
        kept: Kept,
        repairs: Collection[Key],
        run_part: Callable[[Any, Sequence[Value], Where], list[Value]],
    ):
        self._faults, self._kept, self._run_part = faults, kept, run_part
        self._repairing = bool(repairs)
        self._inside = {key[:n] for key in repairs for n in range(len(key) + 1)}
        self._detailed: dict[Key, int] = {}
        self._spent: dict[int, int] = {}

    def _whole(self, eqn: Any, inputs: list[Value], where: Where) -> list[Value] | None:
        """Runs a loop as a whole, if that is enough."""
        if where.key in self._inside or any(value.faults for value in inputs):
            return None
        arrays = compute(eqn, [value.array for value in inputs])
        if any(are_bad(arrays)):
            return None
        return [Value(array) for array in arrays]

    def _step(self, body: Any, inputs: Sequence[Value], where: Where) -> list[Value]:
        """Runs one step of a loop, in detail if something in it is not finite."""
        faults, direct = united(inputs)
        loop = where.key[:-1]
        detailed = where.key in self._inside or self._spent.get(id(body), 0) < _IN_DETAIL
        if detailed:
            self._spent[id(body)] = self._spent.get(id(body), 0) + self._kept.size(body)
        elif faults:
            count = self._detailed[loop] = self._detailed.get(loop, 0) + 1
            detailed = count <= _STEPS_IN_DETAIL
        if not detailed:
            arrays = self._kept.call(body, [value.array for value in inputs])
            bad = are_bad(arrays)
            if not any(bad):
                return [Value(array) for array in arrays]
            if faults:
                return self._faults.spread(arrays, bad, faults, direct, where)
        return self._run_part(body, inputs, where)

    def scan(
        self, eqn: Any, inputs: list[Value], where: Where, num_consts: int, num_carry: int
    ) -> list[Value]:
        """Runs a ``scan``."""
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
            inner = Where((*where.key, turn), where.scopes, (*where.steps, step))
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
        faults, direct = united(column)
        if not faults:
            return Value(array)
        parts = [value._replace(array=None) for value in column]
        return self._faults.spoiled(array, faults, direct)._replace(parts=parts)

    def repeat(self, eqn: Any, inputs: list[Value], where: Where) -> list[Value]:
        """Runs a ``while``."""
        params = eqn.params
        first = params["cond_nconsts"]
        second = first + params["body_nconsts"]
        limit = _WHILE_STEPS if self._repairing else math.inf
        whole_from = _IN_DETAIL // max(self._kept.size(params["body_jaxpr"]), 1)
        carry, step = inputs[second:], 0
        while True:
            known = [value.array for value in (*inputs[:first], *carry)]
            going = np.asarray(self._kept.call(params["cond_jaxpr"], known)[0])
            if not going.any():
                return list(carry)
            if step >= limit:
                raise UnendingError
            if step == whole_from and not self._repairing:
                whole = self._whole(eqn, [*inputs[:second], *carry], where)
                if whole is not None:
                    return whole
            inner = Where((*where.key, step), where.scopes, (*where.steps, step))
            new = self._step(params["body_jaxpr"], [*inputs[first:second], *carry], inner)
            carry = new if going.all() else list(map(self._select, [going] * len(new), new, carry))
            step += 1

    def _select(self, going: np.ndarray, new: Value, old: Value) -> Value:
        """Keeps the old value of those elements of a vmapped loop that have ended."""
        mask = going.reshape(going.shape + (1,) * (new.array.ndim - going.ndim))
        array = jnp.where(mask, new.array, old.array)
        faults, direct = united((new, old))
        if not faults or is_finite(array):
            return Value(array)
        return self._faults.spoiled(array, faults, direct)


@jax.jit
def _sliced(array: Any, step: Any) -> Any:
    return jax.lax.dynamic_index_in_dim(array, step, keepdims=False)


def _stacked(arrays: list[Any]) -> Any:
    """Stacks arrays; on the host, because a program of that many operands compiles slowly."""
    if jnp.issubdtype(arrays[0].dtype, jax.dtypes.extended):
        return jnp.stack(arrays)
    return jnp.asarray(np.stack([np.asarray(array) for array in arrays]))
