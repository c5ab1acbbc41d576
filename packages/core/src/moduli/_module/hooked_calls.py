"""A module's call between the hooks before and after it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Any

from moduli import errors
from moduli._plugins import PluginRecord, Replace, active, call_implementation
from moduli._recording.recording import Recording, around, inside, recordings

__all__ = ["call_method", "call_module"]

_here = threading.local()


def call_module(
    module: Any, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Calls a module's function between the hooks before and after it.

    Args:
      module: the module.
      function: the ``__call__`` of its class, or of a base class when called through ``super()``.
      args: positional arguments, without the module.
      kwargs: keyword arguments.

    Returns:
      The output, after the hooks.

    Raises:
      PluginError: if a hook returns something other than it may.
      Exception: what the function or a hook raises; in a hook, with a note that names the plugin.
    """
    running = _here.__dict__.setdefault("modules", [])
    if running and running[-1] is module and function is not _own_function(module):
        return function(module, *args, **kwargs)  # super().__call__ is part of the call around it
    known = recordings()
    if not known:
        with inside((around(module),)):
            return _call_between(module, function, args, kwargs, recordings())
    return _call_between(module, function, args, kwargs, known)


def _call_between(
    module: Any,
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    recordings: tuple[Recording, ...],
) -> Any:
    plugins = active()
    places = [recording.enter(module) for recording in recordings]
    path, number = places[0]
    known = {"module": module, "args": args, "kwargs": kwargs, "path": path, "number": number}
    try:
        for impl, record in plugins.implementations("moduli_before_call"):
            changed = call_implementation(impl, record, "moduli_before_call", known)
            if changed is not None:
                args, kwargs = _checked_arguments(changed, record)
                known["args"], known["kwargs"] = args, kwargs
        with contextlib.ExitStack() as contexts:
            for impl, record in plugins.implementations("moduli_call_context"):
                asked = {**known, "method": "__call__"}
                context = call_implementation(impl, record, "moduli_call_context", asked)
                if context is not None:
                    contexts.enter_context(_checked_context(context, record))
            running = _here.modules
            running.append(module)
            try:
                output = function(module, *args, **kwargs)
            finally:
                running.pop()
        for impl, record in plugins.implementations("moduli_after_call"):
            known["output"] = output
            changed = call_implementation(impl, record, "moduli_after_call", known)
            if changed is not None:
                output = _checked_output(changed, record)
    finally:
        for recording in recordings:
            recording.leave()
    return output


def call_method(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Calls a method of a module other than ``__call__`` between the hooks around and after it.

    Args:
      function: the method's function, of the module's class or of a base class.
      args: positional arguments, the module first.
      kwargs: keyword arguments.

    Returns:
      The output, after the hook.

    Raises:
      PluginError: if the hook returns something other than it may.
      Exception: what the function or a hook raises; in a hook, with a note that names the plugin.
    """
    module, name = args[0], function.__name__
    own = getattr(type(module), name, None)
    if function is not getattr(own, "_moduli_function", own):  # super().method, or another's
        return function(*args, **kwargs)
    if not recordings():
        with inside((around(module),)):
            return call_method(function, args, kwargs)
    plugins = active()
    path = recordings()[0].path_of(module)
    with contextlib.ExitStack() as contexts:
        for impl, record in plugins.around_methods:
            asked = {"module": module, "method": name, "path": path, "number": None}
            context = call_implementation(impl, record, "moduli_call_context", asked)
            if context is not None:
                contexts.enter_context(_checked_context(context, record))
        output = function(*args, **kwargs)
    known = {"module": module, "method": name, "args": args[1:], "kwargs": kwargs, "path": path}
    for impl, record in plugins.implementations("moduli_after_method"):
        known["output"] = output
        changed = call_implementation(impl, record, "moduli_after_method", known)
        if changed is not None:
            output = _checked_output(changed, record, "moduli_after_method")
    return output


def _own_function(module: Any) -> Any:
    call = type(module).__call__
    return getattr(call, "_moduli_function", call)


def _checked_arguments(
    changed: Any, record: PluginRecord
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(changed, (tuple, list)) and len(changed) == 2:
        args, kwargs = changed
        if isinstance(args, (tuple, list)) and isinstance(kwargs, dict):
            return tuple(args), kwargs
    raise errors.PluginError(
        f"{record.title}: moduli_before_call returned a {type(changed).__name__}; return None, "
        "or a pair (args, kwargs) of a tuple and a dict"
    )


def _checked_context(context: Any, record: PluginRecord) -> Any:
    if hasattr(type(context), "__enter__") and hasattr(type(context), "__exit__"):
        return context
    raise errors.PluginError(
        f"{record.title}: moduli_call_context returned a {type(context).__name__}; return None, "
        "or a context manager"
    )


def _checked_output(changed: Any, record: PluginRecord, hook: str = "moduli_after_call") -> Any:
    if isinstance(changed, Replace):
        return changed.value
    raise errors.PluginError(
        f"{record.title}: {hook} returned a {type(changed).__name__}; return None, "
        "or moduli.Replace(new_output)"
    )
