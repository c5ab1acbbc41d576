"""Finding plugins: the entry points of installed distributions, at the first need."""

from __future__ import annotations

import threading
import time
from typing import Any

from moduli._plugins.plugin_set import PluginSet
from moduli._plugins.records import PluginRecord, quarantine
from moduli._plugins.selection import Selection

__all__ = ["add_hookspecs", "discover", "installed", "records", "rediscover", "select"]

GROUP = "moduli"
SPECS_GROUP = "moduli.hookspecs"

_lock = threading.RLock()
_extra_specs: list[Any] = []
_found: list[PluginSet | None] = [None]
_records: list[PluginRecord] = []
_selection: list[Selection | None] = [None]


def select(text: str | None) -> None:
    """Chooses plugins as ``MODULI_PLUGINS`` does, for this program; None goes back to that."""
    with _lock:
        _selection[0] = None if text is None else Selection(text)
        _found[0] = None


def add_hookspecs(module: Any) -> None:
    """Declares more hooks, for extension packages that other plugins may extend.

    Args:
      module: a module (or object) with functions marked ``@moduli.hookspec``. A distribution that
        names the same module under the entry point group ``moduli.hookspecs`` lets plugins
        implement its hooks whatever is imported first.
    """
    with _lock:
        if module in _extra_specs:
            return
        _extra_specs.append(module)
        current = _found[0]
        if current is not None and module not in current.specs:
            current.specs.append(module)
            current.manager.add_hookspecs(module)


def installed(group: str) -> list[Any]:
    """Returns the entry points of a group, sorted by name and target."""
    import importlib.metadata

    points = importlib.metadata.entry_points(group=group)
    unique = {(point.name, point.value): point for point in points}
    return [unique[key] for key in sorted(unique)]


def discover() -> PluginSet:
    """Returns the set of installed plugins; imports them at the first call."""
    current = _found[0]
    if current is not None:
        return current
    with _lock:
        if _found[0] is None:
            _found[0] = _discover()
        return _found[0]


def rediscover() -> None:
    """Forgets what was found, so that the next need looks again; for tests and tools."""
    with _lock:
        _found[0] = None


def records() -> list[PluginRecord]:
    """Returns what is known of every installed plugin, blocked and quarantined ones too."""
    discover()
    return list(_records)


def _discover() -> PluginSet:
    from moduli import hookspecs

    points = installed(GROUP)
    selection = _selection[0] or Selection()
    selection.check(point.name for point in points)
    _records.clear()
    for point in installed(SPECS_GROUP):
        record = _record(point)
        module = _load(point, record)
        if record.state == "active":
            add_hookspecs(module)
        else:
            _records.append(record)
    plugins = []
    for point in points:
        record = _record(point)
        _records.append(record)
        if not selection.allows(point.name):
            record.state = "blocked"
            continue
        plugin = _load(point, record)
        if record.state == "active":
            plugins.append((plugin, record))
    return PluginSet([hookspecs, *_extra_specs], plugins)  # plugins may have added hooks by now


def _record(point: Any) -> PluginRecord:
    name = version = "unknown"
    if point.dist is not None:
        name, version = point.dist.metadata["Name"] or name, point.dist.version or version
    return PluginRecord(point.name, name, version, point.value)


def _load(point: Any, record: PluginRecord) -> Any:
    start = time.perf_counter()
    try:
        return point.load()
    except Exception as error:
        quarantine(record, f"to import {point.value!r}", error)
        return None
    finally:
        record.load_ms = (time.perf_counter() - start) * 1000
