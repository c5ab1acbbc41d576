"""The lazy facade: ``moduli.Linear`` is found in whichever installed package declares it.

Names are entry points of the group ``moduli.names``, so they are plain metadata: nothing is read
before an unknown attribute is asked for, and nothing is imported but what that name needs. What was
found is kept among ``moduli``'s globals (see ``moduli/__init__.py``).
"""

from __future__ import annotations

import difflib
import importlib
import threading
from typing import Any

from moduli import errors
from moduli._facade.extension_names import PROVIDED

__all__ = ["names", "resolve"]

GROUP = "moduli.names"
SUBMODULES = ("hookspecs", "testing")  # of core's own; imported when they are asked for

_lock = threading.Lock()
_resolved: set[str] = set()
_points: dict[str, list[Any]] | None = None


def _declared() -> dict[str, list[Any]]:
    """Returns the entry points of each name; reads the metadata of installed packages once."""
    global _points
    with _lock:
        if _points is None:
            from moduli._plugins import installed, report

            found: dict[str, list[Any]] = {}
            scan = installed(GROUP)
            report(scan.damaged)  # the unreadable ones are reported with the plugins
            for point in scan.points:
                found.setdefault(point.name, []).append(point)
            _points = found
        return _points


def forget() -> None:
    """Forgets what was read, so that the next name looks again; for tests and notebooks."""
    import moduli

    global _points
    _points = None
    while _resolved:
        name = _resolved.pop()
        if name in vars(moduli):
            delattr(moduli, name)


def names() -> list[str]:
    """Returns the names that installed packages add to ``moduli``, and core's lazy submodules."""
    return sorted({*_declared(), *SUBMODULES})


def clashes() -> dict[str, list[str]]:
    """Returns the names that several packages claim, with who claims them.

    A package cannot take a name of core's: core's own is found first, so that is a clash too.
    """
    import moduli

    core = {*vars(moduli), *vars(moduli)["_OWN_NAMES"], *SUBMODULES} - _resolved
    found = {}
    for name, points in _declared().items():
        owners = [_describe(point) for point in points]
        if name in core:
            owners.insert(0, "core itself")
        if len(owners) > 1:
            found[name] = owners
    return found


def resolve(name: str) -> Any:
    """Loads the object behind a name.

    Args:
      name: an attribute of ``moduli`` that core does not define.

    Returns:
      The object.

    Raises:
      NameClashError: if two packages claim the name.
      MissingPluginError: (an AttributeError) if a package of moduli's own provides the name and is
        not installed; the text is the command that installs it.
      PluginError: if the package that declares the name fails to import, or lacks it.
      AttributeError: if nobody knows the name.
    """
    if name in SUBMODULES:
        return importlib.import_module(f"moduli.{name}")
    points = _declared().get(name, [])
    if len(points) > 1:
        raise errors.NameClashError(
            f"moduli.{name} is claimed by {' and by '.join(map(_describe, points))}; uninstall one "
            "of them, or import the object from its own package"
        )
    if points:
        try:
            value = points[0].load()
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            raise errors.PluginError(
                f"moduli.{name} is declared by {_describe(points[0])}, which failed to load it: "
                f"{type(error).__name__}: {error}"
            ) from error
        _resolved.add(name)
        return value
    for extra, provided in PROVIDED.items():
        if name in provided:
            raise errors.MissingPluginError(
                f'moduli.{name} is in the package moduli-{extra}: pip install "moduli[{extra}]"',
                name=name,
            )
    raise AttributeError(f"module 'moduli' has no attribute {name!r}{_hint(name)}", name=name)


def _hint(name: str) -> str:
    import moduli

    known = {
        *(key for key in (*vars(moduli), *vars(moduli)["_OWN_NAMES"]) if not key.startswith("_")),
        *_declared(),
        *(item for provided in PROVIDED.values() for item in provided),
    }
    near = difflib.get_close_matches(name, sorted(known), n=1)
    return f"; did you mean moduli.{near[0]}?" if near else ""


def _describe(point: Any) -> str:
    return f"{point.distribution} {point.version} ({point.value})"
