"""How many programs XLA compiles while something runs."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import jax
import jax.monitoring

__all__ = ["compilations"]

_EVENT = "/jax/core/compile/backend_compile_duration"
_lock = threading.Lock()
_count: int | None = None  # None: nobody has asked, and nothing listens


def compilations(function: Callable[[], Any], times: int = 1) -> int:
    """Returns how many programs XLA compiles during some calls of a function.

    A program that JAX takes from its cache on disk counts: it was traced and lowered again.

    Args:
      function: what to call, without arguments; its result is waited for.
      times: how often.

    Returns:
      The number of programs, of all threads.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from moduli.testing import compilations
      >>> x, double = jnp.ones(3), jax.jit(lambda x: 2 * x)
      >>> compilations(lambda: double(x)), compilations(lambda: double(x), times=5)
      (1, 0)
    """
    _listen()
    before = _count or 0
    for _ in range(times):
        jax.block_until_ready(jax.tree.leaves(function()))
    return (_count or 0) - before


def _listen() -> None:
    global _count
    with _lock:
        if _count is None:
            _count = 0
            jax.monitoring.register_event_duration_secs_listener(_heard)


def _heard(event: str, duration_secs: float, **_: Any) -> None:
    global _count
    if event == _EVENT:
        with _lock:
            _count = (_count or 0) + 1
