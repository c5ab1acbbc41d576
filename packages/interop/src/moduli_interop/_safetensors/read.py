"""Reads one tensor of a safetensors file, or a part of it."""

from __future__ import annotations

import mmap
import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from moduli_interop._safetensors.dtypes import BITS, DTYPES
from moduli_interop._safetensors.header import Entry, Header, read_header
from moduli_interop._tensors.errors import TensorFileError
from moduli_interop._tensors.reopened import Reopened

__all__ = ["SafetensorsFile"]


class SafetensorsFile(Mapping[str, Entry]):
    """A safetensors file whose header has been read and checked, by the tensors' names.

    No file stays open: :meth:`read` opens it again, and refuses if it is not the file whose header
    was read. A tensor that was read belongs to the caller; overwriting the file changes nothing.

    Args:
      path: the file.

    Attributes:
      path: the file.
      header: what it says of itself.

    Raises:
      TensorFileError: see :func:`read_header`.
      OSError: if it cannot be opened.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = os.fspath(path)
        with open(self.path, "rb") as file:
            self.header: Header = read_header(file, self.path)
            self._again = Reopened(self.path, file)

    def __getitem__(self, name: str) -> Entry:
        return self.header.entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.header.entries)

    def __len__(self) -> int:
        return len(self.header.entries)

    def dtype(self, name: str) -> np.dtype:
        """Returns the dtype of a tensor.

        Raises:
          TensorFileError: if NumPy has none for it (six-bit floats).
        """
        tag = self[name].tag
        if tag not in DTYPES:
            raise TensorFileError(
                self.path, f"is of the dtype {tag}, which no NumPy dtype stands for", name
            )
        return DTYPES[tag]

    def read(self, name: str, rows: slice | None = None) -> np.ndarray:
        """Reads a tensor, or some of its rows, into memory of its own.

        Args:
          name: the tensor's name.
          rows: which entries of the first axis; the others are not read. Without a step.

        Returns:
          The array.

        Raises:
          TensorFileError: if the file was changed since its header was read, or ends early.
        """
        entry, dtype = self[name], self.dtype(name)
        shape, start, stop = entry.shape, entry.start, entry.stop
        packed = BITS[entry.tag] < 8
        if rows is not None and not packed:
            first, last, _ = rows.indices(shape[0])
            row = (stop - start) // max(shape[0], 1)
            shape = (max(last - first, 0), *shape[1:])
            start += first * row
        if packed:
            halves = self._again.fill(np.empty(stop - start, np.uint8), start, name)
            array = np.stack([halves & 15, halves >> 4], -1).view(dtype).reshape(shape)
            return array if rows is None else array[rows].copy()
        bits = self._again.fill(np.empty(shape, dtype), start, name)
        return bits if sys.byteorder == "little" else bits.byteswap(inplace=True)

    def map(self) -> Mapping[str, np.ndarray]:
        """Maps the file into memory.

        Returns:
          Read-only arrays by name, which share memory with the file: what is written into it later
          is seen in them, and reading what was cut off it ends the process. Copy what is to last.
          Tensors whose numbers are smaller than a byte are left out.
        """
        with self._again.open(None) as file:
            mapped: Any = b""
            if os.fstat(file.fileno()).st_size:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return {
            entry.name: np.ndarray(
                entry.shape, DTYPES[entry.tag].newbyteorder("<"), mapped, entry.start
            )
            for entry in self.header.entries.values()
            if BITS[entry.tag] >= 8
        }
