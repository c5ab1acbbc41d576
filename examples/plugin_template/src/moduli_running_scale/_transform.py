"""A transform: ``jax.linearize`` for functions of modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from moduli import lowlevel

__all__ = ["running_scale_linearize"]


def running_scale_linearize(
    f: Callable[..., Any],
    *primals: Any,
) -> tuple[Any, Callable[..., Any]]:
    """Returns the result of a function, and the linear map from tangents to its tangent.

    Args:
      f: a function; what it writes into modules reaches the caller's.
      *primals: its arguments: modules, arrays and pytrees of these.

    Returns:
      ``f(*primals)``, and a function of tangents, one for each argument (None is zero).

    Example:
      >>> import jax.numpy as jnp
      >>> import moduli as nnx
      >>> from moduli_running_scale import running_scale_linearize
      >>> model = nnx.Dict(w=nnx.Param(jnp.array(3.0)))
      >>> def scale(model, x):
      ...     return model.w.value * x
      >>> y, linear = running_scale_linearize(scale, model, jnp.array(2.0))
      >>> float(y), float(linear(None, jnp.array(1.0)))
      (6.0, 3.0)
    """
    function = lowlevel.Function(f)
    args, kwargs = function.complete(primals, {})  # a bound module becomes the first argument
    call = lowlevel.Call("running_scale_linearize", args, kwargs)

    def pure(values: Any) -> Any:
        frame = call.make_frame(values)  # fresh objects around tracers
        out = frame.run("running_scale_linearize", function.name, function.call)
        return out, call.finish(frame, None)  # what else the function wrote

    # errors of JAX's name the user's function
    with lowlevel.naming("running_scale_linearize", function.call):
        out, pushforward, outputs = jax.linearize(
            call.named(pure, function), call.dynamic, has_aux=True
        )
    call.apply(outputs)  # the caller's modules now hold what the copies held

    def linear(*tangents: Any) -> Any:
        names = [f"tangents[{number}]" for number in range(len(tangents))]
        ahead = len(function.bound)
        given = (*[None] * ahead, *tangents)
        directions = lowlevel.match_tangents(call, args, given, (*[""] * ahead, *names))
        return pushforward(directions)

    return out, linear
