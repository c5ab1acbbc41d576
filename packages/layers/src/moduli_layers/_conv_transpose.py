"""Transposed convolution in any number of dimensions, channels last."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
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
from moduli_layers._laid_out import in_mesh_of
from moduli_layers._windows import (
    Padding,
    as_static,
    check_not_empty,
    padding_pairs,
    per_dimension,
)
from moduli_layers.counterparts import Counterpart, Tensor, TensorNames
from moduli_layers.errors import ArgumentError

__all__ = ["ConvTranspose"]

_NO_METADATA: Mapping[str, Any] = MappingProxyType({})
_PADDINGS = ("SAME", "VALID", "CIRCULAR", "CAUSAL")


def _counterpart(rank: int, transposed: bool) -> Counterpart:
    kernel = (
        Tensor("kernel", "... o i -> i o ...")
        if transposed
        else Tensor("kernel", "... i o -> i o ...", flip=("...",))
    )
    return Counterpart(
        f"torch.nn.ConvTranspose{rank}d",
        {"weight": kernel, "bias": Tensor("bias")},
        {
            "in_channels": "in_features",
            "out_channels": "out_features",
            "kernel_size": "kernel_size",
            "stride": lambda layer: layer._window()[0],
            "dilation": lambda layer: layer._window()[1],
            "padding": lambda layer: layer._torch_padding()[0],
            "output_padding": lambda layer: layer._torch_padding()[1],
            "bias": "use_bias",
        },
        feature_axis=1,
    )


class ConvTranspose(Summing):
    """A transposed convolution over N dimensions: the inputs are spread apart, then convolved.

    Arrays are channels last: ``(batch, *spatial, features)``. Stride ``s`` puts ``s - 1`` zeros
    between neighbours, then the kernel (with dilation ``d``, spanning ``w = d * (K - 1) + 1``
    entries) slides over the result, so that an axis of size ``n`` becomes
    ``n * s + max(w - s, 0)`` with ``"VALID"``, and ``n * s`` with ``"SAME"``, ``"CIRCULAR"`` and
    ``"CAUSAL"``.

    Attributes:
      kernel: Param of shape ``(*kernel_size, in_features, out_features)``, or
        ``(*kernel_size, out_features, in_features)`` with ``transpose_kernel``.
      bias: Param of shape (out_features,), or None if ``use_bias`` is False.

    Args:
      in_features: size of the inputs' last axis.
      out_features: size of the outputs' last axis.
      kernel_size: size of the window in each spatial dimension; an int is one dimension.
      strides: by how much the inputs are spread apart, one for all dimensions or one for each; None
        is 1.
      padding: ``"SAME"``, ``"VALID"``, ``"CIRCULAR"`` (what reaches over an end comes in at the
        other), ``"CAUSAL"`` (one dimension: outputs depend on no later input), or how many zeros
        stand around the spread inputs: an int for all sides, or for each dimension an int or a pair
        (before, after). (PyTorch's ``padding=p`` is ``w - 1 - p`` here.)
      kernel_dilation: spread the kernel apart by this factor.
      use_bias: whether to add a bias.
      mask: array of the kernel's shape by which the kernel is multiplied in every call.
      dtype: dtype of the computation; None takes the one to which inputs and parameters promote.
      param_dtype: dtype in which the parameters are stored.
      precision: numerical precision, see :class:`jax.lax.Precision`.
      kernel_init: initializer of the kernel; default: Lecun's normal.
      bias_init: initializer of the bias; default: zeros.
      transpose_kernel: flip the kernel's spatial axes and swap its last two, so that with the
        kernel of a :class:`Conv` this is the transpose of that Conv (its gradient).
      promote_dtype: function that casts ``(inputs, kernel, bias)`` to ``dtype``.
      preferred_element_type: dtype in which the sum is accumulated and returned.
      rngs: where the parameters' keys come from (stream ``params``: the kernel's, then the
        bias's).
      kernel_metadata: metadata of the kernel's Param.
      bias_metadata: metadata of the bias's Param.

    Raises:
      ArgumentError: a size is below 1, or the strides, dilations or padding do not fit the kernel's
        dimensions.
      ShapeError: the mask does not have the kernel's shape.
      RngError: ``rngs`` is not a :class:`moduli.Rngs`.

    Example:
      >>> import jax.numpy as jnp, moduli
      >>> from moduli_layers import ConvTranspose
      >>> layer = ConvTranspose(8, 3, kernel_size=(4, 4), strides=2, rngs=moduli.Rngs(0))
      >>> layer(jnp.ones((1, 14, 14, 8))).shape
      (1, 28, 28, 3)
    """

    __module__ = "moduli_layers"

    __value_shapes__: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "kernel": ("kernel_shape",),
        "bias": ("out_features",),
    }

    @checked
    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: int | Sequence[int],
        strides: int | Sequence[int] | None = None,
        *,
        padding: Padding = "SAME",
        kernel_dilation: int | Sequence[int] | None = None,
        use_bias: bool = True,
        mask: ArrayLike | None = None,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        precision: lax.PrecisionLike = None,
        kernel_init: initializers.Initializer = default_kernel_init,
        bias_init: initializers.Initializer = initializers.zeros,
        transpose_kernel: bool = False,
        promote_dtype: PromoteDtype = promote_dtype,
        preferred_element_type: DTypeLike | None = None,
        rngs: moduli.Rngs,
        kernel_metadata: Mapping[str, Any] = _NO_METADATA,
        bias_metadata: Mapping[str, Any] = _NO_METADATA,
    ) -> None:
        check_positive(self, in_features=in_features, out_features=out_features)
        check_rngs(self, rngs)
        self.kernel_size = (
            tuple(kernel_size) if isinstance(kernel_size, Sequence) else (kernel_size,)
        )
        per_dimension(type(self).__name__, "kernel_size", self.kernel_size, len(self.kernel_size))
        features = (out_features, in_features) if transpose_kernel else (in_features, out_features)
        self.kernel_shape = (*self.kernel_size, *features)
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
        self.kernel_dilation = as_static(kernel_dilation)
        self.use_bias = use_bias
        self.mask = mask
        self.dtype = dtype
        self.param_dtype = param_dtype
        self.precision = precision
        self.transpose_kernel = transpose_kernel
        self.promote_dtype = promote_dtype
        self.preferred_element_type = preferred_element_type
        self._window()  # raises for what does not fit the kernel
        if mask is not None and shape_of(mask) != self.kernel_shape:
            raise ShapeError(
                f"{type(self).__name__} got a mask of shape {shape_text(mask)}, expected the "
                f"kernel's shape {self.kernel_shape}; broadcast the mask to it first"
            )

    @property
    def torch_names(self) -> tuple[TensorNames, ...]:
        """Those of PyTorch's layer, whatever the padding."""
        rank = len(self.kernel_size)
        return (TensorNames(_counterpart(rank, self.transpose_kernel).tensors),)

    @property
    def torch_counterpart(self) -> Counterpart | None:
        """PyTorch's layer that computes the same; None if it has none (``"CIRCULAR"``, a mask)."""
        rank = len(self.kernel_size)
        if rank > 3 or self.mask is not None or self._torch_padding() is None:
            return None
        return _counterpart(rank, self.transpose_kernel)

    def __call__(self, inputs: ArrayLike) -> jax.Array:
        """Convolves the inputs.

        Args:
          inputs: array of shape ``(*batch, *spatial, in_features)`` with any number of batch axes,
            none included.

        Returns:
          Array of shape ``(*batch, *new spatial, out_features)``.

        Raises:
          ShapeError: the inputs have too few axes, their last axis does not have
            ``in_features`` entries, or nothing would be left of them.
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
        kernel = self.kernel[...]
        if self.mask is not None:
            kernel = kernel * jnp.asarray(self.mask, kernel.dtype)
        bias = None if self.bias is None else self.bias[...]
        x, kernel, bias = promote_for(self, (x, kernel, bias))

        # (*batch, *spatial, features) -> (N, *spatial, features)
        rows = x.reshape((math.prod(batch), *x.shape[len(batch) :]))
        kernel = in_mesh_of(kernel, rows)
        strides, dilation, padding = self._window()
        outputs = lax.conv_transpose(
            rows,
            kernel,
            strides,
            "VALID" if padding in ("CIRCULAR", "CAUSAL") else padding,
            rhs_dilation=dilation,
            dimension_numbers=_channels_last(rank),
            transpose_kernel=self.transpose_kernel,
            precision=self.precision,
            preferred_element_type=self._sum_dtype(),
        )
        sizes = [n * s for n, s in zip(rows.shape[1:-1], strides, strict=True)]
        if padding == "CAUSAL":
            outputs = outputs[:, : sizes[0]]
        elif padding == "CIRCULAR":
            outputs = self._wrapped(outputs, sizes)
        detail = f"kernel_size={self.kernel_size} and padding={self.padding!r}"
        check_not_empty(name, x, outputs, slice(1, -1), detail)
        if bias is not None:
            outputs = outputs + at_end(bias.astype(outputs.dtype), outputs.ndim)
        outputs = self._summed(outputs, x.dtype)
        # (N, *new spatial, features) -> (*batch, *new spatial, features)
        return outputs.reshape((*batch, *outputs.shape[1:]))

    def _wrapped(self, full: jax.Array, sizes: list[int]) -> jax.Array:
        """Adds what stands outside of each period to the place inside where it comes in."""
        for axis, period in enumerate(sizes, 1):
            if period == 0:
                return full
            extra = full.shape[axis] - period
            start = (extra + 1) // 2 if self.transpose_kernel else extra // 2
            before = -start % period
            after = -(before + full.shape[axis]) % period
            pads = [(0, 0)] * full.ndim
            pads[axis] = (before, after)
            padded = jnp.pad(full, pads)
            shape = list(full.shape)
            shape[axis : axis + 1] = [padded.shape[axis] // period, period]
            full = padded.reshape(shape).sum(axis)
        return full

    def _window(self) -> tuple[tuple[int, ...], tuple[int, ...], Any]:
        """Returns strides, kernel dilation and padding for each dimension."""
        name, rank = type(self).__name__, len(self.kernel_size)
        strides = per_dimension(name, "strides", self.strides, rank)
        dilation = per_dimension(name, "kernel_dilation", self.kernel_dilation, rank)
        padding = padding_pairs(name, self.padding, rank, _PADDINGS)
        if padding == "CAUSAL" and rank != 1:
            raise ArgumentError(
                f"{name} got padding='CAUSAL' and kernel_size={self.kernel_size}, but only one "
                f"dimension has a past; write the padding as pairs (before, after)"
            )
        return strides, dilation, padding

    def _torch_padding(self) -> Any:
        """Returns PyTorch's padding and output padding; None if they cannot say the same."""
        strides, dilation, padding = self._window()
        paddings, extras = [], []
        for i, (size, stride, spread) in enumerate(
            zip(self.kernel_size, strides, dilation, strict=True)
        ):
            span = spread * (size - 1)
            if padding == "VALID":  # lax adds zeros where the window is smaller than the stride
                cut, extra = 0, max(stride - span - 1, 0)
            elif padding == "SAME":  # as lax does it
                before = span if stride > span else -(-(span + stride - 1) // 2)
                cut, extra = span - before, span + stride - 1 - 2 * before
            elif padding == "CAUSAL":
                cut, extra = 0, stride - span - 1
            elif isinstance(padding, str):
                return None
            else:
                before, after = padding[i]
                cut, extra = span - before, after - before
            if cut < 0 or not 0 <= extra < max(stride, spread):
                return None
            paddings.append(cut)
            extras.append(extra)
        return tuple(paddings), tuple(extras)


def _channels_last(rank: int) -> lax.ConvDimensionNumbers:
    places = (0, rank + 1, *range(1, rank + 1))
    return lax.ConvDimensionNumbers(places, (rank + 1, rank, *range(rank)), places)
