"""flax.nnx's advice for speed: split once, keep the state, merge inside ``jax.jit``."""

from __future__ import annotations

from typing import Any

import jax
import optax
from flax import nnx

from benchmarks import problem
from benchmarks.peers import Job, _nnx_models, fresh


def forward(depth: int) -> Job:
    """See :mod:`benchmarks.peers`."""
    model, (x, _) = _nnx_models.build(nnx, depth), problem.data()

    @jax.jit
    def jitted(graphdef: Any, state: Any, x: jax.Array) -> Any:
        model = nnx.merge(graphdef, state)
        y = model(x)
        return y, nnx.state(model)

    graphdef, state = nnx.split(model)

    def call() -> jax.Array:
        nonlocal state
        y, state = jitted(graphdef, state, x)
        return y

    return Job(call, lambda: _nnx_models.weights(nnx.merge(graphdef, state)))


def train_step(depth: int) -> Job:
    """See :mod:`benchmarks.peers`."""
    model, (x, y) = _nnx_models.build(nnx, depth), problem.data()
    optimizer = nnx.Optimizer(model, optax.adam(problem.LEARNING_RATE), wrt=nnx.Param)

    def step(graphdef: Any, state: Any, x: jax.Array, y: jax.Array) -> Any:
        model, optimizer = nnx.merge(graphdef, state)
        value, grads = nnx.value_and_grad(_nnx_models.loss)(model, x, y)
        optimizer.update(model, grads)
        return value, nnx.state((model, optimizer))

    jitted = jax.jit(step)
    graphdef, state = nnx.split((model, optimizer))

    def call() -> jax.Array:
        nonlocal state
        value, state = jitted(graphdef, state, x, y)
        return value

    def lower(donate: bool) -> Any:
        graphdef, state = nnx.split((model, optimizer))
        again = jax.jit(fresh(step), donate_argnums=1 if donate else ())
        return again.lower(graphdef, state, x, y)

    return Job(call, lambda: _nnx_models.weights(nnx.merge(graphdef, state)[0]), lower)
