"""Inside of a trace: the arguments as fresh objects, and what a function did to them.

A :class:`Frame` rebuilds the arguments around the tracers. The caller's objects are out of reach,
so an exception leaves them as they were. ``Frame.finish`` compares what the function left behind
with what it was given and writes the difference down as Effects: which values were written, and, if
the structure changed, the new structure. Effects are static; the values are outputs of the pure
function.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax

from moduli._base.node import Node
from moduli._base.static_keys import has_key
from moduli._base.type_variables import Path
from moduli._call.bind import PASS, ROOT
from moduli._call.recorded_values import RecordedValues, carries_records
from moduli._call.running import running
from moduli._call.signature import Leaf, Signature
from moduli._call.writeback import ChangedEffects, Effects
from moduli._graph.data import is_graph_leaf
from moduli._graph.flatten import flatten_roots, watch_containers
from moduli._graph.graphdef import LEAF, NODE, TREE, GraphDef, root_and_path
from moduli._graph.holders import Slot
from moduli._graph.unflatten import build, decode
from moduli._recording.recording import Recording
from moduli._variable.box import Variable
from moduli._variable.metadata import EMPTY

__all__ = ["Frame", "New"]


class New(NamedTuple):
    """Where a value stands that was not there before.

    Attributes:
      root: the number of the root: an argument's, or after those a returned object's.
      path: from there.
      holder: its Variable or Slot.
    """

    root: int
    path: Path
    holder: Any


class Frame:
    """The fresh objects on which a function works while it is traced.

    Args:
      signature: from the Binding.
      values: the (traced) values of each graph.
      plain: the (traced) other arguments.

    Attributes:
      args: the rebuilt positional arguments.
      kwargs: the rebuilt keyword arguments.
      given: the values that the fresh objects started with.
      recordings: the recordings that are running, for the function.
    """

    def __init__(self, signature: Signature, values: Sequence[Sequence[Any]], plain: Sequence[Any]):
        self._graphdefs = signature.graphdefs
        self._values = self.given = values
        self._objects = [
            build(graphdef, group)
            for graphdef, group in zip(signature.graphdefs, values, strict=True)
        ]
        for (number, index), variable in self.variables():
            object.__setattr__(variable, "_made", signature.sites[number][index])
        self._roots = [
            decode(code, objects, group)
            for graphdef, objects, group in zip(
                signature.graphdefs, self._objects, values, strict=True
            )
            for code in graphdef.roots
        ]
        self._watches = [
            watch
            for graphdef, objects in zip(signature.graphdefs, self._objects, strict=True)
            for watch in watch_containers(graphdef, objects)
        ]
        roots, others = iter(self._roots), iter(plain)
        args = [_rebuild(mark, roots, others) for mark in signature.template]
        count = len(args) - len(signature.names)
        self.args = args[:count]
        self.kwargs = dict(zip(signature.names, args[count:], strict=True))
        self.recordings: tuple[Recording, ...] = ()
        self._records: list[RecordedValues] = []
        if signature.recordings:
            carried = [n for n in signature.names if carries_records(n)]
            self._records = [self.kwargs.pop(name) for name in carried]
            given = [records.given() for records in self._records]
            self.recordings = tuple(
                key.open(self._objects, given.pop(0) if key.keeps else {})
                for key in signature.recordings
            )

    def finish(
        self,
        out: Any,
        *,
        keep: Callable[[Leaf], bool] | None = None,
        drop: Callable[[Leaf], bool] | None = None,
        strict: bool = False,
    ) -> Any:
        """Writes down what the function did.

        Afterwards ``homes`` has, for each output, the leaf that it is the new value of, or None;
        and ``new`` has, for each output without one, where it stands now.

        Args:
          out: what the function returned: any pytree, modules and Variables included.
          keep: says of a leaf that its value must be an output, written or not.
          drop: says of a leaf that its value is never an output: the caller keeps the old one.
          strict: a value stays with its own leaf: one that was moved to another Variable is an
            output there (needed where leaves are not alike, as under different axes).

        Returns:
          A pair: the Effects, and the pytree of values that the pure function has to return.
        """
        leaves, treedef = jax.tree.flatten(out, is_leaf=is_graph_leaf)
        marks = tuple([is_graph_leaf(leaf) for leaf in leaves])
        self.homes: list[Leaf | None] = []
        self.new: dict[int, New] = {}
        kept = [recording for recording in self.recordings if recording.keeps]
        if kept:  # none while the function may only read
            for recording, records in zip(kept, self._records, strict=True):
                records.write(recording.entries(), recording.counts())
        if not self._same_structure() or True in marks:
            return self._finish_changed(leaves, treedef, marks, keep, drop, strict)
        outputs: list[Any] = []
        written: list[Leaf] = []
        for number, group in enumerate(self._values):
            for index, (holder, value) in enumerate(zip(self._holders(number), group, strict=True)):
                leaf = (number, index)
                new = holder._value
                if new is value and (keep is None or not keep(leaf)):
                    continue
                if drop is None or not drop(leaf):
                    written.append(leaf)
                    outputs.append(new)
        self.homes = list(written)
        only_variables = all(None not in graphdef.leaf_objects for graphdef in self._graphdefs)
        return Effects(written, only_variables), (out, outputs)

    def insert(
        self, args: Iterable[tuple[int, Any]], kwargs: Mapping[str, Any] = MappingProxyType({})
    ) -> None:
        """Adds arguments that were taken out of the call because they are static.

        Args:
          args: (position, value) of the positional ones, in order.
          kwargs: the keyword arguments.
        """
        for position, value in args:
            self.args.insert(position, value)
        self.kwargs.update(kwargs)

    def run(
        self,
        transform: str,
        name: str,
        fun: Callable[..., Any],
        how: Callable[[Frame], Any] | None = None,
    ) -> Any:
        """Runs the user's function on the rebuilt arguments, in the place of a transform.

        Args:
          transform: its name, for messages.
          name: the function's name, for messages.
          fun: the function.
          how: ``(frame) -> result`` calls it, if it takes other arguments than these.

        Returns:
          What the function returns.
        """
        with running(transform, name, self.recordings, fun):
            return fun(*self.args, **self.kwargs) if how is None else how(self)

    def cross(self, transform: str, size: int) -> None:
        """Notes for the recordings that the transform adds an axis of this size around them."""
        for recording in self.recordings:
            recording.cross(transform, size)

    def mute(self) -> None:
        """Keeps nothing of what is recorded: the function may only read."""
        for recording in self.recordings:
            recording.mute()

    def values_now(self) -> list[list[Any]]:
        """The values that the fresh objects hold now, a list for each graph.

        Raises LookupError if the structure has changed.
        """
        if not self._same_structure():
            raise LookupError
        return [
            [holder._value for holder in self._holders(number)]
            for number in range(len(self._values))
        ]

    def _same_structure(self) -> bool:
        """Returns whether no argument has changed in anything but values."""
        self._note_static_changes()
        for book, watches in self._watches:
            if any(watch.changed() for watch in watches):
                book.changed()
        for graphdef, objects in zip(self._graphdefs, self._objects, strict=True):
            for index, item in enumerate(objects):
                if isinstance(item, Node):
                    if item._moduli.version:
                        return False
                elif item._metadata is not graphdef.metadatas.get(index, EMPTY):
                    return False
        return True

    def _note_static_changes(self) -> None:
        """Notes which nodes hold a static value, such as a config object, that has changed."""
        for graphdef, objects in zip(self._graphdefs, self._objects, strict=True):
            for index, name, key in graphdef.held:
                node = objects[index]
                if not node._moduli.version and not has_key(node._read(name), key):
                    node._moduli.version += 1

    def _holders(self, number: int) -> Sequence[Any]:
        graphdef, objects = self._graphdefs[number], self._objects[number]
        owners = graphdef.leaf_objects
        if None not in owners:
            return [objects[index] for index in owners if index is not None]
        start = sum(len(earlier.roots) for earlier in self._graphdefs[:number])
        return flatten_roots(self._roots[start : start + len(graphdef.roots)]).holders

    def _finish_changed(
        self,
        leaves: list[Any],
        treedef: Any,
        marks: tuple[bool, ...],
        keep: Callable[[Leaf], bool] | None,
        drop: Callable[[Leaf], bool] | None,
        strict: bool,
    ) -> Any:
        roots = [*self._roots, *[x for x, m in zip(leaves, marks, strict=True) if m]]
        after = flatten_roots(roots)
        detached = self._detached(set(map(id, after.objects)))
        if detached:
            after = flatten_roots([*roots, *[item for item, _, _ in detached]])
        home = self._homes()
        given = {
            id(value): (number, index)
            for number, group in enumerate(self._values)
            for index, value in enumerate(group)
        }
        origins = [home.get(id(item)) for item in after.objects]
        removed: dict[Leaf, int] = {}
        sources: list[Leaf | int] = []
        outputs: list[Any] = []
        for holder, path in zip(after.holders, after.graphdef.leaf_paths, strict=True):
            value = holder._value
            own = self._home_leaf(holder, home)
            source = given.get(id(value))
            if own is not None and drop is not None and drop(own):
                source = own
            elif (
                source is None or (strict and source != own) or (keep is not None and keep(source))
            ):
                if own is None:
                    root, path = root_and_path((after.graphdef,), 0, path)
                    if root >= len(roots):
                        _, root, above = detached[root - len(roots)]
                        path = (*above, *path)
                    self.new[len(outputs)] = New(root, path, holder)
                self.homes.append(own)
                sources.append(len(outputs))
                outputs.append(value)
                continue
            sources.append(source)
        still = set(map(id, after.objects))
        for leaf, variable in self.variables():
            if id(variable) in still or (drop is not None and drop(leaf)):
                continue
            number, index = leaf
            unchanged = variable._value is self._values[number][index]
            if unchanged and (keep is None or not keep(leaf)):
                continue
            removed[leaf] = len(outputs)
            self.homes.append(leaf)
            outputs.append(variable._value)
        effects = ChangedEffects(
            graphdef=after.graphdef,
            before=self._graphdefs,
            num_roots=len(self._roots),
            origins=origins,
            sources=sources,
            sites=[item._made if isinstance(item, Variable) else None for item in after.objects],
            changed=[isinstance(item, Node) and item._moduli.version > 0 for item in after.objects],
            removed=removed,
            treedef=treedef,
            marks=marks,
        )
        plain = [leaf for leaf, is_object in zip(leaves, marks, strict=True) if not is_object]
        return effects, (plain, outputs)

    def _detached(self, reached: set[int]) -> list[tuple[Any, int, tuple[Any, ...]]]:
        """Lists what was changed and then taken out of the arguments: somebody may still hold it.

        Args:
          reached: the ids of all objects below the arguments and the result.

        Returns:
          For each object that may have changed in more than the value of a Variable: the object,
          and the root and the path where it stood.
        """
        found = []
        for number, (graphdef, objects) in enumerate(
            zip(self._graphdefs, self._objects, strict=True)
        ):
            for index, (entry, item) in enumerate(zip(graphdef.objects, objects, strict=True)):
                if id(item) in reached:
                    continue
                if isinstance(item, Node):
                    changed = item._moduli.version or any(code[0] >= LEAF for _, code in entry[2])
                else:
                    changed = item._metadata is not graphdef.metadatas.get(index, EMPTY)
                if changed:
                    path = graphdef.object_paths[index]
                    found.append((item, *root_and_path(self._graphdefs, number, path)))
        return found

    def variables(self) -> list[tuple[Leaf, Variable[Any]]]:
        """Lists the fresh Variables of the arguments with the leaves whose values they hold."""
        return [
            ((number, entry[3]), item)
            for number, (graphdef, objects) in enumerate(
                zip(self._graphdefs, self._objects, strict=True)
            )
            for entry, item in zip(graphdef.objects, objects, strict=True)
            if isinstance(item, Variable)
        ]

    def new_variables(self) -> list[New]:
        """Lists the Variables that the function put below its arguments, and where they stand."""
        if self._same_structure():
            return []
        flat = flatten_roots(self._roots)
        home = self._homes()
        return [
            New(*root_and_path((flat.graphdef,), 0, path), holder)
            for holder, path in zip(flat.holders, flat.graphdef.leaf_paths, strict=True)
            if isinstance(holder, Variable) and id(holder) not in home
        ]

    def _homes(self) -> dict[int, tuple[int, int]]:
        """(graph, index) of each object of the arguments, by its id."""
        return {
            id(item): (number, index)
            for number, objects in enumerate(self._objects)
            for index, item in enumerate(objects)
        }

    def leaves_below(self, root: Any) -> list[Leaf]:
        """Lists which leaves of the arguments stand below an object that the function returns."""
        home = self._homes()
        if id(root) not in home:
            return []
        found = [self._home_leaf(holder, home) for holder in flatten_roots((root,)).holders]
        return [leaf for leaf in found if leaf is not None]

    def _home_leaf(self, holder: Any, home: dict[int, tuple[int, int]]) -> Leaf | None:
        """Finds which leaf of the arguments a holder is."""
        if isinstance(holder, Slot):
            origin = home.get(id(holder.node))
            if origin is None:
                return None
            slots = _slot_leaves(self._graphdefs[origin[0]])
            index = slots.get((origin[1], holder.key, holder.position))
            return None if index is None else (origin[0], index)
        origin = home.get(id(holder))
        if origin is None:
            return None
        return (origin[0], self._graphdefs[origin[0]].objects[origin[1]][3])


def _slot_leaves(graphdef: GraphDef) -> dict[tuple[int, Any, int | None], int]:
    """The leaf of each bare array: by object, key, and position in a pytree attribute."""
    found: dict[tuple[int, Any, int | None], int] = {}
    for index, entry in enumerate(graphdef.objects):
        if entry[0] != NODE:
            continue
        for key, code in entry[2]:
            if code[0] == LEAF:
                found[(index, key, None)] = code[1]
            elif code[0] == TREE:
                for position, child in enumerate(code[3]):
                    if child[0] == LEAF:
                        found[(index, key, position)] = child[1]
    return found


def _rebuild(mark: Any, roots: Any, plain: Any) -> Any:
    if mark == PASS:
        return next(plain)
    if mark == ROOT:
        return next(roots)
    treedef, marks = mark
    return jax.tree.unflatten(treedef, [next(roots if is_root else plain) for is_root in marks])
