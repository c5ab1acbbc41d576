"""Rows of the convolutions."""

from __future__ import annotations

import itertools
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

    return Row(
        f"conv-{name}",
        build,
        (shape,),
        out,
        conv,
        batched=name != "no-batch",
        torch=name not in _ODD,
    )


def conv_transpose(layer: Any, x: Any) -> np.ndarray:
    """A transposed convolution from its definition: each entry adds its kernel to the outputs."""
    x, kernel = np.asarray(x, np.float64), value(layer.kernel)
    if layer.mask is not None:
        kernel = kernel * np.asarray(layer.mask, np.float64)
    rank = len(layer.kernel_size)
    axes = tuple(range(rank))
    kernel = np.swapaxes(kernel, -1, -2) if layer.transpose_kernel else np.flip(kernel, axes)
    strides = _each(layer.strides, rank)
    kernel = _spread(kernel, _each(layer.kernel_dilation, rank))
    batch, sizes = x.shape[: -rank - 1], x.shape[-rank - 1 : -1]
    images = x.reshape((-1, *sizes, x.shape[-1]))
    whole = [(n - 1) * s + k for n, s, k in zip(sizes, strides, kernel.shape, strict=False)]
    full = np.zeros((len(images), *whole, layer.out_features))
    for place in itertools.product(*map(range, sizes)):
        at = tuple(
            slice(p * s, p * s + k) for p, s, k in zip(place, strides, kernel.shape, strict=False)
        )
        full[(slice(None), *at)] += np.einsum(
            "ni,...io->n...o", images[(slice(None), *place)], kernel
        )
    for axis, (n, s, k) in enumerate(zip(sizes, strides, kernel.shape, strict=False), 1):
        full = _cut(full, axis, n * s, k, s, layer.padding, axis - 1, layer.transpose_kernel)
    return full.reshape((*batch, *full.shape[1:])) + value(layer.bias)


def _cut(full: Any, axis: int, period: int, k: int, s: int, padding: Any, i: int, t: bool) -> Any:
    """Brings one axis of the full result to what the padding asks for."""
    extra = max(k - s, 0)
    spare = np.zeros([max(s - k, 0) if a == axis else n for a, n in enumerate(full.shape)])
    full = np.concatenate([full, spare], axis)  # gaps after the last entry are zeros
    index = np.arange(full.shape[axis])
    if padding == "VALID":
        return full
    if padding == "CAUSAL":
        return full.take(index[:period], axis)
    if padding == "SAME":
        first = 0 if s > k - 1 else k - 1 + (k + s - 2) // -2  # as lax.conv_transpose pads
        return full.take(index[first : first + period], axis)
    if padding == "CIRCULAR":
        first = (extra + 1) // 2 if t else extra // 2
        out = np.zeros([period if a == axis else n for a, n in enumerate(full.shape)])
        for j in index:
            at = [slice(None)] * full.ndim
            at[axis] = (j - first) % period
            out[tuple(at)] += full.take(j, axis)
        return out
    pads = [(padding, padding)] * 9 if isinstance(padding, int) else padding
    before, after = (pads[i], pads[i]) if isinstance(pads[i], int) else pads[i]
    return full.take(range(k - 1 - before, (period - s + k) - (k - 1 - after)), axis)


def _transpose(
    shape: tuple[int, ...], out: tuple[int, ...], name: str, *args: Any, **kwargs: Any
) -> Row:
    def build(rngs: moduli.Rngs) -> Any:
        return layers.ConvTranspose(shape[-1], out[-1], *args, **kwargs, rngs=rngs)

    return Row(
        f"conv_transpose-{name}",
        build,
        (shape,),
        out,
        conv_transpose,
        batched=name != "no-batch",
        torch=name not in _ODD,
    )


_MASK = np.tri(3, dtype="f4")[:, :2, None].repeat(3, 2)
_ODD = {"no-batch", "two-batch-axes", "circular-wraps-twice"}  # what PyTorch does not take

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
    _conv((2, 6, 2), (2, 6, 3), "mask", 3, mask=_MASK),
    _conv((2, 6, 2), (2, 6, 3), "mask-bool", 3, mask=np.arange(18).reshape(3, 2, 3) % 2 == 0),
    _transpose((2, 5, 3), (2, 5, 4), "same", 3),
    _transpose((2, 5, 3), (2, 10, 4), "same-stride", 4, 2),
    _transpose((2, 5, 3), (2, 15, 4), "same-gaps", 2, 3),
    _transpose((2, 4, 3, 2), (2, 9, 7, 3), "valid", (3, 3), 2, padding="VALID"),
    _transpose((2, 4, 2), (2, 12, 3), "valid-gaps", 2, 3, padding="VALID"),
    _transpose((2, 4, 3, 2), (2, 8, 6, 3), "circular", (3, 4), 2, padding="CIRCULAR"),
    _transpose(
        (2, 4, 2), (2, 8, 3), "circular-kernel", 5, 2, padding="CIRCULAR", transpose_kernel=True
    ),
    _transpose((2, 2, 2), (2, 2, 3), "circular-wraps-twice", 9, padding="CIRCULAR"),
    _transpose((2, 6, 2), (2, 12, 3), "causal", 3, 2, padding="CAUSAL"),
    _transpose((4, 3, 2), (5, 4, 3), "no-batch", (2, 2), padding="VALID"),
    _transpose((2, 3, 4, 3, 2), (2, 3, 4, 3, 2), "two-batch-axes", (2, 2)),
    _transpose((1, 2, 3, 2, 2), (1, 4, 6, 4, 3), "3d", (2, 2, 2), 2),
    _transpose((2, 5, 2), (2, 7, 3), "dilation", 2, kernel_dilation=2, padding="VALID"),
    _transpose((2, 5, 2), (2, 5, 3), "pad-int", 3, padding=1),
    _transpose((2, 5, 2), (2, 10, 3), "pad-pairs", 3, 2, padding=((1, 2),)),
    _transpose(
        (2, 5, 4, 2), (2, 11, 9, 3), "kernel", (3, 3), 2, padding="VALID", transpose_kernel=True
    ),
    _transpose((2, 5, 2), (2, 5, 3), "no-bias", 3, use_bias=False),
    _transpose((2, 5, 2), (2, 5, 3), "mask", 3, mask=_MASK),
]
