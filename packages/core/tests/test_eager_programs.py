"""Warm eager calls compile nothing: programs are found again, never with old constants."""

from __future__ import annotations

import gc
import weakref

import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify as jax_checkify

import moduli as nnx
from moduli import errors, plugins
from moduli.testing import compilations

# -- counting --------------------------------------------------------------------------------------


def test_compilations_are_counted():
    def fresh():
        return jax.jit(lambda x: x + np.random.rand())(1.0)

    assert compilations(fresh, 3) == 3


# -- models ----------------------------------------------------------------------------------------


class Block(nnx.Module):
    """tanh(x @ w) * scale, which counts its calls."""

    def __init__(self, w, scale: float = 1.0):
        self.w, self.calls, self.scale = nnx.Param(w), nnx.BatchStat(jnp.zeros(())), scale

    def __call__(self, x):
        self.calls.value += 1.0
        return jnp.tanh(x @ self.w.value) * self.scale

    def more(self, x):
        return 2 * self(x)


class Pair(nnx.Module):
    """Two names of one block."""

    def __init__(self, w):
        self.first = self.second = Block(w)

    def __call__(self, x):
        return self.second(self.first(x))


class Noisy(nnx.Module):
    """A block that draws random numbers."""

    def __init__(self, w, rngs: nnx.Rngs):
        self.block, self.rngs = Block(w), rngs

    def __call__(self, x):
        return self.block(x) + 0.1 * jax.random.normal(self.rngs.noise(), x.shape)


W = 0.3 * jax.random.normal(jax.random.key(0), (4, 4))
X = jnp.linspace(-1.0, 1.0, 4)
YES, ONE = jnp.array(True), jnp.array(1)
MODELS = {
    "module": lambda: Block(W),
    "shared": lambda: Pair(W),
    "stream": lambda: Noisy(W, nnx.Rngs(3)),
}


# -- transforms: each applies a model three times (scan, loops) or once ----------------------------


def step(x, model, _):
    return model(x)


def body(index, carry):
    model, x = carry
    return model, model(x)


def goes_on(carry):
    return carry[2] < 3


def next_step(carry):
    model, x, count = carry
    return model, model(x), count + 1


def apply(model, x):
    return model(x)


def twice(model, x):
    return 2 * model(x)


def total(model, x):
    return (model(x) ** 2).sum()


SCANNED = nnx.scan(step, in_axes=(nnx.Carry, None, 0), out_axes=nnx.Carry)
REMAT = nnx.remat(apply)
CUSTOM = nnx.custom_vjp(apply)
CUSTOM.defvjp(lambda m, x: (m(x), (m.w.value, x)), lambda r, g: (nnx.State({}), 3.0 * g[1]))
CHECKED = nnx.checkify(apply, jax_checkify.float_checks)
MESH = jax.sharding.Mesh(jax.devices()[:1], ("d",))


def scan(model, x):
    return SCANNED(x, model, jnp.zeros(3))


def fori(model, x):
    return nnx.fori_loop(0, 3, body, (model, x))[1]


def while_(model, x):
    return nnx.while_loop(goes_on, next_step, (model, x, jnp.array(0)))[1]


def cond(model, x):
    return nnx.cond(YES, twice, apply, model, x)


def switch(model, x):
    return nnx.switch(ONE, (apply, twice), model, x)


def remat(model, x):
    return REMAT(model, x)


def checkify(model, x):
    error, out = CHECKED(model, x)
    error.throw()
    return out


def thrice(model, x):
    for _ in range(3):
        x = model(x)
    return x


REFERENCE = {
    scan: thrice,
    fori: thrice,
    while_: thrice,
    cond: twice,
    switch: twice,
    remat: apply,
    checkify: apply,
}


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("transform", REFERENCE)
def test_warm_calls_compile_nothing_and_do_what_the_function_does(transform, kind):
    model, plain = MODELS[kind](), MODELS[kind]()
    for number in range(4):
        out = []
        count = compilations(lambda n=number, out=out: out.append(transform(model, X + n)))
        assert number == 0 or count == 0
        np.testing.assert_allclose(out[0], REFERENCE[transform](plain, X + number), rtol=1e-5)
        for ours, theirs in zip(*map(jax.tree.leaves, map(nnx.state, (model, plain))), strict=True):
            np.testing.assert_allclose(_raw(ours), _raw(theirs), rtol=1e-5)


def _raw(value):
    return jax.random.key_data(value) if jnp.issubdtype(value.dtype, jax.dtypes.prng_key) else value


OUTER = {
    "grad": lambda inner: nnx.grad(lambda m, x: (inner(m, x) ** 2).sum()),
    "value_and_grad": lambda inner: nnx.value_and_grad(lambda m, x: (inner(m, x) ** 2).sum()),
    "raw grad": lambda inner: lambda m, x: jax.grad(lambda x: inner(m, x).sum())(x),
    "vmap": lambda inner: (
        lambda m, x: nnx.vmap(inner, in_axes=(None, 0))(nnx.clone(m), jnp.stack([x, x]))
    ),
    "vjp": lambda inner: lambda m, x: nnx.vjp(inner, m, x)[1](x),
    "jvp": lambda inner: lambda m, x: nnx.jvp(inner, (m, x), (None, x)),
    "grad of grad": lambda inner: nnx.grad(
        lambda m, x: nnx.grad(lambda m, x: (inner(m, x) ** 2).sum(), argnums=1)(m, x).sum()
    ),
    "vmap of grad": lambda inner: (
        lambda m, x: nnx.vmap(
            nnx.grad(lambda m, x: inner(m, x).sum(), argnums=1), in_axes=(None, 0)
        )(nnx.clone(m), jnp.stack([x, x]))
    ),
    "remat": nnx.remat,
    "grad of remat": lambda inner: nnx.grad(lambda m, x, f=nnx.remat(inner): f(m, x).sum()),
    "checkify": nnx.checkify,
    "eval_shape": lambda inner: lambda m, x: nnx.eval_shape(inner, m, x).shape,
    "shard_map": lambda inner: nnx.shard_map(
        inner, mesh=MESH, in_specs=jax.P(), out_specs=jax.P(), check_vma=False
    ),
    "pmap": lambda inner: (
        lambda m, x, f=nnx.pmap(inner, in_axes=(None, 0)): f(nnx.clone(m), x[None])
    ),
}


class Quiet(nnx.Module):
    """A block that writes nothing."""

    def __init__(self, w):
        self.w = nnx.Param(w)

    def __call__(self, x):
        return jnp.tanh(x @ self.w.value)


def nested():
    for outer in OUTER:
        for inner in (scan, fori, while_, cond, switch, remat, apply, CUSTOM):
            if inner is while_ and any(word in outer for word in ("grad", "vjp")):
                continue  # JAX does not differentiate it backwards
            if inner is CUSTOM and outer in ("jvp", "grad of grad"):
                continue  # nor custom_vjp forwards
            yield pytest.param(inner, outer, id=f"{outer} of {inner.__name__}")


@pytest.mark.parametrize(("transform", "outer"), [*nested()])
def test_warm_calls_of_nested_transforms_compile_nothing(transform, outer):
    model, run = Quiet(W), OUTER[outer](transform)
    run(model, X)
    run(model, X)
    assert compilations(lambda: run(model, X), 2) == 0


@pytest.mark.parametrize("transform", [scan, fori, cond, switch, remat])
def test_gradients_of_warm_calls(transform):
    model = Quiet(W)
    run = nnx.grad(lambda m, x: (transform(m, x) ** 2).sum(), argnums=(0, 1))
    reference = jax.grad(
        lambda w, x: (REFERENCE[transform](lambda x: jnp.tanh(x @ w), x) ** 2).sum(),
        argnums=(0, 1),
    )
    for number in range(3):
        grads, gx = run(model, X + number)
        expected = reference(W, X + number)
        np.testing.assert_allclose(grads["w"].value, expected[0], rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(gx, expected[1], rtol=1e-4, atol=1e-6)


def test_transforms_written_in_the_call_are_found_by_the_function():
    model = Block(W)

    def call():
        return nnx.scan(step, in_axes=(nnx.Carry, None, 0), out_axes=nnx.Carry)(
            X, model, jnp.zeros(3)
        )

    call()
    assert compilations(call, 2) == 0
    reverse = nnx.scan(step, in_axes=(nnx.Carry, None, 0), out_axes=nnx.Carry, reverse=True)
    assert compilations(lambda: reverse(X, model, jnp.zeros(3))) == 1  # other options


class Counter(nnx.Module):
    """Multiplies by its factor until it has done so often enough."""

    def __init__(self, factor):
        self.factor, self.count = nnx.Param(jnp.array(factor)), nnx.BatchStat(jnp.array(0))

    def goes_on(self, x):
        return self.count.value < 3

    def __call__(self, x):
        self.count.value += 1
        return x * self.factor.value

    def body(self, index, carry):
        other, x = carry
        other.factor.value += 1.0
        return other, self(x)


def test_methods_as_parts_of_loops():
    for factor in (2.0, 3.0):
        counter = Counter(factor)
        out = []
        count = compilations(
            lambda c=counter, out=out: out.append(nnx.while_loop(c.goes_on, c, jnp.array(1.0)))
        )
        assert float(out[0]) == factor**3
        assert int(counter.count.value) == 3
        assert factor == 2.0 or count == 0
    for _ in range(2):
        counter = Counter(2.0)  # as the method's module and in the carry: one object
        same, x = nnx.fori_loop(0, 3, counter.body, (counter, jnp.array(1.0)))
        assert same is counter
        assert (float(x), int(counter.count.value)) == (3.0 * 4.0 * 5.0, 3)
    writes = Counter(2.0)
    with pytest.raises(errors.StructureError, match="of the module of the method; what the cond"):
        nnx.while_loop(writes, writes, jnp.array(1.0))
    assert int(writes.count.value) == 0


def test_methods_of_modules_are_found_by_the_function():
    first, second = Block(W), Block(2 * W)
    calls = [lambda m=m: nnx.cond(YES, m.more, m, X) for m in (first, second)]
    calls[0]()
    assert compilations(calls[0]) == 0
    assert compilations(calls[1]) == 0
    np.testing.assert_allclose(calls[1](), 2 * jnp.tanh(X @ (2 * W)), rtol=1e-6)


def test_bounds_of_fori_loop():
    model = Block(W)
    arrays = (jnp.array(0), jnp.array(3))
    for bounds in ((0, 3), (nnx.Variable(0), 3), arrays):
        nnx.fori_loop(*bounds, body, (model, X))
        assert compilations(lambda b=bounds: nnx.fori_loop(*b, body, (model, X))) == 0
    for stop in (2, 5, 2):
        _, x = nnx.fori_loop(0, stop, lambda i, c: (c[0], c[1] + i), (model, jnp.array(0)))
        assert int(x) == sum(range(stop))
    each = nnx.vmap(lambda stop: nnx.fori_loop(0, stop, lambda i, c: c + i, jnp.array(0)))
    assert each(jnp.array([1, 4, 3])).tolist() == [0, 6, 3]


# -- programs are never old ------------------------------------------------------------------------


@pytest.mark.parametrize("transform", REFERENCE)
def test_other_modules_of_the_same_structure(transform):
    first, second = Block(W), Block(-2 * W)
    transform(first, X)
    assert compilations(lambda: transform(second, X)) == 0
    np.testing.assert_allclose(
        transform(second, X), REFERENCE[transform](Block(-2 * W), X), rtol=1e-5
    )
    assert float(first.calls.value) * 2 == float(second.calls.value)


@pytest.mark.parametrize("transform", REFERENCE)
def test_a_static_attribute_is_part_of_the_structure(transform):
    model = Block(W)
    before = transform(model, X)
    model.scale = 0.5
    after = transform(model, X)
    np.testing.assert_allclose(after, REFERENCE[transform](Block(W, 0.5), X), rtol=1e-5)
    model.scale = 1.0
    np.testing.assert_allclose(transform(model, X), before, rtol=1e-6)


@pytest.mark.parametrize("transform", REFERENCE)
def test_other_shapes_and_dtypes(transform):
    model, plain = Block(W), Block(W)
    for x in (X, jnp.stack([X, X]), X.astype(jnp.float16).astype(jnp.float32), X):
        np.testing.assert_allclose(transform(model, x), REFERENCE[transform](plain, x), rtol=1e-5)


def test_other_containers_of_the_same_leaves():
    def read(c):
        return c["a"] if "a" in c else -c["b"]

    def negated(c):
        return -read(c)

    for key, sign in (("a", 1), ("b", -1)):
        tree = {key: jnp.ones(2)}
        assert nnx.cond(YES, read, negated, tree).tolist() == [sign, sign]
        assert nnx.remat(read)(tree).tolist() == [sign, sign]


def test_what_a_trace_did_travels_with_its_program():
    """The same program keeps a change of structure for one shape, and none for another."""

    def grow(model, x):
        if x.ndim == 1:
            model.seen = nnx.BatchStat(x.sum())
        return model(x)

    grown = nnx.remat(grow)
    for x in (X, jnp.stack([X, X]), X, jnp.stack([X, X])):
        model = Block(W)
        grown(model, x)
        assert hasattr(model, "seen") == (x.ndim == 1)
        chosen = Block(W)
        nnx.cond(YES, grow, grow, chosen, x)
        assert hasattr(chosen, "seen") == (x.ndim == 1)


OUTSIDE = Block(W)


def reads_outside(x, _):
    return jnp.tanh(x @ OUTSIDE.w.value) * OUTSIDE.scale, None


def test_a_variable_that_a_function_reads_through_a_closure_is_never_old():
    run = nnx.scan(reads_outside, in_axes=(nnx.Carry, 0))

    def expected():
        return jnp.tanh(X @ OUTSIDE.w.value) * OUTSIDE.scale

    run(X, jnp.zeros(1))
    assert compilations(lambda: run(X, jnp.zeros(1))) == 0
    for write in (
        lambda: setattr(OUTSIDE.w, "value", 2 * W),
        lambda: nnx.update(OUTSIDE, nnx.state(Block(3 * W))),
        lambda: setattr(OUTSIDE, "scale", 0.25),
    ):
        write()
        np.testing.assert_allclose(run(X, jnp.zeros(1))[0], expected(), rtol=1e-6)
    OUTSIDE.scale = 1.0
    for _ in range(2):  # another Variable, another module: the structure is the same
        OUTSIDE.w = nnx.Param(OUTSIDE.w.value + 1.0)
        np.testing.assert_allclose(run(X, jnp.zeros(1))[0], expected(), rtol=1e-6)


FACTOR = jnp.array(2.0)


def times_factor(index, x):
    return x * FACTOR


def test_a_global_name_that_stands_for_something_else(monkeypatch):
    assert float(nnx.fori_loop(0, 2, times_factor, 1.0)) == 4.0
    assert compilations(lambda: nnx.fori_loop(0, 2, times_factor, 1.0)) == 0
    for value in (3.0, jnp.array(5.0), np.float32(7.0)):
        monkeypatch.setitem(globals(), "FACTOR", value)
        assert float(nnx.fori_loop(0, 2, times_factor, 1.0)) == float(value) ** 2


def beside(x):
    return x * FACTOR


def through_another(index, x):
    return beside(x)


def test_a_global_name_of_a_function_beside(monkeypatch):
    for value in (2.0, 3.0, 3.0):
        monkeypatch.setitem(globals(), "FACTOR", value)
        assert float(nnx.fori_loop(0, 2, through_another, 1.0)) == value**2
    assert compilations(lambda: nnx.fori_loop(0, 2, through_another, 1.0)) == 0


def test_a_closure_that_is_written():
    factor = 2.0

    def scaled(x):
        return x * factor

    for factor in (2.0, 3.0):
        assert float(nnx.cond(YES, scaled, scaled, 1.0)) == factor
        assert float(nnx.remat(scaled)(1.0)) == factor


@pytest.mark.parametrize("outer", [jax.grad, nnx.grad, jax.vmap, nnx.vmap])
def test_values_of_a_running_trace_go_to_no_program(outer):
    held = []

    def loss(w):
        def inner(c, x):
            return c * w, None

        def other(c):
            return c * held[0]

        held[:] = [w]
        first = nnx.scan(inner, in_axes=(nnx.Carry, 0))(1.0, jnp.zeros(2))[0]
        return first + nnx.cond(YES, other, other, 1.0)

    run, differentiates = outer(loss), outer in (jax.grad, nnx.grad)
    for value in (3.0, 4.0):
        out = run(value if differentiates else jnp.array([value]))
        assert float(jnp.sum(out)) == (2 * value + 1 if differentiates else value**2 + value)


def test_an_object_with_a_state_has_no_program():
    class Scale:
        factor = 2.0

        def __call__(self, x):
            return x * self.factor

        def method(self, x):
            return x + self.factor

    scale = Scale()
    for factor in (2.0, 3.0):
        scale.factor = factor
        assert float(nnx.cond(YES, scale, scale.method, 1.0)) == factor
        assert float(nnx.cond(~YES, scale, scale.method, 1.0)) == 1.0 + factor


def test_static_values_are_part_of_the_key():
    def power(x, n):
        return x**n

    for n in (2, 3, 2):
        assert float(nnx.remat(power, static_argnums=1)(2.0, n)) == 2.0**n

    def named(x, name):
        return x if name == "x" else -x

    for name, sign in (("x", 1), ("y", -1), ("x", 1)):
        assert float(nnx.cond(YES, named, named, 1.0, name)) == sign


# -- what is wrong is wrong on every call ----------------------------------------------------------


def test_errors_are_the_same_on_warm_calls_and_change_nothing():
    model = Block(W)

    def wrong(index, carry):
        model, x = carry
        model.calls.value += 1
        return model, (x[:2] if x.shape[0] == 4 else x)

    def different(model, x):
        return model(x), x

    texts = set()
    for _ in range(2):
        with pytest.raises(errors.ShapeError, match="is carried, from float32") as caught:
            nnx.fori_loop(0, 3, wrong, (model, X))
        texts.add(str(caught.value))
        with pytest.raises(errors.StructureError, match="all must return the same") as caught:
            nnx.cond(YES, apply, different, model, X)
        texts.add(str(caught.value))
        assert float(model.calls.value) == 0
        nnx.fori_loop(0, 3, wrong, (Block(jnp.eye(2)), X[:2]))  # the same function, rightly
        model.calls.value = jnp.zeros(())
    assert len(texts) == 2


def test_without_jit_functions_run_op_by_op():
    seen = []

    def record(carry, x):
        seen.append(isinstance(x, jax.core.Tracer))
        return carry + x, None

    run = nnx.scan(record, in_axes=(nnx.Carry, 0))
    assert float(run(0.0, jnp.arange(3.0))[0]) == 3.0
    with jax.disable_jit():
        for _ in range(2):
            seen.clear()
            assert float(run(0.0, jnp.arange(3.0))[0]) == 3.0
            assert seen == [False] * 3


def test_under_jit_no_program_is_called():
    model = Quiet(W)
    scan(model, X)  # there is a program
    text = str(jax.make_jaxpr(lambda x: scan(model, x))(X))
    assert "pjit" not in text and "jit[" not in text
    grads = str(jax.make_jaxpr(jax.grad(lambda x: scan(model, x).sum()))(X))
    assert "pjit" not in grads and "jit[" not in grads


# -- plugins and recordings ------------------------------------------------------------------------


class Doubles:
    """A plugin that doubles what blocks return."""

    @nnx.hookimpl
    def moduli_after_call(self, output):
        return nnx.Replace(2 * output)


@pytest.mark.parametrize("transform", REFERENCE)
def test_plugins_are_part_of_the_key(transform):
    plain = transform(Quiet(W), X)
    doubles = Doubles()
    with nnx.using(doubles):
        changed = transform(Quiet(W), X)
        assert compilations(lambda: transform(Quiet(W), X)) == 0
    assert not np.allclose(plain, changed)
    assert compilations(lambda: transform(Quiet(W), X)) == 0
    np.testing.assert_allclose(transform(Quiet(W), X), plain)


class Outputs:
    """A plugin that records what blocks return."""

    @nnx.hookimpl
    def moduli_after_call(self, output):
        for recording in plugins.recordings():
            if recording.owner is self:
                recording.record("output", output)


@pytest.mark.parametrize("transform", [scan, fori, cond, switch, remat])
def test_recordings_are_part_of_the_key(transform):
    outputs, model = Outputs(), Quiet(W)
    without = transform(model, X)
    with nnx.using(outputs):
        for number in range(3):
            with plugins.recording(outputs, model) as recording:
                transform(model, X + number)
            first = recording.entries()[0].value
            expected = jnp.tanh((X + number) @ W)
            np.testing.assert_allclose(first[0] if first.ndim > 1 else first, expected, rtol=1e-5)
    np.testing.assert_allclose(transform(model, X), without)


# -- memory ----------------------------------------------------------------------------------------


def test_programs_keep_neither_function_nor_model():
    model = Block(W)

    def make():
        def inner(x, model, _):
            return model(x)

        def loop_body(index, carry):
            return carry[0], inner(carry[1], carry[0], loop_body)  # it holds itself

        def branch(model, x):
            return model(x)

        return inner, loop_body, branch

    inner, loop_body, branch = make()
    for _ in range(2):
        nnx.scan(inner, in_axes=(nnx.Carry, None, 0), out_axes=nnx.Carry)(X, model, jnp.zeros(2))
        nnx.fori_loop(0, 2, loop_body, (model, X))
        nnx.cond(YES, branch, branch, model, X)
        nnx.remat(branch)(model, X)
        nnx.checkify(branch)(model, X)
    gone = [weakref.ref(item) for item in (inner, loop_body, branch, model)]
    del inner, loop_body, branch, model, make
    gc.collect()
    assert [ref() for ref in gone] == [None] * 4


def test_functions_made_in_a_loop_fill_no_memory():
    from moduli._call import eager_programs

    gc.collect()
    before = len(eager_programs._tables)
    for number in range(5):
        nnx.cond(YES, lambda x, n=number: x + n, lambda x: x, 1.0)
    gc.collect()
    assert len(eager_programs._tables) == before


def test_programs_die_with_their_plugin():
    from moduli._call import eager_programs

    def branch(model, x):
        return model(x)

    model, doubles = Quiet(W), Doubles()
    nnx.cond(YES, branch, branch, model, X)
    (table,) = [t for t in eager_programs._tables.values() if branch in t.functions()]
    with nnx.using(doubles):
        nnx.cond(YES, branch, branch, model, X)
    assert len(table._programs) == 2
    del doubles
    gc.collect()
    assert len(table._programs) == 1


# -- how many are kept -----------------------------------------------------------------------------


def test_the_oldest_programs_make_place_for_new_ones(monkeypatch):
    monkeypatch.setattr("moduli._call.eager_programs._MOST", 2)

    def add(carry, x):
        return carry + x, carry

    scan = nnx.scan(add, in_axes=(nnx.Carry, 0), out_axes=(nnx.Carry, 0))

    def last(length):
        return scan(jnp.zeros(()), jnp.ones(length))[0]

    for length in (3, 4, 5):
        assert last(length) == length
    assert compilations(lambda: last(5)) == compilations(lambda: last(4)) == 0
    assert compilations(lambda: last(3)) > 0  # it was the oldest
    assert last(3) == 3
