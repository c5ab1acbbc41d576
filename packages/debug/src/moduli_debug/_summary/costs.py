"""FLOPs by XLA's cost analysis, sorted by the calls of modules in which they stand.

Every call of a module runs in a name scope of its own, so each equation of a jaxpr says in which
calls it stands, also in the backward pass. Equations of the same calls go to XLA as one program,
which is lowered and not compiled; equal groups go once. XLA's own count takes the body of a loop as
one step, so loops are opened here, and the count of a body is multiplied by the number of steps.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

__all__ = ["Costs", "Work", "find_work", "scope_name"]

_SCOPE = re.compile(r"moduli-call-(\d+)")
_CALLS = frozenset(
    (
        *("jit", "pjit", "closed_call", "core_call", "remat", "remat2", "checkpoint"),
        *("custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr", "shard_map", "xla_pmap"),
        *("custom_lin", "core_closed_call", "xla_call", "named_call"),
    )
)
"""Primitives that run the jaxpr in their parameters once (on each device)."""

Calls = frozenset[int]


def scope_name(call: int) -> str:
    """Returns the name of the scope in which a call of a module runs."""
    return f"moduli-call-{call}"


class _Group(NamedTuple):
    """Equations of the same calls that run equally often."""

    calls: Calls
    times: int
    equations: list[Any]


class Work:
    """What a program does, by calls of modules.

    Attributes:
      groups: equations by calls and by how often they run.
      runs: how often each call runs in one run of the program, by its number.
      notes: what could not be counted, for people to read.
    """

    def __init__(self) -> None:
        self.groups: dict[tuple[Calls, int], _Group] = {}
        self.runs: dict[int, int] = {}
        self.notes: dict[str, None] = {}

    def flops(self, costs: Costs) -> Iterator[tuple[Calls, float]]:
        """Yields (calls, FLOPs) for each group; every operation is in one group.

        Args:
          costs: counts programs, and remembers them.
        """
        for group in self.groups.values():
            yield group.calls, group.times * costs.of(group.equations, self.notes)

    def put(self, calls: Calls, times: int, equation: Any) -> None:
        """Adds an equation."""
        self._group(calls, times).equations.append(equation)

    def add(self, other: Work) -> None:
        """Adds another program's work."""
        for group in other.groups.values():
            self._group(group.calls, group.times).equations.extend(group.equations)
        self.notes.update(other.notes)

    def _group(self, calls: Calls, times: int) -> _Group:
        return self.groups.setdefault((calls, times), _Group(calls, times, []))


def find_work(jaxpr: Any, costs: Costs) -> Work:
    """Sorts the equations of a program by the calls of modules in which they stand.

    Args:
      jaxpr: the program.
      costs: compares the branches of conditions.
    """
    work = Work()
    _walk(jaxpr.jaxpr, None, _At(frozenset(), steps=1, devices=1), work, costs)
    return work


class _At(NamedTuple):
    """Where a jaxpr stands.

    Attributes:
      calls: the calls of modules around it.
      steps: how often it runs.
      devices: on how many devices.
    """

    calls: Calls
    steps: int
    devices: int


def _walk(jaxpr: Any, used: list[bool] | None, at: _At, work: Work, costs: Costs) -> None:
    """Adds the work of a jaxpr.

    Args:
      jaxpr: the jaxpr.
      used: which of its outputs are used; None if all are.
      at: where it stands.
      work: gets it.
      costs: compares the branches of conditions.
    """
    for equation, needed in _alive(jaxpr, used):
        calls = at.calls.union(map(int, _SCOPE.findall(str(equation.source_info.name_stack))))
        for call in calls:
            work.runs[call] = min(at.steps, work.runs.get(call, at.steps))
        name, params, here = equation.primitive.name, equation.params, at._replace(calls=calls)
        if name == "scan":
            inside = here._replace(steps=at.steps * params["length"])
            _walk(params["jaxpr"].jaxpr, None, inside, work, costs)
        elif name == "while":
            work.notes["the steps of a while loop are not known, so each counts as one step"] = None
            for inner in _inner_jaxprs(params):
                _walk(inner, None, here, work, costs)
        elif name == "cond":
            branches = [Work() for _ in params["branches"]]
            for branch, inner in zip(branches, _inner_jaxprs(params), strict=True):
                branch.runs = work.runs
                _walk(inner, needed, here, branch, costs)
            work.add(max(branches, key=lambda branch: sum(f for _, f in branch.flops(costs))))
            work.notes["of the branches of a condition the most expensive one counts"] = None
        elif name in _CALLS:
            copies = getattr(params.get("mesh"), "size", 1) * params.get("global_axis_size", 1)
            inside = here._replace(devices=at.devices * copies)
            for inner in _inner_jaxprs(params):
                _walk(
                    inner,
                    needed if len(inner.outvars) == len(needed) else None,
                    inside,
                    work,
                    costs,
                )
        else:
            work.put(calls, at.steps * at.devices, equation)


def _alive(jaxpr: Any, used: list[bool] | None) -> list[tuple[Any, list[bool]]]:
    """Returns the equations that matter for a result, and which of their outputs do.

    JAX leaves out the others when it lowers a program; differentiation makes many.
    """
    outputs = jaxpr.outvars
    keep = [True] * len(outputs) if used is None else used
    alive = {id(variable) for variable, use in zip(outputs, keep, strict=True) if use}
    found = []
    for equation in reversed(jaxpr.eqns):
        needed = [id(variable) in alive for variable in equation.outvars]
        if any(needed) or equation.effects:
            alive.update(map(id, equation.invars))
            found.append((equation, needed))
    return found[::-1]


def _inner_jaxprs(params: dict[str, Any]) -> Iterator[Any]:
    for value in params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            jaxpr = getattr(item, "jaxpr", item)  # of a closed one
            if hasattr(jaxpr, "eqns"):
                yield jaxpr


class Costs:
    """Counts FLOPs of equations, and remembers what it has counted.

    Args:
      wanted: False counts nothing: every cost is 0.
    """

    def __init__(self, wanted: bool = True) -> None:
        self._wanted = wanted
        self._known: dict[tuple[Any, ...], float] = {}

    def of(self, equations: list[Any], notes: dict[str, None]) -> float:
        """Returns the FLOPs of a list of equations.

        Args:
          equations: the equations; their order does not matter.
          notes: gets a text for each kind of equation that XLA cannot count alone.
        """
        if not self._wanted or not equations:
            return 0.0
        keyed = sorted(((_key(e), e) for e in equations), key=lambda pair: hash(pair[0]))
        key = tuple(key for key, _ in keyed)
        if key not in self._known:
            self._known[key] = self._count([equation for _, equation in keyed], notes)
        return self._known[key]

    def _count(self, equations: list[Any], notes: dict[str, None]) -> float:
        try:
            return _flops(equations)
        except Exception:  # what a primitive needs of its surroundings nobody can know
            if len(equations) == 1:
                name = equations[0].primitive.name
                notes[f"XLA counts no FLOPs of {name!r} alone, so it counts as 0"] = None
                return 0.0
        return sum(self.of([equation], notes) for equation in equations)


def _flops(equations: list[Any]) -> float:
    def program(operands: list[list[Any]]) -> list[Any]:
        results = []
        for equation, values in zip(equations, operands, strict=True):
            rest = iter(values)
            inputs = [_number(v) if _is_literal(v) else next(rest) for v in equation.invars]
            results.append(equation.primitive.bind(*inputs, **equation.params))
        return results

    operands = [[_abstract(v.aval) for v in e.invars if not _is_literal(v)] for e in equations]
    analysis = jax.jit(program).lower(operands).cost_analysis()
    if analysis is None:
        raise NotImplementedError("this backend has no cost analysis")
    return max(0.0, float(analysis.get("flops", 0.0)))


def _is_literal(variable: Any) -> bool:
    return hasattr(variable, "val")


def _number(literal: Any) -> Any:
    """The value of a literal, with which XLA may make an operation simpler."""
    return np.asarray(literal.val, literal.aval.dtype)


def _abstract(aval: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype, weak_type=aval.weak_type)


def _key(equation: Any) -> tuple[Any, ...]:
    """Returns what equations of equal cost have in common."""
    operands = tuple(
        f"{variable.aval} {variable.val if _is_literal(variable) else ''}"
        for variable in equation.invars
    )
    return equation.primitive.name, operands, tuple(_hashables(equation.params.items()))


def _hashables(items: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    for name, value in items:
        try:
            hash(value)
        except TypeError:
            yield name, id(value)  # the equation keeps it alive
        else:
            yield name, value
