"""Writes a checkpoint as a safetensors file."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from typing import BinaryIO

import numpy as np

from moduli_interop._atomic import atomic_write, start_writing_back
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
from moduli_interop._tensors.errors import TensorFileError
from moduli_interop._workers import Workers

__all__ = ["write"]

_WAITING = 16  # blocks whose digests may be under way
_SMALL = 1 << 18  # bytes that are not worth a thread
_TOGETHER = 1 << 20  # bytes of small arrays that one call writes


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
    with atomic_write(path) as file:
        file.write(first)
        found = _write_arrays(file, {spec.name: arrays[spec.name] for spec in ordered})
        sums = [sum for name in arrays for sum in found[name]]
        header = bytearray(first)
        start = place_of(first, SUMS, 8 * blocks)
        header[start : start + 8 * blocks] = np.array(sums, ">u4").tobytes().hex().encode()
        start = place_of(first, DIGEST, DIGITS)
        header[start : start + DIGITS] = header_digest(bytes(header)).encode()
        file.seek(0)
        file.write(header)


def _write_arrays(file: BinaryIO, arrays: dict[str, StoredArray]) -> dict[str, list[int]]:
    """Writes arrays, and returns the digests of their blocks, found in other threads meanwhile."""
    sums: dict[str, Sequence[int | Future[int]]] = {}
    waiting: deque[Future[int]] = deque()
    small: list[bytes] = []  # written together: a call for each would take longer than its bytes
    together = 0
    with Workers() as pool:
        for name, array in arrays.items():
            bits = array.read_bits()
            if bits.nbytes != array.nbytes:
                raise ValueError(f"an array of {array.nbytes} bytes gave {bits.nbytes}")
            begin = start_of(name, array)
            if bits.nbytes <= _SMALL:
                copied = bits.tobytes()
                sums[name] = (block_digest(copied, begin, 0),) if copied else ()
                small.append(copied)
                together += len(copied)
                if together > _TOGETHER:
                    file.write(b"".join(small))
                    small, together = [], 0
                continue
            file.write(b"".join(small))
            small, together = [], 0
            mine: list[Future[int]] = []
            sums[name] = mine
            data = np.ascontiguousarray(bits).reshape(-1).view(np.uint8).data
            for block, start in enumerate(range(0, len(data), BLOCK)):
                piece = data[start : start + BLOCK]
                future = pool.submit(block_digest, piece, begin, block)
                mine.append(future)
                waiting.append(future)
                place = file.tell()
                file.write(piece)
                start_writing_back(file, place, len(piece))
                if len(waiting) > _WAITING:
                    waiting.popleft().result()
        file.write(b"".join(small))
    return {
        name: [sum if isinstance(sum, int) else sum.result() for sum in mine]
        for name, mine in sums.items()
    }
