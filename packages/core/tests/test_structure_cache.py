"""The structure cache: what it recognises without flattening again, and what it never keeps alive.

How often a graph is flattened is counted, because a cache that never hits gives right results too.
"""

from __future__ import annotations

import gc
import threading
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import moduli as nnx
from moduli._graph import cache, flatten
from moduli.testing import RandomModule, assert_equal_graphs, graphs


class Leaf(nnx.Module):
    def __init__(self, value: float = 1.0):
        self.deterministic = False
        self.w = nnx.Param(jnp.full(2, value))

    def __call__(self, x: jax.Array) -> jax.Array:
        return x * self.w if self.deterministic else x + self.w


class Model(nnx.Module):
    def __init__(self, count: int = 3):
        self.blocks = [Leaf(float(n)) for n in range(count)]
        self.calls = nnx.Variable(jnp.array(0))

    def __call__(self, x: jax.Array) -> jax.Array:
        self.calls.value += 1
        for block in self.blocks:
            x = block(x)
        return x


@pytest.fixture
def flattens(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts the full flattens: its only element."""
    count = [0]
    real = flatten.flatten_roots

    def counted(roots):
        count[0] += 1
        return real(roots)

    monkeypatch.setattr(cache, "flatten_roots", counted)
    return count


def set_mode(model: Model, deterministic: bool) -> None:
    for block in model.blocks:
        block.deterministic = deterministic


def test_switching_modes_every_step_flattens_and_traces_once_for_each_mode(flattens):
    traces = []

    @nnx.jit
    def forward(model, x):
        traces.append(1)
        return model(x)

    model, x = Model(), jnp.ones(2)
    for step in range(10):
        set_mode(model, step % 2 == 0)
        expected = x * 1.0
        for n in range(3):
            expected = expected * n if step % 2 == 0 else expected + n
        np.testing.assert_array_equal(forward(model, x), expected)
    assert len(traces) == 2
    assert flattens[0] == 1
    assert int(model.calls.value) == 10


@pytest.mark.parametrize(
    "change",
    [
        lambda m: setattr(m, "extra", nnx.Param(jnp.ones(2))),
        lambda m: delattr(m, "calls"),
        lambda m: m.blocks.append(Leaf()),
        lambda m: m.blocks.reverse(),
        lambda m: setattr(m.blocks[0], "w", m.blocks[1].w),
        lambda m: setattr(m.blocks[0], "w", nnx.BatchStat(jnp.ones(2))),
        lambda m: setattr(m.blocks[0], "deterministic", jnp.array(True)),
        lambda m: setattr(m.blocks[0], "deterministic", nnx.data(True)),
        lambda m: setattr(m.blocks[0], "name", ("a", 1)),
        lambda m: delattr(m.blocks[0], "deterministic"),
        lambda m: setattr(m, "pair", (1, jnp.ones(2))),
        lambda m: m.calls.set_metadata(tag="x"),
    ],
)
def test_every_kind_of_change_gives_the_graphdef_of_a_fresh_flatten(change):
    model = Model()
    nnx.graphdef(model)
    set_mode(model, True)
    nnx.graphdef(model)
    change(model)
    assert nnx.graphdef(model) is flatten.flatten_roots((model,)).graphdef
    values = [holder._value for holder in cache.flat_of(model).holders]
    fresh = flatten.flatten_roots((model,)).values()
    assert all(a is b for a, b in zip(values, fresh, strict=True))


def test_going_back_to_an_earlier_mode_is_the_earlier_graphdef():
    model = Model()
    first = nnx.graphdef(model)
    set_mode(model, True)
    second = nnx.graphdef(model)
    set_mode(model, False)
    assert second is not first
    assert nnx.graphdef(model) is first


def test_static_changes_reach_merged_models():
    model = Model()
    nnx.graphdef(model)
    set_mode(model, True)
    assert [block.deterministic for block in nnx.merge(*nnx.split(model)).blocks] == [True] * 3
    assert_equal_graphs(model, nnx.clone(model))


def test_unrelated_mutations_flatten_nothing(flattens):
    forward = nnx.jit(lambda model, x: model(x))
    model, other, x = Model(), Model(), jnp.ones(2)
    forward(model, x)
    forward(other, x)
    before = flattens[0]
    for number in range(5):
        other.note = number
        forward(model, x)
    assert flattens[0] == before


def test_roots_that_share_objects_are_flattened_together_once(flattens):
    @nnx.jit
    def step(model, block, x):
        assert block is model.blocks[0]
        block.w.value += 1.0
        return model(x)

    model, x = Model(), jnp.ones(2)
    step(model, model.blocks[0], x)
    before = flattens[0]
    for _ in range(3):
        step(model, model.blocks[0], x)
    assert flattens[0] == before
    np.testing.assert_array_equal(model.blocks[0].w.value, [4.0, 4.0])
    set_mode(model, True)
    step(model, model.blocks[0], x)
    np.testing.assert_array_equal(model.blocks[0].w.value, [5.0, 5.0])


def test_variables_and_states_as_arguments_are_not_flattened_again(flattens):
    @nnx.jit
    def step(model, state, variable, x):
        assert state["blocks"][0]["w"] is not model.blocks[0].w
        variable.value += x.sum()
        return model(x) + state["blocks"][0]["w"]

    model, x = Model(), jnp.ones(2)
    state, variable = nnx.state(Model()), nnx.Variable(jnp.array(0.0))
    first = step(model, state, variable, x)
    before = flattens[0]
    np.testing.assert_array_equal(step(model, state, variable, x), first)
    assert flattens[0] == before
    assert float(variable.value) == 4.0


def test_a_state_that_shares_the_models_variables_stays_shared():
    @nnx.jit
    def step(model, state):
        assert state["calls"] is model.calls
        state["calls"].value += 5
        return model.calls.value

    model = Model()
    assert int(step(model, nnx.state(model))) == 5
    assert int(model.calls.value) == 5


def test_the_same_variable_twice_is_one_object():
    @nnx.jit
    def step(a, b):
        assert a is b
        a.value += 1
        return b.value

    variable = nnx.Variable(jnp.array(1))
    assert int(step(variable, variable)) == 2


def test_models_that_are_dropped_are_collected_and_programs_are_shared():
    traces = []

    @nnx.jit
    def step(model, optimizer, x):
        traces.append(1)
        optimizer.calls.value += 1
        return model(x)

    kept = Model()
    dead = []
    for _ in range(20):
        model = Model()
        step(model, kept, jnp.ones(2))
        step(kept, model, jnp.ones(2))
        set_mode(model, True)
        nnx.graphdef(model)
        dead.append(weakref.ref(model))
        dead.append(weakref.ref(model.blocks[0].w))
    del model
    gc.collect()
    assert [ref() for ref in dead] == [None] * len(dead)
    assert len(traces) == 1
    assert len(cache.flat_of(kept).partners) <= 64


def test_memory_stays_bounded_when_models_come_and_go():
    forward = nnx.jit(lambda model, x: model(x))

    def use() -> None:
        for _ in range(30):
            forward(Model(), jnp.ones(2))

    use()
    gc.collect()
    before = len(gc.get_objects())
    for _ in range(3):
        use()
    gc.collect()
    assert len(gc.get_objects()) - before < 500


def test_two_threads_may_call_one_jitted_function():
    forward = nnx.jit(lambda model, x: model(x))
    models = [Model(), Model()]
    failures: list[BaseException] = []

    def work(model: Model) -> None:
        try:
            for step in range(50):
                set_mode(model, step % 2 == 0)
                forward(model, jnp.ones(2))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(model,)) for model in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert [int(model.calls.value) for model in models] == [50, 50]


@given(graphs())
@settings(max_examples=60, deadline=None)
def test_a_walk_gives_the_same_with_and_without_the_cache(model):
    walked = list(nnx.iter_modules(model))
    nnx.graphdef(model)
    cached = list(nnx.iter_modules(model))
    assert [path for path, _ in cached] == [path for path, _ in walked]
    assert all(a is b for (_, a), (_, b) in zip(cached, walked, strict=True))


@given(graphs(), st.data())
@settings(max_examples=60, deadline=None)
def test_after_any_changes_the_cached_structure_is_that_of_a_fresh_flatten(model, data):
    nnx.graphdef(model)
    modules = [m for _, m in nnx.iter_modules(model) if isinstance(m, RandomModule)]
    for _ in range(data.draw(st.integers(1, 6))):
        target = data.draw(st.sampled_from(modules))
        names = sorted(name for name in vars(target) if name != "_moduli")
        what = data.draw(st.sampled_from(["static", "delete", "move", "array", "variable"]))
        name = data.draw(st.sampled_from([*names, "extra"]))
        if what in ("static", "array") and isinstance(vars(target).get(name), nnx.Variable):
            delattr(target, name)  # a plain value does not take a Variable's place by itself
        if what == "static":
            setattr(target, name, data.draw(st.sampled_from([0, True, 1.5, "x", None])))
        elif what == "delete" and name in names:
            delattr(target, name)
        elif what == "move":
            setattr(target, name, data.draw(st.sampled_from(modules)))
        elif what == "array":
            setattr(target, name, jnp.ones(2))
        elif what == "variable":
            setattr(target, name, nnx.Param(jnp.ones(2), tag=name))
        assert nnx.graphdef(model) is flatten.flatten_roots((model,)).graphdef
        fresh = flatten.flatten_roots((model,)).values()
        cached = cache.flat_of(model).values()
        assert all(a is b for a, b in zip(cached, fresh, strict=True))


@given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from("ab"), st.booleans()), max_size=30))
@settings(max_examples=60, deadline=None)
def test_flags_that_flip_back_and_forth_give_the_structure_of_a_fresh_flatten(flips):
    model = Model(3)
    for block in model.blocks:
        block.a, block.b = True, (1, 2)
    nnx.graphdef(model)
    for index, name, value in flips:
        setattr(model.blocks[index], name, value)
        assert nnx.graphdef(model) is flatten.flatten_roots((model,)).graphdef


def test_a_subclass_with_items_of_its_own_is_revised_by_them():
    class Filed(nnx.Module):
        """Keeps its items in a table beside the attributes."""

        def _items(self):
            return [("size", vars(self)["table"]["size"]), ("w", vars(self)["w"])]

    model = Filed()
    vars(model)["table"], model.w = {"size": 1}, nnx.Param(jnp.ones(2))
    for size in (1, 2, 1, 3):
        vars(model)["table"]["size"] = size
        model._moduli.changed()
        assert nnx.graphdef(model) is flatten.flatten_roots((model,)).graphdef
