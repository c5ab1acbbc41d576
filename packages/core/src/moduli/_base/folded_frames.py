"""Tracebacks show one frame of moduli's in the place of a row of them, as JAX hides its own.

IPython and pytest leave that one out too: they pass over frames with a local ``__tracebackhide__``.

``jax.config.jax_traceback_filtering = "off"`` shows all, ours too.
"""

from __future__ import annotations

import inspect
import sys
from types import FrameType, TracebackType

import jax

from moduli.errors import ModuliError

__all__ = ["fold"]

_OURS, _OF_JAX = ("moduli",), ("jax", "jaxlib")
_MARK = "__tracebackhide__"
_LAYERS_TOO = ("moduli", "moduli_layers", "moduli_debug", "moduli_train", "moduli_interop")


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
    _hide(error, entries, packages)
    while packages and packages[-1] in _OURS + _OF_JAX:
        packages.pop()
    before, in_row = None, False
    for entry, package in zip(entries, packages, strict=False):
        if in_row and before is not None and package in _OURS:
            before.tb_next = entry.tb_next
            continue
        before = entry
        in_row = package in _OURS or (in_row and package in _OF_JAX)


def _hide(error: BaseException, entries: list[TracebackType], packages: list[str]) -> None:
    """Marks frames that say nothing to a user: those above a frame of theirs.

    Of an error of moduli's own also those below: what is wrong, and where, is in its text.
    """
    theirs = [n for n, package in enumerate(packages) if package not in _LAYERS_TOO + _OF_JAX]
    last = theirs[-1] if theirs else 0
    if isinstance(error, ModuliError):
        last = len(entries)
    for entry, package in zip(entries[:last], packages, strict=False):
        if package in _LAYERS_TOO:
            _mark(entry.tb_frame)


def _mark(frame: FrameType) -> None:
    if not frame.f_code.co_flags & inspect.CO_OPTIMIZED:
        return  # of a module or class that is being made: these are its own names
    names = frame.f_locals
    names[_MARK] = True
    if sys.version_info < (3, 13):  # a copy, in which the error would keep itself and models alive
        for name in [name for name in names if name != _MARK]:
            del names[name]  # whoever looks at the frame's names gets a new copy


def _package(entry: TracebackType) -> str:
    return str(entry.tb_frame.f_globals.get("__name__")).partition(".")[0]
