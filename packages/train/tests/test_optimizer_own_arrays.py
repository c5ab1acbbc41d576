"""An optimizer's state shares no buffer with the parameters or within itself: both are donated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optimizer_models import INPUTS, Model, by_hand, loss, loss_by_hand, params_of

import moduli as nnx
from moduli.errors import DonatedError

pytestmark = pytest.mark.usefixtures("standard_promotion")


def keep(params: Any) -> Any:
    made: dict[Any, Any] = {}
    zeros = jax.tree.map(lambda p: made.setdefault(p.shape, jnp.zeros_like(p)), params)
    return {"first": params, "again": params, "zero": zeros, "nil": zeros}


STARTING_WITH_PARAMETERS: dict[str, Callable[[], Any]] = {
    "sam": lambda: optax.contrib.sam(
        optax.sgd(0.1), optax.chain(optax.contrib.normalize(), optax.sgd(0.05)), sync_period=2
    ),
    "schedule_free": lambda: optax.contrib.schedule_free(optax.sgd(0.1), learning_rate=0.1, b1=0.9),
    "dog": lambda: optax.contrib.dog(0.1),
    "labels": lambda: optax.partition(
        {"a": optax.contrib.dog(0.1), "b": optax.sgd(0.1)},
        lambda params: jax.tree.map(lambda p: "ab"[p.ndim > 1], params),
    ),
}


@pytest.mark.parametrize("made", ["eager", "jit"])
@pytest.mark.parametrize("name", STARTING_WITH_PARAMETERS)
def test_donated_steps_give_the_numbers_of_optax(name: str, made: str) -> None:
    tx = STARTING_WITH_PARAMETERS[name]()
    model = Model()
    make: Any = lambda model: nnx.Optimizer(model, tx)
    optimizer = (nnx.jit(make) if made == "jit" else make)(model)
    check_own(model, optimizer)

    @nnx.jit(donate_argnums=(0, 1))
    def step(model: Model, optimizer: nnx.Optimizer[Model]) -> None:
        optimizer.update(model, nnx.grad(loss)(model))

    params = by_hand()
    state = tx.init(params)
    for _ in range(3):
        step(model, optimizer)
        updates, state = tx.update(jax.grad(loss_by_hand)(params), state, params)
        params = optax.apply_updates(params, updates)
        check_own(model, optimizer)
    for key, value in params_of(model).items():
        np.testing.assert_allclose(value, params[key], rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("make", [nnx.Param, nnx.Variable], ids=["Param", "Variable"])
def test_an_array_that_a_state_holds_twice_is_two(make: Any) -> None:
    model = nnx.Dict(a=make(jnp.ones(3)), b=[make(jnp.ones(3)), make({"c": jnp.ones(2)})])
    tx = optax.GradientTransformation(keep, lambda grads, state, params=None: (grads, state))
    optimizer = nnx.Optimizer(model, tx, wrt=make)
    check_own(model, optimizer)
    nnx.jit(lambda *_: None, donate_argnums=(0, 1))(model, optimizer)
    assert optimizer.opt_state["again"]["a"].value.sum() == 3.0


def check_own(*nodes: Any) -> None:
    pointers = [a.unsafe_buffer_pointer() for a in jax.tree.leaves(list(map(nnx.state, nodes)))]
    assert len(pointers) == len(set(pointers))


USES: dict[str, Any] = {
    "update": (lambda m, o: o.update(m, nnx.state(Model(), nnx.Param)), r"`model/layers/0"),
    "state": (
        lambda m, o: o.update(Model(), nnx.state(Model(), nnx.Param)),
        r"`self/opt_state/0",
    ),
    "average": (lambda m, o: nnx.EMA(Model(), 0.5).update(m), r"`updates/layers/0"),
    "accumulate": (
        lambda m, o: nnx.accumulate(lambda model, x: model(x).sum(), 2)(m, INPUTS),
        r"`model/layers/0",
    ),
}


@pytest.mark.parametrize("name", USES)
def test_use_after_donation_is_explained(name: str) -> None:
    call, place = USES[name]
    model = Model()
    optimizer = nnx.Optimizer(model, optax.adam(0.1))
    clones = nnx.clone(model), nnx.clone(optimizer)

    @nnx.jit(donate_argnums=(0, 1))
    def donated_step(model: Model, optimizer: nnx.Optimizer[Model]) -> None:
        optimizer.update(model, nnx.grad(loss)(model))

    donated_step(model, optimizer)
    with pytest.raises(DonatedError, match=f"Deleted: .*{place}.*donated_step at .*jnp.copy"):
        call(*clones)
