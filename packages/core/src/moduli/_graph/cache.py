"""The structure cache: each root keeps the flatten of the graph below it.

``flat_of(root)`` is the one way to flatten a root. While nothing structural happened anywhere (one
comparison) or to any object of this graph (one cheap pass), it returns the same Flat; when only
static attributes changed, the Flat is brought up to date. The cache lives on the root, so it dies
with it. ``flats_of(roots)`` does the same for several roots, which may share objects.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

from moduli._base.node import Node
from moduli._base.static_keys import metadata_key
from moduli._graph.flat import Flat
from moduli._graph.flatten import flatten_roots
from moduli._graph.graphdef import GraphDef
from moduli._graph.holders import identity
from moduli._variable.box import Variable

__all__ = ["Joint", "flat_of", "flats_of"]


def flat_of(root: Any) -> Flat:
    """Returns the flattened graph below a node or Variable, from the cache while it holds.

    Args:
      root: a node or a Variable.

    Returns:
      The Flat of this single root.
    """
    if isinstance(root, Node):
        book = root._moduli
        flat = book.flat
        if flat is not None and (flat.is_current() or flat.revise()):
            return flat
        book.flat = flat = flatten_roots((root,)).let_go_of_root()
        return flat
    return flatten_roots((root,))


class Joint:
    """Several roots flattened together, from what is cached for each.

    Attributes:
      graphdef: their joint structure.
      holders: as of Flat.
      objects: as of Flat.
    """

    __slots__ = ("graphdef", "holders", "objects")

    def __init__(self, graphdef: GraphDef, holders: list[Any], objects: list[Any]):
        self.graphdef, self.holders, self.objects = graphdef, holders, objects


def flats_of(roots: Sequence[Any]) -> tuple[Any, ...]:
    """Flattens the roots of a call.

    Args:
      roots: nodes and Variables, in order.

    Returns:
      Flats and Joints whose roots are, one after the other, ``roots``: each node on its own,
      Variables that follow each other together; or one for all, if roots share objects.
    """
    if len(roots) == 1:
        return (flat_of(roots[0]),)
    flats: list[Any] = []
    variables: list[Any] = []
    for root in roots:
        if isinstance(root, Node):
            if variables:
                flats.append(variables)
                variables = []
            flats.append(flat_of(root))
        else:
            variables.append(root)
    if variables:
        flats.append(variables)
    if not any(isinstance(item, list) for item in flats):
        return _together(roots, tuple(flats))
    if not _are_apart(flats):
        return (flatten_roots(roots),)
    return tuple([_join_variables(item) if isinstance(item, list) else item for item in flats])


def _are_apart(items: list[Any]) -> bool:
    """Returns whether runs of Variables and Flats share no object."""
    seen: set[int] = set()
    for item in items:
        if isinstance(item, list):
            for variable in item:
                if id(variable) in seen:
                    return False
                seen.add(id(variable))
    flats = [item for item in items if not isinstance(item, list)]
    if not all(seen.isdisjoint(flat.ids) for flat in flats):
        return False
    return len(flats) < 2 or _relation(tuple(flats), None) is True


_variable_graphs: dict[Any, GraphDef] = {}


def _join_variables(variables: list[Variable[Any]]) -> Any:
    """Flattens distinct Variables; the structure of equal kinds is found in a table."""
    kinds: Any = tuple([v.__class__ for v in variables])
    if any(v._metadata for v in variables):
        kinds = tuple(
            [(v.__class__, metadata_key(dict(sorted(v._metadata.items())))) for v in variables]
        )
    graphdef = _variable_graphs.get(kinds)
    if graphdef is None:
        graphdef = flatten_roots(variables).graphdef
        if len(_variable_graphs) >= 256:
            _variable_graphs.clear()
        _variable_graphs[kinds] = graphdef
    return Joint(graphdef, variables, variables)


class _Recipe:
    """How to make the Joint of Flats that share objects: where its holders and objects stand."""

    __slots__ = ("graphdef", "graphdefs", "holders", "objects")

    def __init__(self, roots: Sequence[Any], flats: tuple[Flat, ...]):
        joint = flatten_roots(roots)
        holders = {
            identity(holder): (number, index)
            for number, flat in enumerate(flats)
            for index, holder in enumerate(flat.holders)
        }
        objects = {
            id(item): (number, index)
            for number, flat in enumerate(flats)
            for index, item in enumerate(flat.objects)
        }
        self.graphdef = joint.graphdef
        self.graphdefs = [flat.graphdef for flat in flats]
        self.holders = [holders[identity(holder)] for holder in joint.holders]
        self.objects = [objects[id(item)] for item in joint.objects]

    def is_current(self, flats: tuple[Flat, ...]) -> bool:
        """Returns whether no static attribute has changed since."""
        pairs = zip(self.graphdefs, flats, strict=True)
        return all(graphdef is flat.graphdef for graphdef, flat in pairs)

    def make(self, flats: tuple[Flat, ...]) -> Joint:
        """Makes the Joint."""
        every = [flat.holders for flat in flats]
        objects = [flat.objects for flat in flats]
        return Joint(
            self.graphdef,
            [every[number][index] for number, index in self.holders],
            [objects[number][index] for number, index in self.objects],
        )


def _together(roots: Sequence[Any], flats: tuple[Flat, ...]) -> tuple[Any, ...]:
    relation = _relation(flats, roots)
    return flats if relation is True else (relation.make(flats),)


def _relation(flats: tuple[Flat, ...], roots: Sequence[Any] | None) -> Any:
    """True if graphs share no object, else the recipe for their Joint (None without roots).

    Remembered on the first of them, without keeping the others alive.
    """
    first = flats[0]
    key = tuple(map(id, flats))
    known = first.partners.get(key)
    if known is not None:
        refs, answer = known
        for ref, flat in zip(refs, flats, strict=True):
            if ref() is not flat:
                break
        else:
            if answer is True or (answer is not None and answer.is_current(flats)):
                return answer
    total = sum(len(flat.ids) for flat in flats)
    answer = True
    if len(frozenset().union(*[flat.ids for flat in flats])) != total:
        if roots is None:
            return None
        answer = _Recipe(roots, flats)
    if len(first.partners) >= 64:
        first.partners.clear()
    first.partners[key] = (tuple([weakref.ref(flat) for flat in flats]), answer)
    return answer
