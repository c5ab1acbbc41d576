"""vjp and jvp: linear maps of functions of modules, backwards and forwards."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar, Unpack, overload

import jax

from moduli import errors
from moduli._call.call import Call
from moduli._call.change_texts import outline
from moduli._call.function import Function, Modes, check_callable, folded, wraps
from moduli._call.naming import naming
from moduli._call.results import arrays_and_aux
from moduli._call.tangents import match_tangents

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
    **_modes: Unpack[Modes],
) -> tuple[R, Callable[..., tuple[Any, ...]]]: ...
@overload
def vjp(
    f: Callable[..., tuple[R, X]],
    primal: Any,
    /,
    *primals: Any,
    has_aux: Literal[True],
    reduce_axes: Sequence[Any] = (),
    **_modes: Unpack[Modes],
) -> tuple[R, Callable[..., tuple[Any, ...]], X]: ...
@overload
def vjp(
    f: Callable[..., Any] | None = None,
    *primals: Any,
    has_aux: bool = False,
    reduce_axes: Sequence[Any] = (),
    **_modes: Unpack[Modes],
) -> Any: ...
@folded
def vjp(
    f: Callable[..., Any] | None = None,
    *primals: Any,
    has_aux: bool = False,
    reduce_axes: Sequence[Any] = (),
    **_modes: Unpack[Modes],
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
    call = Call("vjp", args, kwargs)
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
    **_modes: Unpack[Modes],
) -> tuple[R, Any]: ...
@overload
def jvp(
    f: Callable[..., tuple[R, X]],
    primals: tuple[Any, ...],
    tangents: tuple[Any, ...],
    *,
    has_aux: Literal[True],
    **_modes: Unpack[Modes],
) -> tuple[R, Any, X]: ...
@overload
def jvp(
    f: Callable[..., Any] | None = None,
    primals: tuple[Any, ...] | None = None,
    tangents: tuple[Any, ...] | None = None,
    *,
    has_aux: bool = False,
    **_modes: Unpack[Modes],
) -> Any: ...
@folded
def jvp(
    f: Callable[..., Any] | None = None,
    primals: tuple[Any, ...] | None = None,
    tangents: tuple[Any, ...] | None = None,
    *,
    has_aux: bool = False,
    **_modes: Unpack[Modes],
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
    call = Call("jvp", args, kwargs)
    ahead, behind = len(function.bound), sorted(kwargs)
    directions = match_tangents(
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


def _run(call: Call, function: Function, values: Any, has_aux: bool) -> Any:
    """The pure function: ``values -> (result, outputs)`` with aux in the place of the result."""
    frame = call.make_frame(values)
    out = frame.run(call.transform, function.name, function.call)
    out, aux = arrays_and_aux(out, has_aux, call.transform, function.name)
    return out, call.finish(frame, aux)
