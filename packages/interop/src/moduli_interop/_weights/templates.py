"""Names with places for numbers and pieces: ``layers.{n}.attention``.

A template is read as the parts of a name between dots. ``{n}`` stands for an integer, ``{t:s}``
for any text without a dot.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence

from moduli.lowlevel import parse_path
from moduli_interop._weights.errors import NameMapError

__all__ = ["Template", "dotted", "parse", "parse_ours", "unify"]

_FIELD = re.compile(r"\{([^{}]*)\}")
# a block of a stack has no number of its own: \x00 and its level stand for all of them
INDEX = re.compile(r"\x00(\d)\x00")
_PATTERNS = {"n": r"(?:0|[1-9]\d*|\x00\d\x00)", "s": r"[^.]+?"}


@dataclasses.dataclass(frozen=True)
class Template:
    """A name with places in it.

    Attributes:
      text: as it was written.
      parts: the parts between dots; none for the empty name, which is the model itself.
      fields: what stands in braces, with its kind: ``"n"`` for an integer, ``"s"`` for a text.
      patterns: a pattern for each part with fields, and None for one that is a text.
    """

    text: str
    parts: tuple[str, ...]
    fields: Mapping[str, str]
    patterns: tuple[re.Pattern[str] | None, ...]

    def match(self, name: Sequence[str]) -> dict[str, str] | None:
        """Returns what stands at the fields if a name begins with this one; None if it does not.

        Args:
          name: the parts of the name.
        """
        if len(name) < len(self.parts):
            return None
        bound: dict[str, str] = {}
        for part, pattern, given in zip(self.parts, self.patterns, name, strict=False):
            if pattern is None:
                if part != given:
                    return None
                continue
            found = pattern.fullmatch(given)
            if found is None:
                return None
            for key, value in found.groupdict().items():
                if bound.setdefault(key[1:], value) != value:
                    return None
        return bound

    def fill(self, bound: Mapping[str, str]) -> tuple[str, ...]:
        """Returns the parts with the fields filled in."""
        return tuple(_FIELD.sub(lambda m: bound[_name(m[1])[0]], part) for part in self.parts)

    @functools.cached_property
    def specificity(self) -> tuple[int, int]:
        """How much a template says: by the number of its parts, then of those without fields."""
        return len(self.parts), sum("{" not in part for part in self.parts)


def parse(text: str) -> Template:
    """Reads a template.

    Args:
      text: such as ``"model.layers.{n}.{t:s}_proj"``.

    Raises:
      NameMapError: if braces are not closed, a field has no name or another kind, or a name could
        be read in two ways.
    """
    parts = tuple(text.split(".")) if text else ()
    fields: dict[str, str] = {}
    for part in parts:
        rest = _FIELD.sub("", part)
        if "{" in rest or "}" in rest or (not part):
            raise NameMapError(
                f"the name {text!r} cannot be read; write parts between dots, and fields as {{n}} "
                "for an integer or {t:s} for a piece of a name"
            )
        for found in _FIELD.finditer(part):
            name, kind = _name(found[1])
            if not name.isidentifier() or kind not in _PATTERNS:
                raise NameMapError(
                    f"the field {found[0]} of {text!r} cannot be read; write {{n}} for an integer "
                    "or {t:s} for a piece of a name"
                )
            if fields.setdefault(name, kind) != kind:
                raise NameMapError(f"the field {name!r} of {text!r} is of two kinds")
        _check_one_reading(text, part, fields)
    kinds = tuple(fields.items())
    patterns = tuple(_pattern(part, kinds) if "{" in part else None for part in parts)
    return Template(text, parts, fields, patterns)


def _check_one_reading(text: str, part: str, fields: Mapping[str, str]) -> None:
    """Refuses a part whose fields cannot be told apart: ``{n}{m}`` of ``123``."""
    found = [_name(match[1])[0] for match in _FIELD.finditer(part)]
    between = _FIELD.split(part)[2:-1:2]  # the texts from one field to the next
    joined = any(not literal.strip("0123456789") for literal in between)
    if joined or len({name for name in found if fields[name] == "s"}) > 1:
        raise NameMapError(
            f"the part {part!r} of {text!r} can be read in several ways; between two fields of a "
            "part there is some text that is no number, and one of them at most is a {t:s}. Write "
            "a rule for each name"
        )


def dotted(path: str) -> str:
    """Returns a path of ours with dots, as the names of tensors have them, in either notation."""
    if "/" not in path and "[" not in path:
        return path
    return ".".join(part.text for part in parse_path(path))


def parse_ours(path: str) -> Template:
    """Reads a template of our side: ``"blocks/{n}/attention"``, or with dots."""
    return dataclasses.replace(parse(dotted(path)), text=path)


def unify(one: Template, other: Template) -> tuple[dict[str, str], dict[str, str]] | None:
    """Finds a name that is of both templates.

    Returns:
      What stands at the fields of each in such a name; None if there is no such name.
    """
    if len(one.parts) != len(other.parts):
        return None
    mine, theirs = dict[str, str](), dict[str, str]()
    for a, b in zip(one.parts, other.parts, strict=True):
        candidates = [_sample(one, a, mine), _sample(other, b, theirs)]
        both_whole = _FIELD.fullmatch(a) and _FIELD.fullmatch(b)
        if both_whole and "n" in (one.fields[_name(a[1:-1])[0]], other.fields[_name(b[1:-1])[0]]):
            candidates.append("7")
        for candidate in candidates:
            left = _bind(one, a, candidate, mine)
            right = _bind(other, b, candidate, theirs)
            if left is not None and right is not None:
                mine, theirs = left, right
                break
        else:
            return None
    return mine, theirs


def _sample(template: Template, part: str, bound: Mapping[str, str]) -> str:
    def value(found: re.Match[str]) -> str:
        name, _ = _name(found[1])
        return bound.get(name, "7" if template.fields[name] == "n" else "piece")

    return _FIELD.sub(value, part)


def _bind(
    template: Template, part: str, text: str, bound: Mapping[str, str]
) -> dict[str, str] | None:
    found = _pattern(part, tuple(template.fields.items())).fullmatch(text)
    if found is None:
        return None
    new = {key[1:]: value for key, value in found.groupdict().items()}
    if any(bound.get(key, value) != value for key, value in new.items()):
        return None
    return {**bound, **new}


def _name(field: str) -> tuple[str, str]:
    name, _, kind = field.partition(":")
    return name, kind or "n"


@functools.lru_cache(maxsize=4096)
def _pattern(part: str, fields: tuple[tuple[str, str], ...]) -> re.Pattern[str]:
    kinds, seen, text, at = dict(fields), set[str](), "", 0
    for found in _FIELD.finditer(part):
        text += re.escape(part[at : found.start()])
        name, _ = _name(found[1])
        group = f"f{name}"
        text += f"(?P={group})" if name in seen else f"(?P<{group}>{_PATTERNS[kinds[name]]})"
        seen.add(name)
        at = found.end()
    return re.compile(text + re.escape(part[at:]), re.DOTALL)
