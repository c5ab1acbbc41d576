"""cond and switch: run one of several functions of modules, chosen by a traced value."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar, TypeVarTuple, Unpack

import jax

from moduli import errors
from moduli._call.call import Call
from moduli._call.carried import is_array_like
from moduli._call.change_texts import Word, describe_changes
from moduli._call.eager_programs import Result, run_program
from moduli._call.function import Function, Modes, check_callable, folded, wraps
from moduli._call.given_values import unboxed
from moduli._call.naming import naming
from moduli._call.recorded_branches import record_alike
from moduli._call.writeback import ChangedEffects, only_written

__all__ = ["cond", "switch"]

R = TypeVar("R")
Ts = TypeVarTuple("Ts")


@folded
def cond(
    pred: Any,
    true_fun: Callable[[*Ts], R],
    false_fun: Callable[[*Ts], R],
    *operands: *Ts,
    **_modes: Unpack[Modes],
) -> R:
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
    pred = unboxed(pred)
    return _branch(
        "cond",
        ("true_fun", "false_fun"),
        (true_fun, false_fun),
        operands,
        {"pred": pred},
        lambda pred, branches, values: jax.lax.cond(pred, *branches, values),
    )


@folded
def switch(
    index: Any, branches: Sequence[Callable[[*Ts], R]], *operands: *Ts, **_modes: Unpack[Modes]
) -> R:
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
    index = unboxed(index)
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
        {"index": index},
        jax.lax.switch,
    )


class _Result:
    """What one branch did."""

    def __init__(self, call: Call, outputs: Any):
        out, values = outputs
        self.effects, self.homes, self.written = call.effects, call.homes, call.written
        leaves = jax.tree.leaves(out)
        types = [Word(_type(jax.typeof(leaf))) for leaf in leaves]
        if isinstance(
            self.effects, ChangedEffects
        ):  # ``out`` then holds only what is not an object
            effects = self.effects
            objects = iter(effects.graphdef.roots[effects.num_roots :])
            plain = iter(types)
            types = [
                Word(effects.graphdef.objects[next(objects)[1]][1].__name__)
                if is_object
                else next(plain)
                for is_object in effects.marks
            ]
            self.outline = jax.tree.unflatten(effects.treedef, types)
        else:
            self.outline = jax.tree.unflatten(jax.tree.structure(out), types)
        self.types = [jax.typeof(leaf) for leaf in leaves]
        self.value_types = [jax.tree.map(jax.typeof, value) for value in values]


def _branch(
    transform: str,
    names: tuple[str, ...],
    branches: tuple[Callable[..., Any], ...],
    operands: tuple[Any, ...],
    which: dict[str, Any],
    choose: Callable[[Any, list[Callable[..., Any]], Any], Any],
) -> Any:
    functions = [Function(f) for f in branches]
    names = tuple(f"{name} ({f.name})" for name, f in zip(names, functions, strict=True))
    bound = [module for function in functions for module in function.bound]
    counts = tuple([len(function.bound) for function in functions])
    places = [f"the module of {n}" for n, f in zip(names, functions, strict=True) if f.bound]
    places += [f"operand {number}" for number in range(len(operands))]
    call = Call(transform, (*bound, *operands), {}, places)
    effects, out, values = run_program(
        [function.call for function in functions],
        call,
        lambda call, functions, **which: _choose(call, functions, names, counts, which, choose),
        (names, counts) if all(map(_is_scalar, which.values())) else None,
        which,
    )
    return call.apply((out, values), effects)


def _choose(
    call: Call,
    functions: Sequence[Callable[..., Any]],
    names: Sequence[str],
    counts: Sequence[int],
    which: dict[str, Any],
    choose: Callable[[Any, list[Callable[..., Any]], Any], Any],
) -> Result:
    """Runs one of the branches.

    Args:
      call: the modules of bound branches, then the operands.
      functions: the branches.
      names: their names, for messages.
      counts: how many of the modules are the first arguments of each.
      which: the value that says which one runs, by its name.
      choose: of ``jax.lax``.
    """
    results: dict[int, _Result] = {}
    inners: list[Function] = []
    signature = call.signature
    operands = len(signature.template) - len(signature.names) - sum(counts)

    def pure_of(number: int, function: Callable[..., Any]) -> Callable[[Any], Any]:
        own = sum(counts[:number])

        def pick(*args: Any) -> Any:
            return function(*args[own : own + counts[number]], *args[sum(counts) :])

        inner = Function(wraps(function)(pick))
        inner.name = names[number]

        inners.append(inner)

        def pure(values: Any) -> Any:
            outputs = call.run(inner, values, after=alike, keep=call.is_dynamic, strict=True)
            results[number] = _Result(call, outputs)
            if number and 0 in results:
                _check_alike(call, names[0], names[number], results[0], results[number])
            return outputs

        positions = [0] * sum(counts)  # a module of another function, or its own as the first
        positions += [counts[number] + operand for operand in range(operands)]
        return call.named(pure, Function(function), positions)

    pures = [pure_of(number, function) for number, function in enumerate(functions)]
    alike = record_alike(call, inners) if call.keeps_records else None
    with naming(call.transform, functions[0]):
        (value,) = which.values()
        out, values = choose(value, pures, call.dynamic)
    written = set().union(*[result.written for result in results.values()])
    one = next(iter(results.values()))  # all are alike; under jax.disable_jit only one has run
    effects, values = only_written(one.effects, one.homes, values, written)
    return effects, out, values


def _is_scalar(value: Any) -> bool:
    """Returns whether a value can choose a branch; of others JAX says so itself."""
    return is_array_like(value) and jax.numpy.shape(value) == ()


def _check_alike(call: Call, first_name: str, name: str, first: _Result, other: _Result) -> None:
    """Raises if a branch returns or leaves behind something else than the first one."""
    transform = call.transform
    same = jax.tree.structure(first.outline) == jax.tree.structure(other.outline)
    if not same or any(map(_differ, first.types, other.types)):
        raise (errors.ShapeError if same else errors.StructureError)(
            f"{transform}: {first_name} returns {first.outline!r}, but {name} returns "
            f"{other.outline!r}; all must return the same structure, shapes and dtypes"
        )
    _check_same_change(transform, call, first_name, name, first.effects, other.effects)
    for leaf, a, b in zip(first.homes, first.value_types, other.value_types, strict=True):
        same = jax.tree.structure(a) == jax.tree.structure(b)
        if not same or any(map(_differ, jax.tree.leaves(a), jax.tree.leaves(b))):
            spot = call.describe(leaf) if leaf is not None else "a new Variable"
            raise (errors.ShapeError if same else errors.StructureError)(
                f"{transform}: {first_name} leaves {_type(a)} in {spot}, but {name} leaves "
                f"{_type(b)} there; all must leave the same structure, shapes and dtypes"
            )


def _differ(a: Any, b: Any) -> bool:
    return a.shape != b.shape or (a.dtype != b.dtype and not (a.weak_type or b.weak_type))


def _type(types: Any) -> str:
    return repr(jax.tree.map(lambda leaf: Word(f"{leaf.dtype}{list(leaf.shape)}"), types))


def _check_same_change(
    transform: str, call: Call, first_name: str, name: str, one: Any, two: Any
) -> None:
    first = one.graphdef if isinstance(one, ChangedEffects) else None
    second = two.graphdef if isinstance(two, ChangedEffects) else None
    if first is second and (first is None or (one.origins, one.marks) == (two.origins, two.marks)):
        return
    raise errors.StructureError(
        f"{transform}: {first_name} {describe_changes(one, call.place)}, but {name} "
        f"{describe_changes(two, call.place)}; all must leave the same structure: make Variables "
        "and attributes before, and write values inside"
    )
