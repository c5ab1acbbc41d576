"""MultiMetric: several metrics under one roof."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import moduli
from moduli.errors import PathError, VariableError
from moduli_train._metrics.metric import Metric

__all__ = ["MultiMetric"]


class MultiMetric(Metric):
    """Several metrics that are updated in one call.

    Args:
      **metrics: the metrics, by name; each becomes an attribute.

    Example:
      >>> import moduli as nnx, jax.numpy as jnp
      >>> metrics = nnx.MultiMetric(
      ...     accuracy=nnx.metrics.Accuracy(), loss=nnx.metrics.Average("loss")
      ... )
      >>> metrics.update(logits=jnp.eye(2), labels=jnp.array([0, 0]), loss=jnp.array(3.0))
      >>> {name: float(value) for name, value in metrics.compute().items()}
      {'accuracy': 0.5, 'loss': 3.0}
    """

    def __init__(self, **metrics: Any):
        for name, metric in metrics.items():
            if hasattr(type(self), name):
                raise VariableError(
                    f"MultiMetric cannot hold a metric under the name {name!r}, which is a method "
                    "of its own; choose another name"
                )
            if not isinstance(metric, moduli.Pytree) or not hasattr(metric, "compute"):
                raise VariableError(
                    f"MultiMetric({name}=...) takes a Metric; got a {type(metric).__name__}"
                )
        self._metric_names = tuple(metrics)
        for name, metric in metrics.items():
            setattr(self, name, metric)

    def reset(self) -> None:
        """Resets every metric."""
        for name in self._metric_names:
            getattr(self, name).reset()

    def update(self, **updates: Any) -> None:
        """Updates every metric; each takes the arguments that it knows.

        Args:
          **updates: arguments of the metrics' ``update``. A ``mask`` goes to every metric, or, as
            a dict of masks by metric name, to those it names.

        Raises:
          PathError: if a dict of masks names a metric that is not there.
        """
        mask = updates.pop("mask", None)
        masks = mask if isinstance(mask, Mapping) else dict.fromkeys(self._metric_names, mask)
        unknown = sorted(set(masks) - set(self._metric_names))
        if unknown:
            raise PathError(
                f"`mask` names the metrics {unknown}, which are not among "
                f"{list(self._metric_names)}"
            )
        for name in self._metric_names:
            arguments = {} if masks.get(name) is None else {"mask": masks[name]}
            getattr(self, name).update(**updates, **arguments)

    def compute(self) -> dict[str, Any]:
        """Returns the result of every metric, by name."""
        return {name: getattr(self, name).compute() for name in self._metric_names}
