"""Layers of PyTorch that several of our settings or layers are together."""

from __future__ import annotations

from typing import Any

import moduli
from moduli_interop._bridges.conventions import (
    transposed_tensors,
)

__all__ = ["chain_counterpart", "counterpart_of", "transposed_counterpart"]


def counterpart_of(part: Any) -> Any:
    """Returns what a layer says of its counterpart, or what this file knows."""
    counterpart = getattr(part, "torch_counterpart", None)
    if counterpart is None and type(part) is moduli.Conv:
        return transposed_counterpart(part)
    return counterpart


def transposed_counterpart(layer: Any) -> Any:
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


def chain_counterpart(chain: Any) -> Any:
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
