"""Atomic files and folders: whoever opens the path sees the old content or the new one, whole.

What is written stands under a temporary name, which says ``.moduli-tmp`` at its end, in the same
folder, and its writer holds a lock on it. The system gives that lock up when a process dies, so
whoever writes next into the folder sees which temporary names belong to nobody, and removes them.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from typing import BinaryIO

from moduli_interop._system import exchange, forget, reserve

try:
    import fcntl
except ImportError:  # Windows, where a file that is open cannot be removed anyway
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "atomic_folder",
    "atomic_write",
    "check_home",
    "locked",
    "remove_leftovers",
    "sync_tree",
]

_TEMPORARY = re.compile(r"\.(?P<name>.*)\.[0-9a-f]{16}\.moduli-(?P<kind>tmp|old)", re.DOTALL)
_ATTEMPTS = 100


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str], *, nbytes: int = 0) -> Iterator[BinaryIO]:
    """Opens a file for writing which takes the place of ``path`` when the block ends.

    The bytes go to a temporary file in the same directory and are on the disk before it is
    renamed. If the block raises, the temporary file is removed and ``path`` stays as it was. What a
    killed process left behind in the directory is removed. A symbolic link is followed, so that it
    goes on pointing to the file.

    Args:
      path: the file to make or to replace.
      nbytes: how many bytes will be written, if that is known: a large file is written faster then,
        and one for which the disk has no room fails at once.

    Yields:
      The open temporary file, seekable.

    Raises:
      OSError: if the directory does not exist or cannot be written, ``path`` is a directory, or
        there is no room for so many bytes.

    Example:
      >>> import pathlib, tempfile
      >>> from moduli_interop import atomic_write
      >>> path = pathlib.Path(tempfile.mkdtemp(), "table.bin")
      >>> with atomic_write(path) as file:
      ...     _ = file.write(b"all of it")
      >>> path.read_bytes()
      b'all of it'
    """
    target = os.path.realpath(os.fsdecode(path))
    if os.path.isdir(target):
        raise IsADirectoryError(f"{os.fsdecode(path)!r} is a directory; a checkpoint is one file")
    if os.path.exists(target) and not os.path.isfile(target):
        raise FileExistsError(
            f"{os.fsdecode(path)} is a pipe or a device, which a file would take the place of"
        )
    directory, name = _place(path, target)
    remove_leftovers(directory)
    forget(target)
    temporary, descriptor, lock = _new_file(directory, name)
    try:
        with os.fdopen(descriptor, "w+b") as file:
            reserve(file, nbytes)
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
    finally:
        if lock is not None:
            os.close(lock)
    _sync_directory(directory)


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[str]:
    """Makes a folder to fill, which takes the place of ``path`` when the block ends.

    As :func:`atomic_write`, for formats that write several files: everything in the folder is on
    the disk before it gets its name. An older folder at ``path`` is exchanged in one step where the
    system can do that (Linux), and otherwise put aside for a moment; the next write into the
    directory puts it back if the process was killed in that moment.

    Args:
      path: the folder to make or to replace.

    Yields:
      The path of the temporary folder.

    Raises:
      OSError: if the directory does not exist or cannot be written, or ``path`` is a file.

    Example:
      >>> import os, tempfile
      >>> from moduli_interop import atomic_folder
      >>> path = os.path.join(tempfile.mkdtemp(), "tables")
      >>> with atomic_folder(path) as folder:
      ...     with open(os.path.join(folder, "first.bin"), "wb") as file:
      ...         _ = file.write(b"all of it")
      >>> os.listdir(path)
      ['first.bin']
    """
    target = os.path.realpath(os.fsdecode(path))
    if os.path.exists(target) and not os.path.isdir(target):
        raise NotADirectoryError(f"{os.fspath(path)} is a file, and this format writes a folder")
    directory, name = _place(path, target)
    remove_leftovers(directory)
    temporary, lock = _new_folder(directory, name)
    try:
        yield temporary
        sync_tree(temporary)
        if os.path.isdir(target):
            os.chmod(temporary, os.stat(target).st_mode & 0o7777)
            _replace_folder(temporary, target)
        else:
            os.rename(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # after an exchange it is the old one
        if lock is not None:
            os.close(lock)
    _sync_directory(directory)


def remove_leftovers(directory: str) -> None:
    """Removes what killed processes left behind in a directory; never what a living one writes.

    Args:
      directory: where to look; what cannot be removed is left where it is.
    """
    with contextlib.suppress(OSError), os.scandir(directory) as entries:
        for entry in entries:
            match = _TEMPORARY.fullmatch(entry.name)
            if match:
                with contextlib.suppress(OSError):
                    _remove_leftover(entry, match["name"], match["kind"], directory)


def _remove_leftover(entry: os.DirEntry[str], name: str, kind: str, directory: str) -> None:
    is_folder = entry.is_dir(follow_symlinks=False)
    if kind == "old":  # an older folder that was put aside
        target = os.path.join(directory, name)
        if not os.path.lexists(target):
            os.rename(entry.path, target)
        elif is_folder:
            shutil.rmtree(entry.path)
        return
    if fcntl is None:
        if not is_folder:
            os.unlink(entry.path)
        return
    if not is_folder and not entry.is_file(follow_symlinks=False):
        return
    descriptor = os.open(entry.path, os.O_RDONLY)
    try:
        if _lock(descriptor):
            shutil.rmtree(entry.path) if is_folder else os.unlink(entry.path)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def locked(path: str) -> Iterator[bool]:
    """Holds a lock for the time of the block, waiting for whoever holds it now.

    Args:
      path: a file that stands for what is locked; it is made if there is none.

    Yields:
      Whether the lock is held: False where the file system or the system has none.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        held = False
        if fcntl is not None:
            with contextlib.suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                held = True
        yield held
    finally:
        os.close(descriptor)


def _place(path: str | os.PathLike[str], target: str) -> tuple[str, str]:
    directory, name = os.path.split(target)
    if not os.path.isdir(directory):
        check_home(os.fsdecode(path))
        raise FileNotFoundError(
            f"cannot write {os.fsdecode(path)}: the folder {directory} does not exist; make it "
            "first with `pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)`"
        )
    return directory, name


def check_home(path: str) -> None:
    """Refuses a path below ``~`` where nothing is called so: a shell would have written it out.

    Args:
      path: the path, as the user gave it.

    Raises:
      FileNotFoundError: if it begins with ``~`` and there is no such folder.
    """
    first = path.split(os.sep)[0]
    if first.startswith("~") and os.sep in path and not os.path.exists(first):
        raise FileNotFoundError(
            f"cannot write {path}: there is no folder {first!r} here, and Python does not write it "
            "out as a shell does; use os.path.expanduser(path)"
        )


def _temporary(directory: str, name: str) -> str:
    short = os.fsdecode(os.fsencode(name)[:150])
    return os.path.join(directory, f".{short}.{secrets.token_hex(8)}.moduli-tmp")


def _new_file(directory: str, name: str) -> tuple[str, int, int | None]:
    """Makes a temporary file; returns its path, its descriptor, and one that keeps the lock."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    for _ in range(_ATTEMPTS):
        temporary = _temporary(directory, name)
        descriptor = os.open(temporary, flags, 0o666)  # the umask applies, as for any new file
        if fcntl is None:
            return temporary, descriptor, None
        if _lock(descriptor) is not False and _is_at(temporary, descriptor):
            return temporary, descriptor, os.dup(descriptor)
        os.close(descriptor)  # somebody saw it in the moment before it was locked
    raise OSError(errno.EAGAIN, f"cannot make a temporary file in {directory}")


def _new_folder(directory: str, name: str) -> tuple[str, int | None]:
    for _ in range(_ATTEMPTS):
        temporary = _temporary(directory, name)
        os.mkdir(temporary)
        if fcntl is None:
            return temporary, None
        with contextlib.suppress(FileNotFoundError):
            descriptor = os.open(temporary, os.O_RDONLY)
            if _lock(descriptor) is not False and _is_at(temporary, descriptor):
                return temporary, descriptor
            os.close(descriptor)
    raise OSError(errno.EAGAIN, f"cannot make a temporary folder in {directory}")


def _lock(descriptor: int) -> bool | None:
    """Takes the lock of a file. Returns False if somebody holds it, None if there are no locks."""
    assert fcntl is not None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _is_at(path: str, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.lstat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _replace_folder(new: str, target: str) -> None:
    if exchange(new, target):
        return
    token = secrets.token_hex(8)
    directory, name = os.path.split(target)
    aside = os.path.join(directory, f".{name}.{token}.moduli-old")
    os.rename(target, aside)
    try:
        os.rename(new, target)
    except BaseException:
        os.rename(aside, target)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def sync_tree(folder: str) -> None:
    """Brings everything below a folder to the disk."""
    for directory, _, files in os.walk(folder):
        for name in files:
            path = os.path.join(directory, name)
            if stat.S_ISREG(os.lstat(path).st_mode):
                descriptor = os.open(path, os.O_RDWR | getattr(os, "O_BINARY", 0))
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
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
