"""Optimizers on a mesh with explicit axes and parameters spread over it: as without a mesh."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import moduli as nnx
from moduli.errors import StructureError

MESH = jax.make_mesh((2, 2), ("data", "model"), axis_types=(AxisType.Explicit,) * 2)
RNG = np.random.default_rng(0)
X, Y = [RNG.normal(size=(8, 4)).astype(np.float32) for _ in range(2)]

OPTIMIZERS: dict[str, Any] = {
    "adam": lambda: optax.chain(optax.clip_by_global_norm(0.1), optax.adam(1e-2)),
    "muon": lambda: optax.contrib.muon(1e-2),
    "prodigy": lambda: optax.contrib.prodigy(1.0),
    "lbfgs": optax.lbfgs,
}


class Net(nnx.Module):
    def __init__(self) -> None:
        rng = np.random.default_rng(1)
        self.up = nnx.Param(jnp.asarray(rng.normal(size=(4, 8)), jnp.float32))
        self.down = nnx.Param(jnp.asarray(rng.normal(size=(8, 4)), jnp.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        hidden = jnp.tanh(x @ self.up)
        whole = jax.sharding.get_abstract_mesh().empty
        return jnp.dot(hidden, self.down[...], out_sharding=None if whole else P("data"))


def loss(model: Net, x: jax.Array, y: jax.Array) -> jax.Array:
    return ((model(x) - y) ** 2).mean()


def step(model: Net, optimizer: nnx.Optimizer, x: jax.Array, y: jax.Array) -> jax.Array:
    value, grads = nnx.value_and_grad(loss)(model, x, y)
    more: dict[str, Any] = {}
    if optimizer.tx.init is LBFGS.init:
        graphdef = nnx.graphdef(model)
        more = {
            "value": value,
            "grad": grads,
            "value_fn": lambda state: loss(nnx.merge(graphdef, state), x, y),
        }
    optimizer.update(model, grads, **more)
    return value


LBFGS = optax.lbfgs()
OPTIMIZERS["lbfgs"] = lambda: LBFGS


def trained(name: str, run: Any, x: Any, y: Any, *, spread: bool) -> tuple[list[float], Net, Any]:
    model = Net()
    if spread:
        model.up.value = jax.device_put(model.up.value, P(None, "model"))
        model.down.value = jax.device_put(model.down.value, P("model", None))
    optimizer = nnx.Optimizer(model, OPTIMIZERS[name](), wrt=nnx.Param)
    return [float(run(model, optimizer, x, y)) for _ in range(2)], model, optimizer


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_on_a_mesh_is_training_without_one(name: str) -> None:
    expected, plain, _ = trained(name, nnx.jit(step), X, Y, spread=False)
    with jax.set_mesh(MESH):
        x, y = [jax.device_put(array, P("data")) for array in (X, Y)]
        found, model, optimizer = trained(name, nnx.jit(step), x, y, spread=True)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    np.testing.assert_allclose(model.up.value, plain.up.value, rtol=1e-3, atol=1e-4)
    assert model.up.value.sharding.spec == P(None, "model")
    shapes = [
        array.sharding.spec
        for array in jax.tree.leaves(nnx.to_pure_dict(nnx.state(optimizer)))
        if getattr(array, "shape", None) == (4, 8)
    ]
    assert shapes and all(spec == P(None, "model") for spec in shapes)


def test_eagerly_too() -> None:
    expected, _, _ = trained("muon", step, X, Y, spread=False)
    with jax.set_mesh(MESH):
        x, y = [jax.device_put(array, P("data")) for array in (X, Y)]
        found, _, _ = trained("muon", step, x, y, spread=True)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_errors_are_those_without_a_mesh() -> None:
    with jax.set_mesh(MESH):
        model = Net()
        optimizer = nnx.Optimizer(model, optax.contrib.muon(1e-2), wrt=nnx.Param)
        grads = nnx.grad(loss)(model, X, Y)
        model.new = nnx.Param(jnp.ones(3))
        with pytest.raises(StructureError):
            optimizer.update(model, grads)
