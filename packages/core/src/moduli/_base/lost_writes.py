"""Reports writes that a raw JAX transform drops.

``jax.jit``, ``jax.grad`` and the others take a module apart outside of their trace and put a fresh
copy together inside it. What the function writes into that copy is lost unless it returns the
module or its state; moduli cannot prevent that, so it says so:

1. Each node's static half for JAX records the trace in which it was taken apart. If it is put
   together in a trace inside that one, its Variables are *borrowed*: they get a :class:`Borrowed`
   in the place of their trace, and the topmost node a :class:`Watch` over all of them.
2. A write finds that the Borrowed is not the current trace, on the slow path that otherwise raises
   a TraceError, and notes its site. A transform of moduli's own writes past that check; such a
   write shows in the value, which is then another object than before.
3. When JAX takes a borrowed Variable apart again, or ``moduli.state`` and ``split`` give it out,
   its value counts as seen: it may leave the function.
4. The topmost node dies when the function has returned, and its Watch with it. Variables whose
   values nobody saw are then reported, all in one warning, as soon as they are dead too (a State
   that is being returned may still hold them).

When the function raises, traceback frames keep the objects until the trace is over; that is how a
Watch knows that there is nothing to report.
"""

from __future__ import annotations

import sys
import threading
import warnings
import weakref
from collections.abc import Iterable
from typing import Any

from moduli import errors
from moduli._base.closed_over import ACTIVE, note_read
from moduli._base.compat import eager_trace_state, trace_state
from moduli._base.source_lines import Site, describe_place, describe_site, place_of
from moduli._base.type_variables import Path

__all__ = ["Borrowed", "Watch", "mark_seen", "note_trace", "now_inside"]

_UNSEEN: Any = object()
_MOST_TRACES = 64
_MOST_LINES = 10


# -- which trace is inside which ---------------------------------------------------------------


class _Nesting(threading.local):
    """The traces seen in this thread, each one inside the one before it."""

    def __init__(self) -> None:
        self.traces: list[Any] = []


_nesting = _Nesting()


def note_trace() -> Any:
    """Returns the token of the current trace, after noting that it is the innermost one."""
    trace = trace_state()
    traces = _nesting.traces
    if not traces or traces[-1] != trace:
        if trace in traces:
            del traces[traces.index(trace) + 1 :]  # those have ended
        else:
            traces.append(trace)
            del traces[:-_MOST_TRACES]
    return trace


def now_inside(before: Any) -> bool:
    """Returns whether the current trace is inside an earlier one, rather than the other way round.

    An object also changes its trace when a function returns it. The trace where it was taken apart
    has then ended.

    Args:
      before: the token of a trace other than the current one, from :func:`note_trace`.
    """
    trace = note_trace()
    return trace != eager_trace_state() and before in _nesting.traces


# -- what is watched ----------------------------------------------------------------------------


class Borrowed:
    """Stands in the ``_trace`` of a Variable that JAX copied into a trace.

    Attributes:
      trace: the token of that trace, in which the Variable may be written.
      seen: the value as it was given or last taken out; another one would be lost.
      site: where the user's code last wrote the Variable, if it did.
    """

    __slots__ = ("seen", "site", "trace")

    def __init__(self, trace: Any, seen: Any):
        self.trace, self.seen = trace, seen
        self.site: Site | None = None


def mark_seen(variable: Any) -> None:
    """Notes that the value of a Variable is being given to someone, who may return it."""
    if ACTIVE:
        note_read(variable)
    borrowed = variable._trace
    if borrowed.__class__ is Borrowed:
        borrowed.seen = variable._value


class Watch:
    """The borrowed Variables below one node; reports the dropped writes when the node dies.

    Args:
      name: the name of the node's class.
      variables: (path from the node, Variable) of those that stand in the node itself.
      parts: (path from the node, bookkeeping) of the nodes that stand in it, whose own Watch is
        taken over.
    """

    __slots__ = ("_entries", "_name", "_trace")

    def __init__(
        self, name: str, variables: Iterable[tuple[Path, Any]], parts: Iterable[tuple[Path, Any]]
    ):
        self._name, self._trace = name, trace_state()
        self._entries: list[tuple[Path, Any]] = []
        for path, variable in variables:
            if variable._trace == self._trace:  # not one that stood in for a leaf
                variable._trace = Borrowed(self._trace, variable._value)
                self._entries.append((path, variable))
        for path, book in parts:
            part, book.watch = book.watch, None
            if part is not None:
                self._entries.extend((path + rest, variable) for rest, variable in part._entries)
                part._entries.clear()

    def __del__(self) -> None:
        if not self._entries or sys.is_finalizing() or trace_state() != self._trace:
            return  # taken over, or the function has raised
        report = _Report(self._name, self._trace)
        self._hand_over(report)
        report.close()

    def _hand_over(self, report: _Report) -> None:
        while self._entries:
            path, variable = self._entries.pop()
            borrowed = variable._trace
            if borrowed.__class__ is Borrowed and variable._value is not borrowed.seen:
                borrowed.seen = _UNSEEN
                report.wait_for(len(self._entries), path, variable, borrowed)


class _Report:
    """Collects the dropped writes of one copy, and warns when the last Variable is dead."""

    def __init__(self, name: str, trace: Any):
        self.name, self.trace = name, trace
        self.waiting = 1
        self.dropped: list[tuple[int, str, Site | None]] = []

    def wait_for(self, number: int, path: Path, variable: Any, borrowed: Borrowed) -> None:
        self.waiting += 1
        text = f"the {type(variable).__name__} at `{errors.format_path(path)}`"
        made = describe_site(variable)
        if made:
            text += f" ({made})"
        weakref.finalize(variable, self.gone, number, text, borrowed).atexit = False

    def gone(self, number: int, text: str, borrowed: Borrowed) -> None:
        if borrowed.seen is _UNSEEN and trace_state() == self.trace:
            if borrowed.site is not None:
                text += f", written at {describe_place(borrowed.site)}"
            self.dropped.append((number, text, borrowed.site))
        self.close()

    def close(self) -> None:
        self.waiting -= 1
        if self.waiting or not self.dropped:
            return
        dropped = sorted(self.dropped, key=lambda item: item[0])
        lines = [text for _, text, _ in dropped[:_MOST_LINES]]
        if len(dropped) > _MOST_LINES:
            lines.append(f"and {len(dropped) - _MOST_LINES} more")
        message = (
            f"a function under a raw JAX transform (jax.jit, jax.grad, jax.vmap, ...) was given a "
            f"copy of {self.name}, and what it wrote into that copy is lost:\n  "
            + "\n  ".join(lines)
            + "\nUse moduli's transform (`moduli.jit`, `moduli.grad`, ...) instead, which writes "
            "the values back, or return the module or `moduli.state(module)` from the function."
        )
        site = next((site for _, _, site in dropped if site is not None), None)
        file, line = (__file__, 1) if site is None else (site[0].co_filename, place_of(site)[1])
        warnings.warn_explicit(message, errors.DroppedWriteWarning, file, line)
