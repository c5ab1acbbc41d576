"""Average: the mean of all values seen."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from moduli_train._metrics.arguments import masked_sum_and_count, values_named
from moduli_train._metrics.metric import Metric
from moduli_train._variables import MetricState

__all__ = ["Average"]


class Average(Metric):
    """The mean of all values seen since the last reset; NaN before the first.

    Args:
      argname: the keyword argument of ``update`` that holds the values.

    Attributes:
      total: their sum, float32.
      count: their number, int32.

    Example:
      >>> import moduli as nnx, jax.numpy as jnp
      >>> loss = nnx.metrics.Average("loss")
      >>> loss.update(loss=jnp.array([1, 2, 3, 4]))
      >>> loss.update(loss=jnp.array([3, 2, 1, 0]))
      >>> float(loss.compute())
      2.0
      >>> loss.reset()
      >>> float(loss.compute())
      nan
    """

    def __init__(self, argname: str = "values"):
        self.argname = argname
        self.total = MetricState(jnp.zeros((), jnp.float32))
        self.count = MetricState(jnp.zeros((), jnp.int32))

    def reset(self) -> None:
        """Forgets all values."""
        self.total.value = jnp.zeros((), jnp.float32)
        self.count.value = jnp.zeros((), jnp.int32)

    def update(self, mask: Any = None, **kwargs: Any) -> None:
        """Takes in values.

        Args:
          mask: which values count (booleans, or 0 and 1); broadcasts to their shape. All by
            default.
          **kwargs: the values under the name ``argname``; other names are ignored.

        Raises:
          VariableError: (a TypeError) if the values were not given.
          ShapeError: (a ValueError) if the mask does not broadcast to the values.
        """
        total, count = masked_sum_and_count(values_named(self, self.argname, kwargs), mask)
        self.total.value = self.total.value + total
        self.count.value = self.count.value + count

    def compute(self) -> jax.Array:
        """Returns the mean, float32."""
        return self.total.value / self.count.value.astype(jnp.float32)
