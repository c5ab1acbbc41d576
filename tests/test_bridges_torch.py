"""from_torch and to_torch, and calls across: values and gradients are PyTorch's own."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bridge_checks import float64, floats, gradients, same, weight, wide
from layer_table import STRUCTURES, Row

import moduli
from moduli import bridge
from moduli_interop._bridges.torch_arrays import as_array, as_tensor

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:torch")


def has_counterpart(row: Row) -> bool:
    if (
        not row.torch
        or row.random
        or not row.name.startswith(
            (
                "linear",
                "embed",
                "conv",
                "batch_norm",
                "layer_norm",
                "rms_norm",
                "group_norm",
                "instance_norm",
                "prelu",
                "weight_norm",
                "mlp",
                "sequential",
                "attention-self",
                "rnn",
                "bidirectional",
            )
        )
    ):
        return False
    layer = row.build(moduli.Rngs(0))
    if isinstance(layer, moduli.WeightNorm):
        return layer.use_scale and row.name != "weight_norm-every-entry"
    return isinstance(layer, (moduli.MLP, moduli.Sequential)) or (
        getattr(layer, "torch_counterpart", None) is not None
    )


def tensor(array: Any) -> Any:
    return torch.tensor(np.array(array))


@pytest.mark.parametrize("row", list(filter(has_counterpart, STRUCTURES)), ids=lambda row: row.name)
def test_a_layer_goes_to_torch_and_back(row: Row) -> None:
    with float64():
        model, inputs = wide(row)
        theirs = moduli.to_torch(model)
        assert isinstance(theirs, torch.nn.Module)
        given = [
            tensor(x).requires_grad_(n in floats(inputs))
            if n in floats(inputs)
            else tensor(x).long()
            for n, x in enumerate(inputs)
        ]
        out = theirs(*given)
        expected = model(*inputs)
        same(out.detach().numpy(), expected, 1e-8)
        (out * tensor(weight(expected))).sum().backward()
        params, of_inputs = gradients(model, inputs)
        same([given[n].grad.numpy() for n in floats(inputs)], of_inputs, 1e-7)
        assert sum(p.grad.norm() ** 2 for p in theirs.parameters()) > 0 or not params
        back = moduli.from_torch(theirs)
        same(back(*inputs), expected, 1e-8)
        if not (isinstance(model, moduli.MLP) or row.name == "rnn-lstm"):  # become others
            kinds = {path: type(x) for path, x in moduli.to_flat_state(moduli.state(model))}
            assert (
                kinds.items()
                >= {path: type(x) for path, x in moduli.to_flat_state(moduli.state(back))}.items()
            )


nn = torch.nn
LAYERS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(3, 4), (2, 3)),
    "linear-no-bias": (lambda: nn.Linear(3, 4, bias=False), (2, 5, 3)),
    "conv1d": (lambda: nn.Conv1d(3, 4, 3, stride=2, padding=1), (2, 3, 7)),
    "conv2d-unbatched": (lambda: nn.Conv2d(3, 4, (3, 2), dilation=2), (3, 8, 9)),
    "conv2d-groups-same": (lambda: nn.Conv2d(4, 4, 3, padding="same", groups=2), (2, 4, 5, 6)),
    "conv2d-circular": (
        lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"),
        (2, 2, 5, 6),
    ),
    "conv2d-reflect": (lambda: nn.Conv2d(2, 3, 5, padding=2, padding_mode="reflect"), (2, 2, 5, 6)),
    "conv3d": (lambda: nn.Conv3d(2, 3, 2), (1, 2, 3, 4, 5)),
    "conv_transpose1d": (
        lambda: nn.ConvTranspose1d(2, 3, 4, stride=3, padding=1, output_padding=2),
        (2, 2, 5),
    ),
    "conv_transpose2d": (lambda: nn.ConvTranspose2d(2, 3, 3, dilation=2), (2, 2, 4, 5)),
    "batch_norm1d": (lambda: nn.BatchNorm1d(3), (6, 3)),
    "batch_norm2d": (lambda: nn.BatchNorm2d(3, eps=1e-3, momentum=0.2), (2, 3, 4, 5)),
    "layer_norm": (lambda: nn.LayerNorm(4), (3, 4)),
    "layer_norm-no-bias": (lambda: nn.LayerNorm(4, bias=False), (3, 4)),
    "rms_norm": (lambda: nn.RMSNorm(4), (3, 4)),
    "group_norm": (lambda: nn.GroupNorm(2, 4), (2, 4, 5)),
    "instance_norm2d": (lambda: nn.InstanceNorm2d(3), (2, 3, 4, 5)),
    "instance_norm1d-affine": (lambda: nn.InstanceNorm1d(3, affine=True), (2, 3, 6)),
    "prelu": (lambda: nn.PReLU(), (2, 3)),
    "prelu-features": (lambda: nn.PReLU(3), (2, 3, 4)),
    "conv_transpose2d-groups": (
        lambda: nn.ConvTranspose2d(
            4, 6, (3, 2), stride=(2, 3), padding=1, output_padding=(0, 2), groups=2, dilation=(2, 1)
        ),
        (2, 4, 3, 5),
    ),
    "layer_norm-axes": (lambda: nn.LayerNorm((3, 4)), (2, 3, 4)),
    "rms_norm-axes": (lambda: nn.RMSNorm((3, 4)), (2, 5, 3, 4)),
    "weight_norm": (lambda: torch.nn.utils.parametrizations.weight_norm(nn.Linear(3, 4)), (2, 3)),
    "weight_norm-old": (lambda: old_weight_norm(nn.Conv1d(2, 3, 2, groups=1)), (2, 2, 5)),
    "weight_norm-old-one-length": (lambda: old_weight_norm(nn.Linear(3, 4), dim=None), (2, 3)),
    "weight_norm-inputs": (
        lambda: torch.nn.utils.parametrizations.weight_norm(nn.ConvTranspose1d(2, 3, 2), dim=1),
        (2, 2, 5),
    ),
    "lstm-layers": (lambda: nn.LSTM(3, 4, num_layers=3, batch_first=True), (2, 5, 3)),
    "gru-layers-bidirectional": (
        lambda: nn.GRU(3, 4, num_layers=2, dropout=0.5, bidirectional=True).eval(), (5, 2, 3),
    ),
    "gru": (lambda: nn.GRU(3, 4), (5, 2, 3)),
    "rnn-relu-layers": (lambda: nn.RNN(3, 4, num_layers=2, nonlinearity="relu"), (5, 2, 3)),
    "lstm_cell": (lambda: nn.LSTMCell(3, 4), (2, 3)),
    "gru_cell": (lambda: nn.GRUCell(3, 4), (2, 3)),
    "rnn_cell-relu": (lambda: nn.RNNCell(3, 4, nonlinearity="relu"), (2, 3)),
    "lstm": (lambda: nn.LSTM(3, 4, batch_first=True), (2, 5, 3)),
    "rnn": (lambda: nn.RNN(3, 4), (5, 2, 3)),
    "lstm-bidirectional": (lambda: nn.LSTM(3, 4, bidirectional=True), (5, 2, 3)),
    "max_pool": (lambda: nn.MaxPool2d(3, stride=2, padding=1), (2, 3, 7, 8)),
    "avg_pool": (lambda: nn.AvgPool1d(2), (2, 3, 8)),
    "avg_pool-padded": (lambda: nn.AvgPool1d(3, padding=1, count_include_pad=False), (2, 3, 8)),
    "max_pool-ceil": (lambda: nn.MaxPool2d(2, ceil_mode=True), (2, 3, 7, 8)),
    "avg_pool-ceil": (lambda: nn.AvgPool2d(3, 2, padding=1, ceil_mode=True), (2, 3, 8, 7)),
    "adaptive_avg_pool": (lambda: nn.AdaptiveAvgPool2d((2, None)), (2, 3, 7, 8)),
    "adaptive_max_pool": (lambda: nn.AdaptiveMaxPool1d(3), (2, 3, 8)),
    "softplus-threshold": (lambda: nn.Softplus(2.0, threshold=0.5), (2, 3)),
    "gelu": (lambda: nn.GELU(), (2, 3)),
    "softplus": (lambda: nn.Softplus(2.0), (2, 3)),
    "leaky": (lambda: nn.LeakyReLU(0.2), (2, 3)),
    "flatten": (lambda: nn.Flatten(), (2, 3, 4)),
    "dropout": (lambda: nn.Sequential(nn.Dropout(0.5), nn.Dropout2d(0.5)).eval(), (2, 3, 4, 5)),
    "network": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
            nn.Linear(2 * 2 * 3, 5), nn.Softmax(-1),
        ),
        (3, 1, 6, 8),
    ),
}  # fmt: skip


def old_weight_norm(module: Any, **settings: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # for the other form
        return torch.nn.utils.weight_norm(module, **settings)


def outputs(theirs: Any, x: Any) -> Any:
    out = theirs(x)
    return out[0] if isinstance(out, tuple) else out


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("make,shape", LAYERS.values(), ids=LAYERS)
def test_a_layer_of_torch_comes_over(make: Any, shape: Any, training: bool) -> None:
    torch.manual_seed(0)
    theirs = make().double()
    if not any("Drop" in type(p).__name__ or getattr(p, "dropout", 0) for p in theirs.modules()):
        theirs.train(training)
    array = np.random.default_rng(0).normal(size=shape)
    with float64():
        ours = moduli.from_torch(theirs)
        x = tensor(array).requires_grad_()
        expected = outputs(theirs, x)
        expected.backward(tensor(np.cos(np.arange(expected.numel())).reshape(expected.shape)))

        def loss(ours: Any, x: Any) -> Any:
            out = ours(x)
            return (out * weight(out)).sum(), out

        if isinstance(ours, moduli.bridge.TorchCell):
            out = outputs(theirs, x), outputs(ours, array)
            same(out[1], out[0].detach().numpy(), 1e-10)
            again = moduli.to_torch(ours)
            same(outputs(again, x).detach().numpy(), out[1], 1e-10)
            return
        if isinstance(ours, moduli.Module):
            (of_ours, of_x), out = moduli.grad(loss, argnums=(0, 1), has_aux=True)(ours, array)
            norms = [float(np.sum(np.square(g))) for g in jax.tree.leaves(of_ours)]
            squares = sum(float((p.grad**2).sum()) for p in theirs.parameters())
            # the second bias of a recurrent layer is often the same as the first
            if not isinstance(theirs, nn.RNNBase):
                np.testing.assert_allclose(sum(norms), squares, rtol=1e-6)
        else:
            of_x, out = jax.grad(lambda x: loss(ours, x), has_aux=True)(array)
        same(out, expected.detach().numpy(), 1e-7)
        same(of_x, x.grad.numpy(), 1e-6)
        again = moduli.to_torch(ours)
        same(again(tensor(array)).detach().numpy(), expected.detach().numpy(), 1e-7)
        again = getattr(again, "layer", again)  # of what returns the first output
        if not isinstance(theirs, nn.Sequential) or len(theirs) > 2:
            if "weight_g" not in theirs.state_dict():
                assert list(again.state_dict()) == list(theirs.state_dict())


def hooked(module: Any) -> Any:
    module.register_forward_hook(lambda module, inputs, output: output * 2)
    return module


REFUSED = {
    "Conv2d.*padding_mode='replicate'": lambda: nn.Conv2d(1, 1, 3, padding_mode="replicate"),
    "BatchNorm1d.*track_running_stats": lambda: nn.BatchNorm1d(2, track_running_stats=False),
    "Embedding.*max_norm=1": lambda: nn.Embedding(3, 2, max_norm=1.0),
    "LSTM.*proj_size=1": lambda: nn.LSTM(2, 2, proj_size=1),
    "GRUCell.*bias=False": lambda: nn.GRUCell(2, 2, bias=False),
    "MaxPool1d.*dilation": lambda: nn.MaxPool1d(2, dilation=2),
    "Linear.*weight is parametrised": lambda: torch.nn.utils.parametrizations.spectral_norm(
        nn.Linear(2, 2)
    ),
    "Linear.*has hooks": lambda: hooked(nn.Linear(2, 2)),
    "Bilinear.*no layer of moduli.*TorchModule": lambda: nn.Bilinear(2, 2, 2),
}


@pytest.mark.parametrize("match,make", REFUSED.items(), ids=[m[:12] for m in REFUSED])
def test_what_has_no_counterpart_is_refused_with_its_place(match: str, make: Any) -> None:
    with pytest.raises(moduli.BridgeError, match=rf"at `a/1` of the model.*{match}"):
        moduli.from_torch(nn.ModuleDict({"a": nn.Sequential(nn.ReLU(), make())}))


def test_the_vector_of_padding_is_not_trained() -> None:
    theirs = nn.Embedding(4, 3, padding_idx=-2)
    ours: Any = moduli.from_torch(theirs)
    tokens = np.array([[0, 2], [2, 3]])
    theirs(torch.tensor(tokens)).pow(2).sum().backward()
    grads: Any = moduli.jit(moduli.grad(lambda ours: (ours(tokens) ** 2).sum()))(ours)
    assert theirs.weight.grad is not None and not theirs.weight.grad[2].any()
    same(grads.layer.embedding.value, theirs.weight.grad.numpy(), 1e-6)
    assert moduli.to_torch(ours).padding_idx == 2


def own(rngs: Any) -> dict[str, Any]:
    """Layers with settings of which PyTorch's know nothing."""
    dot = functools.partial(jax.lax.dot_general, precision="highest")
    rnn = moduli.RNN(moduli.GRUCell(3, 4, gate_fn=moduli.relu, rngs=rngs))
    return {
        r"BatchNorm, which": moduli.BatchNorm(4, axis=1, rngs=rngs),
        r"InstanceNorm, which": moduli.InstanceNorm(4, feature_axes=1, rngs=rngs),
        r"Linear, whose `dot_general`": moduli.Linear(4, 4, dot_general=dot, rngs=rngs),
        r"BatchNorm, whose `axis_name`": moduli.BatchNorm(4, axis_name="i", rngs=rngs),
        r"MultiHeadAttention, whose `attention_fn`": moduli.MultiHeadAttention(
            2, 4, attention_fn=lambda q, k, v, **_: q, rngs=rngs
        ),
        r"RNN, whose `return_carry`": moduli.RNN(
            moduli.OptimizedLSTMCell(3, 4, rngs=rngs), return_carry=True
        ),
        r"RNN, which.*functions sigmoid": rnn,
        r"Linear, which computes in bfloat16": moduli.RNN(
            moduli.GRUCell(3, 4, dtype=jnp.bfloat16, rngs=rngs)
        ),
        r"SpectralNorm, which torch computes otherwise": moduli.SpectralNorm(
            moduli.Linear(3, 4, rngs=rngs), rngs=rngs
        ),
    }


def test_settings_that_torch_has_not_are_refused() -> None:
    for match, layer in own(moduli.Rngs(0)).items():
        with pytest.raises(moduli.BridgeError, match=match):
            moduli.to_torch(moduli.Sequential(layer))


def test_shared_layers_and_parameters_stay_shared() -> None:
    embed, linear = nn.Embedding(5, 4), nn.Linear(4, 4)
    theirs = nn.ModuleList([linear, linear, nn.Linear(4, 4, bias=False), embed])
    theirs[2].weight = linear.weight
    ours: Any = moduli.from_torch(theirs)
    assert ours[0] is ours[1] and ours[2].kernel is ours[0].kernel
    again = moduli.to_torch(ours)
    assert again[0] is again[1] and again[2].weight is again[0].weight
    head = nn.Linear(4, 5, bias=False)
    head.weight = embed.weight
    with pytest.raises(moduli.BridgeError, match=r"`1`.*`weight` another layer holds in another"):
        moduli.from_torch(nn.ModuleList([embed, head]))


# -- calls across ------------------------------------------------------------------------------


class Block(nn.Module):
    """A module of a user's, with a buffer, integers, several inputs and outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.linear = nn.Linear(3, 4)
        self.norm = nn.BatchNorm1d(4)
        self.act = nn.ReLU(inplace=True)

    def forward(self, tokens: Any, x: Any, scale: float = 1.0) -> Any:
        self.act(x)  # writes into its input
        y = self.norm(self.linear(self.embed(tokens) + x)) * scale
        return {"y": y, "best": y.argmax(-1)}


WAYS = {
    "eager": lambda f: f,
    "jit": moduli.jit,
    "raw jit": jax.jit,
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_module_of_torch_is_called_and_differentiated_from_jax(way: Any) -> None:
    torch.manual_seed(0)
    theirs = Block()
    ours: Any = moduli.from_torch(theirs)
    assert isinstance(ours, bridge.TorchModule)
    ours.eval()
    tokens, x = np.array([0, 3, 4]), np.random.default_rng(0).normal(size=(3, 3)).astype("f4")
    before = x.copy()

    def loss(model: Any, x: Any) -> Any:
        out = model(tokens, x, scale=2.0)
        return (out["y"] ** 2).sum(), out

    run = way(lambda model, x: moduli.grad(loss, argnums=(0, 1), has_aux=True)(model, x))
    (of_model, of_x), out = run(ours, x)
    theirs.eval()
    given = tensor(x).requires_grad_()
    expected = theirs(torch.tensor(tokens), given + 0, scale=2.0)
    (expected["y"] ** 2).sum().backward()
    same(out["y"], expected["y"].detach().numpy(), 1e-5)
    np.testing.assert_array_equal(out["best"], expected["best"].numpy())
    same(of_x, given.grad.numpy(), 1e-4)
    for name, parameter in theirs.named_parameters():
        same(of_model.params[name].value, parameter.grad.numpy(), 1e-4)
    np.testing.assert_array_equal(x, before)


def test_statistics_of_a_module_of_torch_are_written() -> None:
    theirs = Block()
    ours: Any = moduli.from_torch(theirs)
    tokens, x = np.array([0, 3, 4]), np.ones((3, 3), np.float32)
    moduli.jit(lambda model: model(tokens, x)["y"])(ours)
    assert ours.buffers["norm.num_batches_tracked"].value == 1
    assert int(theirs.norm.num_batches_tracked) == 0  # the module itself is as it was
    theirs(torch.tensor(tokens), torch.tensor(x))
    same(ours.buffers["norm.running_mean"].value, theirs.norm.running_mean.numpy(), 1e-5)


def test_dropout_in_torch_draws_from_our_streams() -> None:
    class Drops(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop = nn.Dropout(0.5)

        def forward(self, x: Any) -> Any:
            return self.drop(x)

    x = jnp.ones(64)
    with pytest.raises(moduli.BridgeError, match=r"draws random numbers.*rngs=nnx\.Rngs"):
        moduli.from_torch(Drops())(x)
    model = moduli.from_torch(Drops(), rngs=moduli.Rngs(0))
    first, second = model(x), model(x)
    assert 0 < np.count_nonzero(first) < 64 and not np.array_equal(first, second)

    def loss(model: Any, x: Any) -> Any:
        out = model(x)
        return out.sum(), out

    grads, out = moduli.grad(loss, argnums=1, has_aux=True)(model, x)
    np.testing.assert_array_equal(grads, out)  # of ones: the mask of that very call
    model.eval()
    np.testing.assert_array_equal(model(x), x)


class Net(moduli.Module):
    def __init__(self, rngs: Any) -> None:
        self.layers = [moduli.Linear(3, 4, rngs=rngs), moduli.BatchNorm(4, rngs=rngs)]
        self.dropout = moduli.Dropout(0.5, rngs=rngs)

    def __call__(self, x: Any, shift: Any) -> Any:
        for layer in self.layers:
            x = layer(x)
        return self.dropout(x) + shift, x.argmax(-1)


def test_a_model_of_ours_trains_in_torch() -> None:
    model = Net(moduli.Rngs(0))
    theirs = moduli.to_torch(model)
    names = set(theirs.state_dict())
    assert {"layers.0.kernel", "layers.1.mean", "dropout.rngs.key", "dropout.rngs.count"} <= names
    x = np.random.default_rng(0).normal(size=(5, 3)).astype("f4")
    theirs.eval()
    model.eval()
    given = tensor(x).requires_grad_()
    out, best = theirs(given, torch.ones(()))
    (out**2).sum().backward()
    expected, index = model(x, jnp.ones(()))
    same(out.detach().numpy(), expected, 1e-5)
    np.testing.assert_array_equal(best.numpy(), index)

    def loss(model: Any, x: Any) -> Any:
        return (model(x, jnp.ones(()))[0] ** 2).sum()

    of_model, of_x = moduli.grad(loss, argnums=(0, 1))(model, x)
    same(given.grad.numpy(), of_x, 1e-4)
    same(theirs.layers._modules["0"].kernel.grad.numpy(), of_model.layers[0].kernel.value, 1e-4)

    theirs.train()
    model.train()
    first, second = theirs(given, torch.zeros(()))[0], theirs(given, torch.zeros(()))[0]
    assert not torch.equal(first, second)  # the stream of dropout goes on
    same(first.detach().numpy(), model(x, jnp.zeros(()))[0], 1e-5)
    model(x, jnp.zeros(()))
    same(theirs.state_dict()["layers.1.mean"].numpy(), model.layers[1].mean.value, 1e-5)
    optimizer = torch.optim.SGD(theirs.parameters(), 0.1)
    theirs.eval()
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        value = (theirs(tensor(x), torch.zeros(()))[0] ** 2).mean()
        value.backward()
        optimizer.step()
        losses.append(float(value.detach()))
    assert losses[-1] < losses[0]
    again = moduli.to_torch(Net(moduli.Rngs(1)))
    again.load_state_dict(theirs.state_dict())
    again.eval()
    assert torch.equal(again(tensor(x), torch.zeros(()))[0], theirs(tensor(x), torch.zeros(()))[0])


# -- arrays ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    "bool int8 int16 int32 uint8 uint16 uint32 float16 float32 bfloat16 complex64 float8_e4m3fn "
    "float8_e5m2 int4 uint4 float8_e4m3b11fnuz".split(),
)
def test_arrays_of_every_dtype_go_and_come(name: str) -> None:
    array = jnp.array([[0, 1, 3], [1, 0, 2]]).astype(name)
    made = as_tensor(array)
    assert made.shape == (2, 3)
    back = as_array(made)
    same(np.asarray(back).astype(complex).real, np.asarray(array).astype(complex).real, 0)
    if name not in ("int4", "uint4", "float8_e4m3b11fnuz"):
        assert back.dtype == array.dtype
    same(
        np.asarray(as_array(made.T)).astype(complex).real, np.asarray(array).astype(complex).real.T
    )


def test_memory_is_shared_where_it_can_be() -> None:
    source = torch.arange(64.0)
    array = as_array(source)
    shared = array.unsafe_buffer_pointer() == source.data_ptr()
    assert shared or source.data_ptr() % 64  # XLA takes aligned memory only
    array = jnp.arange(64.0)
    assert as_tensor(array).data_ptr() == array.unsafe_buffer_pointer()
    turned = as_array(source.reshape(8, 8).T)
    np.testing.assert_array_equal(turned, source.reshape(8, 8).T.numpy())


def test_odd_tensors_are_copied_and_nothing_is_narrowed_in_silence() -> None:
    same(as_array(torch.ones(2, 2).to_sparse()), np.ones((2, 2)))
    same(as_array(torch.ones(2, requires_grad=True)), np.ones(2))
    same(as_array(torch.arange(6)[::2]), [0, 2, 4])
    assert as_array(torch.tensor(2**31 - 1)) == 2**31 - 1
    narrow = pytest.raises(
        moduli.BridgeError, match="does not fit into 32 bits; set jax_enable_x64"
    )
    with jax.enable_x64(False), narrow:
        as_array(torch.tensor(2**31))
    key = jax.random.key(3)
    np.testing.assert_array_equal(as_tensor(key).numpy(), jax.random.key_data(key))


def test_vmap_and_scan_call_torch_too() -> None:
    model = bridge.TorchModule(nn.Linear(3, 3))
    xs = jnp.ones((2, 4, 3), jnp.float32)
    rows = jax.vmap(functools.partial(model))(xs)
    same(rows, np.stack([model(x) for x in xs]), 1e-6)
    last, _ = jax.lax.scan(lambda x, _: (model(x), None), xs[0], None, length=2)
    same(last, model(model(xs[0])), 1e-5)
