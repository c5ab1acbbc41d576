"""Layers that drop parts of their inputs at random."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

import moduli
from moduli.errors import RngError, ShapeError
from moduli_layers._checks import resolve_mode, shape_text
from moduli_layers.errors import ArgumentError, DtypeError

__all__ = ["Dropout"]


class Dropout(moduli.Module):
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
      >>> layer(jnp.ones(3))
      Array([1., 1., 1.], dtype=float32)

    Reference:
      Srivastava et al., Dropout, 2014, https://jmlr.org/papers/v15/srivastava14a.html
    """

    __module__ = "moduli_layers"

    def __init__(
        self,
        rate: float,
        *,
        broadcast_dims: Sequence[int] = (),
        deterministic: bool | None = False,
        rng_collection: str = "dropout",
        rngs: moduli.Rngs | moduli.RngStream | None = None,
    ) -> None:
        name = type(self).__name__
        if isinstance(rate, Real):
            rate = float(rate)  # a Python number takes the inputs' dtype, a NumPy one does not
            if not 0 <= rate <= 1:
                raise ArgumentError(
                    f"{name} got rate={rate}; write the probability to drop an entry, in [0, 1]"
                )
        self.rate = rate
        self.broadcast_dims = tuple(broadcast_dims)
        self.deterministic = deterministic
        self.rng_collection = rng_collection
        if isinstance(rngs, moduli.Rngs):
            self.rngs = rngs[rng_collection].fork()
        elif isinstance(rngs, moduli.RngStream):
            self.rngs = rngs.fork()
        elif rngs is None:
            self.rngs = None
        else:
            raise RngError(
                f"{name} got rngs of type {type(rngs).__name__}; write rngs=moduli.Rngs(0) or a "
                f"stream of one, as rngs.dropout"
            )

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
        inputs = jnp.asarray(inputs)
        if resolve_mode(self, "deterministic", deterministic):
            return inputs
        name = type(self).__name__
        if not jnp.issubdtype(inputs.dtype, jnp.inexact):
            raise DtypeError(
                f"{name} scales its inputs and expects floating-point numbers, got "
                f"{inputs.dtype.name}; write inputs.astype(jnp.float32)"
            )
        certain = isinstance(self.rate, float)
        if certain and self.rate == 0:
            return inputs
        if certain and self.rate == 1:
            return jnp.zeros_like(inputs)  # scaling by 1 / 0 would put NaN into gradients

        shape = list(inputs.shape)
        for axis in self.broadcast_dims:
            if not -inputs.ndim <= axis < inputs.ndim:
                raise ShapeError(
                    f"{name}(broadcast_dims={self.broadcast_dims}) expects inputs with an axis "
                    f"{axis}, got shape {shape_text(inputs)}; write axes of the inputs"
                )
            shape[axis] = 1
        keep = 1 - self.rate
        kept = jax.random.bernoulli(self._key(rngs), keep, shape)
        scaled = inputs / jnp.asarray(keep, inputs.dtype)
        return jnp.where(kept, scaled, jnp.zeros_like(inputs))

    def _key(self, rngs: moduli.Rngs | moduli.RngStream | jax.Array | None) -> jax.Array:
        """Draws the call's key."""
        source = self.rngs if rngs is None else rngs
        if isinstance(source, moduli.Rngs):
            return source[self.rng_collection]()
        if isinstance(source, moduli.RngStream):
            return source()
        if isinstance(source, jax.Array):
            return source
        name = type(self).__name__
        got = "no rngs" if source is None else f"rngs of type {type(source).__name__}"
        raise RngError(
            f"{name}(rate={self.rate}) has to drop entries and got {got}; write {name}("
            f"{self.rate}, rngs=moduli.Rngs(0)), or pass rngs=... to the call, or model.eval() "
            f"to drop nothing"
        )
