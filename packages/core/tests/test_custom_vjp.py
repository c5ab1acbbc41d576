"""custom_vjp: the rule gets modules, and its cotangents reach jax, whatever is around it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import moduli as nnx
from moduli import errors


class Model(nnx.Module):
    def __init__(self):
        self.w = nnx.Param(jnp.array([1.0, 2.0]))
        self.calls = nnx.Variable(jnp.zeros((), jnp.int32))

    def __call__(self, x):
        self.calls.value += 1
        return self.w.value * x


def scaled(factor):
    """A function of a model whose gradient is multiplied by a factor."""

    @nnx.custom_vjp
    def function(model, x):
        return model(x)

    def forward(model, x):
        return function(model, x), (model.w.value, x)

    def backward(residuals, g):
        (w, x), (_, g) = residuals, g
        return nnx.State({"w": factor * g * x}), factor * g * w

    function.defvjp(forward, backward)
    return function


X = jnp.array([3.0, 5.0])


@pytest.mark.parametrize("jitted", [False, True])
def test_the_rule_gives_the_gradient(jitted):
    f, model = scaled(10.0), Model()

    def loss(model, x):
        return f(model, x).sum()

    run = nnx.grad(loss, argnums=(0, 1))
    grads, grad_x = (nnx.jit(run) if jitted else run)(model, X)
    np.testing.assert_allclose(grads.w.value, 10 * X)
    np.testing.assert_allclose(grad_x, 10 * model.w.value)
    assert int(model.calls.value) == 1
    np.testing.assert_allclose(f(model, X), model.w.value * X)  # without a gradient around it
    assert int(model.calls.value) == 2


def test_a_rule_that_is_right_agrees_with_raw_jax():
    f, model = scaled(1.0), Model()

    def deep(model, x):
        for _ in range(3):
            x = jnp.tanh(f(model, x))
        return x.sum()

    def by_hand(w, x):
        for _ in range(3):
            x = jnp.tanh(w * x)
        return x.sum()

    grads, grad_x = nnx.grad(deep, argnums=(0, 1))(model, X)
    expected = jax.grad(by_hand, argnums=(0, 1))(model.w.value, X)
    np.testing.assert_allclose(grads.w.value, expected[0], rtol=1e-6)
    np.testing.assert_allclose(grad_x, expected[1], rtol=1e-6)
    assert int(model.calls.value) == 3


def test_under_vmap_scan_and_remat():
    f, model = scaled(2.0), Model()
    xs = jnp.stack([X, X + 1, X + 2])

    def looped(model, xs):
        return nnx.scan(nnx.remat(f), in_axes=(None, 0), out_axes=0)(model, xs).sum()

    grads = nnx.jit(nnx.grad(looped))(model, xs)
    np.testing.assert_allclose(grads.w.value, 2 * xs.sum(0))
    assert int(model.calls.value) == 3

    @nnx.custom_vjp
    def multiply(model, x):
        return model.w.value * x

    multiply.defvjp(
        lambda model, x: (model.w.value * x, x),
        lambda x, g: (nnx.State({"w": 2 * g[1] * x}), None),
    )

    def mapped(model, xs):
        return nnx.vmap(multiply, in_axes=(None, 0))(model, xs).sum()

    np.testing.assert_allclose(nnx.grad(mapped)(model, xs).w.value, 2 * xs.sum(0))


def test_the_rule_sees_the_cotangents_of_what_the_function_left():
    seen = {}

    @nnx.custom_vjp
    def f(model, x):
        model.w.value = model.w.value * x
        return x.sum()

    def forward(model, x):
        w = model.w.value
        return f(model, x), (w, x)

    def backward(residuals, g, *, updates_g):
        w, x = residuals
        seen["types"] = [type(u) for u in updates_g]
        return nnx.State({"w": updates_g[0]["w"].value * x}), g + updates_g[0]["w"].value * w

    f.defvjp(forward, backward)

    def loss(model, x):
        y = f(model, x)
        return y + (model.w.value * jnp.array([1.0, 10.0])).sum()

    model = Model()
    w = model.w.value
    grads, grad_x = nnx.grad(loss, argnums=(0, 1))(model, X)
    expected = jax.grad(
        lambda w, x: x.sum() + (w * x * jnp.array([1.0, 10.0])).sum(), argnums=(0, 1)
    )(w, X)
    np.testing.assert_allclose(grads.w.value, expected[0])
    np.testing.assert_allclose(grad_x, expected[1])
    assert seen["types"] == [nnx.State, type(None)]


def test_arguments_that_are_not_differentiated():
    @nnx.custom_vjp(nondiff_argnums=(0, nnx.DiffState(1, nnx.Param)))
    def f(power, model, x):
        return model.w.value * x**power

    def forward(power, model, x):
        return f(power, model, x), (model, x)

    def backward(power, residuals, g):
        (model, x), (_, g) = residuals, g
        assert power == 2  # as it is, untraced
        return nnx.State({"w": g * x**power}), g * model.w.value * 2 * x

    f.defvjp(forward, backward)
    model = Model()
    grads, grad_x = nnx.grad(lambda m, x: f(2, m, x).sum(), argnums=(0, 1))(model, X)
    np.testing.assert_allclose(grads.w.value, X**2)
    np.testing.assert_allclose(grad_x, 2 * X * model.w.value)
    assert f(2, model, x=X).shape == (2,)  # by keyword


def test_a_decorated_method():
    class Straight(nnx.Module):
        def __init__(self):
            self.w = nnx.Param(jnp.array(0.4))

        @nnx.custom_vjp
        def round(self, x):
            return jnp.round(self.w.value * x)

        round.defvjp(
            lambda self, x: (jnp.round(self.w.value * x), (self.w.value, x)),
            lambda residuals, g: (nnx.State({"w": g[1] * residuals[1]}), g[1] * residuals[0]),
        )

    grads = nnx.grad(lambda m: m.round(3.0))(Straight())
    assert float(grads.w.value) == 3.0  # the gradient of rounding itself would be zero


def test_an_exception_leaves_the_model_as_it_was():
    f = nnx.custom_vjp(lambda model, x: model(x))

    def forward(model, x):
        model(x)
        raise KeyError("here")

    f.defvjp(forward, lambda residuals, g: (None, None))
    model = Model()
    with pytest.raises(KeyError, match="here"):
        nnx.grad(lambda m, x: f(m, x).sum())(model, X)
    assert int(model.calls.value) == 0


def test_matches_flax():
    flax = pytest.importorskip("flax.nnx")

    def build(lib):
        class Net(lib.Module):
            def __init__(self):
                self.w = lib.Param(jnp.array([1.0, -2.0]))

        @lib.custom_vjp
        def f(m, x):
            return jnp.sin(m.w[...]) * x

        def forward(m, x):
            return f(m, x), (jnp.cos(m.w[...]), jnp.sin(m.w[...]), m, x)

        def backward(residuals, g):
            inputs_g, out_g = g
            cos, sin, _, x = residuals
            return jax.tree.map(lambda _: 3 * cos * out_g * x, inputs_g[0]), sin * out_g

        f.defvjp(forward, backward)
        model = Net()
        grads, grad_x = lib.grad(lambda m, x: f(m, x).sum(), argnums=(0, 1))(model, X)
        return grads["w"][...], grad_x

    for ours, theirs in zip(build(nnx), build(flax), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def forward(model, x):
    return model.w.value * x, (model, x)


def no_pair(model, x):
    return model.w.value * x


def grows(model, x):
    model.extra = nnx.Param(x)
    return forward(model, x)


@pytest.mark.parametrize(
    ("fwd", "bwd", "kind", "message"),
    [
        (
            no_pair,
            lambda r, g: (None, None),
            errors.StructureError,
            "custom_vjp: the forward rule no_pair of plain must return a pair (result, residuals);",
        ),
        (
            lambda model: model,
            lambda r, g: (None, None),
            errors.StructureError,
            "custom_vjp: the forward rule <lambda> of plain is called with the 2 arguments of "
            "plain, but its signature is (model) (",
        ),
        (
            forward,
            lambda r: (None, None),
            errors.StructureError,
            "custom_vjp: the backward rule <lambda> of plain is called with the residuals and the "
            "pair (updates_g, g), but its signature is (r) (",
        ),
        (
            forward,
            lambda r, g: (None,),
            errors.StructureError,
            "custom_vjp: the backward rule <lambda> of plain must return a tuple of 2 cotangents, "
            "one for each differentiated argument; it returned a tuple of 1",
        ),
        (
            forward,
            lambda r, g: (nnx.State({"v": g[1]}), None),
            errors.StructureError,
            "custom_vjp: the cotangent of argument 0 of plain at `v` is that of no value: the "
            "argument has none there",
        ),
        (
            forward,
            lambda r, g: (nnx.State({"w": g[1][None]}), None),
            errors.ShapeError,
            "custom_vjp: the cotangent of argument 0 of plain at `w` is float32[1, 2], but the "
            "value is float32[2]; a cotangent has the shape and dtype of its value",
        ),
        (
            forward,
            lambda r, g: (None, (g[1], g[1])),
            errors.StructureError,
            "custom_vjp: the cotangent of argument 1 of plain has the structure ",
        ),
        (
            forward,
            lambda r, g: (1.0, None),
            errors.StructureError,
            "custom_vjp: the cotangent of argument 0 of plain is a float; for a module give a "
            "State, a module, or None",
        ),
        (
            grows,
            lambda r, g: (None, None),
            errors.StructureError,
            "custom_vjp: plain changes no structure, but its forward rule grows adds a new Param",
        ),
    ],
)
def test_a_rule_that_does_not_fit_is_named(fwd, bwd, kind, message):
    f = nnx.custom_vjp(plain)
    f.defvjp(fwd, bwd)
    model = Model()
    with pytest.raises(kind) as caught:
        # jit traces the function itself, grad then the rules
        nnx.grad(nnx.jit(lambda m, x: f(m, x).sum()), argnums=(0, 1))(model, X)
    text = str(caught.value).replace("test_a_rule_that_does_not_fit_is_named.<locals>.", "")
    assert text.startswith(message), text
    assert set(vars(model)) - {"_moduli"} == {"w", "calls"}


def plain(model, x):
    return model.w.value * x


def test_wrong_use_says_what_is_wrong():
    f = nnx.custom_vjp(plain)
    with pytest.raises(errors.StructureError, match=r"plain has no rule yet; write `plain.defvjp"):
        f(Model(), X)
    whole = nnx.custom_vjp(plain, nondiff_argnums=(0,))
    whole.defvjp(forward, lambda m, r, g: (None,))
    with pytest.raises(errors.StructureError, match=r"nondiff_argnums names it as a whole; name"):
        whole(Model(), X)
    beyond = nnx.custom_vjp(plain, nondiff_argnums=(2,))
    beyond.defvjp(forward, lambda r, g: (None,))
    with pytest.raises(errors.StructureError, match=r"nondiff_argnums has 2, but plain was called"):
        beyond(Model(), X)
