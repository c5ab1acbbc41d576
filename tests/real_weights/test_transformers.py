"""transformers' own models, made small: their weights in ours, equal logits, and back again."""

from __future__ import annotations

import functools
import os
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import moduli as nnx

pytestmark = [
    pytest.mark.skipif(
        "REAL_WEIGHTS" not in os.environ, reason="nox -s real_weights installs transformers"
    ),
    pytest.mark.filterwarnings("ignore"),
]
EXAMPLES = Path(__file__).parents[2] / "examples"
TOKENS = np.array([[3, 1, 4, 1, 5, 9], [2, 6, 5, 3, 5, 8]])


def close(ours, theirs) -> None:
    np.testing.assert_allclose(np.asarray(ours), theirs.detach().numpy(), atol=1e-4, rtol=1e-4)


def there_and_back(
    theirs, model, names, folder, outputs, inputs=TOKENS, ask=lambda m, x: m(x), **options
) -> None:
    """Loads what transformers saves, compares, saves it, and has transformers load that."""
    torch = pytest.importorskip("torch")
    theirs.eval()
    theirs.save_pretrained(folder / "theirs", max_shard_size="20KB")
    assert len(list((folder / "theirs").glob("*.safetensors"))) > 1
    nnx.load_weights(folder / "theirs", model, names=names, **options)
    expected = ask(theirs, torch.tensor(inputs))
    close(model(inputs), outputs(expected))
    nnx.save_weights(folder / "ours", model, names=names)
    saved = nnx.read_tensors(folder / "ours")
    given = nnx.read_tensors(folder / "theirs")
    assert set(saved) == set(given)
    for name, tensor in given.items():
        assert saved[name].read().tobytes() == tensor.read().tobytes(), name
    theirs.config.save_pretrained(folder / "ours")
    again = type(theirs).from_pretrained(folder / "ours")
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, theirs.state_dict()[name]), name


@pytest.mark.parametrize("tied", [False, True])
def test_llama(tied, tmp_path, monkeypatch) -> None:
    transformers = pytest.importorskip("transformers")
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import load_llama

    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
    )
    theirs = transformers.LlamaForCausalLM(config)
    config.save_pretrained(tmp_path)
    ours = load_llama.Config.read(tmp_path)
    assert ours.tie_word_embeddings is tied
    model = nnx.eval_shape(lambda: load_llama.Llama(ours, rngs=nnx.Rngs(0)))
    there_and_back(theirs, model, load_llama.NAMES, tmp_path, lambda found: found.logits)
    if not tied:
        check_generation_and_adapter(load_llama, theirs, model, tmp_path)
    sys.modules.pop("load_llama", None)


def check_generation_and_adapter(load_llama, theirs, model, folder) -> None:
    """Compares greedy text, and what peft makes of a trained adapter."""
    torch = pytest.importorskip("torch")
    written = theirs.generate(
        torch.tensor(TOKENS), max_new_tokens=5, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    np.testing.assert_array_equal(
        load_llama.generate(model, jnp.asarray(TOKENS), 5), written[:, TOKENS.shape[1] :]
    )
    peft = pytest.importorskip("peft")
    load_llama.add_lora(model, 2, nnx.Rngs(1))
    load_llama.train(model, jnp.asarray(TOKENS), 3)
    load_llama.save_adapter(folder / "adapter", model, 2)
    adapted = peft.PeftModel.from_pretrained(theirs, folder / "adapter").eval()
    close(model(TOKENS), adapted(torch.tensor(TOKENS)).logits)


class GptBlock(nnx.Module):
    def __init__(self, width, heads, rngs):
        self.ln_1, self.ln_2 = (nnx.LayerNorm(width, epsilon=1e-5, rngs=rngs) for _ in range(2))
        self.attention = nnx.MultiHeadAttention(heads, width, decode=False, rngs=rngs)
        self.up = nnx.Linear(width, 4 * width, rngs=rngs)
        self.down = nnx.Linear(4 * width, width, rngs=rngs)

    def __call__(self, x):
        x = x + self.attention(self.ln_1(x), is_causal=True)
        return x + self.down(nnx.gelu(self.up(self.ln_2(x))))


class Gpt(nnx.Module):
    def __init__(self, vocabulary, width, depth, heads, length, rngs):
        self.wte = nnx.Embed(vocabulary, width, rngs=rngs)
        self.wpe = nnx.Embed(length, width, rngs=rngs)
        self.h = [GptBlock(width, heads, rngs) for _ in range(depth)]
        self.ln_f = nnx.LayerNorm(width, epsilon=1e-5, rngs=rngs)

    def __call__(self, tokens):
        x = self.wte(tokens) + self.wpe(jnp.arange(tokens.shape[1]))
        for block in self.h:
            x = block(x)
        return self.wte.attend(self.ln_f(x))


def test_gpt2(tmp_path) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 16}
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes))
    qkv = ("query", "key", "value")
    inside = "h.{n}.attention."
    names = {  # fused, and (in, out), as GPT-2's Conv1D has it
        "transformer": "",
        "transformer.h.{n}.attn.c_attn.weight": nnx.Tensor(
            tuple(f"{inside}{part}.kernel" for part in qkv), "i h d -> i (h d)", axis=1
        ),
        "transformer.h.{n}.attn.c_attn.bias": nnx.Tensor(
            tuple(f"{inside}{part}.bias" for part in qkv), "h d -> (h d)"
        ),
        "transformer.h.{n}.attn.c_proj.weight": nnx.Tensor(
            f"{inside}out.kernel", "h d o -> (h d) o"
        ),
        "transformer.h.{n}.attn.c_proj": "h.{n}.attention.out",
        "transformer.h.{n}.mlp.c_fc.weight": nnx.Tensor("h.{n}.up.kernel"),
        "transformer.h.{n}.mlp.c_fc": "h.{n}.up",
        "transformer.h.{n}.mlp.c_proj.weight": nnx.Tensor("h.{n}.down.kernel"),
        "transformer.h.{n}.mlp.c_proj": "h.{n}.down",
    }
    model = nnx.eval_shape(lambda: Gpt(64, 32, 2, 4, 16, nnx.Rngs(0)))
    there_and_back(theirs, model, names, tmp_path, lambda found: found.logits)


class BertBlock(nnx.Module):
    def __init__(self, width, heads, inner, norm, rngs):
        self.attention = nnx.MultiHeadAttention(heads, width, decode=False, rngs=rngs)
        self.attention_norm, self.norm = norm(rngs=rngs), norm(rngs=rngs)
        self.up = nnx.Linear(width, inner, rngs=rngs)
        self.down = nnx.Linear(inner, width, rngs=rngs)

    def __call__(self, x):
        x = self.attention_norm(x + self.attention(x))
        return self.norm(x + self.down(nnx.gelu(self.up(x), approximate=False)))


class Bert(nnx.Module):
    def __init__(self, vocabulary, width, depth, heads, inner, length, rngs):
        norm = functools.partial(nnx.LayerNorm, width, epsilon=1e-12)
        embed = functools.partial(nnx.Embed, features=width, rngs=rngs)
        self.words, self.positions, self.types = embed(vocabulary), embed(length), embed(2)
        self.norm = norm(rngs=rngs)
        self.layers = [BertBlock(width, heads, inner, norm, rngs) for _ in range(depth)]
        self.pooler = nnx.Linear(width, width, rngs=rngs)

    def __call__(self, tokens):
        x = self.words(tokens) + self.positions(jnp.arange(tokens.shape[1]))
        x = self.norm(x + self.types(jnp.zeros_like(tokens)))
        for layer in self.layers:
            x = layer(x)
        return nnx.tanh(self.pooler(x[:, 0]))


def test_bert(tmp_path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=64,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=16,
    )
    theirs = transformers.BertModel(config)
    block = "encoder.layer.{n}."
    names = {
        "embeddings.word_embeddings": "words",
        "embeddings.position_embeddings": "positions",
        "embeddings.token_type_embeddings": "types",
        "embeddings.LayerNorm": "norm",
        f"{block}attention.self.{{t:s}}": "layers.{n}.attention.{t:s}",
        f"{block}attention.output.dense": "layers.{n}.attention.out",
        f"{block}attention.output.LayerNorm": "layers.{n}.attention_norm",
        f"{block}intermediate.dense": "layers.{n}.up",
        f"{block}output.dense": "layers.{n}.down",
        f"{block}output.LayerNorm": "layers.{n}.norm",
        "pooler.dense": "pooler",
    }
    model = nnx.eval_shape(lambda: Bert(64, 32, 2, 4, 48, 16, nnx.Rngs(0)))
    there_and_back(theirs, model, names, tmp_path, lambda found: found.pooler_output)
    assert isinstance(jax.tree.leaves(nnx.state(model))[0], jax.Array)


class Experts(nnx.Module):
    """Experts that are one Param each, with an axis of experts in front."""

    def __init__(self, width, inner, number, rngs):
        self.router = nnx.Linear(width, number, use_bias=False, rngs=rngs)
        self.gate, self.up = (nnx.Param(jnp.zeros((number, width, inner))) for _ in range(2))
        self.down = nnx.Param(jnp.zeros((number, inner, width)))

    def __call__(self, x):
        chances = nnx.softmax(self.router(x))
        best, which = jax.lax.top_k(chances, 2)
        one_hot = jax.nn.one_hot(which, chances.shape[-1])  # (B, T, 2, E)
        weights = (one_hot * (best / best.sum(-1, keepdims=True))[..., None]).sum(-2)
        h = nnx.silu(jnp.einsum("btd,edf->btef", x, self.gate))
        h = h * jnp.einsum("btd,edf->btef", x, self.up)
        return jnp.einsum("btef,efd,bte->btd", h, self.down[...], weights)


class MixtralBlock(nnx.Module):
    def __init__(self, width, rngs):
        norm = functools.partial(nnx.RMSNorm, width, epsilon=1e-5, rngs=rngs)
        self.attention_norm, self.mlp_norm = norm(), norm()
        self.attention = nnx.MultiHeadAttention(
            4, width, num_kv_heads=2, use_bias=False, decode=False, rngs=rngs,
            rotary=nnx.rotary_embedding,
        )  # fmt: skip
        self.mlp = Experts(width, 48, 4, rngs)


class Mixtral(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Embed(64, 32, rngs=rngs)
        self.layers = [MixtralBlock(32, rngs) for _ in range(2)]
        self.norm = nnx.RMSNorm(32, epsilon=1e-5, rngs=rngs)
        self.head = nnx.Linear(32, 64, use_bias=False, rngs=rngs)

    def __call__(self, tokens):
        x = self.embed(tokens)
        for layer in self.layers:
            x = x + layer.attention(layer.attention_norm(x), is_causal=True)
            x = x + layer.mlp(layer.mlp_norm(x))
        return self.head(self.norm(x))


def test_mixtral_whose_experts_are_stacked_here(tmp_path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.MixtralConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )
    theirs = transformers.MixtralForCausalLM(config)
    block, expert = "model.layers.{n}.", "model.layers.{n}.block_sparse_moe.experts.{e}."
    names = {  # {e} is missing on our side: the first axis
        "model": "",
        "model.embed_tokens": "embed",
        f"{block}input_layernorm": "layers.{n}.attention_norm",
        f"{block}post_attention_layernorm": "layers.{n}.mlp_norm",
        f"{block}block_sparse_moe.gate": "layers.{n}.mlp.router",
        "lm_head": "head",
    }
    for short, ours in {"q": "query", "k": "key", "v": "value", "o": "out"}.items():
        names[f"{block}self_attn.{short}_proj"] = f"layers.{{n}}.attention.{ours}"
    for short, ours in {"w1": "gate", "w2": "down", "w3": "up"}.items():
        names[f"{expert}{short}.weight"] = nnx.Tensor(f"layers.{{n}}.mlp.{ours}", "i o -> o i")
    model = nnx.eval_shape(lambda: Mixtral(nnx.Rngs(0)))
    there_and_back(theirs, model, names, tmp_path, lambda found: found.logits)


class VitBlock(nnx.Module):
    def __init__(self, width, heads, inner, norm, rngs):
        self.norm1, self.norm2 = norm(rngs=rngs), norm(rngs=rngs)
        self.attention = nnx.MultiHeadAttention(heads, width, decode=False, rngs=rngs)
        self.up = nnx.Linear(width, inner, rngs=rngs)
        self.down = nnx.Linear(inner, width, rngs=rngs)

    def __call__(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.down(nnx.gelu(self.up(self.norm2(x)), approximate=False))


class Vit(nnx.Module):
    """Images of (batch, channels, height, width), as theirs."""

    def __init__(self, rngs):
        norm = functools.partial(nnx.LayerNorm, 32, epsilon=1e-12)
        self.cls = nnx.Param(jnp.zeros((1, 1, 32)))
        self.positions = nnx.Param(jnp.zeros((1, 5, 32)))
        self.patch = nnx.Conv(3, 32, (4, 4), 4, padding="VALID", rngs=rngs)
        self.blocks = [VitBlock(32, 4, 48, norm, rngs) for _ in range(2)]
        self.norm = norm(rngs=rngs)
        self.head = nnx.Linear(32, 3, rngs=rngs)

    def __call__(self, images):
        x = self.patch(jnp.moveaxis(images, 1, -1)).reshape(len(images), -1, 32)
        first = jnp.broadcast_to(self.cls, (len(images), 1, 32))
        x = jnp.concatenate([first, x], 1) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


def test_vit_by_the_map_that_is_suggested(tmp_path, capsys) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        image_size=8,
        patch_size=4,
        num_labels=3,
    )
    theirs = transformers.ViTForImageClassification(config)
    model = nnx.eval_shape(lambda: Vit(nnx.Rngs(0)))
    theirs.save_pretrained(tmp_path / "first")
    names = nnx.suggest_names(tmp_path / "first", model)
    assert "#" not in capsys.readouterr().out
    images = np.random.default_rng(0).normal(size=(2, 3, 8, 8)).astype(np.float32)
    there_and_back(theirs, model, names, tmp_path, lambda found: found.logits, images)
