"""Names of axes carried over from a parameter to what belongs to it, such as its momentum."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jax.sharding import NamedSharding, PartitionSpec

from moduli._variable.axis_names import declared
from moduli._variable.metadata import AXIS_NAMES

__all__ = ["fitted_metadata", "fitted_names"]


def fitted_names(
    names: Sequence[Any], of_shape: Sequence[int], shape: Sequence[int]
) -> tuple[Any, ...]:
    """Carries the names of a parameter's axes over to a value that belongs to it.

    An optimizer's state has the parameter's shape, one axis more (the steps that L-BFGS remembers)
    or some less (adafactor's rows and columns). An axis gets the name of that axis of the parameter
    which has its size; where several fit, and their names differ, it gets none.

    Args:
      names: the names of the parameter's axes; missing ones at the end are None.
      of_shape: the parameter's shape.
      shape: the value's shape.

    Returns:
      A name or None for each axis of the value.

    Example:
      >>> from moduli._layout.fitted_names import fitted_names
      >>> fitted_names((None, "model"), (3, 4), (4,)), fitted_names((None, "model"), (3, 4), (3,))
      (('model',), (None,))
      >>> fitted_names((None, "model"), (3, 4), (10, 3, 4))
      (None, None, 'model')
    """
    of_shape, shape = tuple(of_shape), tuple(shape)
    names = (*names, *[None] * (len(of_shape) - len(names)))[: len(of_shape)]
    more = len(shape) - len(of_shape)
    if more >= 0 and shape[more:] == of_shape:
        return (*[None] * more, *names)
    if more > 0 and shape[: len(of_shape)] == of_shape:
        return (*names, *[None] * more)
    found = set(_matchings(names, of_shape, shape))
    return tuple(
        column[0] if len(set(column)) == 1 else None for column in zip(*found, strict=True)
    )


def fitted_metadata(
    metadata: Mapping[str, Any], of_shape: Sequence[int], shape: Sequence[int]
) -> dict[str, Any]:
    """Returns a parameter's metadata for a value that belongs to it, and may have another shape.

    Args:
      metadata: of the parameter.
      of_shape: its shape.
      shape: the value's shape.

    Returns:
      The metadata, with a name for each axis of the value; see :func:`fitted_names`.

    Example:
      >>> from moduli.lowlevel import fitted_metadata
      >>> fitted_metadata({"out_sharding": (None, "model")}, (3, 4), (4,))
      {'out_sharding': ('model',)}
    """
    names, mesh = declared(metadata), None
    if names is None or tuple(of_shape) == tuple(shape):
        return dict(metadata)
    if not isinstance(names, (tuple, list, PartitionSpec)):  # a NamedSharding or a Format
        names = getattr(names, "sharding", names)
        if not isinstance(names, NamedSharding):
            return dict(metadata)
        mesh, names = names.mesh, names.spec
    fitted: Any = fitted_names(tuple(names), of_shape, shape)
    if mesh is not None:
        fitted = NamedSharding(mesh, PartitionSpec(*fitted))
    return {**metadata, AXIS_NAMES: fitted}


def _matchings(
    names: Sequence[Any], of_shape: tuple[int, ...], shape: tuple[int, ...]
) -> Iterator[tuple[Any, ...]]:
    """Yields the names under each way to find the most sizes again, in order."""
    best: list[list[tuple[Any, ...]]] = [[] for _ in range(len(shape) + 1)]

    def visit(axis: int, start: int, given: tuple[Any, ...], count: int) -> None:
        if axis == len(shape):
            best[count].append(given)
            return
        for place in range(start, len(of_shape)):
            if of_shape[place] == shape[axis]:
                visit(axis + 1, place + 1, (*given, names[place]), count + 1)
        visit(axis + 1, start, (*given, None), count)

    visit(0, 0, (), 0)
    yield from next(found for found in reversed(best) if found)
