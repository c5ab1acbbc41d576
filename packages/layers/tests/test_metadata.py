"""Initializers with metadata, in every layer that takes an initializer."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import moduli
import moduli_layers as layers
from moduli_layers import initializers, with_metadata, with_partitioning
from moduli_layers.errors import ArgumentError

INIT = initializers.normal()
MARKED = with_metadata(INIT, mark=7)
BUILDERS: dict[str, Any] = {
    "linear": lambda init, r: layers.Linear(3, 4, kernel_init=init, rngs=r).kernel,
    "linear-bias": lambda init, r: layers.Linear(3, 4, bias_init=init, rngs=r).bias,
    "general": lambda init, r: layers.LinearGeneral(3, (4, 2), kernel_init=init, rngs=r).kernel,
    "general-bias": lambda init, r: layers.LinearGeneral(3, (4, 2), bias_init=init, rngs=r).bias,
    "einsum": lambda init, r: layers.Einsum("a,ab->b", (3, 4), kernel_init=init, rngs=r).kernel,
    "embed": lambda init, r: layers.Embed(3, 4, embedding_init=init, rngs=r).embedding,
    "conv": lambda init, r: layers.Conv(3, 4, (2, 2), kernel_init=init, rngs=r).kernel,
    "transpose": lambda init, r: layers.ConvTranspose(3, 4, (2,), kernel_init=init, rngs=r).kernel,
    "layer_norm": lambda init, r: layers.LayerNorm(3, scale_init=init, rngs=r).scale,
    "batch_norm": lambda init, r: layers.BatchNorm(3, bias_init=init, rngs=r).bias,
    "lora": lambda init, r: layers.LoRA(3, 2, 4, a_initializer=init, rngs=r).lora_a,
    "mlp": lambda init, r: layers.MLP(3, 2, 4, kernel_init=init, rngs=r).layers[1].kernel,
    "attention": lambda init, r: (
        layers.MultiHeadAttention(2, 4, kernel_init=init, decode=False, rngs=r).query.kernel
    ),
    "cell": lambda init, r: layers.GRUCell(3, 4, kernel_init=init, rngs=r).dense_i.kernel,
}


@pytest.mark.parametrize("build", BUILDERS.values(), ids=BUILDERS)
def test_the_param_has_the_metadata_and_the_same_value(build) -> None:
    plain, marked = build(INIT, moduli.Rngs(0)), build(MARKED, moduli.Rngs(0))
    assert type(marked) is type(plain)
    assert marked.mark == 7
    np.testing.assert_array_equal(marked.value, plain.value)


def test_the_initializers_word_holds_and_the_layers_other_words_stay() -> None:
    layer = layers.Linear(
        3, 4, kernel_init=MARKED, kernel_metadata={"mark": 0, "own": 1}, rngs=moduli.Rngs(0)
    )
    assert layer.kernel.get_metadata() == {"mark": 7, "own": 1}


def test_metadata_on_metadata() -> None:
    both = with_partitioning(with_metadata(MARKED, own=1, mark=8), ["in", None], tag="t")
    layer = layers.Linear(3, 4, kernel_init=both, rngs=moduli.Rngs(0))
    assert layer.kernel.get_metadata() == {
        "mark": 8,
        "own": 1,
        "out_sharding": ("in", None),
        "tag": "t",
    }


def test_a_partition_spec_and_a_mesh_are_kept_so_that_programs_can_be_compared() -> None:
    mesh = jax.sharding.AbstractMesh((1,), ("x",))
    spec = jax.sharding.PartitionSpec(("x", "y"), None)
    init = with_partitioning(INIT, spec, mesh)  # pyright: ignore[reportArgumentType]
    layer = layers.Linear(3, 4, kernel_init=init, rngs=moduli.Rngs(0))
    assert layer.kernel.out_sharding == (("x", "y"), None)
    assert layer.kernel.mesh is mesh
    assert "mesh" not in with_partitioning(INIT, spec)(jax.random.key(0), (2, 2)).metadata
    hash(moduli.graphdef(layer))
    outputs = moduli.jit(lambda layer, x: layer(x))(layer, jnp.ones(3))
    np.testing.assert_allclose(outputs, layer(jnp.ones(3)), rtol=1e-6)


def test_vmap_names_the_new_axis() -> None:
    init = with_partitioning(INIT, ("in", "out"))

    @moduli.vmap(transform_metadata={moduli.PARTITION_NAME: "layers"})
    def build(key):
        return layers.Linear(3, 4, kernel_init=init, rngs=moduli.Rngs(key))

    kernel = build(jax.random.split(jax.random.key(0), 5)).kernel
    assert kernel.shape == (5, 3, 4)
    assert kernel.out_sharding == ("layers", "in", "out")


def test_metadata_survives_split_and_shapes_without_arrays() -> None:
    def build():
        return layers.LinearGeneral(3, (4, 2), kernel_init=MARKED, rngs=moduli.Rngs(0))

    assert moduli.merge(*moduli.split(build())).kernel.mark == 7
    abstract = moduli.eval_shape(build).kernel
    assert abstract.mark == 7
    assert abstract.shape == (3, 4, 2)


def test_hooks_are_metadata_too() -> None:
    init = with_metadata(INIT, on_get_value=lambda variable, value: 2 * value)
    layer = layers.Linear(3, 4, kernel_init=init, rngs=moduli.Rngs(0))
    np.testing.assert_array_equal(layer.kernel.value, 2 * layer.kernel.raw_value)


def test_hooks_that_do_not_exist_are_refused() -> None:
    with pytest.raises(ArgumentError) as caught:
        with_metadata(INIT, on_add_axis=lambda variable, axis: None)
    assert str(caught.value) == (
        "with_metadata got on_add_axis, which no Variable has; name the mapped axis in the "
        "transform: transform_metadata={moduli.PARTITION_NAME: 'layers'}"
    )
