"""Nested mappings made flat, and nested again: the functions of ``moduli.traversals``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax

from moduli.errors import StructureError

__all__ = ["empty_node", "flatten_mapping", "flatten_to_sequence", "unflatten_mapping"]

Path = tuple[Any, ...]
IsLeaf = Callable[[Path, Mapping[Any, Any]], bool]


class _EmptyNode:
    """Stands for an empty mapping among the values of a flat one; without leaves for JAX."""

    def __repr__(self) -> str:
        return "empty_node"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _EmptyNode)

    def __hash__(self) -> int:
        return hash(_EmptyNode)


empty_node = _EmptyNode()
jax.tree_util.register_pytree_node(
    _EmptyNode, lambda node: ((), None), lambda _, children: empty_node
)


def flatten_mapping(
    xs: Mapping[Any, Any],
    /,
    *,
    keep_empty_nodes: bool = False,
    is_leaf: IsLeaf | None = None,
    sep: str | None = None,
) -> dict[Any, Any]:
    """Flattens a nested mapping.

    Args:
      xs: the mapping.
      keep_empty_nodes: put ``empty_node`` where a mapping inside is empty; else it is left out.
      is_leaf: ``(path, mapping) -> bool``: whether a mapping inside is a value.
      sep: joins the keys of a path to one text; None leaves the path a tuple.

    Returns:
      Values by path.

    Raises:
      StructureError: ``xs`` is no mapping.

    Example:
      >>> import moduli as nnx
      >>> nnx.traversals.flatten_mapping({"a": 1, "b": {"c": 2}}, sep="/")
      {'a': 1, 'b/c': 2}
    """
    pairs = _walk(_mapping(xs, "flatten_mapping"), (), is_leaf, keep_empty_nodes)
    return {path if sep is None else sep.join(path): value for path, value in pairs}


def flatten_to_sequence(
    xs: Mapping[Any, Any], /, *, is_leaf: IsLeaf | None = None
) -> list[tuple[Path, Any]]:
    """Flattens a nested mapping to pairs of a path and a value, in order.

    Args:
      xs: the mapping.
      is_leaf: as of :func:`flatten_mapping`.

    Raises:
      StructureError: ``xs`` is no mapping.

    Example:
      >>> import moduli as nnx
      >>> nnx.traversals.flatten_to_sequence({"a": 1, "b": {"c": 2}})
      [(('a',), 1), (('b', 'c'), 2)]
    """
    return list(_walk(_mapping(xs, "flatten_to_sequence"), (), is_leaf, False))


def unflatten_mapping(
    xs: Mapping[Any, Any] | Iterable[tuple[Any, Any]], /, *, sep: str | None = None
) -> dict[Any, Any]:
    """Nests a flat mapping; the inverse of :func:`flatten_mapping`.

    Args:
      xs: values by path, or pairs of a path and a value.
      sep: divides the text of a path into keys; None if paths are tuples.

    Returns:
      Nested dicts, with ``{}`` for ``empty_node``.

    Raises:
      StructureError: ``xs`` is neither, or one path leads through the value of another.

    Example:
      >>> import moduli as nnx
      >>> nnx.traversals.unflatten_mapping({"a": 1, "b/c": 2}, sep="/")
      {'a': 1, 'b': {'c': 2}}
    """
    if not isinstance(xs, Iterable):
        raise StructureError(
            f"unflatten_mapping needs a mapping or pairs; got a {type(xs).__name__}"
        )
    nested: dict[Any, Any] = {}
    given: Any = xs.items() if isinstance(xs, Mapping) else xs
    for path, value in given:
        *parents, last = path if sep is None else path.split(sep)
        place: Any = nested
        for key in parents:
            place = place.setdefault(key, {})
            if not isinstance(place, dict):
                raise StructureError(
                    f"unflatten_mapping: the path {path!r} leads through {key!r}, which is a "
                    f"value ({type(place).__name__})"
                )
        place[last] = {} if value is empty_node else value
    return nested


def _mapping(xs: Any, caller: str) -> Mapping[Any, Any]:
    if not isinstance(xs, Mapping):
        raise StructureError(f"{caller} needs a mapping; got a {type(xs).__name__}")
    return xs


def _walk(
    value: Any, path: Path, is_leaf: IsLeaf | None, keep_empty: bool
) -> Iterator[tuple[Path, Any]]:
    if not isinstance(value, Mapping) or (is_leaf is not None and is_leaf(path, value)):
        yield path, value
        return
    if keep_empty and not value and path:
        yield path, empty_node
    for key, child in value.items():
        yield from _walk(child, (*path, key), is_leaf, keep_empty)
