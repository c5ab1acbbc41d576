"""A Variable as a JAX pytree: its value is the child, its kind and metadata are static."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import jax

from moduli._base.closed_over import ACTIVE
from moduli._base.compat import trace_state
from moduli._base.lost_writes import Borrowed, mark_seen
from moduli._base.source_lines import Site
from moduli._base.static_keys import metadata_key
from moduli._variable.metadata import EMPTY

if TYPE_CHECKING:
    from moduli._variable.box import Variable

__all__ = ["Aux", "register"]


class Aux(tuple[Any, ...]):
    """What a Variable is besides its value, when JAX takes it as a pytree.

    A tuple of the class and of what is compared of the metadata: JAX hashes and compares one for
    each Variable of a State in every call of a jitted function, and tuples do that in C. The
    attributes are no part of it.

    Attributes:
      cls: the class.
      metadata: the metadata.
      made: where the Variable was made; for messages alone.
    """

    cls: type[Variable[Any]]
    metadata: Mapping[str, Any]
    made: Site | None

    def __new__(
        cls, kind: type[Variable[Any]], metadata: Mapping[str, Any], made: Site | None
    ) -> Aux:
        key = metadata_key(dict(sorted(metadata.items()))) if metadata else ()
        self = tuple.__new__(cls, (kind, key))
        self.cls, self.metadata, self.made = kind, metadata, made
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return Aux, (self.cls, self.metadata, None)

    def __repr__(self) -> str:
        return f"{self.cls.__name__}({', '.join(f'{k}={v!r}' for k, v in self.metadata.items())})"


_VALUE_KEY = jax.tree_util.GetAttrKey("value")


def register(cls: type[Variable[Any]]) -> None:
    """Registers a kind of Variable with JAX: one child, its value."""

    def aux_of(variable: Variable[Any]) -> Aux:
        if ACTIVE or variable._trace.__class__ is Borrowed:
            mark_seen(variable)
        return Aux(cls, variable._metadata or EMPTY, variable._made)

    def flatten(variable: Variable[Any]) -> tuple[tuple[Any, ...], Aux]:
        return (variable._value,), aux_of(variable)

    def flatten_with_keys(variable: Variable[Any]) -> tuple[tuple[Any, ...], Aux]:
        return ((_VALUE_KEY, variable._value),), aux_of(variable)

    def unflatten(aux: Aux, children: Iterable[Any]) -> Variable[Any]:
        (value,) = children
        return cls._make(value, aux.metadata, trace_state(), aux.made)

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
