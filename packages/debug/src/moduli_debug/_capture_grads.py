"""capture_grads: gradients with respect to what modules return, without changing the model."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import moduli
from moduli import errors, plugins
from moduli.plugins import Entry
from moduli_debug._assemble import Source
from moduli_debug._capture import check_function, first_module, owner_of, wrap
from moduli_debug._module_filter import module_predicate, select_modules
from moduli_debug._wanted import Perturbed, Wanted, made_inside

__all__ = ["capture_grads"]

Path = tuple[Any, ...]


def capture_grads(
    loss_fn: Callable[..., Any], filter: Any = moduli.Perturbation, *, has_aux: bool = False
) -> Callable[..., Any]:
    """Wraps a loss so that it also returns values inside the model and the gradients there.

    No sample run and no change of the model: the shapes are found by ``eval_shape``, zeros are
    added to the selected outputs, and one ``value_and_grad`` differentiates with respect to these.
    So every batch size works, and nothing is left behind.

    Args:
      loss_fn: a function of the Module and more arguments, or a method of a Module, that returns a
        scalar; with ``has_aux`` a pair (scalar, anything).
      filter: selects the modules whose outputs to differentiate with respect to; see
        :func:`capture`. By default, what the model passes to ``self.perturb``.
      has_aux: see ``loss_fn``.

    Returns:
      A function with the arguments of ``loss_fn`` that returns ``(loss, activations, gradients)``,
      with ``has_aux`` ``((loss, aux), activations, gradients)``. Both States have, at the module's
      path and ``"outputs"`` (or the name given to ``perturb``), a tuple with a value for each call.
      What the loss writes into the model (BatchNorm statistics) is written once; what it sows is
      dropped.

    Raises:
      VariableError: if an argument is wrong.
      PathError: (in the call) if nothing is selected, or nothing that is selected is called.
      ShapeError: (in the call) if the loss is no scalar.

    Example:
      >>> import moduli as nnx, jax.numpy as jnp
      >>> from moduli_debug import capture_grads
      >>> model = nnx.Sequential(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), jnp.tanh)
      >>> def loss(model, x):
      ...     return model(x).sum()
      >>> value, seen, grads = nnx.jit(capture_grads(loss, "layers/0"))(model, jnp.ones((5, 2)))
      >>> y = seen.layers[0].outputs.value[0]
      >>> bool(jnp.allclose(grads.layers[0].outputs.value[0], 1 - jnp.tanh(y) ** 2, atol=1e-6))
      True
    """
    check_function(loss_fn, "capture_grads")
    by_name = isinstance(filter, type) and issubclass(filter, moduli.Variable)
    if by_name:
        if not issubclass(filter, moduli.Perturbation):
            raise errors.VariableError(
                f"capture_grads: the kind {filter.__name__} is no Perturbation; give a filter of "
                "modules, or moduli.Perturbation for what the model passes to `self.perturb`"
            )
        target = _Target(None, filter)
    else:
        target = _Target(module_predicate(filter), None)

    def gradients(*args: Any, **kwargs: Any) -> Any:
        module = first_module(loss_fn, args, "capture_grads")
        if not by_name:
            select_modules(module, filter, "capture_grads")
        function, rest = _unbound(loss_fn, args)
        zeros = [
            entry._replace(
                value=jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), entry.value[0])
            )
            for entry in _shapes(target, function, module, rest, kwargs)
        ]
        if not zeros:
            raise errors.PathError(_nothing(filter, by_name))

        def run(shifts: Any, module: Any, args: Any, kwargs: Any) -> Any:
            given = [
                entry._replace(value=shift) for entry, shift in zip(zeros, shifts, strict=True)
            ]
            with _shifting(target, module, given) as recording:
                out = function(module, *args, **kwargs)
                values = [entry.value[1] for entry in recording.entries()]
            loss, aux = (out[0], out[1]) if has_aux else (out, None)
            return loss, (aux, values)

        (loss, (aux, values)), grads = moduli.value_and_grad(run, has_aux=True)(
            [entry.value for entry in zeros], module, rest, kwargs
        )
        result = (loss, aux) if has_aux else loss
        return result, _state(zeros, values), _state(zeros, grads)

    return wrap(gradients, loss_fn)


capture_grads.__module__ = "moduli_debug"


@dataclasses.dataclass(frozen=True)
class _Target:
    """What is differentiated: outputs of modules, or what is perturbed."""

    predicate: Callable[..., bool] | None
    kind: type[moduli.Variable[Any]] | None


class _Nth(NamedTuple):
    """The name of a perturbed value: of several of one name, which."""

    key: Perturbed
    number: int


class _Shifter:
    """The plugin that adds what the recording was given to the values, and records these.

    Without a given value it records the value and zeros of its structure. Entries hold pairs.
    """

    moduli_phase = -10  # before moduli-debug's own perturb, and before tools that look

    def __init__(self, target: _Target):
        self._target = target

    @moduli.hookimpl
    def moduli_after_call(self, module: Any, output: Any) -> Any:
        """Shifts the output of a selected module."""
        predicate = self._target.predicate
        if predicate is None:
            return None
        recording = self._recording()
        path, number = recording.call()
        if made_inside(path) or not predicate(path, module):
            return None
        place = plugins.Place(path, number, "outputs")
        return moduli.Replace(self._shift(recording, place, output))

    @moduli.hookimpl
    def moduli_perturb(self, module: Any, name: str, value: Any, variable_type: Any) -> Any:
        """Shifts a perturbed value."""
        kind = self._target.kind
        if kind is None or not issubclass(variable_type, kind):
            return None
        recording = self._recording()
        path = recording.path_of(module)
        if path is None or made_inside(path):
            return None
        key = Perturbed(variable_type, name)
        names = [entry.place.name for entry in recording.entries() if entry.place.path == path]
        number = sum(isinstance(earlier, _Nth) and earlier.key == key for earlier in names)
        return self._shift(recording, plugins.Place(path, None, _Nth(key, number)), value)

    def _recording(self) -> plugins.Recording:
        return next(r for r in reversed(plugins.recordings()) if r.owner == self._target)

    def _shift(self, recording: plugins.Recording, place: plugins.Place, value: Any) -> Any:
        shift = recording.given_at(place)
        if shift is None:
            shift = jax.tree.map(_zeros, value)
            recording.record_at(place, (shift, value), absent=0.0)
            return value
        shifted = jax.tree.map(lambda v, s: v + s if _is_inexact(v) else v, value, shift)
        recording.record_at(place, (jnp.zeros(()), shifted))
        return shifted


def _is_inexact(value: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(value), jnp.inexact)


def _zeros(value: Any) -> jax.Array:
    """Zeros to add to a value; a float for values that have no gradient."""
    dtype = jnp.result_type(value)
    return jnp.zeros(jnp.shape(value), dtype if jnp.issubdtype(dtype, jnp.inexact) else float)


@functools.lru_cache(maxsize=256)
def _shifter(target: _Target) -> _Shifter:
    return _Shifter(target)


@contextlib.contextmanager
def _shifting(
    target: _Target, module: moduli.Module, given: list[Entry]
) -> Iterator[plugins.Recording]:
    """Shifts values for a block; what the model sows meanwhile is dropped, not left in it."""
    with (
        moduli.using(_shifter(target)),
        plugins.recording(Wanted(), module),
        plugins.recording(target, module, given) as recording,
    ):
        yield recording


def _unbound(loss_fn: Callable[..., Any], args: tuple[Any, ...]) -> tuple[Any, tuple[Any, ...]]:
    """Returns a function that takes the module first, and the other arguments."""
    if owner_of(loss_fn) is None:
        return loss_fn, args[1:]
    if isinstance(loss_fn, moduli.Module):
        return type(loss_fn).__call__, args
    return loss_fn.__func__, args  # type: ignore[attr-defined]


def _shapes(
    target: _Target, function: Any, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> list[Entry]:
    """Returns the entries of a run without computing: shapes and dtypes in the place of arrays."""
    found: list[Entry] = []

    def run(module: Any, args: Any, kwargs: Any) -> Any:
        with _shifting(target, module, []) as recording:
            function(module, *args, **kwargs)
            entries = recording.entries()
        found.extend(entry._replace(value=None) for entry in entries)
        return [entry.value for entry in entries]

    values = moduli.eval_shape(run, module, args, kwargs)
    return [entry._replace(value=value) for entry, value in zip(found, values, strict=True)]


def _state(entries: list[Entry], values: list[Any]) -> moduli.State:
    groups: dict[Path, list[tuple[Entry, Any]]] = {}
    for entry, value in zip(entries, values, strict=True):
        groups.setdefault((*entry.place.path, _text(entry.place.name)), []).append((entry, value))
    flat = {}
    for path, pairs in groups.items():
        source = Source(
            "capture_grads",
            path[:-1],
            path[-1],
            tuple(entry.place.number for entry, _ in pairs),
            tuple(entry.crossings for entry, _ in pairs),
        )
        flat[path] = moduli.Intermediate(tuple(value for _, value in pairs), source=source)
    return moduli.from_flat_state(flat)


def _text(name: Any) -> str:
    return name if isinstance(name, str) else name.key.name


def _nothing(filter: Any, by_name: bool) -> str:
    if by_name:
        return (
            "capture_grads: the loss perturbs nothing; write `x = self.perturb('name', x)` in the "
            "model, or give a filter of modules: `moduli.capture_grads(loss, 'blocks/*')`"
        )
    return (
        f"capture_grads: none of the modules that {filter!r} selects is called by the loss; only "
        "`module(...)` is a call"
    )
