"""The tensors that a model is made of elsewhere, as its layers declare them."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import moduli
from moduli.errors import format_path
from moduli_interop._weights.errors import NameMapError
from moduli_interop._weights.name_map import NameMap
from moduli_interop._weights.templates import INDEX
from moduli_interop._weights.variables import Place, places, shape_dtype

__all__ = ["Target", "targets"]


@dataclasses.dataclass(frozen=True)
class Plain:
    """The tensor of a Variable that no layer declares: it is called and laid out as here."""

    of: str
    optional: bool = False

    paths = property(lambda self: (self.of,))
    zero = ()
    part = None
    offset = 0.0

    def shape(self, shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
        """The same shape."""
        return shapes[0]

    def to_theirs(self, arrays: Sequence[Any]) -> Any:
        """The same array."""
        return arrays[0]

    def to_ours(self, array: Any, shapes: Sequence[Any]) -> list[Any]:
        """The same array."""
        return [array]


@dataclasses.dataclass(frozen=True)
class Target:
    """A tensor of theirs that holds Variables of a model, or several for several blocks.

    Attributes:
      names: its name; for Variables with axes of several blocks, the names in the blocks' order.
      tensor: how it is made of the Variables.
      places: the Variables' places, one for each path of the tensor.
      blocks: the sizes of the Variables' first axes that number blocks.
      renamed: how specific the rule of the map was.
      module: whether that rule names a module, not the tensor.
      called: what it is called here, in the words of its layer.
    """

    names: tuple[str, ...]
    tensor: Any
    places: tuple[Place, ...]
    blocks: tuple[int, ...]
    renamed: tuple[int, ...] = ()
    module: bool = False
    called: tuple[str, ...] = ()

    @property
    def ours(self) -> str:
        """The Variables' paths, as text."""
        return ", ".join(format_path(place.path) for place in self.places)

    @property
    def optional(self) -> bool:
        """Whether a source may lack it."""
        return self.tensor.optional

    def shapes(self) -> list[tuple[int, ...]]:
        """Returns the shapes of the Variables' values in one block."""
        whole = [shape_dtype(place.value)[0] for place in self.places]
        return [shape[len(self.blocks) :] for shape in whole]


def targets(
    model: Any, names: NameMap, present: Callable[[str], bool] | None = None
) -> tuple[list[Target], set[str]]:
    """Lists the tensors of a model.

    Args:
      model: the model.
      names: what its modules are called elsewhere.
      present: returns whether a source has a tensor, to choose among a layer's ways to name its
        tensors; None chooses the one that is written.

    Returns:
      The tensors; and names of others that a source may have, and that are not needed.
    """
    root = places(model)
    walker = _Walker(root, names, present)
    return walker.run()


class _Walker:
    def __init__(self, root: Place, names: NameMap, present: Callable[[str], bool] | None):
        self._root, self._names, self._present = root, names, present
        self._explicit: set[tuple[Any, ...]] = set()

    def run(self) -> tuple[list[Target], set[str]]:
        explicit = [target for rule in self._names.tensors for target in self._described(rule)]
        self._explicit = {place.path for target in explicit for place in target.places}
        found, ignored = self._visit(self._root, (), ())
        return [*explicit, *found], ignored

    def _described(self, rule: Any) -> Iterator[Target]:
        """Yields the tensors of a rule with a Tensor, one for each value of its fields."""
        seen = {name: (place, blocks) for name, place, blocks in self._seen(self._root, (), ())}
        whole = [tuple(name.split(".")) for name in seen]
        count = 0
        for name in whole:
            bound = rule.ours[0].match(name)
            if bound is None or len(name) != len(rule.ours[0].parts):
                continue
            paths = [".".join(template.fill(bound)) for template in rule.ours]
            if any(path not in seen for path in paths):
                if rule.tensor.optional:
                    continue
                missing = next(path for path in paths if path not in seen)
                raise NameMapError(
                    f"the rule for {rule.theirs.text!r} names {missing!r}, which is no Variable of "
                    "the model"
                )
            places_of = [seen[path][0] for path in paths]
            blocks = seen[paths[0]][1]
            if rule.stacked is not None:
                blocks = (*blocks, shape_dtype(places_of[0].value)[0][len(blocks)])
                bound = {**bound, rule.stacked: f"\0{len(blocks) - 1}\0"}
            count += 1
            theirs = ".".join(rule.theirs.fill(bound))
            yield Target(_expanded(theirs, blocks), rule.tensor, tuple(places_of), blocks, (99, 99))
        if not count and not rule.tensor.optional:
            raise NameMapError(
                f"the rule for {rule.theirs.text!r} names {rule.ours[0].text!r}, and the model has "
                "no such Variable; optional=True is for a Tensor that not every model has"
            )

    def _seen(
        self, place: Place, parts: tuple[str, ...], blocks: tuple[int, ...]
    ) -> Iterator[tuple[str, Place, tuple[int, ...]]]:
        """Yields the Variables by their paths, with the marks of blocks in stacks."""
        if place.is_variable:
            yield ".".join(parts), place, blocks
            return
        ways = _ways(place.value)
        stacked = ways[0].stacked if ways else ()
        for name, child in place.children.items():
            if name in stacked:
                size = _size(child, len(blocks))
                mark = f"\0{len(blocks)}\0"
                yield from self._seen(child, (*parts, mark), (*blocks, size))
            yield from self._seen(child, (*parts, name), blocks)

    def _visit(
        self, place: Place, parts: tuple[str, ...], blocks: tuple[int, ...]
    ) -> tuple[list[Target], set[str]]:
        """Lists the tensors at and below a place, by the way of naming that fits best."""
        if place.is_variable:
            needed = isinstance(place.value, (moduli.Param, moduli.BatchStat))
            tensor = Plain(format_path(place.path), optional=not needed)
            return [self._target(parts[:-1], parts[-1], tensor, (place,), blocks)], set()
        ways = [*_ways(place.value)]
        declares = any(way.tensors for way in ways)
        if not ways or (declares and any(c.children for c in place.children.values())):
            ways.append(_PARTS)
        best: tuple[list[Target], set[str]] | None = None
        best_score: tuple[Any, ...] = ()
        ignored: set[str] = set()
        for way in ways:
            found, names = self._by(way, place, parts, blocks)
            ignored |= names
            score = self._score(found, len(parts))
            if best is None or score > best_score:
                best, best_score = (found, names), score
        assert best is not None
        return best[0], ignored

    def _by(
        self, way: Any, place: Place, parts: tuple[str, ...], blocks: tuple[int, ...]
    ) -> tuple[list[Target], set[str]]:
        """Lists the tensors below a place by one way of naming them."""
        below = dict(place.variables())
        covered, found = set[tuple[Any, ...]](self._explicit), []
        for name, tensor in way.tensors.items():
            there = [below.get(path) for path in tensor.paths]
            if any(one is None or one.path in self._explicit for one in there):
                continue
            variables = tuple(one for one in there if one is not None)
            found.append(self._target(parts, name, tensor, variables, blocks))
            covered |= {one.path for one in variables}
        ignored = {".".join(self._names.rename((*parts, *n.split("."))).parts) for n in way.ignored}
        if blocks:
            ignored = {name for text in ignored for name in _expanded(text, blocks)}
        for name, child in place.children.items():
            if name in way.derived or all(one.path in covered for _, one in child.variables()):
                continue
            inner, deeper = way.children.get(name, name), blocks
            if name in way.stacked:
                inner, deeper = f"\0{len(blocks)}\0", (*blocks, _size(child, len(blocks)))
            path = (*parts, *inner.split(".")) if inner else parts
            more, names = self._visit(child, path, deeper)
            found += [t for t in more if not all(one.path in covered for one in t.places)]
            ignored |= names
        return found, ignored

    def _score(self, found: list[Target], depth: int) -> tuple[Any, ...]:
        """Ranks a way of naming: by what a source has of it, then by what the map says of it."""
        there = 0
        if self._present is not None:
            there = sum(self._present(name) for target in found for name in target.names)
        deeper = [target for target in found if target.renamed[:1] > (depth,)]
        modules = bool(deeper) and all(target.module for target in deeper)
        return there, modules, max((target.renamed for target in deeper), default=())

    def _target(
        self,
        parts: tuple[str, ...],
        name: str,
        tensor: Any,
        variables: tuple[Place, ...],
        blocks: tuple[int, ...],
    ) -> Target:
        """Finds what a tensor is called elsewhere."""
        renamed = self._names.rename((*parts, *name.split(".")))
        candidates = []
        if len(variables) == 1:  # a rule may name the Variable itself
            candidates.append(tuple(map(str, variables[0].path)))
            candidates.append((*parts, *tensor.paths[0].split(".")))
        for candidate in candidates:
            other = self._names.rename(candidate, whole=True)
            if other.specificity > renamed.specificity:
                renamed = other
        real = self._names.rename(tuple(map(str, variables[0].path)))
        if not renamed.specificity and real.specificity and not isinstance(tensor, Plain):
            # a rule names a module by its attributes: ``net.layers.0`` in place of ``net.0``
            depth = len(variables[0].path) - len(tensor.paths[0].split("."))
            module = tuple(map(str, variables[0].path[:depth]))
            renamed = self._names.rename((*module, *name.split(".")))
        if renamed.stacked:
            blocks = (*blocks, shape_dtype(variables[0].value)[0][len(blocks)])
        text = ".".join(renamed.parts)
        return Target(
            _expanded(text, blocks),
            tensor,
            variables,
            blocks,
            renamed.specificity,
            renamed.module,
            (*parts, *name.split(".")),
        )


@dataclasses.dataclass(frozen=True)
class _Way:
    """What stands for a layer's ``TensorNames``, of which nothing is imported here."""

    tensors: Any = dataclasses.field(default_factory=dict)
    children: Any = dataclasses.field(default_factory=dict)
    stacked: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    derived: tuple[str, ...] = ()


_PARTS = _Way()


def _ways(module: Any) -> Sequence[Any]:
    """Returns the ways to name a module's tensors that it declares."""
    declared = getattr(module, "torch_names", None)
    if declared is not None:
        return declared if isinstance(declared, (tuple, list)) else (declared,)
    counterpart = getattr(module, "torch_counterpart", None)
    return () if counterpart is None else (_Way(counterpart.tensors),)


def _size(place: Place, axis: int) -> int:
    for _, one in place.variables():
        return shape_dtype(one.value)[0][axis]
    return 0


def _expanded(text: str, blocks: tuple[int, ...]) -> tuple[str, ...]:
    """Fills in the blocks' numbers."""
    if not blocks:
        return (text,)
    return tuple(_numbered(text, each) for each in itertools.product(*map(range, blocks)))


def _numbered(text: str, numbers: Sequence[int]) -> str:
    return INDEX.sub(lambda found: str(numbers[int(found[1])]), text)
