"""Rows of the normalisations."""

from __future__ import annotations

from typing import Any

import numpy as np

import moduli
import moduli_layers as layers
from layer_rows.row import Bad, Row, value
from moduli.errors import ShapeError


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


def _statistics(layer: Any, x: np.ndarray, axes: tuple[int, ...], shape: Any) -> np.ndarray:
    """Normalisation over axes; scale and bias get a shape that broadcasts."""
    mean = np.mean(x, axes, keepdims=True)
    var = np.mean((x - mean) ** 2, axes, keepdims=True)
    scale = np.ones(()) if layer.scale is None else value(layer.scale).reshape(shape)
    bias = value(layer.bias) if layer.bias is None else value(layer.bias).reshape(shape)
    return (x - mean) / np.sqrt(var + layer.epsilon) * scale + bias


def _as_tuple(axes: Any) -> tuple[int, ...]:
    return axes if isinstance(axes, tuple) else (axes,)


def _kept(x: np.ndarray, axes: Any) -> list[int]:
    """Returns the shape of what differs along these axes only."""
    kept = [axis % x.ndim for axis in _as_tuple(axes)]
    return [size if i in kept else 1 for i, size in enumerate(x.shape)]


def layer_norm(layer: Any, x: Any) -> np.ndarray:
    """Normalisation over the reduction axes."""
    x = np.asarray(x, np.float64)
    return _statistics(layer, x, _as_tuple(layer.reduction_axes), _kept(x, layer.feature_axes))


def rms_norm(layer: Any, x: Any) -> np.ndarray:
    """Division by the root mean square over the reduction axes."""
    x = np.asarray(x, np.float64)
    size = np.sqrt(np.mean(x**2, _as_tuple(layer.reduction_axes), keepdims=True) + layer.epsilon)
    scale = np.ones(()) if layer.scale is None else value(layer.scale)
    return x / size * (scale.reshape(_kept(x, layer.feature_axes)) if scale.ndim else scale)


def group_norm(layer: Any, x: Any) -> np.ndarray:
    """Each group of features by itself, one after the other."""
    x = np.asarray(x, np.float64)
    axes = layer.reduction_axes
    axes = (*range(1, x.ndim - 1), -1) if axes is None else axes
    parts = []
    for part in np.split(x, layer.num_groups, -1):
        mean = np.mean(part, axes, keepdims=True)
        var = np.var(part, axes, keepdims=True)
        parts.append((part - mean) / np.sqrt(var + layer.epsilon))
    scale = 1.0 if layer.scale is None else value(layer.scale)
    return np.concatenate(parts, -1) * scale + value(layer.bias)


def instance_norm(layer: Any, x: Any) -> np.ndarray:
    """Normalisation over all axes but the first and the features'."""
    x = np.asarray(x, np.float64)
    shape = _kept(x, layer.feature_axes)
    axes = tuple(i for i, size in enumerate(shape) if i and size == 1)
    return _statistics(layer, x, axes, shape)


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


def _plain(
    name: str,
    kind: Any,
    reference: Any,
    shape: tuple[int, ...],
    *args: Any,
    torch: bool = True,
    batched: bool = True,
    bad: tuple[Bad, ...] = (),
    **kwargs: Any,
) -> Row:
    """A row of a layer without running statistics; ``torch`` says whether PyTorch has it."""
    first, *_ = args
    last = kwargs.get("feature_axes", -1) == -1
    return Row(
        name,
        lambda rngs: kind(*args, **kwargs, rngs=rngs),
        (shape,),
        shape,
        reference,
        bad=bad,
        init=(
            lambda rngs: kind(first * 512, *args[1:], **kwargs, rngs=rngs),
            {
                name: 0.0
                for name in ("scale", "bias")
                if kwargs.get(f"use_{name}", True) and (name, kind) != ("bias", layers.RMSNorm)
            },
        ),
        batched=batched,
        checks_features=last,
        torch=torch,
    )


def _layer(name: str, shape: tuple[int, ...], *args: Any, **kwargs: Any) -> Row:
    return _plain(f"layer_norm-{name}", layers.LayerNorm, layer_norm, shape, *args, **kwargs)


def _rms(name: str, shape: tuple[int, ...], *args: Any, **kwargs: Any) -> Row:
    return _plain(f"rms_norm-{name}", layers.RMSNorm, rms_norm, shape, *args, **kwargs)


def _group(name: str, shape: tuple[int, ...], *args: Any, **kwargs: Any) -> Row:
    return _plain(f"group_norm-{name}", layers.GroupNorm, group_norm, shape, *args, **kwargs)


def _instance(name: str, shape: tuple[int, ...], *args: Any, **kwargs: Any) -> Row:
    return _plain(
        f"instance_norm-{name}", layers.InstanceNorm, instance_norm, shape, *args, **kwargs
    )


_SCALAR = Bad(((),), ShapeError, r"expects inputs of shape \(\.\.\., 4\), got shape \(\)")
_SIZES = Bad(
    ((3, 5, 2),), ShapeError, r"expects 20 features on these axes, got sizes \(5, 2\).*=10"
)

ROWS: list[Row] = [
    _norm("vector-features", (7, 3), 3),
    _norm("images", (4, 5, 6, 3), 3, momentum=0.9, epsilon=1e-3),
    _norm("axis", (4, 3, 5), 3, axis=1),
    _norm("axis-from-end", (4, 3, 5), 3, axis=-2),
    _norm("no-scale", (7, 3), 3, use_scale=False),
    _norm("no-bias", (7, 3), 3, use_bias=False),
    _norm("exact-variance", (7, 3), 3, use_fast_variance=False),
    _layer("features", (5, 4), 4, bad=(_SCALAR,)),
    _layer("one-example", (4,), 4, batched=False),
    _layer("images", (3, 5, 2, 4), 4, epsilon=1e-2),
    _layer("no-scale", (5, 4), 4, use_scale=False, torch=False),
    _layer("no-bias", (5, 4), 4, use_bias=False),
    _layer("no-parameters", (5, 4), 4, use_scale=False, use_bias=False),
    _layer("exact-variance", (5, 4), 4, use_fast_variance=False),
    _layer("all-but-batch", (3, 5, 4), 4, reduction_axes=(1, 2)),
    _layer(
        "several-feature-axes",
        (3, 5, 4),
        20,
        reduction_axes=(-2, -1),
        feature_axes=(2, 1),
        bad=(_SIZES, Bad(((4,),), ShapeError, r"feature_axes=\(2, 1\).*an axis 2, got shape")),
    ),
    _layer("first-features", (3, 5, 4), 5, reduction_axes=1, feature_axes=1),
    _rms("features", (5, 4), 4, bad=(_SCALAR,)),
    _rms("one-example", (4,), 4, batched=False),
    _rms("images", (3, 5, 2, 4), 4, epsilon=1e-2),
    _rms("no-scale", (5, 4), 4, use_scale=False),
    _rms("several-feature-axes", (3, 5, 4), 20, reduction_axes=(1, 2), feature_axes=(1, 2)),
    _rms(
        "other-reduction",
        (3, 5, 4),
        4,
        reduction_axes=1,
        bad=(
            Bad(((4,),), ShapeError, r"RMSNorm\(reduction_axes=1\) expects inputs with an axis 1"),
        ),
    ),
    _group("images", (3, 5, 2, 6), 6, 3),
    _group("vectors", (5, 6), 6, 2),
    _group("group-size", (3, 5, 6), 6, None, 2, epsilon=1e-2),
    _group("one-group", (3, 5, 4), 4, 1, bad=(_SCALAR,)),
    _group("volumes", (2, 3, 2, 2, 4), 4, 2),
    _group("no-scale", (3, 5, 4), 4, 2, use_scale=False, torch=False),
    _group("no-bias", (3, 5, 4), 4, 2, use_bias=False, torch=False),
    _group("no-parameters", (3, 5, 4), 4, 2, use_scale=False, use_bias=False),
    _group("exact-variance", (3, 5, 4), 4, 2, use_fast_variance=False),
    _group("last-axis-only", (3, 5, 8), 8, 2, reduction_axes=(-1,)),
    _group("batch-too", (3, 5, 2, 4), 4, 2, reduction_axes=(0, 2, 3), batched=False),
    _group(
        "two-batch-axes",
        (3, 2, 5, 4),
        4,
        2,
        reduction_axes=(2, 3),
        bad=(Bad(((5, 2, 4),), ShapeError, r"reduction_axes=\(2, 3\).*an axis 3, got shape"),),
    ),
    _instance("sequences", (3, 5, 4), 4),
    _instance("images", (3, 5, 2, 4), 4, epsilon=1e-2),
    _instance("volumes", (2, 3, 2, 2, 4), 4),
    _instance("vectors", (3, 4), 4, torch=False),
    _instance("no-scale", (3, 5, 4), 4, use_scale=False, torch=False),
    _instance("no-bias", (3, 5, 4), 4, use_bias=False, torch=False),
    _instance("no-parameters", (3, 5, 4), 4, use_scale=False, use_bias=False),
    _instance("exact-variance", (3, 5, 4), 4, use_fast_variance=False),
    _instance(
        "features-first",
        (3, 4, 5),
        4,
        feature_axes=1,
        torch=False,
        bad=(Bad(((4,),), ShapeError, "with size 4 on axis 1"),),
    ),
    _instance(
        "two-feature-axes",
        (3, 5, 2, 4),
        8,
        feature_axes=(-2, -1),
        bad=(Bad(((2, 4),), ShapeError, "first axis is the batch's, got shape"),),
    ),
]
