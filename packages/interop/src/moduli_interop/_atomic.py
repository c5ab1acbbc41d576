"""Atomic files: whoever opens the path sees the old content or the new one, whole."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from typing import BinaryIO

__all__ = ["atomic_write"]


@contextlib.contextmanager
def atomic_write(path: str) -> Iterator[BinaryIO]:
    """Opens a file for writing which takes the place of ``path`` when the block ends.

    The bytes go to a temporary file in the same directory and are on the disk before it is
    renamed. If the block raises, the temporary file is removed and ``path`` stays as it was. A
    symbolic link is followed, so that it goes on pointing to the file.

    Args:
      path: the file to make or to replace.

    Yields:
      The open temporary file, seekable.

    Raises:
      OSError: if the directory does not exist or cannot be written, or ``path`` is a directory.
    """
    target = os.path.realpath(path)
    if os.path.isdir(target):
        raise IsADirectoryError(f"{path} is a directory; a checkpoint is one file")
    directory, name = os.path.split(target)
    if not os.path.isdir(directory):
        raise FileNotFoundError(
            f"cannot write {path}: the folder {directory} does not exist; make it first with "
            "`pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)`"
        )
    temporary = os.path.join(directory, f".{name[:100]}.{secrets.token_hex(8)}.tmp")
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    descriptor = os.open(temporary, flags, 0o666)  # the umask applies, as for any new file
    try:
        with os.fdopen(descriptor, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if os.path.exists(target):
            os.chmod(temporary, os.stat(target).st_mode & 0o7777)
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    _sync_directory(directory)


def _sync_directory(directory: str) -> None:
    """Makes the renaming itself durable, where the system lets a directory be opened."""
    if os.name != "posix":
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
