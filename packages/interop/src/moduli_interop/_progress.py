"""How far a save or a load is: a line on the terminal for large files, or a user's function."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

__all__ = ["Progress", "reporter"]

Progress = Callable[[int, int], None] | bool | None
"""A function of (bytes done, bytes in all); True for a line on stderr, False for nothing; None for
a line if stderr is a terminal and the file has a gigabyte or more."""

_LARGE = 1 << 30
_EVERY = 0.2  # seconds between two lines


def reporter(progress: Progress, title: str, total: int) -> Callable[[int], None] | None:
    """Returns what takes the number of bytes of each finished part, or None if nobody wants it.

    Args:
      progress: what the user said.
      title: what is going on: ``"saving model.safetensors"``.
      total: bytes in all.
    """
    if progress is None:
        progress = total >= _LARGE and sys.stderr is not None and sys.stderr.isatty()
    if not progress:
        return None
    show = progress if callable(progress) else _line(title)
    done = 0

    def add(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        show(done, total)

    return add


def _line(title: str) -> Callable[[int, int], None]:
    last = -_EVERY

    def show(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < _EVERY and done < total:
            return
        last = now
        part = 100 * done // total if total else 100
        end = "\n" if done >= total else ""
        sys.stderr.write(f"\r{title}: {part} % of {total / 2**30:.2f} GiB{end}")
        sys.stderr.flush()

    return show
