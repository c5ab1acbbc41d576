"""Linear: equal to flax.nnx from equal seeds, and clear about what it cannot do."""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

import moduli
from moduli.errors import RngError, ShapeError
from moduli_layers import Linear, initializers
from moduli_layers.errors import ArgumentError, DtypeError

SEEDS = [((0,), {}), ((7,), {"params": 1}), ((), {"params": 3, "dropout": 4})]
OPTIONS: list[dict[str, Any]] = [
    {},
    {"use_bias": False},
    {"bias_init": initializers.normal(1.0)},
    {"kernel_init": initializers.he_uniform(), "bias_init": initializers.constant(0.5)},
    {"param_dtype": jnp.bfloat16},
    {"dtype": jnp.bfloat16},
    {"dtype": jnp.bfloat16, "preferred_element_type": jnp.float32},
    {"precision": "highest"},
]


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize("seeds", SEEDS, ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(options) or "defaults")
def test_equal_seeds_give_flax_weights_and_outputs(
    flax_nnx: Any, seeds: Any, options: dict[str, Any]
) -> None:
    positional, named = seeds
    x = jax.random.normal(jax.random.key(9), (4, 3))
    theirs_rngs = flax_nnx.Rngs(*positional, **named)
    ours_rngs = moduli.Rngs(*positional, **named)
    for _ in range(2):  # the second layer shows that the first drew as many keys
        theirs = flax_nnx.Linear(3, 5, **options, rngs=theirs_rngs)
        ours = Linear(3, 5, **options, rngs=ours_rngs)
        assert ours.kernel.dtype == theirs.kernel.dtype
        np.testing.assert_array_equal(ours.kernel.value, theirs.kernel[...])
        if options.get("use_bias", True):
            assert ours.bias is not None
            np.testing.assert_array_equal(ours.bias.value, theirs.bias[...])
        else:
            assert ours.bias is None
        assert ours(x).dtype == theirs(x).dtype
        np.testing.assert_allclose(
            np.asarray(ours(x), np.float32), np.asarray(theirs(x), np.float32), rtol=1e-6
        )


def test_default_kernel_has_lecun_variance_and_zero_bias() -> None:
    layer = Linear(400, 300, rngs=moduli.Rngs(0))
    assert float(jnp.var(layer.kernel.value)) == pytest.approx(1 / 400, rel=0.02)
    assert layer.bias is not None
    assert not np.asarray(layer.bias.value).any()


def test_keeps_its_configuration_and_metadata() -> None:
    layer = Linear(
        2,
        3,
        dtype=jnp.bfloat16,
        kernel_metadata={"team": "a"},
        bias_metadata={"team": "b"},
        rngs=moduli.Rngs(0),
    )
    assert (layer.in_features, layer.out_features, layer.use_bias) == (2, 3, True)
    assert (layer.dtype, layer.param_dtype, layer.precision) == (jnp.bfloat16, jnp.float32, None)
    assert layer.kernel.get_metadata("team") == "a"
    assert layer.bias is not None
    assert layer.bias.get_metadata("team") == "b"
    assert isinstance(layer.kernel, moduli.Param)


def test_own_dot_general_and_promotion_are_used() -> None:
    def negative(*args: Any, **kwargs: Any) -> jax.Array:
        return -jax.lax.dot_general(*args, **kwargs)

    def halved(arrays: tuple[Any, ...], /, *, dtype: Any = None) -> tuple[Any, ...]:
        assert dtype == jnp.float32
        return tuple(None if array is None else array / 2 for array in arrays)

    plain = Linear(2, 3, use_bias=False, rngs=moduli.Rngs(0))
    own = Linear(
        2,
        3,
        use_bias=False,
        dtype=jnp.float32,
        dot_general=negative,
        promote_dtype=halved,
        rngs=moduli.Rngs(0),
    )
    x = jnp.ones((1, 2))
    np.testing.assert_allclose(own(x), -plain(x) / 4, rtol=1e-6)


@pytest.mark.usefixtures("standard_promotion")
def test_integers_become_float32() -> None:
    layer = Linear(2, 3, rngs=moduli.Rngs(0))
    outputs = layer(jnp.ones((4, 2), jnp.int32))
    assert outputs.dtype == jnp.float32
    np.testing.assert_array_equal(outputs, layer(jnp.ones((4, 2))))


def test_zero_rows_give_zero_rows() -> None:
    assert Linear(2, 3, rngs=moduli.Rngs(0))(jnp.ones((0, 2))).shape == (0, 3)


def test_out_sharding_lays_out_the_output() -> None:
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,))
    layer = Linear(2, 4, use_bias=False, rngs=moduli.Rngs(0))
    with jax.set_mesh(mesh):
        x = jax.device_put(jnp.ones((4, 2)), PartitionSpec("data", None))
        kernel = jax.device_put(layer.kernel.value, PartitionSpec(None, None))
        layer.kernel.value = kernel
        outputs = layer(x, PartitionSpec(None, "data"))
        assert jax.typeof(outputs).sharding.spec == PartitionSpec(None, "data")
        np.testing.assert_allclose(outputs, np.ones((4, 2)) @ np.asarray(kernel), rtol=1e-6)


@pytest.mark.parametrize("shape", [(5, 4), (4,), ()])
def test_wrong_features_name_layer_expected_and_given(shape: tuple[int, ...]) -> None:
    layer = Linear(3, 2, rngs=moduli.Rngs(0))
    given = re.escape(str(shape))
    expected = rf"Linear\(in_features=3\) expects .* \(\.\.\., 3\), got shape {given}"
    with pytest.raises(ShapeError, match=expected):
        layer(jnp.ones(shape))


def test_strict_promotion_names_the_layer_and_the_remedy() -> None:
    layer = Linear(3, 2, rngs=moduli.Rngs(0))
    with (
        jax.numpy_dtype_promotion("strict"),
        pytest.raises(DtypeError, match=r"Linear: .*\(bfloat16, float32, float32\).*dtype=jnp"),
    ):
        layer(jnp.ones((1, 3), jnp.bfloat16))


def test_integer_dtype_is_an_error() -> None:
    layer = Linear(3, 2, dtype=jnp.int32, rngs=moduli.Rngs(0))
    with pytest.raises(DtypeError, match="Linear: got dtype=int32"):
        layer(jnp.ones((1, 3)))


@pytest.mark.parametrize(
    ("features", "name"), [((0, 2), "in_features=0"), ((2, -1), "out_features=-1")]
)
def test_impossible_sizes_are_an_error(features: tuple[int, int], name: str) -> None:
    with pytest.raises(ArgumentError, match=f"Linear got {name}"):
        Linear(*features, rngs=moduli.Rngs(0))


def test_wrong_rngs_are_an_error() -> None:
    with pytest.raises(RngError, match=r"Linear got rngs of type int; write rngs=moduli.Rngs\(0\)"):
        Linear(2, 2, rngs=0)  # pyright: ignore[reportArgumentType]


def test_a_part_of_the_kernel_takes_the_same_part_of_the_inputs():
    layer = Linear(6, 2, rngs=moduli.Rngs(0))
    x = np.linspace(-1, 1, 24, dtype=np.float32).reshape(4, 6)
    whole = layer(x) - layer.bias.value
    parts = []
    for part in (slice(0, 3), slice(3, 6)):
        piece = moduli.clone(layer)
        piece.kernel.value = layer.kernel.value[part]
        parts.append(piece(x[:, part]) - layer.bias.value)
        with pytest.raises(ShapeError, match=r"Linear\(in_features=6\).*for 3 of 6 features"):
            piece(x)
    np.testing.assert_allclose(sum(parts), whole, rtol=1e-5, atol=1e-6)
