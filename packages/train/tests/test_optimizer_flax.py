"""The same training in flax.nnx: equal parameters, equal state, at equal paths."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optimizer_models import INPUTS, KERNEL, TARGETS

import moduli

pytestmark = pytest.mark.usefixtures("standard_promotion")

flax = pytest.importorskip("flax.nnx")


def build(nnx: Any) -> Any:
    class Model(nnx.Module):
        def __init__(self) -> None:
            self.w = nnx.Param(jnp.asarray(KERNEL), tag="kernel")
            self.parts = nnx.Dict(b=nnx.Param(jnp.zeros(4)), n=nnx.BatchStat(jnp.zeros(4)))

    return Model()


def train(nnx: Any, tx: Any, wrt: Any) -> Any:
    model = build(nnx)
    optimizer = nnx.Optimizer(model, tx, wrt=wrt)

    @nnx.jit
    def step(model: Any, optimizer: Any) -> Any:
        def loss(model: Any) -> jax.Array:
            out = jnp.tanh(INPUTS @ model.w[...] + model.parts["b"][...])
            return ((out[:, :2] - TARGETS) ** 2).mean()

        grads = nnx.grad(loss, argnums=nnx.DiffState(0, wrt))(model)
        return optimizer.update(model, grads)

    for _ in range(3):
        updates = step(model, optimizer)
    return model, optimizer, updates


def flat(nnx: Any, node: Any) -> dict[Any, Any]:
    return {
        path: (type(leaf).__name__, np.asarray(leaf[...]))
        for path, leaf in nnx.to_flat_state(nnx.state(node))
    }


@pytest.mark.parametrize(
    "make_tx",
    [
        lambda: optax.sgd(0.1),
        lambda: optax.adam(0.1),
        lambda: optax.adamw(optax.linear_schedule(0.1, 0.01, 2)),
        lambda: optax.chain(optax.clip(0.01), optax.sgd(0.1, momentum=0.9)),
    ],
    ids=["sgd", "adam", "adamw", "chain"],
)
@pytest.mark.parametrize("part", [False, True], ids=["all", "part"])
def test_same_model_and_state_as_flax(make_tx: Any, part: bool) -> None:
    results = []
    for nnx in (flax, moduli):
        wrt = nnx.All(nnx.Param, nnx.PathContains("w")) if part else nnx.Param
        results.append((nnx, *train(nnx, make_tx(), wrt)))
    (_, model, optimizer, updates), (_, own_model, own_optimizer, own_updates) = results
    for theirs, ours in ((model, own_model), (optimizer, own_optimizer)):
        expected, got = flat(flax, theirs), flat(moduli, ours)
        assert expected.keys() == got.keys()
        for path, (kind, value) in expected.items():
            assert got[path][0] == kind, path
            np.testing.assert_allclose(got[path][1], value, rtol=1e-5, atol=1e-7, err_msg=path)
    if updates is None:  # flax before 0.12.7 returns nothing
        return
    expected_updates = dict(flax.to_flat_state(updates))
    own = dict(moduli.to_flat_state(own_updates))
    assert expected_updates.keys() == own.keys()
    for path, value in expected_updates.items():
        np.testing.assert_allclose(own[path], value, rtol=1e-4, atol=1e-7, err_msg=path)
