"""Foreign weights into a model and out of it: names, layouts, ties, dtypes, blocks, errors."""

from __future__ import annotations

import gc
import json
import tracemalloc

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import moduli as nnx
from moduli_interop import (
    LoadReport,
    NameMap,
    NameMapError,
    TensorFileError,
    WeightsMismatchError,
    load_weights,
    read_tensors,
    save_weights,
    suggest_names,
)
from moduli_interop._errors import UnsupportedValueError
from moduli_layers import (
    RNN,
    BatchNorm,
    Conv,
    Dropout,
    Embed,
    Linear,
    LoRALinear,
    MultiHeadAttention,
    OptimizedLSTMCell,
    Sequential,
    Stack,
    WeightNorm,
)
from moduli_layers.counterparts import Tensor, TensorNames

RNG = np.random.default_rng(0)


class Block(nnx.Module):
    """A block with norms of its own and layers of ours."""

    def __init__(self, *, rngs):
        self.attention = MultiHeadAttention(2, 4, num_kv_heads=1, use_bias=False, rngs=rngs)
        self.up = Linear(4, 6, rngs=rngs)
        self.down = Linear(6, 4, use_bias=False, rngs=rngs)

    def __call__(self, x):
        return x


class Model(nnx.Module):
    """Blocks in a list, an embedding, a parameter of its own."""

    def __init__(self, seed=0, blocks=3):
        rngs = nnx.Rngs(seed)
        self.embed = Embed(5, 4, rngs=rngs)
        self.layers = nnx.List([Block(rngs=rngs) for _ in range(blocks)])
        self.token = nnx.Param(jax.random.normal(rngs.params(), (1, 4), jnp.float32))
        self.head = Linear(4, 5, use_bias=False, rngs=rngs)


NAMES = {
    "model.embed_tokens": "embed",
    "model.layers.{n}": "layers.{n}",
    "model.layers.{n}.self_attn.q_proj": "layers.{n}.attention.query",
    "model.layers.{n}.self_attn.k_proj": "layers.{n}.attention.key",
    "model.layers.{n}.self_attn.v_proj": "layers.{n}.attention.value",
    "model.layers.{n}.self_attn.o_proj": "layers.{n}.attention.out",
    "lm_head": "head",
}


def theirs(dtype=np.float32):
    """Makes the tensors of such a model."""
    shapes = {"model.embed_tokens.weight": (5, 4), "token": (1, 4), "lm_head.weight": (5, 4)}
    for n in range(3):
        start = f"model.layers.{n}."
        shapes |= {
            f"{start}self_attn.q_proj.weight": (4, 4),
            f"{start}self_attn.k_proj.weight": (2, 4),
            f"{start}self_attn.v_proj.weight": (2, 4),
            f"{start}self_attn.o_proj.weight": (4, 4),
            f"{start}up.weight": (6, 4),
            f"{start}up.bias": (6,),
            f"{start}down.weight": (4, 6),
        }
    return {name: RNG.normal(size=shape).astype(dtype) for name, shape in shapes.items()}


def values(model):
    return {path: np.asarray(v.value) for path, v in nnx.to_flat_state(nnx.state(model)).items()}


def assert_same(one, other):
    assert one.keys() == other.keys()
    for path, value in one.items():
        assert value.dtype == other[path].dtype, path
        assert value.tobytes() == other[path].tobytes(), path


def refused(source, model, match, error=WeightsMismatchError, **options):
    """Checks that a load is refused and leaves the model bit for bit as it was."""
    before = values(model)
    kept = [v.get_raw_value() for v in nnx.to_flat_state(nnx.state(model)).values()]
    with pytest.raises(error, match=match) as caught:
        load_weights(source, model, **options)
    assert_same(values(model), before)
    after = [v.get_raw_value() for v in nnx.to_flat_state(nnx.state(model)).values()]
    assert all(one is other for one, other in zip(kept, after, strict=True))
    return caught.value


def test_a_model_is_filled_by_a_map_and_written_by_the_same(tmp_path):
    tensors, model = theirs(), Model()
    report = load_weights(tensors, model, names=NAMES)
    assert isinstance(report, LoadReport)
    assert repr(report) == str(report)  # in a notebook
    assert len(report.loaded) == len(tensors)
    assert (report.missing, report.unexpected, report.kept) == ((), (), 0)
    query = model.layers[1].attention.query.kernel.value  # (in, heads, head features)
    expected = tensors["model.layers.1.self_attn.q_proj.weight"].T.reshape(4, 2, 2)
    np.testing.assert_array_equal(query, expected)
    out = model.layers[2].attention.out.kernel.value
    np.testing.assert_array_equal(
        out, tensors["model.layers.2.self_attn.o_proj.weight"].T.reshape(2, 2, 4)
    )
    np.testing.assert_array_equal(model.head.kernel, tensors["lm_head.weight"].T)
    np.testing.assert_array_equal(model.token, tensors["token"])
    save_weights(tmp_path / "out", model, names=NAMES)
    written = read_tensors(tmp_path / "out")
    assert written.metadata == {"format": "pt"}
    assert {name: t.read().tobytes() for name, t in written.items()} == {
        name: array.tobytes() for name, array in tensors.items()
    }
    text = str(report)
    assert "model.layers.{0..2}.self_attn.q_proj.weight -> layers/{0..2}/attention/query" in text
    assert "(3 tensors)" in text
    assert len(text.splitlines()) < 15


def test_shards_and_their_index(tmp_path):
    model = Model()
    folder = tmp_path / "model"
    save_weights(folder, model, names=NAMES, max_shard_size=300, metadata={"step": "3"})
    files = sorted(p.name for p in folder.iterdir())
    assert files[0] == "model-00001-of-00006.safetensors"
    for name in files[:-1]:
        assert sum(tensor.nbytes for tensor in read_tensors(folder / name).values()) <= 300
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(v.nbytes for v in values(model).values())
    other = Model(seed=1)
    load_weights(folder, other, names=NAMES)
    assert_same(values(other), values(model))
    save_weights(folder, Model(seed=2), names=NAMES)  # one file now; the old ones would be read
    assert [p.name for p in folder.iterdir()] == ["model.safetensors"]
    load_weights(folder, other, names=NAMES)
    assert_same(values(other), values(Model(seed=2)))
    for size in ("5 GB", "2MiB", 10):
        save_weights(folder, model, names=NAMES, max_shard_size=size)
    with pytest.raises(UnsupportedValueError, match="max_shard_size='much' is no size"):
        save_weights(folder, model, max_shard_size="much")


@pytest.mark.parametrize("stacked", ["stack", "vmap"])
def test_blocks_that_are_one_module_here(tmp_path, stacked):
    class Stacked(nnx.Module):
        def __init__(self, seed=0):
            rngs = nnx.Rngs(seed)
            self.embed = Embed(5, 4, rngs=rngs)
            if stacked == "stack":
                self.layers = Stack(lambda rngs: Block(rngs=rngs), 3, rngs=rngs)
            else:
                split = nnx.Rngs(params=rngs.params()).fork(split=3)
                self.layers = nnx.vmap(lambda rngs: Block(rngs=rngs))(split)
            self.token = nnx.Param(jnp.zeros((1, 4)))
            self.head = Linear(4, 5, use_bias=False, rngs=rngs)

    names = dict(NAMES)
    if stacked == "vmap":
        names = {left: right.replace("layers.{n}", "layers") for left, right in NAMES.items()}
    tensors, one, other = theirs(), Model(), Stacked()
    load_weights(tensors, one, names=NAMES)
    report = load_weights(tensors, other, names=names)
    assert not report.missing
    for n in range(3):
        block = (
            other.layers[n]
            if stacked == "stack"
            else jax.tree.map(lambda v, n=n: v[n], nnx.state(other.layers))
        )
        kernel = (block.attention.query.kernel)[...]
        np.testing.assert_array_equal(kernel, one.layers[n].attention.query.kernel.value)
    save_weights(tmp_path / "m.safetensors", other, names=names)
    for name, tensor in read_tensors(tmp_path / "m.safetensors").items():
        np.testing.assert_array_equal(tensor.read(), tensors[name])
    if stacked == "stack":  # without the number on our side too
        short = {left: right.replace("layers.{n}", "layers") for left, right in NAMES.items()}
        again = Stacked(seed=3)
        load_weights(tensors, again, names=short)
        assert_same(values(again), values(other))


def test_fused_split_offset_padded_and_other_layouts(tmp_path):
    class Gpt(nnx.Module):
        def __init__(self, seed=0):
            rngs = nnx.Rngs(seed)
            self.query, self.key = (Linear(4, 4, use_bias=False, rngs=rngs) for _ in range(2))
            self.gated = Linear(4, 6, use_bias=False, rngs=rngs)
            self.norm = nnx.Param(jax.random.normal(rngs.params(), (4,)))
            self.embed = Embed(8, 4, rngs=rngs)
            self.up = Linear(4, 6, use_bias=False, rngs=rngs)

    names = NameMap(
        {
            "c_attn.weight": Tensor(("query.kernel", "key.kernel"), axis=1),
            "gate.weight": Tensor("gated.kernel", "i o -> o i", part=(0, 2)),
            "up.weight": Tensor("gated.kernel", "i o -> o i", part=(1, 2)),
            "norm.weight": Tensor("norm", offset=1.0),
            "wte.weight": Tensor("embed.embedding", rows=5),
            "fc.weight": Tensor("up.kernel"),
        }
    )
    tensors = {
        "c_attn.weight": RNG.normal(size=(4, 8)),
        "gate.weight": RNG.normal(size=(3, 4)),
        "up.weight": RNG.normal(size=(3, 4)),
        "norm.weight": np.arange(4.0),
        "wte.weight": RNG.normal(size=(5, 4)),
        "fc.weight": RNG.normal(size=(4, 6)),
    }
    tensors = {name: array.astype(np.float32) for name, array in tensors.items()}
    model = Gpt()
    load_weights(tensors, model, names=names)
    np.testing.assert_array_equal(model.key.kernel, tensors["c_attn.weight"][:, 4:])
    np.testing.assert_array_equal(model.gated.kernel[:, 3:], tensors["up.weight"].T)
    np.testing.assert_array_equal(model.norm, [1, 2, 3, 4])
    np.testing.assert_array_equal(model.embed.embedding[:5], tensors["wte.weight"])
    np.testing.assert_array_equal(model.embed.embedding[5:], np.zeros((3, 4)))
    save_weights(tmp_path / "m.safetensors", model, names=names)
    written = read_tensors(tmp_path / "m.safetensors")
    assert set(written) == set(tensors)
    for name, tensor in written.items():
        np.testing.assert_array_equal(tensor.read(), tensors[name])
    del tensors["up.weight"]
    refused(tensors, Gpt(), r"the source has no up\.weight", names=names)
    with pytest.raises(NameMapError, match="and the model has no such"):
        load_weights(tensors, model, names={"a": Tensor("missing.kernel")})


def test_one_layer_of_torchs_for_several_of_ours():
    torch = pytest.importorskip("torch")
    lstm = torch.nn.LSTM(3, 4, num_layers=2, batch_first=True)
    x = RNG.normal(size=(2, 5, 3)).astype(np.float32)

    class Net(nnx.Module):
        def __init__(self):
            rngs = nnx.Rngs(0)
            self.rnns = [RNN(OptimizedLSTMCell(n, 4, rngs=rngs)) for n in (3, 4)]

    model = Net()
    load_weights(lstm.state_dict(), model, names={"{t:s}_l{n}": "rnns.{n}.{t:s}_l0"})
    expected = lstm(torch.tensor(x))[0].detach().numpy()
    np.testing.assert_allclose(model.rnns[1](model.rnns[0](x)), expected, atol=1e-6)
    chain = Sequential(*model.rnns)
    load_weights(lstm.state_dict(), chain)
    np.testing.assert_allclose(chain(x), expected, atol=1e-6)


def test_an_attention_is_written_in_the_way_that_the_map_means(tmp_path):
    model = nnx.Dict(a=MultiHeadAttention(2, 4, rngs=nnx.Rngs(0)))
    for names, expected in [
        (None, "a.in_proj_weight"),
        ({"self": "a"}, "self.in_proj_weight"),
        ({"self.q": "a.query"}, "self.q.weight"),
        ({"self.{t:s}_proj": "a.{t:s}"}, "self.query_proj.weight"),
    ]:
        save_weights(tmp_path / "m.safetensors", model, names=names)
        assert expected in read_tensors(tmp_path / "m.safetensors")
        other = nnx.Dict(a=MultiHeadAttention(2, 4, rngs=nnx.Rngs(1)))
        load_weights(tmp_path / "m.safetensors", other, names=names)
        assert_same(values(other), values(model))


@pytest.mark.parametrize("form", ["old", "new"])
def test_weight_norm_in_both_of_torchs_forms(form, tmp_path):
    torch = pytest.importorskip("torch")
    linear = torch.nn.Linear(3, 4)
    if form == "new":
        layer = torch.nn.utils.parametrizations.weight_norm(linear)
        g = layer.parametrizations.weight.original0
    else:
        with pytest.warns(FutureWarning):
            layer = torch.nn.utils.weight_norm(linear)
        g = layer.weight_g
    with torch.no_grad():
        g.mul_(2)
    model = WeightNorm(Linear(3, 4, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(0))
    load_weights(layer.state_dict(), model)
    model.eval()
    x = RNG.normal(size=(5, 3)).astype(np.float32)
    expected = layer(torch.tensor(x)).detach().numpy()
    np.testing.assert_allclose(model(x), expected, atol=1e-5)


def test_adapters_have_the_names_of_their_base_and_of_peft(tmp_path):
    model = nnx.Dict(q=LoRALinear(3, 4, lora_rank=2, rngs=nnx.Rngs(0)))
    base = {"q.weight": np.ones((4, 3), np.float32), "q.bias": np.ones(4, np.float32)}
    before = np.asarray(model["q"].lora.lora_a.value)
    report = load_weights(base, model, only=nnx.Not(nnx.WithTag("x")), strict=False)
    assert set(report.missing) == {"q/lora/lora_a", "q/lora/lora_b"}
    assert report.kept == 3 * 2 + 2 * 4
    np.testing.assert_array_equal(model["q"].lora.lora_a, before)
    peft = {
        "base_model.model.q.base_layer.weight": np.full((4, 3), 2, np.float32),
        "base_model.model.q.base_layer.bias": np.ones(4, np.float32),
        "base_model.model.q.lora_A.default.weight": np.full((2, 3), 3, np.float32),
        "base_model.model.q.lora_B.default.weight": np.full((4, 2), 4, np.float32),
    }
    load_weights(peft, model, prefix="base_model.model.")
    assert model["q"].kernel[0, 0] == 2
    assert model["q"].lora.lora_b.shape == (2, 4)
    adapter = {"q.lora_A.weight": np.full((2, 3), 5, np.float32)}
    load_weights(adapter, model, only="q.lora.lora_a")
    assert model["q"].lora.lora_a[0, 0] == 5


def test_shared_variables_are_filled_by_any_of_their_names(tmp_path):
    class Tied(nnx.Module):
        def __init__(self, seed=0):
            self.embed = Embed(5, 4, rngs=nnx.Rngs(seed))
            self.last = self.embed

    weight, other = RNG.normal(size=(2, 5, 4)).astype(np.float32)
    for name in ("embed.weight", "last.weight"):
        model = Tied()
        assert not load_weights({name: weight}, model).missing
        np.testing.assert_array_equal(model.last.embedding, weight)
        assert model.last is model.embed
    load_weights({"embed.weight": weight, "last.weight": weight}, model)
    refused(
        {"embed.weight": weight, "last.weight": other},
        model,
        r"embed/embedding and last/embedding are one Variable of the model, and the source has",
    )
    save_weights(tmp_path / "m.safetensors", model)
    assert list(read_tensors(tmp_path / "m.safetensors")) == ["embed.weight"]


def test_a_tie_of_the_source_is_not_imposed():
    class Untied(nnx.Module):
        def __init__(self):
            self.embed, self.last = (Embed(5, 4, rngs=nnx.Rngs(i)) for i in range(2))

    refused({"embed.weight": np.ones((5, 4), np.float32)}, Untied(), r"the source has no last\.we")


def test_dtypes_are_widened_and_narrowed_only_when_asked():
    model = Linear(2, 3, rngs=nnx.Rngs(0))
    half = {"weight": np.ones((3, 2), ml_dtypes.bfloat16), "bias": np.ones(3, np.float16)}
    report = load_weights(half, model)
    assert model.kernel.dtype == jnp.float32
    assert {row.name for row in report.widened} == {"weight", "bias"}
    assert not report.narrowed
    wide = {"weight": np.full((3, 2), 0.1), "bias": np.zeros(3, np.float32)}
    error = refused(wide, model, "weight is float64 and kernel is float32, which cannot hold each")
    assert "cast=True" in str(error)
    report = load_weights(wide, model, cast=True)
    assert [row.name for row in report.narrowed] == ["weight"]
    brain = Linear(2, 3, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    refused(half, brain, "bias is float16 and bias is bfloat16")
    refused({"weight": np.ones((3, 2), np.int8), "bias": half["bias"]}, model, "weight is int8")


class Numbers(nnx.Module):
    def __init__(self, dtype):
        self.x = nnx.Param(np.zeros(3, dtype))


@pytest.mark.parametrize("abstract", [False, True])
@pytest.mark.parametrize(
    ("wanted", "given", "told"),
    [
        (np.float32, np.array([1, 1e300, 2]), "1e[+]300, to which no number of float32 is near"),
        (np.float16, np.array([1, -7e4, 2], np.float32), "-70000.0, to which"),
        (ml_dtypes.float8_e4m3fn, np.array([1, 1e3, 2], np.float16), "1000.0, to which"),
        (np.int8, np.array([1, 2, 300], np.int32), "300, to which no number of int8"),
        (np.int32, np.array([1, np.nan, 2], np.float32), "nan, to which no number of int32"),
        (np.int32, np.array([1, 3e9, 2], ml_dtypes.bfloat16), "to which no number of int32"),
        (np.uint8, np.array([1, -1, 2], np.int32), "-1, to which no number of uint8"),
        (np.float32, np.ones(3, np.complex64), "which would lose the imaginary parts"),
        (np.int32, np.ones(3, np.complex64), "which would lose the imaginary parts"),
    ],
)
def test_rounding_makes_no_other_numbers(wanted, given, told, abstract):
    model = nnx.eval_shape(lambda: Numbers(wanted)) if abstract else Numbers(wanted)
    refused({"x": given}, model, told, cast=True)


@pytest.mark.parametrize(
    ("wanted", "given"),
    [
        (np.float32, np.array([0.1, np.inf, np.nan])),
        (np.float16, np.array([65504, 1e-9, -np.inf], np.float32)),
        (ml_dtypes.bfloat16, np.array([3e38, 0.1, 1], np.float32)),
        (np.int32, np.array([1.75, -2.25, 0], np.float32)),
        (np.int8, np.array([127, -128, 0])),
        (np.complex64, np.array([0.1, 1e-9, 1])),
        (np.bool_, np.array([1, 0, 1])),
    ],
)
def test_numbers_are_rounded_as_numpy_does(wanted, given):
    model = Numbers(wanted)
    load_weights({"x": given}, model, cast=True)
    assert model.x.dtype == wanted
    np.testing.assert_array_equal(model.x.value, given.astype(wanted))


@pytest.mark.parametrize(
    ("prefix", "spelled"),
    [("module.", "module."), ("_orig_mod.", "_orig_mod"), ("state_dict.", "state_dict.")],
)
def test_a_common_prefix_is_named_and_not_stripped(prefix, spelled):
    tensors = {prefix + name: array for name, array in theirs().items()}
    tensors["step"] = np.zeros((), np.int32)
    error = refused(tensors, Model(), "does not fit the model", names=NAMES)
    assert f"write prefix={prefix!r}" in str(error)
    wrong = refused(tensors, Model(), "nothing was loaded", names=NAMES, prefix="nothing.")
    assert f"no name begins with prefix='nothing.'; the first is '{prefix}model.em" in str(wrong)
    report = load_weights(tensors, Model(), names=NAMES, prefix=spelled)
    assert report.left == ("step",)


def test_a_prefix_that_only_the_model_has_is_named():
    tensors = {"weight": np.ones((3, 2), np.float32), "bias": np.ones(3, np.float32)}
    model = nnx.Dict(net=nnx.Dict(fc=Linear(2, 3, rngs=nnx.Rngs(0))))
    error = refused(tensors, model, "does not fit")
    assert "write names={\"\": 'net.fc'}" in str(error)
    load_weights(tensors, model, names={"": "net.fc"})


def test_strict_goes_both_ways_and_something_has_to_match():
    tensors = theirs()
    del tensors["model.layers.1.up.bias"]
    tensors["model.layers.1.up.bais"] = np.ones(6, np.float32)
    error = refused(tensors, Model(), "nothing was loaded", names=NAMES)
    assert len(error.problems) == 2
    assert "did you mean 'model.layers.1.up.bais'?" in str(error)
    model = Model()
    report = load_weights(tensors, model, names=NAMES, strict=False)
    assert report.missing == ("layers/1/up/bias",)
    assert report.kept == 6
    assert report.unexpected == ("model.layers.1.up.bais",)
    assert "1 Variables (6 numbers) kept their first values" in str(report)
    for strict in (True, False):
        refused({"x": np.ones(1)}, Model(), "no tensor matched; names=", strict=strict)
    tensors["model.layers.0.up.bias"] = np.ones(7, np.float32)
    refused(tensors, Model(), r"has the shape \(7,\) and", names=NAMES, strict=False)


def test_errors_are_short_for_large_models():
    model = nnx.List([nnx.Dict({f"x{i}": nnx.Param(jnp.ones(1))}) for i in range(3000)])
    error = refused({"a": np.ones(1)}, model, "problems")
    assert len(str(error).splitlines()) < 50
    assert len(str(error)) < 10_000


def test_harmless_buffers_are_ignored_and_listed():
    model = nnx.Dict(norm=BatchNorm(3, rngs=nnx.Rngs(0)))
    tensors = {
        "norm.weight": np.ones(3, np.float32),
        "norm.bias": np.ones(3, np.float32),
        "norm.running_mean": np.ones(3, np.float32),
        "norm.running_var": np.ones(3, np.float32),
        "norm.num_batches_tracked": np.array(3),
        "embeddings.position_ids": np.arange(3)[None],
        "h.0.rotary_emb.inv_freq": np.ones(3, np.float32),
        "h.0.attn.bias": np.ones((1, 1, 4, 4), np.float32),
    }
    refused(tensors, model, r"the model has no place for h\.0\.attn\.bias")
    report = load_weights(tensors, model, ignore="h.*.attn.bias")
    assert set(report.ignored) == set(tensors) - {n for n in tensors if n.startswith("norm.")} | {
        "norm.num_batches_tracked"
    }
    load_weights(tensors, model, ignore=lambda name: name.startswith("h."))


def test_only_some_variables_are_filled():
    model = Model()
    before = values(model)
    report = load_weights(theirs(), model, names=NAMES, only=["embed", "layers.1.up"])
    changed = {p for p, value in values(model).items() if (value != before[p]).any()}
    assert {".".join(map(str, path[:3])) for path in changed} == {"embed.embedding", "layers.1.up"}
    assert len(report.left) == len(theirs()) - 3
    with pytest.raises(nnx.errors.ModuliError, match="only='nothing' selects no Variable"):
        load_weights(theirs(), model, names=NAMES, only="nothing")


def test_a_dry_run_reads_and_writes_nothing(tmp_path):
    tensors = theirs()
    del tensors["token"]
    model = Model()
    before = values(model)
    report = load_weights(tensors, model, names=NAMES, dry_run=True)
    assert report.missing == ("token",)
    assert len(report.problems) == 1
    assert str(report).startswith("would load")
    assert_same(values(model), before)


def test_rules_for_nothing_in_the_model_are_named():
    names = {**NAMES, "model.layers.{n}.self_attn.q_proj": "layers.{n}.attn.query"}
    error = refused(theirs(), Model(), "nothing was loaded", names=names)
    assert (
        "the model has nothing that these rules name: "
        "'model.layers.{n}.self_attn.q_proj': 'layers.{n}.attn.query'\n"
    ) in str(error)


def test_a_function_names_tensors_for_loading():
    tensors = {"a": np.ones((3, 2), np.float32), "b": np.ones(3, np.float32), "c": np.ones(1)}
    model = nnx.Dict(fc=Linear(2, 3, rngs=nnx.Rngs(0)))
    names = {"a": "fc.kernel", "b": "fc.bias"}.get
    report = load_weights(tensors, model, names=names)
    assert report.ignored == ("c",)
    assert model["fc"].kernel[0, 0] == 1
    with pytest.raises(NameMapError, match="names is a function, which cannot be turned round"):
        save_weights("x.safetensors", model, names=names)
    with pytest.raises(nnx.errors.ModuliError, match="for the tensors 'a' and 'b'"):
        load_weights(tensors, model, names=lambda name: "fc.bias")


def test_two_variables_of_one_name_are_refused(tmp_path):
    model = nnx.Dict(a=nnx.Param(jnp.ones(1)), b=nnx.Param(jnp.ones(1)))
    names = {"b": "a"}
    refused({"b": np.ones(1, np.float32)}, model, "b is the name of both a and b", names=names)
    with pytest.raises(NameMapError, match="a and b would both be written as 'b'"):
        save_weights(tmp_path / "m.safetensors", model, names=names)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("keys", [(0, "0"), (("a", 1), "a"), ("a", ("a", 1)), (("0",), "0")])
def test_keys_that_are_one_text_are_refused(tmp_path, keys):
    one, other = (
        nnx.Dict({"1": nnx.Param(jnp.ones(1))}) if key == "a" else nnx.Param(jnp.ones(1))
        for key in keys
    )
    model = nnx.Dict({keys[0]: one, keys[1]: other})
    with pytest.raises(UnsupportedValueError, match="would have one name, as names are texts"):
        save_weights(tmp_path / "m.safetensors", model)


def test_a_layer_of_ones_own_says_its_names_once():
    class Scale(nnx.Module):
        torch_names = TensorNames({"gamma": Tensor("scale")})

        def __init__(self):
            self.scale = nnx.Param(jnp.ones(2))

    model = nnx.Dict(inner=Scale())
    load_weights({"x.gamma": np.zeros(2, np.float32)}, model, names={"x": "inner"})
    assert model["inner"].scale[0] == 0


def test_a_damaged_tensor_leaves_the_model_as_it_was(tmp_path):
    save_weights(tmp_path / "m.safetensors", Model(), names=NAMES)
    content = (tmp_path / "m.safetensors").read_bytes()
    (tmp_path / "m.safetensors").write_bytes(content[:-4])
    refused(tmp_path / "m.safetensors", Model(seed=1), "truncated", TensorFileError, names=NAMES)


def test_abstract_models_and_shardings():
    abstract = nnx.eval_shape(Model)
    assert load_weights(theirs(), abstract, names=NAMES).abstract == ()
    assert all(
        isinstance(v.value, jax.Array) for v in nnx.to_flat_state(nnx.state(abstract)).values()
    )
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("x",))
    spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    model = Model()
    model.embed.embedding.value = jnp.ones((6, 4))[:5]
    model.head.kernel.value = jax.device_put(model.head.kernel.value, spread)
    load_weights(theirs(), model, names=NAMES)
    assert model.head.kernel.value.sharding == spread
    shapes = nnx.eval_shape(Model)
    shapes.head.kernel.value = jax.ShapeDtypeStruct((4, 5), jnp.float32, sharding=spread)
    load_weights(theirs(), shapes, names=NAMES)
    assert shapes.head.kernel.value.sharding == spread


def test_what_is_still_abstract_is_listed():
    class Dropping(nnx.Module):
        def __init__(self):
            self.linear, self.dropout = (
                Linear(2, 3, rngs=nnx.Rngs(0)),
                Dropout(0.5, rngs=nnx.Rngs(0)),
            )

    model = nnx.eval_shape(Dropping)
    tensors = {"linear.weight": np.ones((3, 2), np.float32), "linear.bias": np.ones(3, np.float32)}
    report = load_weights(tensors, model)
    assert report.abstract == ("dropout/rngs/count", "dropout/rngs/key")
    assert "2 Variables have no values yet; streams get them by moduli.reseed" in str(report)
    nnx.reseed(model, default=0)
    assert model.dropout(model.linear(jnp.ones((1, 2)))).shape == (1, 3)


def test_one_tensor_is_in_memory_at_a_time(tmp_path):
    model = nnx.List([nnx.Param(jnp.ones((256, 1024))) for _ in range(16)])
    save_weights(tmp_path / "m.safetensors", model)
    shapes = nnx.eval_shape(lambda: nnx.List([nnx.Param(jnp.ones((256, 1024))) for _ in range(16)]))
    gc.collect()
    tracemalloc.start()
    load_weights(tmp_path / "m.safetensors", shapes)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 18.5 * 2**20  # sixteen arrays of a MiB that JAX may share, and what is read


def test_models_that_cannot_be_written(tmp_path):
    with pytest.raises(UnsupportedValueError, match="is abstract, a shape and a dtype"):
        save_weights(tmp_path / "m.safetensors", nnx.eval_shape(Model))
    with pytest.raises(UnsupportedValueError, match="got a dict as the model"):
        save_weights(tmp_path / "m.safetensors", {})
    assert not list(tmp_path.iterdir())


def test_suggestions_are_a_map_that_loads(capsys):
    tensors = {
        name.replace("up.", "mlp.up_proj.").replace("down.", "mlp.down_proj."): array
        for name, array in theirs().items()
    }
    model = nnx.eval_shape(Model)
    names = suggest_names(tensors, model)
    text = capsys.readouterr().out
    assert text.startswith("names = nnx.NameMap({\n")
    assert '"model.layers.{n}.self_attn.q_proj": "layers.{n}.attention.query",' in text
    assert eval(text.removeprefix("names = "), {"nnx": nnx}).rules == names.rules
    assert isinstance(model.embed.embedding.value, jax.ShapeDtypeStruct)
    load_weights(tensors, model, names=names)
    np.testing.assert_array_equal(model.head.kernel.value, tensors["lm_head.weight"].T)


@st.composite
def nests(draw, depth=3):
    """Makes functions that build nested models from a seed."""
    kinds = ["linear", "embed", "param", "norm", "conv"] + ["list", "dict", "chain"] * (depth > 0)
    kind = draw(st.sampled_from(kinds))
    if kind in ("list", "dict", "chain"):
        parts = draw(st.lists(nests(depth=depth - 1), min_size=1, max_size=3))
        if kind == "chain":
            return lambda seed: Sequential(*(callable_of(p(seed + i)) for i, p in enumerate(parts)))
        keys = draw(st.permutations(["a", "b_1", "c"])) if kind == "dict" else None
        if keys:
            return lambda seed: nnx.Dict({k: p(seed + 7) for k, p in zip(keys, parts)})
        return lambda seed: nnx.List([p(seed + i) for i, p in enumerate(parts)])
    bias = draw(st.booleans())
    return {
        "linear": lambda seed: Linear(2, 3, use_bias=bias, rngs=nnx.Rngs(seed)),
        "embed": lambda seed: Embed(3, 2, rngs=nnx.Rngs(seed)),
        "param": lambda seed: nnx.Param(jnp.full((2,), float(seed))),
        "norm": lambda seed: BatchNorm(2, use_bias=bias, rngs=nnx.Rngs(seed)),
        "conv": lambda seed: Conv(2, 3, (3,), use_bias=bias, rngs=nnx.Rngs(seed)),
    }[kind]


def callable_of(part):
    """Sequential holds what can be called."""
    return part if callable(part) else nnx.Dict(inner=part).get


@given(make=nests())
@settings(max_examples=25, deadline=None)
def test_load_is_the_inverse_of_save(make, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "m.safetensors"
    model, other = nnx.Dict(root=make(0)), nnx.Dict(root=make(50))
    if nnx.to_flat_state(nnx.state(model)):
        save_weights(path, model, names={"base.{t:s}": "{t:s}"})
        load_weights(path, other, names={"base.{t:s}": "{t:s}"})
        assert_same(values(other), values(model))
