"""What the tests of moduli-train share."""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Iterator

import jax
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))  # for optimizer_models


@pytest.fixture
def standard_promotion() -> Iterator[None]:
    """JAX's usual dtype promotion: optax mixes floats and ints, which strict promotion forbids."""
    with jax.numpy_dtype_promotion("standard"):
        yield
