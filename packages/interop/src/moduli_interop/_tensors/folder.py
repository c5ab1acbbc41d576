"""A folder of tensors: an index and its shards, or one file."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from typing import Any

from moduli_interop._tensors.errors import TensorFileError
from moduli_interop._tensors.source import Opened, start_of
from moduli_interop._tensors.stored import StoredTensor, Tensors

__all__ = ["read_folder", "read_index", "recognises_index"]

MAX_INDEX = 100_000_000
_INDEX = ".index.json"
_PREFERRED = (
    *("model.safetensors.index.json", "model.safetensors"),
    *("diffusion_pytorch_model.safetensors.index.json", "diffusion_pytorch_model.safetensors"),
    *("adapter_model.safetensors", "pytorch_model.bin.index.json", "pytorch_model.bin"),
    "adapter_model.bin",
)
_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".npz", ".msgpack", ".eqx")

Read = Callable[[str], Tensors]


def recognises_index(opened: Opened) -> bool:
    """Returns whether a file is a JSON object with a ``weight_map`` near its beginning."""
    return opened.start.lstrip()[:1] == b"{" and (
        b'"weight_map"' in opened.start or opened.path.endswith(_INDEX)
    )


def read_folder(path: str, read: Read) -> Tensors:
    """Reads a folder.

    Args:
      path: the folder.
      read: reads one file.

    Raises:
      TensorFileError: if it holds no file of tensors, or several, or its index is wrong.
    """
    names = sorted(os.listdir(path))
    for name in _PREFERRED:
        if name in names:
            return read(os.path.join(path, name))
    candidates = [n for n in names if n.endswith(_INDEX)]
    candidates = candidates or [n for n in names if n.lower().endswith(_SUFFIXES)]
    if len(candidates) == 1:
        return read(os.path.join(path, candidates[0]))
    if candidates:
        listed = ", ".join(map(repr, candidates[:20])) + (" ..." if len(candidates) > 20 else "")
        raise TensorFileError(path, f"the folder has several files of tensors: {listed}; name one")
    listed = ", ".join(map(repr, names[:20])) or "nothing"
    raise TensorFileError(path, f"the folder has no file of tensors; it has {listed}")


def read_index(path: str, read: Read) -> Tensors:
    """Reads what an index names: files in its own folder, of which it says what each holds.

    Args:
      path: the index.
      read: reads one file.

    Raises:
      TensorFileError: if it names a file outside of its folder or one that is missing, or a tensor
        that its file lacks, or if two files have one tensor.
    """
    places, metadata = _decode(path)
    folder = os.path.dirname(path) or "."
    shards: dict[str, Tensors] = {}
    missing = [
        shard for shard in dict.fromkeys(places.values()) if not _exists(path, folder, shard)
    ]
    if missing:
        raise TensorFileError(
            path, f"names {', '.join(map(repr, missing[:10]))}, which the folder does not have"
        )
    for shard in dict.fromkeys(places.values()):
        file = os.path.join(folder, shard)
        if recognises_index(Opened(file, start_of(file))):
            raise TensorFileError(path, f"names {shard!r}, which is an index itself")
        shards[shard] = read(file)
    tensors: dict[str, StoredTensor] = {}
    for name, shard in places.items():
        if name not in shards[shard]:
            raise TensorFileError(path, f"the file {shard!r} should hold it and does not", name)
        tensors[name] = shards[shard][name]
    for shard, held in shards.items():
        for name in held:
            place = places.get(name, shard)  # what an index forgets is there all the same
            other = tensors.setdefault(name, held[name])
            if place != shard or other is not held[name]:
                first = place if place != shard else os.path.basename(other.file)
                raise TensorFileError(path, f"is in two files, {first!r} and {shard!r}", name)
    kind = next((held.kind for held in shards.values()), "empty")
    return Tensors(path, f"{kind}, {len(shards)} files", tensors, metadata)


def _exists(path: str, folder: str, shard: str) -> bool:
    """Returns whether a file is there; raises if its name leads out of the folder."""
    if not shard or shard in (".", "..") or any(c in shard for c in ("/", "\\", "\0", ":")):
        raise TensorFileError(
            path, f"names {shard[:200]!r}, which is no name of a file in its own folder"
        )
    file = os.path.join(folder, shard)
    if not os.path.lexists(file):
        return False
    if os.path.islink(file) and not _stays(folder, file):
        raise TensorFileError(
            path, f"names {shard!r}, which is a link to {os.path.realpath(file)}, out of its folder"
        )
    return os.path.isfile(file)


def _stays(folder: str, file: str) -> bool:
    """Returns whether a link leads to a file of the same folder, or of the same cache.

    The cache of Hugging Face's hub keeps files in ``blobs`` and links to them from
    ``snapshots/<revision>``.
    """
    home, target = os.path.realpath(folder), os.path.realpath(file)
    above = os.path.dirname(home)
    blobs = os.path.join(os.path.dirname(above), "blobs")
    in_cache = os.path.basename(above) == "snapshots" and os.path.dirname(target) == blobs
    return in_cache or os.path.commonpath([home, target]) == home


def _decode(path: str) -> tuple[Mapping[str, str], dict[str, str]]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise TensorFileError(path, "the index has this name twice", twice)
        return found

    with open(path, "rb") as file:
        text = file.read(MAX_INDEX + 1)
    if len(text) > MAX_INDEX:
        raise TensorFileError(path, f"the index is larger than {MAX_INDEX} bytes")
    try:
        index = json.loads(text.decode("utf-8"), object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        if isinstance(error, TensorFileError):
            raise
        raise TensorFileError(path, f"the index is no JSON: {str(error)[:200]}") from None
    places = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(places, dict) or not all(isinstance(v, str) for v in places.values()):
        raise TensorFileError(path, "the index has no weight_map from names to files")
    metadata = index.get("metadata")
    texts = metadata.items() if isinstance(metadata, dict) else ()
    return places, {str(key): str(value) for key, value in texts}
