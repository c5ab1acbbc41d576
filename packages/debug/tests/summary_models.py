"""Models for the tests of tabulate, whose sizes and costs can be written down by hand."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

import moduli as nnx


def shape(*axes: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    """An array that is not there."""
    return jax.ShapeDtypeStruct(axes, dtype)


class Residual(nnx.Module):
    """Two 3x3 convolutions and a shortcut, as in ResNets."""

    def __init__(self, size_in: int, size_out: int, strides: int, rngs: nnx.Rngs) -> None:
        self.conv1 = nnx.Conv(size_in, size_out, (3, 3), strides=strides, use_bias=False, rngs=rngs)
        self.norm1 = nnx.BatchNorm(size_out, rngs=rngs)
        self.conv2 = nnx.Conv(size_out, size_out, (3, 3), use_bias=False, rngs=rngs)
        self.norm2 = nnx.BatchNorm(size_out, rngs=rngs)
        self.shortcut = None
        if size_in != size_out:
            self.shortcut = nnx.Conv(
                size_in, size_out, (1, 1), strides=strides, use_bias=False, rngs=rngs
            )

    def __call__(self, x: jax.Array) -> jax.Array:
        y = nnx.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        return nnx.relu(y + (x if self.shortcut is None else self.shortcut(x)))


class ResNet(nnx.Module):
    """A stem, stages that halve the image and double the channels, a head."""

    def __init__(self, width: int, stages: int, classes: int, rngs: nnx.Rngs) -> None:
        self.stem = nnx.Conv(3, width, (3, 3), use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(width, rngs=rngs)
        self.stages = []
        for stage in range(stages):
            size = width * 2**stage
            size_in, strides = (size // 2, 2) if stage else (size, 1)
            self.stages.append(Residual(size_in, size, strides, rngs))
            self.stages.append(Residual(size, size, 1, rngs))
        self.head = nnx.Linear(size, classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.relu(self.norm(self.stem(x)))
        for block in self.stages:
            x = block(x)
        return self.head(x.mean((1, 2)))


def resnet_parameters(width: int, stages: int, classes: int) -> int:
    """Counts a ResNet's parameters."""
    total = 3 * 9 * width + 2 * width
    for stage in range(stages):
        size = width * 2**stage
        before = size // 2 if stage else size
        total += 9 * before * size + 9 * size * size + 4 * size  # first block
        total += before * size if stage else 0  # its shortcut
        total += 18 * size * size + 4 * size  # second block
    return total + size * classes + classes


class Attention(nnx.Module):
    """Self-attention from four matrices, without biases."""

    def __init__(self, size: int, heads: int, rngs: nnx.Rngs) -> None:
        self.heads = heads
        self.query, self.key, self.value, self.out = (
            nnx.Linear(size, size, use_bias=False, rngs=rngs) for _ in range(4)
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        def split(y: jax.Array) -> jax.Array:  # (B, T, D) -> (B, T, H, D/H)
            return y.reshape(*y.shape[:-1], self.heads, -1)

        q, k, v = split(self.query(x)), split(self.key(x)), split(self.value(x))
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k)
        y = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), v)
        return self.out(y.reshape(x.shape))


class Block(nnx.Module):
    """A transformer block."""

    def __init__(self, size: int, heads: int, rngs: nnx.Rngs) -> None:
        self.norm1, self.norm2 = nnx.LayerNorm(size, rngs=rngs), nnx.LayerNorm(size, rngs=rngs)
        self.attention = Attention(size, heads, rngs)
        self.up = nnx.Linear(size, 4 * size, rngs=rngs)
        self.down = nnx.Linear(4 * size, size, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + self.attention(self.norm1(x))
        return x + self.down(nnx.relu(self.up(self.norm2(x))))


class Transformer(nnx.Module):
    """A language model whose output matrix is its embedding's."""

    def __init__(self, vocabulary: int, size: int, depth: int, scan: bool, rngs: nnx.Rngs) -> None:
        self.embed = nnx.Embed(vocabulary, size, rngs=rngs)
        if scan:
            self.blocks = nnx.Stack(lambda rngs: Block(size, 2, rngs), depth, rngs=rngs)
        else:
            self.blocks = [Block(size, 2, rngs) for _ in range(depth)]
        self.norm = nnx.LayerNorm(size, rngs=rngs)
        self.tied = self.embed.embedding

    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = self.embed(tokens)
        if isinstance(self.blocks, nnx.Stack):
            x = self.blocks(x)
        else:
            for block in self.blocks:
                x = block(x)
        return self.norm(x) @ self.tied.value.T


def transformer_parameters(vocabulary: int, size: int, depth: int) -> int:
    """Counts a Transformer's parameters."""
    block = 4 * size * size + 8 * size * size + 5 * size + 4 * size
    return vocabulary * size + depth * block + 2 * size


def abstract(make: Any) -> Any:
    """Makes a model without allocating it."""
    return nnx.eval_shape(lambda: make(nnx.Rngs(0)))
