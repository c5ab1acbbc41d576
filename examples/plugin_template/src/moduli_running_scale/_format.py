"""A file format for checkpoints: a head, a digest, a manifest, the arrays' bytes."""

from __future__ import annotations

import hashlib
import json
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
from moduli_interop import (
    Checkpoint,
    CorruptCheckpointError,
    Format,
    NotACheckpointError,
    StoredArray,
    atomic_write,
    decode_manifest,
    encode_manifest,
)

__all__ = ["FORMAT"]

_HEAD = b"running_scale checkpoint 1\n"
_START = len(_HEAD) + 32  # after the digest


def _save(path: str, checkpoint: Checkpoint) -> None:
    text, arrays = encode_manifest(checkpoint)
    entries: list[tuple[str, str, int]] = []
    parts: list[bytes] = []
    for name, array in arrays.items():
        if array.read is not None:  # an abstract array has no bits
            bits = array.read()
            parts.append(bits.tobytes())
            entries.append((name, bits.dtype.str, len(parts[-1])))
    manifest = json.dumps([text, entries]).encode()
    body = len(manifest).to_bytes(8, "little") + manifest + b"".join(parts)
    with atomic_write(path) as file:  # the old file stays until the new one is whole
        file.write(_HEAD + hashlib.sha256(body).digest() + body)


def _load(path: str) -> Checkpoint:
    content = pathlib.Path(path).read_bytes()
    if not content.startswith(_HEAD):
        raise NotACheckpointError(f"{path} does not begin with {_HEAD!r}")
    body = content[_START:]
    if hashlib.sha256(body).digest() != content[len(_HEAD) : _START]:
        raise CorruptCheckpointError(f"{path} is not as it was written: its digest is another")
    start = 8 + int.from_bytes(body[:8], "little")
    text, entries = json.loads(body[8:start])
    found: dict[str, np.ndarray[Any, Any]] = {}
    for name, dtype, size in entries:
        found[name] = np.frombuffer(body[start : start + size], dtype)
        start += size

    def reader(name: str, array: StoredArray) -> Callable[[], np.ndarray[Any, Any]]:
        return lambda: found[name].reshape(array.shape)

    return decode_manifest(text, reader)


def _recognizes(path: str) -> bool:
    file = pathlib.Path(path)
    if not file.is_file():
        return False
    with file.open("rb") as opened:
        return opened.read(len(_HEAD)) == _HEAD


FORMAT = Format(
    "running_scale",
    (".running_scale",),
    save=_save,
    load=_load,
    recognizes=_recognizes,
)
