"""to_tree and from_tree: modules as pytrees for raw JAX, with all that they share."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from core_models import Linear, Norm, Tied, batch, mlp
from hypothesis import HealthCheck, given, settings

import moduli as nnx
from moduli import errors
from moduli.testing import assert_equal_graphs, assert_unchanged, graphs


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(graphs())
def test_every_graph_comes_back(model):
    with assert_unchanged(model):
        other = nnx.from_tree(nnx.to_tree(model))
    assert_equal_graphs(other, model)
    assert other is not model


def test_raw_jax_transforms_what_is_shared_once():
    tied = Tied()
    tree = nnx.to_tree((tied, {"again": tied.a, "x": jnp.ones(3)}))
    assert len(jax.tree.leaves(tree)) == 2

    @jax.jit
    def run(tree):
        model, others = nnx.from_tree(tree)
        assert model.a is model.b is others["again"] and model.me is model
        model.a.value = model.a.value + others["x"]
        return nnx.to_tree((model, others))

    model, others = nnx.from_tree(run(tree))
    assert model.b.value.tolist() == others["again"].value.tolist() == [1.0, 2.0, 3.0]
    assert tied.a.value.tolist() == [0.0, 1.0, 2.0]  # raw JAX: what comes back is new


def test_gradients_and_maps_of_raw_jax():
    model, x = Linear(3, 2, rngs=nnx.Rngs(0)), batch()
    tree = nnx.to_tree(model)
    grads = nnx.from_tree(jax.grad(lambda tree: nnx.from_tree(tree)(x).sum())(tree))
    expected = nnx.grad(lambda model: model(x).sum())(model)
    np.testing.assert_allclose(grads.kernel.value, expected.kernel.value, rtol=1e-6)
    stacked = jax.tree.map(lambda *v: jnp.stack(v), tree, nnx.to_tree(nnx.clone(model)))
    y = jax.vmap(lambda tree: nnx.from_tree(tree)(x))(stacked)
    np.testing.assert_allclose(y[1], model(x), rtol=1e-6)


def test_a_loop_of_raw_jax_carries_a_model():
    def step(tree, x):
        model = nnx.from_tree(tree)
        y = model(x)
        return nnx.to_tree(model), y

    twin, xs = Norm(3), jnp.stack([batch(), batch() + 1])
    tree, ys = jax.lax.scan(step, nnx.to_tree(Norm(3)), xs)
    np.testing.assert_allclose(ys, [twin(x) for x in xs], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(nnx.from_tree(tree).mean, twin.mean, rtol=1e-5)


def test_trees_of_equal_structure_do_not_mix():
    one, two = mlp(0), mlp(1)
    trees = [nnx.to_tree(one), nnx.to_tree(two), nnx.to_tree(one)]
    back = nnx.from_tree([*trees, trees[0]])
    for model, expected in zip(back, [one, two, one, one], strict=True):
        assert_equal_graphs(model, expected)
    assert back[0] is back[3] and back[0] is not back[2]


def test_what_is_no_module_stays():
    tree = {"a": jnp.ones(2), "b": (1.0, None)}
    for same in (nnx.to_tree(tree), nnx.from_tree(tree)):
        assert same["a"] is tree["a"] and same["b"] == (1.0, None)


def test_a_part_that_is_missing_is_named():
    model = mlp()
    pair = nnx.to_tree([model, model.layers[0]])
    with pytest.raises(errors.StructureError) as caught:
        nnx.from_tree(pair[1])
    assert str(caught.value) == (
        "from_tree: the value at `layers/0/bias` of module 0 is not in the pytree; to_tree "
        "converts modules together, so pass all of them back, and in their order"
    )
