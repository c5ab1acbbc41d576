"""Layers that multiply by a matrix."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike, DTypeLike

import moduli
from moduli_layers import initializers
from moduli_layers._arguments import checked
from moduli_layers._broadcasts import at_end
from moduli_layers._checks import check_features, check_positive, check_rngs, check_sliced
from moduli_layers._dtypes import PromoteDtype, Summing, promote_dtype, promote_for
from moduli_layers._initial_values import default_kernel_init, fill
from moduli_layers.counterparts import Counterpart, Tensor

__all__ = ["Linear"]

_NO_METADATA: Mapping[str, Any] = MappingProxyType({})


class Linear(Summing):
    """An affine map of the last axis: ``y = x @ kernel + bias``.

    Attributes:
      kernel: Param of shape (in_features, out_features).
      bias: Param of shape (out_features,), or None if ``use_bias`` is False.

    Args:
      in_features: size of the inputs' last axis.
      out_features: size of the outputs' last axis.
      use_bias: whether to add a bias.
      dtype: dtype of the computation; None takes the one to which inputs and parameters promote.
      param_dtype: dtype in which the parameters are stored.
      precision: numerical precision of the product, see :class:`jax.lax.Precision`.
      kernel_init: initializer of the kernel; default: Lecun's normal.
      bias_init: initializer of the bias; default: zeros.
      dot_general: what multiplies, in the place of :func:`jax.lax.dot_general`.
      promote_dtype: function that casts ``(inputs, kernel, bias)`` to ``dtype``.
      preferred_element_type: dtype in which the product is accumulated and returned.
      rngs: where the parameters' keys come from (stream ``params``: the kernel's, then the
        bias's).
      kernel_metadata: metadata of the kernel's Param.
      bias_metadata: metadata of the bias's Param.

    Raises:
      ArgumentError: a size is below 1.
      RngError: ``rngs`` is not a :class:`moduli.Rngs`.

    Example:
      >>> import jax.numpy as jnp, moduli
      >>> from moduli_layers import Linear
      >>> layer = Linear(3, 4, rngs=moduli.Rngs(0))
      >>> layer.kernel.shape, layer.bias.shape
      ((3, 4), (4,))
      >>> layer(jnp.ones((2, 3))).shape
      (2, 4)
    """

    __module__ = "moduli_layers"

    __value_shapes__: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "kernel": ("in_features", "out_features"),
        "bias": ("out_features",),
    }

    torch_counterpart: ClassVar[Counterpart | None] = Counterpart(
        "torch.nn.Linear",
        {"weight": Tensor("kernel", "i o -> o i"), "bias": Tensor("bias")},
        {"in_features": "in_features", "out_features": "out_features", "bias": "use_bias"},
    )

    @checked
    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        use_bias: bool = True,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        precision: lax.PrecisionLike = None,
        kernel_init: initializers.Initializer = default_kernel_init,
        bias_init: initializers.Initializer = initializers.zeros,
        dot_general: Callable[..., jax.Array] = lax.dot_general,
        promote_dtype: PromoteDtype = promote_dtype,
        preferred_element_type: DTypeLike | None = None,
        rngs: moduli.Rngs,
        kernel_metadata: Mapping[str, Any] = _NO_METADATA,
        bias_metadata: Mapping[str, Any] = _NO_METADATA,
    ) -> None:
        check_positive(self, in_features=in_features, out_features=out_features)
        check_rngs(self, rngs)
        kernel = fill(kernel_init, rngs.params(), (in_features, out_features), param_dtype)
        self.kernel = moduli.Param(kernel, **kernel_metadata)
        self.bias = None
        if use_bias:
            bias = fill(bias_init, rngs.params(), (out_features,), param_dtype)
            self.bias = moduli.Param(bias, **bias_metadata)
        self.in_features = in_features
        self.out_features = out_features
        self.use_bias = use_bias
        self.dtype = dtype
        self.param_dtype = param_dtype
        self.precision = precision
        self.dot_general = dot_general
        self.promote_dtype = promote_dtype
        self.preferred_element_type = preferred_element_type

    def __call__(self, inputs: ArrayLike, out_sharding: Any = None) -> jax.Array:
        """Applies the map.

        Args:
          inputs: array of shape (..., in_features).
          out_sharding: how the output is laid out over devices, for JAX's explicit sharding
            mode; None leaves it to the compiler.

        Returns:
          Array of shape (..., out_features).

        Raises:
          ShapeError: the inputs' last axis does not have ``in_features`` entries.
          DtypeError: inputs and parameters have no common dtype.
        """
        shape = self.kernel.shape
        rank = len(shape)
        if rank < 2:
            check_sliced(self)
        held = shape[-2]
        check_features(self, inputs, -1, self.in_features, "in_features", held)
        bias = None if self.bias is None else self.bias[...]
        x, kernel, bias = promote_for(self, (inputs, self.kernel[...], bias))
        sharding = {} if out_sharding is None else {"out_sharding": out_sharding}
        outputs = self.dot_general(
            x,
            kernel,
            (((x.ndim - 1,), (0,)), ((), ())),
            precision=self.precision,
            preferred_element_type=self._sum_dtype(),
            **sharding,
        )
        if bias is not None:
            outputs = outputs + at_end(bias.astype(outputs.dtype), outputs.ndim)
        return self._summed(outputs, x.dtype)
