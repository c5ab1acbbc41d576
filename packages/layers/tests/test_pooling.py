"""Pooling: equal to flax.nnx and to windows taken by NumPy, with padding, and differentiable."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from moduli.errors import ShapeError
from moduli_layers import adaptive_avg_pool, avg_pool, max_pool, min_pool, pool
from moduli_layers.errors import ArgumentError

X = np.random.default_rng(0).normal(size=(2, 7, 6, 3)).astype(np.float32)

WINDOWS: list[tuple[tuple[int, ...], Any, Any]] = [
    ((2, 2), None, "VALID"),
    ((3, 2), (2, 1), "VALID"),
    ((3, 2), (2, 3), "SAME"),
    ((2, 2), (1, 1), "SAME"),
    ((3, 3), (2, 2), ((1, 2), (0, 1))),
]


def windows(window: Any, strides: Any, padding: Any, fill: float) -> np.ndarray:
    """Returns X's windows as an array (batch, rows, columns, features, window entries)."""
    strides = strides or (1, 1)
    if padding == "VALID":
        padding = ((0, 0), (0, 0))
    elif padding == "SAME":
        totals = [
            max((-(-n // s) - 1) * s + k - n, 0)
            for n, s, k in zip(X.shape[1:3], strides, window, strict=True)
        ]
        padding = [(t // 2, t - t // 2) for t in totals]
    padded = np.pad(X.astype(np.float64), [(0, 0), *padding, (0, 0)], constant_values=fill)
    views = np.lib.stride_tricks.sliding_window_view(padded, window, axis=(1, 2))
    return views[:, :: strides[0], :: strides[1]].reshape(
        *views[:, :: strides[0], :: strides[1]].shape[:4], -1
    )


@pytest.mark.parametrize(("window", "strides", "padding"), WINDOWS)
def test_pooling_equals_reducing_windows(window: Any, strides: Any, padding: Any) -> None:
    arguments = (window, strides, padding)
    np.testing.assert_allclose(
        max_pool(X, *arguments), windows(*arguments, fill=-np.inf).max(-1), rtol=1e-6
    )
    np.testing.assert_allclose(
        min_pool(X, *arguments), windows(*arguments, fill=np.inf).min(-1), rtol=1e-6
    )
    np.testing.assert_allclose(
        avg_pool(X, *arguments), windows(*arguments, fill=0).mean(-1), rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(
        avg_pool(X, *arguments, count_include_pad=False),
        np.nanmean(windows(*arguments, fill=np.nan), -1),
        rtol=1e-5,
        atol=1e-6,
    )
    np.testing.assert_allclose(
        pool(X, 0.0, lax.add, *arguments),
        windows(*arguments, fill=0).sum(-1),
        rtol=1e-5,
        atol=1e-5,
    )


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize(("window", "strides", "padding"), WINDOWS)
@pytest.mark.parametrize("name", ["avg_pool", "max_pool", "min_pool"])
def test_pooling_equals_flax(
    flax_nnx: Any, name: str, window: Any, strides: Any, padding: Any
) -> None:
    ours = {"avg_pool": avg_pool, "max_pool": max_pool, "min_pool": min_pool}[name]
    theirs = getattr(flax_nnx, name)
    for x in (X, X[0], (10 * X).astype(np.int32) - 100):
        ours_out, theirs_out = (
            ours(x, window, strides, padding),
            theirs(x, window, strides, padding),
        )
        assert ours_out.dtype == theirs_out.dtype
        np.testing.assert_allclose(ours_out, theirs_out, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(  # flax takes more batch axes only without explicit padding
        ours(X[None, None], window, strides, padding)[0, 0],
        theirs(X, window, strides, padding),
        rtol=1e-6,
        atol=1e-6,
    )


@pytest.mark.parametrize("function", [avg_pool, max_pool, min_pool])
@pytest.mark.parametrize("padding", ["SAME", "VALID"])
def test_gradients_under_jit_equal_finite_differences(function: Any, padding: str) -> None:
    weights = np.random.default_rng(1).normal(size=function(X, (3, 2), (2, 2), padding).shape)

    @jax.jit
    def loss(x: jax.Array) -> jax.Array:
        return jnp.sum(function(x, (3, 2), (2, 2), padding) * jnp.asarray(weights, jnp.float32))

    direction = np.random.default_rng(2).normal(size=X.shape).astype(np.float32)
    slope = float(np.vdot(jax.jit(jax.grad(loss))(X), direction))
    step = 1e-3
    numeric = (float(loss(X + step * direction)) - float(loss(X - step * direction))) / (2 * step)
    assert slope == pytest.approx(numeric, rel=2e-2, abs=2e-2)


def test_max_gradient_goes_to_the_maximum() -> None:
    x = jnp.arange(16.0).reshape(4, 4, 1)
    grads = jax.grad(lambda x: max_pool(x, (2, 2), (2, 2)).sum())(x)
    expected = np.zeros((4, 4))
    expected[1::2, 1::2] = 1
    np.testing.assert_array_equal(grads[..., 0], expected)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.int8, jnp.uint8, jnp.bool_])
def test_padding_never_wins_in_any_dtype(dtype: Any) -> None:
    x = jnp.asarray(np.array([[0], [1], [1]]), dtype)
    with jax.numpy_dtype_promotion("strict"):
        largest = max_pool(x, (3,), padding="SAME")
        smallest = min_pool(x, (3,), padding="SAME")
    assert largest.dtype == smallest.dtype == dtype
    np.testing.assert_array_equal(np.asarray(largest[:, 0], int), [1, 1, 1])
    np.testing.assert_array_equal(np.asarray(smallest[:, 0], int), [0, 0, 1])


def test_all_minus_infinity_stays() -> None:
    assert float(max_pool(jnp.full((2, 1), -jnp.inf), (2,))[0, 0]) == -np.inf


@pytest.mark.parametrize("count_include_pad", [True, False])
def test_low_precision_average_under_strict_promotion(count_include_pad: bool) -> None:
    with jax.numpy_dtype_promotion("strict"):
        out = avg_pool(jnp.ones((4, 1), jnp.bfloat16), (2,), None, "SAME", count_include_pad)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_array_equal(
        np.asarray(out[:, 0], float), [1, 1, 1, 0.5 if count_include_pad else 1]
    )


def test_ints_for_strides_and_padding_mean_all_dimensions() -> None:
    np.testing.assert_array_equal(
        max_pool(X, (3, 3), 2, 1), max_pool(X, (3, 3), (2, 2), ((1, 1), (1, 1)))
    )


@pytest.mark.parametrize("function", [avg_pool, max_pool, min_pool])
@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ((X[0, 0], (2, 2)), ShapeError, r"2 spatial axes, got shape \(6, 3\)"),
        ((X, (9, 2)), ShapeError, r"window_shape=\(9, 2\).*\(2, 7, 6, 3\).*does not fit"),
        ((X, 2), ArgumentError, r"window_shape=2; .*window_shape=\(2, 2\)"),
        ((X, (2, 2), (1,)), ArgumentError, r"strides=\(1,\)"),
        ((X, (2, 2), None, "CIRCULAR"), ArgumentError, "padding='CIRCULAR'; write one of 'SAME'"),
        ((X, (2, 0)), ArgumentError, r"window_shape=\(2, 0\)"),
    ],
)
def test_errors_name_the_function_and_what_was_given(
    function: Any, arguments: Any, error: Any, text: str
) -> None:
    with pytest.raises(error, match=text) as caught:
        function(*arguments)
    assert function.__name__ in str(caught.value)


@pytest.mark.parametrize(("length", "parts"), [(7, 5), (13, 9)])
def test_infinities_stay_in_the_uneven_windows_that_hold_them(length: int, parts: int) -> None:
    x = np.arange(float(length), dtype=np.float32)
    x[2], x[-1] = -np.inf, np.inf
    windows = [x[i * length // parts : -(-(i + 1) * length // parts)] for i in range(parts)]
    pooled = adaptive_avg_pool(x[:, None], (parts,))
    np.testing.assert_allclose(pooled.ravel(), [window.mean() for window in windows])


@pytest.mark.parametrize("include", [True, False])
def test_a_last_window_over_the_end_is_pytorchs(include):
    torch = pytest.importorskip("torch")
    functions = torch.nn.functional
    for size, window, stride, pad in itertools.product((5, 8), (2, 3), (1, 2, 3), (0, 1)):
        x = np.random.default_rng(size).normal(size=(2, size, size + 1, 3)).astype(np.float32)
        theirs, options = torch.tensor(x).permute(0, 3, 1, 2), {"ceil_mode": True}
        given = (theirs, window, stride, pad)
        mean = functions.avg_pool2d(*given, count_include_pad=include, **options)
        top = functions.max_pool2d(*given, **options)
        ours = (x, (window, window), stride, pad)
        for found, expected in [
            (avg_pool(*ours, count_include_pad=include, **options), mean),
            (max_pool(*ours, **options), top),
            (-min_pool(-x, *ours[1:], **options), top),
        ]:
            expected = expected.permute(0, 2, 3, 1).numpy()
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    same = avg_pool(x, (3, 3), 2, "SAME", count_include_pad=include)
    ceil = avg_pool(x, (3, 3), 2, "SAME", count_include_pad=include, ceil_mode=True)
    np.testing.assert_array_equal(same, ceil)
