"""The command line: ``python -m moduli plugins`` and ``python -m moduli doctor``.

Both print plain text, or with ``--json`` one JSON object with stable keys.
"""

from __future__ import annotations

import argparse
import json
import platform
import warnings
from collections.abc import Sequence
from typing import Any

from moduli import _facade, _plugins, errors

__all__ = ["doctor", "main", "plugins"]

_LOCKSTEP = ("moduli", "moduli-layers", "moduli-debug", "moduli-train", "moduli-interop")
_NEEDED = ("jax", "jaxlib", "numpy", "pluggy")
_OPTIONAL = ("optax", "rich", "tqdm", "matplotlib", "treescope", "safetensors", "orbax-checkpoint")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
      argv: the arguments; by default those of the program.

    Returns:
      The exit status: 1 if ``doctor`` found problems, 2 for a wrong choice of plugins.
    """
    parser = argparse.ArgumentParser(prog="python -m moduli", description=__doc__)
    parser.add_argument(
        "-p",
        "--plugins",
        metavar="NAMES",
        dest="chosen",
        help="choose plugins as MODULI_PLUGINS does: 'a,b', 'none' or '-c' (write -p=-c)",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (
        ("plugins", "list installed plugins: hooks, order, load time, state"),
        ("doctor", "versions, devices, plugins and problems"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(argv)
    if options.chosen is not None:
        _plugins.select(options.chosen.lstrip("="))
    collect, render = (
        (plugins, _text_of_plugins)
        if options.command == "plugins"
        else (
            doctor,
            _text_of_doctor,
        )
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", _plugins.PluginWarning)  # the report says it
            report = collect()
    except errors.PluginError as error:
        print(f"error: {error}")
        return 2
    print(json.dumps(report, indent=2) if options.json else render(report))
    return 1 if report.get("problems") else 0


def plugins() -> dict[str, Any]:
    """Returns what ``python -m moduli plugins`` shows: plugins, and the order of each hook."""
    found = _plugins.discover()
    hooks = {
        name: [record.name for _, record in found.implementations(name)]
        for name in found.hook_names()
    }
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
            for record in _plugins.records()
        ],
        "hooks": hooks,
    }


def doctor() -> dict[str, Any]:
    """Returns what ``python -m moduli doctor`` shows: versions, devices, plugins, problems."""
    import jax

    versions = {name: _version(name) for name in (*_LOCKSTEP, *_NEEDED, *_OPTIONAL)}
    report: dict[str, Any] = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": versions,
        "devices": [],
        "problems": [],
    }
    problems: list[str] = report["problems"]
    try:
        report["devices"] = [
            {"id": device.id, "platform": device.platform, "kind": device.device_kind}
            for device in jax.devices()
        ]
    except RuntimeError as error:
        problems.append(f"JAX finds no device: {error}")
    report.update(plugins())
    own = {name: versions[name] for name in _LOCKSTEP if versions[name]}
    if len(set(own.values())) > 1:
        listed = ", ".join(f"{name} {version}" for name, version in own.items())
        problems.append(
            f"the moduli packages have different versions ({listed}); install them together: "
            'pip install --upgrade "moduli[all]"'
        )
    for name, owners in _facade.clashes().items():
        problems.append(f"moduli.{name} is claimed by {' and by '.join(owners)}")
    for record in _plugins.records():
        if record.state == "quarantined":
            problems.append(f"{record.title} failed {record.cause}")
    return report


def _version(distribution: str) -> str | None:
    import importlib.metadata

    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _text_of_plugins(report: dict[str, Any]) -> str:
    lines = []
    for plugin in report["plugins"]:
        where = f"{plugin['distribution']} {plugin['version']}"
        lines.append(
            f"{plugin['name']:<12} {plugin['state']:<12} {plugin['load_ms']:7.1f} ms  {where}"
        )
        if plugin["hooks"]:
            lines.append(f"{'':<13}hooks: {', '.join(plugin['hooks'])}")
        if plugin["cause"]:
            lines.append(f"{'':<13}failed {plugin['cause']}")
    if not lines:
        lines.append('no plugins are installed; pip install "moduli[all]" brings moduli\'s own')
    lines.append("")
    lines.append("order of each hook:")
    for name, order in report["hooks"].items():
        lines.append(f"  {name:<26} {', '.join(order) or '-'}")
    return "\n".join(lines)


def _text_of_doctor(report: dict[str, Any]) -> str:
    lines = [f"python {report['python']} on {report['platform']}", "", "versions:"]
    for name, version in report["versions"].items():
        lines.append(f"  {name:<18} {version or 'not installed'}")
    lines.append("")
    lines.append("devices:")
    for device in report["devices"]:
        lines.append(f"  {device['platform']}:{device['id']} {device['kind']}")
    lines.extend(["", "plugins:", *("  " + x for x in _text_of_plugins(report).splitlines()), ""])
    if report["problems"]:
        lines.append(f"{len(report['problems'])} problem(s):")
        lines.extend(f"  - {problem}" for problem in report["problems"])
    else:
        lines.append("no problems found")
    return "\n".join(lines)
