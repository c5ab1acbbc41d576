"""Calls of the operating system that Python has no function for; what is missing is left out."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import os
import stat
import sys
from typing import Any, BinaryIO

__all__ = ["exchange", "forget", "reserve", "start_writing_back"]

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
_SYNC_FILE_RANGE_WRITE = 2
_KEEP_SIZE = 1  # of fallocate: what is reserved does not count as written
_LARGE = 1 << 20  # bytes of a file for which it is worth it to ask the system for anything
_NO_ROOM = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG))


@functools.cache
def _call(name: str, *arguments: Any) -> Any:
    """Returns a function of the C library, or None if this system's has none of that name."""
    try:
        function = getattr(ctypes.CDLL(None, use_errno=True), name)
    except (OSError, AttributeError, TypeError):
        return None
    function.argtypes = arguments
    return function


def exchange(first: str, second: str) -> bool:
    """Exchanges two paths in one step, where the system can; returns whether it did."""
    rename = _call(
        "renameat2", ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint
    )
    if rename is None:
        return False
    names = (os.fsencode(first), os.fsencode(second))
    return rename(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0


def reserve(file: BinaryIO, nbytes: int) -> None:
    """Takes the room for a large file on the disk before it is written.

    Its blocks are found in one step then, and a disk that has too few says so before the first
    byte is copied. A file system that cannot reserve is left alone: the C library's
    ``posix_fallocate`` would write into each block instead, which costs what it should save.

    Args:
      file: the file, empty; it stays so.
      nbytes: how long it will be.

    Raises:
      OSError: if there is no room for it.
    """
    if nbytes < _LARGE or sys.platform != "linux":
        return
    kinds = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    allocate = _call("fallocate64", *kinds) or _call("fallocate", *kinds)
    if allocate is None or allocate(file.fileno(), _KEEP_SIZE, 0, nbytes) == 0:
        return
    number = ctypes.get_errno()
    if number in _NO_ROOM:
        raise OSError(number, f"{os.strerror(number)}: {nbytes} bytes are to be written")


def start_writing_back(file: BinaryIO, offset: int, length: int) -> None:
    """Lets the system bring a part of a file to the disk already, so that the end waits for less.

    Args:
      file: the file, to which the part has been written.
      offset: where it begins.
      length: how long it is.
    """
    if sys.platform != "linux":
        return
    start = _call("sync_file_range", ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    if start is not None:  # it is advice, so an error says nothing
        start(file.fileno(), offset, length, _SYNC_FILE_RANGE_WRITE)


def forget(path: str) -> None:
    """Lets the system take the memory in which it keeps the bytes of a file that is on the disk.

    What is about to be replaced gives room to what replaces it: otherwise a save needs twice the
    memory of its file, and fresh memory takes more time than the copy into it. The file stays as
    it is; whoever reads it gets it from the disk.

    Args:
      path: the file, if there is one.
    """
    if not hasattr(os, "posix_fadvise"):
        return
    with contextlib.suppress(OSError):
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode) or status.st_size < _LARGE:
            return
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
