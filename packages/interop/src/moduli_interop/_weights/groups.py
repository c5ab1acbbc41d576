"""Rows of tables: those of repeated blocks are one row, and long tables are cut."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

__all__ = ["MAX_ROWS", "cut", "grouped"]

MAX_ROWS = 40
_NUMBER = re.compile(r"(?<![^./\[])\d+(?![^./\]])")

Row = tuple[str, ...]


def grouped(rows: Iterable[tuple[Row, Row]]) -> list[tuple[Row, Row, int]]:
    """Puts rows together that differ in the numbers of blocks only.

    Args:
      rows: for each the names, whose numbers may differ, and texts, which are equal in a group.

    Returns:
      Names, texts, and how many rows one stands for, in the order of the first.

    Example:
      >>> from moduli_interop._weights.groups import grouped
      >>> grouped([((f"h.{n}.weight",), ("f32",)) for n in range(12)])
      [(('h.{0..11}.weight',), ('f32',), 12)]
    """
    groups: dict[tuple[Row, Row], list[Row]] = {}
    for names, texts in rows:
        shape = tuple(_NUMBER.sub("{}", name) for name in names)
        groups.setdefault((shape, texts), []).append(names)
    return [(_joined(members), texts, len(members)) for (_, texts), members in groups.items()]


def _joined(members: Sequence[Row]) -> Row:
    if len(members) == 1:
        return members[0]
    found = []
    for column in zip(*members, strict=True):
        numbers = list(zip(*(_NUMBER.findall(name) for name in column), strict=True))
        places = iter([_range(each) for each in numbers])
        found.append(_NUMBER.sub(lambda _, places=places: next(places), column[0]))
    return tuple(found)


def _range(texts: Iterable[str]) -> str:
    numbers = sorted({int(text) for text in texts})
    if len(numbers) == 1:
        return str(numbers[0])
    if numbers == list(range(numbers[0], numbers[-1] + 1)):
        return f"{{{numbers[0]}..{numbers[-1]}}}"
    shown = ",".join(map(str, numbers[:8]))
    return f"{{{shown}{',...' if len(numbers) > 8 else ''}}}"


def cut(lines: Sequence[str], what: str = "rows") -> list[str]:
    """Returns at most forty lines, and one that counts the others."""
    if len(lines) <= MAX_ROWS:
        return list(lines)
    return [*lines[:MAX_ROWS], f"... and {len(lines) - MAX_ROWS} more {what}"]
