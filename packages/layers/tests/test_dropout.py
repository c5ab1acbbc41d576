"""Dropout: the mask of flax.nnx from equal seeds, from each place that a key can come from."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import moduli
from moduli.errors import ModuliError, RngError, ShapeError
from moduli_layers import Dropout, Linear
from moduli_layers.errors import ArgumentError, DtypeError

X = jnp.asarray(np.random.default_rng(0).normal(1.0, 2.0, (6, 5, 4)), jnp.float32)


@pytest.mark.parametrize("broadcast_dims", [(), (0,), (-1, 1)])
@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_equal_seeds_give_flax_masks(flax_nnx: Any, rate: float, broadcast_dims: Any) -> None:
    for seeds in ((0,), {}), ((1,), {"dropout": 2}), ((), {"params": 3, "dropout": 4}):
        positional, named = seeds
        options: Any = {"broadcast_dims": broadcast_dims}
        theirs_rngs = flax_nnx.Rngs(*positional, **named)
        ours_rngs = moduli.Rngs(*positional, **named)
        for _ in range(2):  # two layers, each drawing from its own fork
            theirs = flax_nnx.Dropout(rate, **options, rngs=theirs_rngs)
            ours = Dropout(rate, **options, rngs=ours_rngs)
            for _ in range(2):
                np.testing.assert_array_equal(ours(X), theirs(X))


def test_a_stream_in_the_constructor_is_forked_as_in_flax(flax_nnx: Any) -> None:
    theirs_stream, ours_stream = flax_nnx.Rngs(dropout=5).dropout, moduli.Rngs(dropout=5).dropout
    theirs = flax_nnx.Dropout(0.5, rngs=theirs_stream)
    ours = Dropout(0.5, rngs=ours_stream)
    np.testing.assert_array_equal(ours(X), theirs(X))
    np.testing.assert_array_equal(
        jax.random.key_data(ours_stream()), jax.random.key_data(theirs_stream())
    )


@pytest.mark.parametrize("kind", ["rngs", "stream", "key", "raw key"])
def test_each_call_may_bring_its_own_rngs_as_in_flax(flax_nnx: Any, kind: str) -> None:
    def source(nnx: Any) -> Any:
        return {
            "rngs": lambda: nnx.Rngs(0, dropout=3),
            "stream": lambda: nnx.Rngs(0, dropout=3).dropout,
            "key": lambda: jax.random.key(3),
            "raw key": lambda: jax.random.PRNGKey(3),
        }[kind]()

    theirs_layer, ours_layer = flax_nnx.Dropout(0.5), Dropout(0.5, rngs=moduli.Rngs(1))
    theirs_source, ours_source = source(flax_nnx), source(moduli)
    first = ours_layer(X, rngs=ours_source)
    np.testing.assert_array_equal(first, theirs_layer(X, rngs=theirs_source))
    second = ours_layer(X, rngs=ours_source)
    np.testing.assert_array_equal(second, theirs_layer(X, rngs=theirs_source))
    assert np.array_equal(first, second) == ("key" in kind)  # a key is a key: used as it is
    assert ours_layer.rngs is not None
    assert int(ours_layer.rngs.count.value) == 0


def test_rng_collection_names_the_stream() -> None:
    rngs = moduli.Rngs(dropout=1, noise=2)
    layer = Dropout(0.5, rng_collection="noise", rngs=rngs)
    assert (int(rngs.dropout.count.value), int(rngs.noise.count.value)) == (0, 1)
    np.testing.assert_array_equal(
        layer(X, rngs=moduli.Rngs(dropout=1, noise=2)), layer(X, rngs=moduli.Rngs(noise=2))
    )
    with pytest.raises(ModuliError, match="noise"):
        Dropout(0.5, rng_collection="noise", rngs=moduli.Rngs(params=0))


def test_layers_draw_independently_of_each_other() -> None:
    rngs = moduli.Rngs(0)
    first, second = Dropout(0.5, rngs=rngs), Dropout(0.5, rngs=rngs)
    alone = np.asarray(moduli.clone(second)(X))
    assert not np.array_equal(first(X), alone)
    np.testing.assert_array_equal(second(X), alone)


def test_keeps_the_rate_and_the_mean() -> None:
    outputs = np.asarray(Dropout(0.3, rngs=moduli.Rngs(0))(jnp.ones(100_000, jnp.float32)))
    assert (outputs == 0).mean() == pytest.approx(0.3, abs=0.01)
    assert set(np.unique(outputs)) == {0, np.float32(1) / np.float32(0.7)}
    assert outputs.mean() == pytest.approx(1, abs=0.01)


def test_broadcast_dims_drop_together() -> None:
    layer = Dropout(0.5, broadcast_dims=(0, 2), rngs=moduli.Rngs(0))
    kept = np.asarray(layer(jnp.ones((8, 40, 3)))) != 0
    assert (kept == kept[:1, :, :1]).all()
    assert 0 < kept[0, :, 0].sum() < 40


def test_gradient_is_the_scaled_mask() -> None:
    layer = Dropout(0.25, rngs=moduli.Rngs(0))
    key = jax.random.key(1)
    grads = jax.grad(lambda x: jnp.sum(layer(x, rngs=key)))(X)
    kept = np.asarray(layer(jnp.ones_like(X), rngs=key)) != 0
    np.testing.assert_allclose(grads, kept / 0.75, rtol=1e-6)


def test_rate_one_has_a_zero_gradient() -> None:
    layer = Dropout(1.0)
    np.testing.assert_array_equal(jax.grad(lambda x: jnp.sum(layer(x)))(X), np.zeros_like(X))


def test_rates_that_need_no_randomness_need_no_rngs() -> None:
    np.testing.assert_array_equal(Dropout(0.0)(X), X)
    np.testing.assert_array_equal(Dropout(1.0)(X), np.zeros_like(X))
    np.testing.assert_array_equal(Dropout(0.5, deterministic=True)(X), X)
    np.testing.assert_array_equal(Dropout(0.5)(X, deterministic=True), X)


def test_numpy_rate_keeps_the_dtype_under_strict_promotion() -> None:
    layer = Dropout(np.float64(0.5), rngs=moduli.Rngs(0))
    with jax.numpy_dtype_promotion("strict"):
        assert layer(jnp.ones(3, jnp.float16)).dtype == jnp.float16


def test_the_call_overrides_the_attribute() -> None:
    layer = Dropout(0.5, deterministic=True, rngs=moduli.Rngs(0))
    assert (np.asarray(layer(X, deterministic=False)) == 0).any()
    layer.train()
    np.testing.assert_array_equal(layer(X, deterministic=True), X)


def test_masks_change_from_call_to_call_under_jit() -> None:
    layer = Dropout(0.5, rngs=moduli.Rngs(0))
    eager = Dropout(0.5, rngs=moduli.Rngs(0))

    @moduli.jit
    def call(model: Dropout, x: jax.Array) -> jax.Array:
        return model(x)

    outputs = [np.asarray(call(layer, X)) for _ in range(3)]
    assert not np.array_equal(outputs[0], outputs[1])
    for output in outputs:
        np.testing.assert_allclose(output, eager(X), rtol=1e-6)


def test_missing_rngs_name_three_ways_out() -> None:
    with pytest.raises(
        RngError, match=r"Dropout\(rate=0.5\).*no rngs.*rngs=moduli.Rngs\(0\).*call.*eval"
    ):
        Dropout(0.5)(X)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: Dropout(1.5), ArgumentError, r"rate=1.5; .*\[0, 1\]"),
        (lambda: Dropout(-0.1), ArgumentError, "rate=-0.1"),
        (lambda: Dropout(float("nan")), ArgumentError, "rate=nan"),
        (lambda: Dropout(0.5, rngs=3), RngError, "rngs of type int"),  # type: ignore
        (lambda: Dropout(0.5)(X, rngs=3), RngError, "rngs of type int"),  # type: ignore
        (lambda: Dropout(0.5, rngs=moduli.Rngs(0))(jnp.arange(3)), DtypeError, "got int"),
        (
            lambda: Dropout(0.5, broadcast_dims=(3,), rngs=moduli.Rngs(0))(X),
            ShapeError,
            r"axis 3, got shape \(6, 5, 4\)",
        ),
        (
            lambda: Dropout(0.5, deterministic=None, rngs=moduli.Rngs(0))(X),
            ArgumentError,
            "deterministic is None",
        ),
    ],
)
def test_errors_name_the_layer_and_what_was_given(call: Any, error: Any, text: str) -> None:
    with pytest.raises(error, match=text) as caught:
        call()
    assert "Dropout" in str(caught.value)


def test_eval_mode_of_a_whole_model() -> None:
    class Model(moduli.Module):
        def __init__(self, rngs: moduli.Rngs) -> None:
            self.linear = Linear(4, 3, rngs=rngs)
            self.dropout = Dropout(0.5, rngs=rngs)

        def __call__(self, x: Any) -> jax.Array:
            return self.dropout(self.linear(x))

    model = Model(moduli.Rngs(0))
    with model.eval_mode():
        np.testing.assert_array_equal(model(X), model.linear(X))
    assert (np.asarray(model(X)) == 0).any()


@pytest.mark.parametrize("run", ["eager", "jit", "keep_shardings"])
@pytest.mark.parametrize("broadcast", [(), (0,), (1,)])
def test_keys_on_an_explicit_mesh_that_is_not_in_force(broadcast, run):
    mesh = jax.make_mesh((2, 2), ("a", "b"), axis_types=(jax.sharding.AxisType.Explicit,) * 2)
    x = jnp.ones((4, 6))
    spread = jax.device_put(x, jax.sharding.NamedSharding(mesh, jax.P("a")))

    def make():
        return moduli.Dropout(0.5, broadcast_dims=broadcast, rngs=moduli.Rngs(0))

    def call(layer, x):
        return layer(x)

    keeps = run == "keep_shardings"
    step = call if run == "eager" else moduli.jit(call, keep_shardings=keeps)
    plain = make()
    for layer in (make(), moduli.create(make, mesh)):
        for _ in range(3):  # after the first call in jit the stream's count is on the mesh
            got = step(layer, spread)
            assert jax.typeof(got).sharding.spec == jax.P("a", None)
            np.testing.assert_array_equal(got, plain(x))
        plain = make()
