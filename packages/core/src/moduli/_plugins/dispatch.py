"""Calling hooks: what is active here, first results, collected results, calls of modules.

The guards ``instrumented()`` and ``watches_creation()`` are on the path of every module call; they
cost one context variable and one attribute.
"""

from __future__ import annotations

import contextlib
import contextvars
import threading
from collections.abc import Callable, Iterator
from typing import Any

from moduli import errors
from moduli._plugins.discovery import discover
from moduli._plugins.plugin_set import PluginSet
from moduli._plugins.records import PluginRecord
from moduli._plugins.replace import Replace

__all__ = [
    "active",
    "call_first",
    "call_module",
    "collect",
    "instrumented",
    "module_created",
    "using",
    "watches_creation",
]

_overlay: contextvars.ContextVar[PluginSet | None] = contextvars.ContextVar(
    "moduli_plugins", default=None
)
_calling = threading.local()
_PROVIDERS = {"moduli_sow": ("Module.sow", "debug"), "moduli_perturb": ("Module.perturb", "debug")}


def active() -> PluginSet:
    """Returns the plugins in force here: those of the innermost ``using``, or the installed."""
    return _overlay.get() or discover()


def instrumented() -> bool:
    """Says whether a plugin wants to see calls of modules."""
    return (_overlay.get() or discover()).wraps_calls


def watches_creation() -> bool:
    """Says whether a plugin wants to see new modules."""
    return (_overlay.get() or discover()).watches_creation


@contextlib.contextmanager
def using(*plugins: Any) -> Iterator[None]:
    """Turns plugins on for a block, in this thread (and context) only.

    Args:
      *plugins: modules or objects with ``@moduli.hookimpl`` functions.

    Raises:
      PluginError: if one implements an unknown hook.

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
    current = active()
    extra = []
    for plugin in plugins:
        known = current.records.get(id(plugin))
        if known is None:
            name = getattr(plugin, "__name__", type(plugin).__name__)
            extra.append((plugin, PluginRecord(name, "", "")))
    chosen = PluginSet(current.specs, [*current.plugins, *extra]) if extra else current
    for _, record in extra:
        if record.state == "quarantined":
            raise errors.PluginError(f"moduli.using: {record.title} failed {record.cause}")
    token = _overlay.set(chosen)
    try:
        yield
    finally:
        _overlay.reset(token)


def collect(hook_name: str, /, **kwargs: Any) -> list[tuple[str, Any]]:
    """Calls an observing hook and returns (plugin name, result) of every plugin that answers."""
    plugins = active()
    results = []
    for impl, record in plugins.implementations(hook_name):
        try:
            result = _call(impl, kwargs)
        except errors.ModuliError:
            raise
        except Exception as error:
            plugins.drop(record, f"in the hook {hook_name}", error)
            continue
        if result is not None:
            results.append((record.name, result))
    return results


def call_first(hook_name: str, /, **kwargs: Any) -> Any:
    """Calls a value hook until a plugin answers with something other than None.

    Raises:
      MissingPluginError: if no plugin answers; the text is the command that installs one.
    """
    for impl, record in active().implementations(hook_name):
        result = _call_noted(impl, record, hook_name, kwargs)
        if result is not None:
            return result
    feature, extra = _PROVIDERS.get(hook_name, (hook_name, "all"))
    raise errors.MissingPluginError(
        f"{feature} needs a plugin that implements the hook {hook_name}: "
        f'pip install "moduli[{extra}]"'
    )


def module_created(module: Any) -> None:
    """Tells the plugins that watch it of a new module."""
    collect("moduli_module_created", module=module)


def call_module(
    module: Any, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Calls a module's function between the hooks before and after it.

    Args:
      module: the module.
      function: its class's ``__call__``.
      args: positional arguments, without the module.
      kwargs: keyword arguments.
    """
    running = _calling.__dict__.setdefault("modules", [])
    if running and running[-1] is module:  # super().__call__ inside the call
        return function(module, *args, **kwargs)
    plugins = active()
    for impl, record in plugins.implementations("moduli_before_call"):
        known = {"module": module, "args": args, "kwargs": kwargs}
        changed = _call_noted(impl, record, "moduli_before_call", known)
        if changed is not None:
            args, kwargs = _checked_arguments(changed, record)
    running.append(module)
    try:
        output = function(module, *args, **kwargs)
    finally:
        running.pop()
    for impl, record in plugins.implementations("moduli_after_call"):
        known = {"module": module, "args": args, "kwargs": kwargs, "output": output}
        changed = _call_noted(impl, record, "moduli_after_call", known)
        if changed is not None:
            if not isinstance(changed, Replace):
                raise errors.PluginError(
                    f"{record.title}: moduli_after_call returned a {type(changed).__name__}; "
                    "return None, or moduli.Replace(new_output)"
                )
            output = changed.value
    return output


def _checked_arguments(
    changed: Any, record: PluginRecord
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    try:
        args, kwargs = changed
        return tuple(args), dict(kwargs)
    except (TypeError, ValueError):
        raise errors.PluginError(
            f"{record.title}: moduli_before_call returned a {type(changed).__name__}; return None, "
            "or a pair (args, kwargs) of a tuple and a dict"
        ) from None


def _call(impl: Any, kwargs: dict[str, Any]) -> Any:
    return impl.function(*[kwargs[name] for name in impl.argnames])


def _call_noted(impl: Any, record: PluginRecord, hook: str, kwargs: dict[str, Any]) -> Any:
    try:
        return _call(impl, kwargs)
    except Exception as error:
        note = f"raised in the hook {hook} of {record.title}"
        if note not in getattr(error, "__notes__", ()):
            error.add_note(note)
        raise
