"""Rows of the poolings."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import moduli
import moduli_layers as layers
from layer_rows.row import Bad, Row
from moduli.errors import ShapeError


def pool(reduce: Any, window: tuple[int, ...], stride: int, x: Any) -> np.ndarray:
    """Unpadded pooling of one batch axis, window by window."""
    x = np.asarray(x, np.float64)
    counts = [(n - k) // stride + 1 for n, k in zip(x.shape[1:-1], window, strict=True)]
    out = np.empty((x.shape[0], *counts, x.shape[-1]))
    for place in itertools.product(*map(range, counts)):
        view = tuple(slice(p * stride, p * stride + k) for p, k in zip(place, window, strict=True))
        patch = x[(slice(None), *view)]
        out[(slice(None), *place)] = reduce(patch, axis=tuple(range(1, patch.ndim - 1)))
    return out


class Pool(moduli.Module):
    """Makes a layer of a pooling function, so that it has a row."""

    def __init__(self, function: Callable[..., Any], window: tuple[int, ...], stride: int) -> None:
        self.function, self.window, self.stride = function, window, stride

    def __call__(self, x: Any) -> Any:
        """Pools."""
        strides = (self.stride,) * len(self.window)
        return self.function(x, self.window, strides=strides)


def _pool(name: str, function: Any, reduce: Any, shape: Any, window: Any, stride: int) -> Row:
    def reference(layer: Any, x: Any) -> np.ndarray:
        return pool(reduce, window, stride, x)

    out = tuple((n - k) // stride + 1 for n, k in zip(shape[1:-1], window, strict=True))
    return Row(
        name,
        lambda rngs: Pool(function, window, stride),
        (shape,),
        (shape[0], *out, shape[-1]),
        reference,
        checks_features=False,
        needs_rngs=False,
    )


class AdaptivePool(moduli.Module):
    """Makes a layer of an adaptive pooling function."""

    def __init__(self, function: Callable[..., Any], size: tuple[int | None, ...]) -> None:
        self.function, self.size = function, size

    def __call__(self, x: Any) -> Any:
        """Pools."""
        return self.function(x, self.size)


def _adaptive(kind: str, function: Any, shape: Any, size: Any) -> Row:
    """A row with PyTorch's adaptive pooling as the reference."""

    def reference(layer: Any, x: Any) -> np.ndarray:
        torch = pytest.importorskip("torch")
        sign = -1 if kind == "min" else 1
        name = f"adaptive_{'avg' if kind == 'avg' else 'max'}_pool{len(size)}d"
        x = torch.tensor(sign * np.moveaxis(np.asarray(x, np.float64), -1, 1))
        return sign * np.moveaxis(getattr(torch.nn.functional, name)(x, size).numpy(), 1, -1)

    out = tuple(n if k is None else k for n, k in zip(shape[1:-1], size, strict=True))
    return Row(
        f"adaptive_{kind}_pool-{'x'.join(map(str, shape))}",
        lambda rngs: AdaptivePool(function, size),
        (shape,),
        (shape[0], *out, shape[-1]),
        reference,
        bad=(
            Bad((shape[1:-1],), ShapeError, "spatial axes, got shape"),
            Bad(((2, *[0] * len(size), 3),), ShapeError, "with an empty spatial axis"),
        ),
        checks_features=False,
        needs_rngs=False,
    )


ROWS: list[Row] = [
    _pool("avg_pool", layers.avg_pool, np.mean, (2, 7, 6, 3), (3, 2), 2),
    _pool("max_pool", layers.max_pool, np.max, (2, 7, 6, 3), (3, 2), 2),
    _pool("min_pool", layers.min_pool, np.min, (2, 9, 3), (4,), 1),
    _pool("max_pool-3d", layers.max_pool, np.max, (1, 4, 5, 4, 2), (2, 2, 2), 2),
    _adaptive("avg", layers.adaptive_avg_pool, (2, 7, 6, 3), (3, 4)),
    _adaptive("avg", layers.adaptive_avg_pool, (2, 8, 3), (4,)),
    _adaptive("avg", layers.adaptive_avg_pool, (2, 3, 3), (5,)),
    _adaptive("avg", layers.adaptive_avg_pool, (2, 4, 5, 3, 2), (1, None, 2)),
    _adaptive("max", layers.adaptive_max_pool, (2, 7, 6, 3), (3, 4)),
    _adaptive("max", layers.adaptive_max_pool, (2, 5, 3), (1,)),
    _adaptive("min", layers.adaptive_min_pool, (2, 7, 6, 3), (2, 5)),
    _adaptive("avg", layers.adaptive_avg_pool, (2, 13, 3), (9,)),
    _adaptive("max", layers.adaptive_max_pool, (2, 13, 3), (9,)),
    _adaptive("min", layers.adaptive_min_pool, (2, 4, 3), (9,)),
]
