"""Rows of the dense layers."""

from __future__ import annotations

from typing import Any

import numpy as np

import moduli_layers as layers
from layer_rows.row import Bad, Row, value
from moduli.errors import ShapeError


def linear(layer: Any, x: Any) -> np.ndarray:
    """``x @ kernel + bias``."""
    return np.asarray(x, np.float64) @ value(layer.kernel) + value(layer.bias)


ROWS: list[Row] = [
    Row(
        "linear",
        lambda r: layers.Linear(3, 4, rngs=r),
        ((5, 3),),
        (5, 4),
        linear,
        bad=(Bad(((),), ShapeError, r"expects inputs of shape \(\.\.\., 3\), got shape \(\)"),),
        init=(lambda r: layers.Linear(100, 200, rngs=r), {"kernel": 0.1, "bias": 0}),
    ),
    Row(
        "linear-vector", lambda r: layers.Linear(3, 4, rngs=r), ((3,),), (4,), linear, batched=False
    ),
    Row("linear-batches", lambda r: layers.Linear(3, 1, rngs=r), ((2, 5, 3),), (2, 5, 1), linear),
    Row(
        "linear-no-bias",
        lambda r: layers.Linear(3, 4, use_bias=False, rngs=r),
        ((5, 3),),
        (5, 4),
        linear,
    ),
]
