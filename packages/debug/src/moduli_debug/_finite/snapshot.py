"""Remembers what modules are, and makes them so again.

This is done in every call of a checked function, so it goes the quick way: core's cached flatten
for the values, and one look at each object for the structure.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

import moduli

__all__ = ["Snapshot", "arrays_in", "is_node"]

_node_types: dict[type, bool] = {}  # whether objects of a class have contents


def is_node(value: Any) -> bool:
    """Returns whether a value is a module or another object of a graph, but no Variable."""
    kind = value.__class__
    known = _node_types.get(kind)
    if known is None:
        known = _node_types[kind] = issubclass(kind, (moduli.Pytree, moduli.Module))
    return known


def arrays_in(tree: Any) -> list[Any]:
    """Lists the leaves of a pytree, also those of modules and Variables in it."""
    found: list[Any] = []
    for leaf in jax.tree.leaves(tree, is_leaf=is_node):
        if is_node(leaf):
            _, holders = moduli.flatten(leaf, with_paths=False)
            for holder in holders:
                found += _leaves(_value(holder))
        else:
            found.append(leaf)
    return found


class Snapshot:
    """The structure and the values of all objects in a pytree.

    Args:
      tree: a pytree of modules, Variables and arrays.
      copies: keep copies of the arrays, because the originals may be donated.

    Attributes:
      copies: whether copies are kept.
      arrays: the arrays that are in the tree.
    """

    def __init__(self, tree: Any, *, copies: bool):
        self._tree, self.copies = tree, copies
        leaves = jax.tree.leaves(tree, is_leaf=_is_object)
        self._roots = [leaf for leaf in leaves if _is_object(leaf)]
        self.arrays: list[Any] = [leaf for leaf in leaves if not _is_object(leaf)]
        self._parts: list[tuple[Any, list[Any], list[Any], list[Any]]] = []
        for root in self._roots:
            graphdef, holders = moduli.flatten(root, with_paths=False)
            values = list(map(_value, holders))
            metadata = [
                holder.get_metadata() if isinstance(holder, moduli.Variable) else None
                for holder in holders
            ]
            self._parts.append((graphdef, holders, values, metadata))
            for value in values:
                self.arrays += _leaves(value)
        self._nodes = list(_contents_below(self._roots))
        self._copied: dict[int, Any] = {}
        if copies:
            self._copied = {
                id(array): jnp.copy(array) for array in self.arrays if isinstance(array, jax.Array)
            }

    @property
    def is_donated(self) -> bool:
        """Whether some of the arrays were donated since, and are gone."""
        return any(map(_is_gone, self.arrays))

    def written(self) -> list[Any]:
        """Lists the arrays that the objects hold now and did not before."""
        found: list[Any] = []
        for root, (graphdef, holders, values, _) in zip(self._roots, self._parts, strict=True):
            graphdef_now, holders_now = moduli.flatten(root, with_paths=False)
            if graphdef_now is not graphdef or len(holders_now) != len(holders):
                return [array for _, array in self.written_by_path()]
            for holder, value in zip(holders_now, values, strict=True):
                now = _value(holder)
                if now is not value:
                    found += _leaves(now)
        return found

    def written_by_path(self) -> list[tuple[tuple[Any, ...], Any]]:
        """Lists the same with their paths."""
        before = set(map(id, self.arrays))
        return [
            (path, leaf)
            for path, item in moduli.iter_graph(self._tree)
            if path and not is_node(item)
            for leaf in _leaves(_value(item))
            if isinstance(leaf, (jax.Array, float, complex)) and id(leaf) not in before
        ]

    def restore(self) -> Any:
        """Makes all objects what they were.

        Returns:
          ``moduli.to_tree(tree)``, with copies in the place of what was donated.
        """
        for node, contents in self._nodes:
            _restore(node, contents)
        for _, holders, values, metadata in self._parts:
            for holder, value, entries in zip(holders, values, metadata, strict=True):
                if not isinstance(holder, moduli.Variable):
                    continue
                if any(map(_is_gone, _leaves(value))):
                    value = jax.tree.map(self._kept, value)
                if holder.get_raw_value() is not value:
                    holder.set_raw_value(value)
                if holder.get_metadata() != entries:
                    holder.set_metadata(entries)
        return jax.tree.map(self._kept, moduli.to_tree(self._tree))

    def _kept(self, leaf: Any) -> Any:
        return self._copied.get(id(leaf), leaf)


def _is_object(value: Any) -> bool:
    return isinstance(value, moduli.Variable) or is_node(value)


def _value(holder: Any) -> Any:
    return holder.get_raw_value() if isinstance(holder, moduli.Variable) else holder


def _leaves(value: Any) -> list[Any]:
    return [value] if isinstance(value, jax.Array) else jax.tree.leaves(value)


def _is_gone(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and leaf.is_deleted()


def _contents_below(roots: list[Any]) -> Iterator[tuple[Any, Any]]:
    """Yields each object below the roots with what it holds."""
    waiting = [root for root in roots if is_node(root)]
    seen = set(map(id, waiting))
    while waiting:
        node = waiting.pop()
        contents = _contents(node)
        yield node, contents
        for value in contents if isinstance(contents, list) else contents.values():
            below = (value,)
            if isinstance(value, (tuple, list, dict)) and not is_node(value):
                below = jax.tree.leaves(value, is_leaf=is_node)
            for item in below:
                if is_node(item) and id(item) not in seen:
                    seen.add(id(item))
                    waiting.append(item)


def _contents(node: Any) -> Any:
    if isinstance(node, moduli.List):
        return list(node)
    if isinstance(node, moduli.Dict):
        return dict(node.items())
    contents = dict(vars(node))
    contents.pop("_moduli", None)
    return contents


def _restore(node: Any, contents: Any) -> None:
    now = _contents(node)
    if isinstance(node, moduli.List):
        if len(now) != len(contents) or any(a is not b for a, b in zip(now, contents, strict=True)):
            node[:] = contents
        return
    items = isinstance(node, moduli.Dict)
    for name in [name for name in now if name not in contents]:
        if items:
            del node[name]
        else:
            delattr(node, name)
    for name, value in contents.items():
        if name in now and now[name] is value:
            continue
        if items:
            node[name] = value
        else:
            setattr(node, name, value)
