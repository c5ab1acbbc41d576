"""Arrays of a state's own: where it would share one with the parameters, it holds a copy.

Some transformations begin with the parameters, and some put one array in two places. A step to
which parameters and state are donated must not be given a buffer twice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

__all__ = ["copy_if_shared"]


def copy_if_shared(params: Any) -> Callable[[Any], Any]:
    """Returns a function that copies an array of the parameters, and one that it was given before.

    Args:
      params: a pytree of arrays; others are left as they are.
    """
    taken = {id(array) for array in jax.tree.leaves(params)}
    seen = []  # an id is that of an object that lives

    def own(value: Any) -> Any:
        if isinstance(value, jax.Array) and id(value) in taken:
            value = jnp.copy(value)
        taken.add(id(value))
        seen.append(value)
        return value

    return own
