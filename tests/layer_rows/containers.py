"""Rows of the layers made of layers."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

import moduli
import moduli_layers as layers
from layer_rows.conv import conv
from layer_rows.linear import linear
from layer_rows.norm import batch_norm, batch_norm_eval
from layer_rows.row import Row, value


def softplus(x: Any) -> Any:
    """A function that a Sequential may hold next to Modules."""
    return jnp.logaddexp(x, 0)


def sequential(layer: Any, x: Any) -> np.ndarray:
    """Linear, softplus, Linear."""
    hidden = np.logaddexp(linear(layer.layers[0], x), 0)
    return linear(layer.layers[2], hidden)


def chain_eval(layer: Any, x: Any) -> np.ndarray:
    """Convolution, batch normalisation by running statistics, relu."""
    return np.maximum(batch_norm_eval(layer.layers[1], conv(layer.layers[0], x)), 0)


def chain(layer: Any, x: Any) -> np.ndarray:
    """Convolution, batch normalisation by the batch, relu."""
    return np.maximum(batch_norm(layer.layers[1], conv(layer.layers[0], x)), 0)


def stack(layer: Any, x: Any) -> np.ndarray:
    """Linear and softplus, three times."""
    stacked = layer.block.layers[0]
    for kernel, bias in zip(value(stacked.kernel), value(stacked.bias), strict=True):
        x = np.logaddexp(np.asarray(x, np.float64) @ kernel + bias, 0)
    return x


def _stack(name: str, **options: Any) -> Row:
    def build(rngs: moduli.Rngs) -> Any:
        def block(rngs: moduli.Rngs) -> Any:
            return layers.Sequential(layers.Linear(3, 3, rngs=rngs), softplus)

        return layers.Stack(block, 3, rngs=rngs, **options)

    # blocks without parameters need no streams
    return Row(name, build, ((5, 3),), (5, 3), stack, needs_rngs=False)


def _shared(rngs: moduli.Rngs) -> Any:
    linear = layers.Linear(3, 3, rngs=rngs)
    return layers.Sequential(linear, softplus, linear)


ROWS: list[Row] = [
    _stack("stack"),
    _stack("stack-looped", scan=False),
    _stack("stack-remat", remat=True),
    Row(
        "sequential",
        lambda r: layers.Sequential(
            layers.Linear(3, 8, rngs=r), softplus, layers.Linear(8, 2, rngs=r)
        ),
        ((5, 3),),
        (5, 2),
        sequential,
    ),
    Row("sequential-shared", _shared, ((5, 3),), (5, 3), sequential),
    Row(
        "sequential-conv-norm",
        lambda r: layers.Sequential(
            layers.Conv(2, 4, (3, 3), rngs=r), layers.BatchNorm(4, rngs=r), layers.relu
        ),
        ((3, 5, 5, 2),),
        (3, 5, 5, 4),
        chain,
        chain_eval,
    ),
]
