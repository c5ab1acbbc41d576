"""The rules of ``torch.nn``, as the hook ``moduli_bridges`` has them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import moduli
from moduli_interop._bridges.bridge import Conversion, LayerRule
from moduli_interop._bridges.conventions import (
    ChannelsFirst,
    JoinedAxes,
    PaddingEmbed,
    TorchCell,
)
from moduli_interop._bridges.torch.classes import (
    carry_first_class,
    channels_last_class,
    first_output_class,
    joined_axes_class,
)
from moduli_interop._bridges.torch.from_theirs import (
    from_attention,
    from_batch_norm,
    from_carry_first,
    from_cell,
    from_conv,
    from_conv_transpose,
    from_dropout,
    from_embedding,
    from_group_norm,
    from_instance_norm,
    from_joined_axes,
    from_layer_norm,
    from_linear,
    from_prelu,
    from_recurrent,
    from_rms_norm,
    without_axes,
    without_first_output,
)
from moduli_interop._bridges.torch.functions import (
    activations,
    flatten,
    from_adaptive_pool,
    from_pool,
)
from moduli_interop._bridges.torch.to_theirs import (
    channels_first_to_theirs,
    joined_axes_to_theirs,
    padding_embed_to_theirs,
    torch_cell_to_theirs,
)
from moduli_interop._bridges.torch_calls import (
    jax_module_class,
)
from moduli_interop._bridges.torch_weight_norms import (
    weight_norm_to_theirs,
)

__all__ = ["rules"]


def rules() -> list[LayerRule]:
    """Returns the rules of ``torch.nn``."""
    import torch.nn as nn

    def rule(theirs: Any, maker: Callable[[Any, Conversion], Any]) -> LayerRule:
        return LayerRule(moduli.Module, theirs, from_theirs=maker)

    found = [
        rule(nn.Linear, from_linear),
        rule(nn.Embedding, from_embedding),
        rule(nn.LayerNorm, from_layer_norm),
        rule(nn.RMSNorm, from_rms_norm),
        rule(nn.GroupNorm, from_group_norm),
        rule(nn.PReLU, from_prelu),
        rule(nn.MultiheadAttention, from_attention),
        rule(nn.LSTMCell, from_cell),
        rule(nn.GRUCell, from_cell),
        rule(nn.RNNCell, from_cell),
        rule(nn.LSTM, from_recurrent),
        rule(nn.GRU, from_recurrent),
        rule(nn.RNN, from_recurrent),
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
        rule(nn.Dropout, functools.partial(from_dropout, rank=0)),
        rule(
            nn.Flatten,
            lambda module, _: functools.partial(
                flatten, start=module.start_dim, end=module.end_dim
            ),
        ),
    ]
    for rank in (1, 2, 3):
        found += [
            rule(getattr(nn, f"Conv{rank}d"), functools.partial(from_conv, rank=rank)),
            rule(
                getattr(nn, f"ConvTranspose{rank}d"),
                functools.partial(from_conv_transpose, rank=rank),
            ),
            rule(getattr(nn, f"BatchNorm{rank}d"), functools.partial(from_batch_norm, rank=rank)),
            rule(
                getattr(nn, f"InstanceNorm{rank}d"),
                functools.partial(from_instance_norm, rank=rank),
            ),
            rule(getattr(nn, f"Dropout{rank}d"), functools.partial(from_dropout, rank=rank)),
            rule(
                getattr(nn, f"MaxPool{rank}d"), functools.partial(from_pool, rank=rank, kind="max")
            ),
            rule(
                getattr(nn, f"AvgPool{rank}d"), functools.partial(from_pool, rank=rank, kind="avg")
            ),
            rule(
                getattr(nn, f"AdaptiveMaxPool{rank}d"),
                functools.partial(from_adaptive_pool, rank=rank, function=moduli.adaptive_max_pool),
            ),
            rule(
                getattr(nn, f"AdaptiveAvgPool{rank}d"),
                functools.partial(from_adaptive_pool, rank=rank, function=moduli.adaptive_avg_pool),
            ),
        ]
    for kind, make in activations().items():
        found.append(rule(kind, lambda module, _, make=make: make(module)))
    found.append(
        LayerRule(
            moduli.Module, jax_module_class(), from_theirs=lambda module, _: module.to_model()
        )
    )
    found += [
        LayerRule(moduli.Module, first_output_class(), without_first_output),
        LayerRule(moduli.Module, joined_axes_class(), from_joined_axes),
        LayerRule(moduli.Module, carry_first_class(), from_carry_first),
        LayerRule(JoinedAxes, nn.Module, None, joined_axes_to_theirs),
        LayerRule(PaddingEmbed, nn.Module, None, padding_embed_to_theirs),
        LayerRule(TorchCell, nn.Module, None, torch_cell_to_theirs),
        LayerRule(moduli.WeightNorm, nn.Module, None, weight_norm_to_theirs),
    ]
    found.append(
        LayerRule(
            ChannelsFirst,
            channels_last_class(),
            without_axes,
            lambda layer, convert: channels_first_to_theirs(layer, convert),
        )
    )
    return found
