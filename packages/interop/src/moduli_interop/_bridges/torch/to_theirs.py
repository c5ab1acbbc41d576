"""Which layer of ``torch.nn`` one of ours becomes."""

from __future__ import annotations

import functools
import operator
from typing import Any

import numpy as np

import moduli
from moduli.errors import StructureError
from moduli_interop._bridges.bridge import Conversion
from moduli_interop._bridges.conventions import (
    check_plain,
)
from moduli_interop._bridges.torch.classes import (
    carry_first_class,
    channels_last_class,
    first_output_class,
    joined_axes_class,
)
from moduli_interop._bridges.torch.counterparts import chain_counterpart, counterpart_of
from moduli_interop._bridges.torch.functions import function_to_theirs, pool_to_theirs
from moduli_interop._bridges.torch.tensors import tie
from moduli_interop._bridges.torch_arrays import as_tensor
from moduli_interop._bridges.torch_calls import (
    FunctionModule,
    JaxModule,
)

__all__ = [
    "channels_first_to_theirs",
    "joined_axes_to_theirs",
    "padding_embed_to_theirs",
    "to_theirs",
    "torch_cell_to_theirs",
]


def to_theirs(part: Any, convert: Conversion) -> Any:
    import torch

    if isinstance(part, moduli.List):
        return torch.nn.ModuleList([convert(item, n) for n, item in enumerate(part)])
    if isinstance(part, moduli.Dict):
        return torch.nn.ModuleDict({key: convert(item, key) for key, item in part.items()})
    if type(part) is moduli.Sequential:
        joined = chain_counterpart(part)
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
        counterpart = counterpart_of(part)
        if counterpart is not None:
            made = _layer_to_theirs(part, counterpart, convert)
            return carry_first_class()(made) if isinstance(part, moduli.RNNCellBase) else made
        if type(part).__module__.partition(".")[0] in ("moduli", "moduli_layers"):
            convert.refuse(
                part, _REASONS.get(type(part).__name__, "which, with these settings, torch has not")
            )
        return JaxModule(part)
    if callable(part):
        pool = pool_to_theirs(part)
        if pool is not None:
            return channels_last_class()(pool, int(type(pool).__name__[-2]))
        made = function_to_theirs(part, convert)
        return JaxModule(FunctionModule(part)) if made is NotImplemented else made
    return NotImplemented


def channels_first_to_theirs(layer: Any, convert: Conversion) -> Any:
    pool = pool_to_theirs(layer.layer)
    if pool is not None:
        return pool
    convert.kept["rank"] = layer.rank
    made = convert(layer.layer, "layer")
    convert.kept["rank"] = None
    return made.layer if isinstance(made, channels_last_class()) else made


_REASONS = {  # by the name of a layer of ours
    "SpectralNorm": (
        "which torch computes otherwise: there the weights stay as they are and only training "
        "iterates, here training keeps the divided weights and evaluation iterates too"
    ),
}


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
    tie(part, module, counterpart, convert)
    evaluates = getattr(part, "use_running_average", None) or getattr(part, "deterministic", None)
    module.train(not evaluates)
    last = counterpart.output is not None
    if last:
        module = first_output_class()(module)
    return module if rank == 0 else channels_last_class()(module, rank)


def joined_axes_to_theirs(part: Any, convert: Conversion) -> Any:
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
    return joined_axes_class()(convert(flat, "layer"), len(axes))


def padding_embed_to_theirs(part: Any, convert: Conversion) -> Any:
    made = convert(part.layer, "layer")
    made.padding_idx = part.padding_idx % made.num_embeddings
    return made


def torch_cell_to_theirs(part: Any, convert: Conversion) -> Any:
    return convert(part.cell, "cell").layer
