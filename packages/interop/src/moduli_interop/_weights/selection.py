"""Which tensors of a source, and which Variables of a model, are meant."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Callable, Iterable
from typing import Any

import moduli
from moduli.errors import ModuliError, format_path
from moduli_interop._tensors.stored import StoredTensor, Tensors
from moduli_interop._weights.hints import near
from moduli_interop._weights.targets import Target
from moduli_interop._weights.templates import dotted
from moduli_interop._weights.variables import Place

__all__ = ["HARMLESS", "Chosen", "Names", "Selection", "by_paths", "chosen", "renamed", "selected"]

HARMLESS = ("num_batches_tracked", "position_ids", "rotary_emb.inv_freq")
"""Ends of names of buffers that carry no weights: a count, ``arange(n)``, and fixed angles."""

Names = str | Iterable[str] | Callable[..., bool] | None


@dataclasses.dataclass(frozen=True)
class Selection:
    """Which part of a source goes to which part of a model; see :func:`load_weights`."""

    prefix: str = ""
    only: Any = None
    ignore: Names = ()
    strict: bool = True
    cast: bool = False


@dataclasses.dataclass
class Chosen:
    """The tensors of a source that are of interest.

    Attributes:
      there: they, by their names behind the prefix.
      ignored: the names of those that are passed over.
      left: the names of those without the prefix.
      idle: patterns of ``ignore`` that are of no tensor.
    """

    there: dict[str, StoredTensor] = dataclasses.field(default_factory=dict)
    ignored: list[str] = dataclasses.field(default_factory=list)
    left: list[str] = dataclasses.field(default_factory=list)
    idle: list[str] = dataclasses.field(default_factory=list)


def chosen(source: Tensors, selection: Selection) -> Chosen:
    """Takes the tensors behind the prefix that are not to be ignored."""
    prefix = selection.prefix
    if prefix and not prefix.endswith(".") and any(n.startswith(f"{prefix}.") for n in source):
        prefix += "."
    ignored, patterns = _ignored(selection.ignore)
    found = Chosen(idle=patterns)
    for name, tensor in source.items():
        rest = name.removeprefix(prefix)
        found.idle = [p for p in found.idle if not (_fits(name, p) or _fits(rest, p))]
        if not name.startswith(prefix):
            found.left.append(name)
        elif ignored(name) or ignored(rest):
            found.ignored.append(name)
        else:
            found.there[rest] = tensor
    return found


def _ignored(patterns: Names) -> tuple[Callable[[str], bool], list[str]]:
    """Returns whether a name is to be passed over, and the patterns that say so."""
    if callable(patterns):
        return patterns, []
    listed = [patterns] if isinstance(patterns, str) else list(patterns or ())
    return lambda name: any(_fits(name, pattern) for pattern in listed), listed


def _fits(name: str, pattern: str) -> bool:
    return name == pattern or name.endswith(f".{pattern}") or fnmatch.fnmatchcase(name, pattern)


def renamed(
    there: dict[str, StoredTensor], names: Callable[[str], str | None]
) -> tuple[dict[str, StoredTensor], list[str]]:
    """Applies a function of a user's, which may give None for a tensor to be passed over.

    Returns:
      The tensors by our names, and the names of those that are passed over.
    """
    passed_over: list[str] = []
    found: dict[str, StoredTensor] = {}
    for name, tensor in there.items():
        ours = names(name)
        if not (ours is None or isinstance(ours, str)):
            raise ModuliError(
                f"names gives {ours!r} for the tensor {name!r}, a {type(ours).__name__}; return "
                "our path of it as a text, or None to pass it over"
            )
        ours = ours if ours is None else dotted(ours)
        if ours is None:
            passed_over.append(name)
        elif ours in found:
            raise ModuliError(
                f"names gives {ours!r} for the tensors {found[ours].name!r} and {name!r}; give "
                "each tensor a name of its own, or None to pass it over"
            )
        else:
            found[ours] = tensor
    return found, passed_over


def by_paths(there: dict[str, StoredTensor], asked: list[Target]) -> dict[str, StoredTensor]:
    """Lets a function name the Variable itself: ``layer.kernel`` for ``layer.weight``."""
    paths = {
        ".".join(map(str, target.places[0].path)): target.names[0]
        for target in asked
        if len(target.places) == len(target.names) == 1
    }
    known = {name for target in asked for name in target.names}
    return {
        paths[name] if name not in known and paths.get(name, "") not in ("", *there) else name: t
        for name, t in there.items()
    }


def selected(listed: list[Target], only: Any) -> tuple[list[Target], list[str]]:
    """Takes the tensors of some Variables.

    Args:
      listed: all of them.
      only: a path or several, patterns, or a filter; None takes all.

    Returns:
      Those, and the names of the others.
    """
    if only is None:
        return listed, []
    patterns = _patterns(only)
    if patterns is None:
        predicate = moduli.filterlib.to_predicate(only)
        meant = [place for place in _places(listed) if predicate(place.path, place.value)]
        if not meant:
            raise ModuliError(f"only={only!r} selects no Variable of the model")
    else:
        meant = []
        for pattern in patterns:
            found = [place for place in _places(listed) if _selects(pattern, place)]
            if not found:
                raise ModuliError(_selects_nothing(pattern, listed))
            meant += found
    wanted = {id(place) for place in meant}
    kept = [t for t in listed if any(id(place) in wanted for place in t.places)]
    names = {name for target in kept for name in target.names}
    left = [name for target in listed for name in target.names if name not in names]
    return kept, left


def _patterns(only: Any) -> list[str] | None:
    """Returns the paths and patterns of ``only``; None if it is a filter."""
    if isinstance(only, str):
        return [only]
    if isinstance(only, (list, tuple, set)) and all(isinstance(one, str) for one in only):
        return list(only)
    return None


def _places(listed: list[Target]) -> list[Place]:
    return [place for target in listed for place in target.places]


def _selects(pattern: str, place: Place) -> bool:
    # as it is, where brackets are sets of characters, and as a path in either notation
    texts = ".".join(map(str, place.path)), format_path(place.path)
    return any(
        text == p or text.startswith((f"{p}.", f"{p}/")) or fnmatch.fnmatchcase(text, p)
        for text in texts
        for p in {pattern, dotted(pattern)}
    )


def _selects_nothing(pattern: str, listed: list[Target]) -> str:
    """Says what to write in the place of a pattern that selects nothing."""
    for target in listed:  # a name of theirs, where ours is meant
        if pattern in target.names:
            return (
                f"only={pattern!r} selects no Variable of the model; it is the name of a tensor, "
                f"and only= takes our paths: write {target.ours!r}"
            )
    paths = {format_path(place.path[:n]) for place in _places(listed) for n in _depths(place)}
    hint = near(pattern, sorted(paths))
    return f"only={pattern!r} selects no Variable of the model{hint}"


def _depths(place: Place) -> range:
    return range(1, len(place.path) + 1)
