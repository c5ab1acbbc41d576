"""LayerNorm, RMSNorm, GroupNorm, InstanceNorm: masks, far-off data, settings, refusals."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import moduli
from moduli.errors import RngError, ShapeError, StructureError
from moduli_layers import BatchNorm, GroupNorm, InstanceNorm, LayerNorm, RMSNorm
from moduli_layers.errors import ArgumentError, DtypeError

X = np.random.default_rng(0).normal(1.0, 2.0, (3, 6, 4)).astype(np.float32)
RNGS = moduli.Rngs(0)

EACH = [
    (lambda **k: LayerNorm(4, reduction_axes=(1, 2), **k, rngs=RNGS), (1, 2)),
    (lambda **k: RMSNorm(4, reduction_axes=(1, 2), **k, rngs=RNGS), (1, 2)),
    (lambda **k: GroupNorm(4, 1, **k, rngs=RNGS), (1, 2)),
    (lambda **k: InstanceNorm(4, **k, rngs=RNGS), (1,)),
]
each = pytest.mark.parametrize(
    ("build", "axes"), EACH, ids=["LayerNorm", "RMSNorm", "GroupNorm", "InstanceNorm"]
)
fast_or_not = pytest.mark.parametrize("fast", [True, False], ids=["fast", "exact"])


def by_definition(layer: Any, x: np.ndarray, axes: tuple[int, ...], mask: Any) -> np.ndarray:
    """Normalises by the entries that count, in float64."""
    x = x.astype(np.float64)
    where = np.broadcast_to(mask, x.shape)
    mean = np.mean(x, axes, keepdims=True, where=where)
    if isinstance(layer, RMSNorm):
        mean = 0.0
    var = np.mean((x - mean) ** 2, axes, keepdims=True, where=where)
    return (x - mean) / np.sqrt(var + layer.epsilon)


@each
@fast_or_not
def test_masked_entries_do_not_count(build: Any, axes: tuple[int, ...], fast: bool) -> None:
    layer = build(use_fast_variance=fast)
    mask = (np.arange(6) < 4)[:, None]  # broadcasts over examples and features
    expected = by_definition(layer, X, axes, mask)
    outputs = layer(X, mask=jnp.asarray(mask))
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-5)
    assert not np.allclose(outputs, layer(X), atol=1e-2)


@each
@fast_or_not
def test_nan_behind_a_mask_reaches_no_other_output(
    build: Any, axes: tuple[int, ...], fast: bool
) -> None:
    layer = build(use_fast_variance=fast)
    mask = jnp.asarray((np.arange(6) < 4)[None, :, None])
    outputs = layer(jnp.where(mask, X, jnp.nan), mask=mask)
    np.testing.assert_array_equal(outputs[:, :4], layer(jnp.asarray(X), mask=mask)[:, :4])


@each
def test_a_mask_that_hides_everything_gives_numbers(build: Any, axes: tuple[int, ...]) -> None:
    assert np.isfinite(build()(X, mask=jnp.zeros((1, 1, 1), bool))).all()


@each
def test_constant_inputs_give_numbers(build: Any, axes: tuple[int, ...]) -> None:
    layer = build()
    assert np.isfinite(layer(jnp.full(X.shape, 1e4, jnp.float32))).all()
    grads = jax.grad(lambda x: jnp.sum(layer(x)))(jnp.zeros(X.shape))
    assert np.isfinite(grads).all()


@each
def test_exact_variance_far_from_zero(build: Any, axes: tuple[int, ...]) -> None:
    layer = build(use_fast_variance=False)
    far = (X + 3000).astype(np.float32)
    expected = by_definition(layer, far, axes, True)
    np.testing.assert_allclose(layer(far), expected, rtol=2e-3, atol=2e-3)


@each
def test_half_precision_inputs_do_not_overflow(build: Any, axes: tuple[int, ...]) -> None:
    layer = build(dtype=jnp.float16)
    large = (X * 3000).astype(np.float16)  # squares are beyond float16
    outputs = layer(large)
    assert outputs.dtype == jnp.float16
    expected = by_definition(layer, large.astype(np.float64), axes, True)
    np.testing.assert_allclose(np.asarray(outputs, np.float64), expected, rtol=3e-3, atol=3e-3)


@each
def test_every_norm_says_that_it_is_one(build: Any, axes: tuple[int, ...]) -> None:
    assert type(build()).is_norm is True
    assert BatchNorm.is_norm is True


def test_special_cases_agree() -> None:
    layer = LayerNorm(4, reduction_axes=(1, 2), rngs=RNGS)
    np.testing.assert_allclose(GroupNorm(4, 1, rngs=RNGS)(X), layer(X), rtol=1e-4, atol=1e-5)
    instance = InstanceNorm(4, rngs=RNGS)
    np.testing.assert_allclose(GroupNorm(4, 4, rngs=RNGS)(X), instance(X), rtol=1e-4, atol=1e-5)


def test_lists_of_axes_are_structure_and_not_state() -> None:
    one = LayerNorm(4, reduction_axes=[1, 2], rngs=RNGS)
    assert moduli.graphdef(one) == moduli.graphdef(LayerNorm(4, reduction_axes=(1, 2), rngs=RNGS))
    assert one.reduction_axes == (1, 2)


def test_what_torch_has_no_layer_for() -> None:
    bias_alone = {"use_scale": False, "rngs": RNGS}
    assert LayerNorm(4, **bias_alone).torch_counterpart is None
    assert LayerNorm(4, reduction_axes=(1, 2), rngs=RNGS).torch_counterpart is None
    assert RMSNorm(4, feature_axes=1, rngs=RNGS).torch_counterpart is None
    assert GroupNorm(4, 2, **bias_alone).torch_counterpart is None
    assert InstanceNorm(4, use_bias=False, rngs=RNGS).torch_counterpart is None
    assert BatchNorm(4, use_bias=False, rngs=RNGS).torch_counterpart is None


def test_torch_settings_go_both_ways() -> None:
    norm = BatchNorm(4, momentum=0.75, rngs=RNGS).torch_counterpart
    assert norm is not None
    momentum: Any = norm.settings["momentum"]
    assert momentum.to_theirs(0.75) == 0.25
    assert momentum.to_ours(0.25) == 0.75
    with pytest.raises(StructureError, match="momentum=None averages all batches"):
        momentum.to_ours(None)
    rms = RMSNorm(4, rngs=RNGS).torch_counterpart
    assert rms is not None
    epsilon: Any = rms.settings["eps"]
    assert epsilon.to_ours(None) == np.finfo(np.float32).eps
    assert epsilon.to_ours(1e-3) == epsilon.to_theirs(1e-3) == 1e-3


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: LayerNorm(0, rngs=RNGS), ArgumentError, "LayerNorm got num_features=0"),
        (lambda: RMSNorm(4, rngs=None), RngError, "RMSNorm got rngs of type NoneType"),  # type: ignore
        (
            lambda: GroupNorm(6, 4, rngs=RNGS),
            ArgumentError,
            r"GroupNorm got num_groups=4, which does not divide num_features=6; write one of "
            r"1, 2, 3, 6$",
        ),
        (lambda: GroupNorm(6, None, 4, rngs=RNGS), ArgumentError, "group_size=4, which does not"),
        (lambda: GroupNorm(6, 0, rngs=RNGS), ArgumentError, "num_groups=0; write a size"),
        (
            lambda: GroupNorm(6, 2, 3, rngs=RNGS),
            ArgumentError,
            r"num_groups=2 and group_size=3; write one of them, as GroupNorm\(6, num_groups=",
        ),
        (lambda: GroupNorm(6, None, rngs=RNGS), ArgumentError, "num_groups=None and group_size=N"),
        (
            lambda: GroupNorm(4, 2, reduction_axes=(1,), rngs=RNGS)(X),
            ArgumentError,
            r"GroupNorm\(reduction_axes=\(1,\)\) leaves out the features' axis.*write -1 among",
        ),
        (
            lambda: InstanceNorm(3, feature_axes=0, rngs=RNGS)(X),
            ShapeError,
            r"InstanceNorm\(feature_axes=0\).*first axis is the batch's.*x\[None\]",
        ),
        (
            lambda: LayerNorm(4, rngs=RNGS)(X, mask=jnp.ones((6,), bool)),
            ShapeError,
            r"LayerNorm expects a mask.*\(3, 6, 4\), got shape \(6,\)",
        ),
        (
            lambda: GroupNorm(4, 2, rngs=RNGS)(X, mask=jnp.ones((6, 1), jnp.float32)),
            DtypeError,
            "GroupNorm expects a boolean mask, got float32; write mask=mask != 0",
        ),
        (
            lambda: RMSNorm(4, rngs=RNGS)(X.astype(jnp.bfloat16)),
            DtypeError,
            r"RMSNorm: inputs and parameters have the dtypes \(bfloat16, float32\)",
        ),
    ],
)
def test_errors_say_what_was_got_and_what_to_write(call: Any, error: Any, text: str) -> None:
    with jax.numpy_dtype_promotion("strict"), pytest.raises(error, match=text):
        call()
