"""A set of plugins that is in force: one pluggy manager, and what a call has to know about it."""

from __future__ import annotations

import inspect
import threading
import warnings
import weakref
from collections.abc import Iterable
from typing import Any

import pluggy

from moduli._base.epoch import EPOCH
from moduli._base.hook_markers import PROJECT
from moduli._plugins import specs
from moduli._plugins.inspection import Plugin, check_arguments, check_hooks
from moduli._plugins.records import PluginRecord, is_reporting_only, quarantine, report

__all__ = ["PluginSet", "add_hookspecs", "switch_off"]

_AROUND_CALLS = ("moduli_before_call", "moduli_call_context", "moduli_after_call")
_lock = threading.RLock()
_sets: weakref.WeakSet[PluginSet] = weakref.WeakSet()


class Token:
    """Stands for plugins in the keys of compiled programs: one object for one tuple of plugins.

    It keeps no plugin alive. When one of them dies, no program with this token can be found any
    more, and those who keep some are told to forget them: a tool that is made anew for each call
    of a compiled function does not fill the memory with its programs.
    """

    __slots__ = ("_kept", "_users")

    def __init__(self) -> None:
        self._kept: list[Any] = []
        self._users: weakref.WeakSet[Any] = weakref.WeakSet()

    def used_by(self, keeper: Any) -> None:
        """Notes whose ``forget(token)`` to call when a plugin dies."""
        self._users.add(keeper)

    def keep(self, plugin: Any) -> None:
        """Keeps a plugin alive that cannot be referred to weakly, so that its id stays its own."""
        self._kept.append(plugin)

    def die(self) -> None:
        """Tells everybody to forget."""
        for keeper in list(self._users):
            keeper.forget(self)


_NO_PLUGINS = Token()
_tokens: dict[tuple[int, ...], Token] = {}


def _token(plugins: tuple[Any, ...]) -> Token:
    key = tuple(map(id, plugins))
    if not key:
        return _NO_PLUGINS
    token = _tokens.get(key)
    if token is None:
        token = _tokens[key] = Token()
        for plugin in plugins:
            try:
                weakref.finalize(plugin, _drop, key).atexit = False
            except TypeError:
                token.keep(plugin)
    return token


def _drop(key: tuple[int, ...]) -> None:
    token = _tokens.pop(key, None)
    if token is not None:
        token.die()


class _Manager(pluggy.PluginManager):
    """A manager of Plugins and Specs, which know already what they hold."""

    def parse_hookimpl_opts(self, plugin: Any, name: str) -> Any:
        return plugin.options.get(name)

    def parse_hookspec_opts(self, module_or_class: Any, name: str) -> Any:
        return self.declared.get(name)

    def declare(self, spec: specs.Spec) -> None:
        # whoever implements what is deprecated is warned once, not at each registration
        quiet = {"warn_on_impl": None, "warn_on_impl_args": None}
        self.declared = {name: {**given, **quiet} for name, given in spec.options.items()}
        self.add_hookspecs(spec.module)


class PluginSet:
    """The plugins in force in some context.

    pluggy calls what was registered last first, and ``tryfirst`` and ``trylast`` go before and
    after all others. Plugins are registered from the last to the first by (phase, name), so that
    is the order in which they run.

    Args:
      plugins: the plugins, in any order; those that are not active stay out.

    Attributes:
      hook: pluggy's hooks.
      wraps_calls: whether some plugin implements a hook around a module's call.
      watches_creation: whether some plugin implements moduli_module_created.
      around_methods: the implementations of moduli_call_context that take the method's name, which
        are asked for methods other than ``__call__`` too.
      watches_methods: whether there are some, or some of moduli_after_method.
      watches_writes: whether some plugin implements moduli_value_written.
      token: one object for all sets with the same plugins in programs; part of a program's key.
    """

    hook: Any
    wraps_calls: bool
    watches_creation: bool
    around_methods: tuple[tuple[Any, PluginRecord], ...]
    watches_methods: bool
    watches_writes: bool
    token: Token

    def __init__(self, plugins: Iterable[Plugin]):
        self.plugins = sorted(plugins, key=lambda p: (p.record.phase, p.record.name))
        with _lock:
            self.rebuild()
            _sets.add(self)

    def rebuild(self) -> None:
        """Registers the active plugins with the hooks that are declared now."""
        known = specs.hook_names()
        manager = _Manager(PROJECT)
        for spec in specs.specs():
            manager.declare(spec)
        for plugin in reversed(self.plugins):
            record = plugin.record
            if record.state != "active":
                continue
            try:
                check_hooks(
                    plugin, known, version=specs.version(), in_block=not record.distribution
                )
                taken = manager.has_plugin(record.name)
                check_arguments(plugin, manager.hook)
                manager.register(plugin, f"{record.name} ({id(plugin)})" if taken else record.name)
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                quarantine(record, "to register", error)
        self.hook = manager.hook
        self._implementations = {
            name: tuple(
                (impl, impl.plugin.record)
                for impl in reversed(getattr(manager.hook, name).get_hookimpls())
            )
            for name in {*known, *vars(manager.hook)}
            if not name.startswith("_")
        }
        in_programs = specs.in_programs()
        self.token = _token(
            tuple(
                plugin.source
                for plugin in self.plugins
                if plugin.record.state == "active" and in_programs.intersection(plugin.record.hooks)
            )
        )
        self.watches_creation = bool(self.implementations("moduli_module_created"))
        self.around_methods = tuple(
            (impl, record)
            for impl, record in self.implementations("moduli_call_context")
            if "method" in impl.argnames
        )
        self.watches_methods = bool(
            self.around_methods or self.implementations("moduli_after_method")
        )
        self.watches_writes = bool(self.implementations("moduli_value_written"))
        self.wraps_calls = any(map(self.implementations, _AROUND_CALLS))

    def deprecated(self) -> list[tuple[PluginRecord, Any, str, Warning]]:
        """Returns who implements what is deprecated: record, function, what, and its warning."""
        found = []
        for spec in specs.specs():
            for name, options in spec.options.items():
                whole = options.get("warn_on_impl")
                parts = options.get("warn_on_impl_args") or {}
                for impl, record in self.implementations(name) if whole or parts else ():
                    if whole:
                        found.append((record, impl.function, f"the hook {name}", whole))
                    for argument in set(parts).intersection(impl.argnames):
                        what = f"the argument {argument!r} of the hook {name}"
                        found.append((record, impl.function, what, parts[argument]))
        return found

    def warn_of_deprecated(self) -> None:
        """Warns at the lines of implementations of what is deprecated, once for each plugin."""
        for record, function, what, warning in () if is_reporting_only() else self.deprecated():
            if what not in record.warned_of:
                record.warned_of.add(what)
                code = inspect.unwrap(function).__code__
                warnings.warn_explicit(
                    f"{record.title} implements {what}: {warning}",
                    type(warning),
                    code.co_filename,
                    code.co_firstlineno,
                )

    def implementations(self, hook: str) -> tuple[tuple[Any, PluginRecord], ...]:
        """Returns (implementation, record) of a hook, in the order in which they run."""
        return self._implementations.get(hook, ())


def switch_off(record: PluginRecord, doing: str, error: BaseException) -> None:
    """Quarantines a plugin that failed in a hook, takes it out of every set, and reports it.

    Raises:
      PluginError: under ``MODULI_STRICT=1``.
    """
    quarantine(record, doing, error)
    _rebuild_where(lambda plugins: any(plugin.record is record for plugin in plugins.plugins))
    report([record])


def add_hookspecs(module: Any) -> None:
    """Declares more hooks, for extension packages that other plugins may extend.

    Args:
      module: a module (or object) with functions marked ``@moduli.hookspec``. A distribution that
        names the same module under the entry point group ``moduli.hookspecs`` lets plugins
        implement its hooks whatever is imported first. A tuple ``IN_PROGRAMS`` in the module lists
        those of its hooks whose work becomes part of compiled programs, so that switching a plugin
        that implements them compiles again.

    Raises:
      PluginError: if the module declares no hook, or one that is declared already.

    Example:
      >>> import moduli
      >>> from moduli import plugins
      >>> class Hooks:
      ...     @staticmethod
      ...     @moduli.hookspec
      ...     def moduli_example_greeting(name: str) -> str:
      ...         "Greets someone."
      >>> plugins.add_hookspecs(Hooks)
      >>> class Polite:
      ...     @moduli.hookimpl
      ...     def moduli_example_greeting(self, name):
      ...         return f"Good morning, {name}"
      >>> with moduli.using(Polite()):
      ...     plugins.collect("moduli_example_greeting", name="Ada")
      [('Polite', 'Good morning, Ada')]
    """
    if specs.declare(module):
        with _lock:  # sets from before `rediscover` know hooks that are to be declared anew
            hooks = {hook for record in _records() for hook in record.hooks}
        report(specs.declare_for(hooks))
        running = [record for record in _records() if record.state == "active"]
        _rebuild_where(lambda plugins: True)
        report(running)  # what had failed before was for others to report


def _records() -> list[PluginRecord]:
    return [plugin.record for plugins in list(_sets) for plugin in plugins.plugins]


def _rebuild_where(concerned: Any) -> None:
    with _lock:
        for plugins in list(_sets):
            if concerned(plugins):
                plugins.rebuild()
        EPOCH[0] += 1
