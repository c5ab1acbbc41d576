"""The differentiated arguments of a call, and gradients in their form."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from moduli import errors
from moduli._base.compat import trace_state
from moduli._base.positions import as_positions, is_several
from moduli._call.bind import PASS
from moduli._call.call import Call, Labels, Spot
from moduli._call.frame import Frame
from moduli._call.function import Function
from moduli._call.signature import Leaf, Path
from moduli._graph.holders import leaf_of
from moduli._graph.named_filters import check_names, names_in
from moduli._graph.state import from_flat_state
from moduli._variable.box import Variable
from moduli._variable.filters import Filter, to_predicate
from moduli._variable.kinds import Param

__all__ = ["DiffState", "Targets"]


@dataclasses.dataclass(frozen=True)
class DiffState:
    """Which part of one argument to differentiate with respect to.

    Args:
      argnum: the position of the argument.
      filter: selects values of the argument's modules.

    Example:
      >>> import moduli as nnx
      >>> class Model(nnx.Module):
      ...     def __init__(self):
      ...         self.w, self.b = nnx.Param(2.0), nnx.Param(1.0)
      >>> only_w = nnx.DiffState(0, nnx.PathContains("w"))
      >>> grads = nnx.grad(lambda m: m.w * 3.0 + m.b, argnums=only_w)(Model())
      >>> list(grads), float(grads.w.value)
      (['w'], 3.0)
    """

    argnum: int
    filter: Filter

    def map_prefix(self, path: tuple[Any, ...], variable: Any) -> bool:
        """Returns whether a Variable at this path is differentiated."""
        return to_predicate(self.filter)(path, variable)


_ONE = jax.tree.structure(0)


class Targets:
    """The differentiated arguments of calls of a function.

    The label of a differentiated value is the number of its argument in ``argnums``; that of all
    others is None.

    Args:
      transform: the transform, for messages.
      argnums: which of the positional arguments, as of :func:`moduli.grad`.
      count: how many of them there are.
      function: the user's function.

    Raises:
      StructureError: if ``argnums`` is wrong.
    """

    def __init__(self, transform: str, argnums: Any, count: int, function: Function):
        self._transform, self._many = transform, is_several(argnums)
        self._shift = len(function.bound)  # how many arguments come before the user's own
        self._filters: list[Any] = []
        self._positions: list[int] = []
        numbers: list[int] = []
        for item in argnums if self._many else (argnums,):
            try:
                if isinstance(item, bool):
                    raise TypeError
                (number,) = as_positions(item.argnum if isinstance(item, DiffState) else item)
            except (TypeError, ValueError):
                raise errors.StructureError(
                    f"{transform}: argnums takes ints and DiffState(argnum, filter), or a sequence "
                    f"of them; got {item!r}"
                ) from None
            numbers.append(number + count if number < 0 else number)
            if not 0 <= numbers[-1] < count:
                raise errors.StructureError(
                    f"{transform}: {function.name} was called with {count} positional arguments; "
                    f"argnums={number} is none of them"
                )
            self._positions.append(numbers[-1] + self._shift)
            self._filters.append(item.filter if isinstance(item, DiffState) else None)
        if len(set(numbers)) != len(numbers):
            raise errors.StructureError(
                f"{transform}: argnums names an argument twice: {numbers}; join the filters: "
                "`DiffState(0, moduli.Any(...))`"
            )

    def take_apart(
        self, function: Function, args: tuple[Any, ...], kwargs: Mapping[str, Any], allow_int: bool
    ) -> Call:
        """Returns the call whose traced values are the differentiated ones, target by target.

        Args:
          function: the user's function.
          args: its positional arguments.
          kwargs: its keyword arguments.
          allow_int: whether integers may be differentiated.

        Raises:
          StructureError: if an object is differentiated in two ways.
          VariableError: if a selected value is an integer.
        """
        args, kwargs = function.complete(args, kwargs)
        prefix: list[Any] = [None] * len(args)
        for number, position in enumerate(self._positions):
            prefix[position] = number
        labels = Labels(
            "argnums", prefix, lambda label: True, "", finder=self._finder, settle=self._settle
        )
        call = Call(self._transform, args, kwargs, function=function.name, labels=labels)
        found = call.all_labels()
        self._check_names(call)
        wanted = [position for position, label in enumerate(found) if label is not None]
        call.trace(sorted(wanted, key=found.__getitem__))
        if not allow_int:
            for leaf, spot in call.spots.items():
                if spot.label is not None:
                    self._check_inexact(call, leaf, spot)
        return call

    def frame(self, call: Call, wanted: Sequence[Any]) -> Frame:
        """Rebuilds the arguments around traced values in the place of the differentiated ones."""
        frame = call.make_frame(wanted)
        count = len(frame.args)
        for number, mark in enumerate(call.signature.template):
            if mark != PASS or number in self._positions:
                continue
            if number < count:  # what is not differentiated stays the same object
                frame.args[number] = call.items[number]
            else:
                frame.kwargs[call.signature.names[number - count]] = call.items[number]
        return frame

    def gradients(self, call: Call, grads: Sequence[Any]) -> Any:
        """Puts gradients of the traced values into the form of the arguments.

        Returns:
          For a module a State of its selected values, for other arguments their own structure; a
          tuple of these if ``argnums`` is a sequence.
        """
        trace = trace_state()
        groups, leaves = call.grouped(call.merged(grads, call.every()))
        pairs: list[list[Any]] = [[] for _ in range(call.signature.num_roots)]
        for (number, index), spot in call.spots.items():
            if spot.label is not None:
                holder, value = call.binding.flats[number].holders[index], groups[number][index]
                if isinstance(holder, Variable):
                    value = type(holder)._make(value, holder._metadata, trace)
                pairs[spot.root].append((spot.path, value))
        roots = [
            from_flat_state(own) if not isinstance(root, Variable) else own[0][1] if own else None
            for root, own in zip(call.binding.roots, pairs, strict=True)
        ]
        objects, others = iter(roots), iter(jax.tree.unflatten(call.treedef, leaves))
        parts: list[Any] = []
        for position, mark in enumerate(call.signature.template):
            treedef, marks = mark if isinstance(mark, tuple) else (_ONE, (bool(mark),))
            part = [next(objects if is_root else others) for is_root in marks]
            parts.append(treedef.unflatten(part) if position in self._positions else None)
        found = tuple([parts[position] for position in self._positions])
        return found if self._many else found[0]

    def _finder(self, label: Any, base: Path, entry: str) -> Callable[[Path, Any], Any]:
        """The labels of the values of one root: its target's number where the filter selects."""
        if label is None:
            return lambda path, leaf: None
        filter = self._filters[label]
        selected = to_predicate(Param if filter is None else filter)

        def find(path: Path, leaf: Any) -> Any:
            all_of_it = filter is None and path == ()  # a Variable that is itself the argument
            return label if all_of_it or selected(path, leaf) else None

        return find

    def _check_names(self, call: Call) -> None:
        """Raises if a filter is a name that selects nothing, as the name of a kind does."""
        for number, filter in enumerate(self._filters):
            if next(names_in(filter), None) is None:
                continue
            pairs = [
                (spot.path, leaf_of(call.binding.flats[graph].holders[index]))
                for (graph, index), spot in call.spots.items()
                if call.argument_of_root[spot.root] == self._positions[number]
            ]
            if pairs:
                alone = len(self._filters) == 1  # beside others it may select nothing
                check_names(pairs, [filter], self._transform, any_name=alone)

    def _settle(self, call: Call, leaf: Leaf, one: Spot, other: Spot) -> Spot:
        """Returns where a value is differentiated that stands in two places."""
        if one.label is None and other.label is None:
            return other
        if (one.root, one.label) == (other.root, other.label):
            return one
        kind = call.signature.describe(leaf)[0]
        first, second = self._place(call, one), self._place(call, other)
        if one.label is not None and other.label is not None:
            raise errors.StructureError(
                f"{self._transform}: {first} and {second} are the same {kind}, and both are "
                "differentiated; pass it once, or leave one of the arguments out of argnums"
            )
        yes, no = (first, second) if other.label is None else (second, first)
        if one.root == other.root:
            target = self._positions.index(call.argument_of_root[one.root])
            raise errors.StructureError(
                f"{self._transform}: {yes} and {no} are the same {kind}, but the filter "
                f"{self._filters[target]!r} selects it by the first path and not by the second; "
                "use a filter that selects both"
            )
        spot, left = (one, other) if other.label is None else (other, one)
        if call.argument_of_root[left.root] not in self._positions:
            raise errors.StructureError(
                f"{self._transform}: {yes} is differentiated, but the same {kind} is also passed "
                f"as {no}, which is not; pass it once, or differentiate both with one filter"
            )
        return spot

    def _place(self, call: Call, spot: Spot) -> str:
        argument = call.argument_of_root[spot.root]
        argument -= self._shift if argument in self._positions else 0
        return f"`{errors.format_path(spot.path)}` of argument {argument}"

    def _check_inexact(self, call: Call, leaf: Leaf, spot: Spot) -> None:
        for value in jax.tree.leaves(call.values[leaf[0]][leaf[1]]):
            dtype = jnp.result_type(value)
            if not jnp.issubdtype(dtype, jnp.inexact):
                raise errors.VariableError(
                    f"{self._transform}: the {call.signature.describe(leaf)[0]} at "
                    f"{self._place(call, spot)} has dtype {dtype}, which has no gradient. Store "
                    "integers in another kind of Variable, select others with DiffState(argnum, "
                    "filter), or pass allow_int=True"
                )
