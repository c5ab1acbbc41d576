"""``equinox.filter_jit``: modules are values; statistics are handed through."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from benchmarks import problem
from benchmarks.peers import Job


class Block(eqx.Module):
    """Linear, BatchNorm and relu, with the problem's arithmetic."""

    kernel: jax.Array
    bias: jax.Array
    scale: jax.Array
    offset: jax.Array

    def __call__(self, x: jax.Array, stats: Any) -> tuple[jax.Array, Any]:
        x = x @ self.kernel + self.bias
        x, mean, var = problem.normalise(x, self.scale, self.offset, *stats)
        return jax.nn.relu(x), (mean, var)


class Model(eqx.Module):
    """The blocks one after another."""

    blocks: list[Block]

    def __call__(self, x: jax.Array, stats: Any) -> tuple[jax.Array, Any]:
        new = []
        for block, old in zip(self.blocks, stats, strict=True):
            x, state = block(x, old)
            new.append(state)
        return x, new


def _init(depth: int) -> tuple[Model, Any]:
    made = [tuple(map(jnp.asarray, vars(block).values())) for block in problem.blocks(depth)]
    return Model([Block(*values[:4]) for values in made]), [values[4:] for values in made]


def _weights(model: Model, stats: Any) -> list[tuple[Any, Any, Any]]:
    return [(block.kernel, *s) for block, s in zip(model.blocks, stats, strict=True)]


def forward(depth: int) -> Job:
    """See :mod:`benchmarks.peers`."""
    (model, stats), (x, _) = _init(depth), problem.data()
    jitted = eqx.filter_jit(lambda model, stats, x: model(x, stats))

    def call() -> jax.Array:
        nonlocal stats
        y, stats = jitted(model, stats, x)
        return y

    return Job(call, lambda: _weights(model, stats))


def train_step(depth: int) -> Job:
    """See :mod:`benchmarks.peers`."""
    (model, stats), (x, y) = _init(depth), problem.data()
    tx = optax.adam(problem.LEARNING_RATE)
    opt_state = tx.init(eqx.filter(model, eqx.is_array))

    def loss(model: Model, stats: Any, x: jax.Array, y: jax.Array) -> Any:
        prediction, stats = model(x, stats)
        return problem.loss(prediction, y), stats

    def step(model: Any, stats: Any, opt_state: Any, x: jax.Array, y: jax.Array) -> Any:
        (value, stats), grads = eqx.filter_value_and_grad(loss, has_aux=True)(model, stats, x, y)
        updates, opt_state = tx.update(grads, opt_state, model)
        return eqx.apply_updates(model, updates), stats, opt_state, value

    jitted = eqx.filter_jit(step)

    def call() -> jax.Array:
        nonlocal model, stats, opt_state
        model, stats, opt_state, value = jitted(model, stats, opt_state, x, y)
        return value

    def lower(donate: bool) -> Any:
        def batch_first(batch: Any, model: Model, stats: Any, opt_state: Any) -> Any:
            return step(model, stats, opt_state, *batch)

        again = eqx.filter_jit(batch_first, donate="all-except-first" if donate else "none")
        return again.lower((x, y), model, stats, opt_state).lowered  # jax.stages.Lowered

    return Job(call, lambda: _weights(model, stats), lower)
