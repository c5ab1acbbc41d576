"""Paths that users write as text, in either notation: ``blocks/0/kernel``, ``blocks[0].kernel``.

:func:`moduli.errors.format_path` writes paths; what stands here reads them.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

__all__ = ["PathPart", "PathText", "parse_path"]

_QUOTED = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""", re.DOTALL)
_ROOTS = ("the model itself", "<root>", "(root)")


class PathPart(NamedTuple):
    """One part of a path as a user wrote it.

    Attributes:
      text: the text, without quotes or brackets.
      kind: ``"name"`` if it had no quotes, ``"string"`` if it had, ``"key"`` for a Python value
        in brackets that is neither an integer nor a string.
    """

    text: str
    kind: Literal["name", "string", "key"] = "name"

    def fits(self, part: Any) -> bool:
        """Returns whether a part of a model's path is meant; digits mean the string too."""
        if self.kind == "string":
            return isinstance(part, str) and part == self.text
        return str(part) == self.text or (self.kind == "key" and repr(part) == self.text)


class PathText:
    """A path as text; equal texts are equal.

    Args:
      text: in either notation. Dots and brackets separate parts, or are characters of a name: all
        readings are tried.

    Example:
      >>> from moduli._base.path_text import PathText
      >>> path = ("blocks", 0, "kernel")
      >>> [PathText(t).is_whole(path) for t in ("blocks/0/kernel", "blocks[0].kernel", "kernel")]
      [True, True, False]
      >>> PathText("0/kernel").is_inside(path), PathText("blocks[0]").begins(path)
      (True, True)
    """

    __slots__ = ("readings", "text")

    def __init__(self, text: str):
        self.text = text
        self.readings = _readings(text)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PathText) and other.text == self.text

    def __hash__(self) -> int:
        return hash((PathText, self.text))

    def __repr__(self) -> str:
        return repr(self.text)

    def is_whole(self, path: Sequence[Any]) -> bool:
        """Returns whether it is all of a path."""
        return any(len(parts) == len(path) and _fit(parts, path) for parts in self.readings)

    def begins(self, path: Sequence[Any]) -> bool:
        """Returns whether a path begins with it."""
        return any(len(parts) <= len(path) and _fit(parts, path) for parts in self.readings)

    def is_inside(self, path: Sequence[Any]) -> bool:
        """Returns whether its parts stand one after another in a path."""
        return any(
            _fit(parts, path[start:])
            for parts in self.readings
            for start in range(len(path) - len(parts) + 1)
        )


def _fit(parts: Sequence[PathPart], path: Sequence[Any]) -> bool:
    return all(part.fits(given) for part, given in zip(parts, path, strict=False))


def parse_path(text: str) -> tuple[PathPart, ...]:
    """Returns the parts of a path that is written in either notation.

    Args:
      text: with slashes between the parts, or as Python would write it. If there are slashes, a
        dot is a character like any other.

    Example:
      >>> from moduli._base.path_text import parse_path
      >>> [part.text for part in parse_path("blocks/0/kernel")]
      ['blocks', '0', 'kernel']
      >>> parse_path("blocks/0/kernel") == parse_path(".blocks[0].kernel")
      True
      >>> parse_path("scales/'a.b'") == parse_path("scales['a.b']")
      True
    """
    if text in _ROOTS:
        return ()
    return _split(text, "/" if "/" in _QUOTED.sub("", text) else "/.")


@functools.lru_cache(512)
def _readings(text: str) -> tuple[tuple[PathPart, ...], ...]:
    if text in _ROOTS:
        return ((),)
    # the last is how format_path writes: a bracket begins a part
    found = _split(text, "/."), _split(text, "/"), _split(text, "/", within=False)
    return tuple(dict.fromkeys(found))


def _split(text: str, separators: str, within: bool = True) -> tuple[PathPart, ...]:
    parts: list[PathPart] = []
    name = ""
    position = 0
    while position < len(text):
        sign = text[position]
        after_bracket = within and (position == 0 or text[position - 1] == "]")
        if sign in separators or (sign == "." and after_bracket and not name):
            parts += [PathPart(name)] * bool(name)
            name, position = "", position + 1
            continue
        if (within or not name) and sign == "[" and (end := _closing(text, position)):
            parts += [PathPart(name)] * bool(name)
            inner = text[position + 1 : end]
            parts.append(_bracketed(inner))
            name, position = "", end + 1
            continue
        quoted = None if name else _QUOTED.match(text, position)
        if quoted and (quoted.end() == len(text) or text[quoted.end()] in "/.["):
            parts.append(PathPart(_unquoted(quoted[0]), "string"))
            position = quoted.end()
            continue
        name += sign
        position += 1
    return (*parts, *[PathPart(name)] * bool(name))


def _closing(text: str, start: int) -> int | None:
    """Returns where the bracket that opens at ``start`` closes; quotes hide brackets."""
    depth, position = 0, start
    while position < len(text):
        if found := _QUOTED.match(text, position):
            position = found.end()
            continue
        depth += (text[position] in "[({") - (text[position] in "])}")
        if depth == 0:
            return position
        position += 1
    return None


def _bracketed(inner: str) -> PathPart:
    if _QUOTED.fullmatch(inner):
        return PathPart(_unquoted(inner), "string")
    return PathPart(inner, "name" if re.fullmatch(r"-?\d+|[\w*?|-]+", inner) else "key")


def _unquoted(text: str) -> str:
    # as Python reads it, without evaluating anything: only what repr escapes
    return re.sub(r"\\(x..|u....|U........|.)", _unescaped, text[1:-1], flags=re.DOTALL)


def _unescaped(found: re.Match[str]) -> str:
    sign = found[1]
    if len(sign) > 1:
        return chr(int(sign[1:], 16))
    return {"n": "\n", "r": "\r", "t": "\t"}.get(sign, sign)
