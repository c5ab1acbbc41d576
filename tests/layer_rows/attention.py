"""Rows of the attention layers."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import moduli
import moduli_layers as layers
from layer_rows.row import Bad, Row, value
from moduli.errors import ShapeError
from moduli_layers.errors import ArgumentError


def project(layer: Any, x: np.ndarray) -> np.ndarray:
    """One of the maps to heads."""
    return np.einsum("bti,ihd->bthd", x, value(layer.kernel)) + value(layer.bias)


def normalise(layer: Any, x: np.ndarray) -> np.ndarray:
    """The normalisation of each head's queries or keys."""
    centred = x - x.mean(-1, keepdims=True)
    var = (centred**2).mean(-1, keepdims=True)
    return centred / np.sqrt(var + layer.epsilon) * value(layer.scale)


def rotate(x: np.ndarray) -> np.ndarray:
    """Rotary positions, as products of complex numbers."""
    half = x.shape[-1] // 2
    speed = 10000.0 ** -(np.arange(half) / half)
    turn = np.exp(1j * np.arange(x.shape[1])[:, None] * speed)[:, None]
    turned = (x[..., :half] + 1j * x[..., half:]) * turn
    return np.concatenate([turned.real, turned.imag], -1)


def rope(layer: Any, x: Any) -> np.ndarray:
    """The reference of RoPE, likewise, without heads."""
    x = np.asarray(x, np.float64)
    half = x.shape[-1] // 2
    speed = layer.theta ** -(np.arange(half) / half)
    turned = (x[..., :half] + 1j * x[..., half:]) * np.exp(
        1j * np.arange(x.shape[-2])[:, None] * speed
    )
    return np.concatenate([turned.real, turned.imag], -1)


def kept(layer: Any, queries: int, keys: int) -> np.ndarray:
    """Which weights the stream's first draw keeps, the same in all heads and examples."""
    key = jax.random.fold_in(layer.rngs.key.value, 0)
    lots = np.asarray(jax.random.uniform(key, (1, 1, queries, keys)))[0, 0]
    return (lots < 1 - layer.dropout_rate) / (1 - layer.dropout_rate)


def attention(
    layer: Any,
    inputs: Any,
    keys: Any = None,
    values: Any = None,
    mask: Any = None,
    drops: bool = False,
) -> np.ndarray:
    """Attention from its definition, one query at a time."""
    causal, layer = getattr(layer, "causal", False), getattr(layer, "attention", layer)
    q = np.asarray(inputs, np.float64)
    k = q if keys is None else np.asarray(keys, np.float64)
    v = k if values is None else np.asarray(values, np.float64)
    q, k, v = project(layer.query, q), project(layer.key, k), project(layer.value, v)
    if layer.query_ln is not None:
        q, k = normalise(layer.query_ln, q), normalise(layer.key_ln, k)
    if layer.rotary is not None:
        q, k = rotate(q), rotate(k)
    out = np.zeros((*q.shape[:-1], v.shape[-1]))
    factors = kept(layer, q.shape[1], k.shape[1]) if drops else np.ones((q.shape[1], k.shape[1]))
    group = layer.num_heads // layer.num_kv_heads
    for b, i, h in np.ndindex(*q.shape[:-1]):
        seen = np.arange(k.shape[1])
        if causal:
            seen = seen[seen <= i]
        if layer.window is not None:
            seen = seen[np.abs(i - seen) < layer.window]
        if mask is not None:
            seen = seen[np.asarray(mask)[b, 0, i, seen]]
        scores = k[b, seen, h // group] @ q[b, i, h] / math.sqrt(q.shape[-1])
        weights = np.exp(scores - scores.max())
        weights = weights / weights.sum() * factors[i, seen]
        out[b, i, h] = weights @ v[b, seen, h // group]
    return np.einsum("bthd,hdo->bto", out, value(layer.out.kernel)) + value(layer.out.bias)


class Causal(moduli.Module):
    """Calls attention with ``is_causal=True``."""

    def __init__(self, attention: Any) -> None:
        self.attention, self.causal = attention, True

    def __call__(self, x: Any) -> Any:
        """Attends to the past."""
        return self.attention(x, is_causal=True)


class Remembering(Causal):
    """Reads a piece and then one position after the other, with a cache of keys and values."""

    def __init__(self, attention: Any, shape: tuple[int, ...]) -> None:
        super().__init__(attention)
        attention.init_cache(shape)

    def __call__(self, x: Any) -> Any:
        """Attends to the past, of which the cache is all that is left."""
        layer = self.attention
        pieces = [x[:, :3], *(x[:, i : i + 1] for i in range(3, x.shape[1]))]
        outputs = jnp.concatenate([layer(piece, decode=True) for piece in pieces], axis=1)
        for cache in (layer.cached_key, layer.cached_value, layer.cache_index):
            cache.value = jnp.zeros_like(cache.value)  # the next call begins anew
        return outputs


class Masked(moduli.Module):
    """Passes its second input as the mask."""

    def __init__(self, attention: Any) -> None:
        self.attention = attention

    def __call__(self, x: Any, mask: Any) -> Any:
        """Attends where the mask allows."""
        return self.attention(x, mask=mask)


def masked(layer: Any, x: Any, mask: Any) -> np.ndarray:
    """The reference of :class:`Masked`."""
    return attention(layer, x, mask=mask)


def _mask(rng: np.random.Generator) -> np.ndarray:
    return (rng.random((2, 1, 5, 5)) < 0.5) | np.eye(5, dtype=bool)  # each sees itself at least


def _attention(rngs: moduli.Rngs, **kwargs: Any) -> Any:
    return layers.MultiHeadAttention(4, 8, decode=False, **kwargs, rngs=rngs)


_REMEMBERING = {"num_kv_heads": 2, "rotary": layers.rotary_embedding, "qkv_features": 16}


def _row(
    name: str,
    inputs: tuple[Any, ...] = ((2, 5, 8),),
    out: int = 8,
    causal: bool = False,
    bad: tuple[Bad, ...] = (),
    **kwargs: Any,
) -> Row:
    def build(rngs: moduli.Rngs) -> Any:
        layer = _attention(rngs, **kwargs)
        return Causal(layer) if causal else layer

    return Row(
        f"attention-{name}",
        build,
        inputs,
        (*inputs[0][:-1], out),
        attention,
        bad=bad,
        torch=len(inputs) == 3,
        bfloat16=0.05,
    )


def _large(rngs: moduli.Rngs) -> Any:
    return layers.MultiHeadAttention(4, 64, 400, num_kv_heads=2, decode=False, rngs=rngs)


_SPREAD = {
    **{f"{name}/kernel": 1 / 8 for name in ("query", "key", "value")},
    "out/kernel": 1 / 20,
    **{f"{name}/bias": 0 for name in ("query", "key", "value", "out")},
}

ROWS: list[Row] = [
    _row(
        "self",
        bad=(
            Bad(
                ((8,),),
                ShapeError,
                r"MultiHeadAttention\(in_features=8\) expects inputs_q of shape \(\*batch, length, "
                r"8\), got shape \(8,\)",
            ),
        ),
    ),
    _row("cross", ((2, 5, 8), (2, 7, 8), (2, 7, 8))),
    _row("cross-no-bias", ((2, 5, 8), (2, 7, 8), (2, 7, 8)), use_bias=False),
    _row(
        "sizes",
        ((2, 5, 8), (2, 7, 6)),
        5,
        qkv_features=16,
        out_features=5,
        in_kv_features=6,
        bad=(Bad(((2, 5, 8), (2, 7, 8)), ShapeError, r"expects inputs_k of shape \(\*batch"),),
    ),
    _row("causal", causal=True),
    _row("grouped", num_kv_heads=2),
    _row("one-key-head", num_kv_heads=1, causal=True),
    _row("normalize-qk", normalize_qk=True, qkv_features=16),
    _row("rotary", rotary=layers.rotary_embedding, qkv_features=16),
    Row(
        "rope",
        lambda rngs: layers.RoPE(),
        ((2, 5, 8),),
        (2, 5, 8),
        rope,
        checks_features=False,
        needs_rngs=False,
        bad=(
            Bad(((2, 5, 7),), ArgumentError, "RoPE turns pairs of features, got 7"),
            Bad(((8,),), ShapeError, r"RoPE expects an array of shape \(\*batch, length"),
        ),
    ),
    Row(
        "rope-table",
        lambda rngs: layers.RoPE(100.0, embedding_size=8, max_seq_len=6),
        ((2, 5, 8),),
        (2, 5, 8),
        rope,
        needs_rngs=False,
        bad=(Bad(((2, 7, 8),), ShapeError, r"max_seq_len=6\) got an array of shape \(2, 7, 8\)"),),
    ),
    _row("window", window=2),
    _row("window-causal", window=3, causal=True, rotary=layers.rotary_embedding),
    Row(
        "attention-cache",
        lambda rngs: Remembering(_attention(rngs, **_REMEMBERING), (2, 5, 8)),
        ((2, 5, 8),),
        (2, 5, 8),
        attention,
        bad=(Bad(((3, 5, 8),), ShapeError, r"keys of shape \(3, 3, 2, 4\), but its cache is for"),),
        batched=False,
        torch=False,
        bfloat16=0.05,
    ),
    Row(
        "attention-mask",
        lambda rngs: Masked(_attention(rngs)),
        ((2, 5, 8), _mask),
        (2, 5, 8),
        masked,
        bad=(
            Bad(
                ((2, 5, 8), (3, 1, 5, 5)),
                ShapeError,
                r"attention expects a mask that broadcasts to .* got shape \(3, 1, 5, 5\)",
            ),
        ),
        bfloat16=0.05,
    ),
    Row(
        "attention-dropout",
        lambda rngs: _attention(rngs, dropout_rate=0.3, deterministic=False),
        ((2, 5, 8),),
        (2, 5, 8),
        functools.partial(attention, drops=True),
        attention,
        random=True,
        torch=False,
        bfloat16=0.05,
    ),
    Row(
        "attention-large",
        _large,
        ((1, 3, 64),),
        (1, 3, 64),
        attention,
        torch=False,
        init=(_large, _SPREAD),
        bfloat16=0.05,
    ),
]
