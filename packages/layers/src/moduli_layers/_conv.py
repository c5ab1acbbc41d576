"""Convolution in any number of dimensions, channels last."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike, DTypeLike

import moduli
from moduli.errors import ShapeError
from moduli_layers import initializers
from moduli_layers._arguments import checked
from moduli_layers._broadcasts import at_end
from moduli_layers._checks import check_features, check_positive, check_rngs, shape_of, shape_text
from moduli_layers._dtypes import PromoteDtype, Summing, promote_dtype, promote_for
from moduli_layers._initial_values import default_kernel_init, fill
from moduli_layers._laid_out import in_mesh_of, on_each_device
from moduli_layers._windows import (
    Padding,
    as_static,
    check_not_empty,
    padding_pairs,
    per_dimension,
)
from moduli_layers.counterparts import Counterpart, Tensor, TensorNames
from moduli_layers.errors import ArgumentError

__all__ = ["Conv"]

_NO_METADATA: Mapping[str, Any] = MappingProxyType({})
_PADDINGS = ("SAME", "SAME_LOWER", "VALID", "CIRCULAR", "REFLECT", "CAUSAL")
_PAD_MODES = {"CIRCULAR": "wrap", "REFLECT": "reflect"}


def _counterpart(rank: int) -> Counterpart:
    return Counterpart(
        f"torch.nn.Conv{rank}d",
        {"weight": Tensor("kernel", "... i o -> o i ..."), "bias": Tensor("bias")},
        {
            "in_channels": "in_features",
            "out_channels": "out_features",
            "kernel_size": "kernel_size",
            "stride": lambda layer: layer._window()[0],
            "dilation": lambda layer: layer._window()[2],
            "padding": lambda layer: layer._torch_padding()[0],
            "padding_mode": lambda layer: layer._torch_padding()[1],
            "groups": "feature_group_count",
            "bias": "use_bias",
        },
        feature_axis=1,
    )


class Conv(Summing):
    """A convolution (cross-correlation, as everywhere in deep learning) over N dimensions.

    Arrays are channels last: ``(batch, *spatial, features)``. With kernel size ``K`` and padding
    chosen so that indices exist, one spatial dimension is
    ``y[i, o] = bias[o] + sum over k, c of x[i * stride + k * dilation, c] * kernel[k, c, o]``.

    Attributes:
      kernel: Param of shape ``(*kernel_size, in_features // feature_group_count, out_features)``.
      bias: Param of shape (out_features,), or None if ``use_bias`` is False.

    Args:
      in_features: size of the inputs' last axis.
      out_features: size of the outputs' last axis.
      kernel_size: size of the window in each spatial dimension; an int is one dimension.
      strides: step of the window, one for all dimensions or one for each; None is 1.
      padding: ``"SAME"`` (output size is input size over stride, rounded up; ``"SAME_LOWER"``
        puts an odd rest in front), ``"VALID"`` (none), ``"CIRCULAR"`` (periodic),
        ``"REFLECT"`` (mirrored at the border), ``"CAUSAL"`` (one dimension, all in front), an
        int for all sides, or for each dimension an int or a pair (before, after).
      input_dilation: spread the inputs apart by this factor, filling with zeros; the padding is
        that of the spread inputs. With factor d this is the transpose of stride d.
      kernel_dilation: spread the kernel apart by this factor.
      feature_group_count: number of groups of features that do not see each other.
      use_bias: whether to add a bias.
      mask: array of the kernel's shape by which the kernel is multiplied in every call.
      dtype: dtype of the computation; None takes the one to which inputs and parameters promote.
      param_dtype: dtype in which the parameters are stored.
      precision: numerical precision, see :class:`jax.lax.Precision`.
      kernel_init: initializer of the kernel; default: Lecun's normal.
      bias_init: initializer of the bias; default: zeros.
      conv_general_dilated: what convolves, in the place of
        :func:`jax.lax.conv_general_dilated`.
      promote_dtype: function that casts ``(inputs, kernel, bias)`` to ``dtype``.
      preferred_element_type: dtype in which the sum is accumulated and returned.
      rngs: where the parameters' keys come from (stream ``params``: the kernel's, then the
        bias's).
      kernel_metadata: metadata of the kernel's Param.
      bias_metadata: metadata of the bias's Param.

    Raises:
      ArgumentError: a size is below 1, the groups do not divide the features, or the strides,
        dilations or padding do not fit the kernel's dimensions.
      ShapeError: the mask does not have the kernel's shape.
      RngError: ``rngs`` is not a :class:`moduli.Rngs`.

    Example:
      >>> import jax.numpy as jnp, moduli
      >>> from moduli_layers import Conv
      >>> layer = Conv(3, 8, kernel_size=(3, 3), strides=2, rngs=moduli.Rngs(0))
      >>> layer.kernel.shape
      (3, 3, 3, 8)
      >>> layer(jnp.ones((1, 28, 28, 3))).shape
      (1, 14, 14, 8)
    """

    __module__ = "moduli_layers"

    __value_shapes__: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "kernel": ("kernel_shape",),
        "bias": ("out_features",),
    }

    torch_names: ClassVar[tuple[TensorNames, ...]] = (
        TensorNames({"weight": Tensor("kernel", "... i o -> o i ..."), "bias": Tensor("bias")}),
    )

    @checked
    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: int | Sequence[int],
        strides: int | Sequence[int] | None = 1,
        *,
        padding: Padding = "SAME",
        input_dilation: int | Sequence[int] | None = 1,
        kernel_dilation: int | Sequence[int] | None = 1,
        feature_group_count: int = 1,
        use_bias: bool = True,
        mask: ArrayLike | None = None,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        precision: lax.PrecisionLike = None,
        kernel_init: initializers.Initializer = default_kernel_init,
        bias_init: initializers.Initializer = initializers.zeros,
        conv_general_dilated: Callable[..., jax.Array] = lax.conv_general_dilated,
        promote_dtype: PromoteDtype = promote_dtype,
        preferred_element_type: DTypeLike | None = None,
        rngs: moduli.Rngs,
        kernel_metadata: Mapping[str, Any] = _NO_METADATA,
        bias_metadata: Mapping[str, Any] = _NO_METADATA,
    ) -> None:
        check_positive(
            self,
            in_features=in_features,
            out_features=out_features,
            feature_group_count=feature_group_count,
        )
        check_rngs(self, rngs)
        if in_features % feature_group_count or out_features % feature_group_count:
            raise ArgumentError(
                f"{type(self).__name__} got feature_group_count={feature_group_count}, which "
                f"does not divide in_features={in_features} and out_features={out_features}; "
                f"write a common divisor of both"
            )
        self.kernel_size = (
            tuple(kernel_size) if isinstance(kernel_size, Sequence) else (kernel_size,)
        )
        per_dimension(type(self).__name__, "kernel_size", self.kernel_size, len(self.kernel_size))
        self.kernel_shape = (*self.kernel_size, in_features // feature_group_count, out_features)
        kernel = fill(kernel_init, rngs.params(), self.kernel_shape, param_dtype)
        self.kernel = moduli.Param(kernel, **kernel_metadata)
        self.bias = None
        if use_bias:
            bias = fill(bias_init, rngs.params(), (out_features,), param_dtype)
            self.bias = moduli.Param(bias, **bias_metadata)
        self.in_features = in_features
        self.out_features = out_features
        self.strides = as_static(strides)
        self.padding = as_static(padding)
        self.input_dilation = as_static(input_dilation)
        self.kernel_dilation = as_static(kernel_dilation)
        self.feature_group_count = feature_group_count
        self.use_bias = use_bias
        self.mask = mask
        self.dtype = dtype
        self.param_dtype = param_dtype
        self.precision = precision
        self.conv_general_dilated = conv_general_dilated
        self.promote_dtype = promote_dtype
        self.preferred_element_type = preferred_element_type
        self._window()  # raises for what does not fit the kernel
        if mask is not None and shape_of(mask) != self.kernel_shape:
            raise ShapeError(
                f"{type(self).__name__} got a mask of shape {shape_text(mask)}, expected the "
                f"kernel's shape {self.kernel_shape}; broadcast the mask to it first"
            )

    @property
    def torch_counterpart(self) -> Counterpart | None:
        """PyTorch's layer that computes the same; None if it has none.

        It has none for an input dilation, a mask, and a padding that differs on two sides.
        """
        rank = len(self.kernel_size)
        dilated = any(factor != 1 for factor in self._window()[1])
        if rank > 3 or dilated or self.mask is not None or self._torch_padding() is None:
            return None
        return _counterpart(rank)

    def __call__(self, inputs: ArrayLike, out_sharding: Any = None) -> jax.Array:
        """Convolves the inputs.

        Args:
          inputs: array of shape ``(*batch, *spatial, in_features)`` with any number of batch axes,
            none included.
          out_sharding: how the output is laid out over devices, for JAX's explicit sharding
            mode; None leaves it to the compiler. Takes inputs with one batch axis.

        Returns:
          Array of shape ``(*batch, *new spatial, out_features)``.

        Raises:
          ShapeError: the inputs have too few axes, their last axis does not have
            ``in_features`` entries, or the kernel does not fit into them once.
          ArgumentError: ``out_sharding`` with inputs that do not have one batch axis.
          DtypeError: inputs and parameters have no common dtype.
        """
        name = type(self).__name__
        rank = len(self.kernel_size)
        x = jnp.asarray(inputs)
        if x.ndim < rank + 1:
            raise ShapeError(
                f"{name}(kernel_size={self.kernel_size}) expects inputs of shape (*batch, "
                f"*spatial, features) with {rank} spatial axes, got shape {shape_text(x)}; "
                f"write a kernel_size with one entry for each spatial axis of the inputs"
            )
        check_features(self, x, -1, self.in_features, "in_features")
        batch = x.shape[: -rank - 1]
        if out_sharding is not None and len(batch) != 1:
            raise ArgumentError(
                f"{name} got out_sharding and inputs of shape {shape_text(x)} with "
                f"{len(batch)} batch axes; reshape the inputs to one batch axis, or use jax.vmap"
            )

        kernel = self.kernel[...]
        if self.mask is not None:
            kernel = kernel * jnp.asarray(self.mask, kernel.dtype)
        bias = None if self.bias is None else self.bias[...]
        x, kernel, bias = promote_for(self, (x, kernel, bias))

        # (*batch, *spatial, features) -> (N, *spatial, features)
        rows = x.reshape((math.prod(batch), *x.shape[len(batch) :]))
        kernel = in_mesh_of(kernel, rows)
        strides, input_dilation, kernel_dilation, padding = self._window()
        spans = [(k - 1) * d for k, d in zip(self.kernel_size, kernel_dilation, strict=True)]
        if padding in _PAD_MODES:
            sides = [(span // 2, span - span // 2) for span in spans]
            rows = jnp.pad(rows, [(0, 0), *sides, (0, 0)], mode=_PAD_MODES[padding])
            padding = "VALID"
        elif padding == "CAUSAL":
            padding = ((spans[0], 0),)
        if isinstance(padding, str) and any(factor != 1 for factor in input_dilation):
            # lax takes names only for inputs that are not dilated
            spread = [
                (n - 1) * d + 1 if n else 0
                for n, d in zip(rows.shape[1:-1], input_dilation, strict=True)
            ]
            padding = lax.padtype_to_pads(spread, [s + 1 for s in spans], strides, padding)

        channels_last = (0, rank + 1, *range(1, rank + 1))

        def convolve(rows: jax.Array, kernel: jax.Array) -> jax.Array:
            return self.conv_general_dilated(
                rows,
                kernel,
                strides,
                padding,
                lhs_dilation=input_dilation,
                rhs_dilation=kernel_dilation,
                dimension_numbers=lax.ConvDimensionNumbers(
                    channels_last, (rank + 1, rank, *range(rank)), channels_last
                ),
                feature_group_count=self.feature_group_count,
                precision=self.precision,
                preferred_element_type=self._sum_dtype(),
                **({} if out_sharding is None else {"out_sharding": out_sharding}),
            )

        if self.feature_group_count > 1 and out_sharding is None:
            outputs = on_each_device(convolve, rows, kernel)
        else:
            outputs = convolve(rows, kernel)
        detail = f"kernel_size={self.kernel_size} and padding={self.padding!r}"
        check_not_empty(name, x, outputs, slice(1, -1), detail)
        if bias is not None:
            outputs = outputs + at_end(bias.astype(outputs.dtype), outputs.ndim)
        outputs = self._summed(outputs, x.dtype)
        # (N, *new spatial, features) -> (*batch, *new spatial, features)
        return outputs.reshape((*batch, *outputs.shape[1:]))

    def _window(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], Any]:
        """Returns strides, input dilation, kernel dilation and padding for each dimension."""
        name, rank = type(self).__name__, len(self.kernel_size)
        strides = per_dimension(name, "strides", self.strides, rank)
        input_dilation = per_dimension(name, "input_dilation", self.input_dilation, rank)
        kernel_dilation = per_dimension(name, "kernel_dilation", self.kernel_dilation, rank)
        padding = padding_pairs(name, self.padding, rank, _PADDINGS)
        if padding == "CAUSAL" and rank != 1:
            raise ArgumentError(
                f"{name} got padding='CAUSAL' and kernel_size={self.kernel_size}, but only one "
                f"dimension has a past; write the padding as pairs (before, after)"
            )
        if padding in _PAD_MODES and any(factor != 1 for factor in input_dilation):
            raise ArgumentError(
                f"{name} got padding={padding!r} and input_dilation={self.input_dilation}, which "
                f"have no common meaning; pad the inputs yourself and write padding='VALID'"
            )
        return strides, input_dilation, kernel_dilation, padding

    def _torch_padding(self) -> tuple[Any, str] | None:
        """Returns PyTorch's padding and padding mode; None if they cannot say the same."""
        strides, _, dilation, padding = self._window()
        spans = [(k - 1) * d for k, d in zip(self.kernel_size, dilation, strict=True)]
        mode = padding.lower() if padding in _PAD_MODES else "zeros"
        if padding == "VALID":
            return (0,) * len(spans), mode
        if padding in ("SAME", *_PAD_MODES) and all(stride == 1 for stride in strides):
            return "same", mode
        if padding in _PAD_MODES and all(span % 2 == 0 for span in spans):
            return tuple(span // 2 for span in spans), mode
        if isinstance(padding, str) or any(before != after for before, after in padding):
            return None
        return tuple(before for before, _ in padding), mode
