"""Rows of the normalisations."""

from __future__ import annotations

from typing import Any

import numpy as np

import moduli
import moduli_layers as layers
from layer_rows.row import Row, value


def _normalise(layer: Any, x: np.ndarray, mean: np.ndarray, var: np.ndarray) -> np.ndarray:
    scale = 1.0 if layer.scale is None else value(layer.scale)
    y = (x - mean) / np.sqrt(var + layer.epsilon) * scale + value(layer.bias)
    return np.moveaxis(y, -1, layer.axis)


def batch_norm(layer: Any, x: Any) -> np.ndarray:
    """Normalisation by the batch's own mean and biased variance."""
    x = np.moveaxis(np.asarray(x, np.float64), layer.axis, -1)
    flat = x.reshape((-1, x.shape[-1]))
    return _normalise(layer, x, flat.mean(0), flat.var(0))


def batch_norm_eval(layer: Any, x: Any) -> np.ndarray:
    """Normalisation by the running statistics."""
    x = np.moveaxis(np.asarray(x, np.float64), layer.axis, -1)
    return _normalise(layer, x, value(layer.mean), value(layer.var))


def _norm(name: str, shape: tuple[int, ...], features: int, **kwargs: Any) -> Row:
    def build(rngs: moduli.Rngs) -> Any:
        return layers.BatchNorm(features, **kwargs, rngs=rngs)

    return Row(
        f"batch_norm-{name}",
        build,
        (shape,),
        shape,
        batch_norm,
        batch_norm_eval,
        checks_features=kwargs.get("axis", -1) == -1,
        torch=kwargs.get("axis", -1) == -1,
    )


ROWS: list[Row] = [
    _norm("vector-features", (7, 3), 3),
    _norm("images", (4, 5, 6, 3), 3, momentum=0.9, epsilon=1e-3),
    _norm("axis", (4, 3, 5), 3, axis=1),
    _norm("axis-from-end", (4, 3, 5), 3, axis=-2),
    _norm("no-scale", (7, 3), 3, use_scale=False),
    _norm("no-bias", (7, 3), 3, use_bias=False),
    _norm("exact-variance", (7, 3), 3, use_fast_variance=False),
]
