"""Transforms as users combine them: nested, over shared and tied parts, in threads, interrupted."""

from __future__ import annotations

import gc
import threading
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from core_models import Linear, Norm, batch

import moduli as nnx
from moduli.testing import assert_equal_graphs, assert_unchanged


class Block(nnx.Module):
    """Linear, Norm and dropout: parameters, statistics and a stream."""

    def __init__(self, rngs):
        self.linear = Linear(3, 3, rngs=rngs)
        self.norm = Norm(3)
        self.rngs = rngs.fork()

    def __call__(self, x):
        kept = jax.random.bernoulli(self.rngs.dropout(), 0.5, x.shape)
        return jnp.where(kept, jnp.tanh(self.norm(self.linear(x))), 0.0)


def blocks(count=3, seed=0):
    return nnx.vmap(Block)(nnx.Rngs(seed).split(count))


def pick(model, index):
    """One of the stacked blocks, by hand."""
    graphdef, state = nnx.split(model)
    return nnx.merge(graphdef, jax.tree.map(lambda x: x[index], state))


def test_jit_of_grad_of_scan_over_vmap_of_remat_is_the_loop():
    class Plain(nnx.Module):
        def __init__(self, rngs):
            self.linear = Linear(3, 3, rngs=rngs)
            self.rngs = rngs.fork()
            self.calls = nnx.BatchStat(jnp.zeros(()))

        def __call__(self, x):
            noise = jax.random.normal(self.rngs.noise(), x.shape)
            return jnp.tanh(self.linear(x) + 0.1 * noise)

    models = nnx.vmap(Plain)(nnx.Rngs(0).split(3))
    singles = [pick(models, n) for n in range(3)]
    x = batch()

    def step(x, model):
        model.calls.value = model.calls.value + 1.0
        mapped = nnx.vmap(nnx.remat(lambda m, row: m(row)), in_axes=(None, 0))
        return mapped(model, x)

    def scanned(models, x):
        return (nnx.scan(step, in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)(x, models) ** 2).sum()

    def looped(singles, x):
        for model in singles:
            x = step(x, model)
        return (x**2).sum()

    run, expected = nnx.jit(nnx.value_and_grad(scanned)), nnx.value_and_grad(looped)
    for _ in range(2):
        value, grads = run(models, x)
        value_by_loop, grads_by_loop = expected(singles, x)
        np.testing.assert_allclose(value, value_by_loop, rtol=1e-5)
        by_loop = [g["linear"]["kernel"].value for g in grads_by_loop]
        np.testing.assert_allclose(grads["linear"]["kernel"].value, by_loop, rtol=1e-4, atol=1e-6)
    for n, single in enumerate(singles):
        assert_equal_graphs(pick(models, n), single, rtol=1e-6)
    assert models.calls.value.tolist() == [2.0] * 3


class Tied(nnx.Module):
    """The embedding is the output's kernel too, and two heads share a block."""

    def __init__(self, rngs):
        self.table = nnx.Param(jax.random.normal(rngs.params(), (5, 3)))
        self.out = nnx.Dict(kernel=self.table)
        self.first = Block(rngs)
        self.heads = [self.first, Block(rngs)]

    def __call__(self, tokens):
        x = self.table.value[tokens]
        for head in self.heads:
            x = head(x)
        return x @ self.out["kernel"].value.T


def test_tied_parameters_and_shared_modules_train_as_one():
    tokens = jnp.array([0, 3, 3])

    def loss(model, tokens):
        return nnx.remat(lambda m, t: m(t))(model, tokens).sum()

    @nnx.jit
    def train(model, tokens):
        value, grads = nnx.value_and_grad(loss)(model, tokens)
        params = nnx.state(model, nnx.Param)
        nnx.update(model, jax.tree.map(lambda p, g: p - 0.1 * g, params, grads))
        return value

    model, twin = Tied(nnx.Rngs(0)), Tied(nnx.Rngs(0))

    def by_hand(table, model):
        model.table.value = table
        return model(tokens).sum()

    for _ in range(2):
        value = train(model, tokens)
        table = twin.table.value
        expected, grad = jax.value_and_grad(lambda t: by_hand(t, nnx.clone(twin)))(table)
        np.testing.assert_allclose(value, expected, rtol=1e-5)
        np.testing.assert_allclose(model.table.value, table - 0.1 * grad, rtol=1e-4, atol=1e-6)
        assert model.out["kernel"] is model.table and model.heads[0] is model.first
        twin = nnx.clone(model)


def take_apart(model):
    """Changes a part of a model in every way, and takes it out."""
    part = model["part"]
    part.new = nnx.Param(part.w.value * 2)
    part.array = part.array + 1
    part.number, part.other = 5, model["other"]
    part.w.value = part.w.value + 1
    part.w.set_metadata(tag="changed")
    part.inner.array = part.inner.array - 1
    model["part"] = model["other"]
    model["list"].pop().array += 3
    tagged = model["tagged"]
    tagged.set_metadata(tag="changed")
    del model["tagged"]
    return model["other"].array.sum()


@pytest.mark.parametrize(
    "transform",
    [
        nnx.jit,
        lambda f: nnx.jit(f, donate_argnums=0),
        lambda f: nnx.vmap(f),
        lambda f: nnx.scan(f, in_axes=0, out_axes=0),
        nnx.remat,
        nnx.grad,
        lambda f: nnx.jit(lambda model: nnx.cond(True, f, f, model)),
        lambda f: nnx.pmap(f),
    ],
    ids=["jit", "donated", "vmap", "scan", "remat", "grad", "cond", "pmap"],
)
def test_what_is_changed_and_taken_out_of_a_model_is_changed_for_who_holds_it(transform):
    class Part(nnx.Module):
        def __init__(self, inner=None):
            self.w = nnx.Param(jnp.ones((2, 3)))
            self.array, self.number, self.inner = jnp.zeros((2, 2)), 0, inner

    def build():
        model = nnx.Dict(
            part=Part(Part()), other=Part(), list=[Part()], tagged=nnx.Param(jnp.ones(2), tag="")
        )
        return model, [model["part"], model["list"][0], model["tagged"]]

    model, held = build()
    take_apart(model)
    run = transform(take_apart)
    for _ in range(2):
        other, also_held = build()
        run(other)
        assert_equal_graphs(nnx.List([other, *also_held]), nnx.List([model, *held]))
    assert model["part"] is model["other"] and also_held[0].other is other["other"]
    assert also_held[0].new.value.tolist() == [[2.0] * 3] * 2


def test_models_made_inside_transforms():
    @nnx.jit
    def make(seed):
        model = Tied(nnx.Rngs(seed))
        model(jnp.array([1]))
        return model, model.first

    model, first = make(3)
    eager = Tied(nnx.Rngs(3))
    eager(jnp.array([1]))
    assert first is model.first is model.heads[0] and model.out["kernel"] is model.table
    assert_equal_graphs(model, eager, rtol=1e-5, atol=1e-6)
    other, _ = make(3)  # from the compiled program: new objects
    assert other is not model and other.table is not model.table
    model(jnp.array([1]))  # and an ordinary model afterwards
    assert int(model.first.rngs.default.count.value) == 2

    best = nnx.vmap(lambda rngs: Block(rngs))(nnx.Rngs(0).split(2))
    stacked = nnx.scan(lambda rngs: Block(rngs), in_axes=0, out_axes=0)(nnx.Rngs(0).split(2))
    np.testing.assert_array_equal(best.linear.kernel.value, stacked.linear.kernel.value)


def test_arguments_of_every_form():
    shared = Norm(3)
    default = Norm(3)

    @nnx.jit
    def f(pair, /, x, *rest, factor=2.0, extra=default, **others):
        out = pair["a"][0](x) * factor + extra(x)
        for item in rest:
            out = out + item(x)
        return out + others["last"][1](x)

    x, y = batch(), batch() + 1.0
    expected_shared, expected_default = Norm(3), Norm(3)
    expected = x - x.mean(0)
    out = f({"a": (shared, None)}, x, shared, last=[1, shared])
    np.testing.assert_allclose(out, 5 * expected, rtol=1e-5, atol=1e-6)
    for _ in range(3):
        expected_shared(x)
    expected_default(x)
    np.testing.assert_allclose(shared.mean.value, expected_shared.mean.value, rtol=1e-5)
    np.testing.assert_allclose(default.mean.value, expected_default.mean.value, rtol=1e-5)
    other = Norm(3)
    f({"a": (shared, None)}, y, factor=3.0, extra=other, last=[1, shared])
    np.testing.assert_allclose(other.mean.value, 0.5 * y.mean(0), rtol=1e-5)
    np.testing.assert_allclose(default.mean.value, expected_default.mean.value, rtol=1e-5)


def test_decorated_methods_of_every_transform():
    class Model(nnx.Module):
        def __init__(self):
            self.w = nnx.Param(jnp.array([1.0, 2.0]))
            self.calls = nnx.Variable(jnp.zeros((), jnp.int32))

        @nnx.jit
        def jitted(self, x):
            self.calls.value += 1
            return self.w.value * x

        @nnx.remat
        def rematerialized(self, x):
            return self.jitted(x)

        @nnx.vmap(in_axes=(None, 0))
        def mapped(self, x):
            return self.w.value * x

        @nnx.scan(in_axes=(None, 0), out_axes=0)
        def scanned(self, x):
            return self.rematerialized(x)

        @nnx.value_and_grad
        def slope(self, x):
            return self.jitted(x).sum()

        @nnx.jit(static_argnames=("power",), donate_argnums=0)
        def step(self, x, power=2):
            self.w.value = self.w.value * x**power
            return power

    model, xs = Model(), jnp.ones((3, 2))
    assert model.mapped(xs).shape == model.scanned(xs).shape == (3, 2)
    value, grads = model.slope(jnp.array([3.0, 4.0]))
    assert float(value) == 11.0 and grads.w.value.tolist() == [3.0, 4.0]
    assert int(model.calls.value) == 4
    before = model.w.value
    assert int(model.step(2.0, power=3)) == 3 and before.is_deleted()
    assert model.w.value.tolist() == [8.0, 16.0]
    assert Model.jitted(model, 1.0).tolist() == [8.0, 16.0]


def test_donation_in_a_loop_with_a_shared_variable():
    class Optimizer(nnx.Module):
        def __init__(self, model):
            self.model = model
            self.momentum = nnx.Variable(jnp.zeros((3, 3)))

    def step(model, optimizer, x):
        grads = nnx.grad(lambda m, x: (m(x) ** 2).sum())(model, x)
        optimizer.momentum.value = 0.9 * optimizer.momentum.value + grads.kernel.value
        optimizer.model.kernel.value = model.kernel.value - 0.01 * optimizer.momentum.value

    def build():
        model = Linear(3, 3, rngs=nnx.Rngs(0))
        return model, Optimizer(model)

    (model, optimizer), (twin, other) = build(), build()
    run, plain = nnx.jit(step, donate_argnums=(0, 1)), nnx.jit(step)
    for _ in range(3):
        run(model, optimizer, batch())
        plain(twin, other, batch())
        assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(nnx.state(optimizer)))
    assert optimizer.model is model
    assert_equal_graphs(optimizer, other)


@pytest.mark.parametrize("depth", range(4))
def test_an_exception_in_the_middle_of_a_nest_leaves_everything(depth):
    model = nnx.vmap(Block)(nnx.Rngs(0).split(2))

    def fail(at):
        if at == depth:
            raise ZeroDivisionError(at)

    @nnx.jit
    def outer(model, x):
        model.norm.mean.value = model.norm.mean.value + 1.0
        fail(0)

        def step(x, block):
            block.norm.mean.value = block.norm.mean.value * 2.0
            fail(1)

            def loss(block, x):
                block.linear.bias.value = block.linear.bias.value + 1.0
                block.rngs.dropout()
                fail(2)
                return nnx.cond(x.sum() > 0, inner, inner, block, x).sum()

            def inner(block, x):
                y = block(x)
                fail(3)
                return y

            return x + nnx.value_and_grad(loss)(block, x)[0]

        return nnx.scan(step, in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)(x, model)

    with assert_unchanged(model), pytest.raises(ZeroDivisionError, match=str(depth)):
        outer(model, batch())
    depth = -1
    outer(model, batch())  # the same function, now whole
    assert (np.asarray(model.norm.mean.value) != 0).all()


def test_threads_that_trace_at_the_same_time():
    """Each thread traces its own shapes of one function, and others run what is compiled."""

    @nnx.jit
    def step(model, x):
        loss, grads = nnx.value_and_grad(lambda m, x: (m(x) ** 2).mean())(model, x)
        model.kernel.value = model.kernel.value - 0.1 * grads.kernel.value
        model.steps = model.steps + 1 if hasattr(model, "steps") else 1
        return loss

    def run(rows, results):
        model = Linear(3, 3, rngs=nnx.Rngs(rows))
        try:
            results[rows] = [float(step(model, jnp.ones((rows, 3)))) for _ in range(3)]
            results[rows].append(model.steps)
        except BaseException as error:
            results[rows] = error

    found, alone = {}, {}
    threads = [threading.Thread(target=run, args=(rows, found)) for rows in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for rows in range(1, 5):
        run(rows, alone)
    assert found == alone and all(result[-1] == 3 for result in alone.values())


def test_programs_are_dropped_with_their_functions():
    def use():
        models = [Norm(3), blocks(2)]
        big = jnp.ones((7, 3))

        def forward(model, x):
            return model(x) + big.sum()

        run = nnx.jit(forward)
        run(models[0], batch())
        nnx.jit(nnx.grad(lambda m, x: run(m, x).sum()))(models[0], batch())
        nnx.vmap(forward, in_axes=(0, None))(models[1].norm, batch())
        nnx.scan(forward, in_axes=(None, 0), out_axes=0)(models[0], batch()[None])
        nnx.cond(jnp.array(True), forward, forward, models[0], batch())
        kept = [forward, run, run.lower(models[0], batch()).compile(), *models, models[0].mean, big]
        return [weakref.ref(item) for item in kept]

    refs = use()
    jax.clear_caches()  # what JAX itself keeps by function
    gc.collect()
    assert [ref() for ref in refs] == [None] * len(refs)


def test_the_number_of_arrays_stays_bounded_over_many_models():
    @nnx.jit
    def train(model, x):
        grads = nnx.grad(lambda m, x: (m(x) ** 2).sum())(model, x)
        model.linear.kernel.value = model.linear.kernel.value - grads.linear.kernel.value

    def use(count):
        for seed in range(count):
            model = Block(nnx.Rngs(seed))
            train(model, batch())
            nnx.split(model), nnx.clone(model), nnx.state(model)
        del model
        gc.collect()
        return len(jax.live_arrays())

    before = use(3)
    assert use(20) <= before
