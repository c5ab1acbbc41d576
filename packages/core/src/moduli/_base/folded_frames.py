"""Tracebacks show one frame of moduli's in the place of a row of them, as JAX hides its own.

``jax.config.jax_traceback_filtering = "off"`` shows all, ours too.
"""

from __future__ import annotations

from types import TracebackType

import jax

__all__ = ["fold"]

_OURS, _OF_JAX = ("moduli",), ("jax", "jaxlib")


def fold(error: BaseException) -> None:
    """Takes moduli's frames out of an error's traceback, but for the first in each row of them.

    Frames of JAX's in between belong to the row; what to do with these is JAX's business. The
    frames below the last one of the user's stay: they say what moduli refused.

    Args:
      error: the error, in the frame that is to be the first of its row.
    """
    if jax.config.jax_traceback_filtering == "off":  # type: ignore[attr-defined]
        return
    entries: list[TracebackType] = []
    entry = error.__traceback__
    while entry is not None:
        entries.append(entry)
        entry = entry.tb_next
    packages = [_package(entry) for entry in entries]
    while packages and packages[-1] in _OURS + _OF_JAX:
        packages.pop()
    before, in_row = None, False
    for entry, package in zip(entries, packages, strict=False):
        if in_row and before is not None and package in _OURS:
            before.tb_next = entry.tb_next
            continue
        before = entry
        in_row = package in _OURS or (in_row and package in _OF_JAX)


def _package(entry: TracebackType) -> str:
    return str(entry.tb_frame.f_globals.get("__name__")).partition(".")[0]
