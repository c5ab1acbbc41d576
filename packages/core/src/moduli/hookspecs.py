"""Every hook of moduli's core, in the order in which a model meets them.

A plugin is a module or an object with some of these functions, each marked with
``@moduli.hookimpl``, that an installed distribution declares in its ``pyproject.toml``::

    [project.entry-points.moduli]
    my_plugin = "my_package.my_module"

or that a program turns on for a block: ``with moduli.using(plugin): ...``.

Taking arguments
    An implementation may leave out arguments that it does not need, and names those it takes as
    they are named here.

Order
    Of several plugins, those with a smaller ``moduli_phase`` (an attribute of the plugin, an int, 0
    by default) run first, then by name. ``@moduli.hookimpl(tryfirst=True)`` and ``trylast=True`` go
    before and after all others. The order of installation never matters.

When they fire
    While a function is traced, or eagerly; never inside a compiled program. What the hooks in
    :data:`IN_PROGRAMS` do becomes part of a compiled program: switching a plugin that implements
    one of them on or off compiles again (or finds the earlier program), and never silently does
    nothing. An implementation that is running is not entered again in its thread, so a plugin may
    make and call modules in its hooks.

Where they are
    Hooks around a module's call get its ``path``: attribute names and indices from the outermost
    module of the call to it (while recordings run, from the root of the outermost one), ``()`` for
    the outermost itself. Inside of moduli's transforms, where
    modules are traced copies, it is the path of the caller's module. A module that the call makes
    stands nowhere: its path is that of the module whose call makes it and ``"<ClassName>"``.
    ``number`` says how many calls of the module came before, in the function that the innermost
    transform runs; a loop calls its body once.

What they hand out
    A value that a hook sees inside of a transform is a tracer. ``moduli.plugins.recording`` starts
    a recording, ``moduli.plugins.recordings()`` finds it in a hook, and ``record`` hands a value
    out of every transform around; see :func:`moduli.plugins.recording`. While one runs, the
    branches of ``cond`` and ``switch`` are traced twice, to find what each records.

When they raise
    *Observing* hooks (what they return is data for moduli, not a value of the model): a plugin that
    raises is switched off for the rest of the program and reported once, by distribution, version,
    hook and cause; the rest goes on. ``MODULI_STRICT=1`` raises instead.
    *Value* hooks: the exception goes on to the user, with a note that names the plugin.
    A :class:`moduli.errors.ModuliError` always goes on to the user: it was raised on purpose.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from moduli._base.hook_markers import hookspec

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from moduli import Module, Pytree, Variable
    from moduli._plugins.replace import Replace

__all__ = [
    "IN_PROGRAMS",
    "moduli_variable_names",
    "moduli_module_created",
    "moduli_mode_attributes",
    "moduli_before_call",
    "moduli_call_context",
    "moduli_after_call",
    "moduli_after_method",
    "moduli_value_written",
    "moduli_sow",
    "moduli_perturb",
]

VERSION = (1, 0)
"""The version of this interface: the first number grows when a plugin that was right is so no more,
the second with each new hook or argument. See the page "What is stable in the hooks"."""

IN_PROGRAMS = (
    "moduli_mode_attributes",
    "moduli_before_call",
    "moduli_call_context",
    "moduli_after_call",
    "moduli_after_method",
    "moduli_value_written",
    "moduli_sow",
    "moduli_perturb",
)
"""The hooks whose work becomes part of compiled programs, so that plugins key them."""


@hookspec
def moduli_variable_names() -> Mapping[str, type[Variable[Any]]]:  # type: ignore[empty-body]
    """Names kinds of Variable, so that strings may stand for them.

    Called when a name is first looked up, and again when other plugins are active. An observing
    hook.

    Returns:
      Names and classes, such as ``{"lora_params": LoRAParam}``. Moduli's own names are reserved: an
      installed plugin's claim to one is refused, with a warning. A name that two others claim is
      a NameClashError where it is used.

    Example:
      >>> import moduli
      >>> class Average(moduli.Variable):
      ...     pass
      >>> class Names:
      ...     @moduli.hookimpl
      ...     def moduli_variable_names(self):
      ...         return {"averages_of_docs": Average}
      >>> with moduli.using(Names()):
      ...     moduli.variable_type_from_name("averages_of_docs").__name__
      'Average'
    """


@hookspec
def moduli_module_created(module: Pytree) -> None:
    """Sees every Module (and other Pytree) right after its ``__init__``.

    An observing hook. It may set attributes; what it sets is part of the object. Modules that a
    compiled function makes are seen while it is traced, not when it runs; modules that a transform
    or ``clone`` rebuilds are not new.

    Args:
      module: the new object.

    Example:
      >>> import moduli
      >>> class Watch:
      ...     seen = []
      ...     @moduli.hookimpl
      ...     def moduli_module_created(self, module):
      ...         self.seen.append(type(module).__name__)
      >>> with moduli.using(Watch()):
      ...     box = moduli.Dict(a=1)
      >>> Watch.seen
      ['Dict']
    """


@hookspec
def moduli_mode_attributes(mode: Literal["train", "eval"]) -> Mapping[str, Any]:  # type: ignore[empty-body]
    """Says which attributes ``model.train()`` and ``model.eval()`` set, where a module has them.

    An observing hook. The attributes of moduli's own layers are reserved: an installed plugin that
    gives one of them another value is not heard, with a warning. Two other plugins that give one
    attribute different values are a NameClashError, where a module has that attribute.

    Args:
      mode: ``"train"`` or ``"eval"``.

    Returns:
      Attribute names and values, such as ``{"deterministic": mode == "eval"}``.

    Example:
      >>> import moduli
      >>> class Quantized(moduli.Module):
      ...     def __init__(self):
      ...         self.quantize = False
      >>> class Modes:
      ...     @moduli.hookimpl
      ...     def moduli_mode_attributes(self, mode):
      ...         return {"quantize": mode == "eval"}
      >>> layer = Quantized()
      >>> with moduli.using(Modes()):
      ...     layer.eval()
      >>> layer.quantize
      True
    """


@hookspec
def moduli_before_call(
    module: Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    path: tuple[str | int, ...],
    number: int,
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Runs before a module's ``__call__``; may replace its arguments.

    A value hook. It fires once for a module's call: ``super().__call__`` inside belongs to the call
    that is running. Other methods of a module are not calls.

    Args:
      module: the module that is called.
      args: its positional arguments, after earlier plugins.
      kwargs: its keyword arguments, after earlier plugins.
      path: where it stands; see the top of this file.
      number: how many of its calls came before.

    Returns:
      None to leave the arguments as they are, or the new ``(args, kwargs)``.

    Example:
      >>> import moduli
      >>> class Double(moduli.Module):
      ...     def __call__(self, x):
      ...         return 2 * x
      >>> class AddOne:
      ...     @moduli.hookimpl
      ...     def moduli_before_call(self, module, args, kwargs):
      ...         return (args[0] + 1,), kwargs
      >>> with moduli.using(AddOne()):
      ...     Double()(3)
      8
    """


@hookspec
def moduli_call_context(
    module: Module, path: tuple[str | int, ...] | None, number: int | None, method: str
) -> AbstractContextManager[Any] | None:
    """Gives a context manager in which a module's ``__call__`` runs.

    A value hook; see :func:`moduli_before_call`, after which it is asked. The contexts are entered
    in the order of the plugins, left in the reverse order, and left on exceptions too.

    An implementation that takes ``method`` is asked for the methods of which
    :func:`moduli_after_method` tells, too.

    Args:
      module: the module that is called.
      path: where it stands; see the top of this file. None for a method of a module that stands
        nowhere.
      number: how many of its calls came before; None for a method other than ``__call__``.
      method: the name of the method, ``"__call__"`` or another one.

    Returns:
      None, or a context manager.

    Example:
      >>> import jax, moduli
      >>> class Double(moduli.Module):
      ...     def __call__(self, x):
      ...         return 2 * x
      >>> class Scopes:
      ...     @moduli.hookimpl
      ...     def moduli_call_context(self, path):
      ...         return jax.named_scope("/".join(map(str, path)))
      >>> model = moduli.Dict(double=Double())
      >>> @moduli.jit
      ... def run(model, x):
      ...     return model["double"](x)
      >>> with moduli.using(Scopes()):
      ...     float(run(model, 3.0))
      6.0
    """


@hookspec
def moduli_after_call(
    module: Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    output: Any,
    path: tuple[str | int, ...],
    number: int,
) -> Replace | None:
    """Runs after a module's ``__call__``; may replace its output.

    A value hook; see :func:`moduli_before_call`. Plugins run in the same order as before the call.
    It does not fire if the call raises.

    Args:
      module: the module that was called.
      args: its positional arguments, as it got them.
      kwargs: its keyword arguments, as it got them.
      output: what it returned, after earlier plugins.
      path: where it stands; see the top of this file.
      number: how many of its calls came before.

    Returns:
      None to leave the output as it is, or ``moduli.Replace(new_output)``.

    Example:
      >>> import moduli
      >>> class Double(moduli.Module):
      ...     def __call__(self, x):
      ...         return 2 * x
      >>> class Negate:
      ...     @moduli.hookimpl
      ...     def moduli_after_call(self, module, output):
      ...         return moduli.Replace(-output)
      >>> with moduli.using(Negate()):
      ...     Double()(3)
      -6
    """


@hookspec
def moduli_after_method(
    module: Module,
    method: str,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    output: Any,
    path: tuple[str | int, ...] | None,
) -> Replace | None:
    """Runs after a method other than ``__call__``; may replace its output.

    A value hook; see :func:`moduli_before_call`. It fires for plain functions in a class whose name
    does not begin with an underscore, once for a method and the ``super()`` calls inside.

    Args:
      module: the module.
      method: the name of the method.
      args: its positional arguments, without the module.
      kwargs: its keyword arguments.
      output: what it returned, after earlier plugins.
      path: where the module stands, None if nowhere; see the top of this file.

    Returns:
      None to leave the output as it is, or ``moduli.Replace(new_output)``.

    Example:
      >>> import moduli
      >>> class Text(moduli.Module):
      ...     def encode(self, x):
      ...         return 2 * x
      >>> class Negate:
      ...     @moduli.hookimpl
      ...     def moduli_after_method(self, method, output):
      ...         return moduli.Replace(-output) if method == "encode" else None
      >>> with moduli.using(Negate()):
      ...     Text().encode(3)
      -6
    """


@hookspec
def moduli_value_written(variable: Variable[Any], old: Any, value: Any) -> None:
    """Sees every value that Python code writes into a Variable.

    An observing hook. It fires for ``variable.value = ...`` and its other spellings, eagerly and
    while a function is traced, where it sees the copy of the Variable and tracers; what a
    transform writes back into the caller's Variables does not fire again. The path of the Variable
    is ``recording.path_of_variable(variable)``; see :func:`moduli.plugins.recordings`.

    Args:
      variable: the Variable, which still holds the old value.
      old: the old value.
      value: the new value.

    Example:
      >>> import moduli
      >>> class Log:
      ...     @moduli.hookimpl
      ...     def moduli_value_written(self, variable, old, value):
      ...         print(type(variable).__name__, old, value)
      >>> count = moduli.BatchStat(0)
      >>> with moduli.using(Log()):
      ...     count.value += 1
      BatchStat 0 1
    """


@hookspec(firstresult=True)
def moduli_sow(
    module: Module,
    variable_type: type[Variable[Any]],
    name: str,
    value: Any,
    reduce_fn: Callable[[Any, Any], Any],
    init_fn: Callable[[], Any],
    capture_noop: bool,
) -> bool | None:
    """Implements ``Module.sow``: stores a value from inside the model.

    A value hook; the first plugin that returns something other than None has done it.

    Args:
      module: the module that sows.
      variable_type: the kind of Variable, already looked up if it was given by name.
      name: the name under which to store.
      value: the value.
      reduce_fn: ``(previous, value) -> new``.
      init_fn: makes the first ``previous``.
      capture_noop: do nothing while no capture runs.

    Returns:
      Whether the value was stored; None to leave it to the next plugin.

    Example:
      >>> import moduli
      >>> class Print:
      ...     moduli_phase = -1  # before moduli-debug
      ...     @moduli.hookimpl
      ...     def moduli_sow(self, name, value):
      ...         print(name, value)
      ...         return True
      >>> with moduli.using(Print()):
      ...     moduli.Dict().sow(moduli.Intermediate, "loss", 0.5)
      loss 0.5
      True
    """


@hookspec(firstresult=True)
def moduli_perturb(
    module: Module,
    name: str,
    value: Any,
    variable_type: type[Variable[Any]],
    capture_noop: bool,
) -> Any:
    """Implements ``Module.perturb``: adds a perturbation to a value.

    A value hook; the first plugin that returns something other than None has done it.

    Args:
      module: the module that perturbs.
      name: the name of the perturbation.
      value: the value, an array or a pytree of arrays.
      variable_type: the kind of Variable, already looked up if it was given by name.
      capture_noop: return the value as it is while no capture runs.

    Returns:
      The perturbed value; None to leave it to the next plugin.

    Example:
      >>> import moduli
      >>> class Shift:
      ...     moduli_phase = -1
      ...     @moduli.hookimpl
      ...     def moduli_perturb(self, value):
      ...         return value + 1
      >>> with moduli.using(Shift()):
      ...     moduli.Dict().perturb("x", 2.0)
      3.0
    """
