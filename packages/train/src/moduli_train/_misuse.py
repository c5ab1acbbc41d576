"""What is passed to an optimizer in the wrong place, and the errors that say what to write."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import moduli
from moduli.errors import VariableError

__all__ = ["MISSING", "check_transformation", "check_update"]

MISSING: Any = object()
"""The default of an argument that has to be given."""


def check_transformation(model: Any, tx: Any) -> None:
    """Raises if ``tx`` is no gradient transformation.

    Raises:
      VariableError: (a TypeError) that says what to write.
    """
    if callable(getattr(tx, "init", None)) and callable(getattr(tx, "update", None)):
        return
    if callable(getattr(model, "init", None)) and callable(getattr(model, "update", None)):
        hint = "model and transformation are swapped: write `Optimizer(model, tx, wrt=nnx.Param)`"
    elif isinstance(tx, (int, float)) or hasattr(tx, "dtype"):
        hint = "a learning rate goes to a transformation: `optax.adam(1e-3)`"
    elif callable(tx):
        name = getattr(tx, "__name__", "")
        known = name.isidentifier() and str(getattr(tx, "__module__", "")).startswith("optax")
        hint = (
            f"call it, as in `optax.{name}(...)`; a learning rate schedule goes to a "
            "transformation: `optax.adam(schedule)`"
            if known
            else "call a transformation, as in `optax.adam(1e-3)`; a schedule is its argument"
        )
    else:
        hint = "pass one, as in `optax.adam(1e-3)`"
    raise VariableError(f"`tx` is {_described(tx)}, no gradient transformation; {hint}")


def check_update(model: Any, grads: Any, kwargs: Mapping[str, Any]) -> None:
    """Raises if the arguments of ``update`` are missing or swapped.

    Raises:
      VariableError: (a TypeError) that says what to write.
    """
    write = "write `optimizer.update(model, grads)`"
    if model is MISSING or grads is MISSING:
        named = sorted({"model", "grads"} & set(kwargs))
        if named:
            problem = f"got {' and '.join(named)} by keyword; both are given by position"
        elif model is MISSING:
            problem = "got neither model nor gradients"
        else:
            problem = f"got {_described(model)} alone; both model and gradients are needed"
        write += " (an optimizer that holds its model is `nnx.ModelAndOptimizer`)"
    elif grads is model:
        problem = f"got {_described(model)} as model and as gradients"
    elif _is_state(model) and isinstance(grads, moduli.Module):
        problem = f"got {_described(model)} as model and {_described(grads)} as gradients: swapped"
    elif grads is None:
        problem = "got None as gradients"
    else:
        return
    raise VariableError(f"Optimizer.update: {problem}; {write}")


def _is_state(value: Any) -> bool:
    return isinstance(value, Mapping) and not isinstance(value, moduli.Pytree)  # nor a Dict


def _described(value: Any) -> str:
    name = getattr(value, "__name__", None) if callable(value) else None
    return f"`{name}`" if name else f"a {type(value).__name__}"
