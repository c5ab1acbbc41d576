"""Train steps of libraries that are built on flax.nnx, in the words of a user of theirs.

``python tools/downstream_steps.py NAME [--moduli]`` trains a small model of one library for a few
steps, with flax.nnx or with moduli in its place, and prints its losses and the time of a step as
JSON. ``tools/downstream.py`` runs it in the library's environment, twice, and compares. It is what
is run of libraries whose source distributions have no tests.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

PROGRAMS: dict[str, Callable[[Any], tuple[Any, Callable[[Any], Any]]]] = {}


def program(name: str) -> Any:
    """Adds a function of nnx that returns a model and its loss, under a name."""

    def add(make: Any) -> Any:
        PROGRAMS[name] = make
        return make

    return add


def tokens(batch: int = 2, length: int = 32, vocabulary: int = 64) -> jax.Array:
    """Returns tokens that look random."""
    return jnp.asarray(np.random.default_rng(0).integers(0, vocabulary, (batch, length)))


@program("mamba2-jax")
def mamba2(nnx: Any) -> Any:
    import mamba2_jax

    model = mamba2_jax.Mamba2ForCausalLM(mamba2_jax.Mamba2Config.tiny(), rngs=nnx.Rngs(0))
    ids = tokens()
    return model, lambda model: model(ids, labels=ids)["loss"]


@program("mamba3-jax")
def mamba3(nnx: Any) -> Any:
    import mamba3_jax

    model = mamba3_jax.Mamba3ForCausalLM(mamba3_jax.Mamba3Config.tiny(), rngs=nnx.Rngs(0))
    ids = tokens()
    return model, lambda model: model(ids, labels=ids)["loss"]


@program("synecdoche")
def synecdoche(nnx: Any) -> Any:
    import synecdoche

    rngs = nnx.Rngs(0)
    model = nnx.Sequential(nnx.Linear(16, 64, rngs=rngs), nnx.relu, nnx.Linear(64, 4, rngs=rngs))
    hyper = synecdoche.DCT(nnx.state(model, nnx.Param), embedding_dim=8, rngs=nnx.Rngs(1))
    apply = synecdoche.functional(model)
    x = jnp.linspace(-1.0, 1.0, 128).reshape(8, 16)
    return hyper, lambda hyper: ((apply(hyper, x) - 1.0) ** 2).mean()


def perceptron(nnx: Any) -> Any:
    """Makes a model with dense layers and a convolution for quantizers."""

    class Model(nnx.Module):
        def __init__(self, rngs: Any) -> None:
            self.conv = nnx.Conv(3, 8, (3, 3), rngs=rngs)
            self.blocks = nnx.List([nnx.Linear(8, 8, rngs=rngs) for _ in range(2)])
            self.head = nnx.Linear(8, 4, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            x = nnx.relu(self.conv(x)).mean((1, 2))
            for block in self.blocks:
                x = x + nnx.relu(block(x))
            return self.head(x)

    return Model(nnx.Rngs(0))


def images() -> jax.Array:
    """Returns images that look random."""
    return jnp.asarray(np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype(np.float32))


@program("qwix")
def qwix_training(nnx: Any) -> Any:
    import qwix

    rule = qwix.QuantizationRule(weight_qtype=jnp.int8, act_qtype=jnp.int8)
    x = images()
    model = qwix.quantize_model(perceptron(nnx), qwix.QtProvider([rule]), x)
    return model, lambda model: ((model(x) - 1.0) ** 2).mean()


@program("qwix, after training")
def qwix_after(nnx: Any) -> Any:
    import qwix

    rule = qwix.QuantizationRule(weight_qtype=jnp.int8, act_qtype=jnp.int8)
    x = images()
    model = qwix.quantize_model(perceptron(nnx), qwix.PtqProvider([rule]), x)
    scale = nnx.Dict(scale=nnx.Param(jnp.ones(())))
    outputs = nnx.jit(lambda model, x: model(x))(model, x)
    return scale, lambda scale: ((scale["scale"][...] * outputs - 1.0) ** 2).mean()


@program("qwix, LoRA")
def qwix_lora(nnx: Any) -> Any:
    import qwix

    x = images()
    provider = qwix.LoraProvider(module_path=".*", rank=2, alpha=2.0)
    model = qwix.apply_lora_to_model(perceptron(nnx), provider, x, rngs=nnx.Rngs(1))
    return model, lambda model: ((model(x) - 1.0) ** 2).mean()


def transformer(nnx: Any, package: str, cls: str, config: dict[str, Any]) -> Any:
    """Makes a small language model of tunix, and its loss."""
    import importlib

    module = importlib.import_module(f"tunix.models.{package}.model")
    model = getattr(module, cls)(module.ModelConfig(**config), rngs=nnx.Rngs(0))
    ids = tokens()
    positions = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
    mask = jnp.broadcast_to(jnp.tril(jnp.ones((ids.shape[1],) * 2, bool)), (2, 32, 32))

    def loss(model: Any) -> Any:
        logits, _ = model(ids, positions, None, mask)
        wanted = optax.losses.softmax_cross_entropy_with_integer_labels(logits[:, :-1], ids[:, 1:])
        return wanted.mean()

    return model, loss


SMALL = {
    "num_layers": 2, "vocab_size": 64, "embed_dim": 32, "hidden_dim": 64, "num_heads": 4,
    "head_dim": 8, "num_kv_heads": 2, "rope_theta": 10_000, "norm_eps": 1e-6,
}  # fmt: skip


@program("google-tunix")
def tunix_qwen3(nnx: Any) -> Any:
    return transformer(nnx, "qwen3", "Qwen3", SMALL)


@program("google-tunix, Qwen2")
def tunix_qwen2(nnx: Any) -> Any:
    return transformer(nnx, "qwen2", "Qwen2", SMALL)


@program("google-tunix, Llama3")
def tunix_llama3(nnx: Any) -> Any:
    return transformer(nnx, "llama3", "Llama3", SMALL)


@program("google-tunix, LoRA")
def tunix_lora(nnx: Any) -> Any:
    import qwix

    model, loss = transformer(nnx, "qwen3", "Qwen3", SMALL)
    provider = qwix.LoraProvider(module_path=".*q_proj|.*gate_proj|.*down_proj", rank=2, alpha=2.0)
    model = qwix.apply_lora_to_model(model, provider, **model.get_model_input(), rngs=nnx.Rngs(1))
    return model, loss


def main() -> None:
    """Runs one program."""
    name, *options = sys.argv[1:]
    if "--moduli" in options:
        import moduli_interop

        moduli_interop.as_flax()
    from flax import nnx

    model, loss = PROGRAMS[name](nnx)
    optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)

    @nnx.jit
    def step(model: Any, optimizer: Any) -> Any:
        value, grads = nnx.value_and_grad(loss)(model)
        optimizer.update(model, grads)
        return value

    losses = [float(step(model, optimizer)) for _ in range(5)]
    seconds = []
    for _ in range(30):
        start = time.perf_counter()
        jax.block_until_ready(step(model, optimizer))
        seconds.append(time.perf_counter() - start)
    found = {"nnx": nnx.__name__, "losses": losses, "ms": 1000 * statistics.median(seconds)}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
