"""What can be wrong with names and weights."""

from __future__ import annotations

from moduli.errors import ModuliError
from moduli_interop._errors import CheckpointMismatchError

__all__ = ["NameMapError", "WeightsMismatchError"]


class NameMapError(ModuliError, ValueError):
    """A map of names cannot be turned round, or is not written as one."""


class WeightsMismatchError(CheckpointMismatchError):
    """Tensors do not fit a model; nothing was loaded.

    Attributes:
      problems: one line for each problem; equal ones of repeated blocks are one.
    """
