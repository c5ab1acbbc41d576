"""What to write instead, when names do not fit."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Collection, Iterable

__all__ = ["near", "prefix_hint"]

_MOST = 200_000


def prefix_hint(theirs: Collection[str], ours: Collection[str], prefix: str) -> str | None:
    """Returns what to write if the names differ by what they begin with; None if that is not so.

    Args:
      theirs: the names of a source, behind the prefix that was given.
      ours: the names that a model asks for.
      prefix: the prefix that was given.
    """
    wanted = set(ours)
    there = len(wanted & set(theirs))
    longer: Counter[str] = Counter()
    for name in theirs:
        parts = name.split(".")
        for at in range(1, len(parts)):
            if ".".join(parts[at:]) in wanted:
                longer[".".join(parts[:at]) + "."] += 1
    if longer:
        best, count = max(longer.items(), key=lambda item: (item[1], -len(item[0])))
        if count > there:
            others = sorted(p for p, n in longer.items() if n == count and p != best)[:4]
            either = "".join(f" or prefix={prefix + other!r}" for other in others)
            return (
                f"{count} of the model's {len(wanted)} tensors are there with {best!r} before "
                f"their names; write prefix={prefix + best!r}{either}"
            )
    given = set(theirs)
    shorter: Counter[str] = Counter()
    for name in wanted:
        parts = name.split(".")
        for at in range(1, len(parts)):
            if ".".join(parts[at:]) in given:
                shorter[".".join(parts[:at])] += 1
    if shorter:
        best, count = max(shorter.items(), key=lambda item: (item[1], -len(item[0])))
        if count > there:
            return (
                f"{count} of the model's {len(wanted)} tensors are there without {best + '.'!r} "
                f'before their names; write names={{"": {best!r}}}'
            )
    return None


def near(name: str, others: Iterable[str]) -> str:
    """Returns a hint at the nearest of some names; empty if none is near."""
    pool = list(others)
    if len(pool) * len(name) > _MOST:
        return ""
    found = difflib.get_close_matches(name, pool, n=1)
    return f"; did you mean {found[0]!r}?" if found else ""
