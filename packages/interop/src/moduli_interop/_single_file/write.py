"""Writes a checkpoint as a safetensors file."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any, BinaryIO

import numpy as np

from moduli_interop._atomic import atomic_write
from moduli_interop._errors import UnsupportedValueError
from moduli_interop._manifest import encode_manifest
from moduli_interop._reading import BLOCK, block_digest
from moduli_interop._safetensors.write import Spec, layout
from moduli_interop._single_file.layout import (
    DIGEST,
    DIGITS,
    MANIFEST,
    SUMS,
    VERSION,
    VERSION_KEY,
    header_digest,
    member_name,
    place_of,
    start_of,
    stored_as,
)
from moduli_interop._stored import Checkpoint, StoredArray
from moduli_interop._system import start_writing_back
from moduli_interop._tensors.errors import TensorFileError
from moduli_interop._workers import Workers

__all__ = ["write"]

_WAITING = 16  # blocks whose digests may be under way
_SMALL = 1 << 18  # bytes that are not worth a thread
_TOGETHER = 1 << 20  # bytes of small arrays that one call writes
_WRITE_BACK = 1 << 26  # bytes that the system is asked to bring to the disk at a time


def write(path: str, checkpoint: Checkpoint) -> None:
    """Writes a checkpoint, atomically.

    Args:
      path: the file to make or to replace.
      checkpoint: what to write; arrays are read one after another.

    Raises:
      UnsupportedValueError: if there are more arrays than a header of safetensors can name.
      OSError: if the file cannot be written. The old file is then untouched.
    """
    manifest, arrays = encode_manifest(checkpoint, name=member_name)
    blocks = sum(-(-array.nbytes // BLOCK) for array in arrays.values())
    texts = {
        VERSION_KEY: str(VERSION),
        DIGEST: "0" * DIGITS,
        SUMS: "0" * 8 * blocks,
        MANIFEST: manifest,
    }
    specs = [Spec(name, *stored_as(array), array.read_bits) for name, array in arrays.items()]
    try:
        first, ordered = layout(specs, texts, path)
    except TensorFileError as error:
        raise UnsupportedValueError(f"cannot save to {path}: {error}") from error
    total = len(first) + sum([array.nbytes for array in arrays.values()])
    with atomic_write(path, nbytes=total) as file:
        file.write(first)
        found = _Writer(file, len(first)).write({spec.name: arrays[spec.name] for spec in ordered})
        sums = [sum for name in arrays for sum in found[name]]
        header = bytearray(first)
        start = place_of(first, SUMS, 8 * blocks)
        header[start : start + 8 * blocks] = np.array(sums, ">u4").tobytes().hex().encode()
        start = place_of(first, DIGEST, DIGITS)
        header[start : start + DIGITS] = header_digest(bytes(header)).encode()
        file.seek(0)
        file.write(header)


class _Writer:
    """Writes arrays, and finds the digests of their blocks in other threads meanwhile.

    Args:
      file: the file.
      at: where the first array begins; the file stands there.
    """

    def __init__(self, file: BinaryIO, at: int):
        self._file = file
        self._at = at
        self._brought = at  # up to here the system was asked to bring the file to the disk
        self._waiting: deque[Future[Any]] = deque()
        self._small: list[bytes] = []  # a call for each would take longer than its bytes
        self._together = 0

    def write(self, arrays: dict[str, StoredArray]) -> dict[str, Sequence[int]]:
        """Writes arrays one after another; returns the digests of their blocks."""
        sums: dict[str, Sequence[int]] = {}
        later: dict[str, list[Future[int]]] = {}
        with Workers() as pool:
            for name, array in arrays.items():
                bits = array.read_bits()
                nbytes = bits.nbytes
                if nbytes != array.nbytes:
                    raise ValueError(f"an array of {array.nbytes} bytes gave {nbytes}")
                if nbytes > _SMALL:
                    later[name] = self._large(bits, name, array, pool)
                    continue
                copied = bits.tobytes()
                sums[name] = (block_digest(copied, start_of(name, array), 0),) if nbytes else ()
                self._small.append(copied)
                self._together += nbytes
                if self._together > _TOGETHER:
                    self._flush()
            self._flush()
        return sums | {name: [sum.result() for sum in mine] for name, mine in later.items()}

    def _flush(self) -> None:
        self._file.write(b"".join(self._small))
        self._at += self._together
        self._small, self._together = [], 0

    def _large(
        self, bits: np.ndarray, name: str, array: StoredArray, pool: Workers
    ) -> list[Future[int]]:
        self._flush()
        sums = []
        begin = start_of(name, array)
        changing = array.container != "jax"  # another thread may write into a numpy array
        data = np.ascontiguousarray(bits).reshape(-1).view(np.uint8).data
        for block, start in enumerate(range(0, len(data), BLOCK)):
            piece: Any = data[start : start + BLOCK]
            piece = bytes(piece) if changing else piece  # what is digested is what is written
            sums.append(pool.submit(block_digest, piece, begin, block))
            self._waiting.append(sums[-1])
            self._file.write(piece)
            self._at += len(piece)
            if self._at - self._brought >= _WRITE_BACK:
                length = self._at - self._brought
                task = pool.submit(start_writing_back, self._file, self._brought, length)
                self._waiting.append(task)
                self._brought = self._at
            if len(self._waiting) > _WAITING:
                self._waiting.popleft().result()
        return sums
