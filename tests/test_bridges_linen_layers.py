"""from_linen and as_linen: layers with their variables, values and gradients as linen's own."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bridge_checks import float64, gradients, same, weight, wide
from layer_table import STRUCTURES, TABLE, Row

import moduli
from moduli import bridge

linen = pytest.importorskip("flax.linen")
_MORE = {
    "conv-groups", "conv-circular-dilated", "conv-causal", "conv_transpose-circular",
    "conv_transpose-kernel", "attention-cross-no-bias", "group_norm-group-size",
    "linear_general-out", "batch_norm-axis", "instance_norm-sequences", "prelu",
}  # fmt: skip
_KINDS = (
    moduli.Linear, moduli.LinearGeneral, moduli.Conv, moduli.ConvTranspose, moduli.Embed,
    moduli.LayerNorm, moduli.RMSNorm, moduli.GroupNorm, moduli.InstanceNorm, moduli.BatchNorm,
    moduli.MultiHeadAttention, moduli.PReLU, moduli.Dropout, moduli.Sequential,
    moduli.Einsum,
)  # fmt: skip
ROWS = [
    row
    for row in TABLE
    if (row in STRUCTURES or row.name in _MORE)
    and row.name.split("-")[0] not in ("lora", "lora_linear", "weight_norm", "spectral_norm")
    and type(moduli.eval_shape(lambda row=row: row.build(moduli.Rngs(0)))) in _KINDS
]
LACKING = {
    "layer_norm-no-parameters": "whose variables are not there",
    "rms_norm-no-scale": "whose variables are not there",
    "group_norm-no-parameters": "whose variables are not there",
    "instance_norm-no-parameters": "whose variables are not there",
    "rms_norm-several-feature-axes": "with several feature_axes",
    "instance_norm-two-feature-axes": "with several feature_axes",
    "prelu-features": "with num_parameters=3",
    "sequential-shared": "stands in two places",
}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_layer_goes_to_linen_and_back(row: Row) -> None:
    with float64():
        model, inputs = wide(row)
        if row.name in LACKING:
            with pytest.raises(moduli.BridgeError, match=LACKING[row.name]):
                bridge.from_linen(*bridge.as_linen(model))
            return
        module, variables = bridge.as_linen(model)
        expected = model(*inputs)
        same(module.apply(variables, *inputs), expected, 1e-6 if "attention" in row.name else 1e-10)

        def loss(params: Any) -> Any:
            out = module.apply({**variables, "params": params}, *inputs)
            return (out * weight(expected)).sum()

        if "params" in variables:
            params, _ = gradients(model, inputs)
            theirs = jax.grad(loss)(variables["params"])
            norms = [sum(float((g**2).sum()) for g in jax.tree.leaves(t)) for t in (params, theirs)]
            np.testing.assert_allclose(*norms, rtol=1e-6 if "attention" in row.name else 1e-9)
        back = bridge.from_linen(module, variables)
        assert type(back) is type(model)
        flat = [
            {
                path: leaf.get_raw_value() if isinstance(leaf, moduli.Variable) else leaf
                for path, leaf in moduli.to_flat_state(moduli.state(m))
                if not isinstance(leaf, moduli.RngState)
            }
            for m in (model, back)
        ]
        assert flat[0].keys() == flat[1].keys()
        same(*flat, 0)
        back.eval()
        same(back(*inputs), expected, 1e-12)


@pytest.mark.parametrize("name", ["LSTMCell", "OptimizedLSTMCell", "GRUCell", "SimpleCell"])
def test_a_cell_goes_to_linen_and_back(name: str) -> None:
    with float64():
        x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3)))
        theirs = getattr(linen, name)(4)
        carry = jax.tree.map(
            lambda zeros: zeros.astype(x.dtype) + 0.3,
            theirs.initialize_carry(jax.random.key(0), x.shape),
        )
        variables = theirs.init(jax.random.key(0), carry, x)
        variables = jax.tree.map(lambda a: jnp.asarray(a, x.dtype) + 0.1, variables)
        ours = bridge.from_linen(theirs, variables)
        same(ours(carry, x), theirs.apply(variables, carry, x))

        def loss(step: Any) -> Any:
            return sum((leaf**2).sum() for leaf in jax.tree.leaves(step(carry, x)))

        expected = jax.grad(
            lambda variables: loss(lambda *inputs: theirs.apply(variables, *inputs))
        )(variables)
        grads = moduli.grad(loss)(ours)
        if name == "GRUCell":  # ours has a second bias at the gates r and z, whose sum it uses
            grads["dense_h"]["bias"].set_value(grads["dense_h"]["bias"][...][8:])
        norms = [sum(float((g**2).sum()) for g in jax.tree.leaves(t)) for t in (grads, expected)]
        np.testing.assert_allclose(*norms, rtol=1e-9)
        module, back = bridge.as_linen(ours)
        same(back, variables, 0)
        same(module.apply(back, carry, x), theirs.apply(variables, carry, x))


@pytest.mark.parametrize("hidden", [False, True])
def test_a_gru_goes_to_linen_with_one_bias_at_each_gate(hidden: bool) -> None:
    with float64():
        x, h = (jnp.asarray(np.random.default_rng(n).normal(size=(2, 3 + n))) for n in range(2))
        cell = moduli.GRUCell(
            3,
            4,
            use_hidden_bias=hidden,
            bias_init=moduli.initializers.normal(1),
            carry_init=moduli.initializers.ones,
            param_dtype=x.dtype,
            rngs=moduli.Rngs(0),
        )
        module, variables = bridge.as_linen(cell)
        same(module.apply(variables, h, x), cell(h, x))
        same(module.initialize_carry(jax.random.key(0), x.shape), jnp.ones((2, 4)))
        back = bridge.from_linen(module, variables)
        same(back(h, x), cell(h, x))
        same(back.initialize_carry(x.shape, moduli.Rngs(0)), jnp.ones((2, 4)))


@pytest.mark.parametrize("cell", ["LSTMCell", "OptimizedLSTMCell", "GRUCell", "SimpleCell"])
@pytest.mark.parametrize("both", [False, True])
def test_a_network_goes_to_linen_and_back(cell: str, both: bool) -> None:
    with float64():
        x = jnp.asarray(np.random.default_rng(0).normal(size=(5, 2, 3)))
        runs = [
            linen.RNN(getattr(linen, cell)(4, param_dtype=x.dtype), reverse=not both, unroll=2)
            for _ in range(1 + both)
        ]
        one = (
            linen.Bidirectional(*runs, merge_fn=jnp.add, time_major=True)
            if both
            else runs[0].clone(time_major=True, keep_order=True)
        )
        theirs = linen.Sequential([one, linen.Dense(2, param_dtype=x.dtype)])
        variables = theirs.init(jax.random.key(0), x)
        variables = jax.tree.map(lambda a: a + 0.1, variables)
        ours = bridge.from_linen(theirs, variables)
        expected = theirs.apply(variables, x)
        same(ours(x), expected)
        grads = jax.grad(lambda x: (ours(x) ** 2).sum())(x)
        same(grads, jax.grad(lambda x: (theirs.apply(variables, x) ** 2).sum())(x))
        lengths = jnp.array([5, 3])
        part = {"params": variables["params"]["layers_0"]}
        settings: dict[str, Any] = {"seq_lengths": lengths, "return_carry": True}
        same(ours.layers[0](x, **settings)[0], one.apply(part, x, **settings)[0])
        module, back = bridge.as_linen(ours)
        same(back, variables, 0)
        same(module.apply(back, x), expected)


@pytest.mark.parametrize("equation", ["nta,hab->nthb", "...a,hab->b...h", None])
@pytest.mark.parametrize("use_bias", [True, False])
def test_an_einsum_goes_to_linen_and_back(equation: str | None, use_bias: bool) -> None:
    with float64():
        x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 3)))
        theirs = linen.Einsum((4, 3, 6), equation, use_bias=use_bias, param_dtype=x.dtype)
        inputs = (x,) if equation else (x, "nta,hab->nthb")
        variables = jax.tree.map(lambda a: a + 0.1, theirs.init(jax.random.key(0), *inputs))
        ours = bridge.from_linen(theirs, variables)
        same(ours(*inputs), theirs.apply(variables, *inputs))
        grads = moduli.grad(lambda ours: (ours(*inputs) ** 2).sum())(ours)
        expected = jax.grad(lambda v: (theirs.apply(v, *inputs) ** 2).sum())(variables)["params"]
        same({name: grads[name].get_raw_value() for name in expected}, expected)
        module, back = bridge.as_linen(ours)
        same(back, variables, 0)
        same(module.apply(back, *inputs), theirs.apply(variables, *inputs))


def _wrapped() -> dict[str, Any]:
    wide: dict[str, Any] = {"param_dtype": jnp.float64}
    dense, conv = linen.Dense(4, **wide), linen.Conv(4, (2,), **wide)
    return {
        "weights": linen.WeightNorm(dense, **wide),
        "one length": linen.WeightNorm(dense, feature_axes=None, use_scale=True, **wide),
        "no scale": linen.WeightNorm(conv, use_scale=False, **wide),
        "two axes": linen.WeightNorm(conv, feature_axes=(0, -1), **wide),
        "names": linen.WeightNorm(dense, variable_filter={"bias"}, **wide),
        "all": linen.WeightNorm(dense, variable_filter=None, **wide),
        "spectral": linen.SpectralNorm(dense, n_steps=2, **wide),
        "spectral conv": linen.SpectralNorm(conv, **wide),
    }


@pytest.mark.parametrize("name", _wrapped())
def test_a_normalised_layer_goes_to_linen_and_back(name: str) -> None:
    with float64():
        x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 3)))
        theirs = _wrapped()[name]
        mode = {"update_stats": False} if "spectral" in name else {}
        variables = theirs.init(jax.random.key(0), x, **mode)
        variables = jax.tree.map(lambda a: jnp.asarray(a) + 0.1, variables)
        ours = bridge.from_linen(theirs, variables)
        ours.eval()
        expected = theirs.apply(variables, x, **mode)
        same(ours(x), expected)

        def loss(params: Any) -> Any:
            return (theirs.apply({**variables, "params": params}, x, **mode) ** 2).sum()

        grads = [moduli.grad(lambda ours: (ours(x) ** 2).sum())(ours)]
        grads.append(jax.grad(loss)(variables["params"]))
        norms = [sum(float((g**2).sum()) for g in jax.tree.leaves(t)) for t in grads]
        np.testing.assert_allclose(*norms, rtol=1e-9)
        module, back = bridge.as_linen(moduli.Sequential(ours))
        same(bridge.as_linen(ours)[1], variables, 0)
        same(module.apply(back, x, **mode), expected)
        again = bridge.from_linen(module, back)
        again.eval()
        same(again(x), expected)


def test_what_linen_or_we_have_not_is_refused() -> None:
    rngs = moduli.Rngs(0)
    for match, layer in {
        r"with rotary=": moduli.MultiHeadAttention(2, 8, rotary=moduli.rotary_embedding, rngs=rngs),
        r"with num_kv_heads=1": moduli.MultiHeadAttention(2, 8, num_kv_heads=1, rngs=rngs),
        r"RoPE.*no layer of flax.linen": moduli.RoPE(),
        r"bias_shape=\(8,\), where linen's is \(2, 4\)": moduli.Einsum(
            "na,hab->nhb", (2, 3, 4), 8, rngs=rngs
        ),
        r"`layers/0`.*with state_axes=": moduli.RNN(
            moduli.SimpleCell(3, 4, rngs=rngs), state_axes={moduli.Param: 0}
        ),
    }.items():
        with pytest.raises(moduli.BridgeError, match=match):
            bridge.as_linen(moduli.Sequential(layer))
    with pytest.raises(moduli.BridgeError, match=r"ConvLocal.*no layer of moduli.*ToNNX"):
        bridge.from_linen(linen.ConvLocal(3, (2,)), {})
    with pytest.raises(moduli.BridgeError, match=r"SpectralNorm, around a GRUCell"):
        bridge.as_linen(moduli.SpectralNorm(moduli.GRUCell(3, 4, rngs=rngs), rngs=rngs))
    x = jnp.ones((2, 3))
    variables = linen.Dense(4).init(jax.random.key(0), x)
    with pytest.raises(moduli.BridgeError, match="have no bias"):
        bridge.from_linen(linen.Dense(4), {"params": {"kernel": variables["params"]["kernel"]}})
    dense: Any = bridge.from_linen(linen.Dense(4, dtype=jnp.bfloat16), variables)
    assert dense(x).dtype == jnp.bfloat16
