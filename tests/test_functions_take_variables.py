"""Every function and layer takes a Variable where it takes an array, with the same result.

The public names are found by reflection: a new function or layer without a row fails here.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import moduli as nnx
import moduli_layers as layers

TAKE_NO_ARRAY = {"set_dtypes", "with_metadata", "with_partitioning"}
ABSTRACT = {"RNNCellBase", "Sequential"}


def streams() -> nnx.Rngs:
    return nnx.Rngs(0)


def random(*shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(len(shape)), shape)


X, HEADS, IMAGE, TIME = random(2, 4), random(1, 4, 2, 8), random(1, 4, 4, 2), random(2, 3, 4)
MASK = jnp.ones((1, 2, 4, 4), bool)
LENGTHS = jnp.array([1, 3])

FUNCTIONS: dict[str, tuple[Callable[[Any], Any], jax.Array]] = {
    "dot_product_attention": (lambda v: layers.dot_product_attention(v, v, v), HEADS),
    "dot_product_attention mask": (
        lambda v: layers.dot_product_attention(HEADS, HEADS, HEADS, mask=v),
        MASK,
    ),
    "dot_product_attention bias": (
        lambda v: layers.dot_product_attention(HEADS, HEADS, HEADS, bias=v),
        random(1, 2, 4, 4),
    ),
    "dot_product_attention_weights": (
        lambda v: layers.dot_product_attention_weights(v, v),
        HEADS,
    ),
    "dot_product_attention_with_rope": (
        lambda v: layers.dot_product_attention_with_rope(v, v, v, rope=layers.RoPE()),
        HEADS,
    ),
    "avg_pool": (lambda v: layers.avg_pool(v, (2, 2)), IMAGE),
    "max_pool": (lambda v: layers.max_pool(v, (2, 2)), IMAGE),
    "min_pool": (lambda v: layers.min_pool(v, (2, 2)), IMAGE),
    "pool": (lambda v: layers.pool(v, 0.0, jax.lax.add, (2, 2), (1, 1), "VALID"), IMAGE),
    "adaptive_avg_pool": (lambda v: layers.adaptive_avg_pool(v, (2, 2)), IMAGE),
    "adaptive_max_pool": (lambda v: layers.adaptive_max_pool(v, (2, 2)), IMAGE),
    "adaptive_min_pool": (lambda v: layers.adaptive_min_pool(v, (2, 2)), IMAGE),
    "make_causal_mask": (layers.make_causal_mask, X),
    "make_attention_mask": (lambda v: layers.make_attention_mask(v, v), X),
    "make_sliding_window_mask": (lambda v: layers.make_sliding_window_mask(v, 2), X),
    "combine_masks": (lambda v: layers.combine_masks(v, v), jnp.ones((2, 2))),
    "rotary_embedding": (layers.rotary_embedding, HEADS),
    "rotary_embedding positions": (
        lambda v: layers.rotary_embedding(HEADS, v),
        jnp.arange(4.0),
    ),
    "flip_sequences": (lambda v: layers.flip_sequences(v, None, 1, False), TIME),
    "flip_sequences lengths": (
        lambda v: layers.flip_sequences(TIME, v, 1, False),
        LENGTHS,
    ),
    "promote_dtype": (lambda v: layers.promote_dtype((v, jnp.ones(2)), dtype=None), X),
    "one_hot": (lambda v: layers.one_hot(v, 3), jnp.array([0, 2])),
}
for name in dir(layers):
    function = getattr(layers, name)
    if getattr(function, "__wrapped__", None) is not None and name not in FUNCTIONS:
        if any(hasattr(space, name) for space in (jax.nn, jnp)) and callable(function):
            FUNCTIONS[name] = (function, X)

Call = Callable[[Any, Any], Any]


def row(make: Callable[[], Any], x: jax.Array, call: Call = lambda layer, v: layer(v)) -> Any:
    return (lambda v: call(make(), v)), x


def first_step(cell: Any, v: Any) -> Any:
    return cell(cell.initialize_carry((2, 4), streams()), v)


def rnn() -> Any:
    return layers.RNN(layers.GRUCell(4, 5, rngs=streams()), rngs=streams())


def attention() -> Any:
    return layers.MultiHeadAttention(2, 4, decode=False, rngs=streams())


def updated(metric: Any, **values: Any) -> Any:
    metric.update(**values)
    return jax.tree.leaves(metric.compute())


LABELS = jnp.array([1, 0])
LAYERS: dict[str, tuple[Callable[[Any], Any], jax.Array]] = {
    "Linear": row(lambda: layers.Linear(4, 3, rngs=streams()), X),
    "LinearGeneral": row(lambda: layers.LinearGeneral(4, (3, 2), rngs=streams()), X),
    "Einsum": row(lambda: layers.Einsum("ij,jk->ik", (4, 3), rngs=streams()), X),
    "Embed": row(lambda: layers.Embed(5, 3, rngs=streams()), LABELS),
    "Embed attend": row(
        lambda: layers.Embed(5, 4, rngs=streams()), X, lambda layer, v: layer.attend(v)
    ),
    "Conv": row(lambda: layers.Conv(2, 3, (2, 2), rngs=streams()), IMAGE),
    "ConvTranspose": row(lambda: layers.ConvTranspose(2, 3, (2, 2), rngs=streams()), IMAGE),
    "BatchNorm": row(lambda: layers.BatchNorm(4, rngs=streams()), X),
    "BatchNorm mask": row(
        lambda: layers.BatchNorm(4, rngs=streams()),
        jnp.ones((2, 4), bool),
        lambda layer, v: layer(X, mask=v),
    ),
    "LayerNorm": row(lambda: layers.LayerNorm(4, rngs=streams()), X),
    "LayerNorm mask": row(
        lambda: layers.LayerNorm(4, rngs=streams()),
        jnp.ones((2, 4), bool),
        lambda layer, v: layer(X, mask=v),
    ),
    "RMSNorm": row(lambda: layers.RMSNorm(4, rngs=streams()), X),
    "GroupNorm": row(lambda: layers.GroupNorm(4, 2, rngs=streams()), X),
    "InstanceNorm": row(lambda: layers.InstanceNorm(2, rngs=streams()), IMAGE),
    "MultiHeadAttention": row(attention, TIME, lambda layer, v: layer(v, v, v)),
    "MultiHeadAttention mask": row(
        attention, jnp.ones((2, 1, 3, 3), bool), lambda layer, v: layer(TIME, mask=v)
    ),
    "GRUCell": row(lambda: layers.GRUCell(4, 5, rngs=streams()), X, first_step),
    "GRUCell carry": row(
        lambda: layers.GRUCell(4, 5, rngs=streams()), random(2, 5), lambda cell, v: cell(v, X)
    ),
    "LSTMCell": row(lambda: layers.LSTMCell(4, 5, rngs=streams()), X, first_step),
    "OptimizedLSTMCell": row(lambda: layers.OptimizedLSTMCell(4, 5, rngs=streams()), X, first_step),
    "SimpleCell": row(lambda: layers.SimpleCell(4, 5, rngs=streams()), X, first_step),
    "RNN": row(rnn, TIME),
    "RNN lengths": row(rnn, LENGTHS, lambda layer, v: layer(TIME, seq_lengths=v)),
    "RNN carry": row(rnn, random(2, 5), lambda layer, v: layer(TIME, initial_carry=v)),
    "Bidirectional": row(lambda: layers.Bidirectional(rnn(), rnn(), rngs=streams()), TIME),
    "LoRA": row(lambda: layers.LoRA(4, 2, 3, rngs=streams()), X),
    "LoRALinear": row(lambda: layers.LoRALinear(4, 3, lora_rank=2, rngs=streams()), X),
    "Dropout": row(lambda: layers.Dropout(0.5, rngs=streams()), X),
    "Dropout deterministic": row(lambda: layers.Dropout(0.5, deterministic=True), X),
    "StochasticDepth": row(lambda: layers.StochasticDepth(0.5, rngs=streams()), X),
    "PReLU": row(layers.PReLU, X),
    "RoPE": row(layers.RoPE, X),
    "Stack": row(
        lambda: layers.Stack(lambda rngs: layers.Linear(4, 4, rngs=rngs), 2, rngs=streams()), X
    ),
    "Sequential": row(
        lambda: layers.Sequential(layers.relu, layers.Linear(4, 3, rngs=streams())), X
    ),
    "MLP": row(lambda: layers.MLP(4, 5, 3, rngs=streams()), X),
    "WeightNorm": row(
        lambda: layers.WeightNorm(layers.Linear(4, 3, rngs=streams()), rngs=streams()), X
    ),
    "SpectralNorm": row(
        lambda: layers.SpectralNorm(layers.Linear(4, 3, rngs=streams()), rngs=streams()), X
    ),
    "metrics.Average": row(nnx.metrics.Average, X, lambda m, v: updated(m, values=v)),
    "metrics.Welford": row(nnx.metrics.Welford, X, lambda m, v: updated(m, values=v)),
    "metrics.Accuracy": row(
        nnx.metrics.Accuracy, X, lambda m, v: updated(m, logits=v, labels=LABELS)
    ),
    "metrics.Accuracy labels": row(
        nnx.metrics.Accuracy, LABELS, lambda m, v: updated(m, logits=X, labels=v)
    ),
    "metrics.MultiMetric": row(
        lambda: nnx.metrics.MultiMetric(loss=nnx.metrics.Average("loss")),
        X,
        lambda m, v: updated(m, loss=v),
    ),
}
ROWS = {**FUNCTIONS, **LAYERS}


def test_every_public_name_has_a_row() -> None:
    rows = {name.split(" ")[0] for name in ROWS}
    for name in dir(layers):
        value = getattr(layers, name)
        if name[0] == "_" or name in TAKE_NO_ARRAY | ABSTRACT:
            continue
        layer = isinstance(value, type) and issubclass(value, nnx.Module)
        if layer or inspect.isfunction(value):
            assert name in rows, f"{name} has no row"
    for name, value in vars(nnx.metrics).items():
        metric = isinstance(value, type) and issubclass(value, nnx.metrics.Metric)
        if metric and value is not nnx.metrics.Metric:
            assert f"metrics.{name}" in rows, f"{name} has no row"


@pytest.mark.parametrize("name", ROWS)
def test_a_variable_is_taken_as_its_array_is(name: str) -> None:
    call, x = ROWS[name]
    variable = nnx.Param(x)
    want = call(x)
    for got in (call(variable), nnx.jit(lambda v: call(v))(variable)):
        assert jax.tree.structure(got) == jax.tree.structure(want)
        for mine, theirs in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            assert not isinstance(mine, nnx.Variable)
            assert mine.dtype == theirs.dtype
            np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-6)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return

    def loss(v: Any) -> Any:
        return sum(jnp.sum(leaf * leaf) for leaf in jax.tree.leaves(call(v)))

    got, want = nnx.grad(loss)(variable), jax.grad(loss)(x)
    np.testing.assert_allclose(jax.tree.leaves(got)[0], want, rtol=1e-4, atol=1e-5)
