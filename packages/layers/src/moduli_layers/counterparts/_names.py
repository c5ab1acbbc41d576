"""What a layer's tensors are called in another framework, whether or not it computes the same."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from moduli_layers.counterparts._tensor import Tensor

__all__ = ["TensorNames", "names_of"]


@dataclasses.dataclass(frozen=True)
class TensorNames:
    """One way to name and lay out the Variables of a layer.

    A layer with ``torch_names``, one of these or a tuple, can be loaded from a file with any of
    them: the one of which the file has most names. The first is written. A layer that only has a
    ``torch_counterpart`` is named as that says; one without either by its attributes.

    Attributes:
      tensors: the tensors by name, as far as they are not those of modules inside.
      children: other names for attributes: ``{"layers": ""}`` leaves out the name ``layers``.
      stacked: attributes whose Variables have one more axis, the first, for several blocks; the
        blocks' numbers stand in the names in the place of the attribute.
      derived: attributes whose Variables are worked out from others and are no weights.
      ignored: names of tensors that the other framework has and the layer needs no Variable for.

    Example:
      >>> import moduli as nnx
      >>> from moduli_layers.counterparts import Tensor, TensorNames
      >>> class Affine(nnx.Module):
      ...     torch_names = (TensorNames({"gamma": Tensor("scale"), "beta": Tensor("shift")}),)
    """

    tensors: Mapping[str, Tensor] = dataclasses.field(default_factory=lambda: MappingProxyType({}))
    children: Mapping[str, str] = dataclasses.field(default_factory=lambda: MappingProxyType({}))
    stacked: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    derived: tuple[str, ...] = ()


def names_of(layer: Any) -> tuple[TensorNames, ...]:
    """Returns the ways to name a layer's tensors that it declares; none if it declares none.

    Args:
      layer: the layer.
    """
    declared = getattr(layer, "torch_names", None)
    if declared is not None:
        return (declared,) if isinstance(declared, TensorNames) else tuple(declared)
    counterpart = getattr(layer, "torch_counterpart", None)
    return () if counterpart is None else (TensorNames(counterpart.tensors),)
