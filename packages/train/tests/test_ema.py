"""EMA and TrainState: closed forms, donation, and what they say of wrong input."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import moduli as nnx
from moduli.errors import StructureError, VariableError


class Model(nnx.Module):
    def __init__(self) -> None:
        self.w, self.count = nnx.Param(jnp.ones(3)), nnx.BatchStat(jnp.array(0))
        self.rngs = nnx.Rngs(0)

    def __call__(self, x: Any) -> Any:
        return (self.w * x).sum()


def test_averages_are_the_closed_form_and_other_values_the_last_ones() -> None:
    model, decay = Model(), 0.75
    ema = nnx.EMA(model, decay)
    shown = ema.apply_to(model)
    update = nnx.jit(lambda ema, model: ema.update(model))
    values = [np.full(3, float(n)) for n in range(1, 6)]
    for number, value in enumerate(values):
        model.w.value, model.count.value = jnp.asarray(value, jnp.float32), jnp.array(number)
        model.rngs.default()
        update(ema, model)
    weights = [decay ** (4 - n) * (1 - decay) for n in range(5)]
    expected = decay**5 * np.ones(3) + sum(w * v for w, v in zip(weights, values, strict=True))
    np.testing.assert_allclose(shown.w.value, expected, rtol=1e-6)
    assert shown.count.value == 4 and shown.rngs.default.count.value == 5
    assert shown.w is ema.params["w"] and model.w.value[0] == 5.0


@pytest.mark.parametrize("kind", ["EMA", "TrainState"])
def test_donation_deletes_nothing_of_the_model(kind: str) -> None:
    model = Model()
    graphdef, params, _rest = nnx.split(model, nnx.Param, ...)
    if kind == "EMA":
        ema = nnx.EMA(model, 0.5, only=nnx.Param)
        nnx.jit(lambda ema, model: ema.update(model), donate_argnums=0)(ema, model)
    else:
        state = nnx.TrainState.create(graphdef, params=params, tx=optax.adam(0.1))
        jax.jit(lambda s: s.apply_gradients(s.params), donate_argnums=0)(state)
    assert model.w.value.sum() == 3.0 and not model.w.value.is_deleted()


def test_an_update_that_fails_halfway_changes_nothing() -> None:
    model = nnx.Dict(a=nnx.Param(jnp.ones(2)), b=nnx.Param(jnp.ones(2)))
    ema = nnx.EMA(model, 0.5)
    with pytest.raises(StructureError, match=r"EMA.update.*`b`"):
        ema.update(nnx.state(nnx.Dict(a=nnx.Param(jnp.zeros(2)))))
    assert ema.params["a"].value.tolist() == [1.0, 1.0]


def test_an_array_that_is_no_variable_is_named() -> None:
    model = nnx.Dict(a=nnx.Param(1.0), b=jnp.ones(2))
    with pytest.raises(VariableError, match="`b` is a"):
        nnx.EMA(model, 0.5)
    assert list(nnx.EMA(model, 0.5, only=nnx.Param).params) == ["a"]


class WithStats(nnx.TrainState):
    batch_stats: nnx.State
    name: str = "run"


def test_a_train_state_is_a_pytree_with_paths_and_its_own_fields() -> None:
    model = Model()
    graphdef, params, stats, rest = nnx.split(model, nnx.Param, nnx.BatchStat, ...)
    state = WithStats.create(
        graphdef, params=params, tx=optax.sgd(0.5), batch_stats=stats, step=3, name=jnp.zeros(())
    )
    paths = {jax.tree_util.keystr(path[:1]) for path, _ in jax.tree.leaves_with_path(state)}
    assert paths == {".params", ".batch_stats", ".step", ".name"}
    loss, (_, after) = state.apply("params", "batch_stats", rest)(jnp.ones(3))
    assert loss == 3.0 and isinstance(after, nnx.State)
    new = jax.jit(lambda s: s.apply_gradients(s.params))(state)
    assert (new.params["w"].value == 0.5).all() and new.step == 4 and state.step == 3
    with pytest.raises(StructureError, match=r"WithStats.step holds"):
        state.apply("step")


def test_a_train_step_equals_that_of_an_optimizer() -> None:
    def loss(model: Any, x: Any) -> Any:
        return (model(x) - 1.0) ** 2

    model, x = Model(), jnp.arange(3.0)
    optimizer = nnx.Optimizer(model, optax.adam(0.1), wrt=nnx.Param)
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    state = nnx.TrainState.create(graphdef, params=params, tx=optax.adam(0.1))
    for _ in range(3):
        optimizer.update(model, nnx.grad(loss)(model, x))
        grads = jax.grad(lambda p: loss(nnx.merge(graphdef, p, rest, copy=True), x))(state.params)
        state = state.apply_gradients(grads)
    np.testing.assert_allclose(state.params["w"].value, model.w.value, rtol=1e-6)


def schedule(step: Any) -> Any:
    return jnp.minimum(0.9, (1 + step) / (4 + step))


@pytest.mark.parametrize("mode", ["eager", "jit", "donated"])
@pytest.mark.parametrize("decay", [0.75, schedule], ids=["number", "schedule"])
@pytest.mark.parametrize("debias", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_schedules_and_debiasing(mode: str, decay: Any, debias: bool, dtype: str) -> None:
    model = nnx.Dict(w=nnx.Param(jnp.full(3, 5.0, dtype)), n=nnx.BatchStat({"k": jnp.zeros(2)}))
    ema = nnx.EMA(model, decay, debias=debias)
    update: Any = lambda ema, model: ema.update(model)
    options: Any = {"donate_argnums": (0, 1)} if mode == "donated" else {}
    run = update if mode == "eager" else nnx.jit(update, **options)
    mean, weight = (0.0, 0.0) if debias else (5.0, 1.0)
    for number in range(5):
        model["w"].value = jnp.full(3, float(number), dtype)
        run(ema, model)
        d = float(decay(number)) if callable(decay) else decay
        mean, weight = d * mean + (1 - d) * number, d * weight + (1 - d)
        got = ema.params["w"].value
        rtol = 1e-5 if dtype == "float32" else 2**-8
        np.testing.assert_allclose(np.asarray(got, np.float64), mean / weight, rtol=rtol)
        assert got.dtype == dtype


def test_averages_of_narrow_floats_neither_grow_nor_stick() -> None:
    model = nnx.Dict(w=nnx.Param(jnp.ones(3, jnp.bfloat16)))
    ema = nnx.EMA(model, 0.999)
    update = nnx.jit(lambda ema, model: ema.update(model), donate_argnums=0)
    for _ in range(700):
        update(ema, model)
    np.testing.assert_array_equal(np.asarray(ema.params["w"].value, np.float32), 1.0)
    model["w"].value = jnp.zeros(3, jnp.bfloat16)
    for _ in range(700):
        update(ema, model)
    expected = 0.999**700
    np.testing.assert_allclose(np.asarray(ema.params["w"].value, np.float32), expected, rtol=2**-8)


def test_averages_go_on_after_a_checkpoint(tmp_path: Any) -> None:
    def make() -> Any:
        model = nnx.Dict(w=nnx.Param(jnp.arange(3.0, dtype=jnp.bfloat16)), v=nnx.Param(jnp.ones(2)))
        return model, nnx.EMA(model, schedule, debias=True)

    def step(model: Any, ema: Any) -> None:
        for variable in model.values():
            variable.value = variable.value * 1.5 + 0.5
        ema.update(model)

    run, (model, ema), (fresh, other) = nnx.jit(step, donate_argnums=(0, 1)), make(), make()
    for _ in range(3):
        run(model, ema)
    nnx.save(tmp_path / "a.npz", {"model": model, "ema": ema})
    nnx.load(tmp_path / "a.npz", {"model": fresh, "ema": other})
    for _ in range(3):
        run(model, ema)
        run(fresh, other)
    for one, two in zip(*map(jax.tree.leaves, map(nnx.state, (ema, other))), strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(two))
    assert int(other.step) == 6


def test_without_options_it_holds_what_flax_holds() -> None:
    assert list(nnx.state(nnx.EMA(Model(), 0.5, only=nnx.Param))) == ["params"]


def test_a_donated_train_state_goes_on_after_a_checkpoint(tmp_path: Any) -> None:
    def make() -> Any:
        graphdef, params, stats, _ = nnx.split(Model(), nnx.Param, nnx.BatchStat, ...)
        tx = optax.contrib.sam(optax.sgd(0.1), optax.sgd(0.05))  # begins with the parameters
        return WithStats.create(graphdef, params=params, tx=tx, batch_stats=stats, name=None)

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state: Any) -> Any:
        stats = jax.tree.map(lambda count: count + 1, state.batch_stats)
        return state.apply_gradients(state.params, batch_stats=stats)

    def parts(state: Any) -> Any:
        return {
            name: getattr(state, name) for name in ("params", "opt_state", "batch_stats", "step")
        }

    state = step(step(make()))
    nnx.save(tmp_path / "a.npz", parts(state))
    other = make()
    other = other.replace(**nnx.load(tmp_path / "a.npz", parts(other)))
    expected, got = step(step(state)), step(step(other))
    assert int(got.step) == int(got.batch_stats["count"].value) == 4
    for one, two in zip(jax.tree.leaves(expected), jax.tree.leaves(got), strict=True):
        np.testing.assert_array_equal(one, two)
