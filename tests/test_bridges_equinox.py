"""from_equinox and to_equinox: values and gradients are equinox's own."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bridge_checks import float64, gradients, same, weight, wide
from layer_table import TABLE, Row

import moduli

equinox = pytest.importorskip("equinox")
nn = equinox.nn
KEY = jax.random.key(0)

LAYERS: dict[str, tuple[Any, Any]] = {
    "linear": (lambda: nn.Linear(3, 4, key=KEY), (3,)),
    "linear-no-bias": (lambda: nn.Linear(3, 4, use_bias=False, key=KEY), (3,)),
    "embedding": (lambda: nn.Embedding(5, 3, key=KEY), 4),
    "conv1d": (lambda: nn.Conv1d(3, 4, 3, stride=2, padding=1, key=KEY), (3, 7)),
    "conv2d": (lambda: nn.Conv2d(4, 4, (3, 2), dilation=2, groups=2, key=KEY), (4, 8, 9)),
    "conv2d-same": (lambda: nn.Conv2d(2, 3, 3, padding="SAME", key=KEY), (2, 5, 6)),
    "conv2d-circular": (
        lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="CIRCULAR", key=KEY),
        (2, 5, 6),
    ),
    "conv3d": (lambda: nn.Conv3d(2, 3, 2, key=KEY), (2, 3, 4, 5)),
    "layer_norm": (lambda: nn.LayerNorm(4), (4,)),
    "layer_norm-plain": (lambda: nn.LayerNorm(4, use_weight=False, use_bias=False), (4,)),
    "rms_norm": (lambda: nn.RMSNorm(4, use_bias=False), (4,)),
    "prelu": (lambda: nn.PReLU(0.3), (3, 2)),
    "dropout": (lambda: nn.Dropout(0.5, inference=True), (3,)),
    "prelu-features": (lambda: nn.PReLU(jnp.array([0.3, 0.1])), (3, 2)),
    "conv_transpose2d": (
        lambda: nn.ConvTranspose2d(
            2, 3, (3, 2), stride=2, padding=1, output_padding=(1, 0), dilation=(2, 1), key=KEY
        ),
        (2, 4, 5),
    ),
    "conv_transpose1d-groups": (
        lambda: nn.ConvTranspose1d(4, 6, 3, stride=2, groups=2, key=KEY),
        (4, 5),
    ),
    "conv_transpose1d-same": (
        lambda: nn.ConvTranspose1d(2, 3, 3, stride=2, padding="SAME", key=KEY),
        (2, 5),
    ),
    "group_norm": (lambda: nn.GroupNorm(2, 4), (4, 3, 5)),
    "group_norm-vector": (lambda: nn.GroupNorm(2, 4, channelwise_affine=False), (4,)),
    "max_pool": (lambda: nn.MaxPool2d(3, 2, padding=((0, 1), (1, 1))), (2, 6, 7)),
    "max_pool-ceil": (
        lambda: nn.MaxPool2d((3, 4), (2, 3), padding=((1, 0), (0, 1)), use_ceil=True),
        (2, 7, 8),
    ),
    "max_pool-ceil-long": (lambda: nn.MaxPool1d(5, 2, padding=((1, 3),), use_ceil=True), (2, 6)),
    "weight_norm": (lambda: nn.WeightNorm(nn.Linear(3, 4, key=KEY)), (3,)),
    "weight_norm-inputs": (lambda: nn.WeightNorm(nn.Linear(3, 4, key=KEY), axis=1), (3,)),
    "weight_norm-one": (lambda: nn.WeightNorm(nn.Linear(3, 4, key=KEY), axis=None), (3,)),
    "weight_norm-conv": (
        lambda: nn.WeightNorm(nn.Conv2d(2, 3, (3, 2), key=KEY), axis=-1),
        (2, 5, 6),
    ),
    "weight_norm-conv_transpose": (
        lambda: nn.WeightNorm(nn.ConvTranspose1d(2, 3, 3, stride=2, key=KEY)),
        (2, 5),
    ),
    "avg_pool": (lambda: nn.AvgPool1d(2, 2, padding=1), (2, 6)),
    "mlp": (lambda: nn.MLP(3, 2, 5, 2, activation=jax.nn.tanh, key=KEY), (3,)),
    "network": (
        lambda: nn.Sequential(
            [
                nn.Conv2d(1, 2, 3, key=KEY),
                nn.Lambda(jax.nn.relu),
                nn.Lambda(jnp.ravel),
                nn.Linear(24, 5, key=KEY),
                nn.Identity(),
            ]
        ),
        (1, 5, 6),
    ),
}


@pytest.mark.parametrize("make,shape", LAYERS.values(), ids=LAYERS)
def test_a_layer_comes_over_and_goes_back(make: Any, shape: Any) -> None:
    with float64():
        theirs = jax.tree.map(lambda x: x + 0.1 if equinox.is_inexact_array(x) else x, make())
        x = jnp.asarray(shape) if isinstance(shape, int) else jax.random.normal(KEY, shape)
        ours = moduli.from_equinox(theirs)

        def loss(model: Any) -> Any:
            return (model(x) ** 2).sum()

        same(ours(x), theirs(x))
        grads = equinox.filter_grad(loss)(theirs)
        mine = moduli.grad(loss)(ours)
        norms = [sum(float((g**2).sum()) for g in jax.tree.leaves(tree)) for tree in (mine, grads)]
        np.testing.assert_allclose(*norms, rtol=1e-6)
        again = moduli.to_equinox(ours)
        same(again(x), theirs(x))
        if not isinstance(theirs, nn.MLP):
            same(jax.tree.leaves(equinox.filter(again, equinox.is_array)),
                 jax.tree.leaves(equinox.filter(theirs, equinox.is_array)))  # fmt: skip


CALLS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "attention": (
        lambda: nn.MultiheadAttention(
            2, 6, 5, 5, output_size=3, qk_size=4, vo_size=4, use_query_bias=True,
            use_key_bias=True, use_value_bias=True, use_output_bias=True, key=KEY,
        ),
        ((4, 6), (7, 5), (7, 5)),
    ),
    "lstm_cell": (lambda: nn.LSTMCell(3, 4, key=KEY), ((3,), ((4,), (4,)))),
    "gru_cell": (lambda: nn.GRUCell(3, 4, key=KEY), ((3,), (4,))),
}  # fmt: skip


@pytest.mark.parametrize("make,shapes", CALLS.values(), ids=CALLS)
def test_layers_of_several_inputs_come_over_and_go_back(make: Any, shapes: Any) -> None:
    with float64():
        theirs, rng = make(), np.random.default_rng(0)

        def draw(shape: Any) -> Any:
            inner = isinstance(shape[0], tuple)
            return tuple(map(draw, shape)) if inner else jnp.asarray(rng.normal(size=shape))

        inputs = tuple(map(draw, shapes))
        ours: Any = moduli.from_equinox(theirs)
        run = moduli.jit(lambda model, *inputs: model(*inputs))
        same(run(ours, *inputs), theirs(*inputs), 1e-10)

        def loss(model: Any, inputs: Any) -> Any:
            return sum((leaf**2).sum() for leaf in jax.tree.leaves(model(*inputs)))

        expected = jax.grad(lambda inputs: loss(theirs, inputs))(inputs)
        same(moduli.grad(loss, argnums=1)(ours, inputs), expected, 1e-10)
        again = moduli.to_equinox(ours)
        same(jax.tree.leaves(equinox.filter(again, equinox.is_array)),
             jax.tree.leaves(equinox.filter(theirs, equinox.is_array)), 0)  # fmt: skip


def test_rotary_embedding_comes_over_and_goes_back() -> None:
    x = np.random.default_rng(0).normal(size=(5, 4)).astype("f4")
    theirs = nn.RotaryPositionalEmbedding(4)
    expected = theirs(jnp.asarray(x))
    same(moduli.from_equinox(theirs)(x), expected, 1e-5)
    table = moduli.RoPE(embedding_size=4, max_seq_len=8)
    same(moduli.to_equinox(table)(jnp.asarray(x)), expected, 1e-5)
    with pytest.raises(moduli.BridgeError, match="RoPE, without embedding_size"):
        moduli.to_equinox(moduli.RoPE())


def test_batch_norm_takes_its_state_along() -> None:
    with float64():
        x = jax.random.normal(KEY, (6, 3, 4))
        theirs, state = equinox.nn.make_with_state(nn.BatchNorm)(3, "batch", mode="batch")
        mapped = jax.vmap(theirs, axis_name="batch", in_axes=(0, None), out_axes=(0, None))
        out, state = mapped(x, state)
        ours: Any = moduli.from_equinox(theirs, state=state)
        run = moduli.vmap(lambda model, x: model(x), in_axes=(None, 0), axis_name="batch")
        same(run(ours, x), out, 1e-10)
        ours = moduli.from_equinox(theirs, state=state)
        ours.eval()
        expected, _ = jax.vmap(
            equinox.nn.inference_mode(theirs), axis_name="batch", in_axes=(0, None),
            out_axes=(0, None),
        )(x, state)  # fmt: skip
        same(run(ours, x), expected, 1e-10)
        again: Any = moduli.to_equinox(ours)
        same(jax.vmap(again, axis_name="batch", in_axes=(0, None), out_axes=(0, None))(
            x, equinox.nn.State(again))[0], expected, 1e-10)  # fmt: skip
        with pytest.raises(moduli.BridgeError, match="whose state is not given"):
            moduli.from_equinox(theirs)


LAST = {
    "conv-1d", "conv-circular-dilated", "conv-groups", "conv_transpose-same-stride",
    "conv_transpose-causal", "conv_transpose-kernel", "group_norm-images", "attention-self",
    "embed", "rms_norm-no-scale", "prelu-features",
}  # fmt: skip


@pytest.mark.parametrize("row", [r for r in TABLE if r.name in LAST], ids=lambda row: row.name)
def test_a_layer_of_ours_goes_to_equinox_and_back(row: Row) -> None:
    with float64():
        model, inputs = wide(row)
        theirs = moduli.to_equinox(model)
        takes = 3 if isinstance(model, moduli.MultiHeadAttention) else 1
        whole = (inputs * 3 if len(inputs) < takes else inputs)[:takes]
        ranks = {"linear": 1, "embed": 0, "layer_norm": 1, "rms_norm": 1, "prelu": 1, "mlp": 1}
        rank = next((n for name, n in ranks.items() if row.name.startswith(name)), None)

        def call(theirs: Any, *inputs: Any) -> Any:
            for _ in range(1 if rank is None else inputs[0].ndim - rank):
                mapped, theirs = theirs, None
                theirs = jax.vmap(mapped)
            return theirs(*inputs)

        same(call(theirs, *whole), model(*inputs), 1e-10)
        params, _ = gradients(model, inputs)
        out = model(*inputs)
        grads = equinox.filter_grad(lambda theirs: (call(theirs, *whole) * weight(out)).sum())(
            theirs
        )
        norms = [sum(float((g**2).sum()) for g in jax.tree.leaves(t)) for t in (params, grads)]
        np.testing.assert_allclose(*norms, rtol=1e-9)
        back = moduli.from_equinox(theirs)
        if not isinstance(model, moduli.MLP):
            flat = [dict(moduli.to_flat_state(moduli.state(m))) for m in (model, back)]
            assert flat[0].keys() == flat[1].keys() and type(back) is type(model)
            if "conv_transpose-kernel" not in row.name:
                same(*({k: v.get_raw_value() for k, v in f.items()} for f in flat), 0)


class Net(equinox.Module):
    linear: Any
    steps: jax.Array
    name: str

    def __call__(self, x: Any) -> Any:
        return jnp.tanh(self.linear(x)) * self.steps


def test_a_class_of_the_users_is_called_with_our_variables() -> None:
    theirs = Net(nn.Linear(3, 4, key=KEY), jnp.array(2), "net")
    model: Any = moduli.from_equinox({"net": [theirs]})["net"][0]
    assert type(model.arrays[".steps"]) is moduli.Variable
    x = jnp.ones(3)
    same(moduli.jit(lambda model, x: model(x))(model, x), theirs(x), 1e-6)
    grads = moduli.grad(lambda model: model(x).sum())(model)
    expected = equinox.filter_grad(lambda model: model(x).sum())(theirs)
    same(grads.arrays[".linear.weight"].value, expected.linear.weight, 1e-6)
    back = moduli.to_equinox(model)
    assert isinstance(back, Net) and back.name == "net"


REFUSED = {
    "SpectralNorm.*has no layer of moduli": lambda: nn.SpectralNorm(
        nn.Linear(2, 2, key=KEY), "weight", key=KEY
    ),
    "AdaptivePool|AdaptiveAvgPool.*has no layer": lambda: nn.AdaptiveAvgPool1d(2),
    "AvgPool1d, with use_ceil.*write the padding": lambda: nn.AvgPool1d(2, use_ceil=True),
    "BatchNorm, which is not of mode": lambda: nn.BatchNorm(2, "batch", mode="ema"),
    "MultiheadAttention, with biases": lambda: nn.MultiheadAttention(
        2, 4, use_query_bias=True, key=KEY
    ),
    "GRUCell, with use_bias": lambda: nn.GRUCell(2, 2, use_bias=False, key=KEY),
    "LayerNorm, with shape": lambda: nn.LayerNorm((2, 3)),
    "Conv1d, with padding_mode='REPLICATE'": lambda: nn.Conv1d(
        1, 1, 3, padding=1, padding_mode="REPLICATE", key=KEY
    ),
    'Linear, with the size "scalar"': lambda: nn.Linear("scalar", 2, key=KEY),
}


@pytest.mark.parametrize("match", REFUSED)
def test_what_has_no_counterpart_is_refused_with_its_place(match: str) -> None:
    with pytest.raises(moduli.BridgeError, match=rf"at `layers/1` of the model.*{match}"):
        moduli.from_equinox(nn.Sequential([nn.Identity(), REFUSED[match]()]))


def test_ours_that_equinox_lacks_and_what_is_shared_are_refused() -> None:
    rngs = moduli.Rngs(0)
    linear = moduli.Linear(3, 3, rngs=rngs)
    with pytest.raises(moduli.BridgeError, match=r"layers/1.*also stands at `layers/0`"):
        moduli.to_equinox(moduli.Sequential(linear, linear))
    with pytest.raises(moduli.BridgeError, match=r"SimpleCell.*no layer of equinox.*are pytrees"):
        moduli.to_equinox(moduli.SimpleCell(3, 4, rngs=rngs))
    pool = moduli.from_equinox(nn.MaxPool1d(2, 3, use_ceil=True))  # raises there, unless it fits
    with pytest.raises(moduli.BridgeError, match=r"ceil_mode=True, and strides"):
        moduli.to_equinox(pool)
    with pytest.raises(moduli.BridgeError, match=r"with num_kv_heads"):
        moduli.to_equinox(moduli.MultiHeadAttention(4, 8, num_kv_heads=2, rngs=rngs))


def test_a_dtype_of_its_own_is_not_left_out() -> None:
    layer = moduli.Linear(3, 4, dtype=jnp.bfloat16, rngs=moduli.Rngs(0))
    with pytest.raises(moduli.BridgeError, match=r"computes in bfloat16 and keeps .* in float32"):
        moduli.to_equinox(layer)
