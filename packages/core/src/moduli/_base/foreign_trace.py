"""Refuses structural changes of a node that belongs to another JAX trace."""

from __future__ import annotations

from moduli import errors
from moduli._base.compat import trace_state
from moduli._base.current_transform import describe_running
from moduli._base.locate import describe_owner
from moduli._base.node import Node

__all__ = ["check_mutable"]


def check_mutable(node: Node, what: str) -> None:
    """Raises a TraceError if the node belongs to another JAX trace than the current one."""
    if node._moduli.trace != trace_state():
        raise errors.TraceError(
            f"cannot {what} of {describe_owner(node)} here: it was made outside of the trace that "
            f"is running, that of {describe_running()}, so the change would leak a tracer or be "
            "lost. Pass the module as an argument of the transformed function and use moduli's "
            "transform (`moduli.jit`, `moduli.grad`) instead of JAX's own."
        )
