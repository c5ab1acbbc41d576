"""The model for libraries with flax.nnx's interface: moduli and flax itself, the same text."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from benchmarks import problem
from benchmarks.peers import Job, fresh


def model_class(nnx: Any, depth: int, **initializers: Any) -> Any:
    """Returns the class of the model, to be called with Rngs.

    Args:
      nnx: moduli or flax.nnx.
      depth: number of blocks.
      **initializers: ``kernel``, ``bias``, ``scale`` in place of the layers' own.
    """
    linear = {f"{name}_init": initializers[name] for name in ("kernel", "bias") if initializers}
    norm = {f"{name}_init": initializers[name] for name in ("scale", "bias") if initializers}
    norm |= {"momentum": problem.MOMENTUM, "epsilon": problem.EPSILON}

    class Model(nnx.Module):
        def __init__(self, rngs: Any):
            width = problem.WIDTH
            self.linears = nnx.List(
                [nnx.Linear(width, width, rngs=rngs, **linear) for _ in range(depth)]
            )
            self.norms = nnx.List([nnx.BatchNorm(width, rngs=rngs, **norm) for _ in range(depth)])

        def __call__(self, x: jax.Array) -> jax.Array:
            for linear, norm in zip(self.linears, self.norms, strict=True):
                x = jax.nn.relu(norm(linear(x)))
            return x

    return Model


def build(nnx: Any, depth: int) -> Any:
    """Builds the model with the problem's initial values.

    Args:
      nnx: moduli or flax.nnx.
      depth: number of blocks.
    """
    model = model_class(nnx, depth)(nnx.Rngs(0))
    for block, linear, norm in zip(problem.blocks(depth), model.linears, model.norms, strict=True):
        linear.kernel[...] = jnp.asarray(block.kernel)
        norm.mean[...] = jnp.asarray(block.mean)
        norm.var[...] = jnp.asarray(block.var)
    return model


def loss(model: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    """Mean squared error of the model's outputs."""
    return problem.loss(model(x), y)


def weights(model: Any) -> list[tuple[Any, Any, Any]]:
    """See :class:`benchmarks.peers.Job`."""
    return [
        (linear.kernel[...], norm.mean[...], norm.var[...])
        for linear, norm in zip(model.linears, model.norms, strict=True)
    ]


def forward(nnx: Any, depth: int) -> Job:
    """The jitted forward pass, as the library's users write it; see :mod:`benchmarks.peers`."""
    model, (x, _) = build(nnx, depth), problem.data()
    jitted = nnx.jit(lambda model, x: model(x))
    return Job(lambda: jitted(model, x), lambda: weights(model))


def train_step(nnx: Any, depth: int) -> Job:
    """The train step, as the library's users write it; see :mod:`benchmarks.peers`."""
    model, (x, y) = build(nnx, depth), problem.data()
    optimizer = nnx.Optimizer(model, optax.adam(problem.LEARNING_RATE), wrt=nnx.Param)

    def step(model: Any, optimizer: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        value, grads = nnx.value_and_grad(loss)(model, x, y)
        optimizer.update(model, grads)
        return value

    jitted = nnx.jit(step)
    turn = itertools.count()

    def lower(donate: bool) -> Any:
        model.turn = next(turn)  # another structure, so that no flatten of it is cached either
        again = nnx.jit(fresh(step), donate_argnums=(0, 1) if donate else ())
        return again.lower(model, optimizer, x, y)

    return Job(lambda: jitted(model, optimizer, x, y), lambda: weights(model), lower)
