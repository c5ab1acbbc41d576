"""The report in Markdown: the tables of all sections, and what they were measured with."""

from __future__ import annotations

from typing import Any

from benchmarks.sections import SECTIONS


def markdown(result: dict[str, Any]) -> str:
    """Formats the tables.

    Args:
      result: ``environment``; ``rounds``; ``sections``: name -> what its ``measure`` returned.
    """
    lines: list[str] = []
    for name, found in result["sections"].items():
        lines += SECTIONS[name].report(found)
    environment = ", ".join(f"{name} {value}" for name, value in result["environment"].items())
    lines.append(f"Measured with {environment}; {result['rounds']} rounds: `python -m benchmarks`.")
    return "\n".join(lines)
