"""Modules as JAX pytrees with key paths: taken apart, put together, and watched for lost writes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jax

from moduli import errors
from moduli._base.compat import trace_state
from moduli._base.epoch import EPOCH
from moduli._base.lost_writes import Watch, note_trace, now_inside
from moduli._base.node import Bookkeeping, BorrowedBookkeeping, Node
from moduli._base.source_lines import describe_site
from moduli._base.static_keys import has_key, is_held, object_key, static_value
from moduli._graph.cache import flat_of
from moduli._graph.data import (
    is_array,
    is_data,
    is_graph_leaf,
    iter_held,
    part_of,
)
from moduli._graph.opened import for_jax
from moduli._variable.box import Variable

__all__ = ["check_tree", "node_structure", "register", "register_node"]

_SIMPLE = frozenset((int, float, bool, str, bytes, complex, type(None)))


class Structure:
    """The static half of one node for JAX: class, attribute names, static values, annotations.

    ``trace``, the trace in which the node was taken apart, is no part of what is compared.
    """

    __slots__ = ("annotations", "hash", "key", "names", "order", "static", "trace")

    def __init__(
        self,
        order: tuple[Any, ...],
        names: tuple[Any, ...],
        static: tuple[Any, ...],
        annotations: dict[str, str] | None,
        trace: Any,
    ):
        self.trace = trace
        self.order, self.names, self.static = order, names, static
        self.annotations = annotations
        noted = annotations is not None and "" in annotations  # the rest shows in the names
        self.key = (names, tuple([(name, object_key(value)) for name, value in static]), noted)
        self.hash = hash(self.key)

    def static_items(self) -> list[tuple[Any, Any]]:
        """The static items as they were: one that has changed since is made again."""
        return [
            (name, static_value(key) if is_held(key) and not has_key(value, key) else value)
            for (name, value), (_, key) in zip(self.static, self.key[1], strict=True)
        ]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Structure) and self.key == other.key

    def __hash__(self) -> int:
        return self.hash

    def __repr__(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.static)


def check_tree(node: Node) -> None:
    """Raises if JAX would copy a shared reference, or never end in a cycle, below ``node``."""
    book = node._moduli
    if book.tree_epoch == EPOCH[0]:
        return
    flat = flat_of(node)
    if not flat.graphdef.is_tree or len(flat.graphdef.roots) != 1:
        _raise_shared(node)
    epoch = EPOCH[0]
    if flat.has_containers:
        return
    for item in flat.objects:
        if isinstance(item, Node):
            item._moduli.tree_epoch = epoch


def _raise_shared(node: Node) -> None:
    from moduli._graph.walk import find_duplicates

    paths = find_duplicates(node)[0]
    first, second = errors.format_path(paths[0]), errors.format_path(paths[1])
    shared: Any = node
    for part in paths[0]:
        shared = part_of(shared, part)
    site = describe_site(shared)
    raise errors.StructureError(
        f"{type(node).__name__} cannot be taken as a plain JAX pytree: `{first}` and `{second}` "
        f"are the same {type(shared).__name__}{f' ({site})' if site else ''}, and JAX would copy "
        "it (or never end, if it is a cycle). Use "
        "moduli's transforms (`moduli.jit`, `moduli.grad`, ...), which keep shared references, or "
        "`graphdef, state = moduli.split(model)` and pass the state."
    )


def node_structure(node: Node) -> tuple[list[Any], list[Any], Structure]:
    """Sorts the items of one node into data keys, data values and the static rest."""
    check_tree(node)
    annotations = node._moduli.annotations
    keys: list[Any] = []
    children: list[Any] = []
    rest: list[tuple[Any, Any]] = []
    items = node._items()
    for key, value in items:
        status = annotations.get(key) if annotations else None
        if status == "data" or (
            status is None
            and value.__class__ not in _SIMPLE  # quicker to say than what follows
            and (is_graph_leaf(value) or is_array(value) or is_data(value))
        ):
            keys.append(key)
            children.append(value if is_graph_leaf(value) else for_jax(value))
        else:
            rest.append((key, value))
    order = tuple(key for key, _ in items)
    return keys, children, Structure(order, tuple(keys), tuple(rest), annotations, note_trace())


def _watch(node: Node, names: Iterable[Any], items: dict[Any, Any]) -> None:
    """Watches for writes into a copy that JAX has made inside a trace; see ``_dropped``."""
    variables: list[tuple[tuple[Any, ...], Variable[Any]]] = []
    parts: list[tuple[tuple[Any, ...], Bookkeeping]] = []
    for name in names:
        for path, leaf in iter_held(items[name]):
            if isinstance(leaf, Variable):
                variables.append(((name, *path), leaf))
            elif isinstance(leaf, Node):
                parts.append(((name, *path), leaf._moduli))
    node.__dict__["_moduli"] = book = BorrowedBookkeeping(node._moduli.trace)
    book.watch = Watch(type(node).__name__, variables, parts)


def register_node(cls: type[Node], entry: Any) -> None:
    """Registers a node class with JAX.

    Args:
      cls: the class.
      entry: turns an item's key into JAX's key path entry.
    """

    def flatten(node: Node) -> tuple[list[Any], Structure]:
        _, children, structure = node_structure(node)
        return children, structure

    def flatten_with_keys(node: Node) -> tuple[list[Any], Structure]:
        keys, children, structure = node_structure(node)
        return list(zip(map(entry, keys), children, strict=True)), structure

    def unflatten(structure: Structure, children: Iterable[Any]) -> Node:
        trace = trace_state()
        node = cls._make_empty(trace)
        items = dict(zip(structure.names, children, strict=True))
        annotations = dict(structure.annotations or ())
        for name, child in items.items():
            if not (is_graph_leaf(child) or is_data(child)):
                annotations[name] = "data"  # JAX puts any object in the place of an array
        items.update(structure.static_items())
        node._fill((name, items[name]) for name in structure.order)
        if structure.trace != trace and now_inside(structure.trace):
            _watch(node, structure.names, items)
        node._moduli.annotations = annotations or None
        return node

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)


def _list_entry(key: Any) -> Any:
    """The entry of an element, or of an attribute that a List was given."""
    entries: Any = jax.tree_util.GetAttrKey if isinstance(key, str) else jax.tree_util.SequenceKey
    return entries(key)


def register(cls: type[Node]) -> None:
    if issubclass(cls, list):
        register_node(cls, _list_entry)
    elif issubclass(cls, dict):
        register_node(cls, jax.tree_util.DictKey)
    else:
        register_node(cls, jax.tree_util.GetAttrKey)
