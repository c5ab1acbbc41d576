"""A map of names to begin with, from what two models have in common."""

from __future__ import annotations

import itertools
import os
import re
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from moduli_interop._tensors.read import read_tensors
from moduli_interop._weights.name_map import NameMap
from moduli_interop._weights.selection import HARMLESS
from moduli_interop._weights.targets import targets

__all__ = ["suggest_names"]

Path = tuple[str, ...]
Shape = tuple[int, ...]

_SYNONYMS = {
    "query": "q qproj wq queryproj qlin",
    "key": "k kproj wk keyproj klin",
    "value": "v vproj wv valueproj vlin",
    "out": "o oproj outproj wo outputproj outlin proj",
    "attention": "attn selfattn selfattention mha",
    "embed": "embedding embeddings embedtokens tokembeddings wte wordembeddings tokenembedding",
    "position": "positionembeddings wpe posembed positionembedding posembedding",
    "norm": "ln layernorm rmsnorm normalization",
    "norm1": "ln1 layernorm1 inputlayernorm attentionnorm attnnorm",
    "norm2": "ln2 layernorm2 postattentionlayernorm ffnnorm mlpnorm",
    "normf": "lnf finalnorm finallayernorm normfinal outputnorm",
    "layers": "layer blocks block h",
    "mlp": "ffn feedforward ff",
    "gate": "gateproj w1",
    "up": "upproj w3 fc1 cfc lin1",
    "down": "downproj w2 fc2 cproj lin2",
    "head": "lmhead output classifier fc unembed",
}
_KNOWN = {word: name for name, words in _SYNONYMS.items() for word in (name, *words.split())}


def suggest_names(
    source: str | os.PathLike[str] | Mapping[Any, Any], model: Any, *, prefix: str = ""
) -> NameMap:
    """Prints a :class:`NameMap` for a source and a model, to be read and corrected.

    Names that are equal need no rule. Then those count as equal that differ in separators and in
    words that are often used for one thing (``q_proj`` and ``query``), and at last tensors whose
    shape no other has below one parent. What could be several things is printed as a comment.
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
    listed, _ = targets(model, NameMap(), theirs.__contains__)
    ours = {}
    for target in listed:
        shape = target.tensor.shape(target.shapes())
        ours |= dict.fromkeys(target.names, shape)
    rules, comments = _Matcher(theirs, ours).run()
    lines = [f'    "{name}": "{path}",' for name, path in sorted(rules.items())]
    text = ["names = nnx.NameMap({", *lines, *(f"    # {line}" for line in comments), "})"]
    sys.stdout.write("\n".join(text) + "\n")
    return NameMap(rules)


class _Matcher:
    """Pairs the tensors of two models, of which repeated blocks count once."""

    def __init__(self, theirs: Mapping[str, Shape], ours: Mapping[str, Shape]):
        self._theirs, self._ours = _blocks(theirs), _blocks(ours)

    def run(self) -> tuple[dict[str, str], list[str]]:
        """Returns rules, and comments on what is ambiguous or left."""
        pairs = {path: path for path in self._ours if path in self._theirs}
        comments: list[str] = []
        self._pair(pairs, _plain, comments)
        self._pair(pairs, _by_words, comments)
        self._by_shape(pairs, comments)
        for path in self._ours:
            if path not in pairs:
                comments.append(f"{_text(path)}: nothing like it in the source")
        for path in self._theirs:
            if path not in pairs.values():
                comments.append(f"{_text(path)} (of the source): nothing like it in the model")
        return _rules(pairs), comments

    def _left(self, pairs: Mapping[Path, Path]) -> tuple[list[Path], list[Path]]:
        taken = set(pairs.values())
        return [p for p in self._ours if p not in pairs], [
            p for p in self._theirs if p not in taken
        ]

    def _pair(self, pairs: dict[Path, Path], key: Any, comments: list[str]) -> None:
        """Pairs what has one key, where the shapes are equal and nothing else has it."""
        ours, theirs = self._left(pairs)
        found: dict[Any, list[Path]] = defaultdict(list)
        for path in theirs:
            for at in range(len(path)):  # theirs may stand in a module of a module
                found[key(path[at:])].append(path)
        for path in ours:
            fitting = [p for p in found[key(path)] if self._theirs[p] == self._ours[path]]
            fitting = [p for p in dict.fromkeys(fitting) if p not in pairs.values()]
            if len(fitting) == 1:
                pairs[path] = fitting[0]
            elif fitting:
                comments.append(f"{_text(path)} could be {' or '.join(map(_text, fitting))}")

    def _by_shape(self, pairs: dict[Path, Path], comments: list[str]) -> None:
        """Pairs what has a shape of its own below a parent that is known, or below the root."""
        parents = {
            path[:n]: other[: len(other) - len(path) + n]
            for path, other in pairs.items()
            for n in range(len(path))
            if len(other) >= len(path) - n
        }
        parents.setdefault((), ())
        ours, theirs = self._left(pairs)
        for parent, other in parents.items():
            mine: dict[Any, list[Path]] = defaultdict(list)
            others: dict[Any, list[Path]] = defaultdict(list)
            for path in ours:
                if path[: len(parent)] == parent and path not in pairs:
                    mine[self._ours[path], path[-1]].append(path)
            for path in theirs:
                if path[: len(other)] == other and path not in pairs.values():
                    others[self._theirs[path], path[-1]].append(path)
            for key, paths in mine.items():
                if len(paths) == len(others[key]) == 1:
                    pairs[paths[0]] = others[key][0]


def _blocks(tensors: Mapping[str, Shape]) -> dict[Path, Shape]:
    """Puts a field in the place of each number; blocks of different shapes stay apart."""
    groups: dict[Path, list[tuple[Path, Shape]]] = defaultdict(list)
    for name, shape in tensors.items():
        parts = tuple(name.split("."))
        fields = (f"{{{letter}}}" for letter in itertools.chain("nmkjihg", itertools.repeat("f")))
        key = tuple(next(fields) if part.isdigit() else part for part in parts)
        groups[key].append((parts, shape))
    found: dict[Path, Shape] = {}
    for key, members in groups.items():
        if len({shape for _, shape in members}) == 1:
            found[key] = members[0][1]
        else:
            found |= dict(members)
    return found


def _plain(path: Path) -> Path:
    return tuple(re.sub(r"[^a-z0-9{}]", "", part.lower()) for part in path)


def _by_words(path: Path) -> Path:
    return tuple(_KNOWN.get(part, part) for part in _plain(path))


def _rules(pairs: Mapping[Path, Path]) -> dict[str, str]:
    """Makes rules for modules of pairs of tensors; what follows from a shorter one is left out."""
    wanted: dict[Path, Path] = {}
    for ours, theirs in pairs.items():
        same = 0
        while same < min(len(ours), len(theirs)) and ours[-1 - same] == theirs[-1 - same]:
            same += 1
        same = min(same, max(len(ours), len(theirs)) - 1)
        fields = {part for part in theirs if part.startswith("{")}
        while same and fields - {*ours[: len(ours) - same]} & {*theirs[: len(theirs) - same]}:
            same -= 1
        wanted[ours[: len(ours) - same]] = theirs[: len(theirs) - same]
    kept: dict[Path, Path] = {}
    for ours, theirs in sorted(wanted.items(), key=lambda item: len(item[0])):
        above = next((n for n in range(len(ours), -1, -1) if ours[:n] in kept), None)
        expected = ours if above is None else (*kept[ours[:above]], *ours[above:])
        if expected != theirs:
            kept[ours] = theirs
    return {_text(theirs): _text(ours) for ours, theirs in kept.items()}


def _text(path: Sequence[str]) -> str:
    return ".".join(path)
