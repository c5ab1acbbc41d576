"""How modules and States are shown: a tree with types, shapes, dtypes and counts."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax

from moduli._base.node import Node
from moduli._base.static_keys import UnhashableStatic, static_value
from moduli._base.type_variables import Path
from moduli._graph.cache import flat_of
from moduli._graph.graphdef import OBJECT, STATIC, VARIABLE
from moduli._graph.init_defaults import defaults_of, says_nothing_new
from moduli._variable.box import Variable
from moduli._variable.one_line import summarize, variable_repr
from moduli.errors import format_path

__all__ = ["graphdef_repr", "node_repr", "state_repr", "structure_entries"]

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
    if isinstance(value, Mapping) and getattr(type(value), "_is_moduli_state", False):
        return _around(f"{type(value).__name__}(", _mapping(value, depth), ")")
    inside = (Node, Variable, Mapping, tuple)
    if isinstance(value, tuple) and any(isinstance(item, inside) for item in value):
        return _tuple(value, depth, seen, path)
    return _Shown(summarize(value), summarize(value, elements=False))


def _around(start: str, inside: _Shown, end: str) -> _Shown:
    return _Shown(start + inside.text + end, start + inside.outline + end)


def _tuple(value: Any, depth: int, seen: dict[int, str], path: tuple[Any, ...]) -> _Shown:
    """A tuple, named or not: on one line, or each item on its own if one of them needs several."""
    fields = getattr(value, "_fields", None)
    start = "(" if fields is None else f"{type(value).__name__}("
    heads = [""] * len(value) if fields is None else [f"{name}=" for name in fields]
    items = [_item(item, depth + 1, seen, (*path, i)) for i, item in enumerate(value)]
    shown = [_around(head, item, "") for head, item in zip(heads, items, strict=True)]
    if not any("\n" in item.text for item in shown):
        end = ",)" if len(value) == 1 and fields is None else ")"
        text = ", ".join(item.text for item in shown)
        return _around(start, _Shown(text, ", ".join(item.outline for item in shown)), end)
    pad, end = _INDENT * (depth + 1), f"\n{_INDENT * depth})"
    return _Shown(
        "\n".join([start, *(f"{pad}{item.text}," for item in shown)]) + end,
        "\n".join([start, *(f"{pad}{item.outline}," for item in shown)]) + end,
    )


def state_repr(state: Mapping[Any, Any]) -> str:
    """Formats a State as nested braces; equal neighbours of a list are shown once."""
    return f"{type(state).__name__}({_mapping(state, 0).text})"


def _mapping(mapping: Mapping[Any, Any], depth: int) -> _Shown:
    if not mapping:
        return _alike("{}")
    items = [(key, _entry(value, depth + 1)) for key, value in mapping.items()]
    lines: list[_Shown] = []
    for run in _runs(items):
        (first, shown), (last, _) = run[0], run[-1]
        if len(run) == 1:
            lines.append(_around(f"{first!r}: ", shown, ","))
        else:
            lines.append(_alike(f"{first!r}-{last!r}: {len(run)} x {shown.outline},"))
    pad, end = _INDENT * (depth + 1), f"\n{_INDENT * depth}}}"
    return _Shown(
        "\n".join(["{", *(pad + line.text for line in lines)]) + end,
        "\n".join(["{", *(pad + line.outline for line in lines)]) + end,
    )


def _entry(value: Any, depth: int) -> _Shown:
    if isinstance(value, Mapping):
        return _mapping(value, depth)
    if isinstance(value, Variable):
        return _Shown(variable_repr(value), variable_repr(value, elements=False))
    return _Shown(summarize(value), summarize(value, elements=False))


def _runs(items: list[tuple[Any, _Shown]]) -> list[list[tuple[Any, _Shown]]]:
    """Takes entries with following numbers together that differ in elements of arrays alone.

    Those on one line stay apart if they have elements to show.
    """
    runs: list[list[tuple[Any, _Shown]]] = []
    for key, shown in items:
        last = runs[-1][-1] if runs else None
        follows = last is not None and type(key) is type(last[0]) is int and key == last[0] + 1
        several = "\n" in shown.text or shown.text == shown.outline
        if last is not None and follows and several and shown.outline == last[1].outline:
            runs[-1].append((key, shown))
        else:
            runs.append([(key, shown)])
    return runs


def graphdef_repr(graphdef: Any) -> str:
    """Formats a structure: a line for each object, without defaults, equal neighbours once."""
    paths = graphdef.object_paths
    below: dict[int | None, list[int]] = {}
    above: list[int] = []
    for index in range(len(graphdef.objects)):
        while above and paths[index][: len(paths[above[-1]])] != paths[above[-1]]:
            above.pop()
        below.setdefault(above[-1] if above else None, []).append(index)
        above.append(index)

    def lines(parent: int | None, depth: int) -> list[tuple[int, int, str]]:
        start = 0 if parent is None else len(paths[parent])
        runs: list[list[tuple[int, Path, Any]]] = []
        for index in below.get(parent, ()):
            inside = lines(index, depth + 1)
            outline = (_object(graphdef, index), inside)
            path = paths[index][start:]
            if runs and _follow(runs[-1][-1][1], path) and _same(runs[-1][-1][2], outline):
                runs[-1].append((index, path, outline))
            else:
                runs.append([(index, path, outline)])
        found = []
        for run in runs:
            index, path, (head, inside) = run[0]
            name = format_path(path) if path else ""
            if len(run) > 1:
                name, head = f"{name}-{format_path(run[-1][1])}", f"{len(run)} x {head}"
            found += [(depth, index, f"{name}: {head}" if name else head), *inside]
        return found

    return "\n".join(
        f"{_INDENT * (depth + 1)}{index} {text}" for depth, index, text in lines(None, 0)
    )


def _object(graphdef: Any, index: int) -> str:
    """A Variable's kind, or a node's class, its static attributes and where it is shared."""
    entry = graphdef.objects[index]
    name = entry[1].__name__
    if entry[0] == VARIABLE:
        return name
    defaults = {} if issubclass(entry[1], (list, dict)) else defaults_of(entry[1])
    static = [
        f"{key}={summarize(value)}"
        for key, value in _static(entry)
        if not says_nothing_new(key, value, defaults)
    ]
    shared = [f"{key}=#{number}" for key, number in _shared(graphdef, index)]
    return f"{name}({', '.join(static + shared)})"


def _static(entry: Any) -> list[tuple[Any, Any]]:
    """The static attributes of a node, by name."""
    return [(key, static_value(code[1])) for key, code in entry[2] if code[0] <= STATIC]


def _shared(graphdef: Any, index: int) -> list[tuple[Any, int]]:
    """The attributes of a node that hold an object which has its place elsewhere, and which."""
    paths = graphdef.object_paths
    return [
        (key, code[1])
        for key, code in graphdef.objects[index][2]
        if code[0] == OBJECT and paths[code[1]] != (*paths[index], key)
    ]


def _same(one: Any, other: Any) -> bool:
    """Whether two objects and all below them are written in the same way, but for their numbers."""
    return one[0] == other[0] and [(d, t) for d, _, t in one[1]] == [(d, t) for d, _, t in other[1]]


def structure_entries(graphdef: Any) -> dict[str, tuple[str, dict[str, str]]]:
    """Writes a structure in full, for a comparison.

    Returns:
      For the path of each object its class and its static attributes or metadata, as text.
    """
    found = {}
    paths = graphdef.object_paths
    for index, entry in enumerate(graphdef.objects):
        if entry[0] == VARIABLE:
            shown = {key: repr(value) for key, value in graphdef.metadatas.get(index, {}).items()}
        else:
            shown = {str(key): repr(value) for key, value in _static(entry)}
            for key, number in _shared(graphdef, index):
                shown[str(key)] = f"shared with `{format_path(paths[number])}`"
        where = f"`{format_path(paths[index])}`" if paths[index] else "the root"
        found[where] = entry[1].__name__, shown
    return found


def _follow(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    return (
        len(one) == len(other) == 1
        and type(one[0]) is type(other[0]) is int
        and other[0] == one[0] + 1
    )
