"""Rotary position embeddings."""

from __future__ import annotations

from typing import ClassVar

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

import moduli
from moduli.errors import ShapeError
from moduli_layers._arguments import checked
from moduli_layers._broadcasts import at_end
from moduli_layers._checks import shape_text
from moduli_layers._dtypes import wider
from moduli_layers.counterparts import TensorNames
from moduli_layers.errors import ArgumentError

__all__ = ["RoPE", "rotary_embedding"]


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
      >>> print(np.asarray(rotary_embedding(x)[0, :, 0]).round(3))  # by 0, 1 and 2 radians
      [[ 1.     1.   ]
       [-0.301  1.382]
       [-1.325  0.493]]

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
    cos, sin = _rotation(places.astype(wide) * scale, turned, base)
    cos, sin = cos[..., None, :], sin[..., None, :]  # the same in all heads
    part = x[..., :turned].astype(wide)
    if interleaved:
        first, second = part[..., 0::2], part[..., 1::2]
    else:
        first, second = jnp.split(part, 2, axis=-1)
    both = _turned(first, second, at_end(cos, x.ndim), at_end(sin, x.ndim))
    if interleaved:
        result = jnp.stack(both, axis=-1).reshape(part.shape)
    else:
        result = jnp.concatenate(both, axis=-1)
    result = result.astype(x.dtype)
    return result if turned == x.shape[-1] else jnp.concatenate([result, x[..., turned:]], axis=-1)


def _rotation(places: jax.Array, features: int, base: float) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine of the angles, of the shape of the places and (features / 2,)."""
    frequencies = base ** -(jnp.arange(0, features, 2, dtype=places.dtype) / features)
    angles = places[..., None] * at_end(frequencies, places.ndim + 1)
    return jnp.cos(angles), jnp.sin(angles)


def _turned(
    first: jax.Array, second: jax.Array, cos: jax.Array, sin: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Turns pairs of features by angles."""
    return first * cos - second * sin, second * cos + first * sin


class RoPE(moduli.Module):
    """Rotary position embedding with its own table of angles, for code written for flax.nnx.

    It turns what :func:`rotary_embedding` turns, features ``i`` and ``i + n / 2`` by the position
    times ``theta ** (-2 i / n)``, and takes arrays without an axis of heads. In a
    :class:`MultiHeadAttention` it works through :func:`dot_product_attention_with_rope`; with a
    cache write ``rotary=rotary_embedding`` there.

    Attributes:
      theta: the ratio of the longest and the shortest wave length, nearly.
      cached_sin: Variable with the sines of the first positions, of shape (max_seq_len,
        embedding_size / 2); None without them.
      cached_cos: the cosines, likewise.

    Args:
      theta: see above.
      embedding_size: how many features there are: an even number.
      max_seq_len: how many positions the table has. Give both or none; without a table the angles
        are computed in every call, for any size and length.

    Raises:
      ArgumentError: only one of the sizes is given, or ``embedding_size`` is odd or below 2.

    Example:
      >>> import jax.numpy as jnp, numpy as np
      >>> from moduli_layers import RoPE
      >>> rope = RoPE(embedding_size=2, max_seq_len=8)
      >>> print(np.asarray(rope(jnp.ones((3, 2)))).round(3))  # by 0, 1 and 2 radians
      [[ 1.     1.   ]
       [-0.301  1.382]
       [-1.325  0.493]]

    Reference:
      Su et al., RoFormer, 2021, https://arxiv.org/abs/2104.09864
    """

    torch_names: ClassVar[tuple[TensorNames, ...]] = (
        TensorNames(derived=("cached_sin", "cached_cos")),
    )

    cached_sin: moduli.Variable[jax.Array] | None
    cached_cos: moduli.Variable[jax.Array] | None

    @checked
    def __init__(
        self,
        theta: float = 10000.0,
        embedding_size: int | None = None,
        max_seq_len: int | None = None,
    ):
        if (embedding_size is None) != (max_seq_len is None):
            raise ArgumentError(
                f"RoPE got embedding_size={embedding_size} and max_seq_len={max_seq_len}; write "
                "both for a table of angles, or none"
            )
        self.theta = theta
        self.cached_sin = self.cached_cos = None
        if embedding_size is not None and max_seq_len is not None:
            self._check_even(embedding_size)
            places = jnp.arange(max_seq_len, dtype=jnp.float32)
            cos, sin = _rotation(places, embedding_size, theta)
            self.cached_sin, self.cached_cos = moduli.Variable(sin), moduli.Variable(cos)

    def __call__(self, x: ArrayLike, input_positions: ArrayLike | None = None) -> jax.Array:
        """Turns the features.

        Args:
          x: array of shape ``(*batch, length, features)``.
          input_positions: of shape (length,), or of more axes that broadcast to ``(*batch,
            length)``; None is 0, 1, 2, ..., from the table if there is one.

        Returns:
          Array of the shape and dtype of ``x``; angles are in float32 or wider.

        Raises:
          ShapeError: ``x`` has other features than the table, or is longer, or the positions do not
            fit it.
          ArgumentError: the number of features is odd.
        """
        x = jnp.asarray(x)
        if x.ndim < 2:
            raise ShapeError(
                f"RoPE expects an array of shape (*batch, length, features), got {shape_text(x)}"
            )
        length, features = x.shape[-2:]
        wide = wider(x.dtype, jnp.float32)
        if input_positions is None and self.cached_cos is not None and self.cached_sin is not None:
            longest, half = self.cached_cos.shape
            if features != 2 * half or length > longest:
                raise ShapeError(
                    f"RoPE(embedding_size={2 * half}, max_seq_len={longest}) got an array of shape "
                    f"{shape_text(x)}, (*batch, length, features); build it with embedding_size="
                    f"{features}, max_seq_len={max(length, longest)}, or without both"
                )
            cos, sin = self.cached_cos[:length].astype(wide), self.cached_sin[:length].astype(wide)
        else:
            self._check_even(features)
            places = jnp.arange(length) if input_positions is None else jnp.asarray(input_positions)
            fits = places.ndim and places.shape[-1] == length and places.ndim < x.ndim
            if not fits or any(
                ours not in (1, theirs)
                for ours, theirs in zip(places.shape[-2::-1], x.shape[-3::-1], strict=False)
            ):
                raise ShapeError(
                    f"RoPE expects positions that broadcast to {x.shape[:-1]}, with {length} on "
                    f"their last axis, for an array of shape {shape_text(x)}, got "
                    f"{shape_text(places)}"
                )
            cos, sin = _rotation(places.astype(wide), features, self.theta)
        missing = tuple(range(x.ndim - cos.ndim))
        cos, sin = jnp.expand_dims(cos, missing), jnp.expand_dims(sin, missing)
        first, second = jnp.split(x.astype(wide), 2, axis=-1)
        turned = jnp.concatenate(_turned(first, second, cos, sin), axis=-1)
        return turned.astype(x.dtype)

    @staticmethod
    def _check_even(features: int) -> None:
        if features < 2 or features % 2:
            raise ArgumentError(
                f"RoPE turns pairs of features, got {features}; write an even number"
            )
