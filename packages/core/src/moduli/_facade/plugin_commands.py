"""``python -m moduli plugins order HOOK`` and ``plugins trace -- SCRIPT``."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence
from typing import Any

from moduli import _plugins, errors
from moduli._facade import run_program

__all__ = ["order", "text_of_order", "trace"]


def order(hook: str) -> dict[str, Any]:
    """Returns who implements a hook, in the order in which they run.

    Raises:
      PluginError: there is no such hook.
    """
    found = _plugins.discover()
    _plugins.declare_all()
    known = _plugins.hook_names()
    name = hook if hook in known else f"moduli_{hook}"
    if name not in known:
        near = difflib.get_close_matches(hook, [*known, *(k[7:] for k in known)], n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"hooks are {', '.join(known)}"
        raise errors.PluginError(f"there is no hook {hook!r}; {hint}")
    return {
        "hook": name,
        "order": [
            {
                "name": record.name,
                "distribution": record.distribution,
                "version": record.version,
                "phase": record.phase,
                "first_or_last": "first" if impl.tryfirst else "last" if impl.trylast else "",
            }
            for impl, record in found.implementations(name)
        ],
    }


def text_of_order(report: dict[str, Any]) -> str:
    """Formats the order for people."""
    if not report["order"]:
        return f"no plugin implements {report['hook']}"
    lines = [f"{report['hook']} runs, in this order:"]
    for number, plugin in enumerate(report["order"], 1):
        where = f"{plugin['distribution']} {plugin['version']}"
        why = f"try{plugin['first_or_last']}" if plugin["first_or_last"] else ""
        why = why or f"phase {plugin['phase']}"
        lines.append(f"  {number}. {plugin['name']:<12} {why:<10} {where}")
    return "\n".join(lines)


def trace(target: str, arguments: Sequence[str], *, as_module: bool = False) -> None:
    """Runs a program, then prints to stderr what each plugin did in it, however it ends."""
    with _plugins.tracing() as lines:
        try:
            run_program.run(target, arguments, as_module=as_module)
        finally:
            sys.stderr.write(_text(list(lines.values())) + "\n")


def _text(lines: list[_plugins.TraceLine]) -> str:
    if not lines:
        return "\nno plugin was called"
    text = ["", "what plugins did in this run:"]
    for line in sorted(lines, key=lambda line: (line.plugin, line.hook)):
        failed = f", {line.failures} failed" if line.failures else ""
        text.append(
            f"  {line.plugin}: {line.hook}: {line.calls} calls, {line.changes} changed something"
            f"{failed}, {line.ms:.1f} ms"
        )
        text += [f"    {example}" for example in line.examples]
    return "\n".join(text)
