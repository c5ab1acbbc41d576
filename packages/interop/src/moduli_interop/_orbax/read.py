"""Reads a checkpoint that orbax has written, each array onto the devices where it shall be."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

from moduli_interop._dtypes import dtype_from_name, storage_dtype, to_bits
from moduli_interop._errors import (
    CheckpointError,
    CheckpointVersionError,
    CorruptCheckpointError,
    NotACheckpointError,
)
from moduli_interop._manifest import check_size, decode_manifest
from moduli_interop._match import cut
from moduli_interop._orbax.layout import (
    ARRAYS,
    MANIFEST,
    VERSION,
    checkpointer,
    file_digest,
    files_of,
    first_line,
    import_orbax,
    is_ours,
)
from moduli_interop._stored import Checkpoint, StoredArray, named_arrays

__all__ = ["read", "verify"]


def read(path: str) -> Checkpoint:
    """Reads the manifest of a checkpoint; its arrays are verified and read when they are asked for.

    Args:
      path: the folder.

    Raises:
      NotACheckpointError: if it is something else.
      CorruptCheckpointError: if it is damaged.
      CheckpointVersionError: if it was written by a later release in another format.
      OSError: if it cannot be opened.
    """
    return _Folder(path).checkpoint


def verify(path: str) -> None:
    """Reads every byte of a checkpoint, with little memory.

    Args:
      path: the folder.

    Raises:
      CheckpointError: as :func:`read` does; an error about damaged arrays names all of them.
    """
    folder = _Folder(path)
    folder.verify(folder.files)


class _Folder:
    """A folder whose manifest has been read and proved.

    Args:
      path: the folder.

    Attributes:
      checkpoint: what it holds.
      files: the size and digest of each file.
    """

    def __init__(self, path: str):
        self.path = os.path.abspath(path)
        if not os.path.exists(path):
            raise FileNotFoundError(f"there is no checkpoint {path}")
        if not is_ours(path):
            raise NotACheckpointError(
                f"{path} is not a checkpoint of moduli.save: it has no {MANIFEST} of ours; a "
                "folder that orbax wrote for another program can be read with orbax itself"
            )
        try:
            self._read()
        except (CheckpointError, OSError):
            raise
        except Exception as error:  # whatever a damaged or forged manifest leads to
            raise CorruptCheckpointError(
                f"the checkpoint {path} is damaged: its {MANIFEST} is not that of format "
                f"{VERSION}: {str(error)[:500] or type(error).__name__}. Nothing was loaded; use "
                "another copy"
            ) from error

    def _read(self) -> None:
        with open(os.path.join(self.path, MANIFEST), "rb") as file:
            whole = file.read()
        head, _, text = whole.partition(b"\n")
        match = re.match(rb'\{"moduli.checkpoint": (\d{1,9}),', head)
        version = int(match[1]) if match else 0
        if head + b"\n" != first_line(version, text):
            raise ValueError("it does not have its SHA-256")
        if version != VERSION:
            raise CheckpointVersionError(
                f"the checkpoint {self.path} is of format {version}; this release of "
                f"moduli-interop reads format {VERSION} of orbax checkpoints. Upgrade it: pip "
                "install -U moduli-interop"
            )
        check_size(text)
        content = json.loads(text)
        self.files: dict[str, list[int]] = content["files"]
        self._as_bits = set(content["stored_as_bits"])
        self._names: dict[str, str] = {}
        self._shared: dict[str, list[str]] = {"": []}
        self._arrays: dict[str, StoredArray] = {}
        for file in self.files:
            parts = file.split("/")
            owner = parts[1] if len(parts) > 2 and parts[1].startswith("array") else ""
            owner = "" if owner == "array_metadatas" else owner
            self._shared.setdefault(owner, []).append(file)
        checkpoint = decode_manifest(content["manifest"], self._reader, owned=True)
        for member, (name, _) in zip(
            list(self._names), named_arrays(checkpoint.leaves), strict=True
        ):
            self._names[member] = name
        self.checkpoint = Checkpoint(
            checkpoint.leaves, checkpoint.metadata, checkpoint.moduli_version, self._read_all
        )

    def _reader(self, member: str, array: StoredArray) -> Callable[[], np.ndarray]:
        self._names[member] = member
        self._arrays[member] = array

        def read() -> np.ndarray:
            return self._bits(member, self._restored({member: None})[member])

        return read

    def _read_all(self, pairs: list[tuple[StoredArray, Any]]) -> list[Any]:
        """Reads arrays onto their devices; see :class:`Checkpoint`."""
        members = {id(array): member for member, array in self._arrays.items()}
        wanted = {}
        for array, sharding in pairs:
            member = members[id(array)]
            wanted[member] = None if member in self._as_bits else sharding
        found = self._restored(wanted)
        return [
            found[member]
            if isinstance(found[member], jax.Array)
            else self._bits(member, found[member])
            for member in wanted  # an empty array is in no file, and none of JAX's here
        ]

    def _restored(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """Reads arrays, after their files are proved; those without a sharding as numpy's."""
        orbax = import_orbax()
        self.verify([file for owner in ("", *wanted) for file in self._shared.get(owner, ())])
        found: dict[str, Any] = {
            member: np.zeros(self._arrays[member].shape, self._stored_dtype(member))
            for member in wanted
            if not self._arrays[member].nbytes
        }
        arguments = {
            member: orbax.RestoreArgs(restore_type=np.ndarray)
            if sharding is None
            else orbax.ArrayRestoreArgs(sharding=sharding)
            for member, sharding in wanted.items()
            if member not in found
        }
        if arguments:
            order = orbax.args.PyTreeRestore(
                item=dict.fromkeys(arguments, 0), restore_args=arguments, partial_restore=True
            )
            try:
                with checkpointer(orbax) as reader:
                    found.update(reader.restore(os.path.join(self.path, ARRAYS), args=order))
            except (CheckpointError, MemoryError):
                raise
            except Exception as error:  # orbax and tensorstore raise what they like
                raise CorruptCheckpointError(
                    f"the checkpoint {self.path} cannot be read by orbax: {str(error)[:500]}"
                ) from error
        for member, value in found.items():
            array = self._arrays[member]
            got = (getattr(value, "dtype", type(value)), getattr(value, "shape", ()))
            if got != (self._stored_dtype(member), array.shape):
                raise CorruptCheckpointError(
                    f"the checkpoint {self.path} is damaged; damaged: `{self._names[member]}`, "
                    f"which is {got[0]}{list(got[1])} and should be "
                    f"{array.dtype}{list(array.shape)}"
                )
        return found

    def _stored_dtype(self, member: str) -> np.dtype:
        name = self._arrays[member].dtype
        return storage_dtype(name) if member in self._as_bits else dtype_from_name(name)

    def _bits(self, member: str, value: Any) -> np.ndarray:
        array = np.asarray(value)
        return array if member in self._as_bits else to_bits(array, self._arrays[member].dtype)

    def verify(self, files: Iterable[str]) -> None:
        """Compares files with their digests.

        Raises:
          CorruptCheckpointError: naming the arrays whose files differ.
        """
        there = set(files_of(self.path)) - {MANIFEST}
        bad = []
        for file in files:
            try:
                same = (
                    file in there and file_digest(os.path.join(self.path, file)) == self.files[file]
                )
            except OSError:
                same = False
            if not same:
                owner = file.split("/")[1] if "/" in file else file
                name = f"`{self._names[owner]}`" if owner in self._names else file
                if name not in bad:
                    bad.append(name)
        bad += sorted(there - self.files.keys())
        if bad:
            raise CorruptCheckpointError(
                f"the checkpoint {self.path} is damaged: its files do not have the CRC-32 that was "
                f"written with them; damaged: {cut(bad)}. Nothing was loaded; use another copy"
            )
