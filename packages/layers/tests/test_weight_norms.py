"""SpectralNorm and WeightNorm: what is written when, under which transform, and refusals."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import moduli
from moduli.errors import RngError, ShapeError, StructureError
from moduli_layers import (
    BatchNorm,
    Conv,
    DtypePolicy,
    Linear,
    Sequential,
    SpectralNorm,
    WeightNorm,
    initializers,
    set_dtypes,
)
from moduli_layers.errors import ArgumentError

X = jnp.asarray(np.random.default_rng(0).normal(size=(5, 3)), jnp.float32)


def spectral(**options: Any) -> Any:
    """Wraps a Linear."""
    rngs = moduli.Rngs(0)
    return SpectralNorm(Linear(3, 4, rngs=rngs), **options, rngs=rngs)


def weight(**options: Any) -> Any:
    """Wraps a Linear."""
    rngs = moduli.Rngs(0)
    return WeightNorm(Linear(3, 4, rngs=rngs), **options, rngs=rngs)


def numbers(model: Any) -> dict[Any, np.ndarray]:
    """Returns a model's arrays by path."""
    return {p: np.asarray(v[...]) for p, v in moduli.to_flat_state(moduli.state(model)).items()}


def assert_equal(one: Any, other: Any, **close: float) -> None:
    """Checks that two models hold the same."""
    mine, its = numbers(one), numbers(other)
    assert mine.keys() == its.keys()
    for path, array in mine.items():
        np.testing.assert_allclose(array, its[path], err_msg=str(path), **close)


each = pytest.mark.parametrize("build", [spectral, weight])


@each
def test_what_a_call_writes_is_seen_after_jit_grad_and_scan(build: Any) -> None:
    eager = build()
    start = build()
    for _ in range(3):
        eager(X)
    assert not np.allclose(eager.layer_instance.kernel.value, start.layer_instance.kernel.value)

    jitted = build()
    call = moduli.jit(lambda model, x: model(x))
    for _ in range(3):
        call(jitted, X)
    assert_equal(jitted, eager, rtol=1e-5, atol=1e-6)

    differentiated = build()
    for _ in range(3):
        moduli.grad(lambda model: jnp.sum(model(X)))(differentiated)
    assert_equal(differentiated, eager, rtol=1e-5, atol=1e-6)

    scanned = build()
    moduli.scan(lambda model, x: model(x), in_axes=(None, 0), out_axes=0)(
        scanned, jnp.stack([X] * 3)
    )
    assert_equal(scanned, eager, rtol=1e-5, atol=1e-6)


@each
def test_evaluation_writes_nothing(build: Any) -> None:
    layer = build()
    layer.eval()
    before = {p: v[...] for p, v in moduli.to_flat_state(moduli.state(layer)).items()}
    layer(X)
    for path, variable in moduli.to_flat_state(moduli.state(layer)).items():
        assert variable[...] is before[path]


@each
def test_an_error_in_the_layer_changes_nothing(build: Any) -> None:
    layer = build()
    before = {p: v[...] for p, v in moduli.to_flat_state(moduli.state(layer)).items()}
    with pytest.raises(ShapeError, match=r"Linear\(in_features=3\)"):
        layer(jnp.ones((5, 2)))
    for path, variable in moduli.to_flat_state(moduli.state(layer)).items():
        assert variable[...] is before[path]


def test_spectral_norm_of_the_kept_weights_becomes_one() -> None:
    layer = spectral()
    largest = np.linalg.norm(np.asarray(layer.layer_instance.kernel.value), 2)
    for _ in range(40):
        layer(X)
    np.testing.assert_allclose(np.linalg.norm(layer.layer_instance.kernel.value, 2), 1, rtol=1e-4)
    assert layer.batch_stats["kernel", "u"].shape == (1, 4)
    np.testing.assert_allclose(layer.batch_stats["kernel", "sigma"].value, 1, rtol=1e-4)
    other = spectral(n_steps=40)
    other(X)
    np.testing.assert_allclose(other.batch_stats["kernel", "sigma"].value, largest, rtol=1e-4)


def test_no_gradient_flows_through_the_power_iteration() -> None:
    layer = spectral(n_steps=1)
    kernel, u = layer.layer_instance.kernel.value, layer.batch_stats["kernel", "u"].value
    v = u @ kernel.T
    v = v / jnp.linalg.norm(v)
    u = v @ kernel
    u = u / jnp.linalg.norm(u)

    def by_hand(kernel: jax.Array) -> jax.Array:
        return jnp.sum(jnp.sin(X @ (kernel / (v @ kernel @ u.T)[0, 0])))

    grads = moduli.grad(lambda model: jnp.sum(jnp.sin(model(X))))(layer)
    np.testing.assert_allclose(
        grads["layer_instance"]["kernel"][...], jax.grad(by_hand)(kernel), rtol=1e-4, atol=1e-5
    )


def test_zero_weights_stay_zero() -> None:
    for layer in (spectral(), weight()):
        layer.layer_instance.kernel.value = jnp.zeros((3, 4))
        np.testing.assert_array_equal(layer(X), np.zeros((5, 4)))
        grads = moduli.grad(lambda model: jnp.sum(model(X)))(layer)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


def test_only_matrices_are_divided() -> None:
    rngs = moduli.Rngs(0)
    inner = Sequential(Linear(3, 4, rngs=rngs), BatchNorm(4, rngs=rngs), Linear(4, 2, rngs=rngs))
    layer = SpectralNorm(inner, n_steps=30, rngs=rngs)
    assert set(layer.batch_stats) == {
        ("layers", i, "kernel", name) for i in (0, 2) for name in ("u", "sigma")
    }
    scale = inner.layers[1].scale.value
    layer(X)
    assert inner.layers[1].scale.value is scale
    assert (np.asarray(inner.layers[1].mean.value) != 0).all()
    for i in (0, 2):
        np.testing.assert_allclose(np.linalg.norm(inner.layers[i].kernel.value, 2), 1, rtol=1e-4)


def test_negative_scales_keep_their_sign_from_call_to_call() -> None:
    layer = weight()
    layer.scales["kernel",].value = jnp.array([-2.0, 1.0, -0.5, 3.0])
    first = layer(X)
    np.testing.assert_allclose(layer(X), first, rtol=1e-5, atol=1e-6)
    lengths = np.linalg.norm(layer.layer_instance.kernel.value, axis=0)
    np.testing.assert_allclose(lengths, np.ones(4), rtol=1e-5)


def test_scales_are_parameters_that_train() -> None:
    layer = weight()
    assert isinstance(layer.scales["kernel",], moduli.Param)
    grads = moduli.grad(lambda model: jnp.sum(model(X)))(layer)
    direction = layer.layer_instance.kernel.value
    np.testing.assert_allclose(
        grads["scales"]["kernel",][...], jnp.sum(X @ direction, 0), rtol=1e-4, atol=1e-5
    )


def test_scales_draw_keys_unless_they_are_ones() -> None:
    layer = weight(scale_init=initializers.normal(1.0), feature_axes=(0, 1))
    assert layer.scales["kernel",].shape == (3, 4)
    assert len(np.unique(layer.scales["kernel",].value)) == 12
    rngs = moduli.Rngs(0)
    WeightNorm(Linear(3, 4, rngs=rngs), rngs=rngs)
    assert int(rngs.params.count.value) == 2  # the Linear's


def test_wrappers_nest_and_pass_arguments_on() -> None:
    class Scaled(moduli.Module):
        def __init__(self, rngs: moduli.Rngs) -> None:
            self.linear = Linear(3, 4, rngs=rngs)

        def __call__(self, x: Any, factor: float, *, shift: float = 0.0) -> Any:
            return self.linear(x) * factor + shift

    rngs = moduli.Rngs(0)
    inner = Scaled(rngs)
    layer = WeightNorm(inner, rngs=rngs)
    plain = layer(X, 1.0)
    np.testing.assert_allclose(layer(X, 2.0, shift=3.0), 2 * plain + 3, rtol=1e-5, atol=1e-5)

    both = SpectralNorm(weight(), n_steps=30, rngs=rngs)
    both(X)
    kernel = both.layer_instance.layer_instance.kernel.value
    np.testing.assert_allclose(np.linalg.norm(kernel, axis=0), np.ones(4), rtol=1e-5)


def test_bfloat16_weights_keep_their_dtype_and_statistics_theirs() -> None:
    with jax.numpy_dtype_promotion("strict"):
        for layer in (spectral(), weight()):
            set_dtypes(layer, DtypePolicy(param=jnp.bfloat16, compute=jnp.bfloat16))
            scan = moduli.scan(lambda model, x: model(x), in_axes=(None, 0), out_axes=0)
            outputs = scan(layer, jnp.stack([X] * 2).astype(jnp.bfloat16))
            assert outputs.dtype == layer.layer_instance.kernel.dtype == jnp.bfloat16
            for stat in getattr(layer, "batch_stats", {}).values():
                assert stat.dtype == jnp.float32


def test_norms_of_weights_are_norms_for_a_policy() -> None:
    layer = weight()
    set_dtypes(layer, DtypePolicy(param=jnp.bfloat16, norm=jnp.float32, compute=jnp.bfloat16))
    assert layer.scales["kernel",].dtype == jnp.float32
    assert layer.layer_instance.kernel.dtype == jnp.bfloat16


def added(layer: Any) -> Any:
    """Gives the wrapped layer one more weight."""
    layer.layer_instance.kernel2 = moduli.Param(jnp.ones((3, 4)))
    return layer


def wrong_conv() -> Any:
    """Wraps what is no matrix."""
    conv = Conv(2, 3, (3,), rngs=moduli.Rngs(0))
    return SpectralNorm(conv, error_on_non_matrix=True, rngs=moduli.Rngs(0))


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: spectral(n_steps=0), ArgumentError, "SpectralNorm got n_steps=0; write a size"),
        (
            lambda: SpectralNorm(weight(), rngs=None),  # type: ignore
            RngError,
            "SpectralNorm got rngs of type NoneType",
        ),
        (
            wrong_conv,
            ArgumentError,
            r"SpectralNorm\(error_on_non_matrix=True\).*\(3, 2, 3\) at `kernel` of Conv; write "
            r"error_on_non_matrix=False to take it as a matrix of shape \(-1, 3\)",
        ),
        (
            lambda: weight(variable_filter=moduli.PathContains("weight")),
            ArgumentError,
            r"WeightNorm found no parameter of Linear that variable_filter selects; the layer has "
            r"`bias`, `kernel`; write a filter such as variable_filter=moduli\.PathContains",
        ),
        (
            lambda: weight(feature_axes=2),
            ArgumentError,
            r"WeightNorm\(feature_axes=2\) got a parameter of shape \(3, 4\) at `kernel` of Linear",
        ),
        (
            lambda: added(spectral())(X),
            StructureError,
            "SpectralNorm has no entry for the parameter `kernel2` of Linear, which it did not",
        ),
        (
            lambda: added(weight(variable_filter=lambda path, value: value.ndim == 2))(X),
            StructureError,
            "WeightNorm has no entry for the parameter `kernel2` of Linear",
        ),
    ],
)
def test_errors_say_what_was_got_and_what_to_write(call: Any, error: Any, text: str) -> None:
    with pytest.raises(error, match=text):
        call()
