"""A kind of source of tensors, as plugins contribute it."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable

from moduli_interop._tensors.errors import TensorFileError
from moduli_interop._tensors.stored import Tensors

__all__ = ["Opened", "TensorSource", "start_of"]


@dataclasses.dataclass(frozen=True)
class Opened:
    """A file of which the beginning has been read, to tell what it is.

    Attributes:
      path: the file.
      start: its first bytes, at most 4096.
      members: the names of its members if it is a zip archive, else empty.
    """

    path: str
    start: bytes
    members: frozenset[str] = frozenset()


@dataclasses.dataclass(frozen=True)
class TensorSource:
    r"""A kind of file that :func:`read_tensors` reads; return it from ``moduli_tensor_sources``.

    Args:
      name: what users write in ``read_tensors(..., format=name)``.
      recognises: returns whether a file is of this kind, from its content; the suffix of a name
        says nothing.
      read: opens the file ``path`` and returns its tensors, none of them read yet. It should raise
        TensorFileError for a file that is damaged.

    Example:
      >>> import moduli as nnx, numpy as np, pathlib, tempfile
      >>> from moduli_interop import StoredTensor, Tensors, TensorSource, read_tensors
      >>> def read(path):
      ...     text = pathlib.Path(path).read_text().split("\n", 1)[1]
      ...     array = np.array(text.split(), float)
      ...     tensor = StoredTensor("numbers", array.shape, array.dtype, path, array.copy)
      ...     return Tensors(path, "numbers", {"numbers": tensor})
      >>> class NumbersPlugin:
      ...     @nnx.hookimpl
      ...     def moduli_tensor_sources(self):
      ...         return [TensorSource("numbers", lambda f: f.start.startswith(b"NUMBERS"), read)]
      >>> path = pathlib.Path(tempfile.mkdtemp()) / "weights"
      >>> _ = path.write_text("NUMBERS\n1 2.5")
      >>> with nnx.using(NumbersPlugin()):
      ...     read_tensors(path)["numbers"].read()
      array([1. , 2.5])
    """

    name: str
    recognises: Callable[[Opened], bool]
    read: Callable[[str], Tensors]


def start_of(path: str) -> bytes:
    """Returns the first bytes of a file, by which sources recognise it.

    Raises:
      TensorFileError: if it is a pipe or a device, which could be waited for without end.
      OSError: if it cannot be opened.
    """
    if os.path.exists(path) and not os.path.isfile(path):
        raise TensorFileError(path, "is a pipe or a device, no file")
    with open(path, "rb") as file:
        return file.read(4096)
