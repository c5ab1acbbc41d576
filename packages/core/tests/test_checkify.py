"""checkify: errors of compiled functions come out as values, beside all updates."""

from __future__ import annotations

import jax.numpy as jnp
import pytest
from jax.experimental import checkify

import moduli as nnx


class Root(nnx.Module):
    def __init__(self):
        self.calls = nnx.Variable(jnp.zeros((), jnp.int32))
        self.table = nnx.Param(jnp.arange(3.0))

    def __call__(self, x):
        self.calls.value += 1
        checkify.check(x >= 0, "negative: {x}", x=x)
        return jnp.sqrt(x)


@pytest.mark.parametrize("jitted", ["no", "inside", "outside"])
def test_a_check_that_fails_is_a_value_and_updates_happen(jitted):
    model = Root()
    if jitted == "outside":
        checked = nnx.jit(nnx.checkify(lambda m, x: m(x)))
    else:
        checked = nnx.checkify(nnx.jit(lambda m, x: m(x)) if jitted == "inside" else Root.__call__)
    error, y = checked(model, jnp.array(4.0))
    assert error.get() is None and float(y) == 2.0
    error, y = checked(model, jnp.array(-1.0))
    assert error.get().startswith("negative: -1.0")
    with pytest.raises(checkify.JaxRuntimeError, match=r"negative: -1\.0"):
        error.throw()
    assert int(model.calls.value) == 2


def test_kinds_of_checks():
    model = Root()
    error, _ = nnx.checkify(lambda m, i: m.table.value[i], checkify.index_checks)(model, 7)
    assert "out-of-bounds" in error.get()
    error, _ = nnx.checkify(lambda m, x: m.table.value.sum() / x, checkify.div_checks)(model, 0.0)
    assert error.get().startswith("division by zero")
    error, _ = nnx.checkify(lambda m, x: m.table.value.sum() / x)(model, 0.0)
    assert error.get() is None  # user checks alone
    error, _ = nnx.checkify(Root.__call__, errors=checkify.all_checks)(model, jnp.array(-2.0))
    assert error.get() is not None


def test_checks_in_loops_and_methods():
    model = Root()

    def loss(model, xs):
        return nnx.scan(lambda m, x: m(x), in_axes=(None, 0), out_axes=0)(model, xs).sum()

    error, _ = nnx.checkify(nnx.jit(loss))(model, jnp.array([1.0, -3.0, 4.0]))
    assert error.get().startswith("negative: -3.0")
    assert int(model.calls.value) == 3
    error, y = nnx.checkify(model)(jnp.array(9.0))  # a module is its __call__
    assert error.get() is None and float(y) == 3.0 and int(model.calls.value) == 4


def test_an_exception_leaves_the_model_as_it_was():
    model = Root()

    def fails(model):
        model(jnp.array(1.0))
        model.extra = nnx.Param(1.0)
        raise KeyError("here")

    with pytest.raises(KeyError, match="here"):
        nnx.checkify(fails)(model)
    assert int(model.calls.value) == 0 and not hasattr(model, "extra")


def test_matches_flax():
    flax = pytest.importorskip("flax.nnx")

    def build(lib):
        class Model(lib.Module):
            def __init__(self):
                self.n = lib.Variable(jnp.zeros((), jnp.int32))

        @lib.jit
        def f(m, x):
            m.n[...] += 1
            checkify.check(x > 0, "x must be positive")
            return jnp.log(x)

        model = Model()
        found = [lib.checkify(f)(model, jnp.array(x)) for x in (1.0, -1.0)]
        texts = [error.get() and error.get().split(" (")[0] for error, _ in found]
        return texts, [bool(jnp.isnan(y)) for _, y in found], int(model.n[...])

    assert build(nnx) == build(flax) == ([None, "x must be positive"], [False, True], 2)
