"""split, merge, state, update and the walks over tuples, lists, dicts and States of modules."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from core_models import mlp

import moduli as nnx
from moduli import errors


def test_several_objects_come_apart_and_together_in_one_graph():
    first, second = mlp(0), mlp(1)
    second.layers[0].kernel = first.layers[0].kernel
    graphdef, params, rest = nnx.split({"pair": (first, [second]), "rate": 0.5}, nnx.Param, ...)
    assert ("pair", 0, "layers", 0, "kernel") in nnx.to_flat_state(params).paths
    assert ("pair", 1, 0, "layers", 0, "kernel") not in nnx.to_flat_state(params).paths
    back = nnx.merge(graphdef, params, rest)
    (one, [two]) = back["pair"]
    assert type(back["pair"]) is tuple and type(back["pair"][1]) is list and back["rate"] == 0.5
    assert one.layers[0].kernel is two.layers[0].kernel is first.layers[0].kernel
    assert one is not first
    copied = nnx.merge(graphdef, params, rest, copy=True)["pair"][0]
    assert copied.layers[0].kernel is not first.layers[0].kernel
    assert graphdef is nnx.graphdef({"pair": (first, [second]), "rate": 0.5})
    assert graphdef is not nnx.graphdef({"pair": (first, [second]), "rate": 0.25})


def test_update_of_several_objects_writes_into_each():
    first, second = mlp(0), mlp(1)
    state = nnx.state((first, second), nnx.Param)
    doubled = jax.tree.map(lambda x: 2 * x, state)
    before = [np.asarray(m.layers[0].bias.value) for m in (first, second)]
    nnx.update((first, second), doubled)
    for model, old in zip((first, second), before, strict=True):
        np.testing.assert_array_equal(model.layers[0].bias.value, 2 * old)
    with pytest.raises(errors.PathError, match=r"tuple has no value at `2/layers"):
        nnx.update((first, second), {2: {"layers": {0: {"bias": nnx.Param(1.0)}}}})


def test_a_state_is_a_tree_of_variables():
    model = mlp()
    params = nnx.state(model, nnx.Param)
    again = nnx.state(params)
    assert nnx.to_flat_state(again).paths == nnx.to_flat_state(params).paths
    assert again.layers[0].kernel is params.layers[0].kernel
    graphdef, state = nnx.split(params)
    assert type(nnx.merge(graphdef, state)) is nnx.State
    nnx.update(params, jax.tree.map(jnp.zeros_like, params))
    np.testing.assert_array_equal(model.layers[0].kernel.value, 0)


def test_arrays_beside_the_modules_are_values_that_cannot_be_written():
    model = mlp()
    graphdef, state = nnx.split([model, jnp.arange(2.0)])
    np.testing.assert_array_equal(state[1], [0.0, 1.0])
    merged = nnx.merge(graphdef, jax.tree.map(lambda x: x + 1, state))
    np.testing.assert_array_equal(merged[1], [1.0, 2.0])
    bias = np.asarray(model.layers[0].bias.value)
    with pytest.raises(errors.StructureError, match=r"array at `1`.*plain list"):
        nnx.update([model, jnp.arange(2.0)], jax.tree.map(lambda x: x + 1, state))
    np.testing.assert_array_equal(model.layers[0].bias.value, bias)  # nothing was written


def test_pop_takes_from_every_module_but_not_from_the_plain_containers():
    first, second = mlp(0), mlp(1)
    first.seen, second.seen = nnx.Intermediate(1.0), nnx.Intermediate(2.0)
    popped = nnx.pop((first, second), nnx.Intermediate)
    assert [popped[i].seen.value for i in (0, 1)] == [1.0, 2.0]
    assert not hasattr(first, "seen") and not hasattr(second, "seen")
    loose = {"seen": nnx.Intermediate(1.0), "model": first}
    with pytest.raises(errors.StructureError, match="`seen` stands in a plain dict"):
        nnx.pop(loose, nnx.Intermediate)
    assert set(loose) == {"seen", "model"}


def test_duplicates_are_found_across_the_parts_of_a_tree():
    first, second = mlp(0), mlp(1)
    assert nnx.find_duplicates({"a": first, "b": second}) == []
    second.layers[0].bias = first.layers[0].bias
    shared = [[("a", "layers", 0, "bias"), ("b", "layers", 0, "bias")]]
    assert nnx.find_duplicates({"a": first, "b": second}) == shared
    assert nnx.find_duplicates([first, first]) == [[(0,), (1,)]]


@pytest.mark.parametrize("wrong", [None, 3, "model", jnp.ones(2), nnx.graphdef(mlp())])
def test_what_holds_no_module_is_an_error(wrong):
    a_value = wrong is None or isinstance(wrong, int | jax.Array)  # split takes those, as flax does
    for function in (nnx.state,) if a_value else (nnx.split, nnx.state, nnx.graphdef):
        with pytest.raises(errors.StructureError, match=f"got an? {type(wrong).__name__}"):
            function(wrong)


def test_a_graphdef_passes_through_raw_jax_transforms_without_leaves():
    model = mlp()
    graphdef, state = nnx.split(model)
    assert jax.tree.leaves(graphdef) == []
    traces = []

    @jax.jit
    def forward(graphdef, state, x):
        traces.append(graphdef)
        return graphdef, nnx.merge(graphdef, state)(x)

    x = jnp.ones((2, model.layers[0].kernel.shape[0]))
    returned, y = forward(graphdef, state, x)
    assert returned is graphdef
    np.testing.assert_allclose(y, model(x), rtol=1e-6)
    forward(*nnx.split(mlp(1)), x)
    assert traces == [graphdef]  # an equal structure is the same one: no second trace
    forward(*nnx.split(mlp(0, depth=3)), x)
    assert len(traces) == 2
    gradient = jax.grad(lambda g, s: forward(g, s, x)[1].sum(), argnums=1, allow_int=True)
    assert gradient(graphdef, state).layers[0].kernel.value.shape == model.layers[0].kernel.shape
    assert nnx.GraphDef[type(model)].__origin__ is nnx.GraphDef


def test_the_state_of_a_variable_is_the_variable():
    variable = nnx.Param(jnp.array(1.0))
    graphdef, state = nnx.split(variable)
    assert state is variable is nnx.state(variable)
    merged = nnx.merge(graphdef, jax.tree.map(lambda x: x + 1, state))
    assert type(merged) is nnx.Param and float(merged.value) == 2.0
    graphdef, stats, params, rest = nnx.split(variable, nnx.BatchStat, nnx.Param, ...)
    assert params is variable and not stats and not rest
    assert nnx.merge(graphdef, stats, params, rest) is variable
    nnx.update(variable, stats, nnx.Param(jnp.array(3.0)), rest)
    assert float(variable.value) == 3.0
    nnx.update(variable, jnp.array(4.0))
    assert float(variable.value) == 4.0
    with pytest.raises(errors.StructureError, match="no value for"):
        nnx.merge(graphdef, stats)
    with pytest.raises(errors.PathError, match="has no value at `a`"):
        nnx.update(variable, nnx.State({"a": nnx.Param(1.0)}))
    with pytest.raises(errors.PathError, match="Module has no value at"):
        nnx.update(nnx.Module(), variable)
    with pytest.raises(errors.StructureError, match="got the Param itself"):
        nnx.pop(variable, nnx.Param)
