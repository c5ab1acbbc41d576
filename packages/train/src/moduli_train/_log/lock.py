"""One run at a time writes into a folder; two would garble each other's log."""

from __future__ import annotations

import contextlib
import os
import platform

from moduli_train._errors import RunError

try:
    import fcntl
except ImportError:  # Windows: nothing is locked
    fcntl = None  # type: ignore[assignment]

__all__ = ["FolderLock"]

_held: dict[str, int] = {}  # files that a process has locked: it could lock them again


class FolderLock:
    """Holds ``run.lock`` in a folder until it is released, or its process is gone.

    The lock is the process's own: what it forks, such as workers that read data and may outlive
    it, does not hold it.

    Raises:
      RunError: another run writes into the folder.
    """

    def __init__(self, folder: str) -> None:
        self._path = os.path.realpath(os.path.join(folder, "run.lock"))
        self._descriptor: int | None = None
        if _held.get(self._path) == os.getpid():
            raise _in_use(folder, "this program", "end its `with` block first")
        if fcntl is None:
            return
        while not self._take(folder):
            pass

    def _take(self, folder: str) -> bool:
        """Locks the file; returns whether it is the one that stands there now."""
        assert fcntl is not None
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not _is_at(descriptor, self._path):  # who had it removed it in between
                os.close(descriptor)
                return False
        except (BlockingIOError, PermissionError):
            holder = os.read(descriptor, 200).decode(errors="replace").strip() or "another process"
            os.close(descriptor)
            raise _in_use(folder, holder, "wait for its end, or stop it") from None
        except OSError:  # a file system without locks
            os.close(descriptor)
            return True
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {platform.node()}\n".encode())
        self._descriptor = descriptor
        _held[self._path] = os.getpid()
        return True

    def release(self) -> None:
        """Lets others have the folder."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None and _held.get(self._path) == os.getpid():
            del _held[self._path]
            with contextlib.suppress(OSError):
                os.unlink(self._path)
            os.close(descriptor)

    __del__ = release  # of a run that was entered and forgotten


def _is_at(descriptor: int, path: str) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    return False


def _in_use(folder: str, holder: str, cure: str) -> RunError:
    return RunError(
        f"a run in {folder} is under way, in {holder}; two would write into one log. Give another "
        f"folder, or {cure}"
    )
