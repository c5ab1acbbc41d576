"""A Llama: weights of Hugging Face's in, text out, a LoRA trained and saved for peft.

    python examples/load_llama.py --source FOLDER

FOLDER is what ``transformers`` saves: ``config.json`` and safetensors, in shards or not. Neither
torch nor transformers is needed. Without a folder the example makes a small one of random weights.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import optax

import moduli as nnx

NAMES = nnx.NameMap(
    {  # what transformers calls our modules; what stands below has equal names
        "model.embed_tokens": "embed",
        "model.norm": "norm",
        "model.layers.{n}": "layers.{n}",
        "model.layers.{n}.input_layernorm": "layers.{n}.attention_norm",
        "model.layers.{n}.post_attention_layernorm": "layers.{n}.mlp_norm",
        "model.layers.{n}.self_attn.q_proj": "layers.{n}.attention.query",
        "model.layers.{n}.self_attn.k_proj": "layers.{n}.attention.key",
        "model.layers.{n}.self_attn.v_proj": "layers.{n}.attention.value",
        "model.layers.{n}.self_attn.o_proj": "layers.{n}.attention.out",
        "model.layers.{n}.mlp.{t:s}_proj": "layers.{n}.{t:s}",
        "lm_head": "head",
    }
)
PEFT_NAMES = nnx.NameMap({f"base_model.model.{name}": ours for name, ours in NAMES.rules.items()})


@dataclasses.dataclass(frozen=True)
class Config:
    """The sizes, by the names that ``config.json`` has for them."""

    vocab_size: int = 64
    hidden_size: int = 32
    intermediate_size: int = 48
    num_hidden_layers: int = 2
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    tie_word_embeddings: bool = False

    @classmethod
    def read(cls, folder: pathlib.Path) -> Config:
        """Reads ``config.json``."""
        found = json.loads((folder / "config.json").read_text())
        found |= found.get("rope_parameters") or {}  # where transformers 5 has rope_theta
        names = {field.name for field in dataclasses.fields(cls)}
        return cls(**{name: value for name, value in found.items() if name in names})


class Block(nnx.Module):
    """Attention and a gated MLP, each behind a norm."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs) -> None:
        width, norm = config.hidden_size, functools.partial(nnx.RMSNorm, config.hidden_size)
        linear = functools.partial(nnx.Linear, use_bias=False, rngs=rngs)
        self.attention_norm = norm(epsilon=config.rms_norm_eps, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(
            config.num_attention_heads,
            width,
            num_kv_heads=config.num_key_value_heads,
            use_bias=False,
            rotary=functools.partial(nnx.rotary_embedding, base=config.rope_theta),
            rngs=rngs,
        )
        self.mlp_norm = norm(epsilon=config.rms_norm_eps, rngs=rngs)
        self.gate = linear(width, config.intermediate_size)
        self.up = linear(width, config.intermediate_size)
        self.down = linear(config.intermediate_size, width)

    def __call__(self, x: jax.Array, decode: bool) -> jax.Array:
        x = x + self.attention(self.attention_norm(x), is_causal=not decode, decode=decode)
        h = self.mlp_norm(x)
        return x + self.down(nnx.silu(self.gate(h)) * self.up(h))


class Llama(nnx.Module):
    """Tokens to logits."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs) -> None:
        self.embed = nnx.Embed(config.vocab_size, config.hidden_size, rngs=rngs)
        self.layers = [Block(config, rngs=rngs) for _ in range(config.num_hidden_layers)]
        self.norm = nnx.RMSNorm(config.hidden_size, epsilon=config.rms_norm_eps, rngs=rngs)
        self.head = None  # tied: the embedding is used again
        if not config.tie_word_embeddings:
            self.head = nnx.Linear(config.hidden_size, config.vocab_size, use_bias=False, rngs=rngs)

    def __call__(self, tokens: jax.Array, decode: bool = False) -> jax.Array:
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x, decode)
        x = self.norm(x)
        return self.embed.attend(x) if self.head is None else self.head(x)


def load(folder: pathlib.Path) -> tuple[Llama, Config]:
    """Loads a model; nothing is initialised first, so that it is in memory once."""
    config = Config.read(folder)
    model = nnx.eval_shape(lambda: Llama(config, rngs=nnx.Rngs(0)))
    ignore = "lm_head.weight" if config.tie_word_embeddings else ()
    print(nnx.load_weights(folder, model, names=NAMES, ignore=ignore))
    return model, config


def generate(model: Llama, prompt: jax.Array, count: int) -> jax.Array:
    """Continues a prompt greedily, with a cache of keys and values.

    Args:
      model: the model.
      prompt: tokens, of shape (batch, length).
      count: how many to add.

    Returns:
      The new tokens, of shape (batch, count).
    """
    length = prompt.shape[1] + count
    for layer in model.layers:
        layer.attention.init_cache((prompt.shape[0], length, model.embed.features))
    step = nnx.jit(lambda model, tokens: jnp.argmax(model(tokens, decode=True)[:, -1:], -1))
    token = step(model, prompt)
    found = [token]
    for _ in range(count - 1):
        token = step(model, token)
        found.append(token)
    nnx.pop(model, nnx.Cache)
    return jnp.concatenate(found, 1)


def add_lora(model: Llama, rank: int, rngs: nnx.Rngs) -> None:
    """Adapts the queries and values of every block, as peft does by default."""
    for layer in model.layers:
        for name in ("query", "value"):
            base = getattr(layer.attention, name)
            outs = base.kernel.shape[1] * base.kernel.shape[2]
            lora = nnx.LoRA(base.kernel.shape[0], rank, outs, base_module=base, rngs=rngs)
            setattr(layer.attention, name, lora)


def train(model: Llama, tokens: jax.Array, steps: int) -> list[float]:
    """Trains the adapter alone to write a text."""
    optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.LoRAParam)

    def loss(model: Llama) -> jax.Array:
        logits = model(tokens[:, :-1])
        return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()

    @nnx.jit
    def step(model: Llama, optimizer: nnx.Optimizer) -> jax.Array:
        value, grads = nnx.value_and_grad(loss, argnums=nnx.DiffState(0, nnx.LoRAParam))(model)
        optimizer.update(model, grads)
        return value

    return [float(step(model, optimizer)) for _ in range(steps)]


def save_adapter(folder: pathlib.Path, model: Llama, rank: int) -> None:
    """Saves the adapter so that peft loads it."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "adapter_model.safetensors"
    nnx.save_weights(file, model, names=PEFT_NAMES, only=nnx.LoRAParam)
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": rank,  # peft multiplies by lora_alpha / r
        "target_modules": ["q_proj", "v_proj"],
    }
    (folder / "adapter_config.json").write_text(json.dumps(settings))


def make(folder: pathlib.Path) -> None:
    """Makes a folder as transformers does, of random weights."""
    folder.mkdir(parents=True, exist_ok=True)
    config = Config()
    settings = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_act": "silu"}
    text = json.dumps(settings | dataclasses.asdict(config), indent=2)
    (folder / "config.json").write_text(text)
    model = Llama(config, rngs=nnx.Rngs(0))
    nnx.save_weights(folder, model, names=NAMES, max_shard_size="20KB")


def main(arguments: list[str] | None = None) -> list[float]:
    """Runs the example; returns the losses of the training."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--source", type=pathlib.Path, help="a folder of transformers'")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out/llama"))
    parser.add_argument("--rank", type=int, default=4)
    parser.add_argument("--steps", type=int, default=30)
    options = parser.parse_args(arguments)
    source = options.source
    if source is None:
        source = options.out / "random"
        make(source)
    model, config = load(source)
    prompt = jnp.arange(4)[None] % config.vocab_size
    print("greedy:", generate(model, prompt, 8)[0].tolist())
    add_lora(model, options.rank, nnx.Rngs(1))
    text = jax.random.randint(jax.random.key(0), (1, 24), 0, config.vocab_size)
    losses = train(model, text, options.steps)
    print(f"loss of the adapter: {losses[0]:.3f} -> {losses[-1]:.3f}")
    save_adapter(options.out / "adapter", model, options.rank)
    print(f"for peft: {options.out / 'adapter'}")
    return losses


if __name__ == "__main__":
    main()
