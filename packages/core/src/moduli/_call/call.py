"""A call taken apart: its values, a label for each, and its pure function.

A transform says how values are labelled (an axis, the carry, a sharding, the number of the
differentiated argument) and which of them JAX traces. :class:`Call` spreads the user's prefix over
the leaves of the bound arguments, checks that each value has one label, rebuilds the arguments
inside, and does to the caller's objects what the function did.
"""

from __future__ import annotations

import copy
import functools
import inspect
import itertools
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import jax

from moduli import errors
from moduli._base.node import Node
from moduli._call.bind import Binding, bind
from moduli._call.carried import is_array_like
from moduli._call.frame import Frame, New
from moduli._call.function import Function
from moduli._call.naming import Names, named
from moduli._call.prefixes import FilterPrefix, label_finder, labels_in, spread
from moduli._call.recorded_values import Given, carries_records
from moduli._call.signature import Leaf, Path, Signature
from moduli._graph.data import is_graph_leaf
from moduli._graph.holders import leaf_of
from moduli._graph.named_filters import check_names, names_in
from moduli._graph.state import State
from moduli._rngs.streams import Rngs, RngStream
from moduli._variable.box import Variable
from moduli._variable.kinds import RngState

__all__ = ["Call", "Labels", "Spot", "is_detailed_label", "label_key"]

P = TypeVar("P", bound=Callable[..., Any])
_DETAILED = (FilterPrefix, State, Node, Variable)
_STREAMS = (Rngs, RngStream, RngState)


class Spot(NamedTuple):
    """One place of a value, and the label that it has there.

    Attributes:
      root: the number of the root.
      path: from there.
      label: what the prefix gives.
    """

    root: int
    path: Path
    label: Any


def _first_label(call: Call, leaf: Leaf, one: Spot, other: Spot) -> Spot:
    """Returns the first of two places of one value; raises if their labels do not agree."""
    labels = call.labels
    assert labels is not None
    if labels.agree(one.label, other.label):
        return one
    first, second = [
        f"`{errors.format_path(spot.path)}` of {call.root_names[spot.root]}"
        for spot in (one, other)
    ]
    raise errors.StructureError(
        f"{call.transform}: {first} and {second} are the same {call.signature.describe(leaf)[0]}, "
        f"but {labels.option} gives it {one.label!r} there and {other.label!r} here; give both the "
        "same"
    )


class Labels(NamedTuple):
    """How a transform labels the values of a call.

    Attributes:
      option: the name of the user's prefix, for messages: "in_axes".
      prefix: the prefix of the positional arguments.
      valid: returns whether something is a label of this transform.
      expected: which labels there are, for messages.
      keyword: the label of all keyword arguments.
      convert: the canonical form of a valid label.
      agree: returns whether two labels of one value mean the same.
      recorded: the label of what a recording was given; what is recorded gets it, or that of an
        Intermediate.
      finder: of the values of one root, as of ``label_finder``: what the prefix has there, the path
        below it, and its name give ``(path, value) -> label``.
      settle: which of two places of one value counts; raises if they contradict each other.
    """

    option: str
    prefix: Any
    valid: Callable[[Any], bool]
    expected: str
    keyword: Any = None
    convert: Callable[[Any], Any] = lambda label: label
    agree: Callable[[Any, Any], bool] = operator.eq
    recorded: Any = None
    finder: Callable[[Any, Path, str], Callable[[Path, Any], Any]] = label_finder
    settle: Callable[[Call, Leaf, Spot, Spot], Spot] = _first_label


class Call:
    """The arguments of one call; its pure function takes those values that are traced.

    Values are counted in one order: those of the graphs, then the leaves of the other arguments.

    Args:
      transform: its name, for messages.
      args: positional arguments.
      kwargs: keyword arguments.
      names: the names of the positional arguments, for messages.
      function: the name of the user's function, for messages.
      labels: how the values are labelled; without it all are alike.
      binding: the arguments, if they are bound already.

    Attributes:
      binding, signature: see ``bind`` and ``signature``.
      values: the values of each graph; ``value_labels`` their labels.
      leaves: the other arguments' leaves; ``leaf_labels`` their labels.
      spots: of values whose label depends on the path, the place that counts.
      effects: what the function did, after ``run``.
      homes: for each output that is no result the leaf that it is the new value of, or None.
      written: the leaves among them that the function wrote.

    Example:
      >>> import moduli as nnx
      >>> from moduli import lowlevel
      >>> model = nnx.Dict({"w": nnx.Param(2.0), "n": nnx.Variable(1.0)})
      >>> call = lowlevel.Call("double", (model, 3.0), {})
      >>> call.trace([2, 0])  # the argument, then `w`; `n` is a constant
      >>> call.dynamic
      [3.0, 2.0]
      >>> copy, number = call.make_frame([30.0, 20.0]).args
      >>> copy["w"].value, copy["n"].value, number, model["w"].value
      (20.0, 1.0, 30.0, 2.0)
    """

    def __init__(
        self,
        transform: str,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        names: Sequence[str] | None = None,
        *,
        function: str = "",
        labels: Labels | None = None,
        binding: Binding | None = None,
    ):
        self.transform, self.function, self.labels = transform, function, labels
        self.binding = bind(args, kwargs) if binding is None else binding
        self.signature = Signature(self.binding)
        self.values = self.binding.values()
        self.leaves, self.treedef = jax.tree.flatten(self.binding.plain)
        keywords = [name for name in self.binding.names if not carries_records(name)]
        self.items = [*args, *[kwargs[name] for name in keywords]]
        self._names = range(len(args)) if names is None else names
        self._traced: dict[int, None] | None = None
        self.value_labels: list[list[Any]] = []
        self.leaf_labels: list[Any] = []
        self.spots: dict[Leaf, Spot] = {}
        self.effects: Any = None
        self.homes: list[Leaf | None] = []
        self.written: set[Leaf] = set()
        if labels is not None:
            self._label(labels, len(args), keywords)

    # -- values ------------------------------------------------------------------------------------

    def every(self) -> list[Any]:
        """All values."""
        return [*itertools.chain.from_iterable(self.values), *self.leaves]

    @property
    def traced(self) -> dict[int, None]:
        """The positions of the traced values, in order; by default all that JAX can trace."""
        if self._traced is None:
            every = enumerate(self.every())
            self._traced = dict.fromkeys([n for n, value in every if is_array_like(value)])
        return self._traced

    def trace(self, positions: Iterable[int]) -> None:
        """Says which values are traced, in which order; the others are constants."""
        self._traced = dict.fromkeys(positions)

    def pick(self, every: Sequence[Any]) -> list[Any]:
        """Picks, of one item for each value, those of the traced values."""
        return [every[position] for position in self.traced]

    @property
    def dynamic(self) -> list[Any]:
        """The traced values."""
        return self.pick(self.every())

    def is_dynamic(self, leaf: Leaf) -> bool:
        """Returns whether a value of a graph is traced."""
        return sum(map(len, self.values[: leaf[0]])) + leaf[1] in self.traced

    def with_dynamic(self, dynamic: Sequence[Any]) -> Call:
        """Returns the call with other traced values."""
        return self._with_values(self.merged(dynamic, self.every()))

    def detached(self) -> Call:
        """Returns the call without the caller's objects and traced values, for programs to keep."""
        every = [None if n in self.traced else value for n, value in enumerate(self.every())]
        copied = self._with_values(every)
        copied._spoken = self._spoken
        copied.items, copied.binding = [], None  # type: ignore[assignment]
        return copied

    def _with_values(self, every: Sequence[Any]) -> Call:
        copied = copy.copy(self)
        copied.values, copied.leaves = self.grouped(every)
        return copied

    def merged(self, dynamic: Sequence[Any], every: list[Any]) -> list[Any]:
        for position, value in zip(self.traced, dynamic, strict=True):
            every[position] = value
        return every

    def grouped(self, every: Sequence[Any]) -> tuple[list[list[Any]], list[Any]]:
        """The values of each graph, and the leaves of the other arguments."""
        groups, start = [], 0
        for group in self.values:
            groups.append(list(every[start : start + len(group)]))
            start += len(group)
        return groups, list(every[start:])

    def kind_key(self) -> Any:
        """What calls of one signature must have in common besides static values."""
        labels = self.all_labels()
        return (self.transform, tuple(map(type, labels)), tuple(labels), self.treedef)

    @property
    def keeps_records(self) -> bool:
        """Whether what is recorded inside has to be handed out."""
        return any(key.keeps for key in self.signature.recordings)

    # -- inside ------------------------------------------------------------------------------------

    def frame(self, every: Sequence[Any]) -> Frame:
        """Rebuilds the arguments around all values."""
        groups, leaves = self.grouped(every)
        return Frame(self.signature, groups, jax.tree.unflatten(self.treedef, leaves))

    def make_frame(self, dynamic: Sequence[Any], *, static: bool = True) -> Frame:
        """Rebuilds the arguments around the traced values.

        Args:
          dynamic: the values.
          static: put the other values in their places; otherwise None.
        """
        every = self.every()
        return self.frame(self.merged(dynamic, every if static else [None] * len(every)))

    def run(
        self,
        function: Function,
        dynamic: Sequence[Any],
        *,
        after: Callable[[Frame], None] | None = None,
        **finish: Any,
    ) -> Any:
        """Runs the user's function on rebuilt arguments; returns the pure function's outputs.

        No frame is kept: it holds tracers.

        Args:
          function: the function.
          dynamic: the traced values.
          after: what to do with the frame when the function has run.
          **finish: arguments of ``Frame.finish``.
        """
        frame = self.make_frame(dynamic)
        out = frame.run(self.transform, function.name, function.call)
        if after is not None:
            after(frame)
        return self.finish(frame, out, **finish)

    def finish(self, frame: Frame, out: Any, **finish: Any) -> Any:
        """Writes down what a function did in a frame; returns the pure function's outputs."""
        self.effects, outputs = frame.finish(out, **finish)
        self.homes = frame.homes
        self.written = {
            leaf
            for leaf, value in zip(frame.homes, outputs[1], strict=False)
            if leaf is not None and value is not frame.given[leaf[0]][leaf[1]]
        }
        return outputs

    def apply(self, outputs: Any, effects: Any = None) -> Any:
        """Does to the caller's objects what the function did; returns its result.

        Args:
          outputs: what the pure function returned: (result, new values).
          effects: what the function did, if the call did not run it itself.
        """
        effects = self.effects if effects is None else effects
        return effects.apply(self.binding.flats, self.values, *outputs)

    # -- names -------------------------------------------------------------------------------------

    def named(self, pure: P, function: Function, positions: Sequence[int] | None = None) -> P:
        """Gives a pure function of the traced values the names of the user's function.

        Args:
          pure: takes the traced values.
          function: the user's function.
          positions: the function's parameter for each positional argument; in order by default.
        """

        def pairs(values: Any) -> Any:
            names = self.value_names(function.signature, positions)
            return zip(self.pick(names), values, strict=True)

        return named(pure, function.call, pairs)

    def value_names(
        self, parameters: inspect.Signature | None, positions: Sequence[int] | None = None
    ) -> list[str]:
        """Returns the name of each value in the user's function.

        Args:
          parameters: the function's signature.
          positions: the function's parameter for each positional argument; in order by default.
        """
        return Names(parameters, self.signature, positions).flat(self.treedef)

    @functools.cached_property
    def _spoken(self) -> tuple[list[str], list[str]]:
        """The names of the roots and of the other arguments' leaves, for messages."""
        roots: list[str] = []
        leaves: list[str] = []
        keywords = [name for name in self.signature.names if not carries_records(name)]
        names = [n if isinstance(n, str) else f"argument {n}" for n in self._names]
        names += [f"argument {name!r}" for name in keywords]
        for name, item in zip(names, self.items, strict=True):
            for path, leaf in jax.tree_util.tree_flatten_with_path(item, is_leaf=is_graph_leaf)[0]:
                kind = roots if is_graph_leaf(leaf) else leaves
                kind.append(name + jax.tree_util.keystr(path))
        return roots + [name for name in self.signature.names if carries_records(name)], leaves

    @property
    def option(self) -> str:
        """The name of the user's prefix, for messages."""
        return "" if self.labels is None else self.labels.option

    @property
    def root_names(self) -> list[str]:
        """What messages call each module and Variable of the call."""
        return self._spoken[0]

    def place(self, root: int, path: Path) -> str:
        """Formats a path below one of the modules of the call."""
        text = f"`{errors.format_path(path)}`"
        names = self.root_names
        return text if self.labels is None and len(names) == 1 else f"{text} of {names[root]}"

    def describe(self, leaf: Leaf) -> str:
        """Describes where a value of a graph stands: kind, file and line, path, argument."""
        text, root, path = self.signature.describe(leaf)
        return f"the {text} at {self.place(root, path)}"

    def describe_all(self, position: int) -> str:
        """Describes where the value at a position stands."""
        for number, group in enumerate(self.values):
            if position < len(group):
                return self.describe((number, position))
            position -= len(group)
        return self._spoken[1][position]

    # -- labels ------------------------------------------------------------------------------------

    def _label(self, labels: Labels, count: int, keywords: Sequence[str]) -> None:
        option, each = f"{self.transform}: {labels.option}", labels.prefix
        if not isinstance(each, (tuple, list)):
            each = [each] * count
        elif len(each) != count:
            raise errors.StructureError(
                f"{option} has {len(each)} entries, but {self.function} was called with {count} "
                f"positional arguments: {each!r}"
            )
        each = [*each, *[labels.keyword] * len(keywords)]
        entries = [f"{option}[{n}]" for n in range(count)]
        entries += [f"{option} of {name!r}" for name in keywords]
        self._argument_of_leaf: list[int] = []
        self.argument_of_root: list[int] = []
        self._finders: list[Callable[[Path, Any], Any]] = []
        self._explicit: list[bool] = []
        self._streams: list[bool] = []
        self._label_of_root: list[Any] = []
        for number, (label, item, entry) in enumerate(zip(each, self.items, entries, strict=True)):
            whole = is_graph_leaf(item) or isinstance(item, jax.Array)
            leaves = [item] if whole else jax.tree.leaves(item, is_leaf=is_graph_leaf)
            for leaf, (found, base) in zip(leaves, spread(label, item, entry), strict=True):
                if is_graph_leaf(leaf):
                    self.argument_of_root.append(number)
                    self._finders.append(labels.finder(found, base, entry))
                    self._label_of_root.append(found)
                    self._streams.append(isinstance(leaf, _STREAMS))
                    explicit = isinstance(found, _DETAILED) or self._streams[-1]
                    self._explicit.append(explicit)
                else:
                    self.leaf_labels.append(self.checked(found, self._next_leaf))
                    self._argument_of_leaf.append(number)
        for _ in range(sum(map(carries_records, self.binding.names))):
            self.argument_of_root.append(len(each))
            self._finders.append(lambda path, leaf: labels.recorded)
            self._label_of_root.append(labels.recorded)
            self._streams.append(False)
            self._explicit.append(False)
        self.value_labels = [self._labels_of(labels, n) for n in range(len(self.binding.flats))]
        self._check_names(labels)

    def _check_names(self, labels: Labels) -> None:
        """Raises if a filter of a prefix is the name of a kind, which selects nothing."""
        named: list[FilterPrefix] = []
        for label in self._label_of_root:
            if isinstance(label, FilterPrefix) and next(names_in(label.filters), None) is not None:
                named += [label] if label not in named else []
        for prefix in named:
            pairs = [
                (path, leaf_of(flat.holders[index]))
                for number, flat in enumerate(self.binding.flats)
                for root, path, index in self.signature.leaf_places(number)
                if self._label_of_root[root] == prefix
            ]
            caller = f"{self.transform}: {labels.option}"
            check_names(pairs, prefix.filters, caller, any_name=False)

    def _next_leaf(self) -> str:
        return self._spoken[1][len(self.leaf_labels)]

    def _labels_of(self, labels: Labels, number: int) -> list[Any]:
        """The labels of the values of one graph."""
        flat, own = self.binding.flats[number], self.signature.roots(number)
        graphdef, uniform = flat.graphdef, self._label_of_root[own.start : own.stop]
        if (
            labels.finder is label_finder
            and not isinstance(uniform[0], _DETAILED)
            and all(label_key(other) == label_key(uniform[0]) for other in uniform)
            and labels.valid(uniform[0])
        ):
            return [labels.convert(uniform[0])] * graphdef.num_leaves
        spots: dict[int, Spot] = {}
        for root, path, index in self.signature.leaf_places(number):

            def where(root: int = root, path: Path = path) -> str:
                return f"`{errors.format_path(path)}` of {self.root_names[root]}"

            found = self._finders[root](path, leaf_of(flat.holders[index]))
            spot = Spot(root, path, self.checked(found, where))
            known = spots.get(index)
            if known is not None:
                spot = labels.settle(self, (number, index), known, spot)
            spots[index] = spot
        self.spots.update({(number, index): spot for index, spot in spots.items()})
        return [spots[index].label for index in range(graphdef.num_leaves)]

    def checked(self, label: Any, where: str | Callable[[], str], name: str | None = None) -> Any:
        """Returns a label in its canonical form.

        Args:
          label: what a prefix gives.
          where: the place of its value, for messages, or what formats it.
          name: the prefix, for messages: "vmap: out_axes".

        Raises:
          StructureError: if it is no label of this transform.
        """
        labels = self.labels
        assert labels is not None
        if not labels.valid(label):
            name = name or f"{self.transform}: {labels.option}"
            spot = where() if callable(where) else where
            raise errors.StructureError(
                f"{name} gives {spot} the label {label!r}; it must be {labels.expected}"
            )
        return labels.convert(label)

    def label_given(self, transform: str, size: int) -> None:
        """Gives the axis 0 to what recordings were given for this transform's elements."""
        for flat, labels in zip(self.binding.flats, self.value_labels, strict=True):
            for index, holder in enumerate(flat.holders):
                if isinstance(holder, Given):
                    crossings = holder.get_metadata("crossings")
                    if crossings and crossings[0] == (transform, size):
                        labels[index] = 0

    def is_explicit(self, leaf: Leaf) -> bool:
        """Returns whether the user chose the label for this value, not for a module around it.

        That is so below a StateAxes or another detailed prefix, and for streams that are passed
        as arguments.
        """
        own = self.signature.roots(leaf[0])
        if len(own) == 1:
            return self._explicit[own.start]
        places = self.signature.leaf_places(leaf[0])
        return any(self._explicit[root] for root, _, index in places if index == leaf[1])

    def is_chosen_stream(self, leaf: Leaf) -> bool:
        """Returns whether the user gave this part of a random stream its label as a stream.

        That is so for streams that are passed as arguments, and for those that a filter selects
        which does not select everything else too.

        Args:
          leaf: the stream's key or count, of a call that is bound.
        """
        holder = self.binding.flats[leaf[0]].holders[leaf[1]]
        for root, path, index in self.signature.leaf_places(leaf[0]):
            label = self._label_of_root[root]
            if index == leaf[1] and (
                self._streams[root]
                or (isinstance(label, FilterPrefix) and not label.is_rest(path, holder))
            ):
                return True
        return False

    def data_labels(self) -> list[Any]:
        """The labels of the arguments that are arrays or Variables, and no part of a module."""
        return [
            *self.leaf_labels,
            *[
                self.value_labels[number][index]
                for number in range(len(self.value_labels))
                for _, path, index in self.signature.leaf_places(number)
                if not path
            ],
        ]

    def label_of(self, leaf: Leaf) -> Any:
        """The label of a value of a graph."""
        return self.value_labels[leaf[0]][leaf[1]]

    def labels_below(self, number: int, index: int) -> list[Any]:
        """The labels of the values below an object of a graph; without any, of those around it."""
        root, path = self.signature.place_of_object(number, index)
        places = [place for place in self.signature.leaf_places(number) if place[0] == root]
        for length in range(len(path), -1, -1):
            above = path[:length]
            found = [
                self.value_labels[number][leaf] for _, at, leaf in places if at[:length] == above
            ]
            if found:
                return found
        label = self._label_of_root[root]
        assert self.labels is not None
        return [] if isinstance(label, _DETAILED) else [self.labels.convert(label)]

    def label_of_new(self, new: New) -> Any:
        """The label of a value that was made below an argument."""
        label = self._finders[new.root](new.path, leaf_of(new.holder))
        return self.checked(
            label, lambda: f"`{errors.format_path(new.path)}` of {self.root_names[new.root]}"
        )

    def all_labels(self) -> list[Any]:
        """The label of each value, with repetitions."""
        return [*itertools.chain.from_iterable(self.value_labels), *self.leaf_labels]

    def prefix_labels(self) -> list[Any]:
        """The labels in the prefix; a new Variable may get one that no argument has."""
        labels = self.labels
        assert labels is not None
        found = labels_in(labels.prefix)
        return [labels.convert(label) for label in found if labels.valid(label)]

    def donated_leaves(self, gone: Sequence[bool]) -> set[Leaf]:
        """The values of graphs whose every root belongs to a donated argument.

        Args:
          gone: for each positional argument whether it is donated.
        """
        found: set[Leaf] = set()
        for number, graphdef in enumerate(self.signature.graphdefs):
            owners = [self.argument_of_root[root] for root in self.signature.roots(number)]
            if all(owner < len(gone) and gone[owner] for owner in owners):
                found.update((number, index) for index in range(graphdef.num_leaves))
        return found

    def donated_marks(self, gone: Sequence[bool]) -> list[bool]:
        """For each value whether it is donated."""
        leaves = self.donated_leaves(gone)
        marks = [leaf in leaves for leaf in self.signature.leaves]
        return marks + [owner < len(gone) and gone[owner] for owner in self._argument_of_leaf]


def is_detailed_label(label: Any) -> bool:
    """Returns whether an entry of a prefix has a label for each value below it."""
    return isinstance(label, _DETAILED)


def label_key(label: Any) -> Any:
    """Returns a key that tells apart labels which are equal: 0 and False."""
    return (type(label), label)
