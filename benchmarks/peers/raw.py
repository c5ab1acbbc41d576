"""The yardstick: ``jax.jit`` over dicts of arrays, as one writes it by hand."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from benchmarks import problem
from benchmarks.peers import Job, fresh


def init(depth: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Returns the blocks' parameters and running statistics."""
    params, stats = [], []
    for block in problem.blocks(depth):
        values = {name: jnp.asarray(v) for name, v in dataclasses.asdict(block).items()}
        stats.append({name: values.pop(name) for name in ("mean", "var")})
        params.append(values)
    return params, stats


def apply(params: Any, stats: Any, x: jax.Array) -> tuple[jax.Array, Any]:
    """The forward pass: outputs, and the new running statistics."""
    new = []
    for p, s in zip(params, stats, strict=True):
        x = x @ p["kernel"] + p["bias"]
        x, mean, var = problem.normalise(x, p["scale"], p["offset"], s["mean"], s["var"])
        x = jax.nn.relu(x)
        new.append({"mean": mean, "var": var})
    return x, new


def _weights(params: Any, stats: Any) -> list[tuple[Any, Any, Any]]:
    return [(p["kernel"], s["mean"], s["var"]) for p, s in zip(params, stats, strict=True)]


def forward(depth: int) -> Job:
    """See :mod:`benchmarks.peers`."""
    (params, stats), (x, _) = init(depth), problem.data()
    jitted = jax.jit(apply)

    def call() -> jax.Array:
        nonlocal stats
        y, stats = jitted(params, stats, x)
        return y

    return Job(call, lambda: _weights(params, stats))


def train_step(depth: int) -> Job:
    """See :mod:`benchmarks.peers`."""
    (params, stats), (x, y) = init(depth), problem.data()
    tx = optax.adam(problem.LEARNING_RATE)
    opt_state = tx.init(params)

    def loss(params: Any, stats: Any, x: jax.Array, y: jax.Array) -> Any:
        prediction, stats = apply(params, stats, x)
        return problem.loss(prediction, y), stats

    def step(params: Any, stats: Any, opt_state: Any, x: jax.Array, y: jax.Array) -> Any:
        (value, stats), grads = jax.value_and_grad(loss, has_aux=True)(params, stats, x, y)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), stats, opt_state, value

    jitted = jax.jit(step)

    def call() -> jax.Array:
        nonlocal params, stats, opt_state
        params, stats, opt_state, value = jitted(params, stats, opt_state, x, y)
        return value

    def lower(donate: bool) -> Any:
        again = jax.jit(fresh(step), donate_argnums=(0, 1, 2) if donate else ())
        return again.lower(params, stats, opt_state, x, y)

    return Job(call, lambda: _weights(params, stats), lower)
