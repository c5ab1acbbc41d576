"""The GRU cell."""

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
from moduli_layers._activations import sigmoid, tanh
from moduli_layers._arguments import checked
from moduli_layers._cells.base import (
    Carry,
    CheckedCell,
    default_recurrent_kernel_init,
    torch_size,
)
from moduli_layers._dtypes import PromoteDtype, promote_dtype, wider
from moduli_layers._initial_values import default_kernel_init
from moduli_layers._linear import Linear
from moduli_layers.counterparts import Counterpart, Tensor

__all__ = ["GRUCell"]

_NO_METADATA: Mapping[str, Any] = MappingProxyType({})


def _counterpart(hidden_bias: Tensor) -> Counterpart:
    return Counterpart(
        "torch.nn.GRUCell",
        {
            "weight_ih": Tensor("dense_i.kernel", "i o -> o i"),
            "weight_hh": Tensor("dense_h.kernel", "i o -> o i"),
            "bias_ih": Tensor("dense_i.bias"),
            "bias_hh": hidden_bias,
        },
        {"input_size": "in_features", "hidden_size": torch_size},
    )


_WITH_HIDDEN_BIAS = _counterpart(Tensor("dense_h.bias"))
_COUNTERPART = _counterpart(
    Tensor(
        "dense_i.bias",
        zero=("dense_i.bias",),
        absent=lambda bias: bias[2 * (len(bias) // 3) :],  # of the gate n
    )
)


class GRUCell(CheckedCell):
    r"""A gated recurrent unit.

    .. math::

        r &= \sigma(W_{ir} x + b_r + W_{hr} h) \qquad z = \sigma(W_{iz} x + b_z + W_{hz} h) \\
        n &= \tanh(W_{in} x + b_n + r (W_{hn} h)) \\
        h' &= (1 - z) n + z h

    The gates stand in the order r, z, n along the last axes of kernels and bias. PyTorch's GRU has
    one more bias, inside of the factor of r: ``use_hidden_bias=True`` has it too, and without it
    its parameters come over if that one is zero.

    The carry is h, an array of shape (..., hidden_features), which keeps its dtype from step to
    step; outputs are h' in the dtype of the computation.

    Attributes:
      dense_i: Linear for the inputs; its kernel is (in_features, 3 hidden_features).
      dense_h: Linear for h, without bias unless ``use_hidden_bias``; its kernel is
        (hidden_features, 3 hidden_features).

    Args:
      in_features: size of the inputs' last axis.
      hidden_features: size of the last axis of h and the outputs.
      gate_fn: the function at the gates r and z.
      activation_fn: the function at n.
      kernel_init: initializer of the inputs' kernel.
      recurrent_kernel_init: initializer of the kernel of h; default: orthogonal.
      bias_init: initializer of the bias.
      use_hidden_bias: whether ``dense_h`` has a bias as well, as PyTorch's GRU; flax's has none.
      dtype: dtype of the computation; None takes the one to which inputs and parameters promote.
      param_dtype: dtype in which the parameters are stored, and of the first carry.
      carry_init: initializer of the first carry; default: zeros.
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
      >>> from moduli_layers import GRUCell
      >>> cell = GRUCell(3, 4, rngs=moduli.Rngs(0))
      >>> x = jnp.ones((2, 3))
      >>> h, y = cell(cell.initialize_carry(x.shape), x)
      >>> h.shape, y.shape
      ((2, 4), (2, 4))

    Reference:
      Cho et al., Learning Phrase Representations using RNN Encoder-Decoder, 2014,
      https://arxiv.org/abs/1406.1078
    """

    __module__ = "moduli_layers"

    input_layers: ClassVar[tuple[str, ...]] = ("dense_i",)

    @property
    def torch_counterpart(self) -> Counterpart:
        """PyTorch's cell."""
        return _COUNTERPART if self.dense_h.bias is None else _WITH_HIDDEN_BIAS

    @checked
    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        gate_fn: Callable[..., Any] = sigmoid,
        activation_fn: Callable[..., Any] = tanh,
        kernel_init: initializers.Initializer = default_kernel_init,
        recurrent_kernel_init: initializers.Initializer = default_recurrent_kernel_init,
        bias_init: initializers.Initializer = initializers.zeros,
        use_hidden_bias: bool = False,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        carry_init: initializers.Initializer | None = None,
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
        self.gate_fn = gate_fn
        linear = functools.partial(
            Linear, dtype=dtype, param_dtype=param_dtype, promote_dtype=promote_dtype, rngs=rngs
        )
        self.dense_i = linear(
            in_features,
            3 * hidden_features,
            kernel_init=kernel_init,
            bias_init=bias_init,
            kernel_metadata=kernel_metadata,
            bias_metadata=bias_metadata,
        )
        self.dense_h = linear(
            hidden_features,
            3 * hidden_features,
            use_bias=use_hidden_bias,
            kernel_init=recurrent_kernel_init,
            bias_init=bias_init,
            kernel_metadata=recurrent_kernel_metadata,
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
        x_r, x_z, x_n = jnp.split(x, 3, axis=-1)
        h_r, h_z, h_n = jnp.split(self.dense_h(h), 3, axis=-1)
        r = self.gate_fn(x_r + h_r)
        z = self.gate_fn(x_z + h_z)
        n = self.activation_fn(x_n + r * h_n)
        dtype = wider(n.dtype, h.dtype)
        z, new = z.astype(dtype), n.astype(dtype)
        h_new = (1 - z) * new + z * h.astype(dtype)
        return h_new.astype(h.dtype), h_new.astype(n.dtype)
