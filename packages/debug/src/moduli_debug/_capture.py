"""capture: run a function and get what its modules sowed, leaving nothing in them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import moduli
from moduli import errors
from moduli_debug._boxes import attached
from moduli_debug.errors import UnsupportedError

__all__ = ["capture"]


def capture(
    fn: Callable[..., Any] | type[moduli.Variable[Any]],
    *variable_types: type[moduli.Variable[Any]],
    init: Mapping[Any, Any] | None = None,
    method_outputs: type[moduli.Variable[Any]] | None = None,
) -> Callable[..., Any]:
    """Wraps a function so that it also returns what its modules sow and perturb.

    ``capture(fn, moduli.Intermediate)`` calls ``fn`` and returns ``(result, state)``; the State
    holds the Variables of that kind (or a subclass) that ``sow`` and ``perturb`` made during the
    call, keyed by module path and name. The modules keep none of them, also after an exception,
    and what they had sown before stays as it was. It works around and inside moduli's transforms.

    Kinds that are not captured are not stored: ``sow`` returns False for them, and ``perturb``
    returns its value as it is, unless ``init`` or the module has a perturbation of that name.
    Modules that the call itself creates sow into their own attributes, as without a capture.

    Args:
      fn: a Module, a method of one, or a function whose first argument is the Module. With a kind
        of Variable in its place, ``@moduli.capture(moduli.Intermediate)`` is a decorator.
      *variable_types: the kinds of Variable to capture.
      init: Variables to start from, such as the perturbations of an earlier capture; the gradient
        with respect to this State is that of the perturbed values.
      method_outputs: not supported yet.

    Returns:
      A function with the arguments of ``fn``, which returns ``(result, state)``; with several
      kinds ``(result, state, ...)``, one State for each; with none just the result.

    Raises:
      UnsupportedError: if ``method_outputs`` is given.
      VariableError: if ``fn`` or a kind is not one.
      StructureError: (in the call) if the first argument is not a Module, or a value is sown under
        the name of a submodule that sows too.
      PathError: (in the call) if ``init`` has a path that is no module's.

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
    """
    if isinstance(fn, type) and issubclass(fn, moduli.Variable):
        return functools.partial(
            _capture, kinds=(fn, *variable_types), init=init, method_outputs=method_outputs
        )
    return _capture(fn, kinds=variable_types, init=init, method_outputs=method_outputs)


capture.__module__ = "moduli_debug"


def _capture(
    fn: Callable[..., Any],
    *,
    kinds: tuple[type[moduli.Variable[Any]], ...],
    init: Mapping[Any, Any] | None,
    method_outputs: type[moduli.Variable[Any]] | None,
) -> Callable[..., Any]:
    if method_outputs is not None:
        raise UnsupportedError(
            "capture: method_outputs is not supported yet; sow the output in the method itself, "
            "`self.sow(moduli.Intermediate, 'features', output)`, and capture that kind"
        )
    if not callable(fn):
        raise errors.VariableError(
            f"capture needs a Module, a method, a function or a kind of Variable; got {fn!r}"
        )
    for kind in kinds:
        if not (isinstance(kind, type) and issubclass(kind, moduli.Variable)):
            raise errors.VariableError(
                f"capture: {kind!r} is no kind of Variable; write for example "
                "`moduli.capture(model, moduli.Intermediate)`"
            )
    owner = _owner(fn)

    def captured(*args: Any, **kwargs: Any) -> Any:
        module = owner if owner is not None else _first_module(fn, args)
        with attached(module, kinds, init) as found:
            result = fn(*args, **kwargs)
        return (result, *found.states()) if kinds else result

    updated = () if owner is fn else functools.WRAPPER_UPDATES  # a Module's __dict__ is its own
    return functools.update_wrapper(captured, fn, updated=updated)  # type: ignore[arg-type]


def _owner(fn: Callable[..., Any]) -> moduli.Module | None:
    if isinstance(fn, moduli.Module):
        return fn
    owner = getattr(fn, "__self__", None)  # of a method, jitted or not
    return owner if isinstance(owner, moduli.Module) else None


def _first_module(fn: Callable[..., Any], args: tuple[Any, ...]) -> moduli.Module:
    if args and isinstance(args[0], moduli.Module):
        return args[0]
    got = f"a {type(args[0]).__name__}" if args else "no positional argument"
    name = getattr(fn, "__qualname__", type(fn).__name__)
    raise errors.StructureError(
        f"capture: the first argument of {name} must be the Module whose values are captured; got "
        f"{got}. Write `moduli.capture(lambda model, x: ..., moduli.Intermediate)(model, x)`"
    )
