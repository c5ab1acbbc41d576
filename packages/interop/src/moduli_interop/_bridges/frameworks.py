"""Finds the bridges that plugins contribute, and imports a framework when it is used."""

from __future__ import annotations

import difflib
import importlib
import warnings
from collections.abc import Callable, Iterable
from typing import Any

from moduli import List, plugins
from moduli_interop._bridges.bridge import Bridge, Conversion, LayerRule
from moduli_interop._bridges.errors import BridgeError, MissingFrameworkError

__all__ = ["from_framework", "import_framework", "rules_of", "to_framework"]

_INSTEAD = (
    "put a layer that has one in its place, or add a rule for the class with the hook "
    "moduli_bridges (docs/bridges.md)"
)


def import_framework(package: str, extra: str) -> Any:
    """Imports a framework.

    Args:
      package: the module to import.
      extra: the extra of moduli-interop that installs it.

    Raises:
      MissingFrameworkError: it is not installed; the text is the command that installs it.
    """
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name is None or not package.startswith(error.name):
            raise
        raise MissingFrameworkError(
            f'{package} is not installed: pip install "moduli-interop[{extra}]"', name=error.name
        ) from error


def bridges(framework: str) -> list[tuple[plugins.PluginRecord, Bridge]]:
    """Returns the bridges of one framework, each with its plugin; ours first.

    Raises:
      BridgeError: no plugin knows the framework.
    """
    made = plugins.contributions("bridge", "moduli_bridges", _by_identity)
    found: dict[str, list[tuple[plugins.PluginRecord, Bridge]]] = {}
    for key in sorted(made.values, key=lambda key: not made.is_ours(key)):
        bridge = made.values[key]
        found.setdefault(bridge.framework, []).append((made.owners[key], bridge))
    if framework not in found:
        near = difflib.get_close_matches(framework, found, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {sorted(found)}"
        raise BridgeError(f"no plugin has a bridge to {framework!r}; {hint}")
    return found[framework]


def _by_identity(contributed: Iterable[Bridge]) -> dict[Any, Bridge]:
    return {str(id(bridge)): bridge for bridge in contributed}  # several may have one framework


def rules_of(framework: str) -> list[LayerRule]:
    """Returns the rules of all bridges of one framework.

    The classes that our own bridges convert are reserved: an installed plugin's rule for one is
    left out, with a warning, and so is an installed plugin's bridge that fails beside ours.

    Raises:
      BridgeError: no plugin knows the framework, or two others convert the same class.
      MissingFrameworkError: it is not installed.
    """
    rules: list[LayerRule] = []
    owners: dict[tuple[str, type], plugins.PluginRecord] = {}
    for plugin, bridge in bridges(framework):
        is_guest = bool(rules and plugin.distribution)
        try:
            found = _rules(bridge)
        except Exception as error:
            if not is_guest:
                raise
            _leave_out(plugin, f"its bridge to {framework}", f"{type(error).__name__}: {error}")
            continue
        for rule in found:
            clash = _claimed(rule, plugin, owners)
            if clash is None:
                rules.append(rule)
                continue
            way, cls = clash
            owner = owners[clash]
            if owner.distribution == "moduli-interop" and plugin.distribution:
                name = f"{cls.__module__}.{cls.__qualname__}"
                _leave_out(plugin, f"its rule for {name}", f"the {owner.title} converts that")
                continue
            raise BridgeError(
                f"the plugins {owner.name!r} and {plugin.name!r} both convert {cls.__module__}."
                f"{cls.__qualname__} {way} {framework}; switch one of them off with "
                f"MODULI_PLUGINS=-{plugin.name}"
            )
    return rules


def _rules(bridge: Bridge) -> list[LayerRule]:
    try:
        importlib.import_module(bridge.package)
    except ModuleNotFoundError as error:
        raise MissingFrameworkError(
            f"{bridge.package} is not installed: pip install {bridge.install}", name=error.name
        ) from error
    return list(bridge.rules())


def _claimed(
    rule: LayerRule,
    plugin: plugins.PluginRecord,
    owners: dict[tuple[str, type], plugins.PluginRecord],
) -> tuple[str, type] | None:
    """Notes what a rule converts; returns what another plugin's rule converts already."""
    claims = [
        (way, cls)
        for way, cls in (("from", rule.theirs), ("to", rule.ours))
        if getattr(rule, f"{way}_theirs") is not None
    ]
    for claim in claims:
        if owners.get(claim, plugin) is not plugin:
            return claim
    owners.update(dict.fromkeys(claims, plugin))
    return None


def _leave_out(plugin: plugins.PluginRecord, what: str, why: str) -> None:
    warnings.warn(
        f"of the {plugin.title}, {what} is left out: {why}. MODULI_PLUGINS=-{plugin.name} leaves "
        "all of it out",
        plugins.PluginWarning,
        stacklevel=4,
    )


def makers(framework: str, way: str) -> dict[type, Callable[[Any, Conversion], Any]]:
    """Returns what converts a class; of two rules for one class the first."""
    found: dict[type, Callable[[Any, Conversion], Any]] = {}
    for rule in rules_of(framework):
        maker = rule.from_theirs if way == "from" else rule.to_theirs
        if maker is not None:
            found.setdefault(rule.theirs if way == "from" else rule.ours, maker)
    return found


def from_framework(framework: str, model: Any, **options: Any) -> Any:
    """Converts a model of another framework to one of ours.

    Args:
      framework: its name, of a plugin's :class:`Bridge`.
      model: a layer, or lists, tuples and dicts of layers.
      **options: of :class:`Conversion`.

    Returns:
      Our layers, in the same containers.

    Raises:
      BridgeError: a part has no counterpart; the text says which, and where.
      MissingFrameworkError: the framework is not installed.
    """
    options = {"wanted": "layer of moduli", "advice": _INSTEAD, **options}
    return Conversion(framework, makers(framework, "from"), **options)(model)


def to_framework(framework: str, model: Any, **options: Any) -> Any:
    """Converts a model of ours to one of another framework.

    Args:
      framework: its name, of a plugin's :class:`Bridge`.
      model: a layer, or lists, tuples and dicts of layers.
      **options: of :class:`Conversion`.

    Returns:
      Their layers, in the same containers.

    Raises:
      BridgeError: a part has no counterpart; the text says which, and where.
      MissingFrameworkError: the framework is not installed.
    """
    options = {"wanted": f"layer of {framework}", "advice": _INSTEAD, **options}
    found = makers(framework, "to")
    found.setdefault(List, lambda part, convert: [convert(x, n) for n, x in enumerate(part)])
    return Conversion(framework, found, **options)(model)
