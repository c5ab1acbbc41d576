"""nnx.export: programs that run in a process which has jax and nothing of ours."""

from __future__ import annotations

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import moduli as nnx
from moduli.errors import ShapeError, StructureError

pytest.importorskip("flatbuffers")


class Net(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.embed = nnx.Param(rngs.params.normal((5, 4)).astype(jnp.bfloat16))
        self.layers = [nnx.Linear(4, 4, rngs=rngs), nnx.BatchNorm(4, rngs=rngs)]
        self.layers.append(self.layers[0])  # shared
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.names = {3: nnx.Variable((jnp.ones(2, jnp.float32), jnp.zeros((), jnp.float32)))}

    def __call__(self, tokens, offset):
        x = self.embed[tokens].astype(jnp.float32) + offset["x"]
        for layer in self.layers:
            x = layer(x)
        return {"out": self.dropout(x), "sum": x.sum() + self.names[3].value[0].sum()}

    def scores(self, x):
        return x @ self.embed.value.astype(x.dtype).T


SPECS = ("int32[batch, length]", {"x": "float32[batch, length, 4]"})


@pytest.fixture(scope="module")
def net() -> Net:
    model = Net(nnx.Rngs(0))
    model.eval()
    return model


def inputs(batch: int = 3, length: int = 2):
    rng = np.random.default_rng(batch)
    offset = rng.normal(size=(batch, length, 4)).astype(np.float32)
    return rng.integers(0, 5, (batch, length)).astype(np.int32), {"x": offset}


ALONE = """
import json, sys

class Refuse:
    def find_spec(self, name, *rest):
        if name.partition(".")[0].startswith(("moduli", "safetensors")):
            raise ImportError(name)

sys.meta_path.insert(0, Refuse())
import jax, jax.export, numpy as np

def load_weights(path):
    with open(path, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        data = file.read()
    header.pop("__metadata__", None)
    kinds = {"F32": "float32", "BF16": jax.numpy.bfloat16, "U32": "uint32", "I32": "int32"}
    return {
        name: np.frombuffer(data[slice(*of["data_offsets"])], kinds[of["dtype"]]).reshape(
            of["shape"]
        )
        for name, of in header.items()
    }

folder, weights = sys.argv[1:]
with open(folder + "/net.jax", "rb") as file:
    program = jax.export.deserialize(bytearray(file.read()))
first = [load_weights(folder + "/net.jax.safetensors")] if weights == "beside" else []
io = np.load(folder + "/io.npz")
out = program.call(*first, io["tokens"], {"x": io["x"]})
np.testing.assert_allclose(out["out"], io["out"], rtol=1e-5, atol=1e-6)
grads = jax.grad(lambda x: program.call(*first, io["tokens"], {"x": x})["out"].sum())(io["x"])
np.testing.assert_allclose(grads, io["grads"], rtol=1e-4, atol=1e-5)
print(json.dumps([list(program.platforms), sorted(first[0]) if first else []]))
"""


@pytest.mark.parametrize("weights", ["inside", "beside"])
def test_it_runs_where_moduli_cannot_be_imported(net, tmp_path, weights: str) -> None:
    tokens, offset = inputs()
    program = nnx.export(net, *SPECS, path=tmp_path / "net.jax", vjp_order=1, weights=weights)
    expected = net(tokens, offset)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5),
        program.call(tokens, offset),
        expected,
    )
    grads = jax.grad(lambda x: net(tokens, {"x": x})["out"].sum())(offset["x"])
    np.savez(tmp_path / "io.npz", tokens=tokens, x=offset["x"], out=expected["out"], grads=grads)
    command = [sys.executable, "-c", ALONE, str(tmp_path), weights]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    platforms, names = json.loads(run.stdout)
    assert platforms == ["cpu", "cuda", "tpu"]
    assert ("layers.0.kernel" in names and "layers.2.kernel" not in names) == (weights == "beside")
    files = {path.name for path in tmp_path.iterdir()}
    assert ("net.jax.safetensors" in files) == (weights == "beside")


def test_the_file_of_weights_is_one_of_safetensors(net, tmp_path) -> None:
    numpy = pytest.importorskip("safetensors.numpy")
    program = nnx.export(net, *SPECS, path=tmp_path / "net.jax", weights="beside")
    loaded = numpy.load_file(tmp_path / "net.jax.safetensors")
    assert set(loaded) == set(program.weights)
    for name, array in loaded.items():
        expected = np.asarray(program.weights[name])
        assert array.dtype == expected.dtype and array.tobytes() == expected.tobytes(), name


def test_sizes_of_one_name_are_one_size(net) -> None:
    program = nnx.export(net, *SPECS)
    for batch, length in ((1, 1), (4, 3)):
        tokens, offset = inputs(batch, length)
        expected = net(tokens, offset)["out"]
        np.testing.assert_allclose(program.call(tokens, offset)["out"], expected, rtol=1e-5)
    with pytest.raises(ValueError, match="batch"):
        program.call(inputs(2)[0], inputs(3)[1])


def test_other_methods_and_specs(net) -> None:
    x = jnp.ones((2, 4), jnp.float32)
    for spec in (x, jax.ShapeDtypeStruct((2, 4), jnp.float32), "float32[2,4]", "float32[n, 4]"):
        program = nnx.export(net, spec, method="scores", platforms=["cpu"])
        np.testing.assert_allclose(program.call(x), net.scores(x), rtol=1e-5)
    for bad in ("float32", "float33[2]", "float32[2", "float32[2 3]"):
        with pytest.raises(ShapeError, match="the spec 'float3"):
            nnx.export(net, bad, method="scores")


def test_a_model_in_training_is_refused_and_left_as_it_was() -> None:
    model = Net(nnx.Rngs(0))
    before = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat)))
    with pytest.raises(StructureError, match=r"writes `dropout/rngs/count`.*`model.eval\(\)`"):
        nnx.export(model, *SPECS)
    after = nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))
    jax.tree.map(np.testing.assert_array_equal, before, after)
    with pytest.raises(StructureError, match="weights is 'outside'; write weights=\"inside\""):
        nnx.export(model, *SPECS, weights="outside")  # type: ignore[arg-type]


def test_gradients_reach_weights_beside_the_program(net) -> None:
    tokens, offset = inputs()
    program = nnx.export(net, *SPECS, weights="beside")

    def loss(weights):
        return program.exported.call(weights, tokens, offset)["out"].sum()

    grads = jax.grad(loss, allow_int=True)(program.weights)
    expected = nnx.grad(lambda net: net(tokens, offset)["out"].sum())(net)
    np.testing.assert_allclose(
        grads["layers.0.kernel"], expected.layers[0].kernel.value, rtol=1e-4, atol=1e-5
    )


class Recurrent(nnx.Module):
    """Networks along an axis whose size may change, one of them in both directions."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        cells = [nnx.GRUCell(3, 4, rngs=rngs) for _ in range(2)]
        self.both = nnx.Bidirectional(*(nnx.RNN(cell, rngs=False) for cell in cells), rngs=False)
        self.last = nnx.RNN(nnx.OptimizedLSTMCell(8, 2, rngs=rngs), reverse=True, rngs=False)

    def __call__(self, x):
        return self.last(self.both(x))


def test_the_length_of_a_sequence_may_change() -> None:
    model = Recurrent(nnx.Rngs(0))
    program = nnx.export(model, "float32[batch, time, 3]", platforms="cpu", vjp_order=1)
    for shape in ((2, 5, 3), (1, 1, 3)):
        x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
        np.testing.assert_allclose(program.call(x), model(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("platforms", "found"), [("cpu", ("cpu",)), (["cpu", "rocm"], ("cpu", "rocm"))]
)
def test_platforms_are_one_or_several_names(net, platforms, found) -> None:
    assert nnx.export(net, *SPECS, platforms=platforms).exported.platforms == found


@pytest.mark.parametrize("platforms", ["gpu", "cpu,tpu", ("cpu", "metal"), ()])
def test_other_platforms_are_refused(net, platforms) -> None:
    with pytest.raises(StructureError, match=r"one or several of 'cpu', 'cuda', 'rocm', 'tpu'"):
        nnx.export(net, *SPECS, platforms=platforms)


def test_a_model_without_numbers_is_refused() -> None:
    with pytest.raises(StructureError, match="is a shape without numbers; fill the model first"):
        nnx.export(nnx.eval_shape(lambda: Net(nnx.Rngs(0))), *SPECS)


class Drawing(nnx.Module):
    def __init__(self) -> None:
        self.rngs = nnx.Rngs(0)

    def __call__(self, x):
        return x + self.rngs.normal(x.shape)


def test_what_evaluation_writes_too_has_another_remedy() -> None:
    with pytest.raises(StructureError, match="let the call take a key"):
        nnx.export(Drawing(), "float32[2, 2]")
    attention = nnx.MultiHeadAttention(2, 8, decode=True, rngs=nnx.Rngs(0))
    attention.init_cache((2, 6, 8))
    with pytest.raises(StructureError, match=r"writes `cache_index`.*takes the cache") as caught:
        nnx.export(attention, "float32[2, 1, 8]")
    assert "eval()" not in str(caught.value)
