"""Inspect: what a checkpoint holds, without a model."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from moduli.errors import format_path
from moduli_interop._choose import recognize_format
from moduli_interop._path_of import path_of
from moduli_interop._quick import no_collection
from moduli_interop._stored import Leaf, Path, arrays_in, describe

__all__ = ["CheckpointInfo", "LeafInfo", "inspect_checkpoint", "verify_checkpoint"]


@dataclasses.dataclass(frozen=True)
class LeafInfo:
    """One Variable or array of a checkpoint.

    Attributes:
      path: where it stands in the model.
      kind: name of the Variable's class, or ``"array"``.
      type: dtype and shape, or the structure of several values: ``"float32[3,4]"``.
      nbytes: size of its arrays.
      aliases: the other paths to the same Variable.
    """

    path: Path
    kind: str
    type: str
    nbytes: int
    aliases: tuple[Path, ...]


@dataclasses.dataclass(frozen=True)
class CheckpointInfo:
    """What a checkpoint holds; print it for a table.

    Attributes:
      path: the file.
      format: name of its format.
      moduli_version: the moduli that wrote it.
      metadata: what the user gave to ``save``.
      leaves: one entry for each Variable or array, in the order of the model's state.
    """

    path: str
    format: str
    moduli_version: str
    metadata: Mapping[str, Any]
    leaves: tuple[LeafInfo, ...]

    def __str__(self) -> str:
        total = sum(leaf.nbytes for leaf in self.leaves)
        rows = [(_name(leaf), leaf.kind, leaf.type, f"{leaf.nbytes:,}") for leaf in self.leaves]
        rows = [("path", "kind", "type", "bytes"), *rows]
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        table = "\n".join(
            "  ".join([*map(str.ljust, row[:3], widths), row[3]]).rstrip() for row in rows
        )
        return (
            f"{self.path}: format {self.format}, written by moduli {self.moduli_version}, "
            f"{len(self.leaves)} leaves, {total:,} bytes\nmetadata: {dict(self.metadata)}\n{table}"
        )


def inspect_checkpoint(
    path: str | os.PathLike[str], *, format: str | None = None, verify: bool = True
) -> CheckpointInfo:
    """Lists what a checkpoint holds.

    Args:
      path: the file.
      format: name of the format; by default the content of the file tells it.
      verify: whether to read the whole file too and verify it, as :func:`verify_checkpoint` does;
        otherwise only what it says of itself is read.

    Returns:
      The listing, with the user's metadata.

    Raises:
      CheckpointError: if the file is damaged or not a checkpoint.

    Example:
      >>> import moduli as nnx, tempfile, os
      >>> from moduli_interop import inspect_checkpoint, save
      >>> path = os.path.join(tempfile.mkdtemp(), "model.safetensors")
      >>> save(path, nnx.Dict({"scale": nnx.Param(2.5)}), metadata={"epoch": 3})
      >>> info = inspect_checkpoint(path)
      >>> info.metadata, info.leaves[0].path, info.leaves[0].kind, info.leaves[0].type
      ({'epoch': 3}, ('scale',), 'Param', 'float')
    """
    file = path_of(path, "inspect_checkpoint", "path")
    chosen = recognize_format(file, format)
    checkpoint = (chosen.open or chosen.load)(file)
    if verify:
        verify_checkpoint(file, format=chosen.name)
    leaves = tuple(map(_info, checkpoint.leaves))
    return CheckpointInfo(file, chosen.name, checkpoint.moduli_version, checkpoint.metadata, leaves)


def verify_checkpoint(path: str | os.PathLike[str], *, format: str | None = None) -> None:
    """Reads every byte of a checkpoint and raises what is wrong; keeps nothing in memory.

    Args:
      path: the file.
      format: name of the format; by default the content of the file tells it.

    Raises:
      CheckpointError: if the file is damaged or not a checkpoint; names the damaged arrays.
      OSError: if it cannot be opened.

    Example:
      >>> import moduli as nnx, tempfile, os
      >>> from moduli_interop import save, verify_checkpoint
      >>> path = os.path.join(tempfile.mkdtemp(), "model.safetensors")
      >>> save(path, nnx.Dict({"scale": nnx.Param(2.5)}))
      >>> verify_checkpoint(path)
    """
    file = path_of(path, "verify_checkpoint", "path")
    chosen = recognize_format(file, format)
    with no_collection():
        if chosen.verify is not None:
            chosen.verify(file)
            return
        checkpoint = chosen.load(file)
        for leaf in checkpoint.leaves:
            for array in arrays_in(leaf.value):
                if array.read is not None:
                    array.read()


def _info(leaf: Leaf) -> LeafInfo:
    size = sum(array.nbytes for array in arrays_in(leaf.value))
    return LeafInfo(leaf.path, leaf.kind, describe(leaf.value), size, leaf.aliases)


def _name(leaf: LeafInfo) -> str:
    return " = ".join(map(format_path, (leaf.path, *leaf.aliases)))
