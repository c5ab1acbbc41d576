"""A rectifier with a trained slope."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

import moduli
from moduli.errors import ShapeError
from moduli_layers._arguments import checked
from moduli_layers._broadcasts import at_end
from moduli_layers._checks import check_features, check_positive, shape_text
from moduli_layers._dtypes import PromoteDtype, promote_dtype, promote_for
from moduli_layers.counterparts import Counterpart, Tensor
from moduli_layers.errors import DtypeError

__all__ = ["PReLU"]

_NO_METADATA: Mapping[str, Any] = MappingProxyType({})


class PReLU(moduli.Module):
    """A rectifier whose slope for negative inputs is trained: ``max(x, 0) + slope * min(x, 0)``.

    Attributes:
      negative_slope: Param of shape (), or (num_parameters,) if that is not 1.

    Args:
      negative_slope_init: the slope at the start.
      num_parameters: 1 for one slope, or the size of the inputs' last axis for one slope for each
        feature.
      dtype: dtype of the computation; None takes the inputs', whatever the slope's is.
      param_dtype: dtype in which the slope is stored.
      promote_dtype: function that casts ``(inputs, negative_slope)`` to ``dtype``, if there is one.
      negative_slope_metadata: metadata of the slope's Param.

    Example:
      >>> import jax.numpy as jnp
      >>> from moduli_layers import PReLU
      >>> print(PReLU(0.5)(jnp.array([-2.0, 0.0, 3.0])))
      [-1.  0.  3.]

    Reference:
      He et al., Delving deep into rectifiers, 2015, https://arxiv.org/abs/1502.01852
    """

    __module__ = "moduli_layers"

    @property
    def torch_counterpart(self) -> Counterpart:
        """PyTorch's layer, whose slopes are those of axis 1, where ours are of the last."""
        slopes = Tensor("negative_slope", "-> ()" if self.num_parameters == 1 else None)
        return Counterpart(
            "torch.nn.PReLU",
            {"weight": slopes},
            {"num_parameters": "num_parameters"},
            feature_axis=-1 if self.num_parameters == 1 else 1,
        )

    @checked
    def __init__(
        self,
        negative_slope_init: float | ArrayLike = 0.01,
        *,
        num_parameters: int = 1,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        promote_dtype: PromoteDtype = promote_dtype,
        negative_slope_metadata: Mapping[str, Any] = _NO_METADATA,
    ) -> None:
        check_positive(self, num_parameters=num_parameters)
        slope = jnp.asarray(negative_slope_init, param_dtype)
        if num_parameters > 1:
            if slope.shape not in ((), (num_parameters,)):
                raise ShapeError(
                    f"{type(self).__name__}(num_parameters={num_parameters}) got a "
                    f"negative_slope_init of shape {shape_text(slope)}; write one number, or "
                    f"{num_parameters}"
                )
            slope = jnp.full((num_parameters,), slope)
        self.num_parameters = num_parameters
        self.negative_slope = moduli.Param(slope, **negative_slope_metadata)
        self.dtype = dtype
        self.param_dtype = param_dtype
        self.promote_dtype = promote_dtype

    def __call__(self, inputs: ArrayLike) -> jax.Array:
        """Applies the rectifier to each entry.

        Args:
          inputs: floating-point array of any shape; with several slopes, one entry for each on
            the last axis.

        Returns:
          Array of the inputs' shape.

        Raises:
          ShapeError: the inputs' last axis does not have ``num_parameters`` entries.
          DtypeError: the inputs hold integers, which a slope would round away, and the layer has no
            ``dtype``.
        """
        x, slope = jnp.asarray(inputs), self.negative_slope[...]
        if self.num_parameters > 1:
            check_features(self, x, -1, self.num_parameters, "num_parameters")
            slope = at_end(slope, x.ndim)
        if self.dtype is not None:
            x, slope = promote_for(self, (x, slope))
        elif not jnp.issubdtype(x.dtype, jnp.inexact):
            raise DtypeError(
                f"{type(self).__name__} expects floating-point numbers, got {x.dtype.name}; write "
                f"inputs.astype(jnp.float32)"
            )
        return jnp.where(x >= 0, x, slope.astype(x.dtype) * x)
