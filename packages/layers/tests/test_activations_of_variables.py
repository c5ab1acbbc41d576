"""Activations take a Variable as they take an array, and are JAX's functions otherwise."""

from __future__ import annotations

import inspect
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import moduli as nnx
import moduli_layers as layers
from moduli_layers import _activations

NAMES = sorted(
    name for name in vars(_activations) if callable(getattr(layers, name, None)) and name[0] != "_"
)
X = jnp.array([[0.25, -0.75], [0.5, 1.5]])


class Doubled(nnx.Param):
    def get_value(self, **kwargs):
        return super().get_value(**kwargs) * 2


class Model(nnx.Module):
    def __init__(self):
        self.w = nnx.Param(X)
        self.act = nnx.relu

    def __call__(self):
        return self.act(self.w)


def twice(variable, value):
    return value * 2


KINDS = {
    "Param": nnx.Param,
    "get_value": lambda x: Doubled(x / 2),
    "hook": lambda x: nnx.Param(x / 2, on_get_value=twice),
}


def call(name, x):
    if name == "one_hot":
        return layers.one_hot(x, 3)
    return getattr(layers, name)(x)


# every run has functions of its own, which are compiled for it
@pytest.mark.filterwarnings("ignore::moduli.errors.RecompilationWarning")
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_a_variable_in_every_transform(name, kind):
    if name == "one_hot":
        x, kind = jnp.array([[0, 2]]), nnx.Param
    else:
        x = X
    original = getattr(jax.nn, name, None) or getattr(jnp, name)
    expected = original(x, 3) if name == "one_hot" else original(x)
    v = kind(x)
    model = nnx.Dict(inner=nnx.List([v]))
    for got in (
        call(name, v),
        nnx.jit(lambda v: call(name, v))(v),
        nnx.jit(lambda: call(name, v))(),
        nnx.jit(lambda model: call(name, model.inner[0]))(model),
        jax.jit(lambda v: call(name, v))(v),
        jax.jit(lambda: call(name, v))(),
    ):
        assert isinstance(got, jax.Array) and got.dtype == expected.dtype
        np.testing.assert_allclose(got, expected, rtol=1e-6)
    jax.vmap(lambda v: call(name, v))(v)
    if name == "one_hot":
        return
    factor = 1 if kind is nnx.Param else 2
    want = jax.grad(lambda x: original(x).sum())(x) * factor
    for grad in (jax.grad, nnx.grad):
        got = grad(lambda v: call(name, v).sum())(v)
        np.testing.assert_allclose(got.raw_value, want, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", NAMES)
def test_it_is_the_function_of_jax_otherwise(name):
    function = getattr(layers, name)
    original = getattr(jax.nn, name, None) or getattr(jnp, name)
    assert function is getattr(nnx, name) and function.__name__ == original.__name__
    assert function.__doc__ == original.__doc__
    assert inspect.signature(function) == inspect.signature(original)
    assert pickle.loads(pickle.dumps(function)) is function
    if name == "one_hot":
        return
    for make in (lambda f: f, lambda f: jax.grad(lambda x: f(x).sum()), jax.jit):
        assert str(jax.make_jaxpr(make(function))(X)) == str(jax.make_jaxpr(make(original))(X))


def test_variables_in_other_places_than_the_first():
    mask, slope = jnp.array([[True, False], [True, True]]), jnp.array(0.5)
    for got, want in (
        (layers.softmax(X, where=nnx.Variable(mask)), jax.nn.softmax(X, where=mask)),
        (layers.leaky_relu(X, nnx.Param(slope)), jax.nn.leaky_relu(X, slope)),
        (layers.logsumexp(X, b=nnx.Param(X)), jax.nn.logsumexp(X, b=X)),
        (
            layers.standardize(nnx.Param(X), mean=nnx.Param(slope)),
            jax.nn.standardize(X, mean=slope),
        ),
    ):
        np.testing.assert_array_equal(got, want)


def test_an_activation_is_a_static_attribute_of_a_module():
    model = Model()
    for other in (model, nnx.clone(model), pickle.loads(pickle.dumps(model))):
        np.testing.assert_array_equal(nnx.jit(lambda m: m())(other), jax.nn.relu(X))
    assert nnx.graphdef(model) is nnx.graphdef(Model())
