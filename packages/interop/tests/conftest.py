"""What the tests of moduli-interop share."""

from __future__ import annotations

import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))  # for checkpoint_strategies


@pytest.fixture
def file(tmp_path: pathlib.Path) -> pathlib.Path:
    """A path for a checkpoint, in an empty directory of its own."""
    return tmp_path / "model.npz"
