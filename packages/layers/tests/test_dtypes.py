"""promote_dtype: NumPy-like promotion for the non-strict mode, named errors for the strict one."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import moduli
from moduli_layers import promote_dtype
from moduli_layers.errors import DtypeError

DTYPES = [jnp.bfloat16, jnp.float16, jnp.float32, jnp.int32, jnp.bool_]


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize("dtype", [None, jnp.float16])
@pytest.mark.parametrize("pair", list(itertools.product(DTYPES, DTYPES)), ids=str)
def test_equals_flax(flax_nnx: Any, pair: Any, dtype: Any) -> None:
    from flax.nnx.nn import dtypes

    arrays: Any = (jnp.ones(2, pair[0]), None, jnp.zeros(2, pair[1]), 1)
    theirs = dtypes.promote_dtype(arrays, dtype=dtype)
    ours = promote_dtype(arrays, dtype=dtype)
    assert len(ours) == 4
    for a, b in zip(ours, theirs, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)


@pytest.mark.usefixtures("standard_promotion")
def test_integers_may_stay() -> None:
    first, second = promote_dtype((jnp.ones(2, jnp.int8), jnp.ones(2, jnp.int16)), inexact=False)
    assert first is not None
    assert second is not None
    assert first.dtype == second.dtype == jnp.int16


def test_variables_count_as_arrays() -> None:
    (value,) = promote_dtype((moduli.Param(jnp.ones(2, jnp.bfloat16)),))
    assert isinstance(value, jax.Array)
    assert value.dtype == jnp.bfloat16


def test_strict_promotion_says_what_to_write() -> None:
    with (
        jax.numpy_dtype_promotion("strict"),
        pytest.raises(DtypeError, match=r"\(bfloat16, float32\).*dtype=jnp.bfloat16.*or cast"),
    ):
        promote_dtype((jnp.ones(2, jnp.bfloat16), jnp.ones(2, jnp.float32)))


def test_integer_dtype_is_refused_where_numbers_must_be_inexact() -> None:
    with pytest.raises(DtypeError, match=r"dtype=int32.*dtype=jnp.float32"):
        promote_dtype((jnp.ones(2),), dtype=jnp.int32)
    (value,) = promote_dtype((jnp.ones(2),), dtype=jnp.int32, inexact=False)
    assert value is not None
    assert value.dtype == jnp.int32
