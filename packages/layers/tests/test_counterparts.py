"""Layouts of another framework's tensors, forth and back."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import moduli
from moduli.errors import ShapeError, StructureError
from moduli_layers import Linear
from moduli_layers.counterparts import Counterpart, Setting, Tensor


class Layer(moduli.Module):
    """Two parameters, and one that is not used."""

    torch_counterpart = Counterpart(
        "somewhere.Layer",
        {
            "weight": Tensor("kernel", "i h d -> (h d) i"),
            "bias": Tensor("bias", "h d -> (h d)"),
            "second": Tensor("bias", "h d -> (h d)", zero=("bias",)),
            "scale": Tensor("scale"),
        },
        {
            "size": "size",
            "momentum": Setting("momentum", lambda ours: 1 - ours),
            "both": lambda layer: (layer.size, layer.momentum),
        },
        {"batch_first": True},
    )

    def __init__(self) -> None:
        self.kernel = moduli.Param(np.arange(24.0).reshape(2, 3, 4))
        self.bias = moduli.Param(np.arange(12.0).reshape(3, 4))
        self.scale = None
        self.size, self.momentum = 2, 0.75


@pytest.mark.parametrize(
    ("layout", "shape", "expected"),
    [
        ("i o -> o i", (2, 3), (3, 2)),
        ("... i o -> o i ...", (5, 4, 2, 3), (3, 2, 5, 4)),
        ("... i o -> o i ...", (2, 3), (3, 2)),
        ("i h d -> (h d) i", (2, 3, 4), (12, 2)),
        ("i (h) -> h i", (2, 3), None),
        (None, (2, 3), (2, 3)),
    ],
)
def test_forth_and_back(layout, shape, expected):
    array = np.arange(np.prod(shape), dtype=float).reshape(shape)
    if expected is None:
        with pytest.raises(StructureError, match="does not fit an array with 2 axes"):
            Tensor("kernel", layout).to_theirs([array])
        return
    theirs = Tensor("kernel", layout).to_theirs([array])
    assert theirs.shape == expected
    (ours,) = Tensor("kernel", layout).to_ours(theirs, [shape])
    np.testing.assert_array_equal(ours, array)


def test_merged_axes_stand_in_the_order_of_the_layout():
    array = np.arange(24).reshape(2, 3, 4)
    theirs = Tensor("kernel", "i h d -> (h d) i").to_theirs([array])
    np.testing.assert_array_equal(theirs, array.reshape(2, 12).T)


def test_flipped_axes():
    array = np.arange(24).reshape(2, 3, 4)
    tensor = Tensor("kernel", "... i o -> i o ...", flip=("...",))
    np.testing.assert_array_equal(tensor.to_theirs([array]), np.flip(array, 0).transpose(1, 2, 0))
    np.testing.assert_array_equal(tensor.to_ours(tensor.to_theirs([array]), [(2, 3, 4)])[0], array)


def test_several_arrays_of_different_sizes_are_one_tensor():
    a, b = np.ones((2, 3)), 2 * np.ones((2, 5))
    tensor = Tensor(("a", "b"), "i o -> o i")
    theirs = tensor.to_theirs([a, b])
    np.testing.assert_array_equal(theirs, np.concatenate([a, b], 1).T)
    for ours, array in zip(tensor.to_ours(theirs, [(2, 3), (2, 5)]), (a, b), strict=True):
        np.testing.assert_array_equal(ours, array)


def test_a_layer_says_its_arguments_and_tensors():
    layer = Layer()
    assert layer.torch_counterpart.arguments(layer) == {
        "batch_first": True,
        "size": 2,
        "momentum": 0.25,
        "both": (2, 0.75),
    }
    theirs = layer.torch_counterpart.to_theirs(layer)
    assert {name: array.shape for name, array in theirs.items()} == {
        "weight": (12, 2),
        "bias": (12,),
        "second": (12,),
    }
    assert not theirs["second"].any()
    assert theirs["bias"].any()


def test_what_is_split_there_is_summed_here():
    layer = Layer()
    theirs = layer.torch_counterpart.to_theirs(layer)
    layer.torch_counterpart.to_ours(layer, {**theirs, "second": np.full(12, 100.0)})
    np.testing.assert_array_equal(layer.bias, np.arange(12.0).reshape(3, 4) + 100)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        (
            {"weight": np.ones((2, 12))},
            ShapeError,
            r"a tensor for kernel has the shape \(2, 12\), expected \(12, 2\), which belongs to "
            r"\(2, 3, 4\)",
        ),
        (
            {"second": None},
            StructureError,
            "somewhere.Layer has no tensor 'second' for Layer.bias; it has 'weight', 'bias'",
        ),
    ],
)
def test_all_tensors_are_written_or_none(changed, error, message):
    layer = Layer()
    tensors = {**layer.torch_counterpart.to_theirs(layer), **changed}
    tensors = {name: array + 1 for name, array in tensors.items() if array is not None}
    with pytest.raises(error, match=message):
        layer.torch_counterpart.to_ours(layer, tensors)
    np.testing.assert_array_equal(layer.kernel, Layer().kernel)
    np.testing.assert_array_equal(layer.bias, Layer().bias)


def test_a_part_without_a_parameter_has_to_be_zero():
    tensor = Tensor("bias", absent=lambda array: array[2:])
    with pytest.raises(StructureError, match="no parameter, and which is not zero; set it to zero"):
        tensor.to_ours(np.ones(3), [(3,)])
    (ours,) = tensor.to_ours(np.array([1.0, 2.0, 0.0]), [(3,)])
    np.testing.assert_array_equal(ours, [1, 2, 0])


@pytest.mark.parametrize(
    ("shape", "name"), [((2, 3), "Norm1d"), ((2, 5, 3), "Norm1d"), ((2, 5, 5, 5, 3), "Norm3d")]
)
def test_the_rank_of_the_inputs_decides_on_the_class(shape, name):
    assert Counterpart("torch.nn.Norm{rank}d", {}).name_for(np.ones(shape)) == f"torch.nn.{name}"
    assert Counterpart("torch.nn.Linear", {}).name_for(np.ones(shape)) == "torch.nn.Linear"


def test_shapes_are_worked_out_without_arrays():
    huge = (2**20, 2**10, 2**10)
    tensor = Tensor(("a", "b"), "i h d -> (h d) i")
    assert tensor.shape([huge, huge]) == (2**21, 2**20)
    assert Tensor("a", "i o -> o i", rows=7).shape([(3, 5)]) == (7, 3)
    assert Tensor("a", "i o -> o i", part=(0, 2)).shape([(3, 4)]) == (2, 3)
    with pytest.raises(StructureError, match="no 2 equal parts"):
        Tensor("a", part=(0, 2)).shape([(3,)])
    with pytest.raises(StructureError, match="cannot be put together along axis 0"):
        Tensor(("a", "b")).shape([(3, 2), (3, 4)])


@pytest.mark.parametrize(
    ("tensor", "ours", "theirs"),
    [
        (Tensor("a", offset=1.0), [1.5, 2.0], [0.5, 1.0]),
        (Tensor("a", rows=3), [1.0, 2.0], [1.0, 2.0, 0.0]),
        (Tensor("a", rows=1), [1.0, 0.0], [1.0]),
    ],
)
def test_offsets_and_padded_rows(tensor, ours, theirs):
    given = np.array(ours, np.float32)
    np.testing.assert_array_equal(tensor.to_theirs([given]), theirs)
    (back,) = tensor.to_ours(np.array(theirs, np.float32), [given.shape])
    np.testing.assert_array_equal(back, ours)


def test_arrays_go_where_the_layers_are_and_are_not_rounded_in_silence():
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("x",))
    spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    layer = Linear(4, 3, use_bias=False, rngs=moduli.Rngs(0))
    layer.kernel.value = jax.device_put(layer.kernel.value, spread)
    half = np.ones((3, 4), np.float16)
    layer.torch_counterpart.to_ours(layer, {"weight": half})
    assert layer.kernel.value.sharding == spread
    assert layer.kernel.dtype == jnp.float32
    small = Linear(4, 3, use_bias=False, param_dtype=jnp.bfloat16, rngs=moduli.Rngs(0))
    with pytest.raises(StructureError, match=r"float16 for Linear\.kernel, which is bfloat16"):
        small.torch_counterpart.to_ours(small, {"weight": half})
