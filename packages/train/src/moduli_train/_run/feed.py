"""The batches of a run: read ahead if wanted, compared with the first, each with its position."""

from __future__ import annotations

import queue
import threading
import warnings
from typing import Any

import jax

from moduli_train._data.batches import Batches
from moduli_train._data.position import Source
from moduli_train._errors import BatchShapeWarning
from moduli_train._run.progress import counting

__all__ = ["Feed"]


class Feed:
    """Gives batches, and the position after the one that it gave last.

    Args:
      data: see :class:`Run`; None gives the numbers of the steps.
      prefetch: how many batches are read ahead.

    Attributes:
      epoch: the epoch of the batch that it gave last.
      prefetch: how many batches are read ahead, once the reading has begun.
    """

    def __init__(self, data: Any, prefetch: int) -> None:
        self._source = None if data is None else Source(data)
        self._whole = isinstance(data, Batches)  # each process has all rows of a batch
        self._varies = self._whole  # a short last batch is wanted there
        self.prefetch = prefetch
        self._reader: _Prefetched | None = None
        self._position: dict[str, Any] | None = None
        self._shapes: Any = None
        self.epoch = 0

    def take(self, step: int, sharding: Any) -> Any:
        """Returns the batch of a step."""
        if self._source is None:
            return step - 1
        if self.prefetch and self._reader is None:
            self._reader = _Prefetched(self._source, self.prefetch)
        if self._reader is not None:
            batch, self._position = next(self._reader)
            self.epoch = self._position["epoch"]
        else:
            batch = next(self._source)
            self._position, self.epoch = None, self._source.epoch
        if not self._varies:
            self._check_shapes(batch, step)
        if sharding is None:
            return batch
        put = _from_whole if self._whole else jax.make_array_from_process_local_data

        def laid_out(sharding: Any, part: Any) -> Any:
            return jax.tree.map(lambda leaf: put(sharding, leaf), part)

        return jax.tree.map(laid_out, sharding, batch)

    def _check_shapes(self, batch: Any, step: int) -> None:
        shapes = [tuple(getattr(leaf, "shape", ())) for leaf in jax.tree.leaves(batch)]
        if self._shapes is None:
            self._shapes = shapes
        elif self._shapes != shapes:
            self._varies = True  # said once
            warnings.warn(
                f"the batch of step {step} has the shapes {shapes}, the first had {self._shapes}: "
                "each new shape compiles the step again. Leave out a short last batch "
                "(drop_last=True), or pad batches to one shape",
                BatchShapeWarning,
                stacklevel=5,
            )

    def position(self) -> dict[str, Any] | None:
        """Returns where the data stands after the batch that was given last."""
        if self._position is None and self._source is not None:
            return self._source.position()
        return self._position

    def restore(self, position: dict[str, Any] | None, show: bool | None) -> None:
        """Goes to where an earlier run stood."""
        if self._source is not None and position is not None:
            self._source.restore(position, lambda items: counting(items, "skipping batches", show))
            self._position, self.epoch = position, position["epoch"]

    def close(self) -> None:
        """Ends the thread."""
        if self._reader is not None:
            self._reader.close()


def _from_whole(sharding: Any, leaf: Any) -> jax.Array:
    return jax.make_array_from_callback(leaf.shape, sharding, lambda index: leaf[index])


class _Prefetched:
    """Reads batches ahead in a thread, each with the position after it."""

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
