"""The functional view of a graph: split, merge, state, update, pop, clone."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar, Unpack, overload

import jax
import jax.numpy as jnp
import numpy as np

from moduli import errors
from moduli._base.compat import trace_state
from moduli._base.foreign_trace import check_mutable
from moduli._base.lost_writes import mark_seen
from moduli._base.modes import Modes
from moduli._base.node import Node
from moduli._base.type_variables import Path
from moduli._graph.cache import flat_of
from moduli._graph.data import is_array, is_graph_leaf, iter_pytree, part_of
from moduli._graph.flat import Flat
from moduli._graph.flatten import flatten_roots, flatten_tree, flatten_value
from moduli._graph.graphdef import OBJECT, GraphDef
from moduli._graph.holders import Fixed, leaf_of
from moduli._graph.loading import check_declared, fitted, int_keys, placed
from moduli._graph.named_filters import check_names
from moduli._graph.state import (
    FlatState,
    State,
    _flat_items,
    check_exhaustive,
    from_flat_state,
    map_state,
)
from moduli._graph.unflatten import build, decode
from moduli._graph.walk import node_children
from moduli._variable.box import Variable
from moduli._variable.filters import partition

__all__ = [
    "clone",
    "flatten",
    "graphdef",
    "map_graph",
    "merge",
    "pop",
    "split",
    "state",
    "unflatten",
    "update",
]

A = TypeVar("A")
T = TypeVar("T")
_NUMBERS = (int, float, complex, np.generic)
_write_value = Variable.__dict__["_value"].__set__


def _flat(node: Any, caller: str) -> Flat:
    if is_graph_leaf(node):
        return flat_of(node)
    if node is None or isinstance(node, GraphDef) or jax.tree_util.all_leaves([node]):
        raise errors.StructureError(
            f"{caller} needs a Module, another graph node, a Variable, or a tuple, list, dict or "
            f"State of these; got a {type(node).__name__}"
        )
    return flatten_tree(node)


def _flat_or_value(node: Any, caller: str) -> Flat:
    """As :func:`_flat`; a number or an array is a graph with this one value, None an empty one."""
    if node is None:
        return flatten_tree(node)
    if _is_value(node):
        return flatten_value(node)
    return _flat(node, caller)


def _leaves(flat: Flat) -> list[tuple[Path, Any]]:
    """Pairs each leaf path with its Variable, or with the bare array itself."""
    return [
        (path, leaf_of(holder))
        for path, holder in zip(flat.graphdef.leaf_paths, flat.holders, strict=True)
    ]


def _give_out(leaves: Iterable[Any]) -> None:
    """Notes that these values may leave a function, so that they do not count as dropped writes."""
    for leaf in leaves:
        if isinstance(leaf, Variable):
            mark_seen(leaf)


def _groups(flat: Flat, filters: tuple[Any, ...], caller: str) -> list[Any]:
    groups = [_leaves(flat)]
    if filters:
        *parts, rest = partition(groups[0], filters)
        check_names(groups[0], filters, caller, any_name=caller == "state")
        groups = parts
        if caller == "split":
            check_exhaustive(rest, filters, caller)
    for group in groups:
        _give_out(leaf for _, leaf in group)
    return list(map(_as_state, groups))


def _as_state(pairs: list[tuple[Path, Any]]) -> Any:
    """Nests paths and values; of a graph that is one Variable, the state is that Variable."""
    if len(pairs) == 1 and not pairs[0][0]:
        return pairs[0][1]
    return from_flat_state(pairs)


def _pairs(state: Any) -> Iterable[tuple[Path, Any]]:
    if isinstance(state, Variable) or (not isinstance(state, Mapping) and _is_value(state)):
        return [((), state)]
    return _flat_items(state)


def _is_value(item: Any) -> bool:
    return is_array(item) or isinstance(item, _NUMBERS)


@overload
def split(node: T, /, **_modes: Unpack[Modes]) -> tuple[GraphDef[T], State]: ...
@overload
def split(node: T, first: Any, /, **_modes: Unpack[Modes]) -> tuple[GraphDef[T], State]: ...
@overload
def split(
    node: T, first: Any, second: Any, /, **_modes: Unpack[Modes]
) -> tuple[GraphDef[T], State, State]: ...
@overload
def split(
    node: T, /, *filters: Any, **_modes: Unpack[Modes]
) -> tuple[GraphDef[T], *tuple[State, ...]]: ...
def split(node: Any, *filters: Any, **_modes: Unpack[Modes]) -> Any:
    """Takes a graph apart into its structure and its values.

    Args:
      node: a Module or another node, or a tuple, list, dict or State of these. A number or an
        array is its own state.
      *filters: without any, all values come in one State. Otherwise each value goes to the State
        of the first filter that selects it, and every value must be selected.

    Returns:
      A tuple (GraphDef, State, ...), one State for each filter. The States hold the graph's own
      Variables, not copies.

    Raises:
      StructureError: if a value is selected by no filter; add ``...`` as the last one.

    Example:
      >>> import moduli as nnx
      >>> class Norm(nnx.Module):
      ...     def __init__(self):
      ...         self.scale, self.mean = nnx.Param(1.0), nnx.BatchStat(0.0)
      >>> graphdef, params, rest = nnx.split(Norm(), nnx.Param, ...)
      >>> list(params), list(rest)
      (['scale'], ['mean'])
      >>> nnx.merge(graphdef, params, rest).scale.value
      1.0

      Several objects at once, with what they share kept:

      >>> graphdef, state = nnx.split((Norm(), {"rngs": nnx.Rngs(0)}))
      >>> norm, others = nnx.merge(graphdef, state)
    """
    flat = _flat_or_value(node, "split")
    return (flat.graphdef, *_groups(flat, filters, "split"))


@overload
def state(node: Any, /, **_modes: Unpack[Modes]) -> State: ...
@overload
def state(node: Any, first: Any, /, **_modes: Unpack[Modes]) -> State: ...
@overload
def state(
    node: Any, first: Any, second: Any, /, *filters: Any, **_modes: Unpack[Modes]
) -> tuple[State, ...]: ...
@overload
def state(node: Any, /, *filters: Any, **_modes: Unpack[Modes]) -> Any: ...
def state(node: Any, *filters: Any, **_modes: Unpack[Modes]) -> Any:
    """Returns the values of a graph.

    Args:
      node: a Module or another node, or a tuple, list, dict or State of these.
      *filters: select values; what none of them selects is left out.

    Returns:
      One State for at most one filter, otherwise a tuple of States. They hold the graph's own
      Variables; ``moduli.clone(state)`` copies them. The state of a Variable is that Variable.

    Raises:
      StructureError: if a filter is a name that selects nothing: no value has that tag.

    Example:
      >>> import moduli as nnx
      >>> model = nnx.Dict({"scale": nnx.Param(1.0), "mean": nnx.BatchStat(0.0)})
      >>> list(nnx.state(model, nnx.BatchStat))
      ['mean']
    """
    states = _groups(_flat(node, "state"), filters, "state")
    return tuple(states) if len(filters) > 1 else states[0]


def graphdef(node: T, /, **_modes: Unpack[Modes]) -> GraphDef[T]:
    """Returns the structure of a graph; equal structures give the same object."""
    return _flat_or_value(node, "graphdef").graphdef


@overload
def merge(
    graphdef: GraphDef[T],
    state: Any,
    /,
    *states: Any,
    copy: bool = False,
    resize: bool = False,
    recreate_variables: bool | None = None,
) -> T: ...
@overload
def merge(
    graphdef: Mapping[Any, Any],
    /,
    *states: Any,
    copy: bool = False,
    resize: bool = False,
    recreate_variables: bool | None = None,
) -> Any: ...
def merge(
    graphdef: Any,
    /,
    *states: Any,
    copy: bool = False,
    resize: bool = False,
    recreate_variables: bool | None = None,
) -> Any:
    """Builds a graph from a structure and values.

    Args:
      graphdef: from :func:`split` or :func:`graphdef`; or what ``moduli.unpack`` returned, which
        holds it and a State.
      *states: States, or nested mappings of Variables or plain values; together they must hold
        every value once.
      copy: make new Variables. By default the new graph holds the Variables of the States, so
        after ``merge(*split(model))`` both models share them; use :func:`clone` for a copy.
      resize: take values of other shapes than the static sizes of layers say.
      recreate_variables: flax's name for ``copy``; None leaves it to that.

    Returns:
      The new root object.

    Raises:
      StructureError: if a value is missing, one does not belong to the structure, or one has
        another shape than its layer's sizes say.

    Example:
      >>> import moduli as nnx
      >>> model = nnx.Dict({"scale": nnx.Param(1.0)})
      >>> graphdef, state = nnx.split(model)
      >>> nnx.merge(graphdef, state)["scale"] is model["scale"]
      True
      >>> copy = nnx.merge(graphdef, state, copy=True)
      >>> copy["scale"].value = 2.0
      >>> model["scale"].value
      1.0
    """
    if hasattr(type(graphdef), "__moduli_split__"):
        graphdef, *unpacked = _unpacked((graphdef, *states))
        states = tuple(unpacked)
    if not isinstance(graphdef, GraphDef):
        raise errors.StructureError(
            f"merge needs the GraphDef first, then the States; got a {type(graphdef).__name__}"
        )
    if not states:
        raise errors.StructureError("merge needs the States that split gave, after the GraphDef")
    flat: dict[Path, Any] = {}
    for one in states:
        flat.update(_pairs(one))
    paths = graphdef.leaf_paths
    if len(flat) != len(paths) or not all(path in flat for path in paths):
        flat = dict(placed(flat.items(), set(paths), "merge"))
    values = []
    for path in paths:
        if path not in flat:
            raise errors.StructureError(
                f"merge: the States have no value for `{errors.format_path(path)}`; pass every "
                "State that split gave" + _near(path, flat)
            )
        values.append(flat.pop(path))
    if flat:
        path = next(iter(flat))
        raise errors.StructureError(
            f"merge: the structure has no place for the value at `{errors.format_path(path)}`"
            + _near(path, paths)
        )
    if not resize:
        check_declared(graphdef, values, "merge")
    return _build(graphdef, values, copy if recreate_variables is None else recreate_variables)


def _unpacked(items: Iterable[Any]) -> list[Any]:
    """Returns the GraphDef and the States of objects that hold both; see ``moduli.unpack``."""
    found: list[Any] = []
    for item in items:
        split = getattr(item, "__moduli_split__", None)
        if split is None:
            raise errors.StructureError(
                f"merge got what unpack returned, and a {type(item).__name__}; write "
                "`moduli.merge(*moduli.unpack(model, ...))`, or pass a GraphDef and States"
            )
        graphdef, state = split()
        if found and found[0] is not graphdef:
            raise errors.StructureError("merge: what unpack returned belongs to several graphs")
        found += [state] if found else [graphdef, state]
    return found


def _build(graphdef: GraphDef, values: Iterable[Any], copy: bool = False) -> Any:
    """Builds the root from leaves; those that are Variables stand in the graph themselves."""
    leaves = list(values)
    if copy:
        leaves = [leaf.copy() if isinstance(leaf, Variable) else leaf for leaf in leaves]
    existing = {
        owner: leaf
        for leaf, owner in zip(leaves, graphdef.leaf_objects, strict=True)
        if isinstance(leaf, Variable) and owner is not None
    }
    plain = [leaf._value if isinstance(leaf, Variable) else leaf for leaf in leaves]
    return decode(graphdef.roots[0], build(graphdef, plain, existing), plain)


def _copy_array(value: Any) -> Any:
    return jnp.copy(value) if isinstance(value, jax.Array) else value


def _near(path: Path, known: Iterable[Path]) -> str:
    names = list(map(errors.format_path, known))
    near = difflib.get_close_matches(errors.format_path(path), names, n=1)
    return f"; did you mean `{near[0]}`?" if near else ""


def update(node: Any, state: Any, /, *states: Any, resize: bool = False) -> None:
    """Writes values into a graph, in place.

    Args:
      node: a Module or another node, or a tuple, list, dict or State of these.
      state: a State, or any nested mapping of Variables or plain values.
      *states: more of them, written in order.
      resize: take values of another shape or dtype than those that stand there.

    Values at known paths are written into the existing Variables. A Variable at a new path is
    added (as a new Variable) if its parent exists. In the paths, ``"0"`` stands for 0 where a file
    has turned numbers into text; a list of numbers stands for an array.

    Values have the shape of those that they replace, and numbers of the same kind. Leading axes
    that all values of one kind of Variable have gained or lost (those of a mapped or replicated
    model) are allowed, and so is another shape of what a run sizes: ``Cache``, ``Intermediate``,
    ``Perturbation``, ``RngState``. Another precision is taken with a ``DtypeChangeWarning``.

    Raises:
      PathError: if a path does not exist in the graph. Nothing is changed then.
      StructureError: if a value has another shape or numbers of another kind. Nothing is changed
        then.

    Example:
      >>> import moduli as nnx
      >>> model = nnx.Dict({"scale": nnx.Param(1.0)})
      >>> nnx.update(model, {"scale": 3.0})
      >>> model["scale"].value
      3.0
    """
    flat = _flat(node, "update")
    known = flat.graphdef.path_to_leaf
    writes: list[tuple[Any, Any]] = []
    additions: list[tuple[Node, Any, Variable[Any]]] = []
    if isinstance(state, Node):
        state = _groups(_flat(state, "update"), (), "state")[0]
    if isinstance(node, Variable) and not isinstance(state, (Variable, State)):
        state = node.replace(state)
    given = [placed(_pairs(one), known, "update") for one in (state, *states)]
    pairs = [pair for one in given for pair in one]
    checked = [(path, flat.holders[known[path]], value) for path, value in pairs if path in known]
    places = [(path, leaf_of(holder), value) for path, holder, value in checked]
    fitting = iter(fitted(places, "update", resize=resize))
    for path, value in pairs:
        index = known.get(path)
        if index is not None:
            writes.append((flat.holders[index], next(fitting)))
            continue
        parent = _parent(node, path) if path else None
        if parent is None and path and _parent(node, int_keys(path)) is not None:
            path = int_keys(path)
            parent = _parent(node, path)
        if parent is None or not isinstance(value, Variable):
            raise errors.PathError(
                f"update: {type(node).__name__} has no value at `{errors.format_path(path)}`"
                + (_near(path, known) or f"; it has {sorted(map(errors.format_path, known))}")
            )
        additions.append((parent, path[-1], value))
    trace = trace_state()
    for holder, _ in writes:
        if isinstance(holder, Fixed):
            path = flat.graphdef.leaf_paths[flat.holders.index(holder)]
            raise errors.StructureError(
                f"update cannot write the array at `{errors.format_path(path)}`: it stands in a "
                f"plain {type(node).__name__}, beside the modules. Keep it in a Variable or in an "
                "attribute of a module"
            )
        if not isinstance(holder, Variable):
            check_mutable(holder.node, f"write `{holder.key}`")
        elif holder._trace != trace:
            holder._check_trace()
    for holder, value in writes:
        is_variable = isinstance(holder, Variable)
        if isinstance(value, Variable):
            metadata = value._metadata
            if is_variable and metadata is not holder._metadata:
                _take_metadata(holder, metadata)
            value = value._value
        if is_variable:
            _write_value(holder, value)
        else:
            holder._value = value
    for parent, key, value in additions:
        _set_item(parent, key, value.copy())


def _take_metadata(variable: Variable[Any], metadata: Mapping[str, Any]) -> None:
    if dict(metadata) != dict(variable._metadata):
        variable._set_all_metadata(metadata)


def _parent(node: Any, path: Path) -> Node | None:
    target = node
    for part in path[:-1]:
        try:
            target = part_of(target, part)
        except KeyError:
            return None
    return target if isinstance(target, Node) else None


def _set_item(node: Node, key: Any, value: Any) -> None:
    if isinstance(node, (list, dict)):
        node[key] = value  # type: ignore[index]
    else:
        setattr(node, key, value)


@overload
def pop(node: Any, first: Any, /) -> State: ...
@overload
def pop(node: Any, first: Any, second: Any, /, *filters: Any) -> tuple[State, ...]: ...
@overload
def pop(node: Any, /, *filters: Any) -> Any: ...
def pop(node: Any, *filters: Any) -> Any:
    """Takes Variables out of a graph: they are removed from it and returned.

    Args:
      node: a Module or another node, or a tuple, list, dict or State of these.
      *filters: at least one; select the Variables to remove. All references to them go.

    Returns:
      One State for one filter, otherwise a tuple of States.

    Raises:
      StructureError: if no filter is given, or one is a name that selects nothing.

    Example:
      >>> import moduli as nnx
      >>> class Model(nnx.Module):
      ...     def __init__(self):
      ...         self.w, self.seen = nnx.Param(1.0), nnx.Intermediate((2.0,))
      >>> model = Model()
      >>> nnx.pop(model, nnx.Intermediate).seen.value
      (2.0,)
      >>> hasattr(model, "seen")
      False
    """
    if not filters:
        raise errors.StructureError("pop needs at least one filter: `moduli.pop(model, filter)`")
    if isinstance(node, Variable):
        raise errors.StructureError(
            f"pop takes Variables out of what holds them; got the {type(node).__name__} itself"
        )
    flat = _flat(node, "pop")
    pairs = [(path, leaf) for path, leaf in _leaves(flat) if isinstance(leaf, Variable)]
    groups = partition(pairs, filters)[:-1]
    check_names(pairs, filters, "pop", any_name=True)
    chosen = {id(variable) for group in groups for _, variable in group}
    if not is_graph_leaf(node):
        for path, leaf in iter_pytree(node):
            if id(leaf) in chosen:
                raise errors.StructureError(
                    f"pop: the {type(leaf).__name__} at `{errors.format_path(path)}` stands in a "
                    f"plain {type(node).__name__}, beside the modules; take it out there"
                )
    removals: list[tuple[Node, Any]] = []
    for parent in flat.objects:
        if not isinstance(parent, Node):
            continue
        for relative, child in node_children(parent):
            if isinstance(child, Variable) and id(child) in chosen:
                key, *inner = relative
                if inner:
                    raise errors.StructureError(
                        f"pop: the {type(child).__name__} at `{errors.format_path(relative)}` of "
                        f"{type(parent).__name__} stands in a tuple, which cannot lose an element; "
                        "keep it in a list or in an attribute of its own"
                    )
                removals.append((parent, key))
    for parent, _ in removals:
        check_mutable(parent, "remove an attribute")
    for parent, key in reversed(removals):
        parent._remove(key)
        parent._moduli.changed()
    states = tuple(map(from_flat_state, groups))
    return states if len(filters) > 1 else states[0]


def clone(node: A, variables: bool = True, *, arrays: bool = False, **_modes: Unpack[Modes]) -> A:
    """Copies a graph, or any pytree that holds nodes and Variables, keeping what is shared.

    Args:
      node: a Module, another node, a State, or a pytree of these.
      variables: make new Variables; with False the copy shares them with the original.
      arrays: copy the arrays too. They are immutable, so this is only for donation.

    Returns:
      The copy.
    """
    leaves, treedef = jax.tree.flatten(node, is_leaf=is_graph_leaf)
    roots = [leaf for leaf in leaves if is_graph_leaf(leaf)]
    flat = flat_of(roots[0]) if len(roots) == 1 else flatten_roots(roots)
    _give_out(flat.holders)
    values = flat.values()
    if arrays:
        values = [jax.tree.map(_copy_array, value) for value in values]
    shared = None
    if not variables:
        shared = {i: o for i, o in enumerate(flat.objects) if isinstance(o, Variable)}
    objects = build(flat.graphdef, values, shared)
    if shared is None:
        for new_object, old_object in zip(objects, flat.objects, strict=True):
            if isinstance(new_object, Variable):
                object.__setattr__(new_object, "_made", old_object._made)
    copies = iter([objects[code[1]] for code in flat.graphdef.roots])
    assert all(code[0] == OBJECT for code in flat.graphdef.roots)
    new = [
        next(copies) if is_graph_leaf(leaf) else _copy_array(leaf) if arrays else leaf
        for leaf in leaves
    ]
    return jax.tree.unflatten(treedef, new)


@overload
def flatten(node: T, /, **_modes: Unpack[Modes]) -> tuple[GraphDef[T], FlatState]: ...
@overload
def flatten(
    node: T, /, *, with_paths: bool, **_modes: Unpack[Modes]
) -> tuple[GraphDef[T], Any]: ...
def flatten(
    node: Any, /, *, with_paths: bool = True, **_modes: Unpack[Modes]
) -> tuple[GraphDef[Any], Any]:
    """Takes a graph apart into its structure and a flat list of its leaves.

    Args:
      node: a Module or another node, or a tuple, list, dict or State of these.
      with_paths: return a FlatState (paths and leaves); otherwise a plain list of leaves.

    Returns:
      A pair (GraphDef, FlatState or list). Leaves are Variables and bare arrays.
    """
    flat = _flat(node, "flatten")
    pairs = _leaves(flat)
    return flat.graphdef, FlatState(pairs) if with_paths else [leaf for _, leaf in pairs]


def unflatten(
    graphdef: GraphDef[T],
    state: Any,
    /,
    *,
    copy_variables: bool = False,
    recreate_variables: bool | None = None,
) -> T:
    """Builds a graph from a structure and leaves; the inverse of :func:`flatten`.

    Args:
      graphdef: the structure.
      state: a State, a FlatState, or a list of leaves in the order of the structure.
      copy_variables: make new Variables; by default the graph holds those among the leaves.
      recreate_variables: flax's name for it; None leaves it to ``copy_variables``.

    Raises:
      StructureError: if there are too few or too many leaves.
    """
    copy_variables = copy_variables if recreate_variables is None else recreate_variables
    if isinstance(state, Mapping):
        return merge(graphdef, state, copy=copy_variables)
    leaves = list(state)
    if len(leaves) != graphdef.num_leaves:
        raise errors.StructureError(
            f"unflatten: the structure has {graphdef.num_leaves} leaves; got {len(leaves)}"
        )
    return _build(graphdef, leaves, copy_variables)


def map_graph(f: Callable[[Path, Any], Any], node: A, /, *, recreate_variables: bool = True) -> A:
    """Returns a copy of a graph with ``f(path, leaf)`` in place of each leaf.

    Args:
      f: takes the path and the leaf (a Variable or a bare array) and returns the new leaf.
      node: a Module or another node, or a tuple, list, dict or State of these.
      recreate_variables: whether the copy has new Variables where ``f`` returned the old ones.

    Example:
      >>> import moduli as nnx
      >>> model = nnx.Dict({"scale": nnx.Param(1.0)})
      >>> nnx.map(lambda path, leaf: leaf.replace(leaf.value * 2), model)["scale"].value
      2.0
    """
    definition, values = split(node)
    return merge(definition, map_state(f, values), copy=recreate_variables)
