"""How modules and States are shown: a tree with types, shapes, dtypes and counts."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax

from moduli._base.node import Node
from moduli._base.static_keys import UnhashableStatic
from moduli._graph.cache import flat_of
from moduli._graph.init_defaults import defaults_of, says_nothing_new
from moduli._variable.box import Variable
from moduli._variable.one_line import summarize, variable_repr
from moduli.errors import format_path

__all__ = ["node_repr", "state_repr"]

_INDENT = "  "
_WIDTH = 100  # of a module that stands on one line; its name comes before it


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
    """Formats a node and all below it as a tree that is short enough to be read.

    Attributes that have the defaults of ``__init__`` are left out, equal neighbours in a list are
    shown once, a module without modules inside stands on one line, and an object met again is
    named, not repeated.
    """
    return _node(node, 0, {}, ()).text


class _Shown(NamedTuple):
    """A piece of the tree, and the same without elements of arrays: equal blocks differ in them."""

    text: str
    outline: str


def _node(node: Node, depth: int, seen: dict[int, str], path: tuple[Any, ...]) -> _Shown:
    name = type(node).__name__
    if id(node) in seen:
        return _alike(f"{name}(shared with {seen[id(node)]})")
    seen[id(node)] = format_path(path)
    is_container = isinstance(node, (list, dict))
    defaults = {} if is_container else defaults_of(type(node))
    items = [
        (key, _item(value, depth + 1, seen, (*path, key)))
        for key, value in node._items_in_order()  # type: ignore[attr-defined]
        if is_container or not says_nothing_new(key, value, defaults)
    ]
    if not items:
        return _alike(f"{name}()")
    if isinstance(node, list):
        heads = _folded(items)
    else:
        heads = [(f"{key!r}: " if is_container else f"{key}=", shown) for key, shown in items]
    if not is_container:
        inside = _Shown(
            ", ".join(head + shown.text for head, shown in heads),
            ", ".join(head + shown.outline for head, shown in heads),
        )
        whole = _Shown(f"{name}({inside.text})", f"{name}({inside.outline})")
        if _fits(whole, depth) and not any(isinstance(item, Node) for item in vars(node).values()):
            return whole
    count = _node_count(node)
    start = f"{name}(  # {count}" if count else f"{name}("
    pad, end = _INDENT * (depth + 1), f"\n{_INDENT * depth})"
    return _Shown(
        "\n".join([start, *(pad + head + shown.text for head, shown in heads)]) + end,
        "\n".join([start, *(pad + head + shown.outline for head, shown in heads)]) + end,
    )


def _folded(items: list[tuple[Any, _Shown]]) -> list[tuple[str, _Shown]]:
    """Takes neighbours of a list that differ in elements of arrays alone together."""
    lines: list[tuple[str, _Shown]] = []
    for outline, group in itertools.groupby(items, key=lambda item: item[1].outline):
        found = list(group)
        first, last = found[0][0], found[-1][0]
        if len(found) == 1 or "shared with" in outline:
            lines += [(f"[{key}] ", shown) for key, shown in found]
        else:
            start, newline, rest = outline.partition("\n")
            each = f"{start} each" if "  # " in start else start
            lines.append((f"[{first}-{last}] {len(found)} x ", _alike(each + newline + rest)))
    return lines


def _fits(shown: _Shown, depth: int) -> bool:
    return "\n" not in shown.text and len(_INDENT) * depth + len(shown.text) <= _WIDTH


def _alike(text: str) -> _Shown:
    return _Shown(text, text)


def _item(value: Any, depth: int, seen: dict[int, str], path: tuple[Any, ...]) -> _Shown:
    if isinstance(value, Node):
        return _node(value, depth, seen, path)
    if isinstance(value, Variable):
        if id(value) in seen:
            return _alike(f"{type(value).__name__}(shared with {seen[id(value)]})")
        seen[id(value)] = format_path(path)
        return _Shown(
            " ".join(variable_repr(value).split()),
            " ".join(variable_repr(value, elements=False).split()),
        )
    if isinstance(value, tuple) and any(isinstance(item, (Node, Variable)) for item in value):
        items = [_item(item, depth, seen, (*path, i)) for i, item in enumerate(value)]
        comma = "," if len(items) == 1 else ""
        return _Shown(
            f"({', '.join(item.text for item in items)}{comma})",
            f"({', '.join(item.outline for item in items)}{comma})",
        )
    return _Shown(summarize(value), summarize(value, elements=False))


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
