"""What the table of layers cannot say about StochasticDepth."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import moduli
from moduli.errors import RngError, ShapeError
from moduli_layers import Dropout, StochasticDepth
from moduli_layers.errors import ArgumentError


def test_the_share_of_dropped_samples_and_the_mean() -> None:
    drop = StochasticDepth(0.2, rngs=moduli.Rngs(0))
    kept = np.asarray(drop(jnp.ones((20000, 2))))
    assert (kept[:, 0] == kept[:, 1]).all()
    assert abs((kept[:, 0] == 0).mean() - 0.2) < 5 * (0.2 * 0.8 / 20000) ** 0.5
    np.testing.assert_allclose(np.unique(kept), [0, 1.25], rtol=1e-6)


def test_batch_decides_once_and_anew_each_call() -> None:
    drop = StochasticDepth(0.5, "batch", rngs=moduli.Rngs(0))
    seen = [np.unique(drop(jnp.ones((7, 2)))).tolist() for _ in range(40)]
    assert {tuple(values) for values in seen} == {(0.0,), (2.0,)}
    assert drop(jnp.ones(())).shape == ()


def test_certain_rates_need_no_stream_and_keep_gradients_finite() -> None:
    x = jnp.ones((3, 2))
    np.testing.assert_array_equal(StochasticDepth(0)(x), x)
    grads = jax.grad(lambda x: StochasticDepth(1.0)(x).sum())(x)
    np.testing.assert_array_equal(grads, np.zeros((3, 2)))


def test_the_stream_is_the_layers_own() -> None:
    rngs = moduli.Rngs(0)
    first, second = StochasticDepth(0.5, rngs=rngs), StochasticDepth(0.5, rngs=rngs)
    x = jnp.ones((64, 1))
    assert (first(x) != second(x)).any()
    alone = StochasticDepth(0.5, rngs=moduli.Rngs(0))
    alone(x), alone(x)
    np.testing.assert_array_equal(alone(x), [first(x), first(x)][1])


def test_a_mask_as_of_dropout_over_all_axes_but_the_first() -> None:
    x = jnp.asarray(np.random.default_rng(0).normal(size=(9, 4, 3)), jnp.float32)
    drop = StochasticDepth(0.4, rngs=moduli.Rngs(2))
    dropout = Dropout(0.4, broadcast_dims=(1, 2), rngs=moduli.Rngs(2))
    np.testing.assert_array_equal(drop(x), dropout(x))


def test_calls_decide_over_layers() -> None:
    drop, x = StochasticDepth(0.5, deterministic=None), jnp.ones((8, 2))
    np.testing.assert_array_equal(drop(x, deterministic=True), x)
    by_key = drop(x, deterministic=False, rngs=jax.random.key(0))
    other = StochasticDepth(0.5, rngs=moduli.Rngs(9))(x, rngs=jax.random.key(0))
    np.testing.assert_array_equal(by_key, other)
    with pytest.raises(ArgumentError, match="StochasticDepth does not know whether to train"):
        drop(x)
    with pytest.raises(RngError) as caught:
        drop(x, deterministic=False)
    assert str(caught.value).startswith(
        "StochasticDepth(rate=0.5) has to drop a sample and got no rngs; write StochasticDepth("
        "0.5, rngs=moduli.Rngs(0)), or pass rngs=... to the call"
    )


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ArgumentError) as caught:
        StochasticDepth(1.5)
    assert str(caught.value) == (
        "StochasticDepth got rate=1.5; write the probability to drop a sample, in [0, 1]"
    )
    with pytest.raises(ArgumentError, match=r"StochasticDepth got mode='rows'; write mode='row'"):
        StochasticDepth(0.5, "rows")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ShapeError, match=r"\(batch, \.\.\.\), got shape \(\); write mode='batch'"):
        StochasticDepth(0.5, rngs=moduli.Rngs(0))(1.0)
