"""Who claims which names of ``moduli``, by the metadata of installed distributions.

The names of core and of moduli's own packages are reserved, whether those are installed or not: a
stranger's claim to one gets a warning, and nothing else.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from typing import Any, NamedTuple

from moduli._facade.extension_names import PROVIDED
from moduli._plugins import NAMES, OURS, Point, allowed, canonical, installed, notice, report, unmet
from moduli.errors import BrokenNameError, PluginError

__all__ = [
    "SUBMODULES",
    "Claims",
    "claims",
    "describe",
    "forget",
    "load",
    "load_ms",
    "owner",
    "resolved",
]

SUBMODULES = ("hookspecs", "testing")  # of core's own; imported when they are asked for

_ON_IMPORT = ("lowlevel",)  # an attribute only after `import moduli.lowlevel`
_OWNERS = {name: f"moduli-{extra}" for extra, names in PROVIDED.items() for name in names}
_lock = threading.Lock()
_claims: Claims | None = None
resolved: set[str] = set()  # what became an attribute of moduli by a claim

load_ms: dict[Point, float] = {}  # what loading a name took, the first time


class Claims(NamedTuple):
    """What installed distributions say of names.

    Attributes:
      points: the entry points that count, by name; several of one name clash.
      refused: strangers' claims to reserved names, by name.
      blocked: claims of distributions that the choice of plugins leaves out, by name.
    """

    points: dict[str, list[Point]]
    refused: dict[str, list[Point]]
    blocked: dict[str, list[Point]]


def claims() -> Claims:
    """Returns the claims; reads the metadata of installed packages once, and warns once."""
    global _claims
    with _lock:
        if _claims is not None:
            return _claims
        scan = installed(NAMES)
        chosen = set(allowed(scan.points))
        made = Claims({}, {}, {})
        for point in scan.points:
            if _OWNERS.get(point.name, "") == canonical(point.distribution):
                kind = made.points  # moduli's own stand, whatever plugins are chosen
            elif point not in chosen:
                kind = made.blocked
            elif owner(point.name):
                kind = made.refused
            else:
                kind = made.points
            kind.setdefault(point.name, []).append(point)
        _claims = made
    report(scan.damaged)  # the unreadable ones are reported with the plugins
    _warn(point for points in made.refused.values() for point in points)
    return made


def forget() -> None:
    """Reads the metadata again at the next need."""
    global _claims
    _claims = None


def load(point: Point) -> Any:
    """Loads what a claim names, and notes what it cost.

    Raises:
      BrokenNameError: its package fails to import, lacks it, or requires what is not installed.
    """
    start = time.perf_counter()
    try:
        missing = "" if canonical(point.distribution) in OURS else unmet(point.distribution)
        if missing:
            raise PluginError(missing)
        return point.load()
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        kind = "" if isinstance(error, PluginError) else f"{type(error).__name__}: "
        raise BrokenNameError(
            f"moduli.{point.name} is declared by {describe(point)}, which failed to load it: "
            f"{kind}{error}",
            name=point.name,
        ) from error
    finally:
        load_ms.setdefault(point, (time.perf_counter() - start) * 1000)


def owner(name: str) -> str:
    """Returns whose a reserved name is; empty for one that anybody may claim."""
    return _OWNERS.get(name) or ("core itself" if _is_cores(name) else "")


def describe(point: Point) -> str:
    """Formats a claim as ``shiny-layers 1.0 (shiny_layers:Shiny)``."""
    return f"{point.distribution} {point.version} ({point.value})"


def _is_cores(name: str) -> bool:
    import moduli

    own = vars(moduli)
    return (
        name in SUBMODULES
        or name in _ON_IMPORT
        or name in own["_OWN_NAMES"]
        or (name in own and name not in resolved)
    )


def _warn(refused: Iterable[Point]) -> None:
    by_owner: dict[str, list[Point]] = {}
    for point in refused:
        by_owner.setdefault(f"{point.distribution} {point.version}".strip(), []).append(point)
    for title, points in by_owner.items():
        listed = ", ".join(f"moduli.{point.name} ({point.value})" for point in points)
        notice(
            f"{title} claims {listed}, which moduli's own packages have; the claim is refused. "
            f"Import the object from its own package; MODULI_PLUGINS=-{points[0].distribution} "
            "leaves its names out"
        )
