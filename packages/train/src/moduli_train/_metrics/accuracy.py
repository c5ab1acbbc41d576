"""Accuracy: the share of predictions that are right."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from moduli.errors import ShapeError, VariableError
from moduli_train._metrics.average import Average

__all__ = ["Accuracy"]


class Accuracy(Average):
    """The share of right predictions since the last reset; NaN before the first.

    Args:
      threshold: None for several classes: the largest logit is the prediction. A float for two:
        logits at or above it predict the positive class.
      argname: see :class:`Average`; Accuracy does not use it.

    Example:
      >>> import moduli as nnx, jax.numpy as jnp
      >>> accuracy = nnx.metrics.Accuracy()
      >>> accuracy.update(logits=jnp.eye(4), labels=jnp.array([0, 1, 2, 0]))
      >>> float(accuracy.compute())
      0.75
    """

    def __init__(self, threshold: float | None = None, argname: str = "values"):
        if threshold is not None and not isinstance(threshold, float):
            raise VariableError(
                f"Accuracy(threshold=...) takes a float or None; got {threshold!r} of type "
                f"{type(threshold).__name__}"
            )
        self.threshold = threshold
        super().__init__(argname)

    def update(self, mask: Any = None, *, logits: Any, labels: Any, **_: Any) -> None:  # type: ignore[override]
        """Takes in the predictions for one batch.

        Args:
          mask: which predictions count (booleans, or 0 and 1); broadcasts to the labels' shape.
          logits: scores, of shape ``(..., classes)``; with a threshold, of the labels' shape.
          labels: the right classes, ints of shape ``(...)``; with a threshold, positive means the
            positive class.
          **_: other names are ignored.

        Raises:
          ShapeError: (a ValueError) if the shapes of logits and labels do not fit.
          VariableError: (a TypeError) if the labels are not ints (or bools).
        """
        logits, labels = jnp.asarray(logits), jnp.asarray(labels)
        if not (jnp.issubdtype(labels.dtype, jnp.integer) or labels.dtype == jnp.bool):
            raise VariableError(
                f"the labels of an Accuracy are ints; got {labels.dtype}. For one-hot labels "
                "write `labels.argmax(-1)`"
            )
        expected = logits.shape if self.threshold is not None else logits.shape[:-1]
        if labels.shape != expected or (self.threshold is None and logits.ndim == 0):
            rule = (
                "for several classes the labels' shape is that of the logits without the last "
                "axis; for two classes of equal shapes write `Accuracy(threshold=0.0)`"
                if self.threshold is None
                else "with a threshold both have the same shape"
            )
            raise ShapeError(
                f"the logits have shape {logits.shape} and the labels {labels.shape}; {rule}"
            )
        if self.threshold is not None:
            right = (logits >= self.threshold) == (labels > 0)
        else:
            right = logits.argmax(axis=-1).astype(jnp.int32) == labels.astype(jnp.int32)
        super().update(mask, **{self.argname: right})
