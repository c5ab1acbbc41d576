"""Whole models from and to PyTorch."""

from __future__ import annotations

from typing import Any

import moduli
from moduli_interop._bridges.bridge import Conversion
from moduli_interop._bridges.frameworks import import_framework, makers
from moduli_interop._bridges.torch.to_theirs import to_theirs
from moduli_interop._bridges.torch_calls import (
    TorchModule,
)
from moduli_interop._bridges.torch_weight_norms import (
    is_reparametrised,
    reparametrised,
)

__all__ = ["from_torch", "to_torch"]


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
        fallback=to_theirs,
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
