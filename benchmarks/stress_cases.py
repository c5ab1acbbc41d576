"""Calls that are hard on a cache of structures, each for a library and by hand in raw JAX."""

from __future__ import annotations

import dataclasses
import itertools
import types
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import problem
from benchmarks.peers import _nnx_models, raw
from benchmarks.settings import Settings

ROOTS = 3
DECAY = 0.9


@dataclasses.dataclass(frozen=True)
class Case:
    """One hard call.

    Attributes:
      library: takes moduli or flax.nnx and the settings; returns the call. It has a public jit.
      by_hand: takes the settings; returns the same call over the same leaves.
    """

    library: Callable[[Any, Settings], Callable[[], Any]]
    by_hand: Callable[[Settings], Callable[[], Any]]


# -- an unrelated object changes its structure before every call ----------------------------------


def _unrelated(nnx: Any, settings: Settings) -> Callable[[], Any]:
    forward = _nnx_models.forward(nnx, settings.detail_depth).call
    other, (x, _), turn = _nnx_models.build(nnx, 1), problem.data(), itertools.count()
    nnx.jit(lambda model, x: model(x))(other, x)  # so that its structure is in the cache as well

    def call() -> Any:
        other.turn = next(turn)
        return forward()

    return call


def _unrelated_by_hand(settings: Settings) -> Callable[[], Any]:
    forward = raw.forward(settings.detail_depth).call
    other, turn = types.SimpleNamespace(), itertools.count()

    def call() -> Any:
        other.turn = next(turn)
        return forward()

    return call


# -- three models in one call ---------------------------------------------------------------------


def _depth_of_root(settings: Settings) -> int:
    return max(1, settings.detail_depth // ROOTS)


def _three_roots(nnx: Any, settings: Settings) -> Callable[[], Any]:
    models = [_nnx_models.build(nnx, _depth_of_root(settings)) for _ in range(ROOTS)]
    x, _ = problem.data()
    jitted = nnx.jit(lambda a, b, c, x: c(b(a(x))))
    return lambda: jitted(*models, x)


def _three_roots_by_hand(settings: Settings) -> Callable[[], Any]:
    made = [raw.init(_depth_of_root(settings)) for _ in range(ROOTS)]
    params, all_stats = [p for p, _ in made], [s for _, s in made]
    x, _ = problem.data()

    @jax.jit
    def jitted(params: Any, all_stats: Any, x: jax.Array) -> Any:
        new = []
        for p, stats in zip(params, all_stats, strict=True):
            x, stats = raw.apply(p, stats, x)
            new.append(stats)
        return x, new

    def call() -> jax.Array:
        nonlocal all_stats
        y, all_stats = jitted(params, all_stats, x)
        return y

    return call


# -- a training call and an evaluating call in turns ----------------------------------------------


def _toggled(nnx: Any, settings: Settings) -> Callable[[], Any]:
    model, (x, _) = _nnx_models.build(nnx, settings.detail_depth), problem.data()
    jitted = nnx.jit(lambda model, x: model(x))

    def call() -> Any:
        model.train()
        jitted(model, x)
        model.eval()
        return jitted(model, x)

    return call


def _toggled_by_hand(settings: Settings) -> Callable[[], Any]:
    (params, stats), (x, _) = raw.init(settings.detail_depth), problem.data()
    train = jax.jit(raw.apply)

    @jax.jit
    def evaluate(params: Any, stats: Any, x: jax.Array) -> jax.Array:
        for p, s in zip(params, stats, strict=True):
            x = x @ p["kernel"] + p["bias"]
            factor = jax.lax.rsqrt(s["var"] + problem.EPSILON) * p["scale"]
            x = jax.nn.relu((x - s["mean"]) * factor + p["offset"])
        return x

    def call() -> jax.Array:
        nonlocal stats
        _, stats = train(params, stats, x)
        return evaluate(params, stats, x)

    return call


# -- many modules, of which a call reads each ------------------------------------------------------


def _many_modules(nnx: Any, settings: Settings) -> Callable[[], Any]:
    class Unit(nnx.Module):
        def __init__(self) -> None:
            self.value = nnx.Param(jnp.ones(()))

    class Model(nnx.Module):
        def __init__(self) -> None:
            self.units = nnx.List([Unit() for _ in range(settings.many_modules)])

        def __call__(self, x: jax.Array) -> jax.Array:
            return x + sum(unit.value[...] for unit in self.units)

    model, jitted = Model(), nnx.jit(lambda model, x: model(x))
    x, _ = problem.data()
    return lambda: jitted(model, x)


def _many_modules_by_hand(settings: Settings) -> Callable[[], Any]:
    values = [jnp.ones(()) for _ in range(settings.many_modules)]
    x, _ = problem.data()
    jitted = jax.jit(lambda values, x: x + sum(values))
    return lambda: jitted(values, x)


# -- many Variables, of which a call writes each ---------------------------------------------------


def _many_variables(nnx: Any, settings: Settings) -> Callable[[], Any]:
    class Model(nnx.Module):
        def __init__(self) -> None:
            self.values = nnx.List(
                [nnx.Param(jnp.ones(())) for _ in range(settings.many_variables)]
            )

    @nnx.jit
    def decay(model: Any, x: jax.Array) -> jax.Array:
        for variable in model.values:
            variable[...] = variable[...] * DECAY
        return x + variable[...]

    model, (x, _) = Model(), problem.data()
    return lambda: decay(model, x)


def _many_variables_by_hand(settings: Settings) -> Callable[[], Any]:
    values = [jnp.ones(()) for _ in range(settings.many_variables)]
    x, _ = problem.data()

    @jax.jit
    def decay(values: Any, x: jax.Array) -> Any:
        new = [value * DECAY for value in values]
        return new, x + new[-1]

    def call() -> jax.Array:
        nonlocal values
        values, y = decay(values, x)
        return y

    return call


CASES = {
    "an unrelated mutation before every call": Case(_unrelated, _unrelated_by_hand),
    "three roots in one call": Case(_three_roots, _three_roots_by_hand),
    "`train()`, a call, `eval()`, a call": Case(_toggled, _toggled_by_hand),
    "a model of many modules, all read": Case(_many_modules, _many_modules_by_hand),
    "a model of many Variables, all written": Case(_many_variables, _many_variables_by_hand),
}
"""Name in the report -> the case."""
