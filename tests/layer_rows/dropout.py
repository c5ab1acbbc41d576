"""Rows of the layers that drop at random."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

import moduli
import moduli_layers as layers
from layer_rows.row import Row


def dropout(layer: Any, x: Any) -> np.ndarray:
    """The definition, with the mask that the layer's stream gives at its first draw."""
    x = np.asarray(x, np.float64)
    shape = list(x.shape)
    for axis in layer.broadcast_dims:
        shape[axis] = 1
    key = jax.random.fold_in(layer.rngs.key.value, 0)
    kept = np.asarray(jax.random.uniform(key, shape) < 1 - layer.rate)
    return np.where(kept, x / (1 - layer.rate), 0)


def unchanged(layer: Any, x: Any) -> np.ndarray:
    """The inputs as they are."""
    return np.asarray(x)


_FREE: dict[str, Any] = {"checks_features": False, "needs_rngs": False}


def _drop(name: str, rate: float, **kwargs: Any) -> Row:
    def build(rngs: moduli.Rngs) -> Any:
        return layers.Dropout(rate, **kwargs, rngs=rngs)

    shape = (6, 5, 4)
    return Row(f"dropout-{name}", build, (shape,), shape, dropout, unchanged, random=True, **_FREE)


ROWS: list[Row] = [
    _drop("half", 0.5),
    _drop("rare", 0.1),
    _drop("broadcast", 0.3, broadcast_dims=(0, -1)),
]
