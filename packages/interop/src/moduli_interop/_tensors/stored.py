"""A tensor that stands in a file and has not been read."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

__all__ = ["StoredTensor", "Tensors"]


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """A tensor of a source, known by shape and dtype; its numbers are read when asked for.

    Attributes:
      name: its name in the source.
      shape: its shape.
      dtype: its dtype; those of ``ml_dtypes`` for bfloat16 and the small floats.
      file: the file that holds it, or what else the source is.
      read_all: reads it, into memory that nothing else writes; what :meth:`read` calls.
      read_rows: reads some entries of the first axis, ``read_rows(slice(first, stop))`` with
        ``0 <= first <= stop <= shape[0]`` and no step; None if parts cannot be read.

    Example:
      >>> import numpy as np
      >>> from moduli_interop import read_tensors
      >>> tensor = read_tensors({"head.weight": np.arange(6.0).reshape(3, 2)})["head.weight"]
      >>> tensor
      StoredTensor('head.weight', float64[3,2])
      >>> tensor[1:, 0]
      array([2., 4.])
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    file: str
    read_all: Callable[[], np.ndarray] = dataclasses.field(repr=False, compare=False)
    read_rows: Callable[[slice], np.ndarray] | None = dataclasses.field(
        default=None, repr=False, compare=False
    )

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """The number of its entries."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def nbytes(self) -> int:
        """The number of bytes of the array that :meth:`read` returns."""
        return self.size * self.dtype.itemsize

    def read(self) -> np.ndarray:
        """Reads it all.

        Returns:
          An array that shares no memory with the file.

        Raises:
          TensorFileError: if its bytes are damaged, or the file has been changed since it was
            opened.
        """
        return self.read_all()

    def __getitem__(self, index: Any) -> np.ndarray:
        """Reads a part of it, by NumPy's basic or advanced indexing.

        Where the source allows, only the rows between the first and the last that are asked for are
        read.
        """
        parts = index if isinstance(index, tuple) else (index,)
        if self.read_rows is None or not self.shape or not parts:
            return self.read_all()[index]
        first, size = parts[0], self.shape[0]
        if isinstance(first, slice):
            rows = range(size)[first]
            low, high = (min(rows), max(rows) + 1) if rows else (0, 0)
            stop = rows.stop - low if rows.stop - low >= 0 else None
            within: Any = slice(rows.start - low, stop, rows.step) if rows else slice(0, 0)
        elif isinstance(first, (int, np.integer)) and not isinstance(first, bool):
            if not -size <= first < size:
                raise IndexError(f"index {first} is out of bounds for axis 0 with size {size}")
            low = int(first) % size
            high, within = low + 1, 0
        else:
            return self.read_all()[index]
        return self.read_rows(slice(low, high))[(within, *parts[1:])]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.read(), dtype)

    def __repr__(self) -> str:
        shape = ",".join(map(str, self.shape))
        return f"StoredTensor({self.name!r}, {self.dtype}[{shape}])"


class Tensors(Mapping[str, StoredTensor]):
    """The tensors of a source, by name and in its order.

    Args:
      source: what they come from, for messages.
      kind: name of the kind of source.
      tensors: the tensors.
      metadata: texts that the file keeps with them.

    Attributes:
      source: as given.
      kind: as given.
      metadata: as given.
    """

    def __init__(
        self,
        source: str,
        kind: str,
        tensors: Mapping[str, StoredTensor],
        metadata: Mapping[str, str] = MappingProxyType({}),
    ):
        self.source, self.kind, self.metadata = source, kind, MappingProxyType(dict(metadata))
        self._tensors = tensors

    def __getitem__(self, name: str) -> StoredTensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __repr__(self) -> str:
        return f"<{len(self)} tensors of {self.source} ({self.kind})>"
