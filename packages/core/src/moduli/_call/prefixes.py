"""Prefixes: how a user says which value goes where (an axis, a sharding, the carry).

A prefix is a pytree like the arguments, cut off where one *label* stands for everything below. In
the place of a module it may be a :class:`StateAxes` or :class:`StateSharding` (filters and labels),
or what :func:`prefix` returns (a label for each value).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Unpack

import jax
from jax.sharding import PartitionSpec

from moduli import errors
from moduli._base.modes import Modes
from moduli._base.node import Node
from moduli._base.type_variables import Path
from moduli._graph.cache import flat_of
from moduli._graph.data import is_graph_leaf, plain_key
from moduli._graph.holders import leaf_of
from moduli._graph.state import State, _flat_items, from_flat_state
from moduli._variable.box import Variable
from moduli._variable.filters import to_predicate

__all__ = [
    "Carry",
    "FilterPrefix",
    "StateAxes",
    "StateSharding",
    "after_bound",
    "label_finder",
    "is_detailed",
    "labels_in",
    "prefix",
    "spread",
]

_ABSENT: Any = object()


class Carry:
    """Marks what a scan carries from step to step, in ``in_axes`` and ``out_axes``.

    The class itself is the mark: ``moduli.scan(f, in_axes=(moduli.Carry, 0), ...)``.
    """


def is_axis(label: Any) -> bool:
    """Returns whether a label is an axis: an int or None."""
    return label is None or (isinstance(label, int) and not isinstance(label, bool))


class FilterPrefix(Mapping[Any, Any]):
    """Filters and the label of what each selects; the first filter that selects a value wins.

    Args:
      labels: a mapping of filters to labels, pairs of them, or a State of labels by path.

    Example:
      >>> import moduli as nnx
      >>> axes = nnx.StateAxes({nnx.Param: 0, ...: None})
      >>> axes[nnx.Param], list(axes.values())
      (0, [0, None])
    """

    def __init__(self, labels: Any, /):
        if isinstance(labels, FilterPrefix):
            labels = labels.items()
        elif isinstance(labels, State):
            labels = [(_ExactPath(path), label) for path, label in _flat_items(labels)]
        elif isinstance(labels, Mapping):
            labels = labels.items()
        pairs = tuple(labels)
        for pair in pairs:
            if not isinstance(pair, tuple) or len(pair) != 2:
                raise errors.StructureError(
                    f"{type(self).__name__} takes a mapping of filters to values, or pairs of "
                    f"them; got {pair!r} among them"
                )
        self._pairs = pairs
        self._tests = tuple(to_predicate(filter) for filter, _ in pairs)

    @property
    def filters(self) -> tuple[Any, ...]:
        """The filters, in order."""
        return tuple(filter for filter, _ in self._pairs)

    def label_for(self, path: Path, value: Any) -> Any:
        """Returns the label of one value.

        Raises:
          LookupError: if no filter selects it.
        """
        for test, (_, label) in zip(self._tests, self._pairs, strict=True):
            if test(path, value):
                return label
        raise LookupError(path)

    def map_prefix(self, path: Path, variable: Any) -> Any:
        """Returns the label of one Variable; like :meth:`label_for`.

        Raises:
          StructureError: if no filter selects it.
        """
        try:
            return self.label_for(path, variable)
        except LookupError:
            raise errors.StructureError(
                f"no filter of {self!r} selects `{errors.format_path(path)}` "
                f"({type(variable).__name__}); add `...: None` (or another label) as the last one"
            ) from None

    def is_rest(self, path: Path, value: Any) -> bool:
        """Returns whether the filter that selects a value also selects what has no path or kind."""
        anything = Variable(0)
        return next((test((), anything) for test in self._tests if test(path, value)), True)

    def __getitem__(self, filter: Any) -> Any:
        for known, label in self._pairs:
            if known == filter:
                return label
        raise KeyError(filter)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.filters)

    def __len__(self) -> int:
        return len(self._pairs)

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self._pairs == other._pairs  # type: ignore[attr-defined]

    def __hash__(self) -> int:
        return hash((type(self), self._pairs))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({dict(self._pairs)})"


class StateAxes(FilterPrefix):
    """Axes of the parts of a module, for ``in_axes`` and ``out_axes`` of vmap, pmap and scan.

    Args:
      labels: filters and axes: an int, None (not mapped), or :class:`Carry` (scan).

    Example:
      >>> import moduli as nnx, jax.numpy as jnp
      >>> class Scale(nnx.Module):
      ...     def __init__(self):
      ...         self.scale, self.shift = nnx.Param(jnp.arange(3.0)), nnx.BatchStat(jnp.array(1.0))
      >>> axes = nnx.StateAxes({nnx.Param: 0, ...: None})
      >>> nnx.vmap(lambda m, x: m.scale * x + m.shift, in_axes=(axes, None))(Scale(), 2.0).tolist()
      [1.0, 3.0, 5.0]
    """

    @property
    def axes(self) -> tuple[Any, ...]:
        """The axes, in the order of the filters."""
        return tuple(self.values())


class StateSharding(FilterPrefix):
    """Shardings of the parts of a module, for jit's ``in_shardings`` and shard_map's ``in_specs``.

    Args:
      labels: filters and shardings: a ``jax.sharding.NamedSharding``, a ``PartitionSpec``, or None.

    Example:
      >>> import moduli as nnx, jax
      >>> specs = nnx.StateSharding({nnx.Param: jax.P("model"), ...: jax.P()})
      >>> specs.shardings[1] == jax.P()
      True
    """

    @property
    def shardings(self) -> tuple[Any, ...]:
        """The shardings, in the order of the filters."""
        return tuple(self.values())


class _ExactPath:
    """A filter that selects one path and what stands below it."""

    def __init__(self, path: Path):
        self.path = path

    def __call__(self, path: Path, value: object) -> bool:
        return path[: len(self.path)] == self.path

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ExactPath) and self.path == other.path

    def __hash__(self) -> int:
        return hash(self.path)

    def __repr__(self) -> str:
        return f"path `{errors.format_path(self.path)}`"


def after_bound(labels: Any, bound: int, count: int, label: Any = None) -> Any:
    """Puts a label before those of the arguments, for the module of a bound method.

    Args:
      labels: the user's prefix, for all arguments but the module.
      bound: how many modules there are: one or none.
      count: how many arguments there are, with the module.
      label: of the module.
    """
    if not bound:
        return labels
    several = isinstance(labels, (tuple, list)) and not isinstance(labels, PartitionSpec)
    return (label, *(labels if several else [labels] * (count - bound)))


def prefix(
    node: Any,
    filter_map: Mapping[Any, Any] | Callable[[Path, Any], Any],
    /,
    **_modes: Unpack[Modes],
) -> Any:
    """Says for each value of a graph, or of a pytree of graphs, which label it has.

    Args:
      node: a Module, another node, a Variable, or a pytree of these.
      filter_map: filters and labels (the first that selects a value wins), or a callable
        ``(path, value) -> label``.

    Returns:
      What to pass as ``in_axes``, ``out_axes`` or ``in_specs`` for ``node``: its pytree, with a
      State of labels in the place of each node, and a label in the place of each Variable.

    Raises:
      StructureError: if no filter selects a value.

    Example:
      >>> import moduli as nnx, jax.numpy as jnp
      >>> model = nnx.Dict({"w": nnx.Param(jnp.arange(3.0)), "b": nnx.BatchStat(jnp.ones(2))})
      >>> axes = nnx.prefix(model, {nnx.Param: 0, ...: None})
      >>> axes["w"], axes["b"]
      (0, None)
      >>> nnx.vmap(lambda m: m["w"] + m["b"].sum(), in_axes=(axes,))(model).tolist()
      [2.0, 3.0, 4.0]
    """
    labels = filter_map if callable(filter_map) else FilterPrefix(filter_map).label_for

    def label(path: Path, value: Any) -> Any:
        try:
            return labels(path, value)
        except LookupError:
            raise errors.StructureError(
                f"prefix: no filter of {filter_map!r} selects `{errors.format_path(path)}` "
                f"({type(value).__name__}); add `...: None` as the last one"
            ) from None

    def convert(key_path: Any, leaf: Any) -> Any:
        path = tuple(map(plain_key, key_path))
        if not isinstance(leaf, Node):
            return label(path, leaf)
        flat = flat_of(leaf)
        return from_flat_state(
            [
                (inner, label(path + inner, leaf_of(holder)))
                for inner, holder in zip(flat.graphdef.leaf_paths, flat.holders, strict=True)
            ]
        )

    return jax.tree_util.tree_map_with_path(convert, node, is_leaf=is_graph_leaf)


def _label_in(item: Any) -> Any:
    """A label, also where a State has it in a Variable, as that of `get_named_sharding`."""
    return item._value if isinstance(item, Variable) else item


# -- matching a prefix with a pytree -------------------------------------------------------------


def spread(labels: Any, tree: Any, name: str) -> list[tuple[Any, Path]]:
    """Gives each leaf of a pytree its label.

    Args:
      labels: the prefix.
      tree: a pytree; its leaves are arrays, nodes and Variables.
      name: what the prefix is, for messages: "vmap: in_axes".

    Returns:
      For each leaf, in the order of ``jax.tree.leaves``, a pair: its label (for a node or a
      Variable also a FilterPrefix, State or node of labels), and the path from the place where the
      label stands in the prefix.

    Raises:
      StructureError: if the prefix has another structure than the pytree.
    """
    found: list[tuple[Any, Path]] = []

    def visit(labels: Any, tree: Any, path: Path) -> None:
        if is_graph_leaf(tree):
            found.append((labels, ()))
            return
        parts = _children(labels)
        if parts is None and isinstance(tree, jax.Array):
            found.append((labels, ()))
            return
        if parts is None:
            for key_path, _ in jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_graph_leaf)[0]:
                found.append((labels, tuple(map(plain_key, key_path))))
            return
        branches = _children(tree)
        if branches is None or list(parts) != list(branches):
            got = "a leaf" if branches is None else f"a {type(tree).__name__} of {list(branches)}"
            raise errors.StructureError(
                f"{name}{_place(path)} is a {type(labels).__name__} of {list(parts)}, but the "
                f"value there is {got}; give one label for the whole value, or one for each part"
            )
        for key, part in parts.items():
            visit(part, branches[key], (*path, key))

    visit(labels, tree, ())
    return found


def _place(path: Path) -> str:
    return "".join(f"[{key!r}]" for key in path)


def _children(tree: Any) -> dict[Any, Any] | None:
    """The parts of a container in JAX's order, or None for a leaf, a label or None."""
    if tree is None or tree.__class__ in (int, type) or is_detailed(tree):  # an axis, Carry
        return None
    pairs, _ = jax.tree_util.tree_flatten_with_path(
        tree, is_leaf=lambda item: item is not tree or is_graph_leaf(item)
    )
    if len(pairs) == 1 and pairs[0][1] is tree:
        return None
    return {plain_key(key_path[0]): child for key_path, child in pairs}


def is_detailed(item: Any) -> bool:
    """Returns whether an entry of a prefix labels parts of a module: what `prefix` makes too."""
    return isinstance(item, FilterPrefix) or is_graph_leaf(item)


def labels_in(labels: Any) -> list[Any]:
    """Lists all labels that a prefix contains, those of its parts for modules included."""
    found: list[Any] = []

    def stop(item: Any) -> bool:
        return item is None or is_detailed(item)

    for item in jax.tree.leaves(labels, is_leaf=stop):
        if isinstance(item, FilterPrefix):
            found.extend(item.values())
        elif is_graph_leaf(item):
            found.extend(flat_of(item).values())
        else:
            found.append(item)
    return found


def label_finder(labels: Any, base: Path, name: str) -> Callable[[Path, Any], Any]:
    """Returns ``(path, value) -> label`` for the values of one root.

    Args:
      labels: what the prefix has in the place of the root.
      base: the path from where a FilterPrefix stands to the root.
      name: what the prefix is, for messages.
    """
    if isinstance(labels, FilterPrefix):
        finder = labels.label_for

        def find(path: Path, value: Any) -> Any:
            try:
                return finder(base + path, value)
            except LookupError:
                raise errors.StructureError(
                    f"{name}: no filter of {labels!r} selects `{errors.format_path(base + path)}` "
                    f"({type(value).__name__}); add `...: None` (or another label) as the last one"
                ) from None

        return find
    if isinstance(labels, (Node, Variable)):
        flat = flat_of(labels)
        pairs: Iterable[tuple[Path, Any]] = zip(
            flat.graphdef.leaf_paths, flat.values(), strict=True
        )
    elif isinstance(labels, State):
        pairs = [(path, _label_in(label)) for path, label in _flat_items(labels)]
    else:
        return lambda path, value: labels
    known = dict(pairs)

    def look_up(path: Path, value: Any) -> Any:
        for length in range(len(path), -1, -1):
            label = known.get(path[:length], _ABSENT)
            if label is not _ABSENT:
                return label
        raise errors.StructureError(
            f"{name}: the labels from moduli.prefix have none for `{errors.format_path(path)}` "
            f"({type(value).__name__}); make them from the very module that is passed"
        )

    return look_up
