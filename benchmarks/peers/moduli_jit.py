"""``moduli.jit`` over modules, as its users write it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import optax

import moduli as nnx
from benchmarks import problem
from benchmarks.peers import _nnx_models


def forward(depth: int) -> Callable[[], Any]:
    """See :mod:`benchmarks.peers`."""
    model, (x, _) = _nnx_models.build(nnx, depth), problem.data()
    jitted = nnx.jit(lambda model, x: model(x))
    return lambda: jitted(model, x)


def train_step(depth: int) -> Callable[[], Any]:
    """See :mod:`benchmarks.peers`."""
    model, (x, y) = _nnx_models.build(nnx, depth), problem.data()
    optimizer = nnx.Optimizer(model, optax.adam(problem.LEARNING_RATE), wrt=nnx.Param)

    @nnx.jit
    def step(model: Any, optimizer: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        value, grads = nnx.value_and_grad(_nnx_models.loss)(model, x, y)
        optimizer.update(model, grads)
        return value

    return lambda: step(model, optimizer, x, y)
