"""A save that goes on in a thread of its own while the program does."""

from __future__ import annotations

import atexit
import sys
import threading
import traceback
from collections.abc import Callable

__all__ = ["Pending"]


class Pending:
    """A save in a thread of its own, which the end of the program waits for.

    Args:
      step: the step that is saved.
      folder: where.
      work: what saves it.
    """

    def __init__(self, step: int, folder: str, work: Callable[[], None]):
        self.step = step
        self.folder = folder
        self.failure: BaseException | None = None
        self._work: Callable[[], None] | None = work
        self.thread = threading.Thread(target=self._run, name=f"moduli save of step {step}")

    def start(self) -> None:
        """Starts the thread."""
        with _lock:
            _unreported.add(self)
        self.thread.start()

    def _run(self) -> None:
        try:
            assert self._work is not None
            self._work()
        except BaseException as error:
            self.failure = error
        else:
            with _lock:
                _unreported.discard(self)
        finally:
            self._work = None  # the copies are not needed any more

    def raise_failure(self) -> None:
        """Raises what the save failed with, if it did; to be called when the thread has ended."""
        with _lock:
            _unreported.discard(self)
        if self.failure is not None:
            self.failure.add_note(
                f"Raised by the save of step {self.step} in {self.folder}, which was going on in a "
                "thread. That step does not exist."
            )
            raise self.failure


_lock = threading.Lock()
_unreported: set[Pending] = set()


@atexit.register
def _at_exit() -> None:
    """Says what failed and was raised nowhere, when the program ends."""
    with _lock:
        left = sorted(_unreported, key=lambda pending: pending.step)
        _unreported.clear()
    for pending in left:
        pending.thread.join()
        if pending.failure is not None and sys.stderr is not None:
            sys.stderr.write(
                f"moduli: the save of step {pending.step} in {pending.folder} failed, and "
                "that step does not exist:\n"
            )
            traceback.print_exception(pending.failure)
