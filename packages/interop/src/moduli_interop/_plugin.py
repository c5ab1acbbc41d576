"""What moduli-interop contributes through its own hooks: for files, and for frameworks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moduli import hookimpl
from moduli_interop._format import Format

if TYPE_CHECKING:
    from moduli_interop._bridges.bridge import Bridge, LayerRule
    from moduli_interop._stored import Checkpoint
    from moduli_interop._tensors.source import TensorSource


@hookimpl
def moduli_checkpoint_formats() -> list[Format]:
    """Returns the formats; what each needs is imported when it is used."""
    return [
        Format(
            "safetensors",
            (".safetensors",),
            _save_safetensors,
            _load_safetensors,
            _is_safetensors,
            _load_safetensors,
            _verify_safetensors,
        ),
        Format(
            "npz",
            (".npz", ".moduli"),
            _save_npz,
            _load_npz,
            _is_npz,
            _open_npz,
            _verify_npz,
        ),
        Format(
            "orbax",
            (".orbax",),
            _save_orbax,
            _load_orbax,
            _is_orbax,
            _load_orbax,
            _verify_orbax,
            writes_shards=True,
        ),
    ]


@hookimpl
def moduli_bridges() -> list[Bridge]:
    """Returns the built-in bridges."""
    from moduli_interop._bridges.bridge import Bridge

    return [
        Bridge("flax.nnx", "flax", "flax", lambda: ()),  # by its names, see _bridges.flax_nnx
        Bridge("equinox", "equinox", "equinox", _equinox_rules),
        Bridge("haiku", "haiku", "dm-haiku", _haiku_rules),
        Bridge("torch", "torch", "torch", _torch_rules),
    ]


def _equinox_rules() -> list[LayerRule]:
    from moduli_interop._bridges.equinox import rules

    return rules()


def _haiku_rules() -> list[LayerRule]:
    from moduli_interop._bridges.haiku_rules import rules

    return rules()


def _torch_rules() -> list[LayerRule]:
    from moduli_interop._bridges.torch import rules

    return rules()


def _save_safetensors(path: str, checkpoint: Checkpoint) -> None:
    from moduli_interop._single_file.write import write

    write(path, checkpoint)


def _load_safetensors(path: str) -> Checkpoint:
    from moduli_interop._single_file.read import read

    return read(path)


def _is_safetensors(path: str) -> bool:
    from moduli_interop._single_file.layout import is_ours

    return is_ours(path)


def _verify_safetensors(path: str) -> None:
    from moduli_interop._single_file.read import verify

    verify(path)


def _save_npz(path: str, checkpoint: Checkpoint) -> None:
    from moduli_interop._npz.write import write

    write(path, checkpoint)


def _load_npz(path: str) -> Checkpoint:
    from moduli_interop._npz.read import read

    return read(path)


def _is_npz(path: str) -> bool:
    from moduli_interop._npz.layout import is_ours

    return is_ours(path)


def _open_npz(path: str) -> Checkpoint:
    from moduli_interop._npz.read import open_unverified

    return open_unverified(path)


def _verify_npz(path: str) -> None:
    from moduli_interop._npz.read import verify

    verify(path)


def _save_orbax(path: str, checkpoint: Checkpoint) -> None:
    from moduli_interop._orbax.write import write

    write(path, checkpoint)


def _load_orbax(path: str) -> Checkpoint:
    from moduli_interop._orbax.read import read

    return read(path)


def _is_orbax(path: str) -> bool:
    from moduli_interop._orbax.layout import is_ours

    return is_ours(path)


def _verify_orbax(path: str) -> None:
    from moduli_interop._orbax.read import verify

    verify(path)


@hookimpl
def moduli_tensor_sources() -> list[TensorSource]:
    """Returns the built-in kinds of files of tensors."""
    from moduli_interop._tensors.built_in import SOURCES

    return SOURCES
