"""Which tensors of a source, and which Variables of a model, are meant."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Callable, Iterable
from typing import Any

import moduli
from moduli.errors import ModuliError, format_path
from moduli_interop._tensors.stored import StoredTensor, Tensors
from moduli_interop._weights.targets import Target
from moduli_interop._weights.templates import dotted
from moduli_interop._weights.variables import Place

__all__ = ["HARMLESS", "Names", "Selection", "by_paths", "chosen", "renamed", "selected"]

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


def chosen(
    source: Tensors, selection: Selection
) -> tuple[dict[str, StoredTensor], list[str], list[str]]:
    """Takes the tensors behind the prefix that are not to be ignored.

    Returns:
      The tensors, the names of those that are ignored, and of those without the prefix.
    """
    passed_over: list[str] = []
    left: list[str] = []
    prefix = selection.prefix
    if prefix and not prefix.endswith(".") and any(n.startswith(f"{prefix}.") for n in source):
        prefix += "."
    ignored = _predicate(selection.ignore)
    found = {}
    for name, tensor in source.items():
        if not name.startswith(prefix):
            left.append(name)
        elif ignored(name) or ignored(name[len(prefix) :]):
            passed_over.append(name)
        else:
            found[name[len(prefix) :]] = tensor
    return found, passed_over, left


def _predicate(patterns: Names) -> Callable[[str], bool]:
    if patterns is None:
        return lambda name: False
    if callable(patterns):
        return patterns
    listed = [patterns] if isinstance(patterns, str) else list(patterns)

    def fits(name: str) -> bool:
        return any(
            name == pattern or name.endswith(f".{pattern}") or fnmatch.fnmatchcase(name, pattern)
            for pattern in listed
        )

    return fits


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
    if isinstance(only, str) or (
        isinstance(only, (list, tuple, set)) and all(isinstance(one, str) for one in only)
    ):
        patterns = [only] if isinstance(only, str) else list(only)
        # as they are, where brackets are sets of characters, and as paths in either notation
        spelled = {p for pattern in patterns for p in (pattern, dotted(pattern))}

        def meant(place: Place) -> bool:
            texts = ".".join(map(str, place.path)), format_path(place.path)
            return any(
                text == p or text.startswith((f"{p}.", f"{p}/")) or fnmatch.fnmatchcase(text, p)
                for text in texts
                for p in spelled
            )
    else:
        predicate = moduli.filterlib.to_predicate(only)

        def meant(place: Place) -> bool:
            return bool(predicate(place.path, place.value))

    kept = [target for target in listed if any(map(meant, target.places))]
    if not kept:
        raise ModuliError(f"only={only!r} selects no Variable of the model")
    names = {name for target in kept for name in target.names}
    left = [name for target in listed for name in target.names if name not in names]
    return kept, left
