"""Reads a checkpoint from a safetensors file; each array is proved when it is read."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np

from moduli_interop._errors import (
    CheckpointError,
    CheckpointVersionError,
    CorruptCheckpointError,
    NotACheckpointError,
    TruncatedCheckpointError,
)
from moduli_interop._manifest import decode_manifest
from moduli_interop._match import cut
from moduli_interop._reading import BLOCK, BlockRead, SharedFile
from moduli_interop._safetensors.dtypes import tag_of
from moduli_interop._safetensors.header import MAX_HEADER, Header, read_header
from moduli_interop._single_file.layout import (
    DIGEST,
    DIGITS,
    MANIFEST,
    PREFIX,
    SUMS,
    VERSION,
    header_digest,
    place_of,
    stored_as,
)
from moduli_interop._stored import Checkpoint, StoredArray, named_arrays
from moduli_interop._tensors.errors import TensorFileError

__all__ = ["read", "verify"]


def read(path: str) -> Checkpoint:
    """Reads the header of a checkpoint, proves it, and describes the arrays.

    Args:
      path: the file.

    Returns:
      The checkpoint; its arrays are read, and proved, when their ``read`` is called.

    Raises:
      NotACheckpointError: if the file is something else.
      TruncatedCheckpointError: if it ends early.
      CorruptCheckpointError: if any byte of the header differs from what was written.
      CheckpointVersionError: if it was written by a later release in another format.
      OSError: if it cannot be opened.
    """
    file = SharedFile(path)
    try:
        return _read(file)
    except (CheckpointError, OSError):
        raise
    except Exception as error:  # whatever a forged header leads to
        raise CorruptCheckpointError(
            f"the checkpoint {path} has the right digest, but its content is not that of format "
            f"{VERSION}: {str(error)[:500] or type(error).__name__}. It was not written by "
            "moduli.save"
        ) from error


def verify(path: str) -> None:
    """Reads every byte of a checkpoint, with little memory.

    Args:
      path: the file.

    Raises:
      CheckpointError: as :func:`read` does; an error about damaged arrays names all of them.
    """
    bad = []
    for name, array in named_arrays(read(path).leaves):
        assert isinstance(array.read, BlockRead)
        try:
            array.read.verify()
        except CorruptCheckpointError:
            bad.append(f"`{name}`")
    if bad:
        raise _damaged(path, cut(bad))


def _damaged(path: str, names: str) -> CorruptCheckpointError:
    return CorruptCheckpointError(
        f"the checkpoint {path} is damaged: its bytes do not have the CRC-32 that was written with "
        f"them; damaged: {names}. Nothing was loaded; use another copy"
    )


def _read(file: SharedFile) -> Checkpoint:
    first = _first_bytes(file)
    with os.fdopen(os.dup(file.descriptor), "rb") as opened:
        try:
            header = read_header(opened, file.path)
        except TensorFileError as error:
            raise _wrong_length(file, first, error) from error
    names: dict[str, str] = {}
    reader = _reader(file, header, names)
    checkpoint = decode_manifest(header.metadata[MANIFEST], reader, owned=True)
    missing = header.entries.keys() - names.keys()
    if missing:
        raise ValueError(f"no value of the manifest is the array {sorted(missing)[0][:200]!r}")
    members = iter(list(names))
    for name, _ in named_arrays(checkpoint.leaves):
        names[next(members)] = name
    return checkpoint


def _first_bytes(file: SharedFile) -> bytes:
    """Returns everything before the first array, after proving it."""
    start = bytearray(8 + len(PREFIX))
    count = file.read_into(memoryview(start), 0)
    if count < 8 or not PREFIX.startswith(start[8:count]) or not count > 8:
        raise _not_a_checkpoint(file, bytes(start[:count]))
    length = 8 + int.from_bytes(start[:8], "little")
    if length > file.size or length > MAX_HEADER + 8:
        raise TruncatedCheckpointError(
            f"the checkpoint {file.path} should have a header of {length} bytes and has "
            f"{file.size} bytes in all: it was cut off, or the first bytes are damaged; it ends "
            "before the first array. moduli.save never leaves such a file, so it was probably "
            "copied or downloaded in part; copy it again"
        )
    first = bytearray(length)
    file.read_into(memoryview(first), 0)
    version = first[8 + len(PREFIX) : 8 + len(PREFIX) + 10].split(b'"')[0]
    try:
        place = place_of(bytes(first), DIGEST, DIGITS)
        proved = header_digest(bytes(first)).encode() == first[place : place + DIGITS]
    except ValueError:
        proved = False
    if (proved or version != b"%d" % VERSION) and version.isdigit() and int(version) > VERSION:
        raise CheckpointVersionError(
            f"the checkpoint {file.path} is of format {version.decode()}; this release of "
            f"moduli-interop reads format {VERSION} of safetensors checkpoints. Upgrade it: "
            "pip install -U moduli-interop"
        )
    if not proved:
        raise CorruptCheckpointError(
            f"the checkpoint {file.path} is damaged: its header does not have the SHA-256 that was "
            "written with it, so the arrays cannot be told apart. Nothing was loaded; use another "
            "copy. A program that rewrites safetensors files changes the header too: save again "
            "with moduli.save"
        )
    return bytes(first)


def _wrong_length(file: SharedFile, first: bytes, error: TensorFileError) -> Exception:
    text = str(error)[:500]
    if "truncated" in text:
        return TruncatedCheckpointError(
            f"the checkpoint {file.path} was cut off after {file.size} bytes: {text}. moduli.save "
            "never leaves such a file, so it was probably copied or downloaded in part; copy it "
            "again"
        )
    if "follow the last tensor" in text:
        return TruncatedCheckpointError(
            f"the checkpoint {file.path} does not end as it should: something was appended to it: "
            f"{text}"
        )
    return ValueError(text)


def _reader(
    file: SharedFile, header: Header, names: dict[str, str]
) -> Callable[[str, StoredArray], BlockRead]:
    """Returns what makes the readers of the arrays, in the order of the manifest."""
    digits = header.metadata[SUMS]
    at = 0
    places: dict[str, int] = {}
    for entry in sorted(header.entries.values(), key=lambda entry: (entry.start, entry.stop)):
        places[entry.name] = at
        at += 8 * -(-(entry.stop - entry.start) // BLOCK)
    if at != len(digits):
        raise ValueError("the digests are not those of the arrays")
    sums = np.frombuffer(bytes.fromhex(digits), ">u4").tolist()

    def reader(member: str, array: StoredArray) -> BlockRead:
        entry = header.entries[member]
        dtype, shape = stored_as(array)
        if entry.tag != tag_of(dtype) or entry.shape != shape:
            raise ValueError(
                f"the array {member!r} is {entry.tag}{list(entry.shape)} in the file, and the "
                f"manifest says {array.dtype}{list(array.shape)}"
            )
        names[member] = member
        first = places[member] // 8
        blocks = -(-array.nbytes // BLOCK)
        return BlockRead(
            file,
            entry.start,
            array,
            sums[first : first + blocks],
            lambda: _damaged(file.path, f"`{names[member]}`"),
        )

    return reader


def _not_a_checkpoint(file: SharedFile, head: bytes) -> Exception:
    if not head:
        what = "it is empty"
    elif head[:4] == b"PK\x03\x04":
        what = "it is a zip archive, such as an .npz file of numpy.savez or a file of torch.save"
    elif head[:1] == b"\x80":
        what = "it may be a pickle, which moduli never reads, because a pickle can run any code"
    elif head[8:9] == b"{":
        what = (
            "it may be a safetensors file of another program; moduli.load_weights reads such files"
        )
    else:
        what = f"it begins with the bytes {head[:4]!r}"
    return NotACheckpointError(f"{file.path} is not a checkpoint of moduli.save: {what}")
