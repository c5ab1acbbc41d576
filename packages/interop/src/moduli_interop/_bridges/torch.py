"""PyTorch: modules with the layers of ``torch.nn``, both ways.

What a layer is called there and how its tensors are laid out is said by the layers themselves
(``layer.torch_counterpart``, see :mod:`moduli_layers.counterparts`). This file says which of our
layers a module of PyTorch becomes, and keeps the order of axes of either framework: what comes from
PyTorch has its features after the batch, in a :class:`ChannelsFirst`; what goes there keeps them
last.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import moduli
from moduli.errors import StructureError
from moduli_interop._bridges.arguments import build
from moduli_interop._bridges.bridge import Conversion, LayerRule
from moduli_interop._bridges.conventions import (
    ChannelsFirst,
    JoinedAxes,
    PaddingEmbed,
    TorchCell,
    check_plain,
    transposed_tensors,
)
from moduli_interop._bridges.frameworks import import_framework, makers
from moduli_interop._bridges.torch_arrays import as_numpy, as_tensor
from moduli_interop._bridges.torch_calls import (
    FunctionModule,
    JaxModule,
    TorchModule,
    jax_module_class,
)
from moduli_interop._bridges.torch_weight_norms import (
    is_reparametrised,
    reparametrised,
    weight_norm_to_theirs,
)

__all__ = ["from_torch", "rules", "to_torch"]


def from_torch(module: Any, *, rngs: moduli.Rngs | None = None) -> Any:
    """Makes a model of ours from a module of PyTorch; the values are copied.

    A layer of ``torch.nn`` becomes our layer, ``Sequential``, ``ModuleList`` and ``ModuleDict``
    become our containers. Arrays have PyTorch's order of axes, features after the batch. A class of
    the user's, whose ``forward`` is written for tensors, becomes a
    :class:`~moduli_interop.bridge.TorchModule`, which calls it from JAX. What is shared stays
    shared.

    Args:
      module: a ``torch.nn.Module``, or lists, tuples and dicts of these.
      rngs: where the random numbers of dropout come from; it is needed for training.

    Returns:
      The model, in the mode of the module.

    Raises:
      BridgeError: a layer of ``torch.nn``, or one of its settings, has no counterpart.
      MissingFrameworkError: PyTorch is not installed.

    Example:
      >>> import torch, jax.numpy as jnp, moduli as nnx
      >>> model = nnx.from_torch(torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU()))
      >>> type(model.layers[0]).__name__, model(jnp.ones((2, 3))).shape
      ('Linear', (2, 4))
    """
    import_framework("torch", "torch")

    def fallback(part: Any, convert: Conversion) -> Any:
        import torch

        if not isinstance(part, torch.nn.Module):
            return NotImplemented
        if is_reparametrised(part):
            return reparametrised(part, convert, known)
        if type(part).__module__.startswith("torch."):
            return NotImplemented
        return TorchModule(part, rngs=rngs)

    known = makers("torch", "from")
    conversion = Conversion(
        "torch",
        {cls: _without_hooks(maker, known) for cls, maker in known.items()},
        wanted="layer of moduli",
        advice=(
            "put `moduli.bridge.TorchModule(layer)` in its place, which calls it from JAX, or add "
            "a rule for the class with the hook moduli_bridges"
        ),
        fallback=fallback,
    )
    conversion.kept["rngs"] = rngs
    return conversion(module)


def to_torch(model: Any) -> Any:
    """Makes a module of PyTorch from a model of ours; the values are copied.

    A layer becomes the layer of ``torch.nn`` that computes the same, lists and ``Sequential``
    become PyTorch's. Arrays keep our order of axes, features last. A class of the user's becomes
    what :func:`~moduli_interop.bridge.JaxModule` makes of it: a module that calls it from PyTorch,
    with gradients. What is shared stays shared.

    Args:
      model: a module of ours, a function such as ``moduli.relu``, or lists, tuples and dicts of
        these.

    Returns:
      The ``torch.nn.Module``, in the mode of the model.

    Raises:
      BridgeError: a layer, or one of its settings, has no counterpart in PyTorch.
      MissingFrameworkError: PyTorch is not installed.

    Example:
      >>> import torch, moduli as nnx
      >>> nnx.to_torch(nnx.Linear(3, 4, rngs=nnx.Rngs(0)))
      Linear(in_features=3, out_features=4, bias=True)
    """
    import_framework("torch", "torch")
    return Conversion(
        "torch",
        makers("torch", "to"),
        wanted="layer of torch",
        advice=(
            "put `moduli.bridge.JaxModule(layer)` in its place, which calls it from PyTorch, or "
            "add a rule for the class with the hook moduli_bridges"
        ),
        fallback=_to_theirs,
    )(model)


def _without_hooks(maker: Any, known: Any) -> Any:
    """Makes a maker that takes no module whose results hooks change, but for weight norms'."""

    def make(module: Any, convert: Conversion) -> Any:
        if is_reparametrised(module):
            return reparametrised(module, convert, known)
        if module._forward_hooks or module._forward_pre_hooks:
            convert.refuse(
                module, "which has hooks that run with its forward and are written for tensors"
            )
        return maker(module, convert)

    return make


# -- from PyTorch --------------------------------------------------------------------------------


def rules() -> list[LayerRule]:
    """Returns the rules of ``torch.nn``."""
    import torch.nn as nn

    def rule(theirs: Any, maker: Callable[[Any, Conversion], Any]) -> LayerRule:
        return LayerRule(moduli.Module, theirs, from_theirs=maker)

    found = [
        rule(nn.Linear, _linear),
        rule(nn.Embedding, _embedding),
        rule(nn.LayerNorm, _layer_norm),
        rule(nn.RMSNorm, _rms_norm),
        rule(nn.GroupNorm, _group_norm),
        rule(nn.PReLU, _prelu),
        rule(nn.MultiheadAttention, _attention),
        rule(nn.LSTMCell, _cell),
        rule(nn.GRUCell, _cell),
        rule(nn.RNNCell, _cell),
        rule(nn.LSTM, _recurrent),
        rule(nn.GRU, _recurrent),
        rule(nn.RNN, _recurrent),
        rule(
            nn.Sequential,
            lambda module, convert: moduli.Sequential(
                *(convert(part, n) for n, part in enumerate(module))
            ),
        ),
        rule(
            nn.ModuleList,
            lambda module, convert: moduli.List(
                [convert(part, n) for n, part in enumerate(module)]
            ),
        ),
        rule(
            nn.ModuleDict,
            lambda module, convert: moduli.Dict(
                {name: convert(part, name) for name, part in module.items()}
            ),
        ),
        rule(nn.Dropout, functools.partial(_dropout, rank=0)),
        rule(
            nn.Flatten,
            lambda module, _: functools.partial(
                _flatten, start=module.start_dim, end=module.end_dim
            ),
        ),
    ]
    for rank in (1, 2, 3):
        found += [
            rule(getattr(nn, f"Conv{rank}d"), functools.partial(_conv, rank=rank)),
            rule(
                getattr(nn, f"ConvTranspose{rank}d"), functools.partial(_conv_transpose, rank=rank)
            ),
            rule(getattr(nn, f"BatchNorm{rank}d"), functools.partial(_batch_norm, rank=rank)),
            rule(getattr(nn, f"InstanceNorm{rank}d"), functools.partial(_instance_norm, rank=rank)),
            rule(getattr(nn, f"Dropout{rank}d"), functools.partial(_dropout, rank=rank)),
            rule(getattr(nn, f"MaxPool{rank}d"), functools.partial(_pool, rank=rank, kind="max")),
            rule(getattr(nn, f"AvgPool{rank}d"), functools.partial(_pool, rank=rank, kind="avg")),
            rule(
                getattr(nn, f"AdaptiveMaxPool{rank}d"),
                functools.partial(_adaptive_pool, rank=rank, function=moduli.adaptive_max_pool),
            ),
            rule(
                getattr(nn, f"AdaptiveAvgPool{rank}d"),
                functools.partial(_adaptive_pool, rank=rank, function=moduli.adaptive_avg_pool),
            ),
        ]
    for kind, make in _activations().items():
        found.append(rule(kind, lambda module, _, make=make: make(module)))
    found.append(
        LayerRule(
            moduli.Module, jax_module_class(), from_theirs=lambda module, _: module.to_model()
        )
    )
    found += [
        LayerRule(moduli.Module, _first_output_class(), _without_first_output),
        LayerRule(moduli.Module, _joined_axes_class(), _from_joined_axes),
        LayerRule(moduli.Module, _carry_first_class(), _from_carry_first),
        LayerRule(JoinedAxes, nn.Module, None, _joined_axes_to_theirs),
        LayerRule(PaddingEmbed, nn.Module, None, _padding_embed_to_theirs),
        LayerRule(TorchCell, nn.Module, None, _torch_cell_to_theirs),
        LayerRule(moduli.WeightNorm, nn.Module, None, weight_norm_to_theirs),
    ]
    found.append(
        LayerRule(
            ChannelsFirst,
            _channels_last_class(),
            _without_axes,
            lambda layer, convert: _channels_first(layer, convert),
        )
    )
    return found


def _activations() -> dict[Any, Callable[[Any], Any]]:
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


def _flatten(x: Any, start: int, end: int) -> jax.Array:
    start, end = start % x.ndim, end % x.ndim
    return x.reshape((*x.shape[:start], math.prod(x.shape[start : end + 1]), *x.shape[end + 1 :]))


def _filled(module: Any, layer: Any, convert: Conversion, counterpart: Any = None) -> Any:
    """Takes the tensors of a module into our layer, by the layer's own counterpart or another."""
    if counterpart is None:
        counterpart = getattr(layer, "torch_counterpart", None)
    if counterpart is None:
        convert.refuse(module, "whose settings our layer has not in this combination")
    for path, node in list(moduli.iter_graph(layer)):
        if isinstance(node, moduli.Variable) and path:
            value = node.get_raw_value()
            if isinstance(value, jax.ShapeDtypeStruct) and value.dtype != jnp.uint32:
                kept = isinstance(node, moduli.BatchStat)  # in float32 or wider
                dtype = jnp.promote_types(value.dtype, _dtype(module)) if kept else value.dtype
                node.set_raw_value(np.zeros(value.shape, dtype))
    held = {name: as_numpy(value) for name, value in module.state_dict().items()}
    counterpart.to_ours(layer, held)
    tied = convert.kept.setdefault("tied", {})
    for name, value in module.named_parameters():
        tensor = counterpart.tensors.get(name)
        if tensor is None or len(tensor.paths) != 1:
            continue
        first = tied.setdefault(id(value), (value, _layout(tensor), layer, tensor.paths[0]))
        if first[2] is layer:
            continue
        if first[1] != _layout(tensor):
            convert.refuse(
                module,
                f"whose parameter `{name}` another layer holds in another layout than ours, so "
                "that they cannot be one Param",
            )
        _assign(layer, tensor.paths[0], _at(first[2], first[3]))
    return layer


def _layout(tensor: Any) -> Any:
    """Returns how a tensor is laid out, but for the name of its Variable."""
    return dataclasses.replace(tensor, of="")


def _assign(layer: Any, path: str, variable: Any) -> None:
    *parents, last = path.split(".")
    setattr(_at(layer, ".".join(parents)), last, variable)


def _at(layer: Any, path: str) -> Any:
    """Returns what stands at a path with dots."""
    for name in filter(None, path.split(".")):
        layer = layer[int(name)] if name.isdigit() else getattr(layer, name)
    return layer


def _dtype(module: Any) -> Any:
    """The dtype of a module's parameters, in which ours are kept."""
    for value in module.parameters():
        return jax.dtypes.canonicalize_dtype(as_numpy(value[:0] if value.ndim else value).dtype)
    return jnp.float32


def _make(cls: Any, *args: Any, **settings: Any) -> Any:
    return build(cls, *args, **settings)


def _linear(module: Any, convert: Conversion) -> Any:
    layer = _make(
        moduli.Linear,
        module.in_features,
        module.out_features,
        use_bias=module.bias is not None,
        param_dtype=_dtype(module),
    )
    return _filled(module, layer, convert)


def _embedding(module: Any, convert: Conversion) -> Any:
    for name in ("max_norm", "scale_grad_by_freq", "sparse"):
        if getattr(module, name) is not None and getattr(module, name) is not False:
            convert.refuse(
                module,
                f"with {name}={getattr(module, name)!r}, which changes its training and which our "
                f"Embed lacks (set `module.{name} = None`, if it is not to be trained on)",
            )
    layer = _make(
        moduli.Embed, module.num_embeddings, module.embedding_dim, param_dtype=_dtype(module)
    )
    layer = _filled(module, layer, convert)
    return layer if module.padding_idx is None else PaddingEmbed(layer, module.padding_idx)


def _conv(module: Any, convert: Conversion, rank: int) -> Any:
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
    layer = _make(
        moduli.Conv,
        module.in_channels,
        module.out_channels,
        module.kernel_size,
        module.stride,
        padding=padding,
        kernel_dilation=module.dilation,
        feature_group_count=module.groups,
        use_bias=module.bias is not None,
        param_dtype=_dtype(module),
    )
    return ChannelsFirst(_filled(module, layer, convert), axis=-1 - rank)


def _conv_transpose(module: Any, convert: Conversion, rank: int) -> Any:
    spans = [(k - 1) * d for k, d in zip(module.kernel_size, module.dilation, strict=True)]
    padding = tuple(
        (span - p, span - p + more)
        for span, p, more in zip(spans, module.padding, module.output_padding, strict=True)
    )
    if module.groups != 1:  # of which only Conv knows
        layer = _make(
            moduli.Conv,
            module.in_channels,
            module.out_channels,
            module.kernel_size,
            padding=padding,
            input_dilation=module.stride,
            kernel_dilation=module.dilation,
            feature_group_count=module.groups,
            use_bias=module.bias is not None,
            param_dtype=_dtype(module),
        )
        filled = _filled(module, layer, convert, _transposed_counterpart(layer))
        return ChannelsFirst(filled, axis=-1 - rank, transposed=True)
    layer = _make(
        moduli.ConvTranspose,
        module.in_channels,
        module.out_channels,
        module.kernel_size,
        module.stride,
        padding=padding,
        kernel_dilation=module.dilation,
        use_bias=module.bias is not None,
        param_dtype=_dtype(module),
    )
    return ChannelsFirst(_filled(module, layer, convert), axis=-1 - rank)


def _transposed_counterpart(layer: Any) -> Any:
    """The transposed convolution that a Conv of spread inputs is; None if it is none."""
    strides, spread, dilation, padding = layer._window()
    if any(s != 1 for s in strides) or layer.mask is not None or len(strides) > 3:
        return None
    spans = [(k - 1) * d for k, d in zip(layer.kernel_size, dilation, strict=True)]
    if padding == "VALID":
        padding = ((0, 0),) * len(spans)
    if isinstance(padding, str):
        return None
    cut = tuple(span - before for span, (before, _) in zip(spans, padding, strict=True))
    more = tuple(after - before for before, after in padding)
    if any(c < 0 for c in cut) or not all(
        0 <= m < max(s, d) for m, s, d in zip(more, spread, dilation, strict=True)
    ):
        return None
    groups = layer.feature_group_count
    return moduli.counterparts.Counterpart(
        f"torch.nn.ConvTranspose{len(spans)}d",
        transposed_tensors(groups),
        {
            "in_channels": "in_features",
            "out_channels": "out_features",
            "kernel_size": "kernel_size",
            "groups": "feature_group_count",
            "bias": "use_bias",
        },
        {"stride": spread, "dilation": dilation, "padding": cut, "output_padding": more},
        feature_axis=1,
    )


def _batch_norm(module: Any, convert: Conversion, rank: int) -> Any:
    momentum: Any = module.momentum
    if not module.track_running_stats or module.momentum is None:
        name = "momentum=None" if module.momentum is None else "track_running_stats=False"
        convert.refuse(module, f"with {name}")
    layer = _make(
        moduli.BatchNorm,
        module.num_features,
        momentum=1 - momentum,
        epsilon=module.eps,
        use_scale=module.affine,
        use_bias=module.affine,
        use_running_average=not module.training,
        param_dtype=_dtype(module),
    )
    return ChannelsFirst(_filled(module, layer, convert), axis=1, rank=rank)


def _layer_norm(module: Any, convert: Conversion) -> Any:
    settings = {
        "epsilon": module.eps,
        "use_scale": module.elementwise_affine,
        "use_bias": module.bias is not None,
        "param_dtype": _dtype(module),
    }
    return _of_last_axes(moduli.LayerNorm, module, settings, convert)


def _rms_norm(module: Any, convert: Conversion) -> Any:
    dtype = _dtype(module)
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
    layer = _make(cls, math.prod(shape), **settings)
    if len(shape) == 1 and axes is None:
        return _filled(module, layer, convert)
    flat = f"(f{' f'.join(map(str, range(len(shape))))})"
    layout = f"{flat} -> {flat[1:-1]}"
    sizes = {f"f{n}": size for n, size in enumerate(shape)}
    names = [name for name in ("scale", "bias") if getattr(layer, name, None) is not None]
    theirs = {"scale": "weight", "bias": "bias"}
    layer = _filled(
        module,
        layer,
        convert,
        moduli.counterparts.Counterpart(
            f"torch.nn.{type(module).__name__}",
            {theirs[name]: moduli.Tensor(name, layout, sizes=sizes) for name in names},
        ),
    )
    return layer if axes is not None else JoinedAxes(layer, shape)


def _group_norm(module: Any, convert: Conversion) -> Any:
    layer = _make(
        moduli.GroupNorm,
        module.num_channels,
        module.num_groups,
        epsilon=module.eps,
        use_scale=module.affine,
        use_bias=module.affine,
        param_dtype=_dtype(module),
    )
    return ChannelsFirst(_filled(module, layer, convert), axis=1)


def _instance_norm(module: Any, convert: Conversion, rank: int) -> Any:
    if module.track_running_stats:
        convert.refuse(module, "with track_running_stats=True")
    layer = _make(
        moduli.InstanceNorm,
        module.num_features,
        epsilon=module.eps,
        use_scale=module.affine,
        use_bias=module.affine,
        param_dtype=_dtype(module),
    )
    return ChannelsFirst(_filled(module, layer, convert), axis=1, rank=rank)


def _prelu(module: Any, convert: Conversion) -> Any:
    number = module.num_parameters
    layer = _make(moduli.PReLU, num_parameters=number, param_dtype=_dtype(module))
    layer = _filled(module, layer, convert)
    return layer if number == 1 else ChannelsFirst(layer, axis=1)


def _dropout(module: Any, convert: Conversion, rank: int) -> Any:
    dims = tuple(range(-rank, 0))
    return moduli.Dropout(
        module.p,
        broadcast_dims=dims,
        deterministic=not module.training,
        rngs=convert.kept.get("rngs"),
    )


def _attention(module: Any, convert: Conversion) -> Any:
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
        "param_dtype": _dtype(module),
    }
    layer = _make(moduli.MultiHeadAttention, module.num_heads, module.embed_dim, **settings)
    if module.dropout:
        layer.rngs = None if rngs is None else rngs.dropout.fork()
    return _filled(module, layer, convert)


_CELLS = {"LSTM": "OptimizedLSTMCell", "GRU": "GRUCell", "RNN": "SimpleCell"}


def _cell_settings(module: Any, kind: str, convert: Conversion) -> dict[str, Any]:
    """Returns the settings of our cells for a recurrent layer or cell of PyTorch."""
    if not module.bias:
        convert.refuse(module, "with bias=False")
    settings: dict[str, Any] = {"param_dtype": _dtype(module)}
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


def _recurrent(module: Any, convert: Conversion) -> Any:
    kind = type(module).__name__
    if module.proj_size != 0:
        convert.refuse(module, f"with proj_size={module.proj_size}")
    settings = _cell_settings(module, kind, convert)
    directions = 2 if module.bidirectional else 1
    major = not module.batch_first

    def network(size: int) -> Any:
        cell = _make(getattr(moduli, _CELLS[kind]), size, module.hidden_size, **settings)
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
        return _filled(module, layers[0], convert)
    chain = moduli.Sequential(*layers)
    return _filled(module, chain, convert, _chain_counterpart(chain))


def _chain_counterpart(chain: Any) -> Any:
    """The recurrent layer of several that a chain of ours is; None if it is none."""
    dropouts = [layer for layer in chain.layers if type(layer) is moduli.Dropout]
    rnns = [layer for layer in chain.layers if type(layer) in (moduli.RNN, moduli.Bidirectional)]
    regular = chain.layers[::2] == rnns and chain.layers[1::2] == dropouts
    if (
        len(rnns) < 2
        or not (regular or not dropouts)
        or len(rnns) + len(dropouts) != len(chain.layers)
    ):
        return None
    if any((d.rate, d.broadcast_dims) != (dropouts[0].rate, ()) for d in dropouts):
        return None
    counterparts: list[Any] = [getattr(layer, "torch_counterpart", None) for layer in rnns]
    if None in counterparts or len(set(map(id, rnns))) != len(rnns):
        return None
    given = [c.arguments(layer) for c, layer in zip(counterparts, rnns, strict=True)]
    inner = given[0]["hidden_size"] * (2 if given[0].get("bidirectional") else 1)
    sizes = [arguments.pop("input_size") for arguments in given]
    if (
        any(c.name != counterparts[0].name for c in counterparts)
        or any(arguments != given[0] for arguments in given)
        or any(set(c.tensors) != set(counterparts[0].tensors) for c in counterparts)
        or sizes[1:] != [inner] * (len(rnns) - 1)
        or len({d.deterministic for d in dropouts}) > 1
    ):
        return None
    tensors = {}
    for layer, counterpart in zip(rnns, counterparts, strict=True):
        place = next(n for n, item in enumerate(chain.layers) if item is layer)
        for name, tensor in counterpart.tensors.items():
            number = f"_l{rnns.index(layer)}"
            tensors[name.replace("_l0", number)] = tensor.below(f"layers.{place}.")
    rate = dropouts[0].rate if dropouts else 0.0
    fixed = {**given[0], "input_size": sizes[0], "num_layers": len(rnns), "dropout": rate}
    return moduli.counterparts.Counterpart(
        counterparts[0].name, tensors, fixed=fixed, output=counterparts[0].output
    )


def _cell(module: Any, convert: Conversion) -> Any:
    kind = type(module).__name__.removesuffix("Cell")
    settings = _cell_settings(module, kind, convert)
    cell = _make(getattr(moduli, _CELLS[kind]), module.input_size, module.hidden_size, **settings)
    return TorchCell(_filled(module, cell, convert))


def _pool(module: Any, convert: Conversion, rank: int, kind: str) -> Any:
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


def _adaptive_pool(module: Any, convert: Conversion, rank: int, function: Any) -> Any:
    if getattr(module, "return_indices", False):
        convert.refuse(module, "with return_indices")
    size = module.output_size
    size = tuple(size) if isinstance(size, (tuple, list)) else (size,) * rank
    return ChannelsFirst(functools.partial(function, output_size=size), axis=-1 - rank)


# -- to PyTorch ----------------------------------------------------------------------------------


@functools.cache
def _channels_last_class() -> Any:
    torch: Any = import_framework("torch", "torch")

    class ChannelsLast(torch.nn.Module):
        """Calls a layer of ``torch.nn`` with arrays whose features are last, as ours are.

        Args:
          layer: the layer, whose features are on axis 1.
          rank: the number of spatial axes of its inputs; None lets one axis stand for all of them,
            ``"batch"`` lets the batch do so.
        """

        def __init__(self, layer: Any, rank: Any) -> None:
            super().__init__()
            self.layer, self.rank = layer, rank

        def forward(self, x: Any) -> Any:
            """Calls the layer."""
            shape = x.shape
            if self.rank == "batch":  # statistics over all axes but the features'
                return self.layer(x.reshape(-1, shape[-1])).reshape(shape)
            if self.rank is None:
                x = x.reshape(shape[0], -1, shape[-1])
                return self.layer(x.movedim(-1, 1)).movedim(1, -1).reshape(shape)
            batch = shape[: -self.rank - 1]
            x = x.reshape(-1, *shape[len(batch) :]).movedim(-1, 1)
            out = self.layer(x).movedim(1, -1)
            return out.reshape(*batch, *out.shape[1:])

    return ChannelsLast


def _without_axes(module: Any, convert: Conversion) -> Any:
    """Makes our layer of a ChannelsLast: the layer inside, without its ChannelsFirst."""
    return convert(module.layer, "layer").layer


def _channels_first(layer: Any, convert: Conversion) -> Any:
    pool = _pool_to_theirs(layer.layer)
    if pool is not None:
        return pool
    convert.kept["rank"] = layer.rank
    made = convert(layer.layer, "layer")
    convert.kept["rank"] = None
    return made.layer if isinstance(made, _channels_last_class()) else made


def _pool_to_theirs(function: Any) -> Any:
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


def _to_theirs(part: Any, convert: Conversion) -> Any:
    import torch

    if isinstance(part, moduli.List):
        return torch.nn.ModuleList([convert(item, n) for n, item in enumerate(part)])
    if isinstance(part, moduli.Dict):
        return torch.nn.ModuleDict({key: convert(item, key) for key, item in part.items()})
    if type(part) is moduli.Sequential:
        joined = _chain_counterpart(part)
        if joined is not None:
            rnns = [layer for layer in part.layers if type(layer) is not moduli.Dropout]
            for rnn in rnns:
                check_plain(rnn, convert)
            made = _layer_to_theirs(part, joined, convert)
            dropouts: list[Any] = [f for f in part.layers if type(f) is moduli.Dropout]
            return made.train(not any(layer.deterministic for layer in dropouts))
        return torch.nn.Sequential(*(convert(f, "layers", n) for n, f in enumerate(part.layers)))
    if type(part) is moduli.Dropout:
        dims = part.broadcast_dims
        if dims not in ((), (-1,), (-2, -1), (-3, -2, -1)):
            convert.refuse(part, f"with broadcast_dims={dims}")
        kind = f"Dropout{len(dims)}d" if dims else "Dropout"
        return getattr(torch.nn, kind)(part.rate).train(not part.deterministic)
    if type(part) is moduli.MLP:
        return _mlp(part, convert)
    if type(part) in (moduli.LayerNorm, moduli.RMSNorm):
        axes = part.reduction_axes
        several = isinstance(axes, tuple) and len(axes) > 1 and axes == tuple(range(-len(axes), 0))
        if several and part.feature_axes == axes:
            return _norm_of_last_axes(part, convert)
    if isinstance(part, moduli.Module):
        counterpart = _counterpart_of(part)
        if counterpart is not None:
            made = _layer_to_theirs(part, counterpart, convert)
            return _carry_first_class()(made) if isinstance(part, moduli.RNNCellBase) else made
        if type(part).__module__.partition(".")[0] in ("moduli", "moduli_layers"):
            convert.refuse(
                part, _REASONS.get(type(part).__name__, "which, with these settings, torch has not")
            )
        return JaxModule(part)
    if callable(part):
        pool = _pool_to_theirs(part)
        if pool is not None:
            return _channels_last_class()(pool, int(type(pool).__name__[-2]))
        made = _function_to_theirs(part, convert)
        return JaxModule(FunctionModule(part)) if made is NotImplemented else made
    return NotImplemented


_REASONS = {  # by the name of a layer of ours
    "SpectralNorm": (
        "which torch computes otherwise: there the weights stay as they are and only training "
        "iterates, here training keeps the divided weights and evaluation iterates too"
    ),
}


def _counterpart_of(part: Any) -> Any:
    """Returns what a layer says of its counterpart, or what this file knows."""
    counterpart = getattr(part, "torch_counterpart", None)
    if counterpart is None and type(part) is moduli.Conv:
        return _transposed_counterpart(part)
    return counterpart


def _mlp(part: Any, convert: Conversion) -> Any:
    import torch

    layers: list[Any] = []
    norms = list(getattr(part, "norms", None) or ())
    dropouts = list(getattr(part, "dropouts", None) or ())
    for n, linear in enumerate(part.layers):
        layers.append(convert(linear, "layers", n))
        if n < len(part.layers) - 1 or part.activate_final:
            if n < len(norms):
                layers.append(convert(norms[n], "norms", n))
            layers.append(convert(part.activation, "activation"))
            if n < len(dropouts):
                layers.append(convert(dropouts[n], "dropouts", n))
    return torch.nn.Sequential(*layers)


def _layer_to_theirs(part: Any, counterpart: Any, convert: Conversion) -> Any:
    import torch

    check_plain(part, convert)
    name = counterpart.name
    kind = name.rpartition(".")[2]
    rank: Any = 0
    if "{rank}" in name:
        rank = "batch" if kind.startswith("BatchNorm") else None
        name = name.replace("{rank}", str(convert.kept.get("rank") or 1))
    elif counterpart.feature_axis == 1:
        rank = int(kind[-2]) if kind[-2:-1].isdigit() else None
    home, _, kind = name.rpartition(".")
    try:
        arguments = counterpart.arguments(part)
    except StructureError as error:
        convert.refuse(part, f"which, with these settings, torch has not: {error}")
    module = getattr(operator.attrgetter(home.partition(".")[2])(torch), kind)(**arguments)
    held = {name: as_tensor(np.array(x)) for name, x in counterpart.to_theirs(part).items()}
    wide = [value.dtype for value in held.values() if value.is_floating_point()]
    if wide:
        module = module.to(functools.reduce(torch.promote_types, wide))
    with torch.no_grad():
        for tensor_name, tensor in module.state_dict(keep_vars=True).items():
            if tensor_name in held:
                tensor.copy_(held[tensor_name].reshape(tensor.shape))
            elif not tensor_name.endswith("num_batches_tracked"):
                convert.refuse(part, f"for which torch's {kind} also has `{tensor_name}`")
    _tie(part, module, counterpart, convert)
    evaluates = getattr(part, "use_running_average", None) or getattr(part, "deterministic", None)
    module.train(not evaluates)
    last = counterpart.output is not None
    if last:
        module = _first_output_class()(module)
    return module if rank == 0 else _channels_last_class()(module, rank)


@functools.cache
def _first_output_class() -> Any:
    torch: Any = import_framework("torch", "torch")

    class FirstOutput(torch.nn.Module):
        """Calls a layer that returns more than ours does, and returns the first of it."""

        def __init__(self, layer: Any) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            """Calls the layer."""
            if isinstance(self.layer, torch.nn.MultiheadAttention) and len(args) == 1:
                args = args * 3
            return self.layer(*args, **kwargs)[0]

    return FirstOutput


def _without_first_output(module: Any, convert: Conversion) -> Any:
    convert.kept["made here"] = True
    made = convert(module.layer, "layer")
    convert.kept.pop("made here", None)
    return made


@functools.cache
def _joined_axes_class() -> Any:
    torch: Any = import_framework("torch", "torch")

    class JoinedLastAxes(torch.nn.Module):
        """Calls a layer of one axis of features with the last ``number`` axes as one."""

        def __init__(self, layer: Any, number: int) -> None:
            super().__init__()
            self.layer, self.number = layer, number

        def forward(self, x: Any) -> Any:
            """Calls the layer."""
            return self.layer(x.flatten(-self.number)).reshape(x.shape)

    return JoinedLastAxes


def _from_joined_axes(module: Any, convert: Conversion) -> Any:
    convert.kept["axes"] = tuple(range(-module.number, 0))
    return convert(module.layer, "layer")


def _joined_axes_to_theirs(part: Any, convert: Conversion) -> Any:
    import torch

    flat = convert(part.layer, "layer")
    if type(flat) not in (torch.nn.LayerNorm, torch.nn.RMSNorm):
        convert.refuse(part, f"around a {type(part.layer).__name__}")
    settings: dict[str, Any] = {"elementwise_affine": flat.elementwise_affine}
    if type(flat) is torch.nn.LayerNorm:
        settings["bias"] = flat.bias is not None
    made = type(flat)(part.shape, eps=flat.eps, **settings).train(flat.training)
    for name, parameter in flat.named_parameters():
        shaped = torch.nn.Parameter(parameter.detach().reshape(part.shape))
        setattr(made, name, shaped)
    return made


def _norm_of_last_axes(part: Any, convert: Conversion) -> Any:
    """Makes a norm over several last axes, whose sizes only its inputs tell."""
    axes = part.reduction_axes
    flat = moduli.clone(part)
    flat.reduction_axes = flat.feature_axes = -1
    return _joined_axes_class()(convert(flat, "layer"), len(axes))


def _padding_embed_to_theirs(part: Any, convert: Conversion) -> Any:
    made = convert(part.layer, "layer")
    made.padding_idx = part.padding_idx % made.num_embeddings
    return made


@functools.cache
def _carry_first_class() -> Any:
    torch: Any = import_framework("torch", "torch")

    class CarryFirst(torch.nn.Module):
        """Calls a cell of ``torch.nn`` as ours are: (carry, inputs) -> (carry, outputs)."""

        def __init__(self, layer: Any) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, carry: Any, x: Any) -> Any:
            """Makes one step."""
            if isinstance(self.layer, torch.nn.LSTMCell):
                h, c = self.layer(x, (carry[1], carry[0]))
                return (c, h), h
            h = self.layer(x, carry)
            return h, h

    return CarryFirst


def _from_carry_first(module: Any, convert: Conversion) -> Any:
    convert.kept["made here"] = True
    made = convert(module.layer, "layer").cell
    convert.kept.pop("made here", None)
    return made


def _torch_cell_to_theirs(part: Any, convert: Conversion) -> Any:
    return convert(part.cell, "cell").layer


def _tie(part: Any, module: Any, counterpart: Any, convert: Conversion) -> None:
    """Makes one parameter of what is one Variable in two layers."""
    tied = convert.kept.setdefault("tied", {})
    for name, tensor in counterpart.tensors.items():
        if len(tensor.paths) != 1 or name not in dict(module.named_parameters()):
            continue
        variable = _at(part, tensor.paths[0])
        first = tied.setdefault(id(variable), (variable, _layout(tensor), module, name))
        if first[2] is module:
            continue
        if first[1] != _layout(tensor):
            convert.refuse(
                part,
                f"whose `{tensor.paths[0]}` another layer holds too, in another layout of torch's, "
                "so that they cannot be one parameter",
            )
        setattr(module, name, getattr(first[2], first[3]))


def _function_to_theirs(function: Any, convert: Conversion) -> Any:
    import torch.nn as nn

    settings: dict[str, Any] = {}
    inner = function
    if isinstance(function, functools.partial) and not function.args:
        inner, settings = function.func, dict(function.keywords)
    if inner is _flatten:
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
