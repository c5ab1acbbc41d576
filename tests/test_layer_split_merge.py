"""Structures of layers survive being taken apart and put together; the copy is independent."""

import jax
import numpy as np
import pytest
from layer_table import STRUCTURES, Row

import moduli


@pytest.mark.parametrize("row", STRUCTURES, ids=lambda row: row.name)
def test_merge_of_split_computes_the_same(row: Row) -> None:
    model, inputs = row.model(), row.arrays()
    copy = moduli.merge(*moduli.split(model), copy=True)
    assert type(copy) is type(model)
    np.testing.assert_array_equal(copy(*inputs), model(*inputs))


@pytest.mark.parametrize("row", STRUCTURES, ids=lambda row: row.name)
def test_merged_in_two_states_inside_a_raw_jit(row: Row) -> None:
    model, inputs = row.model(), row.arrays()
    expected = model(*inputs)
    graphdef, params, rest = moduli.split(row.model(), moduli.Param, ...)

    @jax.jit
    def call(params: moduli.State, rest: moduli.State) -> jax.Array:
        return moduli.merge(graphdef, params, rest)(*inputs)

    np.testing.assert_allclose(call(params, rest), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("row", STRUCTURES, ids=lambda row: row.name)
def test_equal_builds_have_one_graphdef(row: Row) -> None:
    assert moduli.graphdef(row.model(0)) == moduli.graphdef(row.model(1))
