"""Rotary position embeddings."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from moduli.errors import ShapeError
from moduli_layers._checks import shape_text
from moduli_layers._dtypes import wider
from moduli_layers.errors import ArgumentError

__all__ = ["rotary_embedding"]


def rotary_embedding(
    x: ArrayLike,
    positions: ArrayLike | None = None,
    *,
    base: float = 10000.0,
    features: int | None = None,
    interleaved: bool = False,
    scale: float = 1.0,
) -> jax.Array:
    """Turns pairs of features by angles that grow with the position.

    Pair ``i`` of ``n`` features turns by ``position * scale * base ** (-2 i / n)``. The product of
    a turned query and a turned key depends only on the distance of their positions. Angles are
    computed in float32 or wider.

    Args:
      x: queries or keys, of shape ``(*batch, length, heads, head features)``.
      positions: of shape (length,) or ``(*batch, length)``; None is 0, 1, 2, ...
      base: the ratio of the longest and the shortest wave length, nearly.
      features: how many of the first head features are turned, all of them by default.
      interleaved: whether a pair is features ``2i`` and ``2i + 1`` (as in GPT-J); otherwise ``i``
        and ``i + n / 2`` (as in GPT-NeoX and Llama).
      scale: a factor on the positions; below 1 it stretches a model to longer texts.

    Returns:
      Array of the shape and dtype of ``x``.

    Raises:
      ArgumentError: the number of turned features is odd, or more than there are.
      ShapeError: ``x`` has too few axes, or the positions do not fit it.

    Example:
      >>> import jax.numpy as jnp, numpy as np
      >>> from moduli_layers import rotary_embedding
      >>> x = jnp.ones((1, 3, 1, 2))
      >>> np.asarray(rotary_embedding(x)[0, :, 0]).round(3)  # by 0, 1 and 2 radians
      array([[ 1.   ,  1.   ],
             [-0.301,  1.382],
             [-1.325,  0.493]], dtype=float32)

    Reference:
      Su et al., RoFormer, 2021, https://arxiv.org/abs/2104.09864
    """
    x = jnp.asarray(x)
    if x.ndim < 3:
        raise ShapeError(
            f"rotary_embedding expects an array of shape (*batch, length, heads, features), got "
            f"{shape_text(x)}; add an axis for the heads, as x[..., None, :]"
        )
    turned = x.shape[-1] if features is None else features
    if turned % 2 or not 0 < turned <= x.shape[-1]:
        raise ArgumentError(
            f"rotary_embedding turns pairs of features, got {turned} of {x.shape[-1]}; write an "
            f"even number of features, at most {x.shape[-1]}"
        )
    length = x.shape[-3]
    places = jnp.arange(length) if positions is None else jnp.asarray(positions)
    if places.shape not in ((length,), x.shape[:-2]):
        raise ShapeError(
            f"rotary_embedding expects positions of shape {(length,)} or {x.shape[:-2]} for an "
            f"array of shape {shape_text(x)}, got {shape_text(places)}"
        )
    wide = wider(x.dtype, jnp.float32)
    frequencies = base ** -(jnp.arange(0, turned, 2, dtype=wide) / turned)
    angles = (places.astype(wide) * scale)[..., None] * frequencies
    cos, sin = jnp.cos(angles)[..., None, :], jnp.sin(angles)[..., None, :]  # the same in all heads

    part = x[..., :turned].astype(wide)
    if interleaved:
        first, second = part[..., 0::2], part[..., 1::2]
    else:
        first, second = jnp.split(part, 2, axis=-1)
    both = (first * cos - second * sin, second * cos + first * sin)
    if interleaved:
        result = jnp.stack(both, axis=-1).reshape(part.shape)
    else:
        result = jnp.concatenate(both, axis=-1)
    result = result.astype(x.dtype)
    return result if turned == x.shape[-1] else jnp.concatenate([result, x[..., turned:]], axis=-1)
