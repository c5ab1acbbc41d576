"""What pytest prints when an ``assert`` compares two States, structures or modules."""

from __future__ import annotations

import sys
from typing import Any

__all__ = ["pytest_assertrepr_compare"]


def pytest_assertrepr_compare(op: str, left: Any, right: Any) -> list[str] | None:
    """Explains ``==`` of two States and two GraphDefs path by path, and what it asks of modules."""
    moduli = sys.modules.get("moduli")
    if op != "==" or moduli is None:
        return None
    if isinstance(left, moduli.State) and isinstance(right, moduli.State):
        from moduli.testing._differences import state_differences

        lines = state_differences(left, right) or ["in NaN alone, which is not equal to itself"]
        return ["two States differ:", *(f"  {line}" for line in lines)]
    if isinstance(left, moduli.GraphDef) and isinstance(right, moduli.GraphDef):
        from moduli.testing._differences import structure_differences

        lines = structure_differences(left, right).splitlines()
        return ["two structures differ:", *(f"  {line}" for line in lines)]
    if isinstance(left, moduli.Pytree) and isinstance(right, moduli.Pytree):
        return [
            f"a {type(left).__name__} and a {type(right).__name__} that are not the same object:",
            "  modules are equal to themselves alone;",
            "  moduli.testing.assert_equal_graphs(left, right) compares structure and values",
        ]
    return None
