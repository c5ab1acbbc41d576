"""while_loop and fori_loop: the carry keeps its objects, and what the body writes is seen."""

from __future__ import annotations

import inspect
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

    def __call__(self, x):
        self.calls.value += 1
        return self.w.value * x


def through_jit(f):
    return nnx.jit(f)


def as_it_is(f):
    return f


def body(carry):
    model, x = carry
    return model, model(x)


@pytest.mark.parametrize("lift", [as_it_is, through_jit])
def test_while_loop_does_what_the_loop_does(lift):
    model = Counter()
    run = lift(lambda m, x: nnx.while_loop(lambda carry: carry[1] < 20.0, body, (m, x)))
    same, x = run(model, jnp.array(1.0))
    assert same is model and float(x) == 32.0 and int(model.calls.value) == 5
    same, x = run(model, jnp.array(50.0))  # no step at all
    assert same is model and float(x) == 50.0 and int(model.calls.value) == 5


@pytest.mark.parametrize("lift", [as_it_is, through_jit])
@pytest.mark.parametrize("upper", [0, 3])
def test_fori_loop_does_what_the_loop_does(lift, upper):
    model = Counter()
    run = lift(lambda n, m, x: nnx.fori_loop(0, n, lambda i, c: (c[0], c[0](c[1]) + i), (m, x)))
    same, x = run(jnp.array(upper), model, jnp.array(1.0))
    expected = 1.0
    for i in range(upper):
        expected = 2.0 * expected + i
    assert same is model and float(x) == expected and int(model.calls.value) == upper


def test_bounds_may_be_variables_and_unroll_changes_nothing():
    counts = []
    for unroll in (None, 2):
        model = Counter()
        lower, upper = nnx.Variable(jnp.array(1)), nnx.Variable(jnp.array(4))
        bounds = (1, 4) if unroll else (lower, upper)  # jax unrolls with static bounds alone
        _, x = nnx.fori_loop(*bounds, lambda i, c: (c[0], c[0](c[1])), (model, 1.0), unroll=unroll)
        assert float(x) == 8.0
        counts.append(int(model.calls.value))
    assert counts == [3, 3]


def test_the_condition_may_read_modules_and_return_a_variable():
    def condition(model):
        return nnx.Variable(model.calls.value < 4)

    def step(model):
        model(1.0)
        return model

    model = Counter()
    assert nnx.while_loop(condition, step, model) is model
    assert int(model.calls.value) == 4


def test_shared_objects_in_the_carry_stay_shared():
    model = Counter()

    def step(i, carry):
        assert carry["a"] is carry["b"]
        carry["a"](1.0)
        carry["b"].w.value += 1.0
        return carry

    out = nnx.fori_loop(0, 3, step, {"a": model, "b": model})
    assert out["a"] is out["b"] is model
    assert int(model.calls.value) == 3 and float(model.w.value) == 5.0


def test_streams_in_the_carry_draw_what_a_loop_draws():
    rngs, twin = nnx.Rngs(0), nnx.Rngs(0)
    _, total = nnx.fori_loop(
        0, 3, lambda i, c: (c[0], c[1] + jax.random.normal(c[0].noise(), ())), (rngs, 0.0)
    )
    expected = sum(jax.random.normal(twin.noise(), ()) for _ in range(3))
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    assert int(rngs.default.count.value) == int(twin.default.count.value) == 3


def test_an_exception_leaves_the_model_as_it_was():
    model = Counter()

    def fails(i, model):
        model.calls.value += 1
        raise KeyError("here")

    with pytest.raises(KeyError, match="here"):
        nnx.fori_loop(0, 3, fails, model)
    with pytest.raises(KeyError, match="here"):
        nnx.while_loop(lambda m: m.calls.value < 3, lambda m: fails(0, m), model)
    assert int(model.calls.value) == 0


def test_a_loop_of_known_length_is_differentiated():
    def loss(model, x):
        return nnx.fori_loop(0, 3, lambda i, c: (c[0], c[0](c[1])), (model, x))[1]

    model = Counter()
    grads = nnx.grad(loss)(model, 1.0)
    assert float(grads["w"].value) == 3 * 2.0**2 and int(model.calls.value) == 3


def test_matches_flax():
    flax = pytest.importorskip("flax.nnx")

    def build(lib):
        class Model(lib.Module):
            def __init__(self):
                self.w = lib.Param(jnp.arange(3.0) / 3)
                self.count = lib.Variable(jnp.array(0))

            def __call__(self, x):
                self.count[...] += 1
                return jnp.tanh(self.w[...] + x)

        model = Model()

        def step(i, carry):
            model, x = carry
            model.w[...] = model.w[...] * 0.5
            return model, model(x) + i

        def go_on(carry):
            return carry[0].count[...] < 7

        _, x = lib.fori_loop(0, 4, step, (model, jnp.ones(3)))
        _, y = lib.while_loop(go_on, lambda carry: step(0.0, carry), (model, x))
        return x, y, model.w[...], model.count[...]

    for ours, theirs in zip(build(nnx), build(flax), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def adds(i, m):
    m.extra = nnx.Param(jnp.zeros(()))
    return m


def removes(i, m):
    del m.calls
    return m


def replaces(i, m):
    return Counter()


def reshapes(i, m):
    m.w.value = jnp.ones(3)
    return m


def casts(i, m):
    m.calls.value = m.calls.value.astype(jnp.float32)
    return m


def other_form(i, m):
    return m, 1


def sows(i, m):
    m.seen = nnx.Intermediate(jnp.zeros(()))
    return m


LINE = inspect.getsourcelines(Counter.__init__)[1]
W, CALLS = f"the Param (made at HERE:{LINE + 1}) at `w`", f"the Variable (made at HERE:{LINE + 2})"
MESSAGES = {
    adds: "adds the attribute `extra` of a Counter that is carried from step to step and keeps its "
    "structure; do it before or after the loop, or keep a changing number in a Variable",
    removes: f"removes {CALLS} at `calls` of carry, which is carried from step to step and keeps "
    "its structure; remove it after the loop",
    replaces: "got a Counter at carry and returned another object there, of type Counter; a carry "
    "keeps its objects: change the object in place (`moduli.update(old, moduli.state(new))`)",
    reshapes: f"changes {W} of carry, which is carried, from float32[] to float32[3]; a carried "
    "value keeps shape and dtype. Cast the new value (`.astype(old.dtype)`), or start with",
    casts: f"changes {CALLS} at `calls` of carry, which is carried, from int32[] to float32[]; a ",
    other_form: "got the carry Counter and returned ('Counter', 'int'); a carry keeps its "
    "structure: return it in the same form",
    sows: "makes new Variables of kind Intermediate (it sows, for example), but a loop of unknown "
    "length cannot stack them; use moduli.scan, or carry a Variable and write it",
}


@pytest.mark.parametrize("step", MESSAGES)
@pytest.mark.parametrize("loop", ["fori_loop", "while_loop"])
def test_a_carry_that_changes_is_refused_and_nothing_happens(loop, step):
    model = Counter()
    kind = errors.ShapeError if step in (reshapes, casts) else errors.StructureError
    w = model.w
    with pytest.raises(kind) as caught:
        if loop == "fori_loop":
            nnx.fori_loop(0, 3, step, model)
        else:
            nnx.while_loop(lambda m: m.calls.value < 3, lambda m: step(0, m), model)
    text = re.sub(r"[\w/]*test_loops\.py", "HERE", str(caught.value))
    name = re.escape(step.__name__) if loop == "fori_loop" else r"test_[\w.]*<locals>\.<lambda>"
    assert re.match(f"{loop}: {name} {re.escape(MESSAGES[step])}", text), text
    assert model.w is w and float(w.value) == 2.0 and int(model.calls.value) == 0
    assert set(vars(model)) - {"_moduli"} == {"w", "calls"}


def test_wrong_use_says_what_is_wrong():
    model = Counter()

    def writes(m):
        m.calls.value += 1
        return m.calls.value < 3

    def changes(m):
        m.extra = 1
        return False

    with pytest.raises(
        errors.StructureError, match=r"writes the Variable \(made at .*\) at `calls` of carry;"
    ):
        nnx.while_loop(writes, lambda m: m, model)
    with pytest.raises(errors.StructureError, match=r"changes changes the structure of the carry"):
        nnx.while_loop(changes, lambda m: m, model)
    with pytest.raises(
        errors.StructureError, match=r"fori_loop: carry\[1\] is a str, which cannot be"
    ):
        nnx.fori_loop(0, 3, lambda i, c: c, (model, "text"))
    with pytest.raises(errors.StructureError, match=r"while_loop needs a callable; got a Dict"):
        nnx.while_loop(lambda m: True, nnx.Dict(), model)
    assert int(model.calls.value) == 0 and not hasattr(model, "extra")
