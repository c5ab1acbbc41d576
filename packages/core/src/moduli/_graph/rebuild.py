"""rebuild: a graph made again out of objects of which some exist already."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from moduli._base.foreign_trace import check_mutable
from moduli._graph.graphdef import VARIABLE, GraphDef
from moduli._graph.unflatten import build, decode, refill
from moduli._variable.box import Variable
from moduli._variable.metadata import EMPTY

__all__ = ["rebuild"]

_write_value = Variable.__dict__["_value"].__set__


def rebuild(
    graphdef: GraphDef[Any],
    leaves: Sequence[Any],
    existing: Mapping[int, Any],
    *,
    kept: Collection[int] = (),
) -> tuple[Any, list[Any]]:
    """Makes a graph in which objects that exist stand in their places, changed to what it says.

    Args:
      graphdef: the structure.
      leaves: for each of its leaves a value, or a Variable that holds it.
      existing: index in the structure's table -> the object that stands there.
      kept: indices of existing objects that stay as they are.

    Returns:
      The root, and the objects in the order of the table.

    Raises:
      TraceError: an object that is to change belongs to another trace. Nothing is changed then.

    Example:
      >>> import moduli as nnx
      >>> from moduli.lowlevel import rebuild
      >>> model = nnx.Dict({"w": nnx.Param(1.0)})
      >>> graphdef, leaves = nnx.flatten(nnx.Dict({"v": nnx.Param(2.0)}), with_paths=False)
      >>> root, objects = rebuild(graphdef, leaves, {0: model})
      >>> root is model, list(model)
      (True, ['v'])
    """
    values = [leaf._value if isinstance(leaf, Variable) else leaf for leaf in leaves]
    changing = {index: item for index, item in existing.items() if index not in kept}
    for item in changing.values():
        if isinstance(item, Variable):
            item._check_trace()
        else:
            check_mutable(item, "change attributes")
    objects = build(graphdef, values, existing)
    held: dict[int, Any] = {}
    for index, item in changing.items():
        entry = graphdef.objects[index]
        if entry[0] == VARIABLE:
            _write_value(item, values[entry[3]])
            metadata = graphdef.metadatas.get(index, EMPTY)
            if dict(metadata) != dict(item._metadata):
                item._set_all_metadata(metadata)
        else:
            refill(item, graphdef, index, objects, values, held)
            item._moduli.changed()
    return decode(graphdef.roots[0], objects, values), objects
