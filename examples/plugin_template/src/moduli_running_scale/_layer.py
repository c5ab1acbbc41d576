"""A layer that divides by the largest absolute value it has seen."""

from __future__ import annotations

import jax
import jax.numpy as jnp

import moduli

__all__ = ["RunningMax", "RunningScale"]


class RunningMax(moduli.Variable):
    """The largest absolute value seen so far; a kind of its own, so that filters can find it."""


class RunningScale(moduli.Module):
    """Divides by the largest absolute value seen in training.

    Attributes:
      max: RunningMax of shape ().
      use_running_max: divide by the stored maximum without changing it; ``model.eval()`` sets it.

    Example:
      >>> import jax.numpy as jnp
      >>> from moduli_running_scale import RunningScale
      >>> RunningScale()(jnp.array([2.0, -4.0])).tolist()
      [0.5, -1.0]
    """

    def __init__(self) -> None:
        self.max = RunningMax(jnp.zeros(()))
        self.use_running_max = False

    def __call__(self, x: jax.Array) -> jax.Array:
        """Scales an array of any shape; the result has the same shape."""
        if not self.use_running_max:
            self.max.value = jnp.maximum(self.max.value, jnp.abs(x).max().astype(jnp.float32))
        return x / self.max.value.astype(x.dtype)
