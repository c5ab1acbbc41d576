"""Strides, dilations and paddings of layers that slide a window: convolution and pooling."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, SupportsIndex

import jax
import numpy as np
from jax.core import Tracer

import moduli
from moduli.errors import ShapeError
from moduli_layers.errors import ArgumentError

__all__ = ["Padding", "as_static", "check_not_empty", "padding_pairs", "per_dimension"]

Padding = str | int | Sequence[int | tuple[int, int]]
"""A name (``"SAME"``), one amount for all sides, or for each dimension an amount or a pair."""


def as_static(value: Any) -> Any:
    """Turns lists, arrays and other iterables into tuples.

    An attribute that holds one of these would be data, or have no value to compare.
    """
    if isinstance(value, (np.ndarray, jax.Array)) and not isinstance(value, Tracer):
        return as_static(value.tolist())
    if isinstance(value, (str, Mapping, moduli.Variable)) or not isinstance(value, Iterable):
        return value
    return tuple(map(as_static, value))


def per_dimension(
    owner: str, name: str, value: int | Sequence[int] | None, rank: int
) -> tuple[int, ...]:
    """Expands an argument that may be one number to one number for each window dimension.

    Args:
      owner: the layer or function that got the argument, for the error.
      name: the argument's name.
      value: one number for all dimensions, a sequence of ``rank`` numbers, or None for ones.
      rank: how many dimensions the window has.

    Returns:
      A tuple of ``rank`` numbers, each at least 1.

    Raises:
      ArgumentError: there are more or fewer than ``rank`` numbers, or one is below 1.
    """
    if value is None:
        return (1,) * rank
    given: Any = as_static(value)
    numbers: tuple[int, ...] = given if isinstance(given, tuple) else (given,) * rank
    if len(numbers) != rank or any(number < 1 for number in numbers):
        example = "(" + "1, " * (rank - 1) + ("1,)" if rank == 1 else "1)")
        raise ArgumentError(
            f"{owner} has a window of {rank} dimensions and got {name}={value!r}; write one "
            f"number for all dimensions or one for each, as {name}={example}, all at least 1"
        )
    return numbers


def padding_pairs(
    owner: str, padding: Padding, rank: int, named: Sequence[str]
) -> str | tuple[tuple[int, int], ...]:
    """Turns a padding into a known name or into one pair for each window dimension.

    Args:
      owner: the layer or function that got the argument, for the error.
      padding: see :data:`Padding`; a name may be written in lower case.
      rank: how many dimensions the window has.
      named: the names that the owner knows, in capitals.

    Returns:
      The name in capitals, or ``rank`` pairs (before, after).

    Raises:
      ArgumentError: the name is not known, or the sequence does not have ``rank`` entries that
        are each a number or a pair.
    """
    if isinstance(padding, str):
        if padding.upper() in named:
            return padding.upper()
    elif (padding := as_static(padding)) is not None and isinstance(padding, SupportsIndex):
        return ((int(padding), int(padding)),) * rank
    elif isinstance(padding, Sequence) and len(padding) == rank:
        pairs = [(side, side) if isinstance(side, SupportsIndex) else side for side in padding]
        if all(isinstance(pair, Sequence) and len(pair) == 2 for pair in pairs):
            return tuple((int(before), int(after)) for before, after in pairs)
    raise ArgumentError(
        f"{owner} got padding={padding!r}; write one of {', '.join(map(repr, named))}, an int, or "
        f"{rank} entries (the window has {rank} dimensions) which are each an int or a pair "
        f"(before, after)"
    )


def check_not_empty(
    owner: str, inputs: jax.Array, outputs: jax.Array, spatial: slice, detail: Any
) -> None:
    """Raises if no window fits into the inputs, so that the outputs hold nothing.

    Args:
      owner: the layer or function that was called, for the error.
      inputs: what it was called with.
      outputs: what it computed.
      spatial: which axes the window slides over.
      detail: the window and padding, as text.

    Raises:
      ShapeError: one of these axes has size zero in the outputs.
    """
    if 0 in outputs.shape[spatial]:
        raise ShapeError(
            f"{owner} with {detail} got inputs of shape {tuple(inputs.shape)}, into which its "
            f"window does not fit once; write a smaller window, more padding (padding='SAME'), "
            f"or give larger inputs"
        )
