"""Which dtypes hold all numbers of which."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

__all__ = ["holds", "is_real", "rounded"]


def holds(wide: np.dtype, narrow: np.dtype) -> bool:
    """Returns whether every number of one dtype is one of another, of the same kind.

    Args:
      wide: the dtype to which numbers would go.
      narrow: the one that they have.

    Example:
      >>> import numpy as np, ml_dtypes
      >>> from moduli_interop._weights.dtypes import holds
      >>> half, brain = np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)
      >>> holds(np.dtype(np.float32), brain), holds(half, brain), holds(brain, half)
      (True, False, False)
    """
    if wide == narrow:
        return True
    if jnp.issubdtype(wide, np.floating) and jnp.issubdtype(narrow, np.floating):
        a, b = jnp.finfo(wide), jnp.finfo(narrow)
        return bool(a.nmant >= b.nmant and a.maxexp >= b.maxexp and a.minexp <= b.minexp)
    if jnp.issubdtype(wide, np.integer) and jnp.issubdtype(narrow, np.integer):
        one, other = jnp.iinfo(wide), jnp.iinfo(narrow)
        return bool(one.min <= other.min and one.max >= other.max)
    if jnp.issubdtype(wide, np.complexfloating) and jnp.issubdtype(narrow, np.complexfloating):
        return wide.itemsize >= narrow.itemsize
    return False


def is_real(dtype: np.dtype) -> bool:
    """Returns whether the numbers of a dtype have no imaginary part."""
    return not jnp.issubdtype(dtype, np.complexfloating)


def rounded(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Returns numbers in another dtype, rounded where it does not hold them.

    Args:
      array: the numbers.
      dtype: the dtype, complex if theirs is.

    Raises:
      ValueError: if a number is larger than any of the dtype, or is none and that has no NaN.

    Example:
      >>> import numpy as np
      >>> from moduli_interop._weights.dtypes import rounded
      >>> rounded(np.array([1.25]), np.dtype(np.float16))
      array([1.25], dtype=float16)
    """
    with np.errstate(all="ignore"):
        new = np.asarray(array, dtype, order="C")
        if holds(dtype, array.dtype):
            return new
        if jnp.issubdtype(dtype, np.inexact):
            bad = ~np.isfinite(new) & np.isfinite(array)
        else:
            back = new.astype(array.dtype)
            whole = not jnp.issubdtype(array.dtype, np.floating)
            bad = back != array if whole else ~(abs(array.astype(np.float64) - back) < 1)
    if np.any(bad):
        first = array[bad].reshape(-1)[0]
        raise ValueError(f"it holds {first}, to which no number of {dtype.name} is near")
    return new
