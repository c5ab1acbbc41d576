"""Broadcasting said in so many words: ``jax_numpy_rank_promotion="raise"`` lets no other pass.

JAX inserts the same operation where it is left to promote ranks, so the programs are the same.
"""

from __future__ import annotations

import jax
from jax import lax

__all__ = ["at_end"]


def at_end(array: jax.Array, ndim: int) -> jax.Array:
    """Gives an array axes of size one in front, so that its own axes are the last of ``ndim``.

    Args:
      array: the array, such as a bias.
      ndim: how many axes the array has to which it is added.

    Returns:
      The array with ``ndim`` axes; itself if it has so many, or more.
    """
    missing = ndim - array.ndim
    return lax.expand_dims(array, range(missing)) if missing > 0 else array
