"""Mapped axes, as vmap, pmap and scan have them: their sizes, and those of the outputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax

from moduli import errors
from moduli._base.compat import is_key_array
from moduli._call.call import Call
from moduli._call.outputs import Outputs
from moduli._call.prefixes import labels_in
from moduli._call.split_streams import SPLIT, SplitStreams

__all__ = ["all_axes", "find_batched", "map_over"]


def map_over(
    call: Call, size: int | None, *, broadcast: bool, name: str = "axis_size"
) -> tuple[int, SplitStreams]:
    """Prepares a call whose values are mapped over an axis: its random streams are split.

    Args:
      call: the labelled call.
      size: the size of the axis, if the user gave it.
      broadcast: whether streams under None are split too, unless the user chose None for them.
      name: the name of the argument that gives the size.

    Returns:
      The size, and the streams, to be counted up when the call has succeeded.

    Raises:
      ShapeError: if a mapped value has another size, or no such axis.
      StructureError: if nothing is mapped and no size is given.
    """
    streams = SplitStreams(call, broadcast=broadcast)
    size = check_sizes(call, size, name)
    call.label_given(call.transform, size)
    streams.split(size)
    return size, streams


def all_axes(in_labels: Sequence[Any], out_axes: Any) -> list[Any]:
    """All axes that an output may have: the prefix that JAX gets."""
    found: dict[Any, None] = {0: None, None: None}
    found.update(dict.fromkeys(in_labels))
    for axis in labels_in(out_axes):
        found[axis] = None
    return list(found)


def check_sizes(call: Call, size: int | None, name: str = "axis_size") -> int:
    """Finds the size of the mapped axis, and checks that all mapped values have it.

    Args:
      call: the labelled call.
      size: the size, if the user gave it.
      name: the name of the argument that gives it.

    Raises:
      ShapeError: if a mapped value has another size, or no such axis.
      StructureError: if nothing is mapped and no size is given.
    """
    first = name
    every = zip(call.every(), call.all_labels(), strict=True)
    for position, (value, axis) in enumerate(every):
        if not isinstance(axis, int):
            continue
        for leaf in jax.tree.leaves(value):
            shape = getattr(leaf, "shape", ())
            if not -len(shape) <= axis < len(shape):
                raise errors.ShapeError(
                    f"{call.transform}: {call.describe_all(position)} has shape {shape}, which has "
                    f"no axis {axis} to map over; give it the axis None, or add the axis"
                )
            if size is None:
                size, first = shape[axis], call.describe_all(position)
            elif shape[axis] != size:
                verb = "is" if first == name else "has size"
                raise errors.ShapeError(
                    f"{call.transform}: {call.describe_all(position)} has shape {shape}, so size "
                    f"{shape[axis]} along axis {axis}; but {first} {verb} {size}"
                )
    if size is None:
        raise errors.StructureError(
            f"{call.transform}: no argument of {call.function} is mapped, so the size of the axis "
            f"is unknown; give one of them an axis in {call.option}, or pass {name}"
            + _hint_at_streams(call)
        )
    return size


def _hint_at_streams(call: Call) -> str:
    """Says of the first stream that is to be split that its key tells no size."""
    every = zip(call.every(), call.all_labels(), strict=True)
    for position, (value, label) in enumerate(every):
        if label is SPLIT and is_key_array(value):
            return (
                f" ({call.describe_all(position)} is one key, which is split for the elements but "
                "does not tell how many there are; an Rngs that does is `rngs.split(n)`)"
            )
    return ""


def find_batched(
    name: str,
    transformed: Callable[..., Any],
    pure: Callable[..., Any],
    values: list[Any],
    axes: list[Any],
    outputs: Callable[[], Outputs],
) -> str | None:
    """Finds which value under the axis None differs between elements; for the message only.

    Args:
      name: the name of the transform.
      transformed: ``jax.vmap`` with all but the function and ``out_axes``.
      pure: the pure function, ``values -> lists of outputs``, one list for each of ``axes``.
      values: its arguments.
      axes: the axes of its outputs.
      outputs: returns what the function did, once it was traced.

    Returns:
      The message, or None.
    """
    if outputs() is None:
        return None
    place = axes.index(None)
    spots = [
        spot for spot, label in zip(outputs().names, outputs().labels, strict=True) if label is None
    ]
    for number, spot in enumerate(spots):

        def one(values: list[Any], number: int = number) -> Any:
            return pure(values)[place][number]

        try:
            jax.eval_shape(transformed(one, out_axes=None), values)
        except ValueError:
            return (
                f"{name}: {spot} is under the axis None, one for all elements, but got a value "
                "that differs between them; give it an axis (`moduli.StateAxes`), or reduce the "
                "value, as with `jax.lax.pmean(value, axis_name)`"
            )
    return None
