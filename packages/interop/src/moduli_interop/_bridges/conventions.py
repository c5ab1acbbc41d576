"""Modules that keep another framework's order of axes around a layer of ours."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

import moduli
from moduli_interop._bridges.bridge import Conversion

__all__ = ["ChannelsFirst", "check_dtype"]


class ChannelsFirst(moduli.Module):
    """Calls a layer whose features are last with arrays whose features stand before the others.

    Bridges wrap convolutions and norms of PyTorch and equinox in it, so that what stands between
    the layers (a reshape, a flatten, a concatenation) means the same as it did there.

    Attributes:
      layer: the layer.

    Args:
      layer: the layer.
      axis: the axis of the features in inputs and outputs: 1 after one batch axis, 0 without.
      rank: the number of axes behind it, where only a class of PyTorch says it.

    Example:
      >>> import jax.numpy as jnp, moduli as nnx
      >>> conv = nnx.bridge.ChannelsFirst(nnx.Conv(3, 8, (5, 5), rngs=nnx.Rngs(0)))
      >>> conv(jnp.ones((2, 3, 16, 16))).shape
      (2, 8, 16, 16)
    """

    __module__ = "moduli_interop.bridge"

    def __init__(self, layer: Any, axis: int = 1, rank: int | None = None) -> None:
        self.layer = layer
        self.axis = axis
        self.rank = rank

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Calls the layer.

        Args:
          inputs: array with the features on ``axis``.
          *args: further arguments of the layer.
          **kwargs: likewise.

        Returns:
          What the layer returns, with the features on ``axis``.
        """
        last = jnp.moveaxis(jnp.asarray(inputs), self.axis, -1)
        return jnp.moveaxis(self.layer(last, *args, **kwargs), -1, self.axis)


def check_dtype(layer: Any, convert: Conversion) -> None:
    """Raises if a layer of ours computes in another dtype than that of its parameters.

    Args:
      layer: the layer.
      convert: the conversion to a framework whose layers compute in the dtype of their parameters.
    """
    dtype, of_params = getattr(layer, "dtype", None), getattr(layer, "param_dtype", None)
    if dtype is not None and of_params is not None and jnp.dtype(dtype) != jnp.dtype(of_params):
        convert.refuse(
            layer,
            f"which computes in {jnp.dtype(dtype).name} and keeps its parameters in "
            f"{jnp.dtype(of_params).name}, while the other framework's has one dtype (set "
            "`layer.dtype = None`)",
        )
