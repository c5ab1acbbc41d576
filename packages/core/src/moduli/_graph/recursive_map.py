"""recursive_map: a new graph from a function of every leaf and node, from the bottom up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Unpack

import jax

from moduli import errors
from moduli._base.compat import trace_state
from moduli._base.modes import Modes
from moduli._base.node import Node
from moduli._base.type_variables import Path
from moduli._graph.data import Annotated, adopt, is_array, is_graph_leaf, plain_key
from moduli._variable.box import Variable

__all__ = ["recursive_map"]


def recursive_map(f: Callable[[Path, Any], Any], node: Any, /, **_modes: Unpack[Modes]) -> Any:
    """Builds a new graph from ``f(path, value)`` of every leaf and node, from the bottom up.

    ``f`` gets static attributes, arrays and Variables as they are, and each module, container or
    tuple as a copy that already holds what ``f`` returned for its parts. What ``f`` returns stands
    in the new graph. An object that is referred to several times is given to ``f`` once, with the
    path of its first meeting, and the new graph shares the result.

    A Variable that ``f`` returns as it is belongs to both graphs; return ``variable.copy()``, or
    clone the result with :func:`clone`, for graphs that share nothing.

    Args:
      f: takes the path (names and indices from the root) and the value; returns the new value.
      node: a Module, another node, or any pytree that holds some.

    Returns:
      What ``f`` returned for the root. ``node`` itself does not change.

    Raises:
      StructureError: if ``f`` returns another object for a node that refers to itself, so that the
        reference inside would keep the copy that ``f`` was given.

    Example:
      >>> import moduli as nnx
      >>> class Block(nnx.Module):
      ...     def __init__(self):
      ...         self.scale, self.size = nnx.Param(2.0), 3
      >>> def double(path, value):
      ...     print(path, type(value).__name__)
      ...     return value.copy(2 * value.value) if isinstance(value, nnx.Param) else value
      >>> block = Block()
      >>> new = nnx.recursive_map(double, block)
      ('scale',) Param
      ('size',) int
      () Block
      >>> new.scale.value, block.scale.value
      (4.0, 2.0)
    """
    return _Mapping(f).value(node, ())


class _Mapping:
    """One pass over a graph.

    Attributes:
      results: id of an object of the old graph -> what ``f`` returned for it.
      entered: id of a node that is being worked on -> its copy.
      cycles: id of such a node -> the path of a reference to it from below.
    """

    def __init__(self, f: Callable[[Path, Any], Any]):
        self.f = f
        self.trace = trace_state()
        self.results: dict[int, Any] = {}
        self.entered: dict[int, Node] = {}
        self.cycles: dict[int, Path] = {}

    def value(self, value: Any, path: Path) -> Any:
        if not is_graph_leaf(value):
            return self.tree(value, path)
        key = id(value)
        if key in self.results:
            return self.results[key]
        if isinstance(value, Variable):
            result = self.f(path, value)
        elif key in self.entered:
            self.cycles.setdefault(key, path)
            return self.entered[key]
        else:
            result = self.node(value, path)
        self.results[key] = result
        return result

    def node(self, node: Node, path: Path) -> Any:
        node._check_source()
        copy = self.entered[id(node)] = type(node)._make_empty(self.trace)
        statuses = dict(node._moduli.annotations or {})
        items: list[tuple[Any, Any]] = []
        for key, old in node._items():
            new = self.value(old, (*path, key))
            if isinstance(new, Annotated):
                statuses[key] = new.status
                new = new.value
            items.append((key, new if new is old else adopt(new)))
        copy._fill(items)
        copy._moduli.annotations = statuses or None
        result = self.f(path, copy)
        back = self.cycles.get(id(node))
        if back is not None and result is not copy:
            raise errors.StructureError(
                f"recursive_map: the function returned another object ({type(result).__name__}) "
                f"for the {type(node).__name__} at `{errors.format_path(path)}`, but "
                f"`{errors.format_path(back)}` below it refers back to it and already holds the "
                "copy that the function was given; change that copy and return it"
            )
        del self.entered[id(node)]
        return result

    def tree(self, value: Any, path: Path) -> Any:
        """Maps a tuple or another pytree level by level; anything else is a leaf."""
        if not is_array(value):
            pairs, treedef = jax.tree_util.tree_flatten_with_path(
                value, is_leaf=lambda part: part is not value
            )
            if not (len(pairs) == 1 and pairs[0][1] is value):
                parts = [self.value(part, (*path, *map(plain_key, key))) for key, part in pairs]
                if any(new is not old for new, (_, old) in zip(parts, pairs, strict=True)):
                    value = jax.tree.unflatten(treedef, parts)
        return self.f(path, value)
