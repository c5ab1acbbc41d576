"""What a plugin implements: reads an object or a module once, and says what is wrong with it."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Collection
from typing import Any

import pluggy

from moduli import errors
from moduli._base.hook_markers import PROJECT
from moduli._plugins.records import PluginRecord, quarantine

__all__ = ["Plugin", "check_arguments", "check_hooks"]

_parser = pluggy.PluginManager(PROJECT)  # only reads marks; nothing is registered with it


class Plugin:
    """A plugin object, its record, and its hook functions, as they are registered with pluggy.

    pluggy compares plugins with ``==`` and reads every attribute at each registration; this stands
    in for the object, is equal to nothing but itself, and lists no attributes but hooks.

    Args:
      source: a module or an object with functions marked ``@moduli.hookimpl``.
      record: where it comes from; gets the hooks and the phase.

    Attributes:
      options: pluggy's options of each function, by the attribute that holds it.
      wanted: the version of core's hooks for which it says it was written, or None.
      unmarked: its functions that are named like hooks and have no mark.
    """

    def __init__(self, source: Any, record: PluginRecord):
        self.source = source
        self.record = record
        self.options: dict[str, Any] = {}
        self.wanted: Any = None
        self.unmarked: list[str] = []
        try:
            for name in dir(source):
                if not name.startswith("__"):
                    self._read(name)
            record.hooks = tuple(sorted(o["specname"] for o in self.options.values()))
            record.phase = _phase(source)
            self.wanted = getattr(source, "moduli_hook_version", None)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            quarantine(record, "to register", error)

    def _read(self, name: str) -> None:
        options = _marks(self.source, name)
        if options is not None:
            _check_bound(self.source, name)
            key = f"hook {name}"  # no attribute of this class is named so
            self.options[key] = {**options, "specname": options["specname"] or name}
            setattr(self, key, getattr(self.source, name))
        elif name.startswith("moduli_") and _is_unmarked(self.source, name):
            self.unmarked.append(name)

    def __dir__(self) -> list[str]:
        return list(self.options)


def check_hooks(
    plugin: Plugin,
    known: Collection[str],
    *,
    version: tuple[int, int] = (1, 0),
    in_block: bool = False,
) -> None:
    """Raises for what pluggy would accept in silence.

    Args:
      plugin: the plugin.
      known: the names of all declared hooks.
      version: of core's hooks.
      in_block: whether the program itself turns the plugin on, so that it should have hooks.

    Raises:
      PluginError: for a misspelt hook, a hook without its mark, a wrapper, or no hooks at all.
    """
    if plugin.wanted is not None:
        _check_version(plugin.wanted, version)
    for options in plugin.options.values():
        hook = options["specname"]
        if hook not in known and not options["optionalhook"]:
            raise errors.PluginError(
                f"it implements {hook!r}, which is no hook; {_near(hook, known)} (mark it "
                "@moduli.hookimpl(optionalhook=True) if a package that may be missing declares it)"
            )
        if options["wrapper"] or options["hookwrapper"]:
            raise errors.PluginError(
                f"its {hook!r} is a wrapper, which moduli's hooks do not have: implement "
                "moduli_before_call and moduli_after_call, or a hook of an earlier moduli_phase"
            )
    for name in plugin.unmarked:
        if name in known:
            raise errors.PluginError(f"its function {name!r} is not marked @moduli.hookimpl")
    if in_block and not plugin.options:
        raise errors.PluginError(
            "it implements no hook; mark its functions with @moduli.hookimpl (the hooks are "
            "listed in moduli.hookspecs)"
        )


def check_arguments(plugin: Plugin, hook: Any) -> None:
    """Raises for an argument that a hook does not give, and for a method without ``self``.

    Args:
      plugin: the plugin.
      hook: pluggy's callers of the declared hooks.

    Raises:
      PluginError: with the arguments that there are.
    """
    for attribute, options in plugin.options.items():
        name = options["specname"]
        spec = getattr(getattr(hook, name, None), "spec", None)
        if spec is None:
            continue
        function = getattr(plugin, attribute)
        own = _needed(function.__func__)[:1] if inspect.ismethod(function) else []
        if own and own[0] in spec.argnames:
            raise errors.PluginError(
                f"the first argument of its {name!r} is {own[0]!r}, and a method's first argument "
                f"is its object: write `def {name}(self, {own[0]}, ...)`"
            )
        for argument in _needed(function):
            if argument not in spec.argnames:
                near = difflib.get_close_matches(argument, spec.argnames, n=1)
                raise errors.PluginError(
                    f"its {name!r} takes {argument!r}, which that hook does not give; "
                    + (f"did you mean {near[0]!r}? " if near else "")
                    + f"It may take {', '.join(spec.argnames) or 'no argument'}"
                )


def _needed(function: Any) -> list[str]:
    """The arguments without a default, which pluggy gives by name."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # pluggy says what is wrong
        return []
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.POSITIONAL_ONLY)
    return [p.name for p in parameters if p.kind in kinds and p.default is p.empty]


def _check_version(wanted: Any, version: tuple[int, int]) -> None:
    numbers = (wanted,) if isinstance(wanted, int) else wanted
    is_version = isinstance(numbers, tuple) and numbers and all(type(n) is int for n in numbers)
    if not is_version:
        raise errors.PluginError(
            f"its moduli_hook_version is {wanted!r}; write one as moduli.hookspecs.VERSION is"
        )
    if numbers[0] != version[0] or tuple(numbers) > version[: len(numbers)]:
        raise errors.PluginError(
            f"it was written for version {'.'.join(map(str, numbers))} of moduli's hooks, and this "
            f"is version {'.'.join(map(str, version))}; take a version of it for this one, or "
            "another version of moduli"
        )


def _marks(source: Any, name: str) -> Any:
    options = _parser.parse_hookimpl_opts(source, name)
    static = inspect.getattr_static(source, name, None)
    if options is None and isinstance(static, (staticmethod, classmethod)):
        return getattr(static, f"{PROJECT}_impl", None)  # pluggy < 1.7 sees only marks inside
    return options


def _check_bound(source: Any, name: str) -> None:
    if inspect.isclass(source) and inspect.isfunction(inspect.getattr_static(source, name)):
        raise errors.PluginError(
            f"it is a class, and its {name!r} needs an object: use an instance, "
            f"{source.__name__}(), or make the function a staticmethod"
        )


def _is_unmarked(source: Any, name: str) -> bool:
    function = inspect.getattr_static(source, name)
    is_spec = _parser.parse_hookspec_opts(source, name) is not None  # imported from a spec file
    return inspect.isroutine(function) and not is_spec


def _phase(source: Any) -> int:
    phase = getattr(source, "moduli_phase", 0)
    if isinstance(phase, bool) or not isinstance(phase, int):
        raise errors.PluginError(f"its moduli_phase is {phase!r}; it must be an int")
    return phase


def _near(hook: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(hook, sorted(known), n=1)
    return f"did you mean {near[0]!r}?" if near else f"known hooks: {', '.join(sorted(known))}"
