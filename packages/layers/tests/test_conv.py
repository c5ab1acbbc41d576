"""Conv: equal to flax.nnx from equal seeds, and clear about what it cannot do.

That it computes a convolution in each of its options is in the table of layers.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

import moduli
from moduli.errors import ShapeError
from moduli_layers import Conv, Linear, initializers
from moduli_layers.errors import ArgumentError, DtypeError

OPTIONS: list[dict[str, Any]] = [
    {"kernel_size": (3, 3)},
    {"kernel_size": [2, 4], "strides": None},
    {"kernel_size": (2, 3), "strides": (2, 1), "padding": "VALID"},
    {"kernel_size": (2, 3), "strides": 2, "padding": "SAME_LOWER"},
    {"kernel_size": (4, 3), "padding": "CIRCULAR", "kernel_dilation": (1, 2)},
    {"kernel_size": (4, 3), "padding": "REFLECT", "strides": 2},
    {"kernel_size": 4, "padding": "CAUSAL", "kernel_dilation": 2, "strides": 2},
    {"kernel_size": (3, 3), "padding": (1, (0, 2)), "input_dilation": (1, 2)},
    {"kernel_size": (3, 3), "padding": 2, "feature_group_count": 2},
    {"kernel_size": (1, 1), "use_bias": False, "kernel_init": initializers.xavier_normal()},
    {"kernel_size": (3, 3), "bias_init": initializers.normal(1.0), "param_dtype": jnp.bfloat16},
    {"kernel_size": (3, 3), "dtype": jnp.bfloat16},
    {
        "kernel_size": 3,
        "mask": np.tri(3)[:, :2, None] * np.ones((3, 2, 6)),
        "feature_group_count": 2,
    },
]


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize(
    "options", OPTIONS, ids=lambda options: "-".join(f"{k}={v}" for k, v in options.items())[:60]
)
def test_equal_seeds_give_flax_weights_and_outputs(flax_nnx: Any, options: dict[str, Any]) -> None:
    x = jax.random.normal(jax.random.key(9), (2, 7, 8, 4))
    theirs_rngs, ours_rngs = flax_nnx.Rngs(0, params=5), moduli.Rngs(0, params=5)
    for _ in range(2):  # the second layer shows that the first drew as many keys
        theirs = flax_nnx.Conv(4, 6, **options, rngs=theirs_rngs)
        ours = Conv(4, 6, **options, rngs=ours_rngs)
        np.testing.assert_array_equal(ours.kernel.value, theirs.kernel[...])
        if options.get("use_bias", True):
            assert ours.bias is not None
            np.testing.assert_array_equal(ours.bias.value, theirs.bias[...])
        assert ours.kernel_shape == theirs.kernel_shape
        assert ours.kernel_size == theirs.kernel_size
        assert ours(x).dtype == theirs(x).dtype
        np.testing.assert_allclose(
            np.asarray(ours(x), np.float32), np.asarray(theirs(x), np.float32), rtol=1e-5, atol=1e-6
        )


def test_one_by_one_convolution_is_linear() -> None:
    conv = Conv(3, 4, (1, 1), rngs=moduli.Rngs(0))
    linear = Linear(3, 4, rngs=moduli.Rngs(1))
    linear.kernel.value = conv.kernel.value[0, 0]
    x = jax.random.normal(jax.random.key(0), (2, 5, 6, 3))
    np.testing.assert_allclose(conv(x), linear(x), rtol=1e-5, atol=1e-6)


def test_default_kernel_has_lecun_variance_of_its_group() -> None:
    layer = Conv(64, 128, (3, 3), feature_group_count=2, rngs=moduli.Rngs(0))
    assert float(jnp.var(layer.kernel.value)) == pytest.approx(1 / (32 * 9), rel=0.02)


def test_masked_weights_get_no_gradient() -> None:
    mask = np.zeros((3, 2, 4), bool)
    mask[1] = True
    layer = Conv(2, 4, 3, mask=mask, rngs=moduli.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (1, 6, 2))
    grads = moduli.grad(lambda model: jnp.sum(model(x) ** 2))(layer)
    grad = np.asarray(grads.kernel.value)
    assert (grad[~mask] == 0).all()
    assert (grad[mask] != 0).all()


def test_own_convolution_is_used() -> None:
    def doubled(*args: Any, **kwargs: Any) -> jax.Array:
        return 2 * jax.lax.conv_general_dilated(*args, **kwargs)

    plain = Conv(2, 3, 3, use_bias=False, rngs=moduli.Rngs(0))
    own = Conv(2, 3, 3, use_bias=False, conv_general_dilated=doubled, rngs=moduli.Rngs(0))
    x = jnp.ones((1, 5, 2))
    np.testing.assert_allclose(own(x), 2 * plain(x), rtol=1e-6)


def test_accumulates_in_the_preferred_dtype() -> None:
    layer = Conv(
        2, 3, 3, dtype=jnp.bfloat16, preferred_element_type=jnp.float32, rngs=moduli.Rngs(0)
    )
    with jax.numpy_dtype_promotion("strict"):
        assert layer(jnp.ones((1, 5, 2))).dtype == jnp.float32


def test_lists_are_configuration_not_data() -> None:
    layer = Conv(2, 3, [3, 3], [1, 2], padding=[1, (0, 1)], rngs=moduli.Rngs(0))
    assert layer.strides == (1, 2)
    assert layer.padding == (1, (0, 1))
    assert set(moduli.to_pure_dict(moduli.state(layer))) == {"kernel", "bias"}


def test_zero_images_give_zero_images() -> None:
    assert Conv(2, 3, (3, 3), rngs=moduli.Rngs(0))(jnp.ones((0, 5, 5, 2))).shape == (0, 5, 5, 3)


def test_out_sharding_lays_out_the_output() -> None:
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,))
    layer = Conv(2, 4, 3, use_bias=False, rngs=moduli.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (4, 5, 2))
    expected = layer(x)
    spec = PartitionSpec("data", None, None)
    with jax.set_mesh(mesh):
        layer.kernel.value = jax.device_put(layer.kernel.value, PartitionSpec(None, None, None))
        outputs = layer(jax.device_put(x, spec), spec)
        assert jax.typeof(outputs).sharding.spec == spec
        with pytest.raises(ArgumentError, match="one batch axis"):
            layer(x[0], spec)
    np.testing.assert_allclose(outputs, expected, rtol=1e-6)


def build(*args: Any, **kwargs: Any) -> Conv:
    """Builds a Conv of 4 to 6 features."""
    return Conv(4, 6, *args, **kwargs, rngs=moduli.Rngs(0))


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (
            lambda: build((3, 3))(jnp.ones((2, 8, 8, 3))),
            ShapeError,
            r"Conv\(in_features=4\).*\(2, 8, 8, 3\)",
        ),
        (
            lambda: build((3, 3))(jnp.ones((8, 4))),
            ShapeError,
            r"2 spatial axes, got shape \(8, 4\)",
        ),
        (
            lambda: build((5, 5), padding="VALID")(jnp.ones((1, 4, 9, 4))),
            ShapeError,
            r"kernel_size=\(5, 5\).*\(1, 4, 9, 4\).*does not fit",
        ),
        (
            lambda: build(3, mask=np.ones((3, 4))),
            ShapeError,
            r"mask of shape \(3, 4\).*\(3, 4, 6\)",
        ),
        (
            lambda: build((3, 3), feature_group_count=3),
            ArgumentError,
            "feature_group_count=3.*in_features=4",
        ),
        (lambda: build((3, 3), padding="CAUSAL"), ArgumentError, "only one dimension has a past"),
        (
            lambda: build((3, 3), padding="FULL"),
            ArgumentError,
            "padding='FULL'; write one of 'SAME'",
        ),
        (lambda: build((3, 3), padding=(1, 2, 3)), ArgumentError, "2 entries"),
        (lambda: build((3, 3), padding=((1, 2, 3), 1)), ArgumentError, "2 entries"),
        (lambda: build((3, 3), strides=(1, 2, 3)), ArgumentError, r"strides=\(1, 2, 3\)"),
        (lambda: build((3, 3), strides=0), ArgumentError, "strides=0.*at least 1"),
        (lambda: build((3, 0)), ArgumentError, r"kernel_size=\(3, 0\)"),
        (
            lambda: build(3, padding="CIRCULAR", input_dilation=2),
            ArgumentError,
            "no common meaning",
        ),
        (lambda: build(3, dtype=jnp.int8)(jnp.ones((1, 4, 4))), DtypeError, "Conv: got dtype=int8"),
    ],
)
def test_errors_name_the_layer_and_what_was_given(call: Any, error: Any, text: str) -> None:
    with pytest.raises(error, match=text) as caught:
        call()
    assert "Conv" in str(caught.value)
