"""Attention against flax.nnx: the same parameters from the same seed, the same outputs."""

from __future__ import annotations

import flax.nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import moduli

RNG = np.random.default_rng(0)
Q = RNG.normal(size=(2, 5, 8)).astype(np.float32)

CONFIGS = {
    "plain": {},
    "grouped": {"num_kv_heads": 2},
    "sizes": {"qkv_features": 16, "out_features": 5, "in_kv_features": 6},
    "normalize": {"normalize_qk": True, "qkv_features": 32},
    "no-bias": {"use_bias": False},
    "dropout": {"dropout_rate": 0.5},
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_same_seed_same_layer(config) -> None:
    theirs = flax.nnx.MultiHeadAttention(4, 8, decode=False, rngs=flax.nnx.Rngs(0), **config)
    ours = moduli.MultiHeadAttention(4, 8, decode=False, rngs=moduli.Rngs(0), **config)
    jax.tree.map(
        np.testing.assert_array_equal,
        moduli.to_pure_dict(moduli.state(ours, moduli.Param)),
        flax.nnx.to_pure_dict(flax.nnx.state(theirs, flax.nnx.Param)),
    )
    k = RNG.normal(size=(2, 7, config.get("in_kv_features", 8))).astype(np.float32)
    mask = RNG.random((2, 1, 5, 7)) > 0.4
    for options in ({"deterministic": True}, {"deterministic": True, "mask": mask}):
        np.testing.assert_allclose(
            ours(Q, k, **options), theirs(Q, k, **options), rtol=1e-4, atol=1e-5
        )
    for _ in range(2):  # the same masks of dropout, one after the other
        np.testing.assert_allclose(
            ours(Q, k, deterministic=False), theirs(Q, k, deterministic=False), rtol=1e-4, atol=1e-5
        )


def test_decoding() -> None:
    theirs = flax.nnx.MultiHeadAttention(4, 8, decode=True, rngs=flax.nnx.Rngs(0))
    ours = moduli.MultiHeadAttention(4, 8, decode=True, rngs=moduli.Rngs(0))
    for layer in (theirs, ours):
        layer.init_cache(Q.shape)
    for i in range(5):
        piece = Q[:, i : i + 1]
        np.testing.assert_allclose(ours(piece), theirs(piece), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(ours.cached_key, theirs.cached_key[...], rtol=1e-5, atol=1e-6)
    assert ours.cached_value.shape == theirs.cached_value[...].shape
    assert int(ours.cache_index) == int(theirs.cache_index[...]) == 5


def test_sown_weights() -> None:
    theirs = flax.nnx.MultiHeadAttention(4, 8, decode=False, rngs=flax.nnx.Rngs(0))
    ours = moduli.MultiHeadAttention(4, 8, decode=False, rngs=moduli.Rngs(0))
    ours(Q, sow_weights=True)
    theirs(Q, sow_weights=True)
    (weights,) = ours.attention_weights.value
    np.testing.assert_allclose(
        weights, theirs.attention_weights.get_value()[0], rtol=1e-4, atol=1e-6
    )
    moduli.pop(ours, moduli.Intermediate)


@pytest.mark.parametrize("name", ["make_causal_mask", "make_attention_mask", "combine_masks"])
def test_masks(name) -> None:
    ones = jnp.array([[1, 1, 1, 0], [1, 1, 0, 0]])
    arguments = {"make_causal_mask": (ones,)}.get(name, (ones, ones[:, ::-1]))
    ours, theirs = (getattr(library, name)(*arguments) for library in (moduli, flax.nnx))
    assert ours.dtype == theirs.dtype
    np.testing.assert_array_equal(ours, theirs)
