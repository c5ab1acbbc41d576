"""The tape of a recording: a node that lifted calls take along as one more argument.

Inside of a transform it is rebuilt like every other argument. What is recorded there becomes a new
Variable of it, and so comes out in the way in which the transform hands out new Variables.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from moduli import errors
from moduli._base.compat import trace_state
from moduli._base.current_transform import describe_running
from moduli._module.pytree import Pytree
from moduli._recording.recording import Crossings, Entry, Place
from moduli._variable.box import Intermediate, Variable

__all__ = ["Given", "Recorded", "Tape"]


class Recorded(Intermediate):
    """A value on a tape."""


class Given(Variable[Any]):
    """A value that a recording was given."""


class Tape(Pytree):
    """Values in the order in which they were recorded, and how often modules were called."""

    def check(self, place: Place) -> None:
        """Raises a TraceError if a value of the current trace cannot be put here."""
        if self._moduli.trace != trace_state():
            raise errors.TraceError(
                f"cannot record {place.name!r} of `{errors.format_path(place.path)}` here: the "
                f"value belongs to the trace of {describe_running()}, which does not hand it "
                "out. Use moduli's transform (`moduli.jit`, `moduli.vmap`, ...) instead of JAX's "
                "own"
            )

    def add(self, entry: Entry) -> None:
        """Appends a value."""
        metadata = entry._asdict()
        value = metadata.pop("value")
        setattr(self, f"value{len(vars(self)):06d}", Recorded(value, **metadata))

    def replace(self, entries: Iterable[Entry]) -> None:
        """Takes these values in the place of those that were recorded."""
        for name, item in list(vars(self).items()):
            if isinstance(item, Recorded):
                delattr(self, name)
        for entry in entries:
            self.add(entry)

    def give(self, place: Place, value: Any, crossings: Crossings) -> None:
        """Adds a given value."""
        setattr(self, f"given{len(vars(self)):06d}", Given(value, place=place, crossings=crossings))

    def note_calls(self, counts: Mapping[tuple[Any, ...], int]) -> None:
        """Writes down how often modules were called."""
        if counts:
            self.counts = tuple(sorted(counts.items(), key=repr))

    def entries(self) -> list[Entry]:
        """The values, in order."""
        return [
            Entry(value=item.get_raw_value(), **item.get_metadata())
            for _, item in sorted(vars(self).items())
            if isinstance(item, Recorded)
        ]

    def given(self) -> dict[Place, tuple[Any, Crossings]]:
        """The given values with the axes that are still around them."""
        return {
            item.get_metadata("place"): (item.get_raw_value(), item.get_metadata("crossings"))
            for _, item in sorted(vars(self).items())
            if isinstance(item, Given)
        }

    def calls(self) -> Iterable[tuple[tuple[Any, ...], int]]:
        """How often modules were called, by path."""
        return vars(self).get("counts", ())
