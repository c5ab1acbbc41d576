"""Reads a checkpoint from a safetensors file; each array is proved when it is read."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from typing import Any

import numpy as np

from moduli.errors import format_path
from moduli_interop._errors import (
    CheckpointError,
    CheckpointVersionError,
    CorruptCheckpointError,
    NotACheckpointError,
    TruncatedCheckpointError,
)
from moduli_interop._manifest import check_size, decode_manifest
from moduli_interop._match import cut
from moduli_interop._reading import BLOCK, BlockRead, SharedFile
from moduli_interop._safetensors.header import MAX_HEADER
from moduli_interop._single_file.layout import (
    DIGEST,
    DIGITS,
    MANIFEST,
    PREFIX,
    SUMS,
    VERSION,
    described,
    header_digest,
    place_of,
    start_of,
)
from moduli_interop._stored import (
    Checkpoint,
    Path,
    StoredArray,
    named_arrays,
    placed_arrays,
)

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
    check_size(first)
    header = json.loads(first[8:])
    texts = header.pop("__metadata__")
    _check_places(file, header, len(first))
    paths: dict[str, Path] = {}
    reader = _reader(file, header, texts[SUMS], paths, len(first))
    checkpoint = decode_manifest(texts[MANIFEST], reader, owned=True)
    if len(paths) < len(header):
        missing = sorted(header.keys() - paths.keys())
        raise ValueError(f"no value of the manifest is the array {missing[0][:200]!r}")
    members = list(paths)
    for member, (path, _) in zip(members, placed_arrays(checkpoint.leaves), strict=True):
        paths[member] = path
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


def _check_places(file: SharedFile, header: dict[str, Any], start: int) -> None:
    """Proves that the arrays fill the file, without a gap and without sharing a byte."""
    at = 0
    for begin, end in sorted(entry["data_offsets"] for entry in header.values()):
        if type(begin) is not int or type(end) is not int or begin != at or end < begin:
            raise ValueError("the arrays overlap, or leave a gap")
        at = end
    if start + at > file.size:
        ends = {entry["data_offsets"][1]: name for name, entry in header.items()}
        name = ends[min(end for end in ends if start + end > file.size)]
        raise TruncatedCheckpointError(
            f"the checkpoint {file.path} was cut off after {file.size} bytes: it ends within or "
            f"before the array `{name[:200]}`. moduli.save never leaves such a file, so it was "
            "probably copied or downloaded in part; copy it again"
        )
    if start + at < file.size:
        raise TruncatedCheckpointError(
            f"the checkpoint {file.path} does not end as it should: something was appended to it, "
            f"{file.size - start - at} bytes"
        )


def _reader(
    file: SharedFile, header: dict[str, Any], digits: str, paths: dict[str, Path], start: int
) -> Callable[[str, StoredArray], BlockRead]:
    """Returns what makes the readers of the arrays, in the order of the manifest."""
    sums = np.frombuffer(bytes.fromhex(digits), ">u4").tolist()
    sizes = (end - begin for begin, end in (e["data_offsets"] for e in header.values()))
    if len(sums) != sum(-(-size // BLOCK) for size in sizes) or len(digits) != 8 * len(sums):
        raise ValueError("the digests are not those of the arrays")
    at = 0

    def damaged(member: str) -> CorruptCheckpointError:
        return _damaged(file.path, f"`{format_path(paths[member])}`")

    def reader(member: str, array: StoredArray) -> BlockRead:
        entry = header[member]
        begin, end = entry["data_offsets"]
        nbytes = array.nbytes
        if (
            (entry["dtype"], tuple(entry["shape"])) != described(array)
            or end - begin != nbytes
            or len(entry) != 3
        ):
            raise ValueError(
                f"the array {member!r} is {entry} in the file, and the manifest says "
                f"{array.dtype}{list(array.shape)}"
            )
        nonlocal at
        paths[member] = (member,)
        first, at = at, at + -(-nbytes // BLOCK)
        return BlockRead(
            file,
            start + begin,
            array,
            sums[first:at],
            start_of(member, array),
            functools.partial(damaged, member),
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
