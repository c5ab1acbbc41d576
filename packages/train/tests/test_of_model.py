"""of_model: line searches over a model with statistics, streams and caches."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import moduli as nnx
from moduli.errors import StructureError

pytestmark = pytest.mark.usefixtures("standard_promotion")

X = np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32)
Y = np.tanh(X[:, :1] - X[:, 1:2])


class Model(nnx.Module):
    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.blocks = [nnx.Linear(3, 4, rngs=rngs), nnx.Linear(4, 1, rngs=rngs)]
        self.norm, self.dropout = nnx.BatchNorm(4, rngs=rngs), nnx.Dropout(0.3, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return self.blocks[1](self.dropout(jnp.tanh(self.norm(self.blocks[0](x)))))


def loss(model: Model, x: Any, y: Any = Y) -> Any:
    return ((model(x) - y) ** 2).mean()


SPELLINGS: dict[str, Any] = {
    "argument": (nnx.of_model(loss, X), {}),
    "update's": (nnx.of_model(loss), {"x": X, "y": Y}),
    "closure": (nnx.of_model(lambda model: loss(model, X)), {}),
    "aux": (nnx.of_model(lambda model, x: (loss(model, x), model), X, has_aux=True), {}),
}


@pytest.mark.parametrize(
    ("name", "mode"), [("update's", "eager"), *[(name, "donated") for name in SPELLINGS]]
)
def test_lbfgs_of_a_model_with_batchnorm_and_dropout(name: str, mode: str) -> None:
    value_fn, more = SPELLINGS[name]
    model, tx = Model(), optax.lbfgs(linesearch=optax.scale_by_zoom_linesearch(5))

    def step(model: Model, optimizer: Any) -> Any:
        value, grads = nnx.value_and_grad(loss)(model, X)
        optimizer.update(model, grads, value=value, grad=grads, value_fn=value_fn, **more)
        return value

    run = nnx.jit(step, donate_argnums=(0, 1)) if mode == "donated" else step
    optimizer = nnx.Optimizer(model, tx)
    graphdef, params, rest = nnx.split(Model(), nnx.Param, ...)
    by_hand = jax.tree.map(jnp.asarray, nnx.to_pure_dict(params))
    state = tx.init(by_hand)

    def pure(params: Any, rest: Any) -> Any:
        twin = nnx.merge(graphdef, params, rest, copy=True)
        value = loss(twin, X)
        return value, nnx.split(twin, nnx.Param, ...)[2]

    @jax.jit
    def step_by_hand(params: Any, state: Any, rest: Any) -> Any:
        (value, new), grads = jax.value_and_grad(pure, has_aux=True)(params, rest)
        updates, state = tx.update(
            grads, state, params, value=value, grad=grads, value_fn=lambda p: pure(p, rest)[0]
        )
        return optax.apply_updates(params, updates), state, new, value

    for _ in range(2 if mode == "eager" else 5):
        by_hand, state, rest, expected = step_by_hand(by_hand, state, rest)
        np.testing.assert_allclose(run(model, optimizer), expected, rtol=1e-4)
    now = nnx.split(model, nnx.Param, ...)
    expected = jax.tree.leaves((by_hand, nnx.filter_state(rest, (nnx.BatchStat, nnx.RngCount))))
    got = (now[1], nnx.filter_state(now[2], (nnx.BatchStat, nnx.RngCount)))
    for one, other in zip(jax.tree.leaves(got), expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-3, atol=1e-4)


def test_the_search_begins_at_the_value_and_leaves_the_model() -> None:
    seen: list[Any] = []

    def update(grads: Any, state: Any, params: Any, *, value: Any, value_fn: Any) -> Any:
        seen.append((value, value_fn(params), value_fn(params)))
        return jax.tree.map(jnp.zeros_like, grads), state

    model = Model()
    tx = optax.GradientTransformationExtraArgs(optax.init_empty_state, update)
    optimizer = nnx.Optimizer(model, tx)
    for _ in range(2):
        value, grads = nnx.value_and_grad(loss)(model, X)
        before = jax.tree.leaves(nnx.state(model))
        optimizer.update(model, grads, value=value, value_fn=nnx.of_model(loss, X))
        for old, new in zip(before, jax.tree.leaves(nnx.state(model)), strict=True):
            assert (old == new).all()
        np.testing.assert_allclose(seen[-1], [value] * 3, rtol=1e-6)
    assert float(seen[0][0]) != float(seen[1][0])
    assert nnx.of_model(loss, X)(model) > 0 and int(model.dropout.rngs.count) == 2


def test_a_model_that_is_held_by_its_optimizer() -> None:
    trainer = nnx.ModelAndOptimizer(nnx.Dict(w=nnx.Param(jnp.full(2, 3.0))), optax.lbfgs())
    f = lambda model: ((model["w"].value - 1.0) ** 2).sum()
    for _ in range(3):
        value, grads = nnx.value_and_grad(f)(trainer.model)
        trainer.update(grads, value=value, grad=grads, value_fn=nnx.of_model(f))
    np.testing.assert_allclose(trainer.model["w"].value, 1.0, rtol=1e-5)


def test_what_cannot_be_called_is_said() -> None:
    with pytest.raises(StructureError, match="of_model needs a callable"):
        nnx.of_model(1.0)  # type: ignore[arg-type]
