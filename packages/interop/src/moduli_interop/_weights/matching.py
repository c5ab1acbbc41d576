"""Pairs the modules of two models by what they are called and the shapes of their tensors."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

__all__ = ["Pairing", "Part", "is_like", "match", "parts_of"]

Path = tuple[str, ...]
Shape = tuple[int, ...]

_SYNONYMS = {  # words, and how parts of names without separators say them
    "query": "q qproj wq queryproj qlin",
    "key": "k kproj wk keyproj klin",
    "value": "v vproj wv valueproj vlin",
    "out": "o oproj outproj wo outputproj outlin proj",
    "attention": "attn selfattn selfattention mha",
    "embed": "embedding embeddings embedtokens tokembeddings wte wordembeddings tokenembedding",
    "position": "positionembeddings wpe posembed positionembedding posembedding pos",
    "norm": "ln layernorm rmsnorm normalization",
    "norm 1": "norm1 ln1 layernorm1 inputlayernorm attentionnorm attnnorm layernormbefore prenorm",
    "norm 2": "norm2 ln2 layernorm2 postattentionlayernorm ffnnorm ffnorm mlpnorm layernormafter",
    "norm final": "normf lnf finalnorm finallayernorm normfinal outputnorm",
    "query norm": "queryln qnorm qlayernorm querynorm qln",
    "key norm": "keyln knorm klayernorm keynorm kln",
    "layers": "layer blocks block h",
    "mlp": "ffn feedforward ff",
    "gate": "gateproj w1",
    "up": "upproj w3 fc1 cfc lin1",
    "down": "downproj w2 fc2 cproj lin2",
    "head": "lmhead output classifier fc unembed",
    "patch": "patchembed patchembedding patchembeddings",
    "class": "cls clstoken classtoken classembedding",
}
_KNOWN = {
    word: tuple(name.split())
    for name, words in _SYNONYMS.items()
    for word in (name.replace(" ", ""), *words.split())
}
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")


@dataclasses.dataclass(frozen=True)
class Part:
    """A module with tensors, or a tensor with a name of its own; of repeated ones all together.

    Attributes:
      path: its path, with a field in the place of each number.
      leaves: the shapes of its tensors by name; by ``""`` if it is one.
      numbers: what stands at the fields.
    """

    path: Path
    leaves: Mapping[str, Shape]
    numbers: frozenset[Path]

    @functools.cached_property
    def words(self) -> tuple[str, ...]:
        """The words of its path, one for several that are used for one thing."""
        return _all_words(self.path)

    @property
    def own(self) -> frozenset[str]:
        """The words of its own name."""
        return frozenset(_own(self.path))

    @property
    def text(self) -> str:
        """Its path, with the tensor's name if it has but one."""
        only = next(iter(self.leaves)) if len(self.leaves) == 1 else ""
        return ".".join((*self.path, only) if only else self.path)

    def fits(self, other: Part) -> bool:
        """Returns whether the tensors of one are among those of the other."""
        mine, theirs = self.leaves, other.leaves
        shared = mine.keys() & theirs.keys()
        return (
            len(shared) in (len(mine), len(theirs))
            and self.numbers == other.numbers
            and all(mine[leaf] == theirs[leaf] for leaf in shared)
        )


@dataclasses.dataclass
class Pairing:
    """What is called what.

    Attributes:
      pairs: for parts of ours those of theirs.
      ours: parts of ours that are left, each with those that it could be, the likeliest first.
      theirs: parts of theirs that are left.
    """

    pairs: list[tuple[Part, Part]]
    ours: list[tuple[Part, list[Part]]]
    theirs: list[Part]


def is_like(names: Iterable[str]) -> Callable[[str], bool]:
    """Makes a function that returns whether some name is like one that is given.

    Args:
      names: the names of a source.
    """
    owners: dict[str, set[str]] = defaultdict(set)
    for name in names:
        *path, leaf = name.split(".")
        owners[leaf] |= set(_own(path))

    def like(name: str) -> bool:
        *path, leaf = name.split(".")
        if leaf not in owners:
            return False
        return leaf not in ("weight", "bias") or not owners[leaf].isdisjoint(_own(path))

    return like


def parts_of(tensors: Mapping[str, Shape], shared: Iterable[str]) -> list[Part]:
    """Puts tensors together that are of one module, and modules that are repeated.

    Args:
      tensors: the shapes by name.
      shared: the last parts of names that both models have; a tensor with another one is a part.
    """
    leaves: dict[Path, dict[str, Shape]] = defaultdict(dict)
    numbers: dict[Path, set[Path]] = defaultdict(set)
    ends = set(shared)
    for name, fields in _with_fields(tensors).items():
        path, leaf = (fields[:-1], fields[-1]) if fields[-1] in ends else (fields, "")
        leaves[path][leaf] = tensors[name]
        given = name.split(".")
        numbers[path].add(tuple(n for n, part in zip(given, fields, strict=True) if part != n))
    return [Part(path, leaves[path], frozenset(numbers[path])) for path in leaves]


def match(ours: Sequence[Part], theirs: Sequence[Part]) -> Pairing:
    """Pairs the parts of two models.

    First those of equal names. Then, as long as there are any, those of which each is more like the
    other than like anything else that has such tensors, and has a word in common with it; and those
    of which neither could be anything else.
    """
    names = {part.path: part for part in theirs}
    pairs = [(part, names[part.path]) for part in ours if part.path in names]
    pairs = [(mine, other) for mine, other in pairs if mine.fits(other)]
    while True:
        taken = {id(part) for pair in pairs for part in pair}
        mine = [part for part in ours if id(part) not in taken]
        others = [part for part in theirs if id(part) not in taken]
        could_be = {id(part): [other for other in others if part.fits(other)] for part in mine}
        parents = _parents(pairs)
        new = list(_best(mine, could_be, parents)) or list(_only(mine, could_be))
        if not new:
            left = [(part, could_be[id(part)]) for part in mine]
            for part, found in left:
                found.sort(key=functools.partial(_unlikeness, parents, part))
            return Pairing(pairs, left, others)
        pairs += new


def _best(
    mine: list[Part], could_be: Mapping[int, list[Part]], parents: Mapping[Path, Path]
) -> Iterator[tuple[Part, Part]]:
    """Yields the pairs of which each is the best for the other."""
    back: dict[int, list[tuple[float, Part]]] = defaultdict(list)
    forth: dict[int, list[tuple[float, Part]]] = {}
    for part in mine:
        scored = [(_likeness(part, other, parents), other) for other in could_be[id(part)]]
        forth[id(part)] = scored
        for score, other in scored:
            back[id(other)].append((score, part))
    for part in mine:
        other = _first(forth[id(part)])
        if other is None or _first(back[id(other)]) is not part:
            continue
        near = part.own & _last(other) or other.own & _last(part)
        if near:
            yield part, other


def _first(scored: list[tuple[float, Part]]) -> Part | None:
    """Returns the one with the highest score; None if two have it."""
    if not scored:
        return None
    best = max(score for score, _ in scored)
    found = [part for score, part in scored if score > best - 1e-9]
    return found[0] if len(found) == 1 and best > 0 else None


def _only(mine: list[Part], could_be: Mapping[int, list[Part]]) -> Iterator[tuple[Part, Part]]:
    """Yields the pairs of which neither could be anything else."""
    count: dict[int, int] = defaultdict(int)
    for part in mine:
        for other in could_be[id(part)]:
            count[id(other)] += 1
    for part in mine:
        found = could_be[id(part)]
        if len(found) == 1 and count[id(found[0])] == 1:
            yield part, found[0]


def _parents(pairs: Iterable[tuple[Part, Part]]) -> dict[Path, Path]:
    """Returns what modules above pairs are called, where all pairs below say the same."""
    said: dict[Path, set[Path]] = defaultdict(set)
    for part, other in pairs:
        for end in range(1, min(len(part.path), len(other.path))):
            said[part.path[:-end]].add(other.path[:-end])
    return {path: next(iter(found)) for path, found in said.items() if len(found) == 1}


def _likeness(one: Part, other: Part, parents: Mapping[Path, Path]) -> float:
    """How much one is called as the other is, more than 1 where they stand in one known module."""
    for at in range(len(one.path) - 1, 0, -1):
        above = parents.get(one.path[:at])
        if above is not None:
            if other.path[: len(above)] != above:
                break
            return 1.25 + _common(_all_words(one.path[at:]), _all_words(other.path[len(above) :]))
    return _common(one.words, other.words)


@functools.lru_cache(maxsize=1 << 16)
def _common(one: tuple[str, ...], other: tuple[str, ...]) -> float:
    """How many of all words two paths have in common, in order; and whether they end in one."""
    row = [0] * (len(other) + 1)
    for word in one:
        before = row
        row = [0]
        for at, given in enumerate(other):
            row.append(before[at] + 1 if word == given else max(before[at + 1], row[at]))
    ends = 0.25 if one and one[-1:] == other[-1:] else 0.0
    return 2 * row[-1] / (len(one) + len(other) or 1) + ends


@functools.lru_cache(maxsize=1 << 14)
def _all_words(path: Path) -> tuple[str, ...]:
    return tuple(word for part in path for word in _words(part))


def _unlikeness(parents: Mapping[Path, Path], one: Part, other: Part) -> float:
    return -_likeness(one, other, parents)


def _last(part: Part) -> set[str]:
    return {word for text in part.path[-2:] if not text.startswith("{") for word in _words(text)}


def _own(path: Sequence[str]) -> tuple[str, ...]:
    """The words of the last part of a path that is no number."""
    for part in reversed(path):
        if not (part.isdigit() or part.startswith("{")):
            return _words(part)
    return ()


@functools.lru_cache(maxsize=4096)
def _words(part: str) -> tuple[str, ...]:
    if part.startswith("{"):
        return ("{}",)
    known = _KNOWN.get(re.sub(r"[^a-z0-9]", "", part.lower()))
    if known is not None:
        return known
    words = [word.lower() for word in _WORD.findall(part)]
    return tuple(each for word in words for each in _KNOWN.get(word, (word,)))


def _with_fields(tensors: Mapping[str, Shape]) -> dict[str, Path]:
    """Puts a field in the place of each number of repeated modules; others keep theirs."""
    found: dict[str, Path] = {}

    def visit(names: list[tuple[str, Path]], path: Path, depth: int) -> None:
        below: dict[str, list[tuple[str, Path]]] = defaultdict(list)
        for name, rest in names:
            if rest:
                below[rest[0]].append((name, rest[1:]))
            else:
                found[name] = path
        numbered = [part for part in below if part.isdigit()]
        if numbered and _repeated([below[part] for part in numbered], tensors):
            together = [item for part in numbered for item in below[part]]
            visit(together, (*path, f"{{{_LETTERS[min(depth, 7)]}}}"), depth + 1)
            below = {part: below[part] for part in below if part not in numbered}
        for part, items in below.items():
            visit(items, (*path, part), depth)

    visit([(name, tuple(name.split("."))) for name in tensors], (), 0)
    return found


_LETTERS = "nmkjihgf"


def _repeated(modules: list[list[tuple[str, Path]]], tensors: Mapping[str, Shape]) -> bool:
    """Returns whether modules have mostly the same tensors, and these the same shapes."""
    shapes: dict[Path, Shape] = {}
    kinds = []
    for module in modules:
        kinds.append({rest for _, rest in module})
        for name, rest in module:
            if shapes.setdefault(rest, tensors[name]) != tensors[name]:
                return False
    largest = max(kinds, key=len)
    return all(2 * len(kind & largest) >= len(largest) for kind in kinds)
