"""An MLP, a CNN and a small GPT: with flax.nnx's interface, and by hand over a dict of arrays.

The functions by hand take the parameters that ``to_pure_dict`` gives of the module, so all peers
begin with the same numbers.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.first_models import CLASSES, TOKENS, gpt, text


@dataclasses.dataclass(frozen=True)
class TrainedModel:
    """One model and what it learns from.

    Attributes:
      build: makes the model from the library (moduli or flax.nnx).
      by_hand: the same function of parameters and inputs, in raw JAX.
      batch: inputs and integer targets.
    """

    build: Callable[[Any], Any]
    by_hand: Callable[[Any, jax.Array], jax.Array]
    batch: Callable[[], tuple[jax.Array, jax.Array]]


def mlp(nnx: Any, width: int) -> Any:
    """Three layers over flat images."""

    class MLP(nnx.Module):
        def __init__(self, rngs: Any) -> None:
            sizes = [(28 * 28, width), (width, width), (width, CLASSES)]
            self.layers = nnx.List([nnx.Linear(a, b, rngs=rngs) for a, b in sizes])

        def __call__(self, x: Any) -> Any:
            first, second, last = self.layers
            return last(nnx.relu(second(nnx.relu(first(x)))))

    return MLP(nnx.Rngs(0))


def cnn(nnx: Any, width: int) -> Any:
    """Three convolutions, a mean over positions, a head."""

    class CNN(nnx.Module):
        def __init__(self, rngs: Any) -> None:
            sizes = [(1, width, 1), (width, 2 * width, 2), (2 * width, 2 * width, 2)]
            self.layers = nnx.List(
                [nnx.Conv(a, b, (3, 3), strides=s, rngs=rngs) for a, b, s in sizes]
            )
            self.head = nnx.Linear(2 * width, CLASSES, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            x = x.reshape(-1, 28, 28, 1)
            for layer in self.layers:
                x = nnx.relu(layer(x))
            return self.head(x.mean(axis=(1, 2)))

    return CNN(nnx.Rngs(0))


def _linear(p: Any, x: jax.Array) -> jax.Array:
    return x @ p["kernel"] + p["bias"]


def mlp_by_hand(params: Any, x: jax.Array) -> jax.Array:
    """The MLP in raw JAX."""
    layers = params["layers"]
    x = jax.nn.relu(_linear(layers[0], x))
    return _linear(layers[2], jax.nn.relu(_linear(layers[1], x)))


def cnn_by_hand(params: Any, x: jax.Array) -> jax.Array:
    """The CNN in raw JAX."""
    x = x.reshape(-1, 28, 28, 1)
    for index, stride in enumerate((1, 2, 2)):
        p = params["layers"][index]
        x = jax.lax.conv_general_dilated(
            x, p["kernel"], (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = jax.nn.relu(x + p["bias"])
    return _linear(params["head"], x.mean(axis=(1, 2)))


def _norm(p: Any, x: jax.Array) -> jax.Array:
    mean = x.mean(-1, keepdims=True)
    var = jnp.maximum(0.0, (x * x).mean(-1, keepdims=True) - mean * mean)
    return (x - mean) * (jax.lax.rsqrt(var + 1e-6) * p["scale"]) + p["bias"]


def _attention(p: Any, x: jax.Array) -> jax.Array:
    query, key, value = (
        jnp.einsum("btd,dhk->bthk", x, p[name]["kernel"]) + p[name]["bias"]
        for name in ("query", "key", "value")
    )
    query = query / math.sqrt(query.shape[-1])
    scores = jnp.einsum("bqhk,bshk->bhqs", query, key)
    length = x.shape[1]
    earlier = jnp.arange(length)[:, None] >= jnp.arange(length)
    weights = jax.nn.softmax(jnp.where(earlier, scores, jnp.finfo(scores.dtype).min))
    mixed = jnp.einsum("bhqs,bshk->bqhk", weights, value)
    return jnp.einsum("bqhk,hkd->bqd", mixed, p["out"]["kernel"]) + p["out"]["bias"]


def gpt_by_hand(params: Any, x: jax.Array) -> jax.Array:
    """The GPT of :mod:`benchmarks.first_models` in raw JAX."""
    positions = jnp.arange(x.shape[-1])
    x = jnp.take(params["tokens"]["embedding"], x, axis=0)
    x = x + jnp.take(params["positions"]["embedding"], positions, axis=0)
    for index in range(len(params["blocks"])):
        p = params["blocks"][index]
        x = x + _attention(p["attention"], _norm(p["attention_norm"], x))
        x = x + _linear(p["down"], jax.nn.gelu(_linear(p["up"], _norm(p["norm"], x))))
    return _linear(params["head"], _norm(params["norm"], x))


def pixels() -> tuple[jax.Array, jax.Array]:
    """64 flat images of 28 x 28 with a class each."""
    random = np.random.default_rng(0)
    x = random.normal(size=(64, 28 * 28)).astype(np.float32)
    return jnp.asarray(x), jnp.asarray(random.integers(0, CLASSES, 64))


def models(tiny: bool) -> dict[str, TrainedModel]:
    """Returns name in the report -> model; tiny ones to see that everything runs."""
    width, depth = (8, 1) if tiny else (128, 4)
    return {
        f"MLP, 3 layers of {4 * width}": TrainedModel(
            lambda nnx: mlp(nnx, 4 * width), mlp_by_hand, pixels
        ),
        f"CNN, 3 convolutions of {width // 4}": TrainedModel(
            lambda nnx: cnn(nnx, width // 4), cnn_by_hand, pixels
        ),
        f"GPT, {depth} blocks of {width}, {TOKENS} tokens": TrainedModel(
            lambda nnx: gpt(nnx, depth=depth, width=width), gpt_by_hand, text
        ),
    }
