"""Optimizer gives the numbers of plain optax, eagerly and in a jitted step."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optimizer_models import TARGETS, Model, by_hand, loss, loss_by_hand, params_of

import moduli as nnx

pytestmark = pytest.mark.usefixtures("standard_promotion")

TRANSFORMATIONS: dict[str, Callable[[], optax.GradientTransformation]] = {
    "sgd": lambda: optax.sgd(0.1),
    "momentum": lambda: optax.sgd(0.1, momentum=0.9, nesterov=True),
    "adam": lambda: optax.adam(1e-2),
    "adamw": lambda: optax.adamw(1e-2, weight_decay=0.1),
    "adamw with a mask": lambda: optax.adamw(
        1e-2, mask=lambda params: jax.tree.map(lambda p: p.ndim > 1, params)
    ),
    "clipped": lambda: optax.chain(optax.clip_by_global_norm(0.1), optax.adam(1e-2)),
    "schedule": lambda: optax.adam(optax.cosine_decay_schedule(0.1, 3)),
    "hyperparameters": lambda: optax.inject_hyperparams(optax.adam)(learning_rate=1e-2),
    "lion": lambda: optax.lion(1e-2),
    "adafactor": lambda: optax.adafactor(1e-2, min_dim_size_to_factor=2),
    "several steps": lambda: optax.MultiSteps(optax.adam(1e-2), 2).gradient_transformation(),
}
STEPS = 4


def run_by_hand(tx: optax.GradientTransformation) -> tuple[dict[str, jax.Array], Any]:
    params = by_hand()
    state = tx.init(params)

    @jax.jit
    def step(params: Any, state: Any) -> Any:
        updates, state = tx.update(jax.grad(loss_by_hand)(params), state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(STEPS):
        params, state = step(params, state)
    return params, state


def step(model: Model, optimizer: nnx.Optimizer[Model]) -> Any:
    return optimizer.update(model, nnx.grad(loss)(model))


@pytest.mark.parametrize("jitted", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_same_numbers_as_plain_optax(name: str, jitted: bool) -> None:
    expected, expected_state = run_by_hand(TRANSFORMATIONS[name]())
    model = Model()
    optimizer = nnx.Optimizer(model, TRANSFORMATIONS[name](), wrt=nnx.Param)
    run = nnx.jit(step) if jitted else step
    for _ in range(STEPS):
        run(model, optimizer)
    for key, value in params_of(model).items():
        np.testing.assert_allclose(value, expected[key], rtol=2e-5, atol=1e-6, err_msg=key)
    values = jax.tree.leaves(optimizer.opt_state)
    expected_values = jax.tree.leaves(expected_state)
    assert sorted(v.shape for v in values) == sorted(v.shape for v in expected_values)
    total = sum(float(jnp.abs(v).sum()) for v in values)
    expected_total = sum(float(jnp.abs(v).sum()) for v in expected_values)
    np.testing.assert_allclose(total, expected_total, rtol=1e-4)
    assert int(optimizer.step) == STEPS
    assert optimizer.step.value.dtype == jnp.uint32
    assert int(model.calls) == STEPS


def test_updates_are_what_was_added_to_the_parameters() -> None:
    model = Model()
    before = params_of(model)
    optimizer = nnx.Optimizer(model, optax.adam(1e-2))
    updates = step(model, optimizer)
    assert isinstance(updates, nnx.State)
    for position, layer in enumerate(model.layers):
        np.testing.assert_allclose(
            layer.kernel.value,
            before[f"kernel{position}"] + updates.layers[position].kernel,
            rtol=1e-6,
        )
    assert set(nnx.to_flat_state(updates).paths) == set(
        nnx.to_flat_state(nnx.state(model, nnx.Param)).paths
    )


def test_state_mirrors_the_parameters_and_their_metadata() -> None:
    model = nnx.Dict(
        {
            "a": nnx.Param(
                jnp.ones(3),
                tag="first",
                optimizer_sharding=("x",),
                on_get_value=lambda variable, value: value,
            ),
            "n": nnx.Variable(jnp.ones(2)),
        }
    )
    optimizer = nnx.Optimizer(model, optax.adam(1e-2))
    adam = optimizer.opt_state[0]
    assert type(adam.mu.a) is nnx.OptVariable
    assert adam.mu.a.get_metadata() == {"tag": "first", "out_sharding": ("x",)}
    assert type(adam.count) is nnx.OptArray
    assert type(optimizer.step) is nnx.OptState
    assert list(adam.nu) == ["a"]
    assert {type(leaf) for leaf in nnx.to_flat_state(nnx.state(optimizer)).leaves} == {
        nnx.OptVariable,
        nnx.OptArray,
        nnx.OptState,
    }
    assert list(nnx.state(optimizer, nnx.OptVariable)) == ["opt_state"]


def test_hooks_of_a_parameter_see_no_update() -> None:
    calls = []

    def note(variable: Any, value: Any) -> Any:
        calls.append(value)
        return value

    model = nnx.Dict({"w": nnx.Param(jnp.ones(2), on_set_value=note)})
    optimizer = nnx.Optimizer(model, optax.sgd(1.0))
    optimizer.update(model, nnx.State({"w": nnx.Param(jnp.ones(2))}))
    assert model["w"].value.tolist() == [0.0, 0.0]
    assert calls == []


def test_shared_parameter_is_updated_once() -> None:
    weight = nnx.Param(jnp.array(2.0))
    model = nnx.Dict({"a": weight, "b": weight})
    optimizer = nnx.Optimizer(model, optax.sgd(0.1))
    grads = nnx.grad(lambda model: model["a"].value * model["b"].value)(model)
    optimizer.update(model, grads)
    np.testing.assert_allclose(model["b"].value, 2.0 - 0.1 * 4.0, rtol=1e-6)
    assert model["a"] is weight
    assert model["b"] is weight


@pytest.mark.parametrize(
    "wrt",
    [
        nnx.Param,
        (nnx.Param, nnx.BatchStat),
        [nnx.Param],
        nnx.All(nnx.Param, nnx.PathContains("bias")),
        lambda path, value: "kernel" in path,
        "chosen",
    ],
    ids=["type", "tuple", "list", "path", "callable", "tag"],
)
@pytest.mark.parametrize("jitted", [False, True], ids=["eager", "jit"])
def test_filters_select_what_is_updated(wrt: Any, jitted: bool) -> None:
    model = Model()
    model.layers[0].bias.set_metadata(tag="chosen")
    predicate = nnx.filterlib.to_predicate(wrt)
    before = dict(nnx.to_flat_state(nnx.clone(nnx.state(model))).items())
    optimizer = nnx.Optimizer(model, optax.sgd(0.5), wrt=wrt)

    def train(model: Model, optimizer: nnx.Optimizer[Model]) -> None:
        def loss(model: Model) -> jax.Array:
            sizes = [
                jnp.sum(v.value**2 + v.value)
                for v in jax.tree.leaves(
                    nnx.state(model, (nnx.Param, nnx.BatchStat)),
                    is_leaf=lambda x: isinstance(x, nnx.Variable),
                )
            ]
            return sum(sizes, start=jnp.zeros(()))

        grads = nnx.grad(loss, argnums=nnx.DiffState(0, wrt))(model)
        optimizer.update(model, grads)

    (nnx.jit(train) if jitted else train)(model, optimizer)
    changed = 0
    for path, variable in nnx.to_flat_state(nnx.state(model)).items():
        old = before[path].value
        if predicate(path, variable):  # w - 0.5 (2 w + 1)
            np.testing.assert_allclose(variable.value, jnp.full_like(old, -0.5), atol=1e-6)
            changed += 1
        else:
            np.testing.assert_array_equal(variable.value, old)
    assert changed > 0


def test_extra_arguments_reach_the_transformation() -> None:
    tx = optax.chain(
        optax.sgd(0.1), optax.contrib.reduce_on_plateau(factor=0.5, patience=1, cooldown=0)
    )
    model, params = Model(), by_hand()
    optimizer = nnx.Optimizer(model, tx)
    state = tx.init(params)

    @nnx.jit
    def train(model: Model, optimizer: nnx.Optimizer[Model]) -> None:
        grads = nnx.grad(loss)(model)
        optimizer.update(model, grads, value=nnx.Variable(jnp.ones(())))  # never gets better

    for _ in range(5):
        train(model, optimizer)
        grads = jax.grad(loss_by_hand)(params)
        updates, state = tx.update(grads, state, params, value=jnp.ones(()))
        params = optax.apply_updates(params, updates)
    for key, value in params_of(model).items():
        np.testing.assert_allclose(value, params[key], rtol=1e-5, atol=1e-7)
    assert float(optimizer.opt_state[1].scale) == float(state[1].scale) < 1.0


def test_line_search_with_a_value_function() -> None:
    tx = optax.chain(
        optax.sgd(1.0), optax.scale_by_backtracking_linesearch(max_backtracking_steps=10)
    )
    model, params = Model(), by_hand()
    optimizer = nnx.Optimizer(model, tx)
    graphdef, _, rest = nnx.split(model, nnx.Param, ...)
    state = tx.init(params)
    for _ in range(3):
        value, grads = nnx.value_and_grad(loss)(model)
        optimizer.update(
            model,
            grads,
            value=value,
            grad=grads,
            value_fn=lambda params: loss(nnx.merge(graphdef, params, rest, copy=True)),
        )
        expected_value, expected_grads = jax.value_and_grad(loss_by_hand)(params)
        updates, state = tx.update(
            expected_grads, state, params,
            value=expected_value, grad=expected_grads, value_fn=loss_by_hand,
        )  # fmt: skip
        params = optax.apply_updates(params, updates)
    for key, value in params_of(model).items():
        np.testing.assert_allclose(value, params[key], rtol=1e-4, atol=1e-6)


def test_gradients_of_lower_precision_keep_the_parameters_dtype() -> None:
    model = nnx.Dict({"w": nnx.Param(jnp.ones(3, jnp.float32))})
    optimizer = nnx.Optimizer(model, optax.sgd(0.5))
    optimizer.update(model, nnx.State({"w": jnp.ones(3, jnp.bfloat16)}))
    assert model["w"].value.dtype == jnp.float32
    assert model["w"].value.tolist() == [0.5, 0.5, 0.5]


def test_gradients_may_be_a_module_or_a_plain_mapping() -> None:
    model = nnx.Dict({"w": nnx.Param(jnp.ones(2)), "b": nnx.Param(jnp.ones(1))})
    optimizer = nnx.Optimizer(model, optax.sgd(0.5))
    grads = jax.grad(lambda model: jnp.sum(model["w"].value ** 2) + jnp.sum(model["b"].value))(
        model
    )
    assert isinstance(grads, nnx.Dict)
    optimizer.update(model, grads)
    assert model["w"].value.tolist() == [0.0, 0.0]
    optimizer.update(model, {"w": jnp.ones(2), "b": jnp.zeros(1)})
    assert model["w"].value.tolist() == [-0.5, -0.5]
    assert model["b"].value.tolist() == [0.5]


def test_bare_arrays_can_be_trained() -> None:
    class Bare(nnx.Module):
        def __init__(self) -> None:
            self.w = jnp.ones(2)

    model = Bare()
    optimizer = nnx.Optimizer(model, optax.adam(0.5), wrt=...)
    optimizer.update(model, nnx.State({"w": jnp.ones(2)}))
    np.testing.assert_allclose(model.w, [0.5, 0.5], rtol=1e-5)


def test_one_gradient_may_serve_two_optimizers() -> None:
    model = Model()
    before = params_of(model)
    kernels = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.PathContains("kernel"))
    biases = nnx.Optimizer(model, optax.sgd(0.0), wrt=nnx.PathContains("bias"))
    grads = nnx.grad(loss)(model)
    kernels.update(model, grads)
    biases.update(model, grads)
    after = params_of(model)
    assert not np.array_equal(after["kernel0"], before["kernel0"])
    np.testing.assert_array_equal(after["bias0"], before["bias0"])


def test_program_is_traced_once() -> None:
    traces = 0

    @nnx.jit
    def train(model: Model, optimizer: nnx.Optimizer[Model]) -> None:
        nonlocal traces
        traces += 1
        optimizer.update(model, nnx.grad(loss)(model))

    model = Model()
    optimizer = nnx.Optimizer(model, optax.adam(optax.cosine_decay_schedule(0.1, 3)))
    for _ in range(5):
        train(model, optimizer)
    assert traces == 1


def test_optimizer_can_be_split_merged_and_copied() -> None:
    model = Model()
    optimizer = nnx.Optimizer(model, optax.adam(1e-2))
    step(model, optimizer)
    for twin in (
        nnx.merge(*nnx.split(optimizer), copy=True),
        nnx.clone(optimizer),
        copy.deepcopy(optimizer),
        jax.tree.map(lambda x: x, optimizer),
    ):
        other = nnx.clone(model)
        step(other, twin)
        assert int(twin.step) == 2
        assert int(optimizer.step) == 1
    step(model, optimizer)
    for key, value in params_of(model).items():
        np.testing.assert_allclose(value, params_of(other)[key], rtol=1e-6)


def test_optimizer_goes_on_after_a_checkpoint(tmp_path: Any) -> None:
    model = Model()
    optimizer = nnx.Optimizer(model, optax.adam(1e-2))
    step(model, optimizer)
    nnx.save(tmp_path / "a.npz", {"model": model, "optimizer": optimizer})
    fresh = Model()
    other = nnx.Optimizer(fresh, optax.adam(1e-2))
    nnx.load(tmp_path / "a.npz", {"model": fresh, "optimizer": other})
    step(model, optimizer)
    step(fresh, other)
    for key, value in params_of(model).items():
        np.testing.assert_array_equal(params_of(fresh)[key], value)
    assert int(other.step) == 2


def test_model_and_optimizer_in_one() -> None:
    trainer = nnx.ModelAndOptimizer(Model(), optax.sgd(0.1))
    expected, _ = run_by_hand(optax.sgd(0.1))

    @nnx.jit
    def train(trainer: nnx.ModelAndOptimizer[Model]) -> None:
        trainer.update(nnx.grad(loss)(trainer.model))

    for _ in range(STEPS):
        train(trainer)
    for key, value in params_of(trainer.model).items():
        np.testing.assert_allclose(value, expected[key], rtol=1e-5, atol=1e-7)


def test_training_learns() -> None:
    model = Model()
    optimizer = nnx.Optimizer(model, optax.adam(0.05))
    run = nnx.jit(step)
    for _ in range(300):
        run(model, optimizer)
    assert float(loss(model)) < 0.2 * float(np.mean(TARGETS**2))
