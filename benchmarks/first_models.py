"""A ResNet, a GPT and an LSTM written once with flax.nnx's interface, and one batch for each.

What a user's first program does: build the model and the optimizer, take one train step.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

CLASSES, TOKENS = 10, 256


@dataclasses.dataclass(frozen=True)
class FirstModel:
    """One model and what it learns from.

    Attributes:
      build: makes the model from the library (moduli or flax.nnx).
      batch: inputs and integer targets.
    """

    build: Callable[[Any], Any]
    batch: Callable[[], tuple[jax.Array, jax.Array]]


def resnet(nnx: Any, widths: tuple[int, ...] = (64, 128, 256, 512)) -> Any:
    """An 18-layer ResNet for small images: a stem, four stages of two blocks, a head."""

    class Block(nnx.Module):
        def __init__(self, features: int, width: int, stride: int, rngs: Any) -> None:
            kernel = {"kernel_size": (3, 3), "use_bias": False, "rngs": rngs}
            self.first = nnx.Conv(features, width, strides=stride, **kernel)
            self.first_norm = nnx.BatchNorm(width, rngs=rngs)
            self.second = nnx.Conv(width, width, **kernel)
            self.second_norm = nnx.BatchNorm(width, rngs=rngs)
            self.same = stride == 1 and features == width
            if not self.same:
                self.shortcut = nnx.Conv(
                    features, width, (1, 1), strides=stride, use_bias=False, rngs=rngs
                )

        def __call__(self, x: Any) -> Any:
            branch = nnx.relu(self.first_norm(self.first(x)))
            branch = self.second_norm(self.second(branch))
            return nnx.relu(branch + (x if self.same else self.shortcut(x)))

    class ResNet(nnx.Module):
        def __init__(self, rngs: Any) -> None:
            self.stem = nnx.Conv(3, widths[0], (3, 3), use_bias=False, rngs=rngs)
            blocks, features = [], widths[0]
            for stage, width in enumerate(widths):
                for position in range(2):
                    stride = 2 if stage and not position else 1
                    blocks.append(Block(features, width, stride, rngs))
                    features = width
            self.blocks = nnx.List(blocks)
            self.head = nnx.Linear(features, CLASSES, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            x = self.stem(x)
            for block in self.blocks:
                x = block(x)
            return self.head(x.mean(axis=(1, 2)))

    return ResNet(nnx.Rngs(0))


def gpt(nnx: Any, depth: int = 6, width: int = 256, length: int = 128) -> Any:
    """A decoder: embeddings, blocks of causal attention and an MLP, logits of the next token."""

    class Block(nnx.Module):
        def __init__(self, rngs: Any) -> None:
            self.attention_norm = nnx.LayerNorm(width, rngs=rngs)
            self.attention = nnx.MultiHeadAttention(
                num_heads=4, in_features=width, decode=False, rngs=rngs
            )
            self.norm = nnx.LayerNorm(width, rngs=rngs)
            self.up = nnx.Linear(width, 4 * width, rngs=rngs)
            self.down = nnx.Linear(4 * width, width, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            mask = nnx.make_causal_mask(x[..., 0])
            x = x + self.attention(self.attention_norm(x), mask=mask)
            return x + self.down(nnx.gelu(self.up(self.norm(x))))

    class GPT(nnx.Module):
        def __init__(self, rngs: Any) -> None:
            self.tokens = nnx.Embed(TOKENS, width, rngs=rngs)
            self.positions = nnx.Embed(length, width, rngs=rngs)
            self.blocks = nnx.List([Block(rngs) for _ in range(depth)])
            self.norm = nnx.LayerNorm(width, rngs=rngs)
            self.head = nnx.Linear(width, TOKENS, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            x = self.tokens(x) + self.positions(jnp.arange(x.shape[-1]))
            for block in self.blocks:
                x = block(x)
            return self.head(self.norm(x))

    return GPT(nnx.Rngs(0))


def lstm(nnx: Any, depth: int = 2, width: int = 256) -> Any:
    """Two LSTMs over embedded tokens, and logits of the next one."""

    class Language(nnx.Module):
        def __init__(self, rngs: Any) -> None:
            self.tokens = nnx.Embed(TOKENS, width, rngs=rngs)
            self.layers = nnx.List(
                [nnx.RNN(nnx.LSTMCell(width, width, rngs=rngs), rngs=rngs) for _ in range(depth)]
            )
            self.head = nnx.Linear(width, TOKENS, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            x = self.tokens(x)
            for layer in self.layers:
                x = layer(x)
            return self.head(x)

    return Language(nnx.Rngs(0))


def images() -> tuple[jax.Array, jax.Array]:
    """Eight images of 32 x 32 with a class each."""
    random = np.random.default_rng(0)
    x = random.normal(size=(8, 32, 32, 3)).astype(np.float32)
    return jnp.asarray(x), jnp.asarray(random.integers(0, CLASSES, 8))


def text() -> tuple[jax.Array, jax.Array]:
    """Eight sequences of 64 tokens and the tokens that follow."""
    tokens = np.random.default_rng(0).integers(0, TOKENS, (8, 65))
    return jnp.asarray(tokens[:, :-1]), jnp.asarray(tokens[:, 1:])


MODELS = {
    "ResNet-18, 8 x 32^2": FirstModel(resnet, images),
    "GPT, 6 blocks of 256": FirstModel(gpt, text),
    "LSTM, 2 layers of 256": FirstModel(lstm, text),
}
"""Name in the report -> the model at its usual size."""

TINY_MODELS = {
    "tiny ResNet": FirstModel(lambda nnx: resnet(nnx, widths=(4, 8)), images),
    "tiny GPT": FirstModel(lambda nnx: gpt(nnx, depth=1, width=16), text),
    "tiny LSTM": FirstModel(lambda nnx: lstm(nnx, depth=1, width=16), text),
}
"""The same, small: does everything run?"""
