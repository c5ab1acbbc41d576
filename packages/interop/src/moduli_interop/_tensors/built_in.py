"""The kinds of files of tensors that moduli-interop reads itself."""

from __future__ import annotations

from moduli_interop._tensors import folder, msgpack, npy, safetensors
from moduli_interop._tensors.read import read_file
from moduli_interop._tensors.source import TensorSource
from moduli_interop._tensors.stored import Tensors
from moduli_interop._tensors.torch import archive, legacy

__all__ = ["SOURCES"]


def _read_index(path: str) -> Tensors:
    return folder.read_index(path, read_file)


SOURCES = [
    TensorSource("safetensors", safetensors.recognises, safetensors.read),
    TensorSource("index", folder.recognises_index, _read_index),
    TensorSource("torch", archive.recognises, archive.read),
    TensorSource("torch-legacy", legacy.recognises, legacy.read),
    TensorSource("npz", npy.recognises_npz, npy.read_npz),
    TensorSource("npy", npy.recognises_eqx, npy.read_eqx),
    TensorSource("msgpack", msgpack.recognises, msgpack.read),
]
