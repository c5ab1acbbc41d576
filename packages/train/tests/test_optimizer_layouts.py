"""An optimizer's state is laid out as its parameters, whatever its shape is."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import moduli as nnx
from moduli.errors import ShapeError
from moduli_train import OptVariable

MESH = jax.make_mesh((2, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
TRANSFORMATIONS = {
    "sgd": optax.sgd(0.1, momentum=0.9),
    "adamw": optax.adamw(0.1),
    "adafactor": optax.adafactor(0.1, min_dim_size_to_factor=4),
    "lbfgs": optax.lbfgs(memory_size=3),
    "labels": optax.multi_transform(
        {"a": optax.adam(0.1), "b": optax.adafactor(0.1, min_dim_size_to_factor=4)},
        {"kernel": "b", "bias": "a"},
    ),
    "accumulated": optax.MultiSteps(optax.adam(0.1), 2),
}
SPELLINGS = {
    "names": lambda *names: names,
    "spec": P,
    "sharding": lambda *names: NamedSharding(MESH, P(*names)),
}


def make(spelling: str = "names") -> Any:
    names = SPELLINGS[spelling]
    kernel = nnx.Param(jnp.ones((8, 16)), out_sharding=names(None, "model"))
    return nnx.Dict(kernel=kernel, bias=nnx.Param(jnp.ones(16), out_sharding=names("model")))


def spec(variable: Any) -> tuple[Any, ...]:
    names = variable.get_metadata("out_sharding")
    return tuple(getattr(names, "spec", names))


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_each_axis_of_a_state_has_the_name_of_the_parameters_axis_of_its_size(name, spelling):
    optimizer = nnx.Optimizer(make(spelling), TRANSFORMATIONS[name], wrt=nnx.Param)
    found = [v for _, v in nnx.to_flat_state(nnx.state(optimizer)) if isinstance(v, OptVariable)]
    assert found
    for variable in found:
        assert spec(variable) == tuple("model" if size == 16 else None for size in variable.shape)


@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_a_state_is_laid_out_where_it_is_made_and_by_shardings(name):
    optimizer = nnx.Optimizer(make(), TRANSFORMATIONS[name], wrt=nnx.Param)
    layout = nnx.shardings(optimizer, MESH)
    nnx.update(optimizer, jax.device_put(nnx.state(optimizer), layout))
    with jax.set_mesh(MESH):
        other = nnx.Optimizer(make(), TRANSFORMATIONS[name], wrt=nnx.Param)
    for one in (optimizer, other):
        for row in nnx.show_layout(nnx.state(one, OptVariable)).rows:
            assert row.copies == (2 if 16 in row.shape else 4), row


@pytest.mark.parametrize("name", ["adamw", "adafactor", "lbfgs"])
def test_a_raw_state_of_optax_follows_the_parameters_beside_it(name):
    params = nnx.state(make(), nnx.Param)
    state = TRANSFORMATIONS[name].init(params)
    _, layout = nnx.shardings((params, state), MESH)
    for row in nnx.show_layout(jax.device_put(state, layout)).rows:
        assert row.copies == (2 if 16 in row.shape else 4), row
    try:  # alone: whole where nothing is known
        jax.device_put(state, nnx.shardings(state, MESH))
    except ShapeError as error:  # the names of a bias, for a memory of several
        assert name == "lbfgs" and "shardings((params, opt_state))" in str(error)


@pytest.mark.parametrize("rules", [None, nnx.fsdp("data", 1)], ids=["names", "fsdp"])
@pytest.mark.parametrize("name", ["adafactor", "labels"])
def test_models_and_optimizers_made_together_train_as_on_one_device(name, rules):
    def both() -> Any:
        model = make()
        return model, nnx.Optimizer(model, TRANSFORMATIONS[name], wrt=nnx.Param)

    def step(model: Any, optimizer: Any, x: jax.Array) -> Any:
        def loss(model: Any) -> Any:
            return jnp.mean((jnp.tanh(x @ model["kernel"]) - model["bias"]) ** 2)

        value, grads = nnx.value_and_grad(loss)(model)
        optimizer.update(model, grads)
        return value

    made, one = nnx.create(both, MESH, rules), both()
    before = nnx.show_layout(made)
    x = jnp.linspace(0, 1, 32).reshape(4, 8)
    sharded = nnx.jit(step, keep_shardings=True)
    for _ in range(3):
        got = sharded(*made, jax.device_put(x, NamedSharding(MESH, P("data"))))
        assert abs(float(got) - float(nnx.jit(step)(*one, x))) < 1e-5
    assert nnx.show_layout(made) == before
