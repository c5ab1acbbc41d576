"""vjp and jvp: linear maps of functions of modules, backwards and forwards."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar, overload

import jax
import jax.numpy as jnp
import numpy as np

from moduli import errors
from moduli._base.node import Node
from moduli._call.change_texts import outline
from moduli._call.function import Function, check_callable, wraps
from moduli._call.naming import naming
from moduli._call.plain_call import PlainCall
from moduli._call.running import running
from moduli._graph.cache import flat_of
from moduli._graph.data import is_graph_leaf
from moduli._graph.state import State, _flat_items
from moduli._transforms.grad import _key
from moduli._variable.box import Variable

__all__ = ["jvp", "vjp"]

R = TypeVar("R")
X = TypeVar("X")


@overload
def vjp(
    f: Callable[..., R],
    primal: Any,
    /,
    *primals: Any,
    has_aux: Literal[False] = False,
    reduce_axes: Sequence[Any] = (),
) -> tuple[R, Callable[..., tuple[Any, ...]]]: ...
@overload
def vjp(
    f: Callable[..., tuple[R, X]],
    primal: Any,
    /,
    *primals: Any,
    has_aux: Literal[True],
    reduce_axes: Sequence[Any] = (),
) -> tuple[R, Callable[..., tuple[Any, ...]], X]: ...
@overload
def vjp(
    f: Callable[..., Any] | None = None,
    *primals: Any,
    has_aux: bool = False,
    reduce_axes: Sequence[Any] = (),
) -> Any: ...
def vjp(
    f: Callable[..., Any] | None = None,
    *primals: Any,
    has_aux: bool = False,
    reduce_axes: Sequence[Any] = (),
) -> Any:
    """``jax.vjp`` for functions that take modules, with all their updates.

    Args:
      f: a function, a method, or a module. Without it a decorator is returned; without primals a
        function that takes them.
      *primals: the arguments of ``f``: modules, arrays, pytrees of these.
      has_aux: whether ``f`` returns a pair (result, anything).
      reduce_axes: accepted for flax's signature; only ``()`` has a meaning.

    Returns:
      ``(result, vjp_fn)``, or ``(result, vjp_fn, aux)``. ``vjp_fn`` takes a cotangent like the
      result and returns a tuple with a cotangent like each argument: for a module a new module of
      the same structure (values without a gradient, such as counts, have dtype float0).

    Raises:
      StructureError: if the result holds a module.

    Example:
      >>> import moduli as nnx, jax.numpy as jnp
      >>> model = nnx.Dict({"w": nnx.Param(jnp.array(3.0))})
      >>> y, pullback = nnx.vjp(lambda m, x: m["w"] * x, model, jnp.array(2.0))
      >>> grad_model, grad_x = pullback(jnp.array(1.0))
      >>> float(y), float(grad_model["w"].value), float(grad_x)
      (6.0, 2.0, 3.0)
    """
    if f is None:
        return functools.partial(vjp, has_aux=has_aux, reduce_axes=reduce_axes)
    check_callable(f, "vjp", "has_aux=...")
    if tuple(reduce_axes):
        raise errors.StructureError(
            f"vjp: reduce_axes={reduce_axes!r} has no meaning in today's JAX; sum over the axis "
            "yourself with jax.lax.psum"
        )
    if not primals:
        return wraps(f)(lambda *primals: vjp(f, *primals, has_aux=has_aux))
    function = Function(f)
    args, kwargs = function.complete(primals, {})
    call = PlainCall("vjp", args, kwargs)
    pure = call.named(lambda values: _run(call, function, values, has_aux), function)
    with naming("vjp", function.call):
        result, pullback, outputs = jax.vjp(pure, call.dynamic, has_aux=True)
    aux = call.apply(outputs)

    structure = jax.tree.structure(result)

    def vjp_fn(cotangent: Any) -> Any:
        if jax.tree.structure(cotangent) != structure:
            raise errors.StructureError(
                f"vjp: the cotangent is {outline(cotangent)}, but {function.name} returned "
                f"{outline(result)}; give a cotangent of the same structure"
            )
        with naming("vjp", function.call):
            (cotangents,) = pullback(cotangent)
        frame = call.make_frame(cotangents, static=False)
        return tuple(frame.args[len(function.bound) :])

    return (result, vjp_fn, aux) if has_aux else (result, vjp_fn)


@overload
def jvp(
    f: Callable[..., R],
    primals: tuple[Any, ...],
    tangents: tuple[Any, ...],
    *,
    has_aux: Literal[False] = False,
) -> tuple[R, Any]: ...
@overload
def jvp(
    f: Callable[..., tuple[R, X]],
    primals: tuple[Any, ...],
    tangents: tuple[Any, ...],
    *,
    has_aux: Literal[True],
) -> tuple[R, Any, X]: ...
@overload
def jvp(
    f: Callable[..., Any] | None = None,
    primals: tuple[Any, ...] | None = None,
    tangents: tuple[Any, ...] | None = None,
    *,
    has_aux: bool = False,
) -> Any: ...
def jvp(
    f: Callable[..., Any] | None = None,
    primals: tuple[Any, ...] | None = None,
    tangents: tuple[Any, ...] | None = None,
    *,
    has_aux: bool = False,
) -> Any:
    """``jax.jvp`` for functions that take modules, with all their updates.

    Args:
      f: a function, a method, or a module. Without it a decorator is returned; without primals a
        function that takes primals and tangents.
      primals: a tuple of the arguments of ``f``.
      tangents: a tuple of tangents like the arguments. For a module, a module of the same
        structure or a State; values that a State leaves out have a tangent of zero, as have values
        that are not floating point, and all below None.
      has_aux: whether ``f`` returns a pair (result, anything).

    Returns:
      ``(result, tangent of the result)``, or ``(result, tangent, aux)``.

    Raises:
      StructureError: if a tangent does not fit its argument, or the result holds a module.

    Example:
      >>> import moduli as nnx, jax.numpy as jnp
      >>> model = nnx.Dict({"w": nnx.Param(jnp.array(3.0))})
      >>> towards = nnx.State({"w": 1.0})
      >>> y, dy = nnx.jvp(lambda m, x: m["w"] * x, (model, 2.0), (towards, 0.0))
      >>> float(y), float(dy)
      (6.0, 2.0)
    """
    if f is None:
        return functools.partial(jvp, has_aux=has_aux)
    check_callable(f, "jvp", "has_aux=...")
    if primals is None:
        return wraps(f)(lambda primals, tangents: jvp(f, primals, tangents, has_aux=has_aux))
    if not isinstance(primals, (tuple, list)) or not isinstance(tangents, (tuple, list)):
        raise errors.StructureError(
            f"jvp: primals and tangents are tuples, one entry for each argument; got a "
            f"{type(primals).__name__} and a {type(tangents).__name__}"
        )
    if len(primals) != len(tangents):
        raise errors.StructureError(
            f"jvp: got {len(primals)} primals and {len(tangents)} tangents; give one tangent for "
            "each argument (zeros where there is none)"
        )
    function = Function(f)
    args, kwargs = function.complete(tuple(primals), {})
    call = PlainCall("jvp", args, kwargs)
    ahead, behind = len(function.bound), sorted(kwargs)
    directions = _directions(
        call,
        (*args, *[kwargs[name] for name in behind]),
        (*[None] * ahead, *tangents, *[None] * len(behind)),
        (
            *[""] * ahead,
            *[f"tangents[{number}]" for number in range(len(tangents))],
            *[f"the tangent of {name!r}" for name in behind],
        ),
    )
    pure = call.named(lambda values: _run(call, function, values, has_aux), function)
    with naming("jvp", function.call):
        result, tangent, outputs = jax.jvp(pure, (call.dynamic,), (directions,), has_aux=True)
    aux = call.apply(outputs)
    return (result, tangent, aux) if has_aux else (result, tangent)


def _run(call: PlainCall, function: Function, values: Any, has_aux: bool) -> Any:
    """The pure function: ``values -> (result, outputs)`` with aux in the place of the result."""
    frame = call.make_frame(values)
    with running(call.transform, function.name, frame.recordings, function.call):
        out = function.call(*frame.args, **frame.kwargs)
    aux = None
    if has_aux:
        if not isinstance(out, (tuple, list)) or len(out) != 2:
            raise errors.StructureError(
                f"{call.transform}: with has_aux=True {function.name} must return a pair "
                f"(result, aux); it returned a {type(out).__name__}"
            )
        out, aux = out
    if isinstance(out, Variable):
        out = out.value
    if any(map(is_graph_leaf, jax.tree.leaves(out, is_leaf=is_graph_leaf))):
        raise errors.StructureError(
            f"{call.transform}: {function.name} returns a module or a Variable as its result, "
            "which has no cotangent of its own; return its values (`moduli.state(module)`), or "
            "return it as aux with has_aux=True"
        )
    return out, call.finish(frame, aux)


def _directions(
    call: PlainCall, args: Sequence[Any], tangents: Sequence[Any], names: Sequence[str]
) -> list[Any]:
    """The tangent of each dynamic value, in order."""
    found: dict[Any, tuple[Any, str]] = {}
    plain: list[tuple[Any, str]] = []
    for primal, tangent, name in zip(args, tangents, names, strict=True):
        pairs, treedef = jax.tree_util.tree_flatten_with_path(primal, is_leaf=is_graph_leaf)
        if tangent is None:
            tangent = treedef.unflatten([None] * len(pairs))
        try:
            parts = treedef.flatten_up_to(tangent)
        except (ValueError, TypeError):
            raise errors.StructureError(
                f"jvp: {name} is {outline(tangent)}, but its primal is {outline(primal)}; give a "
                "tangent of the same structure"
            ) from None
        for (path, leaf), part in zip(pairs, parts, strict=True):
            spot = name + jax.tree_util.keystr(path)
            if is_graph_leaf(leaf):
                _take(leaf, part, spot, found)
            else:
                plain.append((part, spot))
    holders = [holder for flat in call.binding.flats for holder in flat.holders]
    every = call.pick([*[found.get(_key(holder), (None, "")) for holder in holders], *plain])
    return [_tangent(primal, *item) for primal, item in zip(call.dynamic, every, strict=True)]


def _take(root: Any, tangent: Any, name: str, found: dict[Any, tuple[Any, str]]) -> None:
    """Notes the tangents of the values below one module or Variable."""
    if tangent is None:
        return
    flat = flat_of(root)
    if isinstance(root, Variable):
        known: Any = {(): tangent._value if isinstance(tangent, Variable) else tangent}
    elif isinstance(tangent, State):
        known = dict(_flat_items(tangent))
    elif isinstance(tangent, Node):
        given = flat_of(tangent)
        known = dict(zip(given.graphdef.leaf_paths, given.values(), strict=True))
        for path in flat.graphdef.leaf_paths:
            if path not in known:
                raise errors.StructureError(
                    f"jvp: {name} has no value at `{errors.format_path(path)}`, where its primal, "
                    f"a {type(root).__name__}, has one; give a module of the same structure, or a "
                    "State with the tangents that are not zero"
                )
    else:
        raise errors.StructureError(
            f"jvp: {name} is a {type(tangent).__name__} in the place of a {type(root).__name__}; "
            "give a module of the same structure, a State, or None for zero"
        )
    for path, value in known.items():
        text = f"{name} at `{errors.format_path(path)}`" if path else name
        leaf = flat.graphdef.path_to_leaf.get(path)
        if leaf is None:
            raise errors.StructureError(
                f"jvp: {text} is a tangent without a primal: the {type(root).__name__} has no "
                "value there"
            )
        value = value._value if isinstance(value, Variable) else value
        key = _key(flat.holders[leaf])
        other, where = found.setdefault(key, (value, text))
        if other is not value:
            raise errors.StructureError(
                f"jvp: {where} and {text} are two tangents of the same "
                f"{type(flat.holders[leaf]).__name__}, which was passed twice; give the same "
                "tangent, or leave it out of one State"
            )


def _tangent(primal: Any, tangent: Any, name: str) -> Any:
    leaves, treedef = jax.tree.flatten(primal)
    given: Any = [None] * len(leaves)
    if tangent is not None:
        given, structure = jax.tree.flatten(tangent)
        if structure != treedef:
            raise errors.StructureError(
                f"jvp: {name} has the structure {outline(tangent)}, but its primal "
                f"{outline(primal)}; give a tangent of the same structure"
            )
    made = []
    for leaf, direction in zip(leaves, given, strict=True):
        kind = jax.typeof(leaf)
        if not jnp.issubdtype(kind.dtype, jnp.inexact):
            made.append(np.zeros(kind.shape, jax.dtypes.float0))
        elif direction is None:
            made.append(jnp.zeros(kind.shape, kind.dtype))
        else:
            if jnp.shape(direction) != kind.shape:
                raise errors.ShapeError(
                    f"jvp: {name} has shape {jnp.shape(direction)}, but its primal has shape "
                    f"{kind.shape}; a tangent has the shape of its primal"
                )
            made.append(jnp.asarray(direction, kind.dtype))
    return jax.tree.unflatten(treedef, made)
