"""Attention as a function of queries, keys and values."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike, DTypeLike

import moduli
from moduli.errors import RngError, ShapeError
from moduli_layers._broadcasts import at_end
from moduli_layers._checks import shape_of, shape_text
from moduli_layers._dtypes import PromoteDtype, promote_dtype, wider
from moduli_layers._laid_out import bernoulli_for
from moduli_layers._rotary import RoPE

__all__ = [
    "dot_product_attention",
    "dot_product_attention_weights",
    "dot_product_attention_with_rope",
]


def dot_product_attention_weights(
    query: ArrayLike,
    key: ArrayLike,
    bias: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    broadcast_dropout: bool = True,
    dropout_rng: jax.Array | None = None,
    dropout_rate: float = 0.0,
    deterministic: bool = False,
    dtype: DTypeLike | None = None,
    precision: lax.PrecisionLike = None,
    module: moduli.Module | None = None,
    promote_dtype: PromoteDtype = promote_dtype,
    is_causal: bool = False,
) -> jax.Array:
    """Computes how much each query takes from each key: the softmax of their scaled products.

    The softmax is taken in float32 or wider.

    Args:
      query: array of shape ``(*batch, queries, heads, features)``.
      key: array of shape ``(*batch, keys, key heads, features)``; see
        :func:`dot_product_attention`.
      bias: added to the products, broadcasts to ``(*batch, heads, queries, keys)``.
      mask: where it is zero (False) the key is not seen; broadcasts as ``bias``. A query that sees
        no key takes from all alike.
      broadcast_dropout: drop the same weights for all of the batch and all heads.
      dropout_rng: the random key, needed if something is dropped.
      dropout_rate: the probability to drop a weight.
      deterministic: drop nothing.
      dtype: dtype of the computation; None takes the one to which query and key promote.
      precision: numerical precision, see :class:`jax.lax.Precision`.
      module: the module that sows the weights, as an ``Intermediate`` named
        ``attention_weights``, before dropout.
      promote_dtype: function that casts ``(query, key)`` to ``dtype``.
      is_causal: each query sees only keys up to its own place.

    Returns:
      Array of shape ``(*batch, heads, queries, keys)``.

    Raises:
      ShapeError: query and key do not belong together.
      RngError: weights are to be dropped and there is no key.
    """
    q, k = promote_dtype((query, key), dtype=dtype)
    k = _for_each_query_head(k, groups=_check(q, k, k))
    q = q / jnp.asarray(math.sqrt(q.shape[-1]), q.dtype)
    scores = jnp.einsum("...qhd,...khd->...hqk", q, k, precision=precision)
    if bias is not None:
        bias = _broadcastable("bias", bias, scores.shape).astype(scores.dtype)
        scores = scores + at_end(bias, scores.ndim)
    hidden = None if mask is None else ~_broadcastable("mask", mask, scores.shape).astype(bool)
    if is_causal:
        queries, keys = scores.shape[-2:]
        later = jnp.arange(queries)[:, None] < jnp.arange(keys)[None]
        hidden = later if hidden is None else hidden | at_end(later, hidden.ndim)
    wide = scores.astype(wider(scores.dtype, jnp.float32))
    if hidden is not None:
        least = jnp.asarray(jnp.finfo(scores.dtype).min, wide.dtype)
        wide = jnp.where(at_end(hidden, wide.ndim), least, wide)
    weights = jax.nn.softmax(wide).astype(scores.dtype)
    if module is not None:
        module.sow(moduli.Intermediate, "attention_weights", weights)
    if dropout_rate == 0 or deterministic:
        return weights
    if dropout_rng is None:
        raise RngError(
            f"attention has to drop weights with dropout_rate={dropout_rate} and got no "
            f"dropout_rng; write dropout_rng=rngs.dropout(), or deterministic=True"
        )
    keep = 1.0 - dropout_rate
    shape = weights.shape
    if broadcast_dropout:
        shape = (1,) * (len(shape) - 2) + shape[-2:]
    kept = bernoulli_for(weights, dropout_rng, keep, shape)
    return weights * (kept.astype(weights.dtype) / jnp.asarray(keep, weights.dtype))


def dot_product_attention(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    bias: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    broadcast_dropout: bool = True,
    dropout_rng: jax.Array | None = None,
    dropout_rate: float = 0.0,
    deterministic: bool = False,
    dtype: DTypeLike | None = None,
    precision: lax.PrecisionLike = None,
    module: moduli.Module | None = None,
    promote_dtype: PromoteDtype = promote_dtype,
    is_causal: bool = False,
) -> jax.Array:
    """Gives each query the mean of the values, weighted by its softmax over the keys.

    Where nothing is dropped, sown or asked for in another precision, this is
    :func:`jax.nn.dot_product_attention`, which has fused kernels on some devices.

    Args:
      query: array of shape ``(*batch, queries, heads, features)``.
      key: array of shape ``(*batch, keys, key heads, features)``. There may be fewer key heads than
        heads, if they divide them: then ``heads / key heads`` queries share each (grouped-query
        attention).
      value: array of shape ``(*batch, keys, key heads, value features)``.
      bias: added to the products of query and key; broadcasts to
        ``(*batch, heads, queries, keys)``.
      mask: where it is zero (False) the key is not seen; broadcasts as ``bias``.
      broadcast_dropout: drop the same weights for all of the batch and all heads.
      dropout_rng: the random key, needed if something is dropped.
      dropout_rate: the probability to drop a weight.
      deterministic: drop nothing.
      dtype: dtype of the computation; None takes the one to which the arrays promote.
      precision: numerical precision, see :class:`jax.lax.Precision`.
      module: the module that sows the weights; see :func:`dot_product_attention_weights`.
      promote_dtype: function that casts ``(query, key, value)`` to ``dtype``.
      is_causal: each query sees only keys up to its own place.

    Returns:
      Array of shape ``(*batch, queries, heads, value features)``.

    Raises:
      ShapeError: the arrays do not belong together.
      RngError: weights are to be dropped and there is no key.

    Example:
      >>> import jax.numpy as jnp
      >>> from moduli_layers import dot_product_attention
      >>> q, k = jnp.ones((2, 5, 4, 8)), jnp.ones((2, 7, 2, 8))
      >>> dot_product_attention(q, k, k).shape
      (2, 5, 4, 8)

    Reference:
      Vaswani et al., Attention Is All You Need, 2017, https://arxiv.org/abs/1706.03762
      Ainslie et al., GQA, 2023, https://arxiv.org/abs/2305.13245
    """
    q, k, v = promote_dtype((query, key, value), dtype=dtype)
    groups = _check(q, k, v)
    drops = dropout_rate != 0 and not deterministic
    fused = not drops and module is None and precision is None and k.shape == v.shape
    if (
        fused and q.dtype.itemsize <= 4
    ):  # JAX's own takes the softmax in float32, whatever the dtype
        return _fused(q, k, v, bias, mask, is_causal)
    weights = dot_product_attention_weights(
        q,
        k,
        bias,
        mask,
        broadcast_dropout,
        dropout_rng,
        dropout_rate,
        deterministic,
        None,
        precision,
        module,
        promote_dtype,
        is_causal,
    )
    v = _for_each_query_head(v, groups)
    return jnp.einsum("...hqk,...khd->...qhd", weights, v, precision=precision)


def _fused(query: Any, key: Any, value: Any, bias: Any, mask: Any, is_causal: bool) -> jax.Array:
    """Calls ``jax.nn.dot_product_attention``, which takes one batch axis."""
    batch = query.shape[:-3]
    scores = (*batch, query.shape[-2], query.shape[-3], key.shape[-3])

    def flat(array: jax.Array) -> jax.Array:
        return array.reshape((math.prod(batch), *array.shape[-3:]))

    def flat_pairs(name: str, array: Any) -> jax.Array:
        array = _broadcastable(name, array, scores)
        array = array.reshape((*[1] * (len(scores) - array.ndim), *array.shape))
        if len(batch) != 1:  # the heads, queries and keys may stay of size 1
            array = jnp.broadcast_to(array, (*batch, *array.shape[-3:]))
            array = array.reshape((math.prod(batch), *array.shape[-3:]))
        return jnp.broadcast_to(array, (*array.shape[:2], *scores[-2:]))

    bias = None if bias is None else flat_pairs("bias", bias).astype(query.dtype)
    mask = None if mask is None else flat_pairs("mask", mask).astype(bool)
    with jax.numpy_dtype_promotion("standard"):  # its own sums are float32 for narrower inputs
        outputs = jax.nn.dot_product_attention(
            flat(query), flat(key), flat(value), bias=bias, mask=mask, is_causal=is_causal
        )
    return outputs.reshape((*batch, *outputs.shape[1:]))


def dot_product_attention_with_rope(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    *,
    rope: RoPE,
    input_positions: ArrayLike | None = None,
    **kwargs: Any,
) -> jax.Array:
    """Like :func:`dot_product_attention`, of queries and keys that are turned by their positions.

    For code written for flax.nnx: ``functools.partial`` of it with ``rope`` is an ``attention_fn``
    of :class:`MultiHeadAttention`, whose ``rotary=rotary_embedding`` does the same, and also
    decodes with a cache.

    Args:
      query: array of shape ``(*batch, queries, heads, features)``.
      key: array of shape ``(*batch, keys, key heads, features)``.
      value: array of shape ``(*batch, keys, key heads, value features)``.
      rope: a :class:`RoPE`.
      input_positions: of queries and of keys, of shape (length,) or ``(*batch, length)``; None
        counts either from 0.
      **kwargs: more arguments of :func:`dot_product_attention`.

    Returns:
      Array of shape ``(*batch, queries, heads, value features)``.

    Raises:
      ShapeError: there are positions, and not as many as queries and as keys; or as of
        :func:`dot_product_attention`.

    Example:
      >>> import functools, jax.numpy as jnp, moduli
      >>> from moduli_layers import MultiHeadAttention, RoPE, dot_product_attention_with_rope
      >>> attend = functools.partial(dot_product_attention_with_rope, rope=RoPE())
      >>> layer = MultiHeadAttention(
      ...     2, 8, attention_fn=attend, decode=False, rngs=moduli.Rngs(0)
      ... )
      >>> layer(jnp.ones((1, 5, 8)), input_positions=jnp.arange(5) + 100).shape
      (1, 5, 8)

    Reference:
      Su et al., RoFormer, 2021, https://arxiv.org/abs/2104.09864
    """
    lengths = shape_of(query)[-3:-2], shape_of(key)[-3:-2]
    places = input_positions
    if places is not None:
        places = jnp.asarray(places)
        if places.shape[-1:] != lengths[0] or lengths[0] != lengths[1]:
            raise ShapeError(
                f"dot_product_attention_with_rope got positions of shape {shape_text(places)} for "
                f"queries of shape {shape_text(query)} and keys of shape {shape_text(key)}, whose "
                "lengths (axis -3) all have to be the same; to decode with a cache write "
                "MultiHeadAttention(..., rotary=rotary_embedding)"
            )
        places = places if places.ndim == 1 else places[..., None, :]  # the same in all heads

    def turned(x: ArrayLike) -> jax.Array:
        return jnp.swapaxes(rope(jnp.swapaxes(jnp.asarray(x), -3, -2), places), -3, -2)

    return dot_product_attention(turned(query), turned(key), value, **kwargs)


def _check(query: Any, key: Any, value: Any) -> int:
    """Returns how many query heads share each key head."""
    shapes = f"query {shape_text(query)}, key {shape_text(key)}, value {shape_text(value)}"
    if query.ndim < 3 or key.ndim != query.ndim or value.ndim != query.ndim:
        raise ShapeError(
            f"attention expects arrays of shape (*batch, length, heads, features), got {shapes}; "
            f"add the missing axes"
        )
    if key.shape[:-1] != value.shape[:-1]:
        raise ShapeError(
            f"attention expects as many values as keys, got {shapes}; only their last axes may "
            f"differ"
        )
    if query.shape[:-3] != key.shape[:-3] or query.shape[-1] != key.shape[-1]:
        raise ShapeError(
            f"attention expects queries and keys with the same batch axes and features, got "
            f"{shapes}; broadcast them to the same batch axes"
        )
    if query.shape[-2] % key.shape[-2]:
        raise ShapeError(
            f"attention expects a number of key heads that divides the number of query heads, got "
            f"{shapes}"
        )
    return query.shape[-2] // key.shape[-2]


def _for_each_query_head(array: jax.Array, groups: int) -> jax.Array:
    return array if groups == 1 else jnp.repeat(array, groups, axis=-2)


def _broadcastable(name: str, array: Any, shape: tuple[int, ...]) -> jax.Array:
    """Returns the array if it broadcasts to the shape of the scores."""
    array = jnp.asarray(array)
    fits = array.ndim <= len(shape) and all(
        n in (1, m) for n, m in zip(reversed(array.shape), reversed(shape), strict=False)
    )
    if not fits:
        raise ShapeError(
            f"attention expects a {name} that broadcasts to (*batch, heads, queries, keys) = "
            f"{shape}, got shape {shape_text(array)}; give it an axis of size 1 where it is the "
            f"same for all, as {name}[:, None]"
        )
    return array
