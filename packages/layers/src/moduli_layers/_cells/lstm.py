"""LSTM cells: all gates at once, or a map for each."""

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

__all__ = ["LSTMCell", "OptimizedLSTMCell"]

_NO_METADATA: Mapping[str, Any] = MappingProxyType({})


def _lstm_update(
    cell: Any, c: jax.Array, h_dtype: DTypeLike, i: Any, f: Any, g: Any, o: Any
) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
    """The end of an LSTM's step, from the sums at the four gates.

    The arrays of the carry keep their dtypes, outputs have the gates'.
    """
    dtype = wider(f.dtype, c.dtype)
    i, f, o = (cell.gate_fn(gate).astype(dtype) for gate in (i, f, o))
    outputs_dtype = g.dtype
    g = cell.activation_fn(g).astype(dtype)
    c_new = f * c.astype(dtype) + i * g
    h_new = o * cell.activation_fn(c_new)
    return (c_new.astype(c.dtype), h_new.astype(h_dtype)), h_new.astype(outputs_dtype)


class LSTMCell(CheckedCell):
    r"""A cell with long short-term memory, whose gates are eight layers of their own.

    .. math::

        i &= \sigma(W_{ii} x + W_{hi} h + b_i) \qquad f = \sigma(W_{if} x + W_{hf} h + b_f) \\
        g &= \tanh(W_{ig} x + W_{hg} h + b_g) \qquad o = \sigma(W_{io} x + W_{ho} h + b_o) \\
        c' &= f c + i g \qquad h' = o \tanh(c')

    :class:`OptimizedLSTMCell` computes the same with one product in the place of four.

    The carry is the tuple (c, h) of arrays of shape (..., hidden_features), which keep their dtypes
    from step to step; outputs are h' in the dtype of the computation.

    Attributes:
      ii: the Linear without bias that gives the inputs to the gate i; ``if_``, ``ig`` and ``io``
        are those of the others.
      hi: the Linear that gives h to the gate i; ``hf``, ``hg`` and ``ho`` are those of the others.

    Args:
      in_features: size of the inputs' last axis.
      hidden_features: size of the last axis of c, h and the outputs.
      gate_fn: the function at the gates i, f and o.
      activation_fn: the function at g and c'.
      kernel_init: initializer of the inputs' kernels.
      recurrent_kernel_init: initializer of the kernels of h; default: orthogonal.
      bias_init: initializer of the biases.
      dtype: dtype of the computation; None takes the one to which inputs and parameters promote.
      param_dtype: dtype in which the parameters are stored, and of the first carry.
      carry_init: initializer of the first carry's arrays; default: zeros.
      promote_dtype: function that casts arrays to ``dtype``, see :class:`Linear`.
      keep_rngs: whether to keep a fork of the stream ``carry``, for a random first carry.
      rngs: where the parameters' keys come from (stream ``params``).
      kernel_metadata: metadata of the Params of the inputs' kernels.
      recurrent_kernel_metadata: metadata of the Params of the kernels of h.
      bias_metadata: metadata of the biases' Params.

    Raises:
      ArgumentError: a size is below 1; (in the call) the carry is not two arrays.
      RngError: ``rngs`` is not a :class:`moduli.Rngs`.
      ShapeError: (in the call) inputs or carry do not have the layer's sizes.
      DtypeError: (in the call) the carry holds integers, or there is no common dtype.

    Example:
      >>> import jax.numpy as jnp, moduli
      >>> from moduli_layers import LSTMCell
      >>> cell = LSTMCell(3, 4, rngs=moduli.Rngs(0))
      >>> x = jnp.ones((2, 3))
      >>> (c, h), y = cell(cell.initialize_carry(x.shape), x)
      >>> c.shape, h.shape, y.shape
      ((2, 4), (2, 4), (2, 4))

    Reference:
      Hochreiter and Schmidhuber, Long Short-Term Memory, 1997,
      https://doi.org/10.1162/neco.1997.9.8.1735
    """

    __module__ = "moduli_layers"

    input_layers: ClassVar[tuple[str, ...]] = ("ii", "if_", "ig", "io")
    carry_names: ClassVar[tuple[str, ...]] = ("c", "h")

    torch_counterpart: ClassVar[Counterpart] = Counterpart(
        "torch.nn.LSTMCell",
        {
            "weight_ih": Tensor(
                ("ii.kernel", "if_.kernel", "ig.kernel", "io.kernel"), "i o -> o i"
            ),
            "weight_hh": Tensor(("hi.kernel", "hf.kernel", "hg.kernel", "ho.kernel"), "i o -> o i"),
            "bias_ih": Tensor(
                ("hi.bias", "hf.bias", "hg.bias", "ho.bias"),
                zero=("hi.bias", "hf.bias", "hg.bias", "ho.bias"),
            ),
            "bias_hh": Tensor(("hi.bias", "hf.bias", "hg.bias", "ho.bias")),
        },
        {"input_size": "in_features", "hidden_size": torch_size},
    )

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
        for_inputs = functools.partial(
            linear,
            in_features,
            hidden_features,
            use_bias=False,
            kernel_init=kernel_init,
            kernel_metadata=kernel_metadata,
        )
        for_hidden = functools.partial(
            linear,
            hidden_features,
            hidden_features,
            kernel_init=recurrent_kernel_init,
            bias_init=bias_init,
            kernel_metadata=recurrent_kernel_metadata,
            bias_metadata=bias_metadata,
        )
        self.ii = for_inputs()
        self.if_ = for_inputs()
        self.ig = for_inputs()
        self.io = for_inputs()
        self.hi = for_hidden()
        self.hf = for_hidden()
        self.hg = for_hidden()
        self.ho = for_hidden()

    def step(
        self, carry: Carry, *projected: jax.Array
    ) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        """The step after the input layers.

        Args:
          carry: the tuple (c, h).
          *projected: what ``ii``, ``if_``, ``ig`` and ``io`` returned.

        Returns:
          The new carry, and h' in the dtype of the computation.
        """
        i, f, g, o = projected
        c, h = self.carry_arrays(carry, i.shape[:-1])
        gates = (i + self.hi(h), f + self.hf(h), g + self.hg(h), o + self.ho(h))
        return _lstm_update(self, c, h.dtype, *gates)


class OptimizedLSTMCell(CheckedCell):
    """An :class:`LSTMCell` that computes its four gates with one product of inputs and one of h.

    The gates stand in the order i, f, g, o along the last axes of kernels and bias. The carry is
    the tuple (c, h), as of :class:`LSTMCell`.

    Attributes:
      dense_i: Linear without bias for the inputs; its kernel is (in_features, 4 hidden_features).
      dense_h: Linear for h; its kernel is (hidden_features, 4 hidden_features).

    Args:
      in_features: size of the inputs' last axis.
      hidden_features: size of the last axis of c, h and the outputs.
      gate_fn: the function at the gates i, f and o.
      activation_fn: the function at g and c'.
      kernel_init: initializer of the inputs' kernel.
      recurrent_kernel_init: initializer of the kernel of h; default: orthogonal.
      bias_init: initializer of the bias.
      dtype: dtype of the computation; None takes the one to which inputs and parameters promote.
      param_dtype: dtype in which the parameters are stored, and of the first carry.
      carry_init: initializer of the first carry's arrays; default: zeros.
      promote_dtype: function that casts arrays to ``dtype``, see :class:`Linear`.
      keep_rngs: whether to keep a fork of the stream ``carry``, for a random first carry.
      rngs: where the parameters' keys come from (stream ``params``).
      kernel_metadata: metadata of the Param of the inputs' kernel.
      recurrent_kernel_metadata: metadata of the Param of the kernel of h.
      bias_metadata: metadata of the bias's Param.

    Raises:
      ArgumentError: a size is below 1; (in the call) the carry is not two arrays.
      RngError: ``rngs`` is not a :class:`moduli.Rngs`.
      ShapeError: (in the call) inputs or carry do not have the layer's sizes.
      DtypeError: (in the call) the carry holds integers, or there is no common dtype.

    Example:
      >>> import jax.numpy as jnp, moduli
      >>> from moduli_layers import OptimizedLSTMCell
      >>> cell = OptimizedLSTMCell(3, 4, rngs=moduli.Rngs(0))
      >>> cell.dense_i.kernel.shape, cell.dense_h.kernel.shape
      ((3, 16), (4, 16))
      >>> x = jnp.ones((2, 3))
      >>> (c, h), y = cell(cell.initialize_carry(x.shape), x)
      >>> y.shape
      (2, 4)
    """

    __module__ = "moduli_layers"

    input_layers: ClassVar[tuple[str, ...]] = ("dense_i",)
    carry_names: ClassVar[tuple[str, ...]] = ("c", "h")

    torch_counterpart: ClassVar[Counterpart] = Counterpart(
        "torch.nn.LSTMCell",
        {
            "weight_ih": Tensor("dense_i.kernel", "i o -> o i"),
            "weight_hh": Tensor("dense_h.kernel", "i o -> o i"),
            "bias_ih": Tensor("dense_h.bias", zero=("dense_h.bias",)),
            "bias_hh": Tensor("dense_h.bias"),
        },
        {"input_size": "in_features", "hidden_size": torch_size},
    )

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
            4 * hidden_features,
            use_bias=False,
            kernel_init=kernel_init,
            kernel_metadata=kernel_metadata,
        )
        self.dense_h = linear(
            hidden_features,
            4 * hidden_features,
            kernel_init=recurrent_kernel_init,
            bias_init=bias_init,
            kernel_metadata=recurrent_kernel_metadata,
            bias_metadata=bias_metadata,
        )

    def step(
        self, carry: Carry, *projected: jax.Array
    ) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        """The step after the input layer.

        Args:
          carry: the tuple (c, h).
          *projected: what ``dense_i`` returned.

        Returns:
          The new carry, and h' in the dtype of the computation.
        """
        (x,) = projected
        c, h = self.carry_arrays(carry, x.shape[:-1])
        gates = jnp.split(x + self.dense_h(h), 4, axis=-1)
        return _lstm_update(self, c, h.dtype, *gates)
