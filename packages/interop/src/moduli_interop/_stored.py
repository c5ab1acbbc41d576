"""What a checkpoint holds, independent of any file format and of any model.

A :class:`Checkpoint` is a list of :class:`Leaf`, one for each Variable or bare array of a model. A
leaf's value is built of Python scalars, ``None``, tuples, lists, dicts and
:class:`StoredNamedTuple`, with a :class:`StoredArray` wherever an array stands. Formats write and
read these; only ``_leaves`` and ``_restore`` know about live models.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from moduli.errors import format_path
from moduli_interop._dtypes import dtype_from_name, storage_dtype

__all__ = [
    "Checkpoint",
    "Leaf",
    "Path",
    "StoredArray",
    "StoredNamedTuple",
    "arrays_in",
    "describe",
    "named_arrays",
    "placed_arrays",
    "replaced",
]

Path = tuple[str | int | tuple[Any, ...], ...]
"""Attribute names, and keys: str, int, or tuples of these (WeightNorm's scales by path)."""


@dataclasses.dataclass(frozen=True, init=False)
class StoredArray:
    """An array of a checkpoint: what it is, and a way to get its bits.

    Attributes:
      dtype: name of the dtype; for typed PRNG keys, that of the key data.
      shape: the shape; for typed PRNG keys, that of the key data.
      container: ``"jax"``, ``"numpy"``, ``"numpy scalar"``, or ``"abstract"`` for a
        ``jax.ShapeDtypeStruct``, which has no bits.
      weak_type: whether a JAX array takes the dtype of its partner in arithmetic.
      key_impl: name of the PRNG implementation if this is an array of typed keys.
      read: returns the bits, a little-endian C-contiguous array of the storage dtype (that of the
        name, or for dtypes that numpy cannot name unsigned integers of the same width); raises a
        CheckpointError if they are not those that were written.
      owned: whether what ``read`` returns is new memory at each call, which nothing else writes;
        otherwise it is copied before it becomes part of a model.
      live: the JAX array itself, while a model is being saved. A format that writes shards reads
        it in place of ``read``, which gathers.
    """

    dtype: str
    shape: tuple[int, ...]
    container: str
    weak_type: bool = False
    key_impl: str | None = None
    read: Callable[[], np.ndarray] | None = dataclasses.field(
        default=None, compare=False, repr=False
    )
    owned: bool = dataclasses.field(default=False, compare=False, repr=False)
    live: Any = dataclasses.field(default=None, compare=False, repr=False)

    def __init__(
        self,
        dtype: str,
        shape: tuple[int, ...],
        container: str,
        weak_type: bool = False,
        key_impl: str | None = None,
        read: Callable[[], np.ndarray] | None = None,
        owned: bool = False,
        live: Any = None,
    ):
        # what dataclasses write for a frozen class takes three times as long
        fields = self.__dict__
        fields["dtype"] = dtype
        fields["shape"] = shape
        fields["container"] = container
        fields["weak_type"] = weak_type
        fields["key_impl"] = key_impl
        fields["read"] = read
        fields["owned"] = owned
        fields["live"] = live

    @property
    def nbytes(self) -> int:
        """Size of the bits."""
        return _nbytes(self.dtype, self.shape)

    @property
    def storage_dtype(self) -> np.dtype:
        """The dtype of the bits, for formats that keep bytes alone.

        Example:
          >>> from moduli_interop import StoredArray
          >>> StoredArray("bfloat16", (3,), "jax").storage_dtype
          dtype('uint16')
        """
        return storage_dtype(self.dtype)

    def read_bits(self) -> np.ndarray:
        """Returns the bits; for arrays that have some."""
        assert self.read is not None
        return self.read()

    def read_rows(self, start: int, stop: int) -> np.ndarray:
        """Returns the bits of some entries of the first axis, proved against their own digests.

        Args:
          start: the first entry.
          stop: the entry after the last.
        """
        assert self.read is not None
        rows = getattr(self.read, "rows", None)
        return self.read()[start:stop] if rows is None else rows(start, stop)


@functools.lru_cache(maxsize=256)
def _nbytes(dtype: str, shape: tuple[int, ...]) -> int:
    return math.prod(shape) * dtype_from_name(dtype).itemsize


@dataclasses.dataclass(frozen=True)
class StoredNamedTuple:
    """A named tuple of a checkpoint. Files name its class, but never say where to import it.

    Attributes:
      name: name of the class.
      fields: names of the fields.
      items: their values.
    """

    name: str
    fields: tuple[str, ...]
    items: tuple[Any, ...]


@dataclasses.dataclass(frozen=True, init=False)
class Leaf:
    """One Variable or bare array of a model.

    Attributes:
      path: where it stands in the model.
      kind: name of the Variable's class, or ``"array"`` for a bare array.
      kind_name: registered name of that class (``"params"``), if it has one.
      value: what it holds; see the text of this module.
      aliases: the other paths by which the model reaches the same Variable.
    """

    path: Path
    kind: str
    kind_name: str | None
    value: Any
    aliases: tuple[Path, ...] = ()

    def __init__(
        self,
        path: Path,
        kind: str,
        kind_name: str | None,
        value: Any,
        aliases: tuple[Path, ...] = (),
    ):
        fields = self.__dict__  # as above
        fields["path"] = path
        fields["kind"] = kind
        fields["kind_name"] = kind_name
        fields["value"] = value
        fields["aliases"] = aliases

    @property
    def name(self) -> str:
        """The path as a person would write it."""
        return format_path(self.path)


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint.

    Attributes:
      leaves: one for each Variable or bare array, in the order of the model's state.
      metadata: what the user gave to ``save``.
      moduli_version: the moduli that wrote it.
      read_all: reads arrays at once, onto devices; given by formats that read shards. It takes
        pairs of an array of ``leaves`` and the sharding where it shall be, and returns a JAX array
        for each, or its bits where the sharding is None.
    """

    leaves: tuple[Leaf, ...]
    metadata: Mapping[str, Any]
    moduli_version: str
    read_all: Callable[[list[tuple[StoredArray, Any]]], list[Any]] | None = dataclasses.field(
        default=None, compare=False, repr=False
    )


def arrays_in(value: Any) -> Iterator[StoredArray]:
    """Yields every array of a stored value, in order."""
    if isinstance(value, StoredArray):
        yield value
    elif isinstance(value, (StoredNamedTuple, tuple, list, dict)):
        if isinstance(value, StoredNamedTuple):
            value = value.items
        for item in value.values() if isinstance(value, dict) else value:
            yield from arrays_in(item)


def named_arrays(leaves: Iterable[Leaf]) -> Iterator[tuple[str, StoredArray]]:
    """Yields the place of every array as a person would write it, and the array, in order."""
    for path, array in placed_arrays(leaves):
        yield format_path(path), array


def placed_arrays(leaves: Iterable[Leaf]) -> Iterator[tuple[Path, StoredArray]]:
    """Yields the path of every array, and the array, in order."""
    for leaf in leaves:
        if type(leaf.value) is StoredArray:
            yield leaf.path, leaf.value
        else:
            yield from _places(leaf.value, leaf.path)


def _places(value: Any, path: Path) -> Iterator[tuple[Path, StoredArray]]:
    if isinstance(value, StoredArray):
        yield path, value
        return
    if isinstance(value, StoredNamedTuple):
        items: Any = zip(value.fields, value.items, strict=True)
    elif isinstance(value, dict):
        items = value.items()
    else:
        items = enumerate(value) if isinstance(value, (tuple, list)) else ()
    for key, item in items:
        yield from _places(item, (*path, key))


def replaced(value: Any, change: Callable[[StoredArray], Any]) -> Any:
    """Returns a stored value with something else in the place of each array."""
    if isinstance(value, StoredArray):
        return change(value)
    if isinstance(value, StoredNamedTuple):
        items = tuple(replaced(item, change) for item in value.items)
        return dataclasses.replace(value, items=items)
    if isinstance(value, (tuple, list)):
        return type(value)(replaced(item, change) for item in value)
    if isinstance(value, dict):
        return {key: replaced(item, change) for key, item in value.items()}
    return value


def describe(value: Any) -> str:
    """Returns what a stored value is, in a few characters: ``float32[3,4]``.

    Example:
      >>> from moduli_interop._stored import StoredArray, describe
      >>> describe((StoredArray("bfloat16", (2, 3), "jax"), 1))
      '(bfloat16[2,3], int)'
    """
    if isinstance(value, StoredArray):
        shape = ",".join(map(str, value.shape))
        kind = f"key<{value.key_impl}> " if value.key_impl else ""
        return f"{kind}{value.dtype}[{shape}]"
    if isinstance(value, StoredNamedTuple):
        items = ", ".join(
            f"{field}={describe(item)}"
            for field, item in zip(value.fields, value.items, strict=True)
        )
        return f"{value.name}({items})"
    if isinstance(value, tuple):
        return f"({', '.join(map(describe, value))}{',' if len(value) == 1 else ''})"
    if isinstance(value, list):
        return f"[{', '.join(map(describe, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key!r}: {describe(item)}' for key, item in value.items())}}}"
    return "None" if value is None else type(value).__name__
