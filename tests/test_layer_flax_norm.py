"""The norms give flax.nnx's initial parameters, outputs, statistics and gradients."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import moduli
import moduli_layers as layers

nnx = pytest.importorskip("flax.nnx")

X = np.random.default_rng(0).normal(1.0, 2.0, (3, 5, 4)).astype(np.float32)
MASK = np.arange(60).reshape(3, 5, 4) % 7 > 1  # no single entry stands alone: its variance is 0
NORMAL = jax.nn.initializers.normal(1.0)

CASES: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
    ("LayerNorm", (4,), {}),
    ("LayerNorm", (4,), {"scale_init": NORMAL, "bias_init": NORMAL, "epsilon": 0.1}),
    ("LayerNorm", (4,), {"use_scale": False, "bias_init": NORMAL}),
    ("LayerNorm", (4,), {"reduction_axes": (1, 2), "use_fast_variance": False}),
    ("LayerNorm", (20,), {"reduction_axes": (1, 2), "feature_axes": (2, 1), "scale_init": NORMAL}),
    ("LayerNorm", (4,), {"dtype": jnp.bfloat16, "scale_init": NORMAL}),
    ("LayerNorm", (4,), {"param_dtype": jnp.bfloat16, "scale_init": NORMAL}),
    ("RMSNorm", (4,), {}),
    ("RMSNorm", (4,), {"scale_init": NORMAL, "epsilon": 0.1}),
    ("RMSNorm", (5,), {"reduction_axes": 1, "feature_axes": 1, "scale_init": NORMAL}),
    ("RMSNorm", (4,), {"dtype": jnp.bfloat16, "use_scale": False}),
    ("GroupNorm", (4, 2), {"scale_init": NORMAL, "bias_init": NORMAL}),
    ("GroupNorm", (4, None, 4), {"use_bias": False, "use_fast_variance": False}),
    ("GroupNorm", (4, 1), {"dtype": jnp.bfloat16}),
    ("InstanceNorm", (4,), {"scale_init": NORMAL, "bias_init": NORMAL}),
    ("InstanceNorm", (5,), {"feature_axes": 1, "use_fast_variance": False}),
    ("InstanceNorm", (4,), {"param_dtype": jnp.float16}),
]


@pytest.fixture(autouse=True)
def standard_promotion() -> Iterator[None]:
    """JAX's default promotion: flax computes by it."""
    with jax.numpy_dtype_promotion("standard"):
        yield


each_case = pytest.mark.parametrize(
    ("name", "args", "options"),
    CASES,
    ids=[f"{name}{args}-{'-'.join(options) or 'defaults'}" for name, args, options in CASES],
)


def pair(name: str, args: tuple[Any, ...], options: dict[str, Any]) -> tuple[Any, Any]:
    """Builds a layer in both libraries from one seed; as many keys are drawn."""
    theirs_rngs, ours_rngs = nnx.Rngs(0, params=5), moduli.Rngs(0, params=5)
    theirs = getattr(nnx, name)(*args, **options, rngs=theirs_rngs)
    ours = getattr(layers, name)(*args, **options, rngs=ours_rngs)
    np.testing.assert_array_equal(
        jax.random.key_data(ours_rngs.params()), jax.random.key_data(theirs_rngs.params())
    )
    return ours, theirs


def assert_close(ours: Any, theirs: Any, tolerance: float = 1e-5) -> None:
    """Checks dtype and values."""
    assert ours.dtype == theirs.dtype
    if ours.dtype != jnp.float32 and not jnp.iscomplexobj(ours):
        tolerance = 1e-2
    wide = np.complex128 if jnp.iscomplexobj(ours) else np.float64
    np.testing.assert_allclose(
        np.asarray(ours, wide), np.asarray(theirs, wide), rtol=tolerance, atol=tolerance
    )


@each_case
def test_parameters_outputs_and_gradients(
    name: str, args: tuple[Any, ...], options: dict[str, Any]
) -> None:
    ours, theirs = pair(name, args, options)
    for part in ("scale", "bias"):
        if getattr(theirs, part, None) is None:
            assert getattr(ours, part) is None
        else:
            np.testing.assert_array_equal(getattr(ours, part).value, getattr(theirs, part)[...])
    assert_close(ours(X), theirs(X))
    assert_close(ours(X, mask=MASK), theirs(X, mask=jnp.asarray(MASK)))

    def loss(layer: Any, x: Any) -> Any:
        return jnp.sum(jnp.sin(layer(x)).astype(jnp.float32))

    tolerance = 2e-2 if "dtype" in options else 1e-4
    mine, flax = jax.grad(lambda x: loss(ours, x))(X), jax.grad(lambda x: loss(theirs, x))(X)
    assert_close(mine, flax, tolerance)


@pytest.mark.parametrize("name", ["LayerNorm", "RMSNorm", "InstanceNorm"])
@pytest.mark.parametrize("fast", [True, False])
def test_complex_inputs(name: str, fast: bool) -> None:
    ours, theirs = pair(name, (4,), {"use_fast_variance": fast, "scale_init": NORMAL})
    assert_close(ours(X + 1j * X[::-1]), theirs(X + 1j * X[::-1]))


@each_case
def test_statistics_over_a_mapped_axis(
    name: str, args: tuple[Any, ...], options: dict[str, Any]
) -> None:
    ours, theirs = pair(name, args, {**options, "axis_name": "devices"})
    halves = np.stack([X, 3 * X[::-1] + 1])

    def mapped(layer: Any) -> Any:
        return jax.vmap(layer, axis_name="devices")(halves)

    assert_close(mapped(ours), mapped(theirs), 2e-5)
    alone = getattr(layers, name)(*args, **options, rngs=moduli.Rngs(0, params=5))
    assert not np.allclose(mapped(ours), jax.vmap(alone)(halves), atol=0.05)


GROUPED = [("LayerNorm", (4,)), ("RMSNorm", (4,)), ("GroupNorm", (4, 2)), ("InstanceNorm", (4,))]


@pytest.mark.parametrize(("name", "args"), GROUPED)
def test_groups_of_a_mapped_axis_are_apart(name: str, args: tuple[Any, ...]) -> None:
    groups = [[0, 1], [2, 3]]
    kind = getattr(layers, name)
    layer = kind(*args, axis_name="d", axis_index_groups=groups, rngs=moduli.Rngs(0))
    pairs = kind(*args, axis_name="d", rngs=moduli.Rngs(0))
    x = np.random.default_rng(3).normal(size=(4, 3, 5, 4)).astype(np.float32)
    spec = jax.sharding.PartitionSpec("d")
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]), ("d",))
    mapped = jax.shard_map(layer, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    outputs = mapped(x.reshape(12, 5, 4)).reshape(x.shape)
    for group in groups:
        expected = jax.vmap(pairs, axis_name="d")(x[np.array(group)])
        np.testing.assert_allclose(outputs[np.array(group)], expected, rtol=1e-4, atol=1e-5)


# -- wrappers -------------------------------------------------------------------------------------


def linear(library: Any, rngs: Any) -> Any:
    """A Linear of either library."""
    return library.Linear(4, 6, rngs=rngs)


def conv(library: Any, rngs: Any) -> Any:
    """A Conv of either library."""
    return library.Conv(4, 6, (3,), rngs=rngs)


def wrapped(name: str, inner: Any, options: dict[str, Any]) -> tuple[Any, Any]:
    """Wraps a layer in both libraries from one seed; as many keys are drawn."""
    theirs_rngs, ours_rngs = nnx.Rngs(0, params=5), moduli.Rngs(0, params=5)
    with jax.enable_x64(False):  # else its WeightNorm has float64 scales for float32 kernels
        theirs = getattr(nnx, name)(inner(nnx, theirs_rngs), **options, rngs=theirs_rngs)
    ours = getattr(layers, name)(inner(layers, ours_rngs), **options, rngs=ours_rngs)
    np.testing.assert_array_equal(
        jax.random.key_data(ours_rngs.params()), jax.random.key_data(theirs_rngs.params())
    )
    return ours, theirs


def by_path(library: Any, layer: Any) -> dict[Any, np.ndarray]:
    """Returns a layer's arrays by their paths, which are the same in both libraries."""
    pure = dict(library.to_flat_state(library.state(layer)))
    return {path: np.asarray(v[...]) for path, v in pure.items()}


def assert_same_state(ours: Any, theirs: Any, tolerance: float) -> None:
    """Checks names, dtypes and values of everything that two layers hold."""
    mine, flax = by_path(moduli, ours), by_path(nnx, theirs)
    assert mine.keys() == flax.keys()
    for path, array in mine.items():
        assert array.dtype == flax[path].dtype
        np.testing.assert_allclose(
            array, flax[path], rtol=tolerance, atol=tolerance, err_msg=str(path)
        )


WRAPPED = [
    ("SpectralNorm", linear, {}),
    ("SpectralNorm", conv, {"n_steps": 3, "epsilon": 1e-3}),
    ("WeightNorm", linear, {}),
    ("WeightNorm", conv, {"use_scale": False, "epsilon": 1e-3}),
    ("WeightNorm", conv, {"feature_axes": (0, -1)}),
    ("WeightNorm", linear, {"feature_axes": None}),
]
each_wrapped = pytest.mark.parametrize(
    ("name", "inner", "options"),
    WRAPPED,
    ids=[f"{n}-{i.__name__}-{'-'.join(o) or 'defaults'}" for n, i, o in WRAPPED],
)


@each_wrapped
def test_wrappers_start_alike_and_stay_alike(name: str, inner: Any, options: Any) -> None:
    ours, theirs = wrapped(name, inner, options)
    assert_same_state(ours, theirs, 0.0)
    for _ in range(3):
        assert_close(ours(X), theirs(X))
        assert_same_state(ours, theirs, 1e-5)
    ours.eval()
    theirs.eval()
    for _ in range(2):
        assert_close(ours(X), theirs(X), 1e-5 if "epsilon" not in options else 1e-2)


@each_wrapped
def test_wrappers_train_alike(name: str, inner: Any, options: Any) -> None:
    """Three steps of gradient descent, with what each call writes in between."""
    ours, theirs = wrapped(name, inner, options)

    def loss(model: Any) -> Any:
        return jnp.sum(jnp.sin(model(X)))

    def step(library: Any, model: Any) -> None:
        grads = library.grad(loss)(model)
        for part in ("kernel", "bias"):
            param = getattr(model.layer_instance, part)
            grad = getattr(grads["layer_instance"], "raw_mapping", grads["layer_instance"])[part]
            param[...] = param[...] - 0.01 * grad[...]

    for _ in range(3):
        step(moduli, ours)
        step(nnx, theirs)
        assert_same_state(ours, theirs, 1e-4)


def test_spectral_norm_in_evaluation_equals_flax_without_writing() -> None:
    ours, theirs = wrapped("SpectralNorm", conv, {"update_stats": False})
    before = by_path(moduli, ours)
    assert_close(ours(X), theirs(X))
    for path, array in by_path(moduli, ours).items():
        np.testing.assert_array_equal(array, before[path])
    assert_close(ours(X, update_stats=True), theirs(X, update_stats=True))
    mine, flax = by_path(moduli, ours), by_path(nnx, theirs)
    for path in mine:
        if path[-1] != ("kernel", "sigma"):  # flax's kernel was divided by it in evaluation
            np.testing.assert_allclose(mine[path], flax[path], rtol=1e-5, atol=1e-6)
