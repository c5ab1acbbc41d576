"""Torch's files since version 1.6: a zip archive with a pickle, and a member for each storage."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from moduli_interop._tensors.errors import TensorFileError
from moduli_interop._tensors.source import Opened
from moduli_interop._tensors.stored import Tensors
from moduli_interop._tensors.torch.files import tensors_of
from moduli_interop._tensors.torch.objects import TABLE, Storage, storage_dtype
from moduli_interop._tensors.torch.unpickle import PickleError, unpickle
from moduli_interop._tensors.zip import Archive

__all__ = ["read", "recognises"]

MAX_PICKLE = 256 * 2**20
_PICKLE = "data.pkl"


def recognises(opened: Opened) -> bool:
    """Returns whether a member of the archive is the pickle of a torch file."""
    return any(name.rpartition("/")[2] == _PICKLE for name in opened.members)


def read(path: str) -> Tensors:
    """Opens a file.

    Raises:
      TensorFileError: if it is damaged; the text names the tensor, if one is.
    """
    archive = Archive(path)
    pickles = [name for name in archive.members if name.rpartition("/")[2] == _PICKLE]
    if len(pickles) != 1:
        raise TensorFileError(path, f"the archive has {len(pickles)} members {_PICKLE!r}")
    folder = pickles[0].removesuffix(_PICKLE)
    order = b"little"
    if f"{folder}byteorder" in archive.members:
        order = archive.whole(f"{folder}byteorder", 64).strip()
        if order not in (b"little", b"big"):
            raise TensorFileError(path, f"says that its byte order is {order[:20]!r}")
    storages: dict[str, Storage] = {}

    def storage(identity: Any) -> Storage:
        match identity:
            case ("storage", kind, str(key), _, int(size)) if size >= 0:
                made = Storage(key, storage_dtype(kind), size)
            case _:
                raise PickleError("a persistent id of the pickle is none of a storage")
        if storages.setdefault(key, made) != made:
            raise PickleError(f"the storage {key[:50]!r} is described in two ways")
        nbytes = size * (1 if made.dtype is None else made.dtype.itemsize)
        member = archive.members.get(f"{folder}data/{key}")
        if member is None:
            raise PickleError(f"the archive has no member for the storage {key[:50]!r}")
        if member.file_size != nbytes:
            raise PickleError(
                f"the storage {key[:50]!r} has {member.file_size} bytes and should have {nbytes}"
            )
        return made

    try:
        described = unpickle(io.BytesIO(archive.whole(pickles[0], MAX_PICKLE)), TABLE, storage)
    except PickleError as error:
        raise TensorFileError(path, str(error)) from None

    def span(key: str, start: int, stop: int, tensor: str) -> np.ndarray:
        return archive.part(f"{folder}data/{key}", start, stop, tensor)

    return tensors_of(described, path, "torch", span, order == b"big")
