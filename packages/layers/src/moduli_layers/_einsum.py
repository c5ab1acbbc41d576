"""A product with a kernel, as an einsum says."""

from __future__ import annotations

import math
import string
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
from moduli_layers._checks import check_positive, check_rngs, check_sliced, shape_of
from moduli_layers._dtypes import PromoteDtype, Summing, promote_dtype, promote_for
from moduli_layers._initial_values import default_kernel_init, fill
from moduli_layers.counterparts import Tensor, TensorNames
from moduli_layers.errors import ArgumentError

__all__ = ["Einsum"]

_NO_METADATA: Mapping[str, Any] = MappingProxyType({})


def _shape(sizes: int | Sequence[int]) -> tuple[int, ...]:
    return tuple(sizes) if isinstance(sizes, Sequence) else (sizes,)


class Einsum(Summing):
    """An einsum of the inputs and a kernel, and a bias on the output axes that the kernel brings.

    Attributes:
      kernel: Param of shape ``kernel_shape``.
      bias: Param of shape ``bias_shape``, or None if that is None.

    Args:
      einsum_str: the equation of inputs and kernel, such as ``"nta,hab->nthb"``; the inputs may
        have ``...``, and the kernel too. None if each call says its own.
      kernel_shape: shape of the kernel.
      bias_shape: shape of the bias: the sizes of the output's axes that stand in the kernel, in
        the order of the output. None adds no bias.
      dtype: dtype of the computation; None takes the one to which inputs and parameters promote.
      param_dtype: dtype in which the parameters are stored.
      precision: numerical precision, see :class:`jax.lax.Precision`.
      kernel_init: initializer of the kernel; default: Lecun's normal.
      bias_init: initializer of the bias; default: zeros.
      promote_dtype: function that casts ``(inputs, kernel, bias)`` to ``dtype``.
      einsum_op: what computes, in the place of :func:`jax.numpy.einsum`.
      preferred_element_type: dtype in which the product is accumulated and returned.
      rngs: where the parameters' keys come from (stream ``params``: the kernel's, then the
        bias's).
      kernel_metadata: metadata of the kernel's Param.
      bias_metadata: metadata of the bias's Param.

    Raises:
      ArgumentError: the equation does not have two operands and an output, or a size is below 1.
      RngError: ``rngs`` is not a :class:`moduli.Rngs`.

    Example:
      >>> import jax.numpy as jnp, moduli
      >>> from moduli_layers import Einsum
      >>> layer = Einsum("nta,hab->nthb", (8, 2, 4), (8, 4), rngs=moduli.Rngs(0))
      >>> layer(jnp.ones((16, 11, 2))).shape
      (16, 11, 8, 4)
    """

    __module__ = "moduli_layers"

    __value_shapes__: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "kernel": ("kernel_shape",),
        "bias": ("bias_shape",),
    }

    torch_names: ClassVar[tuple[TensorNames, ...]] = (
        TensorNames({"weight": Tensor("kernel"), "bias": Tensor("bias")}),
    )

    @checked
    def __init__(
        self,
        einsum_str: str | None,
        kernel_shape: int | Sequence[int],
        bias_shape: int | Sequence[int] | None = None,
        *,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        precision: lax.PrecisionLike = None,
        kernel_init: initializers.Initializer = default_kernel_init,
        bias_init: initializers.Initializer = initializers.zeros,
        promote_dtype: PromoteDtype = promote_dtype,
        einsum_op: Callable[..., jax.Array] = jnp.einsum,
        preferred_element_type: DTypeLike | None = None,
        rngs: moduli.Rngs,
        kernel_metadata: Mapping[str, Any] = _NO_METADATA,
        bias_metadata: Mapping[str, Any] = _NO_METADATA,
    ) -> None:
        self.kernel_shape = _shape(kernel_shape)
        self.bias_shape = None if bias_shape is None else _shape(bias_shape)
        for name in ("kernel_shape", "bias_shape"):
            for size in getattr(self, name) or ():
                check_positive(self, **{name: size})
        check_rngs(self, rngs)
        if einsum_str is not None:
            einsum_str = einsum_str.replace(" ", "")
            self._parts(einsum_str)
        kernel = fill(kernel_init, rngs.params(), self.kernel_shape, param_dtype)
        self.kernel = moduli.Param(kernel, **kernel_metadata)
        self.bias = None
        if self.bias_shape is not None:
            bias = fill(bias_init, rngs.params(), self.bias_shape, param_dtype)
            self.bias = moduli.Param(bias, **bias_metadata)
        self.einsum_str = einsum_str
        self.dtype = dtype
        self.param_dtype = param_dtype
        self.precision = precision
        self.promote_dtype = promote_dtype
        self.einsum_op = einsum_op
        self.preferred_element_type = preferred_element_type

    def __call__(
        self, inputs: ArrayLike, einsum_str: str | None = None, out_sharding: Any = None
    ) -> jax.Array:
        """Computes the einsum.

        Args:
          inputs: array with the axes of the equation's first operand.
          einsum_str: the equation, if the layer has none.
          out_sharding: how the output is laid out over devices, for JAX's explicit sharding
            mode; None leaves it to the compiler.

        Returns:
          Array with the axes of the equation's output.

        Raises:
          ArgumentError: both the layer and the call have an equation, or none has.
          ShapeError: the inputs do not fit the equation and the kernel.
          DtypeError: inputs and parameters have no common dtype.
        """
        kind = type(self).__name__
        if (einsum_str is None) == (self.einsum_str is None):
            both = "both have" if einsum_str is not None else "neither has"
            raise ArgumentError(
                f"{kind}: of the layer and the call {both} an equation; write einsum_str in one "
                f"of them, and None in the other"
            )
        equation = (einsum_str or self.einsum_str or "").replace(" ", "")
        first, second, output = self._written_out(*self._parts(equation), len(shape_of(inputs)))
        sizes = self._sizes(shape_of(inputs), first, second, equation)
        bias = None if self.bias is None else self.bias[...]
        x, kernel, bias = promote_for(self, (inputs, self.kernel[...], bias))
        outputs = self.einsum_op(
            equation,
            x,
            kernel,
            precision=self.precision,
            preferred_element_type=self._sum_dtype(),
            **({} if out_sharding is None else {"out_sharding": out_sharding}),
        )
        if bias is not None:
            spread = self._spread(output, second, sizes, outputs.ndim)
            if math.prod(spread) != bias.size:
                named = output.replace("...", "")
                brought = tuple(sizes[name] for name in named if name in second)
                raise ShapeError(
                    f"{kind}({equation!r}) has a bias of shape {bias.shape}, but the output's axes "
                    f"that the kernel brings have the sizes {brought}; write bias_shape={brought}"
                )
            outputs = outputs + at_end(bias.reshape(spread).astype(outputs.dtype), outputs.ndim)
        return self._summed(outputs, x.dtype)

    def _spread(self, output: str, second: str, sizes: dict[str, int], rank: int) -> list[int]:
        """Returns the bias's sizes on the output's axes, from the first that it has on."""
        before, dots, after = output.partition("...")
        if not dots:
            before, after = "", output
        spread = [
            [sizes[name] if name in second else 1 for name in part] for part in (before, after)
        ]
        if not set(before) & set(second):
            return spread[1]
        return spread[0] + [1] * (rank - len(before) - len(after)) + spread[1]

    def _parts(self, equation: str) -> tuple[str, str, str]:
        """Takes the equation apart: both operands and the output."""
        operands, arrow, output = equation.partition("->")
        parts = operands.split(",")
        if len(parts) != 2 or not arrow:
            raise ArgumentError(
                f"{type(self).__name__} got the equation {equation!r}; write two operands, inputs "
                f"and kernel, and an output, as 'nta,hab->nthb'"
            )
        letters, axes = len(parts[1].replace("...", "")), len(self.kernel_shape)
        if letters > axes or (letters < axes and "..." not in parts[1]):
            raise ArgumentError(
                f"{type(self).__name__} got the equation {equation!r} and "
                f"kernel_shape={self.kernel_shape}; write one letter for each axis of the kernel"
            )
        return parts[0], parts[1], output

    def _written_out(self, first: str, second: str, output: str, rank: int) -> tuple[str, str, str]:
        """Writes capital letters for ``...`` if the kernel has it: the last ones are its axes."""
        if "..." not in second:
            return first, second, output
        own = len(self.kernel_shape) - len(second.replace("...", ""))
        inputs = max(0, rank - len(first.replace("...", ""))) if "..." in first else 0
        most = max(own, inputs)
        free = [name for name in string.ascii_uppercase if name not in first + second + output]

        def write(part: str, count: int) -> str:
            return part.replace("...", "".join(free[most - count : most]))

        return write(first, inputs), write(second, own), write(output, most)

    def _sizes(
        self, shape: tuple[int, ...], first: str, second: str, equation: str
    ) -> dict[str, int]:
        """Returns the size of every letter."""
        if len(self.kernel.shape) < len(second):
            check_sliced(self)
        sizes = dict(zip(second, self.kernel.shape, strict=True))  # under shard_map, a part
        head, dots, tail = first.partition("...")
        rank = len(head) + len(tail)
        if len(shape) < rank or (not dots and len(shape) != rank):
            raise self._misfit(shape, equation, f"{rank} axes{' or more' if dots else ''}")
        ends = [*zip(head, shape, strict=False)]
        ends += zip(tail, shape[len(shape) - len(tail) :], strict=True)
        for name, size in ends:
            if sizes.setdefault(name, size) != size and not (
                name not in equation and 1 in (size, sizes[name])  # of `...`: it broadcasts
            ):
                raise self._misfit(shape, equation, f"size {sizes[name]} on axis {name!r}")
        return sizes

    def _misfit(self, shape: tuple[int, ...], equation: str, expected: str) -> ShapeError:
        return ShapeError(
            f"{type(self).__name__}({equation!r}, kernel_shape={self.kernel_shape}) expects inputs "
            f"with {expected}, got shape {tuple(shape)}; build the layer for that shape"
        )
