"""Finding plugins: the entry points of installed distributions, at the first need."""

from __future__ import annotations

import threading
from collections.abc import Iterable

from moduli._base.epoch import EPOCH
from moduli._plugins import specs
from moduli._plugins.entry_points import Point, installed, load, record_of
from moduli._plugins.inspection import Plugin
from moduli._plugins.plugin_set import PluginSet
from moduli._plugins.records import PluginRecord, noticed, report
from moduli._plugins.selection import Selection

__all__ = ["allowed", "discover", "found", "records", "rediscover", "select", "selection"]

GROUP = "moduli"
NAMES = "moduli.names"

_lock = threading.Lock()  # guards the variables below; nothing is imported while it is held
found: PluginSet | None = None  # what discover() returns, for the guards to read directly
_records: list[PluginRecord] = []
_chosen: str | None = None


class _Here(threading.local):
    meanwhile: PluginSet | None = None  # what is in force while this thread loads the plugins


_here = _Here()


def select(text: str | None) -> None:
    """Chooses plugins as ``MODULI_PLUGINS`` does, for this program; None goes back to that."""
    global _chosen
    _chosen = text
    rediscover()


def selection() -> Selection:
    """Returns the choice of plugins that holds now."""
    return Selection(_chosen)


def allowed(points: Iterable[Point]) -> list[Point]:
    """Returns those of these entry points whose distributions the choice of plugins leaves in.

    A distribution is left out with the last of its plugins; one that has none goes by its own name.
    """
    chosen = selection()
    plugins: dict[str, list[str]] = {}
    if chosen.included or chosen.excluded or chosen.none:
        for point in installed(GROUP).points:
            plugins.setdefault(point.distribution, []).append(point.name)
    return [
        point
        for point in points
        if any(
            chosen.allows(name, point.distribution)
            for name in plugins.get(point.distribution, [""])
        )
    ]


def discover() -> PluginSet:
    """Returns the set of installed plugins; imports them at the first call.

    Raises:
      PluginError: if the choice of plugins names one that is not installed, or, under
        ``MODULI_STRICT=1``, if a plugin fails.
    """
    return found or _discover()


def rediscover() -> None:
    """Forgets what was found, so that the next need looks again; for tests and tools."""
    global found
    with _lock:
        found = None
        EPOCH[0] += 1
        specs.forget_installed()
        noticed.clear()


def records() -> list[PluginRecord]:
    """Returns what is known of every installed plugin, blocked and quarantined ones too."""
    discover()
    return list(_records)


def _discover() -> PluginSet:
    global found, _records
    if _here.meanwhile is not None:  # a plugin makes modules while it is imported
        return _here.meanwhile
    _here.meanwhile = PluginSet([])
    try:
        plugins, known = _load_installed()
    finally:
        _here.meanwhile = None
    with _lock:  # two threads may both have loaded them; the first one's set holds
        if found is None:
            found, _records = plugins, known
            EPOCH[0] += 1
        plugins, known = found, list(_records)
    report(known)
    plugins.warn_of_deprecated()
    return plugins


def _load_installed() -> tuple[PluginSet, list[PluginRecord]]:
    scan = installed(GROUP)
    chosen = selection()
    chosen.check((point.name for point in scan.points), _distributions)
    known: list[PluginRecord] = [*scan.unreadable, *scan.damaged]
    plugins: list[Plugin] = []
    for point in scan.points:
        record = record_of(point)
        known.append(record)
        if not chosen.allows(point.name, point.distribution):
            record.state = "blocked"
            continue
        source = load(point, record)
        if record.state == "active":
            plugins.append(Plugin(source, record))
    known += specs.declare_for(hook for plugin in plugins for hook in plugin.record.hooks)
    return PluginSet(plugins), known


def _distributions() -> Iterable[str]:
    return {point.distribution for group in (GROUP, NAMES) for point in installed(group).points}
