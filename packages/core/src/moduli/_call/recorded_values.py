"""Recorded values at the boundary of a call: a node that lifted calls take along as an argument.

Inside of a transform it is rebuilt like every other argument. When the function has run, what was
recorded there becomes new Variables of the node, and so comes out in the way in which the transform
hands out new Variables.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from moduli._module.pytree import Pytree
from moduli._recording.recording import Crossings, Entry, Place
from moduli._variable.box import Variable
from moduli._variable.kinds import Intermediate

__all__ = ["Given", "Recorded", "RecordedValues", "carries_records", "name_of_records"]

_NAME = "the recording"  # no name that Python would take for an argument


def name_of_records(number: int) -> str:
    """Returns the name of the keyword argument that carries the records of a recording."""
    return f"{_NAME} {number}"


def carries_records(name: str) -> bool:
    """Returns whether a keyword argument carries what is recorded."""
    return name.startswith(_NAME)


class Recorded(Intermediate):
    """A value that was recorded."""


class Given(Variable[Any]):
    """A value that a recording was given."""


class RecordedValues(Pytree):
    """Values in the order in which they were recorded, and how often modules were called."""

    def give(self, given: Mapping[Place, tuple[Any, Crossings]]) -> None:
        """Adds the values that a recording was given."""
        for number, (place, (value, crossings)) in enumerate(given.items()):
            setattr(self, f"given{number:06d}", Given(value, place=place, crossings=crossings))

    def given(self) -> dict[Place, tuple[Any, Crossings]]:
        """Returns the given values with the axes that are still around them."""
        return {
            item.get_metadata("place"): (item.get_raw_value(), item.get_metadata("crossings"))
            for _, item in sorted(vars(self).items())
            if isinstance(item, Given)
        }

    def write(self, entries: Iterable[Entry], counts: Mapping[tuple[Any, ...], int]) -> None:
        """Writes down what was recorded, and how often modules were called."""
        for number, entry in enumerate(entries):
            metadata = entry._asdict()
            value = metadata.pop("value")
            setattr(self, f"value{number:06d}", Recorded(value, **metadata))
        if counts:
            self.counts = tuple(sorted(counts.items(), key=repr))

    def entries(self) -> list[Entry]:
        """Returns the values, in order."""
        return [
            Entry(value=item.get_raw_value(), **item.get_metadata())
            for _, item in sorted(vars(self).items())
            if isinstance(item, Recorded)
        ]

    def calls(self) -> Iterable[tuple[tuple[Any, ...], int]]:
        """Returns how often modules were called, by path."""
        return vars(self).get("counts", ())
