"""The one place where graphs of modules meet JAX.

A lifted call has four steps:

1. :func:`bind` finds the modules and Variables among the arguments (*roots*), takes their cached
   flatten, and leaves the other arguments as they are. What is left of the call besides values is
   its *signature*: hashable, equal for calls that may share a compiled program.
2. Inside the trace a :class:`Frame` rebuilds the arguments as fresh objects around the tracers. The
   caller's objects are out of reach, so an exception leaves them as they were.
3. ``Frame.finish`` compares what the function left behind with what it was given and writes the
   difference down as :class:`Effects`: which values were written, and, if the structure changed,
   the new structure. Effects are static; the values are outputs of the pure function.
4. ``Effects.apply`` does to the caller's own objects what the function did to the fresh ones, on
   every call that runs the program, also with other objects of equal structure.

A transform only says how the leaves are partitioned between steps 1 and 2.
"""

from __future__ import annotations

import collections
import operator
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from moduli._compat import Tracer
from moduli._graph.cache import flat_of
from moduli._graph.flatten import Flat, flatten_roots
from moduli._graph.graphdef import NODE, VARIABLE, GraphDef
from moduli._graph.nodes import Node, is_graph_leaf
from moduli._graph.unflatten import build, decode, fill
from moduli._variable import _EMPTY, Variable

__all__ = ["Binding", "Effects", "Frame", "Packed", "bind"]

_PASS, _ROOT, _TREE = range(3)
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
_pass_types: set[type] = set()  # the classes seen so far whose instances go straight to JAX
_write_value = Variable.__dict__["_value"].__set__
_read_value = operator.attrgetter("_value")
_exhaust = collections.deque(maxlen=0).extend  # runs an iterator at the speed of C


def _kind(value: Any) -> int:
    if isinstance(value, (Node, Variable)):
        return _ROOT
    if isinstance(value, _LEAF_TYPES):
        _pass_types.add(value.__class__)
        return _PASS
    return _TREE


class Binding:
    """The arguments of one call, taken apart.

    Attributes:
      template: for each argument how to put it together again (part of the signature).
      names: the names of the keyword arguments, sorted.
      roots: the modules and Variables found, in order.
      flats: their flattened graphs: one each, or one for all of them if they share objects.
      plain: the other arguments and parts of arguments, in order.
    """

    __slots__ = ("flats", "names", "plain", "roots", "template")

    def __init__(
        self,
        template: tuple[Any, ...],
        names: tuple[str, ...],
        roots: list[Any],
        flats: tuple[Flat, ...],
        plain: list[Any],
    ):
        self.template, self.names, self.roots = template, names, roots
        self.flats, self.plain = flats, plain

    @property
    def signature(self) -> tuple[Any, ...]:
        """What calls must have in common to share a compiled program."""
        return (self.template, self.names, *[flat.graphdef for flat in self.flats])

    def values(self) -> list[list[Any]]:
        """The values of all graphs, a list for each of ``flats``."""
        return [list(map(_read_value, flat.holders)) for flat in self.flats]


def bind(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Binding:
    """Takes the arguments of a call apart.

    Args:
      args: positional arguments: modules, Variables, arrays, and any pytree of these.
      kwargs: keyword arguments, likewise.

    Returns:
      The Binding.
    """
    template: list[Any] = []
    roots: list[Any] = []
    plain: list[Any] = []
    names: tuple[str, ...] = ()
    if kwargs:
        names = tuple(sorted(kwargs))
        args = (*args, *[kwargs[name] for name in names])
    for arg in args:
        kind = _PASS if arg.__class__ in _pass_types else _kind(arg)
        if kind == _PASS:
            plain.append(arg)
        elif kind == _ROOT:
            roots.append(arg)
        else:
            kind = _bind_tree(arg, roots, plain)
        template.append(kind)
    return Binding(tuple(template), names, roots, flatten_together(roots), plain)


def _bind_tree(arg: Any, roots: list[Any], plain: list[Any]) -> Any:
    leaves, treedef = jax.tree.flatten(arg, is_leaf=is_graph_leaf)
    marks = tuple([is_graph_leaf(leaf) for leaf in leaves])
    if True not in marks:
        plain.append(arg)
        return _PASS
    for leaf, is_root in zip(leaves, marks, strict=True):
        (roots if is_root else plain).append(leaf)
    return (treedef, marks)


def flatten_together(roots: Sequence[Any]) -> tuple[Flat, ...]:
    """Flattens roots: each on its own from its cache, or all in one if they share objects."""
    if not roots:
        return ()
    if len(roots) == 1:
        return (flat_of(roots[0]),)
    if not all(isinstance(root, Node) for root in roots):
        return (flatten_roots(roots),)
    flats = tuple([flat_of(root) for root in roots])
    return flats if _are_disjoint(flats) else (flatten_roots(roots),)


def _are_disjoint(flats: tuple[Flat, ...]) -> bool:
    """Says whether graphs share no object; remembered on the first of them."""
    first = flats[0]
    key = tuple(map(id, flats))
    known = first.partners.get(key)
    if known is not None:
        refs, answer = known
        for ref, flat in zip(refs, flats, strict=True):
            if ref() is not flat:
                break
        else:
            return answer
    objects = [id(item) for flat in flats for item in flat.objects]
    answer = len(set(objects)) == len(objects)
    if len(first.partners) >= 64:
        first.partners.clear()
    first.partners[key] = (tuple([weakref.ref(flat) for flat in flats]), answer)
    return answer


class Signature:
    """The part of a Binding that programs keep: how to rebuild the arguments from values."""

    __slots__ = ("graphdefs", "names", "template")

    def __init__(self, binding: Binding):
        self.template, self.names = binding.template, binding.names
        self.graphdefs = tuple([flat.graphdef for flat in binding.flats])


class Frame:
    """The fresh objects on which a function works while it is traced.

    Args:
      signature: from the Binding.
      values: the (traced) values of each graph.
      plain: the (traced) other arguments.

    Attributes:
      args: the rebuilt positional arguments.
      kwargs: the rebuilt keyword arguments.
    """

    def __init__(self, signature: Signature, values: Sequence[Sequence[Any]], plain: Sequence[Any]):
        self._graphdefs = signature.graphdefs
        self._values = values
        self._objects = [
            build(graphdef, group)
            for graphdef, group in zip(signature.graphdefs, values, strict=True)
        ]
        self._roots = [
            decode(code, objects, group)
            for graphdef, objects, group in zip(
                signature.graphdefs, self._objects, values, strict=True
            )
            for code in graphdef.roots
        ]
        roots, others = iter(self._roots), iter(plain)
        args = [_rebuild(mark, roots, others) for mark in signature.template]
        count = len(args) - len(signature.names)
        self.args = args[:count]
        self.kwargs = dict(zip(signature.names, args[count:], strict=True))

    def finish(self, out: Any, keep: Callable[[int], bool] = lambda group: False) -> Any:
        """Writes down what the function did.

        Args:
          out: what it returned: any pytree, modules and Variables included.
          keep: says of a graph (by number) that all its values must be outputs, written or not.

        Returns:
          A pair: the Effects, and the pytree of values that the pure function has to return.
        """
        leaves, treedef = jax.tree.flatten(out, is_leaf=is_graph_leaf)
        marks = tuple([is_graph_leaf(leaf) for leaf in leaves])
        if True in marks or not self._same_structure():
            return self._finish_changed(leaves, treedef, marks, keep)
        written: list[tuple[int, int]] = []
        outputs: list[Any] = []
        for number, group in enumerate(self._values):
            for index, (holder, value) in enumerate(zip(self._holders(number), group, strict=True)):
                if holder._value is not value or keep(number):
                    written.append((number, index))
                    outputs.append(holder._value)
        only_variables = all(None not in graphdef.leaf_objects for graphdef in self._graphdefs)
        return Effects(written, only_variables), (out, outputs)

    def _same_structure(self) -> bool:
        for graphdef, objects in zip(self._graphdefs, self._objects, strict=True):
            for index, item in enumerate(objects):
                if isinstance(item, Node):
                    if item._moduli.version:
                        return False
                elif item._metadata is not graphdef.metadatas.get(index, _EMPTY):
                    return False
        return True

    def _holders(self, number: int) -> Sequence[Any]:
        graphdef, objects = self._graphdefs[number], self._objects[number]
        owners = graphdef.leaf_objects
        if None not in owners:
            return [objects[index] for index in owners if index is not None]
        start = sum(len(earlier.roots) for earlier in self._graphdefs[:number])
        return flatten_roots(self._roots[start : start + len(graphdef.roots)]).holders

    def _finish_changed(
        self, leaves: list[Any], treedef: Any, marks: tuple[bool, ...], keep: Callable[[int], bool]
    ) -> Any:
        after = flatten_roots([*self._roots, *[x for x, m in zip(leaves, marks, strict=True) if m]])
        home = {
            id(item): (number, index)
            for number, objects in enumerate(self._objects)
            for index, item in enumerate(objects)
        }
        given = {
            id(value): (number, index)
            for number, group in enumerate(self._values)
            for index, value in enumerate(group)
        }
        origins = [home.get(id(item)) for item in after.objects]
        sources: list[tuple[int, int] | int] = []
        outputs: list[Any] = []
        for value in after.values():
            source: Any = given.get(id(value))
            if source is None or keep(source[0]):
                source = len(outputs)
                outputs.append(value)
            sources.append(source)
        effects = ChangedEffects(
            graphdef=after.graphdef,
            before=self._graphdefs,
            num_roots=len(self._roots),
            origins=origins,
            sources=sources,
            changed=[isinstance(item, Node) and item._moduli.version > 0 for item in after.objects],
            treedef=treedef,
            marks=marks,
        )
        plain = [leaf for leaf, is_object in zip(leaves, marks, strict=True) if not is_object]
        return effects, (plain, outputs)


def _rebuild(mark: Any, roots: Any, plain: Any) -> Any:
    if mark == _PASS:
        return next(plain)
    if mark == _ROOT:
        return next(roots)
    treedef, marks = mark
    return jax.tree.unflatten(treedef, [next(roots if is_root else plain) for is_root in marks])


def _picker(indices: list[int]) -> Callable[[Sequence[Any]], tuple[Any, ...]]:
    """Returns a function that picks these items of a sequence, always as a tuple."""
    if len(indices) == 1:
        only = indices[0]
        return lambda items: (items[only],)
    return operator.itemgetter(*indices)


class Effects:
    """What a traced function did to its arguments when it changed values alone.

    Args:
      written: (graph number, leaf index) of each written value, in the order of the outputs.
      only_variables: whether all of them are values of Variables.
    """

    __slots__ = ("__weakref__", "_groups", "_only_variables")

    def __init__(self, written: list[tuple[int, int]], only_variables: bool):
        self._only_variables = only_variables
        groups: dict[int, list[int]] = {}
        for number, index in written:
            groups.setdefault(number, []).append(index)
        self._groups = [(number, _picker(indices)) for number, indices in groups.items()]

    def apply(
        self,
        flats: tuple[Flat, ...],
        values: Sequence[Sequence[Any]],
        out: Any,
        outputs: Sequence[Any],
    ) -> Any:
        """Does the same to the caller's objects.

        Args:
          flats: of the call's Binding.
          values: the values that were passed in.
          out: first part of what the pure function returned.
          outputs: second part.

        Returns:
          What the call returns.
        """
        new = iter(outputs)
        for number, getter in self._groups:
            holders = getter(flats[number].holders)
            if self._only_variables:
                _exhaust(map(_write_value, holders, new))
            else:
                for holder, value in zip(holders, new, strict=False):
                    setattr(holder, "_value", value)  # noqa: B010 - a Slot or a Variable
        return out


class ChangedEffects:
    """What a traced function did when it changed the structure, or returned objects.

    Attributes:
      graphdef: the structure afterwards, with the returned objects as further roots.
      before: the structures that the call was given.
      num_roots: how many of the roots are arguments.
      origins: for each object afterwards the (graph, index) of the object it was before, or None.
      sources: for each value afterwards where it comes from: an input (graph, leaf), or the number
        of an output.
      changed: for each object afterwards whether it is a node with other items than before.
      treedef, marks: how the result is put together from plain outputs and returned objects.
    """

    __slots__ = (
        "__weakref__",
        "before",
        "changed",
        "graphdef",
        "marks",
        "num_roots",
        "origins",
        "sources",
        "treedef",
    )

    def __init__(
        self,
        *,
        graphdef: GraphDef,
        before: tuple[GraphDef, ...],
        num_roots: int,
        origins: list[tuple[int, int] | None],
        sources: list[tuple[int, int] | int],
        changed: list[bool],
        treedef: Any,
        marks: tuple[bool, ...],
    ):
        self.graphdef, self.before, self.num_roots = graphdef, before, num_roots
        self.origins, self.sources, self.changed = origins, sources, changed
        self.treedef, self.marks = treedef, marks

    def apply(
        self,
        flats: tuple[Flat, ...],
        values: Sequence[Sequence[Any]],
        plain: list[Any],
        outputs: list[Any],
    ) -> Any:
        """Does the same to the caller's objects; see :meth:`Effects.apply`."""
        new_values = [
            outputs[source] if isinstance(source, int) else values[source[0]][source[1]]
            for source in self.sources
        ]
        existing = {
            index: flats[origin[0]].objects[origin[1]]
            for index, origin in enumerate(self.origins)
            if origin is not None
        }
        objects = build(self.graphdef, new_values, existing)
        for index, target in existing.items():
            entry, origin = self.graphdef.objects[index], self.origins[index]
            assert origin is not None
            if entry[0] == VARIABLE:
                if self.sources[entry[3]] != self._leaf_before(origin):
                    _write_value(target, new_values[entry[3]])
                before = self.before[origin[0]].metadatas.get(origin[1], _EMPTY)
                metadata = self.graphdef.metadatas.get(index, _EMPTY)
                if metadata is not before and entry[2] != self._entry_before(origin)[2]:
                    target._set_all_metadata(metadata)
            elif self.changed[index]:
                fill(target, entry, objects, new_values)
                target._moduli.changed()
            else:
                self._write_arrays(target, entry, objects, new_values)
        roots = [decode(code, objects, new_values) for code in self.graphdef.roots]
        returned, others = iter(roots[self.num_roots :]), iter(plain)
        leaves = [next(returned if is_object else others) for is_object in self.marks]
        return jax.tree.unflatten(self.treedef, leaves)

    def _entry_before(self, origin: tuple[int, int]) -> Any:
        return self.before[origin[0]].objects[origin[1]]

    def _leaf_before(self, origin: tuple[int, int]) -> tuple[int, int]:
        return (origin[0], self._entry_before(origin)[3])

    @staticmethod
    def _write_arrays(
        node: Any, entry: tuple[Any, ...], objects: list[Any], values: list[Any]
    ) -> None:
        """Writes bare arrays of a node whose structure is the same."""
        assert entry[0] == NODE
        for key, code in entry[2]:
            if code[0] >= 2:  # LEAF or TREE
                node._write(key, decode(code, objects, values))


class Packed:
    """The result of a pure function: a pytree whose static part is the Effects.

    JAX keeps the static part with the compiled program, so a call that hits it gets the Effects of
    the trace that made it. (Unflattening has to give a pytree back: JAX's C++ dispatch re-flattens
    the first result, and leaves the fast path if that gives anything but arrays.)

    Attributes:
      effects: what the function did.
      parts: the pair (out, outputs) for ``effects.apply``.
    """

    __slots__ = ("effects", "parts")

    def __init__(self, effects: Any, parts: Any):
        self.effects, self.parts = effects, parts


jax.tree_util.register_pytree_node(
    Packed,
    lambda packed: (packed.parts, packed.effects),
    lambda effects, parts: Packed(effects, parts),
)
