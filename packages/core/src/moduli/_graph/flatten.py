"""Flatten: from live objects to a GraphDef and the holders of its values.

A *holder* is anything with a ``_value``: a Variable, or a :class:`Slot` for a bare array that
stands directly in an attribute. Holders come in the order of the GraphDef's leaves, so a call of a
compiled program reads ``[h._value for h in holders]`` and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from moduli import errors
from moduli._base.epoch import EPOCH
from moduli._base.node import Bookkeeping, Node
from moduli._base.static_keys import (
    UnhashableStatic,
    is_held,
    metadata_key,
    static_value,
)
from moduli._graph import opened
from moduli._graph.data import is_array, is_data, is_graph_leaf, is_traceable
from moduli._graph.flat import Flat, static_item_key
from moduli._graph.graphdef import HELD, LEAF, NODE, OBJECT, STATIC, TREE, VARIABLE, GraphDef
from moduli._graph.hidden import check_array, check_class
from moduli._graph.holders import Fixed, Slot
from moduli._variable.box import Variable

__all__ = ["flatten_roots", "flatten_tree", "flatten_value", "watch_containers"]


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


def flatten_value(value: Any) -> Flat:
    """Flattens a number or an array: a Flat with one root, which is that value."""
    epoch = EPOCH[0]
    flattener = _Flattener()
    code = flattener.tree(value, None, (), as_data=True)
    return Flat(GraphDef((), (code,), 1, {}), flattener, epoch)


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
        key = static_item_key(value, path, visible)
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
            check_array(value, path)
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
        check_array(variable._value, path)
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
            if key.__class__ is not str and is_graph_leaf(key):
                raise errors.StructureError(
                    f"the dict at `{errors.format_path(path)}` has a {type(key).__name__} as a "
                    "key; the graph sees the values of a dict alone. Use a name as the key, and "
                    f"keep the {type(key).__name__} with the value: `{{name: (module, value)}}`"
                )
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
        """Encodes a tuple or another pytree.

        ``slot`` is the attribute that holds it; None for one that is a root itself. With
        ``as_data`` a value that is no container is data too, such as a number. What is no array
        inside of one, such as the functions and flags of a config that is a JAX pytree, stays
        static.
        """
        tree = opened.open_tree(value, sort=slot is None)
        codes = []
        for position, (name, leaf) in enumerate(zip(tree.names, tree.leaves, strict=True)):
            if is_graph_leaf(leaf):
                codes.append(self.value(leaf, None, path + name))
            elif is_data(leaf) or (as_data and is_traceable(leaf, bare=not name)):
                check_array(leaf, path + name)
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
