"""What an attribute or a field of a class is said to be: ``data`` or ``static``."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
import sys
from collections.abc import Callable, Mapping
from typing import Annotated as Hint
from typing import Any, TypeVar, dataclass_transform, overload

import jax

from moduli import errors
from moduli._graph.data import (
    Annotated,
    is_graph_leaf,
)

__all__ = [
    "Data",
    "Static",
    "annotated_statuses",
    "check_defaults",
    "data",
    "dataclass",
    "shared_default",
    "static",
]

T = TypeVar("T")

_SIMPLE = frozenset((int, float, bool, str, bytes, complex, type(None)))
_MISSING: Any = object()
_MARKS = {"moduli.Data": "data", "moduli.Static": "static"}

Data = Hint[T, "moduli.Data"]
"""``count: Data[int]`` in a class: the attribute is data, as with :func:`data`."""

Static = Hint[T, "moduli.Static"]
"""``sizes: Static[Any]`` in a class: the attribute is static, as with :func:`static`."""


def annotated_statuses(cls: type) -> dict[str, str]:
    """Returns the attributes that a class itself annotates with :data:`Data` or :data:`Static`.

    Args:
      cls: a class that has just been defined.

    Returns:
      "data" or "static" by name.
    """
    try:
        hints: Mapping[str, Any] = inspect.get_annotations(cls)
    except NameError:  # of a Python that evaluates them late: a name that does not exist yet
        return {}
    found = {}
    for name, hint in hints.items():
        marks = _marks_of_text(hint, cls) if isinstance(hint, str) else _marks(hint)
        for mark in marks:
            found[name] = _MARKS[mark]
    return found


def _marks(hint: Any) -> list[str]:
    given = getattr(hint, "__metadata__", ())
    return [mark for mark in given if isinstance(mark, str) and mark in _MARKS]


def _marks_of_text(text: str, cls: type) -> list[str]:
    """As :func:`_marks`, of an annotation that is text (``from __future__ import annotations``)."""
    if "Data[" not in text and "Static[" not in text:
        return []
    try:
        return _marks(eval(text, {**vars(sys.modules[cls.__module__])}, dict(vars(cls))))
    except Exception:  # a name in it is defined later, or for type checkers alone
        match = re.match(r"(?:\w+\.)*(Data|Static)\[", text)
        return [f"moduli.{match.group(1)}"] if match else []


@overload
def data(value: T, /) -> T: ...
@overload
def data(*, default: T, **kwargs: Any) -> T: ...
@overload
def data(*, default_factory: Callable[[], T], **kwargs: Any) -> T: ...
@overload
def data(**kwargs: Any) -> Any: ...
def data(value: Any = _MISSING, /, **kwargs: Any) -> Any:
    """Marks an attribute value as data, such as a number; assign the result to an attribute.

    Args:
      value: an array, a number, or a pytree that holds arrays and floats. What else is inside of a
        pytree (functions, flags, whole numbers) stays static.
      **kwargs: without a value: arguments of ``dataclasses.field``, for use in dataclasses.

    Returns:
      A marker that the assignment turns into the value.

    Example:
      >>> import moduli as nnx, jax
      >>> class Counter(nnx.Module):
      ...     def __init__(self):
      ...         self.count, self.limit = nnx.data(0), 10
      >>> jax.tree.leaves(Counter())
      [0]
    """
    return _annotated("data", value, kwargs)


@overload
def static(value: T, /) -> T: ...
@overload
def static(*, default: T, **kwargs: Any) -> T: ...
@overload
def static(*, default_factory: Callable[[], T], **kwargs: Any) -> T: ...
@overload
def static(**kwargs: Any) -> Any: ...
def static(value: Any = _MISSING, /, **kwargs: Any) -> Any:
    """Marks an attribute value as static; assign the result to an attribute.

    Args:
      value: any value that can be hashed; or a config object, a set and the like, which is compared
        by what it contains whenever the module is used.
      **kwargs: without a value: arguments of ``dataclasses.field``, for use in dataclasses.

    Returns:
      A marker that the assignment turns into the value.
    """
    return _annotated("static", value, kwargs)


@overload
@dataclass_transform(eq_default=False, field_specifiers=(data, static, dataclasses.field))
def dataclass(cls: type[T], /, **options: Any) -> type[T]: ...
@overload
@dataclass_transform(eq_default=False, field_specifiers=(data, static, dataclasses.field))
def dataclass(cls: None = None, /, **options: Any) -> Callable[[type[T]], type[T]]: ...
def dataclass(cls: Any = None, /, **options: Any) -> Any:
    """``dataclasses.dataclass`` for modules: they keep their identity (``eq=False``).

    Args:
      cls: the class; without it a decorator is returned.
      **options: arguments of ``dataclasses.dataclass``.

    Raises:
      StructureError: (a ValueError) if a default is a Variable or a module, or holds one: all
        instances would share it.

    Example:
      >>> import moduli as nnx, jax.numpy as jnp
      >>> @nnx.dataclass
      ... class Scale(nnx.Module):
      ...     factor: nnx.Param
      ...     steps: int = nnx.data(default=0)
      >>> list(nnx.state(Scale(nnx.Param(2.0))))
      ['factor', 'steps']
    """
    options = {"eq": False, "repr": False, **options}
    if cls is None:
        return functools.partial(dataclass, **options)
    made = dataclasses.dataclass(**options)(cls)
    check_defaults(made)
    return made


def _annotated(status: str, value: Any, kwargs: dict[str, Any]) -> Any:
    if value is not _MISSING:
        return Annotated(value, status)
    metadata = {**kwargs.pop("metadata", {}), "moduli": status}
    return dataclasses.field(metadata=metadata, **kwargs)


def shared_default(default: Any) -> Any:
    """The first Variable or node in the default of a field; None without one."""
    if default is dataclasses.MISSING or default.__class__ in _SIMPLE:
        return None
    leaves = jax.tree.leaves(default, is_leaf=is_graph_leaf)
    return next((leaf for leaf in leaves if is_graph_leaf(leaf)), None)


def check_defaults(cls: type) -> None:
    """Raises if all instances of a dataclass would share a Variable or a module by default."""
    for name, field in getattr(cls, "__dataclass_fields__", {}).items():
        shared = shared_default(field.default)
        if shared is not None:
            what = type(shared).__name__
            raise errors.StructureError(
                f"the default of the field {name!r} of the dataclass {cls.__name__} holds a {what} "
                f"that all its instances would share. Write `{name}: ... = "
                f"dataclasses.field(default_factory=lambda: {what}(...))` (or "
                "`moduli.data(default_factory=...)`), which makes one for each instance"
            )
