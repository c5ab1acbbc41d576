"""What layers that drop at random have in common: a rate, a mode and a stream of their own."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

import moduli
from moduli.errors import RngError
from moduli.lowlevel import draw_for
from moduli_layers._checks import resolve_mode
from moduli_layers._laid_out import bernoulli_for
from moduli_layers.errors import ArgumentError, DtypeError

__all__ = ["Dropping"]


class Dropping(moduli.Module):
    """Base of layers that set parts of their inputs to zero and scale what they keep.

    Attributes:
      rate: the probability to drop a part, in [0, 1].
      deterministic: True drops nothing, False drops, None asks each call to say.
      rng_collection: name of the stream to take from ``rngs``.
      rngs: the layer's own fork of the stream, or None.
    """

    __module__ = "moduli_layers"

    _part = "a part"  # what is dropped, for messages

    def __init__(
        self,
        rate: float,
        *,
        deterministic: bool | None,
        rng_collection: str,
        rngs: moduli.Rngs | moduli.RngStream | None,
    ) -> None:
        name = type(self).__name__
        if isinstance(rate, Real):
            rate = float(rate)  # a Python number takes the inputs' dtype, a NumPy one does not
            if not 0 <= rate <= 1:
                raise ArgumentError(
                    f"{name} got rate={rate}; write the probability to drop {self._part}, in [0, 1]"
                )
        self.rate = rate
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

    def _settled(self, inputs: ArrayLike, deterministic: bool | None) -> jax.Array | None:
        """Returns the outputs if no random numbers are needed for them."""
        inputs = jnp.asarray(inputs)
        if resolve_mode(self, "deterministic", deterministic):
            return inputs
        if not jnp.issubdtype(inputs.dtype, jnp.inexact):
            raise DtypeError(
                f"{type(self).__name__} scales its inputs and expects floating-point numbers, got "
                f"{inputs.dtype.name}; write inputs.astype(jnp.float32)"
            )
        certain = isinstance(self.rate, float)
        if certain and self.rate == 0:
            return inputs
        if certain and self.rate == 1:
            return jnp.zeros_like(inputs)  # scaling by 1 / 0 would put NaN into gradients
        return None

    def _dropped(
        self,
        inputs: ArrayLike,
        mask_shape: Sequence[int],
        rngs: moduli.Rngs | moduli.RngStream | jax.Array | None,
    ) -> jax.Array:
        """Drops and scales; the mask is as large as ``mask_shape`` and broadcast."""
        inputs = jnp.asarray(inputs)
        keep = 1 - self.rate
        kept = bernoulli_for(inputs, self._key(rngs, inputs), keep, tuple(mask_shape))
        scaled = inputs / jnp.asarray(keep, inputs.dtype)
        return jnp.where(kept, scaled, jnp.zeros_like(inputs))

    def _key(
        self, rngs: moduli.Rngs | moduli.RngStream | jax.Array | None, inputs: jax.Array
    ) -> jax.Array:
        """Draws the call's key, for the inputs; one that the call brings is taken as it is."""
        source = self.rngs if rngs is None else rngs
        if isinstance(source, moduli.Rngs):
            return draw_for(source[self.rng_collection], inputs)
        if isinstance(source, moduli.RngStream):
            return draw_for(source, inputs)
        if isinstance(source, jax.Array):
            return source
        name = type(self).__name__
        got = "no rngs" if source is None else f"rngs of type {type(source).__name__}"
        raise RngError(
            f"{name}(rate={self.rate}) has to drop {self._part} and got {got}; write {name}("
            f"{self.rate}, rngs=moduli.Rngs(0)), or pass rngs=... to the call, or model.eval() "
            f"to drop nothing"
        )
