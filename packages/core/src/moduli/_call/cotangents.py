"""Cotangents: those that JAX gives in the form of modules, those of a user's rule for JAX."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from moduli import errors
from moduli._base.compat import trace_state
from moduli._base.node import Node
from moduli._call.call import Call
from moduli._call.change_texts import outline
from moduli._call.given_values import given_values, match_given, value_of
from moduli._call.signature import Leaf, Path
from moduli._call.writeback import ChangedEffects
from moduli._graph.data import is_graph_leaf
from moduli._graph.graphdef import root_and_path
from moduli._graph.holders import leaf_of
from moduli._graph.state import State, from_flat_state
from moduli._variable.box import Variable
from moduli._variable.filters import Filter, to_predicate
from moduli._variable.metadata import EMPTY

__all__ = ["Cotangents"]


class _Value(NamedTuple):
    """A value below an argument."""

    path: Path
    kind: type[Variable[Any]] | None
    metadata: Any
    leaf: Leaf


class Cotangents:
    """The cotangents of one call.

    JAX may ask for them much later; what that needs to know of the caller's objects is therefore
    noted at the start.

    Args:
      call: the call.
      name: the function's name, for messages.
      arguments: of each argument its number, for messages, itself, and a filter that selects the
        values of its modules that have a cotangent.
    """

    def __init__(self, call: Call, name: str, arguments: Sequence[tuple[int, Any, Filter]]):
        self._call, self._name = call, name
        self._values: list[list[_Value]] = []  # of each root
        self._leaves: list[dict[Any, Leaf]] = []  # of each root, by every path
        self._selected: list[set[Leaf]] = []
        self._args: list[Any] = []  # (number, itself, whether each leaf is a module)
        roots = iter(range(call.signature.num_roots))
        for number, argument, filter in arguments:
            leaves = jax.tree.leaves(argument, is_leaf=is_graph_leaf)
            marks = [is_graph_leaf(leaf) for leaf in leaves]
            self._args.append((number, argument, marks))
            selected = to_predicate(filter)
            for _ in range(sum(marks)):
                self._note(next(roots), selected)

    def _note(self, root: int, selected: Any) -> None:
        flats, known = self._call.binding.flats, self._call.signature.leaves_below(root)
        values: list[_Value] = []
        chosen: set[Leaf] = set()
        first: dict[Leaf, Path] = {}
        for path, leaf in known.items():
            first.setdefault(leaf, path)
        for leaf, path in first.items():
            holder = flats[leaf[0]].holders[leaf[1]]
            boxed = isinstance(holder, Variable)
            kind, metadata = (type(holder), holder._metadata) if boxed else (None, None)
            values.append(_Value(path, kind, metadata, leaf))
            if selected(path, leaf_of(holder)):
                chosen.add(leaf)
        self._values.append(values)
        self._leaves.append(known)
        self._selected.append(chosen)

    def given(
        self, effects: Any, homes: Sequence[Leaf | None], out_g: Any, outputs_g: Sequence[Any]
    ) -> tuple[Any, tuple[Any, ...]]:
        """Puts the cotangents that JAX gives into the form of the result and of the arguments.

        Args:
          effects: what the function did.
          homes: for each output the leaf that it is the new value of, or None.
          out_g: the cotangent of the result.
          outputs_g: the cotangents of the outputs.

        Returns:
          The cotangent of the result, and for each argument that of what was left in it: a State
          for a module, None for other arguments.
        """

        def below(root: int) -> Any:
            return self._below(root, effects, homes, outputs_g)

        roots = list(map(below, range(len(self._values))))
        own = iter(roots)
        updates = []
        for _, _, marks in self._args:
            parts = [next(own) for is_root in marks if is_root]
            updates.append(parts[0] if len(parts) == len(marks) == 1 else None)
        if isinstance(effects, ChangedEffects):
            count = effects.num_roots
            objects = iter(range(count, count + sum(effects.marks)))
            plain = iter(out_g)
            out_g = jax.tree.unflatten(
                effects.treedef,
                [below(next(objects)) if mark else next(plain) for mark in effects.marks],
            )
        return out_g, tuple(updates)

    def _below(
        self, root: int, effects: Any, homes: Sequence[Leaf | None], outputs_g: Sequence[Any]
    ) -> Any:
        """The cotangents of the values below an argument or a returned object: a State."""
        trace = trace_state()
        pairs = []
        for path, kind, metadata, output in self._outputs_below(root, effects, homes):
            value = outputs_g[output]
            if kind is not None:
                value = kind._make(value, metadata, trace)
            if path == ():
                return value
            pairs.append((path, value))
        return from_flat_state(pairs)

    def _outputs_below(
        self, root: int, effects: Any, homes: Sequence[Leaf | None]
    ) -> Iterator[tuple[Any, Any, Any, int]]:
        """(path, kind, metadata, number of the output) of the values below a root."""
        if not isinstance(effects, ChangedEffects):
            outputs = {leaf: number for number, leaf in enumerate(homes)}
            for path, kind, metadata, leaf in self._values[root]:
                if leaf in outputs:
                    yield path, kind, metadata, outputs[leaf]
            return
        graphdef, seen = effects.graphdef, set()
        for path, index in graphdef.path_to_leaf.items():
            own, path = root_and_path((graphdef,), 0, path)
            if own != root:
                continue
            output, owner = effects.sources[index], graphdef.leaf_objects[index]
            if index in seen or not isinstance(output, int):
                continue
            seen.add(index)
            if owner is None:
                yield path, None, None, output
            else:
                metadata = graphdef.metadatas.get(owner, EMPTY)
                yield path, graphdef.objects[owner][1], metadata, output

    def match(self, result: Sequence[Any]) -> list[Any]:
        """Returns the cotangent of each dynamic value of the call, None where there is none.

        Args:
          result: a cotangent for each argument.

        Raises:
          StructureError: if one does not fit its argument.
          ShapeError: if it has another shape or dtype.
        """
        items = [
            (argument, cotangent, f"the cotangent of argument {number} of {self._name}")
            for cotangent, (number, argument, _) in zip(result, self._args, strict=True)
        ]
        given = match_given(self._call, items, self._take, _misfit, name_parts=False)
        return [_fit(primal, *item) for primal, item in given]

    def _take(
        self,
        root: int,
        argument: Any,
        cotangent: Any,
        name: str,
        found: dict[Leaf, tuple[Any, str]],
    ) -> None:
        """Notes the cotangents of the values below one module or Variable."""
        known, selected = self._leaves[root], self._selected[root]
        if () in known:
            found[known[()]] = (value_of(cotangent), name)
            return
        if not isinstance(cotangent, (Node, State, dict)):
            raise errors.StructureError(
                f"custom_vjp: {name} is a {type(cotangent).__name__}; for a module give a State, "
                "a module, or None"
            )
        for path, value in given_values(cotangent):
            leaf = known.get(path)
            text = f"{name} at `{errors.format_path(path)}`"
            if leaf is None:
                raise errors.StructureError(
                    f"custom_vjp: {text} is that of no value: the argument has none there"
                )
            if leaf in selected:
                found[leaf] = (value, text)


_LEAF = jax.tree.structure(0)


def _misfit(name: str, cotangent: Any, argument: Any) -> str:
    return (
        f"custom_vjp: {name} has the structure {outline(cotangent)}, but the argument is "
        f"{outline(argument)}; give the same structure, or None for no cotangent"
    )


def _fit(primal: Any, cotangent: Any, name: str) -> Any:
    """Checks the cotangent of one value; those of values without a gradient are left out."""
    if cotangent is None:
        return None
    leaves, treedef = jax.tree.flatten(primal)
    if jax.tree.structure(cotangent) != treedef:
        raise errors.StructureError(
            f"custom_vjp: {name} has the structure {outline(cotangent)}, but the value is "
            f"{outline(primal)}; give the same structure, or None for no cotangent"
        )
    fitting = []
    for leaf, given in zip(leaves, jax.tree.leaves(cotangent), strict=True):
        wanted = jax.typeof(leaf)
        if not jnp.issubdtype(wanted.dtype, jnp.inexact):
            fitting.append(None)
            continue
        got = jax.typeof(given)
        if got.shape != wanted.shape or (got.dtype != wanted.dtype and not got.weak_type):
            raise errors.ShapeError(
                f"custom_vjp: {name} is {got.dtype}{list(got.shape)}, but the value is "
                f"{wanted.dtype}{list(wanted.shape)}; a cotangent has the shape and dtype of its "
                "value"
            )
        fitting.append(jnp.asarray(given, wanted.dtype))
    return fitting[0] if treedef == _LEAF else jax.tree.unflatten(treedef, fitting)
