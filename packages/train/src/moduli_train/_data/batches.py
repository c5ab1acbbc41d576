"""Batches: arrays in memory, in an order that an epoch's number gives."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from moduli.errors import ShapeError, VariableError

__all__ = ["Batches"]


class Batches:
    """Batches of arrays, each epoch in an order of its own.

    The order of an epoch comes from Philox(seed, epoch) alone, so any position is reached at once,
    and a run that resumes reads the same batches. :class:`Run` goes through the epochs; iterating
    over the object gives epoch 0.

    Args:
      arrays: an array, or a dict, tuple or other pytree of arrays with one length.
      size: examples in a batch.
      seed: of the orders; None keeps the order of the arrays.
      drop_last: whether to leave out a last batch that is shorter.

    Raises:
      ShapeError: the arrays differ in length, or there is no batch in them.
      VariableError: size or seed is no whole number.

    Example:
      >>> import numpy as np, moduli as nnx
      >>> batches = nnx.Batches({"x": np.arange(5)}, 2, seed=None)
      >>> [batch["x"].tolist() for batch in batches]
      [[0, 1], [2, 3], [4]]
      >>> len(batches), [len(batch["x"]) for batch in batches.epoch(7, start=1)]
      (3, [2, 1])
    """

    def __init__(
        self, arrays: Any, size: int, *, seed: int | None = 0, drop_last: bool = False
    ) -> None:
        lengths = {
            jax.tree_util.keystr(path) or "the array": np.shape(leaf)[0] if np.ndim(leaf) else -1
            for path, leaf in jax.tree_util.tree_leaves_with_path(arrays)
        }
        length = min(lengths.values(), default=-1)
        if length < 0 or length != max(lengths.values()):
            raise ShapeError(f"Batches takes arrays of one length; got the lengths {lengths}")
        size = _whole("size", size, None)
        seed = None if seed is None else _whole("seed", seed, 2**64)
        count = length // size if drop_last and size > 0 else -(-length // max(size, 1))
        if size < 1 or count < 1:
            raise ShapeError(f"there is no batch of {size} examples in arrays of length {length}")
        self.arrays, self.size, self.seed, self.drop_last = arrays, size, seed, drop_last
        self._length, self._count = length, count

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Any]:
        return self.epoch(0)

    def epoch(self, number: int, start: int = 0) -> Iterator[Any]:
        """Yields the batches of an epoch, from number ``start`` on."""
        order = np.arange(self._length)
        if self.seed is not None:
            key = np.array([self.seed, number], np.uint64)
            order = np.random.Generator(np.random.Philox(key=key)).permutation(self._length)
        for index in range(start, self._count):
            rows = order[index * self.size : (index + 1) * self.size]
            yield jax.tree.map(lambda array, rows=rows: array[rows], self.arrays)

    def facts(self) -> dict[str, Any]:
        """Returns what has to be the same when a run resumes."""
        names = ("size", "seed", "drop_last")
        return {"length": self._length} | {name: getattr(self, name) for name in names}


def _whole(name: str, value: Any, end: int | None) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool) or (end is not None and not 0 <= number < end):
        least = "" if end is None else " from 0 to 2**64 - 1, or None"
        raise VariableError(f"Batches({name}=...) is a whole number{least}; got {value!r}")
    return number
