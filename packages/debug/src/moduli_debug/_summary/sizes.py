"""How many values a module holds, by kind of Variable."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax

import moduli
from moduli_debug._summary.calls import is_array

__all__ = ["Held", "Size", "held_by", "kind_of", "sizes_of"]

Path = tuple[Any, ...]


class Size(NamedTuple):
    """How many values, and how many bytes they take.

    Attributes:
      count: the number of values.
      bytes: the number of bytes.
    """

    count: int  # pyright: ignore[reportIncompatibleMethodOverride] (tuple's is not wanted)
    bytes: int

    def __add__(self, other: Any) -> Size:
        return Size(self.count + other[0], self.bytes + other[1])


class Held(NamedTuple):
    """A Variable (or array) of a module, not of its submodules.

    Attributes:
      name: its path from the module, such as ``"kernel"``.
      kind: its kind, such as ``"Param"``.
      value: an array's shape and dtype, or a pytree of them.
      same_as: its first path in the model, if this is a later one; otherwise None.
    """

    name: str
    kind: str
    value: Any
    same_as: str | None


def kind_of(value: Any) -> str:
    """Returns the name of a kind: the class of the Variable; keys and counts are one kind."""
    if isinstance(value, moduli.RngState):
        return "RngState"
    return type(value).__name__ if isinstance(value, moduli.Variable) else "array"


def sizes_of(module: Any) -> dict[str, Size]:
    """Returns the sizes of all that is at or below a module, by kind; each object counts once."""
    sizes: dict[str, Size] = {}
    for _, value in held_by(module):
        kind = kind_of(value)
        sizes[kind] = sizes.get(kind, Size(0, 0)) + _size(value)
    return dict(sorted(sizes.items(), key=lambda item: (item[0] != "Param", item[0])))


def held_by(module: Any) -> Iterator[tuple[Path, Any]]:
    """Yields (path, value) of each Variable and bare array at or below a module, each once."""
    for path, value in moduli.iter_graph(module):
        if isinstance(value, moduli.Variable) or is_array(value):
            yield path, value


def _size(value: Any) -> Size:
    leaves = jax.tree.leaves(value.value if isinstance(value, moduli.Variable) else value)
    size = Size(0, 0)
    for leaf in leaves:
        shaped = leaf if is_array(leaf) else jax.typeof(leaf) if _is_number(leaf) else None
        if shaped is not None:
            count = 1
            for axis in shaped.shape:
                count *= axis
            size += Size(count, count * shaped.dtype.itemsize)
    return size


def _is_number(leaf: Any) -> bool:
    return isinstance(leaf, (bool, int, float, complex))
