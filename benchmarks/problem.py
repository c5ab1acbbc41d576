"""The problem that all peers solve: a batch-normalised MLP, the same numbers for everyone.

Small shapes on purpose: what is compared is what a library adds to a call, and large products would
hide it.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

WIDTH = 32
BATCH = 32
MOMENTUM = 0.9
EPSILON = 1e-5
LEARNING_RATE = 1e-3


@dataclasses.dataclass
class Block:
    """Initial values of one block: Linear, BatchNorm, relu."""

    kernel: np.ndarray  # (WIDTH, WIDTH)
    bias: np.ndarray  # (WIDTH,)
    scale: np.ndarray  # (WIDTH,)
    offset: np.ndarray  # (WIDTH,)
    mean: np.ndarray  # (WIDTH,)
    var: np.ndarray  # (WIDTH,)


def blocks(depth: int) -> list[Block]:
    """Returns the initial values of a model of some depth."""
    random = np.random.default_rng(0)

    def block() -> Block:
        return Block(
            random.normal(size=(WIDTH, WIDTH)).astype(np.float32)
            / np.sqrt(WIDTH, dtype=np.float32),
            np.zeros(WIDTH, np.float32),
            np.ones(WIDTH, np.float32),
            np.zeros(WIDTH, np.float32),
            np.zeros(WIDTH, np.float32),
            np.ones(WIDTH, np.float32),
        )

    return [block() for _ in range(depth)]


def data() -> tuple[jax.Array, jax.Array]:
    """Returns inputs and targets, both (BATCH, WIDTH)."""
    random = np.random.default_rng(1)
    x, y = (random.normal(size=(BATCH, WIDTH)).astype(np.float32) for _ in range(2))
    return jnp.asarray(x), jnp.asarray(y)


def normalise(x, scale, offset, mean, var):
    """Batch normalisation in training mode, as everyone here computes it.

    Returns:
      The outputs, and the new running mean and variance.
    """
    m = x.mean(axis=0)
    v = jnp.maximum(0.0, (x * x).mean(axis=0) - m * m)
    y = (x - m) * (jax.lax.rsqrt(v + EPSILON) * scale) + offset
    return y, MOMENTUM * mean + (1 - MOMENTUM) * m, MOMENTUM * var + (1 - MOMENTUM) * v


def loss(prediction: jax.Array, target: jax.Array) -> jax.Array:
    """Mean squared error."""
    return ((prediction - target) ** 2).mean()
