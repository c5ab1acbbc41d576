"""The best value of a metric so far, and how often it did not get better."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

import moduli
from moduli.errors import VariableError

__all__ = ["Best"]

_SMALLER = ("loss", "error", "perplexity", "nll", "mae", "mse", "wer", "fid")
_LARGER = ("acc", "score", "f1", "auc", "bleu", "precision", "recall", "reward", "map", "iou")


@dataclasses.dataclass
class Best:
    """Watches one metric.

    Attributes:
      name: the metric, or None.
      mode: which values are better.
      patience: how many values that are no better end the run; None for any number.
      value: the best value.
      step: where it was.
      worse: how many values came since.
      seen: the last step with a value.
      waiting: the value of the step under way, not read yet.
    """

    name: str | None = None
    mode: Literal["min", "max"] = "min"
    patience: int | None = None
    value: float | None = None
    step: int = 0
    worse: int = 0
    seen: int = 0
    waiting: Any = None

    @classmethod
    def of(cls, best: Any, patience: int | None) -> Best:
        """Makes it from the arguments of a run.

        Raises:
          VariableError: ``best`` does not say what is better.
        """
        if best is None:
            if patience is not None:
                raise VariableError('patience= needs a metric: `best="loss"`')
            return cls()
        name, mode = (best, None) if isinstance(best, str) else best
        if mode is None:
            smaller = any(word in name.lower() for word in _SMALLER)
            if smaller == any(word in name.lower() for word in _LARGER):
                raise VariableError(
                    f"best={name!r}: is a larger value better, or a smaller one? Write "
                    f'best=({name!r}, "max") or best=({name!r}, "min")'
                )
            mode = "min" if smaller else "max"
        if mode not in ("min", "max"):
            raise VariableError(f'best=({name!r}, {mode!r}): write "min" or "max"')
        return cls(name, mode, patience)

    def is_better(self, value: float) -> bool:
        """Returns whether a value is better than the best."""
        if math.isnan(value) or self.value is None:
            return not math.isnan(value)
        return value < self.value if self.mode == "min" else value > self.value

    def put(self, values: Mapping[str, Any]) -> None:
        """Takes the metric from what is logged, without reading it."""
        if self.name is not None and self.name in values:
            held = values[self.name]
            self.waiting = held.get_value() if isinstance(held, moduli.Variable) else held

    def after(self, step: int, due: bool) -> tuple[dict[str, float], bool]:
        """Reads the metric after a step, if that is saved or the metric is not one of each step.

        Args:
          step: the step.
          due: whether it is saved anyway.

        Returns:
          The metric to save with the step, and whether it has to be saved because it is the best.
        """
        waiting, self.waiting = self.waiting, None
        if waiting is None or self.name is None:
            return {}, False
        rare = self.seen != step - 1
        self.seen = step
        if not rare and not due:
            return {}, False
        value = float(waiting)
        better = self.is_better(value)
        self._add(step, value)
        return {self.name: value}, better and rare

    def _add(self, step: int, value: float) -> None:
        if self.is_better(value):
            self.value, self.step, self.worse = value, step, 0
        else:
            self.worse += 1

    @property
    def exhausted(self) -> bool:
        """Whether patience is at its end."""
        return self.patience is not None and self.worse >= self.patience

    def state(self) -> dict[str, Any]:
        """Returns the counters."""
        return {k: getattr(self, k) for k in ("value", "step", "worse", "seen")}
