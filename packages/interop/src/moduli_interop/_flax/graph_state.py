"""GraphState: a State that carries the structure of the graph which it belongs to."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from typing import Any, Generic, TypeVar

import jax

import moduli
from moduli.errors import StructureError

__all__ = ["GraphState", "PureState", "unpack"]

T = TypeVar("T")

PureState = tuple[moduli.GraphDef[T], moduli.State]
"""What :func:`moduli.split` returns, for annotations: ``PureState[Model]``."""


class GraphState(MutableMapping[Any, Any], Generic[T]):
    """A State together with its GraphDef; made by :func:`unpack`, taken by :func:`moduli.merge`.

    It is used like the State: by items, by attributes, and as a JAX pytree.

    Args:
      graphdef: the structure.
      state: all values, or some of them.
    """

    _graphdef: moduli.GraphDef[T]
    _state: moduli.State

    def __init__(self, graphdef: moduli.GraphDef[T], state: moduli.State):
        if not isinstance(state, moduli.State):
            raise StructureError(f"GraphState needs a State; got a {type(state).__name__}")
        object.__setattr__(self, "_graphdef", graphdef)
        object.__setattr__(self, "_state", state)

    def __moduli_split__(self) -> tuple[moduli.GraphDef[T], moduli.State]:
        """Returns what :func:`moduli.merge` takes."""
        return self._graphdef, self._state

    def __getattr__(self, name: str) -> Any:
        if name in ("_graphdef", "_state") or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._state, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("_graphdef", "_state"):
            object.__setattr__(self, name, value)
        else:
            setattr(self._state, name, value)

    def __getitem__(self, key: Any) -> Any:
        return self._state[key]

    def __setitem__(self, key: Any, value: Any) -> None:
        self._state[key] = value

    def __delitem__(self, key: Any) -> None:
        del self._state[key]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._state)

    def __len__(self) -> int:
        return len(self._state)

    def __repr__(self) -> str:
        return f"GraphState(\n  graphdef={self._graphdef!r},\n  state={self._state!r}\n)"


def _parts(item: GraphState[Any]) -> tuple[list[Any], Any]:
    """Returns (key path, value) of each entry of the State, and how to make a State of values."""
    state = item._state
    return jax.tree_util.tree_flatten_with_path(state, is_leaf=lambda part: part is not state)


def _flatten_with_keys(item: GraphState[Any]) -> tuple[list[tuple[Any, Any]], Any]:
    pairs, treedef = _parts(item)
    return [(path[0], value) for path, value in pairs], (item._graphdef, treedef)


def _flatten(item: GraphState[Any]) -> tuple[list[Any], Any]:
    pairs, treedef = _parts(item)
    return [value for _, value in pairs], (item._graphdef, treedef)


def _unflatten(static: Any, values: Any) -> GraphState[Any]:
    graphdef, treedef = static
    return GraphState(graphdef, jax.tree.unflatten(treedef, values))


jax.tree_util.register_pytree_with_keys(GraphState, _flatten_with_keys, _unflatten, _flatten)


def unpack(node: Any, /, *filters: Any, graph: bool | None = None) -> Any:
    """Takes a graph apart like :func:`moduli.split`, and keeps the structure with each State.

    Args:
      node: a Module or another graph node.
      *filters: divide the values; together they select all.
      graph: accepted, as everywhere.

    Returns:
      One :class:`GraphState`, or one for each filter if there are several.

    Example:
      >>> import moduli as nnx
      >>> model = nnx.Dict({"w": nnx.Param(1.0), "n": nnx.BatchStat(2.0)})
      >>> params, statistics = nnx.unpack(model, nnx.Param, ...)
      >>> nnx.merge(params, statistics)["n"].value
      2.0
    """
    graphdef, *states = moduli.split(node, *filters)
    packed = tuple(GraphState(graphdef, state) for state in states)
    return packed[0] if len(packed) == 1 else packed
