"""The best value of a metric so far, and how often it did not get better."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from moduli.errors import VariableError
from moduli_train._run.arguments import whole

__all__ = ["Best"]

_SMALLER = ("loss", "error", "perplexity", "nll", "mae", "mse", "wer", "fid")
_LARGER = ("acc", "score", "f1", "auc", "bleu", "precision", "recall", "reward", "map", "iou")


@dataclasses.dataclass
class Best:
    """Watches the metric ``name`` (None watches nothing); ``seen`` is its last step."""

    name: str | None = None
    mode: str = "min"
    patience: int | None = None
    value: float | None = None
    step: int = 0
    worse: int = 0
    seen: int = 0
    waiting: Any = None  # the value of the step under way, not read yet

    @classmethod
    def of(cls, best: Any, patience: int | None) -> Best:
        """Makes it from the arguments of a run; raises VariableError for what they cannot be."""
        if best is None:
            if patience is not None:
                raise VariableError('patience= needs a metric: `best="loss"`')
            return cls()
        name, mode = (best, None) if isinstance(best, str) else _pair(best)
        if mode is None:
            smaller = any(word in name.lower() for word in _SMALLER)
            if smaller == any(word in name.lower() for word in _LARGER):
                raise VariableError(
                    f"best={name!r}: is a larger value better, or a smaller one? Write "
                    f'best=({name!r}, "max") or best=({name!r}, "min")'
                )
            mode = "min" if smaller else "max"
        return cls(name, mode, None if patience is None else whole("patience=", patience))

    def is_better(self, value: float) -> bool:
        """Returns whether a value is better than the best."""
        if math.isnan(value) or self.value is None:
            return not math.isnan(value)
        return value < self.value if self.mode == "min" else value > self.value

    def after(self, step: int, due: bool) -> tuple[dict[str, float], bool]:
        """Reads the metric after a step if that is ``due``, or the metric is not one of each step.

        Returns the metric to save with the step, and whether it has to be saved as the best.
        """
        waiting, self.waiting = self.waiting, None
        if waiting is None or self.name is None:
            return {}, False
        rare, self.seen = self.seen != step - 1, step
        if not rare and not due:
            return {}, False
        value = float(waiting)
        better = self.is_better(value)
        if better:
            self.value, self.step = value, step
        self.worse = 0 if better else self.worse + 1
        return {self.name: value}, better and rare

    @property
    def exhausted(self) -> bool:
        """Whether patience is at its end."""
        return self.patience is not None and self.worse >= self.patience

    def state(self) -> dict[str, Any]:
        """Returns the counters."""
        return {k: getattr(self, k) for k in ("value", "step", "worse", "seen")}


def _pair(best: Any) -> tuple[str, str]:
    if isinstance(best, (tuple, list)) and len(best) == 2 and best[1] in ("min", "max"):
        return best[0], best[1]
    raise VariableError(f'best={best!r}: write "min" or "max" with a name, as in ("loss", "min")')
