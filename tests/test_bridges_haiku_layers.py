"""from_haiku_layers and as_haiku_layers: values and gradients are haiku's own."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bridge_checks import float64, floats, gradients, same, weight, wide
from layer_table import EVERY, STRUCTURES, TABLE, Row

import moduli
from moduli import bridge

hk = pytest.importorskip("haiku")
KEY = jax.random.key(0)
INIT = hk.initializers.VarianceScaling()

LAYERS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "linear": (lambda: hk.Linear(4), (2, 3)),
    "linear-no-bias": (lambda: hk.Linear(4, with_bias=False), (3,)),
    "conv1d": (lambda: hk.Conv1D(4, 3, 2, padding="VALID"), (2, 7, 3)),
    "conv1d-causal": (lambda: hk.Conv1D(4, 3, rate=2, padding=hk.pad.causal), (2, 7, 3)),
    "conv2d": (lambda: hk.Conv2D(4, (3, 2), rate=2, feature_group_count=2), (2, 8, 9, 4)),
    "conv2d-uneven": (lambda: hk.Conv2D(3, 3, 2, padding=((0, 1), (2, 0))), (2, 6, 7, 2)),
    "conv2d-first": (lambda: hk.Conv2D(3, 3, data_format="NCHW"), (2, 4, 5, 6)),
    "conv2d-mask": (
        lambda: hk.Conv2D(3, 2, mask=jnp.arange(48).reshape(2, 2, 4, 3) % 3 > 0),
        (1, 5, 5, 4),
    ),
    "conv3d": (lambda: hk.Conv3D(2, 2), (1, 3, 4, 5, 2)),
    "depthwise": (lambda: hk.DepthwiseConv2D(2, 3), (1, 5, 4, 3)),
    "transposed": (lambda: hk.Conv2DTranspose(3, (3, 2), 2), (2, 4, 5, 2)),
    "transposed-valid": (lambda: hk.Conv1DTranspose(3, 3, 2, padding="VALID"), (2, 4, 2)),
    "transposed-pairs": (lambda: hk.Conv1DTranspose(3, 3, 2, padding=[(2, 1)]), (2, 4, 2)),
    "transposed-first": (lambda: hk.Conv1DTranspose(3, 3, data_format="NCW"), (2, 4, 5)),
    "layer_norm": (lambda: hk.LayerNorm(-1, True, True), (2, 5, 4)),
    "layer_norm-scale": (lambda: hk.LayerNorm((1, 2), True, False, param_axis=(1, 2)), (2, 5, 4)),
    "layer_norm-slice": (
        lambda: hk.LayerNorm(slice(1, None), True, True, param_axis=(-2, -1)),
        (2, 5, 4),
    ),
    "rms_norm": (lambda: hk.RMSNorm(-1), (2, 4)),
    "group_norm": (lambda: hk.GroupNorm(2), (2, 3, 5, 4)),
    "group_norm-first": (lambda: hk.GroupNorm(2, data_format="NC..."), (2, 4, 3, 5)),
    "instance_norm": (lambda: hk.InstanceNorm(True, True), (2, 3, 5, 4)),
    "instance_norm-first": (lambda: hk.InstanceNorm(True, True, data_format="NC..."), (2, 4, 5)),
    "mlp": (lambda: hk.nets.MLP([5, 4, 2], activation=jnp.tanh, activate_final=True), (2, 3)),
    "mlp-one": (lambda: hk.nets.MLP([5], activate_final=True), (2, 3)),
    "max_pool": (lambda: hk.MaxPool((1, 2, 2, 1), (1, 2, 2, 1), "SAME"), (2, 5, 6, 3)),
    "avg_pool": (lambda: hk.AvgPool((3, 2, 1), (2, 1, 1), "SAME"), (2, 5, 6, 3)),
    "network": (
        lambda: hk.Sequential(
            [
                hk.Conv2D(4, 3),
                jax.nn.relu,
                hk.Conv2D(4, 3),
                hk.Flatten(),
                hk.Linear(5),
                hk.nets.MLP([4, 3]),
                hk.Linear(2),
            ]
        ),
        (2, 4, 4, 1),
    ),
}


def numbers(values: Any, seed: int = 0) -> Any:
    """Returns random numbers, in float64, in the place of values."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape) + 0.1), values)


def squares(tree: Any) -> float:
    """Returns the sum of the squares of all arrays."""
    return sum(float((leaf**2).sum()) for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("make,shape", LAYERS.values(), ids=LAYERS)
def test_a_layer_comes_over_and_goes_back(make: Any, shape: Any) -> None:
    with float64():
        x = jnp.asarray(np.random.default_rng(1).normal(size=shape))
        net = hk.transform_with_state(lambda x: make()(x))
        params = numbers(net.init(KEY, x)[0])
        ours = bridge.from_haiku_layers(make, params)

        def theirs(params: Any) -> Any:
            out, _ = net.apply(params, {}, None, x)
            return (out**2).sum(), out

        expected, out = jax.grad(theirs, has_aux=True)(params)
        same(ours(x), out)
        if params:
            grads = moduli.grad(lambda model: (model(x) ** 2).sum())(ours)
            np.testing.assert_allclose(squares(grads), squares(expected), rtol=1e-7)
        again, back, _ = bridge.as_haiku_layers(ours, x)
        same(hk.transform(lambda x: again()(x)).apply(back, None, x), out)
        flat = [jax.tree.leaves(hk.data_structures.to_mutable_dict(t)) for t in (params, back)]
        same(sorted(map(squares, flat[1])), sorted(map(squares, flat[0])))


def test_an_embedding_comes_over() -> None:
    net = hk.transform(lambda x: hk.Embed(5, 3)(x))
    x = jnp.array([[1, 4]])
    params = net.init(KEY, x)
    ours = bridge.from_haiku_layers(lambda: hk.Embed(5, 3), params)
    same(ours(x), net.apply(params, None, x), 0)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("first", [False, True])
def test_a_batch_norm_takes_its_state_along_and_trains_on(training: bool, first: bool) -> None:
    with float64():
        x = jnp.asarray(np.random.default_rng(0).normal(size=(6, 4, 3)))

        def make() -> Any:
            form = "channels_first" if first else "channels_last"
            return hk.BatchNorm(True, True, 0.9, data_format=form)

        net = hk.transform_with_state(lambda x, training: make()(x, training))
        params, state = net.init(KEY, x, True)
        params = numbers(params)
        _, state = net.apply(params, state, None, x * 2, True)
        ours: Any = bridge.from_haiku_layers(make, params, state)
        ours.train() if training else ours.eval()
        same(moduli.clone(ours)(x), net.apply(params, state, None, x, training)[0])
        again, back, kept = bridge.as_haiku_layers(ours, x)
        assert jax.tree.map(jnp.shape, back) == jax.tree.map(jnp.shape, dict(params))
        other = hk.transform_with_state(lambda x: again()(x))
        for _ in range(2):
            out, kept = other.apply(back, kept, None, x)
            same(out, ours(x))
        layer = ours.layer if first else ours
        same(kept["batch_norm/~/mean_ema"]["average"].reshape(-1), layer.mean.value)
        same(kept["batch_norm/~/var_ema"]["average"].reshape(-1), layer.var.value)
        with pytest.raises(moduli.BridgeError, match=r"root.*BatchNorm.*as_haiku_layers\(model, x"):
            bridge.as_haiku_layers(layer)
        made: Any = bridge.from_haiku_layers(again, back, kept)
        assert (made.layer if first else made).use_running_average is not training


CORES = {
    "lstm": lambda: hk.LSTM(4),
    "vanilla": lambda: hk.VanillaRNN(4),
    "vanilla-one-bias": lambda: hk.VanillaRNN(4, double_bias=False),
}


@pytest.mark.parametrize("make", CORES.values(), ids=CORES)
@pytest.mark.parametrize("batch", [None, 2])
def test_a_core_comes_over_and_goes_back(make: Any, batch: Any) -> None:
    with float64():
        x = numbers(jnp.ones((5, 3) if batch is None else (5, batch, 3)))
        net = hk.transform(
            lambda x: hk.dynamic_unroll(core := make(), x, core.initial_state(batch))
        )
        params = numbers(net.init(KEY, x))
        ours: Any = bridge.from_haiku_layers(make, params)

        def run(core: Any, x: Any) -> Any:
            def step(state: Any, x: Any) -> Any:
                return core(x, state)[::-1]

            return moduli.jit(lambda core: jax.lax.scan(step, core.initial_state(batch), x))(core)

        expected, state = net.apply(params, None, x)
        last, outputs = run(ours, x)
        same(outputs, expected)
        same(tuple(last), tuple(state))
        again, back, _ = bridge.as_haiku_layers(ours)
        other = hk.transform(
            lambda x: hk.dynamic_unroll(core := again(), x, core.initial_state(batch))
        )
        same(other.apply(back, None, x)[0], expected)


def test_attention_comes_over_and_goes_back() -> None:
    with float64():
        q, k, v = (numbers(jnp.ones(s)) for s in ((2, 3, 6), (2, 5, 4), (2, 5, 4)))

        def make() -> Any:
            return hk.MultiHeadAttention(2, 3, w_init=INIT, model_size=5)

        net = hk.transform(lambda *inputs: make()(*inputs))
        params = numbers(net.init(KEY, q, k, v))
        ours: Any = bridge.from_haiku_layers(make, params)
        mask = jnp.arange(5) < jnp.arange(1, 4)[:, None]
        expected = net.apply(params, None, q, k, v, mask[None, None])
        same(ours(q, k, v, mask=mask[None, None]), expected)
        again, back, _ = bridge.as_haiku_layers(ours)
        same(back, {name: dict(x) for name, x in params.items()}, 0)
        other = hk.transform(lambda *inputs: again()(*inputs))
        same(other.apply(back, None, q, k, v, mask[None, None]), expected)


_KINDS = (
    moduli.Linear, moduli.Conv, moduli.ConvTranspose, moduli.Embed, moduli.LayerNorm,
    moduli.RMSNorm, moduli.GroupNorm, moduli.InstanceNorm, moduli.BatchNorm, moduli.Dropout,
    moduli.MultiHeadAttention, moduli.Sequential, moduli.MLP, moduli.LSTMCell, moduli.SimpleCell,
    moduli.OptimizedLSTMCell, moduli.RNN, moduli.Bidirectional,
)  # fmt: skip
# one of each kind, and of each way in which haiku's differs; all rows in `nox -s long`
_FEW = {
    "linear-no-bias", "conv-mask", "conv-causal", "conv_transpose-mask", "conv_transpose-kernel",
    "embed", "layer_norm-all-but-batch", "rms_norm-several-feature-axes", "group_norm-group-size",
    "instance_norm-sequences", "attention-cross-no-bias", "mlp-batch-norm", "rnn-lstm",
    "sequential-conv-norm", "sequential-shared", "dropout-half", "bidirectional-lstm",
}  # fmt: skip


def _taken(row: Row) -> bool:
    if row.name in _FEW or row.name in LACKING:
        return True
    wrapped = row.name.split("-")[0] in ("lora", "lora_linear", "weight_norm", "spectral_norm")
    made = moduli.eval_shape(lambda: row.build(moduli.Rngs(0))) if EVERY and not wrapped else None
    return type(made) in _KINDS and row in STRUCTURES


LACKING = {
    "layer_norm-no-parameters": "without scale and offset",
    "rms_norm-no-scale": "without scale and offset",
    "group_norm-no-parameters": "without scale and offset",
    "instance_norm-no-parameters": "without scale and offset",
    "instance_norm-two-feature-axes": "with feature_axes",
    "group_norm-last-axis-only": "with reduction_axes",
    "attention-normalize-qk": "with normalize_qk",
    "attention-dropout": "with dropout_rate",
    "rnn-simple": "`cell`.*whose activation_fn is not relu",
    "rnn-gru": "`cell`.*reset gate multiplies the state",
    "rnn-ahead": "`cell`.*reset gate multiplies the state",
    "bidirectional-gru": "`forward_rnn/cell`.*reset gate multiplies the state",
}

ROWS = [row for row in TABLE if _taken(row)]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_layer_of_ours_goes_to_haiku_and_back(row: Row) -> None:
    with float64():
        model, inputs = wide(row)
        if row.name in LACKING:
            with pytest.raises(moduli.BridgeError, match=LACKING[row.name]):
                bridge.from_haiku_layers(*bridge.as_haiku_layers(model, *inputs))
            return
        make, params, state = bridge.as_haiku_layers(model, *inputs)
        net = hk.transform_with_state(lambda *inputs: make()(*inputs))
        expected = model(*inputs)
        same(net.apply(params, state, KEY, *inputs)[0], expected, 1e-8)
        back = bridge.from_haiku_layers(make, params, state)
        back.eval()
        same(back(*inputs), expected, 1e-8)
        if not params or not isinstance(expected, jax.Array):
            return

        def loss(params: Any) -> Any:
            out = net.apply(params, state, KEY, *inputs)[0]
            return (out * weight(out)).sum()

        mine, _ = gradients(model, inputs) if floats(inputs) else ({}, [])
        theirs = jax.grad(loss)(params)
        if mine:
            np.testing.assert_allclose(squares(mine), squares(theirs), rtol=1e-6)


class Own(hk.Module):
    def __call__(self, x: Any) -> Any:
        return x


def test_what_haiku_or_we_have_not_is_refused_with_its_place() -> None:
    x = jnp.ones((2, 3))
    whole = r"moduli\.from_haiku\(hk\.transform"
    cases: dict[str, Any] = {
        rf"at `layers/1`.*haiku.*GRU, .*reset gate.*{whole}": lambda: hk.Sequential(
            [jnp.tanh, hk.GRU(2)]
        ),
        rf"at `layers/0`.*Own.*no layer of moduli.*{whole}": lambda: hk.Sequential([Own()]),
        "sizes are not known.*params has no 'linear'": lambda: hk.Linear(2),
        "without scale and offset": lambda: hk.LayerNorm(-1, False, False),
        "whose window is an int": lambda: hk.MaxPool(2, 2, "SAME"),
        "with output_shape": lambda: hk.Conv1DTranspose(2, 3, output_shape=4),
    }
    for match, make in cases.items():
        with pytest.raises(moduli.BridgeError, match=match):
            bridge.from_haiku_layers(make, {})
    params = hk.transform(lambda x: hk.nets.MLP([4, 2])(x)).init(KEY, x)
    two = {"linear": {"w": x.T, "b": jnp.ones(2)}, "linear_1": {}}
    with pytest.raises(moduli.BridgeError, match=r"'linear_1' belong to no layer"):
        bridge.from_haiku_layers(lambda: hk.Linear(2), two)
    inner: Any = bridge.from_haiku_layers(
        lambda: hk.Linear(2, name="linear_1"), params, prefix="mlp/~/"
    )
    same(inner.kernel.value, params["mlp/~/linear_1"]["w"], 0)
    rngs = moduli.Rngs(0)
    first, second = moduli.Linear(3, 3, rngs=rngs), moduli.Linear(3, 3, rngs=rngs)
    second.kernel = first.kernel
    for match, layer in {
        r"`layers/0`.*RoPE.*no layer of haiku.*to_haiku\(model\)": moduli.Sequential(moduli.RoPE()),
        r"`layers/1`.*also stands at `layers/0`": moduli.Sequential(first, second),
        r"with input_dilation": moduli.Conv(2, 2, 3, padding="CIRCULAR", rngs=rngs),
        r"reset gate": moduli.GRUCell(2, 2, rngs=rngs),
    }.items():
        with pytest.raises(moduli.BridgeError, match=match):
            bridge.as_haiku_layers(layer)


def test_what_was_made_does_not_change_with_the_model() -> None:
    rngs, x = moduli.Rngs(0), jnp.ones((2, 3))
    shared = moduli.Linear(3, 3, rngs=rngs)
    model = moduli.Sequential(shared, moduli.Dropout(0.5, rngs=rngs), shared)
    make, params, _ = bridge.as_haiku_layers(model)
    assert list(params) == ["linear"]  # one layer in two places
    model.layers[0] = moduli.identity
    model.eval()
    net = hk.transform(lambda x: hk.nets.MLP([3])(make()(x)))
    assert not np.array_equal(
        *(net.apply(net.init(KEY, x), key, x) for key in jax.random.split(KEY))
    )
    with pytest.raises(ValueError, match="PRNG"):  # haiku's own: a dropout without a key
        net.apply(net.init(KEY, x), None, x)
