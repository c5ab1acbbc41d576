"""Random streams under vmap and scan: split unless the user says otherwise.

A stream whose key is one key cannot be mapped over an axis, and shared by all elements it would
give all of them the same keys. So a mapped transform splits it for the call: each element starts
from a key of its own, and the caller's stream counts one draw, as ``stream.fork(split=n)`` does.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from moduli._call.call import Call
from moduli._call.signature import Leaf
from moduli._graph.graphdef import NODE, OBJECT, VARIABLE
from moduli._rngs.streams import RngStream

__all__ = ["SPLIT", "SplitStreams", "streams_of"]


class _Split:
    def __repr__(self) -> str:
        return "<split stream>"


SPLIT = _Split()
"""The label of the key and the count of a stream that is split for the call."""


def streams_of(call: Call) -> list[tuple[Leaf, Leaf]]:
    """Finds the (key, count) leaves of all random streams among the arguments."""
    found = []
    for number, flat in enumerate(call.binding.flats):
        objects = flat.graphdef.objects
        for entry in objects:
            if entry[0] != NODE or not issubclass(entry[1], RngStream):
                continue
            codes = dict(entry[2])
            pair = [codes.get("key"), codes.get("count")]
            if all(c and c[0] == OBJECT and objects[c[1]][0] == VARIABLE for c in pair):
                key, count = [objects[c[1]][3] for c in pair]  # type: ignore[index]
                found.append(((number, key), (number, count)))
    return found


class SplitStreams:
    """The streams of a call that are split for it.

    A stream is split if its key is a single key (of shape ``()``) and its label is an axis; or if
    it is below a module which is not mapped as a whole (the label None stands for the module, not
    for its streams). Streams that are passed themselves, or that a StateAxes names, stay as asked.

    Args:
      call: the labelled call; the labels of the streams that are split become :data:`SPLIT`.
      broadcast: whether streams of unmapped modules are split too.
    """

    def __init__(self, call: Call, *, broadcast: bool):
        self._call = call
        self.leaves: list[tuple[Leaf, Leaf]] = []
        for key, count in streams_of(call):
            label = call.label_of(key)
            if getattr(call.values[key[0]][key[1]], "shape", None) != ():
                continue
            if isinstance(label, int) or (
                label is None and broadcast and not call.is_explicit(key)
            ):
                self.leaves.append((key, count))
        for pair in self.leaves:
            for number, index in pair:
                call.value_labels[number][index] = SPLIT

    def __bool__(self) -> bool:
        return bool(self.leaves)

    def split(self, size: int) -> None:
        """Replaces the values of the call by ``size`` keys and counts.

        Raises:
          TraceError: if a stream belongs to another trace, where it could not count.
        """
        for _, count in self.leaves:
            holder: Any = self._call.binding.flats[count[0]].holders[count[1]]
            holder._check_trace()
        self._counts = []
        for (number, key), (_, count) in self.leaves:
            group = self._call.values[number]
            fresh = jax.random.fold_in(group[key], group[count])
            self._counts.append(group[count] + 1)
            group[key] = jax.random.split(fresh, size)
            group[count] = jnp.zeros((size,), jnp.uint32)

    def count_up(self) -> None:
        """Counts the draw in the caller's streams, once the call has succeeded."""
        for (_, (number, index)), count in zip(self.leaves, self._counts, strict=True):
            self._call.binding.flats[number].holders[index]._value = count

    def __contains__(self, leaf: Any) -> bool:
        return self._call.label_of(leaf) is SPLIT
