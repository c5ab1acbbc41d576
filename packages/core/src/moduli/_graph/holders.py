"""Holders of values: what stands for a bare array, as a Variable stands for its value."""

from __future__ import annotations

import weakref
from typing import Any

from moduli._base.node import Node
from moduli._graph import opened

__all__ = ["Fixed", "RootSlot", "Slot", "identity", "leaf_of"]


class Slot:
    """A bare array in an attribute, read and written in place like a Variable's value."""

    __slots__ = ("key", "node", "position", "trail")

    def __init__(
        self, node: Node, key: Any, position: int | None = None, trail: tuple[int, ...] = ()
    ):
        self.node, self.key, self.position, self.trail = node, key, position, trail

    @property
    def _value(self) -> Any:
        value = self.node._read(self.key)
        return opened.read(value, self.trail) if self.trail else value

    @_value.setter
    def _value(self, new: Any) -> None:
        if self.trail:
            old = self.node._read(self.key)
            new = opened.put(old, self.trail, new)
            if new is old:
                return
        self.node._write(self.key, new)


class RootSlot(Slot):
    """A Slot of the root of a cached Flat: the root holds the Flat, not the other way round."""

    __slots__ = ("_root",)

    def __init__(
        self, node: Node, key: Any, position: int | None = None, trail: tuple[int, ...] = ()
    ):
        self._root = weakref.ref(node)
        self.key, self.position, self.trail = key, position, trail

    @property
    def node(self) -> Any:  # type: ignore[override]
        return self._root()


class Fixed:
    """A bare array in a plain tuple, list or dict around the nodes: to be read, not written."""

    __slots__ = ("_value",)

    def __init__(self, value: Any):
        self._value = value


def identity(holder: Any) -> Any:
    """Returns a key of the place that a holder reads: two Slots of one array have the same."""
    if isinstance(holder, Slot):
        return (id(holder.node), holder.key, holder.position)
    return id(holder)


def leaf_of(holder: Any) -> Any:
    """Returns what filters and prefixes see of a value: its Variable, or a bare array itself."""
    return holder._value if isinstance(holder, (Slot, Fixed)) else holder
