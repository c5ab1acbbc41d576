"""A layer that divides by the largest absolute value it has seen."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import moduli

__all__ = ["RunningScale", "RunningScaleMax"]


class RunningScaleMax(moduli.Variable[jax.Array]):
    """The largest absolute value seen so far: a kind of its own, for filters."""


class RunningScale(moduli.Module):
    """Divides by the largest absolute value seen in training.

    Attributes:
      max: the largest value, of shape ().
      use_running_scale_max: divide by it without changing it; ``eval()`` sets this.

    Example:
      >>> import jax.numpy as jnp
      >>> from moduli_running_scale import RunningScale
      >>> RunningScale()(jnp.array([2.0, -4.0])).tolist()
      [0.5, -1.0]
    """

    def __init__(self) -> None:
        self.max = RunningScaleMax(jnp.zeros(()))
        self.use_running_scale_max = False

    def __call__(self, x: jax.Array) -> jax.Array:
        """Scales an array of any shape; the result has the same shape."""
        if not self.use_running_scale_max:
            seen = jnp.abs(x).max().astype(jnp.float32)
            self.max.value = jnp.maximum(self.max.value, seen)
        largest = self.max.value
        return x / jnp.where(largest > 0, largest, 1).astype(x.dtype)
