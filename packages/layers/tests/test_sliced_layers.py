"""A layer that a transform maps over an axis of its own says so; it computed something else."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import moduli as nnx
import moduli_layers as layers


def rngs():
    return nnx.Rngs(0)


X = jnp.ones((4, 4, 4))
LAYERS = {
    "Linear": (lambda: layers.Linear(4, 4, rngs=rngs()), X),
    "LayerNorm": (lambda: layers.LayerNorm(4, rngs=rngs()), X),
    "RMSNorm": (lambda: layers.RMSNorm(4, rngs=rngs()), X),
    "BatchNorm": (lambda: layers.BatchNorm(4, rngs=rngs()), X),
    "GroupNorm": (lambda: layers.GroupNorm(4, num_groups=2, rngs=rngs()), X),
    "Embed": (lambda: layers.Embed(4, 4, rngs=rngs()), X.astype(jnp.int32)),
    "Conv": (lambda: layers.Conv(4, 4, 4, rngs=rngs()), X),
    "ConvTranspose": (lambda: layers.ConvTranspose(4, 4, 4, rngs=rngs()), X),
    "Einsum": (lambda: layers.Einsum("ab,bc->ac", (4, 4), rngs=rngs()), X),
    "LinearGeneral": (lambda: layers.LinearGeneral((4,), (4,), rngs=rngs()), X),
}


def call(layer, x):
    return layer(x)


MAPPED = {
    "vmap": lambda layer, x: nnx.vmap(call)(layer, x),
    "vmap in jit": lambda layer, x: nnx.jit(nnx.vmap(call))(layer, x),
    "scan": lambda layer, x: nnx.scan(call, in_axes=(0, 0), out_axes=0)(layer, x),
    "jax.vmap": lambda layer, x: jax.vmap(lambda state, x: nnx.merge(graph, state)(x))(
        (graph := nnx.split(layer)[0]) and nnx.to_pure_dict(nnx.state(layer)), x
    ),
}


@pytest.mark.parametrize("mapped", MAPPED.values(), ids=MAPPED)
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_that_is_no_stack_is_not_mapped_over(name, mapped):
    make, x = LAYERS[name]
    layer = make()
    before = [np.asarray(value) for value in jax.tree.leaves(nnx.state(layer))]
    with pytest.raises(nnx.errors.ShapeError, match=rf"of {name} has the shape .*a stack"):
        mapped(layer, x)
    after = jax.tree.leaves(nnx.state(layer))
    assert all(map(np.array_equal, before, after))


@pytest.mark.parametrize("name", LAYERS)
def test_a_stack_is(name):
    make, x = LAYERS[name]
    stack = nnx.vmap(lambda _: make(), axis_size=4, in_axes=None)(0)
    expected = jnp.stack([make()(part) for part in x])
    np.testing.assert_allclose(nnx.vmap(call)(stack, x), expected, rtol=1e-5, atol=1e-5)


def test_inputs_with_channels_first_are_recognised():
    with pytest.raises(nnx.errors.ShapeError, match=r"jnp\.moveaxis\(inputs, 1, -1\)"):
        layers.Conv(3, 8, (3, 3), rngs=rngs())(jnp.ones((1, 3, 28, 28)))
    with pytest.raises(nnx.errors.ShapeError) as caught:
        layers.Conv(3, 8, (3, 3), rngs=rngs())(jnp.ones((1, 28, 28, 4)))
    assert "moveaxis" not in str(caught.value)


@pytest.mark.parametrize("name", ["Linear", "LayerNorm"])
def test_none_as_the_input_is_named_with_its_place(name):
    model = layers.Sequential(lambda x: None, LAYERS[name][0]())
    with pytest.raises(ValueError, match=r"got None in the place of an array.*`layers/1`"):
        model(X)


def test_a_kernel_of_another_shape_says_so():
    layer = layers.Linear(4, 2, rngs=rngs())
    layer.kernel.value = jnp.zeros((2, 4))
    with pytest.raises(nnx.errors.ShapeError, match="or put parameters of the layer's own shape"):
        layer(jnp.ones((3, 4)))
    layer.kernel.value = jnp.zeros((8, 4))
    with pytest.raises(nnx.errors.ShapeError, match="its parameters are for 8 now"):
        layer(jnp.ones((3, 4)))


@pytest.mark.parametrize("part", [layers.Linear, layers.Dropout, nnx.Module])
def test_a_class_among_the_layers_of_a_chain_is_refused(part):
    with pytest.raises(nnx.errors.StructureError, match=rf"class {part.__name__} as argument 1"):
        layers.Sequential(nnx.relu, part)


def test_a_class_called_in_the_place_of_a_model_is_recognised():
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.layer = layers.Linear(2, 2, rngs=rngs)

    with pytest.raises(nnx.errors.RngError, match="a model that was never made"):
        Model(jnp.ones((2, 2)))
    with pytest.raises(nnx.errors.RngError) as caught:
        Model(jax.random.key(0))
    assert "never made" not in str(caught.value)
