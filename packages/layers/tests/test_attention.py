"""What the table of layers cannot say about attention."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import moduli
from moduli.errors import RngError, ShapeError, StructureError
from moduli_layers import (
    MultiHeadAttention,
    RoPE,
    combine_masks,
    dot_product_attention,
    dot_product_attention_weights,
    dot_product_attention_with_rope,
    make_attention_mask,
    make_causal_mask,
    make_sliding_window_mask,
    rotary_embedding,
)
from moduli_layers.errors import ArgumentError

CONFIGS = {
    "plain": {},
    "grouped": {"num_kv_heads": 2},
    "rotary": {"rotary": rotary_embedding},
    "window": {"window": 3},
    "all": {"num_kv_heads": 1, "rotary": rotary_embedding, "window": 2, "normalize_qk": True},
}
each_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


def attention(**config) -> MultiHeadAttention:
    return MultiHeadAttention(4, 16, decode=False, **config, rngs=moduli.Rngs(0))


def inputs(length: int = 7, seed: int = 0) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), (2, length, 16), jnp.float32)


# -- the cache ------------------------------------------------------------------------------------


@each_config
def test_step_by_step_equals_one_causal_call(config) -> None:
    layer, x = attention(**config), inputs()
    whole = layer(x, is_causal=True)
    layer.init_cache(x.shape)
    steps = [layer(x[:, i : i + 1], decode=True) for i in range(7)]
    np.testing.assert_allclose(jnp.concatenate(steps, 1), whole, rtol=1e-4, atol=1e-5)
    assert int(layer.cache_index) == 7


@each_config
def test_the_same_in_one_compiled_loop(config) -> None:
    layer, x = attention(**config), inputs()
    whole = layer(x, is_causal=True)
    layer.init_cache(x.shape)

    @moduli.jit
    def run(layer, x):
        step = moduli.scan(
            lambda layer, piece: layer(piece[:, None], decode=True)[:, 0],
            in_axes=(None, 1),
            out_axes=1,
        )
        return step(layer, x)

    np.testing.assert_allclose(run(layer, x), whole, rtol=1e-4, atol=1e-5)
    assert int(layer.cache_index) == 7


@each_config
def test_a_piece_first_and_then_steps(config) -> None:
    layer, x = attention(**config), inputs()
    whole = layer(x, is_causal=True)
    layer.init_cache(x.shape)
    pieces = [
        layer(x[:, :4], decode=True),
        *(layer(x[:, i : i + 1], decode=True) for i in (4, 5, 6)),
    ]
    np.testing.assert_allclose(jnp.concatenate(pieces, 1), whole, rtol=1e-4, atol=1e-5)


def test_init_cache_begins_anew() -> None:
    layer, x = attention(), inputs()
    layer.init_cache(x.shape)
    first = layer(x[:, :2], decode=True)
    layer.init_cache(x.shape)
    np.testing.assert_array_equal(layer(x[:, :2], decode=True), first)


def test_a_mask_holds_while_decoding() -> None:
    layer, x = attention(), inputs(3)
    layer.init_cache(x.shape)
    layer(x[:, :2], decode=True)
    hidden = jnp.array([True, False, True])[None, None, None]
    out = layer(x[:, 2:], decode=True, mask=hidden)
    causal = make_causal_mask(x[..., 0], dtype=bool)
    expected = layer(x, mask=combine_masks(causal, hidden, dtype=bool))
    np.testing.assert_allclose(out, expected[:, 2:], rtol=1e-4, atol=1e-5)


def test_a_cache_in_bfloat16() -> None:
    layer, x = attention(), inputs(3)
    layer.init_cache(x.shape, jnp.bfloat16)
    out = layer(x, decode=True)
    assert layer.cached_key.dtype == jnp.bfloat16
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out, layer(x, is_causal=True), rtol=0.05, atol=0.02)


def test_decoding_without_a_cache_is_refused() -> None:
    with pytest.raises(StructureError) as caught:
        attention()(inputs(1), decode=True)
    assert str(caught.value) == (
        "MultiHeadAttention has to decode and has no cache; write layer.init_cache(input_shape) "
        "before, with the shape (*batch, longest text, 16)"
    )


def test_a_full_cache_is_refused_and_stays() -> None:
    layer, x = attention(), inputs(3)
    layer.init_cache(x.shape)
    layer(x, decode=True)
    before = np.asarray(layer.cached_key.value)
    with pytest.raises(StructureError, match="has 3 positions in its cache of 3 and got 1 more"):
        layer(x[:, :1], decode=True)
    np.testing.assert_array_equal(layer.cached_key.value, before)


def test_another_batch_than_the_caches_is_refused() -> None:
    layer = attention()
    layer.init_cache((3, 5, 16))
    with pytest.raises(ShapeError, match=r"keys of shape \(2, 1, 4, 4\), but its cache is for"):
        layer(inputs(1), decode=True)


def test_somebody_has_to_say_whether_to_decode() -> None:
    layer = MultiHeadAttention(4, 16, rngs=moduli.Rngs(0))
    with pytest.raises(ArgumentError, match="does not know whether to decode, because decode"):
        layer(inputs())


# -- arguments ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"qkv_features": 18},
            "MultiHeadAttention got num_heads=4 and qkv_features=18, which it does not divide; "
            "write a multiple of num_heads as qkv_features",
        ),
        (
            {"num_kv_heads": 3},
            "MultiHeadAttention got num_heads=4 and num_kv_heads=3, which does not divide it; "
            "write a divisor of num_heads",
        ),
        (
            {"window": 0},
            "MultiHeadAttention got window=0; write how many positions are seen, at least 1",
        ),
        (
            {"out_features": 0},
            "MultiHeadAttention got out_features=0; write a size of at least 1",
        ),
    ],
)
def test_wrong_arguments_are_refused(arguments, message) -> None:
    with pytest.raises(ArgumentError) as caught:
        attention(**arguments)
    assert str(caught.value) == message


def test_values_without_keys_are_refused() -> None:
    with pytest.raises(ArgumentError, match="got inputs_v without inputs_k; write both"):
        attention()(inputs(), inputs_v=inputs())


def test_a_mask_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ShapeError) as caught:
        attention()(inputs(), mask=jnp.ones((3, 1, 7, 7)))
    assert str(caught.value) == (
        "attention expects a mask that broadcasts to (*batch, heads, queries, keys) = "
        "(2, 4, 7, 7), got shape (3, 1, 7, 7); give it an axis of size 1 where it is the same for "
        "all, as mask[:, None]"
    )


# -- dropout --------------------------------------------------------------------------------------


def test_dropout_draws_anew_in_training_and_not_in_evaluation() -> None:
    layer, x = attention(dropout_rate=0.5), inputs()
    layer.train()
    assert not np.allclose(layer(x), layer(x))
    layer.eval()
    np.testing.assert_array_equal(layer(x), layer(x))
    np.testing.assert_allclose(layer(x), attention()(x), rtol=1e-5, atol=1e-6)


def test_dropped_weights_are_zero_and_the_rest_is_scaled() -> None:
    q = jax.random.normal(jax.random.key(0), (2, 40, 3, 8))
    plain = dot_product_attention_weights(q, q)
    options = {"dropout_rng": jax.random.key(1), "dropout_rate": 0.25}
    one = dot_product_attention_weights(q, q, **options)
    ratio = np.asarray(one / plain)
    np.testing.assert_allclose(np.unique(ratio.round(4)), [0.0, 1.3333], rtol=1e-4)
    assert 0.2 < (ratio == 0).mean() < 0.3
    np.testing.assert_array_equal(ratio == 0, np.broadcast_to(ratio[:1, :1] == 0, ratio.shape))
    each = dot_product_attention_weights(q, q, broadcast_dropout=False, **options)
    dropped = np.asarray(each == 0)
    assert not (dropped == dropped[:1, :1]).all()


def test_dropout_without_a_stream_is_refused() -> None:
    layer = attention(dropout_rate=0.5, keep_rngs=False)
    layer.train()
    with pytest.raises(RngError, match=r"dropout_rate=0.5\) has to drop weights and got no rngs"):
        layer(inputs())
    layer(inputs(), rngs=moduli.Rngs(0))
    with pytest.raises(RngError, match="attention has to drop weights with dropout_rate"):
        dot_product_attention(*[jnp.ones((1, 2, 1, 2))] * 3, dropout_rate=0.5)


# -- the function ---------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
@pytest.mark.parametrize("key_heads", [1, 2, 4])
@pytest.mark.parametrize("is_causal", [False, True])
def test_the_fused_and_the_written_out_path_agree(batch, key_heads, is_causal) -> None:
    keys = jax.random.split(jax.random.key(0), 5)
    q = jax.random.normal(keys[0], (*batch, 5, 4, 8))
    k, v = (jax.random.normal(key, (*batch, 5, key_heads, 8)) for key in keys[1:3])
    bias = jax.random.normal(keys[3], (4, 5, 5))
    mask = jax.random.bernoulli(keys[4], 0.7, (*batch, 1, 5, 5)) | jnp.eye(5, dtype=bool)
    options = {"bias": bias, "mask": mask, "is_causal": is_causal}
    fused = dot_product_attention(q, k, v, **options)
    written = dot_product_attention(q, k, v, **options, precision="highest")
    np.testing.assert_allclose(fused, written, rtol=1e-4, atol=1e-5)


def test_weights_of_a_query_sum_to_one_and_hidden_keys_get_none() -> None:
    q = jax.random.normal(jax.random.key(0), (2, 6, 3, 8))
    mask = make_causal_mask(jnp.zeros((2, 6)))
    weights = dot_product_attention_weights(q, q, mask=mask)
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-5)
    assert (np.triu(np.asarray(weights), 1) == 0).all()


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((5, 8), (5, 8), (5, 8)), "attention expects arrays of shape"),
        (((2, 5, 4, 8), (2, 7, 4, 8), (2, 6, 4, 8)), "attention expects as many values as keys"),
        (((2, 5, 4, 8), (3, 7, 4, 8), (3, 7, 4, 8)), "the same batch axes and features"),
        (((2, 5, 4, 8), (2, 7, 3, 8), (2, 7, 3, 8)), "a number of key heads that divides"),
    ],
)
def test_arrays_that_do_not_belong_together_are_refused(shapes, message) -> None:
    with pytest.raises(ShapeError, match=message):
        dot_product_attention(*map(jnp.ones, shapes))


# -- masks ----------------------------------------------------------------------------------------


def test_masks_are_what_their_names_say() -> None:
    x = jnp.zeros((2, 5))
    places = np.arange(5)
    causal = places[:, None] >= places
    np.testing.assert_array_equal(make_causal_mask(x), np.broadcast_to(causal, (2, 1, 5, 5)))
    assert make_causal_mask(x, extra_batch_dims=1).shape == (1, 2, 1, 5, 5)
    for window in (1, 2, 5, 9):
        distance = places[:, None] - places
        expected = (distance >= 0) & (distance < window)
        mask = make_sliding_window_mask(x, window, dtype=bool)
        np.testing.assert_array_equal(mask, np.broadcast_to(expected, (2, 1, 5, 5)))
        both = make_sliding_window_mask(x, window, causal=False, dtype=bool)
        np.testing.assert_array_equal(both[0, 0], np.abs(distance) < window)
    words = jnp.array([[1, 1, 0], [1, 0, 0]])
    np.testing.assert_array_equal(
        make_attention_mask(words, words)[:, 0], np.einsum("bq,bk->bqk", words, words)
    )


def test_masks_of_different_ranks_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"different numbers of axes, of shapes \(2,\), \(1, 2\)"):
        combine_masks(jnp.ones(2), jnp.ones((1, 2)))
    assert combine_masks(None, None) is None


# -- rotary positions -----------------------------------------------------------------------------


@pytest.mark.parametrize("interleaved", [False, True])
def test_products_depend_on_the_distance_alone(interleaved) -> None:
    q, k = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 8))

    def product(i, j):
        turned = [
            rotary_embedding(x, jnp.array([p]), interleaved=interleaved)
            for x, p in ((q, i), (k, j))
        ]
        return float(jnp.sum(turned[0] * turned[1]))

    assert product(3, 1) == pytest.approx(product(10, 8), rel=1e-4)
    assert product(3, 1) != pytest.approx(product(3, 2), rel=1e-2)


@pytest.mark.parametrize("interleaved", [False, True])
def test_pairs_turn_by_the_angles_of_the_paper(interleaved) -> None:
    x = np.random.default_rng(0).normal(size=(2, 5, 3, 8)).astype(np.float32)
    first, second = (x[..., 0::2], x[..., 1::2]) if interleaved else (x[..., :4], x[..., 4:])
    angles = np.arange(5)[:, None] * 100.0 ** -(np.arange(0, 8, 2) / 8)
    turned = (first + 1j * second) * np.exp(1j * angles)[:, None]
    got = np.asarray(rotary_embedding(x, base=100.0, interleaved=interleaved))
    parts = (got[..., 0::2], got[..., 1::2]) if interleaved else (got[..., :4], got[..., 4:])
    np.testing.assert_allclose(parts[0], turned.real, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(parts[1], turned.imag, rtol=1e-5, atol=1e-5)


def test_some_features_may_stay() -> None:
    x = jax.random.normal(jax.random.key(0), (1, 4, 2, 8))
    part = rotary_embedding(x, features=4)
    np.testing.assert_array_equal(part[..., 4:], x[..., 4:])
    np.testing.assert_allclose(part[..., :4], rotary_embedding(x[..., :4]), rtol=1e-6)


def test_scaled_positions() -> None:
    x = jax.random.normal(jax.random.key(0), (1, 4, 2, 8))
    half = rotary_embedding(x, jnp.arange(4) * 2, scale=0.5)
    np.testing.assert_allclose(half, rotary_embedding(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "options", "error", "message"),
    [
        ((4, 8), {}, ShapeError, "add an axis for the heads, as"),
        ((1, 4, 2, 7), {}, ArgumentError, "turns pairs of features, got 7 of 7; write an even"),
        ((1, 4, 2, 8), {"features": 10}, ArgumentError, "got 10 of 8; write an even number"),
        ((1, 4, 2, 8), {"positions": jnp.arange(3)}, ShapeError, r"positions of shape \(4,\) or"),
    ],
)
def test_what_cannot_turn_is_refused(shape, options, error, message) -> None:
    with pytest.raises(error, match=message):
        rotary_embedding(jnp.ones(shape), **options)


# -- RoPE, for code written for flax.nnx ----------------------------------------------------------


def test_rope_turns_as_rotary_embedding_does() -> None:
    x = jax.random.normal(jax.random.key(0), (2, 3, 5, 8))  # heads before positions
    expected = jnp.swapaxes(rotary_embedding(jnp.swapaxes(x, 1, 2)), 1, 2)
    for rope in (RoPE(), RoPE(embedding_size=8, max_seq_len=5), RoPE(10000, 8, 99)):
        np.testing.assert_allclose(rope(x), expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(rope(x, jnp.arange(5)), expected, rtol=1e-5, atol=1e-6)
    places = jnp.array([[0, 5, 2, 9, 1], [3, 3, 3, 0, 7]])
    turned = RoPE(50.0)(x, places[:, None])
    for b in range(2):
        one = rotary_embedding(jnp.swapaxes(x[b], 0, 1), places[b], base=50.0)
        np.testing.assert_allclose(turned[b], jnp.swapaxes(one, 0, 1), rtol=1e-5, atol=1e-6)


def test_rope_keeps_the_dtype_and_its_table_is_no_parameter() -> None:
    rope = RoPE(embedding_size=4, max_seq_len=3)
    assert rope(jnp.ones((3, 4), jnp.bfloat16)).dtype == jnp.bfloat16
    assert not jax.tree.leaves(moduli.state(rope, moduli.Param))
    assert rope.cached_cos.shape == rope.cached_sin.shape == (3, 2)


@pytest.mark.parametrize("table", [(), (4, 9)])
def test_attention_with_rope_is_attention_with_rotary(table) -> None:
    def build(**options):
        rngs = moduli.Rngs(0)
        return MultiHeadAttention(2, 8, decode=False, rngs=rngs, num_kv_heads=1, **options)

    rope = RoPE(10000.0, *table)
    by_function = build(attention_fn=partial(dot_product_attention_with_rope, rope=rope))
    by_option = build(rotary=rotary_embedding)
    x = jax.random.normal(jax.random.key(1), (2, 5, 8))
    for positions in (None, jnp.arange(5) + 3, jnp.array([[0, 4, 1, 2, 9], [7, 6, 5, 4, 3]])):
        results = [
            layer(x, is_causal=True, input_positions=positions)
            for layer in (by_function, by_option)
        ]
        np.testing.assert_allclose(*results, rtol=1e-5, atol=1e-6)
    assert not np.allclose(results[0], by_option(x, is_causal=True), atol=1e-3)


@pytest.mark.parametrize(
    ("options", "call", "error", "message"),
    [
        ({}, {"input_positions": jnp.arange(3)}, ArgumentError, "nothing in it uses positions"),
        (
            {"rotary": rotary_embedding},
            {"input_positions": jnp.arange(2)},
            ShapeError,
            r"got shape \(2,\) for 3 queries and 3 keys",
        ),
        (
            {"rotary": rotary_embedding},
            {"input_positions": jnp.arange(3), "decode": True},
            ArgumentError,
            "positions go on from the cache; leave them out",
        ),
        (
            {"attention_fn": partial(dot_product_attention_with_rope, rope=RoPE())},
            {"decode": True},
            ArgumentError,
            r"does not know where the cache ends; write MultiHeadAttention\(..., rotary=",
        ),
    ],
)
def test_positions_that_cannot_be_used_are_refused(options, call, error, message) -> None:
    layer = MultiHeadAttention(2, 4, decode=False, rngs=moduli.Rngs(0), **options)
    layer.init_cache((1, 3, 4))
    with pytest.raises(error, match=message):
        layer(jnp.ones((1, 3, 4)), **call)


@pytest.mark.parametrize(
    ("build", "call", "error", "message"),
    [
        ({"embedding_size": 4}, None, ArgumentError, "write both for a table of angles, or none"),
        ({"embedding_size": 5, "max_seq_len": 2}, None, ArgumentError, "pairs of features, got 5"),
        ({}, ((2, 3, 4), (2,)), ShapeError, r"broadcast to \(2, 3\), with 3 on their last axis"),
        ({}, ((2, 3, 4), (5, 3)), ShapeError, r"got \(5, 3\)"),
    ],
)
def test_what_rope_cannot_turn_is_refused(build, call, error, message) -> None:
    def run():
        rope = RoPE(**build)
        rope(jnp.ones(call[0]), jnp.zeros(call[1]))

    with pytest.raises(error, match=message):
        run()


def test_attention_with_rope_of_other_lengths_is_refused() -> None:
    query, key = jnp.ones((1, 3, 2, 4)), jnp.ones((1, 5, 2, 4))
    with pytest.raises(ShapeError, match="whose lengths \\(axis -3\\) all have to be the same"):
        dot_product_attention_with_rope(query, key, key, rope=RoPE(), input_positions=jnp.arange(3))


def test_rope_equals_flaxs() -> None:
    flax = pytest.importorskip("flax.nnx")
    if not hasattr(flax, "RoPE"):  # flax < 0.12.12, the newest for Python 3.11
        pytest.skip("this flax has no RoPE")
    q, k, v = jax.random.normal(jax.random.key(0), (3, 2, 5, 3, 8))
    for options in ({}, {"theta": 100.0}, {"embedding_size": 8, "max_seq_len": 7}):
        theirs, ours = flax.RoPE(**options), RoPE(**options)
        places = jnp.arange(5.0) * 2
        x = jnp.swapaxes(q, 1, 2)
        np.testing.assert_allclose(ours(x, places), theirs(x, places), rtol=1e-5, atol=1e-6)
        # its attention maps given positions over the heads, so those are not compared
        np.testing.assert_allclose(
            dot_product_attention_with_rope(q, k, v, rope=ours),
            flax.dot_product_attention_with_rope(q, k, v, rope=theirs),
            rtol=1e-5,
            atol=1e-6,
        )


# -- strict promotion -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [*CONFIGS.values(), {"dropout_rate": 0.5}],
    ids=[*CONFIGS, "dropout"],
)
def test_bfloat16_with_masks_weights_and_a_cache_under_strict_promotion(config) -> None:
    with jax.numpy_dtype_promotion("strict"):
        layer = attention(**config, dtype=jnp.bfloat16)
        x = inputs(3).astype(jnp.bfloat16)
        mask = make_causal_mask(x[..., 0])
        for options in ({"is_causal": True}, {"mask": mask}, {"mask": mask, "sow_weights": True}):
            out = layer(x, deterministic=False, **options)
            assert out.dtype == jnp.bfloat16
        (weights,) = layer.attention_weights.value
        assert weights.dtype == jnp.bfloat16
        np.testing.assert_allclose(weights.astype(jnp.float32).sum(-1), 1, atol=0.02)
        layer.init_cache(x.shape)
        assert layer(x, decode=True, deterministic=True).dtype == jnp.bfloat16


def test_writing_with_a_cache_with_64_bits_enabled():
    with jax.enable_x64(True):
        layer = MultiHeadAttention(2, 4, decode=True, rngs=moduli.Rngs(0))
        x = jnp.linspace(-1.0, 1.0, 12, dtype=jnp.float32).reshape(1, 3, 4)
        layer.init_cache(x.shape, x.dtype)
        steps = jnp.concatenate([layer(x[:, i : i + 1]) for i in range(3)], axis=1)
        whole = layer(x, mask=make_causal_mask(jnp.ones((1, 3))), decode=False)
        np.testing.assert_allclose(steps, whole, rtol=1e-5, atol=1e-6)
