"""Rows of the layers that drop at random."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

import moduli
import moduli_layers as layers
from layer_rows.row import Bad, Row
from moduli_layers.errors import DtypeError


def dropout(layer: Any, x: Any) -> np.ndarray:
    """The definition, with the mask that the layer's stream gives at its first draw."""
    x = np.asarray(x, np.float64)
    shape = list(x.shape)
    for axis in layer.broadcast_dims:
        shape[axis] = 1
    key = jax.random.fold_in(layer.rngs.key.value, 0)
    kept = np.asarray(jax.random.uniform(key, shape) < 1 - layer.rate)
    return np.where(kept, x / (1 - layer.rate), 0)


def stochastic_depth(layer: Any, x: Any) -> np.ndarray:
    """The definition, sample by sample, with the decisions of the stream's first draw."""
    x = np.asarray(x, np.float64)
    count = len(x) if layer.mode == "row" else 1
    key = jax.random.fold_in(layer.rngs.key.value, 0)
    lots = np.asarray(jax.random.uniform(key, (count,) + (1,) * (x.ndim - 1))).reshape(-1)
    kept = np.broadcast_to(lots < 1 - layer.rate, len(x))
    return np.stack(
        [row / (1 - layer.rate) if keep else 0 * row for row, keep in zip(x, kept, strict=True)]
    )


def unchanged(layer: Any, x: Any) -> np.ndarray:
    """The inputs as they are."""
    return np.asarray(x)


_FREE: dict[str, Any] = {"checks_features": False, "needs_rngs": False}


def _drop(name: str, rate: float, **kwargs: Any) -> Row:
    def build(rngs: moduli.Rngs) -> Any:
        return layers.Dropout(rate, **kwargs, rngs=rngs)

    shape = (6, 5, 4)
    return Row(f"dropout-{name}", build, (shape,), shape, dropout, unchanged, random=True, **_FREE)


def _deep(name: str, rate: float, **kwargs: Any) -> Row:
    def build(rngs: moduli.Rngs) -> Any:
        return layers.StochasticDepth(rate, **kwargs, rngs=rngs)

    shape = (6, 5, 4)
    return Row(
        f"stochastic_depth-{name}",
        build,
        (shape,),
        shape,
        stochastic_depth,
        unchanged,
        random=True,
        bad=(
            Bad(
                (lambda rng: rng.integers(0, 2, (6, 2), np.int32),),
                DtypeError,
                "got int32; write inputs",
            ),
        ),
        **_FREE,
    )


ROWS: list[Row] = [
    _drop("half", 0.5),
    _drop("rare", 0.1),
    _drop("broadcast", 0.3, broadcast_dims=(0, -1)),
    _deep("row", 0.5),
    _deep("rare", 0.2),
    _deep("batch", 0.4, mode="batch"),
]
