"""Layers that drop parts of their inputs at random."""

from __future__ import annotations

from collections.abc import Sequence

import jax
from jax.typing import ArrayLike

import moduli
from moduli.errors import ShapeError
from moduli_layers._arguments import checked
from moduli_layers._checks import shape_of, shape_text
from moduli_layers._dropping import Dropping

__all__ = ["Dropout"]


class Dropout(Dropping):
    """Sets entries to zero with probability ``rate`` and scales the others by ``1 / (1 - rate)``.

    The expectation of each entry stays as it is. With ``deterministic`` the inputs are returned
    as they are; ``model.train()`` and ``model.eval()`` set it.

    Args:
      rate: the probability to drop an entry, in [0, 1].
      broadcast_dims: axes along which all entries are dropped together.
      deterministic: True drops nothing, False drops, None asks each call to say.
      rng_collection: name of the stream to take from ``rngs``.
      rngs: where random keys come from. The layer keeps a fork of the stream, so its masks do
        not depend on which other layers draw; None if each call brings its own.

    Raises:
      ArgumentError: ``rate`` is not in [0, 1].
      RngError: ``rngs`` is neither a :class:`moduli.Rngs` nor a :class:`moduli.RngStream`.

    Example:
      >>> import jax.numpy as jnp, moduli
      >>> from moduli_layers import Dropout
      >>> layer = Dropout(0.5, rngs=moduli.Rngs(0))
      >>> sorted(set(layer(jnp.ones(100)).tolist()))
      [0.0, 2.0]
      >>> layer.eval()
      >>> print(layer(jnp.ones(3)))
      [1. 1. 1.]

    Reference:
      Srivastava et al., Dropout, 2014, https://jmlr.org/papers/v15/srivastava14a.html
    """

    __module__ = "moduli_layers"

    _part = "an entry"

    @checked
    def __init__(
        self,
        rate: float,
        *,
        broadcast_dims: Sequence[int] = (),
        deterministic: bool | None = False,
        rng_collection: str = "dropout",
        rngs: moduli.Rngs | moduli.RngStream | None = None,
    ) -> None:
        super().__init__(
            rate, deterministic=deterministic, rng_collection=rng_collection, rngs=rngs
        )
        self.broadcast_dims = tuple(broadcast_dims)

    def set_view(self, deterministic: bool | None = None) -> None:
        """Sets the mode, for :func:`moduli.view`.

        Args:
          deterministic: whether the inputs are returned as they are; None leaves it.
        """
        if deterministic is not None:
            self.deterministic = deterministic

    def __call__(
        self,
        inputs: ArrayLike,
        *,
        deterministic: bool | None = None,
        rngs: moduli.Rngs | moduli.RngStream | jax.Array | None = None,
    ) -> jax.Array:
        """Drops entries, unless deterministic.

        Args:
          inputs: floating-point array of any shape.
          deterministic: overrides the layer's attribute for this call.
          rngs: overrides the layer's stream for this call: streams, a stream, or a key.

        Returns:
          Array of the shape and dtype of the inputs.

        Raises:
          ArgumentError: neither the call nor the layer says whether to drop.
          RngError: entries are to be dropped, but there is no stream to draw from.
          ShapeError: a broadcast dimension is not an axis of the inputs.
          DtypeError: the inputs hold integers.
        """
        settled = self._settled(inputs, deterministic)
        if settled is not None:
            return settled
        shape = list(shape_of(inputs))
        for axis in self.broadcast_dims:
            if not -len(shape) <= axis < len(shape):
                raise ShapeError(
                    f"{type(self).__name__}(broadcast_dims={self.broadcast_dims}) expects inputs "
                    f"with an axis {axis}, got shape {shape_text(inputs)}; write axes of the inputs"
                )
            shape[axis] = 1
        return self._dropped(inputs, shape, rngs)
