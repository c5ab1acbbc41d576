"""Results of functions that are differentiated: a value that JAX can differentiate, and aux."""

from __future__ import annotations

from typing import Any

from moduli import errors
from moduli._call.function import holds_modules
from moduli._call.given_values import unboxed

__all__ = ["arrays_and_aux", "scalar_and_aux"]


def scalar_and_aux(out: Any, has_aux: bool, transform: str, name: str) -> tuple[Any, Any]:
    """Returns the scalar that a function returned, and aux.

    Args:
      out: what the function returned.
      has_aux: whether that is a pair (value, aux).
      transform: the transform, for messages.
      name: the function's name, for messages.

    Raises:
      StructureError: if it is no pair.
      ShapeError: if the value is no scalar.
    """
    aux = None
    if has_aux:
        if not isinstance(out, (tuple, list)) or len(out) != 2:
            raise errors.StructureError(
                f"{transform}: with has_aux=True {name} must return a pair (value, aux); it "
                f"returned a {type(out).__name__}"
                + (f" of {len(out)}" if isinstance(out, (tuple, list)) else "")
            )
        out, aux = out
    out = unboxed(out)
    if out is None or isinstance(out, (tuple, list, dict)):
        raise errors.ShapeError(
            f"{transform}: {name} must return a scalar (shape ()); it returned "
            + (
                "None: is its `return` missing?"
                if out is None
                else f"a {type(out).__name__}; to return more than the loss write `return loss, "
                f"more` and `{transform}(..., has_aux=True)`"
            )
        )
    shape = getattr(out, "shape", ())
    if shape != ():
        raise errors.ShapeError(
            f"{transform}: {name} must return a scalar (shape ()); it returned shape {shape}. "
            "Reduce it, as with `.mean()` or `.sum()`"
        )
    return out, aux


def arrays_and_aux(out: Any, has_aux: bool, transform: str, name: str) -> tuple[Any, Any]:
    """Returns the pytree of arrays that a function returned, and aux.

    Args:
      out: what the function returned.
      has_aux: whether that is a pair (result, aux).
      transform: the transform, for messages.
      name: the function's name, for messages.

    Raises:
      StructureError: if it is no pair, or the result holds a module.
    """
    aux = None
    if has_aux:
        if not isinstance(out, (tuple, list)) or len(out) != 2:
            raise errors.StructureError(
                f"{transform}: with has_aux=True {name} must return a pair "
                f"(result, aux); it returned a {type(out).__name__}"
            )
        out, aux = out
    out = unboxed(out)
    if holds_modules(out):
        raise errors.StructureError(
            f"{transform}: {name} returns a module or a Variable as its result, "
            "which has no cotangent of its own; return its values (`moduli.state(module)`), or "
            "return it as aux with has_aux=True"
        )
    return out, aux
