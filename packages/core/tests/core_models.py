"""Small models that the tests of core share; core has no layers of its own."""

from __future__ import annotations

import jax
import jax.numpy as jnp

import moduli as nnx


class Linear(nnx.Module):
    """x @ kernel + bias."""

    def __init__(self, size_in: int, size_out: int, *, rngs: nnx.Rngs):
        self.kernel = nnx.Param(jax.random.normal(rngs.params(), (size_in, size_out), jnp.float32))
        self.bias = nnx.Param(jnp.zeros(size_out, jnp.float32))
        self.size_in = size_in

    def __call__(self, x):
        return x @ self.kernel.value + self.bias.value


class Norm(nnx.Module):
    """Subtracts the mean of the batch, or a running mean."""

    def __init__(self, size: int):
        self.mean = nnx.BatchStat(jnp.zeros(size, jnp.float32))
        self.use_running_average = False

    def __call__(self, x):
        if self.use_running_average:
            return x - self.mean.value
        mean = x.mean(0)
        self.mean.value = 0.5 * self.mean.value + 0.5 * mean
        return x - mean


class MLP(nnx.Module):
    """Linear and Norm in a plain list."""

    def __init__(self, size: int = 3, depth: int = 2, *, rngs: nnx.Rngs):
        self.layers = []
        for _ in range(depth):
            self.layers.append(Linear(size, size, rngs=rngs))
            self.layers.append(Norm(size))

    def __call__(self, x):
        for layer in self.layers:
            x = jnp.tanh(layer(x))
        return x


class Tied(nnx.Module):
    """One Param under two names, and a reference to itself."""

    def __init__(self):
        self.a = nnx.Param(jnp.arange(3.0, dtype=jnp.float32))
        self.b = self.a
        self.me = self


def mlp(seed: int = 0, **kwargs) -> MLP:
    return MLP(rngs=nnx.Rngs(seed), **kwargs)


def batch(rows: int = 4, size: int = 3):
    return jax.random.normal(jax.random.key(9), (rows, size), jnp.float32)
