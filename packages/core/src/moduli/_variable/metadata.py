"""Metadata of Variables, and a value on its way into one with metadata."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Generic

from moduli._base.type_variables import A

__all__ = ["AXIS_NAMES", "EMPTY", "VariableMetadata", "with_axis_names"]

AXIS_NAMES = "out_sharding"
"""The metadata that names the axes of a value."""
_OLD_AXIS_NAMES = ("sharding", "sharding_names")  # what flax called it before

_HOOKS = ("on_set_value", "on_get_value", "on_create_value", "on_add_axis", "on_remove_axis")

EMPTY: Mapping[str, Any] = MappingProxyType({})
"""The metadata of a Variable that has none: one object, so that identity tells."""


@dataclasses.dataclass(frozen=True)
class VariableMetadata(Generic[A]):
    """A value and metadata: what an initializer returns that also says something of the value.

    A Variable that is made of it takes both. Where the constructor says another thing of the same
    name, the initializer's word holds: it is the one that users write.

    Attributes:
      raw_value: the value.
      metadata: the metadata, by name, with the hooks.
      on_set_value: a hook or several, as metadata of this name; likewise the next four.
      on_get_value: when the value is read.
      on_create_value: when the Variable is made.
      on_add_axis: when a transform gives the value an axis.
      on_remove_axis: when a transform takes an axis from the value.

    Example:
      >>> import moduli as nnx, jax.numpy as jnp
      >>> param = nnx.Param(nnx.VariableMetadata(jnp.zeros(3), {"out_sharding": ("in",)}))
      >>> param.shape, param.out_sharding
      ((3,), ('in',))
    """

    raw_value: A
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=lambda: MappingProxyType({}))
    _: dataclasses.KW_ONLY
    on_set_value: Any = ()
    on_get_value: Any = ()
    on_create_value: Any = ()
    on_add_axis: Any = ()
    on_remove_axis: Any = ()

    def __post_init__(self) -> None:
        hooks = {name: getattr(self, name) for name in _HOOKS}
        given = {name: hook for name, hook in hooks.items() if hook != ()}
        if given:
            object.__setattr__(self, "metadata", {**self.metadata, **given})


def with_axis_names(metadata: dict[str, Any]) -> dict[str, Any]:
    """Gives the names of axes their name of today, if they came under an older one.

    Args:
      metadata: what the constructor or ``set_metadata`` was given; it is changed.
    """
    for old in _OLD_AXIS_NAMES:
        if old in metadata:
            metadata[AXIS_NAMES] = metadata.pop(old)
    return metadata
