"""Which of moduli's transforms is tracing a function, for error messages."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

from moduli._base.compat import trace_state
from moduli._base.error_places import unplace

__all__ = ["describe_running", "named"]

_here = threading.local()


def _stack() -> list[tuple[Any, str]]:
    return _here.__dict__.setdefault("stack", [])


@contextlib.contextmanager
def named(transform: str, function: str) -> Iterator[None]:
    """Notes that a transform runs a user's function in the current trace.

    Args:
      transform: its name.
      function: the function's name.
    """
    stack = _stack()
    stack.append((trace_state(), f"moduli.{transform} of {function}"))
    try:
        yield
    except Exception as error:
        unplace(error)
        raise
    finally:
        stack.pop()


def describe_running() -> str:
    """Names the transform that is tracing: ours, or one of JAX's own inside of ours."""
    stack = _stack()
    if not stack:
        return "a transform of JAX's own (jit, grad, vmap, ...)"
    trace, name = stack[-1]
    return name if trace == trace_state() else f"a transform of JAX's own inside {name}"
