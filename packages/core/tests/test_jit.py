"""jit: everything a function does to its modules happens to the caller's, on every call."""

from __future__ import annotations

import gc
import threading
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from core_models import Linear, Norm, Tied, batch, mlp

import moduli as nnx
from moduli import errors


class Counter(nnx.Module):
    def __init__(self, count=0):
        self.count = nnx.Variable(jnp.asarray(count))


def counted(function):
    """Returns a jitted function and a list that grows with each trace."""
    traces = []

    def run(*args, **kwargs):
        traces.append(1)
        return function(*args, **kwargs)

    return nnx.jit(run), traces


def test_it_does_what_the_eager_call_does():
    eager, jitted, x = mlp(), mlp(), batch()
    run, traces = counted(lambda m, x: m(x))
    for _ in range(3):
        np.testing.assert_allclose(run(jitted, x), eager(x), rtol=1e-5)
    np.testing.assert_allclose(jitted.layers[3].mean.value, eager.layers[3].mean.value, rtol=1e-5)
    assert len(traces) == 1


def test_equal_structures_share_a_program_and_each_gets_its_own_updates():
    run, traces = counted(lambda c: c.count.set_value(c.count.value + 1))
    a, b = Counter(0), Counter(10)
    run(a), run(b), run(b)
    assert (int(a.count), int(b.count), len(traces)) == (1, 12, 1)


def test_only_structure_compiles_again():
    run, traces = counted(lambda m, x: m(x))
    model, x = mlp(), batch()
    run(model, x)
    model.layers[0].kernel.value = model.layers[0].kernel.value * 2
    run(model, x)
    assert len(traces) == 1
    model.layers[1].use_running_average = True
    run(model, x)
    assert len(traces) == 2
    model.layers[1].use_running_average = False
    run(model, x)
    assert len(traces) == 2  # the first program is found again
    run(model, batch(rows=7))
    assert len(traces) == 3  # another shape, as with jax.jit


def test_a_retrace_for_another_shape_may_do_other_things():
    @nnx.jit
    def run(model, x):
        if x.shape[0] > 2:
            model.big = nnx.Variable(x.sum())
        else:
            model.count += 1

    model = Counter()
    run(model, jnp.ones(1))
    assert int(model.count) == 1 and not hasattr(model, "big")
    run(model, jnp.ones(3))
    assert float(model.big) == 3 and int(model.count) == 1


@pytest.mark.parametrize("instances", [1, 2])
def test_new_changed_and_removed_attributes_are_seen_outside_on_cache_hits_too(instances):
    class Model(nnx.Module):
        def __init__(self):
            self.old = nnx.Param(jnp.ones(2))
            self.gone = nnx.Param(jnp.ones(1))
            self.static = "a"

    traces = []

    @nnx.jit
    def change(model, x):
        traces.append(1)
        del model.gone
        model.static = model.static + "b"
        model.new = nnx.Cache(x * 2)
        model.array = x + 1
        model.layer = Linear(2, 2, rngs=nnx.Rngs(0))
        model.alias = model.layer
        model.parts = [model.old]
        model.old.value = model.old.value + x

    for number in range(instances):
        model = Model()
        old = model.old
        change(model, jnp.full(2, float(number)))
        assert not hasattr(model, "gone") and model.static == "ab"
        np.testing.assert_array_equal(model.new.value, [2 * number] * 2)
        np.testing.assert_array_equal(model.array, [number + 1] * 2)
        assert type(model.new) is nnx.Cache and model.alias is model.layer
        assert model.parts[0] is model.old is old
        np.testing.assert_array_equal(old.value, [1 + number] * 2)
        expected = Linear(2, 2, rngs=nnx.Rngs(0)).kernel.value
        np.testing.assert_allclose(model.layer.kernel.value, expected, rtol=1e-6)
    assert len(traces) == 1


def test_swapping_two_equal_layers_is_seen():
    @nnx.jit
    def swap(model):
        model.layers[0], model.layers[2] = model.layers[2], model.layers[0]

    model = mlp()
    first, third = model.layers[0], model.layers[2]
    swap(model)
    assert model.layers[0] is third and model.layers[2] is first
    swap(model)
    assert model.layers[0] is first


def test_moving_a_variable_between_attributes_keeps_its_identity():
    @nnx.jit
    def move(model):
        model.b = model.a
        del model.a

    model = nnx.Dict(a=nnx.Param(jnp.ones(1)))
    box = model.a
    move(model)
    assert list(model) == ["b"] and model.b is box


def test_metadata_and_kind_changes_are_seen():
    @nnx.jit
    def change(model):
        model.a.set_metadata(tag="x")
        model.b = nnx.BatchStat(model.b.value)

    model = nnx.Dict(a=nnx.Param(jnp.ones(1)), b=nnx.Param(jnp.ones(1)))
    change(model)
    assert model.a.tag == "x" and type(model.b) is nnx.BatchStat


def test_arrays_in_attributes_lists_and_tuples_are_written():
    class Model(nnx.Module):
        def __init__(self):
            self.array = jnp.zeros(2)
            self.items = [jnp.zeros(1), "x"]
            self.pair = (jnp.zeros(1), nnx.Param(jnp.zeros(1)))

    @nnx.jit
    def run(model):
        model.array = model.array + 1
        model.items[0] = model.items[0] + 2
        model.pair[1].value = model.pair[1].value + 3

    model = Model()
    run(model), run(model)
    assert float(model.array[0]) == 2 and float(model.items[0][0]) == 4
    assert float(model.pair[1].value[0]) == 6 and float(model.pair[0][0]) == 0


def test_an_exception_leaves_the_model_as_it_was():
    @nnx.jit
    def fail(model, x):
        model(x)
        model.extra = nnx.Param(x)
        model.layers.append(3)
        raise ZeroDivisionError

    model = mlp()
    graphdef, before = nnx.graphdef(model), nnx.clone(nnx.state(model))
    with pytest.raises(ZeroDivisionError):
        fail(model, batch())
    assert nnx.graphdef(model) is graphdef and nnx.state(model) == before


def test_shared_references_and_cycles():
    @nnx.jit
    def run(model):
        assert model.a is model.b and model.me is model
        model.a.value = model.b.value + 1

    model = Tied()
    run(model)
    assert model.a is model.b
    np.testing.assert_array_equal(model.b.value, [1, 2, 3])


def test_one_object_in_two_arguments_is_one_object():
    @nnx.jit
    def run(model, layer, nested):
        assert model.layers[0] is layer is nested["again"][0]
        layer.bias.value = layer.bias.value + 1

    model = mlp()
    for _ in range(2):
        run(model, model.layers[0], {"again": [model.layers[0]]})
    np.testing.assert_array_equal(model.layers[0].bias.value, [2, 2, 2])


def test_separate_arguments_that_become_shared():
    @nnx.jit
    def link(a, b):
        b.other = a

    a, b = Counter(), Counter()
    link(a, b)
    assert b.other is a


def test_results_may_be_modules_variables_states_and_arguments():
    @nnx.jit
    def run(model, x):
        y = model(x)
        return {"model": model, "new": Norm(2), "y": y, "state": nnx.state(model, nnx.BatchStat)}

    model = mlp()
    out = run(model, batch())
    assert out["model"] is model and type(out["new"]) is Norm
    assert out["state"].layers[1].mean is model.layers[1].mean
    assert out["y"].shape == (4, 3)
    again = run(model, batch())
    assert again["new"] is not out["new"]


def test_building_a_model_inside():
    built = nnx.jit(lambda: mlp(3))()
    for (path, a), (_, b) in zip(
        nnx.to_flat_state(nnx.state(built)).items(), nnx.to_flat_state(nnx.state(mlp(3))).items()
    ):
        np.testing.assert_allclose(a.value, b.value, rtol=1e-6, err_msg=str(path))


def test_variables_and_states_as_arguments_are_updated():
    @nnx.jit
    def run(variable, state, *, named):
        variable += 1
        state.layers[0].bias.value = state.layers[0].bias.value + 2
        named["x"].value = named["x"].value + 3

    variable, model, named = nnx.Variable(jnp.zeros(())), mlp(), {"x": nnx.Param(jnp.zeros(()))}
    for _ in range(2):
        run(variable, nnx.state(model, nnx.Param), named=named)
    assert float(variable) == 2 and float(named["x"]) == 6
    np.testing.assert_array_equal(model.layers[0].bias.value, [4, 4, 4])


def test_methods_bound_methods_and_modules():
    class Model(Counter):
        @nnx.jit
        def step(self, by):
            self.count += by
            return self.count.value

        def plain(self, by):
            self.count += by

        def __call__(self, by):
            self.count += 10 * by

    model = Model()
    assert int(model.step(1)) == 1
    nnx.jit(model.plain)(2)
    nnx.jit(model)(1)
    nnx.jit(Model.__call__)(model, 1)
    assert int(model.count) == 23
    assert Model.step.__name__ == "step"


def test_static_arguments_by_number_and_by_name():
    traces = []

    @nnx.jit(static_argnames=("mode",), static_argnums=1)
    def run(model, times, x, mode="add"):
        traces.append((times, mode))
        model.count += times
        return x * times if mode == "mul" else x + times

    model = Counter()
    assert int(run(model, 2, jnp.asarray(5))) == 7
    assert int(run(model, 2, jnp.asarray(6))) == 8
    assert int(run(model, 3, jnp.asarray(5), mode="mul")) == 15
    assert int(run(model, times=3, x=jnp.asarray(5), mode="mul")) == 15
    assert traces[:2] == [(2, "add"), (3, "mul")] and int(model.count) == 10
    with pytest.raises(errors.StructureError, match=r"static argument 'mode'.*list"):
        run(model, 2, jnp.asarray(1), mode=[1])
    with pytest.raises(errors.StructureError, match="no argument 'mdoe'"):
        nnx.jit(lambda model, mode: 0, static_argnames="mdoe")
    with pytest.raises(errors.StructureError, match="modules carry arrays"):
        nnx.jit(lambda m: 0, static_argnums=0)(model)


def test_an_argument_that_cannot_be_traced_says_how_to_mark_it():
    with pytest.raises(errors.StructureError, match=r"argument 1 .*'train'.*static_argnums=1"):
        nnx.jit(lambda model, mode: 0)(Counter(), "train")
    with pytest.raises(errors.StructureError, match=r"argument 'act' .*static_argnames='act'"):
        nnx.jit(lambda model, act: 0)(Counter(), act=lambda x: x)


def test_true_and_one_are_different_static_values():
    run = nnx.jit(lambda x, flag: x + 1 if flag is True else x, static_argnames="flag")
    assert int(run(jnp.asarray(1), flag=1)) == 1 and int(run(jnp.asarray(1), flag=True)) == 2


def test_donation_never_leaves_a_deleted_buffer():
    run = nnx.jit(lambda m, x: m(x), donate_argnums=0)
    model, x = mlp(), batch()
    buffers = [v.value for _, v in nnx.iter_graph(model) if isinstance(v, nnx.Variable)]
    expected = nnx.clone(model, arrays=True)
    for _ in range(3):
        np.testing.assert_allclose(run(model, x), expected(x), rtol=1e-5)
    assert all(buffer.is_deleted() for buffer in buffers)
    for path, leaf in nnx.to_flat_state(nnx.state(model)).items():
        assert not leaf.value.is_deleted(), path
        np.asarray(leaf.value)
    assert not x.is_deleted()


def test_donation_by_name_beside_a_module_that_is_not_donated():
    @nnx.jit(donate_argnames="x")
    def run(model, x):
        model.count += 1
        return x + 1

    model, x = Counter(), jnp.ones(128)
    kept = model.count.value
    assert float(run(model, x)[0]) == 2
    assert x.is_deleted() and not kept.is_deleted()


def test_it_nests():
    inner = nnx.jit(lambda m, x: m(x))

    @nnx.jit
    def outer(model, x):
        return inner(model, inner(model, x))

    a, b, x = mlp(), mlp(), batch()
    np.testing.assert_allclose(outer(a, x), b(b(x)), rtol=1e-5)
    np.testing.assert_allclose(a.layers[1].mean.value, b.layers[1].mean.value, rtol=1e-5)


def test_lower_gives_the_program():
    run = nnx.jit(lambda m, x: m(x))
    text = run.lower(mlp(), batch()).as_text()
    assert "stablehlo.dot_general" in text
    compiled = run.lower(mlp(), batch()).compile()
    assert compiled.memory_analysis() is not None


def test_what_is_no_function_is_an_error():
    with pytest.raises(errors.StructureError, match="needs a callable"):
        nnx.jit(3)


def test_models_that_are_dropped_are_freed():
    run = nnx.jit(lambda m, x: m(x))
    x, alive = batch(), []
    for seed in range(4):
        model = mlp(seed)
        other = Counter()
        nnx.jit(lambda m, c: None)(model, other)
        run(model, x)
        alive.extend([weakref.ref(model), weakref.ref(model.layers[0].kernel), weakref.ref(other)])
    del model, other
    gc.collect()
    assert [ref() for ref in alive] == [None] * len(alive)


def test_two_threads_call_one_function():
    run = nnx.jit(lambda c: c.count.set_value(c.count.value + 1))
    counters = [Counter() for _ in range(2)]
    run(Counter())

    def work(counter):
        for _ in range(200):
            run(counter)

    threads = [threading.Thread(target=work, args=(c,)) for c in counters]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [int(c.count) for c in counters] == [200, 200]


def test_unrelated_changes_do_not_compile_again_and_related_ones_are_seen():
    run, traces = counted(lambda m, x: m(x))
    model, other, x = mlp(), mlp(), batch()
    run(model, x), run(other, x)
    other.layers.append(Norm(3))
    run(model, x)
    assert len(traces) == 1
    run(other, x)
    assert len(traces) == 2


def test_matches_raw_jax():
    @jax.jit
    def raw(kernel, bias, x):
        return jnp.tanh(x @ kernel + bias)

    model = Linear(3, 3, rngs=nnx.Rngs(0))
    ours = nnx.jit(lambda m, x: jnp.tanh(m(x)))(model, batch())
    np.testing.assert_array_equal(ours, raw(model.kernel.value, model.bias.value, batch()))
