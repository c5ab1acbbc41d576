"""cond and switch: branches update the caller's modules, and must leave the same behind."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import moduli as nnx
from moduli import errors


class Counter(nnx.Module):
    def __init__(self):
        self.w = nnx.Param(jnp.full((), 2.0))
        self.calls = nnx.Variable(jnp.zeros((), jnp.int32))

    def multiply(self, x):
        self.calls.value += 1
        return self.w.value * x

    def add(self, x):
        return self.w.value + x


def through_jit(f):
    return nnx.jit(f)


def as_it_is(f):
    return f


@pytest.mark.parametrize("lift", [as_it_is, through_jit])
@pytest.mark.parametrize("chosen", [True, False])
def test_cond_does_what_the_branch_that_runs_does(lift, chosen):
    model, twin = Counter(), Counter()
    run = lift(lambda p, m, x: nnx.cond(p, Counter.multiply, Counter.add, m, x))
    expected = (twin.multiply if chosen else twin.add)(3.0)
    assert float(run(jnp.array(chosen), model, 3.0)) == expected
    assert int(model.calls.value) == int(twin.calls.value) == chosen


@pytest.mark.parametrize("lift", [as_it_is, through_jit])
@pytest.mark.parametrize(("index", "runs"), [(0, 0), (2, 2), (-5, 0), (9, 2)])
def test_switch_clamps_its_index_and_runs_one_branch(lift, index, runs):
    log = nnx.Dict({"last": nnx.Variable(jnp.array(-1))})

    def branch(number):
        def write(log, x):
            log["last"].value = jnp.array(number)
            return x * number

        return write

    run = lift(lambda i, log, x: nnx.switch(i, [branch(n) for n in range(3)], log, x))
    assert float(run(jnp.array(index), log, 5.0)) == 5.0 * runs
    assert int(log["last"].value) == runs


def test_predicate_and_index_may_be_variables():
    model = Counter()
    assert (
        float(nnx.cond(nnx.Variable(jnp.array(False)), Counter.multiply, Counter.add, model, 3.0))
        == 5.0
    )
    index = nnx.Variable(jnp.array(1))
    assert float(nnx.switch(index, [Counter.add, Counter.multiply], model, 3.0)) == 6.0
    assert int(model.calls.value) == 1


def test_bound_methods_are_lifted_each_with_its_own_module():
    one, two = Counter(), Counter()
    assert float(nnx.cond(jnp.array(True), one.multiply, two.multiply, 4.0)) == 8.0
    assert (int(one.calls.value), int(two.calls.value)) == (1, 0)
    assert float(nnx.cond(jnp.array(False), one.multiply, one.add, 4.0)) == 6.0
    assert int(one.calls.value) == 1


def test_structure_made_in_both_branches_is_made_in_the_callers_object():
    model = Counter()
    shared = nnx.Dict(first=model, second=model)

    def grow(value):
        def branch(pair):
            pair["first"].extra = nnx.Cache(jnp.array(value))
            pair["second"].name = "grown"
            del pair["first"].calls
            return pair["first"].extra

        return branch

    run = nnx.jit(lambda p, pair: nnx.cond(p, grow(1.0), grow(2.0), pair))
    returned = run(jnp.array(False), shared)
    assert returned is model.extra and type(returned) is nnx.Cache
    assert float(model.extra.value) == 2.0 and model.name == "grown"
    assert not hasattr(model, "calls") and shared["first"] is shared["second"] is model


def test_one_object_in_two_operands_is_one_object():
    model = Counter()

    def branch(a, b):
        assert a is b
        a.calls.value += 1
        b.calls.value += 1

    nnx.cond(jnp.array(True), branch, branch, model, model)
    assert int(model.calls.value) == 2


def test_what_no_branch_writes_is_left_alone():
    model = Counter()
    value = model.w.value
    nnx.cond(jnp.array(True), Counter.multiply, Counter.add, model, 1.0)
    assert model.w.value is value


def test_random_keys_go_on_from_the_branch_that_ran():
    def draw(rngs):
        return jax.random.normal(rngs.dropout(), ())

    def skip(rngs):
        return jnp.zeros(())

    rngs, twin = nnx.Rngs(dropout=0), nnx.Rngs(dropout=0)
    run = nnx.jit(lambda p, rngs: nnx.cond(p, draw, skip, rngs))
    found = [float(run(jnp.array(p), rngs)) for p in (True, False, True)]
    np.testing.assert_allclose(found, [draw(twin), 0.0, draw(twin)], rtol=1e-6)
    assert int(rngs.dropout.count.value) == 2


@pytest.mark.parametrize("lift", [as_it_is, through_jit])
def test_an_exception_in_a_branch_leaves_the_model_as_it_was(lift):
    model = Counter()

    def fails(model, x):
        model.calls.value += 1
        model.extra = 1
        raise KeyError("here")

    run = lift(lambda p, m, x: nnx.cond(p, Counter.multiply, fails, m, x))
    with pytest.raises(KeyError, match="here"):
        run(jnp.array(True), model, 1.0)
    assert int(model.calls.value) == 0 and not hasattr(model, "extra")


def test_gradients_flow_through_the_branch_that_runs():
    def loss(model, p, x):
        return nnx.cond(p, Counter.multiply, Counter.add, model, x)

    for chosen, expected in ((True, 3.0), (False, 1.0)):
        grads = nnx.grad(loss)(Counter(), jnp.array(chosen), 3.0)
        assert float(grads["w"].value) == expected


@pytest.mark.parametrize("chosen", [True, False])
def test_matches_flax(chosen):
    flax = pytest.importorskip("flax.nnx")

    def build(lib):
        class Model(lib.Module):
            def __init__(self):
                self.w = lib.Param(jnp.arange(3.0))
                self.count = lib.Variable(jnp.array(0))

            def write(self, x):
                self.count[...] += 1
                self.w[...] = self.w[...] * x
                return self.w[...].sum()

            def keep(self, x):
                return (self.w[...] - x).sum()

        model = Model()
        out = lib.cond(jnp.array(chosen), Model.write, Model.keep, model, 2.0)
        again = lib.switch(jnp.array(int(chosen)), [Model.keep, Model.write], model, 3.0)
        return out, again, model.w[...], model.count[...]

    for ours, theirs in zip(build(nnx), build(flax), strict=True):
        np.testing.assert_allclose(ours, theirs)


def grows(m, x):
    m.extra = nnx.Param(x)
    return x


def removes(m, x):
    del m.calls
    return x


def casts(m, x):
    m.calls.value = m.calls.value.astype(jnp.float32)
    return x


def reshapes(m, x):
    m.w.value = jnp.ones(3)
    return x


def swaps(m, x):
    m.w, m.calls = m.calls, m.w
    return x


def returns_model(m, x):
    return m


def keep(m, x):
    return x


def pair(m, x):
    return x, x


def whole(m, x):
    return 1


@pytest.mark.parametrize(
    ("true_fun", "kind", "message"),
    [
        (
            pair,
            errors.StructureError,
            "cond: true_fun (pair) returns (float32[], float32[]), but false_fun (keep) returns "
            "float32[]; all must return the same structure, shapes and dtypes",
        ),
        (
            returns_model,
            errors.StructureError,
            "cond: true_fun (returns_model) returns the Counter that was given as "
            "`the model itself`, but false_fun (keep) changes no structure; all must leave the "
            "same structure: make Variables and attributes before, and write values inside",
        ),
        (
            grows,
            errors.StructureError,
            "cond: true_fun (grows) adds a new Param (made at HERE) at `extra`, but false_fun "
            "(keep) changes no structure; all must leave the same structure: make Variables and ",
        ),
        (
            removes,
            errors.StructureError,
            "cond: true_fun (removes) removes `calls`",
        ),
        (
            casts,
            errors.ShapeError,
            "cond: true_fun (casts) leaves float32[] in the Variable (made at ",
        ),
        (
            reshapes,
            errors.ShapeError,
            "cond: true_fun (reshapes) leaves float32[3] in the Param (made at ",
        ),
        (swaps, errors.StructureError, "cond: true_fun (swaps) "),
    ],
)
def test_branches_that_differ_are_refused_and_nothing_happens(true_fun, kind, message):
    model = Counter()
    w, calls = model.w, model.calls
    with pytest.raises(kind) as caught:
        nnx.cond(jnp.array(True), true_fun, keep, model, jnp.array(1.0))
    text = re.sub(r"[\w/]*test_control\.py:\d+", "HERE", str(caught.value))
    text = text.replace(str(jnp.result_type(float)), "float32")  # wider with JAX_ENABLE_X64
    assert text.startswith(message), text
    assert (model.w, model.calls) == (w, calls) and model.w is w
    assert set(vars(model)) - {"_moduli"} == {"w", "calls"}
    assert float(w.value) == 2.0 and int(calls.value) == 0


def test_wrong_use_says_what_is_wrong():
    with pytest.raises(errors.StructureError, match=r"switch: branches is empty"):
        nnx.switch(0, [], 1.0)
    with pytest.raises(errors.StructureError, match=r"cond needs a callable; got a int"):
        nnx.cond(True, 1, keep, 1.0)
    with pytest.raises(errors.StructureError, match=r"switch needs a callable; got a float"):
        nnx.switch(0, [keep, 1.0], 1.0)
