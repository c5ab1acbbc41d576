"""The arguments of a call, taken apart: which of them are modules, and what is left besides values.

:func:`bind` finds the modules and Variables among the arguments (*roots*), takes their cached
flatten, and leaves the other arguments as they are. What is left of the call besides values is its
*signature*: hashable, equal for calls that may share a compiled program.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from moduli._base.closed_over import ACTIVE, note_holders
from moduli._base.compat import Tracer
from moduli._base.node import Node
from moduli._call.recorded_values import RecordedValues, name_of_records
from moduli._graph.cache import flats_of
from moduli._graph.data import is_graph_leaf
from moduli._graph.flat import Flat
from moduli._recording.recording import RecordingKey, recordings
from moduli._variable.box import Variable

__all__ = ["PASS", "ROOT", "Binding", "bind", "is_plain", "owners", "plain_types", "read_value"]

PASS, ROOT, TREE = range(3)
_LEAF_TYPES = (
    jax.Array,
    Tracer,
    np.ndarray,
    np.generic,
    int,
    float,
    complex,
    str,
    bytes,
    type(None),
)
plain_types: set[type] = set()  # the classes seen so far whose instances go straight to JAX
read_value = operator.attrgetter("_value")


def _mark(value: Any) -> int:
    if isinstance(value, (Node, Variable)):
        return ROOT
    return PASS if is_plain(value) else TREE


def is_plain(value: Any) -> bool:
    """Returns whether a value goes straight to JAX; False if that takes a closer look."""
    cls = value.__class__
    if cls in plain_types:
        return True
    if cls is dict:
        return all(map(is_plain, value.values()))
    if cls is tuple or cls is list:
        return all(map(is_plain, value))
    if isinstance(value, _LEAF_TYPES):
        plain_types.add(cls)
        return True
    return False


class Binding:
    """The arguments of one call, taken apart.

    Attributes:
      template: for each argument how to put it together again (part of the signature).
      names: the names of the keyword arguments, sorted.
      roots: the modules and Variables found, in order.
      flats: their flattened graphs: one each, or one for all of them if they share objects.
      plain: the other arguments and parts of arguments, in order.
      recordings: what the program has to know of the recordings that are running. Those that keep
        values have a node each among the roots, the last ones, as keyword arguments that the
        function never sees.
    """

    __slots__ = ("flats", "names", "plain", "recordings", "roots", "template")

    def __init__(
        self,
        template: tuple[Any, ...],
        names: tuple[str, ...],
        roots: list[Any],
        flats: tuple[Flat, ...],
        plain: list[Any],
        running: tuple[RecordingKey, ...],
    ):
        self.template, self.names, self.roots = template, names, roots
        self.flats, self.plain, self.recordings = flats, plain, running

    @property
    def signature(self) -> tuple[Any, ...]:
        """What calls must have in common to share a compiled program."""
        graphdefs = [flat.graphdef for flat in self.flats]
        if self.recordings:
            return (self.template, self.names, *graphdefs, self.recordings)
        return (self.template, self.names, *graphdefs)

    @property
    def keeps_records(self) -> bool:
        """Whether what is recorded inside has to be handed out."""
        return any(key.keeps for key in self.recordings)

    def values(self) -> list[list[Any]]:
        """The values of all graphs, a list for each of ``flats``."""
        return [list(map(read_value, flat.holders)) for flat in self.flats]


def bind(args: Sequence[Any], kwargs: Mapping[str, Any], *, recorded: bool = True) -> Binding:
    """Takes the arguments of a call apart.

    Args:
      args: positional arguments: modules, Variables, arrays, and any pytree of these.
      kwargs: keyword arguments, likewise.
      recorded: whether the recordings that are running take part.

    Returns:
      The Binding.

    Example:
      >>> import moduli as nnx
      >>> from moduli import lowlevel
      >>> model = nnx.Dict({"w": nnx.Param(2.0)})
      >>> binding = lowlevel.bind((model, 3.0), {})
      >>> binding.values(), binding.plain
      ([[2.0]], [3.0])
      >>> frame = lowlevel.Frame(lowlevel.Signature(binding), [[5.0]], [7.0])
      >>> copy, number = frame.args
      >>> copy["w"].value, number, copy is model
      (5.0, 7.0, False)
    """
    template: list[Any] = []
    roots: list[Any] = []
    plain: list[Any] = []
    names: tuple[str, ...] = ()
    if kwargs:
        names = tuple(sorted(kwargs))
        args = (*args, *[kwargs[name] for name in names])
    for arg in args:
        kind = PASS if arg.__class__ in plain_types else _mark(arg)
        if kind == PASS:
            plain.append(arg)
        elif kind == ROOT:
            roots.append(arg)
        else:
            kind = _bind_tree(arg, roots, plain)
        template.append(kind)
    running = recordings()
    if not (running and recorded):
        flats = flats_of(roots) if roots else ()
        if ACTIVE:
            note_holders(flats)
        return Binding(tuple(template), names, roots, flats, plain, ())
    for number, recording in enumerate(running):
        if recording.keeps:
            records = RecordedValues()
            records.give(recording.given_inside())
            recording.await_records(records)
            roots.append(records)
            template.append(ROOT)
            names += (name_of_records(number),)
    flats = flats_of(roots) if roots else ()
    if ACTIVE:
        note_holders(flats)
    keys = tuple([recording.key(flat.objects for flat in flats) for recording in running])
    return Binding(tuple(template), names, roots, flats, plain, keys)


def owners(template: Sequence[Any]) -> tuple[list[int], list[int]]:
    """Returns to which argument each module or Variable of a call belongs, and each other part.

    Args:
      template: of a Binding.
    """
    found: tuple[list[int], list[int]] = ([], [])
    for number, mark in enumerate(template):
        for is_root in mark[1] if isinstance(mark, tuple) else (bool(mark),):
            found[not is_root].append(number)
    return found


def _bind_tree(arg: Any, roots: list[Any], plain: list[Any]) -> Any:
    leaves, treedef = jax.tree.flatten(arg, is_leaf=is_graph_leaf)
    marks = tuple([is_graph_leaf(leaf) for leaf in leaves])
    if True not in marks:
        plain.append(arg)
        return PASS
    for leaf, is_root in zip(leaves, marks, strict=True):
        (roots if is_root else plain).append(leaf)
    return (treedef, marks)
