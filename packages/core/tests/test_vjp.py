"""vjp and jvp: linear maps of functions of modules, against jax.vjp and jax.jvp by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from core_models import Linear, Norm, Tied, batch

import moduli as nnx
from moduli import errors


def linear():
    return Linear(3, 2, rngs=nnx.Rngs(1))


def by_hand(params, x):
    return jnp.tanh(x @ params["kernel"] + params["bias"])


def forward(model, x):
    return jnp.tanh(model(x))


def values(model):
    return {"kernel": model.kernel.value, "bias": model.bias.value}


def close(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), a, b)


@pytest.mark.parametrize("jitted", [False, True])
def test_cotangents_are_those_of_the_hand_written_function(jitted):
    model, x = linear(), batch()
    g = jnp.arange(8.0).reshape(4, 2)
    expected, pull = jax.vjp(by_hand, values(model), x)
    expected_model, expected_x = pull(g)

    def run(model, x, g):
        y, pullback = nnx.vjp(forward, model, x)
        return y, *pullback(g)

    y, grad_model, grad_x = (nnx.jit(run) if jitted else run)(model, x, g)
    assert type(grad_model) is Linear and grad_model is not model
    close((y, values(grad_model), grad_x), (expected, expected_model, expected_x))


@pytest.mark.parametrize("jitted", [False, True])
def test_tangents_are_those_of_the_hand_written_function(jitted):
    model, towards, x = linear(), Linear(3, 2, rngs=nnx.Rngs(2)), batch()
    expected = jax.jvp(by_hand, (values(model), x), (values(towards), x + 1))
    run = lambda m, t, x: nnx.jvp(forward, (m, x), (t, x + 1))
    close((nnx.jit(run) if jitted else run)(model, towards, x), expected)
    # a State may leave out what does not change
    part = nnx.State({"bias": jnp.ones(2)})
    zeros = {"kernel": jnp.zeros((3, 2)), "bias": jnp.ones(2)}
    expected = jax.jvp(by_hand, (values(model), x), (zeros, jnp.zeros_like(x)))
    close(nnx.jvp(forward, (model, x), (part, jnp.zeros_like(x))), expected)
    close(nnx.jvp(forward, (model, x), (None, None))[1], jnp.zeros((4, 2)))


def test_both_are_adjoint():
    """<g, J t> = <J' g, t>."""
    model, towards, x = linear(), Linear(3, 2, rngs=nnx.Rngs(2)), batch()
    g = jax.random.normal(jax.random.key(0), (4, 2))
    _, pullback = nnx.vjp(forward, model, x)
    _, dy = nnx.jvp(forward, (model, x), (towards, x))
    grad_model, grad_x = pullback(g)
    pairs = [(grad_model.kernel, towards.kernel), (grad_model.bias, towards.bias), (grad_x, x)]
    right = sum(float(jnp.vdot(a[...], b[...])) for a, b in pairs)
    np.testing.assert_allclose(float(jnp.vdot(g, dy)), right, rtol=1e-5)


@pytest.mark.parametrize("transform", ["vjp", "jvp"])
def test_updates_inside_reach_the_caller_once(transform):
    model, twin, x = Norm(3), Norm(3), batch()
    expected = twin(x)
    if transform == "vjp":
        y, pullback = nnx.vjp(lambda m, x: m(x), model, x)
        pullback(y), pullback(y)
    else:
        y, _ = nnx.jvp(lambda m, x: m(x), (model, x), (None, x))
    close((y, model.mean.value), (expected, twin.mean.value))


@pytest.mark.parametrize("transform", ["vjp", "jvp"])
def test_aux_may_hold_modules_and_new_structure_is_seen(transform):
    model = linear()

    def f(model, x):
        model.seen = nnx.Cache(x.sum())
        return (x * 2).sum(), {"model": model, "new": nnx.Param(x)}

    x = jnp.ones(3)
    if transform == "vjp":
        y, _, aux = nnx.vjp(f, model, x, has_aux=True)
    else:
        y, dy, aux = nnx.jvp(f, (model, x), (None, x), has_aux=True)
        assert float(dy) == 6.0
    assert float(y) == 6.0 and aux["model"] is model and type(aux["new"]) is nnx.Param
    assert float(model.seen.value) == 3.0


def test_a_shared_variable_has_one_cotangent_and_one_tangent():
    tied = Tied()
    f = lambda m: m.a.value * m.b.value
    _, pullback = nnx.vjp(f, tied)
    (grads,) = pullback(jnp.ones(3))
    assert grads.a is grads.b and grads.me is grads
    close(grads.a.value, 2 * jnp.arange(3.0))
    _, dy = nnx.jvp(f, (tied,), (nnx.State({"a": jnp.ones(3)}),))
    close(dy, 2 * jnp.arange(3.0))


def test_values_that_are_not_floating_point_have_none():
    model = nnx.Dict(w=nnx.Param(jnp.ones(2)), count=nnx.Variable(jnp.array(3)))
    _, pullback = nnx.vjp(lambda m: m["w"].value * 2, model)
    (grads,) = pullback(jnp.ones(2))
    assert grads["count"].value.dtype == jax.dtypes.float0
    close(grads["w"].value, jnp.full(2, 2.0))


def test_forms_methods_and_decorators():
    model, x = linear(), batch()
    g = jnp.ones((4, 2))
    expected = nnx.vjp(forward, model, x)[1](g)[1]
    close(nnx.vjp(forward)(model, x)[1](g)[1], expected)
    close(nnx.vjp(has_aux=False)(forward)(model, x)[1](g)[1], expected)
    (gx,) = nnx.vjp(model, x)[1](g)  # a module, and a bound method
    close(gx, jax.vjp(lambda x: model(x), x)[1](g)[0])
    close(nnx.vjp(model.__call__, x)[1](g)[0], gx)
    y, dy = nnx.jvp(forward)((model, x), (None, x))
    close((y, dy), jax.jvp(lambda x: forward(model, x), (x,), (x,)))
    close(nnx.jvp(model, (x,), (x,))[1], x @ model.kernel.value)


def test_second_derivatives_by_nesting():
    model = nnx.Dict(w=nnx.Param(jnp.array(2.0)))

    def cube(model):
        return model["w"].value ** 3

    def slope(model):
        return nnx.grad(cube)(model)["w"].value

    towards = nnx.State({"w": jnp.array(1.0)})
    assert float(nnx.jvp(slope, (model,), (towards,))[1]) == 12.0  # forward over reverse
    (grads,) = nnx.vjp(slope, model)[1](jnp.array(1.0))
    assert float(grads["w"].value) == 12.0


@pytest.mark.parametrize("transform", ["vjp", "jvp"])
def test_an_exception_leaves_the_model_as_it_was(transform):
    model = Norm(3)

    def fails(model, x):
        model(x)
        model.extra = 1
        raise KeyError("here")

    with pytest.raises(KeyError, match="here"):
        if transform == "vjp":
            nnx.vjp(fails, model, batch())
        else:
            nnx.jvp(fails, (model, batch()), (None, batch()))
    assert not model.mean.value.any() and not hasattr(model, "extra")


def test_matches_flax():
    flax = pytest.importorskip("flax.nnx")

    def build(lib, **options):
        class Model(lib.Module):
            def __init__(self):
                self.w = lib.Param(jnp.arange(6.0).reshape(3, 2))

            def __call__(self, x):
                return jnp.tanh(x @ self.w[...])

        model, x = Model(), batch()
        y, pullback = lib.vjp(lambda m, x: m(x), model, x, **options)
        grads, grad_x = pullback(jnp.ones_like(y))
        direction = jax.tree.map(jnp.ones_like, model)
        z, dz = lib.jvp(lambda m, x: m(x), (model, x), (direction, x), **options)
        return y, grads.w[...], grad_x, z, dz

    close(build(nnx), build(flax, graph=False))


def identity(model, x):
    return model


def shape(message):
    return errors.ShapeError, message


def structure(message):
    return errors.StructureError, message


MODEL = linear()
X = batch()


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (
            lambda: nnx.vjp(identity, MODEL, X),
            structure(
                "vjp: identity returns a module or a Variable as its result, which has no "
                "cotangent of its own; return its values (`moduli.state(module)`), or return "
                "it as aux with has_aux=True"
            ),
        ),
        (
            lambda: nnx.vjp(forward, MODEL, X, has_aux=True),
            structure("vjp: with has_aux=True forward must return a pair (result, aux); it "),
        ),
        (
            lambda: nnx.vjp(forward, MODEL, X)[1]((1.0, 2.0)),
            structure("vjp: the cotangent is ("),
        ),
        (
            lambda: nnx.vjp(forward, MODEL, X, reduce_axes=("i",)),
            structure("vjp: reduce_axes=('i',) has no meaning in today's JAX; sum over the axis"),
        ),
        (
            lambda: nnx.jvp(forward, (MODEL, X), (X,)),
            structure("jvp: got 2 primals and 1 tangents; give one tangent for each argument"),
        ),
        (
            lambda: nnx.jvp(forward, (MODEL, X), X),
            structure("jvp: primals and tangents are tuples, one entry for each argument; got a "),
        ),
        (
            lambda: nnx.jvp(forward, (MODEL, X), (nnx.State({"scale": X}), X)),
            structure(
                "jvp: tangents[0] at `scale` is a tangent without a primal: the Linear has no value"
            ),
        ),
        (
            lambda: nnx.jvp(forward, (MODEL, X), (nnx.State({"bias": X}), X)),
            shape("jvp: tangents[0] at `bias` has shape (4, 3), but its primal has shape (2,); a "),
        ),
        (
            lambda: nnx.jvp(forward, (MODEL, X), (Norm(3), X)),
            structure("jvp: tangents[0] has no value at `bias`, where its primal, a Linear, has"),
        ),
        (
            lambda: nnx.jvp(forward, (MODEL, X), (1.0, X)),
            structure("jvp: tangents[0] is a float in the place of a Linear; give a module of the"),
        ),
        (
            lambda: nnx.jvp(
                lambda a, b: a.bias.value,
                (MODEL, MODEL),
                (nnx.State({"bias": jnp.ones(2)}), nnx.State({"bias": jnp.zeros(2)})),
            ),
            structure(
                "jvp: tangents[0] at `bias` and tangents[1] at `bias` are two tangents of the same "
                "Param, which was passed twice; give the same tangent, or leave it out of one State"
            ),
        ),
    ],
)
def test_messages(call, expected):
    kind, message = expected
    with pytest.raises(kind) as caught:
        call()
    assert str(caught.value).startswith(message), str(caught.value)
