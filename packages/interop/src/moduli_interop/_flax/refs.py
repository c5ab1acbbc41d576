"""flax's switches for Refs and hijax: accepted, without an effect.

A Variable of moduli is a box that every transform carries, in raw JAX too; a ``jax.Ref`` inside
would be a second way to write. So the switches are taken, remembered and given back, and Variables
stay as they are.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import moduli

__all__ = ["VarDefaults", "var_defaults", "vars_as", "with_vars"]

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class VarDefaults(Mapping[str, Any]):
    """What new Variables are asked to be.

    Attributes:
      hijax: whether hijax types were asked for.
      ref: whether Refs were asked for.
    """

    hijax: bool = False
    ref: bool = False

    def __getitem__(self, key: str) -> Any:
        if key not in ("hijax", "ref"):
            raise KeyError(key)
        return getattr(self, key)

    def __iter__(self) -> Iterator[str]:
        return iter(("hijax", "ref"))

    def __len__(self) -> int:
        return 2


class _Current(threading.local):
    value = VarDefaults()


_current = _Current()


class _Restoring(contextlib.ContextDecorator):
    """Puts the defaults back at the end of a block, or sets them for the calls of a function."""

    def __init__(self, new: VarDefaults, before: VarDefaults):
        self._new, self._before = new, before

    def __enter__(self) -> VarDefaults:
        _current.value = self._new
        return self._new

    def __exit__(self, *error: object) -> None:
        _current.value = self._before

    def __call__(self, func: Any) -> Any:
        _current.value = self._before
        return super().__call__(func)


def var_defaults(*, hijax: bool | None = None, ref: bool | None = None) -> Any:
    """Returns or sets what new Variables are asked to be; Variables of moduli are of one kind.

    Args:
      hijax: remembered, without an effect.
      ref: remembered, without an effect.

    Returns:
      Without arguments the :class:`VarDefaults`; else a context manager and decorator.

    Example:
      >>> import moduli as nnx
      >>> with nnx.var_defaults(ref=True):
      ...     nnx.var_defaults().ref
      True
      >>> nnx.var_defaults().ref
      False
    """
    before = _current.value
    if hijax is None and ref is None:
        return before
    given = {"hijax": hijax, "ref": ref}
    new = dataclasses.replace(before, **{k: v for k, v in given.items() if v is not None})
    _current.value = new
    return _Restoring(new, before)


def with_vars(
    node: T,
    /,
    *,
    hijax: bool | None = None,
    ref: bool | None = None,
    mutable: bool | None = None,
    only: Any = ...,
    allow_duplicates: bool = False,
) -> T:
    """Copies a graph; with ``ref``, ``hijax`` or ``mutable`` its selected Variables are copies too.

    Variables of moduli are of one kind, so the copies are Variables as the originals are.

    Args:
      node: a Module, another graph node, or a pytree of these.
      hijax: whether flax should make hijax types of them.
      ref: whether flax should put their values into Refs.
      mutable: whether flax should let them be written.
      only: a filter that selects the Variables.
      allow_duplicates: accepted: what is shared stays shared.

    Returns:
      The copy.

    Example:
      >>> import moduli as nnx
      >>> model = nnx.Dict({"w": nnx.Param(1.0)})
      >>> nnx.with_vars(model, ref=True)["w"] is model["w"]
      False
    """
    del allow_duplicates
    if not (hijax or ref or mutable is False):
        return moduli.clone(node, variables=False)
    selects = moduli.filterlib.to_predicate(only)
    copies: dict[int, Any] = {}

    def copy(path: Any, value: Any) -> Any:
        if isinstance(value, moduli.Variable) and selects(path, value):
            return copies.setdefault(id(value), value.copy())
        return value

    return moduli.recursive_map(copy, node)


vars_as = with_vars
