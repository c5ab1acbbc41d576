"""What is installed: the reports that the command line prints, as data and as text."""

from __future__ import annotations

import collections
import platform
import textwrap
from typing import Any

from moduli import _plugins, errors
from moduli._facade import claims, resolve
from moduli._facade.owners import contributed, owners_of_names

__all__ = ["doctor", "plugins", "text_of_doctor", "text_of_plugins"]

_LOCKSTEP = ("moduli", "moduli-layers", "moduli-debug", "moduli-train", "moduli-interop")
_SLOW_MS = 100
_NEEDED = ("jax", "jaxlib", "numpy", "pluggy")
_OPTIONAL = (
    "optax",
    "tqdm",
    "rich",
    "matplotlib",
    "treescope",
    "safetensors",
    "orbax-checkpoint",
    "flax",
    "equinox",
    "torch",
)


def plugins() -> dict[str, Any]:
    """Returns what ``python -m moduli plugins`` shows: plugins, and the order of each hook."""
    found = _plugins.discover()
    failed_specs = _plugins.declare_all()
    owners = owners_of_names()  # first: a plugin may fail in the hooks that it asks
    return {
        "plugins": [
            {
                "name": record.name,
                "distribution": record.distribution,
                "version": record.version,
                "target": record.target,
                "state": record.state,
                "phase": record.phase,
                "hooks": list(record.hooks),
                "load_ms": round(record.load_ms, 3),
                "cause": record.cause,
            }
            for record in (*_plugins.records(), *failed_specs)
        ],
        "hooks": {
            name: [record.name for _, record in found.implementations(name)]
            for name in _plugins.hook_names()
        },
        "hook_version": ".".join(map(str, _plugins.version())),
        **owners,
    }


def doctor() -> dict[str, Any]:
    """Returns what ``python -m moduli doctor`` shows: versions, devices, plugins, problems."""
    versions = {name: _version(name) for name in (*_LOCKSTEP, *_NEEDED, *_OPTIONAL)}
    devices, problems = _devices()
    dead = _names_that_fail()
    report = plugins()
    problems += _mixed_versions({name: versions[name] for name in _LOCKSTEP if versions[name]})
    problems += [
        f"the {_title(plugin)} failed {plugin['cause']}"
        for plugin in report["plugins"]
        if plugin["state"] == "quarantined"
    ]
    problems += _same_names(report["plugins"])
    problems += _burdens(report["plugins"])
    problems += [
        made.problem(name) for made in contributed() for name in (*made.refused, *made.clashes)
    ]
    problems += dead
    problems += [
        f"the {record.title} implements what is deprecated, {what}: {warning}"
        for record, _, what, warning in _plugins.discover().deprecated()
    ]
    problems += [
        f"moduli.{name} is claimed by {' and by '.join(owners)}"
        for name, owners in resolve.clashes().items()
    ]
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": versions,
        "devices": devices,
        **report,
        "problems": problems,
    }


def _burdens(found: list[dict[str, Any]]) -> list[str]:
    """Plugins of others that are slow to import, or that nothing calls."""
    problems = []
    for plugin in found:
        if plugin["state"] != "active" or _plugins.canonical(plugin["distribution"]) in _LOCKSTEP:
            continue
        if plugin["load_ms"] > _SLOW_MS:
            problems.append(
                f"the {_title(plugin)} took {plugin['load_ms']:.0f} ms to import "
                f"({plugin['target']}), in every program that makes a module; it should import "
                f"what is heavy in its hooks, and take less than {_SLOW_MS} ms"
            )
        if not plugin["hooks"]:
            problems.append(
                f"the {_title(plugin)} implements no hook ({plugin['target']}); its functions "
                "need the mark @moduli.hookimpl, or its entry point another target"
            )
    return problems


def _names_that_fail() -> list[str]:
    """Names that others declare and that do not load."""
    problems = []
    for points in claims.claims().points.values():
        if len(points) == 1 and _plugins.canonical(points[0].distribution) not in _LOCKSTEP:
            try:
                claims.load(points[0])
            except errors.BrokenNameError as error:
                problems.append(str(error))
    return problems


def _title(plugin: dict[str, Any]) -> str:
    where = f"{plugin['distribution']} {plugin['version']}".rstrip()
    if not plugin["name"]:
        return f"distribution {where}"
    return f"plugin {plugin['name']!r} of {where}"


def _devices() -> tuple[list[dict[str, Any]], list[str]]:
    import jax

    try:
        devices = jax.devices()
    except Exception as error:  # JAX, too, reads entry points: a damaged one stops it
        return [], [f"JAX finds no device: {type(error).__name__}: {error}"]
    return [{"id": d.id, "platform": d.platform, "kind": d.device_kind} for d in devices], []


def _mixed_versions(versions: dict[str, str | None]) -> list[str]:
    if len(set(versions.values())) < 2:
        return []
    listed = ", ".join(f"{name} {version}" for name, version in versions.items())
    return [
        f"the moduli packages have different versions ({listed}); install them together: "
        'pip install --upgrade "moduli[all]"'
    ]


def _same_names(found: list[dict[str, Any]]) -> list[str]:
    owners = collections.defaultdict(list)
    for plugin in found:
        owners[plugin["name"]].append(f"{plugin['distribution']} ({plugin['target']})")
    return [
        f"the plugin name {name!r} is used by {' and by '.join(who)}; MODULI_PLUGINS cannot tell "
        "them apart"
        for name, who in owners.items()
        if name and len(who) > 1
    ]


def _version(distribution: str) -> str | None:
    import importlib.metadata

    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def text_of_plugins(report: dict[str, Any]) -> str:
    """Formats the report on plugins for people."""
    lines = []
    for plugin in report["plugins"]:
        where = f"{plugin['distribution']} {plugin['version']}"
        cost = "" if plugin["state"] == "blocked" else f"{plugin['load_ms']:.1f} ms"
        lines.append(f"{plugin['name'] or '-':<12} {plugin['state']:<12} {cost:>10}  {where}")
        if plugin["hooks"]:
            lines.append(f"{'':<13}hooks: {', '.join(plugin['hooks'])}")
        if plugin["phase"]:
            lines.append(f"{'':<13}phase: {plugin['phase']}")
        if plugin["cause"]:
            lines.append(f"{'':<13}failed {plugin['cause']}")
    for package in report["packages"]:
        where = f"{package['distribution']} {package['version']}"
        cost = f"{package['load_ms']:.1f} ms" if package["load_ms"] else ""
        lines.append(f"{'-':<12} {'names only':<12} {cost:>10}  {where}")
        lines.append(f"{'':<13}names: {', '.join(package['names'])}")
    if not lines:
        lines.append('no plugins are installed; pip install "moduli[all]" brings moduli\'s own')
    version = report["hook_version"]
    lines += ["", f"hooks of version {version}; each runs these plugins, in this order:"]
    for name, order in report["hooks"].items():
        lines.append(f"  {name:<26} {', '.join(order) or '-'}")
    for what, owners in report["owners"].items():
        lines += ["", f"whose each {what} is:"]
        by_owner: dict[str, list[str]] = {}
        for name, owner in owners.items():
            by_owner.setdefault(owner, []).append(name)
        for owner, names in by_owner.items():
            lines += textwrap.wrap(
                f"{owner}: {', '.join(names)}", 96, initial_indent="  ", subsequent_indent="    "
            )
    return "\n".join(lines)


def text_of_doctor(report: dict[str, Any]) -> str:
    """Formats the report on everything for people."""
    lines = [f"python {report['python']} on {report['platform']}", "", "versions:"]
    for name, version in report["versions"].items():
        lines.append(f"  {name:<18} {version or 'not installed'}")
    lines += ["", "devices:"]
    lines += [f"  {d['platform']}:{d['id']} {d['kind']}" for d in report["devices"]] or ["  none"]
    lines += ["", "plugins:"]
    lines += [f"  {line}".rstrip() for line in text_of_plugins(report).splitlines()]
    lines += ["", f"{len(report['problems'])} problem(s) found" + ":" * bool(report["problems"])]
    lines += [f"  - {problem}" for problem in report["problems"]]
    return "\n".join(lines)
