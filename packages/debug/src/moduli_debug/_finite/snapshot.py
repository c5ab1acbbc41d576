"""Remembers what modules are, and makes them so again."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

import moduli

__all__ = ["Snapshot"]


class Snapshot:
    """The structure and the values of all objects in a pytree.

    Args:
      tree: a pytree of modules, Variables and arrays.
      copies: keep copies of the arrays, because the originals may be donated.

    Attributes:
      copies: whether copies are kept.
      values: ``moduli.to_tree(tree)`` with what is kept.
    """

    def __init__(self, tree: Any, *, copies: bool):
        self._tree, self.copies = tree, copies
        self._copied: dict[int, Any] = {}
        self._arrays: dict[int, Any] = {}
        self._variables: list[tuple[moduli.Variable[Any], Any, dict[str, Any]]] = []
        self._nodes: list[tuple[Any, Any]] = []
        for _, item in moduli.iter_graph(tree):
            if isinstance(item, moduli.Variable):
                value = item.get_raw_value()
                self._variables.append((item, value, item.get_metadata()))
                self._keep(value)
            elif isinstance(item, (moduli.Pytree, moduli.Module)):
                self._nodes.append((item, _contents(item)))
            else:
                self._keep(item)
        values = moduli.to_tree(tree)
        self.values = jax.tree.map(self._kept, values) if copies else values

    def _keep(self, value: Any) -> None:
        for leaf in jax.tree.leaves(value):
            if isinstance(leaf, jax.Array):
                self._arrays[id(leaf)] = leaf
                if self.copies:
                    self._copied[id(leaf)] = jnp.copy(leaf)

    def _kept(self, leaf: Any) -> Any:
        return self._copied.get(id(leaf), leaf)

    @property
    def is_donated(self) -> bool:
        """Whether some of the arrays were donated since, and are gone."""
        return any(array.is_deleted() for array in self._arrays.values())

    def written(self) -> list[tuple[tuple[Any, ...], Any]]:
        """Lists the arrays that the objects hold now and did not before, with their paths."""
        found: list[tuple[tuple[Any, ...], Any]] = []
        for path, item in moduli.iter_graph(self._tree):
            if isinstance(item, moduli.Variable):
                item = item.get_raw_value()
            elif isinstance(item, (moduli.Pytree, moduli.Module)) or not path:
                continue
            for leaf in jax.tree.leaves(item):
                if isinstance(leaf, jax.Array) and id(leaf) not in self._arrays:
                    found.append((path, leaf))
        return found

    def restore(self) -> None:
        """Makes all objects what they were."""
        for node, contents in self._nodes:
            _restore(node, contents)
        for variable, value, metadata in self._variables:
            if any(_is_gone(leaf) for leaf in jax.tree.leaves(value)):
                value = jax.tree.map(self._kept, value)
            if variable.get_raw_value() is not value:
                variable.set_raw_value(value)
            if variable.get_metadata() != metadata:
                variable.set_metadata(metadata)


def _is_gone(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and leaf.is_deleted()


def _contents(node: Any) -> Any:
    if isinstance(node, moduli.List):
        return list(node)
    if isinstance(node, moduli.Dict):
        return dict(node.items())
    return {name: value for name, value in vars(node).items() if name != "_moduli"}


def _restore(node: Any, contents: Any) -> None:
    now = _contents(node)
    if isinstance(node, moduli.List):
        if len(now) != len(contents) or any(a is not b for a, b in zip(now, contents)):
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
