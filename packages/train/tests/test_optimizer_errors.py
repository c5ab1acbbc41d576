"""What does not fit together is an error that names the paths, and changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optimizer_models import Dense, Model, loss

import moduli as nnx
from moduli.errors import StructureError, TraceError

pytestmark = pytest.mark.usefixtures("standard_promotion")


def fails(model: Any, optimizer: nnx.Optimizer[Any], call: Callable[[], Any], reason: str) -> None:
    """Runs the call, which must raise, and checks that nothing has changed."""

    def snapshot() -> list[Any]:
        return [
            np.asarray(leaf) for leaf in jax.tree.leaves((nnx.state(model), nnx.state(optimizer)))
        ]

    before = snapshot()
    with pytest.raises(StructureError, match=reason):
        call()
    after = snapshot()
    assert len(before) == len(after)
    for old, new in zip(before, after, strict=True):
        np.testing.assert_array_equal(old, new)


def test_gradients_of_another_kind() -> None:
    model = nnx.Dict({"w": nnx.Param(jnp.ones(2)), "mean": nnx.BatchStat(jnp.ones(2))})
    optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)
    grads = nnx.grad(
        lambda model: jnp.sum(model["w"].value * model["mean"].value),
        argnums=nnx.DiffState(0, nnx.BatchStat),
    )(model)
    fails(
        model,
        optimizer,
        lambda: optimizer.update(model, grads),
        r"wrt=Param selects, but these have no gradient: `w` \(Param\)\.\s+The gradients given are "
        r"those of: `mean` \(BatchStat\)\.\s+.*argnums=moduli\.DiffState\(0, Param\)",
    )


def test_gradients_of_a_part() -> None:
    model = Model()
    optimizer = nnx.Optimizer(model, optax.adam(1e-2))
    grads = nnx.grad(loss, argnums=nnx.DiffState(0, nnx.PathContains("bias")))(model)
    fails(
        model,
        optimizer,
        lambda: optimizer.update(model, grads),
        r"no gradient: `layers/0/kernel` \(Param\), `layers/1/kernel` \(Param\)",
    )


def test_gradients_of_another_model() -> None:
    model = nnx.Dict({"kernel": nnx.Param(jnp.ones(2))})
    optimizer = nnx.Optimizer(model, optax.sgd(0.1))
    grads = nnx.State({"kernel": nnx.Param(jnp.ones(2)), "kernels": nnx.Param(jnp.ones(2))})
    fails(
        model,
        optimizer,
        lambda: optimizer.update(model, grads),
        r"belong to no value of the model \(did you mean `kernel`\?\): `kernels` \(Param\)",
    )


def test_gradient_of_another_shape() -> None:
    model = nnx.Dict({"kernel": nnx.Param(jnp.ones((2, 3)))})
    optimizer = nnx.Optimizer(model, optax.sgd(0.1))
    fails(
        model,
        optimizer,
        lambda: optimizer.update(model, nnx.State({"kernel": nnx.Param(jnp.ones(3))})),
        r"gradient of `kernel` has shape \(3,\), and the parameter has \(2, 3\)",
    )


def test_what_is_not_a_gradient() -> None:
    model = Model()
    optimizer = nnx.Optimizer(model, optax.sgd(0.1))
    fails(
        model,
        optimizer,
        lambda: optimizer.update(model, jnp.ones(())),
        "got a ArrayImpl as gradients; pass the State that",
    )


def test_model_that_has_grown() -> None:
    model = Model()
    optimizer = nnx.Optimizer(model, optax.adam(1e-2))
    model.layers.append(Dense(np.ones((2, 2), np.float32)))
    grads = nnx.grad(lambda model: loss(model) + model.layers[2].kernel.value.sum())(model)
    fails(
        model,
        optimizer,
        lambda: optimizer.update(model, grads),
        r"it has no state for `layers/2/bias`, `layers/2/kernel`\. Make a new Optimizer",
    )


def test_model_that_has_lost_a_parameter() -> None:
    model = nnx.Dict({"a": nnx.Param(jnp.ones(2)), "b": nnx.Param(jnp.ones(2))})
    optimizer = nnx.Optimizer(model, optax.adam(1e-2))
    del model["b"]
    grads = nnx.State({"a": nnx.Param(jnp.ones(2))})
    fails(model, optimizer, lambda: optimizer.update(model, grads), "`b` is gone")


def test_parameter_that_has_changed_its_shape() -> None:
    model = nnx.Dict({"a": nnx.Param(jnp.ones((1, 3)))})
    optimizer = nnx.Optimizer(model, optax.adam(1e-2))
    model["a"].value = jnp.ones((2, 3))  # broadcasts with the old momentum
    grads = nnx.State({"a": nnx.Param(jnp.ones((2, 3)))})
    fails(
        model,
        optimizer,
        lambda: optimizer.update(model, grads),
        r"`opt_state/0/mu/a` has shape \(1, 3\) and would become \(2, 3\)",
    )


def test_state_that_changes_its_structure() -> None:
    tx = optax.GradientTransformation(
        lambda params: (jnp.zeros(()),), lambda grads, state, params=None: (grads, (*state, 1))
    )
    model = nnx.Dict({"a": nnx.Param(jnp.ones(2))})
    optimizer = nnx.Optimizer(model, tx)
    fails(
        model,
        optimizer,
        lambda: optimizer.update(model, nnx.State({"a": nnx.Param(jnp.ones(2))})),
        "returned a state of another structure than its `init` made",
    )


def test_error_of_the_transformation_itself_is_not_hidden() -> None:
    def update(grads: Any, state: Any, params: Any = None) -> Any:
        raise ValueError("my own")

    model = nnx.Dict({"a": nnx.Param(jnp.ones(2))})
    optimizer = nnx.Optimizer(model, optax.GradientTransformation(lambda params: (), update))
    with pytest.raises(ValueError, match=r"^my own$"):
        optimizer.update(model, nnx.State({"a": nnx.Param(jnp.ones(2))}))


def test_filter_that_selects_nothing() -> None:
    with pytest.raises(
        StructureError, match=r"selects nothing of the Dict, which holds \['BatchStat'\]"
    ):
        nnx.Optimizer(nnx.Dict({"a": nnx.BatchStat(jnp.ones(2))}), optax.sgd(0.1), wrt=nnx.Param)


def test_update_inside_a_plain_jit_of_outer_objects_is_an_error() -> None:
    model = Model()
    optimizer = nnx.Optimizer(model, optax.sgd(0.1))
    grads = nnx.grad(loss)(model)

    @jax.jit
    def train() -> None:
        optimizer.update(model, grads)

    with pytest.raises(TraceError, match="made outside of the trace that is running"):
        train()
    assert int(optimizer.step) == 0
