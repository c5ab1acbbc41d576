"""The batches of a run: read ahead if wanted, compared with the first, laid out over devices."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import jax

from moduli_train._data.ahead import ReadAhead
from moduli_train._data.batches import Batches
from moduli_train._data.position import Source
from moduli_train._errors import BatchShapeWarning, RunError

__all__ = ["Feed"]


class Feed:
    """Gives batches, and epoch and position of the one that it gave last; of None, step numbers."""

    def __init__(self, data: Any, prefetch: int) -> None:
        self._source = None if data is None else Source(data)
        self._whole = isinstance(data, Batches)  # each process has all rows of a batch
        self._varies = self._whole  # a short last batch is wanted there
        self._ahead: ReadAhead | None = None
        self._position: dict[str, Any] | None = None
        self._shapes: Any = None
        self.prefetch = prefetch  # how many batches are read ahead, once the reading has begun
        self.epoch = 0

    def take(self, step: int, sharding: Any) -> Any:
        """Returns the batch of a step."""
        if self._source is None:
            return step - 1
        if self.prefetch and self._ahead is None:
            self._ahead = ReadAhead(self._source, self.prefetch)
        if self._ahead is not None:
            batch, self._position = next(self._ahead)
            self.epoch = self._position["epoch"]
        else:
            batch = next(self._source)
            self._position, self.epoch = None, self._source.epoch
        if not self._varies:
            self._check_shapes(batch, step)
        if sharding is None:
            return batch
        put = _from_whole if self._whole else jax.make_array_from_process_local_data
        return jax.tree.map(
            lambda layout, part: jax.tree.map(lambda leaf: put(layout, leaf), part), sharding, batch
        )

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

    def restore(self, position: dict[str, Any] | None, counting: Callable[..., Any]) -> None:
        """Goes to where an earlier run stood; ``counting`` is that of :meth:`Source.restore`."""
        if (self._source is None) != (position is None):
            ways = ("without data=", "with data=")
            began, now = ways if position is None else ways[::-1]
            raise RunError(
                f"the run began {began}, and is to go on {now}: the batches would be others. Give "
                "what it began with, or another folder"
            )
        if self._source is not None and position is not None:
            self._source.restore(position, counting)
            self._position, self.epoch = position, position["epoch"]

    def close(self) -> None:
        """Ends the thread."""
        if self._ahead is not None:
            self._ahead.close()


def _from_whole(sharding: Any, leaf: Any) -> jax.Array:
    return jax.make_array_from_callback(leaf.shape, sharding, lambda index: leaf[index])
