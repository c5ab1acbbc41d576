"""What the tests of moduli-layers share."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.fixture(scope="session")
def flax_nnx() -> Any:
    """flax.nnx, the reference for names, initial values and random streams."""
    return pytest.importorskip("flax.nnx")
