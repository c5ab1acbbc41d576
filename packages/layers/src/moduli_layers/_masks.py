"""Masks for attention: which key each query may see."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

from moduli.errors import ShapeError
from moduli_layers._checks import shape_of, shape_text
from moduli_layers.errors import ArgumentError

__all__ = [
    "combine_masks",
    "make_attention_mask",
    "make_causal_mask",
    "make_sliding_window_mask",
]


def make_attention_mask(
    query_input: ArrayLike,
    key_input: ArrayLike,
    pairwise_fn: Callable[[Any, Any], Any] = jnp.multiply,
    extra_batch_dims: int = 0,
    dtype: DTypeLike = jnp.float32,
) -> jax.Array:
    """Makes a mask from what is known of each query and of each key.

    Args:
      query_input: array of shape ``(*batch, queries)``, for example 1 for a word and 0 for padding.
      key_input: array of shape ``(*batch, keys)``.
      pairwise_fn: function of a query's and a key's entry that says whether the query sees the key;
        by default both have to be other than zero.
      extra_batch_dims: how many axes of size 1 to put in front.
      dtype: dtype of the mask.

    Returns:
      Array of shape ``(*extra, *batch, 1, queries, keys)``, the 1 for the heads.

    Example:
      >>> import jax.numpy as jnp
      >>> from moduli_layers import make_attention_mask
      >>> words = jnp.array([1, 1, 0])
      >>> print(make_attention_mask(words, words, dtype=int)[0])
      [[1 1 0]
       [1 1 0]
       [0 0 0]]
    """
    queries, keys = jnp.asarray(query_input), jnp.asarray(key_input)
    mask = pairwise_fn(queries[..., :, None], keys[..., None, :])
    mask = jnp.expand_dims(mask, (*range(extra_batch_dims), -3))
    return mask.astype(dtype)


def make_causal_mask(
    x: ArrayLike, extra_batch_dims: int = 0, dtype: DTypeLike = jnp.float32
) -> jax.Array:
    """Makes a mask with which each position sees itself and what is before it.

    Args:
      x: array of shape ``(*batch, length)``; only its shape matters.
      extra_batch_dims: how many axes of size 1 to put in front.
      dtype: dtype of the mask.

    Returns:
      Array of shape ``(*extra, *batch, 1, length, length)``.

    Example:
      >>> import jax.numpy as jnp
      >>> from moduli_layers import make_causal_mask
      >>> print(make_causal_mask(jnp.zeros(3), dtype=int)[0])
      [[1 0 0]
       [1 1 0]
       [1 1 1]]
    """
    shape = shape_of(x)
    places = jnp.broadcast_to(jnp.arange(shape[-1]), shape)
    return make_attention_mask(places, places, jnp.greater_equal, extra_batch_dims, dtype)


def make_sliding_window_mask(
    x: ArrayLike,
    window: int,
    *,
    causal: bool = True,
    extra_batch_dims: int = 0,
    dtype: DTypeLike = jnp.float32,
) -> jax.Array:
    """Makes a mask with which each position sees only its neighbourhood.

    Args:
      x: array of shape ``(*batch, length)``; only its shape matters.
      window: how many positions are seen: itself and the ``window - 1`` before it, and with
        ``causal=False`` the ``window - 1`` after it.
      causal: whether what comes after is hidden.
      extra_batch_dims: how many axes of size 1 to put in front.
      dtype: dtype of the mask.

    Returns:
      Array of shape ``(*extra, *batch, 1, length, length)``.

    Raises:
      ArgumentError: the window is below 1.

    Example:
      >>> import jax.numpy as jnp
      >>> from moduli_layers import make_sliding_window_mask
      >>> print(make_sliding_window_mask(jnp.zeros(4), 2, dtype=int)[0])
      [[1 0 0 0]
       [1 1 0 0]
       [0 1 1 0]
       [0 0 1 1]]

    Reference:
      Beltagy et al., Longformer, 2020, https://arxiv.org/abs/2004.05150
    """
    check_window("make_sliding_window_mask", window)
    shape = shape_of(x)
    places = jnp.broadcast_to(jnp.arange(shape[-1]), shape)
    near = functools.partial(in_window, window=window, causal=causal)
    return make_attention_mask(places, places, near, extra_batch_dims, dtype)


def combine_masks(*masks: ArrayLike | None, dtype: DTypeLike = jnp.float32) -> jax.Array | None:
    """Allows what all masks allow.

    Args:
      *masks: masks with the same number of axes, or None for no mask.
      dtype: dtype of the result.

    Returns:
      The combined mask; None if there is none.

    Raises:
      ShapeError: the masks have different numbers of axes.

    Example:
      >>> import jax.numpy as jnp
      >>> from moduli_layers import combine_masks
      >>> print(combine_masks(jnp.array([1, 1, 0]), None, jnp.array([0, 1, 1]), dtype=int))
      [0 1 0]
    """
    given = [jnp.asarray(mask) for mask in masks if mask is not None]
    if not given:
        return None
    if len({mask.ndim for mask in given}) > 1:
        shapes = ", ".join(shape_text(mask) for mask in given)
        raise ShapeError(
            f"combine_masks got masks with different numbers of axes, of shapes {shapes}; give "
            f"each an axis of size 1 where it is the same for all, as mask[:, None]"
        )
    both = functools.reduce(jnp.logical_and, (mask.astype(bool) for mask in given))
    return both.astype(dtype)


def in_window(query: Any, key: Any, *, window: int, causal: bool) -> Any:
    """Returns whether the place of a key is near enough to that of a query."""
    distance = query - key
    if causal:
        return (distance >= 0) & (distance < window)
    return jnp.abs(distance) < window


def check_window(owner: str, window: int) -> None:
    """Raises ArgumentError unless a window holds at least one position."""
    if window < 1:
        raise ArgumentError(
            f"{owner} got window={window}; write how many positions are seen, at least 1"
        )
