"""Initializers: flax.nnx's names and numbers, and the moments that they promise."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moduli_layers import initializers

KEY = jax.random.key(0)
VARIANCES = {
    "lecun_normal": 1 / 300,
    "lecun_uniform": 1 / 300,
    "he_normal": 2 / 300,
    "he_uniform": 2 / 300,
    "kaiming_normal": 2 / 300,
    "kaiming_uniform": 2 / 300,
    "glorot_normal": 2 / 700,
    "glorot_uniform": 2 / 700,
    "xavier_normal": 2 / 700,
    "xavier_uniform": 2 / 700,
}


@pytest.mark.parametrize("name", VARIANCES)
def test_variance_is_that_of_the_paper(name: str) -> None:
    weights = getattr(initializers, name)()(KEY, (300, 400), jnp.float32)
    assert float(weights.var()) == pytest.approx(VARIANCES[name], rel=0.02)
    assert abs(float(weights.mean())) < 3 * (VARIANCES[name] / weights.size) ** 0.5


def test_closed_forms() -> None:
    shape = (5, 5)
    np.testing.assert_array_equal(
        initializers.zeros_init()(KEY, shape, jnp.float32), np.zeros(shape)
    )
    np.testing.assert_array_equal(initializers.ones_init()(KEY, shape, jnp.float32), np.ones(shape))
    np.testing.assert_array_equal(initializers.zeros(KEY, shape, jnp.float32), np.zeros(shape))
    np.testing.assert_array_equal(initializers.ones(KEY, shape, jnp.float32), np.ones(shape))
    np.testing.assert_array_equal(
        initializers.constant(2.5)(KEY, shape, jnp.float32), np.full(shape, 2.5)
    )
    q = np.asarray(initializers.orthogonal()(KEY, shape, jnp.float32))
    np.testing.assert_allclose(q @ q.T, np.eye(5), atol=1e-5)
    delta = np.asarray(initializers.delta_orthogonal()(KEY, (3, 4, 4), jnp.float32))
    np.testing.assert_allclose(delta[1] @ delta[1].T, np.eye(4), atol=1e-5)
    assert not delta[[0, 2]].any()
    cut = np.asarray(initializers.truncated_normal(1.0)(KEY, (1000,), jnp.float32))
    assert np.abs(cut).max() <= 2


def test_every_initializer_of_flax_gives_the_same_numbers(flax_nnx: Any) -> None:
    names = {
        name
        for name in dir(flax_nnx.initializers)
        if name[0] != "_" and callable(getattr(flax_nnx.initializers, name))
    } - {"DtypeLikeInexact", "Initializer", "variance_scaling", "constant", "zeros", "ones"}
    assert {"lecun_normal", "zeros_init", "orthogonal"} <= names
    for name in sorted(names):
        shape = (3, 3, 3) if name == "delta_orthogonal" else (4, 3)
        ours = getattr(initializers, name)()(KEY, shape, jnp.float32)
        theirs = getattr(flax_nnx.initializers, name)()(KEY, shape, jnp.float32)
        np.testing.assert_array_equal(ours, theirs, err_msg=name)
