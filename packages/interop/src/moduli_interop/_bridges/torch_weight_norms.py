"""PyTorch's reparametrised layers, both forms of its weight norm among them, and ours."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

import moduli
from moduli_interop._bridges.arguments import build
from moduli_interop._bridges.bridge import Conversion
from moduli_interop._bridges.conventions import ChannelsFirst, check_plain
from moduli_interop._bridges.torch_arrays import as_numpy, as_tensor

__all__ = ["is_reparametrised", "reparametrised", "weight_norm_to_theirs"]

_OTHERS = (
    "whose {names} parametrised in a way that our layers have not (spectral norms keep and iterate "
    "otherwise here); write torch.nn.utils.parametrize.remove_parametrizations(module, name) "
    "first, or torch.nn.utils.remove_spectral_norm(module)"
)


def is_reparametrised(module: Any) -> bool:
    """Returns whether a weight of a module of PyTorch is worked out from others in each call."""
    import torch

    if torch.nn.utils.parametrize.is_parametrized(module):
        return True
    return any(
        type(hook).__module__.startswith("torch.nn.utils")
        for hook in module._forward_pre_hooks.values()
    )


def reparametrised(module: Any, convert: Conversion, makers: Mapping[type, Any]) -> Any:
    """Makes our WeightNorm of a module of PyTorch with one.

    Args:
      module: a module whose weights are parametrised, in either form.
      convert: the conversion.
      makers: what converts each class of modules.
    """
    name, dim, length, direction = _weight_norm(module, convert)
    if module._forward_hooks:
        convert.refuse(module, "which has hooks beside its weight norm")
    plain = _plain(module, name, direction)
    maker = makers.get(type(plain))
    if maker is None:
        convert.refuse(module, f"around a {type(plain).__name__}")
    made = maker(plain, convert)
    layer = made.layer if isinstance(made, ChannelsFirst) else made
    if isinstance(made, ChannelsFirst) and made.transposed:
        convert.refuse(module, "around a transposed convolution in groups")
    path, axes = _axes_of(layer, name, dim, direction.ndim, module, convert)
    dtype = layer.param_dtype
    wrapped = build(moduli.WeightNorm, layer, feature_axes=axes, epsilon=0.0, param_dtype=dtype)
    wrapped.layer_instance = layer
    scale = wrapped.scales[tuple(path.split("."))]
    scale.set_value(jnp.asarray(as_numpy(length).reshape(scale.shape)))
    wrapped.use_running_average = not module.training
    tied = convert.kept.setdefault("tied", {})
    for parameter in (length, direction):
        if id(parameter) in tied:
            convert.refuse(module, "which shares a parameter with another layer")
        tied[id(parameter)] = (parameter, object(), wrapped, "")
    if made is layer:
        return wrapped
    made.layer = wrapped
    return made


def _plain(module: Any, name: str, weight: Any) -> Any:
    """Returns a layer with the same parameters, and a weight; the module stays as it is."""
    import torch
    from torch.nn.utils import parametrize

    plain: Any = object.__new__(parametrize.type_before_parametrizations(module))
    plain.__dict__.update({key: x for key, x in vars(module).items() if key != name})
    for part in ("_parameters", "_modules", "_forward_pre_hooks"):
        plain.__dict__[part] = vars(module)[part].copy()
    plain._forward_pre_hooks.clear()
    plain._modules.pop("parametrizations", None)
    for ending in ("_g", "_v"):
        plain._parameters.pop(name + ending, None)
    plain._parameters[name] = torch.nn.Parameter(weight.detach())
    return plain


def _weight_norm(module: Any, convert: Conversion) -> tuple[str, int | None, Any, Any]:
    """Returns the weight's name, the axis of the lengths, the lengths and the directions."""
    from torch.nn.utils import parametrize, weight_norm

    if parametrize.is_parametrized(module):
        lists = dict(module.parametrizations.items())
        (name, held), *others = lists.items()
        kind = held[0]
        if others or len(held) != 1 or type(kind).__name__ != "_WeightNorm":
            names = f"{', '.join(lists)} {'are' if others else 'is'}"
            convert.refuse(module, _OTHERS.format(names=names))
        length, direction = held.original0, held.original1
        return name, None if length.ndim == 0 else kind.dim, length, direction
    hooks = list(module._forward_pre_hooks.values())
    (hook, *others) = hooks
    if others or type(hook).__module__ != weight_norm.__module__:
        convert.refuse(module, _OTHERS.format(names=f"{getattr(hook, 'name', 'weight')} is"))
    length = getattr(module, f"{hook.name}_g")
    dim = None if length.ndim == 0 else hook.dim
    return hook.name, dim, length, getattr(module, f"{hook.name}_v")


def _axes_of(
    layer: Any, name: str, dim: int | None, rank: int, module: Any, convert: Conversion
) -> tuple[str, Any]:
    """Returns the path of the weight in our layer, and the axes along which lengths differ."""
    tensor = getattr(layer, "torch_counterpart").tensors.get(name)  # noqa: B009
    if tensor is None or len(tensor.paths) != 1:
        convert.refuse(module, f"whose `{name}` is no Param of its own in ours")
    (path,) = tensor.paths
    if dim is None:
        return path, None
    ours, theirs = tensor._plan(operator.attrgetter(path)(layer).ndim)
    return path, tuple(ours.index(axis) for axis in theirs[dim % rank])


def weight_norm_to_theirs(part: Any, convert: Conversion) -> Any:
    """Makes a module of PyTorch with its weight norm of ours.

    Args:
      part: a WeightNorm.
      convert: the conversion.
    """
    import torch

    check_plain(part, convert)
    weights = part._weights()
    if part.scales is None or len(weights) != 1 or part.epsilon > 1e-12:
        convert.refuse(part, "with several weights, without scales or with an epsilon above 1e-12")
    (path, param) = weights[0]
    made = convert(part.layer_instance, "layer_instance")
    plain = made
    while not hasattr(plain, "weight") and hasattr(plain, "layer"):
        plain = plain.layer  # of a ChannelsLast
    names = getattr(part.layer_instance, "torch_counterpart", None)
    found = [
        (name, tensor)
        for name, tensor in ({} if names is None else names.tensors).items()
        if tensor.paths == (".".join(map(str, path)),)
    ]
    if len(found) != 1 or not hasattr(plain, found[0][0]):
        convert.refuse(part, "around a layer whose weight is no parameter of its own in torch")
    name, tensor = found[0]
    kept = part._kept_axes(path, param)
    ours, theirs = tensor._plan(param.ndim)
    wanted = {ours[axis] for axis in kept}
    dims = [n for n, group in enumerate(theirs) if set(group) == wanted]
    if wanted and not dims:
        convert.refuse(part, f"with feature_axes={part.feature_axes}, where torch has one axis")
    plain.train(not part.use_running_average)
    dim: Any = dims[0] if wanted else None
    torch.nn.utils.parametrizations.weight_norm(plain, name, dim)
    held = plain.parametrizations[name]
    scale = as_tensor(part.scales[path].value)
    with torch.no_grad():
        held.original1.copy_(as_tensor(tensor.to_theirs([param.value])))
        held.original0.copy_(scale.reshape(held.original0.shape))
    return made
