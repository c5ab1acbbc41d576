"""Traces a model, and writes down which modules it calls, with what and with what result."""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import moduli
from moduli import plugins
from moduli_debug._module_filter import path_text
from moduli_debug._summary.costs import scope_name
from moduli_debug._summary.text import describe_arguments

__all__ = ["Call", "Trace", "abstract", "is_array", "trace_backward", "trace_forward"]

Path = tuple[Any, ...]
_ARRAYS = (jax.Array, np.ndarray, np.generic, jax.ShapeDtypeStruct)
_numbers = itertools.count()  # none is used twice, so a scope of an older trace is no call of this


class Call:
    """One call of a module, as it was traced.

    Attributes:
      path: the module's path.
      type: its class.
      args: its positional arguments, with ``jax.ShapeDtypeStruct`` in the place of arrays.
      kwargs: its keyword arguments, likewise.
      outputs: what it returned, likewise.
      caller: the number of the call that made it, None for the method itself.
      method: the name of the method.
    """

    def __init__(
        self,
        path: Path,
        module: Any,
        args: Any,
        kwargs: Any,
        caller: int | None,
        method: str = "__call__",
    ):
        self.path, self.type, self.caller, self.method = path, type(module), caller, method
        self.args, self.kwargs = abstract(args), abstract(kwargs)
        self.outputs: Any = None


class Trace(NamedTuple):
    """A traced program.

    Attributes:
      jaxpr: the program.
      calls: the calls of modules in it, by number; the method itself is the first.
    """

    jaxpr: Any
    calls: dict[int, Call]


def is_array(value: Any) -> bool:
    """Returns whether a value is an array, a tracer or a ``jax.ShapeDtypeStruct``."""
    return isinstance(value, _ARRAYS)


def abstract(value: Any) -> Any:
    """Puts a ``jax.ShapeDtypeStruct`` in the place of each array, and its class in a module's."""

    def leaf(value: Any) -> Any:
        if isinstance(value, moduli.Variable):
            return abstract(value.value)
        if isinstance(value, moduli.Pytree):
            return type(value)
        return jax.ShapeDtypeStruct(value.shape, value.dtype) if is_array(value) else value

    return jax.tree.map(leaf, value, is_leaf=_is_node)


def _is_node(value: Any) -> bool:
    return isinstance(value, (moduli.Pytree, moduli.Variable))


class Recorder:
    """A plugin that gives each call of a module a number, and a name scope that says it.

    Attributes:
      calls: the calls by number.
      failed: the innermost call that an exception left.
    """

    moduli_phase = 1_000_000  # after all others: it sees what the module gets

    def __init__(self) -> None:
        self.calls: dict[int, Call] = {}
        self.failed: Call | None = None
        self._open: list[int] = []
        self._modules: dict[int, Any] = {}  # of the open calls, by number
        self._ended: int | None = None  # the method that has just ended, if it has a row

    @moduli.hookimpl
    def moduli_before_call(self, module: Any, args: Any, kwargs: Any) -> None:
        """Writes down the arguments."""
        path = self._path_of(module)
        self.note(() if path is None else path, module, args, kwargs)

    @moduli.hookimpl
    def moduli_call_context(self, module: Any, method: str) -> Any:
        """Names the scope of the call; that of a method too.

        A method that calls itself, or the one that it overrides, is one call. What a layer of
        moduli calls of itself is part of its call: that is how it is written.
        """
        if method == "__call__":
            return self.scope(self._open[-1]) if self._open else None
        path = self._path_of(module)
        of_it = [number for number in self._open if self._modules[number] is module]
        part = any(self.calls[number].method == method for number in of_it)
        if of_it and _is_ours(type(module), method):
            part = True
        if part or path is None or isinstance(module, (moduli.List, moduli.Dict)):
            return self._method(None)
        return self._method(self.note(path, module, (), {}, method))

    @moduli.hookimpl
    def moduli_after_call(self, output: Any) -> None:
        """Writes down the output."""
        if self._open:
            number = self._open.pop()
            del self._modules[number]
            self.calls[number].outputs = abstract(output)

    @moduli.hookimpl
    def moduli_after_method(self, args: Any, kwargs: Any, output: Any) -> None:
        """Writes down arguments and output of a method."""
        number, self._ended = self._ended, None
        if number is not None and self._open:
            call = self.calls[number]
            call.args, call.kwargs = abstract(args), abstract(kwargs)
            self.moduli_after_call(output)
            makes_calls = any(other.caller == number for other in self.calls.values())
            if not (makes_calls or arrays_of((args, kwargs, output))):
                del self.calls[number]  # it only says something of the module

    @contextlib.contextmanager
    def _method(self, number: int | None) -> Iterator[None]:
        with contextlib.nullcontext() if number is None else self.scope(number):
            yield
        self._ended = number

    def _path_of(self, module: Any) -> Path | None:
        found = None
        for recording in plugins.recordings():
            if recording.owner is self:
                found = recording.path_of(module)
        return found

    def note(
        self, path: Path, module: Any, args: Any, kwargs: Any, method: str = "__call__"
    ) -> int:
        """Writes down that a call begins; returns its number."""
        number = next(_numbers)
        caller = self._open[-1] if self._open else None
        self.calls[number] = Call(path, module, args, kwargs, caller, method)
        self._open.append(number)
        self._modules[number] = module
        return number

    @contextlib.contextmanager
    def scope(self, number: int) -> Iterator[None]:
        """The scope of a call; a call that an exception leaves is over."""
        try:
            with jax.named_scope(scope_name(number)):
                yield
        except BaseException:
            self.failed = self.failed or self.calls[number]
            del self._open[self._open.index(number) :]
            raise


def _is_ours(cls: type, method: str) -> bool:
    """Returns whether a method is defined by moduli or one of its packages."""
    written = next((vars(base)[method] for base in cls.__mro__ if method in vars(base)), None)
    return re.split(r"[._]", getattr(written, "__module__", None) or "", maxsplit=1)[0] == "moduli"


class _Arguments:
    """The arguments of a method: what is traced, and how to put the rest around it."""

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]):
        leaves, self._structure = jax.tree.flatten((args, kwargs), is_leaf=_is_node)
        self._fixed = [None if self._is_traced(leaf) else leaf for leaf in leaves]
        self.traced = [leaf for leaf in leaves if self._is_traced(leaf)]
        self._mask = [self._is_traced(leaf) for leaf in leaves]

    @staticmethod
    def _is_traced(leaf: Any) -> bool:
        return is_array(leaf) or _is_node(leaf)

    def around(self, traced: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        rest = iter(traced)
        leaves = [
            next(rest) if mask else fixed
            for mask, fixed in zip(self._mask, self._fixed, strict=True)
        ]
        return jax.tree.unflatten(self._structure, leaves)


def _caller(recorder: Recorder, method: str, arguments: _Arguments) -> Callable[..., Any]:
    """Returns a function of (model, *traced arguments) that calls a method and records it."""

    def call(model: Any, *traced: Any) -> Any:
        args, kwargs = arguments.around(traced)
        with moduli.using(recorder), plugins.recording(recorder, model):
            if method == "__call__" and isinstance(model, moduli.Module):
                return model(*args, **kwargs)
            number = recorder.note((), model, args, kwargs, method)
            with recorder.scope(number):
                output = getattr(model, method)(*args, **kwargs)
            recorder.moduli_after_call(output)
            return output

    call.__qualname__ = f"{method}"
    return call


def trace_forward(model: Any, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Trace:
    """Traces a call of a model; nothing is computed, and the model stays as it is.

    Args:
      model: the model; its values may be ``jax.ShapeDtypeStruct``.
      method: the name of the method to call.
      args: positional arguments: arrays or ``jax.ShapeDtypeStruct`` are traced, also inside of
        pytrees, as are modules and random streams; everything else is passed on as it is.
      kwargs: keyword arguments, likewise.
    """
    recorder, arguments = Recorder(), _Arguments(args, kwargs)
    call = _caller(recorder, method, arguments)
    try:
        jaxpr = moduli.make_jaxpr(lambda *traced: arrays_of(call(*traced)))(
            model, *arguments.traced
        )
    except Exception as error:
        _say_where(error, recorder, model)
        raise
    return Trace(jaxpr, recorder.calls)


def trace_backward(
    model: Any, method: str, args: tuple[Any, ...], kwargs: dict[str, Any], outputs: Any
) -> Trace | None:
    """Traces a call of a model and its backward pass.

    That is the pullback of all floating point outputs, to the Params of the model and the floating
    point arguments.

    Args:
      model: see :func:`trace_forward`.
      method: see :func:`trace_forward`.
      args: see :func:`trace_forward`.
      kwargs: see :func:`trace_forward`.
      outputs: what the call returns, as :func:`trace_forward` found it.

    Returns:
      The trace; None if no output is floating point.
    """
    cotangents = _floating(outputs)
    if not cotangents:
        return None
    recorder, arguments = Recorder(), _Arguments(args, kwargs)
    call = _caller(recorder, method, arguments)

    def floating_outputs(model: Any, *traced: Any) -> list[Any]:
        _hold_fixed(model)
        return _floating(call(model, *traced))

    def program(cotangents: list[Any], *traced: Any) -> Any:
        outputs, pullback = moduli.vjp(floating_outputs, *traced)
        return outputs, [_floating(_held_values(item)) for item in pullback(cotangents)]

    jaxpr = moduli.make_jaxpr(program)(cotangents, model, *arguments.traced)
    return Trace(jaxpr, recorder.calls)


def arrays_of(output: Any) -> list[Any]:
    """Returns the arrays of a result."""
    leaves = jax.tree.leaves(output, is_leaf=_is_node)
    values = [leaf.value if isinstance(leaf, moduli.Variable) else leaf for leaf in leaves]
    return [value for value in jax.tree.leaves(values, is_leaf=_is_node) if is_array(value)]


def _held_values(item: Any) -> list[Any]:
    """Returns the values in a module, and any other argument as it is."""
    if not isinstance(item, moduli.Pytree):
        return [item]
    return [v for _, v in moduli.iter_graph(item) if isinstance(v, moduli.Variable) or is_array(v)]


def _floating(output: Any) -> list[Any]:
    return [v for v in arrays_of(output) if jnp.issubdtype(v.dtype, jnp.inexact)]


def _hold_fixed(model: Any) -> None:
    """Stops gradients of what is no Param."""
    for _, variable in moduli.iter_graph(model):
        if isinstance(variable, moduli.Variable) and not isinstance(variable, moduli.Param):
            values = jax.tree.leaves(variable.value)
            if any(is_array(v) and jnp.issubdtype(v.dtype, jnp.inexact) for v in values):
                variable.value = jax.lax.stop_gradient(variable.value)


def _say_where(error: Exception, recorder: Recorder, model: Any) -> None:
    call = recorder.failed
    if call is not None:
        error.add_note(
            f"tabulate: raised in {path_text(call.path)!r} of {type(model).__name__}, a "
            f"{call.type.__name__}, called with {describe_arguments(call.args, call.kwargs)}"
        )
