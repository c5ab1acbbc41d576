"""The simple cell: one map of inputs and carry, and an activation."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

import moduli
from moduli_layers import initializers
from moduli_layers._activations import tanh
from moduli_layers._arguments import checked
from moduli_layers._cells.base import (
    Carry,
    CheckedCell,
    default_recurrent_kernel_init,
    torch_nonlinearity,
)
from moduli_layers._dtypes import PromoteDtype, promote_dtype
from moduli_layers._initial_values import default_kernel_init
from moduli_layers._linear import Linear
from moduli_layers.counterparts import Counterpart, Tensor

__all__ = ["SimpleCell"]

_NO_METADATA: Mapping[str, Any] = MappingProxyType({})


class SimpleCell(CheckedCell):
    r"""The cell of Elman's network: ``h' = tanh(W_i x + b + W_h h)``.

    The carry is h, an array of shape (..., hidden_features), which keeps its dtype from step to
    step; outputs are h' in the dtype of the computation.

    Attributes:
      dense_i: Linear for the inputs; its kernel is (in_features, hidden_features).
      dense_h: Linear without bias for h; its kernel is (hidden_features, hidden_features).

    Args:
      in_features: size of the inputs' last axis.
      hidden_features: size of the last axis of h and the outputs.
      dtype: dtype of the computation; None takes the one to which inputs and parameters promote.
      param_dtype: dtype in which the parameters are stored, and of the first carry.
      carry_init: initializer of the first carry; default: zeros.
      residual: whether to add h inside of the function: ``h' = tanh(W_i x + b + W_h h + h)``.
      activation_fn: the function, in the place of tanh.
      kernel_init: initializer of the inputs' kernel.
      recurrent_kernel_init: initializer of the kernel of h; default: orthogonal.
      bias_init: initializer of the bias.
      promote_dtype: function that casts arrays to ``dtype``, see :class:`Linear`.
      keep_rngs: whether to keep a fork of the stream ``carry``, for a random first carry.
      rngs: where the parameters' keys come from (stream ``params``).
      kernel_metadata: metadata of the Param of the inputs' kernel.
      recurrent_kernel_metadata: metadata of the Param of the kernel of h.
      bias_metadata: metadata of the bias's Param.

    Raises:
      ArgumentError: a size is below 1; (in the call) the carry is not one array.
      RngError: ``rngs`` is not a :class:`moduli.Rngs`.
      ShapeError: (in the call) inputs or carry do not have the layer's sizes.
      DtypeError: (in the call) the carry holds integers, or there is no common dtype.

    Example:
      >>> import jax.numpy as jnp, moduli
      >>> from moduli_layers import SimpleCell
      >>> cell = SimpleCell(3, 4, rngs=moduli.Rngs(0))
      >>> x = jnp.ones((2, 3))
      >>> h, y = cell(cell.initialize_carry(x.shape), x)
      >>> h.shape, y.shape
      ((2, 4), (2, 4))

    Reference:
      Elman, Finding Structure in Time, 1990, https://doi.org/10.1207/s15516709cog1402_1
    """

    __module__ = "moduli_layers"

    input_layers: ClassVar[tuple[str, ...]] = ("dense_i",)

    torch_counterpart: ClassVar[Counterpart] = Counterpart(
        "torch.nn.RNNCell",
        {
            "weight_ih": Tensor("dense_i.kernel", "i o -> o i"),
            "weight_hh": Tensor("dense_h.kernel", "i o -> o i"),
            "bias_ih": Tensor("dense_i.bias"),
            "bias_hh": Tensor("dense_i.bias", zero=("dense_i.bias",)),
        },
        {
            "input_size": "in_features",
            "hidden_size": "hidden_features",
            "nonlinearity": torch_nonlinearity,
        },
    )

    @checked
    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        dtype: DTypeLike | None = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        carry_init: initializers.Initializer | None = None,
        residual: bool = False,
        activation_fn: Callable[..., Any] = tanh,
        kernel_init: initializers.Initializer = default_kernel_init,
        recurrent_kernel_init: initializers.Initializer = default_recurrent_kernel_init,
        bias_init: initializers.Initializer = initializers.zeros,
        promote_dtype: PromoteDtype = promote_dtype,
        keep_rngs: bool = False,
        rngs: moduli.Rngs,
        kernel_metadata: Mapping[str, Any] = _NO_METADATA,
        recurrent_kernel_metadata: Mapping[str, Any] = _NO_METADATA,
        bias_metadata: Mapping[str, Any] = _NO_METADATA,
    ) -> None:
        self._keep(
            in_features,
            hidden_features,
            activation_fn,
            dtype,
            param_dtype,
            carry_init,
            promote_dtype,
            keep_rngs,
            rngs,
        )
        self.residual = residual
        linear = functools.partial(
            Linear, dtype=dtype, param_dtype=param_dtype, promote_dtype=promote_dtype, rngs=rngs
        )
        self.dense_h = linear(
            hidden_features,
            hidden_features,
            use_bias=False,
            kernel_init=recurrent_kernel_init,
            kernel_metadata=recurrent_kernel_metadata,
        )
        self.dense_i = linear(
            in_features,
            hidden_features,
            kernel_init=kernel_init,
            bias_init=bias_init,
            kernel_metadata=kernel_metadata,
            bias_metadata=bias_metadata,
        )

    def step(self, carry: Carry, *projected: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The step after the input layer.

        Args:
          carry: h.
          *projected: what ``dense_i`` returned.

        Returns:
          The new carry, and h' in the dtype of the computation.
        """
        (x,) = projected
        (h,) = self.carry_arrays(carry, x.shape[:-1])
        total = x + self.dense_h(h)
        if self.residual:
            total = total + h.astype(total.dtype)
        outputs = self.activation_fn(total)
        return outputs.astype(h.dtype), outputs
