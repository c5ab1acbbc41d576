"""Small models, and the same mathematics written by hand."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import moduli as nnx

INPUTS = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
TARGETS = np.random.default_rng(1).normal(size=(8, 2)).astype(np.float32)
KERNEL = np.random.default_rng(2).normal(size=(3, 4)).astype(np.float32)
OUT = np.random.default_rng(3).normal(size=(4, 2)).astype(np.float32)


class Dense(nnx.Module):
    def __init__(self, kernel: np.ndarray):
        self.kernel = nnx.Param(jnp.asarray(kernel))
        self.bias = nnx.Param(jnp.zeros(kernel.shape[1]))

    def __call__(self, x: Any) -> jax.Array:
        return x @ self.kernel.value + self.bias.value


class Model(nnx.Module):
    """Two layers, a statistic that is no parameter, and a count of calls."""

    def __init__(self) -> None:
        self.layers = [Dense(KERNEL), Dense(OUT)]
        self.mean = nnx.BatchStat(jnp.zeros(4))
        self.calls = nnx.Variable(jnp.zeros((), jnp.int32))

    def __call__(self, x: Any) -> jax.Array:
        self.calls.value = self.calls.value + 1
        hidden = jnp.tanh(self.layers[0](x))
        self.mean.value = 0.5 * self.mean.value + 0.5 * hidden.mean(0)
        return self.layers[1](hidden)


def loss(model: Model) -> jax.Array:
    return ((model(INPUTS) - TARGETS) ** 2).mean()


def by_hand() -> dict[str, jax.Array]:
    """The parameters of :class:`Model` as a plain pytree."""
    return {
        "kernel0": jnp.asarray(KERNEL),
        "bias0": jnp.zeros(4),
        "kernel1": jnp.asarray(OUT),
        "bias1": jnp.zeros(2),
    }


def loss_by_hand(params: dict[str, jax.Array]) -> jax.Array:
    hidden = jnp.tanh(INPUTS @ params["kernel0"] + params["bias0"])
    return ((hidden @ params["kernel1"] + params["bias1"] - TARGETS) ** 2).mean()


def params_of(model: Model) -> dict[str, np.ndarray]:
    first, second = model.layers
    return {
        "kernel0": np.asarray(first.kernel.value),
        "bias0": np.asarray(first.bias.value),
        "kernel1": np.asarray(second.kernel.value),
        "bias1": np.asarray(second.bias.value),
    }
