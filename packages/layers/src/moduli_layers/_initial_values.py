"""The values that parameters start with: default initializers, and ``fill``, which calls them."""

from __future__ import annotations

import functools
import inspect
from typing import Any

import jax
import jax.numpy as jnp
from jax import nn
from jax.typing import DTypeLike

import moduli
from moduli.lowlevel import flat_full
from moduli_layers import initializers
from moduli_layers._drawn import Drawn
from moduli_layers._traced_once import traced_once
from moduli_layers.errors import ArgumentError

__all__ = [
    "default_embedding_init",
    "default_kernel_init",
    "fill",
]

default_kernel_init = initializers.lecun_normal()
"""The initializer of kernels; default of all layers with one."""

default_embedding_init = initializers.variance_scaling(1.0, "fan_in", "normal", out_axis=0)
"""The initializer of embeddings."""

_TRACED_ONCE = {
    init: traced_once(static_argnums=(1, 2))(init)
    for init in (
        default_kernel_init,
        default_embedding_init,
        initializers.zeros,
        initializers.ones,
    )
}
_CONSTANT = {initializers.zeros: 0, initializers.ones: 1}


def fill(init: Any, key: jax.Array | None, shape: tuple[int, ...], dtype: DTypeLike) -> jax.Array:
    """Calls an initializer, and checks what it returns.

    Args:
      init: the initializer, ``(key, shape, dtype) -> array``.
      key: a random key.
      shape: the shape of the array.
      dtype: its dtype.

    Raises:
      ArgumentError: it does not return an array of that shape.
    """
    if isinstance(init, Drawn) and not _is_inexact(dtype):
        made_of = f"which draws floating or complex numbers, and not {jnp.result_type(dtype).name}"
        raise _refused(init, made_of, "param_dtype=jnp.float32, or initializers.zeros")
    try:
        made = _called(init, key, shape, dtype)
    except ValueError as error:
        if type(error) is not ValueError:
            raise
        asked = f"shape {tuple(shape)} and dtype {jnp.result_type(dtype).name}"
        raise _refused(init, f"which failed for {asked}: {error}") from error
    except TypeError as error:
        if type(error) is not TypeError or _takes_three(init):
            raise
        raise _refused(init, f"which cannot be called with (key, shape, dtype): {error}") from error
    value = made.raw_value if isinstance(made, moduli.VariableMetadata) else made
    if not hasattr(value, "dtype"):
        raise _refused(init, f"which returned a {type(value).__name__} in the place of an array")
    if tuple(value.shape) != tuple(shape):
        raise _refused(
            init, f"which returned an array of shape {tuple(value.shape)} when asked for {shape}"
        )
    return made  # type: ignore[return-value]  # or with metadata, which Variables take apart


def _called(init: Any, key: Any, shape: tuple[int, ...], dtype: DTypeLike) -> Any:
    try:
        known = _TRACED_ONCE.get(init)
    except TypeError:  # a callable that cannot be hashed
        known = None
    if known is None:  # a user's own may be a new function for every layer
        return init(key, shape, dtype)
    values = flat_full(_CONSTANT[init], shape, dtype) if init in _CONSTANT else None
    return known(key, shape, dtype) if values is None else values


@functools.lru_cache
def _is_inexact(dtype: DTypeLike) -> bool:
    return jnp.issubdtype(dtype, jnp.inexact)


def _takes_three(init: Any) -> bool:
    """Returns whether a function can be called as an initializer is."""
    try:
        inspect.signature(init).bind(None, (), None)
    except (TypeError, ValueError):
        return False
    return True


def _refused(init: Any, fault: str, remedy: str | None = None) -> ArgumentError:
    """Makes the error about an initializer; the layer's constructor says which argument it was."""
    name = getattr(init, "__name__", None)
    if remedy is None:
        remedy = "a function of (key, shape, dtype) that returns an array of that shape"
        factories = (
            getattr(initializers, str(name), None),
            getattr(nn.initializers, str(name), None),
        )
        if init in factories:
            remedy = f"initializers.{name}(), which makes the initializer"
    reason = f"{name or repr(init)}, {fault}; write {remedy}"
    error: Any = ArgumentError(f"got the initializer {reason}")
    error.initializer, error.reason = init, reason
    return error
