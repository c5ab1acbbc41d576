"""Parts of a program: their size, their operations, and running one as a whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax

from moduli_debug._compat import bind_arguments, is_literal, jaxpr_core

if TYPE_CHECKING:
    from jax.extend import core

__all__ = ["Kept", "compute", "last_uses", "open_jaxpr"]


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
        jaxpr = open_jaxpr(jaxpr)
        size = self._sizes.get(id(jaxpr))
        if size is None:
            size = 0
            for eqn in jaxpr.eqns:
                inner = [self.size(part) for part in _parts(eqn.params)]
                size += max(sum(inner), 1) * int(eqn.params.get("length", 1))
            self._sizes[id(jaxpr)] = size
        return size


def open_jaxpr(jaxpr: Any) -> Any:
    """Returns a part of the program without its constants."""
    return getattr(jaxpr, "jaxpr", jaxpr)


def compute(eqn: Any, arrays: Sequence[Any]) -> list[Any]:
    """Computes one operation."""
    functions, params = bind_arguments(eqn)
    out = eqn.primitive.bind(*functions, *arrays, **params)
    return list(out) if eqn.primitive.multiple_results else [out]


def last_uses(jaxpr: Any) -> dict[int, list[Any]]:
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
