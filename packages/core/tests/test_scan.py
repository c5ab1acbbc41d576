"""scan: what is sliced, carried and broadcast, against the loop that it stands for."""

from __future__ import annotations

import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import moduli as nnx
from moduli import errors
from moduli.testing import assert_equal_graphs, assert_unchanged


class Block(nnx.Module):
    """A step that uses all there is: a parameter, a statistic, random numbers."""

    def __init__(self, rngs: nnx.Rngs):
        self.w = nnx.Param(jax.random.normal(rngs.params(), (3, 3)))
        self.mean = nnx.BatchStat(jnp.zeros(3))
        self.rngs = rngs.fork()

    def __call__(self, x: jax.Array) -> jax.Array:
        y = jnp.tanh(x @ self.w) + 0.1 * jax.random.normal(self.rngs.noise(), x.shape)
        self.mean.value = 0.9 * self.mean + 0.1 * y
        return y


def stacked(count: int = 4) -> Block:
    return nnx.vmap(Block)(nnx.Rngs(0).split(count))


def unstacked(models: nnx.Module, count: int = 4) -> list[nnx.Module]:
    graphdef, state = nnx.split(models)
    return [
        nnx.merge(graphdef, jax.tree.map(lambda value, n=n: value[n], state)) for n in range(count)
    ]


def restacked(models: list[nnx.Module]) -> nnx.Module:
    graphdef = nnx.graphdef(models[0])
    states = [nnx.state(model) for model in models]
    return nnx.merge(graphdef, jax.tree.map(lambda *values: jnp.stack(values), *states))


X = jnp.arange(3.0)
XS = jnp.arange(15.0).reshape(5, 3) / 10


def close(a, b, **options):
    def same(one, two):
        if jnp.issubdtype(one.dtype, jax.dtypes.prng_key):
            one, two = jax.random.key_data(one), jax.random.key_data(two)
        np.testing.assert_allclose(one, two, **{"rtol": 1e-5, "atol": 1e-6, **options})

    jax.tree.map(same, nnx.state(a), nnx.state(b))


# -- against the loop ------------------------------------------------------------------------------


@pytest.mark.parametrize("jitted", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize("options", [{}, {"unroll": 2}, {"unroll": True}, {"reverse": True}])
def test_over_layers_it_does_what_the_loop_does(jitted, options):
    models = stacked()
    blocks = unstacked(models)

    def forward(models, x):
        return nnx.scan(
            lambda x, block: block(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry, **options
        )(x, models)

    out = (nnx.jit(forward) if jitted else forward)(models, X)
    expected = X
    for block in reversed(blocks) if options.get("reverse") else blocks:
        expected = block(expected)
    np.testing.assert_allclose(out, expected, rtol=1e-5)
    close(models, restacked(blocks))
    assert models.rngs.default.count.value.tolist() == [1] * 4


@pytest.mark.parametrize("mark", [None, nnx.Carry], ids=["None", "Carry"])
def test_one_module_in_every_step_does_what_the_loop_does(mark):
    model = Block(nnx.Rngs(0))
    eager = nnx.clone(model)
    axes = nnx.StateAxes({...: mark}) if mark is nnx.Carry else None
    ys = nnx.scan(lambda m, x: m(x), in_axes=(axes, 0), out_axes=0)(model, XS)
    np.testing.assert_allclose(ys, jnp.stack([eager(x) for x in XS]), rtol=1e-5)
    close(model, eager)
    assert int(model.rngs.default.count) == int(eager.rngs.default.count)


def test_parts_may_be_sliced_carried_and_constant():
    class Mixed(nnx.Module):
        def __init__(self):
            self.sliced = nnx.Param(jnp.arange(4.0))
            self.total = nnx.BatchStat(jnp.array(0.0))
            self.constant = nnx.Cache(jnp.array(2.0))

        def step(self):
            self.total.value += self.sliced * self.constant
            return self.total.value

    mixed = Mixed()
    axes = nnx.StateAxes({nnx.Param: 0, nnx.BatchStat: nnx.Carry, ...: None})
    out = nnx.scan(lambda m: m.step(), in_axes=axes, out_axes=0)(mixed)
    assert out.tolist() == [0.0, 2.0, 6.0, 12.0]
    assert float(mixed.total) == 12.0 and mixed.sliced.shape == (4,)


def test_parts_of_a_module_inside_an_argument_may_be_carried():
    rngs, same = nnx.Rngs(0), nnx.Rngs(0)
    axes = {"rngs": nnx.StateAxes({...: nnx.Carry}), "x": 0}
    ys = nnx.scan(lambda d: d["x"] + d["rngs"].normal((3,)), in_axes=(axes,), out_axes=0)(
        {"rngs": rngs, "x": XS}
    )
    np.testing.assert_allclose(ys, jnp.stack([x + same.normal((3,)) for x in XS]), rtol=1e-5)
    assert int(rngs.default.count) == 5


def test_carries_hold_modules_in_any_structure():
    model, other = Block(nnx.Rngs(0)), Block(nnx.Rngs(1))
    eager = nnx.clone((model, other))

    def step(carry, x):
        y = carry["pair"][0](x) + carry["pair"][1](carry["x"])
        return {"pair": carry["pair"], "x": y}, (y, carry["x"])

    carry, (ys, before) = nnx.scan(step)({"pair": (model, other), "x": X}, XS)
    assert carry["pair"][0] is model and carry["pair"][1] is other
    expected = {"pair": eager, "x": X}
    results = []
    for x in XS:
        expected, (y, _) = step(expected, x)
        results.append(y)
    np.testing.assert_allclose(ys, jnp.stack(results), rtol=1e-4)
    np.testing.assert_allclose(before[1:], ys[:-1], rtol=1e-6)
    close(model, eager[0])


def test_the_same_module_twice_is_one_and_shared_references_stay():
    class Tied(nnx.Module):
        def __init__(self):
            self.a = nnx.BatchStat(jnp.array(1.0))
            self.b = self.a

    def step(carry, tied):
        assert carry[0] is tied and tied.a is tied.b
        tied.b.value *= 2
        return carry

    tied = Tied()
    nnx.scan(step, in_axes=(nnx.Carry, None), out_axes=nnx.Carry, length=3)((tied,), tied)
    assert float(tied.a) == 8.0 and tied.a is tied.b


def test_axes_other_than_the_first_in_and_out():
    def step(total, x):
        return total + x, total * x

    total, out = nnx.scan(step, in_axes=(nnx.Carry, 1), out_axes=(nnx.Carry, -1))(jnp.zeros(5), XS)
    np.testing.assert_allclose(total, XS.sum(1), rtol=1e-6)
    assert out.shape == (5, 3)
    models = stacked()
    models.w.value = jnp.moveaxis(models.w.value, 0, 2)
    axes = nnx.StateAxes({nnx.Param: 2, ...: 0})

    def double(m):
        m.w.value = 2 * m.w.value

    before = models.w.value
    nnx.scan(double, in_axes=axes, out_axes=0)(models)
    np.testing.assert_array_equal(models.w.value, 2 * before)


def test_length_alone_no_carry_and_no_steps():
    model = Block(nnx.Rngs(0))
    out = nnx.scan(lambda m: m.rngs.noise(), in_axes=None, out_axes=0, length=3)(model)
    assert out.shape == (3,) and int(model.rngs.default.count) == 3
    state = nnx.clone(model)
    empty = nnx.scan(lambda m, x: m(x), in_axes=(None, 0), out_axes=0)(model, XS[:0])
    assert empty.shape == (0, 3)
    assert_equal_graphs(model, state)


def test_in_axes_carry_alone_is_the_whole_argument():
    a, b = nnx.scan(
        lambda c: (c[0] + 1, c[1] * 2), in_axes=nnx.Carry, out_axes=nnx.Carry, length=3
    )((0, 1.0))
    assert (int(a), float(b)) == (3, 8.0)


def test_new_variables_are_stacked_where_they_may_be():
    def step(x, block, model):
        y = block(x)
        block.last = nnx.Cache(y)
        block.note = "run"
        model.seen = nnx.Intermediate((y,))
        return y

    models, model = stacked(), Block(nnx.Rngs(3))
    out = nnx.scan(step, in_axes=(nnx.Carry, 0, None), out_axes=nnx.Carry)(X, models, model)
    assert models.last.shape == (4, 3) and models.note == "run"
    np.testing.assert_array_equal(model.seen.value[0], models.last.value)
    np.testing.assert_array_equal(out, models.last.value[-1])


def test_a_part_without_values_is_sliced_as_the_module_around_it():
    class Activation(nnx.Module):
        def __call__(self, x):
            self.last, self.name = nnx.Variable(jnp.tanh(x)), "tanh"
            return self.last.value

    class Block(nnx.Module):
        def __init__(self, w):
            self.w, self.activation = nnx.Param(w), Activation()

        def __call__(self, x):
            return self.activation(self.w.value * x)

    weights = jnp.array([1.0, 2.0, 3.0])
    block, alone, x = Block(weights), nnx.List([Activation()]), jnp.ones(())
    last = nnx.scan(lambda x, b: b(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)(x, block)
    assert block.activation.name == "tanh" and block.activation.last.value[-1] == last

    @nnx.scan(in_axes=(nnx.Carry, 0, 0), out_axes=nnx.Carry)
    def steps(x, alone, w):
        return alone[0](x * w)

    last = steps(x, alone, weights)
    assert alone[0].last.shape == (3,) and alone[0].last.value[-1] == last

    with pytest.raises(errors.StructureError, match="carried from step to step"):
        nnx.scan(lambda part, x: part(x), in_axes=(None, 0), out_axes=0)(Activation(), weights)


def test_an_exception_leaves_everything_as_it_was():
    def fail(x, block):
        block(x)
        block.new = nnx.Param(x)
        raise RuntimeError("stop")

    models = stacked()
    with assert_unchanged(models), pytest.raises(RuntimeError, match="stop"):
        nnx.scan(fail, in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)(X, models)


def test_gradients_through_scan_remat_vmap_under_jit():
    def loss(models, xs):
        def forward(x):
            return nnx.scan(
                nnx.remat(lambda x, block: block(x)), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry
            )(x, models)

        return (forward(xs) ** 2).mean()

    def by_hand(blocks, xs):
        for block in blocks:
            xs = block(xs)
        return (xs**2).mean()

    models = stacked()
    blocks = unstacked(models)
    value, grads = nnx.jit(lambda m, x: nnx.value_and_grad(loss)(m, x))(models, XS)
    expected, by_block = nnx.value_and_grad(lambda blocks, x: by_hand(blocks, x))(
        nnx.List(blocks), XS
    )
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    together = jnp.stack([by_block[n]["w"].value for n in range(4)])
    np.testing.assert_allclose(grads["w"].value, together, rtol=1e-3, atol=1e-6)
    close(models, restacked(blocks))


def test_scans_nest():
    def inner(x, block):
        return block(x)

    def outer(x, _, models):
        return nnx.scan(inner, in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)(x, models)

    models = stacked()
    blocks = unstacked(models)
    out = nnx.scan(outer, in_axes=(nnx.Carry, 0, None), out_axes=nnx.Carry)(
        X, jnp.arange(2), models
    )
    expected = X
    for _ in range(2):
        for block in blocks:
            expected = block(expected)
    np.testing.assert_allclose(out, expected, rtol=1e-5)
    close(models, restacked(blocks))


def test_steps_are_traced_once():
    traces = []

    def step(x, block):
        traces.append(1)
        return block(x)

    run = nnx.jit(lambda x, m: nnx.scan(step, in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)(x, m))
    for _ in range(3):
        run(X, stacked())
    assert len(traces) == 1


# -- randomness ------------------------------------------------------------------------------------


def draws(keys: jax.Array) -> set[tuple[int, ...]]:
    return set(map(tuple, np.asarray(jax.random.key_data(keys)).reshape(-1, 2).tolist()))


class Drawer(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.rngs = rngs

    def __call__(self) -> jax.Array:
        return jnp.stack([self.rngs.noise(), self.rngs.noise()])


@pytest.mark.parametrize("axis", [None, 0], ids=["unmapped", "mapped"])
@pytest.mark.parametrize("how", ["vmap", "scan"])
def test_no_key_is_drawn_twice(how, axis):
    drawer = Drawer(nnx.Rngs(0))
    if how == "vmap":
        run = nnx.vmap(lambda d: d(), in_axes=axis, axis_size=4)
    else:
        run = nnx.scan(lambda d: d(), in_axes=axis, out_axes=0, length=4)
    keys = [run(drawer), run(drawer), drawer(), nnx.jit(run)(drawer)]
    assert sum(len(draws(k)) for k in keys) == 4 * 2 * 3 + 2
    assert len(set.union(*map(draws, keys))) == 4 * 2 * 3 + 2
    assert drawer.rngs.default.key.shape == ()


def test_split_streams_are_those_of_fork():
    drawer, forked = Drawer(nnx.Rngs(0)), nnx.Rngs(0).fork(split=4)
    keys = nnx.vmap(lambda d: d(), in_axes=None, axis_size=4)(drawer)
    expected = nnx.vmap(lambda rngs: jnp.stack([rngs.noise(), rngs.noise()]))(forked)
    assert (jax.random.key_data(keys) == jax.random.key_data(expected)).all()
    assert int(drawer.rngs.default.count) == 1


@pytest.mark.parametrize("how", ["vmap", "scan"])
@pytest.mark.parametrize("asked", ["state axes", "argument"])
def test_a_stream_is_shared_when_asked(how, asked):
    rngs = nnx.Rngs(0)
    root = Drawer(rngs) if asked == "state axes" else rngs
    axes = nnx.StateAxes({nnx.RngState: None, ...: 0}) if asked == "state axes" else None

    def draw(root):
        return root() if asked == "state axes" else root.noise()

    if how == "vmap":
        keys = nnx.vmap(draw, in_axes=(axes,), axis_size=4)(root)
    else:
        keys = nnx.scan(draw, in_axes=(axes,), out_axes=0, length=4)(root)
    assert len(draws(keys)) == (2 if asked == "state axes" else 1)
    assert int(rngs.default.count) == (2 if asked == "state axes" else 1)  # one element's draws


def test_split_keys_are_sliced_and_counted_each():
    drawer = Drawer(nnx.Rngs(0).split(4))
    assert len(draws(nnx.vmap(lambda d: d())(drawer))) == 8
    assert len(draws(nnx.scan(lambda d: d(), in_axes=0, out_axes=0)(drawer))) == 8
    assert drawer.rngs.default.count.value.tolist() == [4] * 4


@pytest.mark.parametrize("at", [0, 2, 5])
def test_streams_that_are_saved_and_restored_go_on_bit_for_bit(at):
    def steps(model, x, count):
        run = nnx.jit(nnx.scan(lambda m, x: m(x), in_axes=(None, None), out_axes=0, length=1))
        return [run(model, x)[0] for _ in range(count)]

    model = Block(nnx.Rngs(0))
    whole = nnx.clone(model)
    expected = steps(whole, X, 5)
    first = steps(model, X, at)
    saved = nnx.to_pure_dict(nnx.state(nnx.clone(model)))
    fresh = Block(nnx.Rngs(7))
    nnx.update(fresh, saved)
    for got, want in zip([*first, *steps(fresh, X, 5 - at)], expected, strict=True):
        assert (got == want).all()
    close(fresh, whole, rtol=0, atol=0)


def test_a_stream_of_another_trace_is_not_advanced():
    drawer = Drawer(nnx.Rngs(0))

    def f(x):
        return nnx.vmap(lambda d, x: jax.random.normal(d()[0]) + x, in_axes=(None, 0))(drawer, x)

    with pytest.raises(errors.TraceError, match=r"RngCount at `rngs/default/count` of Drawer"):
        nnx.jit(f)(jnp.ones(3))


# -- errors ----------------------------------------------------------------------------------------


def made(name: str) -> str:
    lines, start = inspect.getsourcelines(Block.__init__)
    number = start + next(n for n, text in enumerate(lines) if f"self.{name} =" in text)
    return f"made at test_scan.py:{number}"


def replace(c, x):
    return (Block(nnx.Rngs(0)), c[1]), x


def retype(c, x):
    return (c[0], c[1].astype(jnp.int32)), x


def reshape(c, x):
    c[0].mean.value = jnp.ones(4)
    return c, x


def restructure(c, x):
    c[0].mean.value = (jnp.ones(3),)
    return c, x


def add(c, x):
    c[0].extra = nnx.Param(x)
    return c, x


def flag(c, x):
    c[0].flag = True
    return c, x


def remove(c, x):
    del c[0].mean
    return c, x


def reform(c, x):
    return [*c], x


@pytest.mark.parametrize(
    ("step", "kind", "message"),
    [
        (
            replace,
            errors.StructureError,
            "scan: replace got a Block at carry[0] and returned another object there, of type "
            "Block; a carry keeps its objects: change the object in place (`moduli.update(old, "
            "moduli.state(new))`) and return it",
        ),
        (
            retype,
            errors.ShapeError,
            "scan: retype changes argument 0[1], which is carried, from float32[3] to int32[3]; a "
            "carried value keeps shape and dtype. Cast the new value (`.astype(old.dtype)`), or "
            "start with what the loop makes",
        ),
        (
            reshape,
            errors.ShapeError,
            "scan: reshape changes the BatchStat ({mean}) at `mean` of argument 0[0], which is "
            "carried, from float32[3] to float32[4]; a carried value keeps shape and dtype. Cast "
            "the new value (`.astype(old.dtype)`), or start with what the loop makes",
        ),
        (
            restructure,
            errors.StructureError,
            "scan: restructure changes the structure of the BatchStat ({mean}) at `mean` of "
            "argument 0[0], which is carried, from PyTreeDef(*) to PyTreeDef((*,)); a carried "
            "value keeps its structure. A value that grows with every step (a sown tuple) has to "
            "be popped before, or captured",
        ),
        (
            add,
            errors.StructureError,
            "scan: add adds the attribute `extra` of a Block that is carried from step to step and "
            "keeps its structure; do it before or after the loop, or keep a changing number in a "
            "Variable",
        ),
        (
            flag,
            errors.StructureError,
            "scan: flag adds the attribute `flag` of a Block that is carried from step to step and "
            "keeps its structure; do it before or after the loop, or keep a changing number in a "
            "Variable",
        ),
        (
            remove,
            errors.StructureError,
            "scan: remove removes the BatchStat ({mean}) at `mean` of argument 0[0], which is "
            "carried from step to step and keeps its structure; remove it after the loop",
        ),
        (
            reform,
            errors.StructureError,
            "scan: reform got the carry ('Block', 'DynamicJaxprTracer') and returned ['Block', "
            "'DynamicJaxprTracer']; a carry keeps its structure: return it in the same form",
        ),
    ],
)
def test_a_carry_that_changes_is_refused_and_nothing_happens(step, kind, message):
    model = Block(nnx.Rngs(0))
    with assert_unchanged(model), pytest.raises(kind) as caught:
        nnx.scan(step)((model, X), XS)
    text = re.sub(r"made at [^()]*test_scan", "made at test_scan", str(caught.value))
    text = text.replace(str(jnp.result_type(float)), "float32")  # wider with JAX_ENABLE_X64
    assert text == message.format(mean=made("mean"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"in_axes": (nnx.Carry, 0), "out_axes": 0},
            "scan: moduli.Carry stands in one of in_axes=(<class 'moduli.Carry'>, 0) and "
            "out_axes=0, but not in the other; what a step carries in, it has to return",
        ),
        (
            {"in_axes": (nnx.Carry, nnx.Carry)},
            "scan: in_axes=(<class 'moduli.Carry'>, <class 'moduli.Carry'>) has moduli.Carry in 2 "
            "places; put what is carried into one tuple: in_axes=(moduli.Carry, ...) with f((a, "
            "b), ...)",
        ),
        (
            {"in_axes": ({"a": nnx.Carry}, 0)},
            "scan: in_axes[0]={'a': <class 'moduli.Carry'>} has moduli.Carry inside; it stands for "
            "a whole argument, so move what is carried into an argument of its own",
        ),
    ],
)
def test_axes_that_cannot_be_are_refused_before_any_call(options, message):
    with pytest.raises(errors.StructureError) as caught:
        nnx.scan(lambda c, x: (c, x), **options)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: nnx.scan(lambda c, x: c)(0.0, XS),
            "scan: out_axes=(<class 'moduli.Carry'>, 0) has 2 entries, but f returned a {array}; "
            "write out_axes=moduli.Carry if the result is the carry alone",
        ),
        (
            lambda: nnx.scan(lambda c, x: (c, x), out_axes=(nnx.Carry, None))(0.0, XS),
            "scan: out_axes gives the result[1] the label None; what a step returns is stacked "
            "along an axis (an int), or carried (moduli.Carry, for a whole entry)",
        ),
        (
            lambda: nnx.scan(lambda c, x: (c, x), in_axes=(nnx.Carry, None))(0.0, XS),
            "scan: no argument of f is mapped, so the size of the axis is unknown; give one of "
            "them an axis in in_axes, or pass length",
        ),
        (
            lambda: nnx.scan(lambda c, x: (c, x), length=7)(0.0, XS),
            "scan: argument 1 has shape (5, 3), so size 5 along axis 0; but length is 7",
        ),
    ],
)
def test_calls_that_cannot_be_are_refused(call, message):
    with pytest.raises(errors.ModuliError) as caught:
        call()
    text = str(caught.value).replace("<lambda>.<locals>.<lambda>", "f").replace("<lambda>", "f")
    text = re.sub(r"returned a \w+", "returned a {array}", text)
    assert text == message
