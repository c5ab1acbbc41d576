"""Writes a checkpoint with orbax: each process its shards, the first one the rest."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np

from moduli_interop._atomic import atomic_folder, sync_tree
from moduli_interop._dtypes import from_bits
from moduli_interop._errors import UnsupportedValueError
from moduli_interop._manifest import encode_manifest
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
from moduli_interop._stored import Checkpoint, StoredArray

__all__ = ["write"]

_KNOWN = frozenset(
    (
        *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
        *("float16", "float32", "float64", "complex64", "complex128", "bfloat16"),
    )
)


def write(path: str, checkpoint: Checkpoint) -> None:
    """Writes a checkpoint, atomically; with several processes, all of them call it.

    Args:
      path: the folder to make or to replace.
      checkpoint: what to write.

    Raises:
      MissingExtraError: if orbax is not installed.
      UnsupportedValueError: if an array of a dtype that zarr does not know is spread over several
        processes.
      OSError: if the folder cannot be written, or there is one with other things in it.
    """
    orbax = import_orbax()
    count = iter(range(1 << 62))
    manifest, arrays = encode_manifest(checkpoint, name=lambda path: f"array{next(count)}")
    tree = {name: _live(array) for name, array in arrays.items() if array.nbytes}
    _check_folder(path)
    with _folder(path) as new:
        if tree:
            try:
                with checkpointer(orbax) as writer:
                    writer.save(os.path.join(new, ARRAYS), args=orbax.args.PyTreeSave(tree))
            except ValueError as error:  # what tensorstore makes of the system's errors
                code = re.search(r"os_error_code='(\d+)'", str(error))
                number = int(code[1]) if code else errno.EIO
                raise OSError(number, f"orbax cannot write {path}: {str(error)[:500]}") from error
        if jax.process_index() == 0:
            content = {
                "manifest": manifest,
                "stored_as_bits": [n for n, array in arrays.items() if array.dtype not in _KNOWN],
                "files": {file: file_digest(os.path.join(new, file)) for file in files_of(new)},
            }
            text = json.dumps(content).encode()
            with open(os.path.join(new, MANIFEST), "wb") as file:
                file.write(first_line(VERSION, text) + text)


def _check_folder(path: str) -> None:
    """Refuses to take the place of a folder with anything but a checkpoint in it."""
    if os.path.isdir(path) and os.listdir(path) and not is_ours(path):
        raise FileExistsError(
            f"{path} is a folder with something else in it than a checkpoint of moduli.save "
            f"({', '.join(sorted(os.listdir(path))[:3])}, ...), which would be lost; remove it, or "
            "choose another name"
        )


def _live(array: StoredArray) -> Any:
    """Returns what orbax shall write: the array on its devices where it can be."""
    live = array.live
    if live is not None and array.dtype in _KNOWN:
        return jax.random.key_data(live) if array.key_impl is not None else live
    if live is not None and not (live.is_fully_addressable or live.is_fully_replicated):
        raise UnsupportedValueError(
            f"an array of dtype {array.dtype} is spread over several processes, and orbax cannot "
            "write that dtype; cast it, or gather it first with "
            "jax.experimental.multihost_utils.process_allgather"
        )
    bits = array.read_bits()
    return from_bits(bits, array.dtype) if array.dtype in _KNOWN else np.ascontiguousarray(bits)


@contextmanager
def _folder(path: str) -> Iterator[str]:
    """Gives a folder that takes the place of ``path`` when all processes are done with it."""
    if jax.process_count() == 1:
        with atomic_folder(path) as new:
            yield new
        return
    from jax.experimental import multihost_utils

    target = os.path.realpath(path)
    directory, name = os.path.split(target)
    new = os.path.join(directory, f".{name}.{0:016x}.moduli-tmp")  # the same in all processes
    first = jax.process_index() == 0
    if first:
        shutil.rmtree(new, ignore_errors=True)
        os.mkdir(new)
    multihost_utils.sync_global_devices(f"moduli: {name} begins")
    yield new
    multihost_utils.sync_global_devices(f"moduli: {name} is written")
    if first:
        sync_tree(new)
        if os.path.isdir(target):
            shutil.rmtree(target)
        os.rename(new, target)
    multihost_utils.sync_global_devices(f"moduli: {name} is there")
