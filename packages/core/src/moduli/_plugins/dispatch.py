"""Calling hooks: what is active here, first results, collected results.

The guards ``instrumented()`` and ``watches_creation()`` are on the path of every module call; they
cost one context variable and one attribute.
"""

from __future__ import annotations

import contextlib
import contextvars
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from moduli import errors
from moduli._base.install_hint import install_hint
from moduli._plugins import discovery, specs, trace
from moduli._plugins.inspection import Plugin
from moduli._plugins.plugin_set import PluginSet, switch_off
from moduli._plugins.records import PluginRecord, report, reporting_only

__all__ = [
    "active",
    "call_first",
    "call_implementation",
    "collect",
    "collected",
    "instrumented",
    "module_created",
    "only",
    "plugin_block",
    "using",
    "value_written",
    "watches_creation",
    "watches_methods",
    "watches_writes",
]

_overlay: contextvars.ContextVar[PluginSet | None] = contextvars.ContextVar(
    "moduli_plugins", default=None
)
plugin_block = _overlay.get
"""Returns the plugins of the innermost ``using`` block, None outside of one."""


class _EndedProgram(errors.PluginError):
    """A plugin raised what would have ended the program, such as SystemExit."""


_here = threading.local()
_PROVIDERS = {"moduli_sow": ("Module.sow", "debug"), "moduli_perturb": ("Module.perturb", "debug")}
_MAPPINGS = ("moduli_variable_names", "moduli_mode_attributes")


def active() -> PluginSet:
    """Returns the plugins in force here: those of the innermost ``using``, or the installed."""
    return _overlay.get() or discovery.found or discovery.discover()


def instrumented() -> bool:
    """Returns whether a plugin wants to see calls of modules."""
    return (_overlay.get() or discovery.found or discovery.discover()).wraps_calls


def watches_creation() -> bool:
    """Returns whether a plugin wants to see new modules."""
    return (_overlay.get() or discovery.found or discovery.discover()).watches_creation


def watches_methods() -> bool:
    """Returns whether a plugin wants to see calls of methods other than ``__call__``."""
    return (_overlay.get() or discovery.found or discovery.discover()).watches_methods


def watches_writes() -> bool:
    """Returns whether a plugin wants to see values that are written."""
    return (_overlay.get() or discovery.found or discovery.discover()).watches_writes


@contextlib.contextmanager
def using(*plugins: Any) -> Iterator[None]:
    """Turns plugins on for a block, in this thread (and context) only.

    They join the plugins that are active already, in order of (phase, name); a plugin that is
    active already is not added twice. Compiled programs are kept for each plugin *object*, so
    make a plugin once and use it often.

    Args:
      *plugins: modules or objects with ``@moduli.hookimpl`` functions.

    Raises:
      PluginError: if one implements an unknown hook, or none.

    Example:
      >>> import moduli
      >>> class Loud:
      ...     @moduli.hookimpl
      ...     def moduli_module_created(self, module):
      ...         print("made a", type(module).__name__)
      >>> with moduli.using(Loud()):
      ...     _ = moduli.List()
      made a List
    """
    token = _overlay.set(_extended(active(), plugins))
    try:
        yield
    finally:
        _overlay.reset(token)


def _extended(current: PluginSet, sources: tuple[Any, ...]) -> PluginSet:
    known = {id(plugin.source) for plugin in current.plugins}
    added: list[Plugin] = []
    with reporting_only():  # a failure is raised below, strict or not
        for source in {id(source): source for source in sources}.values():
            if id(source) not in known:
                name = getattr(source, "__name__", None) or type(source).__name__
                added.append(Plugin(source, PluginRecord(name)))
        if not added:
            return current
        failed = specs.declare_for(hook for plugin in added for hook in plugin.record.hooks)
        extended = PluginSet([*current.plugins, *added])
    report(failed)
    for record in (plugin.record for plugin in added):
        if record.state == "quarantined":
            raise errors.PluginError(f"moduli.using: {record.title} failed {record.cause}")
    extended.warn_of_deprecated()
    return extended


@contextlib.contextmanager
def only(plugins: Iterable[Plugin]) -> Iterator[PluginSet]:
    """Puts plugins in the place of all others for a block; what fails is in their records."""
    plugins = list(plugins)
    with reporting_only():
        specs.declare_for(hook for plugin in plugins for hook in plugin.record.hooks)
        made = PluginSet(plugins)
    token = _overlay.set(made)
    try:
        yield made
    finally:
        _overlay.reset(token)


def collect(hook_name: str, /, **kwargs: Any) -> list[tuple[str, Any]]:
    """Calls an observing hook and returns (plugin name, result) of every plugin that answers.

    Args:
      hook_name: the hook.
      **kwargs: all of its arguments.

    Returns:
      Pairs of name and result in the order in which plugins run, without results of None. A plugin
      that raises is switched off and reported.

    Raises:
      ModuliError: that a plugin raises on purpose.
      PluginError: under ``MODULI_STRICT=1``, if a plugin fails.
    """
    return [(record.name, result) for record, result in collected(hook_name, _as_it_is, kwargs)]


def collected(
    hook_name: str, read: Callable[[Any], Any], kwargs: Mapping[str, Any]
) -> list[tuple[PluginRecord, Any]]:
    """Calls an observing hook as ``collect`` does, and reads each result.

    Args:
      hook_name: the hook.
      read: what to make of a result; if it raises, the plugin fails.
      kwargs: all of its arguments.

    Returns:
      Pairs of the plugin's record and what was read.
    """
    results = []
    for impl, record in active().implementations(hook_name):
        try:
            result = call_implementation(impl, record, hook_name, kwargs)
            if result is None:
                continue
            if hook_name in _MAPPINGS:
                result = _as_mapping(result)
            result = read(result)
        except _EndedProgram as error:
            switch_off(record, f"in the hook {hook_name}", error.__cause__ or error)
            continue
        except errors.ModuliError:
            raise
        except Exception as error:
            switch_off(record, f"in the hook {hook_name}", error)
            continue
        results.append((record, result))
    return results


def _as_it_is(result: Any) -> Any:
    return result


def _as_mapping(result: Any) -> Any:
    if isinstance(result, Mapping):
        return result
    raise TypeError(f"it returned a {type(result).__name__}; return a dict, or None for nothing")


def call_first(hook_name: str, /, **kwargs: Any) -> Any:
    """Calls a value hook until a plugin answers with something other than None.

    Args:
      hook_name: the hook.
      **kwargs: all of its arguments.

    Returns:
      The first answer.

    Raises:
      MissingPluginError: if no plugin answers; the text says what to install or to switch on.
      Exception: what a plugin raises, with a note that names it.
    """
    asked = []
    for impl, record in active().implementations(hook_name):
        result = call_implementation(impl, record, hook_name, kwargs)
        if result is not None:
            return result
        asked.append(record.name)
    raise errors.MissingPluginError(_missing(hook_name, asked))


def module_created(module: Any) -> None:
    """Tells the plugins that watch it of a new module."""
    collect("moduli_module_created", module=module)


def value_written(variable: Any, old: Any, value: Any) -> None:
    """Tells the plugins that watch them of a value that is written."""
    collect("moduli_value_written", variable=variable, old=old, value=value)


def call_implementation(
    impl: Any, record: PluginRecord, hook_name: str, kwargs: Mapping[str, Any]
) -> Any:
    """Calls one plugin's implementation of a hook; an exception gets a note that names it.

    An implementation that is running in this thread is not entered again: a plugin that makes
    modules while it is told of a module, or calls one, does not run into itself.
    """
    running = _here.__dict__.setdefault("running", set())
    key = (id(record), hook_name)
    if key in running:
        return None
    running.add(key)
    try:
        if trace.lines is None:
            return impl.function(*[kwargs[name] for name in impl.argnames])
        return trace.traced(
            record,
            hook_name,
            kwargs,
            lambda: impl.function(*[kwargs[name] for name in impl.argnames]),
        )
    except Exception as error:
        note = f"raised in the hook {hook_name} of {record.title}"
        if note not in getattr(error, "__notes__", ()):
            error.add_note(note)
        raise
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # sys.exit(); a plugin does not end its host's program
        raise _EndedProgram(
            f"{record.title} failed in the hook {hook_name}: {type(error).__name__}: {error}"
        ) from error
    finally:
        running.discard(key)


def _missing(hook_name: str, asked: list[str]) -> str:
    feature, extra = _PROVIDERS.get(hook_name, (None, None))
    if asked:
        return (
            f"no plugin answered the hook {hook_name}; asked were {', '.join(asked)}, and all "
            "returned None"
        )
    if extra is None:
        return (
            f"no active plugin implements the hook {hook_name}; `python -m moduli plugins` lists "
            "the plugins that are installed, and their hooks"
        )
    message = (
        f"{feature} needs a plugin that implements the hook {hook_name}: {install_hint(extra)}"
    )
    for record in discovery.records():
        if record.name == extra and record.state == "blocked":
            chosen = discovery.selection().source
            message += f" (the {record.title} is installed, but {chosen} leaves it out)"
        elif record.name == extra and record.state == "quarantined":
            message += f" (the {record.title} is installed, but failed {record.cause})"
    return message
