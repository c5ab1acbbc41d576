"""Convolutions and pools of haiku."""

from __future__ import annotations

import functools
from typing import Any

import jax.numpy as jnp

import moduli
from moduli_interop._bridges.arguments import build, fill
from moduli_interop._bridges.bridge import Conversion, LayerRule
from moduli_interop._bridges.conventions import ChannelsFirst, check_plain
from moduli_interop._bridges.haiku_values import read, write
from moduli_interop._bridges.windows import conv_pairs, transposed_pairs

__all__ = ["conv_rules", "conv_to_theirs", "transposed_to_theirs"]


def conv_rules() -> list[LayerRule]:
    """Returns the rules of convolutions and pools."""
    import haiku as hk

    def rule(theirs: Any, maker: Any) -> LayerRule:
        return LayerRule(moduli.Module, theirs, maker)

    found = [
        LayerRule(moduli.Conv, hk.ConvND, _from_conv, conv_to_theirs),
        LayerRule(moduli.ConvTranspose, hk.ConvNDTranspose, _from_transposed, transposed_to_theirs),
        rule(hk.MaxPool, _from_pool),
        rule(hk.AvgPool, _from_pool),
    ]
    for rank in (1, 2, 3):
        found += [
            rule(getattr(hk, f"Conv{rank}D"), _from_conv),
            rule(getattr(hk, f"Conv{rank}DTranspose"), _from_transposed),
            rule(getattr(hk, f"DepthwiseConv{rank}D"), _from_conv),
        ]
    return found


def _from_conv(part: Any, convert: Conversion) -> Any:
    held = read(part, convert)
    kernel, rank = held["w"], part.num_spatial_dims
    multiplier = getattr(part, "channel_multiplier", None)  # of a depthwise convolution
    groups = kernel.shape[-1] // multiplier if multiplier else part.feature_group_count
    dilation = part.rhs_dilation if multiplier else part.kernel_dilation
    padding = part.padding
    if not isinstance(padding, str):
        padding = tuple((int(a), int(b)) for a, b in padding)
    layer = build(
        moduli.Conv,
        kernel.shape[-2] * groups,
        kernel.shape[-1],
        part.kernel_shape,
        part.stride,
        padding=padding,
        kernel_dilation=dilation,
        feature_group_count=groups,
        use_bias=part.with_bias,
        mask=getattr(part, "mask", None),
        param_dtype=kernel.dtype,
    )
    return _filled(layer, part, held, kernel, rank, getattr(part, "mask", None))


def _from_transposed(part: Any, convert: Conversion) -> Any:
    if part.output_shape is not None:
        convert.refuse(
            part,
            f"with output_shape={part.output_shape}, for which the padding depends on the inputs "
            "(write the padding as pairs)",
        )
    held = read(part, convert)
    kernel = jnp.swapaxes(held["w"], -1, -2)
    mask = None if part.mask is None else jnp.swapaxes(part.mask, -1, -2)
    padding = part.padding
    if not isinstance(padding, str):
        padding = tuple((int(a), int(b)) for a, b in padding)
    layer = build(
        moduli.ConvTranspose,
        *kernel.shape[-2:],
        part.kernel_shape,
        part.stride,
        padding=padding,
        use_bias=part.with_bias,
        mask=mask,
        param_dtype=kernel.dtype,
    )
    return _filled(layer, part, held, kernel, part.num_spatial_dims, mask)


def _filled(layer: Any, part: Any, held: Any, kernel: Any, rank: int, mask: Any) -> Any:
    if mask is not None:
        layer.mask = mask  # of which build made a shape
    fill(layer, {"kernel": kernel, "bias": held["b"].reshape(-1) if part.with_bias else None})
    return layer if part.channel_index == -1 else ChannelsFirst(layer, axis=-1 - rank)


def conv_to_theirs(layer: Any, convert: Conversion, first: bool = False) -> Any:
    """Makes haiku's convolution of ours.

    Args:
      layer: a Conv.
      convert: the conversion.
      first: whether its inputs have their channels first.
    """
    import haiku as hk

    check_plain(layer, convert)
    strides, spread, dilation, padding = layer._window()
    if any(factor != 1 for factor in spread) or padding in ("CIRCULAR", "REFLECT"):
        convert.refuse(layer, "with input_dilation, or circular or reflected padding")
    spans = [(k - 1) * d for k, d in zip(layer.kernel_size, dilation, strict=True)]
    rank = len(spans)
    settings: dict[str, Any] = {
        "padding": padding if padding == "VALID" else conv_pairs(padding, spans),
        "with_bias": layer.use_bias,
        "data_format": "channels_first" if first else "channels_last",
        "mask": layer.mask,
        "feature_group_count": layer.feature_group_count,
    }
    arguments = (layer.out_features, layer.kernel_size, strides, dilation)
    if rank > 3:
        made = hk.ConvND(rank, *arguments, **settings)
    else:
        settings["data_format"] = _formats(rank, first)
        made = getattr(hk, f"Conv{rank}D")(*arguments, **settings)
    write(made, convert, {"w": layer.kernel})
    _write_bias(made, layer, convert, rank, first)
    return made


def transposed_to_theirs(layer: Any, convert: Conversion, first: bool = False) -> Any:
    """Makes haiku's transposed convolution of ours.

    Args:
      layer: a ConvTranspose.
      convert: the conversion.
      first: whether its inputs have their channels first.
    """
    import haiku as hk

    check_plain(layer, convert)
    strides, dilation, padding = layer._window()
    spans = [k - 1 for k in layer.kernel_size]
    if padding not in ("SAME", "VALID"):
        padding = transposed_pairs(padding, spans, strides)
    if any(factor != 1 for factor in dilation) or padding is None:
        convert.refuse(layer, "with kernel_dilation or circular padding")
    rank = len(spans)
    turned = layer.transpose_kernel

    def theirs(kernel: Any) -> Any:
        return jnp.flip(kernel, tuple(range(rank))) if turned else jnp.swapaxes(kernel, -1, -2)

    settings: dict[str, Any] = {
        "padding": padding,
        "with_bias": layer.use_bias,
        "data_format": "channels_first" if first else "channels_last",
        "mask": None if layer.mask is None else theirs(layer.mask),
    }
    if rank > 3:
        made = hk.ConvNDTranspose(rank, layer.out_features, layer.kernel_size, strides, **settings)
    else:
        settings["data_format"] = _formats(rank, first)
        made = getattr(hk, f"Conv{rank}DTranspose")(
            layer.out_features, layer.kernel_size, strides, **settings
        )
    write(made, convert, {"w": layer.kernel}, make=theirs)
    _write_bias(made, layer, convert, rank, first)
    return made


def _formats(rank: int, first: bool) -> str:
    axes = {1: "W", 2: "HW", 3: "DHW"}[rank]
    return f"NC{axes}" if first else f"N{axes}C"


def _write_bias(made: Any, layer: Any, convert: Conversion, rank: int, first: bool) -> None:
    if layer.bias is not None:
        ones = (1,) * rank if first else ()
        write(made, convert, {"b": layer.bias}, make=lambda bias: bias.reshape((-1, *ones)))


def _from_pool(part: Any, convert: Conversion) -> Any:
    import haiku as hk

    window, strides = part.window_shape, part.strides
    if part.channel_axis not in (-1, None) or not isinstance(window, (tuple, list)):
        convert.refuse(
            part,
            "whose window is an int, or whose channels are not last, so that the axes are not "
            "known (write its window as a tuple: (2, 2, 1))",
        )
    window = tuple(window)
    if isinstance(strides, int):
        strides = tuple(strides if n else 1 for n in range(len(window) - 1, -1, -1))
    strides = (1,) * (len(window) - len(strides)) + tuple(strides)
    if window[-1] != 1 or strides[-1] != 1:
        convert.refuse(part, f"with window_shape={window}, which pools the channels too")
    window, strides = window[:-1], strides[:-1]
    while len(window) > 1 and window[0] == strides[0] == 1:  # axes of a batch
        window, strides = window[1:], strides[1:]
    settings: dict[str, Any] = {"window_shape": window, "strides": strides}
    if isinstance(part, hk.AvgPool):
        return functools.partial(
            moduli.avg_pool, **settings, padding=part.padding, count_include_pad=False
        )
    return functools.partial(moduli.max_pool, **settings, padding=part.padding)
