"""The names of ``moduli.reprlib``: objects that say their repr part by part (``__nnx_repr__``)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from moduli.errors import StructureError

__all__ = [
    "Attr",
    "MappingReprMixin",
    "Object",
    "PrettyMapping",
    "PrettySequence",
    "Representable",
    "SequenceReprMixin",
    "get_repr",
]


@dataclasses.dataclass
class Object:
    """The head of a repr: what ``__nnx_repr__`` yields first.

    Attributes:
      type: the class, or the text that stands for it.
      start: what stands before the parts.
      end: what stands behind them.
      kv_sep: what stands between a part's name and its value.
      indent: what stands before each part's line.
      empty_repr: what stands in the place of parts if there are none.
      comment: what stands behind ``start``.
      same_line: whether all parts stand on one line.
    """

    type: Any
    start: str = "("
    end: str = ")"
    kv_sep: str = "="
    indent: str = "  "
    empty_repr: str = ""
    comment: str = ""
    same_line: bool = False


@dataclasses.dataclass
class Attr:
    """One part of a repr.

    Attributes:
      key: its name.
      value: its value.
      start: what stands before the name.
      end: what stands behind the value.
      use_raw_value: whether the value is text to be shown as it is.
      use_raw_key: accepted: names have no colour here.
    """

    key: Any
    value: Any
    start: str = ""
    end: str = ""
    use_raw_value: bool = False
    use_raw_key: bool = False


class Representable:
    """Base of classes whose repr is made of what ``__nnx_repr__`` yields."""

    __slots__ = ()

    def __nnx_repr__(self) -> Iterator[Any]:
        """Yields an :class:`Object`, and then an :class:`Attr` for each part."""
        raise NotImplementedError(f"{type(self).__name__} does not define __nnx_repr__")

    def __repr__(self) -> str:
        return get_repr(self)


def get_repr(obj: Representable) -> str:
    """Formats what an object's ``__nnx_repr__`` yields.

    Args:
      obj: the object.

    Raises:
      StructureError: it is none, or yields something else first.

    Example:
      >>> from moduli.reprlib import Attr, Object, Representable
      >>> class Point(Representable):
      ...     def __nnx_repr__(self):
      ...         yield Object(type(self), same_line=True)
      ...         yield Attr("x", 1)
      >>> Point()
      Point(x=1)
    """
    if not isinstance(obj, Representable):
        raise StructureError(f"get_repr needs a Representable; got a {type(obj).__name__}")
    parts = obj.__nnx_repr__()
    head = next(parts)
    if not isinstance(head, Object):
        raise StructureError(
            f"__nnx_repr__ of {type(obj).__name__} must yield an Object first; it yielded a "
            f"{type(head).__name__}"
        )
    name = head.type if isinstance(head.type, str) else head.type.__name__
    lines = [_line(head, part) for part in parts]
    if not lines:
        return f"{name}{head.start}{head.empty_repr}{head.end}"
    if head.same_line:
        return f"{name}{head.start}{', '.join(lines)}{head.end}"
    text = ",\n".join(lines)
    return f"{name}{head.start}{head.comment}\n{text}\n{head.end}"


def _line(head: Object, part: Attr) -> str:
    value = part.value if part.use_raw_value else _shown(part.value)
    value = value.replace("\n", "\n" + head.indent)
    indent = "" if head.same_line else head.indent
    return f"{indent}{part.start}{part.key}{head.kv_sep}{value}{part.end}"


def _shown(value: Any) -> str:
    return value.__name__ if isinstance(value, type) else repr(value)


def _of_mapping(cls: type, mapping: Mapping[Any, Any]) -> Iterator[Any]:
    yield Object(cls, kv_sep=": ", start="({", end="})")
    for key, value in mapping.items():
        yield Attr(_shown(key), value)


def _of_sequence(cls: type, items: Any) -> Iterator[Any]:
    yield Object(cls, kv_sep="", start="([", end="])")
    for value in items:
        yield Attr("", value)


class MappingReprMixin(Representable):
    """The repr of a mapping, by its items."""

    def __nnx_repr__(self) -> Iterator[Any]:
        """See :class:`Representable`."""
        return _of_mapping(type(self), self)  # type: ignore[arg-type]


class SequenceReprMixin(Representable):
    """The repr of a sequence, by its items."""

    def __nnx_repr__(self) -> Iterator[Any]:
        """See :class:`Representable`."""
        return _of_sequence(type(self), self)


@dataclasses.dataclass(repr=False)
class PrettyMapping(Representable):
    """Shows a mapping.

    Attributes:
      mapping: the mapping.
    """

    mapping: Mapping[Any, Any]

    def __nnx_repr__(self) -> Iterator[Any]:
        """See :class:`Representable`."""
        return _of_mapping(type(self), self.mapping)


@dataclasses.dataclass(repr=False)
class PrettySequence(Representable):
    """Shows a sequence.

    Attributes:
      sequence: the sequence.
    """

    sequence: Sequence[Any]

    def __nnx_repr__(self) -> Iterator[Any]:
        """See :class:`Representable`."""
        return _of_sequence(type(self), self.sequence)
