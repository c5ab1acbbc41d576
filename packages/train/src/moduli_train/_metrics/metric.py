"""Metric: what sums up batches and can say the result at any time."""

from __future__ import annotations

import abc
from typing import Any

import moduli

__all__ = ["Metric"]


class Metric(moduli.Pytree):
    """Base of metrics: subclass it with ``reset``, ``update`` and ``compute``.

    Keep what is summed up in :class:`~moduli_train.MetricState` Variables; then the metric can be
    an argument of ``moduli.jit`` like a module.

    Example:
      >>> import moduli as nnx, jax.numpy as jnp
      >>> class Maximum(nnx.Metric):
      ...     def __init__(self):
      ...         self.largest = nnx.MetricState(jnp.array(-jnp.inf))
      ...     def reset(self):
      ...         self.largest.value = jnp.array(-jnp.inf)
      ...     def update(self, *, values, **_):
      ...         self.largest.value = jnp.maximum(self.largest.value, values.max())
      ...     def compute(self):
      ...         return self.largest.value
      >>> metric = Maximum()
      >>> metric.update(values=jnp.array([1.0, 3.0]))
      >>> float(metric.compute())
      3.0
    """

    @abc.abstractmethod
    def reset(self) -> None:
        """Forgets everything, in place."""

    @abc.abstractmethod
    def update(self, **kwargs: Any) -> None:
        """Takes in one batch, in place."""

    @abc.abstractmethod
    def compute(self) -> Any:
        """Returns the result for all batches since the last reset."""

    def split(self, *filters: Any) -> Any:
        """Like :func:`moduli.split` on this metric."""
        return moduli.split(self, *filters)
