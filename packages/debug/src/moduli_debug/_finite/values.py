"""Values of a run: an array, and the faults from which it comes if it is not finite."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from moduli_debug._finite.statistics import is_finite, is_inexact

__all__ = ["Masks", "Use", "Value", "are_bad", "masks_of", "repaired", "united"]

Masks = Sequence[Any]
"""For each output of an operation where it was not finite, or None."""


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


def are_bad(arrays: Sequence[Any]) -> list[bool]:
    """Returns for each array whether it holds NaN or an infinity."""
    return [is_inexact(array) and not is_finite(array) for array in arrays]


def united(values: Sequence[Value]) -> tuple[int, int]:
    """Returns the faults of all values, and notes that they are used."""
    faults = direct = 0
    for value in values:
        faults |= value.faults
        direct |= value.direct
        if value.use is not None:
            value.use.used = True
    return faults, direct


def masks_of(arrays: Sequence[Any]) -> list[Any]:
    """Returns for each array where it is not finite; None if it is finite."""
    return [
        ~np.isfinite(np.asarray(array)) if is_bad else None
        for array, is_bad in zip(arrays, are_bad(arrays), strict=True)
    ]


def repaired(arrays: list[Any], masks: Masks | None) -> list[Any]:
    """Returns the arrays with zeros where the masks say."""
    if masks is None:
        return arrays
    return [
        array
        if mask is None or mask.shape != array.shape
        else jnp.where(mask, jnp.zeros((), array.dtype), array)
        for array, mask in zip(arrays, masks, strict=True)
    ]
