"""Recurrent layers and stacks without jit: a warm call compiles nothing, and computes the same."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
import pytest

import moduli
from moduli.testing import compilations
from moduli_layers import RNN, Bidirectional, Dropout, GRUCell, Linear, OptimizedLSTMCell, Stack


class Noisy(moduli.Module):
    """A block with a stream of its own."""

    def __init__(self, rngs: moduli.Rngs):
        self.linear, self.dropout = Linear(4, 4, rngs=rngs), Dropout(0.5, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.dropout(self.linear(x))


def gru(seed: int) -> RNN:
    return RNN(GRUCell(4, 4, rngs=moduli.Rngs(seed)))


X = jnp.linspace(-1.0, 1.0, 2 * 5 * 4).reshape(2, 5, 4)
LENGTHS = jnp.array([2, 5])
MODELS: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "RNN": (lambda: gru(0), {}),
    "RNN with lengths": (lambda: gru(0), {"seq_lengths": LENGTHS}),
    "RNN reversed": (lambda: RNN(OptimizedLSTMCell(4, 4, rngs=moduli.Rngs(0)), reverse=True), {}),
    "Bidirectional": (lambda: Bidirectional(gru(0), gru(1)), {}),
    "Stack": (lambda: Stack(lambda rngs: Linear(4, 4, rngs=rngs), 3, rngs=moduli.Rngs(0)), {}),
    "Stack with remat": (
        lambda: Stack(lambda rngs: Linear(4, 4, rngs=rngs), 3, rngs=moduli.Rngs(0), remat=True),
        {},
    ),
    "Stack with streams": (lambda: Stack(Noisy, 3, rngs=moduli.Rngs(0)), {}),
}


def run(model: Any, x: jax.Array, options: dict[str, Any]) -> Any:
    return model(x, **options)


def loss(model: Any, x: jax.Array, options: dict[str, Any]) -> Any:
    return (run(model, x, options) ** 2).sum()


def _append(out: list[Any], of: Any, *args: Any) -> None:
    out.append(of(*args))


@pytest.mark.parametrize("of", [run, moduli.grad(loss)], ids=["call", "gradient"])
@pytest.mark.parametrize("name", MODELS)
def test_warm_calls(name: str, of: Any) -> None:
    make, options = MODELS[name]
    model, jitted, compiled = make(), make(), moduli.jit(of)
    for number in range(4):
        x: Any = X + number
        out: list[Any] = []
        expected = compiled(jitted, x, options)
        count = compilations(functools.partial(_append, out, of, model, x, options))
        assert number < 2 or count == 0
        for ours, theirs in zip(jax.tree.leaves(out[0]), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
