"""Functions of arrays whose tracing JAX remembers.

JAX traces every primitive of a layer anew, in the forward pass and again when it differentiates. A
``jax.jit`` of a module-level function is traced and linearized once for each shape, and found again
by every further layer and step of a model; ``inline=True`` leaves the same jaxpr behind. For a deep
model with norms that is a third of the time to trace a train step.

Only under a trace, and only for what normalises and for initial values. An eager layer calls JAX's
functions itself, with the parameter's own array; and a matrix product or a convolution is never in
here, since whoever puts something in the place of ``lax.dot_general`` or
``lax.conv_general_dilated`` (to quantize, to count) has to see every one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

import moduli

__all__ = ["traced_once"]

_VALUES = (jax.Array, np.ndarray, moduli.Variable)


def traced_once(
    *, static_argnames: Iterable[str] = (), static_argnums: Iterable[int] = ()
) -> Callable[[Callable[..., Any]], Any]:
    """Makes a decorator for functions of arrays.

    Args:
      static_argnames: the arguments that are no arrays, as of :func:`jax.jit`.
      static_argnums: likewise, by position.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        remembered = jax.jit(
            function,
            inline=True,
            static_argnames=tuple(static_argnames),
            static_argnums=tuple(static_argnums),
        )

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            for arg in args:
                if isinstance(arg, Tracer):
                    break
            else:
                return function(*args, **kwargs)
            for option in kwargs.values():
                if isinstance(option, _VALUES):  # an epsilon that is an array has no hash
                    return function(*args, **kwargs)
            return remembered(*args, **kwargs)

        return call

    return decorate
