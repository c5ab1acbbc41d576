"""Linear maps over any axes."""

from __future__ import annotations

import dataclasses
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
from moduli_layers._checks import check_positive, check_rngs, shape_of, shape_text
from moduli_layers._dtypes import PromoteDtype, Summing, promote_dtype, promote_for
from moduli_layers._initial_values import default_kernel_init, fill
from moduli_layers.counterparts import Tensor, TensorNames
from moduli_layers.errors import ArgumentError

__all__ = ["LinearGeneral"]

_NONE: Mapping[Any, Any] = MappingProxyType({})


class LinearGeneral(Summing):
    """A linear map from some axes of the inputs to new axes at the end.

    The axes of ``axis`` are contracted with the kernel and ``out_features`` take their place, last.
    With ``batch_axis`` every index of these leading axes has a map of its own.

    Attributes:
      kernel: Param of shape ``(*batch sizes, *in_features, *out_features)``, initialised as the
        matrix ``(prod(in_features), prod(out_features))`` that it is.
      bias: Param of shape ``(*batch sizes, *out_features)``, or None if ``use_bias`` is False.

    Args:
      in_features: size of the inputs on each of the axes in ``axis``.
      out_features: sizes of the new axes.
      axis: the axes that are contracted, in the order of ``in_features``; negative counts from the
        end.
      batch_axis: axes (0, 1, ... without a gap) and their sizes.
      use_bias: whether to add a bias.
      dtype: dtype of the computation; None takes the one to which inputs and parameters promote.
      param_dtype: dtype in which the parameters are stored.
      kernel_init: initializer of the kernel, called with a matrix's shape.
      bias_init: initializer of the bias; default: zeros.
      precision: numerical precision, see :class:`jax.lax.Precision`.
      promote_dtype: function that casts ``(inputs, kernel, bias)`` to ``dtype``.
      dot_general: what multiplies, in the place of :func:`jax.lax.dot_general`.
      dot_general_cls: a class (or function) that makes ``dot_general``, used if that is None.
      preferred_element_type: dtype in which the product is accumulated and returned.
      rngs: where the parameters' keys come from (stream ``params``: the kernel's, then the
        bias's).
      kernel_metadata: metadata of the kernel's Param.
      bias_metadata: metadata of the bias's Param.

    Raises:
      ArgumentError: a size is below 1, there is not one axis for each of ``in_features``, or the
        batch axes are not 0, 1, ...
      RngError: ``rngs`` is not a :class:`moduli.Rngs`.

    Example:
      >>> import jax.numpy as jnp, moduli
      >>> from moduli_layers import LinearGeneral
      >>> heads = LinearGeneral(6, (2, 3), rngs=moduli.Rngs(0))
      >>> heads(jnp.ones((5, 6))).shape
      (5, 2, 3)
      >>> out = LinearGeneral((2, 3), 6, axis=(-2, -1), rngs=moduli.Rngs(0))
      >>> out(jnp.ones((5, 2, 3))).shape
      (5, 6)
    """

    __module__ = "moduli_layers"

    __value_shapes__: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "kernel": ("in_features", "out_features"),
        "bias": ("out_features",),
    }

    @property
    def torch_names(self) -> tuple[TensorNames, ...]:
        """Those of PyTorch's Linear: a matrix, or for each index of the batch axes one."""
        sizes = (self.batch_axis, self.in_features, self.out_features)
        batch, ins, outs = (
            " ".join(f"{letter}{i}" for i in range(len(axes)))
            for letter, axes in zip("bio", sizes, strict=True)
        )
        kernel = Tensor("kernel", f"{batch} {ins} {outs} -> {batch} ({outs}) ({ins})")
        bias = Tensor("bias", f"{batch} {outs} -> {batch} ({outs})")
        return (TensorNames({"weight": kernel, "bias": bias}),)

    @checked
    def __init__(
        self,
        in_features: int | Sequence[int],
        out_features: int | Sequence[int],
        *,
        axis: int | Sequence[int] = -1,
        batch_axis: Mapping[int, int] = _NONE,
        use_bias: bool = True,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        kernel_init: initializers.Initializer = default_kernel_init,
        bias_init: initializers.Initializer = initializers.zeros,
        precision: lax.PrecisionLike = None,
        promote_dtype: PromoteDtype = promote_dtype,
        dot_general: Callable[..., jax.Array] | None = None,
        dot_general_cls: Callable[[], Callable[..., jax.Array]] | None = None,
        preferred_element_type: DTypeLike | None = None,
        rngs: moduli.Rngs,
        kernel_metadata: Mapping[str, Any] = _NONE,
        bias_metadata: Mapping[str, Any] = _NONE,
    ) -> None:
        self.in_features = _tuple(in_features)
        self.out_features = _tuple(out_features)
        self.axis = _tuple(axis)
        for name in ("in_features", "out_features"):
            for size in getattr(self, name):
                check_positive(self, **{name: size})
        check_rngs(self, rngs)
        kind = type(self).__name__
        if len(self.in_features) != len(self.axis):
            raise ArgumentError(
                f"{kind} got in_features={self.in_features} and axis={self.axis}; write one size "
                f"for each contracted axis"
            )
        if sorted(batch_axis) != list(range(len(batch_axis))):
            raise ArgumentError(
                f"{kind} got batch_axis={dict(batch_axis)}; batch axes stand first: write the axes "
                f"0, 1, ... without a gap, with their sizes"
            )
        batch = tuple(batch_axis[i] for i in range(len(batch_axis)))
        self.batch_axis = tuple(sorted(batch_axis.items()))

        shape = (*batch, *self.in_features, *self.out_features)
        outs = math.prod(self.out_features)
        flat = (math.prod(batch) * math.prod(self.in_features), outs)
        kernel = _shaped(fill(kernel_init, rngs.params(), flat, param_dtype), shape)
        self.kernel = moduli.Param(kernel, **kernel_metadata)
        self.bias = None
        if use_bias:
            flat = (math.prod(batch) * outs,)
            bias = fill(bias_init, rngs.params(), flat, param_dtype)
            self.bias = moduli.Param(_shaped(bias, (*batch, *self.out_features)), **bias_metadata)
        self.use_bias = use_bias
        self.dtype = dtype
        self.param_dtype = param_dtype
        self.precision = precision
        self.promote_dtype = promote_dtype
        if dot_general is None and dot_general_cls is not None:
            dot_general = dot_general_cls()
        self.dot_general = dot_general
        self.preferred_element_type = preferred_element_type

    def __call__(self, inputs: ArrayLike, out_sharding: Any = None) -> jax.Array:
        """Applies the map.

        Args:
          inputs: array that has the sizes ``in_features`` on ``axis``, and those of ``batch_axis``.
          out_sharding: how the output is laid out over devices, for JAX's explicit sharding
            mode; None leaves it to the compiler.

        Returns:
          Array of the remaining axes in their order, then ``out_features``.

        Raises:
          ShapeError: an axis of the inputs is missing or has another size.
          DtypeError: inputs and parameters have no common dtype.
        """
        axes = self.contracted_axes(inputs)
        batch = len(self.batch_axis)
        bias = None if self.bias is None else self.bias[...]
        x, kernel, bias = promote_for(self, (inputs, self.kernel[...], bias))
        leading = tuple(range(batch))
        numbers = ((axes, tuple(range(batch, batch + len(axes)))), (leading, leading))
        sharding = {} if out_sharding is None else {"out_sharding": out_sharding}
        product = lax.dot_general if self.dot_general is None else self.dot_general
        outputs = product(
            x,
            kernel,
            numbers,
            precision=self.precision,
            preferred_element_type=self._sum_dtype(),
            **sharding,
        )
        if bias is not None:
            between = (1,) * (outputs.ndim - bias.ndim)
            bias = bias.reshape((*bias.shape[:batch], *between, *bias.shape[batch:]))
            outputs = outputs + bias.astype(outputs.dtype)
        return self._summed(outputs, x.dtype)

    def contracted_axes(self, inputs: ArrayLike) -> tuple[int, ...]:
        """Returns the contracted axes of inputs, counted from the front.

        Args:
          inputs: what the layer is called with.

        Raises:
          ShapeError: an axis of the inputs is missing or has another size.
        """
        shape = shape_of(inputs)
        rank = len(shape)
        batch = len(self.batch_axis)
        sizes = self.kernel.shape[batch : batch + len(self.axis)]  # under shard_map, a part
        wanted = [*zip(self.axis, sizes, strict=True), *self.batch_axis]
        for axis, size in wanted:
            if not -rank <= axis < rank or shape[axis] != size:
                raise ShapeError(
                    f"{type(self).__name__}(in_features={self.in_features}, axis={self.axis}) "
                    f"expects inputs with size {size} on axis {axis}, got shape "
                    f"{shape_text(inputs)}; build the layer for that shape, or move the axes of "
                    f"the inputs"
                )
        axes = tuple(axis % rank for axis in self.axis)
        if len({*axes, *(i for i, _ in self.batch_axis)}) < len(wanted):
            raise ShapeError(
                f"{type(self).__name__}(axis={self.axis}) got inputs of shape "
                f"{shape_text(inputs)}, where two of its axes are one; give inputs with more axes"
            )
        return axes


def _tuple(value: int | Sequence[int]) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, Sequence) else (value,)


def _shaped(made: Any, shape: tuple[int, ...]) -> Any:
    """Reshapes what an initializer made, an array or one with metadata."""
    if isinstance(made, moduli.VariableMetadata):
        return dataclasses.replace(made, raw_value=_shaped(made.raw_value, shape))
    return made if made.shape == shape else made.reshape(shape)
