"""Labels and masks in every form that optax's pages show give what optax gives for plain params."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import moduli as nnx

pytestmark = pytest.mark.usefixtures("standard_promotion")

TXS = {"on": optax.adam(0.1), "off": optax.set_to_zero(), "slow": optax.sgd(0.1, momentum=0.9)}


def tree(rng: random.Random, depth: int) -> Any:
    """Random nested dicts and lists (some longer than ten) of arrays."""
    if depth == 0 or (depth < 3 and rng.random() < 0.3):
        return np.asarray([rng.uniform(-1, 1) for _ in range(rng.choice([1, 3]))], np.float32)
    if rng.random() < 0.4:
        return [tree(rng, depth - 1) for _ in range(rng.choice([1, 2, 11]))]
    return {name: tree(rng, depth - 1) for name in rng.sample("abcd", rng.choice([1, 2, 3]))}


def node(params: Any) -> Any:
    if isinstance(params, dict):
        return nnx.Dict({key: node(value) for key, value in params.items()})
    if isinstance(params, list):
        return nnx.List([node(value) for value in params])
    return nnx.Param(jnp.asarray(params))


def spelled(params: Any, form: str) -> Any:
    """The same tree with lists as lists, or as dicts with int or str keys."""
    if isinstance(params, list):
        parts = [spelled(value, form) for value in params]
        if form == "list":
            return parts
        return {str(i) if form == "str" else i: part for i, part in enumerate(parts)}
    if isinstance(params, dict):
        return {key: spelled(value, form) for key, value in params.items()}
    return params


def upper(params: Any, choose: Callable[[], Any], rng: random.Random) -> Any:
    """Labels for a tree, or for its upper part."""
    if isinstance(params, np.ndarray) or rng.random() < 0.2:
        return choose()
    if isinstance(params, list):
        return [upper(value, choose, rng) for value in params]
    return {key: upper(value, choose, rng) for key, value in params.items()}


def given(labels: Any, how: str) -> Any:
    form, _, kind = how.partition(" ")
    if form == "State":
        form = "int"
    labels = spelled(labels, form)
    if how.startswith("State") and isinstance(labels, dict):
        labels = nnx.State(labels)
    return (lambda params: labels) if kind else labels


MAKE = {
    "multi_transform": (("on", "off", "slow"), lambda tree: optax.multi_transform(TXS, tree)),
    "partition": (("on", "off", "slow"), lambda tree: optax.partition(TXS, tree)),
    "masked": ((True, False), lambda tree: optax.masked(optax.adam(0.1), tree)),
    "decay": ((True, False), lambda tree: optax.add_decayed_weights(0.1, mask=tree)),
    "adamw": ((True, False), lambda tree: optax.adamw(0.1, weight_decay=0.3, mask=tree)),
    "chain": (
        (True, False),
        lambda tree: optax.chain(optax.clip(0.5), optax.masked(optax.sgd(0.1), tree)),
    ),
}
HOWS = ["int", "list", "str", "State", "int function", "list function", "State function"]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("name", MAKE)
def test_same_as_optax_on_plain_params(name: str, how: str, seed: int) -> None:
    rng = random.Random(f"{name} {how} {seed}")
    params = {"a": tree(rng, 3), "b": [tree(rng, 1) for _ in range(11)]}
    choices, make = MAKE[name]
    labels = {key: upper(value, lambda: rng.choice(choices), rng) for key, value in params.items()}
    model = node(params)
    optimizer = nnx.Optimizer(model, make(given(labels, how)), wrt=nnx.Param)
    reference = make(labels)
    state = reference.init(params)

    def loss_of(leaves: Any) -> Any:
        return sum(jnp.sum(jnp.sin((i + 1) * leaf)) for i, leaf in enumerate(leaves))

    def loss(model: Any) -> Any:
        return loss_of(jax.tree.leaves(leaves_like(model, params)))

    for number in range(2):
        grads = jax.grad(lambda p: loss_of(jax.tree.leaves(p)))(params)
        updates, state = reference.update(grads, state, params)
        params = optax.apply_updates(params, updates)

        own = nnx.grad(loss)(model)
        step: Any = lambda m, o, g: o.update(m, g)
        returned = (nnx.jit(step) if number and seed == 0 else step)(model, optimizer, own)
        assert isinstance(returned, nnx.State)
        for expected, got in zip(
            jax.tree.leaves(params), jax.tree.leaves(leaves_like(model, params)), strict=True
        ):
            np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    assert int(optimizer.step) == 2


def leaves_like(model: Any, params: Any) -> Any:
    if isinstance(params, dict):
        return {key: leaves_like(model[key], value) for key, value in params.items()}
    if isinstance(params, list):
        return [leaves_like(model[i], value) for i, value in enumerate(params)]
    return model.value


def test_the_function_on_optax_page_sees_dicts() -> None:
    def map_nested(fn: Any) -> Any:
        def mapped(nested: Any) -> Any:
            return {k: mapped(v) if isinstance(v, dict) else fn(k, v) for k, v in nested.items()}

        return mapped

    model = node({"one": {"w": np.ones(2, np.float32), "b": np.ones(2, np.float32)}})
    labels = map_nested(lambda key, _: "off" if key == "w" else "slow")
    optimizer = nnx.Optimizer(model, optax.multi_transform(TXS, labels))
    grads = nnx.grad(lambda m: jnp.sum(m["one"]["w"].value * m["one"]["b"].value))(model)
    optimizer.update(model, grads)
    np.testing.assert_array_equal(model["one"]["w"].value, np.ones(2))
    np.testing.assert_allclose(model["one"]["b"].value, 0.9 * np.ones(2), rtol=1e-6)


@pytest.mark.parametrize("jit", [False, True])
def test_a_line_search_beside_plain_masks_gets_states(jit: bool) -> None:
    model = node({"a": [np.full(2, 3.0, np.float32)], "b": np.full(1, 2.0, np.float32)})
    tx = optax.chain(optax.masked(optax.clip(9.0), {"a": [True], "b": False}), optax.lbfgs())
    optimizer = nnx.Optimizer(model, tx)
    loss = lambda m: jnp.sum(m["a"][0].value ** 2) + jnp.sum(m["b"].value ** 2)
    kinds = set()

    def step(model: Any, optimizer: Any) -> Any:
        graphdef, _ = nnx.split(model)
        value, grads = nnx.value_and_grad(loss)(model)

        def value_fn(state: Any) -> Any:
            kinds.add(type(state))
            return loss(nnx.merge(graphdef, state))

        optimizer.update(model, grads, value=value, grad=grads, value_fn=value_fn)
        return value

    run = nnx.jit(step) if jit else step
    values = [float(run(model, optimizer)) for _ in range(4)]
    assert values[-1] < 1e-6 and kinds == {nnx.State}


def test_split_merge_and_copies_keep_the_form() -> None:
    model = node({"a": [np.ones(2, np.float32)], "b": np.ones(2, np.float32)})
    tx = optax.multi_transform(TXS, {"a": ["on"], "b": "off"})
    optimizer = nnx.merge(*nnx.split(nnx.Optimizer(model, tx)))
    optimizer.update(model, nnx.grad(lambda m: m["a"][0].value.sum() + m["b"].value.sum())(model))
    assert (model["a"][0].value != 1).all() and (model["b"].value == 1).all()


def test_labels_that_fit_in_no_form_say_what_to_write() -> None:
    model = node({"a": np.ones(2, np.float32)})
    with pytest.raises(ValueError) as caught:
        nnx.Optimizer(model, optax.multi_transform(TXS, {"head": "on"}))
    assert "nnx.State(" in "".join(caught.value.__notes__)
    assert "begin with 'a'" in "".join(caught.value.__notes__)
