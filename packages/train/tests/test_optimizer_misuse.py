"""Arguments in the wrong place are errors that say what to write, and change nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import moduli as nnx
from moduli.errors import ModuliError

pytestmark = pytest.mark.usefixtures("standard_promotion")


class Net(nnx.Module):
    def __init__(self) -> None:
        self.body = nnx.Param(jnp.ones((3, 3)))
        self.head = nnx.Param(jnp.ones((3, 3)))


def loss(net: Net) -> jax.Array:
    return (jnp.ones((2, 3)) @ net.body.value @ net.head.value).sum()


TXS: dict[str, Callable[[], Any]] = {
    "sgd": lambda: optax.sgd(0.1),
    "adam": lambda: optax.adam(0.1),
    "plain labels": lambda: optax.multi_transform(
        {"on": optax.adam(0.1), "off": optax.set_to_zero()}, {"body": "off", "head": "on"}
    ),
}
MISUSES: dict[str, tuple[Callable[[Any, Any, Any], Any], str]] = {
    "swapped": (lambda o, m, g: o.update(g, m), r"swapped; .*update\(model, grads\)"),
    "old": (lambda o, m, g: o.update(g), r"State alone.*update\(model, grads\).*ModelAndOptimizer"),
    "model alone": (lambda o, m, g: o.update(m), r"a Net alone.*update\(model, grads\)"),
    "nothing": (lambda o, m, g: o.update(), r"neither.*update\(model, grads\)"),
    "keyword": (lambda o, m, g: o.update(m, grads=g), r"grads by keyword"),
    "keywords": (lambda o, m, g: o.update(model=m, grads=g), r"grads and model by keyword"),
    "model twice": (lambda o, m, g: o.update(m, m), r"as model and as gradients"),
    "none": (lambda o, m, g: o.update(m, None), r"None as gradients.*update\(model, grads\)"),
    "a loss": (lambda o, m, g: o.update(m, jnp.ones(())), r"update\(model, grads\)"),
    "value and grads": (lambda o, m, g: o.update(m, (1.0, g)), r"a tuple as gradients"),
}


def snapshot(*nodes: Any) -> list[Any]:
    return [np.asarray(leaf) for node in nodes for leaf in jax.tree.leaves(nnx.state(node))]


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("tx", TXS)
@pytest.mark.parametrize("misuse", MISUSES)
def test_misused_update(misuse: str, tx: str, jit: bool) -> None:
    call, message = MISUSES[misuse]
    net = Net()
    optimizer = nnx.Optimizer(net, TXS[tx](), wrt=nnx.Param)
    before = snapshot(net, optimizer)
    with pytest.raises(ModuliError, match=message):
        (nnx.jit(call) if jit else call)(optimizer, net, nnx.grad(loss)(net))
    for old, new in zip(before, snapshot(net, optimizer), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize(
    ("tx", "message"),
    [
        (optax.adam, r"`adam`, no gradient transformation; call it, as in `optax\.adam\(\.\.\.\)`"),
        (optax.cosine_decay_schedule(0.1, 10), r"schedule"),
        (0.1, r"optax\.adam\(1e-3\)"),
        (None, r"NoneType.*optax\.adam\(1e-3\)"),
        ("adam", r"a str.*optax\.adam\(1e-3\)"),
        (optax.GradientTransformation, r"no gradient transformation"),
    ],
)
def test_what_is_no_transformation(tx: Any, message: str) -> None:
    for make in (nnx.Optimizer, nnx.ModelAndOptimizer):
        with pytest.raises(ModuliError, match=message):
            make(Net(), tx, wrt=nnx.Param)


def test_model_and_transformation_swapped() -> None:
    with pytest.raises(ModuliError, match=r"swapped: write `Optimizer\(model, tx"):
        nnx.Optimizer(optax.adam(0.1), Net(), wrt=nnx.Param)  # type: ignore[arg-type]


@pytest.mark.parametrize("tx", ["adam", "plain labels"])
def test_another_head_is_named(tx: str) -> None:
    net = Net()
    optimizer = nnx.Optimizer(net, TXS[tx](), wrt=nnx.Param)
    net.head = nnx.Param(jnp.ones((3, 5)))
    before = snapshot(net, optimizer)
    with pytest.raises(ModuliError, match=r"`head`.*\(3, 3\).*\(3, 5\).*new Optimizer"):
        optimizer.update(net, nnx.grad(loss)(net))
    for old, new in zip(before, snapshot(net, optimizer), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize("tx", ["adam", "plain labels"])
@pytest.mark.parametrize("change", ["gained", "lost"])
def test_parameters_gained_and_lost(tx: str, change: str) -> None:
    net = Net()
    optimizer = nnx.Optimizer(net, TXS[tx](), wrt=nnx.Param)
    if change == "gained":
        net.tail = nnx.Param(jnp.ones(2))
    else:
        del net.head
    before = snapshot(net, optimizer)
    with pytest.raises((ModuliError, ValueError), match=r"tail|head"):
        optimizer.update(net, jax.tree.map(jnp.ones_like, nnx.state(net, nnx.Param)))
    for old, new in zip(before, snapshot(net, optimizer), strict=True):
        np.testing.assert_array_equal(old, new)


def test_the_optimizer_that_holds_its_model() -> None:
    trainer = nnx.ModelAndOptimizer(Net(), optax.sgd(0.1), wrt=nnx.Param)
    grads = nnx.grad(loss)(trainer.model)
    for call in (lambda: trainer.update(trainer.model, grads), lambda: trainer.update()):
        with pytest.raises(ModuliError, match=r"update\(grads\)"):
            call()
    trainer.update(grads)
    assert int(trainer.step) == 1


@pytest.mark.parametrize("form", ["State", "pure dict", "Module"])
@pytest.mark.parametrize("tx", TXS)
def test_gradients_in_every_form_are_taken(tx: str, form: str) -> None:
    results = []
    for turn in ("State", form):
        net = Net()
        optimizer = nnx.Optimizer(net, TXS[tx](), wrt=nnx.Param)
        grads: Any = nnx.grad(loss)(net)
        if turn == "pure dict":
            grads = nnx.to_pure_dict(grads)
        elif turn == "Module":
            grads = nnx.merge(nnx.graphdef(net), grads)
        optimizer.update(net, grads)
        results.append(snapshot(net))
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one, other)
