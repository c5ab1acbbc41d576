"""The table of layers: each row is one layer that every ``test_layer_*.py`` runs.

A new layer is one new row. The references are NumPy and SciPy in float64, written from the
definition, and take the layer only to read its parameters.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.signal
import scipy.special

import moduli
import moduli_layers as layers

Reference = Callable[..., np.ndarray]


@dataclasses.dataclass(frozen=True)
class Row:
    """One layer.

    Args:
      name: the row's name in test reports.
      build: makes the layer from streams of random keys.
      inputs: shapes of the positional inputs, filled with normal random numbers.
      shape: expected shape of the output.
      reference: ``(layer, *inputs) -> output``, independent of JAX, for the layer in training;
        it reads the parameters, and the running statistics as they were before the call.
      reference_eval: the same in evaluation, where that differs.
      random: whether a call draws random numbers.
    """

    name: str
    build: Callable[[moduli.Rngs], Any]
    inputs: tuple[tuple[int, ...], ...]
    shape: tuple[int, ...]
    reference: Reference
    reference_eval: Reference | None = None
    random: bool = False

    def model(self, seed: int = 0) -> Any:
        """Builds the layer with every parameter and statistic at a value of its own."""
        model = self.build(moduli.Rngs(seed))
        rng = np.random.default_rng(seed)
        for _, variable in moduli.iter_graph(model):
            if isinstance(variable, (moduli.Param, moduli.BatchStat)):
                noise = rng.uniform(0.05, 0.5, variable.shape)  # positive: a variance stays one
                variable.value = variable.value + jnp.asarray(noise, variable.dtype)
        return model

    def arrays(self, seed: int = 0) -> tuple[jax.Array, ...]:
        """Makes inputs of the row's shapes."""
        rng = np.random.default_rng(seed + 1)
        return tuple(jnp.asarray(rng.normal(1, 2, shape), jnp.float32) for shape in self.inputs)


def value(variable: Any) -> np.ndarray:
    """Returns a Variable's value in float64; zero for a parameter that is not used."""
    return np.zeros(()) if variable is None else np.asarray(variable.value, np.float64)


def linear(layer: Any, x: Any) -> np.ndarray:
    """``x @ kernel + bias``."""
    return np.asarray(x, np.float64) @ value(layer.kernel) + value(layer.bias)


def _pairs(padding: Any, sizes: list[int], spans: list[int], strides: list[int]) -> list[Any]:
    """Writes a padding as pairs, from the definition of each name."""
    if padding == "VALID":
        return [(0, 0)] * len(sizes)
    if padding in ("SAME", "SAME_LOWER"):
        pairs = []
        for size, span, stride in zip(sizes, spans, strides, strict=True):
            total = max((-(-size // stride) - 1) * stride + span + 1 - size, 0)
            near, far = total // 2, total - total // 2
            pairs.append((far, near) if padding == "SAME_LOWER" else (near, far))
        return pairs
    if padding == "CAUSAL":
        return [(spans[0], 0)]
    if padding in ("CIRCULAR", "REFLECT"):
        return [(span // 2, span - span // 2) for span in spans]
    if isinstance(padding, int):
        return [(padding, padding)] * len(sizes)
    return [(p, p) if isinstance(p, int) else tuple(p) for p in padding]


def _each(number: Any, rank: int) -> list[int]:
    return [number or 1] * rank if number is None or isinstance(number, int) else list(number)


def _spread(array: np.ndarray, factors: list[int]) -> np.ndarray:
    """Puts ``factor - 1`` zeros between neighbours along the leading axes."""
    shape = [(n - 1) * f + 1 for n, f in zip(array.shape, factors, strict=False)]
    out = np.zeros((*shape, *array.shape[len(factors) :]))
    out[tuple(slice(None, None, f) for f in factors)] = array
    return out


def conv(layer: Any, x: Any) -> np.ndarray:
    """A convolution, one pair of channels at a time, by :func:`scipy.signal.correlate`."""
    x = np.asarray(x, np.float64)
    kernel = value(layer.kernel)
    if layer.mask is not None:
        kernel = kernel * np.asarray(layer.mask, np.float64)
    rank = len(layer.kernel_size)
    strides = _each(layer.strides, rank)
    kernel = _spread(kernel, _each(layer.kernel_dilation, rank))
    spans = [n - 1 for n in kernel.shape[:rank]]
    padding = layer.padding.upper() if isinstance(layer.padding, str) else layer.padding
    mode = {"CIRCULAR": "wrap", "REFLECT": "reflect"}.get(padding, "constant")
    groups = layer.feature_group_count
    out_per_group = layer.out_features // groups
    batch = x.shape[: -rank - 1]
    outputs = []
    for image in x.reshape((-1, *x.shape[len(batch) :])):
        image = _spread(image, _each(layer.input_dilation, rank))
        pads = _pairs(padding, list(image.shape[:rank]), spans, strides)
        image = np.pad(image, [*pads, (0, 0)], mode=mode)  # pyright: ignore
        features = []
        for o in range(layer.out_features):
            first = (o // out_per_group) * kernel.shape[-2]
            total = sum(
                scipy.signal.correlate(image[..., first + c], kernel[..., c, o], "valid", "direct")
                for c in range(kernel.shape[-2])
            )
            features.append(np.asarray(total)[tuple(slice(None, None, s) for s in strides)])
        outputs.append(np.stack(features, -1))
    return np.stack(outputs).reshape((*batch, *outputs[0].shape)) + value(layer.bias)


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


class Pool(moduli.Module):
    """Makes a layer of a pooling function, so that it has a row."""

    def __init__(self, function: Callable[..., Any], window: tuple[int, ...], stride: int) -> None:
        self.function, self.window, self.stride = function, window, stride

    def __call__(self, x: Any) -> Any:
        """Pools."""
        strides = (self.stride,) * len(self.window)
        return self.function(x, self.window, strides=strides)


def _conv(
    shape: tuple[int, ...], out: tuple[int, ...], name: str, *args: Any, **kwargs: Any
) -> Row:
    def build(rngs: moduli.Rngs) -> Any:
        return layers.Conv(shape[-1], out[-1], *args, **kwargs, rngs=rngs)

    return Row(f"conv-{name}", build, (shape,), out, conv)


def _norm(name: str, shape: tuple[int, ...], features: int, **kwargs: Any) -> Row:
    def build(rngs: moduli.Rngs) -> Any:
        return layers.BatchNorm(features, **kwargs, rngs=rngs)

    return Row(f"batch_norm-{name}", build, (shape,), shape, batch_norm, batch_norm_eval)


def _drop(name: str, rate: float, **kwargs: Any) -> Row:
    def build(rngs: moduli.Rngs) -> Any:
        return layers.Dropout(rate, **kwargs, rngs=rngs)

    shape = (6, 5, 4)
    return Row(f"dropout-{name}", build, (shape,), shape, dropout, unchanged, random=True)


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
    )


TABLE: list[Row] = [
    Row("linear", lambda r: layers.Linear(3, 4, rngs=r), ((5, 3),), (5, 4), linear),
    Row("linear-vector", lambda r: layers.Linear(3, 4, rngs=r), ((3,),), (4,), linear),
    Row("linear-batches", lambda r: layers.Linear(3, 1, rngs=r), ((2, 5, 3),), (2, 5, 1), linear),
    Row(
        "linear-no-bias",
        lambda r: layers.Linear(3, 4, use_bias=False, rngs=r),
        ((5, 3),),
        (5, 4),
        linear,
    ),
    _conv((2, 7, 3), (2, 7, 4), "1d", 3),
    _conv((2, 6, 5, 3), (2, 6, 5, 4), "2d", (3, 2)),
    _conv((1, 4, 5, 3, 2), (1, 4, 5, 3, 2), "3d", (2, 3, 1)),
    _conv((6, 5, 3), (6, 5, 2), "no-batch", (3, 3)),
    _conv((2, 3, 6, 5, 2), (2, 3, 6, 5, 2), "two-batch-axes", (3, 3)),
    _conv((2, 6, 5, 3), (2, 6, 5, 4), "no-bias", (3, 3), use_bias=False),
    _conv((2, 7, 6, 2), (2, 4, 2, 3), "strides", (3, 2), (2, 3)),
    _conv((2, 7, 6, 2), (2, 3, 3, 3), "valid-strides", (3, 2), 2, padding="VALID"),
    _conv((2, 6, 2), (2, 3, 3), "same-lower", 3, 2, padding="SAME_LOWER"),
    _conv((2, 6, 2), (2, 3, 3), "same-lower-case", 3, 2, padding="same"),
    _conv((2, 5, 6, 2), (2, 5, 6, 3), "circular", (3, 4), padding="CIRCULAR"),
    _conv((2, 6, 2), (2, 3, 3), "circular-stride", 3, 2, padding="CIRCULAR"),
    _conv((2, 7, 2), (2, 7, 3), "circular-dilated", 4, padding="CIRCULAR", kernel_dilation=2),
    _conv((2, 3, 1), (2, 3, 1), "circular-wraps-twice", 9, padding="CIRCULAR"),
    _conv((2, 5, 6, 2), (2, 5, 6, 3), "reflect", (3, 4), padding="REFLECT"),
    _conv((2, 7, 2), (2, 4, 3), "causal", 3, 2, padding="CAUSAL", kernel_dilation=2),
    _conv((2, 5, 4, 2), (2, 7, 6, 3), "pad-int", (3, 3), padding=2),
    _conv((2, 5, 4, 2), (2, 5, 6, 3), "pad-ints", (3, 3), padding=[1, 2]),
    _conv((2, 5, 4, 2), (2, 5, 3, 3), "pad-pairs", (3, 3), padding=[(2, 0), (0, 1)]),
    _conv((2, 5, 4, 2), (2, 6, 4, 3), "pad-mixed", (3, 3), padding=((2, 1), 1)),
    _conv((2, 8, 9, 2), (2, 8, 5, 3), "kernel-dilation", (3, 3), (1, 2), kernel_dilation=(2, 3)),
    _conv((2, 4, 5, 2), (2, 7, 13, 3), "input-dilation", (3, 2), input_dilation=(2, 3)),
    _conv((2, 4, 2), (2, 5, 3), "input-dilation-valid", 3, input_dilation=2, padding="VALID"),
    _conv((2, 4, 2), (2, 7, 3), "input-dilation-causal", 3, input_dilation=2, padding="CAUSAL"),
    _conv((2, 4, 2), (2, 9, 3), "input-dilation-pad", 3, input_dilation=2, padding=2),
    _conv((2, 5, 5, 4), (2, 5, 5, 6), "groups", (3, 3), feature_group_count=2),
    _conv((2, 5, 4), (2, 5, 8), "depthwise", 3, feature_group_count=4),
    _conv((2, 6, 2), (2, 6, 3), "mask", 3, mask=np.tri(3)[:, :2, None] * np.ones((3, 2, 3))),
    _conv((2, 6, 2), (2, 6, 3), "mask-bool", 3, mask=np.arange(18).reshape(3, 2, 3) % 2 == 0),
    _norm("vector-features", (7, 3), 3),
    _norm("images", (4, 5, 6, 3), 3, momentum=0.9, epsilon=1e-3),
    _norm("axis", (4, 3, 5), 3, axis=1),
    _norm("axis-from-end", (4, 3, 5), 3, axis=-2),
    _norm("no-scale", (7, 3), 3, use_scale=False),
    _norm("no-bias", (7, 3), 3, use_bias=False),
    _norm("exact-variance", (7, 3), 3, use_fast_variance=False),
    _drop("half", 0.5),
    _drop("rare", 0.1),
    _drop("broadcast", 0.3, broadcast_dims=(0, -1)),
    _pool("avg_pool", layers.avg_pool, np.mean, (2, 7, 6, 3), (3, 2), 2),
    _pool("max_pool", layers.max_pool, np.max, (2, 7, 6, 3), (3, 2), 2),
    _pool("min_pool", layers.min_pool, np.min, (2, 9, 3), (4,), 1),
    _pool("max_pool-3d", layers.max_pool, np.max, (1, 4, 5, 4, 2), (2, 2, 2), 2),
    Row(
        "sequential",
        lambda r: layers.Sequential(
            layers.Linear(3, 8, rngs=r), softplus, layers.Linear(8, 2, rngs=r)
        ),
        ((5, 3),),
        (5, 2),
        sequential,
    ),
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
