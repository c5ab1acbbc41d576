"""Which of moduli's transforms is tracing a function, for error messages."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

from moduli import errors
from moduli._base.compat import trace_state
from moduli._recording.recording import Recording, inside, recordings

__all__ = ["describe_running", "running"]

_here = threading.local()


def _stack() -> list[tuple[Any, str]]:
    return _here.__dict__.setdefault("stack", [])


@contextlib.contextmanager
def running(transform: str, function: str, opened: tuple[Recording, ...] = ()) -> Iterator[None]:
    """Notes that a transform runs a user's function in the current trace.

    Args:
      transform: its name.
      function: the function's name.
      opened: the recordings of the function's frame.
    """
    stack = _stack()
    stack.append((trace_state(), f"moduli.{transform} of {function}"))
    try:
        if opened or recordings():
            with inside(opened):
                yield
        else:
            yield
    except Exception as error:
        errors.unplace(error)
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
