"""grad and value_and_grad: gradients with respect to parts of modules."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, ParamSpec, TypeVar, overload

import jax
import jax.numpy as jnp

from moduli import errors
from moduli._base.compat import trace_state
from moduli._base.source_lines import describe_site
from moduli._call.again import remember
from moduli._call.function import Function, check_callable, wraps
from moduli._call.lift import Binding, Frame, Signature, bind
from moduli._call.naming import Names, named, naming
from moduli._call.running import running
from moduli._graph.cache import flat_of
from moduli._graph.flatten import Flat, Slot
from moduli._graph.state import from_flat_state
from moduli._variable.box import Param, Variable
from moduli._variable.filters import Filter, to_predicate

__all__ = ["DiffState", "grad", "value_and_grad"]

P = ParamSpec("P")
R = TypeVar("R")
X = TypeVar("X")


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


_HolderKey = tuple[Any, ...]


def _key(holder: Any) -> _HolderKey:
    if isinstance(holder, Slot):
        return (id(holder.node), holder.key, holder.position)
    return (id(holder),)


class _Target:
    """One differentiated argument: which leaves of which graphs, and how its gradient looks."""

    def __init__(self, argnum: int, filter: Any):
        self.argnum, self.filter = argnum, filter
        self.shift = 0  # how many arguments come before the user's own
        self.mark: Any = None
        self.leaves: list[list[tuple[Any, Any, tuple[int, int]]]] = []  # per root
        self.roots: list[Any] = []
        self.plain: list[int] = []


def _targets(argnums: Any, num_args: int, name: str) -> list[_Target]:
    found = []
    for item in argnums if isinstance(argnums, (list, tuple)) else (argnums,):
        if not isinstance(item, (int, DiffState)) or isinstance(item, bool):
            raise errors.StructureError(
                f"grad: argnums takes ints and DiffState(argnum, filter), or a sequence of them; "
                f"got {item!r}"
            )
        number = item.argnum if isinstance(item, DiffState) else item
        position = number + num_args if number < 0 else number
        if not 0 <= position < num_args:
            raise errors.StructureError(
                f"grad: {name} was called with {num_args} positional arguments; argnums={number} "
                "is none of them. Pass the differentiated arguments by position"
            )
        found.append(_Target(position, item.filter if isinstance(item, DiffState) else None))
    numbers = [target.argnum for target in found]
    if len(set(numbers)) != len(numbers):
        raise errors.StructureError(
            f"grad: argnums names an argument twice: {numbers}; join the filters: "
            "`DiffState(0, moduli.Any(...))`"
        )
    return found


def _select(binding: Binding, targets: list[_Target], allow_int: bool) -> None:
    """Finds the leaves of each target and checks that no leaf is wanted in two ways."""
    place = {
        _key(holder): (number, index)
        for number, flat in enumerate(binding.flats)
        for index, holder in enumerate(flat.holders)
    }
    by_argument = {target.argnum + target.shift: target for target in targets}
    roots = iter(binding.roots)
    next_plain = 0
    taken: dict[tuple[int, int], _Spot] = {}
    others: list[tuple[int, Flat]] = []
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
            flat = flat_of(root)
            if target is None:
                others.append((argnum, flat))
                continue
            target.roots.append(root)
            target.leaves.append(_select_leaves(root, flat, target, place, taken, allow_int))
    for argnum, flat in others:
        for path, holder in zip(flat.graphdef.leaf_paths, flat.holders, strict=True):
            spot = taken.get(place[_key(holder)])
            if spot is not None:
                other = _Spot(argnum, path, holder)
                raise errors.StructureError(
                    f"grad: {spot} is differentiated, but the same {spot.kind} is also passed as "
                    f"{other}, which is not; pass it once, or differentiate both with one filter"
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
    root: Any,
    flat: Flat,
    target: _Target,
    place: dict[_HolderKey, tuple[int, int]],
    taken: dict[tuple[int, int], _Spot],
    allow_int: bool,
) -> list[tuple[Any, Any, tuple[int, int]]]:
    filter = target.filter
    if filter is None:
        filter = ... if isinstance(root, Variable) else Param
    predicate = to_predicate(filter)
    _check_one_answer(flat, target, predicate)
    chosen = []
    for path, holder in zip(flat.graphdef.leaf_paths, flat.holders, strict=True):
        value = holder._value if isinstance(holder, Slot) else holder
        if not predicate(path, value):
            continue
        spot = _Spot(target.argnum, path, holder)
        position = place[_key(holder)]
        if position in taken:
            raise errors.StructureError(
                f"grad: {taken[position]} and {spot} are the same {spot.kind}, and both are "
                "differentiated; pass it once, or leave one of the arguments out of argnums"
            )
        taken[position] = spot
        if not allow_int:
            _check_inexact(holder._value, spot)
        chosen.append((path, holder, position))
    return chosen


def _check_one_answer(flat: Flat, target: _Target, predicate: Any) -> None:
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
                f"grad: {yes} and {no} are the same {spot.kind}, but the filter "
                f"{target.filter!r} selects it by the first path and not by the second; use a "
                "filter that selects both"
            )


def _check_inexact(value: Any, spot: _Spot) -> None:
    for leaf in jax.tree.leaves(value):
        dtype = jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.inexact):
            raise errors.VariableError(
                f"grad: the {spot.kind} at {spot} has dtype {dtype}, which has no gradient. Store "
                "integers in another kind of Variable, select others with DiffState(argnum, "
                "filter), or pass allow_int=True"
            )


@overload
def value_and_grad(
    f: Callable[P, R],
    *,
    argnums: int | DiffState | Sequence[int | DiffState] = 0,
    has_aux: Literal[False] = False,
    holomorphic: bool = False,
    allow_int: bool = False,
    reduce_axes: Sequence[Any] = (),
) -> Callable[P, tuple[R, Any]]: ...
@overload
def value_and_grad(
    f: Callable[P, tuple[R, X]],
    *,
    argnums: int | DiffState | Sequence[int | DiffState] = 0,
    has_aux: Literal[True],
    holomorphic: bool = False,
    allow_int: bool = False,
    reduce_axes: Sequence[Any] = (),
) -> Callable[P, tuple[tuple[R, X], Any]]: ...
@overload
def value_and_grad(
    f: None = None,
    *,
    argnums: int | DiffState | Sequence[int | DiffState] = 0,
    has_aux: Literal[False] = False,
    holomorphic: bool = False,
    allow_int: bool = False,
    reduce_axes: Sequence[Any] = (),
) -> Callable[[Callable[P, R]], Callable[P, tuple[R, Any]]]: ...
@overload
def value_and_grad(
    f: None = None,
    *,
    argnums: int | DiffState | Sequence[int | DiffState] = 0,
    has_aux: Literal[True],
    holomorphic: bool = False,
    allow_int: bool = False,
    reduce_axes: Sequence[Any] = (),
) -> Callable[[Callable[P, tuple[R, X]]], Callable[P, tuple[tuple[R, X], Any]]]: ...
@overload
def value_and_grad(
    f: Callable[P, Any] | None = None,
    *,
    argnums: int | DiffState | Sequence[int | DiffState] = 0,
    has_aux: bool = False,
    holomorphic: bool = False,
    allow_int: bool = False,
    reduce_axes: Sequence[Any] = (),
) -> Any: ...
def value_and_grad(
    f: Callable[..., Any] | None = None,
    *,
    argnums: int | DiffState | Sequence[int | DiffState] = 0,
    has_aux: bool = False,
    holomorphic: bool = False,
    allow_int: bool = False,
    reduce_axes: Sequence[Any] = (),
) -> Any:
    """Like :func:`grad`, but the new function returns the value and the gradient.

    Args:
      f: see :func:`grad`.
      argnums: see :func:`grad`.
      has_aux: see :func:`grad`.
      holomorphic: as of ``jax.value_and_grad``.
      allow_int: as of ``jax.value_and_grad``.
      reduce_axes: accepted for flax's signature; only ``()`` has a meaning.

    Returns:
      A function that returns ``(value, gradient)``, or ``((value, aux), gradient)``.

    Example:
      >>> import moduli as nnx
      >>> model = nnx.Dict({"w": nnx.Param(2.0)})
      >>> value, grads = nnx.value_and_grad(lambda m: m.w ** 2)(model)
      >>> float(value), float(grads.w.value)
      (4.0, 4.0)
    """
    options = {
        "argnums": argnums,
        "has_aux": has_aux,
        "holomorphic": holomorphic,
        "allow_int": allow_int,
        "reduce_axes": reduce_axes,
    }
    if f is None:
        return functools.partial(value_and_grad, **options)
    both = _differentiate(f, "value_and_grad", **options)
    return remember(both, f, value_and_grad, options)


@overload
def grad(
    f: Callable[P, Any],
    *,
    argnums: int | DiffState | Sequence[int | DiffState] = 0,
    has_aux: Literal[False] = False,
    holomorphic: bool = False,
    allow_int: bool = False,
    reduce_axes: Sequence[Any] = (),
) -> Callable[P, Any]: ...
@overload
def grad(
    f: Callable[P, tuple[Any, X]],
    *,
    argnums: int | DiffState | Sequence[int | DiffState] = 0,
    has_aux: Literal[True],
    holomorphic: bool = False,
    allow_int: bool = False,
    reduce_axes: Sequence[Any] = (),
) -> Callable[P, tuple[Any, X]]: ...
@overload
def grad(
    f: None = None,
    *,
    argnums: int | DiffState | Sequence[int | DiffState] = 0,
    has_aux: Literal[False] = False,
    holomorphic: bool = False,
    allow_int: bool = False,
    reduce_axes: Sequence[Any] = (),
) -> Callable[[Callable[P, Any]], Callable[P, Any]]: ...
@overload
def grad(
    f: None = None,
    *,
    argnums: int | DiffState | Sequence[int | DiffState] = 0,
    has_aux: Literal[True],
    holomorphic: bool = False,
    allow_int: bool = False,
    reduce_axes: Sequence[Any] = (),
) -> Callable[[Callable[P, tuple[Any, X]]], Callable[P, tuple[Any, X]]]: ...
@overload
def grad(
    f: Callable[P, Any] | None = None,
    *,
    argnums: int | DiffState | Sequence[int | DiffState] = 0,
    has_aux: bool = False,
    holomorphic: bool = False,
    allow_int: bool = False,
    reduce_axes: Sequence[Any] = (),
) -> Any: ...
def grad(
    f: Callable[..., Any] | None = None,
    *,
    argnums: int | DiffState | Sequence[int | DiffState] = 0,
    has_aux: bool = False,
    holomorphic: bool = False,
    allow_int: bool = False,
    reduce_axes: Sequence[Any] = (),
) -> Any:
    """``jax.grad`` for functions that take modules, with all their updates.

    Args:
      f: a function that returns a scalar; with ``has_aux`` a pair (scalar, anything). Without it a
        decorator is returned, so ``@nnx.grad(argnums=1)`` works.
      argnums: the differentiated arguments. An int means the Params of a module, all of a Variable
        or State, or a whole pytree of arrays; ``DiffState(argnum, filter)`` selects other values.
      has_aux: see ``f``.
      holomorphic: as of ``jax.grad``.
      allow_int: as of ``jax.grad``.
      reduce_axes: accepted for flax's signature; only ``()`` has a meaning.

    Returns:
      A function with the arguments of ``f`` that returns the gradient, or ``(gradient, aux)``: for
      a module a State of its selected values, for other arguments their own structure; a tuple of
      these if ``argnums`` is a sequence.

    Raises:
      StructureError: if an object is differentiated in two ways, or ``argnums`` is wrong.
      ShapeError: if ``f`` does not return a scalar.
      VariableError: if a selected value is an integer.

    Example:
      >>> import moduli as nnx, jax.numpy as jnp
      >>> class Linear(nnx.Module):
      ...     def __init__(self):
      ...         self.kernel, self.calls = nnx.Param(jnp.ones((2, 1))), nnx.Variable(0)
      ...     def __call__(self, x):
      ...         self.calls += 1
      ...         return x @ self.kernel
      >>> model = Linear()
      >>> grads = nnx.grad(lambda m, x: m(x).sum())(model, jnp.array([[3.0, 4.0]]))
      >>> grads.kernel.value.tolist(), model.calls.value
      ([[3.0], [4.0]], 1)
    """
    options = {
        "argnums": argnums,
        "has_aux": has_aux,
        "holomorphic": holomorphic,
        "allow_int": allow_int,
        "reduce_axes": reduce_axes,
    }
    if f is None:
        return functools.partial(grad, **options)
    both = _differentiate(f, "grad", **options)

    @wraps(f)
    def gradient(*args: Any, **kwargs: Any) -> Any:
        value, grads = both(*args, **kwargs)
        return (grads, value[1]) if has_aux else grads

    return remember(gradient, f, grad, options)


def _differentiate(
    f: Callable[..., Any],
    transform: str,
    *,
    argnums: Any,
    has_aux: bool,
    holomorphic: bool,
    allow_int: bool,
    reduce_axes: Sequence[Any],
) -> Callable[..., Any]:
    check_callable(f, transform, "argnums=...")
    if tuple(reduce_axes):
        raise errors.StructureError(
            f"{transform}: reduce_axes={reduce_axes!r} has no meaning in today's JAX; sum over the "
            "axis yourself with jax.lax.psum"
        )
    function = Function(f)
    name = function.name

    @wraps(f)
    def value_and_gradient(*args: Any, **kwargs: Any) -> Any:
        targets = _targets(argnums, len(args), name)
        for target in targets:
            target.shift = len(function.bound)
        args, kwargs = function.complete(args, kwargs)
        binding = bind(args, kwargs)
        _select(binding, targets, allow_int)
        signature = Signature(binding)
        values = binding.values()
        effects: Any = None

        def pure(wanted: Any) -> Any:
            nonlocal effects
            inner = [list(group) for group in values]
            plain = list(binding.plain)
            for target, (leaves, others) in zip(targets, wanted, strict=True):
                spots = [spot for root in target.leaves for _, _, spot in root]
                for (number, index), value in zip(spots, leaves, strict=True):
                    inner[number][index] = value
                for index, value in zip(target.plain, others, strict=True):
                    plain[index] = value
            frame = Frame(signature, inner, plain)
            with running(transform, name, frame.recordings, function.call):
                out = function.call(*frame.args, **frame.kwargs)
            value, aux = _unpack(out, has_aux, transform, name)
            effects, outputs = frame.finish(aux)
            return value, outputs

        wanted = [
            (
                [holder._value for root in target.leaves for _, holder, _ in root],
                [binding.plain[index] for index in target.plain],
            )
            for target in targets
        ]

        def pairs(wanted: Any) -> Any:
            names = Names(function.signature, signature)
            for target, (leaves, others) in zip(targets, wanted, strict=True):
                spots = [spot for root in target.leaves for _, _, spot in root]
                yield from zip([names.groups[n][i] for n, i in spots], leaves, strict=True)
                yield from zip([names.plain[n] for n in target.plain], others, strict=True)

        named(pure, function.call, pairs)
        with naming(transform, function.call):
            (value, (aux, outputs)), grads = jax.value_and_grad(
                pure, has_aux=True, holomorphic=holomorphic, allow_int=allow_int
            )(wanted)
        aux = effects.apply(binding.flats, values, aux, outputs)
        gradients = tuple(
            _gradient(target, *part) for target, part in zip(targets, grads, strict=True)
        )
        many = isinstance(argnums, (list, tuple))
        return (value, aux) if has_aux else value, gradients if many else gradients[0]

    return value_and_gradient


def _unpack(out: Any, has_aux: bool, transform: str, name: str) -> tuple[Any, Any]:
    aux = None
    if has_aux:
        if not isinstance(out, (tuple, list)) or len(out) != 2:
            raise errors.StructureError(
                f"{transform}: with has_aux=True {name} must return a pair (value, aux); it "
                f"returned a {type(out).__name__}"
                + (f" of {len(out)}" if isinstance(out, (tuple, list)) else "")
            )
        out, aux = out
    if isinstance(out, Variable):
        out = out.value
    shape = getattr(out, "shape", ())
    if shape != ():
        raise errors.ShapeError(
            f"{transform}: {name} must return a scalar (shape ()); it returned shape {shape}. "
            "Reduce it, as with `.mean()` or `.sum()`"
        )
    return out, aux


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
