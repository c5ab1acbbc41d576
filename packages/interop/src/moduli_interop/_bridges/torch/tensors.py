"""Takes tensors of PyTorch into Variables, and keeps what is shared shared."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import moduli
from moduli_interop._bridges.bridge import Conversion
from moduli_interop._bridges.torch_arrays import as_numpy

__all__ = ["dtype_of", "filled", "tie"]


def filled(module: Any, layer: Any, convert: Conversion, counterpart: Any = None) -> Any:
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
                dtype = jnp.promote_types(value.dtype, dtype_of(module)) if kept else value.dtype
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


def tie(part: Any, module: Any, counterpart: Any, convert: Conversion) -> None:
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


def dtype_of(module: Any) -> Any:
    """The dtype of a module's parameters, in which ours are kept."""
    for value in module.parameters():
        return jax.dtypes.canonicalize_dtype(as_numpy(value[:0] if value.ndim else value).dtype)
    return jnp.float32
