"""Methods called on what a GraphDef and its States make: ``call`` and ``GraphDef.apply``."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import jax

import moduli

__all__ = ["ApplyCaller", "CallableProxy", "DelayedAccessor", "GetAttr", "GetItem", "call"]

T = TypeVar("T")
Caller = TypeVar("Caller", covariant=True)


@dataclasses.dataclass(frozen=True)
class GetItem:
    """The step ``[key]``."""

    key: Any


@dataclasses.dataclass(frozen=True)
class GetAttr:
    """The step ``.name``."""

    name: str


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class DelayedAccessor:
    """Steps that lead from an object to a part of it: ``accessor.block["a"](object)``.

    Attributes:
      actions: the steps.
    """

    actions: tuple[GetItem | GetAttr, ...] = ()

    def __call__(self, x: Any, /) -> Any:
        """Goes the steps."""
        for action in self.actions:
            x = x[action.key] if isinstance(action, GetItem) else getattr(x, action.name)
        return x

    def __getattr__(self, name: str) -> DelayedAccessor:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        return DelayedAccessor((*self.actions, GetAttr(name)))

    def __getitem__(self, key: Any) -> DelayedAccessor:
        return DelayedAccessor((*self.actions, GetItem(key)))


class CallableProxy:
    """Stands for an object that is made when one of its methods is called.

    Args:
      callable: is called with the steps to the method and the method's arguments.
      accessor: the steps so far.
    """

    def __init__(self, callable: Callable[..., Any], accessor: DelayedAccessor | None = None):
        self._callable = callable
        self._accessor = DelayedAccessor() if accessor is None else accessor

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the method to which the steps lead."""
        return self._callable(self._accessor, *args, **kwargs)

    def __getattr__(self, name: str) -> CallableProxy:
        return CallableProxy(self._callable, getattr(self._accessor, name))

    def __getitem__(self, key: Any) -> CallableProxy:
        return CallableProxy(self._callable, self._accessor[key])


class ApplyCaller(Protocol[Caller]):
    """What :func:`call` returns, for annotations."""

    def __getattr__(self, name: str, /) -> ApplyCaller[Caller]: ...
    def __getitem__(self, name: Any, /) -> ApplyCaller[Caller]: ...
    def __call__(self, *args: Any, **kwargs: Any) -> tuple[Any, Caller]: ...


def call(
    graphdef_state: tuple[moduli.GraphDef[T], moduli.State], /
) -> ApplyCaller[tuple[moduli.GraphDef[T], moduli.State]]:
    """Calls a method of the object that a GraphDef and its States make.

    Args:
      graphdef_state: what :func:`moduli.split` returned. It stays as it is.

    Returns:
      What takes attributes and items of the object, and is called like the method at the end. The
      call returns the method's result and ``(graphdef, state)`` of the object afterwards.

    Example:
      >>> import jax, moduli as nnx
      >>> class Counter(nnx.Module):
      ...     def __init__(self):
      ...         self.count = nnx.Variable(jax.numpy.array(0))
      ...     def add(self, n):
      ...         self.count += n
      >>> counter = nnx.split(Counter())
      >>> _, counter = jax.jit(lambda counter: nnx.call(counter).add(3))(counter)
      >>> nnx.merge(*counter).count.value.item()
      3
    """

    def run(accessor: DelayedAccessor, *args: Any, **kwargs: Any) -> Any:
        node = moduli.merge(*graphdef_state, copy=True)
        out = accessor(node)(*args, **kwargs)
        return out, moduli.split(node)

    return CallableProxy(run)
