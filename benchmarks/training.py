"""Step time and memory of training an MLP, a CNN and a small GPT, beside raw JAX.

Every step is donated its state, as one trains. All peers begin with the same parameters, and
have to have the same losses before they are timed.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import moduli
from benchmarks.libraries import libraries
from benchmarks.memory import SIZES, total
from benchmarks.settings import Settings
from benchmarks.tables import ratio_cell, table, time_text
from benchmarks.timing import round_robin
from benchmarks.training_models import TrainedModel, models

RAW, AGAIN = "raw jax.jit", "raw again"
Step = tuple[Callable[[], jax.Array], Callable[[], Any]]
"""Takes a step and returns its loss; compiles the step and returns XLA's memory analysis."""


def measure(settings: Settings) -> dict[Any, Any]:
    """Returns model -> "times": peer -> microseconds of a step, and "memory": peer -> bytes."""
    found: dict[str, Any] = {}
    for name, model in models(settings.tiny_training).items():
        steps = peers(model)
        check_agreement({peer: step for peer, (step, _) in steps.items()})
        times = round_robin(
            {peer: step for peer, (step, _) in steps.items()},
            rounds=settings.some_rounds,
            budget_s=10 * settings.budget_s,
            repeats=settings.repeats,
        )
        memory = {}
        for peer, (_, analyse) in steps.items():
            analysis = analyse()
            if analysis is not None:
                memory[peer] = total({n: getattr(analysis, f"{n}_size_in_bytes") for n in SIZES})
        found[name] = {"times": times, "memory": memory}
    return found


def check_agreement(steps: dict[str, Callable[[], jax.Array]]) -> None:
    """Raises AssertionError if the losses of the first steps differ."""
    losses = {peer: [float(step()) for _ in range(3)] for peer, step in steps.items()}
    for peer, values in losses.items():
        np.testing.assert_allclose(values, losses[RAW], rtol=2e-3, err_msg=peer)


def peers(model: TrainedModel) -> dict[str, Step]:
    """Returns the train step of every installed library."""
    found = {RAW: raw(model), AGAIN: raw(model)}
    for name, nnx in libraries().items():
        found[f"{name}.jit"] = of_modules(nnx, model)
    if importlib.util.find_spec("equinox") is not None:
        found["equinox.filter_jit"] = of_equinox(model)
    return found


def _parameters(model: TrainedModel) -> Any:
    pure = moduli.to_pure_dict(moduli.state(model.build(moduli), moduli.Param))
    return jax.tree.map(jnp.copy, pure)


def _loss(logits: jax.Array, y: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


def raw(model: TrainedModel) -> Step:
    """The step over dicts of arrays, as one writes it by hand."""
    params, (x, y), tx = _parameters(model), model.batch(), optax.adam(1e-3)
    opt_state = tx.init(params)

    def step(params: Any, opt_state: Any, x: jax.Array, y: jax.Array) -> Any:
        value, grads = jax.value_and_grad(lambda p: _loss(model.by_hand(p, x), y))(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, value

    jitted = jax.jit(step, donate_argnums=(0, 1))

    def call() -> jax.Array:
        nonlocal params, opt_state
        params, opt_state, value = jitted(params, opt_state, x, y)
        return value

    return call, lambda: jitted.lower(params, opt_state, x, y).compile().memory_analysis()


def of_modules(nnx: Any, model: TrainedModel) -> Step:
    """The step of moduli or flax.nnx over modules, with their own layers."""
    module, (x, y) = model.build(nnx), model.batch()
    optimizer = nnx.Optimizer(module, optax.adam(1e-3), wrt=nnx.Param)

    def step(module: Any, optimizer: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        value, grads = nnx.value_and_grad(lambda module: _loss(module(x), y))(module)
        optimizer.update(module, grads)
        return value

    jitted = nnx.jit(step, donate_argnums=(0, 1))

    def analysis() -> Any:
        return jitted.lower(module, optimizer, x, y).compile().memory_analysis()

    return lambda: jitted(module, optimizer, x, y), analysis


def of_equinox(model: TrainedModel) -> Step:
    """The step of equinox: a module that holds the parameters and calls the same function."""
    import equinox as eqx

    class Model(eqx.Module):
        params: Any

        def __call__(self, x: jax.Array) -> jax.Array:
            return model.by_hand(self.params, x)

    module, (x, y), tx = Model(_parameters(model)), model.batch(), optax.adam(1e-3)
    opt_state = tx.init(eqx.filter(module, eqx.is_array))

    def step(batch: Any, module: Any, opt_state: Any) -> Any:
        x, y = batch
        value, grads = eqx.filter_value_and_grad(lambda module: _loss(module(x), y))(module)
        updates, opt_state = tx.update(grads, opt_state, module)
        return eqx.apply_updates(module, updates), opt_state, value

    jitted: Any = eqx.filter_jit(step, donate="all-except-first")

    def call() -> jax.Array:
        nonlocal module, opt_state
        module, opt_state, value = jitted((x, y), module, opt_state)
        return value

    def analysis() -> Any:
        return jitted.lower((x, y), module, opt_state).lowered.compile().memory_analysis()

    return call, analysis


def report(found: dict[Any, Any]) -> list[str]:
    """Formats the two tables: times of a step, bytes that it holds at once."""
    names = [peer for peer in next(iter(found.values()))["times"] if peer != RAW]
    rows = []
    for model, of_model in found.items():
        times = of_model["times"]
        rows.append([model, time_text(times[RAW]), *[ratio_cell(times, n, RAW) for n in names]])
    memory = [
        [
            model,
            f"{of_model['memory'][RAW] / 1e6:.1f} MB",
            *[f"{of_model['memory'][n] / of_model['memory'][RAW]:.3f}" for n in names],
        ]
        for model, of_model in found.items()
        if of_model["memory"]
    ]
    return [
        "Training with Adam, state donated: the time of a step, and the memory of the compiled",
        "step (arguments, outputs and temporaries at once), relative to raw JAX.",
        "",
        *table(["time of a step", "raw", *names], rows),
        *table(["memory of a step", "raw", *names], memory),
    ]
