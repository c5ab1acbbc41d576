"""BatchNorm: equal to flax.nnx from equal seeds; statistics over masks and mapped axes."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import moduli
from moduli.errors import ShapeError
from moduli_layers import BatchNorm, Linear, initializers
from moduli_layers.errors import ArgumentError, DtypeError

X = np.random.default_rng(0).normal(1.0, 2.0, (6, 5, 3)).astype(np.float32)

OPTIONS: list[dict[str, Any]] = [
    {},
    {"momentum": 0.5, "epsilon": 0.1},
    {"axis": 1},
    {"use_scale": False},
    {"use_bias": False, "scale_init": initializers.normal(1.0)},
    {"scale_init": initializers.normal(1.0), "bias_init": initializers.normal(1.0)},
    {"use_fast_variance": False},
    {"param_dtype": jnp.bfloat16},
    {"dtype": jnp.bfloat16},
    {"use_running_average": True},
]


def batch_norm(features: int = 3, **options: Any) -> BatchNorm:
    """Builds a BatchNorm."""
    return BatchNorm(features, **options, rngs=moduli.Rngs(0))


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(options) or "defaults")
def test_equal_seeds_give_flax_parameters_outputs_and_statistics(
    flax_nnx: Any, options: dict[str, Any]
) -> None:
    features = X.shape[options.get("axis", -1)]
    theirs_rngs, ours_rngs = flax_nnx.Rngs(0, params=5), moduli.Rngs(0, params=5)
    theirs = flax_nnx.BatchNorm(features, **options, rngs=theirs_rngs)
    ours = BatchNorm(features, **options, rngs=ours_rngs)
    loose: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-5}
    if options.get("dtype") == jnp.bfloat16:
        loose: dict[str, Any] = {
            "rtol": 1e-2,
            "atol": 1e-2,
        }  # flax rounds the running statistics to bfloat16
    for name in ("scale", "bias"):
        if getattr(theirs, name) is None:
            assert getattr(ours, name) is None
        else:
            np.testing.assert_array_equal(getattr(ours, name).value, getattr(theirs, name)[...])
    for _ in range(3):
        theirs_out, ours_out = theirs(X), ours(X)
        assert ours_out.dtype == theirs_out.dtype
        np.testing.assert_allclose(
            np.asarray(ours_out, np.float32), np.asarray(theirs_out, np.float32), **loose
        )
    for name in ("mean", "var"):
        assert getattr(ours, name).dtype == getattr(theirs, name).dtype
        np.testing.assert_allclose(
            getattr(ours, name).value, getattr(theirs, name)[...], rtol=1e-5, atol=1e-6
        )
    np.testing.assert_allclose(
        np.asarray(ours(X, True), np.float32), np.asarray(theirs(X, True), np.float32), **loose
    )
    ours_next, theirs_next = ours_rngs.params(), theirs_rngs.params()  # as many keys were drawn
    np.testing.assert_array_equal(jax.random.key_data(ours_next), jax.random.key_data(theirs_next))


def test_running_statistics_follow_the_closed_form() -> None:
    layer = batch_norm(momentum=0.75)
    for _ in range(4):
        layer(X)
    kept = 0.75**4
    flat = X.reshape(-1, 3).astype(np.float64)
    np.testing.assert_allclose(layer.mean.value, (1 - kept) * flat.mean(0), rtol=1e-5)
    np.testing.assert_allclose(layer.var.value, kept + (1 - kept) * flat.var(0), rtol=1e-5)


def test_the_call_overrides_the_attribute() -> None:
    layer = batch_norm(use_running_average=True)
    np.testing.assert_allclose(layer(X), X / np.sqrt(1 + 1e-5), rtol=1e-5)
    assert float(jnp.abs(layer(X, use_running_average=False).mean())) < 1e-6
    assert (np.asarray(layer.mean.value) != 0).all()


def test_no_mode_is_an_error_that_names_both_ways_out() -> None:
    layer = batch_norm(use_running_average=None)
    with pytest.raises(ArgumentError, match=r"BatchNorm.*use_running_average is None.*model\.eval"):
        layer(X)
    layer.eval()
    assert layer(X).shape == X.shape


@pytest.mark.parametrize("fast", [True, False])
def test_masked_entries_do_not_count(fast: bool) -> None:
    mask = np.array([True, True, False, True, False, False])[:, None, None]
    spoiled = np.where(mask, X, np.nan)
    layer = batch_norm(momentum=0.0, use_fast_variance=fast)
    outputs = layer(jnp.asarray(spoiled), mask=jnp.asarray(mask))
    real = X[mask[:, 0, 0]].astype(np.float64)
    flat = real.reshape(-1, 3)
    np.testing.assert_allclose(layer.mean.value, flat.mean(0), rtol=1e-5)
    np.testing.assert_allclose(layer.var.value, flat.var(0), rtol=1e-5)
    expected = (real - flat.mean(0)) / np.sqrt(flat.var(0) + 1e-5)
    np.testing.assert_allclose(np.asarray(outputs)[mask[:, 0, 0]], expected, rtol=1e-4, atol=1e-5)


def test_masked_equals_flax(flax_nnx: Any) -> None:
    mask = np.random.default_rng(1).random((6, 5, 1)) < 0.6
    theirs, ours = flax_nnx.BatchNorm(3, rngs=flax_nnx.Rngs(0)), batch_norm()
    np.testing.assert_allclose(
        ours(X, mask=mask), theirs(X, mask=jnp.asarray(mask)), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(ours.var.value, theirs.var[...], rtol=1e-5)


def test_a_mask_that_hides_everything_changes_no_statistic() -> None:
    layer = batch_norm()
    layer(X)
    before = np.asarray(layer.mean.value), np.asarray(layer.var.value)
    outputs = layer(X, mask=jnp.zeros((6, 1, 1), bool))
    assert np.isfinite(outputs).all()
    np.testing.assert_array_equal(layer.mean.value, before[0])
    np.testing.assert_array_equal(layer.var.value, before[1])


def mapped(layer: BatchNorm, batches: np.ndarray, masks: np.ndarray | None = None) -> Any:
    """Calls a layer under ``vmap`` with the axis name "devices"; returns output and statistics."""
    graphdef, state = moduli.split(layer)

    def call(x: Any, mask: Any) -> Any:
        model = moduli.merge(graphdef, state, copy=True)
        y = model(x, mask=mask)
        return y, model.mean.value, model.var.value

    in_axes = (0, None if masks is None else 0)
    return jax.vmap(call, in_axes=in_axes, axis_name="devices")(batches, masks)


@pytest.mark.parametrize("fast", [True, False])
def test_axis_name_combines_the_batches(fast: bool) -> None:
    whole = batch_norm(momentum=0.5, use_fast_variance=fast)
    expected = whole(X)
    layer = batch_norm(momentum=0.5, use_fast_variance=fast, axis_name="devices")
    outputs, mean, var = mapped(layer, X.reshape(3, 2, 5, 3))
    np.testing.assert_allclose(outputs.reshape(X.shape), expected, rtol=1e-4, atol=1e-5)
    for each_mean, each_var in zip(mean, var, strict=True):
        np.testing.assert_allclose(each_mean, whole.mean.value, rtol=1e-5)
        np.testing.assert_allclose(each_var, whole.var.value, rtol=1e-5)


def test_axis_name_weighs_masked_batches_by_what_counts() -> None:
    mask = np.array([True, True, True, False, False, False])[:, None, None]
    whole = batch_norm(momentum=0.5)
    whole(X, mask=jnp.asarray(mask))
    layer = batch_norm(momentum=0.5, axis_name="devices")
    _, mean, var = mapped(layer, X.reshape(3, 2, 5, 3), mask.reshape(3, 2, 1, 1))
    np.testing.assert_allclose(mean, np.tile(whole.mean.value, (3, 1)), rtol=1e-5)
    np.testing.assert_allclose(var, np.tile(whole.var.value, (3, 1)), rtol=1e-5)


def test_fast_variance_of_large_constant_data_is_not_negative() -> None:
    constant = jnp.full((8, 3), 1e4) + jnp.array([0.0, 1e-3, 0.0])
    outputs = batch_norm(epsilon=1e-5)(constant)
    assert np.isfinite(outputs).all()


def test_exact_variance_is_exact_far_from_zero() -> None:
    x = 1000 + np.random.default_rng(0).normal(size=(64, 3))
    exact = batch_norm(momentum=0.0, use_fast_variance=False)
    exact(jnp.asarray(x, jnp.float32))
    stored = np.asarray(jnp.asarray(x, jnp.float32), np.float64)
    np.testing.assert_allclose(exact.var.value, stored.var(0), rtol=1e-4)


def test_no_gradient_flows_through_the_running_statistics() -> None:
    layer = batch_norm(momentum=0.5)

    def loss(x: jax.Array) -> jax.Array:
        model = moduli.clone(layer)
        model(x)
        return jnp.sum(model(jnp.ones((2, 3)), True))

    np.testing.assert_array_equal(jax.grad(loss)(X), np.zeros_like(X))


def test_statistics_are_written_under_grad() -> None:
    layer = batch_norm(momentum=0.0)
    moduli.grad(lambda model: jnp.sum(model(X) ** 3))(layer)
    np.testing.assert_allclose(layer.mean.value, X.reshape(-1, 3).mean(0), rtol=1e-5)


def test_a_frozen_layer_stays_frozen_in_train() -> None:
    class Block(moduli.Module):
        def __init__(self) -> None:
            self.linear = Linear(3, 3, rngs=moduli.Rngs(0))
            self.norm = batch_norm()

        def __call__(self, x: Any) -> jax.Array:
            return self.norm(self.linear(x))

    block = Block()
    block.eval()
    block.freeze_mode(BatchNorm)
    block.train()
    block(X)
    np.testing.assert_array_equal(block.norm.mean.value, np.zeros(3))
    block.unfreeze_mode()
    block.train()
    block(X)
    assert (np.asarray(block.norm.mean.value) != 0).all()


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: batch_norm(4)(X), ShapeError, r"BatchNorm\(num_features=4\).*\(6, 5, 3\)"),
        (lambda: batch_norm(3, axis=1)(X), ShapeError, "size 3 on axis 1"),
        (lambda: batch_norm(3, axis=5)(X), ShapeError, "axis 5"),
        (lambda: batch_norm(3)(X[:0]), ShapeError, r"at least one entry.*\(0, 5, 3\)"),
        (lambda: batch_norm(3)(X, mask=jnp.ones((6,), bool)), ShapeError, r"\(6, 5, 3\).*\(6,\)"),
        (
            lambda: batch_norm(3)(X, mask=jnp.ones((6, 1, 1), jnp.float32)),
            DtypeError,
            "boolean mask, got float32",
        ),
        (lambda: batch_norm(0), ArgumentError, "num_features=0"),
    ],
)
def test_errors_name_the_layer_and_what_was_given(call: Any, error: Any, text: str) -> None:
    with pytest.raises(error, match=text) as caught:
        call()
    assert "BatchNorm" in str(caught.value)


def test_an_empty_batch_evaluates() -> None:
    assert batch_norm(3)(X[:0], True).shape == (0, 5, 3)
