"""``moduli.testing.assert_equal_graphs`` on whatever a Variable may hold."""

from __future__ import annotations

import datetime

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import moduli as nnx
from moduli.testing import assert_equal_graphs, assert_unchanged


class Token:
    """Something that is equal to itself alone."""


TOKEN = Token()
DIFFERENT = {
    "text": ("relu", "gelu"),
    "text of another length": ("relu", "relu6"),
    "text that ends in a zero": ("a", "a\0"),
    "bytes": (b"a", b"a\0"),
    "texts": (np.array(["a", "b"]), np.array(["a", "c"])),
    "texts of other lengths": (np.array(["a", "b"]), np.array(["a", "bc"])),
    "texts of another shape": (np.array(["a"]), np.array([["a"]])),
    "text and number": ("1", 1),
    "text and bytes": ("1", b"1"),
    "objects": (TOKEN, Token()),
    "tuples with text": (("a", jnp.ones(2)), ("b", jnp.ones(2))),
    "dates": (np.datetime64("2026-01-01"), np.datetime64("2026-01-02")),
    "python dates": (datetime.date(2026, 1, 1), datetime.date(2026, 1, 2)),
    "floats": (1.0, 2.0),
    "dtypes": (jnp.ones(2), jnp.ones(2, jnp.int32)),
    "bfloat16": (jnp.ones(2, jnp.bfloat16), jnp.zeros(2, jnp.bfloat16)),
    "int4": (np.ones(2, ml_dtypes.int4), np.zeros(2, ml_dtypes.int4)),
    "keys": (jax.random.key(0), jax.random.key(1)),
}


def model(value):
    return nnx.Dict(inner=nnx.Dict(name=nnx.Variable(value)), w=nnx.Param(jnp.ones(2)))


@pytest.mark.parametrize(("value", "other"), DIFFERENT.values(), ids=DIFFERENT)
def test_equal_is_equal_and_another_value_is_named(value, other):
    assert_equal_graphs(model(value), model(value))
    assert_equal_graphs(nnx.clone(model(value)), model(value), rtol=1e-3)
    with pytest.raises(AssertionError, match="name"):
        assert_equal_graphs(model(value), model(other))
    with pytest.raises(AssertionError, match="name"):
        assert_equal_graphs(model(other), model(value), rtol=1e-3)


@pytest.mark.parametrize(("value", "other"), DIFFERENT.values(), ids=DIFFERENT)
def test_a_block_that_writes_it_is_seen(value, other):
    found = model(value)
    with assert_unchanged(found):
        nnx.state(found)
    with pytest.raises(AssertionError, match="name"), assert_unchanged(found):
        found["inner"]["name"].value = other
