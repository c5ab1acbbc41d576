"""Which of our layers a layer of ``torch.nn`` becomes."""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp

import moduli
from moduli_interop._bridges.arguments import build
from moduli_interop._bridges.bridge import Conversion
from moduli_interop._bridges.conventions import (
    ChannelsFirst,
    JoinedAxes,
    PaddingEmbed,
    TorchCell,
)
from moduli_interop._bridges.torch.counterparts import chain_counterpart, transposed_counterpart
from moduli_interop._bridges.torch.tensors import dtype_of, filled

__all__ = [
    "from_attention",
    "from_batch_norm",
    "from_carry_first",
    "from_cell",
    "from_conv",
    "from_conv_transpose",
    "from_dropout",
    "from_embedding",
    "from_group_norm",
    "from_instance_norm",
    "from_joined_axes",
    "from_layer_norm",
    "from_linear",
    "from_prelu",
    "from_recurrent",
    "from_rms_norm",
    "without_axes",
    "without_first_output",
]


def from_linear(module: Any, convert: Conversion) -> Any:
    layer = build(
        moduli.Linear,
        module.in_features,
        module.out_features,
        use_bias=module.bias is not None,
        param_dtype=dtype_of(module),
    )
    return filled(module, layer, convert)


def from_embedding(module: Any, convert: Conversion) -> Any:
    for name in ("max_norm", "scale_grad_by_freq", "sparse"):
        if getattr(module, name) is not None and getattr(module, name) is not False:
            convert.refuse(
                module,
                f"with {name}={getattr(module, name)!r}, which changes its training and which our "
                f"Embed lacks (set `module.{name} = None`, if it is not to be trained on)",
            )
    layer = build(
        moduli.Embed, module.num_embeddings, module.embedding_dim, param_dtype=dtype_of(module)
    )
    layer = filled(module, layer, convert)
    return layer if module.padding_idx is None else PaddingEmbed(layer, module.padding_idx)


def from_conv(module: Any, convert: Conversion, rank: int) -> Any:
    padding: Any = module.padding
    if module.padding_mode in ("circular", "reflect"):
        spans = [(k - 1) * d for k, d in zip(module.kernel_size, module.dilation, strict=True)]
        pads = module._reversed_padding_repeated_twice[::-1]
        if [pads[2 * i] + pads[2 * i + 1] for i in range(rank)] != spans:
            convert.refuse(
                module,
                f"with padding_mode={module.padding_mode!r} and a padding that "
                "does not keep the size",
            )
        padding = module.padding_mode.upper()
    elif module.padding_mode != "zeros":
        convert.refuse(module, f"with padding_mode={module.padding_mode!r}")
    elif isinstance(padding, str):
        padding = padding.upper()
    else:
        padding = tuple((p, p) for p in padding)
    layer = build(
        moduli.Conv,
        module.in_channels,
        module.out_channels,
        module.kernel_size,
        module.stride,
        padding=padding,
        kernel_dilation=module.dilation,
        feature_group_count=module.groups,
        use_bias=module.bias is not None,
        param_dtype=dtype_of(module),
    )
    return ChannelsFirst(filled(module, layer, convert), axis=-1 - rank)


def from_conv_transpose(module: Any, convert: Conversion, rank: int) -> Any:
    spans = [(k - 1) * d for k, d in zip(module.kernel_size, module.dilation, strict=True)]
    padding = tuple(
        (span - p, span - p + more)
        for span, p, more in zip(spans, module.padding, module.output_padding, strict=True)
    )
    if module.groups != 1:  # of which only Conv knows
        layer = build(
            moduli.Conv,
            module.in_channels,
            module.out_channels,
            module.kernel_size,
            padding=padding,
            input_dilation=module.stride,
            kernel_dilation=module.dilation,
            feature_group_count=module.groups,
            use_bias=module.bias is not None,
            param_dtype=dtype_of(module),
        )
        made = filled(module, layer, convert, transposed_counterpart(layer))
        return ChannelsFirst(made, axis=-1 - rank, transposed=True)
    layer = build(
        moduli.ConvTranspose,
        module.in_channels,
        module.out_channels,
        module.kernel_size,
        module.stride,
        padding=padding,
        kernel_dilation=module.dilation,
        use_bias=module.bias is not None,
        param_dtype=dtype_of(module),
    )
    return ChannelsFirst(filled(module, layer, convert), axis=-1 - rank)


def from_batch_norm(module: Any, convert: Conversion, rank: int) -> Any:
    momentum: Any = module.momentum
    if not module.track_running_stats or module.momentum is None:
        name = "momentum=None" if module.momentum is None else "track_running_stats=False"
        convert.refuse(module, f"with {name}")
    layer = build(
        moduli.BatchNorm,
        module.num_features,
        momentum=1 - momentum,
        epsilon=module.eps,
        use_scale=module.affine,
        use_bias=module.affine,
        use_running_average=not module.training,
        param_dtype=dtype_of(module),
    )
    return ChannelsFirst(filled(module, layer, convert), axis=1, rank=rank)


def from_layer_norm(module: Any, convert: Conversion) -> Any:
    settings = {
        "epsilon": module.eps,
        "use_scale": module.elementwise_affine,
        "use_bias": module.bias is not None,
        "param_dtype": dtype_of(module),
    }
    return _of_last_axes(moduli.LayerNorm, module, settings, convert)


def from_rms_norm(module: Any, convert: Conversion) -> Any:
    dtype = dtype_of(module)
    settings = {
        "epsilon": float(jnp.finfo(dtype).eps) if module.eps is None else module.eps,
        "use_scale": module.elementwise_affine,
        "param_dtype": dtype,
    }
    return _of_last_axes(moduli.RMSNorm, module, settings, convert)


def _of_last_axes(cls: Any, module: Any, settings: dict[str, Any], convert: Conversion) -> Any:
    shape = tuple(module.normalized_shape)
    axes = convert.kept.pop("axes", None)
    if axes is not None:
        settings |= {"reduction_axes": axes, "feature_axes": axes}
    layer = build(cls, math.prod(shape), **settings)
    if len(shape) == 1 and axes is None:
        return filled(module, layer, convert)
    flat = f"(f{' f'.join(map(str, range(len(shape))))})"
    layout = f"{flat} -> {flat[1:-1]}"
    sizes = {f"f{n}": size for n, size in enumerate(shape)}
    names = [name for name in ("scale", "bias") if getattr(layer, name, None) is not None]
    theirs = {"scale": "weight", "bias": "bias"}
    layer = filled(
        module,
        layer,
        convert,
        moduli.counterparts.Counterpart(
            f"torch.nn.{type(module).__name__}",
            {theirs[name]: moduli.Tensor(name, layout, sizes=sizes) for name in names},
        ),
    )
    return layer if axes is not None else JoinedAxes(layer, shape)


def from_group_norm(module: Any, convert: Conversion) -> Any:
    layer = build(
        moduli.GroupNorm,
        module.num_channels,
        module.num_groups,
        epsilon=module.eps,
        use_scale=module.affine,
        use_bias=module.affine,
        param_dtype=dtype_of(module),
    )
    return ChannelsFirst(filled(module, layer, convert), axis=1)


def from_instance_norm(module: Any, convert: Conversion, rank: int) -> Any:
    if module.track_running_stats:
        convert.refuse(module, "with track_running_stats=True")
    layer = build(
        moduli.InstanceNorm,
        module.num_features,
        epsilon=module.eps,
        use_scale=module.affine,
        use_bias=module.affine,
        param_dtype=dtype_of(module),
    )
    return ChannelsFirst(filled(module, layer, convert), axis=1, rank=rank)


def from_prelu(module: Any, convert: Conversion) -> Any:
    number = module.num_parameters
    layer = build(moduli.PReLU, num_parameters=number, param_dtype=dtype_of(module))
    layer = filled(module, layer, convert)
    return layer if number == 1 else ChannelsFirst(layer, axis=1)


def from_dropout(module: Any, convert: Conversion, rank: int) -> Any:
    dims = tuple(range(-rank, 0))
    return moduli.Dropout(
        module.p,
        broadcast_dims=dims,
        deterministic=not module.training,
        rngs=convert.kept.get("rngs"),
    )


def from_attention(module: Any, convert: Conversion) -> Any:
    odd = {
        "batch_first=False": not module.batch_first,
        "add_bias_kv": module.bias_k is not None,
        "add_zero_attn": module.add_zero_attn,
        "kdim or vdim": module.kdim != module.embed_dim or module.vdim != module.embed_dim,
    }
    for name, yes in odd.items():
        if yes:
            convert.refuse(module, f"with {name}")
    rngs = convert.kept.get("rngs")
    settings: dict[str, Any] = {
        "dropout_rate": module.dropout,
        "deterministic": not module.training,
        "use_bias": module.in_proj_bias is not None,
        "decode": False,
        "param_dtype": dtype_of(module),
    }
    layer = build(moduli.MultiHeadAttention, module.num_heads, module.embed_dim, **settings)
    if module.dropout:
        layer.rngs = None if rngs is None else rngs.dropout.fork()
    return filled(module, layer, convert)


_CELLS = {"LSTM": "OptimizedLSTMCell", "GRU": "GRUCell", "RNN": "SimpleCell"}


def _cell_settings(module: Any, kind: str, convert: Conversion) -> dict[str, Any]:
    """Returns the settings of our cells for a recurrent layer or cell of PyTorch."""
    if not module.bias:
        convert.refuse(module, "with bias=False")
    settings: dict[str, Any] = {"param_dtype": dtype_of(module)}
    if kind == "RNN":
        settings["dtype"] = None
        mode = getattr(module, "mode", "") or getattr(module, "nonlinearity", "")
        if mode.upper() in ("RELU", "RNN_RELU"):
            settings["activation_fn"] = moduli.relu
    if kind == "GRU":
        # ours without a hidden bias went there with zeros
        biases = [b for name, b in module.named_parameters() if name.startswith("bias_hh")]
        own = convert.kept.pop("made here", False)
        settings["use_hidden_bias"] = not own or any(bool(b.any()) for b in biases)
    return settings


def from_recurrent(module: Any, convert: Conversion) -> Any:
    kind = type(module).__name__
    if module.proj_size != 0:
        convert.refuse(module, f"with proj_size={module.proj_size}")
    settings = _cell_settings(module, kind, convert)
    directions = 2 if module.bidirectional else 1
    major = not module.batch_first

    def network(size: int) -> Any:
        cell = build(getattr(moduli, _CELLS[kind]), size, module.hidden_size, **settings)
        return moduli.RNN(cell, time_major=major, rngs=False)

    layers: list[Any] = []
    for number in range(module.num_layers):
        size = module.hidden_size * directions if number else module.input_size
        layer: Any = network(size)
        if module.bidirectional:
            layer = moduli.Bidirectional(layer, network(size), time_major=major, rngs=False)
        if number and module.dropout:
            layers.append(
                moduli.Dropout(
                    module.dropout,
                    deterministic=not module.training,
                    rngs=convert.kept.get("rngs"),
                )
            )
        layers.append(layer)
    if len(layers) == 1:
        return filled(module, layers[0], convert)
    chain = moduli.Sequential(*layers)
    return filled(module, chain, convert, chain_counterpart(chain))


def from_cell(module: Any, convert: Conversion) -> Any:
    kind = type(module).__name__.removesuffix("Cell")
    settings = _cell_settings(module, kind, convert)
    cell = build(getattr(moduli, _CELLS[kind]), module.input_size, module.hidden_size, **settings)
    return TorchCell(filled(module, cell, convert))


def without_axes(module: Any, convert: Conversion) -> Any:
    """Makes our layer of a ChannelsLast: the layer inside, without its ChannelsFirst."""
    return convert(module.layer, "layer").layer


def without_first_output(module: Any, convert: Conversion) -> Any:
    convert.kept["made here"] = True
    made = convert(module.layer, "layer")
    convert.kept.pop("made here", None)
    return made


def from_joined_axes(module: Any, convert: Conversion) -> Any:
    convert.kept["axes"] = tuple(range(-module.number, 0))
    return convert(module.layer, "layer")


def from_carry_first(module: Any, convert: Conversion) -> Any:
    convert.kept["made here"] = True
    made = convert(module.layer, "layer").cell
    convert.kept.pop("made here", None)
    return made
