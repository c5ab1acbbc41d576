"""The names of ``moduli.tracers``: which JAX trace is running."""

from __future__ import annotations

from typing import Any

import jax

from moduli.lowlevel import trace_state as current_jax_trace

__all__ = ["TraceState", "current_jax_trace"]


class TraceState:
    """Remembers the JAX trace in which it was made.

    Example:
      >>> import jax
      >>> from moduli.tracers import TraceState
      >>> outside = TraceState()
      >>> outside.is_valid(), jax.make_jaxpr(lambda x: x * outside.is_valid())(1.0).consts
      (True, [])
    """

    def __init__(self) -> None:
        self._jax_trace = current_jax_trace()

    @property
    def jax_trace(self) -> Any:
        """A token that is equal within the same trace."""
        return self._jax_trace

    def is_valid(self) -> bool:
        """Returns whether the same trace is running."""
        return self._jax_trace == current_jax_trace()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TraceState) and self._jax_trace == other._jax_trace

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> Any:
        return TraceState, ()


jax.tree_util.register_pytree_node(
    TraceState, lambda state: ((), None), lambda _, children: TraceState()
)
