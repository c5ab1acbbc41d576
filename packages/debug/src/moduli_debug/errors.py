"""Errors that only moduli-debug raises."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from moduli.errors import ModuliError

if TYPE_CHECKING:
    from moduli_debug._finite.statistics import ArrayStatistics

__all__ = ["NonFiniteError", "SownGrowthWarning", "UncapturedWarning"]


class NonFiniteError(ModuliError, FloatingPointError):
    """A function gave NaN or an infinity; ``moduli.check_finite`` says where it comes from.

    Attributes:
      path: where the module stands that made it, from its root: ``("blocks", 2, "norm")``, and
        ``()`` for the root itself. None if it was made outside of every module, or if the search
        could not look inside the function. With ``where="parameter"`` in the forward pass the path
        of the Variable that was not finite to begin with.
      module_type: its class; that of the root if an argument was not finite to begin with.
      argument: which argument the path starts from, as text; None outside of every module.
      number: how many calls of the module came before, None without a module.
      direction: ``"forward"`` or ``"backward"``.
      where: ``"output"`` in the forward pass. ``"input"`` if an argument of the function was not
        finite to begin with, and in the backward pass if the gradient of the module's input is not.
        ``"parameter"`` if a Variable was not finite to begin with, and in the backward pass if it
        is only gradients of what the module itself holds. None if nothing is known.
      step: in which step of the innermost loop around it (``scan``, ``while_loop``, ``fori_loop``),
        None outside of loops. A backward pass counts the steps as the forward pass does.
      steps: the same for each loop around it, the outermost first.
      inputs: statistics of the module's inputs, by place.
      outputs: statistics of its outputs. Without a module, of the operation, as for ``inputs``.
      output_gradients: in the backward pass, of the gradients that came to its outputs.
      input_gradients: in the backward pass, of the gradients that left at its inputs.
      operation: the operation that made it, such as ``"log"``; None if it is an argument.
      source: where that stands in the user's program, ``"model.py:12 (in __call__)"``, or None.
      operands: statistics of what the operation got.
      results: statistics of what it gave.
      reached: which outputs of the function are not finite, as text.
    """

    path: tuple[Any, ...] | None = None
    module_type: type[Any] | None = None
    argument: str | None = None
    number: int | None = None
    direction: Literal["forward", "backward"] | None = None
    where: Literal["input", "output", "parameter"] | None = None
    step: int | None = None
    steps: tuple[int, ...] = ()
    inputs: tuple[ArrayStatistics, ...] = ()
    outputs: tuple[ArrayStatistics, ...] = ()
    output_gradients: tuple[ArrayStatistics, ...] = ()
    input_gradients: tuple[ArrayStatistics, ...] = ()
    operation: str | None = None
    source: str | None = None
    operands: tuple[ArrayStatistics, ...] = ()
    results: tuple[ArrayStatistics, ...] = ()
    reached: tuple[str, ...] = ()


class SownGrowthWarning(UserWarning):
    """A sown tuple grows with every call, because nothing captures or pops it."""


class UncapturedWarning(UserWarning):
    """A value is sown while a capture runs that does not capture its kind (in strict mode)."""
