"""Threads that take turns as often as Python can make them."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable

__all__ = ["in_threads"]


def in_threads(work: Callable[[int], None], count: int) -> None:
    """Runs ``work(number)`` in several threads at once.

    Raises:
      AssertionError: what a thread raises, from it.
    """
    errors: list[Exception] = []
    start = threading.Barrier(count)

    def run(number: int) -> None:
        try:
            start.wait()
            work(number)
        except Exception as error:
            errors.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=run, args=(n,)) for n in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    if errors:
        text = f"{type(errors[0]).__name__}: {errors[0]}"
        raise AssertionError(f"in one of several threads, a call raises {text}") from errors[0]
