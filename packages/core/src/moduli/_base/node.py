"""What a graph is made of: nodes, and what is kept about each of them.

A *node* is a Module, another Pytree, a List or a Dict. Each node carries one ``Bookkeeping``
object under ``node._moduli``: the trace it belongs to, a version that moves with every structural
change, and the cached flatten of the graph below it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from moduli._base.compat import trace_state
from moduli._base.epoch import EPOCH

if TYPE_CHECKING:
    from moduli._base.lost_writes import Watch

__all__ = ["Bookkeeping", "BorrowedBookkeeping", "Node"]


class Bookkeeping:
    """What the graph code keeps about one node; never part of the node's state.

    Attributes:
      trace: the JAX trace in which the node was made.
      version: counts structural changes of this node.
      tracked: whether some cached flatten includes the node.
      annotations: attribute name -> "data" or "static", where the user said so; and the flag
        ``""`` -> "frozen" for a node whose mode ``train()``/``eval()`` leave alone.
      flat: the cached flatten of the graph whose root is this node.
      tree_epoch: the epoch at which the graph below was last known to be a tree.
      watch: reports dropped writes, if JAX copied the node into a trace as the root of a tree.
      source: for a List or Dict made from a plain one: that one, and what it held.
    """

    __slots__ = (
        "annotations",
        "flat",
        "source",
        "trace",
        "tracked",
        "tree_epoch",
        "version",
        "watch",
    )

    def __init__(self, trace: Any):
        self.trace = trace
        self.version = 0
        self.tracked = False
        self.annotations: dict[str, str] | None = None
        self.flat: Any = None
        self.tree_epoch = -1
        self.watch: Watch | None = None
        self.source: tuple[Any, tuple[Any, ...]] | None = None

    def changed(self) -> None:
        """Records a structural change of the node."""
        self.version += 1
        if self.tracked:
            EPOCH[0] += 1

    def annotate(self, name: str, status: str | None) -> None:
        """Writes (or with None removes) the status of one attribute."""
        annotations = dict(self.annotations or {})
        if status is None:
            annotations.pop(name, None)
        else:
            annotations[name] = status
        self.annotations = annotations or None


class BorrowedBookkeeping(Bookkeeping):
    """Of a node that JAX copied into a trace: it keeps no flatten, which would refer to the node.

    Without that cycle the node dies as soon as the function has returned, and
    ``moduli._base.lost_writes`` can tell what was lost.
    """

    __slots__ = ()
    flat = property(lambda self: None, lambda self, value: None)  # type: ignore[assignment]


class Node:
    """Base of all graph nodes. Subclasses say how their items are read and written."""

    _moduli: Bookkeeping
    _is_moduli_node = True
    _may_carry: frozenset[str] = frozenset()
    """Names of static attributes that may carry modules, as constants."""

    if not TYPE_CHECKING:  # type checkers take the constructor's signature from __init__ alone

        def __new__(cls, /, *args: Any, **kwargs: Any) -> Any:
            self = super().__new__(cls)
            self.__dict__["_moduli"] = Bookkeeping(trace_state())
            return self

    @classmethod
    def _make_empty(cls, trace: Any) -> Any:
        """Builds an object without items and without running ``__init__``."""
        self = super().__new__(cls)
        self.__dict__["_moduli"] = Bookkeeping(trace)
        return self

    def _items(self) -> list[tuple[Any, Any]]:
        """Returns (key, value) of every attribute or element, in canonical order."""
        raise NotImplementedError

    def _snapshot(self) -> tuple[tuple[Any, ...], tuple[Any, ...]] | None:
        """Returns keys and values of all items, in a stable order; None if that is costly."""
        return None

    def _fill(self, items: Iterable[tuple[Any, Any]]) -> None:
        """Replaces all items, without checks and without moving the version."""
        raise NotImplementedError

    def _read(self, key: Any) -> Any:
        """Returns the raw item of one key."""
        raise NotImplementedError

    def _write(self, key: Any, value: Any) -> None:
        """Writes the raw item of one key, without checks and without moving the version."""
        raise NotImplementedError

    def _remove(self, key: Any) -> None:
        """Removes one item, without checks and without moving the version."""
        raise NotImplementedError

    def _check_source(self) -> None:
        """Raises if the plain list or dict from which this node was made changed since."""
