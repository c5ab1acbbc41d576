"""State and filters."""

from __future__ import annotations

import copy
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from core_models import Linear, Norm, mlp

import moduli as nnx
from moduli import errors

PATH = ("blocks", 0, "attention", "kernel")
PARAM = nnx.Param(jnp.ones(1), tag="frozen")


def has_four_parts(path, value):
    return len(path) == 4


def name_of(filter):
    """An id that is the same in every process: pytest-xdist compares them."""
    return getattr(filter, "__name__", repr(filter))


@pytest.mark.parametrize(
    ("filter", "expected"),
    [
        (..., True),
        (True, True),
        (False, False),
        (None, False),
        (nnx.Param, True),
        (nnx.Variable, True),
        (nnx.BatchStat, False),
        ("frozen", True),
        ("other", False),
        ((nnx.BatchStat, "frozen"), True),
        ([nnx.BatchStat, "other"], False),
        (has_four_parts, True),
        (nnx.PathContains("attention"), True),
        (nnx.PathContains(0), True),
        (nnx.PathContains("atten"), False),
        (nnx.PathContains("atten", exact=False), True),
        (nnx.PathIn(PATH), True),
        (nnx.OfType(nnx.Param), True),
        (nnx.WithTag("frozen"), True),
        (nnx.Any(nnx.BatchStat, "frozen"), True),
        (nnx.All(nnx.Param, "frozen"), True),
        (nnx.All(nnx.Param, "other"), False),
        (nnx.Not(nnx.Param), False),
        (nnx.Everything(), True),
        (nnx.Nothing(), False),
    ],
    ids=name_of,
)
def test_filters_select(filter, expected):
    assert nnx.filterlib.to_predicate(filter)(PATH, PARAM) is expected


def test_filters_compare_by_what_they_say():
    assert nnx.All(nnx.Param, "a") == nnx.All(nnx.Param, "a")
    assert len({nnx.Any(nnx.Param), nnx.Any(nnx.Param), nnx.All(nnx.Param)}) == 2
    assert repr(nnx.Not(nnx.PathContains("x"))) == "Not(PathContains('x', True))"


def test_what_is_no_filter_is_an_error():
    with pytest.raises(errors.StructureError, match=r"3\.5 of type float is not a filter"):
        nnx.state(mlp(), 3.5)


def test_attribute_and_item_access_and_near_misses():
    state = nnx.state(mlp())
    assert state.layers[0].kernel is state["layers"][0]["kernel"]
    with pytest.raises(AttributeError, match="did you mean 'layers'"):
        state.layer
    with pytest.raises(KeyError, match="did you mean 'kernel'"):
        state["layers"][0]["kernle"]
    state.layers[0].kernel = nnx.Param(jnp.zeros(1))
    assert state["layers"][0]["kernel"].shape == (1,)
    del state.layers[0].bias
    assert list(state.layers[0]) == ["kernel"]


def test_flat_and_nested_forms_are_inverse():
    state = nnx.state(mlp())
    flat = nnx.to_flat_state(state)
    assert flat.paths[0] == ("layers", 0, "bias") and len(flat) == 6
    assert nnx.from_flat_state(flat) == state == flat.to_nested_state()
    assert nnx.from_flat_state(list(flat)) == state
    assert dict(flat)[("layers", 0, "bias")] is state.layers[0].bias
    for pairs in ([(("a",), 1), (("a", "b"), 2)], [(("a", "b"), 2), (("a",), 1)]):
        with pytest.raises(errors.StructureError, match="another path"):
            nnx.from_flat_state(pairs)


def test_split_filter_merge_subtract():
    state = nnx.state(mlp())
    params, stats = state.split(nnx.Param, ...)
    assert nnx.merge_state(params, stats) == state == params | stats
    assert (state - params) == stats
    assert state.filter(nnx.BatchStat) == stats
    assert nnx.filter_state(state, nnx.Param, nnx.BatchStat)[0] == params
    with pytest.raises(errors.StructureError, match="no filter"):
        nnx.split_state(state, nnx.Param)
    assert nnx.State.merge({"a": 1}, {"a": 2, "b": 3}) == {"a": 2, "b": 3}


def test_pure_dicts_round_trip():
    model = mlp()
    pure = nnx.to_pure_dict(nnx.state(model))
    assert type(pure) is dict and isinstance(pure["layers"][0]["kernel"], jax.Array)
    changed = jax.tree.map(lambda x: x + 1, pure)
    state = nnx.clone(nnx.state(model))
    state.replace_by_pure_dict(changed)
    np.testing.assert_array_equal(state.layers[0].bias.value, [1, 1, 1])
    assert type(state.layers[1].mean) is nnx.BatchStat
    before = nnx.clone(state)
    with pytest.raises(errors.PathError, match=r"layers/9"):
        nnx.replace_by_pure_dict(state, {"layers": {0: {"bias": 0.0}, 9: {"bias": 0.0}}})
    assert state == before


def test_a_state_is_a_pytree_with_key_paths():
    state = nnx.state(Linear(2, 3, rngs=nnx.Rngs(0)))
    paths = [jax.tree_util.keystr(p) for p, _ in jax.tree_util.tree_leaves_with_path(state)]
    assert paths == ["['bias'].value", "['kernel'].value"]
    shapes = jax.tree.map(jnp.shape, state)
    assert isinstance(shapes, nnx.State) and shapes.kernel.value == (2, 3)
    doubled = jax.jit(lambda s: jax.tree.map(lambda x: 2 * x, s))(state)
    np.testing.assert_allclose(doubled.kernel.value, 2 * state.kernel.value)


def test_equality_is_of_values_kinds_and_metadata():
    def state(value=1.0, kind=nnx.Param, **metadata):
        return nnx.State({"a": kind(jnp.full(2, value), **metadata)})

    assert state() == state()
    assert state() != state(2.0) and state() != state(kind=nnx.BatchStat)
    assert state() != state(tag="x") and state() != nnx.State({})


@pytest.mark.parametrize("how", [copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s)), nnx.clone])
def test_copies_share_nothing(how):
    state = nnx.state(mlp())
    other = how(state)
    assert other == state
    other.layers[0].bias.value = jnp.ones(3)
    assert float(state.layers[0].bias.value.sum()) == 0


def test_restore_int_paths():
    assert nnx.restore_int_paths({"a": {"0": 1, "x": {"10": 2}}}) == {"a": {0: 1, "x": {10: 2}}}


def test_repr_is_readable():
    text = repr(nnx.state(Norm(2)))
    assert text == "State({\n  'mean': BatchStat(float32[2] [0., 0.]),\n})"
