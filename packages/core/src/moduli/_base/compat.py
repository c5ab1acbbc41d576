"""The one place for what differs between the JAX versions that moduli supports."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
from jax.core import Tracer

__all__ = ["PyTreeDef", "Tracer", "eager_trace_state", "is_eager", "is_key_array", "trace_state"]

_get_trace_state: Callable[[], Any] | None = None
_eager: Any = None


def trace_state() -> Any:
    """Returns a token that is equal only while the same JAX trace is the innermost one."""
    return (_get_trace_state or _find_trace_state())()


def _find_trace_state() -> Callable[[], Any]:
    """Finds it at the first need: ``jax.extend`` brings Pallas, which ``import jax`` does not."""
    global _get_trace_state
    with warnings.catch_warnings():  # jax 0.10 warns of the name that costs no import
        warnings.simplefilter("ignore", DeprecationWarning)
        _get_trace_state = getattr(jax.core, "get_opaque_trace_state", None)
    if _get_trace_state is None:  # jax >= 0.11
        from jax.extend.core import get_opaque_trace_state

        _get_trace_state = get_opaque_trace_state
    return _get_trace_state


def eager_trace_state() -> Any:
    """Returns the token of no trace at all: that of a new thread, where none has begun."""
    global _eager
    if _eager is None:
        tokens: list[Any] = []
        thread = threading.Thread(target=lambda: tokens.append(trace_state()))
        thread.start()
        thread.join()
        _eager = tokens[0]
    return _eager


def is_eager() -> bool:
    """Says whether no JAX trace is running."""
    return (_get_trace_state or _find_trace_state())() == (_eager or eager_trace_state())


PyTreeDef = jax.tree_util.PyTreeDef


def is_key_array(value: object) -> bool:
    """Says whether ``value`` is an array of typed PRNG keys."""
    return isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
