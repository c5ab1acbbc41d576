"""Losses that are not finite."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

from moduli.errors import VariableError
from moduli_train._errors import NonFiniteLossError, NonFiniteLossWarning

__all__ = ["Losses"]


class Losses:
    """Looks at values with "loss" in their name, and at the metric that counts.

    ``bad`` says whether the last loss was not finite.
    """

    def __init__(self, on_nonfinite: Any, metric: str | None) -> None:
        if on_nonfinite not in ("stop", "warn"):
            raise VariableError(f'on_nonfinite= is "stop" or "warn"; got {on_nonfinite!r}')
        self.bad = self._warned = False
        self._stops, self._metric = on_nonfinite == "stop", metric

    def look(self, rows: Iterable[tuple[int, Mapping[str, float]]], saved: int) -> None:
        """Looks at the values of some steps; ``saved`` is the step of the last checkpoint."""
        for step, values in rows:
            losses = {k: v for k, v in values.items() if "loss" in k.lower() or k == self._metric}
            wrong = [f"`{name}` is {v}" for name, v in losses.items() if not math.isfinite(v)]
            self.bad = bool(wrong) if losses else self.bad
            if not wrong or self._warned:
                continue
            kept = f"step {saved} is the last good one" if saved >= 0 else "there is none so far"
            text = f"{', '.join(wrong)} at step {step}. No checkpoint is written now; {kept}. "
            text += "`nnx.check_finite` finds where it comes from"
            if self._stops:
                raise NonFiniteLossError(f'{text}; on_nonfinite="warn" goes on')
            self._warned = True
            warnings.warn(text, NonFiniteLossWarning, stacklevel=6)
