"""More layers of ``equinox.nn``, and those of ours that have their features last there too."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax.numpy as jnp

import moduli
from moduli_interop._bridges.arguments import build, fill
from moduli_interop._bridges.bridge import Conversion, LayerRule
from moduli_interop._bridges.conventions import ChannelsFirst, OneExample, TorchCell, check_plain
from moduli_interop._bridges.equinox_values import inside, key, replaced, value
from moduli_interop._bridges.equinox_weight_norms import from_weight_norm, to_weight_norm
from moduli_interop._bridges.frameworks import import_framework
from moduli_interop._bridges.windows import transposed_pairs

__all__ = ["channels_first_to_theirs", "more_rules"]


def more_rules() -> list[LayerRule]:
    """Returns the rules of convolutions, norms of groups and batches, attention, cells, pools."""
    import equinox.nn as nn

    def rule(theirs: Any, maker: Any) -> LayerRule:
        return LayerRule(moduli.Module, theirs, maker)

    found = [
        LayerRule(moduli.WeightNorm, nn.WeightNorm, from_weight_norm, _to_weight_norm),
        rule(nn.GroupNorm, _from_group_norm),
        rule(nn.BatchNorm, _from_batch_norm),
        LayerRule(moduli.MultiHeadAttention, nn.MultiheadAttention, _from_attention, _to_attention),
        rule(nn.LSTMCell, _from_cell),
        rule(nn.GRUCell, _from_cell),
        LayerRule(TorchCell, nn.LSTMCell, None, _to_cell),
        LayerRule(moduli.RoPE, nn.RotaryPositionalEmbedding, _from_rope, _to_rope),
        rule(_channels_last(), lambda part, convert: inside(convert(part.layer, "layer"))),
    ]
    for name in ("", "1d", "2d", "3d"):
        found.append(rule(getattr(nn, f"Conv{name}"), _from_conv))
        found.append(rule(getattr(nn, f"ConvTranspose{name}"), _from_conv_transpose))
    for rank in (1, 2, 3):
        for kind in ("Max", "Avg"):
            pool = functools.partial(_from_pool, maximum=kind == "Max")
            found.append(rule(getattr(nn, f"{kind}Pool{rank}d"), pool))
    for ours in (
        moduli.Conv,
        moduli.ConvTranspose,
        moduli.GroupNorm,
        moduli.InstanceNorm,
        moduli.BatchNorm,
    ):
        found.append(LayerRule(ours, nn.Conv, None, _to_channels_last))
    return found


@functools.cache
def _channels_last() -> Any:
    equinox: Any = import_framework("equinox", "equinox")

    class ChannelsLast(equinox.Module):
        """Calls a layer of ``equinox.nn`` with one example whose features are last."""

        layer: Any

        def __call__(self, x: Any, *args: Any, **kwargs: Any) -> Any:
            """Calls the layer."""
            out = self.layer(jnp.moveaxis(x, -1, 0), *args, **kwargs)
            if isinstance(out, tuple):  # with the state
                return jnp.moveaxis(out[0], 0, -1), out[1]
            return jnp.moveaxis(out, 0, -1)

    return ChannelsLast


def _to_channels_last(part: Any, convert: Conversion) -> Any:
    return _channels_last()(channels_first_to_theirs(part, convert))


def _to_weight_norm(part: Any, convert: Conversion) -> Any:
    made = convert(part.layer_instance, "layer_instance")
    last = isinstance(made, _channels_last())
    made = to_weight_norm(part, made.layer if last else made, convert)
    return _channels_last()(made) if last else made


def channels_first_to_theirs(layer: Any, convert: Conversion) -> Any:
    """Makes the layer of equinox, which has its features first, of one of ours.

    Args:
      layer: our layer, or a function that pools.
      convert: the conversion.
    """
    layer = inside(layer)
    makers = {
        moduli.Conv: _to_conv,
        moduli.ConvTranspose: _to_conv_transpose,
        moduli.GroupNorm: _to_group_norm,
        moduli.InstanceNorm: _to_group_norm,
        moduli.BatchNorm: _to_batch_norm,
    }
    if type(layer) is moduli.WeightNorm:
        return to_weight_norm(
            layer, channels_first_to_theirs(layer.layer_instance, convert), convert
        )
    if isinstance(layer, functools.partial):
        return _to_pool(layer, convert)
    if type(layer) not in makers:
        convert.refuse(layer, "of which equinox has none with its features first")
    return makers[type(layer)](layer, convert)


def _from_conv(part: Any, convert: Conversion) -> Any:
    rank = part.num_spatial_dims
    padding = part.padding
    if part.padding_mode != "ZEROS":
        spans = [(k - 1) * d for k, d in zip(part.kernel_size, part.dilation, strict=True)]
        if isinstance(padding, str):
            same = padding == "SAME" and all(step == 1 for step in part.stride)
        else:
            same = list(padding) == [(span // 2, span - span // 2) for span in spans]
        if part.padding_mode not in ("REFLECT", "CIRCULAR") or not same:
            convert.refuse(part, f"with padding_mode={part.padding_mode!r} and this padding")
        padding = part.padding_mode
    layer = build(
        moduli.Conv,
        part.in_channels,
        part.out_channels,
        part.kernel_size,
        part.stride,
        padding=padding,
        kernel_dilation=part.dilation,
        feature_group_count=part.groups,
        use_bias=part.use_bias,
        param_dtype=part.weight.dtype,
    )
    bias = None if part.bias is None else part.bias.reshape(-1)
    fill(layer, {"kernel": jnp.moveaxis(part.weight, (0, 1), (-1, -2)), "bias": bias})
    return ChannelsFirst(layer, axis=-1 - rank)


def _to_conv(layer: Any, convert: Conversion) -> Any:
    import equinox.nn as nn

    check_plain(layer, convert)
    rank = len(layer.kernel_size)
    strides, spread, dilation, padding = layer._window()
    if any(d != 1 for d in spread) and all(s == 1 for s in strides):
        return _to_conv_transpose(layer, convert)
    if any(d != 1 for d in spread) or layer.mask is not None or padding == "CAUSAL":
        convert.refuse(layer, "with input_dilation, mask or CAUSAL padding")
    mode = "ZEROS"
    if padding in ("CIRCULAR", "REFLECT"):
        spans = [(k - 1) * d for k, d in zip(layer.kernel_size, dilation, strict=True)]
        mode, padding = padding, tuple((span // 2, span - span // 2) for span in spans)
    made = nn.Conv(
        rank,
        layer.in_features,
        layer.out_features,
        layer.kernel_size,
        strides,
        padding,
        dilation,
        layer.feature_group_count,
        layer.use_bias,
        mode,
        key=key(),
    )
    bias = value(layer.bias, convert)
    return replaced(
        made,
        weight=jnp.moveaxis(value(layer.kernel, convert), (-1, -2), (0, 1)),
        bias=None if bias is None else bias.reshape((-1, *[1] * rank)),
    )


def _from_conv_transpose(part: Any, convert: Conversion) -> Any:
    rank = part.num_spatial_dims
    if part.padding_mode != "ZEROS":
        convert.refuse(part, f"with padding_mode={part.padding_mode!r}")
    settings: dict[str, Any] = {
        "padding": tuple((int(a), int(b)) for a, b in part._padding_transpose()),
        "kernel_dilation": part.dilation,
        "use_bias": part.use_bias,
        "param_dtype": part.weight.dtype,
    }
    sizes = (part.in_channels, part.out_channels, part.kernel_size)
    if part.groups == 1:
        layer = build(moduli.ConvTranspose, *sizes, part.stride, **settings)
    else:  # of which only Conv knows
        layer = build(
            moduli.Conv,
            *sizes,
            input_dilation=part.stride,
            feature_group_count=part.groups,
            **settings,
        )
    bias = None if part.bias is None else part.bias.reshape(-1)
    fill(layer, {"kernel": jnp.moveaxis(part.weight, (0, 1), (-1, -2)), "bias": bias})
    return ChannelsFirst(layer, axis=-1 - rank)


def _to_conv_transpose(layer: Any, convert: Conversion) -> Any:
    import equinox.nn as nn

    check_plain(layer, convert)
    groups = 1
    if type(layer) is moduli.Conv:  # of spread inputs
        _, strides, dilation, padding = layer._window()
        groups = layer.feature_group_count
        cut = ((0, 0),) * len(strides) if padding == "VALID" else padding
        cut = None if isinstance(cut, str) else cut
    else:
        strides, dilation, padding = layer._window()
        cut = padding
    spans = [(k - 1) * d for k, d in zip(layer.kernel_size, dilation, strict=True)]
    cut = None if cut is None else transposed_pairs(cut, spans, strides)
    if layer.mask is not None or cut is None:
        convert.refuse(layer, f"with a mask or padding={layer.padding!r}")
    rank = len(spans)
    made = nn.ConvTranspose(
        rank,
        layer.in_features,
        layer.out_features,
        layer.kernel_size,
        strides,
        tuple((s - a, s - b) for s, (a, b) in zip(spans, cut, strict=True)),
        0,
        dilation,
        groups,
        use_bias=layer.use_bias,
        key=key(),
    )
    kernel, bias = value(layer.kernel, convert), value(layer.bias, convert)
    if getattr(layer, "transpose_kernel", False):
        kernel = jnp.swapaxes(jnp.flip(kernel, tuple(range(rank))), -1, -2)
    return replaced(
        made,
        weight=jnp.moveaxis(kernel, (-1, -2), (0, 1)),
        bias=None if bias is None else bias.reshape((-1, *[1] * rank)),
    )


def _from_group_norm(part: Any, convert: Conversion) -> Any:
    if part.channels is None:
        convert.refuse(part, "with channels=None")
    held = part.weight
    layer = build(
        moduli.GroupNorm,
        part.channels,
        part.groups,
        epsilon=part.eps,
        use_scale=part.channelwise_affine,
        use_bias=part.channelwise_affine,
        use_fast_variance=False,
        param_dtype=jnp.float32 if held is None else held.dtype,
    )
    fill(layer, {"scale": part.weight, "bias": part.bias})
    return ChannelsFirst(OneExample(layer), axis=0)


def _affine(layer: Any, convert: Conversion) -> dict[str, Any]:
    check_plain(layer, convert, but=("axis_name",))
    if layer.use_scale != layer.use_bias:
        convert.refuse(layer, "with only one of scale and bias")
    return {"weight": value(layer.scale, convert), "bias": value(layer.bias, convert)}


def _to_group_norm(layer: Any, convert: Conversion) -> Any:
    import equinox.nn as nn

    arrays = _affine(layer, convert)
    if type(layer) is moduli.InstanceNorm:
        groups, other = layer.num_features, layer.feature_axes not in (-1, (-1,))
    else:
        groups, other = layer.num_groups, layer.reduction_axes is not None
    if other or layer.axis_name is not None:
        convert.refuse(layer, "with reduction_axes, feature_axes or axis_name")
    made = nn.GroupNorm(groups, layer.num_features, layer.epsilon, layer.use_scale)
    return replaced(made, **arrays)


def _from_batch_norm(part: Any, convert: Conversion) -> Any:
    if part.mode != "batch" or not isinstance(part.axis_name, str):
        convert.refuse(part, "which is not of mode='batch' over one named axis")
    state = convert.kept.get("state")
    indices = part.batch_state_index, part.batch_counter
    try:
        (mean, var), counter = (
            (index.init if state is None else state.get(index)) for index in indices
        )
    except (TypeError, ValueError, KeyError):
        convert.refuse(part, "whose state is not given (write `from_equinox(module, state=state)`)")
    counted = 1 - part.momentum**counter
    scale = jnp.where(counter == 0, 1, counted)  # as its evaluation divides
    held = mean if part.weight is None else part.weight
    layer = build(
        moduli.BatchNorm,
        part.input_size,
        momentum=part.momentum,
        epsilon=part.eps,
        use_scale=part.channelwise_affine,
        use_bias=part.channelwise_affine,
        use_running_average=part.inference,
        use_fast_variance=False,
        axis_name=part.axis_name,
        param_dtype=held.dtype,
    )
    mean, var = mean / scale, var / scale
    fill(layer, {"scale": part.weight, "bias": part.bias, "mean": mean, "var": var})
    return ChannelsFirst(layer, axis=0)


def _to_batch_norm(layer: Any, convert: Conversion) -> Any:
    import equinox
    import equinox.nn as nn

    arrays = _affine(layer, convert)
    if layer.axis != -1:
        convert.refuse(layer, f"with axis={layer.axis}")
    made = nn.BatchNorm(
        layer.num_features,
        layer.axis_name or "batch",
        layer.epsilon,
        layer.use_scale,
        layer.momentum,
        bool(layer.use_running_average),
        mode="batch",
    )
    kept = (value(layer.mean, convert), value(layer.var, convert))
    made = equinox.tree_at(lambda made: made.batch_state_index.init, made, kept)
    return replaced(made, **arrays)


_MAPS = {"query": "query_proj", "key": "key_proj", "value": "value_proj", "out": "output_proj"}


def _from_attention(part: Any, convert: Conversion) -> Any:
    biases = {
        part.use_query_bias,
        part.use_key_bias,
        part.use_value_bias,
        part.use_output_bias,
    }
    if len(biases) != 1 or part.key_size != part.value_size or part.qk_size != part.vo_size:
        convert.refuse(part, "with biases or sizes that differ between its four maps")
    rngs = convert.kept.get("rngs")
    layer = build(
        moduli.MultiHeadAttention,
        part.num_heads,
        part.query_size,
        part.num_heads * part.qk_size,
        part.output_size,
        in_kv_features=part.key_size,
        dropout_rate=part.dropout.p,
        broadcast_dropout=False,
        deterministic=part.dropout.inference,
        use_bias=biases.pop(),
        decode=False,
        param_dtype=part.query_proj.weight.dtype,
    )
    if part.dropout.p:
        layer.rngs = None if rngs is None else rngs.dropout.fork()
    for ours, theirs in _MAPS.items():
        inner, held = getattr(layer, ours), getattr(part, theirs)
        bias = None if held.bias is None else held.bias.reshape(inner.bias.shape)
        fill(inner, {"kernel": held.weight.T.reshape(inner.kernel.shape), "bias": bias})
    return layer


def _to_attention(layer: Any, convert: Conversion) -> Any:
    import equinox.nn as nn

    check_plain(layer, convert)
    if layer.num_kv_heads != layer.num_heads or layer.rotary or layer.normalize_qk or layer.decode:
        convert.refuse(layer, "with num_kv_heads, rotary, normalize_qk or decode")
    made = nn.MultiheadAttention(
        layer.num_heads,
        layer.in_features,
        layer.in_kv_features,
        layer.in_kv_features,
        layer.out_features,
        layer.head_dim,
        layer.head_dim,
        layer.use_bias,
        layer.use_bias,
        layer.use_bias,
        layer.use_bias,
        layer.dropout_rate,
        bool(layer.deterministic),
        key=key(),
    )
    maps = {}
    for ours, theirs in _MAPS.items():
        inner, held = getattr(layer, ours), getattr(made, theirs)
        kernel, bias = value(inner.kernel, convert), value(inner.bias, convert)
        shape = held.weight.shape[::-1]
        bias = None if bias is None else bias.reshape(-1)
        maps[theirs] = replaced(held, weight=kernel.reshape(shape).T, bias=bias)
    return replaced(made, **maps)


def _from_cell(part: Any, convert: Conversion) -> Any:
    if not part.use_bias:
        convert.refuse(part, "with use_bias=False")
    sizes, dtype = (part.input_size, part.hidden_size), part.weight_ih.dtype
    weights = {"dense_i.kernel": part.weight_ih.T, "dense_h.kernel": part.weight_hh.T}
    if type(part).__name__ == "LSTMCell":
        cell = build(moduli.OptimizedLSTMCell, *sizes, param_dtype=dtype)
        return TorchCell(fill(cell, {**weights, "dense_h.bias": part.bias}))
    cell = build(moduli.GRUCell, *sizes, use_hidden_bias=True, param_dtype=dtype)
    inner = jnp.concatenate([jnp.zeros((2 * part.hidden_size,), dtype), part.bias_n])
    return TorchCell(fill(cell, {**weights, "dense_i.bias": part.bias, "dense_h.bias": inner}))


def _to_cell(part: Any, convert: Conversion) -> Any:
    import equinox.nn as nn

    cell = part.cell
    check_plain(part, convert)
    theirs = {moduli.OptimizedLSTMCell: nn.LSTMCell, moduli.GRUCell: nn.GRUCell}.get(type(cell))
    if (
        theirs is None
        or cell.gate_fn is not moduli.sigmoid
        or cell.activation_fn is not moduli.tanh
    ):
        convert.refuse(part, f"around a {type(cell).__name__} that equinox has not like this")
    made = theirs(cell.in_features, cell.hidden_features, key=key())
    kernels = {
        "weight_ih": value(cell.dense_i.kernel, convert).T,
        "weight_hh": value(cell.dense_h.kernel, convert).T,
    }
    hidden = value(cell.dense_h.bias, convert)
    if theirs is nn.LSTMCell:
        return replaced(made, **kernels, bias=hidden)
    bias = value(cell.dense_i.bias, convert)
    inner = jnp.zeros_like(bias) if hidden is None else hidden
    last = 2 * cell.hidden_features
    bias = bias.at[:last].add(inner[:last])
    return replaced(made, **kernels, bias=bias, bias_n=inner[last:])


def _from_rope(part: Any, convert: Conversion) -> Any:
    return moduli.RoPE(part.theta)


def _to_rope(part: Any, convert: Conversion) -> Any:
    import equinox.nn as nn

    if part.cached_cos is None:
        convert.refuse(part, "without embedding_size, which equinox needs")
    width = 2 * part.cached_cos.shape[-1]
    return nn.RotaryPositionalEmbedding(width, part.theta, part.cached_cos.dtype)


def _from_pool(part: Any, convert: Conversion, maximum: bool) -> Any:
    reached = all(
        after < width for width, (_, after) in zip(part.kernel_size, part.padding, strict=True)
    )
    if part.use_ceil and not (maximum and reached):
        convert.refuse(
            part,
            "with use_ceil=True, which counts other windows than our ceil_mode (write the padding "
            "that it comes to, without use_ceil)",
        )
    pool = functools.partial(
        moduli.max_pool if maximum else moduli.avg_pool,
        window_shape=part.kernel_size,
        strides=part.stride,
        padding=tuple((int(a), int(b)) for a, b in part.padding),
        **({"ceil_mode": True} if part.use_ceil else {}),
    )
    return ChannelsFirst(pool, axis=-1 - part.num_spatial_dims)


def _to_pool(pool: functools.partial[Any], convert: Conversion) -> Any:
    import equinox.nn as nn

    settings = dict(pool.keywords)
    kind = {moduli.max_pool: "Max", moduli.avg_pool: "Avg"}.get(pool.func)
    window = settings.pop("window_shape", ())
    strides, padding = settings.pop("strides", None) or 1, settings.pop("padding", "VALID")
    ceil = kind == "Max" and settings.pop("ceil_mode", False)
    if padding == "VALID":
        padding = 0
    if kind is None or pool.args or settings or isinstance(padding, str) or not window:
        convert.refuse(pool, f"with settings that equinox has not ({', '.join(settings)})")
    made = getattr(nn, f"{kind}Pool{len(window)}d")(window, strides, padding, use_ceil=ceil)
    sides = zip(made.kernel_size, made.stride, made.padding, strict=True)
    if ceil and any(step + after > width for width, step, (_, after) in sides):
        convert.refuse(pool, "with ceil_mode=True, and strides for which equinox has no use_ceil")
    if kind == "Max" and math.isfinite(made.init):
        convert.refuse(pool, "for which equinox begins with another value")
    return made
