"""The one place for what differs between the JAX versions that moduli supports."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

try:  # jax >= 0.10
    from jax.extend.core import get_opaque_trace_state as _get_trace_state  # type: ignore
except ImportError:  # jax 0.9
    from jax.core import get_opaque_trace_state as _get_trace_state  # type: ignore

__all__ = ["PyTreeDef", "Tracer", "is_key_array", "trace_state"]

trace_state: Callable[[], Any] = _get_trace_state
"""Returns a token that is equal only while the same JAX trace is the innermost one."""

PyTreeDef = jax.tree_util.PyTreeDef


def is_key_array(value: object) -> bool:
    """Says whether ``value`` is an array of typed PRNG keys."""
    return isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
