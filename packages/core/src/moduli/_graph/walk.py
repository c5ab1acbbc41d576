"""Walks over live graphs: every node once, in a fixed order, children before their parent."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Unpack

from moduli._base.modes import Modes
from moduli._base.node import Node
from moduli._base.type_variables import Path
from moduli._graph.cache import flat_of
from moduli._graph.data import is_data, is_graph_leaf, iter_held, iter_pytree
from moduli._graph.flatten import flatten_tree
from moduli._variable.box import Variable
from moduli._variable.filters import to_predicate

__all__ = ["find_duplicates", "iter_graph", "iter_nodes", "node_children", "set_metadata"]


def node_children(node: Node) -> Iterator[tuple[Path, Any]]:
    """Yields (relative path, value) of the items of a node, through tuples and other pytrees."""
    annotations = node._moduli.annotations
    for key, value in node._items():
        status = annotations.get(key) if annotations else None
        if is_graph_leaf(value) or status == "static" or not (status or is_data(value)):
            yield (key,), value
        else:
            for inner, leaf in iter_held(value):
                yield (key, *inner), leaf


def iter_nodes(
    root: Any, kind: type, path: Path = (), seen: set[int] | None = None
) -> Iterator[tuple[Path, Any]]:
    """Yields (path, node) of every node of a kind below ``root``, ``root`` last."""
    if seen is None and isinstance(root, Node):
        flat = root._moduli.flat
        if flat is not None and (flat.is_current() or flat.revise()):
            objects = flat.objects
            for place, index in flat.graphdef.nodes_in_order:
                if isinstance(objects[index], kind):
                    yield path + place, objects[index]
            return
    seen = set() if seen is None else seen
    if not is_graph_leaf(root):  # a list, a dict, a State, ... that holds some
        for place, leaf in iter_pytree(root):
            if isinstance(leaf, Node):
                yield from iter_nodes(leaf, kind, path + place, seen)
        return
    if id(root) in seen:
        return
    seen.add(id(root))
    for relative, child in node_children(root):
        if isinstance(child, Node):
            yield from iter_nodes(child, kind, path + relative, seen)
    if isinstance(root, kind):
        yield path, root


def iter_graph(node: Any, /, **_modes: Unpack[Modes]) -> Iterator[tuple[Path, Any]]:
    """Walks every node, Variable, array and static attribute of a graph, each object once.

    Args:
      node: a Module, another node, or any JAX pytree that holds some.

    Yields:
      Pairs (path, value); children before their parent, attributes sorted by name, the root last
      with the path ``()``.

    Example:
      >>> import moduli as nnx
      >>> class Scale(nnx.Module):
      ...     def __init__(self):
      ...         self.size, self.scale = 3, nnx.Param(2.0)
      >>> [(path, type(value).__name__) for path, value in nnx.iter_graph(Scale())]
      [(('scale',), 'Param'), (('size',), 'int'), ((), 'Scale')]
    """
    seen: set[int] = set()
    if not is_graph_leaf(node):  # a list, a dict, a State, ... that holds some
        for path, leaf in iter_pytree(node):
            if path:
                yield from _iter_graph(leaf, path, seen)
        yield (), node
        return
    yield from _iter_graph(node, (), seen)


def _iter_graph(value: Any, path: Path, seen: set[int]) -> Iterator[tuple[Path, Any]]:
    if is_graph_leaf(value):
        if id(value) in seen:
            return
        seen.add(id(value))
    if isinstance(value, Node):
        for relative, child in node_children(value):
            yield from _iter_graph(child, path + relative, seen)
    yield path, value


def find_duplicates(node: Any, /, *, only: Any = ...) -> list[list[Path]]:
    """Finds nodes and Variables that a graph reaches by more than one path.

    Args:
      node: a Module or another node, or a tuple, list, dict or State of these.
      only: a filter on the shared objects.

    Returns:
      For each shared object the list of all its paths, in order of first meeting.

    Example:
      >>> import moduli as nnx
      >>> class Tied(nnx.Module):
      ...     def __init__(self):
      ...         self.a = nnx.Param(1.0)
      ...         self.b = self.a
      >>> nnx.find_duplicates(Tied())
      [[('a',), ('b',)]]
    """
    predicate = to_predicate(only)
    flat = flat_of(node) if is_graph_leaf(node) else flatten_tree(node)
    if flat.graphdef.is_tree:
        return []
    paths: dict[int, list[Path]] = {}
    for path, index in _references(node):
        paths.setdefault(index, []).append(path)
    objects = {id(value): value for value in flat.objects}
    return [
        found
        for index, found in paths.items()
        if len(found) > 1 and predicate(found[0], objects[index])
    ]


def _references(root: Any) -> Iterator[tuple[Path, int]]:
    """Yields (path, id) of every reference; the inside of a shared node is entered once."""
    seen: set[int] = set()

    def visit(value: Any, path: Path) -> Iterator[tuple[Path, int]]:
        yield path, id(value)
        if id(value) in seen:
            return
        seen.add(id(value))
        if isinstance(value, Node):
            for relative, child in node_children(value):
                if is_graph_leaf(child):
                    yield from visit(child, path + relative)

    if is_graph_leaf(root):
        yield from visit(root, ())
        return
    for path, leaf in iter_pytree(root):
        if is_graph_leaf(leaf):
            yield from visit(leaf, path)


def set_metadata(node: Any, /, *, only: Any = Variable, **metadata: Any) -> None:
    """Writes metadata of the Variables of a graph, in place.

    Args:
      node: a Module or another node.
      only: a filter on the Variables.
      **metadata: the entries to write.

    Example:
      >>> import moduli as nnx
      >>> model = nnx.Dict({"scale": nnx.Param(1.0), "count": nnx.Variable(0)})
      >>> nnx.set_metadata(model, trainable=False, only=nnx.Param)
      >>> model["scale"].get_metadata(), model["count"].get_metadata()
      ({'trainable': False}, {})
    """
    predicate = to_predicate(only)
    for path, value in iter_graph(node):
        if isinstance(value, Variable) and predicate(path, value):
            value.set_metadata(**metadata)
