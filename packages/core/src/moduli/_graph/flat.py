"""Flat: a flattened graph that tells whether it still holds, and brings itself up to date."""

from __future__ import annotations

import operator
import weakref
from collections.abc import Callable
from typing import Any

from moduli import errors
from moduli._base.closed_over import ACTIVE, note_holders
from moduli._base.epoch import EPOCH
from moduli._base.node import Bookkeeping, Node
from moduli._base.static_keys import (
    UnhashableStatic,
    has_key,
    is_held,
    object_key,
)
from moduli._graph.data import is_array_of_numbers, is_data
from moduli._graph.graphdef import LEAF, NODE, OBJECT, STATIC, GraphDef
from moduli._graph.hidden import check_static
from moduli._graph.holders import RootSlot, Slot
from moduli._variable.box import Variable

__all__ = ["Flat", "static_item_key"]

_version: Callable[[Bookkeeping], int] = operator.attrgetter("version")
_metadata: Callable[[Variable[Any]], Any] = operator.attrgetter("_metadata")


class Flat:
    """A flattened graph: structure, holders of values, and what tells whether it still holds.

    Attributes:
      graphdef: the interned structure.
      holders: Variables and Slots, in the order of the leaves.
      root: gives the first object, or None if it is dead.
      partners: with which other graphs this one is known to share objects, or not.
      has_containers: whether containers of the user's are part of it that tell nobody of their
        changes, so that each call has to look at them.
    """

    __slots__ = (
        "__weakref__",
        "_base",
        "_books",
        "_epoch",
        "_held",
        "_ids",
        "_kinds",
        "_metadata_epoch",
        "_metadatas",
        "_nodes",
        "_overlay",
        "_raw",
        "_rest",
        "_snapshots",
        "_state_epoch",
        "_variables",
        "_variants",
        "_versions",
        "_watched",
        "_watches",
        "graphdef",
        "has_containers",
        "holders",
        "partners",
        "root",
    )

    def __init__(self, graphdef: GraphDef, flattener: Any, epoch: int):
        objects = flattener.objects
        self.graphdef, self.holders = graphdef, flattener.holders
        self._held = flattener.held  # static values that may change, with their keys
        self.root: Any = weakref.ref(objects[0]) if objects else None
        self._rest = objects  # without the root, once it has been let go
        self._epoch = epoch
        self.partners: dict[Any, Any] = {}
        self._books: list[Bookkeeping] = [o._moduli for o in objects if isinstance(o, Node)]
        self._versions = [book.version for book in self._books]
        self._variables = [o for o in objects if not isinstance(o, Node)]
        self._metadatas = [variable._metadata for variable in self._variables]
        self._metadata_epoch = -1  # not compared yet
        self._watched = [
            index
            for index, item in enumerate(objects)
            if isinstance(item, Node) and item._moduli.source is not None
        ]
        self._watches = flattener.watches
        self._state_epoch = -1
        self.has_containers = not all(w.is_state for _, all_ in self._watches for w in all_)
        self._base = graphdef
        self._overlay: dict[int, Any] = {}
        self._nodes: list[int] | None = None
        self._raw: dict[int, dict[Any, Any]] = {}  # what revised nodes held, by index
        # how a node was seen before, by index: its snapshot, its entry, what it held
        self._snapshots: dict[int, list[tuple[Any, tuple[Any, ...], dict[Any, Any]]]] = {}
        self._variants: dict[Any, GraphDef] = {}
        self._ids: frozenset[int] | None = None
        self._kinds: dict[type, list[Any]] = {}

    def let_go_of_root(self) -> Flat:
        """Refers to the root weakly from now on: a Flat that its root keeps would be a cycle.

        Returns:
          The Flat itself.
        """
        root = self._rest[0]
        self._rest = self._rest[1:]
        self.holders = [
            RootSlot(root, slot.key, slot.position, slot.trail)
            if isinstance(slot, Slot) and slot.node is root
            else slot
            for slot in self.holders
        ]
        return self

    @property
    def objects(self) -> list[Any]:
        """Nodes and Variables, in the order of the GraphDef's table."""
        if len(self._rest) == len(self.graphdef.objects):
            return self._rest
        assert self.root is not None
        return [self.root(), *self._rest]

    @property
    def ids(self) -> frozenset[int]:
        """The ids of all objects, for finding out what two graphs share."""
        if self._ids is None:
            self._ids = frozenset(map(id, self.objects))
        return self._ids

    def of_kind(self, kind: type) -> list[Any]:
        """The objects that are instances of a class; not to be changed."""
        found = self._kinds.get(kind)
        if found is None:
            found = self._kinds[kind] = [item for item in self._rest if isinstance(item, kind)]
        if len(self._rest) < len(self.graphdef.objects) and isinstance(self.root(), kind):
            return [self.root(), *found]
        return found

    def unchanged_since(self) -> int | None:
        """The epoch up to which the structure is known to hold; None if it has to be watched."""
        return None if self._watched or self._held else self._epoch

    def is_current(self) -> bool:
        """Returns whether the structure is still the one that was flattened."""
        if self._watched:
            objects = self.objects
            for index in self._watched:
                objects[index]._check_source()
            self._watched = [i for i in self._watched if objects[i]._moduli.source is not None]
        if self._held and not all(has_key(value, key) for value, key in self._held):
            return False
        epoch = EPOCH[0]
        if self._epoch == epoch:
            return not (self.has_containers and self._containers_changed(every=False))
        if list(map(_version, self._books)) != self._versions or not self._same_metadata():
            return False
        if self._watches:
            states = EPOCH[2]
            if self._containers_changed(every=states != self._state_epoch):
                return False
            self._state_epoch = states
        self._epoch = epoch
        return True

    def _containers_changed(self, every: bool) -> bool:
        """Looks at the user's containers, and moves the versions of nodes that hold another one.

        Args:
          every: look at States too; their changes move the epoch.
        """
        changed = False
        for book, watches in self._watches:
            for watch in watches:
                if (every or not watch.is_state) and watch.changed():
                    book.changed()
                    changed = True
                    break
        return changed

    def _same_metadata(self) -> bool:
        epoch = EPOCH[1]
        if self._metadata_epoch == epoch:
            return True
        if all(map(operator.is_, map(_metadata, self._variables), self._metadatas)):
            self._metadata_epoch = epoch
            return True
        return False

    def revise(self) -> bool:
        """Brings the structure up to date if nothing but static attributes has changed.

        Switching a model between ``train()`` and ``eval()`` changes a flag here and there; only the
        nodes that changed are looked at, and a structure that was seen before is found again.

        Returns:
          Whether that was so; if not, the graph has to be flattened anew.
        """
        epoch = EPOCH[0]
        if self._held or not self._same_metadata():
            return False
        objects = self.objects
        if self._nodes is None:
            self._nodes = [i for i, item in enumerate(objects) if isinstance(item, Node)]
        overlay = dict(self._overlay)
        versions = list(map(_version, self._books))
        for index, now, before in zip(self._nodes, versions, self._versions, strict=True):
            if now == before:
                continue
            entry = self._revised_entry(objects[index], index)
            if entry is None:
                return False
            overlay[index] = entry
            if entry[1] is not self.graphdef.objects[index][1]:
                self._kinds.clear()
            if entry == self._base.objects[index]:
                del overlay[index]
        key = tuple(sorted(overlay.items(), key=_first))
        graphdef = self._variants.get(key)
        if graphdef is None:
            table = list(self._base.objects)
            for index, entry in overlay.items():
                table[index] = entry
            base = self._base
            graphdef = GraphDef(tuple(table), base.roots, base.num_leaves, base.metadatas)
            if len(self._variants) >= 64:
                self._variants.clear()
            self._variants[key] = graphdef
        self._versions = versions
        self._overlay, self.graphdef, self._epoch = overlay, graphdef, epoch
        return True

    def _revised_entry(self, node: Node, index: int) -> tuple[Any, ...] | None:
        """The entry of a node whose static attributes changed; None if others did too."""
        snapshot = node._snapshot()
        known = self._snapshots.setdefault(index, [])
        if snapshot is not None:
            for before, entry, raw in known:
                same = before[0] == snapshot[0] and entry[1] is node.__class__
                if same and all(map(operator.is_, before[1], snapshot[1])):
                    self._raw[index] = raw
                    return entry
        entry = self._entry_anew(node, index)
        if entry is not None and snapshot is not None and all(c[0] < LEAF for _, c in entry[2]):
            if len(known) >= 4:
                known.clear()
            known.append((snapshot, entry, self._raw[index]))
        return entry

    def _entry_anew(self, node: Node, index: int) -> tuple[Any, ...] | None:
        annotations = node._moduli.annotations
        old = dict(self.graphdef.objects[index][2])
        seen = self._raw.get(index, {}) if annotations is None else {}
        raw: dict[Any, Any] = {}  # no arrays: they would stay alive
        objects = self.objects
        items = []
        for key, value in node._items():
            code = old.pop(key, None)
            if code is not None and code[0] < LEAF and key in seen and seen[key] is value:
                raw[key] = value
                items.append((key, code))
                continue
            status = annotations.get(key) if annotations else None
            if code is not None and code[0] != STATIC:
                same = (code[0] == OBJECT and objects[code[1]] is value) or (
                    code[0] == LEAF and status is None and is_array_of_numbers(value)
                )
                if not same:
                    return None
            elif status == "data" or (status is None and is_data(value)):
                return None
            else:
                try:
                    code = (STATIC, static_item_key(value, (key,), key in node._may_carry))
                except errors.StructureError:
                    return None  # flattening anew raises it with the whole path
                if is_held(code[1]):
                    return None
            if code[0] != LEAF:
                raw[key] = value
            items.append((key, code))
        self._raw[index] = raw
        if any(code[0] != STATIC for code in old.values()):
            return None
        noted = tuple(sorted(annotations.items())) if annotations else ()
        return (NODE, node.__class__, tuple(items), noted)

    def values(self) -> list[Any]:
        """Returns the current values, in the order of the leaves."""
        if ACTIVE:
            note_holders((self,))
        return [holder._value for holder in self.holders]


def _first(pair: tuple[int, Any]) -> int:
    return pair[0]


def static_item_key(value: Any, path: tuple[Any, ...], visible: bool = False) -> tuple[Any, ...]:
    if not visible:
        check_static(value, path)
    try:
        return object_key(value)
    except UnhashableStatic as error:
        got = type(error.value).__name__
        raise errors.StructureError(
            f"the attribute `{errors.format_path(path)}` holds a {got}, which is static (it is "
            "neither an array, a Variable nor a module), cannot be hashed and cannot be copied, so "
            "JAX could not tell when to compile again. Use a value that can be hashed (a tuple, a "
            "frozenset, a dataclass with frozen=True) or copied, or `moduli.data(...)` if it is a "
            "pytree of arrays."
        ) from None
