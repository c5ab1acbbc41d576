"""Transformations whose state is a plain dict or list, with numbers in it, as flax takes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import moduli as nnx

STATES: dict[str, Callable[[Any], Any]] = {
    "dict": lambda params: {
        "count": 0,
        "factor": 0.5,
        "seen": jax.tree.map(jnp.zeros_like, params),
    },
    "list": lambda params: [0, 0.5, jax.tree.map(jnp.zeros_like, params)],
    "nested": lambda params: {"inner": [{"count": 0}, (0.5, {"seen": params})]},
    "tuple": lambda params: ({"count": 0}, [0.5], params),
}


def transformation(init: Callable[[Any], Any]) -> optax.GradientTransformation:
    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        state = jax.tree.map(lambda value: value + 1, state)
        first = jax.tree.leaves(state)[0]
        return jax.tree.map(lambda g: -g * jnp.sum(first), updates), state

    return optax.GradientTransformation(init, update)  # type: ignore[arg-type]


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("name", STATES)
def test_the_steps_are_flaxs(name: str, jit: bool) -> None:
    flax_nnx = pytest.importorskip("flax.nnx")

    def trained(lib: Any, jit: bool) -> list[Any]:
        model = lib.Linear(2, 1, rngs=lib.Rngs(0))
        optimizer = lib.Optimizer(model, transformation(STATES[name]), wrt=lib.Param)

        def step(model: Any, optimizer: Any) -> None:
            gradients = lib.grad(lambda model: model(jnp.ones((1, 2), jnp.float32)).sum())(model)
            optimizer.update(model, gradients)

        run = lib.jit(step) if jit else step
        for _ in range(3):
            run(model, optimizer)
        state = jax.tree.leaves(lib.state(optimizer))
        return [model.kernel[...], *map(jnp.asarray, state)]

    # without jit, flax leaves Python numbers in the state as they were
    for ours, theirs in zip(trained(nnx, jit), trained(flax_nnx, True), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)
