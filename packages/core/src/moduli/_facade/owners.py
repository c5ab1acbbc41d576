"""Whose each name is: names of ``moduli``, attributes of modes, kinds of Variable, formats."""

from __future__ import annotations

from typing import Any

from moduli import _plugins
from moduli._facade import claims
from moduli._variable import names

__all__ = ["contributed", "owners_of_names"]


def contributed() -> list[_plugins.Contributions]:
    """Returns what plugins contribute by name, of every hook that is declared to do so."""
    modes = [
        _plugins.contributions(f"attribute of {mode}()", "moduli_mode_attributes", mode=mode)
        for mode in ("train", "eval")
    ]
    others = [
        _plugins.contributions(what, hook, _plugins.by_attribute)
        for hook, what in _plugins.named_hooks().items()
    ]
    return [*modes, names.contributed(), *others]


def owners_of_names() -> dict[str, Any]:
    """Returns the packages that only declare names, and the owner of each name by its sort."""
    made = claims.claims()
    with_plugins = {record.distribution for record in _plugins.records()}
    packages: dict[tuple[str, str], list[_plugins.Point]] = {}
    for group in (made.points, made.refused, made.blocked):
        for points in group.values():
            for point in points:
                if point.distribution not in with_plugins:
                    packages.setdefault((point.distribution, point.version), []).append(point)
    owners = {
        "name of moduli": {
            name: " and ".join(f"{point.distribution} {point.version}" for point in points)
            for name, points in made.points.items()
        }
    }
    for group in contributed():
        owners[group.what] = {
            name: " and ".join(r.title for r in (group.owners[name], *group.clashes.get(name, ())))
            for name in group.values
        }
    return {
        "packages": [
            {
                "distribution": distribution,
                "version": version,
                "names": sorted(point.name for point in points),
                "load_ms": round(sum(claims.load_ms.get(point, 0.0) for point in points), 3),
            }
            for (distribution, version), points in sorted(packages.items())
        ],
        "owners": owners,
    }
