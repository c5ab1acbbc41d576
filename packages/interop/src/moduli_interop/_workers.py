"""A few threads for the time of a block.

``concurrent.futures`` takes no work any more once the main thread has ended, and a save that is
under way in a thread of its own is finished after that. So these are plain threads.
"""

from __future__ import annotations

import queue
import threading
import types
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

__all__ = ["Workers"]


class Workers:
    """Threads that run functions; a context manager, at whose end they are gone.

    Args:
      count: how many; each is started when there is work for it.
    """

    def __init__(self, count: int = 2):
        self._count = count
        self._queue: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None]
        self._queue = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []

    def submit(self, work: Callable[..., Any], *args: Any) -> Future[Any]:
        """Runs a function in a thread, or at once if there can be none.

        Args:
          work: the function.
          *args: its arguments.

        Returns:
          Its result, in the future.
        """
        future: Future[Any] = Future()
        if len(self._threads) < self._count:
            thread = threading.Thread(target=self._run, name="moduli checkpoint")
            try:
                thread.start()
                self._threads.append(thread)
            except RuntimeError:  # the interpreter starts none any more
                self._count = len(self._threads)
        if self._threads:
            self._queue.put((future, lambda: work(*args)))
        else:
            _do(future, lambda: work(*args))
        return future

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: types.TracebackType | None,
    ) -> None:
        if error is not None:  # what has not begun is not wanted
            while not self._queue.empty():
                self._queue.get()
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while (task := self._queue.get()) is not None:
            _do(*task)


def _do(future: Future[Any], work: Callable[[], Any]) -> None:
    try:
        future.set_result(work())
    except BaseException as error:
        future.set_exception(error)
