"""A map of names to begin with, from what two models have in common."""

from __future__ import annotations

import os
import sys
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from moduli_interop._tensors.read import read_tensors
from moduli_interop._weights.errors import NameMapError
from moduli_interop._weights.matching import Pairing, Part, is_like, match, parts_of
from moduli_interop._weights.name_map import NameMap
from moduli_interop._weights.selection import HARMLESS
from moduli_interop._weights.targets import targets

__all__ = ["suggest_names"]

Path = tuple[str, ...]


def suggest_names(
    source: str | os.PathLike[str] | Mapping[Any, Any], model: Any, *, prefix: str = ""
) -> NameMap:
    """Prints a :class:`NameMap` for a source and a model, to be read and corrected.

    Names that are equal need no rule. Then modules are paired whose tensors have equal shapes and
    of which each is called more like the other than like anything else; words that are often used
    for one thing (``q_proj`` and ``query``) count as one. At last comes what fits nothing else.
    What could be several things is printed as a comment, the likeliest first.
    Nothing is loaded; :func:`load_weights` does not guess.

    Args:
      source: what :func:`read_tensors` takes.
      model: the model.
      prefix: as in :func:`load_weights`.

    Returns:
      The rules that were printed.

    Example:
      >>> import functools, moduli as nnx, numpy as np
      >>> from moduli_interop import suggest_names
      >>> from moduli_layers import Linear
      >>> make = functools.partial(Linear, use_bias=False, rngs=nnx.Rngs(0))
      >>> block = nnx.Dict(query=make(2, 2), last=make(2, 3))
      >>> tensors = {"q_proj.weight": np.ones((2, 2)), "fc_9.weight": np.ones((3, 2))}
      >>> _ = suggest_names(tensors, block)
      names = nnx.NameMap({
          "fc_9": "last",
          "q_proj": "query",
      })
    """
    tensors = read_tensors(source)
    theirs = {
        name.removeprefix(prefix): tensor.shape
        for name, tensor in tensors.items()
        if name.startswith(prefix) and not name.endswith(HARMLESS)
    }
    listed, _ = targets(model, NameMap(), is_like(theirs))
    ours = {}
    for target in listed:
        shape = target.tensor.shape(target.shapes())
        ours |= dict.fromkeys(target.names, shape)
    ends = {name.rpartition(".")[2] for name in ours} & {n.rpartition(".")[2] for n in theirs}
    found = match(parts_of(ours, ends), parts_of(theirs, ends))
    rules, comments = _checked(_rules(_tensors(found)))
    comments += _left(found)
    lines = [f'    "{name}": "{path}",' for name, path in sorted(rules.items())]
    text = ["names = nnx.NameMap({", *lines, *(f"    # {line}" for line in comments), "})"]
    sys.stdout.write("\n".join(text) + "\n")
    return NameMap(rules)


def _tensors(found: Pairing) -> dict[Path, Path]:
    """Returns the paths of their tensors by those of ours."""
    pairs = {}
    for part, other in found.pairs:
        for leaf in part.leaves.keys() & other.leaves.keys():
            end = (leaf,) if leaf else ()
            pairs[*part.path, *end] = (*other.path, *end)
    return pairs


def _left(found: Pairing) -> list[str]:
    """Says what has no place, and what could have several."""
    lines, named = [], set[int]()
    for part, could_be in found.ours:
        if could_be:
            some = " or ".join(other.text for other in could_be[:4])
            more = f" or one of {len(could_be) - 4} others" if len(could_be) > 4 else ""
            lines.append(f"{part.text} could be {some}{more}")
            named |= {id(other) for other in could_be}
        else:
            lines.append(f"{part.text}{_shapes(part)}: nothing like it in the source")
    for other in found.theirs:
        if id(other) not in named:
            text = f"{other.text} (of the source){_shapes(other)}"
            lines.append(f"{text}: nothing like it in the model")
    for part, other in found.pairs:
        for leaf in sorted(part.leaves.keys() ^ other.leaves.keys()):
            if leaf in part.leaves:
                lines.append(f"{'.'.join((*part.path, leaf))}: nothing like it in the source")
            else:
                text = f"{'.'.join((*other.path, leaf))} (of the source)"
                lines.append(f"{text}: nothing like it in the model")
    return lines


def _shapes(part: Part) -> str:
    """The shape of a tensor, which shows one that is laid out otherwise; of several none."""
    return f" {next(iter(part.leaves.values()))}" if len(part.leaves) == 1 else ""


def _checked(rules: dict[str, str]) -> tuple[dict[str, str], list[str]]:
    """Makes comments of the rules that do not go together with those before them."""
    try:
        NameMap(rules)
    except NameMapError:
        kept: dict[str, str] = {}
        lines = []
        for theirs, ours in rules.items():
            try:
                NameMap({**kept, theirs: ours})
                kept[theirs] = ours
            except NameMapError:
                lines.append(f"{theirs!r}: {ours!r} does not go together with the others")
        return kept, lines
    return rules, []


def _rules(pairs: Mapping[Path, Path]) -> dict[str, str]:
    """Makes rules for modules of pairs of tensors; what follows from a shorter one is left out."""
    pairs = _numbered(pairs)
    votes: dict[Path, Counter[Path]] = defaultdict(Counter)
    for ours, theirs in pairs.items():
        end = _equal_end(ours, theirs)
        votes[ours[: len(ours) - end]][theirs[: len(theirs) - end]] += 1
    kept: dict[Path, Path] = {}
    for ours in sorted(votes, key=len):
        theirs = votes[ours].most_common(1)[0][0]
        if _renamed(ours, kept) != theirs:
            kept[ours] = theirs
    for ours, theirs in pairs.items():  # whose short rule another one has
        if _renamed(ours, kept) != theirs:
            end = min(_equal_end(ours, theirs), 1)
            kept[ours[: len(ours) - end]] = theirs[: len(theirs) - end]
    return {_text(theirs): _text(ours) for ours, theirs in kept.items()}


def _renamed(path: Path, kept: Mapping[Path, Path]) -> Path:
    above = next((n for n in range(len(path), -1, -1) if path[:n] in kept), None)
    return path if above is None else (*kept[path[:above]], *path[above:])


def _equal_end(ours: Path, theirs: Path) -> int:
    """Returns how many last parts are equal, and are left to what stands below a module."""
    same = 0
    while same < min(len(ours), len(theirs)) and ours[-1 - same] == theirs[-1 - same]:
        same += 1
    same = min(same, max(len(ours), len(theirs)) - 1)
    fields = {part for part in theirs if part.startswith("{")}
    while same and fields - {*ours[: len(ours) - same]} & {*theirs[: len(theirs) - same]}:
        same -= 1
    return same


def _numbered(pairs: Mapping[Path, Path]) -> dict[Path, Path]:
    """Puts fields in the places of the last numbers that are the same on both sides.

    Where that would give a path of ours two names, the numbers stay.
    """
    templates: dict[Path, tuple[Path, Path]] = {}
    names: dict[Path, set[Path]] = defaultdict(set)
    for ours, theirs in pairs.items():
        mine, others = ([p for p in path if _is_number(p)] for path in (ours, theirs))
        same = 0
        while mine[len(mine) - 1 - same :] == others[len(others) - 1 - same :] and same < min(
            len(mine), len(others)
        ):
            same += 1
        templates[ours] = _with_letters(ours, same), _with_letters(theirs, same)
        names[templates[ours][0]].add(templates[ours][1])
    return dict(
        templates[ours] if len(names[templates[ours][0]]) == 1 else (ours, theirs)
        for ours, theirs in pairs.items()
    )


def _with_letters(path: Path, count: int) -> Path:
    """Puts fields in the places of the last numbers of a path."""
    left = sum(map(_is_number, path)) - count
    letters = iter("nmkjihgf")
    found = []
    for part in path:
        if _is_number(part):
            left -= 1
            part = part if left >= 0 else f"{{{next(letters)}}}"
        found.append(part)
    return tuple(found)


def _is_number(part: str) -> bool:
    return part.isdigit() or part.startswith("{")


def _text(path: Sequence[str]) -> str:
    return ".".join(path)
