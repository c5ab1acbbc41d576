"""Unflatten: from a GraphDef and values to new objects, or into existing ones."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

from moduli._base.compat import trace_state
from moduli._base.static_keys import static_value
from moduli._graph.graphdef import HELD, LEAF, NODE, OBJECT, STATIC, TREE, VARIABLE, GraphDef
from moduli._graph.opened import pour
from moduli._variable.metadata import EMPTY

__all__ = ["build", "decode", "fill", "refill"]


def build(
    graphdef: GraphDef, values: Sequence[Any], existing: Mapping[int, Any] | None = None
) -> list[Any]:
    """Makes the objects of a GraphDef.

    Args:
      graphdef: the structure.
      values: one value for each leaf.
      existing: object index -> an object that stands in its place and is left as it is.

    Returns:
      The objects in the order of the GraphDef's table.
    """
    trace = trace_state()
    objects: list[Any] = []
    held: dict[int, Any] = {}
    metadatas = graphdef.metadatas
    for index, entry in enumerate(graphdef.objects):
        if existing is not None and index in existing:
            objects.append(existing[index])
        elif entry[0] == VARIABLE:
            metadata = metadatas.get(index, EMPTY)
            objects.append(entry[1]._make(values[entry[3]], metadata, trace))
        else:
            objects.append(entry[1]._make_empty(trace))
    for index, entry in enumerate(graphdef.objects):
        if entry[0] == NODE and (existing is None or index not in existing):
            fill(objects[index], graphdef, index, objects, values, held)
    return objects


def refill(
    node: Any,
    graphdef: GraphDef,
    index: int,
    objects: Sequence[Any],
    values: Sequence[Any],
    held: dict[int, Any],
) -> None:
    """Like :func:`fill`, and keeps the containers in which a user's node holds its items."""
    kept = {}
    for key, code in graphdef.objects[index][2]:
        if code[0] == TREE:
            with contextlib.suppress(KeyError, IndexError, TypeError):
                kept[key] = node._read(key)
    fill(node, graphdef, index, objects, values, held)
    for key, old in kept.items():
        node._write(key, pour(old, node._read(key)))


def fill(
    node: Any,
    graphdef: GraphDef,
    index: int,
    objects: Sequence[Any],
    values: Sequence[Any],
    held: dict[int, Any],
) -> None:
    """Gives a node exactly the items that its entry in the table says.

    Args:
      node: the node.
      graphdef: the structure.
      index: where the node stands in the table.
      objects: the objects of the GraphDef.
      values: its values.
      held: the static values that may change, by number; those that are missing are made.
    """
    template = graphdef.templates[index]
    assert template is not None
    node._fill(
        [
            (
                key,
                what
                if kind == STATIC
                else objects[what]
                if kind == OBJECT
                else values[what]
                if kind == LEAF
                else decode(what, objects, values, held),
            )
            for key, kind, what in template
        ]
    )
    node._moduli.annotations = dict(graphdef.objects[index][3]) or None


def decode(
    code: tuple[Any, ...],
    objects: Sequence[Any],
    values: Sequence[Any],
    held: dict[int, Any] | None = None,
) -> Any:
    """Turns the encoding of a value back into the value; ``held`` as of :func:`fill`."""
    kind = code[0]
    if kind == OBJECT:
        return objects[code[1]]
    if kind == STATIC:
        return static_value(code[1])
    if kind == LEAF:
        return values[code[1]]
    if kind == HELD:
        if held is None:
            return static_value(code[1])
        if code[2] not in held:
            held[code[2]] = static_value(code[1])
        return held[code[2]]
    leaves = [decode(child, objects, values, held) for child in code[3]]
    return code[1].unflatten(leaves)
