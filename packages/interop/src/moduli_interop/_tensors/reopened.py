"""A file that does not stay open, and is known again when it is opened later."""

from __future__ import annotations

import os
from typing import BinaryIO

import numpy as np

from moduli_interop._tensors.errors import TensorFileError

__all__ = ["Reopened"]


class Reopened:
    """A file whose description has been read, to be opened again for its numbers.

    Args:
      path: the file.
      file: the same, open.
    """

    def __init__(self, path: str, file: BinaryIO):
        self.path, self._identity = path, _identity(file)

    def open(self, tensor: str | None) -> BinaryIO:
        """Opens the file.

        Args:
          tensor: whose numbers are wanted, for errors.

        Raises:
          TensorFileError: if it is another file by now, or has been written.
        """
        file = open(self.path, "rb")  # noqa: SIM115
        if _identity(file) == self._identity:
            return file
        file.close()
        raise TensorFileError(
            self.path, "the file was changed since it was opened; open it again", tensor
        )

    def fill(self, array: np.ndarray, start: int, tensor: str) -> np.ndarray:
        """Fills an array with the bytes that stand at a place.

        Args:
          array: the array, contiguous.
          start: where they begin.
          tensor: whose they are, for errors.

        Returns:
          The same array.

        Raises:
          TensorFileError: if the file is another, or ends before.
        """
        target = array.reshape(-1).view(np.uint8).data
        done = 0
        with self.open(tensor) as file:
            file.seek(start)
            while done < len(target):
                count = file.readinto(target[done:])  # type: ignore[attr-defined]
                if not count:
                    raise TensorFileError(self.path, "the file ends inside of it", tensor)
                done += count
        return array


def _identity(file: BinaryIO) -> tuple[int, ...]:
    status = os.fstat(file.fileno())
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
