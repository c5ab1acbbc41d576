"""How modules and States are shown: a tree with types, shapes, dtypes and counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import jax

from moduli._base.node import Node
from moduli._base.static_keys import UnhashableStatic
from moduli._graph.cache import flat_of
from moduli._variable.box import Variable
from moduli._variable.one_line import summarize, variable_repr
from moduli.errors import format_path

__all__ = ["node_repr", "state_repr"]

_INDENT = "  "


def _count(values: Iterable[tuple[str, Any]]) -> str:
    counts: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for kind, value in values:
        for leaf in jax.tree.leaves(value):
            if hasattr(leaf, "size") and hasattr(leaf, "dtype"):
                counts[kind] += int(leaf.size)
                sizes[kind] += int(leaf.size) * leaf.dtype.itemsize
    return ", ".join(f"{kind}: {counts[kind]:,} ({_bytes(sizes[kind])})" for kind in counts)


def _bytes(size: int) -> str:
    number = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024 or unit == "GiB":
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1024
    raise AssertionError


def _node_count(node: Node) -> str:
    try:
        flat = flat_of(node)
    except (ValueError, UnhashableStatic):
        return ""
    kinds = ["array" if t is None else t.__name__ for t in flat.graphdef.leaf_types]
    return _count(zip(kinds, flat.values(), strict=True))


def node_repr(node: Node) -> str:
    """Formats a node and all below it as a tree; an object met again is named, not repeated."""
    return _node(node, 0, {}, ())


def _node(node: Node, depth: int, seen: dict[int, str], path: tuple[Any, ...]) -> str:
    name = type(node).__name__
    if id(node) in seen:
        return f"{name}(shared with {seen[id(node)]})"
    seen[id(node)] = format_path(path)
    count = _node_count(node)
    comment = f"  # {count}" if count else ""
    pad = _INDENT * (depth + 1)
    lines = []
    for key, value in node._items_in_order():  # type: ignore[attr-defined]
        shown = _item(value, depth + 1, seen, (*path, key))
        if isinstance(node, list):
            head = f"{pad}[{key}] "
        elif isinstance(node, dict):
            head = f"{pad}{key!r}: "
        else:
            head = f"{pad}{key}="
        lines.append(head + shown)
    if not lines:
        return f"{name}()"
    return f"{name}({comment}\n" + "\n".join(lines) + f"\n{_INDENT * depth})"


def _item(value: Any, depth: int, seen: dict[int, str], path: tuple[Any, ...]) -> str:
    if isinstance(value, Node):
        return _node(value, depth, seen, path)
    if isinstance(value, Variable):
        if id(value) in seen:
            return f"{type(value).__name__}(shared with {seen[id(value)]})"
        seen[id(value)] = format_path(path)
        return variable_repr(value)
    if isinstance(value, tuple) and any(isinstance(item, (Node, Variable)) for item in value):
        items = [_item(item, depth, seen, (*path, i)) for i, item in enumerate(value)]
        return f"({', '.join(items)},)" if len(items) == 1 else f"({', '.join(items)})"
    return summarize(value)


def state_repr(state: Mapping[Any, Any]) -> str:
    """Formats a State as nested braces."""
    return f"{type(state).__name__}({_mapping(state, 0)})"


def _mapping(mapping: Mapping[Any, Any], depth: int) -> str:
    if not mapping:
        return "{}"
    pad = _INDENT * (depth + 1)
    lines = []
    for key, value in mapping.items():
        if isinstance(value, Mapping):
            shown = _mapping(value, depth + 1)
        else:
            shown = variable_repr(value) if isinstance(value, Variable) else summarize(value)
        lines.append(f"{pad}{key!r}: {shown},")
    return "{\n" + "\n".join(lines) + f"\n{_INDENT * depth}}}"
