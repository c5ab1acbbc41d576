"""Flatten: from live objects to a GraphDef and the holders of its values.

A *holder* is anything with a ``_value``: a Variable, or a :class:`Slot` for a bare array that
stands directly in an attribute. Holders come in the order of the GraphDef's leaves, so a call of a
compiled program reads ``[h._value for h in holders]`` and nothing else.
"""

from __future__ import annotations

import operator
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from moduli import errors
from moduli._base.closed_over import ACTIVE, note_holders
from moduli._base.epoch import EPOCH
from moduli._base.node import Bookkeeping, Node
from moduli._base.static_keys import (
    UnhashableStatic,
    has_key,
    is_held,
    metadata_key,
    object_key,
    static_value,
)
from moduli._graph import opened
from moduli._graph.data import is_array, is_data, is_graph_leaf
from moduli._graph.graphdef import HELD, LEAF, NODE, OBJECT, STATIC, TREE, VARIABLE, GraphDef
from moduli._graph.hidden import check_class, check_static
from moduli._variable.box import Variable

__all__ = [
    "Fixed",
    "Flat",
    "Slot",
    "flatten_roots",
    "flatten_tree",
    "identity",
    "watch_containers",
]

_version: Callable[[Bookkeeping], int] = operator.attrgetter("version")
_metadata: Callable[[Variable[Any]], Any] = operator.attrgetter("_metadata")


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

    def __init__(self, graphdef: GraphDef, flattener: _Flattener, epoch: int):
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
                if before[0] == snapshot[0] and all(map(operator.is_, before[1], snapshot[1])):
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
                    code[0] == LEAF and status is None and is_array(value)
                )
                if not same:
                    return None
            elif status == "data" or (status is None and is_data(value)):
                return None
            else:
                try:
                    code = (STATIC, _static_key(value, (key,), key in node._may_carry))
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


def flatten_roots(roots: Sequence[Any]) -> Flat:
    """Flattens nodes and Variables together, so that sharing between them is kept.

    Args:
      roots: nodes and Variables.

    Returns:
      One Flat whose GraphDef has as many roots.

    Raises:
      StructureError: if a static attribute can neither be hashed nor copied, or a plain list or
        dict behind a container was changed through another reference.
    """
    epoch = EPOCH[0]
    flattener = _Flattener()
    codes = tuple(
        flattener.value(root, None, (number,) if len(roots) > 1 else ())
        for number, root in enumerate(roots)
    )
    graphdef = GraphDef(tuple(flattener.table), codes, len(flattener.holders), flattener.metadatas)
    return Flat(graphdef, flattener, epoch)


def flatten_tree(tree: Any) -> Flat:
    """Flattens a tuple, list, dict, State or another JAX pytree that holds nodes and Variables.

    Args:
      tree: the pytree, no node or Variable itself.

    Returns:
      A Flat with one root, which stands for the whole tree: sharing between its parts is kept.

    Raises:
      StructureError: as of :func:`flatten_roots`.
    """
    epoch = EPOCH[0]
    flattener = _Flattener()
    code = flattener.tree(tree, None, (), as_data=False)
    graphdef = GraphDef(
        tuple(flattener.table), (code,), len(flattener.holders), flattener.metadatas
    )
    return Flat(graphdef, flattener, epoch)


def watch_containers(
    graphdef: GraphDef, objects: Sequence[Any]
) -> list[tuple[Bookkeeping, list[opened.Watch]]]:
    """Watches the containers in the nodes of a graph, after it was built.

    Args:
      graphdef: the structure.
      objects: its objects.

    Returns:
      For each node that holds containers its bookkeeping and their watches.
    """
    found = []
    for index, key in graphdef.trees:
        node = objects[index]
        watched = opened.open_tree(node._read(key)).watched
        if watched:
            found.append((node._moduli, [opened.Watch(item, level) for item, level in watched]))
    return found


class _Flattener:
    """One pass over a graph."""

    def __init__(self) -> None:
        self.watches: list[tuple[Bookkeeping, list[opened.Watch]]] = []
        self.table: list[Any] = []
        self.objects: list[Any] = []
        self.holders: list[Any] = []
        self.metadatas: dict[int, Any] = {}
        self.index: dict[int, int] = {}
        self.held: list[tuple[Any, Any]] = []
        self.numbers: dict[int, int] = {}

    def static(self, value: Any, path: tuple[Any, ...], visible: bool = False) -> tuple[Any, ...]:
        """Encodes a static value."""
        key = _static_key(value, path, visible)
        if not is_held(key):
            return (STATIC, key)
        self.held.append((value, key))
        return (HELD, key, self.numbers.setdefault(id(value), len(self.numbers)))

    def value(self, value: Any, slot: Slot | None, path: tuple[Any, ...]) -> tuple[Any, ...]:
        """Encodes one attribute value; ``slot`` is where a bare array would stand."""
        if isinstance(value, Variable):
            return self.variable(value, path)
        if isinstance(value, Node):
            return self.node(value, path)
        if is_array(value):
            self.holders.append(slot)
            return (LEAF, len(self.holders) - 1)
        if is_data(value):
            return self.tree(value, slot, path, as_data=False)
        return self.static(value, path)

    def variable(self, variable: Variable[Any], path: tuple[Any, ...]) -> tuple[int, int]:
        known = self.index.get(id(variable))
        if known is not None:
            return (OBJECT, known)
        position = self.index[id(variable)] = len(self.table)
        metadata = variable._metadata
        key: Any = ()
        if metadata:
            try:
                key = metadata_key(dict(sorted(metadata.items())))
            except UnhashableStatic as error:
                raise errors.StructureError(
                    f"the metadata of the {type(variable).__name__} at "
                    f"`{errors.format_path(path)}` holds a {type(error.value).__name__}, which "
                    "can neither be hashed nor copied; metadata is static: use a tuple, a string "
                    "or a number"
                ) from None
            changing = [(name, item) for name, item in key[1] if is_held(item)]
            if changing:
                self.held += [(metadata[name], item) for name, item in changing]
                metadata = {**metadata, **{name: static_value(item) for name, item in changing}}
            self.metadatas[position] = metadata
        self.table.append((VARIABLE, variable.__class__, key, len(self.holders)))
        self.objects.append(variable)
        self.holders.append(variable)
        return (OBJECT, position)

    def node(self, node: Node, path: tuple[Any, ...]) -> tuple[int, int]:
        known = self.index.get(id(node))
        if known is not None:
            return (OBJECT, known)
        position = self.index[id(node)] = len(self.table)
        self.table.append(None)
        self.objects.append(node)
        book = node._moduli
        if book.source is not None:
            node._check_source()
        check_class(node, path)
        book.tracked = True
        annotations = book.annotations
        items = []
        for key, value in node._items():
            status = annotations.get(key) if annotations else None
            child = (*path, key)
            slot = Slot(node, key)
            if key in node._may_carry and status is None and not is_data(value):
                code = self.static(value, child, visible=True)
            elif status is None or is_graph_leaf(value):
                code = self.value(value, slot, child)
            elif status == "static":
                code = self.static(value, child, key in node._may_carry)
            else:
                code = self.tree(value, slot, child, as_data=True)
            items.append((key, code))
        noted = tuple(sorted(annotations.items())) if annotations else ()
        self.table[position] = (NODE, node.__class__, tuple(items), noted)
        return (OBJECT, position)

    def tree(
        self, value: Any, slot: Slot | None, path: tuple[Any, ...], *, as_data: bool
    ) -> tuple[Any, ...]:
        """Encodes a tuple or another pytree; with ``as_data`` every plain leaf is data too.

        ``slot`` is the attribute that holds it; None for one that is a root itself.
        """
        tree = opened.open_tree(value, sort=slot is None)
        codes = []
        for position, (name, leaf) in enumerate(zip(tree.names, tree.leaves, strict=True)):
            if is_graph_leaf(leaf):
                codes.append(self.value(leaf, None, path + name))
            elif as_data or is_data(leaf):
                trail = tree.trails[position]
                self.holders.append(
                    Fixed(leaf) if slot is None else Slot(slot.node, slot.key, position, trail)
                )
                codes.append((LEAF, len(self.holders) - 1))
            else:
                codes.append(self.static(leaf, path + name))
        if slot is not None and tree.watched:
            watches = [opened.Watch(container, level) for container, level in tree.watched]
            self.watches.append((slot.node._moduli, watches))
        return (TREE, tree.recipe, tuple(tree.names), tuple(codes))


def _static_key(value: Any, path: tuple[Any, ...], visible: bool = False) -> tuple[Any, ...]:
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
