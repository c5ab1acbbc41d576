"""What the tests of core share."""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Callable

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))  # core_models stands beside the tests


@pytest.fixture
def fresh_plugins(moduli_fresh_plugins: None) -> None:
    """Looks for plugins anew before and after the test."""


@pytest.fixture
def distribution(moduli_distribution: Callable[..., pathlib.Path]) -> Callable[..., pathlib.Path]:
    """Installs a distribution for the test: a module, metadata and entry points on sys.path."""
    return moduli_distribution
