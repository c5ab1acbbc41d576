"""check_finite: run a function, and if it gives NaN or infinities say which module made them."""

from __future__ import annotations

import contextvars
import functools
import inspect
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

import moduli
from moduli import errors
from moduli.errors import format_path
from moduli_debug._finite.marks import is_object
from moduli_debug._finite.places import AROUND, parts_of, place_of
from moduli_debug._finite.snapshot import Snapshot, arrays_in
from moduli_debug._finite.statistics import is_inexact
from moduli_debug._finite.surroundings import objects_around, rebound
from moduli_debug.errors import NonFiniteError

__all__ = ["check_finite"]

_QUICK = 10.0  # seconds; a slower function that cannot be traced is not run again
_searching: contextvars.ContextVar[bool] = contextvars.ContextVar(
    "moduli_debug_searching", default=False
)


def check_finite(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Makes NaN and infinities that a function gives an error that says who made them.

    The wrapped function is called as it is, compiled or not, and its result and what it wrote into
    its modules are looked at. If all of it is finite, that was all. Otherwise the modules get their
    values back, and the function is run once more, operation by operation, to find the first module
    that makes a value that is not finite, forward or backward, through ``jit``, ``grad``, ``vmap``,
    ``scan``, ``remat``, ``cond``, ``while_loop`` and each inside of the others. What is masked and
    never reaches the result or a module does not count.

    The function must be one that JAX can trace as a whole, and do the same when it is run again. If
    it cannot be traced (it calls ``float(loss)``, say), only calls of modules that run eagerly are
    looked at, and otherwise the error names the outputs alone: wrap the compiled step inside of it.

    Args:
      fn: a function, a Module, a method of one, or one of these under ``moduli.jit`` or another
        transform. The modules that it works on are arguments of it, the object of the method, or
        variables that a Python function uses.

    Returns:
      A function with the arguments and the result of ``fn``.

    Raises:
      VariableError: if ``fn`` cannot be called, or is a class.
      TraceError: (in the call) if it is called inside a JAX transform; wrap the outermost one.
      NonFiniteError: (in the call) if the result, or what was written, is not finite. Its
        attributes have the path, the call, the direction, the step, statistics, and more. The
        arguments are as they were before the call.

    Example:
      >>> import moduli as nnx, jax.numpy as jnp
      >>> from moduli_debug import check_finite
      >>> class Scale(nnx.Module):
      ...     def __call__(self, x):
      ...         return jnp.log(x)
      >>> class Model(nnx.Module):
      ...     def __init__(self):
      ...         self.blocks = [Scale(), Scale()]
      ...     def __call__(self, x):
      ...         for block in self.blocks:
      ...             x = block(x)
      ...         return x
      >>> checked = check_finite(nnx.jit(Model()))
      >>> float(checked(jnp.array(2.0)))  # doctest: +ELLIPSIS
      -0.366...
      >>> try:
      ...     checked(jnp.array(1.0))  # its logarithm is 0
      ... except FloatingPointError as error:
      ...     print(error.path, error.direction, error.operation)
      ('blocks', 1) forward log
    """
    if isinstance(fn, type):
        raise errors.VariableError(
            f"check_finite: {fn.__name__} is a class; wrap an object of it, or decorate its "
            "`__call__`"
        )
    if not callable(fn):
        raise errors.VariableError(
            f"check_finite needs a function, a Module or a method; got a {type(fn).__name__}. "
            "Write `moduli.check_finite(train_step)(model, batch)`"
        )
    owner, function, bound, bound_kwargs = _unbound(fn)
    donates: list[bool | None] = [None]  # not known before the first call

    def checked(*args: Any, **kwargs: Any) -> Any:
        if _searching.get():
            return fn(*args, **kwargs)
        name = _name(fn)
        around = {} if owner is not None else objects_around(function)
        tree = (*bound, *args), {**bound_kwargs, **kwargs, **_marked(around)}
        snapshot = Snapshot(tree, copies=donates[0] is not False)
        _check_eager(name, snapshot.arrays, tree)
        started = time.perf_counter()
        result = fn(*args, **kwargs)
        took = time.perf_counter() - started
        donates[0] = bool(donates[0]) or snapshot.is_donated
        arrays = [*arrays_in(result), *snapshot.written()]
        _check_eager(name, arrays, result)
        if _all_finite(arrays):
            return result
        reached = _bad_outputs(result, snapshot, tree[0], owner is not None)
        lost = snapshot.is_donated and not snapshot.copies
        values = snapshot.restore()
        method = _method_of(checked, fn, owner, tree[0])
        if lost:
            raise _gone(name, reached)
        inner = _of_surroundings(function) if around else function
        raise _explain(inner, name, values, reached, owner is not None, method, took)

    updated = () if owner is fn else functools.WRAPPER_UPDATES  # a Module's __dict__ is its own
    return functools.update_wrapper(checked, fn, updated=updated)  # type: ignore[arg-type]


check_finite.__module__ = "moduli_debug"


def _unbound(
    fn: Any,
) -> tuple[moduli.Module | None, Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
    """Splits what a function is bound to from it, so that all modules are arguments.

    Returns:
      The module whose method it is, jitted or not (or None); a function; and the arguments that
      come before, and besides, those of a call.
    """
    if isinstance(fn, moduli.Module):
        return fn, lambda module, *args, **kwargs: module(*args, **kwargs), (fn,), {}
    owner, function = getattr(fn, "__self__", None), getattr(fn, "__func__", None)
    if isinstance(owner, moduli.Module) and function is not None:
        return owner, function, (owner,), {}
    if isinstance(fn, functools.partial):
        owner, function, bound, keywords = _unbound(fn.func)
        return owner, function, (*bound, *fn.args), {**keywords, **fn.keywords}
    return None, fn, (), {}


def _marked(around: dict[str, Any]) -> dict[str, Any]:
    """Names objects around a function so that they are no keyword arguments of it."""
    return {f"{AROUND}{name}": value for name, value in around.items()}


def _of_surroundings(fn: Any) -> Callable[..., Any]:
    """Returns the function with the objects around it as keyword arguments."""

    def inner(*args: Any, **kwargs: Any) -> Any:
        around = {
            name.removeprefix(AROUND): kwargs.pop(name)
            for name in list(kwargs)
            if name.startswith(AROUND)
        }
        return rebound(fn, around)(*args, **kwargs)

    return inner


def _name(fn: Any) -> str:
    if isinstance(fn, functools.partial):
        return _name(fn.func)
    return getattr(fn, "__qualname__", None) or type(fn).__name__


def _method_of(
    checked: Any, fn: Any, owner: moduli.Module | None, args: tuple[Any, ...]
) -> type[Any] | None:
    """Returns the class of the module whose method is called without the module's own hooks."""
    if owner is not None:
        return None if owner is fn else type(owner)
    if not args or not isinstance(args[0], moduli.Module):
        return None
    found = inspect.getattr_static(type(args[0]), getattr(fn, "__name__", ""), None)
    is_own = found is checked or getattr(found, "_moduli_function", None) is checked
    return type(args[0]) if is_own else None


def _check_eager(name: str, arrays: Sequence[Any], tree: Any) -> None:
    if not any(isinstance(array, Tracer) for array in arrays):
        return
    place = "one of them"
    for path, leaf in moduli.iter_graph(tree):
        if isinstance(leaf, moduli.Variable):
            leaf = leaf.get_raw_value()
        if isinstance(leaf, Tracer):
            place = f"`{format_path(path)}`"
            break
    raise errors.TraceError(
        f"check_finite: {name} was called inside a JAX transform, where its values are not known "
        f"yet ({place} is a tracer). Wrap the outermost function instead: "
        "`moduli.check_finite(moduli.jit(train_step))`; it looks inside"
    )


def _bad_outputs(result: Any, snapshot: Snapshot, args: tuple[Any, ...], owned: bool) -> list[str]:
    """Names what is not finite in the result of a call, and in what it wrote."""
    found: list[tuple[str, Any]] = []
    for path, leaf in moduli.iter_graph((result,)):
        if isinstance(leaf, moduli.Variable):
            leaf = leaf.get_raw_value()
        elif is_object(leaf) or not path:
            continue
        place = f"the result at `{format_path(path[1:])}`" if path[1:] else "the result"
        found += [(place, item) for item in jax.tree.leaves(leaf)]
    places = [place for place, _ in parts_of(args, {}, owned=owned)]
    for path, leaf in snapshot.written_by_path():
        place = places[path[1]] if path[0] == 0 else place_of(path[1])
        found.append((f"`{format_path(path[2:])}` of {place}", leaf))
    return [place for place, leaf in found if not _all_finite([leaf])]


@jax.jit
def _finite(arrays: list[Any]) -> jax.Array:
    return jnp.stack([jnp.isfinite(array).all() for array in arrays]).all()


def _all_finite(leaves: Sequence[Any]) -> bool:
    """Returns whether all numbers are finite: one program for all arrays on the same devices."""
    groups: dict[Any, list[Any]] = {}
    for leaf in leaves:
        if isinstance(leaf, (float, complex)):
            if not math.isfinite(abs(leaf)):
                return False
        elif is_inexact(leaf):
            devices = leaf.sharding.device_set if isinstance(leaf, jax.Array) else ()
            groups.setdefault(frozenset(devices), []).append(leaf)
    return all(bool(_finite(group)) for group in groups.values())


def _explain(
    fn: Callable[..., Any],
    name: str,
    values: Any,
    reached: Sequence[str],
    owned: bool,
    method: type[Any] | None,
    took: float,
) -> NonFiniteError:
    """Looks inside a function that gave something that is not finite."""
    from moduli_debug._finite.program import as_program  # what these import is for this alone
    from moduli_debug._finite.report import report_argument, report_fault, report_unknown
    from moduli_debug._finite.search import search

    token = _searching.set(True)
    try:
        program = as_program(fn, values, owned=owned, method=method)
    except Exception as error:
        found = _explain_eagerly(fn, name, values, reached, owned, took, error)
        found.__cause__ = error
        return found
    finally:
        _searching.reset(token)
    try:
        answer = search(program.jaxpr, program.values)
    except Exception as error:
        cause = f"{type(error).__name__}: {error}".splitlines()[0]
        found = report_unknown(
            name,
            reached,
            f"Where that comes from is not known: running {name} operation by operation failed "
            f"({cause}).",
        )
        found.__cause__ = error
        return found
    if answer is None:
        return report_unknown(
            name,
            reached,
            f"When {name} was run again on the same arguments, operation by operation, it gave "
            "finite values: it depends on something besides its arguments, or on how XLA fuses "
            "operations.",
        )
    if answer.fault.argument is not None:
        return report_argument(name, program, answer, reached)
    return report_fault(name, program, answer, reached)


def _explain_eagerly(
    fn: Callable[..., Any],
    name: str,
    values: Any,
    reached: Sequence[str],
    owned: bool,
    took: float,
    error: Exception,
) -> NonFiniteError:
    """Looks at the calls of modules in a function that cannot be traced."""
    from moduli_debug._finite.eager import search_eagerly
    from moduli_debug._finite.program import name_arguments
    from moduli_debug._finite.report import report_call, report_unknown

    cause = f"{type(error).__name__}: {error}".splitlines()[0]
    why = f"because {name} cannot be traced as a whole ({cause})"
    if took < _QUICK:
        try:
            seen = search_eagerly(fn, values)
        except Exception:  # what it does cannot be done again
            seen = None
        if seen is not None:
            reason = f"It is not known which operation that was, {why}."
            return report_call(name, seen, reached, name_arguments(values, owned)[1], reason)
    return report_unknown(
        name,
        reached,
        f"Where that comes from is not known, {why}. Wrap the compiled function inside of it with "
        "check_finite, and pass it the modules as arguments.",
    )


def _gone(name: str, reached: Sequence[str]) -> NonFiniteError:
    from moduli_debug._finite.report import report_unknown

    return report_unknown(
        name,
        reached,
        "Its arguments were donated in this call and not in those before, so they are gone and it "
        "cannot be run again. The next call keeps copies of them.",
    )
