"""Each layer computes under strict promotion in the dtype that it is told."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layer_table import TABLE, Row

import moduli


def in_bfloat16(model: moduli.Module) -> None:
    """Stores a model's parameters in bfloat16 and lets every layer compute in it."""
    for _, node in moduli.iter_graph(model):
        if isinstance(node, moduli.Param):
            node.value = node.value.astype(jnp.bfloat16)
        elif hasattr(node, "param_dtype"):
            node.dtype = jnp.bfloat16


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_bfloat16_under_strict_promotion_is_close_to_the_reference(row: Row) -> None:
    model = row.model()
    in_bfloat16(model)
    inputs = [
        x.astype(jnp.bfloat16) if jnp.issubdtype(x.dtype, jnp.floating) else x for x in row.arrays()
    ]
    expected = row.reference(model, *inputs)
    with jax.numpy_dtype_promotion("strict"):
        outputs = model(*inputs)
    assert outputs.dtype == jnp.bfloat16
    scale = max(1.0, np.abs(expected).max())
    assert np.abs(np.asarray(outputs, np.float64) - expected).max() < row.bfloat16 * scale
    for _, node in moduli.iter_graph(model):
        if isinstance(node, moduli.BatchStat):
            assert node.dtype == jnp.float32


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_float32_under_strict_promotion(row: Row) -> None:
    with jax.numpy_dtype_promotion("strict"):
        model = row.model()
        outputs = model(*row.arrays())
    assert outputs.dtype == jnp.float32
