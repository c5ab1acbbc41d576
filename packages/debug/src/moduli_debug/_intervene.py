"""intervene: replace what goes into or comes out of modules, from outside of the model."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

import moduli
from moduli import errors, plugins
from moduli.plugins import Entry, Place
from moduli_debug._assemble import Source
from moduli_debug._capture import check_function, first_module, wrap
from moduli_debug._module_filter import module_predicate, path_text, select_modules
from moduli_debug._wanted import made_inside

__all__ = ["intervene", "intervening"]

Path = tuple[Any, ...]
Side = Literal["outputs", "inputs"]


def intervene(
    fn: Callable[..., Any], interventions: Mapping[Any, Any], *, at: Side = "outputs"
) -> Callable[..., Any]:
    """Wraps a function so that modules inside give, or get, something else.

    Each intervention is a filter and what to do with the output of every module that it selects:

    - a function ``value -> new value``: ablate (``jnp.zeros_like``), add a direction
      (``lambda y: y + v``), scale, clip, ...
    - an array: the new value
    - a State that :func:`capture` returned: the value of the same module and call in that run
      (activation patching). Under ``Stack`` and ``scan`` each step gets its own.

    It works around and inside moduli's transforms, can be differentiated, and changes nothing in
    the model. Arrays and States are arguments of compiled programs, so other values do not compile
    again; for a function make it once and use it often, as with ``jit``.

    Args:
      fn: a Module, a method of one, or a function whose first argument is the Module.
      interventions: filters (see :func:`capture`) and what to do. Of several that select a module,
        all act, in their order.
      at: ``"outputs"``, or ``"inputs"``: a function then gets the positional arguments of the call
        and returns the new ones (one value if there is one).

    Returns:
      A function with the arguments and the result of ``fn``.

    Raises:
      VariableError: if an intervention or a filter is not one.
      PathError: (in the call) if a filter selects no module, or a State has no value for a call.
      ShapeError: (in the call) if a new value has another structure or shape than the old one.

    Example:
      >>> import moduli as nnx, jax.numpy as jnp
      >>> from moduli_debug import capture, intervene
      >>> model = nnx.Sequential(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), nnx.relu)
      >>> x, other = jnp.ones((1, 2)), jnp.array([[-3.0, 2.0]])
      >>> float(intervene(model, {"layers/0": jnp.zeros_like})(x).sum())
      0.0
      >>> y, seen = capture(model, outputs="layers/0")(x)
      >>> bool((intervene(model, {"layers/0": seen})(other) == y).all())
      True
    """
    check_function(fn, "intervene")
    plan = _Plan(interventions, at)

    def intervened(*args: Any, **kwargs: Any) -> Any:
        with plan.applied(first_module(fn, args, "intervene")):
            return fn(*args, **kwargs)

    return wrap(intervened, fn)


@contextlib.contextmanager
def intervening(
    model: moduli.Module, interventions: Mapping[Any, Any], *, at: Side = "outputs"
) -> Iterator[None]:
    """Like :func:`intervene`, for all calls inside a ``with`` block, in this thread.

    Args:
      model: the model, at which paths begin.
      interventions: see :func:`intervene`.
      at: see :func:`intervene`.

    Raises:
      VariableError: see :func:`intervene`.
      PathError: see :func:`intervene`.

    Example:
      >>> import moduli as nnx, jax.numpy as jnp
      >>> from moduli_debug import intervening
      >>> model = nnx.Sequential(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), nnx.relu)
      >>> with intervening(model, {"layers/0": jnp.zeros_like}):
      ...     float(model(jnp.ones((1, 2))).sum())
      0.0
    """
    if not isinstance(model, moduli.Module):
        raise errors.VariableError(
            f"intervening needs the model as its first argument; got a {type(model).__name__}"
        )
    with _Plan(interventions, at).applied(model):
        yield


intervene.__module__ = intervening.__module__ = "moduli_debug"


@dataclasses.dataclass(frozen=True)
class _Act:
    """One intervention: which modules, and the function, or None for a given value."""

    predicate: Callable[..., bool]
    function: Callable[..., Any] | None
    patch: bool = False


@dataclasses.dataclass(frozen=True)
class _Acts:
    """All interventions of one plan; the owner of the recording that carries the given values."""

    acts: tuple[_Act, ...]
    at: str


class _Plan:
    """Checked interventions."""

    def __init__(self, interventions: Mapping[Any, Any], at: str):
        if at not in ("outputs", "inputs"):
            raise errors.VariableError(f'intervene: at={at!r}; write at="outputs" or at="inputs"')
        if not isinstance(interventions, Mapping) or isinstance(interventions, moduli.State):
            raise errors.VariableError(
                f"intervene: the interventions are a {type(interventions).__name__}; write a dict "
                "of filters and functions or values, such as "
                '`moduli.intervene(model, {"blocks/3": jnp.zeros_like})`'
            )
        self._filters = list(interventions)
        acts, self._values = [], []
        for filter, act in interventions.items():
            predicate = module_predicate(filter)
            if isinstance(act, moduli.State):
                acts.append(_Act(predicate, None, patch=True))
            elif callable(act) and not isinstance(act, moduli.Variable):
                acts.append(_Act(predicate, act))
            else:
                _check_value(filter, act)
                acts.append(_Act(predicate, None))
            self._values.append(act)
        self._acts = _Acts(tuple(acts), at)

    @contextlib.contextmanager
    def applied(self, root: moduli.Module) -> Iterator[None]:
        """Turns the interventions on."""
        given: list[Entry] = []
        for number, (filter, act) in enumerate(zip(self._filters, self._acts.acts, strict=True)):
            chosen = select_modules(root, filter, "intervene")
            value = self._values[number]
            if act.patch:
                given += _captured_entries(number, value, chosen, filter, self._acts.at)
            elif act.function is None:
                value = value.value if isinstance(value, moduli.Variable) else value
                given.append(Entry(Place((), None, number), value))
        with moduli.using(_intervener(self._acts)), plugins.recording(self._acts, root, given):
            yield


def _check_value(filter: Any, value: Any) -> None:
    leaves = jax.tree.leaves(value, is_leaf=lambda leaf: isinstance(leaf, moduli.Variable))
    kinds = (jax.Array, np.ndarray, np.generic, int, float, complex, moduli.Variable)
    for leaf in leaves or [value]:
        if not isinstance(leaf, kinds):
            raise errors.VariableError(
                f"intervene: the intervention for {filter!r} is {value!r}; give a function "
                "`value -> new value`, an array, or a State that moduli.capture returned"
            )


def _captured_entries(
    number: int, state: moduli.State, chosen: list[tuple[Path, Any]], filter: Any, at: str
) -> list[Entry]:
    """The values of a State for the chosen modules, by call."""
    flat = moduli.to_flat_state(state)
    found = []
    for path, variable in flat.items():
        if path[-1:] != (at,) or path[:-1] not in [place for place, _ in chosen]:
            continue
        source = variable.get_metadata("source", None)
        values = variable.get_raw_value()
        if not isinstance(source, Source) or len(source.calls) != len(values):
            raise errors.VariableError(
                f"intervene: the State for {filter!r} holds `{errors.format_path(path)}`, which is "
                "not as moduli.capture returned it; to replace values by computed ones, map the "
                "State with jax.tree.map, or give a function"
            )
        for value, call, axes in zip(values, source.calls, source.axes, strict=True):
            found.append(Entry(Place(path[:-1], call, number), value, axes))
    if not found:
        have = [path_text(path[:-1]) for path in flat if path[-1:] == (at,)]
        raise errors.PathError(
            f"intervene: the State for {filter!r} has no {at} of a module that the filter selects; "
            f"it has {', '.join(map(repr, have)) or 'none'}. Capture them with "
            f"`moduli.capture(model, {at}={filter!r})`"
        )
    return found


class _Intervener:
    """The plugin that replaces values."""

    moduli_phase = 10  # after tools that look

    def __init__(self, acts: _Acts):
        self._acts = acts

    @moduli.hookimpl
    def moduli_before_call(self, module: Any, args: Any, kwargs: Any) -> Any:
        """Replaces the positional arguments."""
        if self._acts.at != "inputs":
            return None
        value = args[0] if len(args) == 1 else args
        new, changed = self._changed(module, value, spread=len(args) != 1)
        if not changed:
            return None
        return ((new,) if len(args) == 1 else tuple(new)), kwargs

    @moduli.hookimpl
    def moduli_after_call(self, module: Any, output: Any) -> Any:
        """Replaces the output."""
        if self._acts.at != "outputs":
            return None
        new, changed = self._changed(module, output, spread=False)
        return moduli.Replace(new) if changed else None

    def _changed(self, module: Any, value: Any, *, spread: bool) -> tuple[Any, bool]:
        recording = next(r for r in reversed(plugins.recordings()) if r.owner == self._acts)
        path, call = recording.call()
        changed = False
        if made_inside(path):
            return value, False
        for number, act in enumerate(self._acts.acts):
            if not act.predicate(path, module):
                continue
            if act.function is not None:
                new = act.function(*value) if spread else act.function(value)
            elif act.patch:
                new = self._patch(recording, path, call, number)
            else:
                new = recording.given_at(Place((), None, number))
            value, changed = _fitted(value, new, path, self._acts.at, act), True
        return value, changed

    def _patch(self, recording: Any, path: Path, call: int, number: int) -> Any:
        new = recording.given(number)
        if new is None:
            raise errors.PathError(
                f"intervene: the State has no value for call {call} of `{path_text(path)}`; the "
                "run from which it comes called the module less often (numbers count from 0), or "
                "under other transforms. Give a function, or a State of a run with the same calls"
            )
        return new


@functools.lru_cache(maxsize=32)  # functions may hold arrays
def _intervener(acts: _Acts) -> _Intervener:
    """Returns the plugin: one for equal interventions, as it is part of programs' keys."""
    return _Intervener(acts)


def _fitted(old: Any, new: Any, path: Path, at: str, act: _Act) -> Any:
    """Checks that a new value has the structure and shapes of the old one; keeps its dtypes."""
    who = "the value given" if act.function is None else _name(act.function)
    where = f"the {at} of `{path_text(path)}`"
    if jax.tree.structure(new) != jax.tree.structure(old):
        raise errors.ShapeError(
            f"intervene: {where} is {jax.tree.structure(old)}, and {who} makes "
            f"{jax.tree.structure(new)} of it; return the same structure"
        )

    def fit(was: Any, now: Any) -> Any:
        if not isinstance(was, (jax.Array, np.ndarray, np.generic)):
            return now
        if jnp.shape(now) not in ((), jnp.shape(was)):
            raise errors.ShapeError(
                f"intervene: {where} has shape {jnp.shape(was)}, and {who} makes shape "
                f"{jnp.shape(now)} of it; return the same shape, or a scalar for all elements"
            )
        return jnp.broadcast_to(jnp.asarray(now, was.dtype), jnp.shape(was))

    return jax.tree.map(fit, old, new)


def _name(function: Any) -> str:
    return getattr(function, "__qualname__", None) or type(function).__name__
