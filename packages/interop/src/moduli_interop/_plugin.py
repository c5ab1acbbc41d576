"""What moduli-interop contributes through its own hooks: checkpoint formats, sources of tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moduli import hookimpl
from moduli_interop._format import Format

if TYPE_CHECKING:
    from moduli_interop._stored import Checkpoint
    from moduli_interop._tensors.source import TensorSource


@hookimpl
def moduli_checkpoint_formats() -> list[Format]:
    """Returns the built-in format."""
    return [Format("npz", (".npz", ".moduli"), _save, _load)]


def _save(path: str, checkpoint: Checkpoint) -> None:
    from moduli_interop._npz.write import write

    write(path, checkpoint)


def _load(path: str) -> Checkpoint:
    from moduli_interop._npz.read import read

    return read(path)


@hookimpl
def moduli_tensor_sources() -> list[TensorSource]:
    """Returns the built-in kinds of files of tensors."""
    from moduli_interop._tensors.built_in import SOURCES

    return SOURCES
