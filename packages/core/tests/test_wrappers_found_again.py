"""A transform written in a loop traces once; a function that is made anew there warns once."""

from __future__ import annotations

import copy
import functools
import gc
import pickle
import warnings
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import moduli as nnx
from moduli import errors

X = jnp.ones((2, 3))
TRACES = []
MESH = jax.sharding.Mesh(jax.devices("cpu")[:1], ("i",))


class Model(nnx.Module):
    def __init__(self):
        self.w = nnx.Param(jnp.arange(3.0))
        self.calls = nnx.Variable(jnp.array(0))

    def __call__(self, x):
        TRACES.append("call")
        self.calls.value += 1
        return x * self.w

    def score(self, x):
        TRACES.append("score")
        self.calls.value += 1
        return (x * self.w).sum()

    @nnx.jit
    def jitted(self, x):
        TRACES.append("jitted")
        self.calls.value += 1
        return (x * self.w).sum()


class Child(Model):
    pass


def f(model, x, n=2):
    TRACES.append("f")
    model.calls.value += 1
    return (x * model.w).sum() * n


def plain(x):
    TRACES.append("plain")
    return (x * 2.0).sum()


def mapped(model, x):
    TRACES.append("mapped")
    model.calls.value += 1
    return x * model.w


REPLICATED = jax.sharding.NamedSharding(MESH, jax.P())
SPECS = {"mesh": MESH, "in_specs": jax.P(), "out_specs": jax.P()}
# name -> (what makes the wrapper, whether it counts a call of the model)
WRITTEN = {
    "jit(f)": lambda m: nnx.jit(f)(m, X),
    "jit(model)": lambda m: nnx.jit(m)(X),
    "jit(model.score)": lambda m: nnx.jit(m.score)(X),
    "jit(jitted method)": lambda m: nnx.jit(m.jitted)(X),
    "jit(f, static)": lambda m: nnx.jit(f, static_argnames="n")(m, X, n=3),
    "jit(f, static list)": lambda m: nnx.jit(f, static_argnums=[2])(m, X, 3),
    "jit(f, shardings)": lambda m: nnx.jit(f, in_shardings=[REPLICATED, REPLICATED])(m, X),
    "jit(options)(f)": lambda m: nnx.jit(donate_argnums=())(f)(m, X),
    "partial(jit, options)(f)": lambda m: functools.partial(nnx.jit, inline=True)(f)(m, X),
    "jit(partial(f, n))": lambda m: nnx.jit(functools.partial(f, n=3))(m, X),
    "jit_partial(f, model)": lambda m: nnx.jit_partial(f, m)(X),
    "jit(jit(f))": lambda m: nnx.jit(nnx.jit(f))(m, X),
    "jit(jit(model))": lambda m: nnx.jit(nnx.jit(m))(X),
    "jit(grad(f))": lambda m: nnx.jit(nnx.grad(f))(m, X),
    "jit(value_and_grad(f))": lambda m: nnx.jit(nnx.value_and_grad(f))(m, X),
    "jit(grad(f, DiffState))": lambda m: nnx.jit(
        nnx.grad(f, argnums=nnx.DiffState(0, nnx.PathContains("w")))
    )(m, X),
    "jit(grad(model.score))": lambda m: nnx.jit(nnx.grad(m.score))(X),
    "jit(remat(f))": lambda m: nnx.jit(nnx.remat(f))(m, X),
    "jit(grad(remat(f)))": lambda m: nnx.jit(nnx.grad(nnx.remat(f)))(m, X),
    "jit(vmap(mapped))": lambda m: nnx.jit(nnx.vmap(mapped, in_axes=(None, 0)))(m, X),
    "jit(vmap(model))": lambda m: nnx.jit(nnx.vmap(m))(X),
    "jit(scan(mapped))": lambda m: nnx.jit(nnx.scan(mapped, in_axes=(None, 0), out_axes=0))(m, X),
    "pmap(mapped)": lambda m: nnx.pmap(mapped, in_axes=(None, 0))(m, X[:1]),
    "pmap(model)": lambda m: nnx.pmap(m)(X[:1]),
    "shard_map(f)": lambda m: nnx.shard_map(f, **SPECS)(m, X),
    "shard_map(model.score)": lambda m: nnx.shard_map(m.score, **SPECS)(X),
    "jit(shard_map(f))": lambda m: nnx.jit(nnx.shard_map(f, **SPECS))(m, X),
    "jit(checkify(f))": lambda m: nnx.jit(nnx.checkify(f))(m, X),
}


@pytest.fixture(autouse=True)
def no_traces():
    """Each test begins with functions that nobody has transformed."""
    TRACES.clear()
    for function in (f, plain, mapped, Model.__call__, Model.score):
        vars(function).pop("_moduli_programs", None)
    Model.jitted.clear_cache()


def rounds(written, model, count=4):
    outs = []
    for _ in range(count):
        model.w.value = model.w.value + 1.0
        outs.append(jax.tree.leaves(written(model))[-1])
    return outs


@pytest.mark.parametrize(
    ("name", "cls"),
    [(name, Model) for name in WRITTEN]
    + [("jit(model)", Child), ("jit(grad(model.score))", Child)],
)
def test_traced_once_with_the_values_of_each_step(name, cls):
    written = WRITTEN[name]
    first, second = cls(), cls()
    start = int(first.calls.value)
    written(first)
    once = len(TRACES)
    assert once
    if "shard" in name or "pmap" in name:  # the second call gets values that are on the mesh
        written(first)
        once = len(TRACES)
    outs = rounds(written, first) + rounds(written, second)
    assert len(TRACES) == once  # also for another model of the same structure
    with jax.disable_jit():
        again = cls()
        expected = rounds(written, again)
    np.testing.assert_allclose(outs[:4], expected, rtol=1e-6)
    if "jit(vmap(model))" != name and "partial" not in name:
        assert int(first.calls.value) >= start + 5


def test_options_are_told_apart():
    model = Model()
    assert float(nnx.jit(f, static_argnames="n")(model, X, n=2)) == 12.0
    assert float(nnx.jit(f)(model, X, n=2)) == 12.0
    assert float(nnx.jit(functools.partial(f, n=3))(model, X)) == 18.0
    assert float(nnx.jit(functools.partial(f, n=1))(model, X)) == 6.0
    assert float(nnx.jit(functools.partial(f, n=1.5))(model, X)) == 9.0
    by_x = nnx.jit(nnx.grad(f, argnums=1))(model, X)
    by_model = nnx.jit(nnx.grad(f))(model, X)
    both = nnx.jit(nnx.grad(f, argnums=(0, 1)))(model, X)
    assert by_x.shape == (2, 3)
    assert by_model["w"].value.shape == (3,)
    assert len(both) == 2
    assert len(TRACES) == 8


def test_options_that_cannot_be_hashed_work_as_before():
    model = Model()
    for _ in range(2):
        grads = nnx.jit(nnx.grad(f, argnums=nnx.DiffState(0, [nnx.Param])))(model, X)
        assert grads["w"].value.shape == (3,)
    assert len(TRACES) == 2


def test_what_a_name_stands_for_now_counts():
    scale = 2.0

    def scaled(x):
        TRACES.append("scaled")
        return x * scale

    assert float(nnx.jit(scaled)(1.0)) == 2.0
    assert float(nnx.jit(scaled)(1.0)) == 2.0
    scale = 5.0
    assert float(nnx.jit(scaled)(1.0)) == 5.0
    assert float(nnx.jit(nnx.grad(scaled))(1.0)) == 5.0
    scale = 7.0
    assert float(nnx.jit(nnx.grad(scaled))(1.0)) == 7.0
    assert len(TRACES) == 5 - 1


def test_a_function_that_counts_its_traces_in_a_name():
    count = 0

    def counted(x):
        nonlocal count
        count += 1
        return x * 2.0

    for _ in range(3):
        nnx.jit(counted)(1.0)
    assert count == 1


def test_clear_cache_and_plugins_as_before():
    model = Model()
    one, two = nnx.jit(f), nnx.jit(f)
    one(model, X)
    two(model, X)
    one.clear_cache()
    one(model, X)
    assert len(TRACES) == 2


def test_functools_wraps_copies_no_programs():
    @functools.wraps(plain)
    def other(x):
        return -plain(x)

    assert float(nnx.jit(plain)(X)) == 12.0
    assert float(nnx.jit(other)(X)) == -12.0

    @functools.wraps(plain)
    def third(x):
        return 3 * plain(x)

    assert float(nnx.jit(third)(X)) == 36.0
    gradient = nnx.grad(plain)
    wrapped = functools.wraps(gradient)(lambda x: -gradient(x))
    assert float(nnx.jit(gradient)(X)[0, 0]) == 2.0
    assert float(nnx.jit(wrapped)(X)[0, 0]) == -2.0


def test_functions_are_copied_and_pickled_as_before():
    nnx.jit(plain)(X)
    assert copy.deepcopy(plain) is plain
    assert pickle.loads(pickle.dumps(plain)) is plain
    state = pickle.loads(pickle.dumps(dict(vars(plain))))  # what cloudpickle takes along
    assert all(not getattr(table, "kept", None) for table in state.values())


@pytest.mark.parametrize("fun", [abs, jnp.sin, jax.jit(jnp.cos)])
def test_callables_without_attributes_of_their_own(fun):
    for _ in range(2):
        np.testing.assert_allclose(nnx.jit(fun)(jnp.array(-2.0)), fun(jnp.array(-2.0)), rtol=1e-6)


def test_functions_and_what_they_close_over_are_freed_at_once():
    class Big:
        pass

    def die(use):
        big = Big()

        def g(x):
            assert big
            return (x * 2.0).sum()

        use(g)
        return weakref.ref(big), weakref.ref(g)

    uses = [
        lambda g: nnx.jit(g)(X),
        lambda g: nnx.jit(nnx.grad(g))(X),
        lambda g: nnx.shard_map(g, **SPECS)(X),
        lambda g: nnx.grad(g)(X),
    ]
    gc.collect()
    gc.disable()
    try:
        assert [ref() for use in uses[:2] for ref in die(use)] == [None] * 4
    finally:
        gc.enable()
    refs = [ref for use in uses for ref in die(use)]
    gc.collect()
    assert [ref() for ref in refs] == [None] * 8


@pytest.mark.parametrize("name", WRITTEN)
def test_programs_keep_no_model_alive(name):
    model = Model()
    WRITTEN[name](model)
    ref = weakref.ref(model)
    del model
    gc.collect()
    assert ref() is None


# functions made anew


def loop(body, count=5):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for number in range(count):
            body(number)
    assert {w.category for w in caught} <= {errors.RecompilationWarning}
    return caught


def test_a_lambda_in_a_loop_warns_once():
    model = Model()
    caught = loop(lambda i: nnx.jit(lambda m, x: m(x) * i)(model, X))
    assert len(caught) == 1
    text = str(caught[0].message)
    assert "<lambda> at " in text and "test_wrappers_found_again.py:" in text, text
    assert "3 times" in text and "outside of the loop" in text and "(`i`)" in text, text
    assert caught[0].filename == __file__


def test_a_function_defined_in_a_loop_warns_once():
    model = Model()

    def body(i):
        @nnx.jit
        def step(m, x):
            return m(x)

        step(model, X)

    caught = loop(body)
    assert len(caught) == 1
    assert "Define `step` outside of the loop; then" in str(caught[0].message)


MADE_IN_LOOPS = {
    "closure": lambda m, i: nnx.jit(lambda x: x * m.w)(X),
    "grad": lambda m, i: nnx.jit(nnx.grad(lambda m: m(X).sum()))(m),
    "vmap": lambda m, i: nnx.jit(nnx.vmap(lambda m, x: m(x), in_axes=(None, 0)))(m, X),
    "static": lambda m, i: nnx.jit(lambda m, x, n: m(x) * n, static_argnums=2)(m, X, 3),
    "no model": lambda m, i: nnx.jit(lambda x: x + 1.0)(X),
    "keywords": lambda m, i: nnx.jit(lambda m, x: m(x) + i)(m, x=X),
}


@pytest.mark.parametrize("name", MADE_IN_LOOPS)
def test_other_functions_made_in_a_loop(name):
    model = Model()
    assert len(loop(lambda i: MADE_IN_LOOPS[name](model, i))) == 1


def test_ordinary_uses_do_not_warn():
    model = Model()

    def other_models(i):
        nnx.jit(lambda m, x: m(x))(Model(), X)

    def other_shapes(i):
        nnx.jit(lambda m, x: m(x))(model, jnp.ones((i + 1, 3)))

    def a_sweep(i):
        step = nnx.jit(lambda m, x: m(x) * i)
        for _ in range(3):
            step(model, X)

    kept = []

    def wrappers_that_are_kept(i):
        kept.append(nnx.jit(lambda m, x: m(x) * i))
        kept[-1](model, X)

    def other_options(i):
        nnx.jit(lambda x, n: x * n, static_argnums=1)(X, i)

    for body in (other_models, other_shapes, a_sweep, wrappers_that_are_kept, other_options):
        assert not loop(body), body
