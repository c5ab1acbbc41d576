"""A safetensors file as a source of tensors."""

from __future__ import annotations

import functools

from moduli_interop._safetensors import SafetensorsFile
from moduli_interop._tensors.source import Opened
from moduli_interop._tensors.stored import StoredTensor, Tensors

__all__ = ["read", "recognises"]


def recognises(opened: Opened) -> bool:
    """Returns whether a JSON object follows a length of eight bytes that a header may have."""
    start = opened.start
    return len(start) > 8 and start[8:9] == b"{" and int.from_bytes(start[:8], "little") < 2**40


def read(path: str) -> Tensors:
    """Opens a file.

    Raises:
      TensorFileError: if its header is not what the file is.
    """
    file = SafetensorsFile(path)
    tensors = {
        name: StoredTensor(
            name,
            entry.shape,
            file.dtype(name),
            path,
            functools.partial(file.read, name),
            functools.partial(file.read, name) if entry.shape else None,
        )
        for name, entry in file.items()
    }
    return Tensors(path, "safetensors", tensors, file.header.metadata)
