"""Reading batches ahead in a thread."""

from __future__ import annotations

import queue
import threading
from typing import Any

from moduli_train._data.position import Source

__all__ = ["ReadAhead"]


class ReadAhead:
    """Gives the batches of a source that a thread reads ahead, each with the position after it."""

    def __init__(self, source: Source, size: int) -> None:
        self._queue: queue.Queue[Any] = queue.Queue(size)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._read, args=(source,), daemon=True)
        self._thread.start()

    def _read(self, source: Source) -> None:
        item: Any = None
        while not isinstance(item, BaseException):
            try:
                batch = next(source)
                item = batch, source.position()
            except BaseException as error:
                item = error
            while not self._closed.is_set():
                try:
                    self._queue.put(item, timeout=0.1)
                    break
                except queue.Full:
                    continue
            else:
                return

    def __next__(self) -> tuple[Any, dict[str, Any]]:
        item = self._queue.get()
        if isinstance(item, BaseException):
            self._queue.put(item)
            raise item
        return item

    def close(self) -> None:
        """Ends the thread."""
        self._closed.set()
        self._thread.join(timeout=5)
