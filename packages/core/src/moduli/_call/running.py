"""Running a user's function in the place of a transform."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from moduli._base.current_transform import named
from moduli._recording.recording import Recording, inside, recordings

__all__ = ["running"]


@contextlib.contextmanager
def running(transform: str, function: str, opened: tuple[Recording, ...] = ()) -> Iterator[None]:
    """Runs a user's function in the current trace: the transform has a name in messages.

    Args:
      transform: its name.
      function: the function's name.
      opened: the recordings of the function's frame.
    """
    with named(transform, function):
        if opened or recordings():
            with inside(opened):
                yield
        else:
            yield
