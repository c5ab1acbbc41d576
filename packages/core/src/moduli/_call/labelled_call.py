"""A call whose every value has a label: an axis, the carry, a sharding.

``LabelledCall`` spreads the user's prefix over the leaves of a bound call, checks that each value
has one label, and groups the outputs of the pure function by label, so that a transform passes JAX
one short prefix however many values there are.
"""

from __future__ import annotations

import copy
import inspect
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from moduli import errors
from moduli._base.node import Node
from moduli._call.bind import Binding, bind
from moduli._call.frame import Frame, New
from moduli._call.naming import Names
from moduli._call.prefixes import FilterPrefix, label_finder, labels_in, spread
from moduli._call.recorded_values import Given, Recorded, carries_records
from moduli._call.signature import Leaf, Signature
from moduli._graph.data import is_graph_leaf, plain_key
from moduli._graph.graphdef import root_and_path
from moduli._graph.holders import Slot
from moduli._graph.state import State
from moduli._rngs.streams import Rngs, RngStream
from moduli._variable.box import Variable
from moduli._variable.kinds import Intermediate, RngState

__all__ = ["LabelledCall", "Outputs"]

Path = tuple[Any, ...]
_PLAIN = -1
_DETAILED = (FilterPrefix, State, Node, Variable)
_STREAMS = (Rngs, RngStream, RngState)


class LabelledCall:
    """The arguments of one call with a label for each value.

    Args:
      transform: the name of the transform and of its prefix, for messages: ("vmap", "in_axes").
      function: the name of the user's function, for messages.
      args: positional arguments.
      kwargs: keyword arguments.
      labels: the prefix of the positional arguments.
      keyword_label: the label of all keyword arguments.
      valid: says whether something is a label of this transform.
      expected: which labels there are, for messages.
      convert: the canonical form of a valid label.
      agree: says whether two labels of one value mean the same.
      recorded_label: the label of what a recording was given; what is recorded gets it, or that of
        an Intermediate.
      binding: the arguments, if they are bound already.

    Attributes:
      binding, signature: see ``bind`` and ``signature``.
      values: the values of each graph; ``value_labels`` their labels.
      leaves: the other arguments' leaves; ``leaf_labels`` their labels.
    """

    def __init__(
        self,
        transform: tuple[str, str],
        function: str,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        labels: Any,
        *,
        keyword_label: Any,
        valid: Callable[[Any], bool],
        expected: str,
        convert: Callable[[Any], Any] = lambda label: label,
        agree: Callable[[Any, Any], bool] = operator.eq,
        recorded_label: Any = None,
        binding: Binding | None = None,
    ):
        self.transform, self.prefix_name, self.function = *transform, function
        self._valid, self._expected, self._convert = valid, expected, convert
        self._agree, self._prefix = agree, labels
        self.binding = bind(args, kwargs) if binding is None else binding
        self.signature = Signature(self.binding)
        self.values = self.binding.values()
        self.leaves, self.treedef = jax.tree.flatten(self.binding.plain)
        name = f"{self.transform}: {self.prefix_name}"
        each: Sequence[Any] = [labels] * len(args)
        if isinstance(labels, (tuple, list)):
            each = labels
            if len(each) != len(args):
                raise errors.StructureError(
                    f"{name} has {len(each)} entries, but {function} was called with {len(args)} "
                    f"positional arguments: {labels!r}"
                )
        self.leaf_labels: list[Any] = []
        self._argument_of_leaf: list[int] = []
        self._argument_of_root: list[int] = []
        self.leaf_names: list[str] = []
        self.root_names: list[str] = []
        self._finders: list[Callable[[Path, Any], Any]] = []
        self._explicit: list[bool] = []
        uniform: list[Any] = []
        records = [name for name in self.binding.names if carries_records(name)]
        keywords = self.binding.names[: len(self.binding.names) - len(records)]
        places: list[Any] = [*range(len(args)), *keywords]
        items = [*args, *[kwargs[name] for name in keywords]]
        for number, (place, item) in enumerate(zip(places, items, strict=True)):
            label = each[place] if isinstance(place, int) else keyword_label
            entry = f"{name}[{place}]" if isinstance(place, int) else f"{name} of {place!r}"
            where = f"argument {place!r}"
            paths = jax.tree_util.tree_flatten_with_path(item, is_leaf=is_graph_leaf)[0]
            marks = spread(label, item, entry)
            for (key_path, leaf), (found, base) in zip(paths, marks, strict=True):
                spot = where + jax.tree_util.keystr(key_path)
                if is_graph_leaf(leaf):
                    self.root_names.append(spot)
                    self._argument_of_root.append(number)
                    self._finders.append(label_finder(found, base, entry))
                    uniform.append(found)
                    self._explicit.append(
                        isinstance(found, _DETAILED) or isinstance(leaf, _STREAMS)
                    )
                else:
                    self.leaf_labels.append(self.checked(found, spot))
                    self.leaf_names.append(spot)
                    self._argument_of_leaf.append(number)
        for name in records:
            self.root_names.append(name)
            self._argument_of_root.append(len(items))
            self._finders.append(lambda path, leaf: recorded_label)
            uniform.append(recorded_label)
            self._explicit.append(False)
        self._label_of_root = uniform
        self.value_labels = self._label_values(uniform)

    def label_given(self, transform: str, size: int) -> None:
        """Gives the axis 0 to what recordings were given for this transform's elements."""
        for flat, labels in zip(self.binding.flats, self.value_labels, strict=True):
            for index, holder in enumerate(flat.holders):
                if isinstance(holder, Given):
                    crossings = holder.get_metadata("crossings")
                    if crossings and crossings[0] == (transform, size):
                        labels[index] = 0

    def checked(self, label: Any, spot: str, name: str | None = None) -> Any:
        """Returns a label in its canonical form.

        Args:
          label: what a prefix gives.
          spot: where, for messages.
          name: the prefix, for messages: "vmap: out_axes".

        Raises:
          StructureError: if it is no label of this transform.
        """
        if not self._valid(label):
            name = name or f"{self.transform}: {self.prefix_name}"
            raise errors.StructureError(
                f"{name} gives {spot} the label {label!r}; it must be {self._expected}"
            )
        return self._convert(label)

    def detached(self) -> LabelledCall:
        """Returns the call without the caller's objects and values, for programs to keep."""
        copied = copy.copy(self)
        copied.binding = None  # type: ignore[assignment]
        copied.values = [[None] * len(group) for group in self.values]
        copied.leaves = [None] * len(self.leaves)
        return copied

    def with_values(self, every: Sequence[Any]) -> LabelledCall:
        """Returns the call with other values, in the order of :meth:`all_values`."""
        copied = copy.copy(self)
        copied.values, start = [], 0
        for group in self.values:
            copied.values.append(list(every[start : start + len(group)]))
            start += len(group)
        copied.leaves = list(every[start:])
        return copied

    def kind_key(self) -> Any:
        """What calls of one signature must have in common besides static values."""
        labels = self.all_labels()
        return (self.transform, tuple(map(type, labels)), tuple(labels), self.treedef)

    def every_value(self) -> list[Any]:
        """The values that a program is given."""
        return self.all_values()

    @property
    def keeps_records(self) -> bool:
        """Whether what is recorded inside has to be handed out."""
        return any(key.keeps for key in self.signature.recordings)

    def _label_values(self, uniform: list[Any]) -> list[list[Any]]:
        labelled: list[list[Any]] = []
        start = 0
        for flat in self.binding.flats:
            graphdef = flat.graphdef
            stop = start + len(graphdef.roots)
            first = uniform[start]
            if (
                not isinstance(first, _DETAILED)
                and all(_key(other) == _key(first) for other in uniform[start:stop])
                and self._valid(first)
            ):
                labelled.append([self._convert(first)] * graphdef.num_leaves)
                start = stop
                continue
            many = stop - start > 1
            labels: list[Any] = [_PLAIN] * graphdef.num_leaves
            seen: dict[int, tuple[int, Path]] = {}
            for path, index in graphdef.path_to_leaf.items():
                root, rest = (start + path[0], path[1:]) if many else (start, path)
                holder = flat.holders[index]
                leaf = holder._value if isinstance(holder, Slot) else holder
                label = self._finders[root](rest, leaf)
                spot = f"`{errors.format_path(rest)}` of {self.root_names[root]}"
                label = self.checked(label, spot)
                known = seen.setdefault(index, (root, rest))
                if known == (root, rest):
                    labels[index] = label
                elif not self._agree(labels[index], label):
                    same = self.signature.describe((len(labelled), index))[0]
                    one = f"`{errors.format_path(known[1])}` of {self.root_names[known[0]]}"
                    raise errors.StructureError(
                        f"{self.transform}: {one} and {spot} are the same {same}, but "
                        f"{self.prefix_name} gives it {labels[index]!r} there and {label!r} here; "
                        "give both the same"
                    )
            labelled.append(labels)
            start = stop
        return labelled

    def describe(self, leaf: Leaf) -> str:
        """Describes where a value of a graph stands: kind, path, argument, file and line."""
        text, root, path = self.signature.describe(leaf)
        return f"the {text} at `{errors.format_path(path)}` of {self.root_names[root]}"

    def is_explicit(self, leaf: Leaf) -> bool:
        """Returns whether the user chose the label for this value, not for a module around it.

        That is so below a StateAxes or another detailed prefix, and for streams that are passed
        as arguments.
        """
        number, index = leaf
        graphdef = self.signature.graphdefs[number]
        start = sum(len(earlier.roots) for earlier in self.signature.graphdefs[:number])
        if len(graphdef.roots) == 1:
            return self._explicit[start]
        paths = graphdef.path_to_leaf.items()
        return any(self._explicit[start + path[0]] for path, leaf in paths if leaf == index)

    def label_of(self, leaf: Leaf) -> Any:
        """The label of a value of a graph."""
        return self.value_labels[leaf[0]][leaf[1]]

    def labels_below(self, number: int, index: int) -> list[Any]:
        """The labels of the values below an object of a graph; without any, of those around it."""
        graphdef = self.signature.graphdefs[number]
        path = graphdef.object_paths[index]
        root, inner = root_and_path(self.signature.graphdefs, number, path)
        top = len(path) - len(inner)
        places = graphdef.path_to_leaf.items()
        for length in range(len(path), top - 1, -1):
            above = path[:length]
            found = [
                self.value_labels[number][leaf] for place, leaf in places if place[:length] == above
            ]
            if found:
                return found
        label = self._label_of_root[root]
        return [] if isinstance(label, _DETAILED) else [self._convert(label)]

    def label_of_new(self, new: New) -> Any:
        """The label of a value that was made below an argument."""
        leaf = new.holder._value if isinstance(new.holder, Slot) else new.holder
        spot = f"`{errors.format_path(new.path)}` of {self.root_names[new.root]}"
        return self.checked(self._finders[new.root](new.path, leaf), spot)

    def all_labels(self) -> list[Any]:
        """All labels, with repetitions: of the graphs' values, then of the other leaves."""
        return [label for group in self.value_labels for label in group] + self.leaf_labels

    def prefix_labels(self) -> list[Any]:
        """The labels in the prefix; a new Variable may get one that no argument has."""
        return [self._convert(label) for label in labels_in(self._prefix) if self._valid(label)]

    def all_values(self) -> list[Any]:
        """All values, in the order of :meth:`all_labels`."""
        return [value for group in self.values for value in group] + self.leaves

    def describe_all(self, position: int) -> str:
        """Describes where the value at a position of :meth:`all_values` stands."""
        for number, group in enumerate(self.values):
            if position < len(group):
                return self.describe((number, position))
            position -= len(group)
        return self.leaf_names[position]

    def donated_leaves(self, gone: Sequence[bool]) -> set[Leaf]:
        """The values of graphs whose every root belongs to a donated argument.

        Args:
          gone: for each positional argument whether it is donated.
        """
        found: set[Leaf] = set()
        start = 0
        for number, graphdef in enumerate(self.signature.graphdefs):
            stop = start + len(graphdef.roots)
            owners = self._argument_of_root[start:stop]
            if all(owner < len(gone) and gone[owner] for owner in owners):
                found.update((number, index) for index in range(graphdef.num_leaves))
            start = stop
        return found

    def donated_marks(self, gone: Sequence[bool]) -> list[bool]:
        """For each value, in the order of :meth:`all_values`, whether it is donated."""
        leaves = self.donated_leaves(gone)
        marks = [
            (number, index) in leaves
            for number, group in enumerate(self.values)
            for index in range(len(group))
        ]
        return marks + [owner < len(gone) and gone[owner] for owner in self._argument_of_leaf]

    def value_names(
        self, parameters: inspect.Signature | None, positions: Sequence[int] | None = None
    ) -> list[str]:
        """Returns the name of each value in the user's function, as in :meth:`all_values`.

        Args:
          parameters: the function's signature.
          positions: the function's parameter for each positional argument; in order by default.
        """
        return Names(parameters, self.signature, positions).flat(self.treedef)

    def frame(self, values: Sequence[Any]) -> Frame:
        """Rebuilds the arguments.

        Args:
          values: (traced) values in the order of :meth:`all_values`.
        """
        groups, start = [], 0
        for group in self.values:
            groups.append(list(values[start : start + len(group)]))
            start += len(group)
        plain = jax.tree.unflatten(self.treedef, list(values[start:]))
        return Frame(self.signature, groups, plain)


class Outputs:
    """What a pure function returned, grouped by label.

    Args:
      call: the labelled call.
      frame: the frame in which the function ran.
      out: what the function returned.
      out_labels: the prefix of ``out``.
      name: what that prefix is, for messages: "vmap: out_axes".
      finish: arguments of ``Frame.finish``.

    Attributes:
      effects: see ``writeback``.
      labels: the label of each value, the result's leaves first.
      values: the values.
      count: how many of them are leaves of the result.
      homes: for each of the others which leaf of the arguments it is the new value of, or None.
      names: where each value stands, for messages.
    """

    def __init__(
        self,
        call: LabelledCall,
        frame: Frame,
        out: Any,
        out_labels: Any,
        name: str,
        *,
        intermediate_label: Any = None,
        **finish: Any,
    ):
        marks = spread(out_labels, out, name)
        self.effects, (rest, outputs) = frame.finish(out, strict=True, **finish)
        leaves, self._treedef = jax.tree.flatten(rest)
        pairs, _ = jax.tree_util.tree_flatten_with_path(out, is_leaf=is_graph_leaf)
        self.values = [*leaves, *outputs]
        self.count, self.homes = len(leaves), frame.homes
        self.labels, self.names = [], []
        finders, spots = [], []
        for (path, leaf), (label, base) in zip(pairs, marks, strict=True):
            spot = "the result" + "".join(f"[{plain_key(key)!r}]" for key in path)
            if is_graph_leaf(leaf):
                finders.append(label_finder(label, base, name))
                spots.append(spot)
                self._check_alias(call, frame, leaf, label, spot, name)
            else:
                self.labels.append(call.checked(label, spot, name))
                self.names.append(spot)
        roots = len(call.root_names)
        for position, home in enumerate(frame.homes):
            if home is not None:
                self.labels.append(call.label_of(home))
                self.names.append(call.describe(home))
                continue
            new = frame.new[position]
            if isinstance(new.holder, Recorded):
                place = new.holder.get_metadata("place")
                label = call.label_of_new(new) if intermediate_label is None else intermediate_label
                self.labels.append(label)
                self.names.append(f"what is recorded of `{errors.format_path(place.path)}`")
                continue
            kind = type(new.holder).__name__
            if new.root >= roots:
                leaf = new.holder._value if isinstance(new.holder, Slot) else new.holder
                spot = spots[new.root - roots]
                label = call.checked(finders[new.root - roots](new.path, leaf), spot, name)
            else:
                label, spot = call.label_of_new(new), call.root_names[new.root]
                if not isinstance(label, int) and isinstance(new.holder, Intermediate):
                    label = label if intermediate_label is None else intermediate_label
            self.labels.append(label)
            self.names.append(f"the new {kind} at `{errors.format_path(new.path)}` of {spot}")

    @staticmethod
    def _check_alias(
        call: LabelledCall, frame: Frame, root: Any, label: Any, spot: str, name: str
    ) -> None:
        """Raises if an argument is returned under another label than it was passed."""
        if isinstance(label, _DETAILED):
            return
        for leaf in frame.leaves_below(root):
            given = call.label_of(leaf)
            if _key(given) != _key(label) and isinstance(given, (int, type(None))):
                raise errors.StructureError(
                    f"{name} returns {spot} under {label!r}, but it contains "
                    f"{call.describe(leaf)}, which was passed under {given!r}; return it under the "
                    "same, or return a copy (`moduli.clone`)"
                )

    def rebuild(self, values: Sequence[Any]) -> tuple[Any, list[Any]]:
        """Puts (out, outputs) for ``effects.apply`` together from the transform's results."""
        rest = jax.tree.unflatten(self._treedef, list(values[: self.count]))
        return rest, list(values[self.count :])

    def grouped(self, labels: Sequence[Any]) -> list[list[Any]]:
        """The values of each of these labels."""
        places = {_key(label): number for number, label in enumerate(labels)}
        groups: list[list[Any]] = [[] for _ in labels]
        for label, value in zip(self.labels, self.values, strict=True):
            groups[places[_key(label)]].append(value)
        return groups

    def ungrouped(self, labels: Sequence[Any], groups: Sequence[Sequence[Any]]) -> list[Any]:
        """The inverse of :meth:`grouped`."""
        iterators = {_key(label): iter(group) for label, group in zip(labels, groups, strict=True)}
        return [next(iterators[_key(label)]) for label in self.labels]


def _key(label: Any) -> Any:
    return (type(label), label)
