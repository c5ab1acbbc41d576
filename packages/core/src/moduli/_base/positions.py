"""Positions of arguments in options of transforms: ``argnums``, ``static_argnums`` and the like."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any

__all__ = ["as_positions", "is_several"]


def is_several(value: Any) -> bool:
    """Returns whether an option is a sequence, an array with axes or the like; not one number."""
    return isinstance(value, Iterable) and getattr(value, "ndim", 1) != 0


def as_positions(value: Any, *, kept: tuple[type, ...] = ()) -> tuple[Any, ...]:
    """Returns the positions of an option as Python's ints.

    Args:
      value: one position or several, of Python, NumPy or JAX; None for none.
      kept: classes of items that stay as they are.

    Raises:
      TypeError: an item is no integer.

    Example:
      >>> import numpy as np
      >>> from moduli._base.positions import as_positions
      >>> as_positions(np.int64(1)), as_positions(np.array([0, 2])), as_positions(range(2))
      ((1,), (0, 2), (0, 1))
    """
    if value is None:
        return ()
    items = value if is_several(value) and not isinstance(value, kept) else (value,)
    return tuple(item if isinstance(item, kept) else operator.index(item) for item in items)
