"""Rows of the convolutions."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.signal

import moduli
import moduli_layers as layers
from layer_rows.row import Row, value


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


def _conv(
    shape: tuple[int, ...], out: tuple[int, ...], name: str, *args: Any, **kwargs: Any
) -> Row:
    def build(rngs: moduli.Rngs) -> Any:
        return layers.Conv(shape[-1], out[-1], *args, **kwargs, rngs=rngs)

    return Row(f"conv-{name}", build, (shape,), out, conv, batched=name != "no-batch")


ROWS: list[Row] = [
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
    _conv((2, 6, 2), (2, 6, 3), "mask", 3, mask=np.tri(3, dtype="f4")[:, :2, None].repeat(3, 2)),
    _conv((2, 6, 2), (2, 6, 3), "mask-bool", 3, mask=np.arange(18).reshape(3, 2, 3) % 2 == 0),
]
