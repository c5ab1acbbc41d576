"""Rows of the wrappers that normalise weights."""

from __future__ import annotations

from typing import Any

import numpy as np

import moduli
import moduli_layers as layers
from layer_rows.conv import conv
from layer_rows.linear import linear
from layer_rows.row import Row, value


class With:
    """Reads like a layer, with another kernel."""

    def __init__(self, layer: Any, kernel: np.ndarray) -> None:
        self._layer = layer
        self.kernel = type("Given", (), {"value": kernel})

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layer, name)


def by_svd(layer: Any, x: Any) -> np.ndarray:
    """The wrapped layer with its kernel divided by the largest singular value."""
    inner = layer.layer_instance
    kernel = value(inner.kernel)
    sigma = np.linalg.svd(kernel.reshape((-1, kernel.shape[-1])), compute_uv=False)[0]
    run = conv if kernel.ndim > 2 else linear
    return run(With(inner, kernel / sigma), x)


def by_one_step(layer: Any, x: Any) -> np.ndarray:
    """The same with one step of power iteration from the stored vector."""
    kernel = value(layer.layer_instance.kernel)
    v = kernel @ value(layer.batch_stats["kernel", "u"])[0]
    v = v / np.sqrt(v @ v + layer.epsilon)
    u = v @ kernel
    u = u / np.sqrt(u @ u + layer.epsilon)
    return linear(With(layer.layer_instance, kernel / (v @ kernel @ u)), x)


def weight_norm(layer: Any, x: Any) -> np.ndarray:
    """The wrapped layer with ``scale * w / |w|``."""
    inner = layer.layer_instance
    kernel = value(inner.kernel)
    axes = layer.feature_axes
    axes = [axis % kernel.ndim for axis in (axes if isinstance(axes, tuple) else (axes,))]
    others = tuple(i for i in range(kernel.ndim) if i not in axes)
    kernel = kernel / np.sqrt(np.sum(kernel**2, others, keepdims=True) + layer.epsilon)
    if layer.scales is not None:
        scale = value(layer.scales["kernel",])
        kernel = kernel * np.expand_dims(scale, others)
    run = conv if kernel.ndim > 2 else linear
    return run(With(inner, kernel), x)


def _linear(rngs: moduli.Rngs) -> Any:
    return layers.Linear(3, 4, rngs=rngs)


def _conv(rngs: moduli.Rngs) -> Any:
    return layers.Conv(3, 4, (3,), rngs=rngs)


def _weight(name: str, inner: Any, **kwargs: Any) -> Row:
    axes, scale = kwargs.get("feature_axes", -1), kwargs.get("use_scale", True)
    spreads = {"layer_instance/kernel": 0.1, "layer_instance/bias": 0.0}

    def large(rngs: moduli.Rngs) -> Any:
        return layers.WeightNorm(layers.Linear(100, 200, rngs=rngs), **kwargs, rngs=rngs)

    return Row(
        f"weight_norm-{name}",
        lambda rngs: layers.WeightNorm(inner(rngs), **kwargs, rngs=rngs),
        ((2, 5, 3),),
        (2, 5, 4),
        weight_norm,
        init=None if scale or axes != -1 else (large, spreads),
    )


def _spectral(name: str, inner: Any, reference: Any, **kwargs: Any) -> Row:
    def large(rngs: moduli.Rngs) -> Any:
        return layers.SpectralNorm(layers.Linear(100, 200, rngs=rngs), rngs=rngs)

    return Row(
        f"spectral_norm-{name}",
        lambda rngs: layers.SpectralNorm(inner(rngs), **kwargs, rngs=rngs),
        ((2, 5, 3),),
        (2, 5, 4),
        reference,
        init=(large, {"layer_instance/kernel": 0.1, "layer_instance/bias": 0.0}),
        # the vectors are constants for the gradient; only at the fixed point do they not matter
        smooth=reference is by_svd,
    )


ROWS: list[Row] = [
    _spectral("converged", _linear, by_svd, n_steps=60),
    _spectral("conv", _conv, by_svd, n_steps=60),
    _spectral("one-step", _linear, by_one_step),
    _weight("linear", _linear),
    _weight("conv", _conv),
    _weight("no-scale", _linear, use_scale=False),
    _weight("one-length", _linear, feature_axes=None),
    _weight("rows", _linear, feature_axes=0),
    _weight("each-tap", _conv, feature_axes=(-1, 0)),
    _weight("every-entry", _linear, feature_axes=(0, 1)),
]
