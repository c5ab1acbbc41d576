"""Residuals: a pytree with modules, kept between two traces as a list of arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax

from moduli._call.carried import is_array_like
from moduli._graph.data import is_graph_leaf
from moduli._graph.flatten import flatten_roots
from moduli._graph.unflatten import build, decode

__all__ = ["Residuals"]


class Residuals:
    """A pytree with modules, taken apart; it keeps everything but the arrays.

    Args:
      tree: the pytree.
    """

    def __init__(self, tree: Any):
        leaves, self._treedef = jax.tree.flatten(tree, is_leaf=is_graph_leaf)
        self._marks = [is_graph_leaf(leaf) for leaf in leaves]
        flat = flatten_roots([leaf for leaf in leaves if is_graph_leaf(leaf)])
        self._graphdef = flat.graphdef
        every = [*flat.values(), *[leaf for leaf in leaves if not is_graph_leaf(leaf)]]
        self._mask = [is_array_like(value) for value in every]
        self._static = [
            None if use else value for value, use in zip(every, self._mask, strict=True)
        ]
        self._arrays = [value for value, use in zip(every, self._mask, strict=True) if use]

    def take_arrays(self) -> list[Any]:
        """Returns the arrays, once: they may be tracers, which nothing may keep."""
        arrays, self._arrays = self._arrays, []
        return arrays

    def rebuild(self, arrays: Sequence[Any]) -> Any:
        """Puts the pytree together, with new modules, around arrays like those that were taken."""
        new = iter(arrays)
        every = [
            next(new) if use else old for use, old in zip(self._mask, self._static, strict=True)
        ]
        count = self._graphdef.num_leaves
        values, plain = every[:count], iter(every[count:])
        objects = build(self._graphdef, values)
        roots = iter([decode(code, objects, values) for code in self._graphdef.roots])
        return jax.tree.unflatten(
            self._treedef, [next(roots if mark else plain) for mark in self._marks]
        )
