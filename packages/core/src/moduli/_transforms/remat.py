"""remat: compute again in the backward pass instead of storing."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, Unpack, overload

import jax

from moduli._call.again import options_key_or_none, remember
from moduli._call.call import Call
from moduli._call.eager_programs import Result, find_program
from moduli._call.function import (
    Function,
    Modes,
    Static,
    check_callable,
    folded,
    options_of,
    split_static,
    wraps,
)
from moduli._call.naming import naming

__all__ = ["remat"]

P = ParamSpec("P")
R = TypeVar("R")


@overload
def remat(
    f: Callable[P, R],
    *,
    prevent_cse: bool = True,
    static_argnums: int | tuple[int, ...] = (),
    policy: Callable[..., bool] | None = None,
    **_modes: Unpack[Modes],
) -> Callable[P, R]: ...
@overload
def remat(
    f: None = None,
    *,
    prevent_cse: bool = True,
    static_argnums: int | tuple[int, ...] = (),
    policy: Callable[..., bool] | None = None,
    **_modes: Unpack[Modes],
) -> Callable[[Callable[P, R]], Callable[P, R]]: ...
def remat(
    f: Callable[..., Any] | None = None,
    *,
    prevent_cse: bool = True,
    static_argnums: int | tuple[int, ...] = (),
    policy: Callable[..., bool] | None = None,
    **_modes: Unpack[Modes],
) -> Any:
    """``jax.checkpoint`` for functions that take modules, with all their updates.

    The gradient of the new function computes the values inside again instead of storing them, with
    the same random keys.

    Args:
      f: a function, a method, or a module. Without it a decorator is returned.
      prevent_cse: as of ``jax.checkpoint``; False is right inside ``scan``.
      static_argnums: positions of arguments that are not traced.
      policy: which values to store all the same, one of ``jax.checkpoint_policies``.

    Returns:
      A function with the arguments and the result of ``f``.

    Example:
      >>> import moduli as nnx, jax.numpy as jnp
      >>> model = nnx.Dict({"w": nnx.Param(jnp.array(2.0))})
      >>> @nnx.remat
      ... def block(model, x):
      ...     return jnp.sin(model["w"] * x)
      >>> grads = nnx.grad(block)(model, 0.0)
      >>> float(grads["w"].value)
      0.0
    """
    options = options_of(locals())
    if f is None:
        return functools.partial(remat, **options)
    check_callable(f, "remat", "policy=...")
    function = Function(f)
    name, shift = function.name, len(function.bound)
    recomputed = functools.partial(jax.checkpoint, prevent_cse=prevent_cse, policy=policy)

    def run(call: Call, fun: Callable[..., Any], fixed: Static) -> Result:
        inner = fixed.around(Function(fun), shift)
        inner.name = name
        outputs = call.run(inner, call.dynamic)
        return (call.effects, *outputs)

    @wraps(f)
    @folded
    def rematerialized(*args: Any, **kwargs: Any) -> Any:
        fixed, args = split_static(args, static_argnums, "remat", function.name)
        inner = fixed.around(function)
        call = Call("remat", *inner.complete(args, kwargs))
        program = find_program(
            (function.call,),
            call,
            lambda call, functions: run(call, functions[0], fixed),
            options_key_or_none(*sorted(fixed.values.items()), shift, prevent_cse, policy),
            recomputed,
            parameters=inner.signature,
        )
        with naming("remat", function.call):
            if program is None:
                pure = call.named(lambda values: call.run(inner, values), inner)
                return call.apply(recomputed(pure)(call.dynamic))
            packed = program(call)
        return call.apply(packed.parts, packed.effects)

    return remember(rematerialized, f, remat, options)
