"""Pieces of Markdown tables: a row, a head, and a cell with a median and its quartiles."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence

from benchmarks.timing import ratios


def table(head: Sequence[object], rows: Iterable[Sequence[object]]) -> list[str]:
    """Returns the lines of a table, and an empty line after it."""
    return [row(head), "|---" * len(head) + "|", *map(row, rows), ""]


def row(cells: Iterable[object]) -> str:
    """Formats one line of a table."""
    return f"| {' | '.join(map(str, cells))} |"


def ratio_cell(
    times: Mapping[str, Sequence[float]], name: str, reference: str, digits: int = 2
) -> str:
    """Formats the median ratio to the reference, and its quartiles if there are enough rounds."""
    return spread_cell(ratios(times, name, reference), digits)


def spread_cell(values: Sequence[float], digits: int = 2) -> str:
    """Formats the median, and the quartiles if there are at least four values."""
    text = f"{statistics.median(values):.{digits}f}"
    if len(values) < 4:
        return text
    low, _, high = statistics.quantiles(values, n=4)
    return (
        f"{text} ({low:.{digits}f} to {high:.{digits}f})"
        if low < 0
        else f"{text} ({low:.{digits}f}-{high:.{digits}f})"
    )


def time_text(microseconds: Sequence[float]) -> str:
    """Formats the median of times, in the unit that suits it."""
    median = statistics.median(microseconds)
    if median < 10_000:
        return f"{median:.0f} µs"
    return f"{median / 1e3:.0f} ms" if median < 10_000_000 else f"{median / 1e6:.0f} s"
