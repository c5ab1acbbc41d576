"""to_tree and from_tree: graphs of modules as plain pytrees, with what they share."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jax

from moduli import errors
from moduli._graph.data import is_graph_leaf
from moduli._graph.flatten import flatten_roots
from moduli._graph.graphdef import GraphDef, root_and_path
from moduli._graph.unflatten import build, decode

__all__ = ["NodeStates", "from_tree", "to_tree"]


class NodeStates:
    """One module of a pytree, taken apart: a pytree of values that raw JAX can transform.

    Attributes:
      graphdef: the structure of all modules of the pytree together.
      number: which of its roots this is.
      places: which of its values stand here; a shared one stands where it is met first.
      values: these values.
    """

    __slots__ = ("graphdef", "number", "places", "values")

    def __init__(
        self, graphdef: GraphDef, number: int, places: tuple[int, ...], values: Iterable[Any]
    ):
        self.graphdef, self.number, self.places = graphdef, number, places
        self.values = tuple(values)

    def __repr__(self) -> str:
        roots = len(self.graphdef.roots)
        return f"NodeStates(root {self.number} of {roots}, {len(self.values)} values)"


jax.tree_util.register_pytree_node(
    NodeStates,
    lambda node: (node.values, (node.graphdef, node.number, node.places)),
    lambda static, values: NodeStates(*static, values),
)


def to_tree(tree: Any, /) -> Any:
    """Replaces each module of a pytree by a :class:`NodeStates`.

    Args:
      tree: a pytree of modules, Variables and arrays. They may share references, also among each
        other.

    Returns:
      A pytree without modules, for raw JAX transforms; :func:`from_tree` is the inverse.

    Example:
      >>> import moduli as nnx, jax
      >>> model = nnx.Dict({"w": nnx.Param(2.0)})
      >>> tree = nnx.to_tree((model, {"again": model}, 1.0))
      >>> jax.tree.leaves(tree)
      [2.0, 1.0]
      >>> first, second, _ = nnx.from_tree(jax.tree.map(lambda x: x + 1, tree))
      >>> first is second["again"], first["w"].value
      (True, 3.0)
    """
    leaves, treedef = jax.tree.flatten(tree, is_leaf=is_graph_leaf)
    roots = [leaf for leaf in leaves if is_graph_leaf(leaf)]
    flat = flatten_roots(roots)
    values = flat.values()
    places: list[list[int]] = [[] for _ in roots]
    for index, path in enumerate(flat.graphdef.leaf_paths):
        places[path[0] if len(roots) > 1 else 0].append(index)
    numbers = iter(range(len(roots)))
    converted = []
    for leaf in leaves:
        if is_graph_leaf(leaf):
            number = next(numbers)
            own = tuple(places[number])
            leaf = NodeStates(flat.graphdef, number, own, [values[i] for i in own])
        converted.append(leaf)
    return jax.tree.unflatten(treedef, converted)


def from_tree(tree: Any, /) -> Any:
    """Builds the modules of a pytree that :func:`to_tree` took apart.

    Args:
      tree: a pytree with NodeStates.

    Returns:
      The pytree with new modules, which share what the original ones shared.

    Raises:
      StructureError: if a NodeStates is missing whose values another one shares.
    """

    def is_state(leaf: Any) -> bool:
        return isinstance(leaf, NodeStates)

    leaves, treedef = jax.tree.flatten(tree, is_leaf=is_state)
    built = iter(_build([leaf for leaf in leaves if is_state(leaf)]))
    return jax.tree.unflatten(treedef, [next(built) if is_state(x) else x for x in leaves])


def _build(states: list[NodeStates]) -> list[Any]:
    """Builds the module of each NodeStates."""
    groups: list[dict[int, NodeStates]] = []  # what to_tree converted together, by number
    group_of: list[int] = []
    newest: dict[int, int] = {}
    seen: dict[int, int] = {}
    for state in states:
        number = seen.get(id(state))  # the very same object twice
        if number is None:
            number = newest.get(id(state.graphdef))
            if number is None or state.number in groups[number]:  # another one of equal structure
                number = newest[id(state.graphdef)] = len(groups)
                groups.append({})
            groups[number][state.number] = state
            seen[id(state)] = number
        group_of.append(number)
    roots = [_build_group(group) for group in groups]
    return [roots[number][state.number] for number, state in zip(group_of, states, strict=True)]


def _build_group(group: dict[int, NodeStates]) -> list[Any]:
    graphdef = next(iter(group.values())).graphdef
    values: dict[int, Any] = {}
    for state in group.values():
        values.update(zip(state.places, state.values, strict=True))
    for place in range(graphdef.num_leaves):
        if place not in values:
            number, inner = root_and_path((graphdef,), 0, graphdef.leaf_paths[place])
            raise errors.StructureError(
                f"from_tree: the value at `{errors.format_path(inner)}` of module {number} is not "
                "in the pytree; to_tree converts modules together, so pass all of them back, and "
                "in their order"
            )
    ordered = [values[place] for place in range(graphdef.num_leaves)]
    objects = build(graphdef, ordered)
    return [decode(code, objects, ordered) for code in graphdef.roots]
