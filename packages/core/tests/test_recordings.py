"""Recordings: paths and numbers in hooks, and values that leave every transform."""

from __future__ import annotations

import gc
import threading
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from core_models import Linear

import moduli as nnx
from moduli import errors, plugins
from moduli.plugins import Entry, Place


class Doubles(nnx.Module):
    """Doubles its input with a leaf module."""

    def __init__(self):
        self.leaf = Leaf()

    def __call__(self, x):
        return self.leaf(x)


class Leaf(nnx.Module):
    def __call__(self, x):
        return 2 * x


class Sums:
    """Records the sum of every output, and what it was given for the place."""

    @nnx.hookimpl
    def moduli_after_call(self, output):
        for recording in plugins.recordings():
            if recording.owner is self:
                recording.record("sum", output.sum())
                given = recording.given("add")
                if given is not None:
                    return nnx.Replace(output + given)


SUMS = Sums()
X = jnp.arange(6.0).reshape(2, 3)


def record(run, *args, given=(), root=None):
    root = args[0] if root is None else root
    with nnx.using(SUMS), plugins.recording(SUMS, root, given) as recording:
        out = run(*args)
    return out, recording.entries()


def places(entries):
    return [(entry.place.path, entry.place.number) for entry in entries]


def test_entries_come_in_the_order_of_the_calls():
    model = nnx.Dict(a=Doubles(), b=Doubles())

    def run(model, x):
        x = model["b"](x)
        x = nnx.jit(lambda model, x: model["a"](model["b"](x)))(model, x)
        return model["b"](x)

    _, entries = record(run, model, X)
    assert places(entries) == [
        (("b", "leaf"), 0),
        (("b",), 0),
        (("b", "leaf"), 1),
        (("b",), 1),
        (("a", "leaf"), 0),
        (("a",), 0),
        (("b", "leaf"), 2),
        (("b",), 2),
    ]
    np.testing.assert_allclose([e.value for e in entries[::2]], [30, 60, 120, 240])


def test_one_compiled_function_serves_two_places():
    model = nnx.Dict(a=Doubles(), b=Doubles())
    call = nnx.jit(lambda block, x: block(x))
    for _ in range(2):
        _, entries = record(lambda m, x: call(m["b"], call(m["a"], x)), model, X)
        assert [path for path, _ in places(entries)] == [
            ("a", "leaf"),
            ("a",),
            ("b", "leaf"),
            ("b",),
        ]


def test_a_compiled_function_is_not_traced_again_for_later_calls():
    traces = []

    @nnx.jit
    def call(model, x):
        traces.append(1)
        return model(x)

    def thrice(model, x):
        return call(model, call(model, call(model, x)))

    _, entries = record(thrice, Doubles(), X)
    assert places(entries)[1::2] == [((), 0), ((), 1), ((), 2)]
    assert len(traces) == 1


def test_nothing_is_recorded_twice_or_kept_after_an_error():
    model = Doubles()

    @nnx.jit
    def fails(model, x):
        model(x)
        raise ZeroDivisionError

    def run(model, x):
        with pytest.raises(ZeroDivisionError):
            fails(model, x)
        return model(x)

    _, entries = record(run, model, X)
    assert places(entries) == [(("leaf",), 0), ((), 0)]
    assert vars(model).keys() == {"_moduli", "leaf"}


def test_given_values_reach_calls_by_number_through_compiled_functions():
    model = Doubles()
    call = nnx.jit(lambda model, x: model(x))
    given = {Place((), 1, "add"): jnp.float32(100.0)}
    (first, second), _ = record(
        lambda model, x: (call(model, x), call(model, x)), model, X, given=given
    )
    np.testing.assert_allclose(first, 2 * X)
    np.testing.assert_allclose(second, 2 * X + 100)


@pytest.mark.parametrize("size", [2, 5])
def test_given_values_are_sliced_by_the_transform_that_stacked_them(size):
    """Another loop around or before them, of the same length or not, changes nothing."""
    model = Doubles()
    xs = jnp.ones((2, 3))
    before = nnx.vmap(lambda model, x: model.leaf(x), in_axes=(None, 0))
    mapped = nnx.vmap(lambda model, x: model(x), in_axes=(None, 0))
    given = [Entry(Place((), 0, "add"), jnp.array([10.0, 20.0]), (("vmap", 2),))]

    def run(model, x):
        before(model, jnp.ones((size, 3)))
        return mapped(model, x)

    out, _ = record(run, model, xs, given=given)
    np.testing.assert_allclose(out, [[12.0] * 3, [22.0] * 3])


def test_values_can_be_differentiated():
    model = Linear(3, 2, rngs=nnx.Rngs(0))

    def total(kernel, model):
        model.kernel.value = kernel
        _, entries = record(nnx.jit(lambda model, x: model(x)), model, X)
        return entries[-1].value

    grads = nnx.grad(total)(model.kernel.value, model)
    np.testing.assert_allclose(grads, np.broadcast_to(X.sum(axis=0)[:, None], (3, 2)))


def test_branches_fill_in_what_others_record():
    model = nnx.Dict(a=Leaf(), b=Leaf())

    def run(model, x, which):
        return nnx.switch(which, [lambda m, x: m["a"](x), lambda m, x: m["b"](m["b"](x))], model, x)

    for which, expected in [(0, [30.0, np.nan, np.nan]), (1, [np.nan, 30.0, 60.0])]:
        _, entries = record(nnx.jit(run), model, X, jnp.int32(which))
        assert places(entries) == [(("a",), 0), (("b",), 0), (("b",), 1)]
        np.testing.assert_array_equal([entry.value for entry in entries], expected)


def test_a_loop_of_known_length_stacks():
    def run(model, x):
        return nnx.fori_loop(0, 3, lambda i, c: (c[0], c[0](c[1])), (model, x))[1]

    out, entries = record(nnx.jit(run), Leaf(), X)
    np.testing.assert_allclose(out, 8 * X)
    assert [(e.value.tolist(), e.crossings) for e in entries] == [
        ([30.0, 60.0, 120.0], (("fori_loop", 3),))
    ]


def test_a_loop_condition_records_nothing():
    def run(model, x):
        def goes_on(carry):
            return carry[0](carry[1]).sum() < 0

        return nnx.while_loop(goes_on, lambda carry: carry, (model, x))[1]

    out, entries = record(run, Leaf(), X)
    assert entries == []
    np.testing.assert_array_equal(out, X)


def test_a_loop_of_unknown_length_is_a_named_error():
    def run(model, x):
        return nnx.fori_loop(0, x.shape[0] + 0 * x[0, 0].astype(int), body, (model, x))

    def body(i, carry):
        return carry[0], carry[0](carry[1])

    with pytest.raises(
        errors.StructureError, match=r"fori_loop: what is recorded of `the model itself`.*body"
    ):
        record(run, Leaf(), X)


@pytest.mark.parametrize("transform", [jax.jit, jax.vmap], ids=["jit", "vmap"])
def test_a_transform_of_jax_that_hands_nothing_out_is_a_named_error(transform):
    model = Doubles()
    with pytest.raises(errors.TraceError, match=r"cannot record 'sum' of `leaf`.*`moduli\.vmap`"):
        record(lambda model, x: transform(lambda x: model(x))(x), model, X)
    assert record(lambda model, x: model(x), model, X)[1]


def test_paths_of_modules_that_stand_nowhere():
    seen = []

    class Paths:
        @nnx.hookimpl
        def moduli_before_call(self, path, number):
            seen.append((path, number))

    class Makes(nnx.Module):
        def __call__(self, x):
            self.added = Leaf()
            return self.added(Doubles()(x))

    with nnx.using(Paths()):
        nnx.jit(lambda model, x: model(x))(Makes(), X)
    assert seen == [((), 0), (("<Doubles>",), 0), (("<Doubles>", "leaf"), 0), (("added",), 0)]


def test_without_a_recording_paths_begin_at_the_outermost_module():
    seen = []

    class Paths:
        @nnx.hookimpl
        def moduli_after_call(self, path):
            seen.append(path)

    model = nnx.Dict(blocks=[Doubles(), Doubles()])
    with nnx.using(Paths()):
        nnx.jit(nnx.grad(lambda m, x: m["blocks"][1](x).sum()))(model, X)
    assert seen == [("leaf",), ()]


def test_recordings_are_apart_and_the_inner_one_sees_its_own_root():
    model, inner_sums = nnx.Dict(a=Doubles()), Sums()

    def run(model, x):
        with nnx.using(inner_sums), plugins.recording(inner_sums, model["a"]) as inner:
            nnx.jit(lambda block, x: block(x))(model["a"], x)
        return [entry.place.path for entry in inner.entries()]

    with nnx.using(SUMS), plugins.recording(SUMS, model) as outer:
        inner = run(model, X)
    assert inner == [("leaf",), ()]
    assert [entry.place.path for entry in outer.entries()] == [("a", "leaf"), ("a",)]


def test_threads_have_recordings_of_their_own():
    model, found = Doubles(), {}
    call = nnx.jit(lambda model, x: model(x))
    barrier = threading.Barrier(2)

    def work(number):
        barrier.wait()
        for _ in range(5):
            found[number] = record(call, model, number * X)[1][-1].value

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {number: float(value) for number, value in found.items()} == {0: 0.0, 1: 30.0}


def test_nothing_keeps_models_or_values_alive():
    call = nnx.jit(lambda model, x: model(x))
    model = Doubles()
    _, entries = record(call, model, X)
    alive = weakref.ref(model)
    del model
    gc.collect()
    assert alive() is None and len(entries) == 2


def test_the_owner_is_part_of_keys():
    with pytest.raises(errors.PluginError, match="the owner is a list, which cannot be hashed"):
        with plugins.recording([], Leaf()):
            raise AssertionError


def test_written_variables_have_a_path():
    seen = []

    class Writes:
        @nnx.hookimpl
        def moduli_value_written(self, variable, old, value):
            seen.extend(r.path_of_variable(variable) for r in plugins.recordings())

    class Counts(nnx.Module):
        def __init__(self):
            self.counts = [nnx.Variable(jnp.array(0)), nnx.Variable(jnp.array(0))]

        def __call__(self):
            self.counts[1].value += 1

    model, writes = nnx.Dict(inner=Counts()), Writes()
    with nnx.using(writes), plugins.recording(writes, model):
        nnx.jit(lambda model: model["inner"]())(model)
    assert seen == [("inner", "counts", 1)]
    assert int(model["inner"].counts[1]) == 1


def test_a_recording_without_a_root_begins_at_the_outermost_module_of_each_call():
    run = nnx.jit(lambda one, two, x: two(one(x)))
    with nnx.using(SUMS), plugins.recording(SUMS) as recording:
        run(Doubles(), Doubles(), X)
        Doubles()(X)
    found = [(entry.place.path, entry.place.number) for entry in recording.entries()]
    assert found == [(("leaf",), n // 2) if n % 2 == 0 else ((), n // 2) for n in range(6)]


@pytest.mark.parametrize(
    "options",
    [
        {"donate_argnums": 0},
        {"static_argnums": 2},
        {"in_shardings": (jax.sharding.SingleDeviceSharding(jax.devices()[0]), None, None)},
    ],
    ids=["donated", "static", "sharded"],
)
def test_jit_with_options(options):
    run = nnx.jit(lambda model, x, n: n * model(x), **options)
    for _ in range(2):
        out, entries = record(run, Doubles(), X, 3)
        np.testing.assert_allclose(out, 6 * X)
        assert places(entries) == [(("leaf",), 0), ((), 0)]


def test_a_rule_of_ones_own_is_recorded_in_its_forward_pass():
    @nnx.custom_vjp
    def tripled(model, x):
        return 3 * model(x).sum()

    def forward(model, x):
        return tripled.__wrapped__(model, x), x

    def backward(residuals, g):
        return None, g[1] * 6 * jnp.ones_like(residuals)

    tripled.defvjp(forward, backward)
    for run in (tripled, lambda model, x: nnx.grad(tripled, argnums=1)(model, x)):
        _, entries = record(run, Doubles(), X)
        assert places(entries) == [(("leaf",), 0), ((), 0)]


def test_what_is_compiled_ahead_of_time_stays_as_it_is():
    model = Doubles()
    run = nnx.jit(lambda model, x: model(x))
    compiled = run.lower(model, X).compile()
    out, entries = record(lambda model, x: compiled(model, x), model, X)
    np.testing.assert_allclose(out, 2 * X)
    assert entries == []
    _, entries = record(lambda model, x: run.lower(model, x).compile()(model, x), model, X)
    assert entries == []


@pytest.mark.parametrize("transform", ["cond", "fori_loop"])
def test_without_a_recording_a_plugin_sees_a_branch_and_a_body_once(transform):
    seen = []

    class Paths:
        @nnx.hookimpl
        def moduli_before_call(self, path):
            seen.append(path)

    class Chooses(nnx.Module):
        def __init__(self):
            self.a, self.b = Leaf(), Leaf()

        def __call__(self, x):
            if transform == "cond":
                return nnx.cond(x.sum() > 0, lambda m, x: m.a(x), lambda m, x: m.b(x), self, x)
            return nnx.fori_loop(0, 3, lambda i, c: (c[0], c[0].a(c[1])), (self, x))[1]

    with nnx.using(Paths()):
        Chooses()(X)
    assert seen == ([(), ("a",), ("b",)] if transform == "cond" else [(), ("a",)])
