"""A set of plugins that is in force: one pluggy manager, and what a call has to know about it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

import pluggy

from moduli import errors
from moduli._plugins.markers import PROJECT
from moduli._plugins.records import PluginRecord, quarantine

__all__ = ["PluginSet"]

_WRAPPING = ("moduli_before_call", "moduli_after_call")
_INSTRUMENTING = (*_WRAPPING, "moduli_sow", "moduli_perturb")  # what they do is in the program
_NOTHING = object()
_tokens: dict[Any, Any] = {}


def _token(plugins: tuple[Any, ...]) -> Any:
    """Returns one object for equal tuples of instrumenting plugins; it keys compiled programs."""
    key = tuple(map(id, plugins))
    known = _tokens.get(key)
    if known is None:
        known = _tokens[key] = (_NOTHING, plugins)  # keeps the plugins alive, so ids stay theirs
    return key


class PluginSet:
    """The plugins in force in some context.

    Args:
      specs: modules that declare hooks.
      plugins: pairs (plugin, record); they run by (phase, name).

    Attributes:
      manager: pluggy's plugin manager.
      hook: its hooks.
      wraps_calls: whether some plugin implements moduli_before_call or moduli_after_call.
      watches_creation: whether some plugin implements moduli_module_created.
      token: equal for sets with the same instrumenting plugins; part of a program's key.
    """

    def __init__(self, specs: Iterable[Any], plugins: Iterable[tuple[Any, PluginRecord]]):
        self.specs = list(specs)
        self.manager = pluggy.PluginManager(PROJECT)
        for spec in self.specs:
            self.manager.add_hookspecs(spec)
        self.records: dict[int, PluginRecord] = {}
        self.plugins: list[tuple[Any, PluginRecord]] = []
        ordered = sorted(plugins, key=lambda item: (_phase(item[0]), item[1].name))
        for plugin, record in reversed(ordered):  # pluggy runs the last registered first
            if record.state == "active":
                self._register(plugin, record)
        self.plugins.reverse()
        self.hook = self.manager.hook
        self.refresh()

    def _register(self, plugin: Any, record: PluginRecord) -> None:
        record.phase = _phase(plugin)
        try:
            self.manager.register(plugin, name=f"{record.name}#{id(plugin)}")
            self._check_names(plugin, record)
        except Exception as error:
            if self.manager.is_registered(plugin):
                self.manager.unregister(plugin)
            quarantine(record, "to register", error)
            return
        record.hooks = tuple(sorted(c.name for c in self.manager.get_hookcallers(plugin) or ()))
        self.records[id(plugin)] = record
        self.plugins.append((plugin, record))

    def _check_names(self, plugin: Any, record: PluginRecord) -> None:
        """Raises for a misspelt hook: an implementation of a ``moduli_`` hook nobody declares."""
        known = set(self.hook_names())
        for caller in self.manager.get_hookcallers(plugin) or ():
            name = caller.name
            mine = [impl for impl in caller.get_hookimpls() if impl.plugin is plugin]
            if caller.has_spec() or any(impl.optionalhook for impl in mine):
                continue
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known hooks: {sorted(known)}"
            raise errors.PluginError(
                f"it implements {name!r}, which is no hook; {hint} (mark it "
                "@moduli.hookimpl(optionalhook=True) if another package declares it)"
            )

    def hook_names(self) -> list[str]:
        """Returns the declared hooks, in the order in which they were declared."""
        callers = vars(self.manager.hook).values()
        return [c.name for c in callers if isinstance(c, pluggy.HookCaller) and c.has_spec()]

    def refresh(self) -> None:
        """Works out what calls need to know, after plugins have come or gone."""
        self.wraps_calls = any(map(self._implementations, _WRAPPING))
        self.watches_creation = bool(self._implementations("moduli_module_created"))
        instrumenting = tuple(
            plugin
            for plugin, record in self.plugins
            if record.state == "active" and any(hook in record.hooks for hook in _INSTRUMENTING)
        )
        self.token = _token(instrumenting)

    def _implementations(self, hook: str) -> list[Any]:
        caller = getattr(self.manager.hook, hook, None)
        return [] if caller is None else list(reversed(caller.get_hookimpls()))

    def implementations(self, hook: str) -> list[tuple[Any, PluginRecord]]:
        """Returns (implementation, record) of a hook, in the order in which they run."""
        return [(impl, self.records[id(impl.plugin)]) for impl in self._implementations(hook)]

    def drop(self, record: PluginRecord, doing: str, error: BaseException) -> None:
        """Quarantines a plugin and takes it out of this set."""
        quarantine(record, doing, error)
        for plugin, known in self.plugins:
            if known is record and self.manager.is_registered(plugin):
                self.manager.unregister(plugin)
        self.plugins = [item for item in self.plugins if item[1] is not record]
        self.refresh()


def _phase(plugin: Any) -> int:
    phase = getattr(plugin, "moduli_phase", 0)
    return phase if isinstance(phase, int) else 0
