"""Layers that drop whole branches at random."""

from __future__ import annotations

from typing import Literal

import jax
from jax.typing import ArrayLike

import moduli
from moduli.errors import ShapeError
from moduli_layers._arguments import checked
from moduli_layers._checks import shape_of
from moduli_layers._dropping import Dropping
from moduli_layers.errors import ArgumentError

__all__ = ["StochasticDepth"]


class StochasticDepth(Dropping):
    """Drops a residual branch: whole samples become zero with probability ``rate``.

    Written ``x + drop(branch(x))``, a sample whose branch is dropped goes on as it is. Kept samples
    are scaled by ``1 / (1 - rate)``, so that the expectation stays as it is. With ``deterministic``
    the inputs are returned as they are; ``model.train()`` and ``model.eval()`` set it.

    Args:
      rate: the probability to drop a sample, in [0, 1].
      mode: ``"row"`` decides for each index of the first axis (a batch); ``"batch"`` once for the
        whole array, as for a single sample under :func:`moduli.vmap`.
      deterministic: True drops nothing, False drops, None asks each call to say.
      rng_collection: name of the stream to take from ``rngs``.
      rngs: where random keys come from. The layer keeps a fork of the stream, so what it drops does
        not depend on which other layers draw; None if each call brings its own.

    Raises:
      ArgumentError: ``rate`` is not in [0, 1], or ``mode`` is neither of the two.
      RngError: ``rngs`` is neither a :class:`moduli.Rngs` nor a :class:`moduli.RngStream`.

    Example:
      >>> import jax.numpy as jnp, moduli
      >>> from moduli_layers import StochasticDepth
      >>> drop = StochasticDepth(0.5, rngs=moduli.Rngs(0))
      >>> branch = drop(jnp.ones((100, 3)))
      >>> sorted({tuple(row) for row in branch.tolist()})
      [(0.0, 0.0, 0.0), (2.0, 2.0, 2.0)]

    Reference:
      Huang et al., Deep networks with stochastic depth, 2016, https://arxiv.org/abs/1603.09382
    """

    __module__ = "moduli_layers"

    _part = "a sample"

    @checked
    def __init__(
        self,
        rate: float,
        mode: Literal["row", "batch"] = "row",
        *,
        deterministic: bool | None = False,
        rng_collection: str = "dropout",
        rngs: moduli.Rngs | moduli.RngStream | None = None,
    ) -> None:
        super().__init__(
            rate, deterministic=deterministic, rng_collection=rng_collection, rngs=rngs
        )
        if mode not in ("row", "batch"):
            raise ArgumentError(
                f"{type(self).__name__} got mode={mode!r}; write mode='row' to decide for each "
                f"sample of a batch, or mode='batch' to decide once"
            )
        self.mode = mode

    def __call__(
        self,
        inputs: ArrayLike,
        *,
        deterministic: bool | None = None,
        rngs: moduli.Rngs | moduli.RngStream | jax.Array | None = None,
    ) -> jax.Array:
        """Drops samples, unless deterministic.

        Args:
          inputs: floating-point array; with ``mode="row"`` of shape (batch, ...).
          deterministic: overrides the layer's attribute for this call.
          rngs: overrides the layer's stream for this call: streams, a stream, or a key.

        Returns:
          Array of the shape and dtype of the inputs.

        Raises:
          ArgumentError: neither the call nor the layer says whether to drop.
          RngError: samples are to be dropped, but there is no stream to draw from.
          ShapeError: ``mode="row"``, and the inputs have no axis.
          DtypeError: the inputs hold integers.
        """
        settled = self._settled(inputs, deterministic)
        if settled is not None:
            return settled
        shape = shape_of(inputs)
        ones = (1,) * len(shape)
        if self.mode == "batch":
            return self._dropped(inputs, ones, rngs)
        if not shape:
            raise ShapeError(
                f"{type(self).__name__}(mode='row') expects inputs of shape (batch, ...), got "
                f"shape (); write mode='batch' to decide once"
            )
        return self._dropped(inputs, (shape[0], *ones[1:]), rngs)
