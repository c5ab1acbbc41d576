"""Activations and pools: functions here, modules of ``torch.nn`` there."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import moduli
from moduli_interop._bridges.bridge import Conversion
from moduli_interop._bridges.conventions import (
    ChannelsFirst,
)

__all__ = [
    "activations",
    "flatten",
    "from_adaptive_pool",
    "from_pool",
    "function_to_theirs",
    "pool_to_theirs",
]


def activations() -> dict[Any, Callable[[Any], Any]]:
    import torch.nn as nn

    def plain(function: Any) -> Callable[[Any], Any]:
        return lambda module: function

    partial = functools.partial
    return {
        nn.Identity: plain(moduli.identity),
        nn.ReLU: plain(moduli.relu),
        nn.ReLU6: plain(moduli.relu6),
        nn.Sigmoid: plain(moduli.sigmoid),
        nn.Tanh: plain(moduli.tanh),
        nn.SiLU: plain(moduli.silu),
        nn.SELU: plain(moduli.selu),
        nn.LogSigmoid: plain(moduli.log_sigmoid),
        nn.Softsign: plain(moduli.soft_sign),
        nn.Hardsigmoid: plain(moduli.hard_sigmoid),
        nn.Hardswish: plain(moduli.hard_swish),
        nn.Mish: plain(moduli.mish),
        nn.GELU: lambda module: partial(moduli.gelu, approximate=module.approximate == "tanh"),
        nn.ELU: lambda module: partial(moduli.elu, alpha=module.alpha),
        nn.CELU: lambda module: partial(moduli.celu, alpha=module.alpha),
        nn.LeakyReLU: lambda module: partial(
            moduli.leaky_relu, negative_slope=module.negative_slope
        ),
        nn.Softplus: lambda module: partial(
            _softplus, beta=module.beta, threshold=module.threshold
        ),
        nn.Softmax: lambda module: partial(moduli.softmax, axis=_axis(module.dim)),
        nn.LogSoftmax: lambda module: partial(moduli.log_softmax, axis=_axis(module.dim)),
        nn.GLU: lambda module: partial(moduli.glu, axis=module.dim),
    }


def _axis(dim: int | None) -> int:
    return -1 if dim is None else dim


def _softplus(x: Any, beta: float, threshold: float) -> jax.Array:
    x = jnp.asarray(x)
    return jnp.where(x * beta > threshold, x, moduli.softplus(x * beta) / beta)


def flatten(x: Any, start: int, end: int) -> jax.Array:
    start, end = start % x.ndim, end % x.ndim
    return x.reshape((*x.shape[:start], math.prod(x.shape[start : end + 1]), *x.shape[end + 1 :]))


def function_to_theirs(function: Any, convert: Conversion) -> Any:
    import torch.nn as nn

    settings: dict[str, Any] = {}
    inner = function
    if isinstance(function, functools.partial) and not function.args:
        inner, settings = function.func, dict(function.keywords)
    if inner is flatten:
        return nn.Flatten(settings["start"], settings["end"])
    if inner is _softplus:
        return nn.Softplus(settings["beta"], settings["threshold"])
    name = getattr(inner, "__name__", None)
    if not isinstance(name, str) or inner not in (
        getattr(moduli, name, None),
        getattr(jax.nn, name, None),
        getattr(jnp, name, None),
    ):
        return NotImplemented
    plain = {
        "identity": nn.Identity,
        "relu": nn.ReLU,
        "relu6": nn.ReLU6,
        "sigmoid": nn.Sigmoid,
        "tanh": nn.Tanh,
        "silu": nn.SiLU,
        "swish": nn.SiLU,
        "selu": nn.SELU,
        "log_sigmoid": nn.LogSigmoid,
        "soft_sign": nn.Softsign,
        "hard_sigmoid": nn.Hardsigmoid,
        "hard_swish": nn.Hardswish,
        "hard_silu": nn.Hardswish,
        "hard_tanh": nn.Hardtanh,
        "mish": nn.Mish,
        "softplus": nn.Softplus,
    }
    if name in plain and not settings:
        return plain[name]()
    others: dict[str, Callable[..., Any]] = {
        "gelu": lambda approximate=True: nn.GELU("tanh" if approximate else "none"),
        "elu": lambda alpha=1.0: nn.ELU(alpha),
        "celu": lambda alpha=1.0: nn.CELU(alpha),
        "leaky_relu": lambda negative_slope=0.01: nn.LeakyReLU(negative_slope),
        "softmax": lambda axis=-1: nn.Softmax(axis),
        "log_softmax": lambda axis=-1: nn.LogSoftmax(axis),
        "glu": lambda axis=-1: nn.GLU(axis),
    }
    if name in others:
        try:
            return others[name](**settings)
        except TypeError:
            return NotImplemented
    return NotImplemented


def from_pool(module: Any, convert: Conversion, rank: int, kind: str) -> Any:
    def each(value: Any) -> tuple[int, ...]:
        return (value,) * rank if isinstance(value, int) else tuple(value)

    dilation = each(getattr(module, "dilation", 1))
    if any(d != 1 for d in dilation) or getattr(module, "return_indices", 0):
        convert.refuse(module, "with dilation or return_indices")
    settings: dict[str, Any] = {"ceil_mode": True} if module.ceil_mode else {}
    if kind == "avg":
        if getattr(module, "divisor_override", None) is not None:
            convert.refuse(module, "with divisor_override")
        settings["count_include_pad"] = module.count_include_pad
    function = moduli.max_pool if kind == "max" else moduli.avg_pool
    padding = tuple((p, p) for p in each(module.padding))
    pool = functools.partial(
        function,
        window_shape=each(module.kernel_size),
        strides=each(module.stride),
        padding=padding,
        **settings,
    )
    return ChannelsFirst(pool, axis=-1 - rank)


def from_adaptive_pool(module: Any, convert: Conversion, rank: int, function: Any) -> Any:
    if getattr(module, "return_indices", False):
        convert.refuse(module, "with return_indices")
    size = module.output_size
    size = tuple(size) if isinstance(size, (tuple, list)) else (size,) * rank
    return ChannelsFirst(functools.partial(function, output_size=size), axis=-1 - rank)


def pool_to_theirs(function: Any) -> Any:
    """Returns PyTorch's layer for a function that pools; None if it has none."""
    import torch

    if not isinstance(function, functools.partial) or function.args:
        return None
    settings = dict(function.keywords)
    kind = {
        moduli.max_pool: "MaxPool",
        moduli.avg_pool: "AvgPool",
        moduli.adaptive_max_pool: "AdaptiveMaxPool",
        moduli.adaptive_avg_pool: "AdaptiveAvgPool",
    }.get(function.func)
    window = settings.pop("output_size", None) or settings.pop("window_shape", None)
    if kind is None or not isinstance(window, (tuple, list)) or not 1 <= len(window) <= 3:
        return None
    cls = getattr(torch.nn, f"{kind}{len(window)}d")
    if kind.startswith("Adaptive"):
        return None if settings else cls(tuple(window))
    strides, padding = settings.pop("strides", None), settings.pop("padding", "VALID")
    if isinstance(padding, str):
        if padding.upper() != "VALID":
            return None
        padding = 0
    if isinstance(padding, int):
        padding = (padding,) * len(window)
    pairs = [side if isinstance(side, (tuple, list)) else (side, side) for side in padding]
    if any(a != b or 2 * a > size for (a, b), size in zip(pairs, window, strict=True)):
        return None
    return cls(tuple(window), strides or 1, tuple(a for a, _ in pairs), **settings)
