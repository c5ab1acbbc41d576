"""A file that allocates no more than it has, whatever length is asked for."""

from __future__ import annotations

import io
import os

from moduli_interop._reading import SharedFile

__all__ = ["BoundedFile"]


class BoundedFile(io.BufferedReader):
    """A file for ``zipfile``, which asks for as many bytes as a forged directory says.

    Args:
      shared: the file.
    """

    def __init__(self, shared: SharedFile):
        super().__init__(io.FileIO(os.dup(shared.descriptor), "rb"))
        self._size = shared.size

    def read(self, size: int | None = -1, /) -> bytes:
        """Reads at most so many bytes, and at most those that there are."""
        left = max(self._size - self.tell(), 0)
        return super().read(left if size is None or size < 0 else min(size, left))
