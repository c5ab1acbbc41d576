"""Keeps the garbage collector out of code that makes very many objects and throws none away."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator

__all__ = ["no_collection"]


@contextlib.contextmanager
def no_collection() -> Iterator[None]:
    """Makes no garbage collection begin within the block.

    The collector starts whenever enough objects were made and looks at every object of the process
    then; describing thousands of arrays would spend most of its time in that. What the block makes
    should be gone at its end, in a function that it calls, or the collector starts right after it.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
