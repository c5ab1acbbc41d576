"""What the tests have in common that run one program in moduli and in flax.nnx."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

__all__ = ["assert_same_numbers"]


def assert_same_numbers(ours: Any, theirs: Any, *, rtol: float, atol: float) -> None:
    """Compares what a program returned in two libraries: structure, then every number."""
    ours, theirs = (jax.tree.map(np.asarray, _plain(result)) for result in (ours, theirs))
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), ours, theirs)


def _plain(result: Any) -> Any:
    """Reads the Variables in what a program returned."""
    if isinstance(result, (tuple, list)):
        return [_plain(item) for item in result]
    return result.get_value() if hasattr(result, "get_value") else result
