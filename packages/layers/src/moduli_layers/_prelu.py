"""A rectifier with a trained slope."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

import moduli
from moduli_layers._arguments import checked
from moduli_layers._dtypes import PromoteDtype, promote_dtype, promote_for
from moduli_layers.counterparts import Counterpart, Tensor
from moduli_layers.errors import DtypeError

__all__ = ["PReLU"]

_NO_METADATA: Mapping[str, Any] = MappingProxyType({})


class PReLU(moduli.Module):
    """A rectifier whose slope for negative inputs is trained: ``max(x, 0) + slope * min(x, 0)``.

    Attributes:
      negative_slope: Param of shape ().

    Args:
      negative_slope_init: the slope at the start.
      dtype: dtype of the computation; None takes the inputs', whatever the slope's is.
      param_dtype: dtype in which the slope is stored.
      promote_dtype: function that casts ``(inputs, negative_slope)`` to ``dtype``, if there is one.
      negative_slope_metadata: metadata of the slope's Param.

    Example:
      >>> import jax.numpy as jnp
      >>> from moduli_layers import PReLU
      >>> PReLU(0.5)(jnp.array([-2.0, 0.0, 3.0]))
      Array([-1.,  0.,  3.], dtype=float32)

    Reference:
      He et al., Delving deep into rectifiers, 2015, https://arxiv.org/abs/1502.01852
    """

    __module__ = "moduli_layers"

    torch_counterpart: ClassVar[Counterpart] = Counterpart(
        "torch.nn.PReLU", {"weight": Tensor("negative_slope", "-> ()")}
    )

    @checked
    def __init__(
        self,
        negative_slope_init: float | ArrayLike = 0.01,
        *,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        promote_dtype: PromoteDtype = promote_dtype,
        negative_slope_metadata: Mapping[str, Any] = _NO_METADATA,
    ) -> None:
        slope = jnp.asarray(negative_slope_init, param_dtype)
        self.negative_slope = moduli.Param(slope, **negative_slope_metadata)
        self.dtype = dtype
        self.param_dtype = param_dtype
        self.promote_dtype = promote_dtype

    def __call__(self, inputs: ArrayLike) -> jax.Array:
        """Applies the rectifier to each entry.

        Args:
          inputs: floating-point array of any shape.

        Returns:
          Array of the inputs' shape.

        Raises:
          DtypeError: the inputs hold integers, which a slope would round away, and the layer has no
            ``dtype``.
        """
        x, slope = jnp.asarray(inputs), self.negative_slope[...]
        if self.dtype is not None:
            x, slope = promote_for(self, (x, slope))
        elif not jnp.issubdtype(x.dtype, jnp.inexact):
            raise DtypeError(
                f"{type(self).__name__} expects floating-point numbers, got {x.dtype.name}; write "
                f"inputs.astype(jnp.float32)"
            )
        return jnp.where(x >= 0, x, slope.astype(x.dtype) * x)
