"""Welford: mean and spread of a stream of values, computed stably."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from moduli_train._metrics.arguments import values_named
from moduli_train._metrics.metric import Metric
from moduli_train._variables import MetricState

__all__ = ["Statistics", "Welford"]


class Statistics(NamedTuple):
    """What :class:`Welford` computes.

    Attributes:
      mean: the mean of the values.
      standard_error_of_mean: standard deviation over the square root of the number of values.
      standard_deviation: that of the values themselves (division by their number).
    """

    mean: jax.Array
    standard_error_of_mean: jax.Array
    standard_deviation: jax.Array


class Welford(Metric):
    """Mean and standard deviation of all values seen, without keeping them.

    Batches are combined by Chan's formula, which does not lose digits when the mean is large:
    with sizes :math:`a, b`, means differing by :math:`d` and sums of squares :math:`A, B`, the sum
    of squares of both is :math:`A + B + d^2 a b / (a + b)`.

    Args:
      argname: the keyword argument of ``update`` that holds the values.

    Example:
      >>> import moduli as nnx, jax.numpy as jnp
      >>> loss = nnx.metrics.Welford()
      >>> loss.update(values=jnp.array([1.0, 2.0, 3.0, 4.0]))
      >>> loss.update(values=jnp.array([3.0, 2.0, 1.0, 0.0]))
      >>> statistics = loss.compute()
      >>> float(statistics.mean), round(float(statistics.standard_deviation), 4)
      (2.0, 1.2247)

    Reference:
      Chan, Golub, LeVeque, "Updating formulae and a pairwise algorithm for computing sample
      variances", 1979.
    """

    def __init__(self, argname: str = "values"):
        self.argname = argname
        self.count = MetricState(jnp.zeros((), jnp.int32))
        self.mean = MetricState(jnp.zeros((), jnp.float32))
        self.m2 = MetricState(jnp.zeros((), jnp.float32))

    def reset(self) -> None:
        """Forgets all values."""
        self.count.value = jnp.zeros((), jnp.int32)
        self.mean.value = jnp.zeros((), jnp.float32)
        self.m2.value = jnp.zeros((), jnp.float32)

    def update(self, **kwargs: Any) -> None:
        """Takes in values.

        Args:
          **kwargs: the values under the name ``argname``; other names are ignored.

        Raises:
          VariableError: (a TypeError) if the values were not given.
        """
        values = jnp.asarray(values_named(self, self.argname, kwargs)).astype(jnp.float32)
        if values.size == 0:
            return
        old = self.count.value.astype(jnp.float32)
        size = jnp.asarray(values.size, jnp.float32)
        difference = values.mean() - self.mean.value
        self.mean.value = self.mean.value + difference * size / (old + size)
        spread = values.var() * size + difference**2 * old * size / (old + size)
        self.m2.value = self.m2.value + spread
        self.count.value = self.count.value + values.size

    def compute(self) -> Statistics:
        """Returns the statistics; the spread is NaN before the first value."""
        count = self.count.value.astype(jnp.float32)
        deviation = jnp.sqrt(self.m2.value / count)
        return Statistics(self.mean.value, deviation / jnp.sqrt(count), deviation)
