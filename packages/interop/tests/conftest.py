"""What the tests of moduli-interop share."""

from __future__ import annotations

import pathlib

import pytest


@pytest.fixture
def file(tmp_path: pathlib.Path) -> pathlib.Path:
    """A path for a checkpoint, in an empty directory of its own."""
    return tmp_path / "model.npz"
