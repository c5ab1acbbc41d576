"""Which dtypes hold all numbers of which."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

__all__ = ["holds"]


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
