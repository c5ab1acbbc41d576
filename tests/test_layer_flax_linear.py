"""Dense layers against flax.nnx: the same parameters from the same seed, the same outputs."""

from __future__ import annotations

import flax.nnx
import jax.numpy as jnp
import numpy as np
import pytest

import moduli

X = np.random.default_rng(0).normal(size=(4, 2, 3)).astype(np.float32)

CASES = {
    "linear": lambda nnx, r: nnx.Linear(3, 5, rngs=r),
    "general": lambda nnx, r: nnx.LinearGeneral(3, (5, 2), rngs=r),
    "general-two-axes": lambda nnx, r: nnx.LinearGeneral((2, 3), (5, 2), axis=(1, -1), rngs=r),
    "general-batch": lambda nnx, r: nnx.LinearGeneral(3, (5, 2), batch_axis={0: 4, 1: 2}, rngs=r),
    "general-precision": lambda nnx, r: nnx.LinearGeneral(
        (2, 3), 5, axis=(-2, -1), dtype=jnp.bfloat16, rngs=r
    ),
    "einsum": lambda nnx, r: nnx.Einsum("nta,hab->nthb", (5, 3, 2), (5, 2), rngs=r),
    "einsum-dots": lambda nnx, r: nnx.Einsum("...a,ab->...b", (3, 2), (2,), rngs=r),
}


@pytest.mark.parametrize("build", CASES.values(), ids=CASES)
def test_same_seed_same_layer(build) -> None:
    theirs, ours = build(flax.nnx, flax.nnx.Rngs(3)), build(moduli, moduli.Rngs(3))
    np.testing.assert_array_equal(ours.kernel, theirs.kernel[...])
    assert ours.bias.shape == theirs.bias.shape
    ours.bias.value = jnp.arange(ours.bias.size, dtype=float).reshape(ours.bias.shape)
    theirs.bias.set_value(ours.bias.value)
    assert ours(X).dtype == theirs(X).dtype
    np.testing.assert_allclose(ours(X), theirs(X), rtol=1e-6)


def test_embed() -> None:
    theirs = flax.nnx.Embed(7, 4, rngs=flax.nnx.Rngs(3))
    ours = moduli.Embed(7, 4, rngs=moduli.Rngs(3))
    np.testing.assert_array_equal(ours.embedding, theirs.embedding[...])
    index = jnp.array([[0, 6, 3], [-1, -7, 7]])
    np.testing.assert_array_equal(ours(index), theirs(index))  # NaN for 7 in both
    np.testing.assert_allclose(ours.attend(ours(index[0])), theirs.attend(theirs(index[0])))
