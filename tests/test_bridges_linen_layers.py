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


@pytest.mark.parametrize("name", ["LSTMCell", "SimpleCell"])
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
        norms = [sum(float((g**2).sum()) for g in jax.tree.leaves(t)) for t in (grads, expected)]
        np.testing.assert_allclose(*norms, rtol=1e-9)
        module, back = bridge.as_linen(ours)
        same(back, variables, 0)
        same(module.apply(back, carry, x), theirs.apply(variables, carry, x))


def test_what_linen_or_we_have_not_is_refused() -> None:
    rngs = moduli.Rngs(0)
    for match, layer in {
        r"with rotary=": moduli.MultiHeadAttention(2, 8, rotary=moduli.rotary_embedding, rngs=rngs),
        r"with num_kv_heads=1": moduli.MultiHeadAttention(2, 8, num_kv_heads=1, rngs=rngs),
        r"RoPE.*no layer of flax.linen": moduli.RoPE(),
    }.items():
        with pytest.raises(moduli.BridgeError, match=match):
            bridge.as_linen(moduli.Sequential(layer))
    with pytest.raises(moduli.BridgeError, match=r"WeightNorm.*no layer of moduli.*ToNNX"):
        bridge.from_linen(linen.WeightNorm(linen.Dense(3)), {})
    x = jnp.ones((2, 3))
    variables = linen.Dense(4).init(jax.random.key(0), x)
    with pytest.raises(moduli.BridgeError, match="have no bias"):
        bridge.from_linen(linen.Dense(4), {"params": {"kernel": variables["params"]["kernel"]}})
    dense: Any = bridge.from_linen(linen.Dense(4, dtype=jnp.bfloat16), variables)
    assert dense(x).dtype == jnp.bfloat16
