"""Entry points of installed distributions: reading them, and loading one into a record."""

from __future__ import annotations

import time
from typing import Any

from moduli._plugins.records import PluginRecord, quarantine

__all__ = ["installed", "load", "record_of"]


def installed(group: str) -> list[Any]:
    """Returns the entry points of a group, sorted by name and target."""
    import importlib.metadata  # costs as much as all of the plugin system; needed only here

    points = importlib.metadata.entry_points(group=group)
    unique = {(point.name, point.value): point for point in points}
    return [unique[key] for key in sorted(unique)]


def record_of(point: Any) -> PluginRecord:
    """Returns a record of what declares an entry point."""
    if point.dist is None:
        return PluginRecord(point.name, "unknown", "", point.value)
    name = point.dist.metadata["Name"] or "unknown"
    return PluginRecord(point.name, name, point.dist.version or "", point.value)


def load(point: Any, record: PluginRecord) -> Any:
    """Loads what an entry point names; a failure quarantines its record."""
    start = time.perf_counter()
    try:
        return point.load()
    except Exception as error:
        quarantine(record, f"to import {point.value!r}", error)
        return None
    finally:
        record.load_ms = (time.perf_counter() - start) * 1000
