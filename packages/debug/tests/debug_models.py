"""Small models that sow and perturb, and the same computations written by hand.

The references take plain arrays: ``forward`` in NumPy and float64, ``loss`` as a pure function for
``jax.grad``. They share no code with the models.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import moduli as nnx


def arrays(seed: int, *shapes: tuple[int, ...]) -> tuple[jax.Array, ...]:
    """Draws normal float32 arrays."""
    rng = np.random.default_rng(seed)
    return tuple(jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes)


class Dense(nnx.Module):
    """A matrix and a bias."""

    def __init__(self, size_in: int, size_out: int, seed: int) -> None:
        kernel, bias = arrays(seed, (size_in, size_out), (size_out,))
        self.kernel, self.bias = nnx.Param(kernel), nnx.Param(bias)

    def __call__(self, x: jax.Array) -> jax.Array:
        return x @ self.kernel + self.bias


class Probed(nnx.Module):
    """Two layers; the hidden value is sown as ``hidden`` and perturbed as ``hidden_grad``."""

    def __init__(self) -> None:
        self.first, self.second = Dense(3, 4, 1), Dense(4, 2, 2)

    def __call__(self, x: jax.Array) -> jax.Array:
        hidden = jnp.tanh(self.first(x))
        self.sow(nnx.Intermediate, "hidden", hidden)
        return self.second(self.perturb("hidden_grad", hidden))


class Tower(nnx.Module):
    """Probed blocks of equal width in a list, so that paths have depth."""

    def __init__(self, depth: int = 2) -> None:
        self.blocks = [Block(seed) for seed in range(depth)]

    def __call__(self, x: jax.Array) -> jax.Array:
        for block in self.blocks:
            x = block(x)
        return x


class Block(nnx.Module):
    """One layer; its output is sown as ``out`` and perturbed as ``out_grad``."""

    def __init__(self, seed: int) -> None:
        self.dense = Dense(3, 3, 10 + seed)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = jnp.tanh(self.dense(x))
        self.sow(nnx.Intermediate, "out", x)
        return self.perturb("out_grad", x)


class NothingSown:
    """Sows and perturbs nothing, so that the model stays as it is without a capture."""

    moduli_phase = -20

    @nnx.hookimpl
    def moduli_sow(self) -> bool:
        """Drops the value."""
        return False

    @nnx.hookimpl
    def moduli_perturb(self, value: Any) -> Any:
        """Leaves the value."""
        return value


nothing_sown = NothingSown()
INPUTS = arrays(0, (5, 3))[0]
WANTED = nnx.DiffState(0, nnx.Any(nnx.Param, nnx.Perturbation))


def loss(model: Any, x: jax.Array) -> jax.Array:
    """The loss of every test here."""
    return (model(x) ** 2).sum()


def weights(model: Probed) -> list[np.ndarray]:
    """Reads the weights of a Probed as float64."""
    found = [model.first.kernel, model.first.bias, model.second.kernel, model.second.bias]
    return [np.asarray(variable.value, np.float64) for variable in found]


def hidden_of(model: Probed, x: jax.Array) -> np.ndarray:
    """Computes the hidden value of a Probed."""
    kernel, bias, _, _ = weights(model)
    return np.tanh(np.asarray(x, np.float64) @ kernel + bias)


def loss_from_hidden(model: Probed, hidden: np.ndarray) -> float:
    """Computes the loss of a Probed from its hidden value on."""
    _, _, kernel, bias = weights(model)
    return float(((hidden @ kernel + bias) ** 2).sum())


def central_differences(function: Any, at: np.ndarray, step: float = 1e-6) -> np.ndarray:
    """Differentiates a scalar function of an array, one element at a time."""
    gradient = np.empty_like(at)
    for index in np.ndindex(at.shape):
        up, down = at.copy(), at.copy()
        up[index] += step
        down[index] -= step
        gradient[index] = (function(up) - function(down)) / (2 * step)
    return gradient


def hidden_gradient(model: Probed, x: jax.Array) -> np.ndarray:
    """Computes the loss's gradient at the hidden value of a Probed, by differences."""
    return central_differences(lambda h: loss_from_hidden(model, h), hidden_of(model, x))


def tower_loss(params: list[tuple[Any, Any]], shifts: list[Any], x: Any) -> Any:
    """The loss of a Tower as a pure function, with something added to each block's output."""
    for (kernel, bias), shift in zip(params, shifts, strict=True):
        x = jnp.tanh(x @ kernel + bias) + shift
    return (x**2).sum()


def tower_gradients(model: Tower, x: jax.Array) -> list[np.ndarray]:
    """Computes the loss's gradients at the blocks' outputs of a Tower with ``jax.grad``."""
    params = [(b.dense.kernel.value, b.dense.bias.value) for b in model.blocks]
    zeros = [jnp.zeros_like(x) for _ in params]
    return list(map(np.asarray, jax.grad(tower_loss, argnums=1)(params, zeros, x)))
