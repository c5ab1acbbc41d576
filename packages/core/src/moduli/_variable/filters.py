"""Filters: which leaves (or modules) of a graph are meant.

A filter is one of

- a class: values of that class (a kind of Variable, a Module class, an array type)
- a string: values with that ``tag`` in their metadata
- ``...`` or ``True``: everything; ``False`` or ``None``: nothing
- a list or tuple of filters: any of them
- a callable ``(path, value) -> bool``, such as the classes of this module
"""

from __future__ import annotations

import builtins
from collections.abc import Callable, Iterable, Sequence
from types import EllipsisType
from typing import cast

from moduli import errors
from moduli._base.path_text import PathText
from moduli._base.type_variables import Path

__all__ = [
    "All",
    "Any",
    "Everything",
    "Filter",
    "Not",
    "Nothing",
    "OfType",
    "PathContains",
    "PathIn",
    "Predicate",
    "WithTag",
    "to_predicate",
]

_SIGNS = frozenset("/.['\"")  # of a text that is a path of several parts, or has quotes

Predicate = Callable[[Path, object], bool]
Filter = type | str | Predicate | bool | EllipsisType | None | tuple["Filter", ...] | list["Filter"]


def to_predicate(filter: object) -> Predicate:
    """Turns any filter into a callable ``(path, value) -> bool``.

    Args:
      filter: see the text of this module.

    Returns:
      The predicate.

    Raises:
      StructureError: if ``filter`` is none of the kinds of filter.

    Example:
      >>> import moduli as nnx
      >>> is_param = nnx.filterlib.to_predicate(nnx.Param)
      >>> is_param(("kernel",), nnx.Param(1.0)), is_param(("mean",), nnx.BatchStat(1.0))
      (True, False)
    """
    if isinstance(filter, str):
        return WithTag(filter)
    if isinstance(filter, type):
        return OfType(filter)
    if isinstance(filter, bool):
        return Everything() if filter else Nothing()
    if filter is Ellipsis:
        return Everything()
    if filter is None:
        return Nothing()
    if callable(filter):
        return cast(Predicate, filter)
    if isinstance(filter, (list, tuple)):
        return Any(*filter)
    raise errors.StructureError(
        f"{filter!r} of type {type(filter).__name__} is not a filter: use a class, a tag (str), "
        "`...`, a bool, None, a list or tuple of filters, or a callable (path, value) -> bool"
    )


class _Predicate:
    """Equality and repr by class and arguments, so that filters can be keys."""

    _args: tuple[object, ...] = ()

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other._args == self._args  # type: ignore[attr-defined]

    def __hash__(self) -> int:
        return hash((type(self), self._args))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(repr, self._args))})"


class OfType(_Predicate):
    """Values of a class: a kind of Variable, a Module class, or an array type.

    Args:
      type: the class.
    """

    def __init__(self, type: type):
        self.type = type
        self._args = (type,)

    def __call__(self, path: Path, value: object) -> bool:
        return isinstance(value, self.type)


class WithTag(_Predicate):
    """Values whose metadata (or attribute) ``tag`` equals a string.

    Args:
      tag: the tag.
    """

    def __init__(self, tag: str):
        self.tag = tag
        self._args = (tag,)

    def __call__(self, path: Path, value: object) -> bool:
        metadata = getattr(value, "_metadata", None)
        if metadata is not None:
            return metadata.get("tag") == self.tag
        return getattr(value, "tag", None) == self.tag


class PathContains(_Predicate):
    """Values whose path has this part, or these parts one after another.

    Args:
      key: an attribute name or an index; or several, as in ``"blocks/0"`` or ``"blocks[0]"``.
      exact: compare parts for equality; otherwise ``key`` may be a substring of a part, or of the
        path with slashes if it has some itself.

    Example:
      >>> import moduli as nnx
      >>> nnx.PathContains("blocks/0")(("blocks", 0, "kernel"), None)
      True
    """

    def __init__(self, key: object, exact: bool = True):
        self.key, self.exact = key, exact
        self._args = (key, exact)
        self._text = PathText(key) if isinstance(key, str) and set(key) & _SIGNS else None

    def __call__(self, path: Path, value: object) -> bool:
        if self.exact:
            return self.key in path or (self._text is not None and self._text.is_inside(path))
        key = str(self.key)
        if builtins.any(key in str(part) for part in path):
            return True
        if self._text is None:
            return False
        whole = "/".join(map(str, path))
        return builtins.any(
            len(parts) > 1 and "/".join(part.text for part in parts) in whole
            for parts in self._text.readings
        )


class PathIn(_Predicate):
    """Values at one of these paths.

    Args:
      *paths: tuples of path parts, or texts: ``"blocks/0/kernel"`` or ``"blocks[0].kernel"``.

    Example:
      >>> import moduli as nnx
      >>> nnx.PathIn("blocks/0/kernel")(("blocks", 0, "kernel"), None)
      True
    """

    def __init__(self, *paths: Path | str):
        self.paths = frozenset(path if isinstance(path, str) else tuple(path) for path in paths)
        self._args = (self.paths,)
        self._texts = tuple(PathText(path) for path in self.paths if isinstance(path, str))

    def __call__(self, path: Path, value: object) -> bool:
        if tuple(path) in self.paths:
            return True
        return builtins.any(text.is_whole(path) for text in self._texts)


class Any(_Predicate):
    """Values that at least one of the filters selects."""

    def __init__(self, *filters: object):
        self.predicates = tuple(map(to_predicate, filters))
        self._args = self.predicates

    def __call__(self, path: Path, value: object) -> bool:
        return builtins.any(predicate(path, value) for predicate in self.predicates)


class All(_Predicate):
    """Values that every one of the filters selects."""

    def __init__(self, *filters: object):
        self.predicates = tuple(map(to_predicate, filters))
        self._args = self.predicates

    def __call__(self, path: Path, value: object) -> bool:
        return builtins.all(predicate(path, value) for predicate in self.predicates)


class Not(_Predicate):
    """Values that the filter does not select."""

    def __init__(self, filter: object, /):
        self.predicate = to_predicate(filter)
        self._args = (self.predicate,)

    def __call__(self, path: Path, value: object) -> bool:
        return not self.predicate(path, value)


class Everything(_Predicate):
    """Every value."""

    def __call__(self, path: Path, value: object) -> bool:
        return True


class Nothing(_Predicate):
    """No value."""

    def __call__(self, path: Path, value: object) -> bool:
        return False


def partition(
    items: Iterable[tuple[Path, object]], filters: Sequence[object]
) -> list[list[tuple[Path, object]]]:
    """Sorts (path, value) pairs into one list for each filter, by the first that selects them.

    Args:
      items: the pairs.
      filters: the filters; ``...`` may only come last.

    Returns:
      As many lists as filters, and one more with what no filter selected.

    Raises:
      StructureError: if ``...`` or ``True`` stands before another filter.
    """
    check_order(filters)
    predicates = [to_predicate(filter) for filter in filters]
    groups: list[list[tuple[Path, object]]] = [[] for _ in range(len(predicates) + 1)]
    for path, value in items:
        for number, predicate in enumerate(predicates):
            if predicate(path, value):
                groups[number].append((path, value))
                break
        else:
            groups[-1].append((path, value))
    return groups


def check_order(filters: Sequence[object]) -> None:
    """Raises if a filter that takes everything stands before another one."""
    for number, filter in enumerate(filters):
        rest = filters[number + 1 :]
        takes_all = filter is Ellipsis or filter is True
        if takes_all and any(later is not Ellipsis and later is not True for later in rest):
            raise errors.StructureError(
                "`...` selects everything, so the filters after it would get nothing: "
                f"{filters!r}; write `...` last"
            )
