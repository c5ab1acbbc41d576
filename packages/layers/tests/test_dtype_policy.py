"""One policy for the dtypes of a whole model."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import moduli
from moduli.errors import StructureError
from moduli_layers import BatchNorm, Conv, Dropout, DtypePolicy, Linear, set_dtypes
from moduli_layers.errors import DtypeError


class Net(moduli.Module):
    def __init__(self, rngs: moduli.Rngs) -> None:
        self.conv = Conv(3, 4, 3, rngs=rngs)
        self.norm = BatchNorm(4, rngs=rngs)
        self.dropout = Dropout(0.5, rngs=rngs)
        self.blocks = [Linear(4, 4, rngs=rngs), Linear(4, 2, rngs=rngs)]
        self.gain = moduli.Param(jnp.ones(2))
        self.steps = moduli.Param(jnp.zeros((), jnp.int32))

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.dropout(self.norm(self.conv(x)))
        for block in self.blocks:
            x = block(x)
        return x * self.gain.value.astype(x.dtype)


def dtypes(model: moduli.Module) -> dict[str, str]:
    return {
        moduli.errors.format_path(path): v.dtype.name
        for path, v in moduli.iter_graph(model)
        if isinstance(v, moduli.Variable) and not isinstance(v, moduli.RngState)
    }


def test_parameters_are_cast_and_nothing_else() -> None:
    net = Net(moduli.Rngs(0))
    kernel = net.conv.kernel
    set_dtypes(net, DtypePolicy(param=jnp.bfloat16))
    assert net.conv.kernel is kernel
    assert dtypes(net) == {
        "blocks/0/bias": "bfloat16",
        "blocks/0/kernel": "bfloat16",
        "blocks/1/bias": "bfloat16",
        "blocks/1/kernel": "bfloat16",
        "conv/bias": "bfloat16",
        "conv/kernel": "bfloat16",
        "gain": "bfloat16",
        "norm/bias": "bfloat16",
        "norm/mean": "float32",
        "norm/scale": "bfloat16",
        "norm/var": "float32",
        "steps": "int32",
    }
    assert net.blocks[0].param_dtype == jnp.bfloat16
    assert net.blocks[0].dtype is None


def test_norms_keep_their_own_dtype() -> None:
    net = Net(moduli.Rngs(0))
    set_dtypes(net, DtypePolicy(param=jnp.bfloat16, norm=jnp.float32))
    found = dtypes(net)
    assert found["norm/scale"] == found["norm/bias"] == "float32"
    assert found["conv/kernel"] == "bfloat16"


def test_every_layer_computes_in_the_dtype() -> None:
    net = Net(moduli.Rngs(0))
    set_dtypes(net, DtypePolicy(param=jnp.float32, compute=jnp.bfloat16))
    seen = []

    class Watch:
        @moduli.hookimpl
        def moduli_after_call(self, module, output) -> None:
            seen.append(output.dtype)

    with moduli.using(Watch()), jax.numpy_dtype_promotion("strict"):
        net(jnp.ones((2, 5, 3)))
    assert set(seen) == {jnp.dtype(jnp.bfloat16)}
    assert len(seen) == 6


def test_the_first_override_that_fits_holds_below_its_module() -> None:
    net = Net(moduli.Rngs(0))
    set_dtypes(
        net,
        DtypePolicy(param=jnp.float16, compute=jnp.float16),
        {
            (lambda path, module: path == ("blocks", 1)): DtypePolicy(compute=jnp.float32),
            moduli.PathContains("blocks"): DtypePolicy(param=jnp.bfloat16),
        },
    )
    assert [block.dtype for block in net.blocks] == [jnp.float16, jnp.float32]
    assert [block.kernel.dtype for block in net.blocks] == [jnp.bfloat16, jnp.float16]
    assert net.conv.dtype == jnp.float16


def test_a_class_is_an_override() -> None:
    net = Net(moduli.Rngs(0))
    set_dtypes(net, DtypePolicy(compute=jnp.bfloat16), {Conv: DtypePolicy(compute=jnp.float32)})
    assert (net.conv.dtype, net.norm.dtype) == (jnp.float32, jnp.bfloat16)


@pytest.mark.parametrize(
    "build", [lambda r: Linear(512, 4, rngs=r), lambda r: Conv(64, 4, 8, rngs=r)]
)
def test_sums_are_accumulated_in_the_wider_dtype(build) -> None:
    """Seen in the program: the product's result is float32, the layer's bfloat16."""
    layer = build(moduli.Rngs(0))
    set_dtypes(layer, DtypePolicy(compute=jnp.bfloat16, accumulate=jnp.float32))
    x = jnp.ones((2, 8, layer.in_features))
    graphdef, state = moduli.split(layer)
    jaxpr = str(jax.make_jaxpr(lambda state: moduli.merge(graphdef, state)(x))(state))
    assert "preferred_element_type=float32" in jaxpr
    assert layer(x).dtype == jnp.bfloat16
    layer.preferred_element_type = jnp.float32  # a layer's own word goes first
    assert layer(x).dtype == jnp.float32


def test_the_policy_is_as_good_as_building_so() -> None:
    x = jnp.linspace(-1, 1, 30).reshape(2, 5, 3)
    one = Conv(3, 4, 3, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16, rngs=moduli.Rngs(0))
    other = Conv(3, 4, 3, rngs=moduli.Rngs(0))
    other.kernel.value, other.bias.value = one.kernel.value, one.bias.value
    set_dtypes(other, DtypePolicy(param=jnp.bfloat16, compute=jnp.bfloat16))
    np.testing.assert_array_equal(one(x), other(x))


def test_abstract_models_take_a_policy() -> None:
    net = moduli.eval_shape(lambda: Net(moduli.Rngs(0)))
    set_dtypes(net, DtypePolicy(param=jnp.bfloat16))
    assert net.conv.kernel.value == jax.ShapeDtypeStruct((3, 3, 4), jnp.bfloat16)


def test_an_override_that_selects_nothing_changes_nothing() -> None:
    net = Net(moduli.Rngs(0))
    with pytest.raises(StructureError) as caught:
        set_dtypes(
            net,
            DtypePolicy(param=jnp.bfloat16),
            {moduli.PathContains("haed"): DtypePolicy(param=jnp.float32)},
        )
    assert str(caught.value) == (
        "set_dtypes: the override PathContains('haed', True) selects no module of Net; its modules "
        "are blocks/0, blocks/1, blocks, conv, dropout, norm, the model itself"
    )
    assert net.conv.kernel.dtype == jnp.float32


def test_one_parameter_has_one_dtype() -> None:
    net = Net(moduli.Rngs(0))
    net.blocks[1].bias = net.gain
    with pytest.raises(StructureError) as caught:
        set_dtypes(
            net,
            DtypePolicy(param=jnp.bfloat16),
            {moduli.PathContains("blocks"): DtypePolicy(param=jnp.float16)},
        )
    assert str(caught.value) == (
        "set_dtypes: `blocks/1/bias` and `gain` are one Param, but the policies say float16 and "
        "bfloat16; give both modules the same dtype"
    )
    assert net.conv.kernel.dtype == jnp.float32


def test_one_layer_in_two_places_has_one_policy() -> None:
    net = Net(moduli.Rngs(0))
    net.head = net.blocks[1]
    with pytest.raises(StructureError, match=r"`blocks/1` and `head` are one Linear, but"):
        set_dtypes(
            net,
            DtypePolicy(),
            {moduli.PathContains("head"): DtypePolicy(compute=jnp.float16)},
        )


def test_integers_are_no_policy() -> None:
    with pytest.raises(
        DtypeError, match="DtypePolicy got compute=int8; write a floating dtype, as"
    ):
        DtypePolicy(compute=jnp.int8)


def test_an_error_half_way_leaves_the_model_as_it_was() -> None:
    class Stubborn(moduli.Module):
        dtype = None

        def __setattr__(self, name, value) -> None:
            if name == "dtype":
                raise RuntimeError("no")
            super().__setattr__(name, value)

    net = Net(moduli.Rngs(0))
    net.zzz = Stubborn()
    with pytest.raises(RuntimeError):
        set_dtypes(net, DtypePolicy(param=jnp.bfloat16, compute=jnp.bfloat16))
    assert net.conv.dtype is None
    assert "accumulate_dtype" not in vars(net.conv)
    assert net.conv.kernel.dtype == jnp.float32


def test_jit_sees_the_change() -> None:
    layer = Linear(3, 2, rngs=moduli.Rngs(0))
    call = moduli.jit(lambda layer, x: layer(x))
    x = jnp.ones((1, 3), jnp.float32)
    assert call(layer, x).dtype == jnp.float32
    set_dtypes(layer, DtypePolicy(compute=jnp.bfloat16))
    assert call(layer, x).dtype == jnp.bfloat16


@pytest.mark.parametrize("field", ["param", "compute", "accumulate", "norm"])
def test_what_is_no_dtype_is_refused(field: str) -> None:
    with pytest.raises(DtypeError, match=f"DtypePolicy got {field}='float33'; write a floating"):
        DtypePolicy(**{field: "float33"})
