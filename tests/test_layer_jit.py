"""Structures of layers give under ``moduli.jit`` what they give eagerly, and the same state."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layer_table import STRUCTURES, Row

import moduli


def leaves(model: moduli.Module) -> list[np.ndarray]:
    """Returns all of a model's state as plain arrays."""
    arrays = jax.tree.leaves(moduli.to_pure_dict(moduli.state(model)))
    return [
        np.asarray(jax.random.key_data(a) if jnp.issubdtype(a.dtype, jax.dtypes.prng_key) else a)
        for a in arrays
    ]


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("row", STRUCTURES, ids=lambda row: row.name)
def test_jit_equals_eager_twice_in_a_row(row: Row, training: bool) -> None:
    inputs = row.arrays()
    eager, jitted = row.model(), row.model()
    for model in (eager, jitted):
        model.train() if training else model.eval()

    @moduli.jit
    def call(model: moduli.Module, *args: jax.Array) -> jax.Array:
        return model(*args)  # pyright: ignore[reportCallIssue]

    for _ in range(2):
        np.testing.assert_allclose(call(jitted, *inputs), eager(*inputs), rtol=1e-5, atol=1e-5)
    for after_jit, after_eager in zip(leaves(jitted), leaves(eager), strict=True):
        np.testing.assert_allclose(after_jit, after_eager, rtol=1e-5, atol=1e-6)
