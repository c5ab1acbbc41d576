"""Running a user's function in the place of a transform."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import jax

from moduli._base.current_transform import named
from moduli._call.naming import name_function
from moduli._recording.recording import Recording, inside, recordings

__all__ = ["running"]

_OF_TRACERS = (
    jax.errors.JAXTypeError,
    jax.errors.JAXIndexError,
    jax.errors.UnexpectedTracerError,
)


@contextlib.contextmanager
def running(
    transform: str, function: str, opened: tuple[Recording, ...] = (), fun: Any = None
) -> Iterator[None]:
    """Runs a user's function in the current trace: the transform has a name in messages.

    Args:
      transform: its name.
      function: the function's name.
      opened: the recordings of the function's frame.
      fun: the function, for JAX's errors about its tracers.
    """
    try:
        with named(transform, function):
            if opened or recordings():
                with inside(opened):
                    yield
            else:
                yield
    except Exception as error:
        if fun is not None and not getattr(error, "_moduli_inside", False):
            with contextlib.suppress(AttributeError):  # an exception with slots
                error._moduli_inside = True  # type: ignore[attr-defined]
            if isinstance(error, _OF_TRACERS):
                name_function(error, transform, fun)
        raise
