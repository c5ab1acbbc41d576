"""eval_shape and make_jaxpr: look at a function of modules without running it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar, Unpack, overload

import jax

from moduli._call.call import Call
from moduli._call.function import Function, Modes, check_callable, folded, split_static, wraps
from moduli._call.naming import naming

__all__ = ["eval_shape", "make_jaxpr"]

P = ParamSpec("P")
R = TypeVar("R")


@folded
def eval_shape(f: Callable[..., R], *args: Any, **kwargs: Any) -> R:
    """``jax.eval_shape`` for functions that take or return modules.

    Nothing is computed or allocated, and nothing happens to the arguments: a module that ``f``
    returns is a new one, with a ``jax.ShapeDtypeStruct`` in each Variable.

    Args:
      f: a function, a method, a module or a class.
      *args: its arguments; their arrays may be ``jax.ShapeDtypeStruct`` too.
      **kwargs: keyword arguments.

    Returns:
      The result with shapes and dtypes in the place of arrays.

    Example:
      >>> import moduli as nnx, jax, jax.numpy as jnp
      >>> class Big(nnx.Module):
      ...     def __init__(self, rngs):
      ...         self.w = nnx.Param(rngs.params.normal((100_000, 100_000), jnp.float32))
      >>> nnx.eval_shape(Big, nnx.Rngs(0)).w.value
      ShapeDtypeStruct(shape=(100000, 100000), dtype=float32)
    """
    check_callable(f, "eval_shape", "f, *args")
    function = Function(f)
    call = Call("eval_shape", *function.complete(args, kwargs))
    pure = call.named(lambda values: call.run(function, values, keep=call.is_dynamic), function)
    with naming("eval_shape", function.call):
        outputs = jax.eval_shape(pure, call.dynamic)
    return call.effects.result(call.values, *outputs)


@overload
def make_jaxpr(
    f: Callable[P, Any],
    *,
    static_argnums: int | Sequence[int] = (),
    return_shape: bool = False,
    **_modes: Unpack[Modes],
) -> Callable[P, Any]: ...
@overload
def make_jaxpr(
    f: None = None,
    *,
    static_argnums: int | Sequence[int] = (),
    return_shape: bool = False,
    **_modes: Unpack[Modes],
) -> Callable[[Callable[P, Any]], Callable[P, Any]]: ...
def make_jaxpr(
    f: Callable[..., Any] | None = None,
    *,
    static_argnums: int | Sequence[int] = (),
    return_shape: bool = False,
    **_modes: Unpack[Modes],
) -> Any:
    """``jax.make_jaxpr`` for functions that take modules.

    The jaxpr's inputs are the values of the modules and of the other arguments; its outputs the
    result, then the values that the function writes. Nothing happens to the arguments.

    Args:
      f: a function, a method, or a module. Without it a decorator is returned.
      static_argnums: positions of arguments that are not traced.
      return_shape: return a pair (jaxpr, shapes and dtypes of the outputs).

    Returns:
      A function with the arguments of ``f`` that returns a ``ClosedJaxpr``.

    Example:
      >>> import moduli as nnx, jax.numpy as jnp
      >>> model = nnx.Dict({"w": nnx.Param(jnp.float32(2))})
      >>> print(nnx.make_jaxpr(lambda m, x: m["w"] * x)(model, jnp.float32(3)))
      { lambda ; a:f32[] b:f32[]. let c:f32[] = mul a b in (c,) }
    """
    if f is None:
        return functools.partial(
            make_jaxpr, static_argnums=static_argnums, return_shape=return_shape
        )
    check_callable(f, "make_jaxpr", "static_argnums=...")
    function = Function(f)

    @wraps(f)
    @folded
    def traced(*args: Any, **kwargs: Any) -> Any:
        fixed, args = split_static(args, static_argnums, "make_jaxpr", function.name)
        inner = fixed.around(function)
        call = Call("make_jaxpr", *inner.complete(args, kwargs))
        pure = call.named(lambda values: call.run(inner, values), inner)
        with naming("make_jaxpr", function.call):
            return jax.make_jaxpr(pure, return_shape=return_shape)(call.dynamic)

    return traced
