"""How far a run is: one bar on a terminal or in a notebook, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["Progress", "counting"]

_SECONDS = 10.0


def _bar(wanted: bool | None, **options: Any) -> Any:
    """Returns tqdm's bar where one can be shown, else None."""
    terminal = sys.stderr is not None and sys.stderr.isatty()
    if wanted is False or not (terminal or "ipykernel" in sys.modules):
        return None
    try:
        from tqdm.auto import tqdm
    except ImportError:
        return None
    return tqdm(**options)


def counting(items: Iterable[Any], what: str, wanted: bool | None) -> Iterable[Any]:
    """Returns the items, with a bar where one can be shown."""
    bar = _bar(wanted, iterable=items, desc=what, leave=False)
    return items if bar is None else bar


class Progress:
    """Shows step, rate, time left and the last values; ``wanted=False`` shows nothing."""

    def __init__(self, total: int, step: int, wanted: bool | None) -> None:
        self._bar = _bar(wanted, total=total, initial=step, desc="step", dynamic_ncols=True)
        self._lines = wanted is not False and self._bar is None and sys.stderr is not None
        self._total, self._first, self._step = total, step, step
        self._start = self._last = time.monotonic()
        self._values: dict[str, float] = {}

    def values(self, values: Mapping[str, float]) -> None:
        """Takes values to show."""
        self._values.update(values)
        if self._bar is not None:
            self._bar.set_postfix({k: f"{v:.4g}" for k, v in self._values.items()}, refresh=False)

    def advance(self) -> None:
        """Counts a step."""
        self._step += 1
        if self._bar is not None:
            self._bar.update()
        elif self._lines and time.monotonic() - self._last >= _SECONDS:
            self._write()

    def _write(self) -> None:
        self._last = time.monotonic()
        rate = (self._step - self._first) / max(self._last - self._start, 1e-9)
        left = int((self._total - self._step) / rate) if rate else 0
        clock = f"{left // 3600}:{left % 3600 // 60:02}:{left % 60:02}"
        values = "".join(f"  {name} {value:.4g}" for name, value in self._values.items())
        line = f"step {self._step}/{self._total}  {rate:.3g} steps/s  {clock} left{values}\n"
        sys.stderr.write(line)
        sys.stderr.flush()

    def close(self) -> None:
        """Shows the end."""
        if self._bar is not None:
            self._bar.close()
        elif self._lines and self._step > self._first:
            self._write()
        self._bar, self._lines = None, False
