"""SIGTERM and Ctrl-C: the first lets the step end, the second ends the process at once."""

from __future__ import annotations

import signal
import sys
import threading
from typing import Any

import jax

__all__ = ["Signals"]


class Signals:
    """Notes a signal instead of dying of it, between ``start`` and ``stop``."""

    def __init__(self) -> None:
        self.caught: int | None = None
        self._before: dict[int, Any] = {}

    def start(self) -> None:
        """Takes the signals, in the main thread only.

        Of several processes JAX's own service hears SIGTERM, and makes all of them agree.
        """
        if threading.current_thread() is not threading.main_thread() or jax.process_count() > 1:
            return
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._note)

    def stop(self) -> None:
        """Gives the signals back."""
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before = {}

    def _note(self, number: int, frame: Any) -> None:
        self.caught = number
        before = self._before[number]
        self.stop()  # so that a second signal does what it always did
        if before is signal.SIG_IGN:  # as a shell starts what is to run in the background
            ends = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            signal.signal(number, ends)
        sys.stderr.write(
            f"\n{signal.Signals(number).name}: the step is finished and saved; a second one ends "
            "at once\n"
        )

    def stopping(self, step: int) -> bool:
        """Returns whether to end after this step; all processes get the same answer."""
        if jax.process_count() == 1:
            return self.caught is not None
        from jax.experimental import multihost_utils

        if multihost_utils.reached_preemption_sync_point(step):
            self.caught = signal.SIGTERM
        return self.caught is not None

    def end(self) -> BaseException:
        """Returns what ends the program: KeyboardInterrupt, or SystemExit(143)."""
        if self.caught == signal.SIGINT:
            return KeyboardInterrupt("stopped by Ctrl-C after a whole step")
        return SystemExit(128 + signal.SIGTERM)
