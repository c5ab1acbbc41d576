"""eval_shape and make_jaxpr: look at a function of modules; nothing happens to its arguments."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from core_models import MLP, Linear, Norm, Tied, batch, mlp

import moduli as nnx
from moduli.testing import assert_unchanged


def test_a_model_of_shapes_has_the_structure_of_the_real_one():
    shapes, real = nnx.eval_shape(lambda: MLP(rngs=nnx.Rngs(0))), mlp()
    assert type(shapes) is MLP and type(shapes.layers[0].kernel) is nnx.Param
    assert nnx.graphdef(shapes) is nnx.graphdef(real)
    expected = jax.tree.map(lambda x: (x.shape, x.dtype), nnx.to_pure_dict(nnx.state(real)))
    found = nnx.to_pure_dict(nnx.state(shapes))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), found) == expected
    assert all(type(leaf) is jax.ShapeDtypeStruct for leaf in jax.tree.leaves(found))
    nnx.update(shapes, nnx.state(real))  # and takes the values of the real one
    assert (shapes(batch()) == real(batch())).all()


def test_shapes_of_shapes():
    model = nnx.eval_shape(MLP, rngs=nnx.Rngs(0))
    out = nnx.eval_shape(lambda m, x: m(x), model, jax.ShapeDtypeStruct((7, 3), jnp.float32))
    assert (out.shape, out.dtype) == ((7, 3), mlp()(jnp.zeros((7, 3), jnp.float32)).dtype)
    assert nnx.eval_shape(model, batch()).shape == (4, 3)  # a module as the function


def test_sharing_and_cycles_stay():
    tied = nnx.eval_shape(Tied)
    assert tied.a is tied.b and tied.me is tied and tied.a.value.shape == (3,)


def test_nothing_happens_to_the_arguments():
    model, rngs = mlp(), nnx.Rngs(0)

    def f(model, rngs, x):
        model.extra = nnx.Param(x)
        rngs.params()
        return {"y": model(x), "model": model, "copy": nnx.clone(model)}

    with assert_unchanged(model), assert_unchanged(rngs):
        out = nnx.eval_shape(f, model, rngs, x=batch())
        text = str(nnx.make_jaxpr(f)(model, rngs, x=batch()))
    assert out["y"].shape == (4, 3) and out["model"] is not model
    assert out["model"].extra.value.shape == (4, 3) and "tanh" in text


def test_a_jaxpr_is_that_of_the_hand_written_function():
    model = Linear(3, 2, rngs=nnx.Rngs(0))
    ours = nnx.make_jaxpr(lambda m, x: m(x))(model, batch())
    theirs = jax.make_jaxpr(lambda b, k, x: x @ k + b)(
        model.bias.value, model.kernel.value, batch()
    )
    assert str(ours) == str(theirs)


def test_outputs_of_a_jaxpr_are_the_result_and_what_is_written():
    jaxpr = nnx.make_jaxpr(lambda m, x: m(x))(Norm(3), batch())
    assert [v.aval.shape for v in jaxpr.jaxpr.outvars] == [(4, 3), (3,)]
    read = nnx.make_jaxpr(lambda m, x: m.mean.value + x)(Norm(3), batch())
    assert [v.aval.shape for v in read.jaxpr.outvars] == [(4, 3)]


def test_options_of_make_jaxpr():
    @nnx.make_jaxpr(static_argnums=1, return_shape=True)
    def f(model, n, x):
        return model(x) * (n + 1)

    jaxpr, shapes = f(Linear(3, 2, rngs=nnx.Rngs(0)), 2, batch())
    assert len(jaxpr.jaxpr.invars) == 3  # kernel, bias, x
    assert [leaf.shape for leaf in jax.tree.leaves(shapes)] == [(4, 2)]


def test_matches_flax():
    flax = pytest.importorskip("flax.nnx")

    def build(lib):
        class Model(lib.Module):
            def __init__(self, rngs):
                self.w = lib.Param(jax.random.normal(rngs.params(), (3, 2)))
                self.n = lib.Variable(jnp.zeros((), jnp.int32))

        model = lib.eval_shape(lambda: Model(lib.Rngs(0)))
        return [(v.get_value().shape, v.get_value().dtype) for v in (model.w, model.n)]

    assert build(nnx) == build(flax)


@pytest.mark.parametrize("look", [nnx.eval_shape, lambda f, *args: nnx.make_jaxpr(f)(*args)])
def test_an_exception_leaves_the_model_as_it_was(look):
    model = Norm(3)

    def fails(model, x):
        model(x)
        model.extra = 1
        raise KeyError("here")

    with assert_unchanged(model), pytest.raises(KeyError, match="here"):
        look(fails, model, batch())
