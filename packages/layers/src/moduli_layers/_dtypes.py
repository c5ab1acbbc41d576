"""The dtype in which a layer computes.

A layer stores its parameters in ``param_dtype`` and computes in ``dtype``; where ``dtype`` is
None it computes in the dtype to which its inputs and parameters promote. Both rules live here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.typing import DTypeLike

import moduli
from moduli_layers._checks import check_sliced
from moduli_layers._laid_out import in_mesh_of
from moduli_layers.errors import DtypeError

__all__ = ["PromoteDtype", "Summing", "promote_dtype", "promote_for", "wider"]


class PromoteDtype(Protocol):
    """What a layer's ``promote_dtype`` argument must look like: see :func:`promote_dtype`."""

    def __call__(
        self, arrays: tuple[Any, ...], /, *, dtype: DTypeLike | None = None
    ) -> tuple[Any, ...]: ...


def promote_dtype(
    arrays: Sequence[Any],
    /,
    *,
    dtype: DTypeLike | None = None,
    inexact: bool = True,
) -> tuple[jax.Array | None, ...]:
    """Brings arrays to one dtype.

    Args:
      arrays: arrays, Variables, scalars, lists of numbers, or None for a parameter that a layer
        does not use.
      dtype: the dtype to cast to; None takes the one to which the arrays promote.
      inexact: whether the result has to be a floating or complex dtype. Integers then become
        float32.

    Returns:
      The arrays in that dtype, in the same order; None stays None.

    Raises:
      DtypeError: ``dtype`` is an integer dtype and ``inexact`` is True, or the arrays have no
        common dtype under ``jax_numpy_dtype_promotion="strict"``.

    Example:
      >>> import jax.numpy as jnp
      >>> from moduli_layers import promote_dtype
      >>> x, w, b = promote_dtype((jnp.ones(2, jnp.bfloat16), jnp.ones(2), None), dtype=jnp.float16)
      >>> x.dtype, w.dtype, b
      (dtype('float16'), dtype('float16'), None)
      >>> promote_dtype((jnp.arange(2), jnp.arange(3)))[0].dtype
      dtype('float32')
    """
    arrays = [jnp.asarray(a) if isinstance(a, (list, tuple)) else a for a in arrays]
    if dtype is None:
        dtype = _common_dtype([array for array in arrays if array is not None], inexact)
    elif inexact and not jnp.issubdtype(dtype, jnp.inexact):
        raise DtypeError(
            f"got dtype={jnp.dtype(dtype).name}, but a layer computes in floating or complex "
            f"numbers; write dtype=jnp.float32 (or None, to take the inputs' dtype)"
        )
    return tuple(None if array is None else jnp.asarray(array, dtype) for array in arrays)


def promote_for(layer: Any, arrays: tuple[Any, ...]) -> tuple[Any, ...]:
    """Calls a layer's own ``promote_dtype`` with its ``dtype``; an error names the layer.

    Args:
      layer: a Module with the attributes ``dtype`` and ``promote_dtype``.
      arrays: the inputs and the values of the parameters, None for an unused one.

    Returns:
      What the layer's ``promote_dtype`` returned.

    Raises:
      DtypeError: as :func:`promote_dtype`, with the layer's class in front.
    """
    try:
        promoted = layer.promote_dtype(arrays, dtype=layer.dtype)
    except DtypeError as error:
        raise DtypeError(f"{type(layer).__name__}: {error}") from None
    if any(isinstance(array, Tracer) for array in promoted):
        check_sliced(layer)
    if jax.sharding.get_abstract_mesh().empty:
        return promoted
    inputs, *values = promoted  # jax 0.9 cannot differentiate for values outside of the mesh
    return (inputs, *[None if value is None else in_mesh_of(value, inputs) for value in values])


class Summing(moduli.Module):
    """Base of layers that multiply and sum: in which dtype they do.

    Attributes:
      preferred_element_type: dtype in which the sum is accumulated and returned; None leaves it to
        JAX.
      accumulate_dtype: dtype in which the sum is accumulated, to be returned in the dtype of the
        computation; :func:`moduli_layers.set_dtypes` sets it.
    """

    __module__ = "moduli_layers"

    preferred_element_type: DTypeLike | None = None
    accumulate_dtype: DTypeLike | None = None

    def _sum_dtype(self) -> DTypeLike | None:
        """The ``preferred_element_type`` for the product."""
        preferred = self.preferred_element_type
        return self.accumulate_dtype if preferred is None else preferred

    def _summed(self, outputs: jax.Array, dtype: DTypeLike) -> jax.Array:
        """Brings a finished sum (product and bias) back to the dtype of the computation."""
        if self.preferred_element_type is None and self.accumulate_dtype is not None:
            return outputs.astype(dtype)
        return outputs


def wider(one: DTypeLike, other: DTypeLike) -> DTypeLike:
    """Returns the dtype that holds the numbers of both, for a computation inside of a layer.

    The caller brings the result back to the dtype that the layer promised, so this one promotion is
    asked for, and allowed under ``jax_numpy_dtype_promotion="strict"`` too.
    """
    if one == other:
        return one
    with jax.numpy_dtype_promotion("standard"):
        return jnp.promote_types(one, other)


def _common_dtype(arrays: list[Any], inexact: bool) -> DTypeLike:
    try:
        dtype = jnp.result_type(*arrays)
    except ValueError as error:  # JAX's TypePromotionError is a ValueError without a public name
        names = [jnp.result_type(array).name for array in arrays]
        raise DtypeError(
            f"inputs and parameters have the dtypes ({', '.join(names)}), which do not promote to "
            f"one dtype under jax_numpy_dtype_promotion='strict'; write dtype=jnp.{names[0]} "
            f"where the layer is built, or cast the inputs"
        ) from error
    return jnp.dtype(jnp.float32) if inexact and not jnp.issubdtype(dtype, jnp.inexact) else dtype
