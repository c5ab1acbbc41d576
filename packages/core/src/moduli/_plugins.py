"""STOPGAP until the plugin helper lands the package `_plugins/` (which shadows this file)."""
from __future__ import annotations
import contextlib
import importlib.metadata
from typing import Any
import pluggy
from moduli import errors

hookspec = pluggy.HookspecMarker("moduli")
hookimpl = pluggy.HookimplMarker("moduli")
_specs: list[Any] = []
_set: Any = None


class _Specs:
    @hookspec
    def moduli_variable_names(self): ...
    @hookspec
    def moduli_module_created(self, module): ...
    @hookspec
    def moduli_mode_attributes(self, mode): ...
    @hookspec
    def moduli_before_call(self, module, args, kwargs): ...
    @hookspec
    def moduli_after_call(self, module, args, kwargs, output): ...
    @hookspec(firstresult=True)
    def moduli_sow(self, module, variable_type, name, value, reduce_fn, init_fn): ...
    @hookspec(firstresult=True)
    def moduli_perturb(self, module, name, value, variable_type): ...


class PluginSet:
    wraps_calls = False
    watches_creation = False
    token = "none"

    def __init__(self):
        self.manager = pluggy.PluginManager("moduli")
        self.manager.add_hookspecs(_Specs)
        for spec in _specs:
            self.manager.add_hookspecs(spec)
        for ep in sorted(importlib.metadata.entry_points(group="moduli"), key=lambda e: e.name):
            with contextlib.suppress(ImportError):
                self.manager.register(ep.load(), ep.name)
        self.hook = self.manager.hook


def active():
    global _set
    if _set is None:
        _set = PluginSet()
    return _set


def add_hookspecs(module):
    _specs.append(module)
    if _set is not None:
        _set.manager.add_hookspecs(module)


def instrumented():
    return False


def watches_creation():
    return False


def module_created(module): ...


def call_module(module, function, args, kwargs):
    return function(module, *args, **kwargs)


def collect(hook_name, /, **kwargs):
    caller = getattr(active().hook, hook_name)
    return [(i.plugin_name, i.function(**{k: kwargs[k] for k in i.argnames})) for i in caller.get_hookimpls()]


def call_first(hook_name, /, **kwargs):
    result = getattr(active().hook, hook_name)(**kwargs)
    if result is None:
        raise errors.MissingPluginError('install the plugin: pip install "moduli[debug]"')
    return result


@contextlib.contextmanager
def using(*plugins):
    manager = active().manager
    for p in plugins:
        manager.register(p)
    try:
        yield
    finally:
        for p in plugins:
            manager.unregister(p)
