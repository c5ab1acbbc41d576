"""Reads the built-in format, after proving that every byte is as it was written."""

from __future__ import annotations

import hashlib
import io
import os
import struct
import zipfile
import zlib
from collections.abc import Callable
from typing import BinaryIO

import numpy as np

from moduli_interop._dtypes import storage_dtype
from moduli_interop._errors import (
    CheckpointError,
    CheckpointVersionError,
    CorruptCheckpointError,
    NotACheckpointError,
    TruncatedCheckpointError,
)
from moduli_interop._manifest import decode_manifest
from moduli_interop._npz.bounded import BoundedFile
from moduli_interop._npz.diagnose import where_cut, where_damaged
from moduli_interop._npz.layout import (
    DIGITS,
    MANIFEST,
    SIGNATURE,
    TRAILER,
    VERSION,
    is_beginning,
    version_of,
)
from moduli_interop._reading import SharedFile, aligned_empty
from moduli_interop._stored import Checkpoint, StoredArray

__all__ = ["open_unverified", "read", "verify"]

_BLOCK = 1 << 20


def read(path: str) -> Checkpoint:
    """Reads a checkpoint.

    Args:
      path: the file.

    Returns:
      The checkpoint. The whole file has been verified; its arrays are read when their ``read`` is
      called, and compared with the CRC-32 of their own once more.

    Raises:
      NotACheckpointError: if the file is something else.
      TruncatedCheckpointError: if it ends early.
      CorruptCheckpointError: if any byte differs from what was written.
      CheckpointVersionError: if it was written by a later release in another format.
      OSError: if it cannot be opened.
    """
    shared = SharedFile(path)
    with BoundedFile(shared) as file:
        version = _verify(file, path)
        if version != VERSION:
            raise _wrong_version(path, version)
        return _content(shared, file, "has the right checksum, but its content")


def open_unverified(path: str) -> Checkpoint:
    """Reads what a checkpoint says of itself, and no array.

    Args:
      path: the file.

    Raises:
      CheckpointError: as :func:`read` does, except for damage in the arrays.
    """
    shared = SharedFile(path)
    with BoundedFile(shared) as file:
        version = version_of(file.read(128))
        if version is None:
            raise _not_a_checkpoint(file, path, shared.size)
        if version != VERSION:
            raise _wrong_version(path, version)
        return _content(shared, file, "is damaged: its content")


def verify(path: str) -> None:
    """Reads every byte of a checkpoint, with little memory.

    Args:
      path: the file.

    Raises:
      CheckpointError: as :func:`read` does; an error about damaged arrays names all of them.
    """
    read(path)


def _content(shared: SharedFile, file: BinaryIO, what: str) -> Checkpoint:
    try:
        file.seek(0)
        with zipfile.ZipFile(file) as archive:
            infos = {info.filename: info for info in archive.infolist()}
            if len(infos) < len(archive.infolist()):
                raise ValueError("a member stands twice in it")
            manifest = _Member(shared, infos.pop(MANIFEST)).all()
            infos.pop(SIGNATURE)

        def reader(name: str, array: StoredArray) -> Callable[[], np.ndarray]:
            return _ArrayRead(_Member(shared, infos.pop(f"{name}.npy")), array)

        checkpoint = decode_manifest(manifest, reader, owned=True, nested=True)
        if infos:
            raise ValueError(f"no value of the manifest is the member {min(infos)[:200]!r}")
        return checkpoint
    except (CheckpointError, OSError):
        raise
    except Exception as error:  # whatever a forged directory or manifest leads to
        raise CorruptCheckpointError(
            f"the checkpoint {shared.path} {what} is not that of format {VERSION}: "
            f"{str(error)[:500] or type(error).__name__}. It was not written by moduli.save"
        ) from error


class _Member:
    """A member of the archive: where its bytes stand, and their digest.

    Args:
      file: the archive.
      info: what its directory says of the member.

    Raises:
      ValueError: if it is not stored as it is, or not within the file.
    """

    def __init__(self, file: SharedFile, info: zipfile.ZipInfo):
        self.file, self.name, self.size, self.digest = file, info.filename, info.file_size, info.CRC
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
            raise ValueError(f"the member {self.name} is compressed")
        if info.flag_bits & 0x1:
            raise ValueError(f"the member {self.name} is encrypted")
        head = bytearray(30)
        file.read_into(memoryview(head), info.header_offset)
        if head[:4] != b"PK\x03\x04":
            raise ValueError(f"the member {self.name} does not stand where the directory says")
        self.start = info.header_offset + 30 + sum(struct.unpack("<HH", head[26:30]))
        if self.start + self.size > file.size:
            raise ValueError(f"the member {self.name} is longer than the file")

    def read(self, target: memoryview, offset: int) -> None:
        if self.file.read_into(target, self.start + offset) < len(target):
            raise ValueError(f"the file ends within the member {self.name}")

    def all(self) -> bytes:
        data = bytearray(self.size)
        self.read(memoryview(data), 0)
        if zlib.crc32(data) != self.digest:
            raise ValueError(f"the member {self.name} does not have its CRC-32")
        return bytes(data)


class _ArrayRead:
    """Reads one array; what a :class:`StoredArray` has as its ``read``."""

    def __init__(self, member: _Member, array: StoredArray):
        self._member = member
        self._shape = array.shape
        self._dtype = storage_dtype(array.dtype)
        head = bytearray(min(member.size, 12_000))
        member.read(memoryview(head), 0)
        stream = io.BytesIO(head)
        if np.lib.format.read_magic(stream) != (1, 0):
            raise ValueError(f"the member {member.name} is of another version of .npy")
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
        self._head = bytes(head[: stream.tell()])
        if dtype != self._dtype or shape != self._shape or (fortran and len(shape) > 1):
            raise ValueError(
                f"the member {member.name} is {dtype}{list(shape)}, and the manifest says "
                f"{self._dtype}{list(self._shape)}"
            )
        if member.size != len(self._head) + array.nbytes:
            raise ValueError(
                f"the member {member.name} is longer or shorter than its array: {member.size} bytes"
            )
        self.nbytes = array.nbytes

    def __call__(self) -> np.ndarray:
        memory = aligned_empty(self.nbytes)
        try:
            self._member.read(memory.data, len(self._head))
        except ValueError as error:
            raise self._damaged(str(error)) from error
        if zlib.crc32(memory.data, zlib.crc32(self._head)) != self._member.digest:
            raise self._damaged("it does not have the CRC-32 that was written with it")
        return memory.view(self._dtype).reshape(self._shape)

    def _damaged(self, what: str) -> CorruptCheckpointError:
        return CorruptCheckpointError(
            f"the checkpoint {self._member.file.path} is damaged or was changed while it was read; "
            f"damaged: `{self._member.name.removesuffix('.npy')}`: {what}. Nothing was loaded; use "
            "another copy"
        )


def _verify(file: BinaryIO, path: str) -> int:
    """Checks the SHA-256 of the whole file and returns the format version."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = file.read(128)
    version = version_of(head)
    ending = len(TRAILER) + DIGITS
    file.seek(max(size - ending, 0))
    end = file.read()
    if len(end) < ending or not end.startswith(TRAILER):
        if version is None and not is_beginning(head):
            raise _not_a_checkpoint(file, path, size)
        if version not in (None, VERSION):
            raise _wrong_version(path, version)
        raise TruncatedCheckpointError(
            f"the checkpoint {path} does not end as it should after {size} bytes: it was cut off, "
            f"or something was appended to it{where_cut(file, size)}. moduli.save never leaves "
            "such a file, so it was probably copied or downloaded in part; copy it again"
        )
    if _digest(file, size - DIGITS) != end[len(TRAILER) :]:
        raise CorruptCheckpointError(
            f"the checkpoint {path} is damaged: its bytes do not have the SHA-256 that was "
            f"written with them{where_damaged(file)}. Nothing was loaded; use another copy"
        )
    if version is None:
        raise _not_a_checkpoint(file, path, size)
    return version


def _digest(file: BinaryIO, length: int) -> bytes:
    digest = hashlib.sha256()
    file.seek(0)
    while length > 0:
        block = file.read(min(_BLOCK, length))
        if not block:
            break
        digest.update(block)
        length -= len(block)
    digest.update(b"0" * DIGITS)
    return digest.hexdigest().encode()


def _not_a_checkpoint(file: BinaryIO, path: str, size: int) -> Exception:
    file.seek(0)
    head = file.read(4)
    if not size:
        what = "it is empty"
    elif head == b"PK\x03\x04":
        what = (
            "it is another zip archive, such as an .npz file of numpy.savez; moduli.load_weights "
            "reads such files"
        )
    elif head[:1] == b"\x80":
        what = "it may be a pickle, which moduli never reads, because a pickle can run any code"
    else:
        what = f"it begins with the bytes {head!r}"
    return NotACheckpointError(f"{path} is not a checkpoint of moduli.save: {what}")


def _wrong_version(path: str, version: int | None) -> Exception:
    return CheckpointVersionError(
        f"the checkpoint {path} is of format {version}; this release of moduli-interop reads "
        f"format {VERSION}. Upgrade it: pip install -U moduli-interop"
    )
