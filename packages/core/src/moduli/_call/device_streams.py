"""Random streams under shard_map: each device draws its own numbers where the data differ.

A stream that a module holds is one key on all devices. Inside of the function the index of the
device is folded into it, along the axes over which the data differ, and the caller's stream keeps
its key and counts on as it would on one device.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from jax.sharding import PartitionSpec

from moduli._call.call import Call
from moduli._call.frame import Frame
from moduli._call.signature import Leaf
from moduli._call.split_streams import streams_of
from moduli._rngs.device_keys import fold_in_devices, inside_shard_map

__all__ = ["DeviceStreams"]


class DeviceStreams:
    """The streams of a call of shard_map whose keys differ between devices.

    Args:
      call: the labelled call; its labels are specs.
      unseen: whether JAX does not know over which axes values differ.

    Attributes:
      remedy: for an error about a value that differs, what to write if a stream is the cause.
    """

    def __init__(self, call: Call, *, unseen: bool):
        data = frozenset[Any]().union(*map(_axes, call.data_labels()))
        self._unseen = data if unseen else frozenset()
        self._keys: dict[Leaf, frozenset[Any]] = {
            key: data - _axes(call.label_of(key))
            for key, _ in streams_of(call)
            if not call.is_chosen_stream(key)
        }

        self.remedy = ""
        if any(self._keys.values()):
            self.remedy = (
                "; if it is drawn from a random stream of a module, whose numbers differ between "
                "devices, name the streams in in_specs to share them: "
                "`moduli.StateSharding({moduli.RngState: P(), ...: P()})`"
            )

    @contextmanager
    def inside(self, frame: Frame) -> Iterator[None]:
        """Folds the device's index into the keys while the function runs.

        Args:
          frame: the fresh arguments.
        """
        changed = []
        for leaf, holder in frame.variables():
            axes, key = self._keys.get(leaf), holder._value
            if axes and getattr(key, "shape", None) == ():
                folded = fold_in_devices(key, axes)
                holder._value = folded
                changed.append((holder, key, folded))
        shared = {id(folded): key for _, key, folded in changed}
        with inside_shard_map(self._unseen, shared):
            yield
        for holder, key, folded in changed:
            if holder._value is folded:
                holder._value = key


def _axes(spec: Any) -> frozenset[Any]:
    """Returns the names of the axes in a spec."""
    if not isinstance(spec, PartitionSpec):
        return frozenset()
    entries = [entry if isinstance(entry, tuple) else (entry,) for entry in spec]
    return frozenset(name for entry in entries for name in entry if isinstance(name, str))
