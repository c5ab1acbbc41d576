"""Rows of the layers made around dense layers: LoRA, LoRALinear, MLP, PReLU."""

from __future__ import annotations

import functools
from typing import Any

import jax.numpy as jnp
import numpy as np
import scipy.special as special

import moduli
import moduli_layers as layers
from layer_rows.linear import linear
from layer_rows.norm import batch_norm, batch_norm_eval
from layer_rows.row import Bad, Row, value
from moduli.errors import ShapeError
from moduli_layers.errors import DtypeError


def low_rank(layer: Any, x: Any) -> np.ndarray:
    """``x (a b)``, the matrices multiplied first."""
    return np.asarray(x, np.float64) @ (value(layer.lora_a) @ value(layer.lora_b))


def wrapped(layer: Any, x: Any) -> np.ndarray:
    """What the Linear inside computes, and the adaptation."""
    return linear(layer.base_module, x) + low_rank(layer, x)


def lora_linear(layer: Any, x: Any) -> np.ndarray:
    """One Linear whose kernel is the sum."""
    kernel = value(layer.kernel) + value(layer.lora.lora_a) @ value(layer.lora.lora_b)
    return np.asarray(x, np.float64) @ kernel + value(layer.bias)


def mlp(layer: Any, x: Any, activation: Any, norm: Any = None, final: bool = False) -> np.ndarray:
    """The Linears in turn, with what stands between them."""
    last = len(layer.hidden_features)
    for index in range(last + 1):
        x = linear(layer.layers[index], x)
        if index < last or final:
            x = x if norm is None else norm(layer.norms[index], x)
            x = activation(x)
    return x


def prelu(layer: Any, x: Any) -> np.ndarray:
    """``max(x, 0) + slope * min(x, 0)``."""
    x = np.asarray(x, np.float64)
    return np.maximum(x, 0) + value(layer.negative_slope) * np.minimum(x, 0)


def _lora(rngs: moduli.Rngs) -> Any:
    linear = layers.Linear(3, 4, rngs=rngs)
    return layers.LoRA(3, 2, 4, base_module=linear, rngs=rngs)


def _large(rngs: moduli.Rngs) -> Any:
    return layers.LoRA(200, 50, 100, rngs=rngs)


def _large_linear(rngs: moduli.Rngs) -> Any:
    return layers.LoRALinear(200, 100, lora_rank=50, rngs=rngs)


def _large_mlp(rngs: moduli.Rngs) -> Any:
    return layers.MLP(100, 400, 100, rngs=rngs)


def _silu(x: Any) -> Any:
    return x * special.expit(x)


_wrong = Bad(((),), ShapeError, r"\(in_features=3\) expects inputs of shape \(\.\.\., 3\), got sha")

ROWS: list[Row] = [
    Row(
        "lora",
        lambda r: layers.LoRA(3, 2, 4, rngs=r),
        ((5, 3),),
        (5, 4),
        low_rank,
        bad=(_wrong,),
        init=(_large, {"lora_a": (2 / 200) ** 0.5, "lora_b": 0}),
    ),
    Row("lora-wraps", _lora, ((2, 5, 3),), (2, 5, 4), wrapped),
    Row(
        "lora_linear",
        lambda r: layers.LoRALinear(3, 4, lora_rank=2, rngs=r),
        ((5, 3),),
        (5, 4),
        lora_linear,
        bad=(_wrong,),
        init=(
            _large_linear,
            {
                "kernel": 200**-0.5,
                "bias": 0,
                "lora/lora_a": (2 / 200) ** 0.5,
                "lora/lora_b": 0,
            },
        ),
    ),
    Row(
        "lora_linear-no-bias",
        lambda r: layers.LoRALinear(3, 4, lora_rank=1, use_bias=False, rngs=r),
        ((5, 3),),
        (5, 4),
        lora_linear,
    ),
    Row(
        "mlp",
        lambda r: layers.MLP(3, (6, 5), 4, activation=layers.silu, rngs=r),
        ((5, 3),),
        (5, 4),
        functools.partial(mlp, activation=_silu),
        bad=(Bad(((2,),), ShapeError, r"expects inputs of shape \(\.\.\., 3\), got shape \(2,\)"),),
        init=(
            _large_mlp,
            {
                "layers/0/kernel": 0.1,
                "layers/0/bias": 0,
                "layers/1/kernel": 0.05,
                "layers/1/bias": 0,
            },
        ),
    ),
    Row(
        "mlp-relu",
        lambda r: layers.MLP(3, 16, 4, use_bias=False, activate_final=True, rngs=r),
        ((5, 3),),
        (5, 4),
        functools.partial(mlp, activation=lambda x: np.maximum(x, 0), final=True),
        smooth=False,
    ),
    Row(
        "mlp-no-hidden",
        lambda r: layers.MLP(3, (), 4, rngs=r),
        ((5, 3),),
        (5, 4),
        lambda layer, x: linear(layer.layers[0], x),
    ),
    Row(
        "mlp-batch-norm",
        lambda r: layers.MLP(3, 6, 4, activation=jnp.tanh, norm=layers.BatchNorm, rngs=r),
        ((5, 3),),
        (5, 4),
        functools.partial(mlp, activation=np.tanh, norm=batch_norm),
        functools.partial(mlp, activation=np.tanh, norm=batch_norm_eval),
    ),
    Row(
        "prelu",
        lambda r: layers.PReLU(),
        ((5, 3),),
        (5, 3),
        prelu,
        bad=(
            Bad(
                (lambda rng: rng.integers(0, 7, (5, 3), np.int32),),
                DtypeError,
                r"expects floating-point numbers, got int32; write inputs.astype\(jnp.float32\)",
            ),
        ),
        checks_features=False,
        needs_rngs=False,
    ),
    Row(
        "prelu-features",
        lambda r: layers.PReLU(0.3, num_parameters=3),
        ((2, 4, 3),),
        (2, 4, 3),
        prelu,
        bad=(Bad(((2, 4),), ShapeError, r"\(num_parameters=3\) expects inputs of shape"),),
        needs_rngs=False,
    ),
    Row(
        "prelu-steep",
        lambda r: layers.PReLU(1.5),
        ((2, 4, 3),),
        (2, 4, 3),
        prelu,
        checks_features=False,
        needs_rngs=False,
    ),
]
