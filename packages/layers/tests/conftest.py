"""What the tests of moduli-layers share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import pytest


@pytest.fixture(scope="session")
def flax_nnx() -> Any:
    """flax.nnx, the reference for names, initial values and random streams."""
    return pytest.importorskip("flax.nnx")


@pytest.fixture
def standard_promotion() -> Iterator[None]:
    """JAX's default promotion, for what a layer does with mixed dtypes; tests run strict."""
    with jax.numpy_dtype_promotion("standard"):
        yield
