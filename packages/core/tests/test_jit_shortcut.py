"""The shortcut of jitted calls: when it is taken, and that it never stands for another call.

Whether a call takes it is seen by counting the calls of ``bind``, which it leaves out.
"""

from __future__ import annotations

import gc
import itertools
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from core_models import MLP, Norm
from hypothesis import example, given, settings
from hypothesis import strategies as st

import moduli as nnx
from moduli import _plugins
from moduli._transforms import jit as jit_module

X = jnp.arange(6.0).reshape(2, 3)
STEPS = ["power", "flag", "w", "graphdef", "first", "second"]


@pytest.fixture
def binds(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts the calls that were taken apart the long way: its only element."""
    count = [0]
    real = jit_module.bind

    def counted(*args, **kwargs):
        count[0] += 1
        return real(*args, **kwargs)

    monkeypatch.setattr(jit_module, "bind", counted)
    return count


class Scale(nnx.Module):
    def __init__(self, value: float = 2.0):
        self.w = nnx.Param(jnp.array(value))
        self.power = 1
        self.calls = nnx.Variable(jnp.array(0))

    def __call__(self, x: jax.Array) -> jax.Array:
        self.calls.value += 1
        return self.w * x**self.power


@nnx.jit
def call(model, x):
    return model(x)


def test_equal_calls_are_bound_once_and_still_do_what_they_should(binds):
    model, eager = Norm(3), Norm(3)
    for step in range(4):
        np.testing.assert_allclose(call(model, X + step), eager(X + step), rtol=1e-6)
        np.testing.assert_allclose(model.mean, eager.mean, rtol=1e-6)
    assert binds == [1]


def test_new_values_and_shapes_do_not_end_it(binds):
    model = Scale()
    assert call(model, jnp.ones(2)).shape == (2,)
    model.w.value = jnp.array(5.0)
    np.testing.assert_array_equal(call(model, jnp.ones(3)), [5.0] * 3)
    assert binds == [1]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda model: setattr(model, "power", 2), 18.0),
        (lambda model: setattr(model, "w", nnx.Param(jnp.array(7.0))), 21.0),
        (lambda model: setattr(model, "w", model.calls), 3.0),  # one write seen: 1 * 3
        (lambda model: model.w.set_metadata(tag="a"), 6.0),
    ],
    ids=["static", "variable", "shared", "metadata"],
)
def test_a_changed_structure_ends_it(change, expected, binds):
    model = Scale()
    call(model, 3.0), call(model, 3.0)
    assert binds == [1]
    change(model)
    if model.w is model.calls:
        model.calls.value = jnp.array(0)
    assert float(call(model, 3.0)) == expected
    assert binds == [2]


@given(st.lists(st.sampled_from(STEPS), min_size=4, max_size=25))
@example(["first", "power", "graphdef", "first"])
@example(["first", "second", "power", "second", "first", "power", "first", "second"])
@settings(max_examples=60, deadline=None)
def test_changes_that_another_call_saw_first_are_seen(steps):
    """Whatever looks at the model revises the structure that all calls share."""
    functions = [nnx.jit(lambda model, x: model(x)), nnx.jit(lambda model, x: model(x) + 1)]
    model, changes = Scale(3.0), itertools.count(1)
    for step in steps:
        if step == "power":
            model.power = 1 + next(changes) % 3
        elif step == "flag":
            model.flag = bool(next(changes) % 2)
        elif step == "w":
            model.w = nnx.Param(jnp.array(float(next(changes))), tag=step)
        elif step == "graphdef":
            nnx.graphdef(model)
        else:
            number = ["first", "second"].index(step)
            expected = float(model.w[...]) * 2.0**model.power + number
            assert float(functions[number](model, 2.0)) == expected


def test_another_model_of_the_same_structure_is_another_call():
    first, second = Scale(2.0), Scale(3.0)
    for _ in range(2):
        assert float(call(first, 1.0)) == 2.0
        assert float(call(second, 1.0)) == 3.0
    assert (int(first.calls[...]), int(second.calls[...])) == (2, 2)


def test_roots_that_swap_places_or_are_one_are_other_calls(binds):
    @nnx.jit
    def difference(a, b):
        a.calls.value += 10
        return a.w - b.w

    first, second = Scale(2.0), Scale(5.0)
    assert [float(difference(first, second)) for _ in range(2)] == [-3.0, -3.0]
    assert binds == [1]
    assert float(difference(second, first)) == 3.0
    assert float(difference(first, first)) == 0.0
    assert (int(first.calls[...]), int(second.calls[...])) == (30, 10)


def test_keyword_arguments_in_any_order(binds):
    @nnx.jit
    def fun(model, x, *, scale, shift):
        return model(x) * scale + shift

    model = Scale()
    assert float(fun(model, x=1.0, scale=3.0, shift=1.0)) == 7.0
    assert float(fun(model, shift=1.0, scale=3.0, x=1.0)) == 7.0
    assert binds == [1]
    assert float(fun(model, 1.0, shift=1.0, scale=3.0)) == 7.0
    with pytest.raises(TypeError, match="wrong"):
        fun(model, 1.0, scale=3.0, wrong=1.0)


def test_batches_in_containers_take_it_and_modules_in_them_do_not(binds):
    @nnx.jit
    def fun(model, batch):
        x = batch["x"]
        return model(x if not callable(x) else jnp.ones(()))

    model = Scale()
    batch = {"x": jnp.ones(()), "more": (np.ones(2), [1.0, None])}
    assert float(fun(model, batch)) == float(fun(model, batch)) == 2.0
    assert binds == [1]
    other = Scale(9.0)
    assert float(fun(model, {"x": other, "more": (np.ones(2), [1.0, None])})) == 2.0
    assert binds == [2]
    assert int(model.calls[...]) == 3


def test_an_argument_of_another_class_is_looked_at_again(binds):
    model = Scale()
    assert float(call(model, 1.0)) == float(call(model, np.float32(1.0))) == 2.0
    with pytest.raises(TypeError):
        call(model, "text")
    assert float(call(model, 1.0)) == 2.0


def test_plugins_and_recordings_see_calls_as_without_it():
    class Shout:
        @nnx.hookimpl
        def moduli_after_call(self, module, output):
            return nnx.Replace(output * 100)

    model, shout = Scale(), Shout()
    assert float(call(model, 1.0)) == float(call(model, 1.0)) == 2.0
    with nnx.using(shout):
        assert float(call(model, 1.0)) == float(call(model, 1.0)) == 200.0
    assert float(call(model, 1.0)) == 2.0


def test_other_plugins_in_the_whole_program_end_it(binds):
    model = Scale()
    call(model, 1.0), call(model, 1.0)
    assert binds == [1]
    _plugins.rediscover()  # the same ones again
    assert float(call(model, 1.0)) == 2.0
    assert binds == [1]
    try:
        _plugins.select("none")
        before = _plugins.active().token
        assert float(call(model, 1.0)) == 2.0
    finally:
        _plugins.select(None)
    assert binds == [1 if _plugins.active().token is before else 2]
    assert float(call(model, 1.0)) == 2.0


def test_unrelated_changes_do_not_end_it(binds):
    model, other = Scale(), Scale()
    call(other, 1.0), call(model, 1.0)
    binds[0] = 0
    for turn in range(3):
        other.power = turn
        other.w.set_metadata(turn=turn)
        assert float(call(model, 1.0)) == 2.0
    assert binds == [0]
    model.w.set_metadata(turn=0)
    assert float(call(model, 1.0)) == 2.0
    assert binds == [1]


def test_donated_buffers_through_it(binds):
    step = nnx.jit(lambda model, x: model(x), donate_argnums=0)
    model = Scale()
    assert [float(step(model, 1.0)) for _ in range(3)] == [2.0] * 3
    assert int(model.calls[...]) == 3
    assert binds == [1]


def test_static_arguments_of_every_kind(binds):
    @nnx.jit(static_argnums=1, static_argnames=("sign", "shift"))
    def fun(model, power, x, sign, *, shift):
        return sign * model(x) ** power + shift

    model = Scale()
    for sign in (1, -1):
        for power in (1, 2):
            for shift in (0, 5):
                expected = sign * 6.0**power + shift
                for _ in range(2):
                    assert float(fun(model, power, 3.0, sign, shift=shift)) == expected
                    assert float(fun(model, power, sign=sign, shift=shift, x=3.0)) == expected
    assert int(model.calls[...]) == 32
    binds[0] = 0
    for _ in range(3):
        assert float(fun(model, 2, 3.0, 1, shift=0)) == 36.0
    assert binds == [1]
    for _ in range(3):
        assert float(fun(model, 2, sign=1, shift=0, x=3.0)) == 36.0
    assert binds == [2]


def test_a_default_argument_that_is_a_module_is_bound_every_time():
    default = Scale(3.0)

    @nnx.jit
    def fun(x, model=default):
        return model(x)

    other = Scale(5.0)
    assert [float(fun(1.0)), float(fun(1.0, other)), float(fun(1.0))] == [3.0, 5.0, 3.0]
    assert (int(default.calls[...]), int(other.calls[...])) == (2, 1)


def test_it_keeps_no_model_alive():
    model = MLP(rngs=nnx.Rngs(0))
    call(model, X), call(model, X)
    seen = weakref.ref(model)
    del model
    gc.collect()
    assert seen() is None


def test_a_write_from_another_trace_is_an_error_through_it_too(binds):
    model = Scale()
    call(model, 1.0), call(model, 1.0)

    with pytest.raises(nnx.errors.TraceError, match="calls"):
        jax.jit(lambda x: x + call(model, 1.0))(1.0)
    assert binds == [1]
    assert int(model.calls[...]) == 2


def test_a_list_that_is_watched_is_watched_on_every_call(binds):
    model = Scale()
    plain = [nnx.Param(jnp.array(1.0))]
    model.parts = plain
    call(model, 1.0), call(model, 1.0)
    assert binds == [2]
    plain.append(nnx.Param(jnp.array(1.0)))
    with pytest.raises(nnx.errors.StructureError, match="parts"):
        call(model, 1.0)
