"""capture: run a function and get what its modules sow, perturb, take and return."""

from __future__ import annotations

import contextlib
import functools
import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import moduli
from moduli import errors, plugins
from moduli_debug._assemble import assemble, given_entries
from moduli_debug._module_filter import module_predicate, path_text, select_modules
from moduli_debug._wanted import Called, Wanted
from moduli_debug._watcher import check_size, nbytes, watcher
from moduli_debug.reducers import make_reducer

__all__ = ["capture", "check_function", "first_module", "owner_of", "wrap"]


def capture(
    fn: Callable[..., Any] | type[moduli.Variable[Any]],
    *variable_types: type[moduli.Variable[Any]],
    init: Mapping[Any, Any] | None = None,
    method_outputs: type[moduli.Variable[Any]] | None = None,
    outputs: Any = None,
    inputs: Any = None,
    reduce: Any = None,
    max_bytes: int | None = None,
) -> Callable[..., Any]:
    """Wraps a function so that it also returns what happens inside its modules.

    ``capture(fn, moduli.Intermediate)`` calls ``fn`` and returns ``(result, state)``; the State
    holds the Variables of that kind (or a subclass) that ``sow`` and ``perturb`` made during the
    call, keyed by module path and name. ``capture(fn, outputs="blocks/*")`` returns the outputs of
    the modules that the filter selects, whatever the model does: at the module's path and
    ``"outputs"`` a Variable with a tuple, one value for each call.

    It works around and inside moduli's transforms: ``vmap`` and ``scan`` give a value one more
    axis in front, ``cond`` and ``switch`` NaN where a branch was not taken, and a
    ``while_loop`` raises. The model is not changed, also by an exception, and what it had
    sown before stays. A module that the call makes and puts nowhere sows into its own attributes.

    Kinds that are not captured are not stored: ``sow`` returns False for them, and ``perturb``
    returns its value as it is, unless ``init`` or the module has a perturbation of that name.

    Args:
      fn: a Module, a method of one, or a function whose first argument is the Module. With a kind
        of Variable in its place, ``@moduli.capture(moduli.Intermediate)`` is a decorator.
      *variable_types: the kinds of Variable to capture.
      init: Variables to start from, such as the perturbations of an earlier capture; the gradient
        with respect to this State is that of the perturbed values.
      method_outputs: a kind of Variable, one of ``variable_types``: what every public method of
        every module returns is captured as if it was sown under the method's name.
      outputs: selects modules by a path pattern (``"blocks/*/attention"``, ``"**"`` for all), a
        class, a callable ``(path, module)``, or ``moduli.Any``/``All``/``Not`` of these.
      inputs: likewise; a single positional argument is captured as it is, several as the pair
        ``(args, kwargs)``. What is no array is None there.
      reduce: what is kept of each input and output: one of ``moduli.reducers``, or a function of an
        array. It runs inside of compiled programs.
      max_bytes: the most bytes that inputs and outputs may have together.

    Returns:
      A function with the arguments of ``fn``, which returns ``(result, state, ...)``: one State for
      each kind, and one for inputs and outputs if they are asked for; with neither just the
      result. Each captured Variable has the metadata ``source``: the plugin, the module's path, the
      name, and for each value the number of the call and the axes in front. Its method
      ``estimate``, with the same arguments, returns the bytes by path without running anything.

    Raises:
      VariableError: if ``fn`` or a kind or a filter is not one.
      StructureError: (in the call) if the first argument is not a Module, a value is sown under
        the name of a submodule that sows too, or ``max_bytes`` is not enough.
      PathError: (in the call) if ``init`` has a path that is no module's, or a filter selects no
        module, or none that is called.

    Example:
      >>> import moduli as nnx, jax.numpy as jnp
      >>> from moduli_debug import capture
      >>> class Model(nnx.Module):
      ...     def __call__(self, x):
      ...         self.sow(nnx.Intermediate, "doubled", 2 * x)
      ...         return 3 * self.perturb("x", x)
      >>> model = Model()
      >>> y, seen = capture(model, nnx.Intermediate)(jnp.array(4.0))
      >>> float(y), float(seen.doubled.value[0]), hasattr(model, "doubled")
      (12.0, 8.0, False)
      >>> _, zeros = capture(model, nnx.Perturbation)(jnp.array(4.0))
      >>> def loss(model, zeros, x):
      ...     return capture(model, init=zeros)(x) ** 2
      >>> float(nnx.grad(loss, argnums=1)(model, zeros, jnp.array(4.0)).x.value)
      72.0
      >>> net = nnx.Sequential(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), nnx.relu)
      >>> _, seen = capture(net, outputs="layers/*")(jnp.ones((5, 2)))
      >>> seen.layers[0].outputs.value[0].shape
      (5, 3)
    """
    options = {
        "init": init,
        "method_outputs": method_outputs,
        "filters": {"outputs": outputs, "inputs": inputs},
        "reduce": reduce,
        "max_bytes": max_bytes,
    }
    if isinstance(fn, type) and issubclass(fn, moduli.Variable):
        return functools.partial(_capture, kinds=(fn, *variable_types), **options)
    return _capture(fn, kinds=variable_types, **options)


capture.__module__ = "moduli_debug"


def _capture(
    fn: Callable[..., Any],
    *,
    kinds: tuple[type[moduli.Variable[Any]], ...],
    init: Mapping[Any, Any] | None,
    method_outputs: type[moduli.Variable[Any]] | None,
    filters: Mapping[str, Any],
    reduce: Any,
    max_bytes: int | None,
) -> Callable[..., Any]:
    check_function(fn, "capture", "a kind of Variable")
    for kind in kinds if method_outputs is None else (*kinds, method_outputs):
        if not (isinstance(kind, type) and issubclass(kind, moduli.Variable)):
            raise errors.VariableError(
                f"capture: {kind!r} is no kind of Variable; write for example "
                "`moduli.capture(model, moduli.Intermediate)`"
            )
    wanted = Wanted(
        kinds,
        **{
            name: None if filter is None else _predicate(filter, name)
            for name, filter in filters.items()
        },
        methods=method_outputs,
        reduce=make_reducer(reduce, "capture"),
        max_bytes=max_bytes,
    )
    used = {name: filter for name, filter in filters.items() if filter is not None}

    def captured(*args: Any, **kwargs: Any) -> Any:
        if not used and init is None and _holds_no_module(fn, args):
            module = None  # a method that brings its own: paths begin there
            start = {}
        else:
            module = first_module(fn, args, "capture")
            start = _checked_init(module, init)
        for filter in used.values():
            select_modules(module, filter, "capture")
        with contextlib.ExitStack() as stack:
            if wanted.watches_calls:
                stack.enter_context(moduli.using(watcher(wanted)))
            given = given_entries(start)
            recording = stack.enter_context(plugins.recording(wanted, module, given))
            result = fn(*args, **kwargs)
            entries = recording.entries()
        if used:
            _check_called(first_module(fn, args, "capture"), entries, used)
        if max_bytes is not None:
            check_size(wanted, [(e.place.path, e.value, e.crossings) for e in entries])
        states = assemble(wanted, entries, start)
        return (result, *states) if states else result

    def estimate(*args: Any, **kwargs: Any) -> dict[str, int]:
        """Returns how many bytes would be captured, by path and name, without running."""

        def shapes(module: Any, args: Any, kwargs: Any) -> Any:
            if owner_of(fn) is not None:
                run = unlimited(_rebound(fn, module))
                return run(*args, **kwargs)[1:]
            return unlimited(fn)(module, *args, **kwargs)[1:]

        def unlimited(f: Any) -> Any:
            return _capture(
                f,
                kinds=kinds,
                init=init,
                method_outputs=method_outputs,
                filters=filters,
                reduce=reduce,
                max_bytes=None,
            )

        module = first_module(fn, args, "capture")
        rest = args if owner_of(fn) is not None else args[1:]
        states = moduli.eval_shape(shapes, module, rest, kwargs)
        return {
            path_text(path): nbytes(variable.get_raw_value())
            for state in states
            for path, variable in moduli.to_flat_state(state).items()
        }

    wrapped: Any = wrap(captured, fn)
    wrapped.estimate = estimate
    return wrapped


def _holds_no_module(fn: Callable[..., Any], args: tuple[Any, ...]) -> bool:
    """Returns whether a function is a method of an object that is no Module, and gets none."""
    owner = getattr(fn, "__self__", None)
    if owner is None or isinstance(owner, (moduli.Module, types.ModuleType)):
        return False
    return not (args and isinstance(args[0], moduli.Module))


def _predicate(filter: Any, name: str) -> Any:
    try:
        return module_predicate(filter)
    except errors.ModuliError as error:
        raise type(error)(f"capture: {name}: {error}") from None


def _rebound(fn: Callable[..., Any], module: Any) -> Callable[..., Any]:
    """The same method of a copy of the module that a transform has made."""
    if isinstance(fn, moduli.Module):
        return module
    return types.MethodType(fn.__func__, module)  # type: ignore[attr-defined]


def _checked_init(
    root: moduli.Module, init: Mapping[Any, Any] | None
) -> dict[tuple[Any, ...], moduli.Variable[Any]]:
    """Returns the Variables of a State by module path and name."""
    if init is None:
        return {}
    paths = [
        path
        for path, module in moduli.iter_modules(root)
        if not isinstance(module, (moduli.List, moduli.Dict))  # these have no attributes
    ]
    found = {}
    for path, variable in moduli.to_flat_state(init).items():
        if not isinstance(variable, moduli.Variable):
            raise errors.VariableError(
                f"capture: init holds a {type(variable).__name__} at "
                f"`{errors.format_path(path)}`; it takes a State of Variables, as an earlier "
                "capture of moduli.Perturbation returned it"
            )
        if path[:-1] not in paths:
            known = ", ".join(f"`{errors.format_path(known)}`" for known in paths[:8])
            raise errors.PathError(
                f"capture: init has a {type(variable).__name__} at "
                f"`{errors.format_path(path)}`, but {type(root).__name__} has no module at "
                f"`{errors.format_path(path[:-1])}`; its modules are {known}"
                + (f" and {len(paths) - 8} more" if len(paths) > 8 else "")
            )
        found[path] = variable
    return found


def _check_called(
    root: moduli.Module, entries: Iterable[plugins.Entry], used: Mapping[str, Any]
) -> None:
    """Raises if a filter selects modules of which none was called."""
    names = {entry.place.name for entry in entries}
    for what, filter in used.items():
        if Called(what) in names:
            continue
        chosen = select_modules(root, filter, "capture")
        if not chosen:
            continue
        shown = ", ".join(f"{path_text(path)!r}" for path, _ in chosen[:4])
        more = f" and {len(chosen) - 4} more" if len(chosen) > 4 else ""
        raise errors.PathError(
            f"capture: {what}={filter!r} selects {shown}{more} of {type(root).__name__}, and none "
            "of these was called. Only `module(...)` is a call (for other methods there is "
            "method_outputs=); a function that was compiled by jax.jit calls nothing, so use "
            "moduli.jit"
        )


# -- what all wrappers of this package have in common ----------------------------------------------


def check_function(fn: Any, caller: str, more: str = "") -> None:
    """Raises a VariableError unless ``fn`` can be wrapped."""
    if not callable(fn):
        kinds = "a Module, a method, a function" + (f" or {more}" if more else "")
        raise errors.VariableError(f"{caller} needs {kinds}; got {fn!r}")


def owner_of(fn: Callable[..., Any]) -> moduli.Module | None:
    """Returns the Module of a Module or of a method, jitted or not."""
    if isinstance(fn, moduli.Module):
        return fn
    owner = getattr(fn, "__self__", None)
    return owner if isinstance(owner, moduli.Module) else None


def first_module(fn: Callable[..., Any], args: tuple[Any, ...], caller: str) -> moduli.Module:
    """Returns the Module into which a wrapper looks.

    Raises:
      StructureError: if there is none.
    """
    owner = owner_of(fn)
    if owner is not None:
        return owner
    if args and isinstance(args[0], moduli.Module):
        return args[0]
    got = f"a {type(args[0]).__name__}" if args else "no positional argument"
    name = getattr(fn, "__qualname__", type(fn).__name__)
    raise errors.StructureError(
        f"{caller}: the first argument of {name} must be the Module into which to look; got {got}. "
        f"Write `moduli.{caller}(lambda model, x: ..., ...)(model, x)`"
    )


def wrap(wrapper: Any, fn: Callable[..., Any]) -> Any:
    """``functools.update_wrapper`` that also takes modules, whose ``__dict__`` is their own."""
    updated = () if isinstance(fn, moduli.Module) else functools.WRAPPER_UPDATES
    return functools.update_wrapper(wrapper, fn, updated=updated)  # type: ignore[arg-type]
