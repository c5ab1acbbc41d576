"""split, merge, state, update, pop, clone, and the walks, with shared references and cycles."""

from __future__ import annotations

import copy
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from core_models import Linear, Norm, Tied, batch, mlp

import moduli as nnx
from moduli import errors


def assert_same(a, b):
    """Two graphs have one structure and equal values."""
    assert nnx.graphdef(a) is nnx.graphdef(b)
    for (path, x), (_, y) in zip(
        nnx.to_flat_state(nnx.state(a)).items(), nnx.to_flat_state(nnx.state(b)).items()
    ):
        for p, q in zip(jax.tree.leaves(x), jax.tree.leaves(y), strict=True):
            np.testing.assert_array_equal(p, q, err_msg=str(path))


class Everything(nnx.Module):
    def __init__(self):
        self.mlp = mlp()
        self.tied = Tied()
        self.again = self.tied
        self.table = jnp.arange(4)
        self.pair = (self.mlp.layers[0], jnp.ones(2), "text")
        self.named = {"x": nnx.Param(jnp.zeros(1)), "y": [self.mlp.layers[1]]}
        self.nothing = None


COPIES = {
    "merge": lambda m: nnx.merge(*nnx.split(m), copy=True),
    "clone": nnx.clone,
    "deepcopy": copy.deepcopy,
    "pickle": lambda m: pickle.loads(pickle.dumps(m)),
    "unflatten": lambda m: nnx.unflatten(*nnx.flatten(m), copy_variables=True),
    "unflatten_list": lambda m: nnx.unflatten(
        *nnx.flatten(m, with_paths=False), copy_variables=True
    ),
    "jit": lambda m: nnx.jit(nnx.clone)(m),
}


@pytest.mark.parametrize("how", COPIES, ids=str)
def test_a_copy_has_the_same_values_and_sharing_and_nothing_in_common(how):
    model = Everything()
    other = COPIES[how](model)
    assert_same(model, other)
    assert other.again is other.tied and other.tied.a is other.tied.b
    assert other.tied.me is other.tied
    assert other.pair[0] is other.mlp.layers[0] and other.pair[2] == "text"
    assert other.named["y"][0] is other.mlp.layers[1]
    assert type(other.mlp.layers) is nnx.List and type(other.named) is nnx.Dict
    mine = {id(v) for _, v in nnx.iter_graph(model) if isinstance(v, nnx.Variable)}
    theirs = {id(v) for _, v in nnx.iter_graph(other) if isinstance(v, nnx.Variable)}
    assert not mine & theirs
    other.tied.a.value = jnp.full(3, 7.0)
    assert float(other.tied.b.value[0]) == 7.0 and float(model.tied.a.value[0]) == 0.0


def test_split_gives_the_models_own_variables_by_filter():
    model = mlp()
    graphdef, params, stats = nnx.split(model, nnx.Param, nnx.BatchStat)
    assert params.layers[0].kernel is model.layers[0].kernel
    assert {path[-1] for path in nnx.to_flat_state(params).paths} == {"kernel", "bias"}
    assert {path[-1] for path in nnx.to_flat_state(stats).paths} == {"mean"}
    assert_same(nnx.merge(graphdef, stats, params), model)
    with pytest.raises(errors.StructureError, match=r"layers/1/mean.*`\.\.\.`"):
        nnx.split(model, nnx.Param)
    with pytest.raises(errors.StructureError, match=r"write `\.\.\.` last"):
        nnx.split(model, ..., nnx.Param)


def test_merge_shares_the_variables_of_the_states_unless_told_to_copy():
    model = mlp()
    graphdef, state = nnx.split(model)
    merged, copied = nnx.merge(graphdef, state), nnx.merge(graphdef, state, copy=True)
    assert merged is not model and merged.layers[0] is not model.layers[0]
    assert merged.layers[0].kernel is model.layers[0].kernel is state.layers[0].kernel
    assert copied.layers[0].kernel is not model.layers[0].kernel
    plain = nnx.merge(graphdef, nnx.to_pure_dict(state))
    assert_same(plain, model)


def test_merge_says_what_is_missing_or_too_much():
    model = mlp()
    graphdef, params, stats = nnx.split(model, nnx.Param, ...)
    with pytest.raises(errors.StructureError, match=r"no value for `layers/1/mean`"):
        nnx.merge(graphdef, params)
    extra = nnx.State({"layers": {0: {"kernle": nnx.Param(1.0)}}})
    with pytest.raises(errors.StructureError, match=r"kernle.*did you mean `layers/0/kernel`"):
        nnx.merge(graphdef, params, stats, extra)
    with pytest.raises(errors.StructureError, match="GraphDef first"):
        nnx.merge(params, graphdef)


def test_graphdefs_are_interned_by_structure():
    assert nnx.graphdef(mlp(0)) is nnx.graphdef(mlp(1))
    assert nnx.graphdef(mlp(0)) is not nnx.graphdef(mlp(0, depth=3))
    assert pickle.loads(pickle.dumps(nnx.graphdef(mlp()))) is nnx.graphdef(mlp())

    class Static(nnx.Module):
        def __init__(self, value):
            self.value = value

    values = [1, True, 1.0, 0.0, -0.0, (1,), (True,), (1.0,), "1", b"1", None, slice(1), 1j]
    assert len({nnx.graphdef(Static(v)) for v in values}) == len(values)
    for value in values:
        back = nnx.merge(*nnx.split(Static(value))).value
        assert back == value and type(back) is type(value)


def test_a_static_value_that_can_neither_be_hashed_nor_copied_is_an_error_with_its_path():
    class Opaque:
        __hash__ = None

        def __reduce_ex__(self, protocol):
            raise TypeError("cannot be copied")

    model = mlp()
    model.layers[0].options = Opaque()
    with pytest.raises(errors.StructureError, match=r"`layers/0/options` holds a Opaque"):
        nnx.split(model)


def test_a_bound_method_of_a_module_is_no_static_value():
    model = mlp()
    model.act = model.layers[0].__call__
    with pytest.raises(errors.StructureError, match="`act` holds a method that carries a Linear"):
        nnx.split(model)


def test_state_selects_and_aliases():
    model = mlp()
    params, rest = nnx.state(model, nnx.Param, ...)
    assert list(rest.layers) == [1, 3]
    params.layers[0].bias.value = jnp.ones(3)
    assert float(model.layers[0].bias.value.sum()) == 3
    kept = nnx.clone(params)
    model.layers[0].bias.value = jnp.zeros(3)
    assert float(kept.layers[0].bias.value.sum()) == 3


def test_update_writes_in_place_and_adds_variables():
    model, source = mlp(0), mlp(1)
    box = model.layers[0].kernel
    nnx.update(model, nnx.state(source))
    assert model.layers[0].kernel is box
    np.testing.assert_array_equal(box.value, source.layers[0].kernel.value)
    nnx.update(model, {"layers": {0: {"bias": jnp.full(3, 2.0), "extra": nnx.Cache(1.0)}}})
    assert float(model.layers[0].bias.value.sum()) == 6
    assert type(model.layers[0].extra) is nnx.Cache


def test_update_with_an_unknown_path_changes_nothing():
    model = mlp()
    before = model.layers[0].bias.value
    with pytest.raises(errors.PathError, match=r"layers/0/kernle.*did you mean"):
        nnx.update(model, {"layers": {0: {"bias": jnp.ones(3), "kernle": jnp.ones(3)}}})
    assert model.layers[0].bias.value is before


def test_pop_removes_every_reference():
    model = Tied()
    model.seen = nnx.Intermediate((1.0,))
    model.other = nnx.Dict(seen=model.seen)
    popped = nnx.pop(model, nnx.Intermediate)
    assert [path[-1] for path in nnx.to_flat_state(popped).paths] == ["seen"]
    assert not hasattr(model, "seen") and "seen" not in model.other
    with pytest.raises(errors.StructureError, match="at least one filter"):
        nnx.pop(model)


def test_pop_of_list_elements_removes_the_right_ones():
    model = nnx.List([nnx.Intermediate(0), nnx.Param(1), nnx.Intermediate(2), nnx.Param(3)])
    nnx.pop(model, nnx.Intermediate)
    assert [v.value for v in model] == [1, 3]


def test_find_duplicates():
    model = Tied()
    found = {frozenset(paths) for paths in nnx.find_duplicates(model)}
    assert found == {frozenset({(), ("me",)}), frozenset({("a",), ("b",)})}
    assert nnx.find_duplicates(model, only=nnx.Param) == [[("a",), ("b",)]]
    assert nnx.find_duplicates(mlp()) == []


def test_walks_are_sorted_and_children_come_first():
    class Model(nnx.Module):
        def __init__(self):
            self.zeta = Norm(2)
            self.alpha = (Norm(2), [Norm(2)])
            self.again = self.zeta

    model = Model()
    assert [path for path, _ in nnx.iter_modules(model)] == [
        ("again",),
        ("alpha", 0),
        ("alpha", 1, 0),
        ("alpha", 1),
        (),
    ]
    assert [key for key, _ in nnx.iter_children(model)] == ["again", ("alpha", 0), ("alpha", 1)]
    paths = [path for path, _ in nnx.iter_graph(nnx.List([nnx.Param(1.0), 3]))]
    assert paths == [(0,), (1,), ()]
    shared = Norm(2)
    paths = [path for path, _ in nnx.iter_graph({"a": shared, "b": [shared, 4]})]
    assert paths == [("a", "mean"), ("a", "use_running_average"), ("a",), ("b", 1), ()]


def test_map_and_set_metadata():
    model = mlp()
    zeros = nnx.map(lambda path, leaf: leaf.replace(jnp.zeros_like(leaf.value)), model)
    assert float(jnp.abs(zeros.layers[0].kernel.value).sum()) == 0
    assert float(jnp.abs(model.layers[0].kernel.value).sum()) > 0
    nnx.set_metadata(model, frozen=True, only=nnx.PathContains("bias"))
    assert model.layers[0].bias.frozen and not model.layers[0].kernel.has_metadata("frozen")


# -- as a JAX pytree -------------------------------------------------------------------------------


def test_modules_are_pytrees_with_key_paths():
    model = mlp(depth=1)
    paths = [jax.tree_util.keystr(p) for p, _ in jax.tree_util.tree_leaves_with_path(model)]
    assert paths == [".layers[0].bias.value", ".layers[0].kernel.value", ".layers[1].mean.value"]
    shapes = jax.tree.map(jnp.shape, model)
    assert shapes.layers[0].kernel.value == (3, 3)
    again = jax.tree.map(lambda x, shape: (x.shape, shape), model, shapes)
    assert again.layers[0].bias.value == ((3,), (3,))


def test_raw_transforms_take_modules():
    model, x = mlp(), batch()
    model.eval()
    np.testing.assert_allclose(jax.jit(lambda m, x: m(x))(model, x), model(x), rtol=1e-5)
    linear = Linear(3, 1, rngs=nnx.Rngs(0))
    grads = jax.grad(lambda m: m(x).sum())(linear)
    np.testing.assert_allclose(grads.kernel.value[:, 0], x.sum(0), rtol=1e-5)
    np.testing.assert_allclose(
        jax.vmap(lambda m, x: m(x), in_axes=(None, 0))(linear, x), linear(x), rtol=1e-5
    )


@pytest.mark.parametrize("paths", [("a", "b"), ("x", "y")])
def test_what_jax_would_copy_is_an_error_that_names_both_paths(paths):
    first, second = paths
    model = nnx.Dict({first: Linear(2, 2, rngs=nnx.Rngs(0))})
    model[second] = model[first]
    with pytest.raises(errors.StructureError, match=f"`{first}` and `{second}` are the same"):
        jax.tree.leaves(model)
    cycle = nnx.Dict()
    cycle["self"] = cycle
    with pytest.raises(errors.StructureError, match="are the same Dict"):
        jax.jit(lambda m: 0)(cycle)


def test_matches_flax():
    flax = pytest.importorskip("flax.nnx")

    def build(lib):
        class Block(lib.Module):
            def __init__(self, rngs):
                self.w = lib.Param(jax.random.normal(rngs.params(), (2, 2)))
                self.stat = lib.BatchStat(jnp.zeros(2))
                self.rate = 0.5

        class Model(lib.Module):
            def __init__(self, rngs):
                self.second = Block(rngs)
                self.first = Block(rngs)
                self.shared = self.first

        return Model(lib.Rngs(5))

    ours, theirs = build(nnx), build(flax)
    flat = nnx.to_flat_state(nnx.state(ours))
    reference = dict(flax.to_flat_state(flax.state(theirs)))
    assert list(flat.paths) == sorted(reference)
    for path in flat.paths:
        np.testing.assert_array_equal(flat[path].value, reference[path][...])
    assert [p for p, _ in nnx.iter_modules(ours)] == [p for p, _ in flax.iter_modules(theirs)]
