"""Small helpers that authors of layers import from flax.nnx's files, under flax's names.

``moduli.nn.linear.default_kernel_init`` and the like stand here; our own layers need none of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

import jax
from jax.typing import DTypeLike

from moduli_layers import initializers
from moduli_layers._cells.base import default_recurrent_kernel_init as modified_orthogonal
from moduli_layers._dtypes import promote_dtype
from moduli_layers._initial_values import default_embedding_init as default_embed_init
from moduli_layers._initial_values import default_kernel_init
from moduli_layers._windows import Padding, padding_pairs
from moduli_layers.errors import ArgumentError, DtypeError

__all__ = [
    "Output",
    "RNNBase",
    "canonicalize_dtype",
    "canonicalize_padding",
    "default_a_initializer",
    "default_b_initializer",
    "default_bias_init",
    "default_embed_init",
    "default_kernel_init",
    "first_from",
    "modified_orthogonal",
]

T = TypeVar("T")

Output = Any
"""What a recurrent cell returns beside its carry."""

default_bias_init = initializers.zeros
"""The initializer of biases."""

default_a_initializer = initializers.he_uniform()
"""The initializer of LoRA's first matrix."""

default_b_initializer = initializers.zeros
"""The initializer of LoRA's second matrix."""


class RNNBase(Protocol):
    """What is called as :class:`moduli_layers.RNN` is: with inputs, and perhaps a first carry."""

    def __call__(
        self,
        inputs: jax.Array,
        *,
        initial_carry: Any = None,
        seq_lengths: jax.Array | None = None,
        return_carry: bool | None = None,
        time_major: bool | None = None,
        reverse: bool | None = None,
        keep_order: bool | None = None,
        rngs: Any = None,
    ) -> Any:
        """Runs over a sequence."""
        ...


def first_from(*args: T | None, error_msg: str) -> T:
    """Returns the first argument that is not None: a call's own setting, else the layer's.

    Args:
      *args: the settings, the one that counts most first.
      error_msg: the text of the error if there is none.

    Raises:
      ArgumentError: all are None.

    Example:
      >>> from moduli_layers._for_authors import first_from
      >>> first_from(None, False, True, error_msg="write deterministic=True or False")
      False
    """
    for argument in args:
        if argument is not None:
            return argument
    raise ArgumentError(error_msg)


def canonicalize_dtype(
    *args: Any, dtype: DTypeLike | None = None, inexact: bool = True
) -> DTypeLike:
    """Returns the dtype to which :func:`moduli_layers.promote_dtype` would cast.

    Args:
      *args: arrays, Variables, scalars; None is left out.
      dtype: the dtype, if it is known.
      inexact: whether it has to be a floating or complex dtype.

    Raises:
      DtypeError: ``dtype`` is an integer dtype and ``inexact`` is True, or the arrays have no
        common dtype under ``jax_numpy_dtype_promotion="strict"``.

    Example:
      >>> import jax.numpy as jnp
      >>> from moduli_layers._for_authors import canonicalize_dtype
      >>> canonicalize_dtype(jnp.arange(3), None)
      dtype('float32')
    """
    if dtype is not None:
        promote_dtype((), dtype=dtype, inexact=inexact)  # says so if it is an integer dtype
        return dtype
    for array in promote_dtype(args, inexact=inexact):
        if array is not None:
            return array.dtype
    raise DtypeError("got no array and no dtype; write dtype=jnp.float32, or pass an array")


def canonicalize_padding(padding: Padding, rank: int) -> str | Sequence[tuple[int, int]]:
    """Returns a padding as :func:`jax.lax.conv_general_dilated` takes it.

    Args:
      padding: a name, one amount for all sides, or for each dimension an amount or a pair.
      rank: how many dimensions the window has.

    Raises:
      ArgumentError: it is none of these.

    Example:
      >>> from moduli_layers._for_authors import canonicalize_padding
      >>> canonicalize_padding([1, (0, 2)], 2)
      [(1, 1), (0, 2)]
    """
    if isinstance(padding, str):
        return padding
    return list(padding_pairs("canonicalize_padding", padding, rank, ()))  # pyright: ignore[reportReturnType]
