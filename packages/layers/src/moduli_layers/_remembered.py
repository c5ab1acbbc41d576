"""Functions whose tracing and linearization JAX remembers.

JAX traces every primitive of a layer anew, in the forward pass and again when it differentiates. A
module-level ``jax.jit`` function is traced and linearized once for each shape, and found again by
every further layer and step of a model; ``inline=True`` leaves the same jaxpr behind. For a deep
model that is a fifth of the time to trace a train step, and eager calls need one dispatch for all
of the function.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
from jax import lax
from jax.core import Tracer
from jax.typing import DTypeLike

from moduli.lowlevel import flat_full
from moduli_layers import initializers

__all__ = [
    "default_embedding_init",
    "default_kernel_init",
    "dot_general",
    "fill",
    "remembered",
    "square",
]

remembered: Any = functools.partial(jax.jit, inline=True)
"""The decorator; options are those of ``jax.jit``."""

square = remembered(lax.square)

dot_general = remembered(
    lax.dot_general,
    static_argnames=("dimension_numbers", "precision", "preferred_element_type"),
)

default_kernel_init = initializers.lecun_normal()
"""The initializer of kernels; default of all layers with one."""

default_embedding_init = initializers.variance_scaling(1.0, "fan_in", "normal", out_axis=0)
"""The initializer of embeddings."""

_remembered = {
    init: remembered(init, static_argnums=(1, 2))
    for init in (
        default_kernel_init,
        default_embedding_init,
        initializers.zeros,
        initializers.ones,
    )
}
_CONSTANT = {initializers.zeros: 0, initializers.ones: 1}


def fill(init: Any, key: jax.Array | None, shape: tuple[int, ...], dtype: DTypeLike) -> jax.Array:
    """Calls an initializer; default ones are traced once for each shape.

    A user's own initializer is called as it is: it may be a new function for every layer, and
    compiling each would cost more than it saves.

    Args:
      init: the initializer, ``(key, shape, dtype) -> array``.
      key: a random key.
      shape: the shape of the array.
      dtype: its dtype.
    """
    try:
        known = _remembered.get(init)
    except TypeError:  # a callable that cannot be hashed
        known = None
    if known is None:
        return init(key, shape, dtype)
    if init in _CONSTANT:
        values = flat_full(_CONSTANT[init], shape, dtype)
        return known(key, shape, dtype) if values is None else values
    return known(key, shape, dtype) if isinstance(key, Tracer) else init(key, shape, dtype)
