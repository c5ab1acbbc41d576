"""Listing what a file holds."""

from __future__ import annotations

import pathlib

import jax.numpy as jnp
import pytest

import moduli as nnx
from moduli_interop import CheckpointError, inspect_checkpoint, save


def test_listing(file: pathlib.Path) -> None:
    weight = nnx.Param(jnp.ones((2, 3), jnp.bfloat16))
    model = nnx.Dict(
        {"a": weight, "b": weight, "seen": nnx.Intermediate((jnp.ones(2, jnp.float32), 1))}
    )
    save(file, model, metadata={"epoch": 3})
    info = inspect_checkpoint(file)
    assert (info.path, info.format, info.moduli_version) == (str(file), "npz", nnx.__version__)
    assert [(leaf.path, leaf.kind, leaf.type, leaf.nbytes) for leaf in info.leaves] == [
        (("a",), "Param", "bfloat16[2,3]", 12),
        (("seen",), "Intermediate", "(float32[2], int)", 8),
    ]
    assert str(info) == (
        f"{file}: format npz, written by moduli {nnx.__version__}, 2 leaves, 20 bytes\n"
        "metadata: {'epoch': 3}\n"
        "path   kind          type               bytes\n"
        "a = b  Param         bfloat16[2,3]      12\n"
        "seen   Intermediate  (float32[2], int)  8"
    )


def test_damaged_file_is_not_listed(file: pathlib.Path) -> None:
    save(file, nnx.Dict({"x": nnx.Param(jnp.ones(8))}))
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(CheckpointError):
        inspect_checkpoint(file)
