"""Activations: closed forms in float64, and flax.nnx's names."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special as special

import moduli_layers as layers

X = np.linspace(-7, 7, 57)


def sigmoid(x: np.ndarray) -> np.ndarray:
    """The logistic function."""
    return 1 / (1 + np.exp(-x))


ALPHA, LAMBDA = 1.6732632423543772, 1.0507009873554805  # of self-normalising networks
FORMS: dict[str, Any] = {
    "relu": lambda x: np.maximum(x, 0),
    "relu6": lambda x: np.clip(x, 0, 6),
    "identity": lambda x: x,
    "sigmoid": sigmoid,
    "log_sigmoid": lambda x: np.log(sigmoid(x)),
    "silu": lambda x: x * sigmoid(x),
    "swish": lambda x: x * sigmoid(x),
    "tanh": np.tanh,
    "softplus": lambda x: np.log1p(np.exp(x)),
    "soft_sign": lambda x: x / (1 + np.abs(x)),
    "elu": lambda x: np.where(x > 0, x, np.expm1(x)),
    "celu": lambda x: np.where(x > 0, x, np.expm1(x)),
    "selu": lambda x: LAMBDA * np.where(x > 0, x, ALPHA * np.expm1(x)),
    "leaky_relu": lambda x: np.where(x > 0, x, 0.01 * x),
    "hard_tanh": lambda x: np.clip(x, -1, 1),
    "hard_sigmoid": lambda x: np.clip(x + 3, 0, 6) / 6,
    "hard_silu": lambda x: x * np.clip(x + 3, 0, 6) / 6,
    "hard_swish": lambda x: x * np.clip(x + 3, 0, 6) / 6,
    "gelu": lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    "mish": lambda x: x * np.tanh(np.log1p(np.exp(x))),
    "squareplus": lambda x: (x + np.sqrt(x**2 + 4)) / 2,
    "softmax": special.softmax,
    "log_softmax": special.log_softmax,
    "logsumexp": special.logsumexp,
    "standardize": lambda x: (x - x.mean()) / np.sqrt(x.var() + 1e-5),
}


@pytest.mark.parametrize("name", FORMS)
def test_equals_the_closed_form(name: str) -> None:
    outputs = getattr(layers, name)(jnp.asarray(X, jnp.float32))
    np.testing.assert_allclose(outputs, FORMS[name](X), rtol=2e-5, atol=2e-6)


SMOOTH = ["sigmoid", "log_sigmoid", "silu", "tanh", "softplus", "elu", "selu", "gelu", "mish"]


@pytest.mark.parametrize("name", SMOOTH)
def test_gradient_equals_finite_differences_of_the_closed_form(name: str) -> None:
    grads = jax.vmap(jax.grad(getattr(layers, name)))(jnp.asarray(X + 0.01, jnp.float32))
    form, step = FORMS[name], 1e-5
    expected = (form(X + 0.01 + step) - form(X + 0.01 - step)) / (2 * step)
    np.testing.assert_allclose(grads, expected, rtol=1e-4, atol=1e-5)


def test_functions_with_arguments() -> None:
    x = jnp.asarray(X[:56].reshape(7, 8), jnp.float32)
    half = X[:56].reshape(7, 8)
    np.testing.assert_allclose(layers.glu(x), half[:, :4] * sigmoid(half[:, 4:]), rtol=1e-5)
    np.testing.assert_allclose(
        layers.gelu(x, approximate=False),
        half * 0.5 * (1 + special.erf(half / np.sqrt(2))),
        rtol=1e-5,
        atol=1e-6,
    )
    np.testing.assert_allclose(layers.softmax(x, axis=0), special.softmax(half, axis=0), rtol=1e-5)
    np.testing.assert_allclose(
        layers.leaky_relu(x, 0.3), np.where(half > 0, half, 0.3 * half), rtol=1e-6
    )
    np.testing.assert_array_equal(
        layers.one_hot(jnp.array([2, 0, 5]), 3), [[0, 0, 1], [1, 0, 0], [0, 0, 0]]
    )


def test_every_activation_of_flax_is_here(flax_nnx: Any) -> None:
    from flax.nnx.nn import activations

    theirs = {name for name in activations.__all__ if name[0].islower()}
    missing = {name for name in theirs if not hasattr(layers, name)}
    assert missing == set()
    for name in theirs & FORMS.keys():
        x = jnp.asarray(X, jnp.float32)
        np.testing.assert_array_equal(getattr(layers, name)(x), getattr(flax_nnx, name)(x))
