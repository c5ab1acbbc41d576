"""Members of a zip archive, checked before they are believed."""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from typing import BinaryIO

import numpy as np

from moduli_interop._tensors.errors import TensorFileError
from moduli_interop._tensors.reopened import Reopened

__all__ = ["Archive", "member_names"]

_DAMAGE = (
    *(zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error, EOFError, ValueError, OverflowError),
    *(NotImplementedError, RuntimeError, struct.error, KeyError, IndexError),
)
"""What ``zipfile`` raises for damaged archives."""

_CHUNK = 2**20
_MOST_BY_DEFLATE = 1100
"""More bytes than deflate can make of one."""


def member_names(path: str) -> frozenset[str]:
    """Returns the names of an archive's members; none if it is not an archive that can be read."""
    try:
        with zipfile.ZipFile(path) as archive:
            return frozenset(archive.namelist())
    except _DAMAGE:
        return frozenset()


class Archive:
    """An archive whose directory has been read; it does not stay open.

    Args:
      path: the file.

    Attributes:
      path: the file.
      members: the members by name.

    Raises:
      TensorFileError: if the directory is damaged, or has a name twice.
      OSError: if the file cannot be opened.
    """

    def __init__(self, path: str):
        self.path = path
        with open(path, "rb") as file:
            self._again = Reopened(path, file)
            self._size = os.fstat(file.fileno()).st_size
            try:
                with zipfile.ZipFile(file) as archive:
                    infos = archive.infolist()
            except _DAMAGE as error:
                raise TensorFileError(path, f"the archive is damaged: {error}") from None
        self.members: Mapping[str, zipfile.ZipInfo] = {info.filename: info for info in infos}
        if len(self.members) < len(infos):
            names = [info.filename for info in infos]
            twice = next(name for name in names if names.count(name) > 1)
            raise TensorFileError(path, f"the archive has the member {twice[:200]!r} twice")
        self._verified: set[str] = set()

    def whole(self, name: str, limit: int) -> bytes:
        """Reads a small member.

        Args:
          name: its name.
          limit: the most bytes that it may have.

        Raises:
          TensorFileError: if it is longer, or damaged.
        """
        size = self.members[name].file_size
        if size > limit:
            raise TensorFileError(self.path, f"the member {name!r} says that it has {size} bytes")
        return self._part(name, 0, size, f"the member {name!r} is damaged", None).tobytes()

    def part(self, name: str, start: int, stop: int, tensor: str) -> np.ndarray:
        """Reads some of the bytes of a member, verified by the archive's checksum.

        Args:
          name: the member.
          start: the first byte.
          stop: the byte behind the last.
          tensor: whose bytes they are, for errors.

        Raises:
          TensorFileError: if the member is damaged, or the file was changed.
        """
        return self._part(name, start, stop, "its bytes are damaged", tensor)

    def _part(self, name: str, start: int, stop: int, what: str, tensor: str | None) -> np.ndarray:
        info = self.members[name]
        deflated = info.compress_type == zipfile.ZIP_DEFLATED
        most = info.compress_size * (_MOST_BY_DEFLATE if deflated else 1)
        if info.file_size > most or info.compress_size > self._size:
            raise TensorFileError(
                self.path, f"{what}: the archive cannot hold {info.file_size} bytes", tensor
            )
        if not 0 <= start <= stop <= info.file_size:
            raise TensorFileError(self.path, f"{what}: they are not in {name!r}", tensor)
        with self._again.open(tensor) as file:
            try:
                return self._span(file, info, start, stop)
            except _DAMAGE as error:
                raise TensorFileError(self.path, f"{what}: {error}", tensor) from None

    def _span(self, file: BinaryIO, info: zipfile.ZipInfo, start: int, stop: int) -> np.ndarray:
        """Reads a span; the first time the whole member, to compare its checksum."""
        _seek(file, info)
        found = np.empty(stop - start, np.uint8)
        verified, at, checksum = info.filename in self._verified, 0, 0
        if verified and info.compress_type == zipfile.ZIP_STORED:
            file.seek(start, os.SEEK_CUR)
            if file.readinto(found.data) != len(found):  # type: ignore[attr-defined]
                raise EOFError("the archive ends early")
            return found
        for piece in _pieces(file, info):
            low, high = max(start - at, 0), min(stop - at, len(piece))
            if low < high:
                part = np.frombuffer(piece, np.uint8)[low:high]
                found[at + low - start : at + high - start] = part
            at += len(piece)
            checksum = zlib.crc32(piece, checksum)
        if at != info.file_size or checksum != info.CRC:
            raise ValueError("the checksum is another")
        self._verified.add(info.filename)
        return found


def _seek(file: BinaryIO, info: zipfile.ZipInfo) -> None:
    """Puts a file where the bytes of a member begin."""
    if info.header_offset < 0:
        raise ValueError("no member begins where it should")
    file.seek(info.header_offset)
    head = file.read(30)
    if len(head) < 30 or not head.startswith(b"PK\3\4"):
        raise ValueError("no member begins where it should")
    flags, _, _, _, _, _, _, name_length, extra_length = struct.unpack("<HHHHIIIHH", head[6:])
    if flags & 1 or info.flag_bits & 1:
        raise ValueError("the member is encrypted")
    name = file.read(name_length)
    if name != info.orig_filename.encode("utf-8" if flags & 0x800 else "cp437"):
        raise ValueError("the member has two names")
    file.seek(extra_length, os.SEEK_CUR)


def _pieces(file: BinaryIO, info: zipfile.ZipInfo) -> Iterator[bytes]:
    """Yields the bytes of a member in pieces, at most one more than it should have."""
    left = info.compress_size
    if info.compress_type == zipfile.ZIP_STORED:
        while left:
            piece = file.read(min(left, _CHUNK))
            if not piece:
                raise EOFError("the archive ends early")
            left -= len(piece)
            yield piece
        return
    if info.compress_type != zipfile.ZIP_DEFLATED:
        raise ValueError(f"the member is compressed in a way ({info.compress_type}) not read here")
    inflate, made = zlib.decompressobj(-15), 0
    while not inflate.eof and made <= info.file_size:
        data = inflate.unconsumed_tail
        if not data:
            data = file.read(min(left, _CHUNK))
            left -= len(data)
            if not data:
                raise EOFError("the member ends early")
        piece = inflate.decompress(data, _CHUNK)
        made += len(piece)
        yield piece
