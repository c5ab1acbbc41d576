"""cond and switch: run one of several functions of modules, chosen by a traced value."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax

from moduli import errors
from moduli._transforms.arguments import Function, check_callable
from moduli._transforms.effects import ChangedEffects, Effects
from moduli._transforms.plain_call import PlainCall
from moduli._variable import Variable

__all__ = ["cond", "switch"]


def cond(
    pred: Any, true_fun: Callable[..., Any], false_fun: Callable[..., Any], *operands: Any
) -> Any:
    """``jax.lax.cond`` for functions that take modules, with all their updates.

    Args:
      pred: a scalar bool, or a Variable that holds one.
      true_fun: the function to run if ``pred`` is True.
      false_fun: the other one.
      *operands: what both take: modules, arrays, pytrees of these. Variables that a function only
        sees from outside can be read, not written.

    Returns:
      The result of the function that runs.

    Raises:
      StructureError: if the two return, or leave behind, different structures.

    Example:
      >>> import moduli as nnx, jax.numpy as jnp
      >>> counter = nnx.Dict({"count": nnx.Variable(jnp.array(0))})
      >>> def add(counter, n):
      ...     counter["count"].value += n
      >>> def keep(counter, n):
      ...     ...
      >>> nnx.cond(jnp.array(True), add, keep, counter, 5)
      >>> int(counter["count"].value)
      5
    """
    for f in (true_fun, false_fun):
        check_callable(f, "cond", "pred, true_fun, false_fun, *operands")
    if isinstance(pred, Variable):
        pred = pred.value
    return _branch(
        "cond",
        ("true_fun", "false_fun"),
        (true_fun, false_fun),
        operands,
        lambda branches, values: jax.lax.cond(pred, *branches, values),
    )


def switch(index: Any, branches: Sequence[Callable[..., Any]], *operands: Any) -> Any:
    """``jax.lax.switch`` for functions that take modules, with all their updates.

    Args:
      index: a scalar int, or a Variable that holds one; clamped to the existing branches.
      branches: the functions.
      *operands: see :func:`cond`.

    Returns:
      The result of the function that runs.

    Raises:
      StructureError: if there is no branch, or two return, or leave behind, different structures.

    Example:
      >>> import moduli as nnx, jax.numpy as jnp
      >>> model = nnx.Dict({"w": nnx.Param(jnp.array(3.0))})
      >>> branches = [lambda m, x: m["w"] + x, lambda m, x: m["w"] * x]
      >>> float(nnx.switch(jnp.array(1), branches, model, 2.0))
      6.0
    """
    if isinstance(index, Variable):
        index = index.value
    branches = tuple(branches)
    if not branches:
        raise errors.StructureError("switch: branches is empty; give at least one function")
    for f in branches:
        check_callable(f, "switch", "index, branches, *operands")
    names = tuple(f"branches[{number}]" for number in range(len(branches)))
    return _branch(
        "switch",
        names,
        branches,
        operands,
        lambda pures, values: jax.lax.switch(index, pures, values),
    )


class _Result:
    """What one branch did."""

    def __init__(self, call: PlainCall, outputs: Any):
        out, values = outputs
        self.effects, self.homes = call.effects, call.frame.homes
        self.structure = jax.tree.structure(out)
        if isinstance(self.effects, ChangedEffects):  # ``out`` is then just what is no object
            self.structure = self.effects.treedef
        self.types = [jax.tree.map(jax.typeof, leaf) for leaf in jax.tree.leaves(out)]
        self.value_types = [jax.tree.map(jax.typeof, value) for value in values]
        self.written = set()
        if isinstance(self.effects, Effects):
            given = call.frame.given
            self.written = {
                leaf
                for leaf, value in zip(self.homes, values, strict=True)
                if value is not given[leaf[0]][leaf[1]]
            }


def _branch(
    transform: str,
    names: tuple[str, ...],
    branches: tuple[Callable[..., Any], ...],
    operands: tuple[Any, ...],
    choose: Callable[[list[Callable[..., Any]], Any], Any],
) -> Any:
    functions = [Function(f) for f in branches]
    bound = [module for function in functions for module in function.bound]
    call = PlainCall(transform, (*bound, *operands), {})
    results: dict[int, _Result] = {}

    def pure_of(number: int, function: Function) -> Callable[[Any], Any]:
        own = sum(len(earlier.bound) for earlier in functions[:number])

        def pick(*args: Any) -> Any:
            return function.call(*args[own : own + len(function.bound)], *args[len(bound) :])

        inner = Function(pick)
        inner.name = f"{names[number]} ({function.name})"

        def pure(values: Any) -> Any:
            outputs = call.run(inner, values, keep=lambda leaf: True, strict=True)
            results[number] = _Result(call, outputs)
            if number and 0 in results:
                _check_alike(transform, call, inner.name, results[0], results[number])
            return outputs

        return pure

    pures = [pure_of(number, function) for number, function in enumerate(functions)]
    out, values = choose(pures, call.dynamic)
    effects = results[0].effects
    if isinstance(effects, Effects):
        written = sorted(set().union(*[result.written for result in results.values()]))
        places = {leaf: position for position, leaf in enumerate(results[0].homes)}
        values = [values[places[leaf]] for leaf in written]
        effects = Effects(written, only_variables=False)
    return effects.apply(call.binding.flats, call.values, out, values)


def _check_alike(
    transform: str, call: PlainCall, name: str, first: _Result, other: _Result
) -> None:
    """Raises if a branch returns or leaves behind something else than the first one."""
    if first.structure != other.structure:
        raise errors.StructureError(
            f"{transform}: the first function returns {first.structure}, but {name} returns "
            f"{other.structure}; all must return the same structure"
        )
    for number, (a, b) in enumerate(zip(first.types, other.types, strict=True)):
        if _differ(a, b):
            raise errors.ShapeError(
                f"{transform}: the first function returns {_type(a)} as its value {number}, but "
                f"{name} returns {_type(b)}; all must return the same shapes and dtypes"
            )
    one, two = first.effects, other.effects
    if isinstance(one, ChangedEffects) or isinstance(two, ChangedEffects):
        _check_same_change(transform, call, name, one, two)
    for leaf, a, b in zip(first.homes, first.value_types, other.value_types, strict=True):
        same = jax.tree.structure(a) == jax.tree.structure(b)
        if not same or any(map(_differ, jax.tree.leaves(a), jax.tree.leaves(b))):
            spot = call.describe(leaf) if leaf is not None else "a new Variable"
            raise errors.ShapeError(
                f"{transform}: after the first function {spot} holds {_type(a)}, but after {name} "
                f"{_type(b)}; all must leave the same shapes and dtypes"
            )


def _differ(a: Any, b: Any) -> bool:
    return a.shape != b.shape or (a.dtype != b.dtype and not (a.weak_type or b.weak_type))


def _type(types: Any) -> str:
    leaves = [f"{leaf.dtype}{list(leaf.shape)}" for leaf in jax.tree.leaves(types)]
    return leaves[0] if len(leaves) == 1 else str(leaves)


def _check_same_change(transform: str, call: PlainCall, name: str, one: Any, two: Any) -> None:
    first = one.graphdef if isinstance(one, ChangedEffects) else None
    second = two.graphdef if isinstance(two, ChangedEffects) else None
    if first is second and (one.origins, one.marks) == (two.origins, two.marks):
        return
    before = set().union(*[graphdef.path_to_leaf for graphdef in call.signature.graphdefs])

    def changes(graphdef: Any) -> str:
        if graphdef is None:
            return "changes no structure"
        paths = {_local(path, graphdef, call) for path in graphdef.path_to_leaf}
        known = {_local(path, None, call) for path in before}
        added = sorted(errors.format_path(path) for path in paths - known)
        removed = sorted(errors.format_path(path) for path in known - paths)
        parts = [f"adds {added}"] * bool(added) + [f"removes {removed}"] * bool(removed)
        return " and ".join(parts) or "changes attributes"

    raise errors.StructureError(
        f"{transform}: the first function {changes(first)}, but {name} {changes(second)}; all must "
        "leave the same structure: make Variables and attributes before, and write values inside"
    )


def _local(path: tuple[Any, ...], graphdef: Any, call: PlainCall) -> tuple[Any, ...]:
    roots = sum(len(g.roots) for g in call.signature.graphdefs)
    many = len(graphdef.roots) > 1 if graphdef is not None else roots > 1
    return path[1:] if many and path and len(call.signature.graphdefs) == 1 else path
