"""What the table of layers cannot say about ConvTranspose."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import moduli
from moduli.errors import ShapeError
from moduli_layers import Conv, ConvTranspose
from moduli_layers.errors import ArgumentError


@pytest.mark.parametrize(
    ("size", "stride", "dilation"), [(3, 1, 1), (3, 2, 1), (4, 2, 1), (3, 1, 2)]
)
def test_with_a_convs_kernel_it_is_the_convs_transpose(size, stride, dilation) -> None:
    """Checked by <conv(x), y> = <x, transpose(y)>, which defines the transpose."""
    options = {"kernel_dilation": dilation, "padding": "VALID", "use_bias": False}
    conv = Conv(2, 3, (size,), stride, **options, rngs=moduli.Rngs(0))
    transpose = ConvTranspose(
        3, 2, (size,), stride, transpose_kernel=True, **options, rngs=moduli.Rngs(1)
    )
    transpose.kernel = conv.kernel
    keys = jax.random.split(jax.random.key(0))
    length = 3 * stride + dilation * (size - 1) + 1
    x = jax.random.normal(keys[0], (1, length, 2))
    y = jax.random.normal(keys[1], conv(x).shape)
    assert transpose(y).shape == x.shape
    np.testing.assert_allclose(jnp.sum(conv(x) * y), jnp.sum(x * transpose(y)), rtol=1e-5)


def test_circular_commutes_with_rolling() -> None:
    layer = ConvTranspose(2, 3, (5,), (2,), padding="CIRCULAR", rngs=moduli.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (1, 6, 2))
    np.testing.assert_allclose(
        layer(jnp.roll(x, 1, 1)), jnp.roll(layer(x), 2, 1), rtol=1e-5, atol=1e-6
    )


def test_causal_outputs_depend_on_no_later_input() -> None:
    layer = ConvTranspose(1, 1, 4, 2, padding="CAUSAL", rngs=moduli.Rngs(0))
    jacobian = jax.jacobian(lambda x: layer(x[:, None])[:, 0])(jnp.ones(5))
    seen = np.asarray(jacobian) != 0
    assert not any(seen[t, i] for t in range(10) for i in range(5) if 2 * i > t)
    assert all(seen[2 * i, i] for i in range(5))


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (
            (0, 3, 2),
            {},
            ArgumentError,
            "ConvTranspose got in_features=0; write a size of at least 1",
        ),
        (
            (2, 3, (2, 2)),
            {"padding": "CAUSAL"},
            ArgumentError,
            "ConvTranspose got padding='CAUSAL' and kernel_size=(2, 2), but only one dimension has "
            "a past; write the padding as pairs (before, after)",
        ),
        (
            (2, 3, 2),
            {"padding": "REFLECT"},
            ArgumentError,
            "ConvTranspose got padding='REFLECT'; write one of 'SAME', 'VALID', 'CIRCULAR', "
            "'CAUSAL', an int, or 1 entries (the window has 1 dimensions) which are each an int or "
            "a pair (before, after)",
        ),
        (
            (2, 3, 2),
            {"mask": np.ones((2, 3, 2)), "transpose_kernel": False},
            ShapeError,
            "ConvTranspose got a mask of shape (2, 3, 2), expected the kernel's shape (2, 2, 3); "
            "broadcast the mask to it first",
        ),
        (
            (2, 3, 2, 0),
            {},
            ArgumentError,
            "ConvTranspose has a window of 1 dimensions and got strides=0; write one number for "
            "all dimensions or one for each, as strides=(1,), all at least 1",
        ),
    ],
)
def test_wrong_arguments_are_refused(arguments, options, error, message) -> None:
    with pytest.raises(error) as caught:
        ConvTranspose(*arguments, **options, rngs=moduli.Rngs(0))
    assert str(caught.value) == message


def test_too_few_axes_are_refused() -> None:
    layer = ConvTranspose(2, 3, (2, 2), rngs=moduli.Rngs(0))
    with pytest.raises(ShapeError) as caught:
        layer(jnp.ones((4, 2)))
    assert str(caught.value) == (
        "ConvTranspose(kernel_size=(2, 2)) expects inputs of shape (*batch, *spatial, features) "
        "with 2 spatial axes, got shape (4, 2); write a kernel_size with one entry for each "
        "spatial axis of the inputs"
    )


def test_nothing_left_is_refused() -> None:
    layer = ConvTranspose(2, 3, 5, padding=0, rngs=moduli.Rngs(0))
    with pytest.raises(ShapeError, match="its window does not fit once"):
        layer(jnp.ones((1, 2, 2)))


def test_padding_without_a_torch_counterpart() -> None:
    for padding, strides in (("SAME", 2), ("CAUSAL", 1), ("CIRCULAR", 1), ([(2, 0)], 1)):
        layer = ConvTranspose(2, 3, (3,), strides, padding=padding, rngs=moduli.Rngs(0))
        assert layer.torch_counterpart is None
    layer = ConvTranspose(2, 3, (3,), padding=[(1, 1)], rngs=moduli.Rngs(0))
    assert layer.torch_counterpart.name == "torch.nn.ConvTranspose1d"
