"""Entry points of installed distributions: reading them, and loading one into a record.

Distributions are read one at a time, so that a damaged one costs no other its plugins.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from moduli._plugins.records import PluginRecord, quarantine
from moduli._plugins.requirements import unmet
from moduli.errors import PluginError

__all__ = ["OURS", "Point", "Scan", "canonical", "installed", "load", "record_of"]


OURS = frozenset(f"moduli-{package}" for package in ("layers", "debug", "train", "interop"))
"""The distributions of moduli's own packages."""


class Point(NamedTuple):
    """One entry point.

    Attributes:
      name: its name.
      value: what it names, ``module`` or ``module:attribute``.
      group: its group.
      distribution: the name of the distribution that declares it.
      version: that distribution's version.
    """

    name: str
    value: str
    group: str
    distribution: str
    version: str

    def load(self) -> Any:
        """Imports what it names."""
        import importlib.metadata  # costs as much as all of the plugin system; needed only here

        return importlib.metadata.EntryPoint(self.name, self.value, self.group).load()


class Scan(NamedTuple):
    """What the installed distributions declare under one group.

    Attributes:
      points: the entry points, sorted by name and target.
      damaged: records of distributions whose lines in the group are no entry points.
      unreadable: records of distributions whose entry points cannot be read at all.
    """

    points: list[Point]
    damaged: list[PluginRecord]
    unreadable: list[PluginRecord]


def canonical(distribution: str) -> str:
    """Returns a distribution's name as pip compares it: ``my-plugin`` for ``My_Plugin``."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def installed(group: str) -> Scan:
    """Reads the entry points of a group, distribution by distribution.

    Of distributions of the same name the first on ``sys.path`` counts, as in importlib.

    Raises:
      PluginError: under ``MODULI_STRICT=1``, if a distribution is damaged.
    """
    scan = Scan([], [], [])
    points: dict[tuple[str, str], Point] = {}
    seen: set[str] = set()
    for distribution in _distributions(scan.unreadable):
        try:
            text = distribution.read_text("entry_points.txt") or ""
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            scan.unreadable.append(_damaged(distribution, error))
            continue
        if f"[{group}]" not in text.replace(" ", ""):
            continue
        name, version = _name_and_version(distribution)
        if name:
            key = canonical(name)
            if key in seen:
                continue
            seen.add(key)
            text = _first_text(name, text)
        title = name or _place(distribution)
        for line, target in _lines(text, group):
            if target:
                points.setdefault((line, target), Point(line, target, group, title, version))
            else:
                error = ValueError(f"the line {line!r} of [{group}] is not `name = module:object`")
                scan.damaged.append(_damaged(distribution, error))
    scan.points.extend(points[key] for key in sorted(points))
    return scan


def record_of(point: Point) -> PluginRecord:
    """Returns a record of what declares an entry point."""
    return PluginRecord(point.name, point.distribution, point.version, point.value)


def load(point: Point, record: PluginRecord) -> Any:
    """Loads what an entry point names; a failure quarantines its record.

    What requires other versions than are installed is not imported.
    """
    start = time.perf_counter()
    try:
        missing = "" if canonical(point.distribution) in OURS else unmet(point.distribution)
        if missing:
            quarantine(record, "to be activated", PluginError(missing))
            return None
        start = time.perf_counter()
        return point.load()
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a script calls sys.exit when it is imported
        quarantine(record, f"to import {point.value!r}", error)
        return None
    finally:
        record.load_ms = (time.perf_counter() - start) * 1000


def _distributions(unreadable: list[PluginRecord]) -> Iterator[Any]:
    import importlib.metadata  # costs as much as all of the plugin system; needed only here

    try:
        yield from importlib.metadata.distributions()
    except (KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:  # of a finder on sys.meta_path
        record = PluginRecord("", "unknown")
        unreadable.append(record)
        quarantine(record, "while distributions were looked for", error)


def _first_text(name: str, text: str) -> str:
    """Returns the entry points of the first distribution of a name."""
    import importlib.metadata

    try:
        return importlib.metadata.distribution(name).read_text("entry_points.txt") or ""
    except KeyboardInterrupt:
        raise
    except BaseException:
        return text


def _lines(text: str, group: str) -> Iterator[tuple[str, str]]:
    """Yields (name, target) of a group's lines; (line, "") for one that is no entry point."""
    section = ""
    for line in filter(None, map(str.strip, text.splitlines())):
        if line.startswith("[") and line.endswith("]"):
            section = line[1:-1].strip()
        elif section == group and not line.startswith("#"):
            name, _, target = map(str.strip, line.partition("="))
            is_point = name and re.match(r"[\w.]+\s*(:\s*[\w.]+\s*)?(\[.*\])?$", target)
            yield (name, target) if is_point else (line, "")


def _damaged(distribution: Any, error: BaseException) -> PluginRecord:
    name, version = _name_and_version(distribution)
    record = PluginRecord("", name or _place(distribution), version)
    quarantine(record, "to declare its entry points (entry_points.txt)", error)
    return record


def _name_and_version(distribution: Any) -> tuple[str, str]:
    try:
        metadata = distribution.metadata  # parses the whole file each time
        return metadata.get("Name") or "", metadata.get("Version") or ""
    except KeyboardInterrupt:
        raise
    except BaseException:  # there is no METADATA, or it is no text
        return "", ""


def _place(distribution: Any) -> str:
    try:
        return f"without a name in {distribution.locate_file('')}"
    except KeyboardInterrupt:
        raise
    except BaseException:
        return "unknown"
