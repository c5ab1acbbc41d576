"""What a function did to the structure of its arguments, in words, for messages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from moduli._base.source_lines import describe_place
from moduli._base.static_keys import static_value
from moduli._call.writeback import ChangedEffects
from moduli._graph.data import is_graph_leaf
from moduli._graph.graphdef import OBJECT, STATIC, VARIABLE, root_and_path
from moduli._graph.state import State

__all__ = ["Word", "describe_changes", "outline"]

Place = Callable[[int, tuple[Any, ...]], str]


class Word(str):
    """Text that stands for a value in an outline: without quotes."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def outline(tree: Any) -> str:
    """Formats the structure of a pytree with the types of its leaves."""

    def stop(item: Any) -> bool:
        return item is None or is_graph_leaf(item) or isinstance(item, State)

    def name(leaf: Any) -> Word:
        if leaf is None or isinstance(leaf, jax.Array):
            return Word("None" if leaf is None else "array")
        return Word(type(leaf).__name__)

    return repr(jax.tree.map(name, tree, is_leaf=stop))


def describe_changes(effects: Any, place: Place) -> str:
    """Says what a function added, removed and changed.

    Args:
      effects: what the function did.
      place: writes a place: ``(number of the root, path) -> text``.
    """
    if not isinstance(effects, ChangedEffects):
        return "changes no structure"
    parts = []
    for index, origin in enumerate(effects.origins):
        if origin is None:
            continue
        before, entry = effects.before[origin[0]], effects.graphdef.objects[index]
        old = before.objects[origin[1]]
        root, path = _root_and_path(effects, origin)
        if entry[1] is not old[1]:
            parts.append(f"makes {place(root, path)} a {entry[1].__name__}")
        if entry[0] == VARIABLE:
            if entry[2] != old[2]:
                parts.append(f"changes the metadata of {place(root, path)}")
            continue
        was, now = dict(old[2]), dict(entry[2])
        for key in [*now, *[key for key in was if key not in now]]:
            spot = place(root, (*path, key))
            if key not in now:
                parts.append(f"removes {spot}")
            elif key not in was:
                parts.append(f"adds {_say(effects, now[key], place)} at {spot}")
            elif not _is_same(effects, origin[0], was[key], now[key]):
                parts.append(f"puts {_say(effects, now[key], place)} at {spot}")
    stop = effects.num_roots + sum(effects.marks)  # what was taken out of the arguments follows
    roots = effects.graphdef.roots[effects.num_roots : stop]
    returned = [_say(effects, code, place) for code in roots]
    if returned and not parts:
        return f"returns {', '.join(returned)}"
    return ", ".join(parts) or "changes no structure"


def _root_and_path(effects: ChangedEffects, origin: tuple[int, int]) -> tuple[int, tuple[Any, ...]]:
    number, index = origin
    return root_and_path(effects.before, number, effects.before[number].object_paths[index])


def _is_same(effects: ChangedEffects, number: int, was: Any, now: Any) -> bool:
    if was[0] != now[0]:
        return False
    if was[0] == OBJECT:
        return effects.origins[now[1]] == (number, was[1])
    return was[0] > STATIC or was[1] == now[1]


def _say(effects: ChangedEffects, code: Any, place: Place) -> str:
    """Names what stands somewhere: a static value, an object, or an array."""
    if code[0] <= STATIC:
        return repr(static_value(code[1]))
    if code[0] != OBJECT:
        return "an array"
    kind = effects.graphdef.objects[code[1]][1].__name__
    origin, site = effects.origins[code[1]], effects.sites[code[1]]
    if origin is not None:
        return f"the {kind} that was given as {place(*_root_and_path(effects, origin))}"
    return f"a new {kind}" + (f" (made at {describe_place(site)})" if site is not None else "")
