"""Variables that a program reads without being given them: their values are constants in it.

``moduli.jit(lambda x: model(x))`` reads the model through a closure, so JAX compiles its values
into the program, and a later training step does not reach it. While a function is traced for a
program that is kept, each read of a Variable from outside of every trace is noted. Later calls of
such a program compare the values, by identity, so every way to write a Variable is seen. If one was
written, the caller is warned and the function is compiled again, with the new values.

Programs that read nothing through a closure pay nothing for this.
"""

from __future__ import annotations

import contextlib
import threading
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from moduli import errors
from moduli._base.compat import Tracer, eager_trace_state, is_eager
from moduli._base.locate import describe_owner
from moduli._base.source_lines import describe_place, describe_site, find_site, place_of

__all__ = ["ACTIVE", "ClosedOver", "note_holders", "note_read"]

ACTIVE: list[Any] = []
"""The functions that are being traced for kept programs, in all threads; mostly empty.

Readers ask whether it is empty before they call :func:`note_read`."""

_here = threading.local()
_MOST_NAMES = 4
_REMEDY = (
    "Pass the module as an argument (`f(model, x)` instead of `f(x)`): then new values need no new "
    "program."
)


def note_read(variable: Any) -> None:
    """Notes that the value of a Variable is read, for the programs that this thread traces."""
    stack = _here.__dict__.get("stack")
    if not stack or variable._trace != eager_trace_state() or is_eager():
        return
    value = variable._value
    if not isinstance(value, Tracer):
        for closed_over in stack:
            closed_over.add(variable, value)


def note_holders(flats: Iterable[Any]) -> None:
    """Notes the reading of all Variables of some flattened graphs."""
    for flat in flats:
        for holder in flat.holders:
            if hasattr(holder, "_trace"):  # a Variable, not a bare array
                note_read(holder)


def _warn(text: str) -> None:
    """Warns at the user's line that a program is made anew."""
    site = find_site()
    file, line = (__file__, 1) if site is None else (site[0].co_filename, place_of(site)[1])
    message = f"{text}, so the function is compiled again. {_REMEDY}"
    warnings.warn_explicit(message, errors.ClosedOverWarning, file, line)


class ClosedOver:
    """The Variables that one program has read through closures, with the values it has read.

    Keeps no Variable alive. False while there is none.

    Args:
      function: the function that the program was made from.
    """

    __slots__ = ("_name", "_noted")

    def __init__(self, function: Callable[..., Any]):
        name = getattr(function, "__qualname__", None) or type(function).__name__
        code = getattr(function, "__code__", None)
        self._name = name if code is None else f"{name} ({describe_place((code, -1))})"
        self._noted: dict[tuple[int, int], tuple[weakref.ref[Any], Any]] = {}

    def __bool__(self) -> bool:
        return bool(self._noted)

    def add(self, variable: Any, value: Any) -> None:
        """Notes a Variable and the value that was read."""
        key = (id(variable), id(value))
        if key not in self._noted:
            gone = self._noted.pop
            self._noted[key] = (weakref.ref(variable, lambda _: gone(key, None)), value)

    @contextlib.contextmanager
    def noting(self) -> Iterator[None]:
        """Notes what is read inside of the block."""
        stack = _here.__dict__.setdefault("stack", [])
        stack.append(self)
        ACTIVE.append(self)
        try:
            yield
        finally:
            stack.pop()
            ACTIVE.remove(self)

    def is_stale(self) -> bool:
        """Returns whether a noted Variable was written since; warns if so.

        A program that runs while another one is traced hands over to it what it has noted.
        """
        written = self.written()
        if written:
            _warn(self._describe(written))
        return bool(written)

    def warn_of(self, modules: list[Any]) -> None:
        """Warns of modules that the function reads through a closure, and that have changed.

        Args:
          modules: those that have other parts or static attributes now.
        """
        names = " and ".join(dict.fromkeys(type(module).__name__ for module in modules))
        _warn(
            f"the compiled function {self._name} reads the {names} through a closure, and a part "
            "or an attribute there (such as a mode) is another one since"
        )

    def check(self) -> None:
        """Raises if a noted Variable was written since: what was compiled ahead of time is old.

        Raises:
          TraceError: with the places of the Variables.
        """
        written = self.written()
        if written:
            raise errors.TraceError(f"{self._describe(written)}. Lower it again, or: {_REMEDY}")

    def written(self) -> list[Any]:
        """Lists the noted Variables that were written since."""
        written: dict[int, Any] = {}
        for ref, value in tuple(self._noted.values()):
            variable = ref()
            if variable is None:
                continue
            if variable._value is not value:
                written[id(variable)] = variable
            elif ACTIVE:
                note_read(variable)
        return list(written.values())

    def _describe(self, variables: list[Any]) -> str:
        texts = []
        for variable in variables[:_MOST_NAMES]:
            site = describe_site(variable)
            texts.append(describe_owner(variable) + (f" ({site})" if site else ""))
        if len(variables) > _MOST_NAMES:
            texts.append(f"{len(variables) - _MOST_NAMES} more")
        listed = " and ".join([", ".join(texts[:-1]), texts[-1]] if len(texts) > 1 else texts)
        what = "it was" if len(variables) == 1 else "they were"
        return (
            f"the compiled function {self._name} reads {listed} through a closure, which JAX makes "
            f"constant in the program, and {what} written since"
        )
