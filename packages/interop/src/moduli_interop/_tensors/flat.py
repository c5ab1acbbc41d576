"""Names for tensors in nested dicts, lists and tuples: the keys, joined by dots."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from moduli_interop._tensors.errors import TensorFileError

__all__ = ["flatten"]

MAX_DEPTH = 100
MAX_ENTRIES = 1_000_000

_ALONE = "tensor"
_SIMPLE = (str, bytes, int, float, type(None))


def flatten(
    value: Any,
    is_tensor: Callable[[Any], bool],
    source: str,
    children: Callable[[Any], Iterator[tuple[Any, Any]] | None] | None = None,
) -> dict[str, Any]:
    """Collects the tensors of a nested value.

    Args:
      value: dicts, lists and tuples of tensors and of what else there is, which is passed over.
      is_tensor: returns whether something is a tensor.
      source: where it is from, for errors.
      children: gives the named children of other things, or None for one without any. Such a thing
        is gone into once: those of a configuration may hold the one that they stand in.

    Returns:
      The tensors by name; a tensor that is all there is has the name ``"tensor"``.

    Raises:
      TensorFileError: if two have one name, or the nesting is too deep or has no end.
    """
    found: dict[str, Any] = {}
    visited = 0
    known: set[int] = set()

    def visit(value: Any, name: str, depth: int) -> None:
        nonlocal visited
        visited += 1
        if visited > MAX_ENTRIES:
            raise TensorFileError(source, f"has more than {MAX_ENTRIES} entries")
        if depth > MAX_DEPTH:
            raise TensorFileError(
                source, f"is nested deeper than {MAX_DEPTH} levels at {name[:99]!r}"
            )
        if is_tensor(value):
            name = name or _ALONE
            if name in found:
                raise TensorFileError(source, "two tensors have this name", name)
            found[name] = value
            return
        below = _children(value)
        if below is None and children is not None:
            below = children(value)
            if id(value) in known:
                return
            known.add(id(value))
        for key, child in below or ():
            if is_tensor(child) or not isinstance(
                child, _SIMPLE
            ):  # a list may hold millions of numbers
                visit(child, f"{name}.{key}" if name else str(key), depth + 1)

    visit(value, "", 0)
    return found


def _children(value: Any) -> Iterator[tuple[Any, Any]] | None:
    if isinstance(value, Mapping):
        return iter(value.items())
    if isinstance(value, (list, tuple)):
        return iter(enumerate(value))
    return None
