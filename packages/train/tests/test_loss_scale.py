"""LossScale: the numbers of float32, and nothing changed by a step that overflows."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import moduli as nnx

pytestmark = pytest.mark.usefixtures("standard_promotion")

X = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float16)


class Model(nnx.Module):
    def __init__(self, dtype: Any) -> None:
        rngs = nnx.Rngs(0)
        self.linear = nnx.Linear(3, 4, dtype=dtype, param_dtype=dtype, rngs=rngs)
        self.norm = nnx.BatchNorm(4, dtype=dtype, rngs=rngs)
        self.scale = jnp.ones((), dtype)  # an array that is no Variable

    def __call__(self, x: Any) -> Any:
        return self.norm(self.linear(x)) * self.scale


def loss(model: Model, x: Any) -> Any:
    return (model(x) ** 2).mean() * 1e-6, {"x": x}


def values(*nodes: Any) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves([nnx.state(node) for node in nodes])]


@pytest.mark.parametrize("by", [nnx.value_and_grad, functools.partial(nnx.accumulate, parts=2)])
def test_small_gradients_do_not_vanish(by: Any) -> None:
    def tiny(model: Any, x: Any) -> Any:
        return (model["w"].value * x).mean() * model["w"].value.dtype.type(2**-12)

    x = jnp.full(8, 2.0**-14, jnp.float16)
    model = nnx.Dict(w=nnx.Param(jnp.ones((), jnp.float16)))
    assert float(nnx.grad(tiny)(model, x)["w"].value) == 0.0
    value, grads = nnx.LossScale(2.0**12).value_and_grad(tiny, by=by)(model, x)
    assert value.dtype == jnp.float32 and float(grads["w"].value) == 2.0**-26


@pytest.mark.parametrize("mode", ["eager", "donated"])
@pytest.mark.parametrize("make", ["Optimizer", "ModelAndOptimizer"])
def test_an_overflow_changes_nothing_but_the_scale(make: str, mode: str) -> None:
    model, scale = Model(jnp.float16), nnx.LossScale(2.0**10, interval=2)
    optimizer = getattr(nnx, make)(model, optax.adam(1e-2, eps=1e-3), wrt=nnx.Param)

    def step(model: Any, optimizer: Any, scale: Any, x: Any) -> Any:
        (value, aux), grads = scale.value_and_grad(loss, has_aux=True)(model, x)
        return value, aux, scale.update(optimizer, model, grads)

    donated: Any = {"donate_argnums": (0, 1, 2)} if mode == "donated" else {}
    run = step if mode == "eager" else nnx.jit(step, **donated)
    scales = [2.0**10, 2.0**11, 2.0**11, 2.0**10, 2.0**10, 2.0**11]
    for number, expected in enumerate(scales):
        bad = number == 3
        x = jnp.asarray(X) * (jnp.float16(jnp.inf) if bad else 1)
        before = values(model, optimizer)
        _, aux, used = run(model, optimizer, scale, x)
        same = [np.array_equal(a, b) for a, b in zip(values(model, optimizer), before, strict=True)]
        assert all(same) is bad is not bool(used)
        assert float(scale.scale.value) == expected
        assert aux["x"].dtype == jnp.float16
    assert int(optimizer.step) == 5


def test_as_float32_without_it() -> None:
    ours, plain = Model(jnp.float32), Model(jnp.float32)
    one, other = (nnx.Optimizer(m, optax.sgd(0.1, momentum=0.9)) for m in (ours, plain))
    scale = nnx.LossScale(2.0**8)  # a power of two: no bit is lost
    f = lambda model, x: (model(x) ** 2).mean()
    for _ in range(3):
        scale.update(one, ours, scale.value_and_grad(f)(ours, X)[1])
        other.update(plain, nnx.grad(f)(plain, X))
    for a, b in zip(values(ours, one), values(plain, other), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)


def test_the_scale_stays_in_its_bounds() -> None:
    model = nnx.Dict(w=nnx.Param(jnp.ones(2)))
    optimizer = nnx.Optimizer(model, optax.sgd(0.0))
    for grad, bound in ((0.0, 2.0**24), (np.nan, 2.0**-24)):
        scale = nnx.LossScale(1.0, growth=2.0**20, interval=1, backoff=2.0**-20)
        for _ in range(3):
            scale.update(optimizer, model, nnx.State({"w": jnp.full(2, grad)}))
        assert float(scale.scale.value) == bound
