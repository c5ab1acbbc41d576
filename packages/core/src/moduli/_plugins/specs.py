"""Which hooks there are: core's, those that packages add, those that installed packages declare."""

from __future__ import annotations

import functools
import importlib
import inspect
import threading
from collections.abc import Iterable
from typing import Any, NamedTuple

import pluggy

from moduli import errors
from moduli._base.hook_markers import PROJECT
from moduli._plugins.entry_points import installed, load, record_of
from moduli._plugins.records import PluginRecord, quarantine

__all__ = [
    "Spec",
    "declare",
    "declare_all",
    "declare_for",
    "forget_installed",
    "hook_names",
    "in_programs",
    "named_hooks",
    "specs",
    "version",
]

GROUP = "moduli.hookspecs"


class Spec(NamedTuple):
    """A module of hooks.

    Attributes:
      module: the module.
      options: pluggy's options by the name of the hook, in the order of lines.
    """

    module: Any
    options: dict[str, Any]


_lock = threading.RLock()
_parser = pluggy.PluginManager(PROJECT)  # only reads marks; nothing is registered with it
_added: list[Spec] = []
_installed: list[Spec] | None = None  # None: not looked for yet


def specs() -> list[Spec]:
    """Returns the modules that declare hooks; core's first."""
    return [_core(), *(_installed or ()), *_added]


def declare(module: Any) -> bool:
    """Adds a module of hooks; says whether it is new.

    Raises:
      PluginError: if it declares no hook, or one that another module declares.
    """
    with _lock:
        spec = _checked(module)
        if spec is not None:
            _added.append(spec)
        return spec is not None


def declare_for(hooks: Iterable[str]) -> list[PluginRecord]:
    """Declares what installed packages declare, if some of these hooks are unknown so far."""
    return declare_all() if set(hooks) - set(hook_names()) else []


def declare_all() -> list[PluginRecord]:
    """Declares the hooks that installed packages name under ``moduli.hookspecs``.

    Returns:
      Records of the packages that failed.
    """
    global _installed
    if _installed is not None:
        return []
    failed: list[PluginRecord] = []
    loaded = []
    scan = installed(GROUP)
    failed += scan.damaged
    for point in scan.points:
        record = record_of(point)
        loaded.append((load(point, record), record))
    with _lock:
        _installed = []
        for module, record in loaded:
            try:
                spec = _checked(module) if record.state == "active" else None
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                quarantine(record, "to declare hooks", error)
                spec = None
            if spec is not None:
                _installed.append(spec)
            if record.state == "quarantined":
                failed.append(record)
    return failed


def forget_installed() -> None:
    """Looks for installed packages' hooks anew at the next need; what was declared stays."""
    global _installed
    _installed = None


def hook_names() -> list[str]:
    """Returns the declared hooks, file by file, in the order of their lines."""
    return [name for spec in specs() for name in spec.options]


def named_hooks() -> dict[str, str]:
    """Returns the hooks whose results have a ``name`` each, and what they are (``BY_NAME``)."""
    found: dict[str, str] = {}
    for spec in specs():
        found.update(getattr(spec.module, "BY_NAME", {}))
    return found


def version() -> tuple[int, int]:
    """Returns the version of core's hooks."""
    return _core().module.VERSION


def in_programs() -> set[str]:
    """Returns the hooks whose work becomes part of compiled programs (``IN_PROGRAMS``)."""
    return {name for spec in specs() for name in getattr(spec.module, "IN_PROGRAMS", ())}


@functools.cache
def _core() -> Spec:
    # needs this package's marks; asked of moduli itself, it would come through the lazy facade
    return _read(importlib.import_module("moduli.hookspecs"))


def _checked(module: Any) -> Spec | None:
    spec = _read(module)
    if not spec.options:
        raise errors.PluginError(
            f"{_title(module)} declares no hook: mark its functions with @moduli.hookspec"
        )
    for known in specs():
        if known.module is module:
            return None
        for name in spec.options:
            if name in known.options:
                raise errors.PluginError(
                    f"{_title(module)} declares the hook {name!r}, which {_title(known.module)} "
                    "declares already; give it another name"
                )
    return spec


def _read(module: Any) -> Spec:
    options = {name: _parser.parse_hookspec_opts(module, name) for name in dir(module)}
    names = [name for name in options if options[name] is not None]
    names.sort(key=lambda name: inspect.unwrap(getattr(module, name)).__code__.co_firstlineno)
    return Spec(module, {name: options[name] for name in names})


def _title(module: Any) -> str:
    return getattr(module, "__name__", None) or type(module).__name__
