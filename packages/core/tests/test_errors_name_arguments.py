"""JAX's errors about traced values name the user's function, its file and its own arguments."""

from __future__ import annotations

import os
import re

import jax
import jax.numpy as jnp
import pytest

import moduli as nnx

X = jnp.ones((2, 3))
MESH = jax.sharding.Mesh(jax.devices("cpu")[:1], ("i",))
INTERNAL = re.compile(r"\b(pure|run|step|_fun|goes_on) at |values\[|plain\[|flat_args|moduli/_")
P = jax.P()


class Net(nnx.Module):
    def __init__(self):
        self.layers = nnx.List([nnx.Dict(kernel=nnx.Param(jnp.ones((3, 3))))])


def on_model(model, x, batch):
    if model.layers[0]["kernel"].value.sum() > 0:
        return x.sum()
    return x.sum()


def on_x(model, x, batch):
    if (x > 0).all():
        return x.sum()
    return x.sum()


def on_batch(model, x, batch):
    return x.sum() * float(batch["image"])


ERRORS = {on_model: "model.layers[0].kernel", on_x: "x", on_batch: "batch['image']"}
THREE = (None, 0, None)
# those in which JAX knows of which arguments a traced value is made
TRANSFORMS = {
    "jit": lambda f, *a: nnx.jit(f)(*a),
    "jit, keywords": lambda f, m, x, b: nnx.jit(f)(m, batch=b, x=x),
    "jit, donated": lambda f, m, x, b: nnx.jit(f, donate_argnames="x")(m, x + 0, b),
    "jit, static": lambda f, m, x, b: nnx.jit(
        lambda k, model, x, batch: f(model, x, batch), static_argnums=0
    )(1, m, x, b),
    "jit of grad": lambda f, *a: nnx.jit(nnx.grad(f))(*a),
    "jit of vmap": lambda f, m, x, b: nnx.jit(nnx.remat(f))(m, x, b),
    "remat": lambda f, *a: nnx.remat(f)(*a),
    "cond": lambda f, *a: nnx.cond(jnp.array(True), f, f, *a),
    "switch": lambda f, *a: nnx.switch(jnp.array(0), [f, f], *a),
    "shard_map": lambda f, *a: nnx.shard_map(f, mesh=MESH, in_specs=(P, P, P), out_specs=P)(*a),
    "eval_shape": lambda f, *a: nnx.eval_shape(f, *a),
    "make_jaxpr": lambda f, *a: nnx.make_jaxpr(f)(*a),
    "trace": lambda f, *a: nnx.jit(f).trace(*a),
    "lower": lambda f, *a: nnx.jit(f).lower(*a),
}


@pytest.mark.parametrize("fun", ERRORS)
@pytest.mark.parametrize("name", TRANSFORMS)
def test_the_function_its_file_and_the_argument(name, fun):
    batch = {"image": jnp.ones(())}
    with pytest.raises(jax.errors.ConcretizationTypeError) as caught:
        TRANSFORMS[name](fun, Net(), X, batch)
    text = str(caught.value)
    assert os.path.basename(__file__) in text, text
    assert fun.__name__ in text or "<lambda> at " in text, text
    assert f"the argument {ERRORS[fun]}." in text or f"argument {ERRORS[fun]}\n" in text, text
    assert not INTERNAL.search(text), text


def only(x):
    if x.sum() > 0:
        return x
    return -x


def pair(model, x):
    if x.sum() > 0:
        return x
    return -x


OTHERS = {
    "scan": lambda: nnx.scan(only, in_axes=0, out_axes=0)(X),
    "scan of a carry": lambda: nnx.scan(only, in_axes=nnx.Carry, out_axes=nnx.Carry, length=2)(X),
    "while_loop": lambda: nnx.while_loop(lambda x: x.sum() < 0, only, X),
    "while_loop's condition": lambda: nnx.while_loop(only, lambda x: x, X),
    "fori_loop": lambda: nnx.fori_loop(0, 2, pair, X),
    "pmap": lambda: nnx.pmap(only)(X[:1]),
    "checkify": lambda: nnx.checkify(only)(X),
    "vmap": lambda: nnx.vmap(only)(X),
    "jit of vmap": lambda: nnx.jit(nnx.vmap(only))(X),
}


@pytest.mark.parametrize("name", OTHERS)
def test_in_loops_and_maps(name):
    with pytest.raises(jax.errors.TracerBoolConversionError) as caught:
        OTHERS[name]()
    text = str(caught.value)
    fun = pair if name == "fori_loop" else only
    assert re.search(rf"{fun.__name__}(\([\w, ]*\))? at [^ ]*test_errors_name_arguments", text), (
        text
    )
    assert re.search(r"argument x\b|only\(x\)|tracing the function only", text), text
    assert not INTERNAL.search(text), text


def wrong(x):
    return "text"


RESULTS = {
    "jit": lambda: nnx.jit(wrong)(X),
    "grad": lambda: nnx.grad(wrong)(X),
    "vmap": lambda: nnx.vmap(wrong)(X),
    "scan": lambda: nnx.scan(wrong, in_axes=0, out_axes=0)(X),
    "remat": lambda: nnx.remat(wrong)(X),
    "vjp": lambda: nnx.vjp(wrong, X),
    "cond": lambda: nnx.cond(jnp.array(True), wrong, wrong, X),
    "shard_map": lambda: nnx.shard_map(wrong, mesh=MESH, in_specs=P, out_specs=P)(X),
    "pmap": lambda: nnx.pmap(wrong)(X[:1]),
    "eval_shape": lambda: nnx.eval_shape(wrong, X),
    "checkify": lambda: nnx.checkify(wrong)(X),
}


@pytest.mark.parametrize("name", RESULTS)
def test_results_that_jax_does_not_take(name):
    with pytest.raises(TypeError) as caught:
        RESULTS[name]()
    text = str(caught.value)
    assert "wrong" in text and os.path.basename(__file__) in text and "JAX type" in text, text
    assert not INTERNAL.search(text), text


def test_an_index_that_is_no_constant_and_a_deleted_array():
    def picked(x):
        return x[x > 0]

    with pytest.raises(jax.errors.NonConcreteBooleanIndexError, match=r"picked\(x\) at "):
        nnx.jit(picked)(X)
    gone = X + 0.0
    nnx.jit(only_sum, donate_argnums=1)(X, gone)
    gone.is_deleted() or gone.delete()
    with pytest.raises((RuntimeError, ValueError), match="Deleted: `batch`"):
        nnx.jit(only_sum)(X, gone)


def only_sum(x, batch):
    return x + batch


def test_errors_of_the_user_are_not_touched():
    error = ValueError("mine")

    def raises(x):
        raise error

    for call in (lambda: nnx.jit(raises)(X), lambda: nnx.vmap(raises)(X)):
        with pytest.raises(ValueError) as caught:
            call()
        assert caught.value is error
        assert str(error) == "mine"
