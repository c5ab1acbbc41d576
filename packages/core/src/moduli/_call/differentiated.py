"""The differentiated arguments of a call, and gradients in their form."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from moduli import errors
from moduli._base.compat import trace_state
from moduli._base.source_lines import describe_site
from moduli._call.bind import Binding, bind
from moduli._call.frame import Frame
from moduli._call.function import Function
from moduli._call.naming import Names, named
from moduli._call.places import Places
from moduli._call.signature import Leaf, Signature
from moduli._graph.cache import flat_of
from moduli._graph.flat import Flat
from moduli._graph.holders import Slot
from moduli._graph.state import from_flat_state
from moduli._variable.box import Variable
from moduli._variable.filters import Filter, to_predicate
from moduli._variable.kinds import Param

__all__ = ["DiffState", "DifferentiatedCall"]

P = TypeVar("P", bound=Callable[..., Any])


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


class DifferentiatedCall:
    """The arguments of one call, some of which are differentiated.

    Args:
      function: the user's function.
      argnums: which of the positional arguments, as of :func:`moduli.grad`.
      args: the positional arguments.
      kwargs: the keyword arguments.
      allow_int: whether integers may be differentiated.
      transform: the transform, for messages.

    Attributes:
      wanted: the differentiated values: for each argument those in its modules, and the others.

    Raises:
      StructureError: if an object is differentiated in two ways, or ``argnums`` is wrong.
      VariableError: if a selected value is an integer.
    """

    def __init__(
        self,
        function: Function,
        argnums: Any,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        *,
        allow_int: bool,
        transform: str = "grad",
    ):
        self._many = isinstance(argnums, (list, tuple))
        self._targets = _targets(transform, argnums, len(args), function.name)
        for target in self._targets:
            target.shift = len(function.bound)
        args, kwargs = function.complete(args, kwargs)
        self._function, self._binding = function, bind(args, kwargs)
        _select(transform, self._binding, self._targets, allow_int)
        self._signature, self._values = Signature(self._binding), self._binding.values()
        self._effects: Any = None
        self.wanted = [
            (
                [holder._value for root in target.leaves for _, holder, _ in root],
                [self._binding.plain[index] for index in target.plain],
            )
            for target in self._targets
        ]

    def frame(self, wanted: Any) -> Frame:
        """Rebuilds the arguments around traced values in the place of the differentiated ones."""
        values = [list(group) for group in self._values]
        plain = list(self._binding.plain)
        for target, (leaves, others) in zip(self._targets, wanted, strict=True):
            for (number, index), value in zip(target.spots, leaves, strict=True):
                values[number][index] = value
            for index, value in zip(target.plain, others, strict=True):
                plain[index] = value
        return Frame(self._signature, values, plain)

    def named(self, pure: P) -> P:
        """Gives a pure function of the differentiated values the names of the user's function."""

        def pairs(wanted: Any) -> Any:
            names = Names(self._function.signature, self._signature)
            for target, (leaves, others) in zip(self._targets, wanted, strict=True):
                yield from zip([names.groups[n][i] for n, i in target.spots], leaves, strict=True)
                yield from zip([names.plain[n] for n in target.plain], others, strict=True)

        return named(pure, self._function.call, pairs)

    def finish(self, frame: Frame, out: Any) -> Any:
        """Writes down what the function did in a frame; returns the pure function's outputs."""
        self._effects, outputs = frame.finish(out)
        return outputs

    def apply(self, outputs: Any) -> Any:
        """Does to the caller's objects what the function did; returns its result."""
        return self._effects.apply(self._binding.flats, self._values, *outputs)

    def gradients(self, grads: Any) -> Any:
        """Puts gradients like ``wanted`` into the form of the arguments.

        Returns:
          For a module a State of its selected values, for other arguments their own structure; a
          tuple of these if ``argnums`` is a sequence.
        """
        found = tuple(
            _gradient(target, *part) for target, part in zip(self._targets, grads, strict=True)
        )
        return found if self._many else found[0]


class _Target:
    """One differentiated argument: which leaves of which graphs, and how its gradient looks."""

    def __init__(self, argnum: int, filter: Any):
        self.argnum, self.filter = argnum, filter
        self.shift = 0  # how many arguments come before the user's own
        self.mark: Any = None
        self.leaves: list[list[tuple[Any, Any, Leaf]]] = []  # (path, holder, leaf), per root
        self.roots: list[Any] = []
        self.plain: list[int] = []

    @property
    def spots(self) -> list[Leaf]:
        """The differentiated leaves, in order."""
        return [leaf for root in self.leaves for _, _, leaf in root]


def _targets(transform: str, argnums: Any, num_args: int, name: str) -> list[_Target]:
    found = []
    for item in argnums if isinstance(argnums, (list, tuple)) else (argnums,):
        if not isinstance(item, (int, DiffState)) or isinstance(item, bool):
            raise errors.StructureError(
                f"{transform}: argnums takes ints and DiffState(argnum, filter), or a sequence of "
                f"them; got {item!r}"
            )
        number = item.argnum if isinstance(item, DiffState) else item
        position = number + num_args if number < 0 else number
        if not 0 <= position < num_args:
            raise errors.StructureError(
                f"{transform}: {name} was called with {num_args} positional arguments; "
                f"argnums={number} is none of them. Pass the differentiated arguments by position"
            )
        found.append(_Target(position, item.filter if isinstance(item, DiffState) else None))
    numbers = [target.argnum for target in found]
    if len(set(numbers)) != len(numbers):
        raise errors.StructureError(
            f"{transform}: argnums names an argument twice: {numbers}; join the filters: "
            "`DiffState(0, moduli.Any(...))`"
        )
    return found


def _select(transform: str, binding: Binding, targets: list[_Target], allow_int: bool) -> None:
    """Finds the leaves of each target and checks that no leaf is wanted in two ways."""
    places = Places(binding.flats)
    by_argument = {target.argnum + target.shift: target for target in targets}
    roots = iter(binding.roots)
    next_plain = 0
    taken: dict[Leaf, _Spot] = {}
    others: list[tuple[int, Any]] = []
    for argnum, mark in enumerate(binding.template):
        marks = mark[1] if isinstance(mark, tuple) else (bool(mark),)
        target = by_argument.get(argnum)
        if target is not None:
            target.mark = mark
        for is_root in marks:
            if not is_root:
                if target is not None:
                    target.plain.append(next_plain)
                next_plain += 1
                continue
            root = next(roots)
            if target is None:
                others.append((argnum, root))
                continue
            target.roots.append(root)
            target.leaves.append(_select_leaves(transform, root, target, places, taken, allow_int))
    for argnum, root in others:
        flat = flat_of(root)
        for path, holder, leaf in zip(
            flat.graphdef.leaf_paths, flat.holders, places.below(root), strict=True
        ):
            spot = taken.get(leaf)
            if spot is not None:
                other = _Spot(argnum, path, holder)
                raise errors.StructureError(
                    f"{transform}: {spot} is differentiated, but the same {spot.kind} is also "
                    f"passed as {other}, which is not; pass it once, or differentiate both with "
                    "one filter"
                )


class _Spot(NamedTuple):
    """Where a value stands, for messages."""

    argnum: int
    path: tuple[Any, ...]
    holder: Any

    def __str__(self) -> str:
        return f"`{errors.format_path(self.path)}` of argument {self.argnum}"

    @property
    def kind(self) -> str:
        """The kind of the value, with the line that made it."""
        if isinstance(self.holder, Slot):
            return "array"
        site = describe_site(self.holder)
        return type(self.holder).__name__ + (f" ({site})" if site else "")


def _select_leaves(
    transform: str,
    root: Any,
    target: _Target,
    places: Places,
    taken: dict[Leaf, _Spot],
    allow_int: bool,
) -> list[tuple[Any, Any, Leaf]]:
    flat = flat_of(root)
    filter = target.filter
    if filter is None:
        filter = ... if isinstance(root, Variable) else Param
    predicate = to_predicate(filter)
    _check_one_answer(transform, flat, target, predicate)
    chosen = []
    for path, holder, leaf in zip(
        flat.graphdef.leaf_paths, flat.holders, places.below(root), strict=True
    ):
        value = holder._value if isinstance(holder, Slot) else holder
        if not predicate(path, value):
            continue
        spot = _Spot(target.argnum, path, holder)
        if leaf in taken:
            raise errors.StructureError(
                f"{transform}: {taken[leaf]} and {spot} are the same {spot.kind}, and both are "
                "differentiated; pass it once, or leave one of the arguments out of argnums"
            )
        taken[leaf] = spot
        if not allow_int:
            _check_inexact(transform, holder._value, spot)
        chosen.append((path, holder, leaf))
    return chosen


def _check_one_answer(transform: str, flat: Flat, target: _Target, predicate: Any) -> None:
    """Raises if the filter selects a shared value by one of its paths and not by another."""
    if flat.graphdef.is_tree:
        return
    answers: dict[int, tuple[bool, _Spot]] = {}
    for path, index in flat.graphdef.path_to_leaf.items():
        holder = flat.holders[index]
        spot = _Spot(target.argnum, path, holder)
        answer = bool(predicate(path, holder._value if isinstance(holder, Slot) else holder))
        first, other = answers.setdefault(index, (answer, spot))
        if first != answer:
            yes, no = (spot, other) if answer else (other, spot)
            raise errors.StructureError(
                f"{transform}: {yes} and {no} are the same {spot.kind}, but the filter "
                f"{target.filter!r} selects it by the first path and not by the second; use a "
                "filter that selects both"
            )


def _check_inexact(transform: str, value: Any, spot: _Spot) -> None:
    for leaf in jax.tree.leaves(value):
        dtype = jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.inexact):
            raise errors.VariableError(
                f"{transform}: the {spot.kind} at {spot} has dtype {dtype}, which has no gradient. "
                "Store integers in another kind of Variable, select others with DiffState(argnum, "
                "filter), or pass allow_int=True"
            )


def _gradient(target: _Target, leaves: list[Any], plain: list[Any]) -> Any:
    """Puts the gradients of one argument into the form of that argument."""
    trace = trace_state()
    values = iter(leaves)
    roots = []
    for root, chosen in zip(target.roots, target.leaves, strict=True):
        pairs = [
            (
                path,
                type(holder)._make(value, holder._metadata, trace)
                if isinstance(holder, Variable)
                else value,
            )
            for (path, holder, _), value in zip(chosen, values, strict=False)
        ]
        if isinstance(root, Variable):
            roots.append(pairs[0][1] if pairs else None)
        else:
            roots.append(from_flat_state(pairs))
    if not isinstance(target.mark, tuple):
        return roots[0] if target.mark else plain[0]
    treedef, marks = target.mark
    objects, others = iter(roots), iter(plain)
    return jax.tree.unflatten(treedef, [next(objects if m else others) for m in marks])
